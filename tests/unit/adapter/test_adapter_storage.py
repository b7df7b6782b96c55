"""Storage below host memory, as SGLang's scheduler drives it. Pages of four tokens.

The backend is SGLang's own, with a folder; what goes wrong in it is done to its files.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import core_inspector as inside
import pytest
import torch
from adapter_builders import make_tiered_cache
from core_builders import evict_all, tokens
from sglang.srt.mem_cache.base_prefix_cache import CacheRequestHandle
from sglang.srt.mem_cache.hicache_storage import HiCacheFile
from test_adapter_tiers import NAMESPACE, PAGE, compute, match

from jenga_sglang.adapter.cache.namespace import Namespace
from jenga_sglang.adapter.cache.open_storage import _config
from jenga_sglang.adapter.cache.storage_tier import PrefetchRules, StorageTier, seed
from jenga_sglang.adapter.cache.tiered_cache import JengaTieredCache
from jenga_sglang.adapter.storage.agreement import Agreement
from jenga_sglang.adapter.storage.objects import ByValue, Objects
from jenga_sglang.adapter.storage.page_store import PageStore, sealed, unsealed
from jenga_sglang.adapter.storage.workers import Traffic
from jenga_sglang.core.dependency import Dependency, Full, SlidingWindow
from jenga_sglang.core.ids import Ids

PROMPT = tokens(range(6 * PAGE))
ASKED = CacheRequestHandle("asked", 0)
PATIENCE_SECONDS = 60.0


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "jenga_sglang.adapter.cache.open_storage._ranks"
    monkeypatch.setattr(module, lambda: (0, 1))


WINDOWED = {"full": Full(), "window": SlidingWindow(PAGE + 1)}


def make_server(
    folder: Path,
    policy: str = "wait_complete",
    store: Any = None,
    timeout: float = 0.0,
    silence: float = 0.0,
    groups: Mapping[str, Dependency] = MappingProxyType({"full": Full()}),
    objects: Objects | None = None,
) -> JengaTieredCache:
    """A pool and a host of eight pages for each of ``groups``, over the pages in ``folder``, or
    over ``objects``."""
    num = 8 * len(groups)
    cache = make_tiered_cache(num, num, page_size=PAGE, dependencies=list(groups.values()))
    rules = PrefetchRules(policy, PAGE, timeout, 0.0, silence)
    objects = objects or ByValue(store or file_backend(folder))
    keep(cache, PageStore(objects), rules, list(groups))
    return cache


def file_backend(folder: Path) -> HiCacheFile:
    return HiCacheFile(_config("file", "model", {"file_storage_path": str(folder)}))


def keep(
    cache: JengaTieredCache, store: PageStore, rules: PrefetchRules, tags: Sequence[str] = ("full",)
) -> None:
    """Attach storage."""
    host, alone = cache.token_to_kv_pool_host, Agreement(None)
    cache.storage = StorageTier(host, store, list(tags), rules, alone, Traffic(), nobody)


def nobody(namespace: Namespace, tokens: Ids, row: Ids) -> None:
    """Nobody wants to know what was fetched."""


def leave(folder: Path, prompt: Any = PROMPT, objects: Objects | None = None) -> None:
    """A server has computed ``prompt``, written it to ``folder``, and gone."""
    cache = make_server(folder, objects=objects)
    compute(cache, prompt)
    cache.note_published(NAMESPACE, prompt, inside.pages_of(cache.manager, prompt, NAMESPACE), 0)
    evict_all(cache.manager)
    cache.run_copies()
    wait(lambda: cache.storage.traffic.written[0] == len(prompt) // PAGE)
    assert cache.storage.close()


def leave_windows(folder: Path) -> None:
    """All pages of a prompt, in a group that needs them all and in one with a window."""
    leave(folder)
    for page in range(len(PROMPT) // PAGE):
        copy = file_of(folder, PROMPT, page, "full")
        key = copy.name.replace(".full", ".window").removesuffix("_model_0_1.bin")
        stored = PageStore(ByValue(file_backend(folder)))
        assert stored.write(key, torch.full((PAGE * 128,), page, dtype=torch.uint8))


def wait(is_over: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not is_over():
        assert time.monotonic() < end
        time.sleep(0.001)


def prefetch(cache: JengaTieredCache, prompt: Any = PROMPT) -> int:
    """As SGLang does when a request arrives and until it may begin: tokens that were gained."""
    ask(cache, prompt)
    wait(lambda: pass_by(cache))
    return cache.pop_prefetch_loaded_span(ASKED)[0]


def ask(cache: JengaTieredCache, prompt: Any = PROMPT) -> None:
    found = match(cache, prompt)
    hit = found.device_prefix_len + found.host_hit_length
    assert cache.is_backuped(found.last_host_node)
    cache.prefetch_from_storage(
        ASKED,
        found.last_host_node,
        prompt[hit:].tolist(),
        matched_prefix_tokens=prompt[:hit].tolist(),
        extra_key=None,
        cache_salt=None,
    )


def pass_by(cache: JengaTieredCache) -> bool:
    cache.check_hicache_events()
    cache.manager.check()
    return cache.check_prefetch_progress(ASKED) and not cache.ongoing_prefetch


def assert_bytes(cache: JengaTieredCache, prompt: Any, num_pages: int) -> None:
    """Every page of the host says what the prompt's does."""
    rows = inside.pages_of(cache.manager, prompt, NAMESPACE)[:num_pages]
    pages = cache.token_to_kv_pool_host.pages(0)
    for place, small in enumerate(inside.host_tables(cache.manager)[0][rows, 0].tolist()):
        assert (pages[small] == int(prompt[place * PAGE]) % 251).all()


def hit_tokens(cache: JengaTieredCache, prompt: Any = PROMPT) -> int:
    return int(match(cache, prompt).host_hit_length)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.bin"))


def file_of(folder: Path, prompt: Any, page: int, tag: str = "full") -> Path:
    from sglang.srt.mem_cache.utils import get_hash_str

    digest = get_hash_str(prompt.tolist(), None, page_size=PAGE)[page]
    (found,) = folder.glob(f"{digest}.{tag}*")
    return found


def test_another_server_hits_what_one_has_left(tmp_path: Path) -> None:
    leave(tmp_path)
    cache = make_server(tmp_path)
    assert prefetch(cache) == len(PROMPT)
    assert hit_tokens(cache) == len(PROMPT)
    assert_bytes(cache, PROMPT, 6)
    cache.manager.check_idle()
    assert cache.storage.traffic.read[0] == 6


def test_only_what_the_tiers_lack_is_read(tmp_path: Path) -> None:
    leave(tmp_path)
    cache = make_server(tmp_path)
    compute(cache, PROMPT[: 2 * PAGE])
    ask(cache)
    wait(lambda: pass_by(cache))
    assert cache.pop_prefetch_loaded_span(ASKED) == (4 * PAGE, 2 * PAGE)
    assert cache.storage.traffic.read[0] == 4
    found = match(cache, PROMPT)
    assert (found.device_prefix_len, found.host_hit_length) == (2 * PAGE, 4 * PAGE)


def test_a_page_that_is_stored_is_not_written_again(tmp_path: Path) -> None:
    leave(tmp_path)
    cache = make_server(tmp_path)
    prefetch(cache)
    running = cache.manager.load(match(cache, PROMPT).best_match_node)
    cache.run_copies()
    cache.manager.release(running)
    inside.evict_from_host(cache.manager, 0, running.pages)
    evict_all(cache.manager)
    cache.run_copies()
    assert not cache.storage.writer.num_queued and not cache.storage.traffic.written[0]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-7]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(bytes([1]) + path.read_bytes()[1:]),
        lambda path: path.unlink(),
    ],
    ids=["cut short", "empty", "one byte", "missing"],
)
def test_a_page_that_is_not_sound_ends_the_hit(
    spoil: Callable[[Path], Any], tmp_path: Path
) -> None:
    leave(tmp_path)
    spoil(file_of(tmp_path, PROMPT, 3))
    cache = make_server(tmp_path)
    assert prefetch(cache) in (0, 3 * PAGE)
    # Known by now, if it was not before.
    prefetch(cache)
    assert hit_tokens(cache) == 3 * PAGE
    assert_bytes(cache, PROMPT, 3)
    cache.manager.check_idle()


def test_a_page_that_is_not_sound_is_stored_again_by_whoever_computes_it(tmp_path: Path) -> None:
    leave(tmp_path)
    for page, spoiled in ((1, b""), (4, b"\1" * file_of(tmp_path, PROMPT, 4).stat().st_size)):
        file_of(tmp_path, PROMPT, page).write_bytes(spoiled)
    cache = make_server(tmp_path)
    prefetch(cache)
    assert cache.storage.close()
    leave(tmp_path)
    assert prefetch(make_server(tmp_path)) == len(PROMPT)


def test_a_page_that_fails_to_come_leaves_the_longest_hit_before_it(tmp_path: Path) -> None:
    """The window before that hit was not asked for: the hit was to be of the whole prompt."""
    leave_windows(tmp_path)
    file_of(tmp_path, PROMPT, 4, "full").write_bytes(b"")
    cache = make_server(tmp_path, groups=WINDOWED)
    assert prefetch(cache) == 4 * PAGE
    assert hit_tokens(cache) == 4 * PAGE
    assert cache.storage.traffic.read == {0: 5, 1: 2}
    cache.manager.check_idle()


def questions(folder: Path, hit: int) -> list[list[str]]:
    """The keys that a server asks for together until it knows that ``hit`` tokens are there."""
    asked = []

    class Asked(HiCacheFile):
        def batch_exists(self, keys: list[str], extra_info: Any = None) -> int:
            asked.append(keys)
            return int(super().batch_exists(keys, extra_info))

    backend = Asked(_config("file", "model", {"file_storage_path": str(folder)}))
    assert prefetch(make_server(folder, store=backend, groups=WINDOWED)) == hit
    return asked


def test_pages_that_follow_each_other_are_asked_for_at_once(tmp_path: Path) -> None:
    leave_windows(tmp_path)
    assert len(questions(tmp_path, len(PROMPT))) == len(WINDOWED)


def test_of_a_window_nothing_is_asked_for_but_what_lies_behind_the_hit(tmp_path: Path) -> None:
    leave_windows(tmp_path)
    for page in (0, 1, 2, 4, 5):
        file_of(tmp_path, PROMPT, page, "window").unlink()
    _, *of_window = questions(tmp_path, 4 * PAGE)
    before = {file_of(tmp_path, PROMPT, page).name.split(".")[0] for page in range(3)}
    assert len(of_window) == 3
    assert not before & {key.split(".")[0] for keys in of_window for key in keys}


def test_a_page_that_fails_once_is_asked_for_again(tmp_path: Path) -> None:
    leave_windows(tmp_path)
    failed: set[str] = set()

    class FailsOnce(HiCacheFile):
        def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
            if key not in failed:
                failed.add(key)
                return None
            return super().get(key, *args, **kwargs)

    backend = FailsOnce(_config("file", "model", {"file_storage_path": str(tmp_path)}))
    cache = make_server(tmp_path, store=backend, groups=WINDOWED)
    assert prefetch(cache) == len(PROMPT)
    assert cache.storage.store.failures["read"] == len(failed) > 0


def test_a_page_of_another_history_is_no_page(tmp_path: Path) -> None:
    other = tokens(range(100, 100 + 6 * PAGE))
    leave(tmp_path)
    leave(tmp_path, other)
    file_of(tmp_path, other, 2).replace(file_of(tmp_path, PROMPT, 2))
    cache = make_server(tmp_path)
    prefetch(cache)
    prefetch(cache)
    assert hit_tokens(cache) == 2 * PAGE


class Broken:
    """A backend of which every call fails, after ``seconds``."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds

    def exists(self, *args: Any) -> bool:
        time.sleep(self._seconds)
        raise OSError("broken")

    get = set = clear = batch_exists = exists


def test_a_backend_that_fails_is_a_miss(tmp_path: Path) -> None:
    cache = make_server(tmp_path, store=Broken())
    assert prefetch(cache) == 0
    compute(cache, PROMPT)
    cache.note_published(NAMESPACE, PROMPT, inside.pages_of(cache.manager, PROMPT, NAMESPACE), 0)
    evict_all(cache.manager)
    cache.run_copies()
    wait(lambda: cache.storage.traffic.not_written[0] == 6)
    assert cache.storage.store.failures["write"] == 6
    cache.manager.check_idle()


def test_a_slow_backend_is_waited_for_as_long_as_the_policy_says(tmp_path: Path) -> None:
    cache = make_server(tmp_path, "timeout", Broken(0.3), timeout=0.01)
    req = SimpleNamespace(cache_request_handle=ASKED)
    assert not cache.awaits_storage(req)
    ask(cache)
    assert not cache.check_prefetch_progress(ASKED)
    assert cache.ongoing_prefetch and cache.awaits_storage(req)
    wait(lambda: (cache.check_hicache_events(), cache.check_prefetch_progress(ASKED))[1])
    assert cache.ongoing_prefetch, "waited for the backend"
    assert not cache.awaits_storage(req)
    wait(lambda: pass_by(cache))


class Hung:
    """A backend that does not answer before it is told to."""

    def __init__(self) -> None:
        self.answers = threading.Event()

    def batch_exists(self, *args: Any) -> int:
        self.answers.wait()
        return 0

    get = set = clear = batch_exists


@pytest.fixture
def hung() -> Iterator[Hung]:
    backend = Hung()
    yield backend
    backend.answers.set()


def test_a_backend_that_hangs_holds_nobody_up(
    hung: Hung, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_server(tmp_path, store=hung, silence=0.05)
    ask(cache)
    wait(lambda: pass_by(cache))
    assert cache.pop_prefetch_loaded_span(ASKED) == (0, None)
    # As a flush does, which waits for what is in flight.
    assert not cache.ongoing_prefetch
    cache.manager.check_idle()
    cache.reset()
    ask(cache)
    assert not cache.ongoing_prefetch, "asked again before it has answered"
    hung.answers.set()
    wait(lambda: (cache.check_hicache_events(), "answers again" in caplog.text)[1])
    ask(cache)
    assert cache.ongoing_prefetch
    assert caplog.text.count("no answer for 0.05 seconds") == 1


def test_who_asks_meanwhile_gives_a_backend_that_hangs_no_more_time(
    hung: Hung, tmp_path: Path
) -> None:
    cache = make_server(tmp_path, store=hung, silence=0.3)
    ask(cache)
    time.sleep(0.2)
    other, nothing = CacheRequestHandle("other", 0), match(cache, PROMPT).last_host_node
    cache.prefetch_from_storage(other, nothing, PROMPT.tolist(), matched_prefix_tokens=[])
    time.sleep(0.2)
    cache.check_hicache_events()
    assert not cache.ongoing_prefetch


def test_what_a_backend_that_hung_gives_at_last_is_written_nowhere(
    hung: Hung, tmp_path: Path
) -> None:
    leave(tmp_path)
    backend = file_backend(tmp_path)
    give, begun = backend.get, threading.Event()

    def get(key: str, place: Any, sizes: Any = None) -> Any:
        begun.set()
        hung.answers.wait()
        return give(key, place, sizes)

    backend.get = get  # type: ignore[method-assign]
    cache = make_server(tmp_path, store=backend, silence=0.2)
    ask(cache)
    wait(lambda: (cache.check_hicache_events(), begun.is_set())[1])
    wait(lambda: pass_by(cache))
    before = cache.token_to_kv_pool_host.buffer.clone()
    hung.answers.set()
    wait(lambda: (cache.check_hicache_events(), not cache.storage._unanswered)[1])
    assert torch.equal(cache.token_to_kv_pool_host.buffer, before)
    assert not cache.storage.traffic.read[0]


def test_a_backend_that_hangs_is_detached_and_cleared_in_time(
    hung: Hung, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_server(tmp_path, store=hung, silence=0.05)
    ask(cache)
    assert not cache.clear_storage_backend()
    assert cache.detach_storage_backend()[0]
    assert not cache.enable_storage and not cache.ongoing_prefetch
    assert "a thread still waits" in caplog.text
    cache.manager.check_idle()


def test_best_effort_waits_for_nothing(tmp_path: Path) -> None:
    cache = make_server(tmp_path, "best_effort", Broken(0.1))
    ask(cache)
    assert cache.check_prefetch_progress(ASKED)
    assert cache.ongoing_prefetch
    wait(lambda: pass_by(cache))


def test_a_request_that_goes_leaves_nothing(tmp_path: Path) -> None:
    leave(tmp_path)
    cache = make_server(tmp_path)
    ask(cache)
    cache.release_aborted_request(ASKED)
    assert cache.check_prefetch_progress(ASKED)
    wait(lambda: pass_by(cache))
    assert cache.pop_prefetch_loaded_span(ASKED) == (0, None)
    cache.manager.check_idle()


def test_every_name_is_accounted_for_while_pages_are_read(tmp_path: Path) -> None:
    """As SGLang counts them after every step."""
    leave(tmp_path)
    cache = make_server(tmp_path)
    allocator = cache.token_to_kv_pool_allocator
    allocator.available_size = lambda: len(inside.free_ids(cache.manager)) * PAGE
    ask(cache)
    names = set()
    while cache.ongoing_prefetch:
        cache.check_hicache_events()
        sizes = (allocator.available_size(), cache.evictable_size(), cache.full_protected_size())
        names.add(sum(sizes))
    assert names == {inside.num_ids(cache.manager) * PAGE}


def test_too_little_is_not_asked_for(tmp_path: Path) -> None:
    leave(tmp_path)
    cache = make_server(tmp_path)
    cache.storage.rules = PrefetchRules("wait_complete", 7 * PAGE, 0.0, 0.0)
    ask(cache)
    assert not cache.ongoing_prefetch


def test_pages_that_were_there_before_storage_are_stored_when_they_leave(tmp_path: Path) -> None:
    cache = make_tiered_cache(num_large=8, num_host=8, page_size=PAGE)
    compute(cache, PROMPT[: 4 * PAGE])
    compute(cache, PROMPT)
    server = make_server(tmp_path)
    rules = server.storage.rules
    keep(cache, PageStore(ByValue(file_backend(tmp_path))), rules)
    evict_all(cache.manager)
    cache.run_copies()
    wait(lambda: cache.storage.traffic.written[0] == 6)
    assert prefetch(server) == len(PROMPT)


def test_bytes_that_go_before_they_are_written_are_not_stored(tmp_path: Path) -> None:
    cache = make_server(tmp_path, store=Broken(0.2))
    compute(cache, PROMPT)
    cache.note_published(NAMESPACE, PROMPT, inside.pages_of(cache.manager, PROMPT, NAMESPACE), 0)
    evict_all(cache.manager)
    cache.run_copies()
    cache.reset()
    wait(lambda: cache.storage.traffic.not_written[0] == 6)
    # Only the first was in time.
    assert cache.storage.store.failures["write"] <= 1


def test_clear_deletes_and_the_next_server_finds_nothing(tmp_path: Path) -> None:
    leave(tmp_path)
    cache = make_server(tmp_path)
    assert cache.clear_storage_backend()
    assert not files(tmp_path)
    assert prefetch(cache) == 0


def test_detaching_ends_the_threads(tmp_path: Path) -> None:
    cache = make_server(tmp_path)
    assert cache.detach_storage_backend()[0]
    assert not cache.enable_storage and not cache.ongoing_prefetch
    assert cache.detach_storage_backend()[0]
    assert cache.check_prefetch_progress(ASKED)


def test_namespaces_do_not_share_pages() -> None:
    seeds = {
        seed(Namespace(None, None, None)),
        seed(Namespace(None, "a", None)),
        seed(Namespace(None, None, "a")),
        seed(Namespace("adapter", "a", None)),
        seed(Namespace("adapter", "a", "a")),
    }
    assert len(seeds) == 5


def test_an_object_is_a_page_under_its_own_key_only() -> None:
    page = torch.arange(64, dtype=torch.uint8)
    found = sealed("key", page)
    assert torch.equal(unsealed("key", found, 64), page)
    assert unsealed("other", found, 64) is None
    assert unsealed("key", found, 63) is None
    assert unsealed("key", found[:-1], 64) is None


def test_ranks_agree_on_the_longest_hit_that_all_have() -> None:
    """One rank can give 9, 6 and 2 pages, the other 8, 6 and 5."""
    other = {9: 8, 8: 8, 6: 6, 5: 5, 2: 2}
    mine = {9: 9, 8: 6, 6: 6, 5: 2, 2: 2}
    agreement = Agreement(None)
    asked: list[int] = []

    def least(own: int, minus: int) -> list[int]:
        theirs = other[asked[-1]]
        return [min(own, theirs), min(minus, -theirs)]

    agreement.least = least  # type: ignore[method-assign, assignment]

    def length(most: int) -> int:
        asked.append(most)
        return mine[most]

    assert agreement.longest(length, 9) == 6
