"""A Jenga server that keeps every token of its window layers, as stock SGLang does for Gemma-3.

Its attention still reads windows only. What it gains over stock is the attention backend's; what
Jenga gains over it is memory's. Takes the flags of ``sglang.launch_server``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sglang.srt.plugins import load_plugins

from jenga_sglang.core.dependency import Dependency, Full, TableTrim
from jenga_sglang.core.ranges import Range


@dataclass(frozen=True)
class KeptWholly(Dependency):
    """Keeps every token, though attention reads those that ``read`` reads only."""

    read: Dependency

    def needed(self, length: int) -> tuple[Range, ...]:
        return Full().needed(length)

    def visible(self, position: int) -> tuple[Range, ...]:
        return self.read.visible(position)

    def trim(self) -> TableTrim | None:
        return self.read.trim()

    def peak_tokens(self, length: int) -> int:
        return length

    def __str__(self) -> str:
        return f"{self.read}, kept wholly"


def keep_windows_wholly() -> None:
    """Patch discovery. Raises ``AttributeError`` if it has changed."""
    from jenga_sglang.adapter import discovery

    dependency_of = discovery._dependency

    def kept(layer: Any, chunk: int | None) -> Dependency:
        found = dependency_of(layer, chunk)
        return found if layer.sliding_window_size in (None, -1) else KeptWholly(found)

    discovery._dependency = kept


# SGLang's scheduler is a spawned process, which imports this module under the second name.
if __name__ in ("__main__", "__mp_main__"):
    load_plugins()
    keep_windows_wholly()

if __name__ == "__main__":
    import sys

    from sglang.launch_server import run_server
    from sglang.srt.server_args import prepare_server_args

    run_server(prepare_server_args(sys.argv[1:]))
