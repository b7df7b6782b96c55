"""Which SGLang this package is made for."""

from __future__ import annotations

from importlib.metadata import version

from packaging.specifiers import SpecifierSet

SUPPORTED_SGLANG = SpecifierSet("==0.5.23")


def installed_sglang() -> str:
    return version("sglang")


def is_supported(sglang_version: str) -> bool:
    """Whether the hooks were made for it."""
    return SUPPORTED_SGLANG.contains(sglang_version, prereleases=True)
