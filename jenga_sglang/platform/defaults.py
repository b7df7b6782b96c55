"""What server arguments become on a CPU; SGLang records each assignment as the platform's."""

import logging
from typing import Any

logger = logging.getLogger(__name__)

STOCK_ATTENTION_BACKEND = "torch_native"
LORA_BACKEND = "torch_native"
JENGA_ATTENTION_BACKEND = "jenga_torch"

# Other programs need the memory too, and SGLang writes to every byte of its pool at start-up.
DEFAULT_POOL_TOKENS = 65_536
# SGLang's own default sets 1.5 MB aside for every token of a step, as a GPU may need for its
# activations: 24 GB, and so perhaps all there is, where prompts are not cut.
DEFAULT_MEMORY_FRACTION = 0.8


def set_attention_backend(server_args: Any) -> None:
    """Choose the attention backend that this platform can run, unless the user named another.

    SGLang has already filled an unset backend with `intel_amx` on x86: that is its guess for the
    device, and the kernels behind it are absent here.
    """
    if server_args.attention_backend not in (None, "intel_amx"):
        return
    jenga = server_args.radix_cache_backend == "jenga"
    server_args.attention_backend = JENGA_ATTENTION_BACKEND if jenga else STOCK_ATTENTION_BACKEND


def set_lora_backend(server_args: Any) -> None:
    """The only one of SGLang's LoRA backends without kernels; its default is another."""
    server_args.lora_backend = LORA_BACKEND


def set_moe_runner(server_args: Any) -> None:
    """Name the runner whose layout of experts the torch operators read, unless the user named one:
    for gpt-oss SGLang would choose another, with kernels that are absent here."""
    if server_args.moe_runner_backend == "auto":
        server_args.moe_runner_backend = "triton"


def disable_device_features(server_args: Any) -> None:
    """Turn off what a CPU has none of, and let an idle scheduler sleep.

    A scheduler that polls keeps a core busy. Beside a GPU that core is spare; here it is one of
    those that compute.
    """
    from sglang.srt.model_executor.cuda_graph_config import Backend, Phase, with_phase

    config = server_args.cuda_graph_config
    for phase in (Phase.DECODE, Phase.PREFILL):
        config = with_phase(config, phase, backend=Backend.DISABLED)
    server_args.cuda_graph_config = config
    server_args.disable_custom_all_reduce = True
    server_args.sleep_on_idle = True


def bound_pool(server_args: Any) -> None:
    """Bound the KV pool in tokens when no flag sizes it, and in memory in any case."""
    if server_args.max_total_tokens is None and server_args.mem_fraction_static is None:
        server_args.max_total_tokens = max(DEFAULT_POOL_TOKENS, server_args.context_length or 0)
        logger.warning(
            "The KV pool holds at most %d tokens; --max-total-tokens or --mem-fraction-static "
            "sets another size.",
            server_args.max_total_tokens,
        )
    if server_args.mem_fraction_static is None:
        server_args.mem_fraction_static = DEFAULT_MEMORY_FRACTION
