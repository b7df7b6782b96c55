"""Writes the config folder of a dummy model with a geometry's layer pattern."""

import json
from pathlib import Path
from typing import Any

from benchmarks.replay.geometry import Geometry, Group
from benchmarks.replay.trace import VOCAB_SIZE

CONTEXT_TOKENS = 131_072


def write_checkpoint(folder: Path, geometry: Geometry) -> None:
    """Write `config.json`; head_dim is divided by the geometry's shrink factor."""
    (folder / "config.json").write_text(json.dumps(_config(geometry)))


def _config(geometry: Geometry) -> dict[str, Any]:
    """Return a config that opts in to SGLang's hybrid memory when some groups have a window.

    Whether hybrid memory is used is then up to `--disable-hybrid-swa-memory`.
    """
    factor = geometry.shrink_factor
    full = [g for g in geometry.row_groups if g.window is None]
    swa = [g for g in geometry.row_groups if g.window is not None]
    chunked = [g for g in swa if g.kind == "chunked"]
    main = (full or swa)[0]
    config: dict[str, Any] = {
        "architectures": ["ReplayForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 64,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": CONTEXT_TOKENS,
        "num_hidden_layers": len(geometry.order),
        "num_attention_heads": main.kv_heads,
        "num_key_value_heads": main.kv_heads,
        "head_dim": main.stored_head_dim // factor,
        "sliding_window": swa[0].window if swa and not chunked else None,
        "attention_chunk_size": chunked[0].window if chunked else None,
        "replay_layers": [_layer(geometry.groups[i], factor) for i in geometry.order],
    }
    if swa:
        config |= {
            "is_hybrid_swa": True,
            "hybrid_layer_pattern": [
                int(geometry.groups[i].window is not None) for i in geometry.order
            ],
            "swa_num_key_value_heads": swa[0].kv_heads,
            "swa_head_dim": swa[0].stored_head_dim // factor,
        }
    for group in geometry.state_groups:
        config |= _states(geometry, group.stored_state // factor)
    return config


def _states(geometry: Geometry, elements: int) -> dict[str, Any]:
    """Return what makes a config one of short convolutions, whose states have so many elements:
    the plainest of SGLang's recurrent layers."""
    kinds = [geometry.groups[i].kind for i in geometry.order]
    return {
        "model_type": "lfm2",
        "layer_types": ["conv" if kind == "mamba" else "full_attention" for kind in kinds],
        "hidden_size": elements,
        "conv_L_cache": 2,
    }


def _layer(group: Group, factor: int) -> dict[str, Any] | None:
    if group.kind == "mamba":
        return None
    return {
        "kv_heads": group.kv_heads,
        "head_dim": group.stored_head_dim // factor,
        "window": group.window,
        "chunked": group.kind == "chunked",
    }
