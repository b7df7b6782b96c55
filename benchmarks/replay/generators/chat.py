"""Multi-turn chat: short system prompts, every turn replays the conversation, people think."""

from benchmarks.replay.generators.random_lengths import Draw, by_arrival
from benchmarks.replay.trace import Piece, Request

SYSTEM_PROMPTS = 4
SYSTEM_TOKENS = 60
MEAN_TURNS = 4.0
ARRIVALS_PER_SECOND = 15.0
THINK_SECONDS = 8.0
MAX_HISTORY_TOKENS = 12_000


def generate_chat(seed: int, num_requests: int) -> list[Request]:
    """Return conversations with a geometric number of turns."""
    draw = Draw(seed)
    requests: list[Request] = []
    arrival, conversation = 0.0, 0
    while len(requests) < num_requests:
        arrival += draw.seconds(MEAN_TURNS / ARRIVALS_PER_SECOND)
        turns = min(draw.geometric(MEAN_TURNS), num_requests - len(requests))
        requests += _conversation(draw, f"c{conversation}", arrival, turns)
        conversation += 1
    return by_arrival(requests)


def _conversation(draw: Draw, name: str, arrival: float, turns: int) -> list[Request]:
    history: tuple[Piece, ...] = ((f"sys{draw.uniform(0, SYSTEM_PROMPTS - 1)}", SYSTEM_TOKENS),)
    requests: list[Request] = []
    for turn in range(turns):
        prompt = (*history, (f"{name}u{turn}", draw.length(80, 1.2, 4, 4000)))
        request = Request(
            id=f"{name}t{turn}",
            arrival=arrival,
            prompt=prompt,
            output_tokens=draw.length(180, 0.9, 4, 1500),
            after=requests[-1].id if requests else None,
            gap=draw.seconds(THINK_SECONDS),
        )
        requests.append(request)
        history = (*prompt, (request.output_segment, request.output_tokens))
        if request.prompt_tokens > MAX_HISTORY_TOKENS:
            break
    return requests
