"""All backends with host memory below the pool: Jenga's host tier against SGLang's own.

SGLang's is run as each of its write policies says, and once more as if its copies took no time: a
server makes them beside its steps, and a replay does not.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.replay import seeds
from benchmarks.replay.report import markdown
from benchmarks.replay.seeds import Experiment, Row, Sides, by_experiment
from jenga_sglang.units import parse_bytes

TIMES_THE_POOL = 4
POLICIES = ("write_back", "write_through")
EXPERIMENTS = tuple(
    e for e in seeds.EXPERIMENTS if e.ratio is not None and e.kind in ("chat", "agents", "docqa")
)
KEPT = (
    *seeds.KEPT,
    *("written_bytes", "loaded_bytes", "hit_tokens", "host_pool_bytes", "shared_bytes"),
)


def sides(experiment: Experiment) -> Sides:
    """Jenga without a host, and every backend with one."""
    host = f"--host-bytes={TIMES_THE_POOL * parse_bytes(experiment.kv_bytes)}"
    tiered = {
        f"{name}, {policy}": [*flags, host, f"--write-policy={policy}"]
        for name, flags in experiment.backends().items()
        for policy in POLICIES
    }
    free = {
        f"{name}, copies free": [*flags, "--copy-bytes-per-s=inf"]
        for name, flags in tiered.items()
        if not name.startswith("jenga")
    }
    return {"jenga, no host": ["--backend=jenga"]} | tiered | free


def tiers_table(rows: Sequence[Row]) -> str:
    """Per experiment: Jenga with a host against the best of SGLang's with one; hit rates and their
    bound; the shared set as a share of device and host; bytes moved for a token of a hit."""
    header = ["geometry, trace, pool", "Jenga", "best of SGLang's", "ratio"]
    header += ["hits: ours, theirs, bound", "shared set", "bytes a token hit: ours, theirs"]
    lines = [_line(title, own) for title, own in by_experiment(rows)]
    return markdown(header, [":--", "--:", ":--", "--:", ":--", "--:", ":--"], lines)


def _line(title: str, rows: Sequence[Row]) -> list[str]:
    (mine,) = (row for row in rows if row["name"] == f"jenga, {POLICIES[0]}")
    theirs = max(
        (row for row in rows if not row["name"].startswith("jenga") and not _is_free(row)),
        key=lambda row: float(row["mid_out_tok_s"]),
    )
    both = mine, theirs
    memory = parse_bytes(title.split(", ")[2]) + mine["host_pool_bytes"]
    hits = [f"{row['hit_rate']:.2f}" for row in both] + [f"{mine['hit_bound']:.2f}"]
    return [
        title,
        f"{mine['mid_out_tok_s']:,.0f}",
        f"{theirs['mid_out_tok_s']:,.0f} {theirs['name']}",
        f"{mine['mid_out_tok_s'] / theirs['mid_out_tok_s']:.2f}",
        ", ".join(hits),
        f"{mine['shared_bytes'] / memory:.2f}",
        ", ".join(f"{moved_bytes_a_hit(row):,.0f}" for row in both),
    ]


def _is_free(row: Row) -> bool:
    return bool(row["name"].endswith("free"))


def moved_bytes_a_hit(row: Row) -> float:
    """Bytes to and from the host for every token of a hit."""
    return float(row["written_bytes"] + row["loaded_bytes"]) / max(1, row["hit_tokens"])
