"""Configs of models that keep what `jenga plan` does not know: an error that names the field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jenga_sglang.plan.fields import ConfigError, Fields

_SERVER_TOO = "which neither this nor a server with --memory-backend jenga can do yet"
_SERVER_CAN = "which this cannot plan; a server prints the same table when it starts"


class _Unread(NamedTuple):
    """A field, what it means, who can do it, and for which values that holds."""

    field: str
    what: str
    who: str = _SERVER_TOO
    applies: Callable[[Any], bool] = lambda value: True


def _is_linear_group(value: Any) -> bool:
    """Every n-th layer is full, or a list of 1 for linear and 0 for full."""
    return 1 in value if isinstance(value, list) else value != 1


_UNREAD = (
    _Unread(
        "attn_type_list",
        "layers of lightning attention",
        applies=lambda kinds: isinstance(kinds, list) and 0 in kinds,
    ),
    _Unread("block_configs", "heads that differ from layer to layer in blocks", _SERVER_CAN),
    _Unread("compress_ratios", "compressed tokens beside the window"),
    _Unread("encoder_layers", "an encoder and a decoder", _SERVER_CAN),
    _Unread("index_topk", "an index of keys beside the rows"),
    _Unread("index_topk_blocks", "an index of keys beside the rows"),
    _Unread(
        "layer_group_size",
        "linear attention between layers of full attention",
        "which this cannot plan, and a server with --memory-backend jenga refuses where it is "
        "lightning attention",
        _is_linear_group,
    ),
    _Unread("linear_attn_alpha_factor", "layers of lightning attention"),
    _Unread("local_layer_ids", "a convolution state beside every layer's rows"),
    _Unread(
        "mixer_types",
        "layers of lightning attention",
        applies=lambda kinds: any("lightning" in str(kind) for kind in kinds),
    ),
    _Unread("sparse_attention_config", "an index of keys beside the rows"),
    _Unread("time_step_rank", "states of Mamba-1 and no attention", _SERVER_CAN),
)


def refuse_unread(config: Fields) -> None:
    """Raise `ConfigError` for the first field that says what this cannot plan."""
    for field, what, who, applies in _UNREAD:
        if config.has(field) and applies(config.get(field)):
            raise ConfigError(f"field '{config.path}{field}': {what}, {who}")
