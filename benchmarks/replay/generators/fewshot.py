"""Few-shot tasks: many short questions behind a few long example blocks of uneven popularity."""

from benchmarks.replay.generators.random_lengths import Draw
from benchmarks.replay.trace import Request

REQUESTS_PER_TASK = 20
EXAMPLES_TOKENS = (800, 6_000)
INSTRUCTION_TOKENS = 120
ARRIVALS_PER_SECOND = 40.0


def generate_fewshot(seed: int, num_requests: int) -> list[Request]:
    """Return single questions; task popularity follows Zipf's law."""
    draw = Draw(seed)
    num_tasks = max(1, num_requests // REQUESTS_PER_TASK)
    sizes = [draw.uniform(*EXAMPLES_TOKENS) for _ in range(num_tasks)]
    requests: list[Request] = []
    arrival = 0.0
    for number in range(num_requests):
        arrival += draw.seconds(1 / ARRIVALS_PER_SECOND)
        task = draw.zipf_index(num_tasks)
        prompt = (
            ("instruction", INSTRUCTION_TOKENS),
            (f"examples{task}", sizes[task]),
            (f"f{number}u", draw.length(120, 0.6, 10, 800)),
        )
        requests.append(Request(f"f{number}", arrival, prompt, draw.length(30, 0.8, 1, 300)))
    return requests
