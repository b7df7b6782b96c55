"""Storage that takes and gives objects by address: SGLang's backends for NIXL, with its POSIX
plug-in, and for Mooncake, over loopback, where they are installed; and one with the same calls."""

import ctypes
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from core_builders import tokens
from mooncake_master import loopback, mooncake_master
from test_adapter_storage import (
    PROMPT,
    assert_bytes,
    hit_tokens,
    leave,
    make_server,
    one_rank,
    prefetch,
)

from jenga_sglang.adapter.cache.open_storage import _config
from jenga_sglang.adapter.storage.objects import ALIGNMENT, ByAddress, Objects, Window

__all__ = ["one_rank"]  # a fixture that every test uses

PAGE_BYTES = 4 * 128
MakeObjects = Callable[[], Objects]


class InMemory:
    """What SGLang's classes for zero copies do, with a dictionary for the place beyond."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def register_mem_pool_host(self, pool: Any) -> None:
        self._pool = pool

    def batch_exists(self, keys: list[str]) -> int:
        return next((n for n, key in enumerate(keys) if key not in self.kept), len(keys))

    def batch_set_v1(self, keys: list[str], indices: torch.Tensor) -> list[bool]:
        for key, pointer, size in zip(keys, *self._pool.get_page_buffer_meta(indices), strict=True):
            self.kept[key] = ctypes.string_at(pointer, size)
        return [True] * len(keys)

    def batch_get_v1(self, keys: list[str], indices: torch.Tensor) -> list[bool]:
        pointers, sizes = self._pool.get_page_buffer_meta(indices)
        for key, pointer, size in zip(keys, pointers, sizes, strict=True):
            ctypes.memmove(pointer, self.kept[key], min(size, len(self.kept[key])))
        return [True] * len(keys)

    def clear(self) -> None:
        self.kept.clear()


def open_backend(name: str, extra: dict[str, Any] | None = None) -> Objects:
    from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

    window = Window(PAGE_BYTES + ALIGNMENT)
    config = _config(name, "model", extra or {})
    return ByAddress(StorageBackendFactory.create_backend(name, config, window), window)


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mooncake_master(tmp_path_factory.mktemp("mooncake")) as address:
        yield address


@pytest.fixture(params=["memory", "nixl", "mooncake"])
def make_objects(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> MakeObjects:
    """Opens the same storage once more, as another server would."""
    if request.param == "memory":
        backend = InMemory()
        return lambda: ByAddress(backend, Window(PAGE_BYTES + ALIGNMENT))
    if find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    if request.param == "nixl":
        monkeypatch.setenv("SGLANG_HICACHE_NIXL_BACKEND_STORAGE_DIR", str(tmp_path / "nixl"))
        return lambda: open_backend("nixl")
    # The tag is of one test alone.
    extra = loopback(request.getfixturevalue("master")) | {"extra_backend_tag": tmp_path.name}

    def open_and_end() -> Objects:
        objects = open_backend("mooncake", extra)
        # SGLang leaves that to the end of the process, when the master has gone.
        request.addfinalizer(objects._own.store.close)
        return objects

    return open_and_end


def test_another_server_hits_what_one_has_left(make_objects: MakeObjects, tmp_path: Path) -> None:
    first = make_objects()
    leave(tmp_path, objects=first)
    cache = make_server(tmp_path, objects=make_objects())
    assert prefetch(cache) == len(PROMPT)
    assert hit_tokens(cache) == len(PROMPT)
    assert_bytes(cache, PROMPT, 6)
    cache.manager.check_idle()
    assert cache.detach_storage_backend()[0]


def test_objects_are_there_until_they_are_deleted(make_objects: MakeObjects) -> None:
    objects = make_objects()
    page = torch.arange(PAGE_BYTES).to(torch.uint8)
    assert objects.exists(["a", "b"]) == 0
    assert objects.write("a", page) and objects.write("b", page.flip(0))
    assert objects.exists(["a", "b", "c"]) == 2
    assert objects.exists(["c", "a"]) == 0
    assert torch.equal(objects.read("a", PAGE_BYTES), page)
    assert torch.equal(objects.read("b", PAGE_BYTES), page.flip(0))
    objects.close()


def test_an_object_that_is_not_what_was_written_is_written_anew(
    make_objects: MakeObjects, tmp_path: Path
) -> None:
    """Bytes of nobody under the key of a page; whoever computes the page mends it."""
    leave(tmp_path, objects=make_objects())
    spoiled = make_objects()
    (key,) = keys_of_prompt(1)
    spoiled.discard(key)
    assert spoiled.write(key, torch.zeros(PAGE_BYTES, dtype=torch.uint8))
    cache = make_server(tmp_path, objects=spoiled)
    assert prefetch(cache) == 0
    assert cache.storage.store.failures["seal"] == 1
    assert cache.storage.close()
    leave(tmp_path, objects=make_objects())
    assert prefetch(make_server(tmp_path, objects=make_objects())) == len(PROMPT)


def keys_of_prompt(*pages: int) -> list[str]:
    from sglang.srt.mem_cache.utils import get_hash_str

    digests = get_hash_str(PROMPT.tolist(), None, page_size=4)
    return [f"{digests[page - 1]}.full" for page in pages]


def test_a_backend_that_fails_is_a_miss(
    make_objects: MakeObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With SGLang's own wrapper, in which every call fails."""
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageFailureInjector

    leave(tmp_path, objects=make_objects())
    objects = make_objects()
    objects._backend = HiCacheStorageFailureInjector(objects._backend, 0.0, 1.0)  # type: ignore[attr-defined]
    cache = make_server(tmp_path, objects=objects)
    assert prefetch(cache) == 0
    assert not objects.write("other", torch.zeros(PAGE_BYTES, dtype=torch.uint8))
    assert objects.read("other", PAGE_BYTES) is None
    cache.manager.check_idle()


def test_another_prompt_is_a_miss(make_objects: MakeObjects, tmp_path: Path) -> None:
    leave(tmp_path, objects=make_objects())
    cache = make_server(tmp_path, objects=make_objects())
    assert prefetch(cache, tokens(range(500, 500 + len(PROMPT)))) == 0
