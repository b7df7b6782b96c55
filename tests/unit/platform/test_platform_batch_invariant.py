"""Operators whose rows do not depend on each other, on a CPU: values of torch's own, and equal bits
in matrices of any size."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import gelu, linear, silu, softplus

from jenga_sglang.platform import batch_invariant

WEIGHT = torch.randn(200, 96, generator=torch.Generator().manual_seed(1))
BIAS = torch.randn(200, generator=torch.Generator().manual_seed(2))
# 96 columns for products; an odd number for what torch computes several numbers at a time.
NARROW = torch.randn(64, 96, generator=torch.Generator().manual_seed(3))
WIDE = torch.randn(64, 301, generator=torch.Generator().manual_seed(4))

Operator = Callable[[torch.Tensor], torch.Tensor]
OPERATORS: dict[str, tuple[Operator, torch.Tensor]] = {
    "linear": (lambda x: linear(x, WEIGHT), NARROW),
    "linear with a bias": (lambda x: linear(x, WEIGHT, BIAS), NARROW),
    "linear in bfloat16": (lambda x: linear(x.bfloat16(), WEIGHT.bfloat16()), NARROW),
    "linear of a batch": (lambda x: linear(x[None], WEIGHT)[0], NARROW),
    "matrices by head": (
        lambda x: (
            torch.bmm(x.unflatten(1, (4, 24)).transpose(0, 1), WEIGHT[:96].view(4, 24, 96))
            .transpose(0, 1)
            .flatten(1)
        ),
        NARROW,
    ),
    "silu": (silu, WIDE),
    "gelu": (lambda x: gelu(x, approximate="tanh"), WIDE),
    "sigmoid": (torch.sigmoid, WIDE),
    "sigmoid in place": (lambda x: x.clone().sigmoid_(), WIDE),
    "softplus": (softplus, WIDE),
    # Nothing is registered for these.
    "mean of squares": (lambda x: x.pow(2).mean(-1, keepdim=True), WIDE),
    "log softmax": (lambda x: torch.log_softmax(x, -1), WIDE),
    "softmax": (lambda x: torch.softmax(x, -1), WIDE),
    "tanh": (torch.tanh, WIDE),
}


def differing_rows(operator: Operator, x: torch.Tensor) -> int:
    """Rows that have other bits among fewer rows."""
    whole = operator(x)
    cuts = [(start, start + size) for size in (1, 2, 3, 8, 16, 31) for start in (0, 1, 7, 33)]
    return sum(int((operator(x[a:b]) != whole[a:b]).flatten(1).any(1).sum()) for a, b in cuts)


@pytest.mark.parametrize("threads", ["1", "2"])
def test_rows_have_the_same_bits_in_matrices_of_any_size(threads: str) -> None:
    """In a process of its own: what is registered there stays registered."""
    run = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"OMP_NUM_THREADS": threads},
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout) == (0, ""), run.stdout + run.stderr


def test_torchs_own_products_and_activations_do_not_have_them() -> None:
    for name in ("linear", "silu"):
        assert differing_rows(*OPERATORS[name]) > 0


def test_values_are_torchs_own() -> None:
    out = batch_invariant.addmm(BIAS, NARROW, WEIGHT.t(), beta=2.0, alpha=0.5)
    expected = torch.addmm(BIAS, NARROW, WEIGHT.t(), beta=2.0, alpha=0.5)
    torch.testing.assert_close(out, expected)
    a, b, bias = torch.randn(3, 5, 7), torch.randn(3, 7, 2), torch.randn(3, 5, 2)
    torch.testing.assert_close(batch_invariant.bmm(a, b), torch.bmm(a, b))
    added = batch_invariant.baddbmm(bias, a, b, beta=2.0, alpha=0.5)
    torch.testing.assert_close(added, torch.baddbmm(bias, a, b, beta=2.0, alpha=0.5))
    by_row = batch_invariant.row_by_row(torch.ops.aten.silu.out)
    for x in (WIDE, WIDE[:, ::2], WIDE[0], WIDE[:0], torch.tensor(0.5)):
        torch.testing.assert_close(by_row(x), silu(x))


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with torch.inference_mode():
        batch_invariant.enable()
        for name, (operator, x) in OPERATORS.items():
            if found := differing_rows(operator, x):
                print(f"{name}: {found} rows")
