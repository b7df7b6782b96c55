"""Whisper: layers for the transcript beside layers for the sound; an encoder that keeps nothing."""

import random
from pathlib import Path

from e2e import sound
from e2e.checks import POISON, assert_outputs_vary, assert_same_answers, server_flags
from e2e.engine import Job, run_jobs
from e2e.models_table import HUGGING_FACE, STOCK, keep
from e2e.stream import TOKENS, Request


def test_answers_are_stocks_and_hugging_faces(tmp_path: Path) -> None:
    """Memory is short; SGLang has no prefix cache here."""
    path = sound.make_tiny_whisper(tmp_path / "whisper")
    rng = random.Random(0)
    requests = [
        Request(
            [rng.choice(TOKENS) for _ in range(rng.randint(1, 30))],
            rng.randint(40, 90),
            ignore_eos=True,
            sound=seed,
        )
        for seed in range(1, 31)
    ]
    flags = server_flags(path, 16) | {
        "context_length": sound.MAX_LENGTH,
        "max_total_tokens": 600,
        "disable_radix_cache": True,
        "mem_fraction_static": 0.5,
    }
    # Stock ends at a chunk that ends inside the sound, and loses pages of more than one token where
    # a text begins inside one. Jenga has neither.
    stock = flags | {"memory_backend": "default", "chunked_prefill_size": -1, "page_size": 1}
    reports = run_jobs(
        {
            "stock": Job(stock, requests),
            "jenga": Job(flags | {"memory_backend": "jenga"}, requests, env=POISON),
        },
        tmp_path,
    )
    ours = reports["jenga"]
    assert_same_answers("whisper", reports["stock"].answers, ours.answers)
    assert_outputs_vary(ours.answers)
    for request, given in list(zip(requests, ours.answers, strict=True))[::6]:
        expected = sound.greedy_tokens(path, request.prompt, request.sound, 15)
        assert given.tokens[:15] == expected, request
    groups = {group["name"]: group for group in ours.state["groups"]}
    assert {name: group["layers"] for name, group in groups.items()} == {"full": 3, "cross": 3}
    assert not any(group["used_bytes"] for group in groups.values())
    assert ours.retractions > 0
    keep("whisper", path, ours.state, [STOCK, HUGGING_FACE])
