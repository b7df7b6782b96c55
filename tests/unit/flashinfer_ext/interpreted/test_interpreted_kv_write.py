"""The KV write kernel against the reference; what it moves unchanged is equal bit for bit."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from flashinfer_ext import GroupLayout, page_views, reference
from flashinfer_ext.kv_write import Fp8Scales, Rope, kv_write


class Case:
    """Random new tokens, and a pool full of other bytes to write them into."""

    def __init__(self, draw: st.DrawFn, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(draw(st.integers(0, 10**6)))
        heads, tokens = draw(st.integers(1, 5)), draw(st.sampled_from((1, 3, 4, 16)))
        dim_k = draw(st.sampled_from((4, 6, 16, 20)))
        dim_v = draw(st.sampled_from((dim_k, dim_k, 0, 8, 10)))
        layers = draw(st.integers(1, 3))
        payload = layers * tokens * heads * (dim_k + dim_v) * dtype.itemsize
        padding = draw(st.sampled_from((0, 4, 64)))
        self.layout = GroupLayout(layers, tokens, heads, dim_k, dim_v, dtype, payload + padding)
        self.layer = draw(st.integers(0, layers - 1))
        self.buffer = torch.randint(0, 120, (self.layout.small_page_bytes * 6,), dtype=torch.uint8)
        self.count = draw(st.integers(0, 20))
        slots = torch.randperm(6 * tokens)[: self.count]
        self.count = len(slots)
        skipped = torch.rand(self.count) < 0.2
        self.slots = torch.where(skipped, -torch.randint(1, 9, (self.count,)), slots)
        # New K and V come as slices of one projection: strided tokens, contiguous heads.
        self.joined = torch.randn(self.count, heads * (dim_k + dim_v) + 3)
        self.k = self.joined[:, : heads * dim_k].unflatten(1, (heads, dim_k))
        self.v = self.joined[:, heads * dim_k :][:, : heads * dim_v].unflatten(1, (heads, dim_v))

    def written(
        self, write: object, rope: Rope | None = None, scales: Fp8Scales | None = None
    ) -> torch.Tensor:
        """A copy of the pool after `write` has stored the new tokens in it."""
        buffer = self.buffer.clone()
        caches = page_views(buffer, self.layout, self.layer)
        write(self.k, self.v, *caches, self.slots, rope, scales)
        return buffer


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_plain_writes_are_exact_and_touch_nothing_else(data: st.DataObject) -> None:
    case = Case(data.draw)
    assert torch.equal(case.written(kv_write), case.written(reference.kv_write))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), interleaved=st.booleans(), wide=st.booleans())
def test_rotated_writes_equal_the_reference(
    data: st.DataObject, interleaved: bool, wide: bool
) -> None:
    case = Case(data.draw)
    dim = data.draw(st.sampled_from([d for d in (2, 4, 6, 16) if d <= case.layout.head_dim_k]))
    positions = torch.randint(0, 50, (case.count,), dtype=torch.int64 if wide else torch.int32)
    rope = Rope(positions, torch.randn(50, dim), interleaved)
    got, expected = (case.written(write, rope) for write in (kv_write, reference.kv_write))
    torch.testing.assert_close(
        got.view(torch.float32), expected.view(torch.float32), rtol=1e-6, atol=1e-6
    )


def quarter_turns(count: int, dim: int) -> Rope:
    """Rotations by multiples of 90 degrees, which are exact in floating point."""
    turn = torch.randint(0, 4, (50, dim // 2))
    table = torch.tensor([1.0, 0.0, -1.0, 0.0])
    return Rope(torch.arange(count), torch.cat([table[turn], table[(turn + 3) % 4]], 1), False)


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    with_rope=st.booleans(),
    dtype=st.sampled_from((torch.float8_e4m3fn, torch.float8_e5m2)),
)
def test_fp8_writes_scale_clamp_and_convert(
    data: st.DataObject, with_rope: bool, dtype: torch.dtype
) -> None:
    """On fp8 numbers and on numbers too large: the interpreter's rounding loses carries."""
    case = Case(data.draw, dtype)
    exact = torch.randn_like(case.joined).mul(100).to(dtype).float()
    case.joined.copy_(torch.where(torch.rand_like(exact) < 0.1, exact.sign() * 1e6, exact))
    case.joined /= 4
    scales = Fp8Scales(torch.tensor([0.25]), torch.tensor([0.5]))
    rope = quarter_turns(case.count, 4) if with_rope else None
    got, expected = (case.written(write, rope, scales) for write in (kv_write, reference.kv_write))
    # -0 and 0 are one number.
    got, expected = (torch.where(buffer == 128, 0, buffer) for buffer in (got, expected))
    assert torch.equal(got, expected)


def test_offsets_past_32_bits_are_addressed(far_pool: torch.Tensor) -> None:
    layout = GroupLayout(2, 4, 1, 8, 8, torch.float32, 4 << 30)
    caches = page_views(far_pool, layout, 1)
    assert caches[0].stride(0) == 2**30
    # Elements 2**31 + ..., 2**32 + ... and beyond: the last page ends at byte 24 * 2**30.
    slots = torch.tensor([2 * 4 + 1, 4 * 4 + 3, 5 * 4])
    k, v = torch.randn(2, 3, 1, 8)
    kv_write(k, v, *caches, slots)
    for cache, new in zip(caches, (k, v), strict=True):
        assert torch.equal(cache[[2, 4, 5], [1, 3, 0]], new)


def case_of_zeros() -> tuple[torch.Tensor, ...]:
    new, cache = torch.zeros(3, 2, 8), torch.zeros(4, 2, 2, 8)
    return new, new.clone(), cache, cache.clone(), torch.arange(3)


def test_wrong_arguments_are_refused() -> None:
    k, v, k_cache, v_cache, slots = case_of_zeros()
    with pytest.raises(ValueError, match="slots: expected contiguous int64"):
        kv_write(k, v, k_cache, v_cache, slots.int())
    with pytest.raises(ValueError, match="k: expected"):
        kv_write(k[:, :1], v, k_cache, v_cache, slots)
    with pytest.raises(ValueError, match="v: expected tokens"):
        kv_write(k, v[:2], k_cache, v_cache, slots)
    with pytest.raises(ValueError, match="contiguous last dimension"):
        kv_write(k.transpose(1, 2).contiguous().transpose(1, 2), v, k_cache, v_cache, slots)
    with pytest.raises(ValueError, match="expected an fp8 dtype with scales"):
        kv_write(k, v, k_cache, v_cache, slots, scales=Fp8Scales(torch.ones(1), torch.ones(1)))
    with pytest.raises(ValueError, match="expected scales to store"):
        kv_write(k, v, k_cache.to(torch.float8_e4m3fn), v_cache, slots)
    with pytest.raises(ValueError, match="cos_sin: expected"):
        kv_write(k, v, k_cache, v_cache, slots, Rope(slots, torch.zeros(4, 10)))
    with pytest.raises(ValueError, match="positions: expected"):
        kv_write(k, v, k_cache, v_cache, slots, Rope(slots[:2], torch.zeros(4, 8)))
