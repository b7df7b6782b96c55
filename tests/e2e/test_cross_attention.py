"""Mllama: layers for the text beside layers for the image only, in one pool.

SGLang counts the pages of an image, so it counts a few tokens more of a prompt than stock does.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest
from e2e import images
from e2e.answers import Answer
from e2e.checks import POISON, assert_outputs_vary, assert_same_answers, server_flags
from e2e.engine import Job, Report, run_jobs
from e2e.models_table import COLD, HUGGING_FACE, STOCK, keep
from e2e.stream import Request
from models.tiny_mllama import MAX_LENGTH, TinyMllama

PAGE = 16
SAMPLED_EVERY = 7


@pytest.fixture(scope="module", params=[1, 2])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyMllama:
    return TinyMllama(tiles=request.param)


@pytest.fixture(scope="module")
def path(model: TinyMllama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.write(tmp_path_factory.mktemp("model") / f"mllama{model.tiles}")


def assert_hugging_faces_answers(
    path: Path, requests: Sequence[Request], answers: Sequence[Answer]
) -> None:
    """Of some, tokens by tokens."""
    for request, given in list(zip(requests, answers, strict=True))[::SAMPLED_EVERY]:
        tokens = given.tokens[:20]
        assert tokens == images.greedy_tokens(path, request, len(tokens)), request


def test_every_answer_is_stocks_hugging_faces_and_a_cold_runs(
    model: TinyMllama, path: Path, tmp_path: Path
) -> None:
    """Freed pages are NaN, memory is short: requests are retracted, images are evicted."""
    requests = images.make_requests(model.tiles, 70)
    flags = server_flags(path, PAGE) | {"context_length": MAX_LENGTH, "max_total_tokens": 700}
    jenga = flags | {"memory_backend": "jenga"}
    # Stock stops at a hit that ends inside an image, which pages of one token make impossible
    # where no two requests have only their first image in common.
    stock = flags | {"memory_backend": "default", "page_size": 1}
    reports = run_jobs(
        {
            "stock": Job(stock, requests, prepare=images.correct_stock),
            "jenga": Job(jenga, requests, env=POISON),
            "cold": Job(jenga | {"disable_radix_cache": True}, requests, env=POISON),
        },
        tmp_path,
    )
    ours = reports["jenga"]
    assert_same_answers("mllama, stock", reports["stock"].answers, ours.answers)
    assert_same_answers("mllama, cold", reports["cold"].answers, ours.answers)
    assert_outputs_vary(ours.answers)
    assert_hugging_faces_answers(path, requests, ours.answers)
    assert_image_was_served_from_the_cache(model, requests, ours)
    assert ours.retractions > 0 and reports["cold"].cached_tokens == 0
    names = [group["name"] for group in ours.state["groups"]]
    assert names == ["full", "cross"]
    for group in ours.state["groups"]:
        assert group["evicted_pages"] > 0 and group["used_bytes"] == 0, group
    if model.tiles == 1:
        keep("mllama", path, ours.state, [STOCK, HUGGING_FACE, COLD])


def assert_image_was_served_from_the_cache(
    model: TinyMllama, requests: Sequence[Request], report: Report
) -> None:
    """Hits end behind all images or are none, and some go on into the text."""
    behind = 0
    for request, answer in zip(requests, report.answers, strict=True):
        image_tokens = -(-len(request.images) * model.image_tokens // PAGE) * PAGE
        assert answer.cached_tokens == 0 or answer.cached_tokens >= image_tokens
        behind += bool(request.images) and answer.cached_tokens > image_tokens
    assert behind > 10
