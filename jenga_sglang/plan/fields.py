"""Typed reading of a ``config.json``, with errors that name the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ConfigError(ValueError):
    """A config that cannot be read. The message names the field."""


class Fields:
    """A JSON object. A field that it leaves out, or sets to null, comes from ``defaults``.

    ``path`` is where the object stands in the file, for messages: ``text_config.`` or empty.
    """

    def __init__(
        self, values: Mapping[str, Any], path: str = "", defaults: Mapping[str, Any] | None = None
    ) -> None:
        self.values = values
        self.path = path
        self.defaults = defaults or {}

    def has(self, name: str) -> bool:
        return self.get(name) is not None

    def get(self, name: str) -> Any:
        value = self.values.get(name)
        return self.defaults.get(name) if value is None else value

    def integer(self, *names: str, at_least: int = 1) -> int:
        """The first of ``names`` that is there; raises `ConfigError` when none is."""
        value = self.optional_integer(*names, at_least=at_least)
        if value is None:
            others = f" (nor {', '.join(names[1:])})" if names[1:] else ""
            raise ConfigError(f"field '{self.path}{names[0]}' is missing{others}")
        return value

    def optional_integer(self, *names: str, at_least: int = 1) -> int | None:
        """The first of ``names`` that is there, or None."""
        for name in names:
            if self.has(name):
                return self._check_integer(name, self.get(name), at_least)
        return None

    def integers(self, name: str, length: int | None = None) -> list[int]:
        """A list of integers, of ``length`` entries where that is given."""
        values = self.items(name, length)
        return [self._check_integer(f"{name}[{i}]", v, 0) for i, v in enumerate(values)]

    def items(self, name: str, length: int | None = None) -> list[Any]:
        """A list, of at least ``length`` entries where that is given; the rest is dropped."""
        values = self.get(name)
        if not isinstance(values, list):
            raise self.error(name, "a list", values)
        if length is not None and len(values) < length:
            raise self.error(name, f"{length} entries, one per layer", f"{len(values)} of them")
        return values[:length]

    def text(self, name: str) -> str:
        value = self.get(name)
        if not isinstance(value, str):
            raise self.error(name, "a string", value)
        return value

    def section(self, name: str) -> Fields:
        """A nested object; an empty one when it is missing."""
        value = self.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise self.error(name, "an object", value)
        return Fields(value or {}, f"{self.path}{name}.")

    def error(self, name: str, expected: str, got: object) -> ConfigError:
        shown = "nothing" if got is None else repr(got)
        return ConfigError(f"field '{self.path}{name}': expected {expected}, got {shown}")

    def _check_integer(self, name: str, value: object, at_least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
            raise self.error(name, f"an integer >= {at_least}", value)
        return value
