"""Recurrent layers in decode graphs: SGLang's graph runner on a CPU gives the answers of eager
decodes, from states that move on in place and snapshots that are left behind a replay."""

from collections.abc import Callable
from pathlib import Path

import pytest
from e2e.checks import EXACT_STATES, POISON, STATES, assert_same_answers, server_flags
from e2e.engine import Job, run_jobs
from e2e.host_graphs import decode_in_graphs, replays
from e2e.hugging_face import greedy_tokens
from e2e.interpreted.test_interpreted_answers import PREPARE
from e2e.stream import Request

PROMPTS = [[7 + n * n % (23 + end) for n in range(end)] for end in (24, 21, 33)]
# Of the first prompt's answer; what moves along with it every page has got to 48 tokens.
LONG, SHORT, CONTINUED = 30, 20, 48


@pytest.mark.parametrize(
    "architecture",
    [
        "lfm2",
        pytest.param("qwen3_5", marks=pytest.mark.long),
        pytest.param("falcon_h1", marks=pytest.mark.long),
        pytest.param("falcon_mamba", marks=pytest.mark.long),
        pytest.param("kimi_linear", marks=pytest.mark.long),  # beside latent rows
    ],
)
def test_replayed_decodes_move_states_on(
    architecture: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """And the next turn goes on from a snapshot that a replay has left."""
    path = tiny_model(architecture)
    first, *others = PROMPTS
    again = [*first, *greedy_tokens(path, first, LONG), 5, 6, 7]
    turns = [Request(first, LONG, ignore_eos=True)]
    turns += [Request(prompt, SHORT, ignore_eos=True) for prompt in others * 2]
    turns.append(Request(again, SHORT, ignore_eos=True))
    env = EXACT_STATES | POISON | {"JENGA_POLICIES": "answer_state_tokens=16"}
    flags = server_flags(path, 16) | STATES | {"memory_backend": "jenga"}
    eager = Job(flags, turns, concurrency=3, env=env)
    replayed = Job(
        flags | {"attention_backend": "flashinfer"},
        turns,
        concurrency=3,
        env=env,
        prepare=PREPARE["flashinfer"],
        before=decode_in_graphs,
        after=replays,
    )
    reports = run_jobs({"eager": eager, "replayed": replayed}, tmp_path)
    assert_same_answers(architecture, reports["eager"].answers, reports["replayed"].answers)
    seen = reports["replayed"].after
    assert any(size > batch for size, batch in seen) and sum(seen.values()) > LONG
    for report in reports.values():
        assert report.answers[-1].cached_tokens == CONTINUED
    assert reports["replayed"].state == reports["eager"].state
