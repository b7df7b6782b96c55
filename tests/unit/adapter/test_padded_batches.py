"""Data-parallel attention pads the batches of its ranks to each other's sizes: what is there for
nobody changes nothing, in plain torch. The kernels' backends: `interpreted/`."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from backend_bench import Bench, Model, Pair
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from jenga_sglang.adapter.attention.torch_backend import JengaTorchBackend
from jenga_sglang.adapter.start import dp_attention

MODELS = {
    "windows": Model(("window 9", "full", "window 9", "window 21")),
    "sinks": Model(("window 9", "full", "window 9"), has_sinks=True),
    "chunks": Model(("chunk", "full", "chunk"), chunk=16),
    "shared KV": Model(("window 9", "again", "full", "again")),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_rank_whose_batches_are_padded_to_anothers(name: str) -> None:
    pair = Pair.of(MODELS[name], JengaTorchBackend)
    pair.serve_padded()
    # SGLang asks by either name.
    assert pair.checked.backend.get_cpu_graph_seq_len_fill_value() == 1


def test_padding_comes_out_as_zeros() -> None:
    """What memory held before may be infinite, and travels on to other ranks."""
    pair = Pair.of(Model(("window 9", "full")), JengaTorchBackend)
    bench = pair.checked
    bench.start(1)
    bench.grow(1, 6)
    for mode, new, padding in ((ForwardMode.EXTEND, {1: 6}, 0), (ForwardMode.DECODE, {1: 1}, 3)):
        batch = bench.batch(mode, new, padding)
        bench.backend.init_forward_metadata(batch)
        for out in bench.run(batch, pair.inputs(sum(new.values()) + 3)):
            assert out[: sum(new.values())].any() and not out[sum(new.values()) :].any()


def test_a_batch_of_padding_alone_is_a_warm_up() -> None:
    """An idle rank gets one while another computes a prompt in a graph."""
    pair = Pair.of(Model(("window 9", "full")), JengaTorchBackend)
    bench: Bench = pair.checked
    batch = bench.batch(ForwardMode.DECODE, {}, padding=2)
    batch.out_cache_loc = torch.zeros(2, dtype=torch.int64)
    bench.backend.init_forward_metadata(batch)
    assert all(out.isfinite().all() for out in bench.run(batch, pair.inputs(2)))


@pytest.mark.parametrize(
    ("fields", "model", "refused"),
    [
        ({"attn_dp_size": 2}, "states", "recurrent layers"),
        ({"attn_dp_size": 2}, "encoder", "cross-attention"),
        ({"enable_dp_attention": True}, "states", "recurrent layers"),
        ({"attn_dp_size": 2}, "text", None),
        ({"dp_size": 2}, "states", None),
    ],
)
def test_layers_that_look_up_every_request_are_refused(
    fields: dict[str, Any], model: str, refused: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.arg_groups import model_hook
    from sglang.srt.configs import hybrid_arch

    view = SimpleNamespace(**{"attn_dp_size": 1, "enable_dp_attention": False} | fields)
    config = SimpleNamespace(is_encoder_decoder=model == "encoder")
    monkeypatch.setattr(model_hook, "resolving_view", lambda args: view)
    monkeypatch.setattr(model_hook, "model_config_of", lambda args: config)
    states = config if model == "states" else None
    monkeypatch.setattr(hybrid_arch, "mambaish_config", lambda config: states)
    if refused is None:
        dp_attention.refuse_dp_attention(None)
        return
    with pytest.raises(SystemExit) as stop:
        dp_attention.refuse_dp_attention(None)
    line = str(stop.value)
    assert "--enable-dp-attention" in line and refused in line and "--dp-size" in line
