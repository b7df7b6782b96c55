"""Numbers that others published, from the public shapes of the models."""

import math

import pytest
from plan_configs import GIB, KIB, MIB, load

from jenga_sglang.core.cut.demand import ideal_bytes
from jenga_sglang.core.cut.geometry import GroupGeometry, LayerGroupSpec, exact_lcm
from jenga_sglang.core.dependency import Full, LastState

PAGE_SIZE = 16


def exact_kib(name: str, **options: object) -> tuple[list[int], int]:
    """Small pages and large page of the paper's layout, in KiB."""
    groups = [GroupGeometry(spec, PAGE_SIZE) for spec in load(name, **options).specs]
    small = [group.small_page_bytes for group in groups]
    assert all(size % KIB == 0 for size in small)
    return [size // KIB for size in small], math.lcm(*small) // KIB


@pytest.mark.parametrize(
    ("name", "options", "small_kib", "large_kib"),
    [
        ("llama-3.2-11b-vision", {}, [2048, 512], 2048),
        ("gemma-3-27b", {"tp": 4}, [1664, 320], 8320),
        # The paper's states are 16 bits wide; SGLang's default is float32.
        ("jamba-1.5-mini", {"tp": 4, "state_dtype": "bfloat16"}, [2128, 64], 8512),
        ("llama-4-scout", {"tp": 8}, [288, 96], 288),
    ],
)
def test_exact_lcm_gives_table_1_of_the_paper(
    name: str, options: dict[str, object], small_kib: list[int], large_kib: int
) -> None:
    assert exact_kib(name, **options) == (small_kib, large_kib)


def test_the_lcm_of_391_5_mib_is_that_of_one_state_and_128_tokens_of_one_attention_layer() -> None:
    state, full = load("qwen3.5-27b").specs
    one_of_each = (
        LayerGroupSpec("state", (0,), LastState(), state_bytes=state.state_bytes),
        LayerGroupSpec("full", (3,), Full(), full.k_bytes, full.v_bytes),
    )
    geometry = exact_lcm(one_of_each, 128, 40 * GIB)
    assert geometry.large_page_bytes == 391.5 * MIB


def mib_needed(name: str, length: int, **options: object) -> float:
    model = load(name, **options)
    return sum(ideal_bytes(s, length + model.image_tokens) for s in model.specs) / MIB


# Memory of one request when every group keeps exactly what it depends on, in MiB.
NEEDED = {
    "gemma-3-27b": (736, 2.91 * 1024, 10.41 * 1024),
    "gemma-3n-e4b": (48, 272, None),
    "gemma-4-31b": (1.09 * 1024, 3.28 * 1024, 10.78 * 1024),
    "gemma-4-e4b": (84, 532, 2.02 * 1024),
    "gpt-oss-20b": (99, 771, 3.00 * 1024),
    "gpt-oss-120b": (148, 1.13 * 1024, 4.50 * 1024),
    "llama-4-scout": (768, 2.62 * 1024, 7.12 * 1024),
    "command-r7b": (512, 1.38 * 1024, 4.38 * 1024),
    "olmo-3-7b": (2048, 5.50 * 1024, None),
    "exaone-4-32b": (1024, 2.75 * 1024, 8.75 * 1024),
    "mimo-v2-flash": (114, 744, 2.84 * 1024),
    "step-3.5-flash": (258, 1.56 * 1024, 6.06 * 1024),
    "qwen3-next-80b": (170, 842, 3.07 * 1024),
    "qwen3.5-35b-a3b": (141, 701, 2.56 * 1024),
    "kimi-linear-48b": (73, 293, 1.02 * 1024),
    "nemotron-nano-9b-v2": (201, 649, 2.13 * 1024),
    "jamba-1.5-mini": (79, 527, 2.01 * 1024),
}


@pytest.mark.parametrize("name", NEEDED)
def test_a_request_needs_what_its_groups_depend_on(name: str) -> None:
    # A window of W needs W - 1 tokens of the history, so up to a row per layer less.
    lengths = (4096, 32768, 131072)
    for length, expected in zip(lengths, NEEDED[name], strict=True):
        if expected is not None:
            assert mib_needed(name, length) == pytest.approx(expected, rel=0.012)


@pytest.mark.parametrize(
    ("image_tokens", "text_tokens", "expected_mib"),
    [
        (1601, 200, 75),
        (1601, 1000, 175),
        (1601, 4096, 562),
        (6404, 200, 225),
        (6404, 4096, 712),
        (6404, 32768, 4.20 * 1024),
    ],
)
def test_image_tokens_count_in_cross_layers_only(
    image_tokens: int, text_tokens: int, expected_mib: float
) -> None:
    needed = mib_needed("llama-3.2-11b-vision", text_tokens, image_tokens=image_tokens)
    assert needed == pytest.approx(expected_mib, rel=0.003)
