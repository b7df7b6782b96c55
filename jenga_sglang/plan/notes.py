"""What a reader of a report must know besides its numbers."""

from __future__ import annotations

from jenga_sglang.plan.model import Model
from jenga_sglang.plan.report import Report
from jenga_sglang.plan.stock import STATES_PER_REQUEST
from jenga_sglang.units import human_tokens

ESTIMATE = (
    "An estimate, from the fields of the config: a server reads the loaded model, and prints its "
    "layer groups when it starts. --exact builds SGLang's class without weights and asks that."
)
EXACT = "The layer groups are those of SGLang's class, built without weights: a server's own."


def notes(report: Report) -> list[str]:
    """One sentence each; the last says what the numbers are."""
    model, found = report.model, []
    if model.ignored_window is not None:
        found.append(
            f"The config declares a window ({model.ignored_window}) that SGLang's "
            f"{model.stock.architecture} does not apply, so all layers are full here; "
            "--jenga-window config applies it."
        )
    if shared := [layer.index for layer in model.layers if layer.shares]:
        found.append(
            f"Layers {_ranges(shared)} share the KV of an earlier layer and get no page; SGLang "
            "gives them rows."
        )
    if model.image_tokens:
        found.append(f"Every request has {model.image_tokens:,} image tokens besides its text.")
    if model.tail_tokens:
        found.append(
            f"Every request has room for {model.tail_tokens} tokens of drafts behind its own, as "
            "SGLang asks for, in whole pages of every group."
        )
    if any(spec.is_state for spec in model.specs):
        found.append(
            f"States: SGLang sets {STATES_PER_REQUEST} aside per running request (some of them for "
            "its prefix cache) and caps its batch by that; the other rows count the one in use."
        )
        if model.tail_tokens:
            found.append(
                "SGLang also keeps a state behind every draft of each request that may run, beside "
                "its pools: its rows here leave them out."
            )
    if not model.stock.has_class:
        found.append(_without_class(model))
    if report.skipped_lengths:
        skipped = ", ".join(human_tokens(n) for n in report.skipped_lengths)
        found.append(f"Left out, longer than the model's {model.max_length:,} tokens: {skipped}.")
    found.append(EXACT if model.is_exact else ESTIMATE)
    return found


def _without_class(model: Model) -> str:
    """What an architecture without a class of SGLang's own means for the numbers."""
    name = model.stock.architecture
    if name == "unknown":
        return "The config names no architecture, so what SGLang does with it is an estimate."
    if any(spec.is_state for spec in model.specs) or model.image_tokens:
        return f"SGLang 0.5.23 has no {name}; its rows are what it would do."
    return (
        f"SGLang 0.5.23 has no {name}: all of this is an estimate of what its Transformers backend "
        "does, if it takes the model."
    )


def _ranges(numbers: list[int]) -> str:
    """``20-34`` or ``1, 3, 5``; ascending numbers."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}-{numbers[-1]}"
    return ", ".join(map(str, numbers))
