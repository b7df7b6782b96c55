"""A model whose layers are divided between the stages of a pipeline (`--pp-size`), against one
process that has them all: the same answers, and stages that decide alike.

Stages send each other activations over gloo. The pool is too small, so that requests give way.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from e2e.answers import FLOAT32, Tolerance
from e2e.checks import (
    EXACT_STATES,
    POISON,
    STATES,
    assert_outputs_vary,
    assert_same_answers,
    command_line,
    server_flags,
)
from e2e.client import ask
from e2e.engine import ENVIRONMENT, Job, run_jobs
from e2e.stream import StreamShape, make_stream
from models.released import RELEASED
from models.tiny import ARCHITECTURES, write_model


@dataclass(frozen=True)
class Split:
    """A model, how many stages and ranks it has, and which layers where: so many on each stage."""

    model: str
    layers: tuple[int, ...]
    ranks: int = 1
    memory: str = "jenga"  # of the one process that is compared with
    flags: dict[str, Any] = field(default_factory=dict)
    tolerance: Tolerance = FLOAT32

    def __str__(self) -> str:
        return f"{self.model}-{'+'.join(map(str, self.layers))}-tp{self.ranks}"


# gpt-oss has windows on layers 0 and 2: no full attention on the first stage.
UNEVEN = Split("gpt_oss", (1, 3))
LONG = [
    Split("llama", (2, 2), memory="default"),
    Split("gpt_oss", (2, 2), ranks=2),
    Split("exaone4", (4, 4)),
    Split("exaone4", (3, 3, 2)),
    Split("gpt_oss", (2, 2), flags={"pp_async_batch_depth": 1}),
    # Where a hit begins decides how a gated delta net rounds.
    Split("qwen3_5", (3, 3), flags=STATES, tolerance=Tolerance(4e-4, 1e-5)),
    Split("deepseek_v3", (1, 2)),
]


@pytest.mark.parametrize(
    "split", [UNEVEN, *(pytest.param(s, marks=pytest.mark.long) for s in LONG)], ids=str
)
def test_stages_answer_as_one_process_does(
    split: Split, tmp_path: Path, start_server: Callable[..., Any]
) -> None:
    size = 30 if split is UNEVEN else 150
    requests = make_stream(StreamShape(num_requests=size, longest_prompt=300), seed=3)
    kind = RELEASED.get(split.model) or ARCHITECTURES[split.model]
    model = write_model(tmp_path / "model", kind, seed=0)
    flags = server_flags(model, page_size=16) | (STATES if kind.has_states else {})
    alone = Job({**flags, "memory_backend": split.memory}, requests, env=EXACT_STATES)
    staged = {
        **flags,
        "memory_backend": "jenga",
        "pp_size": len(split.layers),
        "tp_size": split.ranks,
        **split.flags,
    }
    env = {
        **ENVIRONMENT,
        **POISON,
        **EXACT_STATES,
        "JENGA_LOG_DIGEST": "1",
        "SGLANG_PP_LAYER_PARTITION": ",".join(map(str, split.layers)),
    }
    server = start_server(*command_line(staged), env=env)
    answers = ask(server, requests)
    expected = run_jobs({"alone": alone}, tmp_path)["alone"].answers
    assert_same_answers(str(split), expected, answers, split.tolerance)
    assert_outputs_vary(answers)
    assert sum(answer.retractions for answer in answers) > 0
    assert_stages_agree(server, processes=len(split.layers) * split.ranks)
    # Stages look for one another's messages without rest: the next test would share the machine.
    server.process.terminate()
    server.process.wait(60)


def assert_stages_agree(server: Any, processes: int) -> None:
    """Every process said the same of its books at every idle check, of which there were some, and
    found nothing leaked."""
    checks: dict[str, list[str]] = {}
    for process, digest in re.findall(r"(PP\d[ TP\d]*)\] jenga digest (\w+)", server.log()):
        checks.setdefault(process, []).append(digest)
    assert len(checks) == processes
    # Some may still be at their last check.
    all_have = min(map(len, checks.values()))
    assert all_have >= 2
    assert len({tuple(digests[:all_have]) for digests in checks.values()}) == 1
    assert server.process.poll() is None
    assert "leak detected" not in server.log()
