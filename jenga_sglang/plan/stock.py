"""How SGLang 0.5.23 stores the KV cache of an architecture, read from its source."""

from __future__ import annotations

from dataclasses import dataclass

from jenga_sglang.plan.served import served_architectures

# Model classes that pass no window to their attention, whatever the config says.
IGNORES_WINDOW = frozenset(
    {
        "Ministral3ForCausalLM",
        "MistralForCausalLM",
        "Mistral3ForConditionalGeneration",
        "MixtralForCausalLM",
        "Phi3ForCausalLM",
        "PhiMoEForCausalLM",
        "Qwen2ForCausalLM",
        "Starcoder2ForCausalLM",
    }
)

# `is_hybrid_swa_model`: two pools, one for full and one for window or chunk layers, in a fixed
# ratio of tokens. Everything else with windows keeps every token in every layer.
WINDOW_POOL = frozenset(
    {
        "BeamForCausalLM",
        "DiffusionGemmaForBlockDiffusion",
        "Gemma4ForCausalLM",
        "Gemma4ForConditionalGeneration",
        "Gemma4UnifiedForConditionalGeneration",
        "GptOssForCausalLM",
        "GraniteMoeSWAForCausalLM",
        "GraniteSWAForCausalLM",
        "IQuestQ1ForCausalLM",
        "InklingForConditionalGeneration",
        "LagunaForCausalLM",
        "Llama4ForConditionalGeneration",
        "MellumForCausalLM",
        "MiMoV2FlashForCausalLM",
        "MiMoV2ForCausalLM",
        "MuseGlimmerForCausalLM",
        "MuseGlimmerForConditionalGeneration",
        "Step3p5ForCausalLM",
        "Step3p7ForConditionalGeneration",
        "UnlimitedOCRForCausalLM",
    }
)

DEFAULT_WINDOW_RATIO = 0.8  # --swa-full-tokens-ratio
DEFAULT_STATE_RATIO = 0.9  # --mamba-full-memory-ratio, bytes of states per byte of KV
# States that a running request may hold at once, by which the server caps its batch: three, and
# two that track snapshots under the overlap schedule.
STATES_PER_REQUEST = 5


@dataclass(frozen=True)
class Stock:
    """What SGLang 0.5.23 does with an architecture.

    ``has_class``: of SGLang's own; others may go through its Transformers backend. True where
    there is no SGLang to ask.
    """

    architecture: str
    ignores_window: bool
    has_window_pool: bool
    has_class: bool


def stock_of(architecture: str) -> Stock:
    served = served_architectures()
    return Stock(
        architecture or "unknown",
        architecture in IGNORES_WINDOW,
        architecture in WINDOW_POOL,
        architecture in served or not served,
    )
