"""Jenga on SGLang's registry of memory backends, where SGLang has one.

SGLang 0.5.23 as published has none: `patches/` has it for those who build from source. There, no
hook is needed for what the registry covers.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from jenga_sglang import flags

REGISTRY = "sglang.srt.mem_cache.memory_backend"


def registry() -> Any | None:
    """SGLang's registry module, or None in an SGLang without one."""
    try:
        return import_module(REGISTRY)
    except ModuleNotFoundError as error:
        if error.name != REGISTRY:
            raise
        return None


class JengaMemoryBackend:
    """What SGLang calls when ``--memory-backend jenga`` is chosen."""

    def prepare(self, values: dict[str, Any]) -> None:
        """Settle the fields of ServerArgs in ``values`` and hook this process. Raises
        ``SystemExit`` with one line for a combination that is not supported."""
        from jenga_sglang.plugin import activate

        name = values["memory_backend"]
        flags.apply_flag(values)
        values["memory_backend"] = name
        activate(serves_http=True)

    def build_pools(self, configurator: Any, sizes: Any) -> Any:
        from jenga_sglang.adapter.build import build_pools

        return build_pools(configurator, sizes)


JENGA = JengaMemoryBackend()
