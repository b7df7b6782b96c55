"""Images in the text: their embeddings are kept in the pool between the chunks of a prompt, give
way to what is needed more, and answers are those of plain torch."""

import random
from pathlib import Path

import external_models
from e2e import images
from e2e.checks import CHUNK_TOKENS, POISON, assert_same_answers, server_flags
from e2e.engine import Job, run_jobs
from e2e.stream import TOKENS, Request
from external_models.net import Layer, answer, make_mixed_model
from external_models.seeing import ENCODED, encode

LAYERS = [Layer(window=40), Layer(), Layer(window=40)]
# Images longer than a chunk: a prompt asks for each of them several times.
PICTURE_TOKENS = (150, 200, 270)


def make_requests(count: int) -> list[Request]:
    """Prompts with an image or two somewhere, from a few; some without."""
    rng = random.Random(0)
    requests = []
    for number in range(count):
        prompt, pictures = _text(rng, rng.randint(1, 60)), {}
        for _ in range(rng.randint(0, 2) if number else 1):
            seed = rng.randint(0, 5)
            size = PICTURE_TOKENS[seed % 3]
            pictures[len(prompt)] = (seed, size)
            prompt += [TOKENS[0]] * size + _text(rng, rng.randint(1, 60))
        requests.append(Request(prompt, rng.randint(1, 30), pictures=pictures))
    return requests


def _text(rng: random.Random, length: int) -> list[int]:
    return [rng.choice(TOKENS) for _ in range(length)]


def test_answers_are_plain_torchs_and_every_chunk_finds_its_image(tmp_path: Path) -> None:
    net = make_mixed_model(tmp_path / "model", LAYERS, architecture="SeeingForCausalLM")
    requests = make_requests(40)
    flags = server_flags(tmp_path / "model", 16) | {"max_total_tokens": 1500}
    jenga = flags | {"memory_backend": "jenga"}
    register = external_models.register
    reports = run_jobs(
        {
            "jenga": Job(jenga, requests, env=POISON, prepare=register),
            "cold": Job(jenga | {"disable_radix_cache": True}, requests, prepare=register),
        },
        tmp_path,
    )
    ours = reports["jenga"]
    assert_same_answers("images in the text", reports["cold"].answers, ours.answers)
    for request, given in list(zip(requests, ours.answers, strict=True))[::5]:
        seen = {at: encode(images.picture(*drawn)) for at, drawn in request.pictures.items()}
        expected = answer(net, request.prompt, len(given.tokens[:12]), seen)
        assert given.tokens[:12] == expected, request
    groups = {group["name"]: group for group in ours.state["groups"]}
    assert groups["embeddings"]["used_bytes"] == 0
    assert groups["embeddings"]["evicted_pages"] > 0
    encoded = {name: (tmp_path / name).read_text().count(ENCODED) for name in reports}
    asked = sum(
        -(-(at + size) // CHUNK_TOKENS) - at // CHUNK_TOKENS
        for request in requests
        for at, (_, size) in request.pictures.items()
    )
    print(f"{encoded} encodings for {asked} chunks of images")
    assert encoded["jenga"] < asked / 2
