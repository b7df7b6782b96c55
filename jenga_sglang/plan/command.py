"""The subcommand ``jenga plan``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from jenga_sglang import draft_flags, flags
from jenga_sglang.core.cut.planner import DEFAULT_LENGTHS, PAGE_SIZE, SMALLER_PAGE_SIZE
from jenga_sglang.layer_flags import (
    AS_THE_REST,
    AS_TRAINED,
    KEEP_FLAG,
    KV_DTYPE_FLAG,
    Keep,
    KvDtypes,
)
from jenga_sglang.plan.exact import as_a_server_finds_it
from jenga_sglang.plan.model import ReadOptions, read_model, with_draft
from jenga_sglang.plan.render import render
from jenga_sglang.plan.report import Report, make_report, to_json
from jenga_sglang.plan.states import DTYPE_BYTES
from jenga_sglang.settings import WINDOWS
from jenga_sglang.units import argument, human_tokens, parse_bytes, parse_ranks, parse_tokens

PIPED_COLUMNS = 100
# SGLang keeps room behind a request for the drafts of a step and, where steps overlap, of the one
# before (`get_alloc_reserve_per_decode`).
STEPS_OF_TAIL = 2
DRAFT_TOKENS = draft_flags.CHAIN["speculative_num_draft_tokens"]

_DESCRIPTION = """\
Show how Jenga would cut a model's KV cache and how many requests fit, next to other layouts.
Reads the model's config.json only: no weights, no GPU, no server; with --exact SGLang does."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``plan`` to ``commands``."""
    parser = commands.add_parser("plan", help="plan a model's memory", description=_DESCRIPTION)
    parser.set_defaults(run=run)
    parser.add_argument("model", type=Path, help="a folder with a config.json, or such a file")
    parser.add_argument(
        "--kv-bytes",
        type=argument(parse_bytes),
        required=True,
        metavar="SIZE",
        help="memory for the KV cache of one GPU, such as 40GiB",
    )
    parser.add_argument(
        "--lengths",
        type=argument(_list_of(parse_tokens)),
        default=DEFAULT_LENGTHS,
        metavar="N,N,…",
        help=f"request lengths in tokens ({','.join(map(human_tokens, DEFAULT_LENGTHS))})",
    )
    parser.add_argument(
        "--tp", type=argument(parse_ranks), default=1, help="ranks of tensor parallelism (1)"
    )
    parser.add_argument(
        "--page-size",
        type=argument(_list_of(_parse_page_size)),
        metavar="N[,N…]",
        help="tokens a page; of several the best is taken (what a server takes: "
        f"{SMALLER_PAGE_SIZE} where every layer depends on everything or rows are very large, else "
        f"{PAGE_SIZE})",
    )
    parser.add_argument("--kv-dtype", choices=DTYPE_BYTES, help="dtype of K and V (the model's)")
    parser.add_argument(
        "--state-dtype", choices=DTYPE_BYTES, help="dtype of temporal states (the model's)"
    )
    parser.add_argument(
        flags.WINDOW_FLAG,
        choices=WINDOWS,
        default="model",
        help="windows as SGLang's model class applies them (model), or as the config says",
    )
    parser.add_argument(
        KV_DTYPE_FLAG,
        type=argument(KvDtypes.parse),
        default=AS_THE_REST,
        metavar="KIND=DTYPE[,…]",
        help="dtype of K and V of some kinds of layers, as a server takes it: full=fp8_e4m3",
    )
    parser.add_argument(
        KEEP_FLAG,
        type=argument(Keep.parse),
        default=AS_TRAINED,
        metavar="[LAYERS=]FIRST+WINDOW[,…]",
        help="what full-attention layers keep, as a server takes it: 4+1024",
    )
    parser.add_argument(
        "--max-length",
        type=argument(parse_tokens),
        metavar="N",
        help="the longest request, in tokens (the model's)",
    )
    parser.add_argument(
        "--image-tokens",
        type=argument(parse_tokens),
        metavar="N",
        help="image tokens of a request to a model with cross-attention (one image)",
    )
    parser.add_argument(
        "--draft",
        type=Path,
        metavar="MODEL",
        help="the same of a model that drafts: its layers share the pool "
        "(--speculative-algorithm); of a Qwen3-Next or Qwen3.5 the model itself, for its head",
    )
    parser.add_argument(
        "--draft-tokens",
        type=argument(parse_tokens),
        metavar="N",
        help="tokens of a request that are verified at once (--speculative-num-draft-tokens; with "
        f"--draft {DRAFT_TOKENS}, as a server's, else none)",
    )
    parser.add_argument(
        "--host-bytes",
        type=argument(parse_bytes),
        metavar="SIZE",
        help="host memory below the pool, for each GPU (--enable-hierarchical-cache)",
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="build SGLang's class without weights and group its layers as a server does, not by "
        "the config's fields (needs SGLang, takes a minute or two)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw a figure (PNG, SVG)")


def run(arguments: argparse.Namespace) -> int:
    """Plan and print. Raises ``ValueError`` with a message for the user."""
    options = ReadOptions(
        tp=arguments.tp,
        kv_dtype=arguments.kv_dtype,
        state_dtype=arguments.state_dtype,
        window=arguments.jenga_window,
        max_length=arguments.max_length,
        image_tokens=arguments.image_tokens,
        kv_dtypes=arguments.jenga_kv_dtype,
        keep=arguments.jenga_keep,
    )
    model = read_model(arguments.model, options)
    if arguments.exact:
        if arguments.draft:
            raise ValueError("--exact builds one model: leave out --draft, or --exact")
        model = as_a_server_finds_it(model, arguments.model, options)
    if arguments.draft:
        own = replace(options, image_tokens=None, max_length=model.max_length)
        model = with_draft(model, read_model(arguments.draft, own))
    drafts = arguments.draft_tokens
    if drafts is None:
        drafts = DRAFT_TOKENS if arguments.draft else 0
    model = replace(model, tail_tokens=STEPS_OF_TAIL * drafts)
    report = make_report(
        model, arguments.kv_bytes, arguments.lengths, arguments.page_size, arguments.host_bytes
    )
    if arguments.json:
        print(json.dumps(to_json(report), indent=2))
    else:
        render(report, Console(width=_width()))
    if arguments.plot:
        _plot(report, arguments.plot)
    return 0


def _plot(report: Report, path: Path) -> None:
    try:
        from jenga_sglang.plan.plot import plot
    except ImportError as error:
        raise ValueError("--plot needs matplotlib: pip install matplotlib") from error
    plot(report, path)


def _width() -> int | None:
    """Columns to print: the terminal's, or `PIPED_COLUMNS` where there is none."""
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return None if known else PIPED_COLUMNS


def _list_of(parse: Callable[[str], int]) -> Callable[[str], tuple[int, ...]]:
    return lambda text: tuple(parse(part) for part in text.split(","))


def _parse_page_size(text: str) -> int:
    tokens = parse_tokens(text)
    if not flags.is_page_size(tokens):
        raise ValueError(f"expected {flags.PAGE_SIZES}, such as 16, got {text!r}")
    return tokens
