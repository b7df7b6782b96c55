"""Pairs of models of which one drafts for the other, on every backend that takes them.

SGLang's window pool is run as shipped and with one smaller ratio; for a model that SGLang has no
window pool for, keeping every token on every layer is one more peer: it is what a server does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.replay import seeds
from benchmarks.replay.report import markdown
from benchmarks.replay.seeds import DATA, Experiment, Row, Sides, by_experiment

KEPT = (*seeds.KEPT, "accept_length")


@dataclass(frozen=True)
class Pair(Experiment):
    """An experiment beside a model that drafts. ``ratio`` is one more ratio of stock's window pool.
    ``has_window_pool``: SGLang gives the target one by itself."""

    draft: str = ""
    algorithm: str = "STANDALONE"
    has_window_pool: bool = True

    @property
    def title(self) -> str:
        return f"{self.geometry} + {self.draft}, {self.kind}, {self.kv_bytes}"

    def flags(self, trace: Path) -> list[str]:
        draft = DATA / "drafts" / f"{self.draft}.json"
        return [*super().flags(trace), f"--draft={draft}", f"--draft-algorithm={self.algorithm}"]

    def backends(self) -> Sides:
        found, jenga = {"stock": ["--backend=stock"]}, ["--backend=jenga"]
        if self.ratio is not None:
            flag = f"--swa-full-tokens-ratio={self.ratio}"
            found[f"stock {self.ratio:g}"] = ["--backend=stock", flag]
        if not self.has_window_pool:
            found["stock-hybrid-off"] = ["--backend=stock-hybrid-off"]
            jenga.append("--no-window-pool")
        if self.algorithm != "STANDALONE":  # which unified memory refuses
            found["unified"] = ["--backend=unified"]
        return found | {"jenga": jenga}


def _pairs(
    target: str,
    draft: str,
    budgets: tuple[str, str],
    ratios: tuple[float | None, float | None] = (None, None),
    algorithm: str = "STANDALONE",
    has_window_pool: bool = True,
) -> list[Pair]:
    """Documents and chats, with a budget and a ratio of stock's each."""
    return [
        Pair(
            *(target, kind, requests, kv_bytes, ratio),
            draft=draft,
            algorithm=algorithm,
            has_window_pool=has_window_pool,
        )
        for kind, requests, kv_bytes, ratio in zip(
            ("docqa", "chat"), (400, 1_500), budgets, ratios, strict=True
        )
    ]


EXPERIMENTS = (
    *_pairs("gemma2-27b", "gemma2-2b", ("40GiB", "12GiB"), (0.2, 0.6), has_window_pool=False),
    *_pairs("ministral-8b", "llama3.2-1b", ("28GiB", "9GiB"), has_window_pool=False),
    *_pairs("kv-shared-70b", "llama3.2-1b", ("10GiB", "4GiB"), (0.1, 0.6)),
    *_pairs("llama3-70b", "llama3.2-1b", ("56GiB", "10GiB")),
    *_pairs("gpt-oss-120b", "gpt-oss-120b-eagle3", ("8GiB", "3GiB"), (0.1, 0.6), "EAGLE3"),
)


def pairs_table(rows: Sequence[Row]) -> str:
    """Per pair, trace and budget: middle output rates with the first seed, Jenga's as a multiple of
    the best of the others by seed, and over whole runs; mean hit rates; retractions."""
    header = ["models, trace, budget", "others", "Jenga", "times the best, by seed", "whole runs"]
    header += ["hits: ours, theirs, bound", "retracted: ours, theirs"]
    lines = [_line(title, own) for title, own in by_experiment(rows)]
    return markdown(header, [":--", ":--", "--:", ":--", ":--", "--:", "--:"], lines)


def _line(title: str, rows: Sequence[Row]) -> list[str]:
    runs = [[row for row in rows if row["seed"] == s] for s in sorted({r["seed"] for r in rows})]
    first, *_ = runs
    (mine,) = (row for row in first if row["name"] == "jenga")
    best = [_best(run, "mid_out_tok_s") for run in runs]
    hits = [sum(row["hit_rate"] for row in side) / len(runs) for side in zip(*best, strict=True)]
    bound = sum(ours["hit_bound"] for ours, _ in best) / len(runs)
    return [
        title,
        ", ".join(f"{row['name']} {row['mid_out_tok_s']:,.0f}" for row in first if row is not mine),
        f"{mine['mid_out_tok_s']:,.0f}",
        ", ".join(_times(best, "mid_out_tok_s")),
        ", ".join(_times([_best(run, "out_tok_s") for run in runs], "out_tok_s")),
        ", ".join(f"{share:.2f}" for share in (*hits, bound)),
        ", ".join(str(sum(row["retractions"] for row in side)) for side in zip(*best, strict=True)),
    ]


def _best(run: Sequence[Row], rate: str) -> tuple[Row, Row]:
    """Jenga's row and the others' with the highest ``rate``."""
    (ours,) = (row for row in run if row["name"] == "jenga")
    return ours, max((row for row in run if row is not ours), key=lambda row: float(row[rate]))


def _times(pairs: Sequence[tuple[Row, Row]], rate: str) -> list[str]:
    return [f"{ours[rate] / theirs[rate]:.2f}" for ours, theirs in pairs]
