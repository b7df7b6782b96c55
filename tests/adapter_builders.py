"""The adapter over small managers, without a model or a scheduler."""

from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from core_builders import make_manager

from jenga_sglang.adapter.cache.budget import JengaPrefillBudget
from jenga_sglang.adapter.cache.prefix_cache import JengaPrefixCache
from jenga_sglang.adapter.cache.tiered_cache import JengaTieredCache
from jenga_sglang.adapter.discovery import DiscoveredGroup
from jenga_sglang.adapter.host_copies import HostCopies
from jenga_sglang.adapter.host_pool import HostPool
from jenga_sglang.adapter.kv_pool import JengaKVPool
from jenga_sglang.adapter.streams import HostWork
from jenga_sglang.core.cut.geometry import Geometry, LayerGroupSpec, exact_lcm
from jenga_sglang.core.dependency import Dependency, Full
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.tiered_manager import TieredManager


def make_cache(manager: Manager, draft_layers: Collection[int] = ()) -> JengaPrefixCache:
    """The prefix cache of ``manager`` as SGLang's scheduler has it, with four rows."""
    pool = SimpleNamespace(running_of_row={}, draft_layers=draft_layers, whole_images=None)
    return JengaPrefixCache(_params(manager, pool), manager, HostWork())


def _params(manager: Manager, pool: Any) -> Any:
    return SimpleNamespace(
        req_to_token_pool=SimpleNamespace(req_to_token=torch.zeros(4, 32)),
        token_to_kv_pool_allocator=SimpleNamespace(device="cpu", get_kvcache=lambda: pool),
        page_size=manager.page_size,
        enable_kv_cache_events=False,
        enable_metrics=False,
        pp_size=1,
        tp_cache_group=None,
        attn_tp_cache_group=None,
    )


def make_tiered_cache(
    num_large: int,
    num_host: int,
    *,
    page_size: int,
    poison_freed: bool = False,
    dependencies: Sequence[Dependency] = (Full(),),
) -> JengaTieredCache:
    """The prefix cache over host memory of a pool with one layer of each of ``dependencies``, with
    the bytes of both."""
    geometry, groups = _layers(num_large, page_size, dependencies)
    host_bytes = (num_host + 1) * geometry.large_page_bytes
    manager = TieredManager(geometry, host_bytes=host_bytes, max_requests=4, max_length=1000)
    pool = JengaKVPool(
        manager,
        groups,
        dtype=torch.float32,
        device="cpu",
        enable_memory_saver=False,
        poison_freed=poison_freed,
    )
    host = HostPool(pool, manager, HostCopies(), poison_freed=poison_freed)
    return JengaTieredCache(_params(manager, pool), manager, host)


def make_scheduler(chunked: Any = None, *, chunk_tokens: int = 0, waiting: Any = ()) -> Any:
    """What an admission pass looks at of SGLang's scheduler."""
    return SimpleNamespace(
        chunked_req=chunked, chunked_prefill_size=chunk_tokens, waiting_queue=waiting
    )


def make_pool(*dependencies: Dependency, page_size: int, layers: Sequence[int]) -> JengaKVPool:
    """A pool of so many layers of each kind, rows of two float32 elements, on the host."""
    manager = make_manager(*dependencies, num_large=40, page_size=page_size, layers=layers)
    specs = [cut.spec for cut in manager.geometry.groups]
    groups = [DiscoveredGroup(spec, 1, 1, 1, dtype=torch.float32) for spec in specs]
    return JengaKVPool(
        manager, groups, dtype=torch.float32, device="cpu", enable_memory_saver=False
    )


def offer(cache: JengaPrefixCache, prompt: int) -> bool:
    """Whether a pass would take a request with ``prompt`` tokens to compute and none to answer."""
    admitted, _ = JengaPrefillBudget(cache.admission).check_prefill(
        extend_input_len=prompt,
        total_tokens=0,
        max_new_tokens=0,
        input_tokens=prompt,
        swa_host_hit_length=0,
        chunk_limit=None,
    )
    return admitted


def make_pool_of_one_layer(num_large: int, *, page_size: int, max_length: int) -> JengaKVPool:
    """A layer of full attention in float32, whose page is a large page; on the host."""
    geometry, groups = _layers(num_large, page_size, [Full()])
    manager = Manager(geometry, max_requests=4, max_length=max_length)
    return JengaKVPool(
        manager, groups, dtype=torch.float32, device="cpu", enable_memory_saver=False
    )


def _layers(
    num_large: int, page_size: int, dependencies: Sequence[Dependency]
) -> tuple[Geometry, list[DiscoveredGroup]]:
    specs = tuple(
        LayerGroupSpec(f"group{g}", (g,), dependency, 64, 64)
        for g, dependency in enumerate(dependencies)
    )
    geometry = exact_lcm(specs, page_size, (num_large + 1) * page_size * specs[0].row_bytes)
    return geometry, [DiscoveredGroup(spec, 1, 16, 16, dtype=torch.float32) for spec in specs]
