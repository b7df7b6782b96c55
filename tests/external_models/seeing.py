"""`mixed.MixedForCausalLM` that sees: an image's rows take the place of tokens in the text."""

import logging
from array import array
from typing import Any

import torch
from sglang.srt.managers.mm_utils import general_mm_embed_routine
from sglang.srt.managers.schedule_batch import Modality
from torch import nn

from external_models.mixed import MixedForCausalLM

logger = logging.getLogger(__name__)
ENCODED = "encoded an image of"


class SeeingForCausalLM(MixedForCausalLM):
    def pad_input_ids(self, input_ids: array, mm_inputs: Any) -> array:
        for item in mm_inputs.mm_items:
            for first, last in item.offsets:
                input_ids[first : last + 1] = array("q", [item.pad_value] * (last + 1 - first))
        return input_ids

    def get_image_feature(self, items: list[Any]) -> torch.Tensor:
        """What an encoder would take long for."""
        for item in items:
            logger.info("%s %d tokens", ENCODED, len(item.feature))
        return torch.cat([encode(item.feature) for item in items])

    def forward(
        self, input_ids: torch.Tensor, positions: torch.Tensor, forward_batch: Any, **kwargs: Any
    ) -> Any:
        hidden = general_mm_embed_routine(
            input_ids,
            forward_batch,
            _Text(self),
            data_embedding_funcs={Modality.IMAGE: self.get_image_feature},
            positions=positions,
        )
        return self.logits_processor(input_ids, hidden, self.lm_head, forward_batch)


class _Text(nn.Module):
    """The layers behind the embedding."""

    def __init__(self, model: SeeingForCausalLM) -> None:
        super().__init__()
        self.model = (model,)  # no submodule

    def get_input_embeddings(self) -> nn.Module:
        return self.model[0].net.embed

    def forward(
        self,
        input_ids: None,
        forward_batch: Any,
        input_embeds: torch.Tensor,
        positions: torch.Tensor,
    ) -> torch.Tensor:
        with torch.no_grad():
            return self.model[0].hidden(input_embeds, positions, forward_batch)


def encode(feature: torch.Tensor) -> torch.Tensor:
    """(tokens, hidden) of an image → the rows that stand in the text for it."""
    return torch.tanh(feature) * 2


EntryClass = SeeingForCausalLM
