"""How long a request is kept out for the look-ahead's sake, and when nobody is any more."""

from collections.abc import Hashable

from core_builders import begin, make_geometry, serve, tokens

from jenga_sglang.core.books.tree import Tokens
from jenga_sglang.core.dependency import Full
from jenga_sglang.core.guard import FEWEST_SETTLED, MOST_SETTLED, TRIAL_REQUESTS, Guard
from jenga_sglang.core.lookahead import Lookahead
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.core.prices import Prices
from jenga_sglang.core.running import Counters


def make(passes: int = 3) -> Guard:
    return Guard(CachePolicy(longest_kept_out_passes=passes), Counters(), Prices())


def settle(guard: Guard, count: int, *, hit: int, passes: int = 1) -> None:
    """So many predictions of a hundred tokens, of which ``hit`` came true each time, after so many
    passes that each cost 32 tokens."""
    for n in range(count):
        for _ in range(passes):
            guard.begin_pass("head", kept_out=True, num_running=8)
        guard.predict({f"r{n}": 100}, [f"r{n}"])
        guard.began(f"r{n}", hit)


def test_who_waits_first_is_kept_out_for_so_many_passes_and_no_more() -> None:
    guard = make()
    seen = []
    for _ in range(4):
        guard.begin_pass("head", kept_out=True, num_running=8)
        seen.append(guard.has_waited_enough)
    assert seen == [False, False, True, True]
    guard.begin_pass("next", kept_out=False, num_running=8)
    assert not guard.has_waited_enough
    assert guard.counters.longest_kept_out_passes == 4 == guard.counters.kept_out_passes


def test_passes_count_in_a_row_for_one_request() -> None:
    guard = make()
    for head, kept_out in (("a", True), ("a", True), ("b", True), ("b", False), ("b", True)):
        guard.begin_pass(head, kept_out=kept_out, num_running=8)
        assert not guard.has_waited_enough
    assert guard.counters.longest_kept_out_passes == 2


def test_what_was_predicted_is_compared_with_what_is_hit() -> None:
    guard = make()
    guard.predict({"a": 100}, ["a", "b"])
    guard.began("stranger", 7)
    guard.began("a", 60)
    guard.began("a", 0)
    assert (guard.counters.predicted_tokens, guard.counters.missed_tokens) == (100, 40)
    guard.predict({"b": 50}, ["b"])
    guard.began("b", 80)
    assert (guard.counters.predicted_tokens, guard.counters.missed_tokens) == (150, 40)


def test_who_goes_away_has_missed_all() -> None:
    guard = make()
    guard.predict({"a": 100}, ["a", "b"])
    guard.predict({"b": 10}, ["b"])
    assert (guard.counters.predicted_tokens, guard.counters.missed_tokens) == (100, 100)


def test_predictions_that_cost_more_than_they_save_stop_and_are_tried_again() -> None:
    guard = make()
    settle(guard, FEWEST_SETTLED - 1, hit=31)
    assert guard.is_trusted
    settle(guard, 1, hit=31)
    assert not guard.is_trusted and guard.counters.stopped_predicting == 1
    for _ in range(TRIAL_REQUESTS - 1):
        guard.began("anybody", 0)
        assert not guard.is_trusted
    guard.began("anybody", 0)
    assert guard.is_trusted
    settle(guard, FEWEST_SETTLED - 1, hit=0)
    assert guard.is_trusted, "the past is forgotten"


def test_most_may_fail_where_the_others_save_more() -> None:
    guard = make()
    settle(guard, 3 * MOST_SETTLED, hit=33)
    assert guard.is_trusted and guard.counters.missed_tokens == 67 * 3 * MOST_SETTLED


def test_a_long_good_past_does_not_hide_a_bad_present() -> None:
    guard = make()
    settle(guard, 20 * MOST_SETTLED, hit=64)
    settle(guard, MOST_SETTLED // 2, hit=0)
    assert guard.is_trusted
    settle(guard, 1, hit=0)
    assert not guard.is_trusted


def test_who_is_kept_out_predicts_a_hit_and_nobody_is_while_it_is_not_trusted() -> None:
    geometry = make_geometry([Full()], 30)
    manager = Manager(geometry, max_requests=8, max_length=1000)
    manager.counters.mean_decode_steps = 1.0
    begin(manager, tokens(range(10)))  # what each of forty requests pins is a fortieth of it
    lookahead = Lookahead(manager)
    document = tokens(range(100, 118))
    serve(manager, document)

    def read(index: int) -> tuple[Hashable, Tokens]:
        return None, tokens(document, 1)

    lookahead.look(["asks"], read)
    assert lookahead.not_worth([10], 40) > 0
    lookahead.predict()
    lookahead.guard.began("asks", 0)
    assert manager.counters.missed_tokens == manager.counters.predicted_tokens == 18
    settle(lookahead.guard, FEWEST_SETTLED, hit=0)
    assert lookahead.not_worth([10], 40) == 0
