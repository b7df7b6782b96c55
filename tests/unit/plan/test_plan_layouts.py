"""The layouts that `jenga plan` compares, on numbers small enough to count by hand."""

from dataclasses import replace

import pytest
from plan_configs import GIB, KIB, MIB, NAMES, load

from jenga_sglang.core.cut.geometry import GroupGeometry, LayerGroupSpec
from jenga_sglang.core.dependency import Full, LastState, SlidingWindow
from jenga_sglang.plan.layouts import (
    ideal,
    large_pages_of,
    max_page,
    padded_blocks,
    stock_layouts,
)
from jenga_sglang.plan.model import Layer, Model
from jenga_sglang.plan.report import LayoutRow, Report, make_report
from jenga_sglang.plan.stock import stock_of

LENGTHS = (4096, 32768, 131072)
FULL = LayerGroupSpec("full", (0, 1), Full(), 512, 512)
WINDOW = LayerGroupSpec("window 33", (2, 3, 4, 5), SlidingWindow(33), 512, 512)
STATE = LayerGroupSpec("state", (2, 3, 4), LastState(), state_bytes=(100 * KIB,))


def rows(report: Report) -> dict[str, LayoutRow]:
    return {row.name: row for row in report.layouts}


def toy(*layers: Layer, architecture: str = "SomeForCausalLM") -> Model:
    return Model("toy", layers, 4096, "bfloat16", 1, stock_of(architecture))


def layers_of(*specs: LayerGroupSpec) -> list[Layer]:
    return [
        Layer(i, s.dependency, s.k_bytes, s.v_bytes, s.state_bytes) for s in specs for i in s.layers
    ]


def test_full_kv_stores_every_token_in_every_layer() -> None:
    """Six layers of 1 KiB a token: 101 x 100 tokens and the padding token fill the pool."""
    model = toy(*layers_of(FULL, WINDOW))
    layout = stock_layouts(model, (10100 + 1) * 6 * KIB, [100])[0]
    assert (layout.name, layout.is_stock) == ("SGLang, full KV", True)
    assert layout.concurrent([100]) == 101
    assert layout.concurrent([100, 300]) == 50.5


def test_sharing_layers_have_rows_in_stock_only() -> None:
    shared = [replace(layer, shares=layer.index == 1) for layer in layers_of(FULL)]
    model = toy(*shared)
    assert stock_layouts(model, 2 * KIB * 11, [10])[0].concurrent([10]) == 1
    assert sum(len(spec.layers) for spec in model.specs) == 1


def test_a_fixed_ratio_is_as_good_as_its_scarcer_pool() -> None:
    """Window layers get 0.8 tokens per full token: 2 + 0.8 * 4 = 5.2 KiB per full token."""
    model = toy(*layers_of(FULL, WINDOW), architecture="GptOssForCausalLM")
    full, default, best = stock_layouts(model, int(5.2 * KIB * 1001), [100])
    assert [x.is_stock for x in (full, default, best)] == [False, True, False]
    assert default.concurrent([100]) == pytest.approx(10, rel=1e-3)
    # At 20 tokens nothing slides and the window pool, 799 tokens, is the scarcer one.
    assert default.concurrent([20]) == pytest.approx(799 / 20, rel=1e-2)
    assert best.note == "window 0.32"  # 32 tokens of the history per 100
    assert best.concurrent([100]) == pytest.approx(5.2 / 3.28 * 10, rel=1e-2)


def test_states_get_a_pool_of_their_own_and_cap_the_batch() -> None:
    """0.9 bytes of states per byte of KV, and five states a running request."""
    model = toy(*layers_of(FULL, STATE))
    default, best = stock_layouts(model, 190 * MIB, [1024])
    assert default.is_stock and default.note == "states 0.9"
    states = int(90 * MIB // (3 * 100 * KIB)) - 1
    assert default.concurrent([1024]) == pytest.approx(min(states / 5, 100 * MIB / (2 * MIB)), 1e-3)
    assert best.concurrent([1024]) > default.concurrent([1024])


def test_a_request_takes_whole_large_pages() -> None:
    """Page of 16 tokens: full 32 KiB, window 64 KiB; of 100 tokens 7 and 3 pages."""
    groups = (GroupGeometry(FULL, 16), GroupGeometry(WINDOW, 16))
    layout = large_pages_of("ours", groups, 64 * KIB * 71)
    assert layout.concurrent([100]) == 70 / (4 + 3)


def test_the_max_page_holds_more_tokens_of_the_smaller_group() -> None:
    """64 KiB a page: 32 tokens of the full group (4 pages for 100), 16 of the window (3)."""
    layout = max_page((FULL, WINDOW), 16, 64 * KIB * 71)
    assert layout.concurrent([100]) == 70 / (4 + 3)
    assert layout.note == "up to 32 tokens a page"


def test_padded_blocks_cut_all_groups_into_as_many_layers() -> None:
    """Blocks of two layers: one for the full group's 7 pages, two for the window's 3."""
    layout = padded_blocks((FULL, WINDOW), 32 * KIB * 131)
    assert layout.concurrent([100]) == 130 / (7 + 2 * 3)


def test_padded_blocks_pad_the_last_layers_of_a_group() -> None:
    """Gemma-3-27B: 10 full and 52 window layers are 1 + 6 groups of ten, eight of them absent."""
    window, full = load("gemma-3-27b").specs
    block_bytes = 10 * 16 * full.row_bytes
    layout = padded_blocks((window, full), block_bytes * 1001)
    assert layout.concurrent([4096]) == 1000 / (256 + 6 * 65)


def test_padded_blocks_fill_a_state_with_tokens() -> None:
    """A layer's state of 100 KiB takes blocks of 112 tokens at 1 KiB (7 times 16)."""
    layout = padded_blocks((FULL, STATE), 112 * KIB * 2 * 101)
    assert layout.note == "up to 112 tokens a block"
    # Two layers a block: one block for the full group's 100 tokens, two for three states.
    assert layout.concurrent([100]) == 100 / (1 + 2)


def test_two_thirds_as_many_layers_share_blocks_of_the_larger_group() -> None:
    three = LayerGroupSpec("window", (5, 6, 7), SlidingWindow(33), 512, 512)
    four = LayerGroupSpec("full", (1, 2, 3, 4), Full(), 512, 512)
    layout = padded_blocks((four, three), 16 * KIB * 4 * 101)
    assert layout.concurrent([100]) == 100 / (7 + 3)


def test_the_ideal_rounds_nothing() -> None:
    needed = 100 * 2 * KIB + 32 * 4 * KIB
    assert ideal((FULL, WINDOW), 7 * needed + 1).concurrent([100]) == 7


@pytest.mark.parametrize("name", NAMES)
def test_ours_is_never_behind_another_layout_of_pages(name: str) -> None:
    """Except where a request is so short that its large pages are hardly used."""
    report = make_report(load(name), 40 * GIB, LENGTHS)
    found = rows(report)
    ours, ideally = found["planned (ours)"], found["ideal"]
    for other in ("exact LCM (paper)", "max page", "padded blocks (vLLM)"):
        pairs = zip(ours.concurrent, found[other].concurrent, strict=True)
        assert all(mine >= 0.998 * theirs for mine, theirs in pairs), other
    assert ours.mixed >= 0.98 * ideally.mixed
    for row in report.layouts:
        assert row.mixed <= ideally.mixed * (1 + 1e-9)
        # What is not waste is what as many requests take where nothing is rounded.
        assert 1 - row.mixed_waste == pytest.approx(row.mixed / ideally.mixed, rel=1e-6), row.name


@pytest.mark.parametrize(
    ("name", "today"),
    [
        ("gemma-3-27b", "SGLang, full KV"),
        ("gemma-4-31b", "SGLang, default ratio"),
        ("gpt-oss-120b", "SGLang, default ratio"),
        ("qwen3.5-27b", "SGLang, default ratio"),
        ("llama-3.1-8b", "SGLang, full KV"),
        ("mistral-7b-v0.1", "SGLang, full KV"),
        ("llama-3.2-11b-vision", "SGLang, full KV"),
    ],
)
def test_the_report_says_what_sglang_does_today(name: str, today: str) -> None:
    report = make_report(load(name), 40 * GIB, LENGTHS)
    assert [row.name for row in report.layouts if row.is_stock] == [today]


def test_full_attention_alone_loses_nothing_to_sglang() -> None:
    found = rows(make_report(load("llama-3.1-8b"), 40 * GIB, LENGTHS))
    assert found["planned (ours)"].mixed >= 0.9999 * found["SGLang, full KV"].mixed


def test_lengths_beyond_the_model_are_left_out() -> None:
    report = make_report(load("gemma-2-27b"), 40 * GIB, LENGTHS)
    assert (report.lengths, report.skipped_lengths) == ((4096,), (32768, 131072))
    assert make_report(load("gemma-2-27b"), 40 * GIB, (131072,)).lengths == (8192,)


def test_image_tokens_come_on_top_of_the_text() -> None:
    """11B-Vision, 1601 image and 200 text tokens: SGLang takes 281 MiB, its groups need 75."""
    model = load("llama-3.2-11b-vision", image_tokens=1601)
    report = make_report(model, 75 * GIB, (200,))
    found = rows(report)
    assert found["SGLang, full KV"].concurrent[0] == pytest.approx(75 * 1024 / 281.4, rel=1e-3)
    assert found["ideal"].concurrent[0] == pytest.approx(1024, rel=1e-3)
