"""Images over HTTP: a tiny Mllama, answered as Hugging Face answers, whoever else is asking."""

import base64
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from client import Client
from e2e.images import continue_greedily
from models.tiny_mllama import IMAGE_PIXELS, IMAGE_TOKEN, TILE_TOKENS, TinyMllama
from PIL import Image
from transformers import AutoProcessor

# Its servers are its own: no need to stay with the tests of the shared one.
pytestmark = pytest.mark.xdist_group("images")

PAGE = 16
NUM_TOKENS = 12
IMAGE_PAGES = -(-TILE_TOKENS // PAGE)
QUESTIONS = (
    "what is in this picture, and what is not?",
    "what is in this picture, please tell me at length",
    "who painted it?",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyMllama().write(tmp_path_factory.mktemp("model") / "mllama")


@pytest.fixture(scope="module")
def server(model: Path, start_jenga: Callable[..., Client]) -> Client:
    flags = ("--max-total-tokens", "3000", "--enable-cache-report", "--context-length", "1024")
    return start_jenga(*flags, model=model, env={"JENGA_POISON_FREED": "1"})


def picture(seed: int) -> Image.Image:
    shape = (IMAGE_PIXELS, IMAGE_PIXELS, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8))


def data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def ask(server: Client, question: str, seed: int | None) -> Any:
    """An answer about a picture, or without one."""
    fields: dict[str, Any] = {"return_logprob": True}
    if seed is not None:
        question = IMAGE_TOKEN + question
        fields["image_data"] = data_url(picture(seed))
    return server.generate(question, NUM_TOKENS, **fields)


def hugging_faces(model: Path, question: str, seed: int | None) -> list[int]:
    processor = AutoProcessor.from_pretrained(model)
    if seed is None:
        # SGLang's tokenizer adds nothing to a text.
        prompt = processor.tokenizer(question, add_special_tokens=False)["input_ids"]
        return continue_greedily(model, prompt, {}, NUM_TOKENS)
    made = processor(images=picture(seed), text=IMAGE_TOKEN + question, return_tensors="pt")
    wanted = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
    seen = {name: made[name] for name in wanted}
    return continue_greedily(model, made["input_ids"][0].tolist(), seen, NUM_TOKENS)


def logprobs(reply: Any) -> list[float]:
    return [entry[0] for entry in reply["meta_info"]["output_token_logprobs"]]


def test_answers_are_hugging_faces_whoever_else_asks(server: Client, model: Path) -> None:
    """Questions with and without pictures, computed together."""
    asked = [(question, seed) for question in QUESTIONS for seed in (None, 1, 2)]
    with ThreadPoolExecutor(len(asked)) as threads:
        replies = list(threads.map(lambda pair: ask(server, *pair), asked))
    for pair, reply in zip(asked, replies, strict=True):
        assert reply["output_ids"] == hugging_faces(model, *pair), pair


def test_a_picture_is_computed_once_for_all_questions(server: Client) -> None:
    server.flush_cache()
    cold = [ask(server, question, 3) for question in QUESTIONS[:2]]
    cached = [reply["meta_info"]["cached_tokens"] for reply in cold]
    assert cached[0] == 0 and cached[1] >= IMAGE_PAGES * PAGE
    warm = [ask(server, question, 3) for question in QUESTIONS[:2]]
    for before, after in zip(cold, warm, strict=True):
        assert after["meta_info"]["cached_tokens"] > IMAGE_PAGES * PAGE
        assert after["output_ids"] == before["output_ids"]
        assert logprobs(after) == pytest.approx(logprobs(before), abs=1e-4)
    other = ask(server, QUESTIONS[0], 4)
    assert other["meta_info"]["cached_tokens"] == 0


def test_who_hangs_up_leaves_nothing_behind(server: Client) -> None:
    body = {
        "text": IMAGE_TOKEN + QUESTIONS[0],
        "image_data": data_url(picture(5)),
        "stream": True,
        "sampling_params": {"temperature": 0, "max_new_tokens": 800, "ignore_eos": True},
    }
    for number, _ in enumerate(server.stream("/generate", body)):
        if number == 3:
            break
    server.assert_clean()
    groups = {group["name"]: group for group in server.facts()["groups"]}
    assert set(groups) == {"full", "cross"}
    assert all(group["used_bytes"] == 0 for group in groups.values())
    # The picture is in the cache; the text that nobody waited for may be or not.
    assert groups["cross"]["cached_bytes"] > 0
    assert len(ask(server, QUESTIONS[0], 5)["output_ids"]) == NUM_TOKENS
