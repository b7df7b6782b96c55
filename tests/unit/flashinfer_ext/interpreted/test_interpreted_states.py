"""State copies between pools and pages: every part of every layer, and nothing else."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from flashinfer_ext import reference
from flashinfer_ext.states import StateCopier, StateLayout, StatePart, state_view, state_views


class Case:
    """A pool of states as SGLang keeps it, one tensor per part, and a buffer of state pages."""

    def __init__(self, draw: st.DrawFn) -> None:
        torch.manual_seed(draw(st.integers(0, 10**6)))
        conv = StatePart((draw(st.integers(1, 6)) * 2, 3), torch.bfloat16)
        temporal = StatePart((draw(st.integers(1, 3)), 4, 5), torch.float32)
        parts = draw(st.sampled_from(((conv, temporal), (temporal, conv), (temporal,))))
        layers = draw(st.integers(1, 4))
        payload = layers * sum(part.padded_bytes for part in parts)
        padding = 16 * draw(st.integers(0, 2))
        self.layout = StateLayout(layers, parts, payload + padding)
        size = self.layout.small_page_bytes * 6
        self.buffer = torch.randint(0, 256, (size,), dtype=torch.uint8)
        self.pools = [torch.randn(layers, 5, *part.shape).to(part.dtype) for part in parts]

    def pool_views(self) -> list[torch.Tensor]:
        return [pool[layer] for layer in range(self.layout.num_layers) for pool in self.pools]

    def page_views(self) -> list[torch.Tensor]:
        return state_views(self.buffer, self.layout)


def slots(count: int, end: int) -> torch.Tensor:
    chosen = torch.randperm(end)[:count]
    return torch.where(torch.rand(count) < 0.2, -1, chosen)


def raw(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.contiguous().view(torch.uint8).clone() for tensor in tensors]


@settings(max_examples=25, deadline=None)
@given(data=st.data(), count=st.integers(0, 4), store=st.booleans())
def test_checkpoints_are_stored_and_loaded_bit_for_bit(
    data: st.DataObject, count: int, store: bool
) -> None:
    case = Case(data.draw)
    pool, pages = case.pool_views(), case.page_views()
    sources, targets = (pool, pages) if store else (pages, pool)
    start, end = slots(count, len(sources[0])), slots(count, len(targets[0]))
    before, before_sources = case.buffer.clone(), raw(sources)
    expected = [target.clone() for target in targets]
    reference.copy_states(sources, expected, start, end)
    StateCopier(sources, targets).copy(start, end.int())
    for got, wanted in zip(raw(targets), raw(expected), strict=True):
        assert torch.equal(got, wanted)
    for got, kept in zip(raw(sources), before_sources, strict=True):
        assert torch.equal(got, kept)
    if not store:
        assert torch.equal(case.buffer, before)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_padding_keeps_its_bytes(data: st.DataObject) -> None:
    case = Case(data.draw)
    pages = case.buffer.view(-1, case.layout.small_page_bytes)
    padding = pages[:, case.layout.payload_bytes :].clone()
    StateCopier(case.pool_views(), case.page_views()).copy(torch.arange(5), torch.arange(5))
    assert torch.equal(pages[:, case.layout.payload_bytes :], padding)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_views_do_not_overlap_and_start_on_16_bytes(data: st.DataObject) -> None:
    case = Case(data.draw)
    case.buffer.zero_()
    for view in case.page_views():
        assert not view.contiguous().view(torch.uint8).any(), "written by another part"
        view.copy_(torch.ones_like(view))
        assert (view.data_ptr() - case.buffer.data_ptr()) % 16 == 0
    assert all((view == 1).all() for view in case.page_views())


def test_a_page_may_be_copied_to_another_page_of_the_same_pool() -> None:
    layout = StateLayout(2, (StatePart((4,), torch.float32),), 32)
    buffer = torch.randint(0, 256, (96,), dtype=torch.uint8)
    views = state_views(buffer, layout)
    first = buffer[:32].clone()
    StateCopier(views, views).copy(torch.tensor([0]), torch.tensor([2]))
    assert torch.equal(buffer[64:], first)


def test_wrong_arguments_are_refused() -> None:
    part = StatePart((4,), torch.float32)
    layout = StateLayout(1, (part,), 16)
    buffer = torch.zeros(64, dtype=torch.uint8)
    view = state_view(buffer, layout, 0, 0)
    with pytest.raises(ValueError, match=">= payload 16, got 0"):
        StateLayout(1, (part,), 0)
    with pytest.raises(ValueError, match="expected layer < 1"):
        state_view(buffer, layout, 1, 0)
    with pytest.raises(ValueError, match=r"targets: expected 1 > 0 tensors, got 0"):
        StateCopier([view], [])
    with pytest.raises(ValueError, match=r"targets\[0\]: expected torch.float32"):
        StateCopier([view], [view.int()])
    with pytest.raises(ValueError, match="expected contiguous states"):
        StateCopier([torch.zeros(2, 4, 2).transpose(1, 2)], [torch.zeros(2, 2, 4)])
    with pytest.raises(ValueError, match="expected multiples of 4 bytes"):
        StateCopier([torch.zeros(2, 3).half()], [torch.zeros(2, 3).half()])
    copier = StateCopier([view], [view])
    with pytest.raises(ValueError, match="target_slots: expected int32 or int64"):
        copier.copy(torch.tensor([0]), torch.tensor([0, 1]))
