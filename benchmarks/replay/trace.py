"""Requests of a trace, and the tokens that their segments stand for."""

import hashlib
import json
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]
Piece = tuple[str, int]

# Large, so that two segments practically never agree on a token by chance.
VOCAB_SIZE = 1 << 30


@dataclass(frozen=True)
class Request:
    """One request: a prompt of `(segment_id, length_tokens)` pieces and its output length.

    It is released at `arrival` seconds, and if `after` is set no earlier than `gap` seconds
    after that request has finished.
    """

    id: str
    arrival: float
    prompt: tuple[Piece, ...]
    output_tokens: int
    after: str | None = None
    gap: float = 0.0

    @property
    def prompt_tokens(self) -> int:
        return sum(length for _, length in self.prompt)

    @property
    def output_segment(self) -> str:
        return f"{self.id}.out"

    def to_json(self) -> str:
        """Return the request as one line of a trace file."""
        fields: dict[str, object] = {
            "arrival": round(self.arrival, 4),
            "id": self.id,
            "prompt": [list(piece) for piece in self.prompt],
            "output": self.output_tokens,
        }
        if self.after is not None:
            fields |= {"after": self.after, "gap": round(self.gap, 3)}
        return json.dumps(fields)


def load_trace(path: Path) -> list[Request]:
    """Read a trace file; raise `ValueError` on a repeated id or an unknown `after`."""
    with path.open() as lines:
        requests = [_request(line) for line in lines if line.strip()]
    known: set[str] = set()
    for request in requests:
        if request.id in known:
            raise ValueError(f"{path}: id {request.id!r} appears twice")
        if request.after is not None and request.after not in known:
            raise ValueError(f"{path}: {request.id!r} waits for {request.after!r}, not seen before")
        known.add(request.id)
    return requests


def save_trace(path: Path, requests: list[Request]) -> None:
    """Write a trace file, one request a line."""
    path.write_text("".join(request.to_json() + "\n" for request in requests))


def _request(line: str) -> Request:
    raw = json.loads(line)
    prompt = tuple((str(segment), int(length)) for segment, length in raw["prompt"])
    return Request(
        id=raw["id"],
        arrival=float(raw["arrival"]),
        prompt=prompt,
        output_tokens=int(raw["output"]),
        after=raw.get("after"),
        gap=float(raw.get("gap", 0.0)),
    )


class TokenBook:
    """Gives every segment its tokens: the same `(segment, offset)` is the same token everywhere."""

    def __init__(self) -> None:
        self._runs: dict[str, Tokens] = {}

    def segment(self, segment_id: str, length: int) -> Tokens:
        """Return the first `length` tokens of a segment; grows the stored run when needed."""
        run = self._runs.get(segment_id)
        if run is None or len(run) < length:
            run = _token_run(segment_id, length)
            self._runs[segment_id] = run
        return run[:length]

    def prompt(self, request: Request) -> "array[int]":
        """Return the prompt's token ids in the container that SGLang keeps them in."""
        pieces = [self.segment(*piece) for piece in request.prompt]
        ids: array[int] = array("q")
        ids.frombytes(np.concatenate(pieces).tobytes())
        return ids

    def output(self, request: Request) -> Tokens:
        """Return the tokens that the request generates."""
        return self.segment(request.output_segment, request.output_tokens)


def _token_run(segment_id: str, length: int) -> Tokens:
    """Return `length` pseudo-random tokens (splitmix64 of segment hash + offset)."""
    digest = hashlib.blake2b(segment_id.encode(), digest_size=8).digest()
    with np.errstate(over="ignore"):
        x = np.uint64(int.from_bytes(digest)) + np.arange(length, dtype=np.uint64)
        x = x * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x % np.uint64(VOCAB_SIZE)).astype(np.int64)
