"""The bytes of SGLang's own pools, from which ours take their size, against pools it builds."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.mem_cache import kv_cache_configurator
from sglang.srt.mem_cache.kv_cache_configurator import KVCacheConfigurator
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.model_executor import pool_configurator
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from jenga_sglang.adapter.start import build

PAGE = 4
FULL_TOKENS, WINDOW_TOKENS = 40, 16


def model_config(
    *, heads: int, dims: tuple[int, int], swa_heads: int, swa_dims: tuple[int, int]
) -> SimpleNamespace:
    """Heads, and the elements of a head's K and V, of either kind of layer."""
    return SimpleNamespace(
        get_num_kv_heads=lambda tp_size, dcp_size: heads // tp_size,
        get_swa_num_kv_heads=lambda tp_size: swa_heads // tp_size,
        head_dim=dims[0],
        v_head_dim=dims[1],
        swa_head_dim=swa_dims[0],
        swa_v_head_dim=swa_dims[1],
    )


def pool_bytes(config: Any, layers: Any) -> int:
    """What the buffers of SGLang's pool of two kinds of layers take."""
    pool = SWAKVPool(
        size=FULL_TOKENS,
        size_swa=WINDOW_TOKENS,
        page_size=PAGE,
        dtype=torch.bfloat16,
        head_num=config.get_num_kv_heads(1, 1),
        head_dim=config.head_dim,
        v_head_dim=config.v_head_dim,
        swa_head_num=config.get_swa_num_kv_heads(1),
        swa_head_dim=config.swa_head_dim,
        swa_v_head_dim=config.swa_v_head_dim,
        swa_attention_layer_ids=layers.swa_attention_layer_ids,
        full_attention_layer_ids=layers.full_attention_layer_ids,
        device="cpu",
    )
    parts = (pool.full_kv_pool, pool.swa_kv_pool)
    return sum(b.nbytes for p in parts for b in (*p.k_buffer, *p.v_buffer))


@pytest.mark.parametrize(
    "config",
    [
        model_config(heads=2, dims=(8, 8), swa_heads=2, swa_dims=(8, 8)),
        model_config(heads=2, dims=(16, 8), swa_heads=4, swa_dims=(8, 4)),
    ],
    ids=["alike", "rows of their own"],
)
def test_a_pool_of_full_and_windowed_layers(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = SimpleNamespace(swa_attention_layer_ids=[0, 1, 3], full_attention_layer_ids=[2])
    monkeypatch.setattr(build, "_attention_parallel", lambda: (1, 1))
    configurator = SimpleNamespace(
        is_hybrid_swa=True,
        model_config=config,
        kv_cache_dtype=torch.bfloat16,
        layer_info=layers,
        pool_page_size=PAGE,
    )
    sizes = SimpleNamespace(
        full_max_total_num_tokens=FULL_TOKENS, swa_max_total_num_tokens=WINDOW_TOKENS
    )
    assert build.stock_pool_bytes(configurator, sizes) == pool_bytes(config, layers)


@pytest.mark.parametrize("max_running", [2, 100])
@pytest.mark.parametrize("algorithm", [SpeculativeAlgorithm.NONE, SpeculativeAlgorithm.NGRAM])
def test_states_and_those_behind_drafts_are_what_sglang_sets_aside(
    algorithm: SpeculativeAlgorithm, max_running: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 states of 1 MiB, five a request; with drafts six more for each that may run, and for one
    that is padding."""
    params = SimpleNamespace(layers=[0, 2], mamba_cache_per_req=1 << 20)
    configurator = SimpleNamespace(
        mambaish_config=SimpleNamespace(mamba2_cache_params=params),
        layer_info=SimpleNamespace(start_layer=0, end_layer=3),
        spec_algorithm=algorithm,
        attn_dp_size=1,
        pp_size=1,
        extra_mamba_cache_bytes_per_req=0,
        fused_entry_bytes=lambda name: None,
        _calculate_mamba_ratio=lambda: 5,
    )
    schedule = SimpleNamespace(max_mamba_cache_size=30, max_running_requests=max_running)
    spec = SimpleNamespace(speculative_num_draft_tokens=6)
    for module in (build, kv_cache_configurator):
        monkeypatch.setattr(module, "get_schedule", lambda: schedule)
        monkeypatch.setattr(module, "get_spec", lambda: spec)
    features = SimpleNamespace(mamba=SimpleNamespace(enable_linear_replayssm_spec=False))
    context = SimpleNamespace(override=lambda *args, **kwargs: None)
    monkeypatch.setattr(kv_cache_configurator, "get_exec", lambda: features)
    monkeypatch.setattr(kv_cache_configurator, "get_context", lambda: context)
    monkeypatch.setattr(kv_cache_configurator, "_pd_prefill_skips_mamba_spec_state", lambda: False)
    left = KVCacheConfigurator._handle_max_mamba_cache(configurator, 100)  # GiB
    assert build._stock_state_bytes(configurator) == round((100 - left) * (1 << 30))


@pytest.mark.parametrize("algorithm", ["NONE", "NGRAM", "STANDALONE", "EAGLE", "FROZEN_KV_MTP"])
def test_a_drafts_share_of_each_token_is_what_sglang_sets_aside(
    algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three layers beside four with rows of 2 heads, 2 x 8 elements in bfloat16."""
    configurator = SimpleNamespace(
        kv_cache_dtype_str="auto",
        kv_cache_dtype=torch.bfloat16,
        model_config=model_config(heads=2, dims=(8, 8), swa_heads=2, swa_dims=(8, 8)),
        layer_info=SimpleNamespace(num_effective_layers=4),
        spec_algorithm=SpeculativeAlgorithm[algorithm],
        spec_aux_config=SimpleNamespace(eagle_draft_num_layers=3),
        is_draft_worker=False,
        is_hybrid_swa=False,
        mambaish_config=None,
        fused_entry_bytes=lambda name: None,
    )
    monkeypatch.setattr(build, "latent_row", lambda configurator: None)
    monkeypatch.setattr(build, "_attention_parallel", lambda: (1, 1))
    schedule = SimpleNamespace(max_total_tokens=None)
    monkeypatch.setattr(build, "get_schedule", lambda: schedule)
    monkeypatch.setattr(pool_configurator, "mambaish_config", lambda config: None)
    monkeypatch.setattr(pool_configurator, "is_deepseek_dsa", lambda config: False)
    monkeypatch.setattr(pool_configurator, "get_parallel", lambda: SimpleNamespace(attn_dcp_size=1))
    monkeypatch.setattr(
        pool_configurator, "get_memory", lambda: SimpleNamespace(enable_hisparse=False)
    )
    monkeypatch.setattr(pool_configurator, "get_schedule", lambda: schedule)
    monkeypatch.setattr(
        pool_configurator, "compute_page_shard_scratch_bytes", lambda *args, **kwargs: 0
    )
    configurator.model_config.context_len = 1
    configurator.model_config.hf_config = None
    rows = build.stock_token_bytes(configurator)

    class Sized(pool_configurator.DefaultPoolConfigurator):
        def _compute_cell_size(self, kvc: Any, num_layers: int) -> int:
            return rows

    sized = Sized(configurator)
    sizes = SimpleNamespace(max_total_num_tokens=FULL_TOKENS)
    set_aside = (sized._cell_size - rows) * FULL_TOKENS
    assert build.draft_bytes_set_aside(configurator, sizes) == set_aside
    assert (sized._cell_size > rows) == (algorithm not in ("NONE", "NGRAM"))
    schedule.max_total_tokens = 100
    assert build.draft_bytes_set_aside(configurator, sizes) == 0


@pytest.mark.parametrize("algorithm", ["NONE", "NGRAM", "STANDALONE", "EAGLE"])
@pytest.mark.parametrize(
    ("windowed", "local"),
    [(None, None), (0, None), (2, None), (9, None), (None, [1, 7])],
    ids=["full", "told to be full", "windows", "windows alone", "windows of all tokens"],
)
def test_a_drafts_share_beside_windows_is_what_sglang_sets_aside(
    algorithm: str, windowed: int | None, local: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three layers that draft beside one of full attention and three with windows."""
    layers = SimpleNamespace(swa_attention_layer_ids=[0, 1, 3], full_attention_layer_ids=[2])
    config = model_config(heads=2, dims=(16, 8), swa_heads=4, swa_dims=(8, 4))
    config.attention_arch = pool_configurator.AttentionArch.MHA
    config.hf_text_config = SimpleNamespace()
    if local is not None:
        config.hf_text_config.mtp_local_layer_ids = local
    configurator = SimpleNamespace(
        kv_cache_dtype_str="auto",
        kv_cache_dtype=torch.bfloat16,
        model_config=config,
        layer_info=layers,
        spec_algorithm=SpeculativeAlgorithm[algorithm],
        spec_aux_config=SimpleNamespace(
            eagle_draft_num_layers=3, eagle_draft_swa_num_layers=windowed
        ),
        is_draft_worker=False,
        is_hybrid_swa=True,
        sliding_window_size=8,
        page_size=PAGE,
        fused_entry_bytes=lambda name: None,
    )
    schedule = SimpleNamespace(max_total_tokens=None, swa_full_tokens_ratio=0.5)
    monkeypatch.setattr(build, "_attention_parallel", lambda: (1, 1))
    monkeypatch.setattr(build, "get_schedule", lambda: schedule)
    monkeypatch.setattr(pool_configurator, "get_schedule", lambda: schedule)
    monkeypatch.setattr(pool_configurator, "get_parallel", lambda: SimpleNamespace(attn_tp_size=1))
    memory = SimpleNamespace(enable_unified_memory=False)
    monkeypatch.setattr(pool_configurator, "get_memory", lambda: memory)
    # SGLang asks for heads with one size here, and with two where it builds the pools.
    config.get_num_kv_heads = lambda tp_size, dcp_size=1: 2
    with_drafts = pool_configurator.HybridSWAPoolConfigurator(configurator)._cell_size
    configurator.spec_algorithm = SpeculativeAlgorithm.NONE
    without = pool_configurator.HybridSWAPoolConfigurator(configurator)._cell_size
    configurator.spec_algorithm = SpeculativeAlgorithm[algorithm]
    sizes = SimpleNamespace(
        full_max_total_num_tokens=FULL_TOKENS, swa_max_total_num_tokens=FULL_TOKENS // 2
    )
    set_aside = (with_drafts - without) * FULL_TOKENS
    assert build.draft_bytes_set_aside(configurator, sizes) == set_aside
    assert (set_aside > 0) == (algorithm not in ("NONE", "NGRAM"))
    schedule.max_total_tokens = 100
    assert build.draft_bytes_set_aside(configurator, sizes) == 0
