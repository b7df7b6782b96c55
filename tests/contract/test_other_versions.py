"""Installed beside an SGLang that it was not made for: SGLang says that it is another version, in
real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
OTHER = "0.5.99"
LINE = f"jenga-sglang: SGLang {OTHER}: --memory-backend jenga is made for SGLang "
PROGRAM = """
import json, multiprocessing
from argparse import ArgumentParser

def load():
    from sglang.srt.plugins import load_plugins
    load_plugins()

if __name__ == "__main__":
    load()
    process = multiprocessing.get_context("spawn").Process(target=load)
    process.start()
    process.join()
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.platforms import current_platform
    from sglang.srt.plugins.hook_registry import HookRegistry
    from sglang.srt.server_args import ServerArgs
    parser = ArgumentParser()
    ServerArgs.add_cli_args(parser)
    print(json.dumps({
        "spawned": process.exitcode,
        "hooked": [
            target
            for target, hooks in HookRegistry._hooks.items()
            for _, hook, _ in hooks
            if hook.__module__.startswith("jenga_sglang")
        ],
        "knows_the_flag": "--memory-backend" in parser._option_string_actions,
        "engine_is_its_own": Engine.server_args_class is ServerArgs,
        "platform": type(current_platform).__module__,
    }))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a process in which SGLang's distribution has another version."""
    folder = tmp_path_factory.mktemp("other")
    facts = folder / f"sglang-{OTHER}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sglang\nVersion: {OTHER}\n")
    path = os.pathsep.join((str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")))
    return os.environ | {"PYTHONPATH": path}


def test_a_start_without_the_flag_is_stocks_but_for_one_line(
    environment: dict[str, str], tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert not facts.pop("platform").startswith("jenga_sglang")
    assert facts == {
        "spawned": 0,
        "hooked": [],
        "knows_the_flag": False,
        "engine_is_its_own": True,
    }
    said = [line for line in done.stderr.splitlines() if "jenga-sglang" in line]
    assert len(said) == 1 and LINE in said[0]


def test_a_start_with_the_flag_ends_with_that_line(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", "none"]
    done = subprocess.run(
        [*command, "--memory-backend", "jenga"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(LINE)
    assert "Traceback" not in done.stderr
