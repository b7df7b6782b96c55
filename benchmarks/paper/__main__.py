"""`python -m benchmarks.paper TABLE`: one table of a paper as Markdown."""

import argparse

from benchmarks.paper.tables import decode_batch, fragmentation, lcm_table, longest_context
from benchmarks.replay.report import markdown

TABLES = {
    "fragmentation": (
        fragmentation,
        ["layout", "lost at 55,000 to 110,000 tokens", "at 66,775 tokens"],
    ),
    "batch": (decode_batch, ["layout", "requests at once", "times full KV"]),
    "context": (longest_context, ["layout", "longest request, tokens", "times full KV"]),
    "lcm": (
        lcm_table,
        [
            *("model", "small pages, one stripe a group", "exact LCM", "large page planned"),
            *("page tables", "lost by exact LCM", "lost as planned"),
        ],
    ),
}


def table(name: str) -> str:
    """The table ``name`` in Markdown."""
    make, header = TABLES[name]
    rows = make()
    return markdown(header, [":--", *["--:"] * (len(header) - 1)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=__doc__)
    parser.add_argument("table", choices=[*TABLES, "all"])
    chosen = parser.parse_args().table
    print("\n\n".join(table(name) for name in (TABLES if chosen == "all" else [chosen])))


if __name__ == "__main__":
    main()
