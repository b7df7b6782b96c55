"""KV events: the hashes are SGLang's, and who follows them knows what every group holds."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import core_inspector as inside
import msgspec
import numpy as np
import pytest
from core_builders import grow, make_manager, make_tiered, tokens
from core_inspector import Histories, host_histories, snapshot
from sglang.srt.disaggregation.kv_events import KVEventBatch, StorageMedium
from sglang.srt.mem_cache.events import KVCacheEventRecorder
from sglang.srt.mem_cache.radix_cache import RadixKey

from jenga_sglang.adapter.cache.kv_events import KvEvents
from jenga_sglang.adapter.cache.namespace import Namespace
from jenga_sglang.core.books.tree import Tokens
from jenga_sglang.core.dependency import Full, SlidingWindow
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.tiered_manager import TieredManager
from jenga_sglang.core.tiers import WritePolicy

try:
    from sglang.srt.mem_cache.events import KvEventLoraNames
except ImportError:  # SGLang 0.5.22
    from sglang.srt.mem_cache.events import LoRANameTable as KvEventLoraNames

PLAIN = Namespace(None, None, None)
ADAPTER = "0123456789abcdef" * 2  # as long as SGLang's ids


def make(*, page_size: int = 4, num_large: int = 40, dynamo_format: bool = False) -> KvEvents:
    manager = make_manager(Full(), SlidingWindow(6), num_large=num_large, page_size=page_size)
    return make_events(manager, dynamo_format=dynamo_format)


def make_events(manager: Manager, *, dynamo_format: bool = False) -> KvEvents:
    events = KvEvents(manager, KvEventLoraNames(), dynamo_format=dynamo_format)
    events.take()
    return events


def serve(events: KvEvents, history: Tokens, namespace: Namespace = PLAIN) -> None:
    """Compute ``history``, publish it, end."""
    manager = events.manager
    running = manager.lock(manager.match(namespace, history[:-1]))
    grow(manager, running, len(history))
    publish(events, running, namespace, history)
    manager.release(running)


def publish(events: KvEvents, running: Any, namespace: Namespace, history: Tokens) -> None:
    events.manager.publish(running, namespace, history)
    events.published(namespace, history, running.row[: running.tree_pages])


def stock_stored(events: KvEvents, history: Tokens, namespace: Namespace) -> list[Any]:
    """What SGLang's own cache publishes of one history, in one event."""
    recorder = KVCacheEventRecorder(
        enabled=True,
        page_size=4,
        dynamo_format=events._dynamo_format,
        lora_names=events._lora_names,
    )
    _, extra_key, cache_salt = namespace
    empty = RadixKey([], extra_key, cache_salt=cache_salt)
    root = SimpleNamespace(parent=None, hash_value=[], event_hash_value=None, key=empty)
    key = RadixKey(history.tolist(), extra_key, cache_salt=cache_salt)
    node = SimpleNamespace(parent=root, hash_value=None, event_hash_value=None, key=key)
    recorder.record_store(node)
    stored: list[Any] = recorder.take()
    return stored


@pytest.mark.parametrize("dynamo_format", [False, True])
@pytest.mark.parametrize(
    "namespace",
    [
        PLAIN,
        Namespace(None, None, "salt"),
        Namespace(None, "extra", None),
        Namespace(None, "extra", "salt"),
        Namespace(ADAPTER, ADAPTER, None),
        Namespace(ADAPTER, f"extra{ADAPTER}", "salt"),
    ],
)
def test_hashes_are_those_of_sglangs_own_cache(namespace: Namespace, dynamo_format: bool) -> None:
    events = make(dynamo_format=dynamo_format)
    name_adapter(events, namespace)
    history = tokens(range(24))
    serve(events, history[:12], namespace)
    serve(events, history, namespace)
    stored = [e for e in events.take() if e.group_idx == 0]
    hashes = [h for event in stored for h in event.block_hashes]
    stock = stock_stored(events, history, namespace)
    assert hashes == [h for event in stock for h in event.block_hashes]
    assert {e.lora_name for e in stored} == {e.lora_name for e in stock}
    assert {e.cache_salt for e in stored} == {e.cache_salt for e in stock}
    assert [t for event in stored for t in event.token_ids] == history.tolist()
    assert stored[0].parent_block_hash is None
    assert stored[1].parent_block_hash == hashes[2]


def name_adapter(events: KvEvents, namespace: Namespace) -> None:
    """What the scheduler does when it loads the adapter, and at each request with it."""
    events._lora_names.register(lora_id=ADAPTER, lora_name="mine")
    req = SimpleNamespace(extra_key=namespace.extra_key, lora_id=namespace.adapter)
    events._lora_names.register(req, "mine" if namespace.adapter else None)


@pytest.mark.parametrize("dynamo_format", [False, True])
def test_a_caller_s_key_is_not_told_as_the_adapter_whose_id_it_is(dynamo_format: bool) -> None:
    events = make(dynamo_format=dynamo_format)
    history = tokens(range(24))
    told = []
    for namespace in (Namespace(ADAPTER, ADAPTER, None), Namespace(None, ADAPTER, None)):
        name_adapter(events, namespace)
        serve(events, history, namespace)
        told.append([e for e in events.take() if e.group_idx == 0])
    (adapters,), (callers,) = told
    assert adapters.lora_name == "mine" and callers.lora_name is None
    assert not set(adapters.block_hashes) & set(callers.block_hashes)


def test_a_consumer_that_knows_no_groups_can_read_them() -> None:
    events = make()
    serve(events, tokens(range(8)))
    payload = msgspec.msgpack.encode(KVEventBatch(ts=1.0, events=events.take()))
    batch = msgspec.msgpack.decode(payload, type=KVEventBatch)
    assert [type(event).__name__ for event in batch.events] == ["BlockStored", "BlockStored"]
    _, raw, _ = msgspec.msgpack.decode(payload)
    assert [(event["group_idx"], event["group"]) for event in raw] == [
        (0, "full"),
        (1, "window 6"),
    ]


def test_a_flush_is_one_event() -> None:
    events = make()
    serve(events, tokens(range(8)))
    events.manager.reset()
    events.reset()
    assert [type(e).__name__ for e in events.take()][-1] == "AllBlocksCleared"
    serve(events, tokens(range(8)))
    assert len(events.take()) == 2


DEVICE, HOST = StorageMedium.GPU, StorageMedium.CPU


@pytest.mark.parametrize("seed", range(20))
def test_a_follower_knows_what_every_group_holds(seed: int) -> None:
    """The events alone, replayed, name the pages that each group holds in the tree."""
    generator = random.Random(seed)
    events = make(num_large=generator.randint(12, 40))
    manager, follower = events.manager, Follower(events)
    for _ in walk(events, generator, lambda document: True):
        follower.follow()
        assert follower.pages(DEVICE) == snapshot(manager, follower.histories).cached
    assert manager.counters.evicted.total(), "nothing was ever evicted"


@pytest.mark.parametrize("seed", range(12))
def test_a_follower_knows_what_every_group_holds_in_each_tier(seed: int) -> None:
    """The same with host memory below, from which hits are loaded, and into which the beginning of
    a document comes from storage now and then."""
    generator = random.Random(seed)
    manager = make_tiered(
        *(Full(), SlidingWindow(6)),
        num_large=generator.randint(16, 30),
        num_host=generator.randint(8, 60),
        page_size=4,
        write_policy=generator.choice(list(WritePolicy)),
    )
    events = make_events(manager)
    follower = Follower(events)

    def load_or_fetch(document: Tokens) -> bool:
        if generator.random() < 0.2:
            fetch(events, document)
            return False
        if (running := manager.load(manager.match_tiers(PLAIN, document[:-1])[1])) is not None:
            manager.release(running)
        return True

    for _ in walk(events, generator, load_or_fetch):
        manager.tiers.take_copies()
        follower.follow()
        assert follower.pages(DEVICE) == snapshot(manager, follower.histories).cached
        assert follower.pages(HOST) == host_histories(manager, follower.histories)
    assert manager.tier_counters.loaded.total() and manager.tier_counters.written.total()


def walk(
    events: KvEvents, generator: random.Random, begins: Callable[[Tokens], bool]
) -> Iterator[None]:
    """Steps in which one of up to four requests on few documents ends, or another begins, if
    ``begins`` says so of its prompt."""
    documents = [np.random.default_rng(n).integers(0, 9, 60) for n in range(3)]
    all_running: list[tuple[Any, Tokens]] = []
    for _ in range(100):
        if all_running and (len(all_running) == 4 or generator.random() < 0.5):
            running, history = all_running.pop(generator.randrange(len(all_running)))
            if generator.random() < 0.8:
                publish(events, running, PLAIN, history)
            events.manager.release(running)
        else:
            document = generator.choice(documents)[: generator.randint(4, 60)]
            if begins(document):
                start(events.manager, document, all_running)
        yield


def fetch(events: KvEvents, history: Tokens) -> None:
    """All that a hit of ``history`` lacks comes from storage, if there is room for it."""
    manager = events.manager
    assert isinstance(manager, TieredManager)
    num_pages = len(history) // 4
    history = history[: num_pages * 4]
    held = manager.fetching.held(inside.find(manager, PLAIN, history), num_pages)
    wanted = manager.fetching.wanted(held, num_pages)
    if not sum(map(len, wanted)):
        return
    if (begun := manager.fetching.begin(PLAIN, history, wanted)) is not None:
        num_pages = manager.fetching.end(begun, num_pages)
        row = inside.path_pages(manager, inside.find(manager, PLAIN, history))[:num_pages]
        events.published(PLAIN, history[: len(row) * 4], row)


def start(manager: Manager, history: Tokens, all_running: list[tuple[Any, Tokens]]) -> None:
    running = manager.lock(manager.match(PLAIN, history[:-1]))
    if manager.reserve([(running, manager.new_pages(running, len(history)))]):
        manager.extend(running, len(history))
        all_running.append((running, history))
    else:
        manager.release(running)


class Follower:
    """What a router makes of events: of each tier and group, the pages that it holds, by the
    numbers that ``histories`` gives to what they end."""

    def __init__(self, events: KvEvents) -> None:
        self.histories = Histories(events.manager.page_size)
        self._events = events
        self._number_of: dict[int, int] = {}
        self._held: dict[StorageMedium, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))

    def pages(self, medium: StorageMedium) -> list[set[int]]:
        """A set a group."""
        groups = range(len(self._events.manager.dependencies))
        return [{self._number_of[h] for h in self._held[medium][group]} for group in groups]

    def follow(self) -> None:
        for event in self._events.take():
            held = self._held[event.medium][event.group_idx]
            if type(event).__name__ == "GroupBlockRemoved":
                assert held >= set(event.block_hashes), "removed but never stored"
                held -= set(event.block_hashes)
                continue
            parent = event.parent_block_hash
            number = 0 if parent is None else self._number_of[parent]
            page_tokens = np.array(event.token_ids).reshape(-1, event.block_size)
            for block, page in zip(event.block_hashes, page_tokens, strict=True):
                number = self.histories._number(PLAIN, number, page.tobytes())
                self._number_of[block] = number
                held.add(block)
