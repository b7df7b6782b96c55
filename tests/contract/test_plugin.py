"""The plug-in fails closed: whatever does not fit ends the start with one line that says why."""

import inspect
import logging
import multiprocessing
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sglang.srt.plugins.hook_registry as registry
import torch
from sglang.srt.model_executor.cuda_graph_config import CudaGraphConfig, PhaseConfig
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from transformers import PreTrainedConfig

from flashinfer_ext import toolchain
from jenga_sglang import command_line, flags, plugin, settings, versions
from jenga_sglang import hook as hooking
from jenga_sglang.core.recency import Order
from jenga_sglang.hook import Hook, always, hooks_of, install
from jenga_sglang.platform import activate
from jenga_sglang.refused_flags import REFUSED, REFUSED_BETWEEN_SERVERS, REFUSED_BETWEEN_STAGES

SELF = __name__
NEW_IN_0_5_23 = {"enable_amd_monokernel", "enable_nvidia_megakernel"}


def untouched(value: int) -> int:
    return value


def around(original: Callable[..., Any], *args: Any) -> Any:
    """Nothing."""
    return original(*args)


def hook(name: str, *parameters: str) -> Hook:
    return Hook(f"{SELF}.{name}", parameters, around, HookType.AROUND)


def refusal(call: Callable[[], Any]) -> str:
    """The line with which ``call`` ends the process."""
    with pytest.raises(SystemExit) as refused:
        call()
    line = str(refused.value)
    assert line.startswith("jenga-sglang: ") and "\n" not in line
    return line


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """This module as hook targets name it, and the registry as it was afterwards."""
    monkeypatch.setattr(HookRegistry, "_hooks", type(HookRegistry._hooks)(list))
    monkeypatch.setattr(HookRegistry, "_patched", set())
    monkeypatch.setattr(hooking, "_installed", set())
    monkeypatch.setattr(sys.modules[SELF], "untouched", untouched)
    return sys.modules[SELF]


class TestVersion:
    """Beside an SGLang that the hooks were not made for."""

    OTHERS = ("0.5.21", "0.5.24", "0.5.24rc1", "1.0")

    @pytest.fixture
    def hooked(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What the plug-in does to SGLang."""
        done: list[str] = []
        monkeypatch.setattr(plugin, "_make_known", lambda: done.append("made known"))
        monkeypatch.setattr(sys, "argv", ["launch_server", "--model-path", "m"])
        monkeypatch.delenv(settings.name_of("sglang_active"), raising=False)
        return done

    @pytest.mark.parametrize("installed", ["0.5.22", "0.5.22.post1", "0.5.23"])
    def test_the_supported_ones_pass(
        self, installed: str, hooked: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(versions, "installed_sglang", lambda: installed)
        monkeypatch.setattr(command_line, "command_line_problems", lambda: [])
        plugin.register()
        assert hooked == ["made known"]

    @pytest.mark.parametrize("other", OTHERS)
    def test_any_other_is_left_as_it_is_with_one_line(
        self,
        other: str,
        hooked: list[str],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(versions, "installed_sglang", lambda: other)
        plugin.register()
        assert not hooked
        (line,) = caplog.messages
        assert f"SGLang {other}: --memory-backend jenga is made for SGLang" in line

    @pytest.mark.parametrize("flag", [["--memory-backend", "jenga"], ["--memory-backend=jenga"]])
    @pytest.mark.parametrize("other", OTHERS)
    def test_a_start_with_the_flag_is_refused(
        self, other: str, flag: list[str], hooked: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(versions, "installed_sglang", lambda: other)
        monkeypatch.setattr(sys, "argv", ["launch_server", *flag, "--port", "1"])
        line = refusal(plugin.register)
        assert f"SGLang {other}" in line and "install one of these, or leave the flag out" in line
        assert not hooked

    @pytest.mark.parametrize(
        "arguments", [[], ["--memory-backend"], ["--memory-backend", "default"], ["jenga"]]
    )
    def test_a_start_without_it_is_none(self, arguments: list[str]) -> None:
        assert not flags.is_asked_for(arguments)

    def test_a_process_of_a_jenga_server_is_refused(
        self, hooked: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(versions, "installed_sglang", lambda: "0.5.24")
        monkeypatch.setenv(settings.name_of("sglang_active"), "1")
        assert "SGLang 0.5.24" in refusal(plugin.register)

    def test_processes_that_a_server_spawns_do_not_repeat_the_line(
        self,
        hooked: list[str],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(versions, "installed_sglang", lambda: "0.5.24")
        monkeypatch.setattr(multiprocessing, "parent_process", lambda: "the server")
        plugin.register()
        assert not hooked and not caplog.messages

    def test_a_command_line_of_another_shape_is_left_as_it_is(
        self,
        hooked: list[str],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A changed SGLang that says it is a supported one."""
        changed = [hook("untouched", "parser")]
        monkeypatch.setattr(command_line, "command_line_hooks", lambda: changed)
        plugin.register()
        assert not hooked
        (line,) = caplog.messages
        assert "untouched takes ('value',), expected ('parser',). Reinstall sglang" in line

    def test_a_plug_in_that_replaced_the_engines_arguments_goes_first(
        self,
        hooked: list[str],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        from sglang.srt.entrypoints.engine import Engine

        monkeypatch.setattr(command_line, "command_line_hooks", lambda: [])
        monkeypatch.setattr(Engine, "server_args_class", dict)
        plugin.register()
        assert not hooked
        (line,) = caplog.messages
        assert "another plug-in has replaced" in line

    def test_the_cpu_platform_leaves_it_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SGLANG_PLATFORM", raising=False)
        monkeypatch.setattr(activate, "accelerator_is_visible", lambda: False)
        monkeypatch.setattr(activate, "another_platform_is_chosen", lambda: False)
        assert activate.activate() == activate.PLATFORM_CLASS
        monkeypatch.setattr(versions, "installed_sglang", lambda: "0.5.24")
        assert activate.activate() is None


class TestInstall:
    def test_a_fitting_hook_takes_hold_once(self, module: ModuleType) -> None:
        original = module.untouched
        install([hook("untouched", "value")])
        hooked = module.untouched
        assert hooked is not original and hooked(3) == 3
        install([hook("untouched", "value")])
        assert module.untouched is hooked

    @pytest.mark.parametrize(
        ("bad", "said"),
        [
            (hook("gone", "value"), "gone is missing"),
            (Hook("no.such.module.f", (), around, HookType.AROUND), "no.such.module.f is missing"),
            (hook("around", "value"), "around takes ('original', 'args'), expected ('value',)"),
        ],
        ids=["missing function", "missing module", "changed signature"],
    )
    def test_one_bad_hook_refuses_all(self, bad: Hook, said: str, module: ModuleType) -> None:
        original = module.untouched
        line = refusal(lambda: install([hook("untouched", "value"), bad]))
        assert said in line and "Reinstall sglang>=0.5.22,<0.5.24" in line
        assert module.untouched is original

    def test_a_hook_that_sglang_did_not_apply_is_noticed(
        self, module: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: Any) -> None:
            raise RuntimeError("some other plug-in is in the way")

        # SGLang logs this and goes on.
        monkeypatch.setattr(registry, "_wrap_fn", fail)
        line = refusal(lambda: install([hook("untouched", "value")]))
        assert "untouched" in line and "did not take hold" in line

    @pytest.mark.parametrize("is_ours", [True, False])
    def test_modules_that_imported_it_by_name_have_it_as_by_sglangs_own_registry(
        self, module: ModuleType, monkeypatch: pytest.MonkeyPatch, is_ours: bool
    ) -> None:
        original = module.untouched
        importer = ModuleType("importer")
        vars(importer).update(untouched=original, renamed=original, another=around)
        monkeypatch.setitem(sys.modules, "importer", importer)
        monkeypatch.setattr(module, "second_name", original, raising=False)
        if is_ours:
            install([hook("untouched", "value")])
        else:
            HookRegistry.register(f"{SELF}.untouched", around, HookType.AROUND)
            HookRegistry.apply_hooks()
        assert module.untouched is not original
        assert importer.untouched is importer.renamed is module.untouched
        assert importer.another is around and module.second_name is original

    def test_packages_that_are_passed_over_hold_nothing_that_is_hooked(self) -> None:
        from jenga_sglang.adapter.hooks import http_hooks, runtime_hooks, transfer_hooks

        hooks = [*runtime_hooks(), *http_hooks(), *transfer_hooks()]
        originals = {id(hook.resolve()) for hook in hooks}
        passed_over = {
            path: module
            for path, module in sys.modules.items()
            if path.partition(".")[0] in hooking._BELOW_SGLANG and isinstance(module, ModuleType)
        }
        assert {path.partition(".")[0] for path in passed_over} >= {"torch", "transformers"}
        held = [p for p, m in passed_over.items() if originals & {id(v) for v in vars(m).values()}]
        assert len(originals) > 40 and not held

    def test_the_log_has_one_line_for_all_of_ours(
        self,
        module: ModuleType,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(module, "another", untouched, raising=False)
        HookRegistry.register(f"{SELF}.another", around, HookType.AROUND)
        with caplog.at_level(logging.INFO):
            install([hook("untouched", "value")])
            install([])
        others, ours = [r.getMessage() for r in caplog.records if "Applied" in r.getMessage()]
        assert f"{SELF}.another" in others
        assert ours.startswith("Applied 1 hooks to SGLang")
        assert not registry.logger.filters

    def test_sglang_goes_through_modules_itself_once_we_are_done(self, module: ModuleType) -> None:
        own = registry._propagate_patch
        install([hook("untouched", "value")])
        assert registry._propagate_patch is own and own.__module__ == registry.__name__


class TestRecord:
    """What `@hook` writes down, and when the function that it stands on is called."""

    def test_it_stands_on_the_function_with_its_reason(self) -> None:
        module = ModuleType(SELF)

        def body(result: Any, value: int) -> int:
            """Because
            it is so."""
            return value

        for name in ("first", "second"):
            hooking.hook(f"{SELF}.{name}", ("value",), HookType.AFTER, until="never")(body)
        vars(module).update(body=body)
        found = hooks_of(module)
        assert [h.target for h in found] == [f"{SELF}.second", f"{SELF}.first"]
        assert {(h.reason, h.until) for h in found} == {("Because it is so.", "never")}

    def test_a_function_without_a_reason_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"untouched needs a docstring: why some\.target"):
            hooking.hook("some.target", (), HookType.AFTER, until="never")(untouched)

    @pytest.mark.parametrize("chosen", ["jenga", None])
    @pytest.mark.parametrize("kind", [HookType.AROUND, HookType.AFTER])
    def test_a_stock_server_never_gets_there(
        self,
        chosen: str | None,
        kind: HookType,
        module: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from sglang.srt import runtime_context

        memory = Namespace(radix_cache_backend=chosen)
        monkeypatch.setattr(runtime_context, "get_memory", lambda: memory)

        def body(given: Any, value: int) -> int:
            """Another value."""
            return -value

        hooking.hook(f"{SELF}.untouched", ("value",), kind, until="never")(body)
        vars(module).update(body=body)
        install([h for h in hooks_of(module) if h.run.__name__ == "body"])
        assert module.untouched(3) == (-3 if chosen else 3)
        monkeypatch.delattr(module, "body")

    def test_one_that_is_always_meant_asks_nobody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from sglang.srt import runtime_context

        monkeypatch.delattr(runtime_context, "get_memory")
        hooking.hook("some.target", (), HookType.AROUND, when=always, until="never")(around)
        (record,) = getattr(around, hooking._RECORDS)
        delattr(around, hooking._RECORDS)
        assert record.run(untouched, 3) == 3

    def test_a_version_may_have_parameters_of_its_own(self) -> None:
        record = Hook("some.target", ("new",), around, HookType.AROUND, {"<0.5.23": ("old",)})
        assert record.expected_parameters("0.5.22") == ("old",)
        assert record.expected_parameters("0.5.22.post1") == ("old",)
        assert record.expected_parameters("0.5.23") == ("new",)


class TestTargets:
    def test_every_hooked_function_is_there_with_the_signature_on_record(self) -> None:
        from jenga_sglang.adapter.hooks import http_hooks, runtime_hooks, transfer_hooks

        hooks = command_line.command_line_hooks() + runtime_hooks()
        hooks += transfer_hooks() + http_hooks()
        assert len({h.target for h in hooks}) == len(hooks)
        for h in hooks:
            # The plug-in may have hooked this process when SGLang was imported.
            found = inspect.signature(inspect.unwrap(h.resolve()))
            expected = h.expected_parameters(version("sglang"))
            assert tuple(p for p in found.parameters if p != "cls") == expected, h.target

    def test_every_refused_field_is_a_real_one_with_the_value_on_record(self) -> None:
        from sglang.srt.server_args import ServerArgs

        parser = ArgumentParser()
        ServerArgs.add_cli_args(parser)
        defaults = vars(parser.parse_args(["--model-path", "m"]))
        options = {option for action in parser._actions for option in action.option_strings}
        absent = {field for field, refused in REFUSED.items() if refused.flag not in options}
        assert absent == (NEW_IN_0_5_23 if version("sglang") == "0.5.22" else set())
        for field in REFUSED.keys() - absent:
            assert defaults[field] == REFUSED[field].off, field


class TestFlag:
    def test_the_parser_knows_it_and_its_values(self) -> None:
        parser = ArgumentParser()
        flags.add_flag(parser)
        assert parser.parse_args([]).memory_backend == "default"
        assert parser.parse_args(["--memory-backend", "jenga"]).memory_backend == "jenga"
        assert "--memory-backend {default,jenga}" in parser.format_help()

    @pytest.mark.parametrize("field", REFUSED)
    def test_a_combination_that_does_not_work_is_refused(self, field: str) -> None:
        flag, off, why, _, others = REFUSED[field]
        value = {bool: True, int: 2}.get(type(off), "something")
        values = {"memory_backend": "jenga", field: value}
        line = refusal(lambda: flags.apply_flag(values))
        assert flag in line and "does not work with --memory-backend jenga" in line
        assert why.replace("`", "") in line and "leave one of the two out" in line
        for value in others:
            assert flags.apply_flag({"memory_backend": "jenga", field: value})

    def test_every_eviction_policy_of_sglangs_is_an_order_or_refused(self) -> None:
        from sglang.srt.arg_groups.choices import RADIX_EVICTION_POLICY_CHOICES

        refused = REFUSED["radix_eviction_policy"]
        orders = {order.value for order in Order}
        assert orders == {refused.off, *refused.others}
        assert orders | {"tlru"} == set(RADIX_EVICTION_POLICY_CHOICES)

    @pytest.mark.parametrize("field", REFUSED_BETWEEN_SERVERS)
    def test_what_is_not_sent_between_servers_is_refused_there_only(self, field: str) -> None:
        flag, works, why, _ = REFUSED_BETWEEN_SERVERS[field]
        values = {"memory_backend": "jenga", field: "something"}
        line = refusal(lambda: flags.apply_flag({**values, "disaggregation_mode": "decode"}))
        assert (
            f"{flag} something with --disaggregation-mode decode" in line
            and why.replace("`", "") in line
        )
        for value in works:
            values = {"memory_backend": "jenga", "disaggregation_mode": "prefill", field: value}
            assert flags.apply_flag(values)
        one_server = {"memory_backend": "jenga", "disaggregation_mode": "null", field: works[0]}
        assert flags.apply_flag(one_server)

    @pytest.mark.parametrize("field", REFUSED_BETWEEN_STAGES)
    def test_what_stages_do_not_do_is_refused_there_only(self, field: str) -> None:
        flag, works, why, _ = REFUSED_BETWEEN_STAGES[field]
        values: dict[str, Any] = {"memory_backend": "jenga", field: "something", "pp_size": 2}
        line = refusal(lambda: flags.apply_flag(values))
        assert f"{flag} something with --pp-size 2" in line and why.replace("`", "") in line
        for value in works:
            assert flags.apply_flag({"memory_backend": "jenga", "pp_size": 2, field: value})

    @pytest.mark.parametrize("page_size", [0, -1, 3, 48, 512])
    def test_a_page_size_that_cannot_be_is_refused(self, page_size: int) -> None:
        values = {"memory_backend": "jenga", "page_size": page_size}
        line = refusal(lambda: flags.apply_flag(values))
        assert f"--page-size {page_size}" in line and "16 is usual" in line

    @pytest.mark.parametrize("backend", ["nope", "", "Jenga"])
    def test_an_unknown_backend_is_refused(self, backend: str) -> None:
        line = refusal(lambda: flags.apply_flag({"memory_backend": backend}))
        assert f"--memory-backend {backend}" in line and "default, jenga" in line

    @pytest.mark.parametrize(
        "field", ["attention_backend", "prefill_attention_backend", "decode_attention_backend"]
    )
    def test_an_attention_backend_that_cannot_read_the_pages_is_refused(self, field: str) -> None:
        values = {"memory_backend": "jenga", field: "fa4"}
        line = refusal(lambda: flags.apply_flag(values))
        assert f"--{field.replace('_', '-')} fa4" in line
        assert "flashinfer, fa3, triton, jenga_torch" in line

    @pytest.mark.parametrize("backend", flags.ATTENTION_BACKENDS)
    def test_a_command_line_may_name_each_that_can(self, backend: str) -> None:
        """Names are checked before anybody knows whether Jenga is asked for."""
        from sglang.srt.server_args import ServerArgs

        parser = ArgumentParser(conflict_handler="resolve")
        ServerArgs.add_cli_args(parser)
        command_line._add_flag(None, parser)
        known = parser.parse_args(["--model-path", "m", "--attention-backend", backend])
        assert known.attention_backend == backend

    @pytest.mark.parametrize("field", ["attention_backend", "decode_attention_backend"])
    def test_the_one_for_jenga_pages_is_refused_without_them(self, field: str) -> None:
        line = refusal(lambda: flags.apply_flag({field: "jenga_torch"}))
        assert "--attention-backend jenga_torch" in line and "add --memory-backend jenga" in line

    def test_two_attention_backends_at_once_are_refused(self) -> None:
        values = {
            "memory_backend": "jenga",
            "prefill_attention_backend": "triton",
            "decode_attention_backend": "flashinfer",
        }
        line = refusal(lambda: flags.apply_flag(values))
        assert "flashinfer and triton" in line and "--attention-backend" in line

    @pytest.mark.parametrize(
        ("variable", "value", "said"),
        [
            ("JENGA_LAYOUT", "exact_lcm", "choose one of planned, exact-lcm"),
            ("JENGA_POISON_FREED", "true", "choose one of 0, 1"),
            ("JENGA_POLICIES", "hold_hit=off", "known: prompt_slack_tokens, "),
            ("JENGA_POLICIES", "step_cost_tokens=few", "write name=number"),
        ],
    )
    def test_a_debugging_aid_that_does_not_exist_is_refused(
        self, variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(variable, value)
        line = refusal(lambda: flags.apply_flag({"memory_backend": "jenga"}))
        assert f"{variable}={value}" in line and said in line

    @pytest.mark.parametrize("backend", ["flashinfer", "triton"])
    @pytest.mark.parametrize(
        ("asked", "shown"),
        [
            ({"cuda_graph_backend_prefill": "full"}, "--cuda-graph-backend-prefill full"),
            (
                {"cuda_graph_config": {"prefill": {"backend": "full"}}},
                '--cuda-graph-config {"prefill":{"backend":"full"}}',
            ),
            (
                {
                    "cuda_graph_config": CudaGraphConfig(prefill=PhaseConfig("full")),
                    "cuda_graph_backend_prefill": "breakable",
                },
                '--cuda-graph-config {"prefill":{"backend":"full"}}',
            ),
        ],
    )
    def test_whole_prefills_in_a_graph_are_refused(
        self, backend: str, asked: dict[str, Any], shown: str
    ) -> None:
        values = {"memory_backend": "jenga", "attention_backend": backend, **asked}
        line = refusal(lambda: flags.apply_flag(values))
        assert shown in line and "breakable" in line

    def test_tables_in_a_graph_of_their_own_are_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A replay would read the pages of the step that was captured."""
        monkeypatch.setenv("SGLANG_ENABLE_METADATA_GLUE_GRAPH", "1")
        line = refusal(lambda: flags.apply_flag({"memory_backend": "jenga"}))
        assert "SGLANG_ENABLE_METADATA_GLUE_GRAPH=1" in line and "leave it out" in line
        assert not flags.apply_flag({"memory_backend": "default"})

    @pytest.mark.parametrize("phase", ["decode", "prefill"])
    def test_graphs_of_a_backend_that_has_none_are_refused(self, phase: str) -> None:
        for asked in (
            {f"cuda_graph_backend_{phase}": "breakable"},
            {"cuda_graph_config": {phase: {"backend": "breakable"}}},
        ):
            values = {"memory_backend": "jenga", "attention_backend": "jenga_torch", **asked}
            assert "choose disabled" in refusal(lambda v=values: flags.apply_flag(v))

    @pytest.fixture
    def without_nvcc(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
        monkeypatch.setattr(toolchain, "USUAL_HOME", tmp_path)
        monkeypatch.setenv("PATH", str(tmp_path))
        for name in ("CUDA_HOME", "CUDA_PATH", settings.name_of("flashinfer_modules")):
            monkeypatch.delenv(name, raising=False)

    @pytest.mark.parametrize("named", [{}, {"attention_backend": "flashinfer"}])
    def test_a_missing_compiler_is_told_of_before_the_model_is_loaded(
        self, named: dict[str, Any], without_nvcc: None
    ) -> None:
        line = refusal(lambda: flags.apply_flag({"memory_backend": "jenga", **named}))
        assert "--attention-backend flashinfer" in line and "no nvcc on the PATH" in line
        assert "python -m flashinfer_ext.aot --arch 9.0a --set all --out FOLDER" in line
        assert "JENGA_FLASHINFER_MODULES=FOLDER/9.0a" in line and "triton" in line

    def test_no_compiler_is_needed_for_what_is_compiled_already(
        self, without_nvcc: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for fields in ({"attention_backend": "triton"}, {"device": "cpu"}):
            assert flags.apply_flag({"memory_backend": "jenga", **fields})
        monkeypatch.setenv(settings.name_of("flashinfer_modules"), str(tmp_path))
        assert flags.apply_flag({"memory_backend": "jenga"})

    def test_other_settings_of_graphs_are_left_alone(self) -> None:
        config = {"decode": {"max_bs": 8}, "prefill": {"backend": "disabled"}}
        values: dict[str, Any] = {"memory_backend": "jenga", "cuda_graph_config": config}
        for backend in flags.ATTENTION_BACKENDS:
            asked = values | {"attention_backend": backend}
            assert flags.apply_flag(asked)
            assert asked["cuda_graph_config"] == config

    @pytest.mark.parametrize(
        ("backend", "disables_graphs"),
        [("flashinfer", False), ("triton", False), ("jenga_torch", True)],
    )
    def test_cuda_graphs_stay_on_where_the_backend_has_them(
        self, backend: str, disables_graphs: bool
    ) -> None:
        values: dict[str, Any] = {"memory_backend": "jenga", "decode_attention_backend": backend}
        assert flags.apply_flag(values)
        assert values["attention_backend"] == backend
        assert values.get("disable_cuda_graph", False) is disables_graphs

    @pytest.mark.parametrize(
        ("device", "has_gpu", "hip", "expected"),
        [
            (None, True, None, "flashinfer"),
            ("cuda", True, None, "flashinfer"),
            ("cuda", True, "7.0", "triton"),
            ("cpu", True, None, "jenga_torch"),
            (None, False, None, "jenga_torch"),
        ],
    )
    def test_the_platform_chooses_the_attention_backend(
        self,
        device: str | None,
        has_gpu: bool,
        hip: str | None,
        expected: str,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setenv(settings.name_of("flashinfer_modules"), str(tmp_path))
        values: dict[str, Any] = {"memory_backend": "jenga", "device": device}
        assert flags.apply_flag(values)
        assert values["attention_backend"] == expected

    @pytest.mark.parametrize(
        ("values", "why"),
        [
            ({"jenga_window": "config"}, "needs --memory-backend jenga"),
            ({"memory_backend": "jenga", "jenga_window": "hf"}, "model, config"),
        ],
    )
    def test_a_choice_of_windows_that_makes_no_sense_is_refused(
        self, values: dict[str, Any], why: str
    ) -> None:
        flag = f"--jenga-window {values['jenga_window']}"
        line = refusal(lambda: flags.apply_flag(values))
        assert flag in line and why in line

    @pytest.mark.parametrize("choice", ["model", "config"])
    def test_the_choice_of_windows_reaches_every_process(
        self, choice: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("JENGA_WINDOW", "")
        values: dict[str, Any] = {"memory_backend": "jenga", "jenga_window": choice}
        assert flags.apply_flag(values)
        assert flags.follows_config_windows() is (choice == "config")
        assert "jenga_window" not in values

    def test_another_prefix_cache_is_refused(self) -> None:
        values = {"memory_backend": "jenga", "radix_cache_backend": "unified"}
        assert "--radix-cache-backend unified" in refusal(lambda: flags.apply_flag(values))
        values = {"memory_backend": "default", "radix_cache_backend": "jenga"}
        assert "--memory-backend jenga" in refusal(lambda: flags.apply_flag(values))

    def test_a_refused_start_sets_nothing(self) -> None:
        values = {"memory_backend": "jenga", "enable_lmcache": True}
        refusal(lambda: flags.apply_flag(values))
        assert values == {"enable_lmcache": True}

    def test_default_sets_nothing(self) -> None:
        values: dict[str, Any] = {"memory_backend": "default", "page_size": 3}
        assert not flags.apply_flag(values)
        assert values == {"page_size": 3}

    def test_jenga_sets_what_sglang_knows(self) -> None:
        values = vars(Namespace(memory_backend="jenga", page_size=None))
        assert flags.apply_flag(values)
        assert values["radix_cache_backend"] == "jenga"
        assert values["page_size"] is None, "the model decides"
        assert values["attention_backend"] in flags.ATTENTION_BACKENDS


def hook_on(target: str) -> Callable[..., Any]:
    """What a Jenga server puts around a function of SGLang, for servers of either kind."""
    from jenga_sglang.adapter.hooks import runtime_hooks

    return next(h.run for h in runtime_hooks() if h.target == target)


PLAIN_MODEL = Namespace(hf_config=PreTrainedConfig())


class TestModelLists:
    """SGLang's lists of attention backends per model class, which name its own alone."""

    def seen(self, radix_cache_backend: str) -> tuple[str, tuple[str, str]]:
        """What the code that compares the lists sees of a server's attention backend."""
        from sglang.srt.arg_groups import model_hook
        from sglang.srt.configs import hybrid_arch

        adjust = hook_on("sglang.srt.arg_groups.model_hook.handle_model_specific_adjustments")
        view = Namespace(
            radix_cache_backend=radix_cache_backend,
            attention_backend="flashinfer",
            prefill_attention_backend="flashinfer",
            decode_attention_backend=None,
            page_size=16,
            chunked_prefill_size=None,
            max_total_tokens=None,
            enable_dp_attention=False,
            attn_dp_size=1,
            enable_deterministic_inference=False,
        )

        def compare(server_args: Namespace) -> tuple[str, tuple[str, str]]:
            seen = model_hook.resolved_view(server_args)
            assert seen.page_size == 16
            return seen.attention_backend, model_hook.attention_backends_of(seen)

        stock = model_hook.resolved_view
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model_hook, "resolved_view", lambda server_args: view)
            patch.setattr(model_hook, "model_config_of", lambda server_args: PLAIN_MODEL)
            patch.setattr(hybrid_arch, "mambaish_config", lambda config: None)
            found = adjust(compare, view)
            assert model_hook.resolved_view(view) is view, "put back"
        assert model_hook.resolved_view is stock
        return found

    def test_ours_pass_under_a_name_that_is_on_them(self) -> None:
        assert self.seen("jenga") == ("trtllm_mha", ("trtllm_mha", "trtllm_mha"))

    def test_a_stock_server_is_seen_as_it_is(self) -> None:
        assert self.seen("unified") == ("flashinfer", ("flashinfer", "flashinfer"))

    def test_prompts_of_recurrent_layers_are_not_captured(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from sglang.srt.arg_groups import model_hook
        from sglang.srt.configs import hybrid_arch
        from sglang.srt.model_executor.cuda_graph_config import CudaGraphConfig

        from jenga_sglang.adapter.hooks.arguments import _model_adjustments

        declared: dict[str, Any] = {}
        config = CudaGraphConfig()
        config.decode.backend = config.prefill.backend = "full"
        view = Namespace(
            radix_cache_backend="jenga",
            cuda_graph_config=config,
            page_size=16,
            chunked_prefill_size=None,
            max_total_tokens=None,
            enable_dp_attention=False,
            attn_dp_size=1,
            enable_deterministic_inference=False,
            speculative_algorithm=None,
        )
        for name, value in {
            "resolved_view": lambda server_args: view,
            "resolving_view": lambda server_args: view,
            "model_config_of": lambda server_args: PLAIN_MODEL,
            "declare_resolution": lambda *args, **fields: declared.update(fields),
        }.items():
            monkeypatch.setattr(model_hook, name, value)
        some = Namespace()
        for states, drafts, backends in (
            (None, None, None),
            (some, None, ("full", "disabled")),
            (some, "NGRAM", ("disabled", "disabled")),
        ):
            view.speculative_algorithm = drafts
            monkeypatch.setattr(hybrid_arch, "mambaish_config", lambda config, s=states: s)
            _model_adjustments(lambda server_args: None, view)
            found = declared.get("cuda_graph_config")
            phases = (found.decode.backend, found.prefill.backend) if found else None
            assert phases == backends

    def test_every_list_has_that_name(self) -> None:
        """Where a list of accepted backends begins with Triton or FA3, the name follows."""
        from sglang.srt.arg_groups import model_hook

        source = inspect.getsource(inspect.unwrap(model_hook.handle_model_specific_adjustments))
        lists = re.findall(r"[\[({]\s*\"(?:triton|fa3|trtllm_mha)\"[^\])}]*[\])}]", source)
        assert len(lists) == 4
        assert all('"trtllm_mha"' in names for names in lists)
