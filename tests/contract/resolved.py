"""Server arguments resolved as a server resolves them, up to what needs weights; in a process of
its own, because that hooks SGLang."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parents[1] / "configs"

PROGRAM = """
import json
import os
import pickle
import sys

from sglang.srt.plugins import load_plugins

load_plugins()
from sglang.srt.arg_groups.overrides import resolved_view
from sglang.srt.entrypoints.engine import Engine

for fields in json.loads(sys.argv[1]):
    os.environ.update(fields.pop("env", {}))
    try:
        server_args = Engine.server_args_class(
            memory_backend="jenga", skip_tokenizer_init=True, load_format="dummy",
            dtype="bfloat16", **fields,
        )
        server_args.resolve_once()
    except SystemExit as refused:
        print("resolved", json.dumps({"refused": {"refused": str(refused)}}))
        continue
    spawned = pickle.loads(pickle.dumps(server_args))
    shown = server_args.resolved_dict()
    names = ("attention_backend", "page_size")
    print("resolved", json.dumps({
        "here": {name: getattr(resolved_view(server_args), name) for name in names},
        "in a child": {name: getattr(resolved_view(spawned), name) for name in names},
        "in /server_info": {name: shown[name] for name in names},
    }))
"""


def write_config(folder: Path, name: str) -> str:
    """A model's folder below ``folder`` with a config of `CONFIGS`; returns its path."""
    model = folder / name
    model.mkdir()
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    (model / "config.json").write_text(json.dumps(config.get("config", config)))
    return str(model)


def resolve(servers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What became of the fields of each Jenga server, which every process of it agrees on, or the
    line under "refused". ``env`` among them is set for that server and those after it."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(list(servers))],
        capture_output=True,
        text=True,
    )
    found = [
        json.loads(line.removeprefix("resolved "))
        for line in result.stdout.splitlines()
        if line.startswith("resolved ")
    ]
    assert len(found) == len(servers), result.stderr[-3000:]
    for views in found:
        assert len({json.dumps(view) for view in views.values()}) == 1
    return [next(iter(views.values())) for views in found]
