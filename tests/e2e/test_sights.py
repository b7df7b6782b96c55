"""Models that people serve and that read images in their text, tiny: Jenga's answers are Hugging
Face's, whose masks let the tokens of an image read the whole of it where the model does.

Prompts with the same images branch, are cut into chunks, some shorter than an image, and meet a
pool that evicts; hits end inside images.
"""

import random
import zlib
from pathlib import Path

import pytest
import torch
from e2e.checks import POISON, assert_same_answers, server_flags
from e2e.engine import Job, Report, run_jobs
from e2e.hugging_face import load
from e2e.models_table import HUGGING_FACE, STOCK, keep
from e2e.stream import TOKENS, Request
from models.tiny import Architecture, write_model
from models.tiny_sights import CLOSES, IMAGE, OPENS, SIGHTS, of_hugging_face
from safetensors.torch import load_file, save_file

LOGPROB_ERROR = 1e-3
SHORT_CHUNK = 48  # tokens: shorter than some images
REQUESTS = 40
NUM_IMAGES = 3  # by their seeds
# Stock's torch backend has no mask for images.
STOCK_RUNS = {"qwen3_vl"}


def make_requests(name: str) -> list[Request]:
    """Prompts that begin alike, each with up to three images from a few."""
    rng = random.Random(name)
    sizes = SIGHTS[name].image_tokens
    beginnings = [_text(rng, 20) for _ in range(2)]
    requests = []
    for number in range(REQUESTS):
        prompt, pictures = list(rng.choice(beginnings))[: rng.choice((7, 20))], {}
        for _ in range(rng.randint(0, 3) if number else 2):
            seed = rng.randrange(NUM_IMAGES)
            size = sizes[seed % len(sizes)]
            pictures[len(prompt) + 1] = (seed, size)
            prompt += [OPENS, *[IMAGE] * size, CLOSES, *_text(rng, rng.choice((0, 3, 30)))]
        prompt += _text(rng, rng.randint(1, 20))
        grows = 0.4 < number / REQUESTS < 0.75
        length = rng.randint(60, 100) if grows else rng.randint(1, 20)
        requests.append(Request(prompt, length, ignore_eos=grows, pictures=pictures, sight=name))
    return requests


def _text(rng: random.Random, length: int) -> list[int]:
    return [rng.choice(TOKENS) for _ in range(length)]


def jobs(name: str, path: Path, requests: list[Request]) -> dict[str, Job]:
    flags = server_flags(path, 16) | SIGHTS[name].kind.flags
    jenga = flags | {"memory_backend": "jenga"}
    found = {
        "jenga": Job(jenga, requests, env=POISON),
        "short chunks": Job(jenga | {"chunked_prefill_size": SHORT_CHUNK}, requests, env=POISON),
    }
    if name in STOCK_RUNS:
        found["stock"] = Job(flags | {"memory_backend": "default"}, requests)
    return found


@pytest.mark.parametrize(
    "name",
    [
        "gemma3_sight",
        *(pytest.param(n, marks=pytest.mark.long) for n in SIGHTS if n != "gemma3_sight"),
    ],
)
def test_every_token_is_hugging_faces(name: str, tmp_path: Path) -> None:
    kind = SIGHTS[name].kind
    path = write_model(tmp_path / "model", kind, seed=zlib.crc32(name.encode()))
    name_as_released(path / "model.safetensors")
    requests = make_requests(name)
    reports = run_jobs(jobs(name, path, requests), tmp_path)
    jenga = reports.pop("jenga")
    assert_pool_was_used(kind, jenga)
    for other, report in reports.items():
        assert_same_answers(f"{name}, {other}", report.answers, jenga.answers)
    for request, answer in list(zip(requests, jenga.answers, strict=True))[::2]:
        assert_hugging_face_says(name, path, request, answer.tokens, answer.logprobs)
    keep(name, path, jenga.state, [HUGGING_FACE, *([STOCK] if "stock" in reports else [])])


def name_as_released(weights: Path) -> None:
    """Released checkpoints of Gemma-3 say ``vision_model``, which SGLang's class expects; what
    Transformers writes leaves it out."""
    tensors = load_file(weights)
    tower = "vision_tower."
    if f"{tower}embeddings.patch_embedding.weight" in tensors:
        renamed = {k.replace(tower, f"{tower}vision_model."): v for k, v in tensors.items()}
        save_file(renamed, weights, metadata={"format": "pt"})


def assert_pool_was_used(kind: Architecture, jenga: Report) -> None:
    assert jenga.cached_tokens > 500
    for group in jenga.state["groups"]:
        assert group["evicted_pages"] > 0 and group["used_bytes"] == 0, group


def assert_hugging_face_says(
    name: str, path: Path, request: Request, tokens: list[int], logprobs: list[float]
) -> None:
    """Up to a token of the answer that stands for an image, which Hugging Face would look for."""
    ends = [number for number, token in enumerate(tokens) if token >= OPENS]
    tokens = tokens[: 1 + min(ends, default=len(tokens))]
    known = request.prompt + tokens[:-1]
    seen = of_hugging_face(SIGHTS[name], request.pictures, len(known))
    inputs = torch.tensor([known])
    with torch.inference_mode():
        mask = torch.ones_like(inputs)
        logits = load(path)(input_ids=inputs, attention_mask=mask, use_cache=False, **seen).logits
    expected = logits[0, len(request.prompt) - 1 :].float().log_softmax(-1)
    assert expected.argmax(-1).tolist() == tokens
    given = expected.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
    assert max(abs(a - b) for a, b in zip(given, logprobs, strict=False)) < LOGPROB_ERROR
