"""`patches/0001-memory-backend-registry.patch` on a copy of the installed SGLang: it applies, and
with it the plug-in registers itself and hooks only what the registry does not cover."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from jenga_sglang.adapter.hooks import http_hooks, pool_hooks, serving_hooks

ROOT = Path(__file__).parents[2]
PATCH = ROOT / "patches" / "0001-memory-backend-registry.patch"
PROGRAM = """
import json, sys
import sglang
from sglang.srt.plugins import load_plugins
load_plugins()
load_plugins()
from sglang.srt.entrypoints.engine import Engine
from sglang.srt.mem_cache import memory_backend
from sglang.srt.plugins.hook_registry import HookRegistry
from sglang.srt.server_args import ServerArgs, prepare_server_args

def facts(flags):
    server_args = prepare_server_args(["--model-path", "none", *flags])
    refused = None
    try:
        memory_backend.prepare_memory_backend(server_args)
    except (SystemExit, ValueError) as error:
        refused = str(error)
    return {
        "sglang": sglang.__file__,
        "registered": memory_backend.registered_memory_backends(),
        # SGLang brings plug-ins of its own.
        "hooked": sorted(
            target
            for target in HookRegistry._patched
            for _, hook, _ in HookRegistry._hooks[target]
            if hook.__module__.startswith("jenga_sglang")
        ),
        "memory_backend": server_args.memory_backend,
        "radix_cache_backend": server_args.radix_cache_backend,
        "page_size": server_args.page_size,
        "refused": refused,
        "engine_is_its_own": Engine.server_args_class is ServerArgs,
    }

print(json.dumps([facts(flags) for flags in json.loads(sys.argv[1])]))
"""
STARTS = {
    "unknown": ["--memory-backend", "nope"],
    "refused": ["--memory-backend", "jenga", "--enable-lmcache"],
    "default": [],
    "jenga": ["--memory-backend", "jenga"],  # last: it hooks the process
}


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a patched copy of the installed SGLang, to put first on the path."""
    spec = find_spec("sglang")
    assert spec is not None and spec.origin is not None
    folder = tmp_path_factory.mktemp("patched")
    # Compiled modules come along: their sources keep their times.
    shutil.copytree(Path(spec.origin).parent, folder / "sglang")
    command = ["git", "apply", "-p2", "--unsafe-paths", f"--directory={folder}", str(PATCH)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def environment(patched: Path) -> dict[str, str]:
    path = os.pathsep.join((str(patched), str(ROOT), os.environ.get("PYTHONPATH", "")))
    return os.environ | {"PYTHONPATH": path}


@pytest.fixture(scope="module")
def starts(patched: Path) -> dict[str, dict[str, Any]]:
    """What a process with the patched SGLang became, command line after command line."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(list(STARTS.values()))]
    done = subprocess.run(
        command, env=environment(patched), cwd=patched, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    assert all(f["sglang"].startswith(str(patched)) for f in facts)
    return dict(zip(STARTS, facts, strict=True))


def test_the_plug_in_registers_itself_and_hooks_only_the_rest(
    starts: dict[str, dict[str, Any]],
) -> None:
    facts = starts["jenga"]
    assert facts["registered"] == ["default", "jenga"] and facts["refused"] is None
    assert facts["memory_backend"] == facts["radix_cache_backend"] == "jenga"
    assert facts["page_size"] is None and facts["engine_is_its_own"]
    expected = {hook.target for hook in serving_hooks() + http_hooks()}
    assert set(facts["hooked"]) == expected
    assert not expected & {hook.target for hook in pool_hooks()}


def test_the_default_changes_nothing(starts: dict[str, dict[str, Any]]) -> None:
    facts = starts["default"]
    assert facts["memory_backend"] == "default" and facts["radix_cache_backend"] is None
    assert facts["page_size"] is None and facts["hooked"] == []


def test_what_does_not_go_is_refused(starts: dict[str, dict[str, Any]]) -> None:
    assert "known: default, jenga" in starts["unknown"]["refused"]
    assert "leave one of the two out" in starts["refused"]["refused"]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_same_answers_as_stock(patched: Path) -> None:
    """The end-to-end test of this suite, run on the patched copy."""
    tests = "tests/e2e/test_same_answers.py::test_every_answer_is_stocks"
    probe = "import sglang; print(sglang.__file__)"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests]
    command += ["-k", "gemma3-None", "-o", f"pythonpath={patched} ."]
    where = subprocess.run(
        [sys.executable, "-c", probe],
        env=environment(patched),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.strip().startswith(str(patched))
    done = subprocess.run(
        command, env=environment(patched), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert "1 passed" in done.stdout
