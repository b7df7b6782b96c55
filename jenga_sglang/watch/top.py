"""`jenga top URL`: the page map in a terminal."""

from __future__ import annotations

import argparse
import base64
import time
import zlib
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from jenga_sglang.core.cut.explain import human_bytes
from jenga_sglang.core.stats import MAP_LEVELS
from jenga_sglang.units import argument, parse_seconds
from jenga_sglang.watch.client import add_arguments, rank_name, server_of

COLOURS = ("blue", "dark_orange", "green", "magenta", "purple", "yellow", "red", "cyan")
MAP_ROWS = 8
USED, CACHED, IN_GROUP, FREE = "█", "▒", "░", "·"


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "top", help="show the page map in a terminal", description="Shows the pool until Ctrl-C."
    )
    add_arguments(parser)
    parser.add_argument(
        "--interval",
        type=argument(parse_seconds),
        default=1.0,
        metavar="SECONDS",
        help="time between updates (1)",
    )
    parser.add_argument("--once", action="store_true", help="show it once and end")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    server, console = server_of(arguments), Console()
    ranks = server.stats()
    if arguments.once:
        console.print(render_ranks(ranks, ranks, console.width))
        return 0
    with Live(console=console, auto_refresh=False, screen=True) as live:
        try:
            while True:
                before, ranks = ranks, server.stats()
                live.update(render_ranks(ranks, before, console.width), refresh=True)
                time.sleep(arguments.interval)
        except KeyboardInterrupt:
            return 0


def render_ranks(
    ranks: list[dict[str, Any]], before: list[dict[str, Any]], width: int
) -> RenderableType:
    """The whole screen: every data-parallel rank below the other."""
    return Group(*(render(*pair, width) for pair in zip(ranks, before, strict=True)))


def render(sample: dict[str, Any], before: dict[str, Any], width: int) -> RenderableType:
    """One rank. Rates are over the time from ``before`` to ``sample``."""
    return Group(
        _headline(sample, before),
        Panel(_next(sample), title="queue", title_align="left"),
        Panel(page_map(sample, max(16, width - 4)), title=_map_title(sample), title_align="left"),
        _groups(sample),
    )


def _headline(sample: dict[str, Any], before: dict[str, Any]) -> Text:
    groups = sample["groups"]
    used, cached = (sum(g[key] for g in groups) for key in ("used_bytes", "cached_bytes"))
    pool = sample["pool_bytes"]
    name = "  ".join(filter(None, (sample["model"], rank_name(sample))))
    text = Text.assemble(
        ("jenga ", "bold"),
        f"{name}  pool {human_bytes(pool)}: {used / pool:.1%} used, ",
        f"{cached / pool:.1%} cached",
    )
    if sample["prompt_tokens"]:
        text.append(f"  hit rate {sample['hit_tokens'] / sample['prompt_tokens']:.1%}")
    prompts = sample["prompt_tokens"] - before["prompt_tokens"]
    if prompts > 0:
        text.append(f" (now {(sample['hit_tokens'] - before['hit_tokens']) / prompts:.1%})")
    return text


def _next(sample: dict[str, Any]) -> Text:
    queue, head = sample["queue"], sample["queue"]["head"]
    text = Text(f"{queue['running_requests']:,} run, {queue['waiting_requests']:,} wait")
    if head is not None:
        text.append(
            f"\nnext is {head['request_id']} ({head['prompt_tokens']:,} prompt tokens), which has "
            f"waited {head['waited_seconds']:.1f} s: {head['reason']}",
            "yellow",
        )
    return text


def _map_title(sample: dict[str, Any]) -> str:
    return (
        f"{sample['num_large_pages']:,} large pages of {human_bytes(sample['large_page_bytes'])}: "
        f"{USED} used {CACHED} cached {IN_GROUP} free in group {FREE} free"
    )


def page_map(sample: dict[str, Any], width: int) -> Text:
    """The map in at most `MAP_ROWS` rows; a character stands for as many large pages as it takes,
    and shows what most of their bytes are."""
    cells = np.frombuffer(zlib.decompress(base64.b64decode(sample["map"])), np.uint8).reshape(-1, 2)
    per_character = -(-len(cells) // (width * MAP_ROWS))
    text = Text()
    for index, first in enumerate(range(0, len(cells), per_character)):
        if index and index % width == 0:
            text.append("\n")
        text.append(*_character(cells[first : first + per_character]))
    return text


def _character(cells: Any) -> tuple[str, str]:
    owners = np.bincount(cells[:, 0])
    owner = int(owners.argmax())
    if owner == 0:
        return FREE, "bright_black"
    state = cells[cells[:, 0] == owner, 1]
    used, cached = int((state >> 4).sum()), int((state & 15).sum())
    free = MAP_LEVELS * len(state) - used - cached
    shares = {USED: used, CACHED: cached, IN_GROUP: free}
    return max(shares, key=lambda kind: shares[kind]), COLOURS[(owner - 1) % len(COLOURS)]


def _groups(sample: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bright_black")
    columns = (
        "group",
        "large pages",
        "used",
        "cached",
        "free in group",
        "waste",
        "hits lost, tokens",
    )
    for column in (*columns, "evicted, pages", "out of reach"):
        table.add_column(column, justify="left" if column == "group" else "right")
    for index, group in enumerate(sample["groups"]):
        sizes = ("used_bytes", "cached_bytes", "free_bytes", "waste_bytes")
        counts = ("lost_hit_tokens", "evicted_pages", "cascaded_pages")
        table.add_row(
            Text(group["name"], COLOURS[index % len(COLOURS)]),
            f"{group['large_pages']:,}",
            *(human_bytes(group[key]) for key in sizes),
            *(f"{group[key]:,}" for key in counts),
        )
    return table
