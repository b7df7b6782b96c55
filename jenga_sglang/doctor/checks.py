"""What a Jenga start needs of its environment, looked at one by one. Starts and changes nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from jenga_sglang import flags, versions

if TYPE_CHECKING:
    from jenga_sglang.hook import Hook

PACKAGES = ("jenga-sglang", "sglang", "torch", "flashinfer-python", "triton")
PLUGIN_NAME = "jenga"


@dataclass(frozen=True)
class Check:
    """One thing looked at: what was found, and what to do where it will not do."""

    name: str
    found: str
    remedy: str | None = None

    @property
    def is_good(self) -> bool:
        return self.remedy is None


@dataclass(frozen=True)
class HookCheck:
    """Whether one hooked function is there, and takes the parameters on record for this version.

    ``record`` is the specifier of the versions that have these; "all" for all supported ones.
    """

    target: str
    is_found: bool
    fits: bool
    record: str
    problem: str | None


@dataclass(frozen=True)
class Diagnosis:
    """All checks of one environment."""

    packages: dict[str, str | None]
    checks: Sequence[Check]
    hooks: Sequence[HookCheck]

    @property
    def can_start(self) -> bool:
        """Whether a start with `--memory-backend jenga` would find all that it needs."""
        return all(check.is_good for check in self.checks) and all(h.fits for h in self.hooks)


def diagnose() -> Diagnosis:
    """Look at this environment; imports SGLang, which takes seconds."""
    packages = {name: installed(name) for name in PACKAGES}
    checks = [check_sglang(packages["sglang"])]
    if packages["sglang"] is None:
        return Diagnosis(packages, checks, [])
    checks += [
        _tried("plug-in", check_plugin),
        _tried("device", check_device),
        _tried("attention backend", check_attention),
    ]
    hooks: list[HookCheck] = []

    def look_at_hooks() -> Check:
        hooks.extend(map(check_hook, all_hooks()))
        return Check("adapter", "imports with this SGLang")

    checks.append(_tried("adapter", look_at_hooks))
    return Diagnosis(packages, checks, hooks)


def installed(package: str) -> str | None:
    """The version of a distribution, or None where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _tried(name: str, check: Callable[[], Check]) -> Check:
    """A check whose failure to run is what it found."""
    try:
        return check()
    except Exception as error:
        found = f"{type(error).__name__}: {error}".splitlines()[0]
        return Check(name, found, f"install SGLang {versions.SUPPORTED_SGLANG}")


def check_sglang(found: str | None) -> Check:
    """Whether this version is one that the hooks were made for."""
    supported = versions.SUPPORTED_SGLANG
    if found is None:
        return Check("SGLang", "not installed", f"pip install 'sglang{supported}'")
    if not versions.is_supported(found):
        return Check("SGLang", f"{found}, not supported", f"pip install 'sglang{supported}'")
    return Check("SGLang", f"{found}, supported ({supported})")


def check_plugin() -> Check:
    """Whether SGLang's own loader finds the plug-in, with this environment's variables."""
    from sglang.srt import plugins

    with _quiet("sglang.srt.plugins"):
        found = plugins.load_plugins_by_group(
            plugins.GENERAL_PLUGINS_GROUP, excluded_dists=plugins._get_excluded_dists()
        )
    if PLUGIN_NAME in found:
        return Check("plug-in", f"`{PLUGIN_NAME}` is found by SGLang's loader")
    for variable, remedy in (
        ("SGLANG_PLUGINS", f"add {PLUGIN_NAME} to it, or unset it"),
        ("SGLANG_PLATFORM", "unset it, or choose jenga_cpu"),
    ):
        if value := os.environ.get(variable):
            return Check("plug-in", f"left out by {variable}={value}", remedy)
    return Check("plug-in", "not found by SGLang's loader", "reinstall jenga-sglang")


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Without what a logger says meanwhile: the check says it."""
    logger = logging.getLogger(name)
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def check_device() -> Check:
    """What a server started here would run on."""
    import torch
    from sglang.srt.platforms import current_platform

    platform = type(current_platform).__name__
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return Check("device", f"{count} x {torch.cuda.get_device_name(0)} ({platform})")
    return Check("device", f"no CUDA or ROCm device ({platform})")


def check_attention() -> Check:
    """Whether the attention backend that a start would take by default can be imported."""
    backend = flags.default_attention_backend(None)
    needed = {flags.FLASHINFER_BACKEND: "flashinfer", flags.TRITON_BACKEND: "triton"}.get(backend)
    if needed:
        import_module(needed)
    return Check("attention backend", f"{backend}, by default")


def all_hooks() -> list[Hook]:
    """Every hook of a Jenga server's processes. Importing them needs what they use of SGLang."""
    from jenga_sglang.adapter.hooks import http_hooks, runtime_hooks, transfer_hooks
    from jenga_sglang.command_line import command_line_hooks
    from jenga_sglang.registry import registry

    command_line = [] if registry() else command_line_hooks()
    return [*command_line, *runtime_hooks(), *transfer_hooks(), *http_hooks()]


def check_hook(hook: Hook) -> HookCheck:
    """Whether ``hook`` could be applied to the installed SGLang."""
    problem = hook.problem()
    return HookCheck(
        target=hook.target,
        is_found=_is_found(hook),
        fits=problem is None,
        record=hook.record_of(versions.installed_sglang()) or "all",
        problem=problem,
    )


def _is_found(hook: Hook) -> bool:
    try:
        hook.resolve()
    except (ImportError, AttributeError):
        return False
    return True
