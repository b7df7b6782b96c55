"""A load whose lengths shift over time: chat, then long documents, then agents, then chat again.

A fixed split of memory between full and window layers can suit one phase only.
"""

from benchmarks.replay.generators.agents import generate_agents
from benchmarks.replay.generators.chat import generate_chat
from benchmarks.replay.generators.docqa import generate_docqa
from benchmarks.replay.generators.random_lengths import by_arrival, shift
from benchmarks.replay.trace import Request

PHASE_SECONDS = 8.0
# Generator and share of the requests, in order of time.
PHASES = (
    (generate_chat, 0.4),
    (generate_docqa, 0.1),
    (generate_agents, 0.2),
    (generate_chat, 0.3),
)


def generate_mix(seed: int, num_requests: int) -> list[Request]:
    """Return the phases one after the other, 8 seconds apart, which leaves a backlog of each."""
    requests: list[Request] = []
    for phase, (generate, share) in enumerate(PHASES):
        part = generate(seed + phase, max(1, round(share * num_requests)))
        requests += shift(part, f"{phase}:", phase * PHASE_SECONDS)
    return by_arrival(requests)
