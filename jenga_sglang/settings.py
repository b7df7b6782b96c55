"""Every environment variable of this package: its name, what it may say, and what it does.

A server reads them when its command line is checked, and a value without meaning ends the start
there. The processes that it spawns inherit them and read the same.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.layer_flags import Keep, KvDtypes
from jenga_sglang.refusal import refuse

logger = logging.getLogger(__name__)

PREFIX = "JENGA_"
LAYOUTS = ("planned", "exact-lcm")
PREFILL_KERNELS = ("auto", "fa2", "fa3")
DECODE_KERNELS = ("fa2", "xqa")
WINDOWS = ("model", "config")

Parse = Callable[[str], Any]


@dataclass(frozen=True)
class Variable:
    """``default`` is the text that means the same as leaving it out; ``parse`` raises
    ``ValueError`` with what the user may write instead. ``reader`` is who reads it: the server, or
    the commands beside it; "processes" where the package itself hands it to those it spawns."""

    name: str
    default: str
    meaning: str
    parse: Parse
    reader: str
    is_secret: bool


def _one_of(*known: str) -> Parse:
    def parse(text: str) -> str:
        if text not in known:
            raise ValueError(f"unknown; choose one of {', '.join(known)}")
        return text

    return parse


def _switch(text: str) -> bool:
    return bool(_one_of("0", "1")(text) == "1")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError("is not a number of seconds, 0 or more; write one, or leave it out")
    return seconds


def _policies(text: str) -> CachePolicy:
    try:
        return CachePolicy.parse(text)
    except ValueError as error:
        way_out = "write name=number, name=on or name=off, with commas between"
        raise ValueError(f"{error}; {way_out}") from error


def _folder(text: str) -> Path | None:
    if text and not Path(text).is_dir():
        raise ValueError("is no folder; give one that `flashinfer_ext.aot` wrote, or leave it out")
    return Path(text) if text else None


def _text(text: str) -> str | None:
    return text or None


def _about(
    default: str, parse: Parse, meaning: str, *, reader: str = "server", is_secret: bool = False
) -> dict[str, Any]:
    about = {"default": default, "parse": parse, "meaning": meaning}
    return about | {"reader": reader, "is_secret": is_secret}


@dataclass(frozen=True)
class Settings:
    """What the variables say; a field ``name`` is the variable ``JENGA_NAME``."""

    watchdog_seconds: float = field(
        metadata=_about(
            "30",
            _seconds,
            "how long requests may wait with nothing computed before the log says so; 0 is never",
        )
    )
    storage_seconds: float = field(
        metadata=_about(
            "30",
            _seconds,
            "how long a storage backend below host memory may take for one answer before prompts, "
            "flushes and detaching go on without it; 0 is for ever",
        )
    )
    policies: CachePolicy = field(
        metadata=_about(
            "",
            _policies,
            "what the prefix cache keeps: name=number, name=on or name=off, with commas between; "
            "the names are in jenga_sglang/core/policy.py",
        )
    )
    layout: str = field(
        metadata=_about(
            "planned",
            _one_of(*LAYOUTS),
            "how the pool is cut into pages: planned, or exact-lcm as in the paper",
        )
    )
    poison_freed: bool = field(
        metadata=_about(
            "0", _switch, "debugging: 1 fills freed pages with NaN before anything reuses them"
        )
    )
    log_digest: bool = field(
        metadata=_about(
            "0",
            _switch,
            "debugging: 1 logs a hash of the books at idle checks, to compare ranks by",
        )
    )
    prefill_kernel: str = field(
        metadata=_about(
            "auto",
            _one_of(*PREFILL_KERNELS),
            "what computes prompts with --attention-backend flashinfer: fa2, or fa3 on sm_90; auto "
            "takes fa3 there for layer groups that fit it",
        )
    )
    decode_kernel: str = field(
        metadata=_about(
            "fa2",
            _one_of(*DECODE_KERNELS),
            "what decodes with --attention-backend flashinfer: fa2, or xqa, which needs no plan",
        )
    )
    flashinfer_modules: Path | None = field(
        metadata=_about(
            "",
            _folder,
            "folder of modules compiled beforehand by `python -m flashinfer_ext.aot`, for "
            "--attention-backend flashinfer",
        )
    )
    cpu_platform: bool = field(
        metadata=_about(
            "1",
            _switch,
            "0 keeps this package's platform for machines without a GPU out of every process, as "
            "if it were not installed",
        )
    )
    api_key: str | None = field(
        metadata=_about(
            "",
            _text,
            "the key of the server that jenga top, report and explain ask; --api-key overrides it",
            reader="commands",
            is_secret=True,
        ),
        repr=False,
    )
    sglang_active: bool = field(
        metadata=_about(
            "0",
            _switch,
            "set by the package: the process belongs to a server started with "
            "--memory-backend jenga",
            reader="processes",
        )
    )
    window: str = field(
        metadata=_about(
            "model",
            _one_of(*WINDOWS),
            "set by the package: what --jenga-window says",
            reader="processes",
        )
    )
    kv_dtype: KvDtypes = field(
        metadata=_about(
            "",
            KvDtypes.parse,
            "set by the package: what --jenga-kv-dtype says",
            reader="processes",
        )
    )
    keep: Keep = field(
        metadata=_about(
            "",
            Keep.parse,
            "set by the package: what --jenga-keep says",
            reader="processes",
        )
    )

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Settings:
        """What ``environ`` says; an empty value is none. Raises ``SystemExit`` with one line for
        the first variable whose value means nothing."""
        return cls(**{name: value(name, environ) for name in variables()})


@cache
def variables() -> dict[str, Variable]:
    """Every variable, by its field of `Settings`."""
    return {f.name: Variable(name=PREFIX + f.name.upper(), **f.metadata) for f in fields(Settings)}


def name_of(setting: str) -> str:
    """The variable of a field of `Settings`."""
    return variables()[setting].name


def value(setting: str, environ: Mapping[str, str]) -> Any:
    """What one variable says, for whom the others mean nothing. Raises as `Settings.read`."""
    variable = variables()[setting]
    text = environ.get(variable.name) or variable.default
    try:
        return variable.parse(text)
    except ValueError as error:
        raise refuse(f"{variable.name}={text}", str(error)) from error


def current() -> Settings:
    """What the environment of this process says. Raises ``SystemExit`` as `Settings.read`."""
    return _parsed(tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith(PREFIX))))


@cache
def _parsed(given: tuple[tuple[str, str], ...]) -> Settings:
    return Settings.read(dict(given))


def check() -> None:
    """Before a model is loaded: raise ``SystemExit`` with one line for a value that means nothing,
    and warn of names that mean nothing.

    No refusal of names: other programs have variables that begin alike. Kubernetes sets
    ``JENGA_PORT`` for a service that is called jenga.
    """
    current()
    for name in unknown(os.environ):
        logger.warning("%s means nothing to jenga-sglang%s", name, _nearest(name))


def unknown(environ: Mapping[str, str]) -> list[str]:
    """Names in ``environ`` that begin like a variable's, and are none."""
    known = {variable.name for variable in variables().values()}
    return sorted(name for name in environ if name.startswith(PREFIX) and name not in known)


def _nearest(name: str) -> str:
    # Without the prefix, which makes all names alike.
    endings = {v.name.removeprefix(PREFIX): v.name for v in variables().values()}
    found = difflib.get_close_matches(name.removeprefix(PREFIX), endings, n=1, cutoff=0.6)
    return f"; did you mean {endings[found[0]]}?" if found else "; `jenga settings` lists what does"


def hand_down(**values: str) -> None:
    """Set variables, by their fields, for this process and every one that it spawns."""
    for setting, text in values.items():
        os.environ[name_of(setting)] = text
