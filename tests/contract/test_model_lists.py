"""Model classes for which SGLang names the attention backends that it accepts take ours too.

Server arguments are resolved as a server resolves them, up to what needs weights; in a process of
its own, because that hooks SGLang.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jenga_sglang import flags

CONFIGS = Path(__file__).parents[1] / "configs"
LISTED = ("gpt-oss-20b", "llama-4-scout", "gemma-4-31b", "olmo-3-7b")

RESOLVE = """
import sys
from sglang.srt.plugins import load_plugins

load_plugins()
from sglang.srt.arg_groups.overrides import resolved_view
from sglang.srt.entrypoints.engine import Engine

for model in sys.argv[1:]:
    for backend in BACKENDS:
        server_args = Engine.server_args_class(
            model_path=model, memory_backend="jenga", attention_backend=backend,
            skip_tokenizer_init=True, load_format="dummy", dtype="bfloat16",
        )
        server_args.resolve_once()
        print("resolved", model, resolved_view(server_args).attention_backend)
"""


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    folders = []
    for name in LISTED:
        folder = tmp_path / name
        folder.mkdir()
        config = json.loads((CONFIGS / f"{name}.json").read_text())
        (folder / "config.json").write_text(json.dumps(config.get("config", config)))
        folders.append(str(folder))
    return folders


def test_listed_models_take_every_backend_of_ours(models: list[str]) -> None:
    script = RESOLVE.replace("BACKENDS", repr(flags.ATTENTION_BACKENDS))
    result = subprocess.run(
        [sys.executable, "-c", script, *models],
        capture_output=True,
        text=True,
    )
    found = [line for line in result.stdout.splitlines() if line.startswith("resolved ")]
    expected = [f"resolved {m} {b}" for m in models for b in flags.ATTENTION_BACKENDS]
    assert found == expected, result.stderr[-3000:]
