"""What is told to Mooncake's transfer engine, as soon as a server of one role has its pool.

Not before: SGLang's module makes metrics when it is imported, and where they are written is only
known when the first process has begun to start the server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jenga_sglang.adapter import disagg
from jenga_sglang.hook import AROUND, hook


@hook(
    "sglang.srt.disaggregation.mooncake.conn.MooncakeKVManager._validate_peer_state_layout",
    ("self", "registration_info"),
    AROUND,
    until="a layout is compared where only one server has one",
)
def _validate_peer_state_layout(
    original: Callable[..., Any], manager: Any, registration_info: Any
) -> Any:
    """A decode server with other components, one without Jenga among them, is sent nothing."""
    why = disagg.foreign_layout(manager.kv_args, registration_info)
    return (False, why) if why else original(manager, registration_info)
