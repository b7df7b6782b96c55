"""Rows of Jenga's tables that are arithmetic: what fits, what is lost, how large a page gets.

Nothing is run: a model's config says its layers, and `jenga_sglang.plan` lays the same bytes out
as each system would.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from jenga_sglang.core.cut.demand import ideal_bytes
from jenga_sglang.core.cut.explain import human_bytes
from jenga_sglang.core.cut.geometry import GroupGeometry
from jenga_sglang.core.cut.planner import plan_geometry
from jenga_sglang.plan.layouts import Layout
from jenga_sglang.plan.layouts import compare as layouts_of
from jenga_sglang.plan.model import Model, ReadOptions, model_from_config

CONFIGS = Path(__file__).parents[2] / "tests" / "configs"
GIB = 1 << 30
PAGE_SIZE = 16  # tokens; vLLM's block, and the paper's

FULL, MAX_PAGE, PADDED = "SGLang, full KV", "max page", "padded blocks (vLLM)"
EXACT, PLANNED, IDEAL = "exact LCM (paper)", "planned (ours)", "ideal"
# A fixed part for each kind of layer, at the ratio that suits these lengths best.
PARTITION = "SGLang, best ratio"
LAYOUTS = (FULL, PARTITION, MAX_PAGE, PADDED, EXACT, PLANNED)

# Ministral-8B with KV in bf16, on a card with so much left for it; requests of the paper's lengths.
MINISTRAL_BYTES = 32 * GIB
MINISTRAL_LENGTHS = (55_000, 82_500, 110_000)
# The length at which a KV cache of all tokens in all layers loses what the paper measured.
PAPER_LOSS = 0.382

# Llama-4-Scout over eight cards of 80 GB: nine tenths of them, less the weights in bf16 and 4 GiB
# for activations, a card.
SCOUT_RANKS = 8
SCOUT_BYTES = int(0.9 * 80e9 - 218e9 / SCOUT_RANKS) - 4 * GIB

LCM_MODELS = (
    *("ministral-8b", "gemma-2-27b", "gemma-3-27b", "llama-4-scout", "gpt-oss-120b"),
    *("jamba-1.5-mini", "qwen3-next-80b", "qwen3.5-27b", "falcon-h1-7b"),
)


def read(name: str, ranks: int = 1) -> Model:
    """A released model, with the windows that its config declares."""
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    options = ReadOptions(tp=ranks, kv_dtype="bfloat16", window="config")
    return model_from_config(config.get("config", config), name, options)


def layouts(model: Model, pool_bytes: int, lengths: Sequence[int]) -> dict[str, Layout]:
    """The same bytes laid out as each system would, by name."""
    plan = plan_geometry(
        model.specs,
        pool_bytes=pool_bytes,
        max_length=model.max_length,
        page_size=PAGE_SIZE,
        lengths=lengths,
    )
    found = layouts_of(model, plan.geometry, plan.exact_lcm.groups, lengths)
    return {layout.name: layout for layout in found}


def mean_bytes(model: Model, lengths: Sequence[int]) -> float:
    """Bytes that a request needs, nothing rounded, the ``lengths`` in equal numbers."""
    return sum(ideal_bytes(s, n) for s in model.specs for n in lengths) / len(lengths)


def lost_share(model: Model, layout: Layout, pool_bytes: int, lengths: Sequence[int]) -> float:
    """Share of a full pool that holds nothing which a request needs."""
    return 1 - layout.concurrent(lengths) * mean_bytes(model, lengths) / pool_bytes


def fragmentation() -> list[list[str]]:
    """Per layout: the share lost at the paper's lengths, and at the length of its own loss."""
    model = read("ministral-8b")
    window = 1 - PAPER_LOSS / 0.75  # three layers of four have the window
    lengths = MINISTRAL_LENGTHS, (round(32_768 / window),)
    found = [layouts(model, MINISTRAL_BYTES, some) for some in lengths]
    return [
        [name, *(f"{_lost(model, of[name], n):.2%}" for of, n in zip(found, lengths, strict=True))]
        for name in LAYOUTS
    ]


def _lost(model: Model, layout: Layout, lengths: Sequence[int]) -> float:
    return lost_share(model, layout, MINISTRAL_BYTES, lengths)


def decode_batch() -> list[list[str]]:
    """Per layout: requests of the paper's lengths that fit at once, and as a multiple."""
    model = read("ministral-8b")
    found = layouts(model, MINISTRAL_BYTES, MINISTRAL_LENGTHS)
    rooms = {name: found[name].concurrent(MINISTRAL_LENGTHS) for name in (*LAYOUTS, IDEAL)}
    return [[name, f"{room:.2f}", f"{room / rooms[FULL]:.2f}"] for name, room in rooms.items()]


def longest_context() -> list[list[str]]:
    """Per layout: the longest request of Llama-4-Scout that fits alone, and as a multiple."""
    model = read("llama-4-scout", SCOUT_RANKS)
    most = {name: _longest(model, name) for name in (*LAYOUTS, IDEAL)}
    return [[name, f"{n:,}", f"{n / most[FULL]:.2f}"] for name, n in most.items()]


def _longest(model: Model, name: str) -> int:
    """Tokens, by thousands; the model's own limit is left out of account."""
    low, high = 0, 1 << 15
    while low < high:
        middle = (low + high + 1) // 2
        length = middle * 1000
        if layouts(model, SCOUT_BYTES, [length])[name].concurrent([length]) >= 1:
            low = middle
        else:
            high = middle - 1
    return low * 1000


def lcm_table() -> list[list[str]]:
    """Per model: small pages of one stripe a group, their exact LCM, and what is planned."""
    return [_lcm_row(name, read(name)) for name in LCM_MODELS]


def _lcm_row(name: str, model: Model) -> list[str]:
    groups = [GroupGeometry(spec, PAGE_SIZE) for spec in model.specs]
    small = [group.small_page_bytes for group in groups]
    plan = plan_geometry(
        model.specs, pool_bytes=40 * GIB, max_length=model.max_length, page_size=PAGE_SIZE
    )
    return [
        name,
        ", ".join(human_bytes(size) for size in small),
        human_bytes(math.lcm(*small)),
        human_bytes(plan.geometry.large_page_bytes),
        f"{plan.chosen.num_tables}",
        f"{plan.exact_lcm.cost.waste:.2%}",
        f"{plan.chosen.cost.waste:.2%}",
    ]
