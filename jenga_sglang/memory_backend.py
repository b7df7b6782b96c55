"""Jenga on SGLang's registry of memory backends (`registry.py`), where no hook is needed for what
the registry covers."""

from __future__ import annotations

from typing import Any

from jenga_sglang import flags
from jenga_sglang.activation import activate


class JengaMemoryBackend:
    """What SGLang calls when ``--memory-backend jenga`` is chosen."""

    def prepare(self, values: dict[str, Any]) -> None:
        """Settle the fields of ServerArgs in ``values`` and hook this process. Raises
        ``SystemExit`` with one line for a combination that is not supported."""
        name = values["memory_backend"]
        flags.apply_flag(values)
        values["memory_backend"] = name
        activate(serves_http=True)

    def build_pools(self, configurator: Any, sizes: Any) -> Any:
        from jenga_sglang.adapter.start.build import build_pools

        return build_pools(configurator, sizes)


JENGA = JengaMemoryBackend()
