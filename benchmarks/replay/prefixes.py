"""What requests share, computed from the trace alone: the hit bound and the useful bytes."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.replay.geometry import Geometry
from benchmarks.replay.trace import Piece, Request


@dataclass
class _Node:
    """Everything seen so far ends or goes on here: next segment -> length -> node after it."""

    children: dict[str, dict[int, "_Node"]] = field(default_factory=lambda: defaultdict(dict))


class InfiniteCache:
    """A prefix cache that never evicts. Sequences are lists of pieces, never tokens."""

    def __init__(self) -> None:
        self._root = _Node()

    def match_tokens(self, pieces: Sequence[Piece]) -> int:
        """Return the longest prefix, in tokens, that was inserted before. Mutates nothing."""
        node, matched = self._root, 0
        for segment, length in pieces:
            known = node.children.get(segment, {})
            if length not in known:
                # Runs of one segment agree up to the shorter one, and differ after it.
                return matched + max((min(length, other) for other in known), default=0)
            node, matched = known[length], matched + length
        return matched

    def insert(self, pieces: Iterable[Piece]) -> None:
        """Remember a sequence."""
        node = self._root
        for segment, length in pieces:
            node = node.children[segment].setdefault(length, _Node())


def hit_bound(requests: Sequence[Request]) -> float:
    """Return the share of prompt tokens that an infinite cache would have, in trace order.

    The last prompt token is always computed, so it never counts as a hit.
    """
    cache = InfiniteCache()
    hit_tokens = prompt_tokens = 0
    for request in sorted(requests, key=lambda r: r.arrival):
        hit_tokens += min(cache.match_tokens(request.prompt), request.prompt_tokens - 1)
        prompt_tokens += request.prompt_tokens
        cache.insert([*request.prompt, (request.output_segment, request.output_tokens)])
    return hit_tokens / prompt_tokens


def shared_bytes(geometry: Geometry, requests: Sequence[Request]) -> int:
    """Return the bytes of all that a later request of the trace hits, each once: what a cache must
    have room for that is to hit as an infinite one does."""
    cache, hits, states = InfiniteCache(), [], set()
    for request in sorted(requests, key=lambda r: r.arrival):
        matched = min(cache.match_tokens(request.prompt), request.prompt_tokens - 1)
        cache.insert([*request.prompt, (request.output_segment, request.output_tokens)])
        if matched:
            hits.append((request, matched))
            states.add(tuple(_history(request, matched)[0]))
    rows = useful_bytes(geometry, hits) - geometry.request_bytes * len(hits)
    return rows + geometry.request_bytes * len(states)


def useful_bytes(geometry: Geometry, running: Iterable[tuple[Request, int]]) -> int:
    """Return the bytes that running requests depend on: shared tokens counted once, and states.

    `running` gives each request with the tokens of its history that have KV. The bytes are those
    of the real geometry, without page slack.
    """
    histories = [_history(request, length) for request, length in running]
    rows = sum(
        group.token_bytes
        * _union_tokens([(pieces, group.needed_start(length)) for pieces, length in histories])
        for group in geometry.row_groups
    )
    return rows + geometry.request_bytes * len(histories)


def _history(request: Request, length: int) -> tuple[list[Piece], int]:
    """Cut prompt + output to `length` tokens."""
    pieces: list[Piece] = []
    left = length
    for segment, size in (*request.prompt, (request.output_segment, request.output_tokens)):
        pieces.append((segment, min(size, left)))
        left -= size
        if left <= 0:
            break
    return pieces, length


def _union_tokens(sequences: Iterable[tuple[list[Piece], int]]) -> int:
    """Count distinct tokens of `[start, end)` over sequences that may share a prefix.

    Two tokens are one when the full pieces before them, their segment and their offset agree.
    """
    intervals: dict[tuple[object, str], list[tuple[int, int]]] = defaultdict(list)
    for pieces, start in sequences:
        path: object = None
        position = 0
        for segment, length in pieces:
            if position + length > start:
                intervals[path, segment].append((max(0, start - position), length))
            # Nested tuples: equal for equal paths, and hashed by content.
            path = hash((path, segment, length))
            position += length
    return sum(_covered(spans) for spans in intervals.values())


def _covered(spans: list[tuple[int, int]]) -> int:
    """Return the length of the union of half-open intervals."""
    total = end = 0
    for lo, hi in sorted(spans):
        total += max(0, hi - max(lo, end))
        end = max(end, hi)
    return total
