"""Which models `--enable-deterministic-inference` does not work for yet."""

from __future__ import annotations

from typing import Any

from jenga_sglang import flags
from jenga_sglang.deterministic_flags import FLAG
from jenga_sglang.refusal import refuse


def refuse_deterministic(server_args: Any) -> None:
    """Raise ``SystemExit`` with one line where it was asked for and a layer cannot do it."""
    from sglang.srt.arg_groups import model_hook
    from sglang.srt.configs.hybrid_arch import mambaish_config

    view = model_hook.resolving_view(server_args)
    if not view.enable_deterministic_inference:
        return
    config = model_hook.model_config_of(server_args)
    if mambaish_config(config) is not None:
        what = "recurrent layers, whose states depend on where a prompt was cut"
    elif getattr(config, "is_encoder_decoder", False):
        what = "cross-attention, which has not been compared"
    elif getattr(config, "is_multimodal", False):
        what = "an encoder of images or sound, which has not been compared"
    else:
        return
    raise refuse(FLAG, f"does not work with {what}, under {flags.FLAG} jenga yet; leave it out")
