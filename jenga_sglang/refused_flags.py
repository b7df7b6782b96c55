"""SGLang's flags that do not work with Jenga memory, and why.

`docs/features.md` shows the same table; a test keeps the two equal.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class RefusedFlag(NamedTuple):
    """A flag as the user sees it, the value that means "off", and why no other works."""

    flag: str
    off: Any
    why: str


_DRAFTS = "drafts are chains of one length, made by one model with SGLang's default settings"
_TIER = "host memory is used by `--enable-hierarchical-cache` only"
_STORAGE = "host memory is a tier of its own, with storage below it or without"
_ROLES = "a server's rows and pages are made for its role, and are not made anew"
_UNTRIED = "not tried together"
_SESSION = "sessions hold tokens by SGLang's own cache nodes, which this prefix cache does not have"
_LAYOUT = "chooses a layout of SGLang's own pools, which are not built"
_STATES = "changes SGLang's own pool of recurrent states, which is not built"
_SPLIT = "a request's tokens are divided between ranks; every rank's pages hold whole sequences"
_KERNELS = "its kernels read SGLang's own pools by token ids"
_OVERLAP = "runs two attention batches at once; page tables are made for one"
_BATCH = "needs attention that does not depend on the batch, which our backends do not promise"

# By field of SGLang's ServerArgs.
REFUSED: dict[str, RefusedFlag] = {
    "speculative_adaptive": RefusedFlag("--speculative-adaptive", False, _DRAFTS),
    "enable_multi_layer_eagle": RefusedFlag("--enable-multi-layer-eagle", False, _DRAFTS),
    "speculative_draft_window_size": RefusedFlag("--speculative-draft-window-size", None, _DRAFTS),
    "speculative_draft_attention_backend": RefusedFlag(
        "--speculative-draft-attention-backend", None, "drafts are read as all other tokens are"
    ),
    "speculative_draft_kv_cache_dtype": RefusedFlag(
        "--speculative-draft-kv-cache-dtype", None, "layers of a draft model have the pool's dtype"
    ),
    "speculative_use_rejection_sampling": RefusedFlag(
        "--speculative-use-rejection-sampling", False, "is not tested"
    ),
    "hicache_host_memory_mode": RefusedFlag("--hicache-host-memory-mode", "cache", _STORAGE),
    "hicache_host_memory_fraction": RefusedFlag(
        "--hicache-host-memory-fraction",
        0.8,
        "what is free differs by rank, and ranks decide alike only with as much each: give "
        "`--hicache-size` or `--hicache-ratio`",
    ),
    "enable_unified_cache_external_linker": RefusedFlag(
        "--enable-unified-cache-external-linker", False, _TIER
    ),
    "enable_lmcache": RefusedFlag("--enable-lmcache", False, _TIER),
    "enable_flexkv": RefusedFlag("--enable-flexkv", False, _TIER),
    "enable_unified_memory": RefusedFlag("--enable-unified-memory", False, _LAYOUT),
    "enable_page_major_kv_layout": RefusedFlag("--enable-page-major-kv-layout", False, _LAYOUT),
    "enable_kv_cache_sharding": RefusedFlag("--enable-kv-cache-sharding", False, _SPLIT),
    "enable_hisparse": RefusedFlag(
        "--enable-hisparse", False, "sparse attention needs an index of keys beside the KV"
    ),
    "enable_streaming_session": RefusedFlag("--enable-streaming-session", False, _SESSION),
    "enable_session_radix_cache": RefusedFlag("--enable-session-radix-cache", False, _SESSION),
    "enable_int8_mamba_checkpoint": RefusedFlag("--enable-int8-mamba-checkpoint", False, _STATES),
    "enable_linear_replayssm": RefusedFlag("--enable-linear-replayssm", False, _STATES),
    "mamba_max_states_per_path": RefusedFlag("--mamba-max-states-per-path", -1, _STATES),
    "enable_pdmux": RefusedFlag("--enable-pdmux", False, _OVERLAP),
    "enable_pd_role_switch": RefusedFlag("--enable-pd-role-switch", False, _ROLES),
    "enable_prefill_cp": RefusedFlag("--enable-prefill-cp", False, _SPLIT),
    "enable_mis": RefusedFlag(
        "--enable-mis", False, "needs a mask inside the sequence, which our backends lack"
    ),
    "enable_deterministic_inference": RefusedFlag(
        "--enable-deterministic-inference", False, _BATCH
    ),
    "rl_on_policy_target": RefusedFlag("--rl-on-policy-target", None, _BATCH),
    "enable_nvidia_megakernel": RefusedFlag("--enable-nvidia-megakernel", False, _KERNELS),
    "enable_amd_monokernel": RefusedFlag("--enable-amd-monokernel", False, _KERNELS),
    "kv_canary": RefusedFlag("--kv-canary", "none", _KERNELS),
    "enable_two_batch_overlap": RefusedFlag("--enable-two-batch-overlap", False, _OVERLAP),
    "enable_single_batch_overlap": RefusedFlag("--enable-single-batch-overlap", False, _OVERLAP),
    "prefill_only_disable_kv_cache": RefusedFlag(
        "--prefill-only-disable-kv-cache", False, "leaves no KV cache for Jenga to manage"
    ),
    "dllm_algorithm": RefusedFlag(
        "--dllm-algorithm", None, "a diffusion model rewrites tokens that pages already hold"
    ),
    "dcp_size": RefusedFlag("--dcp-size", 1, _SPLIT),
    "attn_cp_size": RefusedFlag("--attn-cp-size", 1, _SPLIT),
    "pp_size": RefusedFlag(
        "--pp-size", 1, "stages have different layer groups, and do not yet decide alike"
    ),
    "radix_eviction_policy": RefusedFlag(
        "--radix-eviction-policy", "lru", "eviction follows logical time in every layer group"
    ),
}


class RefusedValue(NamedTuple):
    """A flag as the user sees it, the values that work, and why no other does."""

    flag: str
    works: tuple[Any, ...]
    why: str


# By field, where one server computes prompts and another answers them (--disaggregation-mode).
REFUSED_BETWEEN_SERVERS: dict[str, RefusedValue] = {
    "disaggregation_transfer_backend": RefusedValue(
        "--disaggregation-transfer-backend",
        ("mooncake", "mooncake_tcp"),
        "NIXL, MORI, Ascend and the fake engine have not been tried with pages of several groups",
    ),
    "disaggregation_decode_retraction_backup": RefusedValue(
        "--disaggregation-decode-retraction-backup",
        (None, "cpu_tensor", "none"),
        "what a request that gives way needs is copied to plain host memory (cpu_tensor)",
    ),
    "disaggregation_decode_host_receive_threshold": RefusedValue(
        "--disaggregation-decode-host-receive-threshold",
        (None, 1),
        "a prompt arrives in the pool, and that is on the device",
    ),
    "disaggregation_decode_enable_offload_kvcache": RefusedValue(
        "--disaggregation-decode-enable-offload-kvcache", (None, False), _TIER
    ),
    "disaggregation_enable_kv_checksum": RefusedValue(
        "--disaggregation-enable-kv-checksum", (None, False), _KERNELS
    ),
    "disaggregation_decode_allocation_policy": RefusedValue(
        "--disaggregation-decode-allocation-policy", (None, "early"), _UNTRIED
    ),
    "optimistic_prefill_attempts": RefusedValue(
        "--optimistic-prefill-attempts", (None, 0), _UNTRIED
    ),
    "speculative_algorithm": RefusedValue("--speculative-algorithm", (None,), _UNTRIED),
    "enable_hierarchical_cache": RefusedValue(
        "--enable-hierarchical-cache", (None, False), _UNTRIED
    ),
    "enable_dp_attention": RefusedValue("--enable-dp-attention", (None, False), _UNTRIED),
}


def refused_table() -> list[str]:
    """The rows of `docs/features.md`, in order of this module."""
    return [f"| `{refused.flag}` | {refused.why} |" for refused in REFUSED.values()]


def refused_between_servers_table() -> list[str]:
    """The rows of `docs/disaggregation.md`, in order of this module."""
    return [
        f"| `{refused.flag}` | {_words(refused.works)} | {refused.why} |"
        for refused in REFUSED_BETWEEN_SERVERS.values()
    ]


def _words(values: tuple[Any, ...]) -> str:
    given = [f"`{value}`" for value in values if value not in (None, False)]
    return ", ".join(given) or "off"
