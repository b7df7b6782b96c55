"""Prompts that take the pool to its last page, in chunks: nobody else runs whose end would make
room, so a chunk that is refused is refused for ever."""

from collections.abc import Callable
from pathlib import Path

import pytest
from e2e.checks import POISON, assert_same_answers, server_flags
from e2e.engine import Job, run_jobs
from e2e.stream import TOKENS, Request
from models.released import RELEASED
from models.tiny import WINDOW, write_model

PAGE = 16


def prompt(length: int, start: int = 0) -> list[int]:
    return [TOKENS[(start + 7 * i + i * i // 11) % len(TOKENS)] for i in range(length)]


CASES = {
    # A row of every layer for every token: the pool's last page is the prompt's.
    "every layer sees everything": ("llama", 512, {}, [prompt(n) for n in (505, 497, 300)]),
    "chunks of seven pages, mixed": (
        "llama",
        512,
        {"enable_mixed_chunk": True, "chunked_prefill_size": 7 * PAGE},
        [prompt(505), prompt(20, 3), prompt(500, 5)],
    ),
    # What a window has passed must have gone before the next chunk, not with it.
    "windows without a prefix cache": (
        "gemma3",
        300,
        {"disable_radix_cache": True},
        [prompt(760), prompt(700, 3)],
    ),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES)
def test_every_chunk_goes_on(case: str, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    architecture, pool_tokens, fields, prompts = CASES[case]
    requests = [Request(prompt, 1, ignore_eos=True) for prompt in prompts]
    flags = server_flags(tiny_model(architecture), PAGE) | {"memory_backend": "jenga"}
    short = flags | fields | {"max_total_tokens": pool_tokens}
    reports = run_jobs(
        {
            "short": Job(short, requests, concurrency=1, env=POISON),
            "ample": Job(flags | {"max_total_tokens": 8192}, requests),
        },
        tmp_path,
    )
    assert_same_answers(case, reports["ample"].answers, reports["short"].answers)
    assert [a.finish_reason for a in reports["short"].answers] == ["length"] * len(prompts)


def test_a_pool_of_hardly_more_than_a_window_is_enough(tmp_path: Path) -> None:
    """SGLang's own pool of windows, sized by its ratio, would hold no request and end the start."""
    model = write_model(tmp_path / "gpt-oss", RELEASED["gpt_oss"], seed=0)
    requests = [Request(prompt(length), 3, ignore_eos=True) for length in (WINDOW + 10, 40)]
    flags = server_flags(model, PAGE) | {"memory_backend": "jenga"}
    small = flags | {"max_total_tokens": WINDOW + PAGE}
    reports = run_jobs(
        {
            "small": Job(small, requests, concurrency=1, env=POISON),
            "ample": Job(flags | {"max_total_tokens": 8192}, requests),
        },
        tmp_path,
    )
    assert_same_answers("gpt_oss", reports["ample"].answers, reports["small"].answers)
    assert [a.finish_reason for a in reports["small"].answers] == ["length", "length"]
