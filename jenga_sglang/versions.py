"""Which SGLang this package is made for. Imports nothing of it."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version

from packaging.specifiers import SpecifierSet

SUPPORTED_SGLANG = ">=0.5.22,<0.5.24"
DRAFTING_SGLANG = ">=0.5.23,<0.5.24"


@cache
def installed_sglang() -> str:
    """Version of the SGLang of this environment. Raises ``PackageNotFoundError`` without one."""
    return version("sglang")


def is_supported(sglang_version: str) -> bool:
    """Whether the hooks were made for it."""
    return SpecifierSet(SUPPORTED_SGLANG).contains(sglang_version, prereleases=True)


def can_draft(sglang_version: str) -> bool:
    """Whether the hooks for speculative decoding were made for it."""
    return SpecifierSet(DRAFTING_SGLANG).contains(sglang_version, prereleases=True)
