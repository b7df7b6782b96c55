"""How much host memory is below the pool, and what a host tier does not work with yet."""

from __future__ import annotations

import logging
from typing import Any

from sglang.srt.mem_cache.pool_host.base import available_host_memory_bytes, ranks_per_host
from sglang.srt.runtime_context import get_memory

from jenga_sglang.adapter.host_copies import why_not
from jenga_sglang.core.cut.explain import human_bytes
from jenga_sglang.core.cut.geometry import Geometry
from jenga_sglang.core.groups import Groups
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.tiered_manager import TieredManager
from jenga_sglang.core.tiers import WritePolicy
from jenga_sglang.refusal import refuse

logger = logging.getLogger(__name__)

FLAG = "--enable-hierarchical-cache"
BYTES_PER_SIZE = 10**9  # of `--hicache-size`


def make_manager(geometry: Geometry, *, device: str, **kwargs: Any) -> Manager:
    """The manager of a pool, and of host memory where that is asked for.

    Raises ``SystemExit`` with one line where host memory does not work or does not suffice.
    """
    memory = get_memory()
    if not memory.enable_hierarchical_cache or memory.disable_radix_cache:
        return Manager(geometry, **kwargs)
    if kwargs.get("tail_tokens"):
        raise refuse(FLAG, "and speculative decoding: drafts name no tier yet; leave one out")
    _refuse(geometry, device)
    host_bytes = _host_bytes(geometry)
    policy = WritePolicy(memory.hicache_write_policy)
    logger.info("Jenga host tier of %s, %s", human_bytes(host_bytes), policy.value)
    return TieredManager(geometry, host_bytes=host_bytes, write_policy=policy, **kwargs)


def _refuse(geometry: Geometry, device: str) -> None:
    if why := why_not(device):
        raise refuse(FLAG, why)
    if Groups(geometry).encoder_groups:
        raise refuse(FLAG, "is not there for encoder-decoder models yet; leave it out")


def _host_bytes(geometry: Geometry) -> int:
    """As many on every rank, or ranks would not decide alike."""
    memory = get_memory()
    if memory.hicache_size > 0:
        flag, host_bytes = f"--hicache-size {memory.hicache_size}", memory.hicache_size
        host_bytes *= BYTES_PER_SIZE
    else:
        flag = f"--hicache-ratio {memory.hicache_ratio}"
        host_bytes = int(memory.hicache_ratio * geometry.pool_bytes)
    least = 2 * geometry.large_page_bytes
    if host_bytes < least:
        raise refuse(flag, f"has no room for one large page; {human_bytes(least)} do")
    available_bytes = available_host_memory_bytes(allow_cgroup_fallback=True) // ranks_per_host()
    if host_bytes > available_bytes:
        raise refuse(
            flag,
            f"asks for {human_bytes(host_bytes)} of host memory for each rank, and "
            f"{human_bytes(available_bytes)} are free; choose a smaller --hicache-size",
        )
    return host_bytes
