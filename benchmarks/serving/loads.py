"""The loads: arguments of ``sglang.bench_serving``, and what one run of it comes to."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.capacity.servers import Server, peak_running


@dataclass(frozen=True)
class SharedPrefixes:
    """`--dataset-name generated-shared-prefix`: ``groups`` documents of ``document_tokens``, with
    ``per_group`` requests each, of ``turns`` turns of ``question_tokens``, in random order.

    At most ``at_once`` requests are sent before the first is answered; all where it is None. With
    several turns the prompts are text, which a byte tokenizer makes about twice as long.
    """

    name: str
    groups: int
    per_group: int
    document_tokens: int
    question_tokens: int
    output_tokens: int
    turns: int = 1
    at_once: int | None = None

    def arguments(self) -> list[str]:
        """The flags that `bench_serving` takes for it."""
        given = {
            "dataset-name": "generated-shared-prefix",
            "gsp-num-groups": self.groups,
            "gsp-prompts-per-group": self.per_group,
            "gsp-system-prompt-len": self.document_tokens,
            "gsp-question-len": self.question_tokens,
            "gsp-output-len": self.output_tokens,
            "gsp-num-turns": self.turns,
            "gsp-range-ratio": 1.0,
            "backend": "sglang" if self.turns == 1 else "sglang-oai-chat",
        }
        flags = [f"--{name}={value}" for name, value in given.items()]
        if self.at_once is not None:
            flags.append(f"--max-concurrency={self.at_once}")
        if self.turns == 1:
            flags.append("--tokenize-prompt")
        return flags


@dataclass(frozen=True)
class Outcome:
    """One run of `bench_serving`. ``texts`` are the answers, to be compared between servers."""

    wall_s: float
    output_tokens_per_s: float
    prompt_tokens: int
    cached_tokens: int
    median_ttft_ms: float
    peak_running: int
    texts: list[str]

    @property
    def hit_rate(self) -> float:
        return self.cached_tokens / self.prompt_tokens

    def figures(self) -> dict[str, Any]:
        """All but the answers, ready for JSON."""
        figures = asdict(self) | {"hit_rate": self.hit_rate}
        del figures["texts"]
        return figures


def run(server: Server, model: Path, load: SharedPrefixes, seed: int) -> Outcome:
    """Run `bench_serving` on ``server``, its cache flushed. Raises ``RuntimeError`` when a request
    fails."""
    seen = server.log.stat().st_size
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.jsonl"
        common = [
            f"--base-url=http://127.0.0.1:{server.port}",
            f"--model={model}",
            f"--seed={seed}",
            f"--output-file={out}",
            "--output-details",
            "--cache-report",
            "--flush-cache",
            "--disable-tqdm",
        ]
        # It keeps the prompts that it makes below the home directory.
        with patch.dict("os.environ", HOME=folder):
            _bench_serving([*common, *load.arguments()])
        result = json.loads(out.read_text())
    if errors := [error for error in result["errors"] if error]:
        raise RuntimeError(f"{server.name}: {len(errors)} requests failed, first: {errors[0]}")
    cache = result["cache_report"]
    log = server.log.read_bytes()[seen:].decode(errors="replace")
    return Outcome(
        wall_s=result["duration"],
        output_tokens_per_s=result["output_throughput"],
        prompt_tokens=cache["total_prompt_tokens"],
        cached_tokens=cache["total_cached_tokens"],
        median_ttft_ms=result["median_ttft_ms"],
        peak_running=peak_running(log),
        texts=result["generated_texts"],
    )


def _bench_serving(arguments: Sequence[str]) -> None:
    """`python -m sglang.bench_serving`, in this process: to start one takes longer than a run."""
    from sglang.benchmark.serving import cli_main

    said = io.StringIO()
    with (
        patch.object(sys, "argv", ["bench_serving", *arguments]),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        try:
            cli_main()
        except BaseException as error:
            raise RuntimeError(f"bench_serving failed:\n{said.getvalue()[-2000:]}") from error
