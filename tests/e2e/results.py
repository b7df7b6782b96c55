"""What 2,000 requests an architecture gave, as a file and as the README's table."""

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from e2e.answers import Comparison

# The file to write to; nothing is kept unless it is set.
RESULTS_VARIABLE = "JENGA_RESULTS"
HEADER = ("model", "layer groups", "equal", "ties", "different", "worst logprob error", "evicted")
HEADER += ("retracted, of stock and of Jenga", "freed pages NaN")


def record(model: str, comparison: Comparison, measured: dict[str, Any]) -> None:
    """Put a model's row into the file that the variable names, in place of an earlier one."""
    if RESULTS_VARIABLE not in os.environ:
        return
    path = Path(os.environ[RESULTS_VARIABLE])
    found = json.loads(path.read_text()) if path.exists() else {"models": {}}
    found |= {"sglang": version("sglang"), "torch": version("torch"), "cpus": os.cpu_count()}
    found["models"][model] = measured | {
        "equal": comparison.equal,
        "ties": comparison.ties,
        "differences": comparison.differences,
        "worst_logprob_error": comparison.worst_logprob_error,
    }
    path.write_text(json.dumps(found, indent=1) + "\n")


def table(found: dict[str, Any]) -> str:
    """A row per model, in Markdown."""
    lines = [HEADER, tuple("---" for _ in HEADER)]
    for model, row in found["models"].items():
        lines.append(
            (
                model,
                ", ".join(row["groups"]),
                str(row["equal"]),
                str(len(row["ties"])),
                str(len(row["differences"])),
                f"{row['worst_logprob_error']:.1e}",
                f"{row['evicted_pages']:,} pages",
                f"{row['stock_retractions']}, {row['jenga_retractions']}",
                "yes" if row["poisoned"] else "",
            )
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
