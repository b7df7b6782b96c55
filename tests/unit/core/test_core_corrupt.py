"""Each law of the books, broken in one way: the check says which, by how much, and in every mode of
Python. What is broken here is what the books consist of, so these tests name their parts."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from core_builders import begin, ids, make_geometry, make_manager, serve, tokens

from jenga_sglang.core.books.corrupt import CorruptPool, agree, distinct, none, present
from jenga_sglang.core.books.lru import LruBuckets
from jenga_sglang.core.books.tree import Node
from jenga_sglang.core.cut.geometry import Geometry, GroupGeometry, LayerGroupSpec
from jenga_sglang.core.dependency import Full, LastState, SlidingWindow
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.ranges import Range
from jenga_sglang.core.running import Running

A, B = tokens(range(100, 106)), tokens(range(200, 206))
ROOT = Path(__file__).resolve().parents[3]


def served() -> Manager:
    """Two histories of six pages in the tree, and a request that runs on the second with three
    pages of its own. A large page is three small pages of group 0, two of 1, three states of 2."""
    first = make_geometry((Full(), SlidingWindow(100)), 1, layers=[2, 3])
    states = GroupGeometry(LayerGroupSpec("states", (9,), LastState(), state_bytes=(8,)), 1, 1)
    ample = Geometry((*first.groups, states), 1, 1 << 40)
    geometry = ample.resized(ample.large_page_bytes * 41)
    manager = Manager(geometry, max_requests=4, max_length=100)
    serve(manager, B)
    first_of_a = begin(manager, A)
    manager.save_states(first_of_a, 0, 6, 7)
    manager.publish(first_of_a, None, A)
    manager.release(first_of_a)
    running = begin(manager, tokens(A, 1, 2, 3))
    manager.save_states(running, 6, 9, 9)
    assert running.hit.path.num_pages == 6
    manager.check()
    assert manager.memory.large.small_per_large == [3, 2, 3]
    return manager


def running(manager: Manager) -> Running:
    return next(iter(manager.running.values()))


def leaf(manager: Manager) -> Node:
    """The node of a history that nobody runs on."""
    return next(n for n in manager.tree if n.tokens[0] == B[0])


Break = Callable[[Manager], object]
LAWS: list[tuple[str, Break, str]] = []


def breaks(law: str) -> Callable[[Break], Break]:
    """The decorated function breaks what ``law``, a pattern of the message, says."""

    def note(change: Break) -> Break:
        LAWS.append((change.__name__, change, law))
        return change

    return note


# -- large pages ---------------------------------------------------------------------------------


@breaks(r"^free large pages more than once: \d+$")
def a_large_page_is_free_twice(manager: Manager) -> None:
    large = manager.memory.large
    large._free[0] = large._free[1]


@breaks(r"^free large pages outside 1 to 40: 41$")
def a_large_page_beyond_the_pool_is_free(manager: Manager) -> None:
    manager.memory.large._free[0] = 41


@breaks(r"^free large pages with an owner: \d+$")
def a_free_large_page_has_an_owner(manager: Manager) -> None:
    large = manager.memory.large
    large.owner[large._free[0]] = 1


@breaks(r"^free large pages that hold something: \d+$")
def a_free_large_page_holds_something(manager: Manager) -> None:
    large = manager.memory.large
    large.held[large._free[0]] = 1


@breaks(r"^large pages free or owned: 39 in the books, 40 recounted$")
def a_large_page_is_lost(manager: Manager) -> None:
    manager.memory.large.num_free -= 1


@breaks(r"^group 1: large pages owned without a small page: \d+$")
def a_large_page_is_owned_for_nothing(manager: Manager) -> None:
    large = manager.memory.large
    large.held[np.flatnonzero(large.owner == 1)[0]] = 0


@breaks(r"^group 0: large pages with more used than held: \d+$")
def a_large_page_uses_more_than_it_holds(manager: Manager) -> None:
    large = manager.memory.large
    large.used[np.flatnonzero(large.owner == 0)[0]] = 4


@breaks(r"^group 0: large pages that hold more than 3: \d+$")
def a_large_page_holds_more_than_fit(manager: Manager) -> None:
    large = manager.memory.large
    large.held[np.flatnonzero(large.owner == 0)[0]] = 4


@breaks(r"^group 0: owned large pages: 99 in the books, 5 recounted$")
def owned_large_pages_are_miscounted(manager: Manager) -> None:
    manager.memory.large.num_owned[0] = 99


@breaks(r"^group 0: used small pages: 99 in the books, 9 recounted$")
def used_small_pages_are_miscounted(manager: Manager) -> None:
    manager.memory.large.num_used[0] = 99


@breaks(r"^group 0: held small pages: 99 in the books, 15 recounted$")
def held_small_pages_are_miscounted(manager: Manager) -> None:
    manager.memory.large.num_held[0] = 99


@breaks(r"^group 0: reclaimable large pages: 99 in the books, 2 recounted$")
def reclaimable_large_pages_are_miscounted(manager: Manager) -> None:
    manager.memory.large.num_reclaimable[0] = 99


@breaks(r"^group 1: large pages with holes that are not listed: \d+$")
def a_hole_is_forgotten(manager: Manager) -> None:
    manager.memory.large.holes[1].in_large.popitem()


@breaks(r"^group 1: large pages with holes: \[\] in the books, \[\d+\] recounted$")
def a_hole_is_no_requests(manager: Manager) -> None:
    manager.memory.large.holes[1].of_request.clear()


@breaks(r"^group 1: holes in large page \d+: 2 in the books, 1 recounted$")
def a_hole_is_there_twice(manager: Manager) -> None:
    for holes in manager.memory.large.holes[1].in_large.values():
        holes *= 2


@breaks(r"^group 2: distinct holes in large page \d+: 1 in the books, \d recounted$")
def all_holes_are_one(manager: Manager) -> None:
    for holes in manager.memory.large.holes[2].in_large.values():
        holes[:] = holes[:1] * len(holes)


@breaks(r"^group 1: holes of large page \d+ that lie elsewhere: 0$")
def a_hole_lies_elsewhere(manager: Manager) -> None:
    for holes in manager.memory.large.holes[1].in_large.values():
        holes[:] = [0]


# -- memory --------------------------------------------------------------------------------------


@breaks(r"^pins of virtual page 0, by group: 1$")
def the_page_that_is_none_is_pinned(manager: Manager) -> None:
    manager.memory.pins[1][0] = 1


@breaks(r"^virtual page 0 in the tree: 0$")
def the_page_that_is_none_is_in_the_tree(manager: Manager) -> None:
    manager.memory.in_tree[0] = True


@breaks(r"^free virtual pages more than once: \d+$")
def a_virtual_page_is_free_twice(manager: Manager) -> None:
    manager.memory._free[0] = manager.memory._free[1]


@breaks(r"^free virtual pages in the tree: \d+$")
def a_free_virtual_page_is_in_the_tree(manager: Manager) -> None:
    manager.memory.in_tree[manager.memory._free[0]] = True


@breaks(r"^free virtual pages that are pinned: \d+$")
def a_free_virtual_page_is_pinned(manager: Manager) -> None:
    manager.memory.pins[0][manager.memory._free[0]] = 1


@breaks(r"^virtual pages in the tree: 99 in the books, 12 recounted$")
def tree_pages_are_miscounted(manager: Manager) -> None:
    manager.memory.num_tree = 99


@breaks(r"^pinned virtual pages in the tree: 99 in the books, 6 recounted$")
def pinned_tree_pages_are_miscounted(manager: Manager) -> None:
    manager.memory.num_tree_pinned = 99


@breaks(r"^virtual pages private, in the tree or free: (\d+) in the books, \d+ recounted$")
def a_virtual_page_is_lost(manager: Manager) -> None:
    manager.memory.num_free_virtual -= 1


@breaks(r"^group 0: small pages of virtual page 0: 7$")
def the_page_that_is_none_has_a_place(manager: Manager) -> None:
    manager.memory.table[0][0] = 7


@breaks(r"^group 0: small pages in the table more than once: \d+$")
def two_virtual_pages_have_one_place(manager: Manager) -> None:
    pages = running(manager).row
    manager.memory.table[0][pages[0]] = manager.memory.table[0][pages[1]]


@breaks(r"^group 0: small pages of another virtual page: \d+, \d+$")
def two_places_are_exchanged(manager: Manager) -> None:
    pages, table = running(manager).row, manager.memory.table[0]
    table[pages[:2]] = table[pages[1::-1]]


@breaks(r"^group 0: small pages with a virtual page: 16 in the books, 15 recounted$")
def a_place_belongs_to_a_page_that_has_none(manager: Manager) -> None:
    backwards = manager.memory.virtual_of[0]
    backwards[np.flatnonzero(backwards == 0)[-1]] = 3


@breaks(r"^group 1: large pages whose held small pages are miscounted: \d+, \d+$")
def a_page_lies_in_the_hole_of_another_large_page(manager: Manager) -> None:
    memory, page = manager.memory, running(manager).row[0]
    hole = next(iter(memory.large.holes[1].in_large.values()))[0]
    memory.virtual_of[1][memory.table[1][page]] = 0
    memory.virtual_of[1][hole] = page
    memory.table[1][page] = hole


@breaks(r"^group 0: large pages whose used small pages are miscounted: \d+, \d+$")
def a_used_page_is_booked_in_another_large_page(manager: Manager) -> None:
    large = manager.memory.large
    of_group = large.owner == 0
    large.used[np.flatnonzero(of_group & (large.used == 3))[0]] -= 1
    large.used[np.flatnonzero(of_group & (large.used == 0))[0]] += 1
    large.num_reclaimable[0] -= 1


@breaks(r"^group 0: large pages of another owner: ")
def a_page_lies_in_foreign_memory(manager: Manager) -> None:
    memory, page = manager.memory, running(manager).row[0]
    place = 3 * int(np.flatnonzero(memory.large.owner == 1)[0])
    memory.virtual_of[0][memory.table[0][page]] = 0
    memory.virtual_of[0][place] = page
    memory.table[0][page] = place


@breaks(r"^group 2: pinned pages that it does not hold: \d+$")
def a_page_is_pinned_that_is_not_held(manager: Manager) -> None:
    manager.memory.pins[2][running(manager).row[0]] = 1


@breaks(r"^group 0: pages pinned more often than by requests: \d+$")
def a_group_pins_more_than_the_requests(manager: Manager) -> None:
    manager.memory.pins[0][running(manager).row[0]] = 2


# -- the order of eviction -----------------------------------------------------------------------


@breaks(r"^entries in the LRU buckets: 99 in the books, \d+ recounted$")
def lru_entries_are_miscounted(manager: Manager) -> None:
    manager.memory.lru._num_entries = 99


@breaks(r"^times of LRU buckets: \[.*, 99\] in the books, \[.*\] recounted$")
def a_time_has_no_bucket(manager: Manager) -> None:
    manager.memory.lru._times.append(99)


@breaks(r"^reclaimable large pages queued later than their time, or not at all: \d+$")
def an_idle_large_page_is_not_queued(manager: Manager) -> None:
    manager.memory.lru._queued_at[_idle(manager)] = np.iinfo(np.int64).max


@breaks(r"^reclaimable large pages queued later than their time, or not at all: \d+$")
def an_idle_large_page_is_queued_too_late(manager: Manager) -> None:
    lru, page = manager.memory.lru, _idle(manager)
    lru.time[page] = lru._queued_at[page] - 1


@breaks(r"^queued large pages without an entry: \d+$")
def an_entry_is_void(manager: Manager) -> None:
    lru, page = manager.memory.lru, _idle(manager)
    lru._queued_at[page] -= 1


def _idle(manager: Manager) -> int:
    return int(manager.memory.large.reclaimable()[-1])


# -- the tree ------------------------------------------------------------------------------------


@breaks(r"^tree nodes that are lost or not registered: \d+$")
def a_node_is_lost(manager: Manager) -> None:
    del manager.tree._nodes[leaf(manager).number]


@breaks(r"^tree node \d+: pages of another node: \d+$")
def a_page_is_another_nodes(manager: Manager) -> None:
    manager.tree._node_of[leaf(manager).pages[0]] = 99


@breaks(r"^virtual pages in the tree more than once: \d+$")
def a_page_is_in_a_node_twice(manager: Manager) -> None:
    leaf(manager).pages[0] = leaf(manager).pages[1]


@breaks(r"^tree node \d+: lost by its parent: \d+$")
def a_node_has_another_parent(manager: Manager) -> None:
    leaf(manager).parent = manager.tree.root("other")


@breaks(r"^tree node \d+: first page: 5 in the books, 0 recounted$")
def a_node_begins_elsewhere(manager: Manager) -> None:
    leaf(manager).start = 5


@breaks(r"^tree node \d+: tokens: 5 in the books, 6 recounted$")
def a_node_lacks_a_token(manager: Manager) -> None:
    leaf(manager).tokens = leaf(manager).tokens[:-1]


@breaks(r"^tree node \d+: without a page: \d+$")
def a_node_has_no_page(manager: Manager) -> None:
    node = leaf(manager)
    node.tokens, node.pages = ids(), ids()


@breaks(r"^tree node \d+: key: ")
def a_node_is_known_by_another_key(manager: Manager) -> None:
    leaf(manager).key = b"another"


@breaks(r"^tree node \d+: a hollow end at page: 6$")
def a_hollow_end_is_not_forgotten(manager: Manager) -> None:
    leaf(manager).pages[-1] = 0


# -- states, and laws between the books ----------------------------------------------------------


@breaks(r"^slots of states more than once: \d+$")
def a_slot_is_free_and_used(manager: Manager) -> None:
    manager.snapshots._free.append(running(manager).state_page)


@breaks(r"^slots of states free or used: 3 in the books, 4 recounted$")
def a_slot_is_lost(manager: Manager) -> None:
    manager.snapshots._free.pop()


@breaks(r"^slots that name tokens: 7$")
def a_slot_names_tokens(manager: Manager) -> None:
    manager.snapshots._free[0] = 7


@breaks(r"^group 2: slots with a state: \[\d+\] in the books, \[\] recounted$")
def a_slot_has_a_state_and_no_request(manager: Manager) -> None:
    manager.snapshots._free.append(running(manager).state_page)
    running(manager).state_page = 0


@breaks(r"^group 0: pins: \(page, in the books, recounted\): \(\d+, 1, 0\)$")
def a_request_forgets_what_it_pins(manager: Manager) -> None:
    (whole,) = running(manager).held[0]
    running(manager).held[0] = [Range(1, whole.stop)]


@breaks(r"^pins of virtual pages: \(page, in the books, recounted\): \(\d+, 2, 1\)$")
def a_virtual_page_is_pinned_once_too_often(manager: Manager) -> None:
    manager.memory.pins[-1][running(manager).row[0]] = 2


@breaks(r"^tree node \d+: pages at another depth in the books: \d+$")
def a_page_has_another_depth(manager: Manager) -> None:
    manager.memory.depth[leaf(manager).pages[0]] = 5


@breaks(r"^tree node \d+: pages with other encoder pages in the books: \d+$")
def a_page_has_other_encoder_pages(manager: Manager) -> None:
    manager.memory.encoder_pages[leaf(manager).pages[0]] = 5


@breaks(r"^pages in the tree or in the books, not in both: \d+$")
def a_page_has_left_the_tree_alone(manager: Manager) -> None:
    leaf(manager).pages[0] = 0


@breaks(r"^retired group 0: held small pages: 15 in the books, 0 recounted$")
def a_retired_group_holds_pages(manager: Manager) -> None:
    manager.needs.retired.add(0)


@pytest.mark.parametrize(("change", "law"), [law[1:] for law in LAWS], ids=[law[0] for law in LAWS])
def test_a_broken_law_is_named_with_its_numbers(change: Break, law: str) -> None:
    manager = served()
    change(manager)
    with pytest.raises(CorruptPool, match=law):
        manager.check()


def test_an_idle_pool_has_no_requests() -> None:
    with pytest.raises(CorruptPool, match=r"^requests that still hold pages: 3$"):
        served().check_idle()


def test_an_idle_pool_uses_nothing() -> None:
    """The books agree with one another, but for a request that has been forgotten."""
    manager = served()
    manager.release(running(manager))
    manager.check_idle()
    manager.memory.large.num_used[1] = 2
    manager.check = lambda: None  # type: ignore[method-assign]
    with pytest.raises(CorruptPool, match=r"^small pages used by nobody, by group: 2$"):
        manager.check_idle()


def test_times_of_buckets_are_a_heap() -> None:
    lru = LruBuckets(9)
    for page, time in ((1, 5), (2, 6), (3, 7)):
        lru.touch(ids(page), time)
        lru.add(ids(page))
    lru.check(ids(1, 2, 3))
    lru._times.reverse()
    with pytest.raises(CorruptPool, match=r"^times of LRU buckets out of order: 6, 5$"):
        lru.check(ids(1, 2, 3))


def test_only_some_of_many_offenders_are_shown() -> None:
    with pytest.raises(CorruptPool, match=r"^odd: 1, 3, 5, 7, 9 … \(50 in all\)$"):
        none("odd", range(1, 100, 2))
    none("odd", ids())
    none("odd", [])


def test_what_agrees_is_distinct_or_present_passes() -> None:
    agree("pages", 3, 3)
    distinct("pages", ids(2, 1), 3)
    assert present(0, "nothing") == 0
    for offenders in (ids(0), ids(3)):
        with pytest.raises(CorruptPool, match=r"^pages outside 1 to 2: "):
            distinct("pages", offenders, 3)
    with pytest.raises(CorruptPool, match=r"^nothing$"):
        present(None, "nothing")


OPTIMIZED = """
import sys
sys.path[:0] = ["tests", "tests/unit/core"]
from test_core_corrupt import CorruptPool, served, running
manager = served()
manager.release(running(manager))
manager.memory.large.num_used[0] = 99
try:
    manager.check_idle()
except CorruptPool as error:
    print(__debug__, error)
"""


def test_checks_hold_under_python_that_leaves_asserts_out() -> None:
    command = [sys.executable, "-O", "-c", OPTIMIZED]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    expected = "False group 0: used small pages: 99 in the books, 0 recounted\n"
    assert (done.stdout, done.returncode) == (expected, 0), done.stderr


def test_stripes_of_a_page_are_all_there_or_none() -> None:
    manager = make_manager(Full(), num_large=9, layers=[2], stripes=[2])
    serve(manager, A[:2])
    manager.check()
    manager.memory.table[0][2, 1] = 0
    with pytest.raises(CorruptPool, match=r"^group 0: virtual pages held in part: 2$"):
        manager.check()
