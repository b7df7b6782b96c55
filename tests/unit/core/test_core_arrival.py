"""A prompt computed by one server arrives at another: a transfer that copies bytes between two
pools by nothing but the two index vectors, and the whole buffers compared after it."""

import core_inspector as inside
import numpy as np
import pytest
from core_builders import UNIT_BYTES, begin, grow, hit_tokens, tokens

from jenga_sglang.core.arrival import arrive, sent_small_pages
from jenga_sglang.core.books.corrupt import CorruptPool
from jenga_sglang.core.books.tree import Tokens
from jenga_sglang.core.cut.geometry import Geometry, GroupGeometry, LayerGroupSpec
from jenga_sglang.core.dependency import ChunkedLocal, Dependency, Full, LastState, SlidingWindow
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.ranges import page_ranges
from jenga_sglang.core.running import Running

PAGE = 4
MODELS: dict[str, tuple[Dependency, ...]] = {
    "full": (Full(),),
    "window": (Full(), SlidingWindow(10)),
    "window of one": (Full(), SlidingWindow(1)),
    "windows only": (SlidingWindow(9), SlidingWindow(21)),
    "sink": (Full(), SlidingWindow(9, sink_tokens=5)),
    "chunk": (Full(), ChunkedLocal(10)),
    "states": (Full(), LastState()),
    "states only": (LastState(),),
    "all": (Full(), SlidingWindow(10), ChunkedLocal(8), LastState()),
}
# page ± 1, window ± 1, chunk edges
LENGTHS = (1, 3, 4, 5, 8, 9, 10, 11, 12, 15, 16, 17, 20, 21, 22, 29, 30, 31, 32, 40)


def make(
    model: str,
    num_large: int,
    *,
    stripes: int = 1,
    prefix_cache: bool = True,
    max_requests: int = 4,
) -> Manager:
    groups = []
    for g, dependency in enumerate(MODELS[model]):
        layers = tuple(range(4 * g, 4 * g + 4))
        if isinstance(dependency, LastState):
            spec = LayerGroupSpec(f"g{g}", layers, dependency, state_bytes=(2 * UNIT_BYTES,))
        else:
            spec = LayerGroupSpec(f"g{g}", layers, dependency, UNIT_BYTES // 2, UNIT_BYTES // 2)
        groups.append(GroupGeometry(spec, PAGE, stripes))
    ample = Geometry(tuple(groups), PAGE, 1 << 40)
    geometry = ample.resized(ample.large_page_bytes * (num_large + 1))
    return Manager(geometry, max_requests=max_requests, max_length=200, prefix_cache=prefix_cache)


class Server:
    """A manager, and the bytes of its pool."""

    def __init__(self, manager: Manager, seed: int) -> None:
        self.manager = manager
        draw = np.random.default_rng(seed)
        self.buffer = draw.integers(0, 256, manager.geometry.pool_bytes, np.uint8)

    def pages(self, group: int) -> np.ndarray:
        """The buffer as small pages of ``group``; a view."""
        size = self.manager.geometry.groups[group].small_page_bytes
        return self.buffer[: len(self.buffer) // size * size].reshape(-1, size)

    def vectors(self, running: Running, prefix_pages: int, length: int) -> list[np.ndarray]:
        return [
            sent_small_pages(self.manager, running, g, prefix_pages, length)
            for g in range(len(self.manager.dependencies))
        ]


def transfer(
    source: Server, target: Server, sent: list[np.ndarray], received: list[np.ndarray]
) -> int:
    """Copy item by item, as a transfer engine does; the bytes that were sent."""
    total = 0
    for g, (at, to) in enumerate(zip(sent, received, strict=True)):
        assert len(at) == len(to)
        target.pages(g)[to] = source.pages(g)[at]
        total += source.pages(g)[at].nbytes
    return total


def compute(manager: Manager, history: Tokens, chunk: int) -> Running:
    """A prefill server's request, in chunks of a prompt."""
    running = manager.lock(manager.match(None, history[:-1]))
    start = running.num_pages * PAGE
    while start < len(history):
        stop = min(len(history), start + chunk)
        manager.slide(running, start)
        grow(manager, running, stop, publish=True)
        manager.save_states(running, start, stop, len(history))
        manager.publish(running, None, history[:stop])
        start = stop
    return running


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stripes", [1, 2])
@pytest.mark.parametrize("length", LENGTHS)
def test_all_that_is_needed_arrives_and_nothing_else_is_written(
    model: str, stripes: int, length: int
) -> None:
    prefill = Server(make(model, 90, stripes=stripes), 1)
    decode = Server(make(model, 70, stripes=stripes), 2)
    # Others are there already, so that places differ.
    stranger = begin(prefill.manager, tokens(range(500, 507)))
    before = decode.manager.lock(decode.manager.miss(None))
    assert arrive(decode.manager, before, 13)

    sender = compute(prefill.manager, tokens(range(100, 100 + length)), chunk=8)
    receiver = decode.manager.lock(decode.manager.miss(None))
    assert arrive(decode.manager, receiver, length)
    sent, received = prefill.vectors(sender, 0, length), decode.vectors(receiver, 0, length)
    untouched = decode.buffer.copy()
    total = transfer(prefill, decode, sent, received)

    written = np.zeros(len(decode.buffer), bool)
    for g, dependency in enumerate(decode.manager.dependencies):
        size = decode.manager.geometry.groups[g].small_page_bytes
        for small in received[g].tolist():
            assert small > 0
            assert not written[small * size : (small + 1) * size].any()
            written[small * size : (small + 1) * size] = True
        # By the dependency and the rows alone, not by what made the vectors.
        if isinstance(dependency, LastState):
            pages_there, pages_here = [sender.state_page], [receiver.state_page]
        else:
            places = [
                p for a, b in page_ranges(dependency.needed(length), PAGE) for p in range(a, b)
            ]
            pages_there, pages_here = sender.row[places], receiver.row[places]
        for there, here in zip(pages_there, pages_here, strict=True):
            for stripe in range(stripes):
                at = inside.tables(prefill.manager)[g][there, stripe]
                to = inside.tables(decode.manager)[g][here, stripe]
                assert at and to
                assert (decode.pages(g)[to] == prefill.pages(g)[at]).all()
    assert (decode.buffer[~written] == untouched[~written]).all()
    assert total == written.sum() == expected_bytes(decode.manager, length, stripes)

    decode.manager.check()
    for running in (receiver, before):
        decode.manager.release(running)
    decode.manager.check_idle()
    for running in (sender, stranger):
        prefill.manager.release(running)
    prefill.manager.check_idle()


def expected_bytes(manager: Manager, length: int, stripes: int, prefix_pages: int = 0) -> int:
    total = 0
    for cut, dependency in zip(manager.geometry.groups, manager.dependencies, strict=True):
        ranges = page_ranges(dependency.needed(length), PAGE)
        pages = sum(max(0, b - max(a, prefix_pages)) for a, b in ranges)
        total += pages * stripes * cut.small_page_bytes
    return total


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("length", LENGTHS)
def test_an_arrived_request_decodes_on_and_leaves_nothing_behind(model: str, length: int) -> None:
    manager = make(model, 60)
    running = manager.lock(manager.miss(None))
    assert arrive(manager, running, length)
    for n in range(length + 1, length + 30):
        if (n - 1) % PAGE == 0:
            manager.slide(running, n - 1)
            assert manager.reserve([(running, 1)])
            manager.extend_each([running])
        running.grow_within_pages(n)
        for g, group in enumerate(MODELS[model]):
            if isinstance(group, LastState):
                continue
            needed = manager.dependencies[g].needed(n)
            places = {p for a, b in page_ranges(needed, PAGE) for p in range(a, b)}
            assert places | {(n - 1) // PAGE} <= inside.row_holds(manager, running, g)
        manager.check()
    manager.publish(running, None, tokens(range(length + 29)))
    manager.check()
    manager.release(running)
    manager.check_idle()


def test_windows_take_no_pages_for_the_rest_of_a_prompt() -> None:
    manager = make("window", 60)
    running = manager.lock(manager.miss(None))
    assert arrive(manager, running, 40)
    assert [sorted(inside.row_holds(manager, running, g)) for g in (0, 1)] == [
        list(range(10)),
        [7, 8, 9],
    ]


def test_what_does_not_fit_changes_nothing() -> None:
    manager = make("all", 12)
    running = manager.lock(manager.miss(None))
    before = inside.digest(manager)
    assert not arrive(manager, running, 80)
    assert inside.digest(manager) == before
    manager.release(running)
    manager.check_idle()


def test_an_arrival_evicts_what_is_only_cached() -> None:
    manager = make("window", 16)
    running = begin(manager, tokens(range(100, 124)))
    manager.publish(running, None, tokens(range(100, 124)))
    manager.release(running)
    assert hit_tokens(manager, tokens(range(100, 124))) == 24
    running = manager.lock(manager.miss(None))
    assert arrive(manager, running, 44)
    manager.check()


@pytest.mark.parametrize("model", [m for m in MODELS if "states" not in m and m != "all"])
@pytest.mark.parametrize("length", [12, 17, 30, 31, 40])
def test_what_the_receiver_has_cached_is_not_sent(model: str, length: int) -> None:
    """Of a shared prefix each group needs a part, and that part is pinned at the receiver."""
    prefill, decode = Server(make(model, 80), 1), Server(make(model, 80), 2)
    history = tokens(range(100, 100 + length))
    for server in (prefill, decode):
        server.manager.release(compute(server.manager, history[:9], chunk=8))
    hit = decode.manager.match(None, history[:-1])
    assert hit.path.num_pages == 2
    sender, receiver = compute(prefill.manager, history, 8), decode.manager.lock(hit)
    shared = receiver.row.copy()
    assert arrive(decode.manager, receiver, length)
    sent, received = prefill.vectors(sender, 2, length), decode.vectors(receiver, 2, length)
    total = transfer(prefill, decode, sent, received)
    assert total == expected_bytes(decode.manager, length, stripes=1, prefix_pages=2)
    for g, to in enumerate(received):
        cached = inside.tables(decode.manager)[g][shared].ravel()
        assert not set(to.tolist()) & set(cached.tolist())
        needed = decode.manager.dependencies[g].needed(length)
        places = {p for a, b in page_ranges(needed, PAGE) for p in range(a, b)}
        assert places <= inside.row_holds(decode.manager, receiver, g)
    decode.manager.publish(receiver, None, history)
    decode.manager.check()
    # A hit in the middle of the last page's window would need what decoding does not.
    whole = length % PAGE == 0
    assert hit_tokens(decode.manager, history) >= (length if whole else 8)
    decode.manager.release(receiver)
    decode.manager.check_idle()


def test_a_page_that_is_not_there_is_not_sent() -> None:
    manager = make("window", 60)
    running = manager.lock(manager.miss(None))
    assert arrive(manager, running, 40)
    with pytest.raises(CorruptPool, match="group 1"):
        sent_small_pages(manager, running, 1, 0, 20)
