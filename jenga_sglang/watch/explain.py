"""`jenga explain URL --prompt-tokens N`: would a prompt of this length be admitted now, and why."""

from __future__ import annotations

import argparse
from typing import Any

from jenga_sglang.units import argument, parse_tokens
from jenga_sglang.watch.client import add_arguments, rank_name, server_of

WORDS = {"now": "Yes, now", "later": "Not now", "never": "Never"}
STATUS = {"now": 0, "later": 1, "never": 3}


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "explain",
        help="say whether a prompt would be admitted now, and why",
        description="Says whether a prompt of a length, nothing of it cached, would be admitted "
        "now. Exit status: 0 now, 1 later, 3 never, 2 no answer; with several data-parallel ranks, "
        "the one that makes it wait longest, since any may get the prompt.",
    )
    add_arguments(parser)
    tokens = argument(parse_tokens)
    parser.add_argument(
        "--prompt-tokens", type=tokens, required=True, metavar="N", help="its length, such as 32k"
    )
    parser.add_argument(
        "--max-new-tokens", type=tokens, default=128, metavar="N", help="its longest answer (128)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    answers = server_of(arguments).explain(arguments.prompt_tokens, arguments.max_new_tokens)
    for answer in answers:
        name = rank_name(answer)
        begin = f"{name}: " if name else ""
        print(f"{begin}{WORDS[answer['answer']]}: {answer['reason']}")
    return max(STATUS[answer["answer"]] for answer in answers)
