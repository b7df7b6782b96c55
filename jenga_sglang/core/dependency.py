"""What a layer keeps of a sequence, and what it reads: one class for every kind of layer.

``needed(length)`` answers for a history of ``length`` computed tokens: the tokens that have to be
*kept*, since the *next* token (at position ``length``) or some later one may still read them.
Prefix hits, frees behind the window, eviction, admission and the tests all ask this function and
nothing else. It is legal when it only ever shrinks behind the front::

    needed(longer) ∩ [0, length)  ⊆  needed(length)        for longer ≥ length

so a token once let go is never asked for again, and a hole that spoils the prefix of length L
spoils every shorter prefix that ends after the hole (`core.hit` relies on both).

``visible(position)`` answers for one query: the tokens that it *reads*. It may read less than is
kept, for a later query may read more (a dilated window keeps what the next queries read)::

    visible(position)  ⊆  needed(position) and position itself

``trim()`` says in integers which part of a page table the kernels read, for a kind that they have a
mask for. What it says is what ``visible`` says. `check_legal` checks all three.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from jenga_sglang.core.ids import ceil_div
from jenga_sglang.core.ranges import Range, non_empty, union


class TableTrim(NamedTuple):
    """What a kernel's causal query reads of its page table, in tokens: itself and ``window_left``
    tokens before it (-1: all of them), inside its own chunk of ``chunk_tokens`` (0: no chunks)."""

    window_left: int = -1
    chunk_tokens: int = 0

    def first(self, position: int) -> int:
        """The first token that the query at ``position`` reads."""
        window = max(0, position - self.window_left) if self.window_left >= 0 else 0
        chunk = position // self.chunk_tokens * self.chunk_tokens if self.chunk_tokens else 0
        return max(window, chunk)


class Dependency(ABC):
    """What a group of layers keeps and reads. Frozen, hashable, and comparable by value."""

    @abstractmethod
    def needed(self, length: int) -> tuple[Range, ...]:
        """Token ranges that a history of ``length`` tokens still needs: ascending, disjoint,
        non-empty, inside ``[0, length)``."""

    @abstractmethod
    def visible(self, position: int) -> tuple[Range, ...]:
        """Token ranges that the query at ``position`` reads, its own token included: ascending,
        disjoint, non-empty, inside ``[0, position]``. For most kinds `ReadsWhatItKeeps`."""

    def trim(self) -> TableTrim | None:
        """What the kernels' queries read of their tables; None where no kernel has such a mask."""
        return None

    @abstractmethod
    def peak_tokens(self, length: int) -> int:
        """The most tokens that any history of at most ``length`` tokens needs at once."""

    @abstractmethod
    def __str__(self) -> str: ...

    def peak_pages(self, length: int, page_size: int) -> int:
        """The most pages that a running history of at most ``length`` tokens holds at once.

        What is no longer needed is let go page by page behind the last whole page, so a range
        that moves with the front holds the partial page at the front on top of its own.
        """
        own = ceil_div(self.peak_tokens(length), page_size)
        moves = self.peak_tokens(length) < length
        return min(ceil_div(length, page_size), own + moves)

    def reads_images_whole(self, *, in_full_layers: bool) -> bool:
        """Whether a query inside an image reads it to the end, in a model made for it: ones whose
        layers with a window do, and those without ``in_full_layers``."""
        return False

    def effective(self, max_length: int) -> Dependency:
        """The same dependency for histories up to ``max_length``, in its simplest form."""
        return self

    def whole(self, length: int) -> int:
        """The greatest length, at most ``length``, that a request may continue from at all."""
        return length

    # Whether the layers read what an encoder made of images or sound, and nothing else.
    reads_encoder = False

    @property
    def needs_last(self) -> bool:
        """Whether every history but the empty one is known to need its last token."""
        return False

    def after_encoder(self, encoder_tokens: int) -> Dependency:
        """The same in a request whose first ``encoder_tokens`` tokens an encoder made: those are
        for the layers with `reads_encoder`, and the others begin to count behind them."""
        return DecoderTokens(encoder_tokens, self) if encoder_tokens else self


class ReadsWhatItKeeps(Dependency):
    """A kind whose every query reads all that is kept for it, and itself."""

    def visible(self, position: int) -> tuple[Range, ...]:
        return tuple(union([*self.needed(position), Range(position, position + 1)]))


@dataclass(frozen=True)
class Full(ReadsWhatItKeeps):
    """Every earlier token."""

    needs_last = True

    def trim(self) -> TableTrim:
        return TableTrim()

    def reads_images_whole(self, *, in_full_layers: bool) -> bool:
        return in_full_layers

    def needed(self, length: int) -> tuple[Range, ...]:
        return (Range(0, length),) if length > 0 else ()

    def peak_tokens(self, length: int) -> int:
        return length

    def __str__(self) -> str:
        return "full"


@dataclass(frozen=True)
class SlidingWindow(ReadsWhatItKeeps):
    """The last ``window`` tokens, the query's own included, as model configs count them.

    The next token therefore reads ``window - 1`` tokens of the history. ``sink_tokens`` at the
    front of the sequence stay visible for ever.
    """

    window: int
    sink_tokens: int = 0

    def __post_init__(self) -> None:
        if self.window < 1 or self.sink_tokens < 0:
            raise ValueError(f"expected window >= 1 and sink_tokens >= 0, got {self}")

    def needed(self, length: int) -> tuple[Range, ...]:
        start = max(0, length - (self.window - 1))
        sink = min(self.sink_tokens, length)
        if start <= sink:
            return (Range(0, length),) if length > 0 else ()
        return non_empty(Range(0, sink), Range(start, length))

    def trim(self) -> TableTrim | None:
        return None if self.sink_tokens else TableTrim(window_left=self.window - 1)

    def reads_images_whole(self, *, in_full_layers: bool) -> bool:
        return True

    @property
    def needs_last(self) -> bool:
        return self.window > 1

    def peak_tokens(self, length: int) -> int:
        return min(length, self.window - 1 + self.sink_tokens)

    def peak_pages(self, length: int, page_size: int) -> int:
        sink = ceil_div(self.sink_tokens, page_size)
        return min(ceil_div(length, page_size), sink + ceil_div(self.window - 1, page_size) + 1)

    def effective(self, max_length: int) -> Dependency:
        # A window that never slides is full attention.
        return Full() if self.window + self.sink_tokens >= max_length else self

    def __str__(self) -> str:
        sink = f" + {self.sink_tokens} sink" if self.sink_tokens else ""
        return f"window {self.window}{sink}"


@dataclass(frozen=True)
class ChunkedLocal(ReadsWhatItKeeps):
    """The tokens of the current chunk of ``chunk`` tokens (Llama-4's local layers).

    A history that ends on a chunk boundary needs nothing: the next token opens a new chunk.
    """

    chunk: int

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"expected chunk >= 1, got {self}")

    def needed(self, length: int) -> tuple[Range, ...]:
        return non_empty(Range(length // self.chunk * self.chunk, length))

    def trim(self) -> TableTrim:
        return TableTrim(chunk_tokens=self.chunk)

    def peak_tokens(self, length: int) -> int:
        return min(length, self.chunk - 1)

    def peak_pages(self, length: int, page_size: int) -> int:
        # Chunks that end on a page boundary never hold pages of two chunks.
        straddles = self.chunk % page_size != 0
        return min(ceil_div(length, page_size), ceil_div(self.chunk, page_size) + straddles)

    def effective(self, max_length: int) -> Dependency:
        return Full() if self.chunk >= max_length else self

    def __str__(self) -> str:
        return f"chunk {self.chunk}"


@dataclass(frozen=True)
class LastState(ReadsWhatItKeeps):
    """The state after the last token of the history, as recurrent layers keep it.

    A state belongs to the page that ends with its token, so a prefix of whole pages can be
    continued when the state of its last page, a snapshot exactly there, is held.
    """

    needs_last = True

    def needed(self, length: int) -> tuple[Range, ...]:
        return (Range(length - 1, length),) if length > 0 else ()

    def peak_tokens(self, length: int) -> int:
        return min(length, 1)

    def peak_pages(self, length: int, page_size: int) -> int:
        # The state moves on in place; no second one is held at the front.
        return min(length, 1)

    def __str__(self) -> str:
        return "last state"


@dataclass(frozen=True)
class CrossAttention(Dependency):
    """All that an encoder made of a request's images or sound, and nothing of its text.

    How much that is each request knows: see `after_encoder`. On its own it answers for requests
    that are nothing else.
    """

    reads_encoder = True

    def needed(self, length: int) -> tuple[Range, ...]:
        return EncoderTokens(length).needed(length)

    def visible(self, position: int) -> tuple[Range, ...]:
        return EncoderTokens(position).visible(position)

    def trim(self) -> TableTrim:
        return TableTrim()  # of a table that has nothing of the text

    def peak_tokens(self, length: int) -> int:
        return length

    def after_encoder(self, encoder_tokens: int) -> Dependency:
        return EncoderTokens(encoder_tokens)

    def __str__(self) -> str:
        return "cross"


@dataclass(frozen=True)
class EncoderTokens(Dependency):
    """The first ``tokens`` tokens of a history, where SGLang puts what an encoder made (images).

    What cross-attention layers of an encoder-decoder model need; its other layers need
    `DecoderTokens`. An encoder runs once, so a request continues behind all of them or not at all.
    """

    tokens: int

    def __post_init__(self) -> None:
        if self.tokens < 0:
            raise ValueError(f"expected tokens >= 0, got {self}")

    def needed(self, length: int) -> tuple[Range, ...]:
        return non_empty(Range(0, min(self.tokens, length)))

    def visible(self, position: int) -> tuple[Range, ...]:
        return self.needed(position)

    def peak_tokens(self, length: int) -> int:
        return min(self.tokens, length)

    def peak_pages(self, length: int, page_size: int) -> int:
        return ceil_div(self.peak_tokens(length), page_size)

    def whole(self, length: int) -> int:
        return length if length >= self.tokens else 0

    def __str__(self) -> str:
        return f"first {self.tokens}"


@dataclass(frozen=True)
class DecoderTokens(Dependency):
    """What ``text`` says of the tokens behind the first ``skipped`` ones, which only
    `EncoderTokens` layers read."""

    skipped: int
    text: Dependency = Full()

    def __post_init__(self) -> None:
        if self.skipped < 0:
            raise ValueError(f"expected skipped >= 0, got {self}")

    def needed(self, length: int) -> tuple[Range, ...]:
        return self._behind(self.text.needed(max(0, length - self.skipped)))

    def visible(self, position: int) -> tuple[Range, ...]:
        if position < self.skipped:
            return ()
        return self._behind(self.text.visible(position - self.skipped))

    def _behind(self, ranges: tuple[Range, ...]) -> tuple[Range, ...]:
        return tuple(Range(r.start + self.skipped, r.stop + self.skipped) for r in ranges)

    def peak_tokens(self, length: int) -> int:
        return self.text.peak_tokens(max(0, length - self.skipped))

    def peak_pages(self, length: int, page_size: int) -> int:
        text_pages = self.text.peak_pages(max(0, length - self.skipped), page_size)
        straddles = self.skipped % page_size != 0
        pages = max(0, ceil_div(length, page_size) - self.skipped // page_size)
        return min(pages, text_pages + straddles)

    def effective(self, max_length: int) -> Dependency:
        text = self.text.effective(max_length)
        return DecoderTokens(self.skipped, text) if self.skipped else text

    def whole(self, length: int) -> int:
        if length < self.skipped:
            return 0
        return self.skipped + self.text.whole(length - self.skipped)

    def __str__(self) -> str:
        text = "" if self.text == Full() else f": {self.text}"
        return f"after {self.skipped}{text}"


def check_legal(dependency: Dependency, lengths: Iterable[int]) -> None:
    """Raise ``ValueError`` unless ``dependency`` keeps its contract on ``lengths``, in order."""
    previous: set[int] = set()
    previous_length = 0
    for length in sorted(lengths):
        now = _tokens(dependency.needed(length))
        if any(t < 0 or t >= length for t in now):
            raise ValueError(f"{dependency} needs tokens outside [0, {length})")
        if grown := sorted(t for t in now - previous if t < previous_length):
            raise ValueError(
                f"{dependency} needs token {grown[0]} at length {length}, which it had let go "
                f"at length {previous_length}"
            )
        if len(now) > dependency.peak_tokens(length):
            raise ValueError(f"{dependency} needs more than its peak_tokens({length})")
        _check_visible(dependency, length, now)
        previous, previous_length = now, length


def _check_visible(dependency: Dependency, position: int, needed: set[int]) -> None:
    read = _tokens(dependency.visible(position))
    if lost := sorted(read - needed - {position}):
        raise ValueError(f"{dependency} reads token {lost[0]} at {position}, which it had let go")
    trim = dependency.trim()
    if trim and read | {position} != set(range(trim.first(position), position + 1)):
        raise ValueError(f"{dependency} reads other tokens at {position} than {trim}")


def _tokens(ranges: Iterable[Range]) -> set[int]:
    return {t for r in ranges for t in range(r.start, r.stop)}


def reads_everything(dependency: Dependency, max_length: int) -> bool:
    """Whether a history of ``max_length`` tokens still needs all of them."""
    return dependency.needed(max_length) == (Range(0, max_length),)
