"""The CPU platform's small operators, against plain torch."""

from types import SimpleNamespace

import pytest
import torch

from jenga_sglang.platform import gates, logits, norms, rope, sizes, torch_functions

TOKENS = 5


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_the_soft_cap_is_in_place_or_into_float32() -> None:
    given = 40 * torch.randn(TOKENS, 9)
    expected = 30 * torch.tanh(given / 30)
    half, out = given.bfloat16(), torch.empty_like(given)
    torch.testing.assert_close(logits.soft_cap(given.clone(), 30.0), expected)
    assert logits.soft_cap(half, 30.0) is half
    torch.testing.assert_close(half.float(), expected, atol=0.2, rtol=0.02)
    assert logits.soft_cap(given, 30.0, out) is out
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(logits.soft_cap(half, None, out), half.float())


def test_a_soft_cap_of_a_strided_part() -> None:
    whole = torch.randn(TOKENS, 12)
    rest, part = whole[:, 8:].clone(), whole[:, :8].clone()
    logits.soft_cap(whole[:, :8], 2.0)
    torch.testing.assert_close(whole[:, :8], 2 * torch.tanh(part / 2))
    assert torch.equal(whole[:, 8:], rest)


def test_the_gate_of_a_shared_expert() -> None:
    hidden, weight, shared = torch.randn(TOKENS, 6), torch.randn(1, 6), torch.randn(TOKENS, 6)
    gate = 1 / (1 + torch.exp(-(hidden * weight).sum(-1)))
    expected = shared * gate[:, None]
    torch.testing.assert_close(gates.shared_expert(hidden, weight, shared), expected)
    routed = torch.randn(TOKENS, 6)
    total = routed.clone()
    gates.add_shared_expert(hidden, weight, shared, total)
    torch.testing.assert_close(total, routed + expected)


@pytest.mark.parametrize("with_scale", [True, False])
def test_gemma4s_norm_has_its_weight(with_scale: bool) -> None:
    """Its router writes one into a norm that is made without."""
    from sglang.srt.layers.layernorm import Gemma4RMSNorm

    norm = Gemma4RMSNorm(6, eps=1e-6, with_scale=with_scale)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(6) + 0.5)
    x = torch.randn(TOKENS, 6)
    expected = torch.nn.functional.rms_norm(x, (6,), norm.weight, 1e-6)
    torch.testing.assert_close(norms.gemma4_norm(norm, x), expected)


@pytest.mark.parametrize("ranks", [1, 2])
def test_norms_of_q_and_k_over_all_ranks(ranks: int) -> None:
    """Sums of the ranks' means, as an all-reduce gives them."""
    q, k = torch.randn(TOKENS, 8), torch.randn(TOKENS, 4)
    weights = torch.rand(8), torch.rand(4)
    shards = [(q.chunk(ranks, 1)[rank], k.chunk(ranks, 1)[rank]) for rank in range(ranks)]
    total = sum(norms.mean_squares(*shard) for shard in shards)
    assert isinstance(total, torch.Tensor)
    found = [
        norms.normalize(*shard, *(w.chunk(ranks)[rank] for w in weights), total, ranks, 1e-6)
        for rank, shard in enumerate(shards)
    ]
    for index, (x, weight) in enumerate(zip((q, k), weights, strict=True)):
        expected = torch.nn.functional.rms_norm(x, x.shape[1:], weight, 1e-6)
        torch.testing.assert_close(torch.cat([each[index] for each in found], 1), expected)


class Turn(torch.nn.Module):
    """Stands for a rotary embedding whose results are tensors of their own."""

    def forward(
        self, positions: torch.Tensor, q: torch.Tensor, k: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return q + positions[:, None], k - positions[:, None]


def test_a_rotation_in_place_reaches_the_tensor_behind_its_views() -> None:
    both, positions = torch.randn(TOKENS, 6), torch.arange(TOKENS)
    before = both.clone()
    q, k = both.split([4, 2], -1)
    rotated = rope.in_place(lambda *args, **kwargs: Turn())(16, rotary_dim=16)(positions, q, k)
    expected = torch.cat(
        (before[:, :4] + positions[:, None], before[:, 4:] - positions[:, None]), 1
    )
    assert torch.equal(both, expected)
    assert rotated[0] is q and rotated[1] is k


def test_only_deepseeks_yarn_is_made_for_a_cpu() -> None:
    made = rope.without_yarn(lambda **given: ("any device", given), lambda **given: ("cpu", given))
    yarn = {"rope_type": "deepseek_yarn", "factor": 4.0}
    plain = {"rope_type": "default", "rope_theta": 1e4}
    positional = (16, 16, 2048, 10_000, False)
    names = ("head_size", "rotary_dim", "max_position", "base", "is_neox_style", "rope_scaling")
    where, given = made(*positional, yarn, None, 1.0, "cpu")
    assert where == "cpu" and given["device"] == "cpu" and given["rope_scaling"] is yarn
    for scaling in (None, plain):
        where, given = made(*positional, scaling, device="cpu")
        assert (where, given) == (
            "any device",
            dict(zip(names, (*positional, scaling), strict=True)),
        )


def test_sizes_listed_by_layer_are_not_padded() -> None:
    padded = sizes.skip_lists(lambda config, name, padding: ("padded", name, padding))
    listed = SimpleNamespace(hf_text_config=SimpleNamespace(intermediate_size=[64, 96]))
    single = SimpleNamespace(hf_text_config=SimpleNamespace(intermediate_size=64))
    assert padded(listed, "intermediate_size", 32) is listed
    assert padded(single, "intermediate_size", 32) == ("padded", "intermediate_size", 32)
    assert padded(listed, "moe_intermediate_size", 32)[0] == "padded"
    assert padded(SimpleNamespace(), "intermediate_size", 32)[0] == "padded"


def test_the_device_module_of_no_device_is_the_cpus() -> None:
    asked = []
    get = torch_functions.device_module(lambda device: asked.append(device) or torch.cuda)
    assert get() is torch.cpu and get(None) is torch.cpu
    assert get("cuda") is torch.cuda and asked == ["cuda"]
    assert hasattr(get, "__wrapped__")  # torch's compiler asks for it


def test_nobody_waits_for_a_device_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was installed is put back when the test has ended."""
    changed = ((torch, "get_device_module"), (torch, "mm"), (torch.cuda, "synchronize"))
    for owner, name in changed:
        monkeypatch.setattr(owner, name, getattr(owner, name))
    torch_functions.install()
    torch.cuda.synchronize()


def test_a_product_in_a_wider_dtype() -> None:
    a, b = torch.randn(3, 4).bfloat16(), torch.randn(4, 2).bfloat16()
    original = getattr(torch.mm, "__wrapped__", torch.mm)
    mm = torch_functions.wide_mm(original)
    wide = mm(a, b, out_dtype=torch.float32)
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide, a.float() @ b.float())
    into = torch.empty(3, 2)
    mm(a, b, out=into, out_dtype=torch.float32)
    torch.testing.assert_close(into, wide)
    assert mm(a, b).dtype == torch.bfloat16
