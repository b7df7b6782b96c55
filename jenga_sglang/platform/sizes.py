"""Sizes that SGLang pads for its CPU kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jenga_sglang.platform.late import after_import


def install() -> None:
    after_import("sglang.srt.configs.update_config", _change)


def _change(module: Any) -> None:
    module.update_intermediate_size = skip_lists(module.update_intermediate_size)


def skip_lists(pad: Callable[[Any, str, int], Any]) -> Callable[[Any, str, int], Any]:
    """``pad``, but a size that the model's config lists layer by layer (Gemma-3n) stays: these
    operators need no padding."""

    def update(model_config: Any, name: str, padding: int) -> Any:
        text = getattr(model_config, "hf_text_config", None)
        is_list = isinstance(getattr(text, name, None), list | tuple)
        return model_config if is_list else pad(model_config, name, padding)

    return update
