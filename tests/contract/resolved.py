"""Server arguments resolved as a server resolves them, up to what needs weights; in a process of
its own, because that hooks SGLang."""

import json
import os
import pickle
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from e2e.engine import fork_context

CONFIGS = Path(__file__).parents[1] / "configs"


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
    context = fork_context()
    results, sender = context.Pipe(duplex=False)
    process = context.Process(target=_resolve, args=(servers, sender))
    process.start()
    sender.close()
    found = results.recv()
    process.join()
    for views in found:
        assert len({json.dumps(view) for view in views.values()}) == 1
    return [next(iter(views.values())) for views in found]


def _resolve(servers: Sequence[Mapping[str, Any]], sender: Connection) -> None:
    from sglang.srt.plugins import load_plugins

    load_plugins()
    sender.send([_views(dict(fields)) for fields in servers])


def _views(fields: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A server's fields as it sees them, as a child process does, and in /server_info."""
    from sglang.srt.arg_groups.overrides import resolved_view
    from sglang.srt.entrypoints.engine import Engine

    os.environ.update(fields.pop("env", {}))
    own = {"memory_backend": "jenga", "skip_tokenizer_init": True}
    try:
        server_args = Engine.server_args_class(
            **own, load_format="dummy", dtype="bfloat16", **fields
        )
        server_args.resolve_once()
    except SystemExit as refused:
        return {"refused": {"refused": str(refused)}}
    spawned = pickle.loads(pickle.dumps(server_args))
    shown = server_args.resolved_dict()
    names = ("attention_backend", "page_size")
    return {
        "here": {name: getattr(resolved_view(server_args), name) for name in names},
        "in a child": {name: getattr(resolved_view(spawned), name) for name in names},
        "in /server_info": {name: shown[name] for name in names},
    }
