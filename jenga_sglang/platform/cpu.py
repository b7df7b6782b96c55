"""The CPU as an SGLang platform: torch operators only, gloo between ranks, nothing to build.

SGLang's own CPU path needs a kernel package that is built from source. An out-of-tree platform
whose dispatch key is `native` makes every operator take its plain torch version instead.

SGLang imports this module while it is itself being imported; anything else imports `sglang` first.
"""

import logging
from pathlib import Path
from typing import Any

import psutil
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform

from jenga_sglang import settings
from jenga_sglang.platform import defaults, draft_slots, speculative
from jenga_sglang.platform.threads import share_cores

logger = logging.getLogger(__name__)

CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


def container_limit_bytes() -> int | None:
    """The most memory that this process's container may use, or None where nothing limits it."""
    try:
        text = CONTAINER_LIMIT.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


NOTICE = (
    "No accelerator, and no other CPU platform of SGLang's: jenga-sglang's takes this process, "
    "with or without --memory-backend jenga, and runs it in torch operators. "
    f"{settings.name_of('cpu_platform')}=0 turns it off."
)


class JengaCpuPlatform(CpuDeviceMixin, SRTPlatform):
    """Runs the unmodified server on the CPU: no Triton, no graphs, no pinned memory."""

    _enum = PlatformEnum.OOT
    capabilities = PlatformCapabilities()

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Decide what a CPU decides; the user's choices stand where there is a choice."""
        logger.warning(NOTICE)
        defaults.set_attention_backend(server_args)
        defaults.set_lora_backend(server_args)
        defaults.set_moe_runner(server_args)
        defaults.disable_device_features(server_args)
        defaults.bound_pool(server_args)
        share_cores(server_args.tp_size * server_args.pp_size * server_args.dp_size)

    def init_backend(self) -> None:
        """Give layers, LoRA operators and transfers that run here, where this platform runs."""
        from jenga_sglang.platform import lora, operators, transfer

        operators.install()
        lora.install()
        transfer.install()

    def supports_speculative_algorithm(self, algorithm: str) -> bool:
        return algorithm in speculative.ALGORITHMS

    def get_speculative_cache_locs_fn(self) -> Any:
        return draft_slots.assign_extend_cache_locs

    def get_default_attention_backend(self) -> str:
        return defaults.STOCK_ATTENTION_BACKEND

    def get_device(self, device_id: int | None = 0) -> str:
        """Return "cpu" as a string: SGLang stores it in `--device` and compares it as such."""
        return "cpu"

    def get_device_total_memory(self, device_id: int = 0) -> int:
        """Return the bytes this process may use: the machine's, or the container's if less."""
        total_bytes = int(psutil.virtual_memory().total)
        limit_bytes = container_limit_bytes()
        return total_bytes if limit_bytes is None else min(total_bytes, limit_bytes)

    def get_compile_backend(self, mode: str | None = None) -> str:
        """Return the backend of `torch.compile` that needs no C++ compiler."""
        return "eager"
