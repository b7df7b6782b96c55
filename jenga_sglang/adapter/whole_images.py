"""Images whose tokens read one another, those behind them too: which models, layers and tokens.

The mask is Hugging Face's (`create_masks_for_vision_model` of Gemma-3 and Gemma-4): in a layer that
sees images whole, a token of one reads its image to the end, and of what lies before it what the
layer's window holds. SGLang's own models say so to its own backends only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sglang.srt.managers.schedule_batch import Modality

from jenga_sglang import flags
from jenga_sglang.core.dependency import Dependency
from jenga_sglang.core.ranges import Range
from jenga_sglang.refusal import refuse

GEMMA_3, GEMMA_4 = "Gemma3ForConditionalGeneration", "Gemma4ForConditionalGeneration"
IMAGES = frozenset({Modality.IMAGE})


@dataclass(frozen=True)
class WholeImages:
    """How a model sees images: whole in its layers with a window, and in the others too or not;
    what of SGLang's modalities is an image."""

    in_full_layers: bool
    modalities: frozenset[Modality]

    def are_seen_by(self, dependency: Dependency) -> bool:
        """Whether layers of this dependency see an image whole."""
        return dependency.reads_images_whole(in_full_layers=self.in_full_layers)

    def of_prompt(self, inputs: Any) -> tuple[Range, ...]:
        """Where the images of a prompt lie, of SGLang's multimodal ``inputs`` or None, in order."""
        spans = [
            Range(first, last + 1)
            for item in (inputs.mm_items if inputs is not None else ())
            if item.modality in self.modalities
            for first, last in item.offsets or ()
        ]
        return tuple(sorted(spans))


def whole_images_of(model: Any, text_config: Any) -> WholeImages | None:
    """How ``model`` sees images; None where an image is text like any other."""
    if _is(model, GEMMA_3):
        return WholeImages(in_full_layers=True, modalities=IMAGES)
    # Gemma-4's smaller models see images as text.
    sees = getattr(text_config, "use_bidirectional_attention", None)
    if not _is(model, GEMMA_4) or sees != "vision":
        return None
    return WholeImages(in_full_layers=False, modalities=IMAGES | {Modality.VIDEO})


def refuse_unseen_images(
    how: WholeImages, dependencies: Sequence[Dependency], context_length: int
) -> None:
    """Raise ``SystemExit`` with one line where no window is shorter than ``context_length`` tokens:
    layers that see images whole are in one group then with those that do not."""
    if not any(how.are_seen_by(dependency) for dependency in dependencies):
        raise refuse(
            f"--context-length {context_length}",
            "is no longer than this model's windows, whose layers alone read an image whole: "
            f"{flags.FLAG} jenga cannot tell them apart; choose a longer one",
        )


def knows_images_of(model: Any) -> bool:
    """Whether it is known here how ``model`` sees images that SGLang has a mask for."""
    return _is(model, GEMMA_3) or _is(model, GEMMA_4)


def _is(model: Any, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(model).__mro__)


def images_of_batch(
    how: WholeImages | None, batch: Any, starts: Sequence[int], stops: Sequence[int]
) -> list[tuple[Range, ...]]:
    """Of each request of SGLang's ``batch``, which computes its tokens from ``starts`` to
    ``stops``, the images that are seen whole and of which it computes something.

    Raises ``ValueError`` for one that goes on behind the step.
    """
    mode = batch.forward_mode
    if how is None or batch.mm_inputs is None or mode.is_decode() or mode.is_target_verify():
        return [()] * len(starts)
    padding = [None] * (len(starts) - len(batch.mm_inputs))  # of data-parallel attention
    asked = zip([*batch.mm_inputs, *padding], starts, stops, strict=True)
    return [_computed_now(how.of_prompt(one), start, stop) for one, start, stop in asked]


def _computed_now(images: Sequence[Range], start: int, stop: int) -> tuple[Range, ...]:
    found = tuple(r for r in images if r.start < stop and r.stop > start)
    if found and found[-1].stop > stop:
        raise ValueError(
            f"a step ends at token {stop} inside an image of tokens {found[-1].start} to "
            f"{found[-1].stop}, which is seen whole"
        )
    return found
