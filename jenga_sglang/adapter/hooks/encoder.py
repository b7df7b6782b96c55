"""For models with cross-attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.runtime_context import get_schedule

from jenga_sglang.adapter.encoder import fill_pages, tell_what_was_made, text_row_mask
from jenga_sglang.hook import AFTER, AROUND, hook

ROUNDED_UP = "SGLang lets the pool say what a request's encoder part is rounded up to"


@hook(
    "sglang.srt.managers.scheduler.duplicate_pad_mm_input_ids",
    ("input_ids", "mm_inputs", "pad_input_ids_func"),
    AROUND,
    until=ROUNDED_UP,
)
def _duplicate_pad_mm_input_ids(
    original: Callable[..., Any], input_ids: Any, mm_inputs: Any, pad_input_ids_func: Any
) -> Any:
    """What an encoder makes of images fills whole pages in front of the text, so that no page has
    both."""
    padded = original(input_ids, mm_inputs, pad_input_ids_func)
    return fill_pages(padded, mm_inputs, get_schedule().page_size)


@hook(
    "sglang.srt.managers.schedule_batch.ScheduleBatch.prepare_encoder_info_extend",
    ("self", "input_ids", "seq_lens"),
    AFTER,
    until=ROUNDED_UP,
)
def _prepare_encoder_info_extend(result: None, batch: Any, *args: Any, **kwargs: Any) -> None:
    """Gives layers the length that was really made, in place of whole pages."""
    tell_what_was_made(batch)


@hook(
    "sglang.srt.models.mllama.MllamaForConditionalGeneration.get_full_text_row_masked_out_mask",
    ("self", "forward_batch"),
    AROUND,
    until="it is corrected",
)
def _get_full_text_row_masked_out_mask(
    original: Callable[..., Any], model: Any, forward_batch: Any
) -> Any:
    """In a batch of prompts with and without images it masks the wrong rows: it counts cached
    tokens and images as rows, so answers depend on who else is in the batch."""
    if forward_batch.forward_mode.is_decode():
        return original(model, forward_batch)
    query_lens = forward_batch.extend_seq_lens.tolist()
    mask = text_row_mask(query_lens, forward_batch.encoder_lens_cpu)
    return mask.to(forward_batch.seq_lens.device)


@hook(
    "sglang.srt.model_executor.runner.decode_cuda_graph_runner.build_replay_fb_view",
    (
        *("forward_batch", "buffers", "bs", "raw_bs", "num_tokens"),
        *("global_num_tokens_cpu", "seq_len_fill_value", "capture_forward_mode"),
        "is_encoder_decoder",
    ),
    AFTER,
    until="the view has them, as it has those of the texts",
)
def _build_replay_fb_view(view: Any, *, forward_batch: Any, **kwargs: Any) -> None:
    """A replay's view of the batch lacks the encoder's lengths on the host, which plans are made
    from; asking the device would wait for the last step."""
    view.encoder_lens_cpu = forward_batch.encoder_lens_cpu
