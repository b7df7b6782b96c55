"""From a loaded model and SGLang's own sizing to a Jenga pool of the same bytes."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any

from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.allocation_sizing import (
    get_alloc_reserve_per_decode,
    get_req_to_token_extra_context_len,
)
from sglang.srt.mem_cache.kv_cache_configurator import _InitializedPools
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.runtime_context import (
    get_context,
    get_disagg,
    get_exec,
    get_memory,
    get_schedule,
    get_spec,
)

from jenga_sglang import flags, settings
from jenga_sglang.adapter.attention.table_bytes import (
    Drafting,
    captured_requests,
    token_table_excess_bytes,
)
from jenga_sglang.adapter.cache.allocator import JengaAllocator
from jenga_sglang.adapter.disagg import refuse_what_is_not_sent
from jenga_sglang.adapter.discovery import (
    DiscoveredGroup,
    apply_config_windows,
    attention_layers,
    discover_groups,
    latent_row,
)
from jenga_sglang.adapter.kv_pool import JengaKVPool
from jenga_sglang.adapter.observe.report import log_start
from jenga_sglang.adapter.start import draft_layers
from jenga_sglang.adapter.start.host_tier import make_manager
from jenga_sglang.adapter.start.refused_models import refuse_model, refuse_models
from jenga_sglang.adapter.start.stages import Stages, least_of_stages, tell_stages
from jenga_sglang.adapter.states import DiscoveredStates, JengaReqToTokenPool, discover_states
from jenga_sglang.adapter.whole_images import (
    WholeImages,
    knows_images_of,
    refuse_unseen_images,
    whole_images_of,
)
from jenga_sglang.core.admission import fleeting_share, longest_request
from jenga_sglang.core.cut.explain import human_bytes
from jenga_sglang.core.cut.geometry import Geometry, LayerGroupSpec, exact_lcm
from jenga_sglang.core.cut.planner import plan_geometry
from jenga_sglang.core.cut.stages import StageCut
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.recency import Order
from jenga_sglang.refusal import refuse

logger = logging.getLogger(__name__)

# Room for the request that SGLang warms up with; a server that cannot serve that ends at once.
SMALLEST_REQUEST_TOKENS = 64
MOST_OF_A_CHUNK = 1 / 2  # of the pool, for one step
SMALLEST_CHUNK_TOKENS = 256
SMALLEST_PLANNED_BYTES = 1 << 20  # a pool that can be planned for at all


def build_pools(configurator: Any, sizes: Any) -> Any:
    """Build the request rows, the pool and the allocator; what `_init_pools` returns.

    Raises ``SystemExit`` with one line for a model whose layers Jenga cannot serve yet, and for a
    pool that has no room.
    """
    refuse_models(configurator)
    refuse_what_is_not_sent(configurator)
    max_length = configurator.model_config.context_len
    layers = attention_layers(configurator.model)
    if flags.follows_config_windows():
        apply_config_windows(layers, configurator.model_config.hf_text_config)
    drafting = draft_layers.layers_after(layers)
    asked = settings.current()
    groups = discover_groups(
        [*layers, *drafting],
        store_dtype=configurator.kv_cache_dtype,
        max_length=max_length,
        chunk=getattr(configurator.model_config, "attention_chunk_size", None),
        latent=latent_row(configurator),
        kv_dtypes=asked.kv_dtype,
        keep=asked.keep,
    )
    states = _states(configurator)
    if not groups and states is None:
        raise refuse_model(configurator.model_config, "no layer that keeps anything")
    row_bytes = row_bytes_of(groups, drafting)
    draft_bytes = max(
        row_bytes * sizes.max_total_num_tokens, draft_bytes_set_aside(configurator, sizes)
    )
    # SGLang's own pool of a draft model has a padding page.
    draft_bytes += row_bytes * configurator.pool_page_size
    draft_ids = [layer.layer_id for layer in drafting]
    pool_bytes = stock_pool_bytes(configurator, sizes) + draft_bytes
    stages = tell_stages(groups, states, pool_bytes)
    books, held = cut_beside_tables(configurator, sizes, stages, draft_ids)
    if isinstance(held, StageCut):
        share = 100 * held.padding_share
        logger.info("This stage pads %.1f %% of its pool, for stages with more layers", share)
    manager = make_manager(
        books,
        device=configurator.device,
        max_requests=sizes.max_running_requests + arriving_requests(),
        max_length=max_length,
        prefix_cache=not get_memory().disable_radix_cache,
        policy=settings.current().policies,
        tail_tokens=tail_tokens(),
        order=Order(get_memory().radix_eviction_policy),
    )
    _shorten_chunks(manager)
    _refuse_pool_without_room(manager)
    pool = JengaKVPool(
        manager,
        stages.groups,
        stages.states,
        cut=held,
        dtype=configurator.kv_cache_dtype,
        device=configurator.device,
        enable_memory_saver=get_exec().features.enable_memory_saver,
        poison_freed=settings.current().poison_freed,
        draft_layers=draft_ids,
    )
    pool.whole_images = _whole_images(configurator, manager)
    token_bytes = stock_token_bytes(configurator) + row_bytes_of(groups, drafting)
    log_start(pool, stock_pages_bytes=token_bytes * configurator.page_size)
    rows = _request_rows(configurator, sizes, pool)
    pool.req_to_token = rows.req_to_token
    return _InitializedPools(
        req_to_token_pool=rows,
        token_to_kv_pool=pool,
        token_to_kv_pool_allocator=JengaAllocator(pool),
    )


def _request_rows(configurator: Any, sizes: Any, pool: JengaKVPool) -> ReqToTokenPool:
    """SGLang's table of request rows; with recurrent states, one that names them."""
    if pool.states is None:
        rows: ReqToTokenPool = configurator._build_req_to_token_pool(
            max_num_reqs=sizes.max_running_requests
        )
        return rows
    return JengaReqToTokenPool(
        views=pool.states,
        size=sizes.max_running_requests + arriving_requests(),
        max_context_len=configurator.model_config.context_len
        + get_req_to_token_extra_context_len(),
        device=configurator.device,
        enable_memory_saver=get_exec().features.enable_memory_saver,
    )


def _states(configurator: Any) -> DiscoveredStates | None:
    """The group of this stage's recurrent layers."""
    config = configurator.mambaish_config
    if config is None:
        return None
    own = configurator.layer_info
    return discover_states(config, range(own.start_layer, own.end_layer))


def tail_tokens() -> int:
    """The most tokens behind those that a request has for good that SGLang asks room for: all that
    a step may draft, and as many again, for in an overlapped server the step before is not over."""
    return get_alloc_reserve_per_decode() if get_spec().speculative_algorithm else 0


def row_bytes_of(groups: Sequence[DiscoveredGroup], layers: Sequence[RadixAttention]) -> int:
    """Bytes of one token in some of the ``layers`` of ``groups``."""
    ids = {layer.layer_id for layer in layers}
    return sum(len(ids & {*g.spec.layers}) * g.spec.row_bytes for g in groups)


def cut_beside_tables(
    configurator: Any, sizes: Any, stages: Stages, draft_ids: Collection[int] = ()
) -> tuple[Geometry, Geometry | StageCut]:
    """The books, and how the pool is cut under them: of the bytes of SGLang's own pools, but for
    what tables of captured steps take beyond SGLang's own, those of the layers ``draft_ids`` of a
    draft model among them. A user who gives a number of tokens gets their bytes.

    Raises ``SystemExit`` when they are too few to cut at all.
    """
    max_length = configurator.model_config.context_len

    def cut(less_bytes: int) -> tuple[Geometry, Geometry | StageCut]:
        planned = stages.least_bytes - less_bytes
        if get_disagg().disaggregation_mode != "null":
            planned = max(planned_bytes(stages.specs, max_length), SMALLEST_PLANNED_BYTES)
        layout = settings.current().layout
        books = choose_geometry(stages.specs, configurator.page_size, planned, max_length, layout)
        try:
            return stages.cut(books, less_bytes)
        except ValueError as error:
            raise _too_small(str(error)) from error

    books, held = cut(0)
    captured = captured_requests(sizes.max_running_requests)
    if not captured or get_schedule().max_total_tokens is not None:
        return books, held
    longest = max_length + get_req_to_token_extra_context_len()
    drafting = Drafting.of_server(draft_ids)
    excess_bytes = token_table_excess_bytes(books.groups, captured, longest, drafting)
    if not excess_bytes:
        return books, held
    logger.info(
        "Page tables of captured steps take %s more than SGLang's: the pool is smaller by that",
        human_bytes(excess_bytes),
    )
    return cut(excess_bytes)


def planned_bytes(specs: tuple[LayerGroupSpec, ...], max_length: int) -> int:
    """The pool for which a server that sends or receives pages plans its cut, whatever it has: two
    servers of one model must cut alike. Room for one request of the longest length, every layer
    keeping all of it."""
    rows = sum(spec.bytes_per_token for spec in specs) * max_length
    states = sum(len(spec.layers) * spec.layer_state_bytes for spec in specs)
    return rows + states


def arriving_requests() -> int:
    """Requests that may arrive from another server beside those that run."""
    if get_disagg().disaggregation_mode != "decode":
        return 0
    return get_disagg().disaggregation_decode_extra_slots or 0


def choose_geometry(
    specs: tuple[LayerGroupSpec, ...],
    page_size: int,
    pool_bytes: int,
    max_length: int,
    layout: str = "planned",
) -> Geometry:
    """How the pool is cut. Raises ``SystemExit`` when it is too small to cut at all."""
    try:
        if layout == "exact-lcm":
            return exact_lcm(specs, page_size, pool_bytes)
        plan = plan_geometry(
            specs,
            pool_bytes=pool_bytes,
            max_length=max_length,
            page_size=page_size,
        )
        logger.info("Jenga geometry\n%s", "\n".join(plan.explain()))
        return plan.geometry
    except ValueError as error:
        raise _too_small(str(error)) from error


def _shorten_chunks(manager: Manager) -> None:
    """Halve SGLang's chunk of a prompt until one leaves half of the pool to others: a step has
    pages for all that it computes in every group, also where only a window is needed after."""
    given = chunk = get_schedule().chunked_prefill_size
    if not given or given <= 0:  # prompts are not cut
        return
    while chunk > SMALLEST_CHUNK_TOKENS and fleeting_share(manager, chunk) > MOST_OF_A_CHUNK:
        chunk = chunk // 2 // manager.page_size * manager.page_size
    if chunk == given:
        return
    get_context().override("jenga", chunked_prefill_size=chunk)
    logger.warning(
        "--chunked-prefill-size %d is %d here: what such a chunk keeps for one step, in layers "
        "that need only some of it after, would take %.0f %% of the pool. More memory for the pool "
        "lets it be as asked for.",
        given,
        chunk,
        100 * fleeting_share(manager, given),
    )


def _refuse_pool_without_room(manager: Manager) -> None:
    least = min(SMALLEST_REQUEST_TOKENS, manager.max_length)
    longest = longest_request(manager, least)
    if longest < least:
        raise _too_small(
            f"the longest request that fits has {longest} tokens, and SGLang's own warm-up needs "
            f"room for {least}"
        )


def _too_small(why: str) -> SystemExit:
    tokens = get_schedule().max_total_tokens
    flag = "--mem-fraction-static" if tokens is None else f"--max-total-tokens {tokens}"
    return refuse(flag, f"{why}; give the pool more memory or choose a smaller --page-size")


def stock_token_bytes(configurator: Any) -> int:
    """Bytes of one token in SGLang's pool of all layers (`MHATokenToKVPool` or its MLA kin)."""
    config = configurator.model_config
    if latent := latent_row(configurator):
        row = latent.rank + latent.rope_dim
    else:
        heads = config.get_num_kv_heads(*_attention_parallel())
        row = heads * (config.head_dim + config.v_head_dim)
    row *= configurator.kv_cache_dtype.itemsize
    if configurator.mambaish_config is None:
        return int(configurator.layer_info.num_effective_layers * row)
    own = configurator.layer_info
    full = configurator.mambaish_config.full_attention_layer_ids
    return sum(own.start_layer <= layer < own.end_layer for layer in full) * int(row)


def draft_bytes_set_aside(configurator: Any, sizes: Any) -> int:
    """Bytes that SGLang sets aside for a draft model, as if its layers had the target's rows: what
    smaller rows leave of them its own pools never use. 0 where a user gives the tokens."""
    algorithm = configurator.spec_algorithm
    if not (algorithm.is_eagle() or algorithm.is_standalone()):
        return 0
    drafting = int(configurator.spec_aux_config.eagle_draft_num_layers or 0)
    if get_schedule().max_total_tokens is not None:
        return 0
    if configurator.is_hybrid_swa:
        return _set_aside_beside_windows(configurator, sizes, drafting)
    own, states = configurator.layer_info, configurator.mambaish_config
    layers = own.num_effective_layers
    if states is not None:
        full = states.full_attention_layer_ids
        layers = sum(own.start_layer <= layer < own.end_layer for layer in full)
    token_bytes = stock_token_bytes(configurator) * drafting // layers if layers else 0
    return int(token_bytes * sizes.max_total_num_tokens)


def _set_aside_beside_windows(configurator: Any, sizes: Any, drafting: int) -> int:
    """Of SGLang's pool of windows: a draft's layers with a window have as many tokens as it, but
    those that the target's configuration lists, which have all (`HybridSWAPoolConfigurator`)."""
    full_row, window_row = _row_bytes_of_kinds(configurator)
    text = getattr(configurator.model_config, "hf_text_config", None)
    local = getattr(text, "mtp_local_layer_ids", None)
    if local is None:
        windowed = min(configurator.spec_aux_config.eagle_draft_swa_num_layers or 0, drafting)
        window_bytes = window_row * windowed * sizes.swa_max_total_num_tokens
    else:
        windowed = sum(layer in local for layer in range(drafting))
        window_bytes = window_row * windowed * sizes.full_max_total_num_tokens
    full_bytes = full_row * (drafting - windowed) * sizes.full_max_total_num_tokens
    return int(full_bytes + window_bytes)


def most_working_states(configurator: Any, token_capacity: int) -> int:
    """Requests whose states fit into the bytes of SGLang's own pools for ``token_capacity``, on
    every stage of a pipeline."""
    own_bytes = _stock_hybrid_bytes(configurator, token_capacity)
    return least_of_stages(own_bytes // max(1, _bytes_of_states(configurator)))


def stock_pool_bytes(configurator: Any, sizes: Any) -> int:
    """Bytes that SGLang's own pools would take for these sizes, padding page included."""
    page = configurator.pool_page_size
    if not configurator.is_hybrid_swa:
        return _stock_hybrid_bytes(configurator, sizes.max_total_num_tokens)
    full, swa = _row_bytes_of_kinds(configurator)
    layers = configurator.layer_info
    return int(
        full * len(layers.full_attention_layer_ids) * (sizes.full_max_total_num_tokens + page)
        + swa * len(layers.swa_attention_layer_ids) * (sizes.swa_max_total_num_tokens + page)
    )


def _row_bytes_of_kinds(configurator: Any) -> tuple[int, int]:
    """Bytes of a token in one layer of full attention, and in one with a window."""
    config, (tp_size, dcp_size) = configurator.model_config, _attention_parallel()
    itemsize = configurator.kv_cache_dtype.itemsize
    full_heads = config.get_num_kv_heads(tp_size, dcp_size)
    swa_heads = config.get_swa_num_kv_heads(tp_size)
    full = full_heads * (config.head_dim + config.v_head_dim) * itemsize
    return full, swa_heads * (config.swa_head_dim + config.swa_v_head_dim) * itemsize


def _stock_hybrid_bytes(configurator: Any, tokens: int) -> int:
    """Bytes of SGLang's pools of rows, without windows, and of states; padding included."""
    rows = stock_token_bytes(configurator) * (tokens + configurator.pool_page_size)
    return rows + _stock_state_bytes(configurator)


def _stock_state_bytes(configurator: Any) -> int:
    """Bytes of SGLang's pool of recurrent states, padding slot included."""
    if configurator.mambaish_config is None:
        return 0
    slots = get_schedule().max_mamba_cache_size + 1 + _stock_draft_states(configurator)
    return int(slots) * _bytes_of_states(configurator)


def _bytes_of_states(configurator: Any) -> int:
    """Bytes of one request's states in this stage's recurrent layers."""
    params, own = configurator.mambaish_config.mamba2_cache_params, configurator.layer_info
    layers = sum(own.start_layer <= layer < own.end_layer for layer in params.layers)
    return int(params.mamba_cache_per_req) // len(params.layers) * layers


def _stock_draft_states(configurator: Any) -> int:
    """States that SGLang sets aside beside them: one behind every draft of every request that it
    would run at once, and of one that is padding."""
    if configurator.spec_algorithm.is_none():
        return 0
    schedule = get_schedule()
    requests = schedule.max_mamba_cache_size // configurator._calculate_mamba_ratio()
    requests = min(requests, schedule.max_running_requests)
    return int((requests + 1) * get_spec().speculative_num_draft_tokens)


def _attention_parallel() -> tuple[int, int]:
    from sglang.srt.runtime_context import get_parallel

    return get_parallel().attn_tp_size, get_parallel().attn_dcp_size


def _whole_images(configurator: Any, manager: Manager) -> WholeImages | None:
    """How the model sees images, where it is not as text."""
    config = configurator.model_config
    how = whole_images_of(configurator.model, config.hf_text_config)
    if how is not None and config.is_multimodal:
        refuse_unseen_images(how, manager.dependencies, config.context_len)
    if how is None and config.is_multimodal and _is_masked_otherwise(configurator.model):
        logger.warning(
            "The tokens of an image see those before them only under %s jenga; SGLang has a mask "
            "for this model's.",
            flags.FLAG,
        )
    return how


def _is_masked_otherwise(model: Any) -> bool:
    """Whether SGLang's class makes masks for images, and it is none that is known here."""
    return hasattr(model, "prepare_attn_masks") and not knows_images_of(model)
