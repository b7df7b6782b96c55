"""Queries that are computed one by one: right, and with the same bits in every batch."""

from types import SimpleNamespace

import pytest
from backend_bench import Model, Pair
from same_bits import BETWEEN, FIRST, LAST, Way, differing_tokens
from sglang.srt.arg_groups import model_hook
from sglang.srt.configs import hybrid_arch

from jenga_sglang.adapter.attention.lone_queries import LoneQueries
from jenga_sglang.adapter.attention.torch_backend import JengaTorchBackend
from jenga_sglang.adapter.start.deterministic import refuse_deterministic

MODELS = {
    "windows": Model(("window 9", "full", "window 21")),
    "soft cap": Model(("window 9", "full"), soft_cap=3.0),
    "sinks": Model(("window 9", "full"), has_sinks=True),
    "chunks": Model(("chunk", "full"), chunk=16),
    "latent rows": Model(("full", "full"), dim=24, is_latent=True),
}
TOKENS = 90


def ways(model: Model, backend: type[JengaTorchBackend]) -> list[Way]:
    """A prompt whole, one in parts beside others, and one that is decoded from some token on."""
    whole, parts, decoded = (Way(model, backend, TOKENS) for _ in range(3))
    whole.step(TOKENS)
    parts.step(7, FIRST)
    parts.step(40, BETWEEN)
    parts.step(TOKENS - 47, LAST)
    decoded.step(60, LAST)
    decoded.decode(10)
    decoded.decode(TOKENS - 70, BETWEEN)
    return [whole, parts, decoded]


@pytest.mark.parametrize("name", MODELS)
def test_a_token_has_the_same_bits_wherever_it_is_computed(name: str) -> None:
    assert differing_tokens(ways(MODELS[name], LoneQueries)) == 0


def test_blocks_and_buckets_of_queries_do_not_have_them() -> None:
    """What the check above sees where nothing is done about it."""
    assert differing_tokens(ways(MODELS["windows"], JengaTorchBackend)) > TOKENS


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_batch(name: str) -> None:
    Pair.of(MODELS[name], LoneQueries).serve()


@pytest.mark.parametrize(
    ("states", "fields", "what"),
    [
        (object(), {}, "recurrent layers"),
        (None, {"is_encoder_decoder": True}, "cross-attention"),
        (None, {"is_multimodal": True}, "an encoder of images or sound"),
    ],
)
def test_layers_that_have_not_been_compared_are_refused(
    states: object, fields: dict[str, bool], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = SimpleNamespace(enable_deterministic_inference=True)
    monkeypatch.setattr(model_hook, "resolving_view", lambda server_args: asked)
    config = SimpleNamespace(**fields)
    monkeypatch.setattr(model_hook, "model_config_of", lambda server_args: config)
    monkeypatch.setattr(hybrid_arch, "mambaish_config", lambda config: states)
    with pytest.raises(SystemExit, match=f"^jenga-sglang: --enable-determ.* work with {what}"):
        refuse_deterministic(None)
    asked.enable_deterministic_inference = False
    refuse_deterministic(None)
