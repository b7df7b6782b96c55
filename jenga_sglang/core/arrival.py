"""Requests whose prompt another server has computed: what is sent of it, and where it arrives.

Both servers ask the same `needed`, so nothing is negotiated but the prefix that the receiver holds
already: of a prompt of ``length`` tokens, a group's part is its small pages in the order of the
history, page by page and stripe by stripe, and those of its working state::

    history, in pages   [ p0 ][ p1 ][ p2 ][ p3 ][ p4 ][ p5 .      length
    full attention        0     1     2     3     4     5         all
    window                                  3     4     5         what the next token reads
    states                                                  w     one

The receiver holds the last page in every group that has rows, sent or not: if there is room in it,
the next token is written there.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from jenga_sglang.core.books.corrupt import none
from jenga_sglang.core.groups import Parts
from jenga_sglang.core.ids import Ids, ceil_div
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.ranges import Range, intersect, union
from jenga_sglang.core.running import Running


def arrive(manager: Manager, running: Running, length: int) -> bool:
    """Give ``running`` private pages for ``length`` tokens that another server sends: in each
    group those that such a history needs, and a working state that nothing is copied to.

    False, and nothing changed but the cache, where they do not fit whatever is evicted.
    """
    memory, snapshots = manager.memory, manager.snapshots
    parts = arriving_parts(running, length)
    states = snapshots.needs_state_page(running)
    demand = memory.demand_of_parts(parts, states)
    if not manager.make_room([(running, demand)], sum(count for count, _ in parts)):
        return False
    pages = memory.take(parts, running.number, states=states, scarce=manager.scarce)
    if states:
        snapshots.open(running, scarce=manager.scarce)
    manager.use_hit(running)
    running.grow(pages, length, parts=parts)
    manager.changes += 1
    return True


def arriving_parts(running: Running, length: int) -> Parts:
    """How the pages behind the row of ``running`` divide, up to ``length`` tokens: consecutive
    pages, and the groups that need or will write to them."""
    new = Range(running.num_pages, ceil_div(length, running.history.needs.page_size))
    held = {g: _held(running, g, length, new) for g in running.groups}
    cuts = sorted({*new, *(edge for ranges in held.values() for r in ranges for edge in r)})
    return tuple(
        (stop - start, tuple(g for g, ranges in held.items() if intersect(ranges, [at])))
        for start, stop in pairwise(cuts)
        for at in [Range(start, stop)]
    )


def _held(running: Running, group: int, length: int, new: Range) -> list[Range]:
    page_size = running.history.needs.page_size
    front = Range(length // page_size, new.stop)
    return intersect(union([*running.history.pages(group, length), front]), [new])


def sent_pages(running: Running, group: int, prefix_pages: int, length: int) -> list[Range]:
    """The pages of a history of ``length`` tokens that ``group`` sends to a server that holds what
    a hit of ``prefix_pages`` needs."""
    rest = Range(prefix_pages, ceil_div(length, running.history.needs.page_size))
    return intersect(running.history.pages(group, length), [rest])


def sent_small_pages(
    manager: Manager, running: Running, group: int, prefix_pages: int, length: int
) -> Ids:
    """The small pages of `sent_pages`, each page's stripes in order; of a group of states, those
    of the working state. Raises `CorruptPool` where one is missing."""
    if group in manager.memory.state_groups:
        return small_pages(manager, group, np.array([running.state_page], np.int64))
    pages = running.of(sent_pages(running, group, prefix_pages, length))
    return small_pages(manager, group, np.concatenate([np.empty(0, np.int64), *pages]))


def small_pages(manager: Manager, group: int, virtual: Ids) -> Ids:
    """The small pages of ``virtual`` pages, each page's stripes in order. Raises `CorruptPool`
    where one is missing: the null page is nobody's to send or to write to."""
    small: Ids = manager.memory.table[group][virtual].ravel()
    none(f"pages to send that group {group} does not hold", np.flatnonzero(small == 0).tolist())
    return small
