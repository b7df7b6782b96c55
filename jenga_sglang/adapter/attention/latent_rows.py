"""Latent attention (MLA): one row a token, whose first part is V, read by every query head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jenga_sglang.adapter.kv_pool import JengaKVPool

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention


def has_latent_rows(pool: JengaKVPool) -> bool:
    """Whether some layers keep latent rows."""
    return any(layout.is_latent for layout in pool.layouts.values())


def keeps_rows(pool: JengaKVPool, layer: RadixAttention) -> bool:
    """Whether what the layer attends over is in the pool. SGLang's DeepSeek layers have a second
    module of the same number, for prefills that attend over what latent rows expand to."""
    group = pool.groups[pool.place[layer.layer_id].group]
    dims = (layer.qk_head_dim, layer.v_head_dim)
    return not group.latent_dim or dims == (group.head_dim_k, group.latent_dim)


def attend_over_rows(backend: str) -> None:
    """Tell SGLang's DeepSeek layers that ``--attention-backend`` of this name attends over latent
    rows as they are; for prefills they would expand them otherwise, and write the pool
    themselves."""
    from sglang.srt.models.deepseek_common import attention_backend_handler as handler

    registry = handler.AttentionBackendRegistry
    registry.register(backend, lambda *args: handler.AttnForwardMethod.MLA)
