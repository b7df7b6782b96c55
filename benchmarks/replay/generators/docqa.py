"""Questions on long documents: few documents, most questions on those asked about just now."""

from benchmarks.replay.generators.random_lengths import Draw
from benchmarks.replay.trace import Request

REQUESTS_PER_DOCUMENT = 16
DOCUMENT_TOKENS = (8_000, 60_000)
SYSTEM_TOKENS = 40
RECENT_DOCUMENTS = 4
RECENT_SHARE = 0.7
ARRIVALS_PER_SECOND = 18.0


def generate_docqa(seed: int, num_requests: int) -> list[Request]:
    """Return single questions; 70 % go to one of the four most recently asked documents."""
    draw = Draw(seed)
    num_documents = max(1, num_requests // REQUESTS_PER_DOCUMENT)
    sizes = [draw.uniform(*DOCUMENT_TOKENS) for _ in range(num_documents)]
    recent: list[int] = []
    requests: list[Request] = []
    arrival = 0.0
    for number in range(num_requests):
        arrival += draw.seconds(1 / ARRIVALS_PER_SECOND)
        if recent and draw.chance(RECENT_SHARE):
            document = recent[draw.uniform(0, len(recent) - 1)]
        else:
            document = draw.uniform(0, num_documents - 1)
        recent = [document, *(d for d in recent if d != document)][:RECENT_DOCUMENTS]
        question = (f"q{number}u", draw.length(50, 0.5, 8, 300))
        prompt = (("sys", SYSTEM_TOKENS), (f"doc{document}", sizes[document]), question)
        output_tokens = draw.length(170, 0.5, 8, 1000)
        requests.append(Request(f"q{number}", arrival, prompt, output_tokens))
    return requests
