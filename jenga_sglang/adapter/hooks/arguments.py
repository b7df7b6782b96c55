"""While SGLang settles a server's arguments by its model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.arg_groups import model_hook

from jenga_sglang import flags
from jenga_sglang.adapter.sglang_views import ServerArgsView
from jenga_sglang.adapter.start.deterministic import refuse_deterministic
from jenga_sglang.adapter.start.dp_attention import refuse_dp_attention
from jenga_sglang.adapter.start.page_size import (
    refuse_less_than_a_page,
    refuse_odd_chunks,
    settle_page_size,
)
from jenga_sglang.adapter.start.refused_models import refuse_configs
from jenga_sglang.hook import AROUND, hook

# SGLang lists, per model class, which of its own backends have windows or sinks. All three of
# ours do; they pass as the one that is on every such list and on no list of exceptions.
LISTED_BACKEND = "trtllm_mha"


def arguments_ask_for_jenga(server_args: Any, *rest: Any, **named: Any) -> bool:
    """As `server_is_jenga`, before the arguments that are being settled are the process's."""
    chosen = model_hook.resolved_view(server_args).radix_cache_backend
    return bool(chosen == flags.RADIX_CACHE_BACKEND)


class ListedView:
    """Server arguments as they are, but for the name of the attention backend."""

    attention_backend = LISTED_BACKEND
    prefill_attention_backend = None
    decode_attention_backend = None

    def __init__(self, view: ServerArgsView) -> None:
        self._view = view

    def __getattr__(self, name: str) -> Any:
        return getattr(self._view, name)


@hook(
    "sglang.srt.arg_groups.model_hook.handle_model_specific_adjustments",
    ("server_args",),
    AROUND,
    when=arguments_ask_for_jenga,
    until="SGLang asks the backend what it can do, and lets a plug-in give defaults by model",
)
def _model_adjustments(original: Callable[..., Any], server_args: Any) -> Any:
    """Per model class SGLang lists which of its own backends have windows or sinks; ours, which
    have both, pass under a name that is listed, while SGLang compares its lists and nowhere else.
    Settles the page size by the model's layer groups, before SGLang looks for one."""
    refuse_configs(model_hook.model_config_of(server_args))
    refuse_dp_attention(server_args)
    refuse_deterministic(server_args)
    settle_page_size(server_args)
    stock = model_hook.resolved_view
    model_hook.resolved_view = lambda args: ListedView(stock(args))
    try:
        result = original(server_args)
    finally:
        model_hook.resolved_view = stock
    _forbid_graphs_of_states(server_args)
    _forbid_chunks_of_encoders(server_args)
    refuse_odd_chunks(server_args)
    refuse_less_than_a_page(server_args)
    return result


def _forbid_graphs_of_states(server_args: Any) -> None:
    """Recurrent layers cut a prompt at the snapshots that are due, each at other places, which no
    captured graph can do. A decode has one token a request, and nothing to cut; drafts are
    verified on copies that are made anew."""
    from sglang.srt.configs.hybrid_arch import mambaish_config
    from sglang.srt.model_executor.cuda_graph_config import Backend, Phase, with_phase

    if mambaish_config(model_hook.model_config_of(server_args)) is None:
        return
    view = model_hook.resolving_view(server_args)
    config = view.cuda_graph_config
    for phase in Phase.ALL if view.speculative_algorithm else (Phase.PREFILL,):
        config = with_phase(config, phase, backend=Backend.DISABLED)
    model_hook.declare_resolution(server_args, "jenga", cuda_graph_config=config)


def _forbid_chunks_of_encoders(server_args: Any) -> None:
    """What an encoder makes is computed as a whole. SGLang says so of some of these models; with
    the others a chunk that ends inside it ends the server."""
    config = model_hook.model_config_of(server_args)
    if getattr(config, "is_encoder_decoder", False):
        model_hook.declare_resolution(server_args, "jenga", chunked_prefill_size=-1)


@hook(
    "sglang.srt.arg_groups.model_hook.handle_mamba_radix_cache",
    ("server_args", "hf_config"),
    AROUND,
    when=arguments_ask_for_jenga,
    until="the registered prefix cache says what it wants",
)
def _handle_mamba_radix_cache(
    original: Callable[..., None], server_args: Any, hf_config: Any
) -> None:
    """SGLang's own prefix cache of recurrent states wants pages of one token or no overlap; ours
    has neither limit and keeps its snapshots itself."""
