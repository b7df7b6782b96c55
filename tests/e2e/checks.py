"""How the servers of a comparison are started, and what must hold of their answers."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e2e.answers import FLOAT32, Answer, Tolerance, compare
from models.tiny import MAX_LENGTH

POOL_TOKENS = 1024
CHUNK_TOKENS = 128
# Freed pages are filled with NaN at once.
POISON = {"JENGA_POISON_FREED": "1"}
LONG_ANSWER_TOKENS = 40
# Tests compare to the last bits; a float32 model too keeps a convolution's state in bfloat16.
EXACT_STATES = {"SGLANG_MAMBA_CONV_DTYPE": "float32"}
# What stock SGLang's prefix cache of recurrent states asks for.
STOCK_STATES = {
    "memory_backend": "default",
    "page_size": 1,
    "mamba_radix_cache_strategy": "no_buffer",
    "disable_overlap_schedule": True,
}
STATES = {"max_mamba_cache_size": 60, "max_running_requests": 20}


def server_flags(model: Path, page_size: int | None) -> dict[str, Any]:
    """Fields of SGLang's `ServerArgs` for a pool that holds very few requests."""
    return {
        "model_path": str(model),
        "dtype": "float32",
        "page_size": page_size,
        "chunked_prefill_size": CHUNK_TOKENS,
        "max_total_tokens": POOL_TOKENS,
        "context_length": MAX_LENGTH,
        "schedule_conservativeness": 0.1,
    }


def command_line(flags: dict[str, Any]) -> list[str]:
    """Fields of `ServerArgs` as the flags of `launch_server`."""
    words = []
    for name, value in flags.items():
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(str(value))
    return words


def absorb_latent_rows() -> None:
    """SGLang's own torch backend reads latent rows (MLA), but its DeepSeek layers do not ask."""
    from sglang.srt.models.deepseek_common import attention_backend_handler as handler

    registry = handler.AttentionBackendRegistry
    registry.register("torch_native", lambda *args: handler.AttnForwardMethod.MLA)


def assert_same_answers(
    name: str,
    stock: Sequence[Answer],
    jenga: Sequence[Answer],
    tolerance: Tolerance = FLOAT32,
) -> None:
    """No answer differs. Ties are rare, and each is shown in the summary of the test run."""
    result = compare(stock, jenga, tolerance)
    print(f"{name}: {result}")
    assert not result.differences, str(result)
    assert len(result.ties) <= len(stock) // 100, str(result)
    if result.ties:
        warnings.warn(f"{name}: {result}", stacklevel=1)


def assert_outputs_vary(answers: Sequence[Answer]) -> None:
    """Loops of one token would hide what memory got wrong."""
    long = [a.tokens[:LONG_ANSWER_TOKENS] for a in answers if len(a.tokens) >= LONG_ANSWER_TOKENS]
    assert len(long) >= 10
    assert sum(len(set(tokens)) for tokens in long) / len(long) > LONG_ANSWER_TOKENS / 5
    assert len(set(map(tuple, long))) > len(long) // 2


def assert_memory_was_short(
    state: dict[str, Any], answers: Sequence[Answer], num_groups: int
) -> None:
    """Every group lost cached pages, requests were retracted, and nothing is still held."""
    assert len(state["groups"]) == num_groups
    for group in state["groups"]:
        assert group["evicted_pages"] > 0, group
        assert group["used_bytes"] == 0, group
    assert sum(answer.retractions for answer in answers) > 0
