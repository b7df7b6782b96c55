"""The layer groups of a model that is built without weights: what a server would find in it.

A program of its own, ``python -m jenga_sglang.adapter.start.without_weights FOLDER …``, for SGLang
keeps one set of arguments a process. It prints the groups as JSON; the reader is
`jenga_sglang.plan.exact`. One rank, on the host: the class is built on torch's meta device.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from jenga_sglang import flags
from jenga_sglang.core.cut.geometry import LayerGroupSpec

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the groups of rows and of states of a model in a folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--kv-dtype", choices=DTYPES, required=True)
    parser.add_argument(flags.WINDOW_FLAG, choices=("model", "config"), required=True)
    parser.add_argument("--max-length", type=int)
    given = parser.parse_args(argv)
    printed, sys.stdout = sys.stdout, sys.stderr  # SGLang prints, too
    config = _model_config(given.folder, given.jenga_window)
    model = _build(config)
    found = _specs(model, config, DTYPES[given.kv_dtype], given.max_length)
    json.dump([_as_json(spec) for spec in found], printed)
    return 0


def _model_config(folder: str, window: str) -> Any:
    """SGLang's reading of the model's config, by a scheduler of one rank with Jenga's arguments:
    what those refuse ends the program with one line."""
    from sglang.srt.plugins import load_plugins

    load_plugins()
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.distributed import bootstrap
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.managers import scheduler
    from sglang.srt.server_args import PortArgs

    server_args = Engine.server_args_class(
        model_path=folder,
        skip_tokenizer_init=True,
        load_format="dummy",
        device="cpu",
        attention_backend=flags.TORCH_BACKEND,
        memory_backend="jenga",
        jenga_window=window,
    )
    ports = PortArgs.init_new(server_args)
    ranks = scheduler.SpawnRanks(world_rank=0, dp_rank=None, gpu_id=0)
    scheduler.publish(server_args, role="scheduler", ranks=ranks)
    config = ModelConfig.from_server_args(server_args)
    bootstrap.init_parallel_runtime(
        server_args=server_args, device="cpu", dist_port=ports.nccl_port
    )
    bootstrap.init_layer_runtime(model_config=config)
    return config


def _build(config: Any) -> torch.nn.Module:
    """SGLang's class, whose parameters have shapes and no numbers."""
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.model_loader.loader import _initialize_model
    from sglang.srt.model_loader.utils import set_default_torch_dtype

    with set_default_torch_dtype(config.dtype), torch.device("meta"):
        model: torch.nn.Module = _initialize_model(config, LoadConfig())
    return model


def _specs(
    model: torch.nn.Module, config: Any, dtype: torch.dtype, max_length: int | None
) -> list[LayerGroupSpec]:
    """As `build.build_pools` groups them."""
    from sglang.srt.configs.hybrid_arch import mambaish_config
    from sglang.srt.configs.model_config import AttentionArch

    from jenga_sglang.adapter import discovery
    from jenga_sglang.adapter.start.refused_models import refuse_built
    from jenga_sglang.adapter.states import discover_states

    refuse_built(model, config)
    is_latent = config.attention_arch == AttentionArch.MLA
    owner = SimpleNamespace(use_mla_backend=is_latent, model_config=config)
    layers = discovery.attention_layers(model)
    if flags.follows_config_windows():
        discovery.apply_config_windows(layers, config.hf_text_config)
    groups = discovery.discover_groups(
        layers,
        store_dtype=dtype,
        max_length=max_length or config.context_len,
        chunk=getattr(config, "attention_chunk_size", None),
        latent=discovery.latent_row(owner),
    )
    recurrent = mambaish_config(config)
    states = None
    if recurrent is not None:
        states = discover_states(recurrent, range(config.num_hidden_layers))
    return [group.spec for group in (*groups, states) if group]


def _as_json(spec: LayerGroupSpec) -> dict[str, Any]:
    dependency = spec.dependency
    return {
        "layers": list(spec.layers),
        "dependency": [type(dependency).__name__, *_lengths(dependency)],
        "k_bytes": spec.k_bytes,
        "v_bytes": spec.v_bytes,
        "state_bytes": list(spec.state_bytes),
    }


def _lengths(dependency: Any) -> list[int]:
    """The numbers of a dependency, in the order of its fields."""
    return [value for value in vars(dependency).values() if isinstance(value, int)]


if __name__ == "__main__":
    sys.exit(main())
