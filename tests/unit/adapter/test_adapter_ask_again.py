"""When admission is asked for again after a refusal."""

from core_builders import begin, make_manager, tokens

from jenga_sglang.adapter.cache.admission_pass import ASK_EVERY_PASSES, AskAgain, Refusal
from jenga_sglang.core.admission import weigh
from jenga_sglang.core.dependency import Full
from jenga_sglang.core.manager import Manager


def refused(short: float, cause: str = "memory") -> tuple[Manager, AskAgain, Refusal]:
    """Eight large pages of 16 tokens, four used by one request and two by another; "head" has just
    been refused."""
    manager = make_manager(Full(), num_large=8, page_size=16)
    begin(manager, tokens(range(64)))
    begin(manager, tokens(range(100, 132)))
    refusal = Refusal(weigh(manager, [0], [4]), cause, short)
    ask_again = AskAgain(manager)
    assert not ask_again.is_due("head", refusal)
    return manager, ask_again, refusal


def passes_until_due(ask_again: AskAgain, refusal: Refusal) -> int:
    return next(n for n in range(1, 99) if ask_again.is_due("head", refusal))


def test_every_pass_asks_while_nothing_was_refused() -> None:
    _, ask_again, _ = refused(2)
    assert ask_again.is_due("head", None)
    assert ask_again.is_due("head", None)


def test_room_that_was_missing_is_there() -> None:
    manager, ask_again, refusal = refused(2)
    assert not ask_again.is_due("head", refusal)
    manager.release(next(reversed(manager.running.values())))
    assert ask_again.is_due("head", refusal)


def test_less_room_than_was_missing_is_not_enough() -> None:
    manager, ask_again, refusal = refused(3)
    manager.release(next(reversed(manager.running.values())))
    assert not ask_again.is_due("head", refusal)


def test_running_requests_use_up_what_was_promised_to_them() -> None:
    """Two requests use a token each in a pass, a sixteenth of a page: eight passes, a page."""
    _, ask_again, refusal = refused(1)
    assert passes_until_due(ask_again, refusal) == 8


def test_another_head_is_asked_for_at_once() -> None:
    _, ask_again, refusal = refused(100)
    assert ask_again.is_due("other", refusal)


def test_nobody_waits_for_ever() -> None:
    _, ask_again, refusal = refused(100)
    assert passes_until_due(ask_again, refusal) == ASK_EVERY_PASSES


def test_what_is_not_worth_it_does_not_become_so_by_room_alone() -> None:
    manager, ask_again, refusal = refused(1, "cache")
    manager.release(next(reversed(manager.running.values())))
    assert passes_until_due(ask_again, refusal) == ASK_EVERY_PASSES
    assert ask_again.is_due("other", refusal)


def test_a_new_refusal_starts_anew() -> None:
    manager, ask_again, refusal = refused(1)
    for _ in range(7):
        assert not ask_again.is_due("head", refusal)
    again = Refusal(weigh(manager, [0], [4]), "memory", 1)
    assert not ask_again.is_due("head", again)
    assert passes_until_due(ask_again, again) == 8
