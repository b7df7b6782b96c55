"""What the scheduler is told about room, on a pool of ten large pages of four tokens each."""

import logging

import core_inspector as inside
import pytest
from adapter_builders import make_pool_of_one_layer
from core_builders import begin, serve, tokens

from jenga_sglang.adapter.cache.allocator import JengaAllocator
from jenga_sglang.core.admission import longest_request

PAGE = 4
ROOM = 10 * PAGE


@pytest.fixture
def allocator() -> JengaAllocator:
    return make_allocator()


def make_allocator() -> JengaAllocator:
    return JengaAllocator(make_pool_of_one_layer(10, page_size=PAGE, max_length=64))


def longest_answer(
    allocator: JengaAllocator, prompt: int, wanted: int, chunk: int = 8
) -> int | None:
    return allocator.max_new_tokens_for_memory(
        prompt, wanted, token_capacity=0, sliding_window_size=None, chunk_size=chunk
    )


def test_a_prompt_that_can_never_fit_is_refused_with_what_can(allocator: JengaAllocator) -> None:
    longest = longest_request(allocator.manager, 8)
    assert 0 < longest <= ROOM
    assert allocator.why_refused(longest - 1, 8) is None
    why = allocator.why_refused(longest, 8)
    assert why is not None
    assert f"prompt of {longest} tokens" in why and f"that does has {longest} tokens" in why
    assert "empty" in (allocator.why_refused(0, 8) or "")


def test_what_is_used_now_refuses_nobody_for_ever(allocator: JengaAllocator) -> None:
    begin(allocator.manager, tokens(range(ROOM)))
    assert allocator.why_refused(20, 8) is None


def test_answers_are_cut_to_what_an_empty_pool_holds(allocator: JengaAllocator) -> None:
    longest = longest_request(allocator.manager, 8)
    assert longest_answer(allocator, 10, 5) == 5
    assert longest_answer(allocator, 10, 1000) == longest - 10
    assert longest_answer(allocator, longest, 1000) is None
    assert longest_answer(allocator, 10, 0) == 0


@pytest.mark.parametrize("chunk", [None, 0, -1])
def test_a_prompt_that_is_not_cut_is_computed_in_one_step(
    chunk: int | None, allocator: JengaAllocator
) -> None:
    assert allocator._how_computed(30, chunk) == (30, 0)
    assert allocator._how_computed(30, 8) == (8, 0)
    with allocator.asking_with(3 * PAGE):
        assert allocator._how_computed(30, 8) == (8, 3)


def test_a_question_that_fails_leaves_the_next_one_alone(allocator: JengaAllocator) -> None:
    with pytest.raises(ValueError), allocator.asking_with(3 * PAGE):
        raise ValueError
    assert allocator._how_computed(30, 8) == (8, 0)


def test_the_books_are_recounted_when_something_changed(allocator: JengaAllocator) -> None:
    assert allocator.verify_byte_accounting() == [] and allocator.is_recounted
    serve(allocator.manager, tokens(range(9)))
    assert not allocator.is_recounted
    assert allocator.verify_byte_accounting() == [] and allocator.is_recounted
    running = begin(allocator.manager, tokens(range(20, 25)))
    (violation,) = allocator.verify_byte_accounting()
    assert violation == "jenga: requests that still hold pages: 2"
    assert not allocator.is_recounted
    allocator.manager.release(running)
    inside.lose_a_large_page(allocator.manager)
    (violation,) = allocator.verify_byte_accounting()
    assert violation.startswith("jenga: large pages free or owned: ")
    assert [violation] == allocator.verify_byte_accounting() and not allocator.is_recounted


def test_the_books_are_recounted_after_a_flush(allocator: JengaAllocator) -> None:
    """Also when as much has happened since as before the last recount."""
    for _ in range(2):
        serve(allocator.manager, tokens(range(9)))
        assert not allocator.is_recounted
        assert allocator.verify_byte_accounting() == [] and allocator.is_recounted
        allocator.manager.reset()
        assert not allocator.is_recounted


def test_ranks_that_decide_otherwise_have_other_digests(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JENGA_LOG_DIGEST", "1")
    with caplog.at_level(logging.INFO):
        for history in (range(8), range(50, 58), range(12)):
            allocator = make_allocator()
            serve(allocator.manager, tokens(history))
            assert not allocator.verify_byte_accounting()
    one, other_tokens, longer = (record.args for record in caplog.records)
    assert one == other_tokens, "which tokens they are is no decision"
    assert one != longer


@pytest.mark.parametrize("call", ["alloc", "free"])
def test_bare_token_slots_are_refused(call: str, allocator: JengaAllocator) -> None:
    with pytest.raises(NotImplementedError, match="pages per request, not bare token slots"):
        getattr(allocator, call)(4)
