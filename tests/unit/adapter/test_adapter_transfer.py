"""Pages between two pools of tensors by a transfer that copies bytes, as SGLang drives its own:
components, chunks, prefixes, and requests that wait on the host."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from core_builders import tokens

from flashinfer_ext.states import StatePart
from jenga_sglang.adapter.cache.allocator import JengaAllocator
from jenga_sglang.adapter.disagg import Sender, describe_components, foreign_layout
from jenga_sglang.adapter.discovery import DiscoveredGroup
from jenga_sglang.adapter.kv_pool import JengaKVPool
from jenga_sglang.adapter.states import DiscoveredStates
from jenga_sglang.adapter.transfer import layout_name
from jenga_sglang.core.arrival import arrive
from jenga_sglang.core.cut.geometry import Geometry, GroupGeometry, LayerGroupSpec
from jenga_sglang.core.dependency import Dependency, Full, LastState, SlidingWindow
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.running import Running

PAGE = 4
WINDOW = 10
# page ± 1, window ± 1, and edges of chunks of 8
LENGTHS = (1, 3, 4, 5, 7, 8, 9, 10, 11, 16, 17, 23, 40)
CHUNK = 8
ROW = 64
MODELS = ["full", "windows", "windows only", "states", "states only"]


def make_pool(model: str, num_large: int, *, stripes: int = 2) -> JengaKVPool:
    dependencies: dict[str, tuple[Dependency, ...]] = {
        "full": (Full(),),
        "windows": (SlidingWindow(WINDOW), Full(), SlidingWindow(6)),
        "windows only": (SlidingWindow(WINDOW), SlidingWindow(6)),
        "states": (Full(),),
        "states only": (),
    }
    specs = [
        LayerGroupSpec(f"{d}", (4 * g, 4 * g + 1, 4 * g + 2, 4 * g + 3), d, ROW, ROW)
        for g, d in enumerate(dependencies[model])
    ]
    states = None
    if "states" in model:
        conv, temporal = StatePart((3, 8), torch.float32), StatePart((2, 8), torch.float32)
        parts = (conv.num_bytes, temporal.num_bytes)
        spec = LayerGroupSpec("states", (100, 101), LastState(), state_bytes=parts)
        states = DiscoveredStates(spec, (conv,), temporal)
    cuts = tuple(
        GroupGeometry(spec, PAGE, stripes) for spec in (*specs, *([states.spec] if states else []))
    )
    ample = Geometry(cuts, PAGE, 1 << 40)
    geometry = ample.resized((num_large + 1) * ample.large_page_bytes)
    manager = Manager(geometry, max_requests=4, max_length=200)
    groups = [DiscoveredGroup(spec, 1, 16, 16, dtype=torch.float32) for spec in specs]
    return JengaKVPool(
        manager, groups, states, dtype=torch.float32, device="cpu", enable_memory_saver=False
    )


def scramble(pool: JengaKVPool, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    pool.buffer.random_(0, 256, generator=draw)


class Engine:
    """SGLang's transfer engine, as far as a sender and its index vectors go: both servers' kv_args
    as they register them, and copies of bytes from address to address."""

    def __init__(self, source: JengaKVPool, target: JengaKVPool) -> None:
        self.args = [self.register(pool) for pool in (source, target)]
        self.memory = {pool.buffer.data_ptr(): pool.buffer.numpy() for pool in (source, target)}
        self.sent_bytes = 0
        self.done_items = 0

    @staticmethod
    def register(pool: JengaKVPool) -> Any:
        ptrs, lens, item_lens = pool.get_contiguous_buf_infos()
        args = SimpleNamespace(kv_data_ptrs=ptrs, kv_data_lens=lens, kv_item_lens=item_lens)
        for name in ("types", "data_ptrs", "data_lens", "item_lens", "dim_per_tensor"):
            setattr(args, f"state_{name}", [])
        for name in ("conv_shard_groups", "slice_outer_counts", "layer_ids"):
            setattr(args, f"state_{name}", [])
        describe_components(args, pool, 1)
        return args

    def expect(self, kv_items: np.ndarray, others: list[np.ndarray]) -> None:
        """What the decode server publishes."""
        self.kv_items, self.others = kv_items, others

    def send(self, items: Any, others: Any = None, num_kv_tokens: int | None = None) -> None:
        source, target = self.args
        to = self.kv_items[self.done_items : self.done_items + len(items)]
        self.done_items += len(items)
        assert len(to) == len(items)
        self.copy(*self.component(source), *self.component(target), items, to)
        for index, at in enumerate(others or []):
            ours, theirs = (
                ([args.state_data_ptrs[index], args.state_item_lens[index]])
                for args in (source, target)
            )
            self.copy(*ours, *theirs, at, self.others[index])

    @staticmethod
    def component(args: Any) -> tuple[list[int], list[int]]:
        return args.kv_data_ptrs, args.kv_item_lens

    def copy(
        self, ptrs: Any, sizes: Any, to_ptrs: Any, to_sizes: Any, items: Any, to_items: Any
    ) -> None:
        assert sizes == to_sizes
        for ptr, to_ptr, size in zip(ptrs, to_ptrs, sizes, strict=True):
            for item, to in zip(items.tolist(), to_items.tolist(), strict=True):
                part = self.memory[ptr][item * size : (item + 1) * size]
                self.memory[to_ptr][to * size : (to + 1) * size] = part
                self.sent_bytes += size


def send_prompt(
    source: JengaKVPool, engine: Engine, length: int, prefix: int = 0, waiting: Any = None
) -> Running:
    """Compute a prompt in chunks on ``source`` and send what is whole of it as SGLang does."""
    manager = source.manager
    running = manager.lock(manager.miss(None))
    req = SimpleNamespace(
        origin_input_ids=[0] * length,
        disagg_decode_prefix_len=prefix,
        lock=SimpleNamespace(receipt=running),
    )
    sender = Sender(engine, req, source.components)  # type: ignore[arg-type]
    sent, start = prefix, 0
    while start < length:
        stop = min(length, start + CHUNK)
        manager.slide(running, start)
        assert manager.reserve([(running, manager.new_pages(running, stop))])
        manager.extend(running, stop)
        manager.publish(running, None, tokens(range(stop)))
        last = stop == length
        end = stop if last else stop // PAGE * PAGE
        if end > sent or last:
            pages = running.row[sent // PAGE : -(-end // PAGE)]
            sender.send(pages, [np.array([1])] * 9 if last else None, num_kv_tokens=end - sent)
            sent = max(sent, end)
        start = stop
    return running


@pytest.mark.parametrize("stripes", [1, 2])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("length", LENGTHS)
def test_a_prompt_arrives_chunk_by_chunk(model: str, length: int, stripes: int) -> None:
    source = make_pool(model, 60, stripes=stripes)
    target = make_pool(model, 47, stripes=stripes)
    scramble(source, 1)
    scramble(target, 2)
    engine = Engine(source, target)
    stranger = target.manager.lock(target.manager.miss(None))
    assert arrive(target.manager, stranger, 9)
    receiver = target.manager.lock(target.manager.miss(None))
    assert arrive(target.manager, receiver, length)
    kv = target.components.kv_vector(receiver.row)
    others = target.components.other_vectors(receiver, 0, length)
    engine.expect(kv, others)
    before = target.buffer.clone()
    sender = send_prompt(source, engine, length)

    # As layers see it, through the pool's own views and page tables.
    written = torch.zeros(len(target.buffer), dtype=torch.bool)
    expected_bytes = 0
    for number, group in target.groups.items():
        needed = [t for a, b in group.spec.dependency.needed(length) for t in range(a, b)]
        pages = sorted({t // PAGE for t in needed})
        for layer in group.spec.layers:
            stripe = target.place[layer].stripe
            at = source.small_pages(number, stripe, sender.row[pages])
            to = target.small_pages(number, stripe, receiver.row[pages])
            assert same_bits(target.k_pages[layer][to], source.k_pages[layer][at])
            assert same_bits(target.v_pages[layer][to], source.v_pages[layer][at])
        expected_bytes += mark(target, number, receiver.row[pages], written)
    if target.state_group is not None:
        slot = np.array([receiver.state_page])
        expected_bytes += mark(target, target.state_group, slot, written)
        for layer, state in target.states.layers.items():  # type: ignore[union-attr]
            stripe = target.states.stripe[layer]  # type: ignore[union-attr]
            at = int(
                source.small_pages(source.state_group, stripe, np.array([sender.state_page]))[0]
            )
            to = int(target.small_pages(target.state_group, stripe, slot)[0])
            theirs = source.states.layers[layer]  # type: ignore[union-attr]
            assert same_bits(state.temporal[to], theirs.temporal[at])
            assert same_bits(state.conv[0][to], theirs.conv[0][at])
    assert torch.equal(target.buffer[~written], before[~written])
    assert engine.sent_bytes == expected_bytes == target.components.sent_bytes(len(kv), others)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal, whatever reads as NaN."""
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def mark(pool: JengaKVPool, group: int, virtual: Any, written: torch.Tensor) -> int:
    """Note the bytes of these pages in ``written``; how many they are."""
    cut = pool.manager.geometry.groups[group]
    for stripe in range(cut.stripes):
        for small in pool.small_pages(group, stripe, virtual).tolist():
            written[small * cut.small_page_bytes : (small + 1) * cut.small_page_bytes] = True
    return len(virtual) * cut.page_bytes


@pytest.mark.parametrize("model", ["full", "windows", "windows only"])
@pytest.mark.parametrize("length", [9, 16, 17, 40])
def test_the_receiver_s_prefix_is_neither_sent_nor_written(model: str, length: int) -> None:
    source, target = make_pool(model, 60), make_pool(model, 60)
    scramble(source, 1)
    scramble(target, 2)
    first = send_prompt(target, Silent(), 9)
    target.manager.release(first)
    hit = target.manager.match(None, tokens(range(9))[:-1])
    assert hit.path.num_pages == 2
    receiver = target.manager.lock(hit)
    assert arrive(target.manager, receiver, length)
    prefix = 2 * PAGE
    engine = Engine(source, target)
    kv = target.components.kv_vector(receiver.row[2:])
    engine.expect(kv, target.components.other_vectors(receiver, prefix, length))
    cached = [target.small_pages(g, s, receiver.row[:2]) for g in target.groups for s in (0, 1)]
    before = target.buffer.clone()
    send_prompt(source, engine, length, prefix)
    for (g, s), small in zip([(g, s) for g in target.groups for s in (0, 1)], cached, strict=True):
        size = target.manager.geometry.groups[g].small_page_bytes
        for page in small.tolist():
            part = slice(page * size, (page + 1) * size)
            assert torch.equal(target.buffer[part], before[part]), (g, s)
    whole = make_pool(model, 60)
    alone = whole.manager.lock(whole.manager.miss(None))
    assert arrive(whole.manager, alone, length)
    all_bytes = whole.components.sent_bytes(
        len(whole.components.kv_vector(alone.row)), whole.components.other_vectors(alone, 0, length)
    )
    assert engine.sent_bytes < all_bytes or model == "windows only"


class Silent:
    """A transfer engine to which nobody listens."""

    def send(self, *args: Any, **kwargs: Any) -> None:
        pass


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("length", [5, 8, 23])
def test_a_request_that_gives_way_finds_its_bytes_again(model: str, length: int) -> None:
    pool = make_pool(model, 60)
    scramble(pool, 3)
    allocator = JengaAllocator(pool)
    running = pool.manager.lock(pool.manager.miss(None))
    assert arrive(pool.manager, running, length)
    pool.running_of_row[2] = running
    ids = torch.arange(length)
    before = pool.components.save(running, length)
    saved = allocator.get_cpu_copy(ids, req_pool_index=2)
    pool.manager.release(running)
    other = pool.manager.lock(pool.manager.miss(None))
    assert arrive(pool.manager, other, length + 9)
    scramble(pool, 4)
    again = pool.manager.lock(pool.manager.miss(None))
    assert arrive(pool.manager, again, length)
    pool.running_of_row[3] = again
    allocator.load_cpu_copy(saved, ids, req_pool_index=3)
    now = pool.components.save(again, length)
    assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))
    if "states" in model:
        assert again.take_starts() == []  # nothing is copied over what arrived


def test_a_layout_is_the_cut_and_not_the_pool() -> None:
    names = [layout_name(make_pool("windows", size).manager, 1) for size in (40, 60)]
    assert names[0] == names[1]
    others = [
        layout_name(make_pool("windows", 40, stripes=1).manager, 1),
        layout_name(make_pool("windows only", 40).manager, 1),
        layout_name(make_pool("windows", 40).manager, 2),
    ]
    assert len({names[0], *others}) == 4
    assert "window 10: 4 layers, 2 x" in names[0]


def test_a_decode_server_with_other_components_is_named() -> None:
    args = Engine.register(make_pool("windows", 40))
    same = SimpleNamespace(
        dst_kv_item_lens=args.kv_item_lens, dst_state_item_lens=args.state_item_lens
    )
    assert foreign_layout(args, same) is None
    stock = SimpleNamespace(dst_kv_item_lens=[2048] * 8, dst_state_item_lens=[])
    assert "--memory-backend jenga" in str(foreign_layout(args, stock))
