"""Classes of this project's own, through SGLang's external-model mechanism."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from resolved import write_config

PROGRAM = """
import json
import sys
from types import SimpleNamespace

from sglang.srt.plugins import load_plugins

load_plugins()
from sglang.srt.arg_groups import model_hook
from sglang.srt.configs.hybrid_arch import mambaish_config
from sglang.srt.entrypoints.engine import Engine

given = {"model_path": sys.argv[1], "dtype": "bfloat16", "memory_backend": "jenga"}
server_args = Engine.server_args_class(skip_tokenizer_init=True, load_format="dummy", **given)
server_args.resolve_once()
model_config = model_hook.model_config_of(server_args)
config = mambaish_config(model_config)
found = {"config": type(model_config.hf_config).__module__}
if config is not None:
    from jenga_sglang.models import jamba_config

    # Ranks are known once a server runs.
    jamba_config.get_parallel = lambda: SimpleNamespace(tp_size=1)
    found["full"] = config.full_attention_layer_ids
    found["state_bytes"] = config.mamba2_cache_params.mamba_cache_per_req
print("found", json.dumps(found))
"""
VARIABLE = "SGLANG_EXTERNAL_MODEL_PACKAGE"


@pytest.mark.slow
def test_a_server_that_is_told_of_our_classes_reads_their_configs(tmp_path: Path) -> None:
    """Also in the process that parses the flags, where no class is looked for yet."""
    path = write_config(tmp_path, "jamba-1.5-mini")
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, path],
        env=os.environ | {VARIABLE: "jenga_sglang.models"},
        capture_output=True,
        text=True,
    )
    (line,) = [x for x in result.stdout.splitlines() if x.startswith("found ")] or [result.stderr]
    assert json.loads(line.removeprefix("found ")) == {
        "config": "jenga_sglang.models.jamba_config",
        "full": [4, 12, 20, 28],
        # Per layer: three inputs of 8,192 channels in bfloat16, and 16 float32 numbers for each.
        "state_bytes": 28 * (3 * 8192 * 2 + 16 * 8192 * 4),
    }
