"""SGLang's flags that do not work with Jenga memory, and why.

`docs/features.md` shows the same table; a test keeps the two equal.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class RefusedFlag(NamedTuple):
    """A flag as the user sees it, the value that means "off", why no other works but the
    ``others``, and what it would take."""

    flag: str
    off: Any
    why: str
    takes: str
    others: tuple[Any, ...] = ()


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
_TRAINER = "answers as a trainer's own layers do, which have not been compared"

# What it would take.
_PAIR = "a pair that was run with it"
_STAGED = "stages that were run with it, beside a stage without such layers"
_MORE_DRAFTS = "pages for drafts of changing length, and tests on the backends that verify them"
_SEVERAL_HEADS = (
    "windows that keep as many tokens more as there are heads, a prefix key of as many tokens, and "
    "a model of MiMo-V2's or Step-3.5's kind on a CPU to compare with"
)
_CHECK = "a test against the same flag without Jenga"
_STORE = "host memory as a buffer only, and prefixes that are read into the pool when they are hit"
_OTHER_TIER = "the same tier behind another connector, which copies small pages by group"
_NOTHING = "nothing: Jenga brings its own"
_RANGES = "books in which a rank has a part of every sequence, and kernels that merge the parts"
_TABLES = "kernels that read page tables by group"
_TWO_TABLES = "page tables in two sets, one for each batch"
_WITH_TRAINER = (
    "that trainer's layers to compare bits with; `--enable-deterministic-inference` alone works"
)
_HELD = "a lock that outlives its request, with its row, and a hook where SGLang asks for its tree"

# By field of SGLang's ServerArgs.
REFUSED: dict[str, RefusedFlag] = {
    "speculative_adaptive": RefusedFlag("--speculative-adaptive", False, _DRAFTS, _MORE_DRAFTS),
    "enable_multi_layer_eagle": RefusedFlag(
        "--enable-multi-layer-eagle", False, _DRAFTS, _SEVERAL_HEADS
    ),
    "speculative_draft_window_size": RefusedFlag(
        "--speculative-draft-window-size", None, _DRAFTS, "a group with a window for the draft"
    ),
    "speculative_draft_attention_backend": RefusedFlag(
        "--speculative-draft-attention-backend",
        None,
        "drafts are read as all other tokens are",
        "two backends that share their page tables",
    ),
    "speculative_draft_kv_cache_dtype": RefusedFlag(
        "--speculative-draft-kv-cache-dtype",
        None,
        "layers of a draft model have the pool's dtype",
        "groups of another dtype in a pool",
    ),
    "speculative_use_rejection_sampling": RefusedFlag(
        "--speculative-use-rejection-sampling", False, "is not tested", _CHECK
    ),
    "hicache_host_memory_mode": RefusedFlag(
        "--hicache-host-memory-mode", "cache", _STORAGE, _STORE
    ),
    "hicache_host_memory_fraction": RefusedFlag(
        "--hicache-host-memory-fraction",
        0.8,
        "what is free differs by rank, and ranks decide alike only with as much each: give "
        "`--hicache-size` or `--hicache-ratio`",
        "ranks that agree on the least of what is free",
    ),
    "enable_unified_cache_external_linker": RefusedFlag(
        "--enable-unified-cache-external-linker", False, _TIER, _OTHER_TIER
    ),
    "enable_lmcache": RefusedFlag("--enable-lmcache", False, _TIER, _OTHER_TIER),
    "enable_flexkv": RefusedFlag("--enable-flexkv", False, _TIER, _OTHER_TIER),
    "enable_unified_memory": RefusedFlag("--enable-unified-memory", False, _LAYOUT, _NOTHING),
    "enable_page_major_kv_layout": RefusedFlag(
        "--enable-page-major-kv-layout", False, _LAYOUT, _NOTHING
    ),
    "enable_kv_cache_sharding": RefusedFlag("--enable-kv-cache-sharding", False, _SPLIT, _RANGES),
    "enable_hisparse": RefusedFlag(
        "--enable-hisparse",
        False,
        "sparse attention needs an index of keys beside the KV",
        "a group for the index, and kernels that read it by page",
    ),
    "enable_streaming_session": RefusedFlag("--enable-streaming-session", False, _SESSION, _HELD),
    "enable_session_radix_cache": RefusedFlag(
        "--enable-session-radix-cache",
        False,
        _SESSION,
        "kept lengths that count as used while their session is open",
    ),
    "enable_int8_mamba_checkpoint": RefusedFlag(
        "--enable-int8-mamba-checkpoint", False, _STATES, "snapshots in a group of their own dtype"
    ),
    "enable_linear_replayssm": RefusedFlag(
        "--enable-linear-replayssm", False, _STATES, "pages for the tokens that are replayed"
    ),
    "mamba_max_states_per_path": RefusedFlag(
        "--mamba-max-states-per-path", -1, _STATES, "a limit of snapshots for each history"
    ),
    "enable_pdmux": RefusedFlag("--enable-pdmux", False, _OVERLAP, _TWO_TABLES),
    "enable_pd_role_switch": RefusedFlag(
        "--enable-pd-role-switch", False, _ROLES, "rows and components for both roles at once"
    ),
    "enable_prefill_cp": RefusedFlag("--enable-prefill-cp", False, _SPLIT, _RANGES),
    "enable_mis": RefusedFlag(
        "--enable-mis",
        False,
        "needs a mask inside the sequence, which our backends lack",
        "a mask in our FlashInfer plans, and a device to test it on",
    ),
    "rl_on_policy_target": RefusedFlag("--rl-on-policy-target", None, _TRAINER, _WITH_TRAINER),
    "enable_nvidia_megakernel": RefusedFlag("--enable-nvidia-megakernel", False, _KERNELS, _TABLES),
    "enable_amd_monokernel": RefusedFlag("--enable-amd-monokernel", False, _KERNELS, _TABLES),
    "kv_canary": RefusedFlag("--kv-canary", "none", _KERNELS, _TABLES),
    "enable_two_batch_overlap": RefusedFlag(
        "--enable-two-batch-overlap", False, _OVERLAP, _TWO_TABLES
    ),
    "enable_single_batch_overlap": RefusedFlag(
        "--enable-single-batch-overlap", False, _OVERLAP, _TWO_TABLES
    ),
    "enable_torch_compile": RefusedFlag(
        "--enable-torch-compile",
        False,
        "traces decodes through the attention backend, which the host tells of every step anew",
        "attention as an operator that the compiler leaves alone, and a device to compare answers "
        "on",
    ),
    "prefill_only_disable_kv_cache": RefusedFlag(
        "--prefill-only-disable-kv-cache",
        False,
        "leaves no KV cache for Jenga to manage",
        "nothing: leave one of the two out",
    ),
    "dllm_algorithm": RefusedFlag(
        "--dllm-algorithm",
        None,
        "a diffusion model rewrites tokens that pages already hold",
        "blocks that stay private until they are final",
    ),
    "dcp_size": RefusedFlag("--dcp-size", 1, _SPLIT, _RANGES),
    "attn_cp_size": RefusedFlag("--attn-cp-size", 1, _SPLIT, _RANGES),
    "radix_eviction_policy": RefusedFlag(
        "--radix-eviction-policy",
        "lru",
        "tlru tells how much of a history is worth keeping by its tokens in one pool; a window "
        "keeps the end and what lasts the beginning, so no one number does",
        "a budget for each layer group",
        others=("lfu", "slru", "priority"),
    ),
}


class RefusedValue(NamedTuple):
    """A flag as the user sees it, the values that work, why no other does, and what it would
    take."""

    flag: str
    works: tuple[Any, ...]
    why: str
    takes: str


# By field, where one server computes prompts and another answers them (--disaggregation-mode).
REFUSED_BETWEEN_SERVERS: dict[str, RefusedValue] = {
    "disaggregation_transfer_backend": RefusedValue(
        "--disaggregation-transfer-backend",
        ("mooncake", "mooncake_tcp"),
        "NIXL, MORI, Ascend and the fake engine have not been tried with pages of several groups",
        "a pair over each, and a comparison of layouts where that engine registers a server",
    ),
    "disaggregation_decode_retraction_backup": RefusedValue(
        "--disaggregation-decode-retraction-backup",
        (None, "cpu_tensor", "none"),
        "what a request that gives way needs is copied to plain host memory (cpu_tensor)",
        "the host tier on a decode server",
    ),
    "disaggregation_decode_host_receive_threshold": RefusedValue(
        "--disaggregation-decode-host-receive-threshold",
        (None, 1),
        "a prompt arrives in the pool, and that is on the device",
        "the components of a pool in host memory",
    ),
    "disaggregation_decode_enable_offload_kvcache": RefusedValue(
        "--disaggregation-decode-enable-offload-kvcache",
        (None, False),
        _TIER,
        "the host tier on a decode server",
    ),
    "disaggregation_enable_kv_checksum": RefusedValue(
        "--disaggregation-enable-kv-checksum",
        (None, False),
        _KERNELS,
        "checksums over the items of every component",
    ),
    "disaggregation_decode_allocation_policy": RefusedValue(
        "--disaggregation-decode-allocation-policy", (None, "early"), _UNTRIED, _PAIR
    ),
    "optimistic_prefill_attempts": RefusedValue(
        "--optimistic-prefill-attempts", (None, 0), _UNTRIED, _PAIR
    ),
    "speculative_algorithm": RefusedValue(
        "--speculative-algorithm",
        (None,),
        _UNTRIED,
        "the draft model's layers among the components, and what it drafts from beside the prompt",
    ),
    "enable_hierarchical_cache": RefusedValue(
        "--enable-hierarchical-cache",
        (None, False),
        _UNTRIED,
        "hits in host memory in the vectors of both servers",
    ),
    "enable_dp_attention": RefusedValue(
        "--enable-dp-attention", (None, False), _UNTRIED, "a pair whose ranks have pools apart"
    ),
}

# By field, where a model's layers are divided between the stages of a pipeline (--pp-size).
REFUSED_BETWEEN_STAGES: dict[str, RefusedValue] = {
    "disaggregation_mode": RefusedValue(
        "--disaggregation-mode",
        (None, "null"),
        "two servers compare one layout, and every stage has components of its own",
        "a layout for each stage, which knows to which stage of the other server it sends",
    ),
    "speculative_algorithm": RefusedValue(
        "--speculative-algorithm", (None,), _UNTRIED, "drafts that every stage is told of"
    ),
    "enable_hierarchical_cache": RefusedValue(
        "--enable-hierarchical-cache",
        (None, False),
        _UNTRIED,
        "host memory in the books that stages have in common",
    ),
    "enable_dp_attention": RefusedValue(
        "--enable-dp-attention", (None, False), _UNTRIED, "idle batches that go through stages"
    ),
    "enable_dynamic_chunking": RefusedValue(
        "--enable-dynamic-chunking",
        (None, False),
        _UNTRIED,
        "prompts that every stage cuts alike by what the first one has measured",
    ),
    "kv_events_config": RefusedValue(
        "--kv-events-config", (None,), _UNTRIED, "one stage that speaks for all"
    ),
    "jenga_kv_dtype": RefusedValue("--jenga-kv-dtype", ("",), _UNTRIED, _STAGED),
    "jenga_keep": RefusedValue("--jenga-keep", ("",), _UNTRIED, _STAGED),
}


def refused_table() -> list[str]:
    """The rows of `docs/features.md`, in order of this module."""
    return [
        f"| `{refused.flag}`{_but(refused.others)} | {refused.why} | {refused.takes} |"
        for refused in REFUSED.values()
    ]


def _but(others: tuple[Any, ...]) -> str:
    return f" (works: {', '.join(f'`{value}`' for value in others)})" if others else ""


def refused_between_servers_table() -> list[str]:
    """The rows of `docs/disaggregation.md`, in order of this module."""
    return _values_table(REFUSED_BETWEEN_SERVERS)


def refused_between_stages_table() -> list[str]:
    """The rows of `docs/disaggregation.md` on stages, in order of this module."""
    return _values_table(REFUSED_BETWEEN_STAGES)


def _values_table(refused_values: dict[str, RefusedValue]) -> list[str]:
    return [
        f"| `{refused.flag}` | {_words(refused.works)} | {refused.why} | {refused.takes} |"
        for refused in refused_values.values()
    ]


def _words(values: tuple[Any, ...]) -> str:
    given = [f"`{value}`" for value in values if value not in (None, False, "null", "")]
    return ", ".join(given) or "off"
