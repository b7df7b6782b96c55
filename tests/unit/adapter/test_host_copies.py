"""Copies on a stream are those of the host, in pieces, and late."""

import sys

import numpy as np
import pytest
import torch
from late_copies import LateCopies

from jenga_sglang.adapter.cache.measured import ASK_EVERY_STEPS, Measured
from jenga_sglang.adapter.host_copies import PIECE_BYTES, HostCopies, pieces_of, why_not
from jenga_sglang.adapter.storage.agreement import Agreement
from jenga_sglang.core.prices import Prices


@pytest.mark.parametrize("page_bytes", [16, 4096, 4112, 65_536, 16 * 31_337, 425_984])
def test_a_stream_copies_what_the_host_copies(page_bytes: int) -> None:
    rng = np.random.default_rng(page_bytes)
    source = torch.from_numpy(rng.integers(0, 256, (12, page_bytes), np.uint8))
    pages, places = rng.permutation(12)[:5], rng.permutation(9)[:5]
    expected, got = torch.zeros(2, 9, page_bytes, dtype=torch.uint8)
    HostCopies().copy(source, pages, expected, places)
    late = LateCopies()
    late.copy(source, pages, got, places)
    assert expected.any() and not got.any(), "on a stream nothing is done at once"
    late.wait()
    assert torch.equal(got, expected)


def test_pieces_are_small_and_fill_the_page() -> None:
    for page_bytes in range(16, 40 * PIECE_BYTES, 16):
        pieces = pieces_of(page_bytes)
        assert page_bytes % (16 * pieces) == 0
        assert pieces == 1 or page_bytes // pieces <= PIECE_BYTES
    assert pieces_of(16 * 31_337) == 1, "no piece of it is small enough: 31,337 is prime"


def test_a_stream_is_asked_what_took_how_long_when_it_has_got_there() -> None:
    prices, late = Prices(), LateCopies()
    measured = Measured(prices, Agreement(None), late)
    source, target = torch.ones(2, 4, 4096, dtype=torch.uint8)
    for step in range(ASK_EVERY_STEPS + 1):
        assert not prices.copies.units, step
        with measured.copying(2 * 4096):
            late.copy(source, np.arange(2), target, np.arange(2))
        measured.step_begins(prompt_tokens=7)
        measured.pass_begins()
    assert prices.copies.units == (ASK_EVERY_STEPS + 1) * 2 * 4096
    assert prices.copies.ns > 0 and prices.prompts.units == ASK_EVERY_STEPS * 7


def test_what_has_no_copies_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not why_not("cpu")
    assert "for NVIDIA GPUs and for a CPU; leave it out" in why_not("npu")
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert "for NVIDIA GPUs" in why_not("cuda")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setitem(sys.modules, "sgl_kernel.kvcacheio", None)
    assert "needs the copies of sgl_kernel" in why_not("cuda")
