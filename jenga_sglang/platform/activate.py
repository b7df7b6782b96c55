"""Decides, when SGLang starts, whether the CPU platform takes the process.

It does where SGLang would find no platform at all: it asks for one on a machine without an
accelerator only when told to (``SGLANG_USE_CPU_ENGINE=1``), and serves there with kernels that are
built separately. SGLang asks every installed platform plug-in in every process, so this module
imports torch (which SGLang has imported by then) only inside functions.
"""

import os
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

PLATFORM_GROUP = "sglang.srt.platforms"
PLATFORM_NAME = "jenga_cpu"
PLATFORM_CLASS = "jenga_sglang.platform.cpu.JengaCpuPlatform"


def activate() -> str | None:
    """Return the CPU platform's class path, or None to leave the choice to SGLang."""
    from jenga_sglang import versions

    if not versions.is_supported(versions.installed_sglang()):
        return None
    if is_switched_off() or accelerator_is_visible() or another_platform_is_chosen():
        return None
    return PLATFORM_CLASS


def is_switched_off() -> bool:
    """Whether the user wants SGLang without this platform. Raises ``SystemExit`` with one line
    for a value that means nothing."""
    from jenga_sglang import settings

    return not settings.value("cpu_platform", os.environ)


def accelerator_is_visible() -> bool:
    """Return whether torch can use a device other than the CPU."""
    import torch

    # One question for CUDA, ROCm, XPU, HPU, MPS and out-of-tree devices (NPU, MUSA) alike.
    return bool(torch.cuda.is_available() or torch.accelerator.is_available())


def another_platform_is_chosen() -> bool:
    """Return whether the user asked for a platform that is not this one, or installed one.

    `SGLANG_USE_CPU_ENGINE=1` asks for SGLang's own CPU path, and so does a build of its kernels
    for CPUs. A second installed platform plug-in counts too, because SGLang refuses to start when
    two activate. `SGLANG_PLATFORM=jenga_cpu` settles both for this one.
    """
    selected = os.environ.get("SGLANG_PLATFORM")
    if selected:
        return selected != PLATFORM_NAME
    if os.environ.get("SGLANG_USE_CPU_ENGINE", "0") == "1" or cpu_kernels_are_installed():
        return True
    return any(point.name != PLATFORM_NAME for point in entry_points(group=PLATFORM_GROUP))


def cpu_kernels_are_installed() -> bool:
    """Return whether SGLang's kernels are those built for CPUs: one library beside the package's
    own modules. CUDA wheels have one in a folder for each architecture."""
    spec = find_spec("sgl_kernel")
    folders = (spec.submodule_search_locations if spec else None) or ()
    return any(path for folder in folders for path in Path(folder).glob("common_ops*.so"))
