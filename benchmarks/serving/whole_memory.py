"""A Jenga server that keeps every token of its window layers, as stock SGLang does for Gemma-3.

Its attention still reads windows only. What it gains over stock is the attention backend's; what
Jenga gains over it is memory's. Takes the flags of ``sglang.launch_server``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sglang.srt.plugins import load_plugins

from jenga_sglang.core.dependency import Dependency, Full, Range, SlidingWindow


@dataclass(frozen=True)
class KeptWholly(Dependency):
    """Needs every token, though attention reads those of ``read`` only."""

    read: SlidingWindow

    def needed(self, length: int) -> tuple[Range, ...]:
        return Full().needed(length)

    def peak_tokens(self, length: int) -> int:
        return length

    def __str__(self) -> str:
        return f"{self.read}, kept wholly"


def keep_windows_wholly() -> None:
    """Patch discovery and the torch backend. Raises ``AttributeError`` if they have changed."""
    from jenga_sglang.adapter import discovery, torch_backend

    dependency_of = discovery._dependency
    first_visible, visible = torch_backend.first_visible, torch_backend.visible

    def kept(layer: Any, chunk: int | None) -> Dependency:
        found = dependency_of(layer, chunk)
        return KeptWholly(found) if isinstance(found, SlidingWindow) else found

    def read(dependency: Dependency) -> Dependency:
        return dependency.read if isinstance(dependency, KeptWholly) else dependency

    discovery._dependency = kept
    torch_backend.first_visible = lambda d, position: first_visible(read(d), position)
    torch_backend.visible = lambda d, queries, first: visible(read(d), queries, first)


# SGLang's scheduler is a spawned process, which imports this module under the second name.
if __name__ in ("__main__", "__mp_main__"):
    load_plugins()
    keep_windows_wholly()

if __name__ == "__main__":
    import sys

    from sglang.launch_server import run_server
    from sglang.srt.server_args import prepare_server_args

    run_server(prepare_server_args(sys.argv[1:]))
