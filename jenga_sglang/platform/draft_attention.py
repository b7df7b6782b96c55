"""SGLang's torch attention, for drafts as well: it has none of the modes of speculative decoding.

Imported when SGLang's own has been; `jenga_sglang.platform.speculative` puts it in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from torch.nn.functional import scaled_dot_product_attention

NAME = "torch_native"


class DraftingTorchBackend(TorchNativeAttnBackend):
    """SGLang's own, which a batch that verifies drafts may ask too. One that serves a step of a
    draft model reads ``drafted`` tokens behind those that there are for good."""

    def __init__(self, runner: Any, drafted: int = 0) -> None:
        super().__init__(runner)
        self.drafted = drafted

    def forward_decode(
        self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True
    ) -> Any:
        batch = forward_batch
        if self.drafted:
            batch = SimpleNamespace(
                seq_lens=batch.seq_lens + self.drafted,
                out_cache_loc=batch.out_cache_loc,
                req_pool_indices=batch.req_pool_indices,
                encoder_lens=None,
            )
        return super().forward_decode(q, k, v, layer, batch, save_kv_cache)

    def forward_extend(
        self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True
    ) -> Any:
        batch = forward_batch
        if not batch.forward_mode.is_target_verify():
            return super().forward_extend(q, k, v, layer, batch, save_kv_cache)
        if save_kv_cache and k is not None:
            place = KVWriteLoc(batch.out_cache_loc, self.swa_out_cache_loc)
            self.token_to_kv_pool.set_kv_buffer(layer, place, k, v)
        heads = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        drafts, rows = batch.spec_info.draft_token_num, batch.req_pool_indices.tolist()
        parts = [
            self._verify(heads[i * drafts : (i + 1) * drafts], layer, rows[i], mask)
            for i, mask in enumerate(_masks(batch, layer.sliding_window_size))
        ]
        return torch.cat(parts).flatten(1)

    def _verify(self, q: Any, layer: Any, row: int, mask: torch.Tensor) -> torch.Tensor:
        """Drafts of one request, (drafts, heads, head dim), over what ``mask`` shows of its row."""
        slots = self.req_to_token_pool.req_to_token[row, : mask.shape[1]].long()
        k = self.token_to_kv_pool.get_key_buffer(layer.layer_id)[slots].to(q.dtype)
        v = self.token_to_kv_pool.get_value_buffer(layer.layer_id)[slots].to(q.dtype)
        attended = scaled_dot_product_attention(
            q.transpose(0, 1),
            k.transpose(0, 1),
            v.transpose(0, 1),
            attn_mask=mask,
            scale=layer.scaling,
            enable_gqa=layer.tp_q_head_num != layer.tp_k_head_num,
        )
        return attended.transpose(0, 1)


def _masks(batch: Any, window: int | None) -> list[torch.Tensor]:
    """For each request (drafts, history + drafts) bool: what each draft reads."""
    spec, masks, at = batch.spec_info, [], 0
    drafts = spec.draft_token_num
    for number, length in enumerate(batch.seq_lens.tolist()):
        size = drafts * (length + drafts)
        mask = spec.custom_mask[at : at + size].view(drafts, -1).bool()
        at += size
        queries = spec.positions[number * drafts : (number + 1) * drafts]
        if window is not None and window > -1:
            keys = torch.cat((torch.arange(length), queries))
            mask = mask & (keys >= queries[:, None] - window)
        masks.append(mask)
    return masks


class DraftSteps:
    """A backend for each step but the last of a chain of drafts."""

    def __init__(self, runner: Any, num_steps: int) -> None:
        steps = range(1, num_steps)
        self.attn_backends = [DraftingTorchBackend(runner, step) for step in steps]

    def init_forward_metadata(self, batch: Any) -> None:
        for backend in self.attn_backends:
            backend.init_forward_metadata(batch)


def with_torch_backend(create: Callable[..., Any]) -> Callable[..., Any]:
    """SGLang's `DraftBackendFactory._create_backend`, which knows this one too."""

    def _create_backend(
        self: Any,
        backend_name: str,
        backend_map: dict[str, Any],
        error_template: str,
        stamps_children: bool = False,
    ) -> Any:
        def build() -> tuple[str, Any]:
            runner = self.draft_model_runner
            if not stamps_children:
                return NAME, DraftingTorchBackend(runner)
            if self.topk != 1:
                raise ValueError(f"--attention-backend {NAME} drafts with topk 1 only")
            return NAME, DraftSteps(runner, self.speculative_num_steps)

        known = {**backend_map, NAME: build}
        return create(self, backend_name, known, error_template, stamps_children)

    return _create_backend
