"""A server's settings; tests put their own in place of these."""

from typing import Any


def get_schedule() -> Any:
    raise RuntimeError("no server is running here")


get_exec = get_schedule


def max_prefill_buffer_tokens() -> int:
    return 0
