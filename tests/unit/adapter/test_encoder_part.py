"""What an encoder made in front of a request's text: in whole pages for SGLang's books, as long as
it is for the layers."""

from array import array
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jenga_sglang.adapter import encoder
from jenga_sglang.core.books.corrupt import CorruptPool

PAGE = 4
PAD = 1 << 40


def made(num_image_tokens: int | None) -> Any:
    return SimpleNamespace(num_image_tokens=num_image_tokens)


def request(num_image_tokens: int | None) -> Any:
    inputs = made(num_image_tokens)
    length = num_image_tokens or 0
    encoder.fill_pages(array("q", [PAD] * length + [1, 2, 3]), inputs, PAGE)
    return SimpleNamespace(multimodal_inputs=inputs)


TEXT = SimpleNamespace(multimodal_inputs=None)


@pytest.mark.parametrize(("length", "filled"), [(1, 4), (4, 4), (7, 8), (8, 8)])
def test_pad_tokens_fill_whole_pages_and_the_text_stays(length: int, filled: int) -> None:
    inputs = made(length)
    padded = encoder.fill_pages(array("q", [PAD] * length + [1, 2, 3]), inputs, PAGE)
    assert padded.tolist() == [PAD] * filled + [1, 2, 3]
    assert inputs.num_image_tokens == filled
    assert encoder.page_tokens(SimpleNamespace(multimodal_inputs=inputs)) == filled


def test_prompts_of_other_models_stay_as_they_are() -> None:
    """Models that put images into the text leave the count alone."""
    prompt = array("q", [1, PAD, PAD, 2])
    assert encoder.fill_pages(prompt, made(None), PAGE) is prompt
    assert encoder.page_tokens(TEXT) == 0


def test_padding_twice_is_padding_once() -> None:
    inputs = made(7)
    once = encoder.fill_pages(array("q", [PAD] * 7 + [1]), inputs, PAGE)
    inputs.num_image_tokens = 7  # as SGLang counts when it pads again
    assert encoder.fill_pages(array("q", [PAD] * 7 + [1]), inputs, PAGE) == once


def test_layers_are_told_what_was_made() -> None:
    batch = SimpleNamespace(reqs=[request(7), TEXT, request(4)], device="cpu")
    encoder.tell_what_was_made(batch)
    assert batch.encoder_lens_cpu == [7, 0, 4]
    assert batch.encoder_lens.tolist() == [7, 0, 4] and batch.encoder_lens.dtype == torch.int64


def test_new_tokens_are_written_where_they_belong_and_fillers_nowhere() -> None:
    """SGLang's places are those of whole pages of requests whose image is new: the first, of 7
    tokens, and the last, of 2."""
    batch = SimpleNamespace(
        encoder_lens_cpu=[7, 0, 4, 2],
        encoder_cached=[False, True, True, False],
        encoder_out_cache_loc=torch.arange(100, 112),
    )
    locs = encoder.new_locs(batch, PAGE)
    assert locs is not None
    assert locs.tolist() == [*range(100, 107), 108, 109]
    batch.encoder_out_cache_loc = torch.arange(8)
    with pytest.raises(CorruptPool, match="8 places for 12 tokens"):
        encoder.new_locs(batch, PAGE)


def test_a_batch_without_new_images_writes_none() -> None:
    batch = SimpleNamespace(encoder_out_cache_loc=torch.zeros(0, dtype=torch.int64))
    assert encoder.new_locs(batch, PAGE) is None


def test_rows_of_prompts_without_images_are_masked() -> None:
    """Three new tokens with an image, two without, one with an image that is cached."""
    mask = encoder.text_row_mask([3, 2, 1], [7, 0, 4])
    assert mask.squeeze(1).tolist() == [True, True, True, False, False, True]
