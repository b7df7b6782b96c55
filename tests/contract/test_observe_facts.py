"""What the page map and the metrics take for granted about the installed SGLang."""

import dataclasses
import inspect
from types import SimpleNamespace

import pytest
from sglang.srt.managers.io_struct import GetInternalStateReq
from sglang.srt.managers.schedule_policy import CLIP_MAX_NEW_TOKENS, PrefillAdder
from sglang.srt.managers.scheduler_components.pool_stats_observer import PoolStats
from sglang.srt.managers.tokenizer_control_mixin import _COMMUNICATOR_SPECS
from sglang.srt.managers.utils import is_health_check_generate_req

from jenga_sglang import questions
from jenga_sglang.adapter import answers


def test_the_internal_state_request_has_an_id_that_a_question_fits_in() -> None:
    request = GetInternalStateReq(rid=questions.explain(5, 6))
    assert questions.is_question(request.rid) and not is_health_check_generate_req(request)
    assert not questions.is_question(GetInternalStateReq().rid)


@pytest.mark.parametrize(("dp_rank", "number"), [(None, 0), (0, 0), (3, 3)])
def test_an_answer_names_its_rank(
    dp_rank: int | None, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang hands over the answers of the ranks in the order in which they arrive."""
    monkeypatch.setattr(answers, "get_parallel", lambda: SimpleNamespace(dp_rank=dp_rank))
    monkeypatch.setattr(answers, "stats", lambda scheduler: {"groups": []})
    monkeypatch.setattr(answers, "explain", lambda scheduler, *numbers: {"asked": numbers})
    said = answers.answer(None, questions.STATS).internal_state
    assert said == {"groups": [], "dp_rank": number}
    said = answers.answer(None, questions.explain(5, 6)).internal_state
    assert said == {"asked": (5, 6), "dp_rank": number}


def test_its_answers_come_one_after_another() -> None:
    """A late answer must not be taken for the answer to another question."""
    (spec,) = [spec for spec in _COMMUNICATOR_SPECS if spec[0] == "get_internal_state"]
    assert len(spec) == 2 or spec[2] == "queueing"


def test_a_budget_can_be_asked_outside_a_pass() -> None:
    parameters = list(inspect.signature(PrefillAdder.__init__).parameters)
    assert parameters[1:8] == [
        "page_size",
        "tree_cache",
        "token_to_kv_pool_allocator",
        "running_batch",
        "new_token_ratio",
        "rem_input_tokens",
        "rem_chunk_tokens",
    ]
    assert CLIP_MAX_NEW_TOKENS > 0


def test_pool_stats_publish_themselves() -> None:
    assert dataclasses.is_dataclass(PoolStats) and not hasattr(PoolStats, "__slots__")
    assert list(inspect.signature(PoolStats.update_scheduler_stats).parameters) == ["self", "stats"]
