"""Models that no Jenga pool can serve end the start with one line."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.arg_groups import model_hook
from sglang.srt.layers.pooler import Pooler, PoolingType
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
from transformers import PreTrainedConfig

from jenga_sglang.adapter.discovery import attention_layers
from jenga_sglang.adapter.hooks.arguments import _model_adjustments
from jenga_sglang.adapter.start import draft_layers, refused_models
from jenga_sglang.adapter.start.build import build_pools
from jenga_sglang.adapter.start.refused_models import refuse_models

WAY_OUT = "leave the flag out to serve it from SGLang's own pools."


def attention(number: int, **kwargs: Any) -> RadixAttention:
    return RadixAttention(2, 16, 1.0, 2, layer_id=number, **kwargs)


def configurator(
    *layers: RadixAttention, architecture: str = "LlamaForCausalLM", **fields: Any
) -> Any:
    """What SGLang builds pools with, of a model with these layers; ``fields`` are its own."""
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList(layers or [attention(0)])
    config = PreTrainedConfig(architectures=[architecture])
    known = {
        "model": model,
        "model_config": SimpleNamespace(hf_config=config),
        "layer_info": SimpleNamespace(full_attention_layer_ids=[], swa_attention_layer_ids=[]),
        "is_hybrid_swa": False,
        "kv_cache_dtype": torch.bfloat16,
        "spec_algorithm": SpeculativeAlgorithm.NONE,
    }
    return SimpleNamespace(**(known | fields))


def refusal(configurator: Any) -> str:
    """The line that ends the start."""
    with pytest.raises(SystemExit) as refused:
        build_pools(configurator, sizes=None)
    line = str(refused.value)
    assert "\n" not in line
    return line


def test_layers_that_see_what_follows() -> None:
    """EmbeddingGemma's; a backend that reads prefixes would give other embeddings."""
    line = refusal(
        configurator(
            attention(0),
            attention(1, attn_type=AttentionType.DECODER_BIDIRECTIONAL),
            architecture="Gemma3TextModel",
        )
    )
    assert line.startswith("jenga-sglang: --memory-backend jenga: Gemma3TextModel has ")
    assert "tokens that follow" in line and line.endswith(WAY_OUT)


def test_an_encoder_behind_the_transformers_backend() -> None:
    """SGLang marks its layers as cross-attention, for want of an encoder to read."""
    line = refusal(configurator(attention(0, is_cross_attention=True), architecture="Encoder"))
    assert "Encoder has attention to tokens that follow" in line


@pytest.mark.parametrize(
    ("architecture", "what"),
    [
        ("DeepseekV4ForCausalLM", "compressed tokens"),
        ("MiniMaxM3SparseForCausalLM", "an index of keys"),
        ("MiniMaxM3SparseForConditionalGeneration", "an index of keys"),
        ("Qwen4ExpForConditionalGeneration", "n-grams"),
        ("SarvamMLAForCausalLM", "write to SGLang's pool themselves"),
        ("Dots3NoteForCausalLM", "write to SGLang's pool themselves"),
    ],
)
def test_classes_with_memory_of_their_own(architecture: str, what: str) -> None:
    line = refusal(configurator(architecture=architecture))
    assert line.startswith(f"jenga-sglang: --memory-backend jenga: {architecture} has ")
    assert what in line and line.endswith(WAY_OUT)


@pytest.mark.parametrize(
    "architecture",
    ["DeepseekV32ForCausalLM", "DeepseekV3ForCausalLM", "GlmMoeDsaForCausalLM", "HYV4ForCausalLM"],
)
def test_sparse_latent_attention(architecture: str) -> None:
    """What the class alone does not say: only with the index in its config."""
    indexed = PreTrainedConfig(architectures=[architecture], index_topk=2048)
    line = refusal(configurator(model_config=SimpleNamespace(hf_config=indexed)))
    assert f"{architecture} has sparse latent attention (DSA), which" in line
    assert line.endswith(WAY_OUT)


def test_lightning_attention() -> None:
    """Ring and Ling 2.5, MiniCPM-SALA; the KDA layers of the former's class are served."""
    from sglang.srt.configs import BailingHybridConfig, MiniCPMHybridConfig

    bailing = BailingHybridConfig(architectures=["BailingMoeV2_5ForCausalLM"])
    sala = MiniCPMHybridConfig(
        architectures=["MiniCPMSALAForCausalLM"],
        num_hidden_layers=2,
        num_key_value_heads=32,
        mixer_types=["minicpm4", "lightning-attn"],
    )
    for config in (bailing, sala):
        line = refusal(configurator(model_config=SimpleNamespace(hf_config=config)))
        assert f"{config.architectures[0]} has lightning attention, which" in line
        assert line.endswith(WAY_OUT)


@pytest.mark.parametrize(
    "architecture", ["DeepseekV4ForCausalLM", "MiniMaxM3SparseForCausalLM", "SarvamMLAForCausalLM"]
)
def test_what_the_config_says_is_refused_before_weights_are_loaded(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While SGLang settles its arguments."""
    config = SimpleNamespace(hf_config=PreTrainedConfig(architectures=[architecture]))
    monkeypatch.setattr(model_hook, "model_config_of", lambda server_args: config)
    with pytest.raises(SystemExit, match=f"{architecture} has "):
        _model_adjustments(lambda server_args: None, None)


class Embeds(torch.nn.Module):
    """A class that may be asked for an embedding, of these parts."""

    def __init__(self, *parts: torch.nn.Module) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(parts)

    def forward(self, input_ids: Any, get_embedding: bool = False) -> None:
        """Nothing is computed here."""


class TakesNoQuestion(Embeds):
    def forward(self, input_ids: Any) -> None:
        """As most of SGLang's classes."""


POOLER = Pooler(PoolingType.LAST, normalize=True)


@pytest.mark.parametrize("model", [Embeds(), TakesNoQuestion(), TakesNoQuestion(POOLER)])
def test_embeddings_of_a_class_that_makes_none(model: torch.nn.Module) -> None:
    config = PreTrainedConfig(architectures=["MixtralForCausalLM"])
    asked = SimpleNamespace(hf_config=config, is_generation=False)
    line = refusal(configurator(model=model, model_config=asked))
    assert line.startswith("jenga-sglang: --is-embedding: SGLang's class of MixtralForCausalLM ")
    # Its tokens are served, and so are the embeddings of a class that makes them.
    asked.is_generation = True
    refuse_models(configurator(model=model, model_config=asked))
    asked.is_generation = False
    refuse_models(configurator(model=Embeds(POOLER), model_config=asked))


def test_convolutions_that_a_model_runs_itself() -> None:
    from sglang.srt.configs import InklingMMConfig, ZayaConfig

    for name, kind in (
        ("ZayaForCausalLM", ZayaConfig),
        ("InklingForConditionalGeneration", InklingMMConfig),
    ):
        config = kind()
        config.architectures = [name]
        line = refusal(configurator(model_config=SimpleNamespace(hf_config=config)))
        assert f"{name} has several convolutions a layer" in line and line.endswith(WAY_OUT)


def test_images_that_are_hidden_from_some_tokens() -> None:
    """MossVL's class makes a mask of which frames each token sees."""

    class Hiding(torch.nn.Module):
        def _build_cross_attention_custom_mask(self) -> None:
            """By the name of SGLang's."""

    line = refusal(configurator(model=Hiding(), architecture="MossVLForConditionalGeneration"))
    assert "cross-attention that shows a token some of the images only" in line


def test_a_window_pool_of_layers_that_sglang_does_not_name() -> None:
    """No list of layers: the bytes of stock's pools, which ours must equal, are unknown."""
    unnamed = SimpleNamespace(full_attention_layer_ids=None, swa_attention_layer_ids=None)
    line = refusal(configurator(architecture="New", layer_info=unnamed, is_hybrid_swa=True))
    assert "New has pools of SGLang's that are not sized by layers" in line


def test_a_dtype_of_keys_and_values_without_float_pages() -> None:
    line = refusal(configurator(kv_cache_dtype=torch.uint8, kv_cache_dtype_str="fp4_e2m1"))
    assert line.startswith("jenga-sglang: --kv-cache-dtype fp4_e2m1: ")


def test_layers_of_the_transformers_backend_are_found() -> None:
    """It keeps them in a plain dict, out of `modules()`."""
    backend = torch.nn.Module()
    layers = {number: attention(number) for number in (0, 1)}
    backend.attention_instances = layers
    encoder = attention(2, attn_type=AttentionType.ENCODER_ONLY)
    backend.vision = torch.nn.ModuleList([encoder])
    whole = torch.nn.Module()
    whole.language_model = backend
    assert attention_layers(whole) == list(layers.values())


DRAFTS = SpeculativeAlgorithm.NGRAM


@pytest.mark.parametrize(
    ("draft", "is_refused"),
    [("FalconH1ForCausalLM", True), ("Qwen3_5ForCausalLMMTP", False)],
)
def test_a_draft_model_with_recurrent_layers(
    draft: str, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head shares its target's config, and has attention only."""
    # Its rows are what is refused after it.
    monkeypatch.setattr(draft_layers, "_runners", [with_latent_rows(draft, (64, 16))])
    monkeypatch.setattr(draft_layers, "mambaish_config", lambda config: config)
    fields = {"spec_algorithm": SpeculativeAlgorithm.EAGLE, "mambaish_config": None}
    line = refusal(configurator(**vars(with_latent_rows("Target", None)), **fields))
    assert ("a draft model with recurrent layers" in line) == is_refused
    assert ("latent attention of other rows" in line) != is_refused


@pytest.fixture(autouse=True)
def one_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a draft model, unless a test says otherwise."""
    spec = SimpleNamespace(enable_multi_layer_eagle=False)
    monkeypatch.setattr(refused_models, "get_spec", lambda: spec)


def test_heads_that_draft_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """MiMo-V2's, for which SGLang turns the flag on."""
    spec = SimpleNamespace(enable_multi_layer_eagle=True)
    monkeypatch.setattr(refused_models, "get_spec", lambda: spec)
    fields = {"spec_algorithm": SpeculativeAlgorithm.EAGLE, "mambaish_config": None}
    line = refusal(configurator(architecture="MiMoV2FlashForCausalLM", **fields))
    assert "MiMoV2FlashForCausalLM has heads that draft one after the other" in line


def test_drafts_behind_an_encoder() -> None:
    model = SimpleNamespace(
        hf_config=PreTrainedConfig(architectures=["Whisper"]), is_encoder_decoder=True
    )
    line = refusal(configurator(spec_algorithm=DRAFTS, mambaish_config=None, model_config=model))
    assert "Whisper has an encoder, and drafts (--speculative-algorithm)" in line


@pytest.mark.parametrize("target", [None, (32, 16)])
def test_a_draft_model_with_latent_rows_of_its_own(
    target: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = with_latent_rows("Draft", (64, 16))
    monkeypatch.setattr(draft_layers, "_runners", [draft])
    monkeypatch.setattr(draft_layers, "mambaish_config", lambda config: None)
    fields = {"spec_algorithm": SpeculativeAlgorithm.EAGLE, "mambaish_config": None}
    line = refusal(configurator(**vars(with_latent_rows("Target", target)), **fields))
    assert "Target has a draft model with latent attention of other rows" in line


@pytest.mark.parametrize("backend", ["triton", "flashinfer"])
def test_an_assistant_that_reads_what_its_target_keeps(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EAGLE for a user, until SGLang sees whose assistant the draft is."""
    monkeypatch.setattr(refused_models, "attention_backends", lambda: (backend, backend))
    fields = {"spec_algorithm": SpeculativeAlgorithm.FROZEN_KV_MTP, "mambaish_config": None}
    line = refusal(configurator(architecture="Gemma4ForCausalLM", **fields))
    assert "Gemma4ForCausalLM has a draft model that reads what its target keeps" in line
    assert "--attention-backend jenga_torch" in line


def with_latent_rows(name: str, row: tuple[int, int] | None) -> SimpleNamespace:
    """A model as its runner has it, or the configurator of its pools."""
    rank, rope_dim = row or (None, None)
    config = SimpleNamespace(
        hf_config=PreTrainedConfig(architectures=[name]),
        kv_lora_rank=rank,
        qk_rope_head_dim=rope_dim,
    )
    return SimpleNamespace(use_mla_backend=row is not None, model_config=config)
