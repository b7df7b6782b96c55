"""The kit runs where SGLang, FlashInfer and a network are missing, and goes on after a failure."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from bare_machine import ABSENT, ROOT, make_site, run_bare

from benchmarks.kernels import bare, kit
from flashinfer_ext.modules import gpu_test_modules

URI = "jenga_sink_fa2_q_bf16_kv_bf16_d_64_64_swa_1"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
pytestmark = pytest.mark.slow
PYTEST = ("-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit for this Python, with a library that stands for a compiled module."""
    folder = tmp_path_factory.mktemp("kit")
    library = folder / "compiled" / URI / f"{URI}.so"
    library.parent.mkdir(parents=True)
    library.touch()
    (folder / "compiled" / "build").mkdir()
    kit.make_kit(folder / "made", folder / "compiled", "9.0a", PYTHON)
    return folder / "made"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_site(tmp_path_factory.mktemp("machine") / "site")


def paths(made: Path) -> tuple[Path, ...]:
    return made / "site", made / "shim"


def test_it_is_small_and_says_what_is_in_it(made: Path) -> None:
    content = json.loads((made / "kit.json").read_text())
    assert content["modules"] == [URI] and content["arch"] == "9.0a"
    assert URI not in content["missing"] and len(content["missing"]) == len(gpu_test_modules()) - 1
    assert kit.folder_bytes(made) <= 60 << 20


def test_one_that_is_too_large_to_bring_along_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit, "MOST_BYTES", 1 << 20)
    for name in ("copy_flashinfer", "copy_tvm_ffi", "copy_shim"):
        monkeypatch.setattr(kit, name, lambda *args: None)
    (tmp_path / "compiled" / URI).mkdir(parents=True)
    (tmp_path / "compiled" / URI / f"{URI}.so").write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(RuntimeError, match="expected at most 1048576 bytes, got 1048577"):
        kit.make_kit(tmp_path / "made", tmp_path / "compiled", "9.0a", PYTHON)
    assert not (tmp_path / "made" / "kit.json").exists()


def test_the_machine_lacks_what_it_is_said_to_lack(site: Path) -> None:
    program = (
        "from importlib.util import find_spec; import sys; print(*filter(find_spec, sys.argv[1:]))"
    )
    found = run_bare(site, "-c", program, *ABSENT, "flashinfer")
    assert (found.returncode, found.stdout.strip()) == (0, "")


def test_flashinfer_is_imported_from_the_kit_and_finds_compiled_modules(
    made: Path, site: Path, tmp_path: Path
) -> None:
    program = f"""
import warnings; warnings.simplefilter("ignore")
import torch, flashinfer, flashinfer.decode, flashinfer.prefill
from flashinfer_ext import modules, variants, versions
assert flashinfer.__file__.startswith({str(made)!r}), flashinfer.__file__
assert versions.installed()
variants.use_prebuilt({str(made / "modules")!r})
specs = [module.spec() for module in modules.gpu_test_modules()]
print("prebuilt", [spec.name for spec in specs if spec.is_aot])
"""
    variables = {"FLASHINFER_WORKSPACE_BASE": str(tmp_path), "FLASHINFER_CUDA_ARCH_LIST": "9.0a"}
    ran = run_bare(site, "-c", program, path=paths(made), **variables)
    assert f"prebuilt ['{URI}']" in ran.stdout, ran.stdout


def test_what_is_compiled_loads_without_a_device(site: Path, tmp_path: Path) -> None:
    """From a kit for this Python, of those that a command has compiled here."""
    compiled = ROOT / kit.DEFAULT_OUT / "9.0a"
    if not any(compiled.glob("*/*.so")):
        pytest.skip("nothing is compiled: make gpu-kit")
    content = kit.make_kit(tmp_path / "made", compiled, "9.0a", PYTHON)
    program = """
import warnings; warnings.simplefilter("ignore")
import torch, flashinfer
from flashinfer_ext import modules, variants
variants.use_prebuilt(%r)
specs = [module.spec() for module in modules.gpu_test_modules()]
loaded = [spec.build_and_load() for spec in specs if spec.is_aot]
print("loaded", len(loaded), "of", len(specs))
"""
    ran = run_bare(
        site,
        "-c",
        program % str(tmp_path / "made" / "modules"),
        path=paths(tmp_path / "made"),
        FLASHINFER_WORKSPACE_BASE=str(tmp_path),
        FLASHINFER_CUDA_ARCH_LIST="9.0a",
    )
    missing = content["missing"]
    assert isinstance(missing, list)
    total = len(gpu_test_modules())
    assert f"loaded {total - len(missing)} of {total}" in ran.stdout, ran.stdout


def test_every_gpu_test_but_those_of_a_server_is_collected(
    made: Path, site: Path, tmp_path: Path
) -> None:
    files = [command[-1] for command in bare.STEPS["tests"].values()]
    assert {Path(file).name for file in files} == {
        path.name for path in Path("tests/gpu").glob("test_*.py")
    } - {"test_gpu_serving.py"}
    variables = {"FLASHINFER_WORKSPACE_BASE": str(tmp_path)}
    ran = run_bare(
        site, *PYTEST, "--collect-only", "-m", "gpu", *files, path=paths(made), **variables
    )
    assert ran.returncode == 0 and "error" not in ran.stdout, ran.stdout
    for file in files:
        assert f"{file}::" in ran.stdout


def test_kernels_of_triton_need_no_kit(site: Path) -> None:
    """Nor do the benchmarks' sections of them."""
    program = "import benchmarks.kernels.tables, benchmarks.kernels.memory, benchmarks.kernels.run"
    ran = run_bare(site, "-c", program)
    assert ran.returncode == 0, ran.stdout
    ran = run_bare(site, *PYTEST, "--collect-only", "-m", "gpu", "tests/gpu/test_gpu_kernels.py")
    assert ran.returncode == 0, ran.stdout


def test_backends_give_the_same_beside_the_stand_in_for_sglang(
    made: Path, site: Path, tmp_path: Path
) -> None:
    ran = run_bare(
        site,
        *PYTEST,
        "-k",
        "flushed_cache",
        "tests/unit/adapter/interpreted/test_interpreted_backends.py",
        path=paths(made),
        TRITON_INTERPRET="1",
        FLASHINFER_WORKSPACE_BASE=str(tmp_path),
    )
    assert ran.returncode == 0 and "4 passed" in ran.stdout, ran.stdout


def test_a_step_that_fails_or_hangs_leaves_the_next_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kit.json").write_text('{"arch": "9.0a"}')
    steps = {
        "fails": ("-c", "print('FAILED tests/x.py::y - it broke'); raise SystemExit(1)"),
        "passes": ("-c", "import os; print(os.environ['JENGA_FLASHINFER_MODULES'])"),
        "hangs": ("-c", "import time; print('begun', flush=True); time.sleep(600)"),
        "late": ("-c", "print('never')"),
    }
    monkeypatch.setitem(bare.STEPS, "tests", steps)
    assert not bare.run_steps("tests", tmp_path / "out", tmp_path, budget_seconds=5)
    done: dict[str, Any] = json.loads((tmp_path / "out" / "tests.json").read_text())
    assert {name: step["status"] for name, step in done.items()} == {
        "fails": 1,
        "passes": 0,
        "hangs": 124,
        "late": 124,
    }
    assert done["fails"]["failures"] == ["FAILED tests/x.py::y - it broke"]
    assert done["passes"]["last_line"] == str(tmp_path / "modules")
    assert (tmp_path / "out" / "tests-hangs.log").read_text() == "begun\n"


def test_an_error_in_a_benchmark_is_a_row_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.kernels import run
    from benchmarks.kernels.result import Failed, Row, tried

    row = Row("fine", 1.0, "us")

    def breaks() -> Any:
        yield row
        raise RuntimeError("an illegal memory access\nwas met")

    def broken() -> Row:
        raise AssertionError("views and dense copies differ")

    measures = {
        "first": breaks,
        "second": lambda: iter([tried("a", broken), tried("b", lambda: row)]),
    }
    results, not_run = run.measure(["first", "second"], measures)
    assert results == [
        row,
        Failed("first", "RuntimeError: an illegal memory access"),
        Failed("a", "AssertionError: views and dense copies differ"),
        row,
    ]
    assert not not_run
