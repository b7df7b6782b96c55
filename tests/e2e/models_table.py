"""The table of models in docs/models.md: what the tests saw, and what `jenga plan` says.

A test that compares a model's answers calls `keep`. With ``JENGA_RESULTS`` set to a file that
writes the model's row; without, the row in `models.json` must say the same, so that a test that
changes what is compared, or a model whose layers are found otherwise, fails until the table is
made again. Run as a program it writes the table, which is enough where only a plan has changed.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from jenga_sglang.core.cut.geometry import LayerGroupSpec
from jenga_sglang.plan.model import Model, read_model
from jenga_sglang.plan.report import LayoutRow, make_report
from jenga_sglang.units import human_tokens

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "models.md"
CONFIGS = ROOT / "tests" / "configs"
RESULTS = Path(__file__).with_name("models.json")
RESULTS_VARIABLE = "JENGA_RESULTS"
HUGGING_FACE, STOCK, COLD = "Hugging Face", "stock", "no prefix cache"
POOL_BYTES = 40 << 30
LENGTHS = (8 << 10, 32 << 10, 128 << 10)
PLANNED_FOR = (1 << 10, *LENGTHS)  # as README.md's capacity
BEGIN, END = "<!-- models: made by `make models` -->\n", "<!-- end of models -->\n"
NONE = "-"

# The released model, and its config in tests/configs where there is one.
RELEASES: dict[str, tuple[str, str | None]] = {
    "afmoe": ("AFMoE (Trinity)", None),
    "cohere2": ("Command-R7B", "command-r7b"),
    "deepseek_v3_moe": ("DeepSeek-V3", "deepseek-v3"),
    "exaone4": ("EXAONE-4.0-32B", "exaone-4-32b"),
    "falcon_h1": ("Falcon-H1-7B", "falcon-h1-7b"),
    "falcon_mamba": ("Falcon-Mamba", None),
    "gemma2": ("Gemma-2-27B", "gemma-2-27b"),
    "gemma3": ("Gemma-3-27B", "gemma-3-27b"),
    "gemma3_sight": ("Gemma-3-27B, images", "gemma-3-27b"),
    "gemma3n": ("Gemma-3n-E4B", "gemma-3n-e4b"),
    "gemma4": ("Gemma-4-31B", "gemma-4-31b"),
    "gemma4_sight": ("Gemma-4-31B, images", "gemma-4-31b"),
    "gemma4_moe": ("Gemma-4 with experts", None),
    "glm4_moe": ("GLM-4.5-Air", "glm-4.5-air"),
    "glm4_moe_lite": ("GLM-4.7-Flash", "glm-4.7-flash"),
    "gpt_oss": ("gpt-oss-120b", "gpt-oss-120b"),
    "granite4": ("Granite-4 hybrid", None),
    "jamba": ("Jamba-1.5-Mini", "jamba-1.5-mini"),
    "kimi_linear_moe": ("Kimi-Linear-48B", "kimi-linear-48b"),
    "lfm2": ("LFM2-1.2B", "lfm2-1.2b"),
    "lfm2_moe": ("LFM2 with experts", None),
    "llama": ("Llama-3.1-8B", "llama-3.1-8b"),
    "llama4": ("Llama-4-Scout", "llama-4-scout"),
    "mimo_v2_flash": ("MiMo-V2-Flash", "mimo-v2-flash"),
    "mllama": ("Llama-3.2-11B-Vision", "llama-3.2-11b-vision"),
    "minicpm3": ("MiniCPM-3", None),
    "minimax_m2": ("MiniMax-M2", "minimax-m2"),
    "ministral": ("Ministral-3", None),
    "mistral": ("Mistral-7B-v0.1", "mistral-7b-v0.1"),
    "mixtral": ("Mixtral-8x7B", "mixtral-8x7b"),
    "nemotron_h": ("Nemotron-H-8B", "nemotron-h-8b"),
    "nemotron_h_moe": ("Nemotron-H with experts", None),
    "olmo3": ("Olmo-3-7B", "olmo-3-7b"),
    "qwen2_moe": ("Qwen2-MoE", None),
    "qwen3": ("Qwen3", None),
    "qwen3_5": ("Qwen3.5-27B", "qwen3.5-27b"),
    "qwen3_5_moe": ("Qwen3.5-35B-A3B", "qwen3.5-35b-a3b"),
    "qwen3_moe": ("Qwen3-30B-A3B", "qwen3-30b-a3b"),
    "qwen3_vl": ("Qwen3-VL, images", None),
    "qwen3_next": ("Qwen3-Next-80B-A3B", "qwen3-next-80b"),
    "seed_oss": ("Seed-OSS-36B", "seed-oss-36b"),
    "smollm3": ("SmolLM3-3B", "smollm3-3b"),
    "step3p5": ("Step-3.5-Flash", "step-3.5-flash"),
    "whisper": ("Whisper", None),
}


# -- results --------------------------------------------------------------------------------------


def keep(name: str, path: Path, state: dict[str, Any], compared: list[str]) -> None:
    """Record what the running test compared for a model's checkpoint in ``path``; ``state`` is
    Jenga's. Without a file to write to, fail where the committed row says otherwise. Names that
    stand for no release, such as a model's dense twin, have no row."""
    if name not in RELEASES:
        return
    row = {
        "class": json.loads((path / "config.json").read_text())["architectures"][0],
        "groups": sorted(group["dependency"] for group in state["groups"]),
        "compared": sorted(compared),
        # Behind it pytest-xdist puts the test's group.
        "test": os.environ["PYTEST_CURRENT_TEST"].split(" ")[0].split("@")[0],
    }
    if RESULTS_VARIABLE not in os.environ:
        assert results().get(name) == row, f"{name}: `make models` makes the table again"
        return
    file = Path(os.environ[RESULTS_VARIABLE])
    found = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(dict(sorted((found | {name: row}).items())), indent=1) + "\n")


def results() -> dict[str, Any]:
    """The committed rows by the name of the tiny model."""
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    return found


# -- table ----------------------------------------------------------------------------------------

HEADER = (
    "model",
    "SGLang's class",
    "layer groups",
    "KiB a token",
    *(human_tokens(n) for n in LENGTHS),
    "equal to",
    "by",
)


def table() -> str:
    """The table in Markdown, ordered by the models' names."""
    rows = sorted((_row(name, row) for name, row in results().items()), key=_by_name)
    lines = [HEADER, tuple("---" for _ in HEADER), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _by_name(cells: tuple[str, ...]) -> str:
    return cells[0].lower()


def _row(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    title, config = RELEASES[name]
    file, _, test = row["test"].partition("::")
    case = re.search(r"\[.*\]", test)
    by = f"`{Path(file).name}`{' ' + case[0] if case else ''}"
    planned = _planned(config) if config else (_kinds(row["groups"]), *[NONE] * (1 + len(LENGTHS)))
    return (title, f"`{row['class']}`", *planned, ", ".join(row["compared"]), by)


def _kinds(dependencies: list[str]) -> str:
    """Of a model whose sizes are not known here: what its groups are, without the tiny ones."""
    return " + ".join(re.sub(r"last state", "states", re.sub(r" \d+", "", d)) for d in dependencies)


def _planned(config: str) -> tuple[str, ...]:
    model = read_model(CONFIGS / f"{config}.json")
    report = make_report(model, POOL_BYTES, PLANNED_FOR)
    (stock,) = (layout for layout in report.layouts if layout.is_stock)
    (ours,) = (layout for layout in report.layouts if layout.name == "planned (ours)")
    groups = " + ".join(f"{len(s.layers)} {_named(s.name)}" for s in model.specs)
    fits = [_fits(report.lengths, n, ours, stock) for n in LENGTHS]
    return (groups, _kib_a_token(model), *fits)


def _named(group: str) -> str:
    return "states" if group == "state" else group


def _fits(lengths: tuple[int, ...], length: int, ours: LayoutRow, stock: LayoutRow) -> str:
    if length not in lengths:
        return NONE
    at = lengths.index(length)
    return f"{ours.concurrent[at]:.1f} / {stock.concurrent[at]:.1f}"


def _kib_a_token(model: Model) -> str:
    """What one more token of a long request takes, of Jenga and of a pool that keeps every token in
    every layer of attention."""
    far = model.max_length + model.image_tokens

    def grows(spec: LayerGroupSpec) -> bool:
        keeps = spec.dependency.peak_tokens
        return not spec.is_state and keeps(2 * far) > keeps(far)

    ours = sum(spec.bytes_per_token for spec in model.specs if grows(spec))
    every = sum(layer.k_bytes + layer.v_bytes for layer in model.layers)
    return f"{ours / 1024:.4g} / {every / 1024:.4g}"


def written(page: str) -> str:
    """``page`` with the table of now."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
