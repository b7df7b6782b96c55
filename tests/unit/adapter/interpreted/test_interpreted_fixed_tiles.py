"""SGLang's Triton kernels in tiles of the text: right, and with the same bits in every batch."""

from types import SimpleNamespace

import numpy as np
import pytest
from backend_bench import Model, Pair
from same_bits import ALONE, BETWEEN, FIRST, LAST, Batch, Way, differing_tokens

from jenga_sglang.adapter.attention import fixed_tiles, triton_backend
from jenga_sglang.adapter.attention.fixed_tiles import FixedTiles
from jenga_sglang.adapter.attention.triton_backend import JengaTritonBackend

MODELS = {
    "windows": Model(("window 9", "again", "full"), soft_cap=3.0),
    "sinks": Model(("window 21", "full"), has_sinks=True),
    "chunks": Model(("chunk", "full"), chunk=16),
    "latent rows": Model(("full",), dim=24, is_latent=True),
}
# The others are variants of one path.
NAMES = ["windows", *(pytest.param(name, marks=pytest.mark.long) for name in [*MODELS][1:])]
# Beyond the first tile of a window.
TOKENS = 140

pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]


def product(a: np.ndarray, b: np.ndarray, dtype: type) -> np.ndarray:
    """a @ b, in which a row has the same bits wherever it stands, as in a GPU's tiles. BLAS does
    not promise it: on some processors OpenBLAS adds in another order at the edges of its tiles."""
    return np.sum(a[:, :, None] * b, axis=1, dtype=dtype)


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's `tl.dot` is numpy's."""
    monkeypatch.setattr(np, "matmul", product)


@pytest.fixture(autouse=True)
def _pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    execution = SimpleNamespace(kernel=SimpleNamespace(triton_attention_num_kv_splits=4))
    monkeypatch.setattr(triton_backend, "get_exec", lambda: execution)
    monkeypatch.setenv(fixed_tiles.PIECE_VARIABLE, "32")


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_batch(name: str) -> None:
    Pair.of(MODELS[name], FixedTiles).serve()


def prompts(model: Model, backend: type[JengaTritonBackend]) -> list[Way]:
    """A prompt whole, and in parts beside others."""
    whole, parts, behind_hit = (Way(model, backend, TOKENS) for _ in range(3))
    whole.step(TOKENS)
    parts.step(7, FIRST)
    parts.step(61, BETWEEN)
    parts.step(TOKENS - 68, LAST)
    behind_hit.step(TOKENS - 4)
    behind_hit.step(4, FIRST)
    return [whole, parts, behind_hit]


def decodes(model: Model, backend: type[JengaTritonBackend], batches: list[Batch]) -> list[Way]:
    """The same tokens decoded in each of ``batches``."""
    ways = []
    for batch in batches:
        way = Way(model, backend, 50)  # two pieces
        way.step(48)
        way.decode(2, batch)
        ways.append(way)
    return ways


@pytest.mark.parametrize("name", NAMES)
def test_a_token_of_a_prompt_has_the_same_bits_wherever_it_is_cut(name: str) -> None:
    assert differing_tokens(prompts(MODELS[name], FixedTiles)) == 0


@pytest.mark.parametrize("name", [NAMES[0], NAMES[-1]])
def test_a_decoded_token_has_the_same_bits_in_every_batch(name: str) -> None:
    assert differing_tokens(decodes(MODELS[name], FixedTiles, [ALONE, FIRST])) == 0


def test_sglangs_other_kernels_do_not_have_them() -> None:
    """What the checks above see where nothing is done about it."""
    assert differing_tokens(prompts(MODELS["windows"], JengaTritonBackend)) > TOKENS
