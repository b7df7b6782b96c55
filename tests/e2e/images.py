"""Images for `models.tiny_mllama`, as SGLang's processor hands them to the scheduler and as Hugging
Face's model takes them, and requests about them."""

import random
from functools import cache
from pathlib import Path
from typing import Any

import torch
from e2e import sound
from e2e.stream import TOKENS, Request
from external_models.net import HIDDEN
from models.tiny_mllama import IMAGE_PIXELS
from models.tiny_sights import CLOSES, IMAGE, OPENS, SIGHTS, positions

Images = tuple[int, ...]  # the images of one request, each by the seed of its pixels
KINDS: list[Images] = [(), (1,), (2,), (3, 4), (5,)]
TEXT_TOKENS = 120


def pixels(images: Images, tiles: int) -> torch.Tensor:
    """(1, images, tiles, 3, height, width) float32."""
    shape = (tiles, 3, IMAGE_PIXELS, IMAGE_PIXELS)
    drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in images]
    return torch.stack(drawn).unsqueeze(0)


def layout(images: Images, tiles: int) -> dict[str, torch.Tensor]:
    """Every image is cut into as many tiles as there may be, one above the other."""
    ids = torch.full((1, len(images)), tiles)  # ratios of one tile's width come first
    return {
        "aspect_ratio_ids": ids,
        "aspect_ratio_mask": torch.ones((1, len(images), tiles), dtype=torch.int64),
    }


def processed(images: Images, tiles: int) -> Any:
    """What SGLang's processor makes of them: one item for all images of a request."""
    from sglang.srt.managers.schedule_batch import (
        Modality,
        MultimodalDataItem,
        MultimodalProcessorOutput,
    )

    item = MultimodalDataItem(
        modality=Modality.IMAGE,
        feature=pixels(images, tiles),
        model_specific_data=dict(layout(images, tiles)),
    )
    item.set_pad_value()
    return MultimodalProcessorOutput(mm_items=[item])


def picture(seed: int, num_tokens: int) -> torch.Tensor:
    """(tokens, hidden) float32: an image for `external_models.seeing`."""
    return torch.randn(num_tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))


def multimodal_inputs(request: Request) -> Any:
    """What a request's images or sound are to SGLang's scheduler; None where it has none."""
    if request.images:
        return processed(request.images, request.tiles)
    if request.sound:
        return sound.multimodal_inputs(request.sound)
    if not request.pictures:
        return None
    if request.sight:
        return _of_sight(request)
    from sglang.srt.managers.schedule_batch import (
        Modality,
        MultimodalDataItem,
        MultimodalProcessorOutput,
    )

    items = [
        MultimodalDataItem(
            modality=Modality.IMAGE,
            feature=picture(*drawn),
            offsets=[(first, first + drawn[1] - 1)],
        )
        for first, drawn in sorted(request.pictures.items())
    ]
    for item in items:
        item.set_pad_value()
    return MultimodalProcessorOutput(mm_items=items)


def _of_sight(request: Request) -> Any:
    """What SGLang's processor makes of images for one of `models.tiny_sights`: an item for each."""
    from sglang.srt.managers.schedule_batch import (
        Modality,
        MultimodalDataItem,
        MultimodalProcessorOutput,
    )

    sight = SIGHTS[request.sight]
    items = []
    for first, drawn in sorted(request.pictures.items()):
        data = sight.data(*drawn)
        item = MultimodalDataItem(
            modality=Modality.IMAGE,
            feature=data.pop(sight.feature),
            offsets=[(first, first + drawn[1] - 1)],
            model_specific_data=data,
        )
        item.set_pad_value()
        items.append(item)
    tokens = {"im_token_id": IMAGE, "im_start_id": OPENS, "im_end_id": CLOSES}
    places = positions(request.prompt, request.pictures) if sight.has_own_positions else {}
    return MultimodalProcessorOutput(mm_items=items, **tokens, **places)


def make_requests(tiles: int, count: int) -> list[Request]:
    """Questions about none, one or two images, most of which begin like another about the same."""
    rng = random.Random(tiles)
    texts = {kind: [_text(rng, TEXT_TOKENS) for _ in range(2)] for kind in KINDS}
    requests = []
    for number in range(count):
        kind = rng.choice(KINDS)
        text = rng.choice(texts[kind])[: rng.randint(1, TEXT_TOKENS)]
        text += _text(rng, rng.randint(0, 20))
        grows = 0.4 < number / count < 0.75
        length = rng.randint(60, 120) if grows else rng.randint(1, 40)
        requests.append(Request(text, length, ignore_eos=grows, images=kind, tiles=tiles))
    return requests


def _text(rng: random.Random, length: int) -> list[int]:
    return [rng.choice(TOKENS) for _ in range(length)]


def correct_stock() -> None:
    """SGLang masks the wrong rows where prompts with and without images are computed together, so
    that answers depend on who else is there; and its torch backend's attention of a text to no
    image is sometimes NaN, masked or not. Corrected, it is something to compare with."""
    from sglang.srt.models.mllama import MllamaForConditionalGeneration as Model
    from sglang.srt.models.mllama import MllamaTextCrossAttention as Layer

    from jenga_sglang.adapter.encoder import text_row_mask

    original = Model.get_full_text_row_masked_out_mask

    def mask(self: Model, forward_batch: object) -> object:
        if forward_batch.forward_mode.is_decode():
            return original(self, forward_batch)
        lengths = forward_batch.extend_seq_lens.tolist()
        return text_row_mask(lengths, forward_batch.encoder_lens_cpu)

    Model.get_full_text_row_masked_out_mask = mask
    attend = Layer.forward
    Layer.forward = lambda *args, **kwargs: attend(*args, **kwargs).nan_to_num(nan=0.0)


@cache
def load(path: Path) -> Any:
    from transformers import MllamaForConditionalGeneration

    model = MllamaForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
    # SGLang takes what goes into a layer, which is what came out of the one before.
    vision = model.model.vision_model
    vision.intermediate_layers_indices = [n - 1 for n in vision.intermediate_layers_indices]
    return model


def greedy_tokens(path: Path, request: Request, count: int) -> list[int]:
    """Hugging Face's likeliest continuation."""
    seen: dict[str, torch.Tensor] = {}
    if request.images:
        drawn = pixels(request.images, request.tiles)
        seen = {"pixel_values": drawn, **layout(request.images, request.tiles)}
    return continue_greedily(path, request.prompt, seen, count)


def continue_greedily(
    path: Path, prompt: list[int], seen: dict[str, torch.Tensor], count: int
) -> list[int]:
    """The same of images as Hugging Face's processor makes them; every token sees all of them."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            if seen:
                # Without a mask Hugging Face's attention would be causal.
                _, number, tiles = seen["pixel_values"].shape[:3]
                seen["cross_attention_mask"] = torch.ones(1, len(tokens), number, tiles)
            out = load(path)(input_ids=torch.tensor([tokens]), use_cache=False, **seen)
            tokens.append(int(out.logits[0, -1].argmax()))
    return tokens[len(prompt) :]
