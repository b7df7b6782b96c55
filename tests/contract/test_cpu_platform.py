"""The CPU platform on the installed SGLang: when it takes a process, and what it then serves."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jenga_sglang.platform import activate as activation
from jenga_sglang.platform.defaults import set_attention_backend
from jenga_sglang.platform.threads import core_groups

NO_ACCELERATOR = not activation.accelerator_is_visible()


@pytest.fixture
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "accelerator_is_visible", lambda: False)
    monkeypatch.delenv("SGLANG_PLATFORM", raising=False)
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)
    set_installed(monkeypatch, activation.PLATFORM_NAME)


def set_installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    points = [SimpleNamespace(name=name) for name in names]
    monkeypatch.setattr(activation, "entry_points", lambda group: points)


@pytest.mark.usefixtures("no_accelerator")
class TestActivation:
    def test_takes_a_machine_without_accelerator(self) -> None:
        assert activation.activate() == activation.PLATFORM_CLASS

    def test_leaves_a_machine_with_an_accelerator_alone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(activation, "accelerator_is_visible", lambda: True)
        assert activation.activate() is None
        monkeypatch.setenv("SGLANG_PLATFORM", activation.PLATFORM_NAME)
        assert activation.activate() is None

    def test_gives_way_to_sglangs_own_cpu_engine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
        assert activation.activate() is None

    def test_gives_way_to_another_platform_plug_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        set_installed(monkeypatch, activation.PLATFORM_NAME, "vendor")
        assert activation.activate() is None

    def test_is_taken_by_name_beside_another_plug_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        set_installed(monkeypatch, activation.PLATFORM_NAME, "vendor")
        monkeypatch.setenv("SGLANG_PLATFORM", activation.PLATFORM_NAME)
        assert activation.activate() == activation.PLATFORM_CLASS


def test_importing_the_entry_point_loads_no_torch() -> None:
    program = "import sys, jenga_sglang.platform.activate; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize(
    ("cores", "num_ranks", "groups"),
    [
        ([0, 1, 2, 3], 2, "0,1|2,3"),
        ([0, 1, 2], 2, "0|1"),
        ([4, 6], 2, "4|6"),
        ([0], 2, "0|0"),
    ],
)
def test_ranks_share_the_cores_equally(cores: list[int], num_ranks: int, groups: str) -> None:
    assert core_groups(cores, num_ranks) == groups


@pytest.mark.parametrize(
    ("asked", "radix_cache_backend", "chosen"),
    [
        (None, None, "torch_native"),
        ("intel_amx", None, "torch_native"),  # SGLang's own guess for an unset flag on x86
        ("intel_amx", "jenga", "jenga_torch"),
        (None, "jenga", "jenga_torch"),
        ("triton", "jenga", "triton"),
    ],
)
def test_the_attention_backend_follows_the_memory_backend(
    asked: str | None, radix_cache_backend: str | None, chosen: str
) -> None:
    args = SimpleNamespace(attention_backend=asked, radix_cache_backend=radix_cache_backend)
    set_attention_backend(args)
    assert args.attention_backend == chosen


RESOLVE = """
import json, sys
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.arg_groups.overrides import resolving_view
from sglang.srt.server_args import prepare_server_args

def resolve(flags):
    args = prepare_server_args(flags)
    args.resolve_once()
    cfg = resolving_view(args)
    names = ("device", "attention_backend", "sampling_backend", "max_total_tokens")
    names += ("mem_fraction_static",)
    graphs = [cfg.cuda_graph_config.decode.backend, cfg.cuda_graph_config.prefill.backend]
    return {name: getattr(cfg, name) for name in names} | {"graphs": graphs}

print(json.dumps([resolve(flags) for flags in json.loads(sys.argv[1])]))
"""


def resolved_arguments(*command_lines: list[str]) -> list[dict[str, Any]]:
    """Return what SGLang decides for each command line, all in one process of their own."""
    done = subprocess.run(
        [sys.executable, "-c", RESOLVE, json.dumps(command_lines)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    decisions: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return decisions


@pytest.mark.skipif(not NO_ACCELERATOR, reason="the platform stands back from an accelerator")
class TestOnThisMachine:
    def test_a_model_path_is_enough_and_the_users_own_choices_stand(self, demo_model: Path) -> None:
        model = ["--model-path", str(demo_model)]
        uncut = [*model, "--chunked-prefill-size", "-1"]
        own_flags = [*model, "--attention-backend", "triton", "--mem-fraction-static", "0.1"]
        bare, own, whole = resolved_arguments(model, own_flags, uncut)
        assert (
            bare
            == whole
            == {
                "device": "cpu",
                "attention_backend": "torch_native",
                "sampling_backend": "pytorch",
                "max_total_tokens": 65_536,
                "mem_fraction_static": 0.8,
                "graphs": ["disabled", "disabled"],
            }
        )
        assert own["attention_backend"] == "triton"
        assert (own["max_total_tokens"], own["mem_fraction_static"]) == (None, 0.1)

    @pytest.mark.parametrize("num_ranks", [1, pytest.param(2, marks=pytest.mark.long)])
    def test_the_stock_server_answers_as_hugging_face_does(
        self, num_ranks: int, demo_model: Path, start_server: Callable[..., Any]
    ) -> None:
        prompt = list(range(20, 220))  # three windows and a bit
        flags = ("--model-path", str(demo_model), "--dtype", "float32", "--tp", str(num_ranks))
        body = {
            "input_ids": prompt,
            "sampling_params": {"temperature": 0, "max_new_tokens": 32, "ignore_eos": True},
        }
        answer = start_server(*flags).post("/generate", body)
        assert answer["output_ids"] == hugging_face_tokens(demo_model, prompt, 32)


def hugging_face_tokens(model_path: Path, prompt: list[int], num_tokens: int) -> list[int]:
    """Return the greedy continuation that Hugging Face's own model gives."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    ids = torch.tensor([prompt])
    out = model.generate(ids, max_new_tokens=num_tokens, do_sample=False, eos_token_id=None)
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens
