"""The CPU platform on the installed SGLang: when it takes a process, and what it then serves."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jenga_sglang import settings
from jenga_sglang.platform import activate as activation
from jenga_sglang.platform.defaults import (
    DEFAULT_MEMORY_FRACTION,
    DEFAULT_POOL_TOKENS,
    set_attention_backend,
    set_moe_runner,
)
from jenga_sglang.platform.threads import core_groups

NO_ACCELERATOR = not activation.accelerator_is_visible()


@pytest.fixture
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "accelerator_is_visible", lambda: False)
    monkeypatch.delenv("SGLANG_PLATFORM", raising=False)
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)
    monkeypatch.delenv(settings.name_of("cpu_platform"), raising=False)
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

    def test_gives_way_to_a_cpu_build_of_sglangs_kernels(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Its library lies in the package; those of CUDA wheels in folders of it."""
        spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
        monkeypatch.setattr(activation, "find_spec", lambda name: spec)
        (tmp_path / "sm90").mkdir()
        (tmp_path / "sm90" / "common_ops.abi3.so").touch()
        assert activation.activate() == activation.PLATFORM_CLASS
        (tmp_path / "common_ops.abi3.so").touch()
        assert activation.activate() is None
        monkeypatch.setenv("SGLANG_PLATFORM", activation.PLATFORM_NAME)
        assert activation.activate() == activation.PLATFORM_CLASS

    def test_works_without_sglangs_kernels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(activation, "find_spec", lambda name: None)
        assert activation.activate() == activation.PLATFORM_CLASS

    def test_a_variable_turns_it_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("JENGA_CPU_PLATFORM", "0")
        assert activation.activate() is None
        for value in ("1", ""):
            monkeypatch.setenv("JENGA_CPU_PLATFORM", value)
            assert activation.activate() == activation.PLATFORM_CLASS
        monkeypatch.setenv("JENGA_CPU_PLATFORM", "no")
        with pytest.raises(SystemExit, match=r"^jenga-sglang: JENGA_CPU_PLATFORM=no: .*\.$"):
            activation.activate()


def test_the_readme_states_the_pool_and_the_switch() -> None:
    text = Path(activation.__file__).with_name("README.md").read_text()
    assert f"{DEFAULT_POOL_TOKENS:,}" in text and f"{DEFAULT_MEMORY_FRACTION}" in text
    assert "JENGA_CPU_PLATFORM=0" in text


UNTOUCHED = """
import sys
from sglang.srt.platforms import current_platform
import sglang.srt.model_executor.model_runner  # where platforms get ready
from sglang.srt.distributed import parallel_state
from sglang.srt.model_executor import forward_batch_info
acting = ("jenga_sglang.platform.", "jenga_sglang.adapter")
ours = [name for name in sys.modules if name.startswith(acting)]
print(type(current_platform).__name__, sorted(ours))
"""


def test_switched_off_it_leaves_sglang_as_it_is() -> None:
    """No operator is replaced, without a flag too: what would do it is not even imported."""
    done = subprocess.run(
        [sys.executable, "-c", UNTOUCHED],
        env=os.environ | {settings.name_of("cpu_platform"): "0"},
        capture_output=True,
        text=True,
    )
    last = done.stdout.strip().splitlines()[-1] if done.stdout else ""
    name, _, modules = last.partition(" ")
    assert name and name != "JengaCpuPlatform", done.stderr
    assert modules == str(["jenga_sglang.platform.activate"]), done.stderr


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


@pytest.mark.parametrize(("asked", "chosen"), [("auto", "triton"), ("cutlass", "cutlass")])
def test_the_runner_of_experts_is_one_whose_layout_torch_reads(asked: str, chosen: str) -> None:
    args = SimpleNamespace(moe_runner_backend=asked)
    set_moe_runner(args)
    assert args.moe_runner_backend == chosen


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


REPLACED = """
import inspect, json
import sglang.srt.model_executor.model_runner  # where platforms get ready
from sglang.srt.distributed import parallel_state
from sglang.srt.model_executor import forward_batch_info
from sglang.kernels.ops.activation import softcap
from sglang.srt.configs import update_config
from sglang.srt.layers import dp_attention, layernorm
from sglang.srt.layers.moe import fused_moe_native
from sglang.srt.layers.moe.moe_runner.triton_utils import fused_moe as runner
from sglang.srt.layers.rotary_embedding import factory
from sglang.srt.models import afmoe, deepseek_v2, glm4_moe, glm4_moe_lite, llama4, minimax_m2
from sglang.srt.models import qwen2_moe
import torch

used = (
    softcap._softcap_logits,
    update_config.update_intermediate_size,
    layernorm.Gemma4RMSNorm.forward_native,
    fused_moe_native.moe_forward_native,
    fused_moe_native.swiglu_gpt_oss_sigmoid_alpha,
    runner.fused_moe,
    factory.get_rope_cpu,
    afmoe.fused_moe,
    deepseek_v2.DeepseekV2MoE.__init__,
    glm4_moe.Glm4MoeSparseMoeBlock.__init__,
    glm4_moe_lite.Glm4MoeLiteSparseMoeBlock.__init__,
    llama4.get_rope,
    minimax_m2.rms_sumsq_serial,
    minimax_m2.rms_apply_serial,
    qwen2_moe.fused_gate_sigmoid_mul,
    qwen2_moe.fused_gate_sigmoid_mul_add,
    torch.get_device_module,
    torch.mm,
)
bodies = [getattr(f, "__code__", None) or f.__wrapped__.__code__ for f in used]
padding = inspect.getsource(forward_batch_info.ForwardBatch.prepare_mlp_sync_batch)
padded = "not _is_cpu" in padding and forward_batch_info._is_cpu
padded = padded and parallel_state._is_cpu
padded = padded and dp_attention.memcpy_func is dp_attention.memcpy_cpu
print(json.dumps([padded, *(body.co_filename for body in bodies)]))
"""


@pytest.mark.skipif(not NO_ACCELERATOR, reason="the platform stands back from an accelerator")
class TestOnThisMachine:
    def test_models_use_the_platforms_operators(self) -> None:
        """Also modules that SGLang imports after the platform started."""
        done = subprocess.run([sys.executable, "-c", REPLACED], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        padded, *files = json.loads(done.stdout.splitlines()[-1])
        assert padded
        folder = str(Path(activation.__file__).parent)
        assert len(files) == 18 and {str(Path(file).parent) for file in files} == {folder}, files

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
        answer = start_server(*flags, is_forked=False).post("/generate", body)
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
