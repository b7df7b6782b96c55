"""Agents: every step replays the session, calls a tool, waits for it and appends its result."""

from benchmarks.replay.generators.random_lengths import Draw, by_arrival
from benchmarks.replay.trace import Piece, Request

AGENT_KINDS = 3
SYSTEM_TOKENS = (2_000, 6_000)
MEAN_STEPS = 10.0
MAX_HISTORY_TOKENS = 60_000
SESSIONS_PER_SECOND = 1.5
# Most tools answer at once, some run a build or ask a person.
FAST_TOOL_SECONDS, SLOW_TOOL_SECONDS, SLOW_SHARE = 1.5, 40.0, 0.15


def generate_agents(seed: int, num_requests: int) -> list[Request]:
    """Return sessions of dependent steps with pauses of very different length."""
    draw = Draw(seed)
    systems = [draw.uniform(*SYSTEM_TOKENS) for _ in range(AGENT_KINDS)]
    requests: list[Request] = []
    arrival, session = 0.0, 0
    while len(requests) < num_requests:
        arrival += draw.seconds(1 / SESSIONS_PER_SECOND)
        kind = draw.zipf_index(AGENT_KINDS)
        steps = min(draw.geometric(MEAN_STEPS), num_requests - len(requests))
        requests += _session(draw, f"a{session}", arrival, (f"tools{kind}", systems[kind]), steps)
        session += 1
    return by_arrival(requests)


def _session(draw: Draw, name: str, arrival: float, system: Piece, steps: int) -> list[Request]:
    history: tuple[Piece, ...] = (system, (f"{name}task", draw.length(300, 0.8, 30, 4000)))
    requests: list[Request] = []
    for step in range(steps):
        slow = draw.chance(SLOW_SHARE)
        request = Request(
            id=f"{name}s{step}",
            arrival=arrival,
            prompt=history,
            output_tokens=draw.length(90, 0.8, 8, 1200),
            after=requests[-1].id if requests else None,
            gap=draw.seconds(SLOW_TOOL_SECONDS if slow else FAST_TOOL_SECONDS),
        )
        requests.append(request)
        answer = (f"{name}r{step}", draw.length(500, 1.2, 10, 12_000))
        history = (*history, (request.output_segment, request.output_tokens), answer)
        if request.prompt_tokens > MAX_HISTORY_TOKENS:
            break
    return requests
