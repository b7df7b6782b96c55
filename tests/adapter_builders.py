"""The adapter over small managers, without a model or a scheduler."""

from types import SimpleNamespace

import torch

from jenga_sglang.adapter.prefix_cache import JengaPrefixCache
from jenga_sglang.core.manager import Manager


def make_cache(manager: Manager) -> JengaPrefixCache:
    """The prefix cache of ``manager`` as SGLang's scheduler has it, with four rows."""
    pool = SimpleNamespace(pin_of_row={})
    params = SimpleNamespace(
        req_to_token_pool=SimpleNamespace(req_to_token=torch.zeros(4, 32)),
        token_to_kv_pool_allocator=SimpleNamespace(device="cpu", get_kvcache=lambda: pool),
        page_size=manager.page_size,
        enable_kv_cache_events=False,
        enable_metrics=False,
    )
    return JengaPrefixCache(params, manager)
