"""Images that are seen whole: which models and layers, what a query reads, and where a prompt is
cut."""

from array import array
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adapter_builders import make_cache, make_pool, make_scheduler
from core_builders import make_manager, tokens
from sglang.srt.managers.schedule_batch import Modality
from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from transformers import Gemma3TextConfig
from transformers.models.gemma3 import modeling_gemma3 as gemma_3
from transformers.models.gemma4 import modeling_gemma4 as gemma_4

from jenga_sglang.adapter.attention.torch_backend import visible
from jenga_sglang.adapter.cache.allocator import JengaAllocator
from jenga_sglang.adapter.cache.budget import JengaPrefillBudget
from jenga_sglang.adapter.whole_images import (
    IMAGES,
    WholeImages,
    images_of_batch,
    knows_images_of,
    refuse_unseen_images,
    whole_images_of,
)
from jenga_sglang.core.dependency import ChunkedLocal, Full, SlidingWindow
from jenga_sglang.core.ranges import Range

PAGE, CHUNK, WINDOW = 4, 16, 9
EVERYWHERE = WholeImages(in_full_layers=True, modalities=IMAGES)


def inputs(*offsets: tuple[int, int], modality: Modality = Modality.IMAGE) -> Any:
    item = SimpleNamespace(modality=modality, offsets=list(offsets))
    return SimpleNamespace(mm_items=[item], num_image_tokens=None)


# -- models ---------------------------------------------------------------------------------------


class Gemma3ForConditionalGeneration(torch.nn.Module):
    """By the name of SGLang's class."""


class Gemma4ForConditionalGeneration(torch.nn.Module):
    """By the name of SGLang's class."""


class Gemma4UnifiedForConditionalGeneration(Gemma4ForConditionalGeneration):
    """As SGLang's is."""


def test_a_context_no_longer_than_the_windows_leaves_layers_alike() -> None:
    """Effective dependencies are then all the same, and Gemma-4's two kinds of layers are not."""
    some = WholeImages(in_full_layers=False, modalities=EVERYWHERE.modalities)
    for length, refused in ((WINDOW, True), (WINDOW + 1, False)):
        dependencies = [d.effective(length) for d in (SlidingWindow(WINDOW), Full())]
        refuse_unseen_images(EVERYWHERE, dependencies, length)
        with pytest.raises(SystemExit) if refused else nullcontext() as end:
            refuse_unseen_images(some, dependencies, length)
        if refused:
            assert f"--context-length {length}" in str(end.value)


def test_which_models_and_layers() -> None:
    text = SimpleNamespace(use_bidirectional_attention=False)
    of_gemma_3 = whole_images_of(Gemma3ForConditionalGeneration(), text)
    assert of_gemma_3 == EVERYWHERE
    for model in (Gemma4ForConditionalGeneration(), Gemma4UnifiedForConditionalGeneration()):
        assert whole_images_of(model, SimpleNamespace(use_bidirectional_attention=None)) is None
        assert knows_images_of(model)
        how = whole_images_of(model, SimpleNamespace(use_bidirectional_attention="vision"))
        assert how is not None
        assert how.are_seen_by(SlidingWindow(WINDOW)) and not how.are_seen_by(Full())
        assert how.of_prompt(inputs((3, 7), modality=Modality.VIDEO)) == (Range(3, 8),)
    assert EVERYWHERE.are_seen_by(Full()) and not EVERYWHERE.are_seen_by(ChunkedLocal(16))
    assert EVERYWHERE.of_prompt(inputs((9, 10), (3, 7))) == (Range(3, 8), Range(9, 11))
    assert EVERYWHERE.of_prompt(inputs((3, 7), modality=Modality.AUDIO)) == ()
    assert EVERYWHERE.of_prompt(None) == ()
    other = torch.nn.Module()
    assert whole_images_of(other, text) is None and not knows_images_of(other)


# -- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [gemma_3, gemma_4])
@pytest.mark.parametrize("start", [0, 5, 17])
def test_the_mask_is_hugging_faces(module: Any, start: int) -> None:
    """A step from ``start`` on, in a layer with a window and one without, one image longer than the
    window."""
    images, length = [Range(3, 16), Range(20, 24)], 30
    types = torch.zeros(1, length, dtype=torch.int64)
    for image in images:
        types[0, image.start : image.stop] = 1
    config = Gemma3TextConfig(
        sliding_window=WINDOW, num_hidden_layers=2, _attn_implementation="sdpa"
    )
    expected = module.create_masks_for_vision_model(
        config=config,
        inputs_embeds=torch.zeros(1, length, 8),
        attention_mask=None,
        past_key_values=None,
        position_ids=torch.arange(length)[None],
        block_sequence_ids=module.get_block_sequence_ids_for_mask(types, torch.device("cpu")),
    )
    how = replace(EVERYWHERE, in_full_layers=module is gemma_3)
    for kind, dependency in (("full", Full()), ("sliding", SlidingWindow(WINDOW))):
        seen = images if how.are_seen_by(dependency) else []
        first, mask = visible(dependency, range(start, length), seen)
        whole = torch.zeros(length - start, length, dtype=torch.bool)
        whole[:, first:] = torch.from_numpy(mask)
        wanted = expected[f"{kind}_attention"]
        if wanted is None:  # causal
            wanted = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        assert (whole == wanted[0, 0, start:]).all()


def test_a_block_of_queries_reads_on_to_the_end_of_an_image() -> None:
    first, mask = visible(SlidingWindow(3), range(4, 6), [Range(5, 9)])
    assert first == 2 and mask.tolist() == [
        [True, True, True, False, False, False, False],
        [False, True, True, True, True, True, True],
    ]


def test_a_step_that_ends_inside_is_an_error() -> None:
    batch = SimpleNamespace(mm_inputs=[inputs((4, 7))], forward_mode=ForwardMode.EXTEND)
    assert images_of_batch(EVERYWHERE, batch, [0], [8]) == [(Range(4, 8),)]
    assert images_of_batch(EVERYWHERE, batch, [8], [12]) == [()]
    assert images_of_batch(EVERYWHERE, batch, [0], [4]) == [()]
    assert images_of_batch(EVERYWHERE, batch, [0, 0], [8, 1]) == [(Range(4, 8),), ()]  # padded
    assert images_of_batch(None, batch, [0], [6]) == [()]
    batch.forward_mode = ForwardMode.TARGET_VERIFY
    assert images_of_batch(EVERYWHERE, batch, [0, 9], [6, 12]) == [(), ()]  # one pads a graph
    batch.forward_mode = ForwardMode.EXTEND
    with pytest.raises(ValueError, match="step ends at token 6 inside an image of tokens 4 to 8"):
        images_of_batch(EVERYWHERE, batch, [0], [6])


# -- chunks ---------------------------------------------------------------------------------------


def first_chunk(*images: Range, prompt: int = 60, admitted: int = 0) -> int | None:
    """The chunk of a prompt with ``images`` that is let in, behind ``admitted`` tokens of others in
    the pass."""
    manager = make_manager(Full(), num_large=100, page_size=PAGE)
    cache = make_cache(manager)
    with cache.admission.passing(make_scheduler(None, chunk_tokens=CHUNK)) as passing:
        budget = JengaPrefillBudget(cache.admission)
        if admitted:
            budget.reserve(admitted, 1)
        hit = replace(manager.match(None, tokens(range(prompt))), whole=images)
        passing.candidate = manager.lock(hit)
        fits, chunk = budget.check_prefill(
            extend_input_len=prompt,
            total_tokens=prompt,
            max_new_tokens=1,
            input_tokens=prompt,
            swa_host_hit_length=0,
            chunk_limit=CHUNK - admitted,
        )
    assert fits
    return chunk


def test_the_first_chunk_does_not_cut_an_image() -> None:
    assert first_chunk() == CHUNK
    assert first_chunk(Range(10, 20)) == 8
    assert first_chunk(Range(2, 30)) == 32  # longer than a chunk
    assert first_chunk(Range(2, 12), admitted=8) == 0  # a whole chunk will do, in another pass
    # SGLang takes a prompt whole where there is room for its last page.
    assert first_chunk(Range(2, 30), prompt=30) == 32


def test_a_prompt_whose_last_page_has_no_room_is_cut_before_its_image() -> None:
    """SGLang would cut a chunk of as many tokens as the prompt has, at a page inside the image."""
    assert first_chunk(Range(10, CHUNK - 1), prompt=CHUNK - 1, admitted=1) == 8
    assert first_chunk(Range(10, CHUNK), prompt=CHUNK) == CHUNK


def test_nobody_is_cut_beside_a_prompt_that_was() -> None:
    """An image leaves some of the chunk to others, and SGLang can go on with one prompt only."""
    manager = make_manager(Full(), num_large=100, page_size=PAGE)
    cache = make_cache(manager)
    with cache.admission.passing(make_scheduler(None, chunk_tokens=CHUNK)) as passing:
        budget = JengaPrefillBudget(cache.admission)

        def offer(prompt: int, *images: Range, chunk_limit: int) -> tuple[bool, int | None]:
            hit = replace(manager.match(None, tokens(range(prompt))), whole=images)
            passing.candidate = manager.lock(hit)
            fits, step = budget.check_prefill(
                extend_input_len=prompt,
                total_tokens=prompt,
                max_new_tokens=1,
                input_tokens=prompt,
                swa_host_hit_length=0,
                chunk_limit=chunk_limit,
            )
            if fits:
                budget.reserve(min(prompt, step or prompt), 1)
            return fits, step

        assert offer(60, Range(10, 20), chunk_limit=CHUNK) == (True, 8)
        assert offer(60, chunk_limit=CHUNK - 8) == (False, None)
        assert offer(CHUNK - 8, chunk_limit=CHUNK - 8) == (True, CHUNK - 8)


@pytest.mark.parametrize(
    ("image", "expected"), [(Range(20, 28), 16), (Range(30, 40), 12), (Range(18, 50), 36)]
)
def test_the_next_chunk_does_neither(image: Range, expected: int) -> None:
    manager = make_manager(Full(), num_large=100, page_size=PAGE)
    cache = make_cache(manager)
    running = manager.lock(replace(manager.match(None, tokens(range(60))), whole=(image,)))
    assert manager.reserve([(running, 4)])
    manager.extend(running, 16)
    req: Any = SimpleNamespace(
        lock=SimpleNamespace(receipt=running), full_untruncated_fill_ids=[0] * 60
    )
    with cache.admission.passing(make_scheduler(req, chunk_tokens=CHUNK)):
        budget = JengaPrefillBudget(cache.admission)
        chunk = budget.fit_chunk(extend_input_len=44, max_new_tokens=0, chunk_limit=CHUNK)
    assert chunk == expected


def test_a_request_brings_its_images_along() -> None:
    """From the match on, through the lock, which names no request."""
    manager = make_manager(Full(), num_large=100, page_size=PAGE)
    cache = make_cache(manager)
    cache.token_to_kv_pool_allocator.get_kvcache().whole_images = EVERYWHERE
    req: Any = SimpleNamespace(
        multimodal_inputs=inputs((4, 7)), extra_key=None, cache_salt=None, lora_id=None
    )
    key = RadixKey(array("q", range(20)), None)
    for asked, whole in ((req, (Range(4, 8),)), (None, ())):
        hit: Any = cache.match_prefix(MatchPrefixParams(key=key, req=asked)).last_device_node
        assert cache.lock(hit).receipt.hit.whole == whole


def test_a_prompt_is_refused_whose_image_no_step_has_room_for() -> None:
    """In a window of a few tokens a chunk fits, an image that must be computed at once does not."""
    pool = make_pool(SlidingWindow(4), page_size=PAGE, layers=[1])
    pool.whole_images = EVERYWHERE
    allocator = JengaAllocator(pool)
    for images, is_refused in ((inputs((2, 9)), False), (inputs((2, 190)), True)):
        with allocator.asking_with(0, images):
            assert (allocator.why_refused(200, 8) is not None) == is_refused
