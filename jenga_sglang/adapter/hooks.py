"""What changes inside a Jenga server, function by function of SGLang.

`patches/README.md` is the ledger: why each is needed and when it can go.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import msgspec
from sglang.srt.arg_groups.choices import ATTENTION_BACKEND_CHOICES, add_attention_backend_choices
from sglang.srt.layers.attention.attention_registry import (
    ATTENTION_BACKENDS,
    register_attention_backend,
)
from sglang.srt.mem_cache.registry import (
    TreeCacheBuildContext,
    get_radix_cache_factory,
    register_radix_cache_backend,
)
from sglang.srt.plugins.hook_registry import HookType

from jenga_sglang import flags, questions
from jenga_sglang.memory_backend import registry
from jenga_sglang.plugin import Hook


def register_backends() -> None:
    """Put the prefix cache and the attention backend on SGLang's public registries."""
    if get_radix_cache_factory(flags.RADIX_CACHE_BACKEND) is not None:
        return
    register_radix_cache_backend(flags.RADIX_CACHE_BACKEND, _build_prefix_cache)
    if flags.TORCH_BACKEND not in ATTENTION_BACKEND_CHOICES:
        add_attention_backend_choices([flags.TORCH_BACKEND])
    register_attention_backend(flags.TORCH_BACKEND)(_build_torch_backend)
    for name, build in (
        (flags.TRITON_BACKEND, _build_triton_backend),
        (flags.FLASHINFER_BACKEND, _build_flashinfer_backend),
    ):
        register_attention_backend(name)(_on_jenga_pages(build, ATTENTION_BACKENDS[name]))


def runtime_hooks() -> list[Hook]:
    """Every hook beyond the command line that this SGLang needs."""
    return [*([] if registry() else pool_hooks()), *serving_hooks()]


def pool_hooks() -> list[Hook]:
    """What a registry of memory backends makes unnecessary."""
    configurator = "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator"
    return [
        Hook(
            f"{configurator}._init_pools",
            ("self", "sizes", "req_to_token_pool", "token_to_kv_pool_allocator"),
            _init_pools,
            HookType.AROUND,
        ),
        Hook(
            f"{configurator}.configure",
            ("self", "pre_model_load_memory"),
            _configure,
            HookType.AFTER,
        ),
        Hook(
            "sglang.srt.model_executor.model_runner.ModelRunner.init_kv_cache_configurator",
            ("self", "draft_parallel_layout"),
            _forget_hybrid_swa,
            HookType.AFTER,
        ),
    ]


def serving_hooks() -> list[Hook]:
    """What every SGLang needs."""
    batch = "sglang.srt.managers.schedule_batch"
    components = "sglang.srt.managers.scheduler_components"
    return [
        Hook(
            "sglang.srt.managers.scheduler.Scheduler.init_req_max_new_tokens",
            ("self", "req"),
            _init_req_max_new_tokens,
            HookType.AROUND,
        ),
        Hook(
            "sglang.srt.managers.scheduler.Scheduler._get_new_batch_prefill_raw",
            ("self", "prefill_delayer_single_pass", "running_batch"),
            _ask_again,
            HookType.AROUND,
        ),
        Hook(
            "sglang.srt.arg_groups.model_hook.handle_model_specific_adjustments",
            ("server_args",),
            _model_adjustments,
            HookType.AROUND,
        ),
        Hook(f"{batch}.alloc_for_extend", ("batch",), _alloc_for_extend, HookType.AROUND),
        Hook(
            f"{batch}.alloc_for_decode",
            ("batch", "token_per_req"),
            _alloc_for_decode,
            HookType.AROUND,
        ),
        Hook(
            "sglang.srt.models.utils.enable_fused_set_kv_buffer",
            ("forward_batch",),
            _enable_fused_set_kv_buffer,
            HookType.AROUND,
        ),
        Hook(
            f"{components}.pool_stats_observer.SchedulerPoolStatsObserver._get_token_info",
            ("self",),
            _token_info,
            HookType.AFTER,
        ),
        Hook(
            f"{components}.internal_state.SchedulerInternalStateController.get_internal_state",
            ("self", "recv_req"),
            _answer,
            HookType.AROUND,
        ),
        Hook(
            f"{components}.internal_state.SchedulerInternalStateController._add_memory_usage",
            ("self", "state"),
            _add_memory_usage,
            HookType.AFTER,
        ),
        Hook(
            f"{components}.weight_updater.SchedulerWeightUpdaterManager.resume_memory_occupation",
            ("self", "recv_req"),
            _resume_memory_occupation,
            HookType.AFTER,
        ),
        *_state_hooks(),
        *_encoder_hooks(),
        *_embedding_hooks(),
    ]


def http_hooks() -> list[Hook]:
    """What the process that answers HTTP needs beside them."""
    return [
        Hook(
            "sglang.srt.entrypoints.http_server._setup_and_run_http_server",
            (
                "server_args",
                "tokenizer_manager",
                "template_manager",
                "port_args",
                "scheduler_infos",
                "subprocess_watchdog",
                "execute_warmup_func",
                "launch_callback",
            ),
            _serve_page,
            HookType.AROUND,
        ),
        Hook(
            "sglang.srt.utils.auth.add_api_key_middleware",
            ("app", "api_key", "admin_api_key"),
            _offer_key_form,
            HookType.AFTER,
        ),
    ]


def _state_hooks() -> list[Hook]:
    """For models with recurrent layers."""
    return [
        Hook(
            "sglang.srt.arg_groups.model_hook.handle_mamba_radix_cache",
            ("server_args", "hf_config"),
            _handle_mamba_radix_cache,
            HookType.AROUND,
        ),
        Hook(
            "sglang.srt.mem_cache.kv_cache_builder.uses_ssm_state",
            ("model_config",),
            _uses_ssm_state,
            HookType.AROUND,
        ),
        Hook(
            "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator.resolve_max_num_reqs",
            ("self", "token_capacity"),
            _resolve_max_num_reqs,
            HookType.AROUND,
        ),
        Hook(
            "sglang.srt.model_executor.model_runner_components.attention_backend_setup"
            ".attn_backend_wrapper",
            ("runner", "full_attn_backend"),
            _attn_backend_wrapper,
            HookType.AROUND,
        ),
        Hook(
            "sglang.srt.model_executor.model_runner_components.attention_backend_setup"
            ".build_attention_backends",
            ("model_runner",),
            _build_attention_backends,
            HookType.AFTER,
        ),
        *_convolution_hooks(),
        Hook(
            "sglang.srt.models.lfm2_moe.can_dispatch_fused_lfm_short_conv",
            ("b", "c", "x", "weight", "bias", "state"),
            _can_dispatch_fused_lfm_short_conv,
            HookType.AROUND,
        ),
    ]


def _encoder_hooks() -> list[Hook]:
    """For models with cross-attention."""
    return [
        Hook(
            "sglang.srt.managers.scheduler.duplicate_pad_mm_input_ids",
            ("input_ids", "mm_inputs", "pad_input_ids_func"),
            _duplicate_pad_mm_input_ids,
            HookType.AROUND,
        ),
        Hook(
            "sglang.srt.managers.schedule_batch.ScheduleBatch.prepare_encoder_info_extend",
            ("self", "input_ids", "seq_lens"),
            _prepare_encoder_info_extend,
            HookType.AFTER,
        ),
        Hook(
            "sglang.srt.models.mllama.MllamaForConditionalGeneration"
            ".get_full_text_row_masked_out_mask",
            ("self", "forward_batch"),
            _get_full_text_row_masked_out_mask,
            HookType.AROUND,
        ),
        Hook(
            "sglang.srt.model_executor.runner.decode_cuda_graph_runner.build_replay_fb_view",
            (
                *("forward_batch", "buffers", "bs", "raw_bs", "num_tokens"),
                *("global_num_tokens_cpu", "seq_len_fill_value", "capture_forward_mode"),
                "is_encoder_decoder",
            ),
            _build_replay_fb_view,
            HookType.AFTER,
        ),
    ]


def _embedding_hooks() -> list[Hook]:
    """For models that put what a vision encoder makes into the text."""
    return [
        Hook(
            "sglang.srt.mem_cache.kv_cache_builder.build_kv_cache",
            (
                *("server_args", "model_config", "tp_worker", "page_size", "spec_algorithm"),
                *("enable_metrics", "enable_kv_cache_events", "enable_hierarchical_cache"),
                *("hicache_draft_plan", "dynamo_kv_event_format", "kv_event_lora_names"),
                "draft_swa_window",
            ),
            _build_kv_cache,
            HookType.AFTER,
        ),
        Hook(
            "sglang.srt.managers.mm_schedule._get_chunked_prefill_embedding",
            (
                *("data_embedding_func", "embedding_items", "items_size", "prefix_length"),
                *("extend_length", "items_offset_list", "input_ids"),
            ),
            _get_chunked_prefill_embedding,
            HookType.AROUND,
        ),
    ]


def _convolution_hooks() -> list[Hook]:
    """For models that call the convolution's kernels themselves, wherever they import them."""
    kernels = {
        "fn": (
            *("x", "weight", "bias", "query_start_loc", "cache_indices"),
            *("has_initial_state", "conv_states", "activation", "pad_slot_id", "kwargs"),
        ),
        "update": (
            *("x", "conv_state", "weight", "bias", "activation", "cache_seqlens"),
            *("conv_state_indices", "pad_slot_id"),
        ),
    }
    return [
        Hook(
            f"sglang.srt.layers.attention.mamba.causal_conv1d.causal_conv1d_{name}",
            parameters,
            _short_convolution,
            HookType.AROUND,
        )
        for name, parameters in kernels.items()
    ]


def is_jenga() -> bool:
    """Whether the server of this process chose Jenga."""
    from sglang.srt.runtime_context import get_memory

    return bool(get_memory().radix_cache_backend == flags.RADIX_CACHE_BACKEND)


def _build_prefix_cache(context: TreeCacheBuildContext) -> Any:
    from jenga_sglang.adapter.kv_pool import JengaKVPool
    from jenga_sglang.adapter.prefix_cache import JengaPrefixCache

    pool = context.params.token_to_kv_pool_allocator.get_kvcache()
    if not isinstance(pool, JengaKVPool):
        raise flags.refuse(
            "--radix-cache-backend jenga", f"runs on Jenga pools; start with {flags.FLAG} jenga"
        )
    pool.manager.prefix_cache = not context.disable_radix_cache
    return JengaPrefixCache(context.params, pool.manager)


def _build_torch_backend(runner: Any) -> Any:
    from jenga_sglang.adapter.torch_backend import JengaTorchBackend

    return JengaTorchBackend(runner)


def _build_triton_backend(runner: Any) -> Any:
    from jenga_sglang.adapter.triton_backend import JengaTritonBackend

    return JengaTritonBackend(runner)


def _build_flashinfer_backend(runner: Any) -> Any:
    from jenga_sglang.adapter.flashinfer_backend import JengaFlashInferBackend

    return JengaFlashInferBackend(runner)


def _on_jenga_pages(build: Callable[..., Any], stock: Callable[..., Any]) -> Callable[..., Any]:
    """A name of SGLang's: ours on our pools, SGLang's on its own."""
    from jenga_sglang.adapter.kv_pool import JengaKVPool

    def choose(runner: Any) -> Any:
        is_ours = isinstance(runner.token_to_kv_pool, JengaKVPool)
        return build(runner) if is_ours else stock(runner)

    return choose


# SGLang lists, per model class, which of its own backends have windows or sinks. All three of
# ours do; they pass as the one that is on every such list and on no list of exceptions.
LISTED_BACKEND = "trtllm_mha"


def _model_adjustments(original: Callable[..., Any], server_args: Any) -> Any:
    """While SGLang compares its lists, and nowhere else, ours have a name that is on them."""
    from sglang.srt.arg_groups import model_hook

    from jenga_sglang.adapter.page_size import refuse_odd_chunks, settle_page_size

    stock = model_hook.resolved_view
    if stock(server_args).radix_cache_backend != flags.RADIX_CACHE_BACKEND:
        return original(server_args)
    settle_page_size(server_args)
    model_hook.resolved_view = lambda args: ListedView(stock(args))
    try:
        result = original(server_args)
    finally:
        model_hook.resolved_view = stock
    _forbid_graphs_of_states(server_args)
    _forbid_chunks_of_encoders(server_args)
    refuse_odd_chunks(server_args)
    return result


def _forbid_graphs_of_states(server_args: Any) -> None:
    """Recurrent layers read their page tables on the host for every batch, which no captured graph
    can do."""
    from sglang.srt.arg_groups import model_hook
    from sglang.srt.configs.hybrid_arch import mambaish_config
    from sglang.srt.model_executor.cuda_graph_config import Backend, Phase, with_phase

    if mambaish_config(model_hook.model_config_of(server_args)) is None:
        return
    config = model_hook.resolving_view(server_args).cuda_graph_config
    for phase in Phase.ALL:
        config = with_phase(config, phase, backend=Backend.DISABLED)
    model_hook.declare_resolution(server_args, "jenga", cuda_graph_config=config)


def _forbid_chunks_of_encoders(server_args: Any) -> None:
    """What an encoder makes is computed as a whole. SGLang says so of some of these models; with
    the others a chunk that ends inside it ends the server."""
    from sglang.srt.arg_groups import model_hook

    config = model_hook.model_config_of(server_args)
    if getattr(config, "is_encoder_decoder", False):
        model_hook.declare_resolution(server_args, "jenga", chunked_prefill_size=-1)


class ListedView:
    """Server arguments as they are, but for the name of the attention backend."""

    attention_backend = LISTED_BACKEND
    prefill_attention_backend = None
    decode_attention_backend = None

    def __init__(self, view: Any) -> None:
        self._view = view

    def __getattr__(self, name: str) -> Any:
        return getattr(self._view, name)


def _init_pools(
    original: Callable[..., Any],
    configurator: Any,
    *,
    sizes: Any,
    req_to_token_pool: Any,
    token_to_kv_pool_allocator: Any,
) -> Any:
    if not is_jenga():
        return original(
            configurator,
            sizes=sizes,
            req_to_token_pool=req_to_token_pool,
            token_to_kv_pool_allocator=token_to_kv_pool_allocator,
        )
    from jenga_sglang.adapter.build import build_pools

    return build_pools(configurator, sizes)


def _configure(result: Any, configurator: Any, **kwargs: Any) -> Any:
    """The scheduler counts in virtual tokens: as many as the pool can name."""
    from jenga_sglang.adapter.kv_pool import JengaKVPool

    if not isinstance(result.token_to_kv_pool, JengaKVPool):
        return None
    return msgspec.structs.replace(
        result,
        max_total_num_tokens=result.token_to_kv_pool.size,
        full_max_total_num_tokens=None,
        swa_max_total_num_tokens=None,
    )


def _forget_hybrid_swa(result: None, runner: Any, *args: Any, **kwargs: Any) -> None:
    """The configurator has taken note of the stock window pool, whose bytes ours must equal;
    nobody after it may look for a second pool."""
    if is_jenga():
        runner.is_hybrid_swa = False


def _init_req_max_new_tokens(original: Callable[..., None], scheduler: Any, req: Any) -> None:
    """Refuse, with a reason, a prompt that the pool can never serve."""
    from jenga_sglang.adapter.allocator import JengaAllocator

    allocator = scheduler.token_to_kv_pool_allocator
    if not isinstance(allocator, JengaAllocator):
        return original(scheduler, req)
    from jenga_sglang.adapter.encoder import page_tokens

    with allocator.asking_with(page_tokens(req)):
        why = allocator.why_refused(len(req.origin_input_ids), scheduler.chunked_prefill_size)
        if why:
            req.set_finish_with_abort(why)
        original(scheduler, req)


def _ask_again(original: Callable[..., Any], scheduler: Any, **kwargs: Any) -> Any:
    """A batch that was full may have room again before a request leaves, for windows slide. The
    prefix cache sees who waits and who goes on, and the watchdog looks at what came of it."""
    from jenga_sglang.adapter.allocator import JengaAllocator

    allocator = scheduler.token_to_kv_pool_allocator
    if not isinstance(allocator, JengaAllocator):
        return original(scheduler, **kwargs)
    waiting = scheduler.waiting_queue
    if allocator.ask_again.is_due(waiting[0].rid if waiting else None, allocator.refusal):
        kwargs["running_batch"].batch_is_full = False
    scheduler.tree_cache.scheduler = scheduler
    scheduler.tree_cache.make_way_for_chunk(scheduler.chunked_req, scheduler.chunked_prefill_size)
    plan = original(scheduler, **kwargs)
    allocator.watchdog.look(scheduler)
    return plan


def _alloc_for_extend(original: Callable[..., Any], batch: Any) -> Any:
    from jenga_sglang.adapter import batch_alloc
    from jenga_sglang.adapter.prefix_cache import JengaPrefixCache

    if isinstance(batch.tree_cache, JengaPrefixCache):
        return batch_alloc.alloc_for_extend(batch)
    return original(batch)


def _alloc_for_decode(original: Callable[..., Any], batch: Any, token_per_req: int) -> Any:
    from jenga_sglang.adapter import batch_alloc
    from jenga_sglang.adapter.prefix_cache import JengaPrefixCache

    if isinstance(batch.tree_cache, JengaPrefixCache):
        return batch_alloc.alloc_for_decode(batch, token_per_req)
    return original(batch, token_per_req)


def _enable_fused_set_kv_buffer(original: Callable[..., bool], forward_batch: Any) -> bool:
    """Kernels that rotate and store in one go would take virtual token ids for places."""
    return not is_jenga() and original(forward_batch)


def _token_info(stats: Any, observer: Any) -> Any:
    """Token usage is the share of the pool's bytes in use: with a pool that groups share, no
    count of tokens is full when memory is. Published with it: `sglang:jenga_*`."""
    from jenga_sglang.adapter.metrics import with_metrics
    from jenga_sglang.adapter.prefix_cache import JengaPrefixCache

    cache = observer.tree_cache
    return with_metrics(stats, cache) if isinstance(cache, JengaPrefixCache) else stats


def _answer(original: Callable[..., Any], controller: Any, recv_req: Any) -> Any:
    """Questions about the pool travel as requests for the internal state, marked by their id."""
    from jenga_sglang.adapter import observe

    if questions.is_question(recv_req.rid):
        return observe.answer(controller.scheduler, recv_req.rid)
    return original(controller, recv_req)


def _serve_page(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Put `/jenga` on SGLang's HTTP server before it starts."""
    if is_jenga():
        from sglang.srt.entrypoints import http_server

        from jenga_sglang.web.routes import add_routes

        add_routes(http_server.app, http_server.get_global_state)
        # Where there are several such processes, they import an application by its path.
        os.environ.setdefault("SGLANG_HTTP_SERVER_APP_PATH", "jenga_sglang.web.worker:app")
    return original(*args, **kwargs)


def _offer_key_form(result: None, app: Any, **keys: Any) -> None:
    """Who opens `/jenga` without the key is still refused, with the page's own form for it."""
    if is_jenga():
        from jenga_sglang.web.key_form import KeyForm

        app.add_middleware(KeyForm)


def _add_memory_usage(result: None, controller: Any, state: dict[str, Any]) -> None:
    from jenga_sglang.adapter.kv_pool import JengaKVPool
    from jenga_sglang.adapter.report import describe

    allocator = controller.scheduler.token_to_kv_pool_allocator
    pool = allocator.get_kvcache()
    if isinstance(pool, JengaKVPool):
        state["jenga"] = describe(pool) | {"recounted": allocator.is_recounted}


def _resume_memory_occupation(result: Any, updater: Any, recv_req: Any) -> None:
    """Memory that was given back to the device and taken again holds anything; fresh states begin
    as copies of the null page, and kernels read it where a page is missing."""
    from sglang.srt.constants import GPU_MEMORY_TYPE_KV_CACHE

    from jenga_sglang.adapter.kv_pool import JengaKVPool

    pool = updater.scheduler.token_to_kv_pool_allocator.get_kvcache()
    if isinstance(pool, JengaKVPool) and GPU_MEMORY_TYPE_KV_CACHE not in updater.offload_tags:
        pool.zero_null_pages()


def _handle_mamba_radix_cache(
    original: Callable[..., None], server_args: Any, hf_config: Any
) -> None:
    """SGLang's own prefix cache of states wants pages of one token or no overlap; ours has
    neither limit and keeps its checkpoints itself."""
    if server_args.radix_cache_backend != flags.RADIX_CACHE_BACKEND:
        original(server_args, hf_config)


def _uses_ssm_state(original: Callable[..., bool], model_config: Any) -> bool:
    """The scheduler must not look for a second pool: states are in ours."""
    return not is_jenga() and original(model_config)


def _resolve_max_num_reqs(
    original: Callable[..., int], configurator: Any, token_capacity: int
) -> int:
    """SGLang sets aside up to five states for every request that may run. Here a request takes one,
    and checkpoints what is left."""
    config = configurator.mambaish_config
    if not is_jenga() or config is None:
        return original(configurator, token_capacity)
    from jenga_sglang.adapter.build import most_working_states

    configurator.mambaish_config = None
    try:
        most = original(configurator, token_capacity)
    finally:
        configurator.mambaish_config = config
    return min(most, most_working_states(configurator, token_capacity))


def _attn_backend_wrapper(original: Callable[..., Any], runner: Any, full_attn_backend: Any) -> Any:
    """Recurrent layers run in rounds, on states in our pool."""
    from jenga_sglang.adapter.states import JengaReqToTokenPool

    if not isinstance(runner.req_to_token_pool, JengaReqToTokenPool):
        return original(runner, full_attn_backend)
    from jenga_sglang.adapter.state_backend import refuse_graphs, replace_linear_backend

    refuse_graphs()
    # SGLang's hybrid backend reads both off the attention backend.
    full_attn_backend.token_to_kv_pool = runner.token_to_kv_pool
    full_attn_backend.req_to_token_pool = runner.req_to_token_pool
    backend = original(runner, full_attn_backend)
    replace_linear_backend(backend, runner)
    return backend


def _build_attention_backends(backends: Any, *, model_runner: Any) -> Any:
    """A model without attention layers gets its backend past the function above."""
    from sglang.srt.layers.attention.hybrid_linear_attn_backend import Mamba2AttnBackend

    from jenga_sglang.adapter.states import JengaReqToTokenPool

    is_ours = isinstance(model_runner.req_to_token_pool, JengaReqToTokenPool)
    if not is_ours or type(backends.attn_backend) is not Mamba2AttnBackend:
        return None
    from jenga_sglang.adapter.state_backend import JengaMamba2Backend, refuse_graphs

    refuse_graphs()
    return msgspec.structs.replace(backends, attn_backend=JengaMamba2Backend(model_runner))


def _can_dispatch_fused_lfm_short_conv(
    original: Callable[..., bool], *args: Any, **kwargs: Any
) -> bool:
    """Gates and convolution in one kernel know no rounds."""
    return not is_jenga() and original(*args, **kwargs)


def _short_convolution(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    from jenga_sglang.adapter.state_backend import convolution_backend

    backend = convolution_backend()
    return (
        backend.run_convolution(original, *args, **kwargs) if backend else original(*args, **kwargs)
    )


def _duplicate_pad_mm_input_ids(
    original: Callable[..., Any], input_ids: Any, mm_inputs: Any, pad_input_ids_func: Any
) -> Any:
    """What an encoder makes fills whole pages."""
    padded = original(input_ids, mm_inputs, pad_input_ids_func)
    if not is_jenga():
        return padded
    from sglang.srt.runtime_context import get_schedule

    from jenga_sglang.adapter.encoder import fill_pages

    return fill_pages(padded, mm_inputs, get_schedule().page_size)


def _prepare_encoder_info_extend(result: None, batch: Any, *args: Any, **kwargs: Any) -> None:
    if is_jenga():
        from jenga_sglang.adapter.encoder import tell_what_was_made

        tell_what_was_made(batch)


def _build_replay_fb_view(view: Any, *, forward_batch: Any, **kwargs: Any) -> None:
    """What an encoder made is known on the host; asking the device would wait for the last step."""
    view.encoder_lens_cpu = forward_batch.encoder_lens_cpu


def _get_full_text_row_masked_out_mask(
    original: Callable[..., Any], model: Any, forward_batch: Any
) -> Any:
    """SGLang's mask of a batch of prompts counts rows of tokens that are cached, and of images: a
    prompt without an image gets another's rows, and its own go through layers that are not its."""
    if not is_jenga() or forward_batch.forward_mode.is_decode():
        return original(model, forward_batch)
    from jenga_sglang.adapter.encoder import text_row_mask

    query_lens = forward_batch.extend_seq_lens.tolist()
    mask = text_row_mask(query_lens, forward_batch.encoder_lens_cpu)
    return mask.to(forward_batch.seq_lens.device)


def _build_kv_cache(
    result: Any, *, tp_worker: Any, enable_kv_cache_events: bool, **kwargs: Any
) -> None:
    """Embeddings are cached in the pool. Not where events tell of it: an embedding has no tokens
    that a router could look for."""
    from sglang.srt.managers import mm_schedule

    from jenga_sglang.adapter.embeddings import PoolEmbeddings
    from jenga_sglang.adapter.kv_pool import JengaKVPool

    pool = tp_worker.model_runner.token_to_kv_pool
    if isinstance(pool, JengaKVPool) and not enable_kv_cache_events:
        stock = mm_schedule.embedding_cache
        mm_schedule.embedding_cache = PoolEmbeddings(pool, stock.max_size)


def _get_chunked_prefill_embedding(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Embeddings that a step has read to their ends are not needed any more."""
    from sglang.srt.managers import mm_schedule

    from jenga_sglang.adapter.embeddings import PoolEmbeddings

    result = original(*args, **kwargs)
    cache = mm_schedule.embedding_cache
    if isinstance(cache, PoolEmbeddings):
        names = inspect.signature(mm_schedule._get_chunked_prefill_embedding).parameters
        given = dict(zip(names, args, strict=False)) | kwargs
        lengths = zip(given["prefix_length"], given["extend_length"], strict=False)
        stops = [prefix + extend for prefix, extend in lengths]
        cache.look_at_step(given["embedding_items"], given["items_size"], stops)
    return result
