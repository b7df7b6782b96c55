"""What a user may ask of a model's layers: `--jenga-kv-dtype` and `--jenga-keep`.

Both are off by default, and change answers: the one rounds K and V of some layers, the other has
layers forget what they were trained to read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jenga_sglang.core.dependency import Dependency, Full, SlidingWindow
from jenga_sglang.refusal import refuse

KV_DTYPE_FLAG = "--jenga-kv-dtype"
KEEP_FLAG = "--jenga-keep"
# Kinds of layers that keep K and V, as the name of a layer group begins.
KINDS = ("full", "window", "chunk", "cross")
KV_DTYPES = ("bfloat16", "float16", "float32", "fp8_e4m3", "fp8_e5m2")
_KEPT = re.compile(r"(?:(\d+)(?:-(\d+))?=)?(\d+)\+(\d+)")


@dataclass(frozen=True)
class KvDtypes:
    """The dtype of K and V by kind of layer; a kind without one has that of `--kv-cache-dtype`."""

    by_kind: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> KvDtypes:
        """``full=fp8_e4m3,window=bfloat16``. Raises ``ValueError`` with what to write instead."""
        by_kind: dict[str, str] = {}
        for item in filter(None, text.split(",")):
            kind, _, dtype = item.partition("=")
            if kind not in KINDS or dtype not in KV_DTYPES:
                raise ValueError(
                    f"{item} is not KIND=DTYPE; kinds are {', '.join(KINDS)}, dtypes "
                    f"{', '.join(KV_DTYPES)}; separate several with commas"
                )
            by_kind[kind] = dtype
        return cls(by_kind)

    def of(self, dependency: Dependency) -> str | None:
        """The dtype that layers with ``dependency`` were given, if any."""
        return self.by_kind.get(_kind(dependency))

    def check(self, dependencies: Iterable[Dependency]) -> None:
        """Raise ``SystemExit`` with one line for a kind that none of a model's layers is of."""
        there = dict.fromkeys(_kind(dependency) for dependency in dependencies)
        for kind, dtype in self.by_kind.items():
            if kind not in there:
                raise refuse(
                    f"{KV_DTYPE_FLAG} {kind}={dtype}",
                    f"is about layers that this model does not have; it has {', '.join(there)}",
                )


@dataclass(frozen=True)
class Kept:
    """What ``layers`` are to keep; None are all that have full attention."""

    layers: range | None
    dependency: SlidingWindow


@dataclass(frozen=True)
class Keep:
    """Full-attention layers that are to keep a few first tokens and a window only."""

    items: tuple[Kept, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Keep:
        """``4+1024`` for all full layers, ``0-3=4+4096,4-31=4+512`` for some; the last that names
        a layer counts. Raises ``ValueError`` with what to write instead."""
        items = []
        for item in filter(None, text.split(",")):
            match = _KEPT.fullmatch(item)
            if match is None or int(match[4]) < 1:
                raise ValueError(
                    f"{item} is not [LAYERS=]FIRST+WINDOW; write 4+1024 for 4 first tokens and a "
                    "window of 1,024 in every full layer, or 0-15=4+1024 for some layers"
                )
            layers = range(int(match[1]), int(match[2] or match[1]) + 1) if match[1] else None
            if layers is not None and not layers:
                raise ValueError(f"{item} ends before it begins; write the lower layer first")
            items.append(Kept(layers, SlidingWindow(int(match[4]), sink_tokens=int(match[3]))))
        return cls(tuple(items))

    def of(self, layer: int, dependency: Dependency) -> Dependency:
        """What ``layer``, which would keep ``dependency``, is to keep."""
        if dependency != Full():
            return dependency
        for item in reversed(self.items):
            if item.layers is None or layer in item.layers:
                return item.dependency
        return dependency

    def check(self, dependencies: Mapping[int, Dependency]) -> None:
        """Raise ``SystemExit`` with one line for layers, by their numbers in a model, that cannot
        keep less."""
        full = [layer for layer, dependency in dependencies.items() if dependency == Full()]
        if self.items and not full:
            raise refuse(KEEP_FLAG, "is for layers with full attention, and there are none")
        for layer in [layer for item in self.items for layer in item.layers or ()]:
            if layer not in full:
                has = dependencies.get(layer, "no K and V")
                raise refuse(
                    KEEP_FLAG,
                    f"is for layers with full attention, and layer {layer} has {has}; name layers "
                    f"among {_ranges(full)}",
                )


# What is so where the user asks for nothing.
AS_THE_REST = KvDtypes()
AS_TRAINED = Keep()


def _kind(dependency: Dependency) -> str:
    return str(dependency).split()[0]


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending ``numbers`` as people write them: 0-3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
