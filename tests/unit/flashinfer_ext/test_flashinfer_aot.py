"""The ahead-of-time command: names, sources and environment; compiling is a command of its own."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from flashinfer_ext import aot, toolchain
from flashinfer_ext.modules import SETS
from flashinfer_ext.variants import PAGE_MASK_DECL, Variant, use_prebuilt

BF16 = torch.bfloat16


def test_the_list_needs_neither_compiler_nor_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    names = []
    for which in ("variants", "stock", "gpu", "all"):
        assert aot.main(["--arch", "9.0a", "--list", "--set", which]) == 0
        listed = capsys.readouterr().out.split()
        assert len(listed) == len(set(listed))
        if which == "all":
            assert set(listed) == set(names)
        names += listed
    assert "jenga_sink_fa2_q_bf16_kv_bf16_d_64_64_swa_1" in names
    assert "jenga_page_mask_fa2_q_bf16_kv_bf16_d_128_128_swa_0" in names
    assert "stock_decode_kv_bf16_d_128_swa_1_cap_0" in names


def test_patterns_choose_modules(capsys: pytest.CaptureFixture[str]) -> None:
    aot.main(["--arch", "9.0a", "--list", "--only", "*page_mask*d_256*"])
    names = capsys.readouterr().out.split()
    assert names == [f"jenga_page_mask_fa2_q_bf16_kv_bf16_d_256_256_swa_{w}" for w in (1, 0)]
    assert aot.main(["--arch", "9.0a", "--only", "nothing"]) == 1
    assert "no module matches" in capsys.readouterr().err


@pytest.mark.parametrize("arch", ["9", "sm_90a", "H100"])
def test_what_is_no_architecture_is_refused(arch: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        aot.main(["--arch", arch, "--list"])
    assert f"--arch: expected one such as 9.0a, got '{arch}'" in capsys.readouterr().err


def test_every_difference_in_code_is_a_difference_in_name() -> None:
    variants = {
        Variant(kind, BF16, kv, dim, dim, window, backend)
        for kind, backend in (("sink", "fa2"), ("sink", "fa3"), ("page_mask", "fa2"))
        for kv in (BF16, torch.float8_e4m3fn)
        for dim in (64, 128)
        for window in (False, True)
        if backend == "fa2" or kv == BF16
    }
    assert len({variant.uri for variant in variants}) == len(variants)


@pytest.mark.parametrize("fields", [("page_mask", BF16, BF16, "fa3"), ("other", BF16, BF16, "fa2")])
def test_variants_that_no_kernel_has_are_refused(fields: tuple[str, ...]) -> None:
    kind, q_dtype, kv_dtype, backend = fields
    with pytest.raises(ValueError, match="expected a kind and its backend"):
        Variant(kind, q_dtype, kv_dtype, 128, 128, False, backend)


def test_fa3_with_two_dtypes_is_refused() -> None:
    with pytest.raises(ValueError, match="fa3: expected equal dtypes"):
        Variant("sink", BF16, torch.float8_e4m3fn, 64, 64, False, "fa3")


@pytest.fixture
def flashinfer_env(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> object:
    with warnings.catch_warnings(action="ignore"):
        from flashinfer.compilation_context import CompilationContext
        from flashinfer.jit import core, env
    monkeypatch.setenv("FLASHINFER_CUDA_ARCH_LIST", "9.0a")
    monkeypatch.setattr(core, "current_compilation_context", CompilationContext())
    monkeypatch.setattr(env, "FLASHINFER_GEN_SRC_DIR", tmp_path / "generated")
    monkeypatch.setattr(env, "FLASHINFER_AOT_DIR", env.FLASHINFER_AOT_DIR)
    return env


@pytest.mark.parametrize("kind", ["sink", "page_mask"])
def test_sources_hold_the_variant(flashinfer_env: object, tmp_path: Path, kind: str) -> None:
    variant = Variant(kind, BF16, BF16, 64, 64, window=True)
    spec = variant.spec()
    assert spec.name == variant.uri
    folder = tmp_path / "generated" / variant.uri
    config = (folder / "batch_prefill_config.inc").read_text()
    assert "constexpr auto USE_SLIDING_WINDOW = true" in config
    assert "constexpr int HEAD_DIM_QK = 64" in config
    assert (PAGE_MASK_DECL.strip() in config) == (kind == "page_mask")
    assert {source.parent for source in spec.sources} == {folder}


def test_prebuilt_modules_are_found_by_name(flashinfer_env: object, tmp_path: Path) -> None:
    variant = Variant("sink", BF16, BF16, 64, 64, window=True)
    library = tmp_path / variant.uri / f"{variant.uri}.so"
    library.parent.mkdir()
    library.touch()
    spec = variant.spec()
    assert not spec.is_aot
    use_prebuilt(tmp_path)
    assert spec.is_aot and spec.get_library_path() == library
    with pytest.raises(ValueError, match="expected a folder"):
        use_prebuilt(library)


def test_every_module_writes_its_sources(flashinfer_env: object) -> None:
    modules = {module.name: module for make in SETS.values() for module in make()}
    names = {module.spec().name for module in modules.values()}
    assert len(names) == len(modules)


def fake_toolkit(folder: Path, nvcc: str = "#!/bin/sh\n") -> Path:
    for name in ("bin", "lib64", "include"):
        (folder / name).mkdir(parents=True)
    (folder / "lib64" / "libcudart.so.13").touch()
    (folder / "bin" / "nvcc").write_text(nvcc)
    (folder / "bin" / "nvcc").chmod(0o755)
    return folder


def test_a_wrapper_named_nvcc_is_asked_where_its_toolkit_is(tmp_path: Path) -> None:
    real = fake_toolkit(tmp_path / "toolkit", f'#!/bin/sh\necho "#$ TOP={tmp_path}/toolkit" >&2\n')
    wrapper = fake_toolkit(tmp_path / "local", f'#!/bin/sh\nexec {real}/bin/nvcc "$@"\n')
    assert toolchain.find_cuda_home({"PATH": str(wrapper / "bin")}) == real


def test_the_usual_folder_is_looked_at_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = fake_toolkit(tmp_path / "usual")
    monkeypatch.setattr(toolchain, "USUAL_HOME", usual)
    assert toolchain.find_cuda_home({"PATH": str(tmp_path)}) == usual
    other = fake_toolkit(tmp_path / "other")
    assert toolchain.find_cuda_home({"PATH": "", "CUDA_HOME": str(other)}) == other


def test_a_missing_toolkit_is_said_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "USUAL_HOME", tmp_path)
    with pytest.raises(toolchain.ToolchainError, match="install a CUDA toolkit or set CUDA_HOME"):
        toolchain.find_cuda_home({"PATH": str(tmp_path)})
    with pytest.raises(toolchain.ToolchainError, match="bin/nvcc"):
        toolchain.find_cuda_home({"CUDA_HOME": str(tmp_path)})


def test_what_the_driver_would_bring_is_made(tmp_path: Path) -> None:
    home = fake_toolkit(tmp_path / "toolkit")
    environment = {"CUDA_HOME": str(home), "PATH": "/bin", "FLASHINFER_EXTRA_LDFLAGS": "-lx"}
    for _ in range(2):  # a second run finds everything in place
        added = toolchain.prepare("9.0a", tmp_path / "work", environment)
    libraries = tmp_path / "work" / "lib"
    assert (libraries / "libcudart.so").resolve() == home / "lib64" / "libcudart.so.13"
    assert (libraries / "libcuda.so").stat().st_size > 0
    assert added["FLASHINFER_EXTRA_LDFLAGS"] == f"-lx -L{libraries}"
    assert added["FLASHINFER_CUDA_ARCH_LIST"] == "9.0a"
    assert added["PATH"].split(":") == [str(Path(sys.executable).parent), "/bin"]


def test_importing_the_package_does_not_import_flashinfer_or_triton() -> None:
    code = "import flashinfer_ext, sys; print(*{'flashinfer', 'triton'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, "")


def test_the_package_stands_alone() -> None:
    sources = Path(aot.__file__).parent.rglob("*.py")
    assert not [path for path in sources if "jenga_sglang" in path.read_text()]
