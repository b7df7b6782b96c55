"""Recurrent layers: working states, snapshots, and where a later request may continue."""

import core_inspector as inside
import pytest
from core_builders import UNIT_BYTES, begin, grow, held_pages, hit_tokens, tokens

from jenga_sglang.core.admission import longest_request, request_pages
from jenga_sglang.core.books.tree import Tokens
from jenga_sglang.core.cut.geometry import Geometry, GroupGeometry, LayerGroupSpec
from jenga_sglang.core.dependency import Full, LastState, SlidingWindow
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.core.recurrent import due
from jenga_sglang.core.running import Running

PAGE = 2
STATES = 1
A = tokens(range(100, 116))


def make(num_large: int, *, answer: int = 0, share: int = 0, prefix_cache: bool = True) -> Manager:
    """A page of two tokens and a state take one large page each."""
    rows = LayerGroupSpec("rows", (0,), Full(), UNIT_BYTES, 0)
    states = LayerGroupSpec("states", (1,), LastState(), state_bytes=(PAGE * UNIT_BYTES,))
    cuts = (GroupGeometry(rows, PAGE), GroupGeometry(states, PAGE))
    geometry = Geometry(cuts, PAGE, (num_large + 1) * PAGE * UNIT_BYTES)
    return Manager(
        geometry,
        max_requests=4,
        max_length=64,
        prefix_cache=prefix_cache,
        policy=CachePolicy(
            state_share_percent=share, answer_state_tokens=answer, prompt_slack_tokens=PAGE
        ),
    )


def make_large_states(num_large: int, policy: CachePolicy) -> Manager:
    """A state takes a large page, as 25 pages of two tokens do: worth 50 tokens."""
    rows = LayerGroupSpec("rows", (0,), Full(), UNIT_BYTES, 0)
    states = LayerGroupSpec("states", (1,), LastState(), state_bytes=(25 * PAGE * UNIT_BYTES,))
    cuts = (GroupGeometry(rows, PAGE), GroupGeometry(states, PAGE))
    geometry = Geometry(cuts, PAGE, (num_large + 1) * 25 * PAGE * UNIT_BYTES)
    return Manager(geometry, max_requests=4, max_length=100, policy=policy)


def compute(manager: Manager, history: Tokens, *partings: int, crowded: bool = False) -> Running:
    """Begin a request, and compute its whole prompt in one step."""
    running = begin(manager, history)
    start = running.hit.path.num_pages * PAGE
    manager.save_states(running, start, len(history), len(history), partings, crowded=crowded)
    return running


def serve(manager: Manager, history: Tokens, *partings: int) -> Running:
    running = compute(manager, history, *partings)
    manager.publish(running, None, history)
    manager.release(running)
    manager.check_idle()
    return running


def saved(running: Running) -> list[int]:
    return [length for length, _ in running.saves]


def test_a_request_holds_one_state_however_long_it_grows() -> None:
    manager = make(40)
    running = begin(manager, A)
    grow(manager, running, 40)
    assert inside.num_used(manager) == [20, 1]
    manager.check()
    manager.release(running)
    manager.check_idle()
    assert inside.num_held(manager) == [0, 0]


def test_snapshots_are_left_where_others_part_and_before_the_end_of_the_prompt() -> None:
    """The last token of a prompt is never matched, so of 16 the 14 before its page are worth it."""
    manager = make(40)
    running = compute(manager, A, 9, 16)
    assert saved(running) == [8, 14, 16]
    assert all(
        copy.source == inside.tables(manager)[STATES][running.state_page]
        for _, copy in running.saves
    )
    manager.publish(running, None, A)
    assert [page + 1 for page in held_pages(manager, STATES, A)] == [4, 7, 8]
    assert manager.counters.saved_snapshots == 3


def test_a_hit_ends_exactly_at_a_snapshot() -> None:
    manager = make(40)
    serve(manager, A, 8, 16)
    assert [hit_tokens(manager, A[:n]) for n in (7, 8, 13, 14, 15, 16)] == [0, 8, 8, 14, 14, 16]
    hit = manager.match(None, A[:13])
    assert (hit.path.num_pages, hit.matched_pages, hit.cut_by) == (4, 6, STATES)


def test_where_nobody_waits_snapshots_are_guessed_further_and_further_from_the_end() -> None:
    """A state takes as much as a page: of eight pages 38 % are three snapshots."""
    manager = make(40, share=38)
    running = compute(manager, A)
    assert saved(running) == [14, 8, 12] and running.guessed_pages == [4, 6]
    manager.publish(running, None, A)
    assert [hit_tokens(manager, A[:n]) for n in (7, 9, 13, 15)] == [0, 8, 12, 14]
    assert saved(compute(make(40, share=12), A)) == [14]
    assert saved(compute(make(40, share=38), A, crowded=True)) == [14], "one guess, that one"


def test_a_guess_goes_before_what_is_known() -> None:
    manager = make(8 + 1 + 2, share=25)
    running = compute(manager, A)
    assert saved(running) == [14, 12]
    manager.publish(running, None, A)
    manager.release(running)
    begin(manager, tokens(300))
    assert [page + 1 for page in held_pages(manager, STATES, A)] == [7]


def test_the_first_state_is_zero_and_a_later_one_a_copy_of_the_snapshot() -> None:
    """Copy on write: the snapshot stays what it was, so two requests can go on from it."""
    manager = make(40)
    first = compute(manager, A, 16)
    (start,) = first.starts
    assert start.source.tolist() == [0]
    assert start.target == inside.tables(manager)[STATES][first.state_page]
    manager.publish(first, None, A)
    twins = [begin(manager, tokens(A, n)) for n in (1, 2)]
    page = inside.pages_of(manager, A)[-1]
    copies = [twin.starts[0] for twin in twins]
    assert [c.source for c in copies] == [inside.tables(manager)[STATES][page]] * 2
    assert len({int(c.target[0]) for c in copies} | {int(copies[0].source[0])}) == 3
    manager.check()


def test_where_a_prompt_leaves_a_known_history_a_snapshot_is_left() -> None:
    manager = make(60)
    serve(manager, A)
    fork = tokens(A[:6], range(200, 209))
    running = compute(manager, fork)
    assert saved(running) == [6, 14]
    manager.publish(running, None, fork)
    assert hit_tokens(manager, tokens(A[:6], 300, 301, 302)) == 6


def test_a_snapshot_without_room_is_skipped_and_counted() -> None:
    manager = make(8 + 1 + 1)
    running = compute(manager, A, 8, 16)
    assert saved(running) == [8]
    assert manager.counters.skipped_snapshots == 2
    manager.publish(running, None, A)
    manager.release(running)
    manager.check_idle()
    assert hit_tokens(manager, A) == 8


@pytest.mark.parametrize(
    ("free", "percent", "left"),
    [(1, 8, [8, 14]), (1, 0, [8, 10, 14]), (2, 8, [8, 10, 14]), (1, 14, [8, 14]), (1, 16, [8])],
)
def test_what_spares_too_little_is_left_in_free_room_alone(
    free: int, percent: int, left: list[int]
) -> None:
    """Beside rows and a working state, and rows and a snapshot that are cached: 8 per cent of a
    state are 4 tokens, 14 are 7, 16 are 8. Who parts at 10 hits at 8 otherwise."""
    policy = CachePolicy(state_share_percent=0, snapshot_gain_percent=percent)
    manager = make_large_states(4 + free, policy)
    serve(manager, tokens(range(200, 216)))
    assert saved(compute(manager, A, 8, 10)) == left
    assert manager.counters.skipped_snapshots == 0
    manager.check()


def test_room_is_asked_for_the_snapshots_to_come() -> None:
    manager = make_large_states(8, CachePolicy(state_share_percent=0))
    candidate = begin(manager, A[:0])
    assert manager.snapshots_to_come(candidate, 16, [8]) == 0, "it runs alone"
    begin(manager, tokens(9))
    assert manager.snapshots_to_come(candidate, 16, []) == 1
    assert manager.snapshots_to_come(candidate, 16, [8, 8, 10, 15]) == 2
    assert manager.snapshots_to_come(candidate, 4, []) == 0, "three tokens are less than four"
    assert manager.snapshots_to_come(candidate, 49, []) == 1
    assert manager.snapshots_to_come(candidate, 50, []) == 2, "and one for whoever comes next"
    grow(manager, candidate, 12)
    assert manager.snapshots_to_come(candidate, 16, [8]) == 1


@pytest.mark.parametrize(
    "manager",
    [
        make_large_states(8, CachePolicy(snapshot_room=False)),
        Manager(make(12).geometry, max_requests=4, max_length=64, prefix_cache=False),
    ],
)
def test_no_room_is_asked_for_snapshots_that_are_never_left(manager: Manager) -> None:
    candidate = begin(manager, A)
    begin(manager, tokens(9))
    assert manager.snapshots_to_come(candidate, 16, [8]) == 0


def test_a_snapshot_is_given_up_before_a_reservation_fails() -> None:
    manager = make(8 + 1 + 3)
    running = compute(manager, A, 8, 16)
    assert len(running.saves) == 3
    assert manager.reserve([(running, 3)])
    assert inside.num_used(manager) == [8, 1]
    manager.check()
    assert not manager.reserve([(running, 4)])


def test_a_snapshot_takes_the_place_of_what_is_merely_cached() -> None:
    manager = make(8 + 1 + 3)
    serve(manager, A, 8, 16)
    other = tokens(range(300, 316))
    running = compute(manager, other, 8, 16)
    assert saved(running) == [8, 14, 16]
    manager.check()


def test_equal_snapshots_are_kept_once() -> None:
    manager = make(60)
    batch = [begin(manager, A) for _ in range(2)]
    for running in batch:
        manager.save_states(running, 0, len(A), len(A), (8, 16))
    assert inside.num_held(manager)[STATES] == 2 + 2 * 3
    for running in batch:
        manager.publish(running, None, A)
        manager.release(running)
    manager.check_idle()
    assert inside.num_held(manager) == [8, 3]


def test_nothing_is_saved_without_a_prefix_cache() -> None:
    manager = make(40, prefix_cache=False)
    running = compute(manager, A)
    assert not running.saves
    assert manager.counters.skipped_snapshots == 0


def test_a_request_is_refused_when_there_is_no_room_for_its_state() -> None:
    manager = make(8)
    running = manager.lock(manager.miss(None))
    assert not manager.reserve([(running, 8)])
    assert manager.reserve([(running, 7)])


def test_admission_counts_one_state_a_request() -> None:
    manager = make(40)
    assert request_pages(manager, 60, 16, 0) == [30, 1]
    assert longest_request(manager, 16) == 64
    assert longest_request(make(12), 16) == 2 * 11


def test_a_state_is_worth_the_rows_that_take_as_much() -> None:
    rows = LayerGroupSpec("rows", (0,), Full(), 8, 8)
    window = LayerGroupSpec("window", (3,), SlidingWindow(8), 8, 8)
    states = LayerGroupSpec("states", (1, 2), LastState(), state_bytes=(504,))
    cuts = tuple(GroupGeometry(spec, 4) for spec in (rows, window, states))
    manager = Manager(Geometry(cuts, 4, 1 << 16), max_requests=4, max_length=64)
    assert manager.snapshots.state_tokens == 64
    no_rows = (GroupGeometry(states, 4), GroupGeometry(window, 4))
    manager = Manager(Geometry(no_rows, 4, 1 << 16), max_requests=4, max_length=64)
    assert manager.snapshots.state_tokens == 0
    running = compute(manager, A, crowded=True)
    assert saved(running) == [12], "nothing but states is kept: all are worth it"


@pytest.mark.parametrize(
    ("start", "stop", "lengths", "pages"),
    [
        (16, 40, (17, 35, 99), [8]),
        (15, 31, (20, 16, 22), [4, 5]),
        (0, 3, (3,), []),
        (16, 32, (16, 32), [8]),
    ],
)
def test_a_snapshot_is_due_where_a_step_passes_it(
    start: int, stop: int, lengths: tuple[int, ...], pages: list[int]
) -> None:
    assert due(start, stop, lengths, 4) == pages


def follow(
    manager: Manager, running: Running, prompt: int, stop: int, *, crowded: bool = False
) -> None:
    """Decode up to ``stop`` tokens, one by one."""
    for length in range(running.length + 1, stop + 1):
        grow(manager, running, length)
        manager.save_states(running, length - 1, length, prompt, crowded=crowded)


def test_one_snapshot_moves_along_with_the_answer() -> None:
    """Where the answer will end nobody knows: every four tokens it is taken anew, in one place."""
    manager = make(40, answer=4)
    running = compute(manager, A[:9])
    manager.publish(running, None, A[:9])
    running.saves.clear()
    follow(manager, running, 9, 15)
    assert saved(running) == [12]
    first = running.saves.pop()[1].target
    follow(manager, running, 9, 23)
    assert saved(running) == [16, 20] and all(c.target == first for _, c in running.saves)
    assert inside.num_used(manager)[STATES] == 2, "the working state, and one that follows"
    history = tokens(A, range(7))
    manager.publish(running, None, history)
    manager.release(running)
    manager.check_idle()
    assert [hit_tokens(manager, history[:n]) for n in (10, 19, 20, 23)] == [8, 8, 20, 20]


def test_a_step_of_many_accepted_tokens_leaves_what_steps_of_one_would() -> None:
    """From 9 to 23 tokens at once, in a tail: of the snapshots that a step a token would leave in
    one place, one after the other, the last is left."""
    manager = make(40, answer=4)
    running = compute(manager, A[:9])
    manager.publish(running, None, A[:9])
    running.saves.clear()
    assert manager.reserve([(running, manager.new_pages(running, 30))])
    manager.extend_tail(running, 30)
    manager.save_states(running, 9, 23, 9)
    assert saved(running) == [20]
    manager.commit(running, 23)
    manager.save_states(running, 23, 24, 9)
    assert saved(running) == [20, 24] and running.saves[0][1].target == running.saves[1][1].target
    assert inside.num_used(manager)[STATES] == 2, "the working state, and one that follows"
    manager.publish(running, None, tokens(A, range(8)))
    manager.release(running)
    manager.check_idle()
    assert hit_tokens(manager, tokens(A, range(9))) == 24


def test_while_others_wait_for_memory_no_snapshot_begins_to_follow_an_answer() -> None:
    manager = make(40, answer=4)
    running = compute(manager, A[:9])
    running.saves.clear()
    follow(manager, running, 9, 14, crowded=True)
    assert not running.saves and not manager.let_go_of_answers()
    follow(manager, running, 9, 16)
    assert saved(running) == [16]
    assert manager.let_go_of_answers() and not manager.let_go_of_answers()
    assert inside.num_used(manager)[STATES] == 2, "the end of the prompt is not the answer's"
    manager.release(running)
    manager.check_idle()


def test_what_follows_an_answer_is_given_up_before_a_reservation_fails() -> None:
    manager = make(10, answer=4)
    running = compute(manager, A[:1])
    follow(manager, running, 1, 4)
    assert inside.num_used(manager) == [2, 2]
    assert manager.reserve([(running, 7)])
    assert inside.num_used(manager) == [2, 1]
    follow(manager, running, 1, 8)
    assert saved(running) == [4, 8], "and begins anew when there is room"
    manager.check()
