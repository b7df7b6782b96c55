"""Tree of thought: every kept thought forks into several, all of which share its path."""

from benchmarks.replay.generators.random_lengths import Draw, by_arrival
from benchmarks.replay.trace import Piece, Request

DEPTH = 4
BRANCHES = 4
KEPT_PER_LEVEL = 2
PROBLEMS_PER_SECOND = 2.0
INSTRUCTION_TOKENS = 400
JUDGE_SECONDS = 0.5


def generate_tree(seed: int, num_requests: int) -> list[Request]:
    """Return one tree a problem: 4 thoughts, of which 2 are kept and fork again, 4 levels deep."""
    draw = Draw(seed)
    requests: list[Request] = []
    arrival, problem = 0.0, 0
    while len(requests) < num_requests:
        arrival += draw.seconds(1 / PROBLEMS_PER_SECOND)
        requests += _tree(draw, f"p{problem}", arrival)
        problem += 1
    return by_arrival(requests[:num_requests])


def _tree(draw: Draw, name: str, arrival: float) -> list[Request]:
    root: tuple[Piece, ...] = (
        ("instruction", INSTRUCTION_TOKENS),
        (f"{name}problem", draw.length(500, 0.8, 50, 6000)),
    )
    requests: list[Request] = []
    kept: list[tuple[tuple[Piece, ...], str | None]] = [(root, None)]
    for level in range(DEPTH):
        thoughts = [
            _thought(draw, f"{name}d{level}k{parent}b{branch}", arrival, path, after)
            for parent, (path, after) in enumerate(kept)
            for branch in range(BRANCHES)
        ]
        requests += thoughts
        # Which thoughts are kept is arbitrary here: evenly spaced ones.
        kept = [_continued(thought) for thought in thoughts[:: len(thoughts) // KEPT_PER_LEVEL]]
    return requests


def _thought(
    draw: Draw, name: str, arrival: float, path: tuple[Piece, ...], after: str | None
) -> Request:
    """One continuation of a path; the suffix asks for this branch."""
    prompt = (*path, (f"{name}ask", draw.uniform(8, 24)))
    return Request(
        id=name,
        arrival=arrival,
        prompt=prompt,
        output_tokens=draw.length(150, 0.5, 20, 800),
        after=after,
        gap=draw.seconds(JUDGE_SECONDS),
    )


def _continued(thought: Request) -> tuple[tuple[Piece, ...], str]:
    path = (*thought.prompt, (thought.output_segment, thought.output_tokens))
    return path, thought.id
