"""The prefix tree, two tokens a page: find, extend, split, fill, cut and trim."""

from collections.abc import Callable

import numpy as np
import pytest
from core_builders import ids, tokens

from jenga_sglang.core.books.corrupt import CorruptPool
from jenga_sglang.core.books.tree import FEWEST_ROOTS, Path, PrefixTree

DOCUMENT = tokens(range(8))  # four pages
FORK = tokens(range(4), 90, 91, 92, 93)  # two of them the same


@pytest.fixture
def tree() -> PrefixTree:
    return PrefixTree(page_size=2, num_virtual=50)


def insert(tree: PrefixTree, history: np.ndarray, *pages: int, namespace: str = "a") -> Path:
    """Append ``pages`` to what the tree knows of ``history``."""
    path = tree.extend(tree.find(namespace, history), history, ids(*pages))
    tree.check()
    return path


def pages_of(tree: PrefixTree, history: np.ndarray, namespace: str = "a") -> list[int]:
    return tree.pages(tree.find(namespace, history)).tolist()


def runs(tree: PrefixTree) -> list[tuple[int, list[int]]]:
    """Every node as (first page's place in the history, pages)."""
    return sorted((node.start, node.pages.tolist()) for node in tree)


def test_an_empty_tree_knows_no_history(tree: PrefixTree) -> None:
    assert tree.find("a", DOCUMENT).num_pages == 0
    assert pages_of(tree, DOCUMENT) == []


def test_what_was_inserted_is_found(tree: PrefixTree) -> None:
    insert(tree, DOCUMENT, 1, 2, 3, 4)
    assert pages_of(tree, DOCUMENT) == [1, 2, 3, 4]


def test_only_whole_pages_are_found(tree: PrefixTree) -> None:
    insert(tree, DOCUMENT, 1, 2, 3, 4)
    assert pages_of(tree, DOCUMENT[:5]) == [1, 2]
    assert pages_of(tree, tokens(0, 1, 2, 90)) == [1]
    assert pages_of(tree, tokens(90, 1)) == []


def test_finding_inside_a_run_does_not_split_it(tree: PrefixTree) -> None:
    insert(tree, DOCUMENT, 1, 2, 3, 4)
    assert tree.find("a", FORK).num_pages == 2
    assert runs(tree) == [(0, [1, 2, 3, 4])]


def test_a_fork_splits_a_run_at_the_page(tree: PrefixTree) -> None:
    insert(tree, DOCUMENT, 1, 2, 3, 4)
    insert(tree, FORK, 5, 6)
    assert runs(tree) == [(0, [1, 2]), (2, [3, 4]), (2, [5, 6])]
    assert pages_of(tree, DOCUMENT) == [1, 2, 3, 4]
    assert pages_of(tree, FORK) == [1, 2, 5, 6]


def test_a_path_found_before_a_split_keeps_its_meaning(tree: PrefixTree) -> None:
    whole = insert(tree, DOCUMENT, 1, 2, 3, 4)
    inside = tree.find("a", DOCUMENT[:2])
    insert(tree, FORK, 5, 6)
    assert tree.pages(whole).tolist() == [1, 2, 3, 4]
    assert tree.pages(inside).tolist() == [1]


def test_a_longer_history_continues_where_the_known_one_ends(tree: PrefixTree) -> None:
    insert(tree, DOCUMENT[:4], 1, 2)
    insert(tree, DOCUMENT, 3, 4)
    assert pages_of(tree, DOCUMENT) == [1, 2, 3, 4]


def test_extending_by_nothing_changes_nothing(tree: PrefixTree) -> None:
    insert(tree, DOCUMENT, 1, 2, 3, 4)
    insert(tree, DOCUMENT)
    assert runs(tree) == [(0, [1, 2, 3, 4])]


def test_namespaces_never_meet(tree: PrefixTree) -> None:
    insert(tree, DOCUMENT, 1, 2, 3, 4)
    assert pages_of(tree, DOCUMENT, "b") == []
    insert(tree, DOCUMENT, 5, 6, 7, 8, namespace="b")
    assert pages_of(tree, DOCUMENT, "a") == [1, 2, 3, 4]
    assert pages_of(tree, DOCUMENT, "b") == [5, 6, 7, 8]


def test_the_tree_keeps_its_own_copy_of_what_it_is_given(tree: PrefixTree) -> None:
    history, pages = DOCUMENT.copy(), ids(1, 2, 3, 4)
    tree.extend(tree.find("a", history), history, pages)
    history[:] = 99
    pages[:] = 99
    assert pages_of(tree, DOCUMENT) == [1, 2, 3, 4]


def test_nodes_are_found_by_the_pages_they_hold(tree: PrefixTree) -> None:
    insert(tree, DOCUMENT, 1, 2, 3, 4)
    insert(tree, FORK, 5, 6)
    assert [n.pages.tolist() for n in tree.nodes_of(ids(6, 5))] == [[5, 6]]
    assert sorted(n.start for n in tree.nodes_of(ids(1, 4, 6))) == [0, 2, 2]


def test_below_is_the_rest_of_a_run_and_all_that_hangs_on_it(tree: PrefixTree) -> None:
    insert(tree, DOCUMENT, 1, 2, 3, 4)
    insert(tree, FORK, 5, 6)
    [upper] = tree.nodes_of(ids(1))
    assert sorted(tree.below(upper, 1).tolist()) == [2, 3, 4, 5, 6]
    [lower] = tree.nodes_of(ids(3))
    assert tree.below(lower, 1).tolist() == [4]


def test_cutting_inside_a_run_forgets_the_rest_and_all_that_hangs_on_it(tree: PrefixTree) -> None:
    insert(tree, DOCUMENT, 1, 2, 3, 4)
    insert(tree, FORK, 5, 6)
    [upper] = tree.nodes_of(ids(1))
    [lower] = tree.nodes_of(ids(3))
    tree.cut(upper, 1)
    tree.check()
    assert runs(tree) == [(0, [1])]
    assert tree.is_alive(upper)
    assert not tree.is_alive(lower)
    assert pages_of(tree, FORK) == [1]


def test_cutting_a_run_at_its_start_takes_it_out_of_its_parent(tree: PrefixTree) -> None:
    insert(tree, DOCUMENT, 1, 2, 3, 4)
    insert(tree, FORK, 5, 6)
    [fork] = tree.nodes_of(ids(5))
    tree.cut(fork, 0)
    tree.check()
    assert pages_of(tree, FORK) == [1, 2]
    assert pages_of(tree, DOCUMENT) == [1, 2, 3, 4]


def test_a_hollow_page_inside_a_history_is_zero(tree: PrefixTree) -> None:
    insert(tree, DOCUMENT, 1, 2, 3, 4)
    tree.hollow_out(ids(2, 3))
    tree.check()
    assert pages_of(tree, DOCUMENT) == [1, 0, 0, 4]


def test_a_hollow_end_is_forgotten(tree: PrefixTree) -> None:
    insert(tree, DOCUMENT, 1, 2, 3, 4)
    tree.hollow_out(ids(2, 4))
    tree.check()
    assert pages_of(tree, DOCUMENT) == [1, 0, 3]
    tree.hollow_out(ids(3))
    tree.check()
    assert pages_of(tree, DOCUMENT) == [1]


def test_a_hollow_end_above_others_stays_until_they_go(tree: PrefixTree) -> None:
    insert(tree, DOCUMENT, 1, 2, 3, 4)
    insert(tree, FORK, 5, 6)
    tree.hollow_out(ids(1, 2))
    tree.check()
    assert pages_of(tree, FORK) == [0, 0, 5, 6]
    tree.hollow_out(ids(3, 4))
    tree.check()
    assert runs(tree) == [(0, [0, 0]), (2, [5, 6])]
    tree.hollow_out(ids(5, 6))
    tree.check()
    assert runs(tree) == []


def test_a_parent_and_its_child_are_hollowed_out_together(tree: PrefixTree) -> None:
    insert(tree, DOCUMENT[:4], 1, 2)
    insert(tree, DOCUMENT, 3, 4)
    tree.hollow_out(ids(1, 2, 3, 4))
    tree.check()
    assert runs(tree) == []


def test_hollow_pages_are_filled_and_others_stay(tree: PrefixTree) -> None:
    insert(tree, DOCUMENT, 1, 2, 3, 4)
    insert(tree, FORK, 5, 6)
    tree.hollow_out(ids(2, 3))
    tree.replace(tree.find("a", DOCUMENT), 1, ids(7, 8, 0))
    tree.check()
    assert pages_of(tree, DOCUMENT) == [1, 7, 8, 4]
    assert pages_of(tree, FORK) == [1, 7, 5, 6]
    assert [n.start for n in tree.nodes_of(ids(7))] == [0]
    assert [n.start for n in tree.nodes_of(ids(8))] == [2]


def test_check_notices_a_page_that_is_in_the_tree_twice(tree: PrefixTree) -> None:
    insert(tree, DOCUMENT, 1, 2, 3, 4)
    tree.extend(tree.find("a", FORK), FORK, ids(5, 3))
    with pytest.raises(CorruptPool):
        tree.check()


class TestVersions:
    """What was worked out of a path's pages holds until one of them is not what it was."""

    @staticmethod
    def has_changed(tree: PrefixTree, change: Callable[[Path], object]) -> bool:
        """Whether DOCUMENT's path does when ``change`` happens to it, FORK hanging on its half."""
        insert(tree, DOCUMENT, 1, 2, 3, 4)
        insert(tree, FORK, 5, 6)
        path, version = tree.find("a", DOCUMENT), tree.version
        assert not tree.has_changed(path, version)
        change(path)
        tree.check()
        return tree.has_changed(path, version)

    def test_pages_that_nobody_holds_any_more_change_it(self, tree: PrefixTree) -> None:
        assert self.has_changed(tree, lambda path: tree.hollow_out(ids(1)))

    def test_an_end_that_is_forgotten_changes_it(self, tree: PrefixTree) -> None:
        assert self.has_changed(tree, lambda path: tree.hollow_out(ids(3, 4)))

    def test_a_hollow_page_that_is_filled_changes_it(self, tree: PrefixTree) -> None:
        insert(tree, DOCUMENT, 1, 2, 3, 4)
        tree.hollow_out(ids(2))
        path, version = tree.find("a", DOCUMENT), tree.version
        tree.replace(path, 1, ids(7))
        assert tree.has_changed(path, version)

    def test_a_cut_changes_what_is_cut_and_all_that_hung_below(self, tree: PrefixTree) -> None:
        insert(tree, DOCUMENT, 1, 2, 3, 4)
        insert(tree, FORK, 5, 6)
        half, whole = tree.find("a", DOCUMENT[:4]), tree.find("a", DOCUMENT)
        version = tree.version
        tree.cut(half.node, 1)
        assert tree.has_changed(half, version)
        assert whole.node.version > version and not tree.is_alive(whole.node)

    def test_what_an_evictor_notes_changes_it(self, tree: PrefixTree) -> None:
        assert self.has_changed(tree, lambda path: tree.change(tree.nodes_of(ids(2))))

    def test_another_branch_does_not(self, tree: PrefixTree) -> None:
        assert not self.has_changed(tree, lambda path: insert(tree, tokens(range(6), 80, 81), 8))

    def test_the_end_of_another_branch_does_not(self, tree: PrefixTree) -> None:
        assert not self.has_changed(tree, lambda path: tree.hollow_out(ids(5, 6)))


def test_namespaces_that_have_nothing_are_forgotten_when_they_are_many(tree: PrefixTree) -> None:
    insert(tree, DOCUMENT, 1, 2, 3, 4)
    waiting = tree.find("waiting", DOCUMENT)
    version = tree.version
    for number in range(3 * FEWEST_ROOTS):
        tree.find(number, DOCUMENT)
        tree.forget_empty_roots()
        tree.check()
    assert len(tree.roots()) <= FEWEST_ROOTS
    assert pages_of(tree, DOCUMENT) == [1, 2, 3, 4]
    assert not tree.is_alive(waiting.node) and tree.has_changed(waiting, version)
    assert tree.find("waiting", DOCUMENT, waiting) == Path(tree.root("waiting"), 0)
