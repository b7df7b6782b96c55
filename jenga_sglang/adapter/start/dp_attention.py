"""Which models data-parallel attention does not work for yet.

Its ranks run every step together and pad their batches to each other's sizes, with requests that
have no row. Attention over pages passes them by; states and encoders look every request up.
"""

from __future__ import annotations

from typing import Any

from jenga_sglang import flags
from jenga_sglang.refusal import refuse


def refuse_dp_attention(server_args: Any) -> None:
    """Raise ``SystemExit`` with one line where it was asked for and a layer cannot do it."""
    from sglang.srt.arg_groups import model_hook
    from sglang.srt.configs.hybrid_arch import mambaish_config

    view = model_hook.resolving_view(server_args)
    if not (view.enable_dp_attention or view.attn_dp_size > 1):
        return
    config = model_hook.model_config_of(server_args)
    if mambaish_config(config) is not None:
        what = "recurrent layers"
    elif getattr(config, "is_encoder_decoder", False):
        what = "cross-attention"
    else:
        return
    raise refuse(
        "--enable-dp-attention",
        f"does not work with {what} under {flags.FLAG} jenga yet; leave it out: "
        "--dp-size N alone serves N replicas",
    )
