"""What is touched of SGLang's objects, name by name.

SGLang's classes are not checked by the type checker here; these are, wherever they stand in a
signature. `tests/contract/test_sglang_views.py` looks every name up in the installed SGLang.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from jenga_sglang.adapter.cache.allocator import JengaAllocator
    from jenga_sglang.adapter.cache.prefix_cache import JengaPrefixCache


class SamplingView(Protocol):
    """`SamplingParams`."""

    max_new_tokens: int
    ignore_eos: bool


class TimesView(Protocol):
    """`SchedulerReqTimeStats`."""

    wait_queue_entry_time: float


class ImagesView(Protocol):
    """`MultimodalInputs`: what of a request's prompt an encoder makes."""

    num_image_tokens: int | None


class ReqView(Protocol):
    """`Req`: one request."""

    rid: str
    origin_input_ids: array[int]
    output_ids: array[int]
    full_untruncated_fill_ids: array[int]
    prefix_len: int
    host_hit_length: int
    positional_embed_overrides: Any
    sampling_params: SamplingView
    time_stats: TimesView
    multimodal_inputs: ImagesView | None
    extra_key: str | None
    cache_salt: str | None
    lora_id: str | None
    cache_request_handle: Any
    lock: Any

    def _compute_max_prefix_len(self, input_len: int) -> int:
        """The longest hit that it can use."""

    def set_finish_with_abort(self, error_msg: str) -> None:
        """Answer it with an error."""


class BatchView(Protocol):
    """`ScheduleBatch`: the requests that one step computes."""

    reqs: Sequence[ReqView]
    batch_is_full: bool


class GrammarsView(Protocol):
    """`GrammarManager`: requests that wait for their grammar to be compiled."""

    grammar_queue: Sequence[Any]


class RatioView(Protocol):
    """`NewTokenRatioTracker`."""

    current: float


class SchedulerView(Protocol):
    """`Scheduler`, of a server that runs on Jenga pools."""

    waiting_queue: list[ReqView]
    running_batch: BatchView
    last_batch: BatchView | None
    chunked_req: ReqView | None
    chunked_prefill_size: int
    max_prefill_tokens: int
    max_running_requests: int
    page_size: int
    forward_ct: int
    _engine_paused: bool
    grammar_manager: GrammarsView
    new_token_ratio_tracker: RatioView
    token_to_kv_pool_allocator: JengaAllocator
    tree_cache: JengaPrefixCache

    def get_num_allocatable_reqs(self, running_bs: int) -> int:
        """How many more requests have a line in the table of requests."""

    def get_prefill_adder_class(self) -> Any:
        """What adds up one pass."""


class LayerView(Protocol):
    """`RadixAttention`: one attention layer, as discovery reads it."""

    layer_id: int
    tp_k_head_num: int
    qk_head_dim: int
    v_head_dim: int
    sliding_window_size: int | None
    is_cross_attention: bool
    use_irope: bool
    attn_type: Any


class ServerArgsView(Protocol):
    """`ServerArgs` as resolved so far."""

    radix_cache_backend: str | None
    page_size: int
    chunked_prefill_size: int | None
    max_total_tokens: int | None
    tp_size: int
    dp_size: int
    enable_dp_attention: bool
    cuda_graph_config: Any
