"""Gemma-4's assistants draft from what their target keeps, and keep nothing themselves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from e2e.checks import POISON, assert_same_answers, server_flags
from e2e.drafting import accepted, drafting_stream, note_drafts, noted
from e2e.engine import Job, run_jobs
from e2e.hugging_face import load
from e2e.oracle import oracle_of
from models.released import RELEASED
from models.tiny import WINDOW, write_model
from models.tiny_draft import make_gemma_assistant

STEPS = 3


def flags_of(target: Path, assistant: Path, page_size: int, steps: int = STEPS) -> dict[str, Any]:
    """EAGLE, which SGLang takes for FROZEN_KV_MTP where it sees an assistant."""
    return {
        **server_flags(target, page_size),
        "memory_backend": "jenga",
        "speculative_algorithm": "EAGLE",
        "speculative_draft_model_path": str(assistant),
        "speculative_num_steps": steps,
        "speculative_eagle_topk": 1,
        "speculative_num_draft_tokens": steps + 1,
    }


def write_pair(folder: Path) -> tuple[Path, Path]:
    target = write_model(folder / "target", RELEASED["gemma4"], 11)
    return target, make_gemma_assistant(folder / "assistant", target)


@pytest.mark.parametrize(
    ("page_size", "steps"), [(16, 4), pytest.param(1, 18, marks=pytest.mark.long)]
)
def test_drafts_of_an_assistant_change_no_answer(
    page_size: int, steps: int, tmp_path: Path
) -> None:
    """As right as was planned, in a pool so small that requests are retracted in mid-tail. SGLang's
    own torch backend does not serve a Gemma-4, so this is compared with Jenga without drafts."""
    target, assistant = write_pair(tmp_path)
    requests = drafting_stream()[:30]
    small = {"max_total_tokens": 512, "max_running_requests": 12}
    plain = {**server_flags(target, page_size), **small, "memory_backend": "jenga"}
    known = run_jobs({"plain": Job(plain, requests)}, tmp_path)["plain"]
    oracle = oracle_of(requests, known.answers, steps)
    ours = flags_of(target, assistant, page_size, steps) | small
    job = Job(ours, requests, env=POISON, prepare=oracle.install)
    report = run_jobs({"drafts": job}, tmp_path)["drafts"]
    assert_same_answers("gemma4, its assistant", known.answers, report.answers)
    print(accepted(report.answers), report.retractions, report.cached_tokens)
    assert min(accepted(report.answers)) > 0 and len(accepted(report.answers)) == steps + 1
    assert report.retractions > 0 and report.cached_tokens > 0
    layers = [[(g["dependency"], g["layers"]) for g in r.state["groups"]] for r in (known, report)]
    assert layers[0] == layers[1] == [(f"window {WINDOW}", 5), ("full", 1)]


def test_each_draft_is_the_one_that_hugging_faces_assistant_makes(tmp_path: Path) -> None:
    """Of several requests at once, behind cached prefixes too: from the target's last state of each
    request, and from all its rows in the window's layer and the full one."""
    target, assistant = write_pair(tmp_path)
    requests = drafting_stream()[:14]
    flags = flags_of(target, assistant, 16) | {"max_total_tokens": 4096, "max_running_requests": 4}
    job = Job(flags, requests, env=POISON, prepare=note_drafts, after=noted)
    report = run_jobs({"drafts": job}, tmp_path)["drafts"]
    texts = [r.prompt + a.tokens for r, a in zip(requests, report.answers, strict=True)]
    assert report.cached_tokens > 0 and len(report.after) > 40
    kept = [rows_of(target, text) for text in texts]
    wrong = [
        (number, length, drafts)
        for number, length, drafts in report.after
        if drafts_of(target, assistant, texts[number], kept[number], length) != drafts
    ]
    assert not wrong, f"{len(wrong)} of {len(report.after)}: {wrong[:5]}"
    assert any(length > WINDOW + 1 for _, length, _ in report.after)


def rows_of(target: Path, text: list[int]) -> Any:
    """What Hugging Face's class makes of ``text``: its last states, and rows by kind of layer."""
    with torch.inference_mode():
        return load(target)(
            input_ids=torch.tensor([text]), output_hidden_states=True, return_shared_kv_states=True
        )


def drafts_of(target: Path, assistant: Path, text: list[int], kept: Any, length: int) -> list[int]:
    """What Hugging Face's assistant drafts behind the first ``length`` tokens and one more.

    SGLang asks it elsewhere than Hugging Face's own `generate` does: Gemma-4's class there counts
    places from 1, and its assistant from 0 and without the last token, so it is two places further
    back from the target's rows; and it reads a window of the last `WINDOW` rows.
    """
    rows = {
        kind: (k[:, :, :length], v[:, :, :length]) for kind, (k, v) in kept.shared_kv_states.items()
    }
    k, v = rows["sliding_attention"]
    rows["sliding_attention"] = (k[:, :, -WINDOW:], v[:, :, -WINDOW:])
    state = kept.hidden_states[-1][:, length - 1 : length]
    token, drafts = text[length], []
    for _ in range(STEPS):
        with torch.inference_mode():
            embedded = load(target).get_input_embeddings()(torch.tensor([[token]]))
            out = load(assistant)(
                inputs_embeds=torch.cat((embedded, state), -1),
                position_ids=torch.tensor([[length - 2]]),
                shared_kv_states=rows,
            )
        state, token = out.last_hidden_state, int(out.logits.argmax())
        drafts.append(token)
    return drafts
