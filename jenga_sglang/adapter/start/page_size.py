"""The page size of a server whose user named none.

Settled where SGLang knows the model's config and has not looked at the page size yet, from the
config alone as `jenga plan` does: the tokenizer, every scheduler and every router must see one
value, and they start before a model is built.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.arg_groups import model_hook

from flashinfer_ext.limits import KERNELS
from jenga_sglang import flags, settings
from jenga_sglang.adapter.sglang_views import ServerArgsView
from jenga_sglang.core.cut.planner import PAGE_SIZE, default_page_size
from jenga_sglang.plan.model import ReadOptions, model_from_config
from jenga_sglang.refusal import refuse


def settle_page_size(server_args: Any) -> None:
    """Declare a page size in ``server_args``, unless the user or the platform has named one."""
    if model_hook.resolving_view(server_args).page_size is None:
        config = model_hook.model_config_of(server_args)
        page_size = max(model_page_size(config, _ranks(server_args)), smallest_page())
        model_hook.declare_resolution(server_args, "jenga", page_size=page_size)


def refuse_odd_chunks(server_args: Any) -> None:
    """Raise ``SystemExit`` with one line for chunks of a prompt that end inside a page, which
    SGLang would refuse without naming either number."""
    view: ServerArgsView = model_hook.resolving_view(server_args)
    chunk, page = view.chunked_prefill_size, view.page_size
    if not chunk or chunk < 0 or chunk % page == 0:
        return
    least = chunk // page * page
    choices = f"{least} or {least + page}" if least else str(page)
    raise refuse(
        f"--chunked-prefill-size {chunk}",
        f"is no whole number of pages, which have {page} tokens here; choose {choices}, or another "
        "--page-size",
    )


def refuse_less_than_a_page(server_args: Any) -> None:
    """Raise ``SystemExit`` with one line for a pool of no page, where SGLang would ask for more
    ``--mem-fraction-static``."""
    view: ServerArgsView = model_hook.resolving_view(server_args)
    tokens, page = view.max_total_tokens, view.page_size
    if tokens is not None and tokens < page:
        raise refuse(f"--max-total-tokens {tokens}", f"is less than a page, which has {page} here")


def _ranks(server_args: Any) -> int:
    """Ranks that share the heads of a layer."""
    view: ServerArgsView = model_hook.resolving_view(server_args)
    return max(1, view.tp_size // (view.dp_size if view.enable_dp_attention else 1))


def model_page_size(model_config: Any, ranks: int = 1) -> int:
    """Tokens a page for the groups that SGLang's ``model_config`` describes, whose heads ``ranks``
    share; the usual ones where they cannot be read off it. A wrong guess costs per cents, no
    answers."""
    options = ReadOptions(
        tp=ranks,
        kv_dtype="bfloat16",  # not asked for: some names of dtypes cannot be read
        window="config" if flags.follows_config_windows() else "model",
        max_length=model_config.context_len,
        kv_dtypes=settings.current().kv_dtype,
        keep=settings.current().keep,
    )
    try:
        model = model_from_config(model_config.hf_config.to_dict(), "", options)
        return default_page_size(model.specs)
    except (ValueError, SystemExit):
        # Whether a model has the layers that the user asks for is said of the model, not of this.
        return PAGE_SIZE


def smallest_page() -> int:
    """Tokens of the smallest page that the decode kernel which was asked for can read."""
    kernel = KERNELS.get(settings.current().decode_kernel)
    return min(kernel.page_sizes, default=1) if kernel else 1
