"""Decides, when SGLang starts, whether the CPU platform takes the process.

SGLang asks every installed platform plug-in in every process, so this module imports torch (which
SGLang has imported by then) only inside functions.
"""

import os
from importlib.metadata import entry_points

PLATFORM_GROUP = "sglang.srt.platforms"
PLATFORM_NAME = "jenga_cpu"
PLATFORM_CLASS = "jenga_sglang.platform.cpu.JengaCpuPlatform"


def activate() -> str | None:
    """Return the CPU platform's class path, or None to leave the choice to SGLang."""
    from jenga_sglang import versions

    if not versions.is_supported(versions.installed_sglang()):
        return None
    if accelerator_is_visible() or another_platform_is_chosen():
        return None
    return PLATFORM_CLASS


def accelerator_is_visible() -> bool:
    """Return whether torch can use a device other than the CPU."""
    import torch

    # One question for CUDA, ROCm, XPU, HPU, MPS and out-of-tree devices (NPU, MUSA) alike.
    return bool(torch.cuda.is_available() or torch.accelerator.is_available())


def another_platform_is_chosen() -> bool:
    """Return whether the user asked for a platform that is not this one.

    `SGLANG_USE_CPU_ENGINE=1` asks for SGLang's own CPU path, whose kernels are built separately.
    A second installed platform plug-in counts too, because SGLang refuses to start when two
    activate; `SGLANG_PLATFORM=jenga_cpu` settles it for this one.
    """
    selected = os.environ.get("SGLANG_PLATFORM")
    if selected:
        return selected != PLATFORM_NAME
    if os.environ.get("SGLANG_USE_CPU_ENGINE", "0") == "1":
        return True
    return any(point.name != PLATFORM_NAME for point in entry_points(group=PLATFORM_GROUP))
