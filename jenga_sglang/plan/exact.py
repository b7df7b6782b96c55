"""A model's layer groups as a server finds them: SGLang's class, built without weights.

What builds it is a program beside this one (`adapter.start.without_weights`): it needs SGLang, and
arguments of one server a process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from jenga_sglang import flags
from jenga_sglang.core.dependency import (
    ChunkedLocal,
    Dependency,
    Full,
    LastState,
    SlidingWindow,
)
from jenga_sglang.layer_flags import KEEP_FLAG, KV_DTYPE_FLAG
from jenga_sglang.plan.fields import ConfigError
from jenga_sglang.plan.model import Layer, Model, ReadOptions

PROGRAM = "jenga_sglang.adapter.start.without_weights"
# On the host, whatever accelerators there are: nothing is computed.
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": ""}
REFUSED = "jenga-sglang: "
KINDS: dict[str, type[Dependency]] = {
    kind.__name__: kind for kind in (Full, SlidingWindow, ChunkedLocal, LastState)
}


def as_a_server_finds_it(model: Model, path: Path, options: ReadOptions) -> Model:
    """``model``, which was read from the config in ``path``, with the layers that SGLang's class
    has. Raises `ConfigError` with the server's line for a model that it refuses, and for what one
    rank without requests does not know."""
    plain = ReadOptions(
        kv_dtype=options.kv_dtype, window=options.window, max_length=options.max_length
    )
    if options != plain:
        raise ConfigError(
            "--exact builds one rank of a server as it is: leave out --tp, --state-dtype, "
            f"--image-tokens, {KV_DTYPE_FLAG} and {KEEP_FLAG}, or --exact"
        )
    found = json.loads(_ask(path, model, options))
    layers: dict[int, list[Layer]] = {}
    for group in found:
        for layer in _layers(group):
            layers.setdefault(layer.index, []).append(layer)
    shared = [x for x in model.layers if x.shares and x.index not in layers]
    kept = [layer for index in sorted(layers) for layer in layers[index]]
    return replace(model, layers=(*kept, *shared), is_exact=True)


def _layers(group: dict[str, Any]) -> list[Layer]:
    name, *numbers = group["dependency"]
    if name not in KINDS:
        raise ConfigError(
            "--exact: what an encoder makes differs from request to request, and a server without "
            "any does not know it; leave --exact out"
        )
    dependency = KINDS[name](*numbers)
    sizes = (group["k_bytes"], group["v_bytes"], tuple(group["state_bytes"]))
    return [Layer(index, dependency, *sizes) for index in group["layers"]]


def _ask(path: Path, model: Model, options: ReadOptions) -> str:
    """What the program prints. SGLang reads a folder."""
    with tempfile.TemporaryDirectory() as made:
        folder = path
        if not path.is_dir():
            folder = Path(made)
            (folder / "config.json").write_text(path.read_text())
        command = [sys.executable, "-m", PROGRAM, str(folder), "--kv-dtype", model.kv_dtype]
        command += [flags.WINDOW_FLAG, options.window, "--max-length", str(model.max_length)]
        environment = os.environ | ENVIRONMENT
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return done.stdout
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(REFUSED)] or lines[-1:] or ["it said nothing"]
    raise ConfigError(f"--exact: {told[-1].removeprefix(REFUSED)}")
