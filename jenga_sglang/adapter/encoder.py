"""What an encoder made of a request's images or sound, in front of its text.

SGLang puts that many pad tokens before the text, and cuts them off again before the model sees
them. Here they fill whole pages, the last one as far as it goes, so that no page has both: layers
that read the encoder's part hold its pages, all others the pages of the text. SGLang counts the
whole pages; model and kernels are told how much of them was really made::

    row of a request   [ e e e e | e e e . | t t t t | t t . .      pages of 4 tokens
    num_image_tokens     8                                          what SGLang cuts off
    encoder_lens         7                                          what layers read
    seq_lens                                 6                      the text
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import torch

from jenga_sglang.adapter.sglang_views import ReqView
from jenga_sglang.core.books.corrupt import CorruptPool

# Set on SGLang's `MultimodalInputs` beside `num_image_tokens`, which then counts whole pages.
TOKENS_MADE = "jenga_encoder_tokens"


def fill_pages(padded: array[int], inputs: Any, page_size: int) -> array[int]:
    """Repeat the last of the pad tokens that ``padded`` begins with until they fill whole pages.

    ``inputs`` are the request's multimodal inputs, whose count of pad tokens SGLang has just set;
    without any nothing changes. Pad tokens name the image by its hash, so equal images keep equal
    beginnings.
    """
    made = inputs.num_image_tokens
    if not made:
        return padded
    filler = padded[made - 1 : made] * (-made % page_size)
    inputs.num_image_tokens = made + len(filler)
    setattr(inputs, TOKENS_MADE, made)
    return padded[:made] + filler + padded[made:]


def page_tokens(req: ReqView) -> int:
    """Tokens of the pages that the encoder's part of a request fills; 0 for text alone."""
    inputs = req.multimodal_inputs
    return 0 if inputs is None else int(inputs.num_image_tokens or 0)


def tell_what_was_made(batch: Any) -> None:
    """Give an extend batch the lengths that its layers read, in place of whole pages."""
    made = [
        getattr(req.multimodal_inputs, TOKENS_MADE, 0) if page_tokens(req) else 0
        for req in batch.reqs
    ]
    batch.encoder_lens_cpu = made
    batch.encoder_lens = torch.tensor(made, dtype=torch.int64).to(batch.device, non_blocking=True)


def new_locs(batch: Any, page_size: int) -> torch.Tensor | None:
    """Virtual tokens of what encoders have just made, in a batch of prompts, (tokens,) on the
    device: SGLang's places without those that only fill pages. None when nothing is new."""
    places = batch.encoder_out_cache_loc
    if places is None or not len(places):
        return None
    chosen, start = [], 0
    for made, is_cached in zip(batch.encoder_lens_cpu, batch.encoder_cached, strict=True):
        if not is_cached:
            chosen.append(torch.arange(start, start + made))
            start += -(-made // page_size) * page_size
    if start != len(places):
        raise CorruptPool(f"{len(places)} places for {start} tokens of encoders")
    index = torch.cat(chosen).to(places.device, non_blocking=True)
    return places.index_select(0, index)


def text_row_mask(query_lens: Sequence[int], encoder_lens: Sequence[int]) -> torch.Tensor:
    """(queries, 1) bool on the host: which queries of an extend batch, request by request, have
    anything of an encoder's to read."""
    reads = torch.tensor([length > 0 for length in encoder_lens])
    return reads.repeat_interleave(torch.tensor(query_lens)).reshape(-1, 1)
