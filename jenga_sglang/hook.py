"""One hooked function of SGLang: what is expected of it, what runs there, and the reasons.

A record stands on the function that runs::

    @hook("sglang.srt.managers.schedule_batch.alloc_for_extend", ("batch",), AROUND, until="…")
    def _alloc_for_extend(original, batch):
        '''Why SGLang's own does not do; `patches/README.md` quotes it.'''

and `hooks_of` collects the records of a module. A body sees servers of Jenga only: whether a call
is theirs is decided here, once, by the hook's ``when``.
"""

from __future__ import annotations

import functools
import inspect
import logging
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, TypeVar

from packaging.specifiers import SpecifierSet
from sglang.srt.plugins import hook_registry
from sglang.srt.plugins.hook_registry import HookRegistry, HookSource, HookType

from jenga_sglang import flags, versions
from jenga_sglang.refusal import refuse

logger = logging.getLogger(__name__)

AFTER = HookType.AFTER
AROUND = HookType.AROUND
_RECORDS = "__jenga_hooks__"
_Body = TypeVar("_Body", bound=Callable[..., Any])


def server_is_jenga(*args: Any, **kwargs: Any) -> bool:
    """Whether the server of this process chose Jenga. A process may be hooked and serve stock: one
    program can start an engine of each kind."""
    from sglang.srt.runtime_context import get_memory

    return bool(get_memory().radix_cache_backend == flags.RADIX_CACHE_BACKEND)


def always(*args: Any, **kwargs: Any) -> bool:
    """For the command line, where nothing is chosen yet."""
    return True


@dataclass(frozen=True)
class Hook:
    """One hooked function: its dotted path, and its parameters as they were when this was written,
    by version (a specifier such as ``<0.5.23``) where a supported version's differ."""

    target: str
    parameters: tuple[str, ...]
    run: Callable[..., Any]
    kind: HookType
    by_version: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reason: str = ""
    until: str = ""

    def problem(self) -> str | None:
        """Why this hook cannot be applied here, or None."""
        try:
            found = self.found_parameters()
        except (ImportError, AttributeError) as error:
            return f"{self.target} is missing ({error})"
        expected = self.expected_parameters(versions.installed_sglang())
        if found != expected:
            return f"{self.target} takes {found}, expected {expected}"
        return None

    def resolve(self) -> Any:
        """The function as it is now. Raises ``ImportError`` or ``AttributeError``."""
        return pkgutil.resolve_name(self.target)

    def found_parameters(self) -> tuple[str, ...]:
        """The installed function's, beneath this hook where it is applied already."""
        return tuple(name for name in inspect.signature(self.resolve()).parameters if name != "cls")

    def expected_parameters(self, version: str) -> tuple[str, ...]:
        """Those on record for a version of SGLang."""
        record = self.record_of(version)
        return self.parameters if record is None else self.by_version[record]

    def record_of(self, version: str) -> str | None:
        """Which of ``by_version`` covers a version of SGLang, or None."""
        for specifier in self.by_version:
            if SpecifierSet(specifier).contains(version, prereleases=True):
                return specifier
        return None


def hook(
    target: str,
    parameters: tuple[str, ...],
    kind: HookType,
    *,
    until: str,
    when: Callable[..., bool] = server_is_jenga,
    by_version: Mapping[str, tuple[str, ...]] | None = None,
) -> Callable[[_Body], _Body]:
    """Put the decorated function on ``target``, where ``when`` holds of the call's arguments.

    The function's docstring is the reason, ``until`` what would make the hook unnecessary. The
    function itself is returned as it is. Raises ``ValueError`` for a function without a reason.
    """

    def put_on_record(body: _Body) -> _Body:
        reason = " ".join((body.__doc__ or "").split())
        if not reason:
            raise ValueError(f"{body.__name__} needs a docstring: why {target} is hooked")
        run = _guarded(body, kind, when)
        record = Hook(target, parameters, run, kind, by_version or {}, reason, until)
        # Decorators run from the innermost on; records are read from the top.
        setattr(body, _RECORDS, (record, *getattr(body, _RECORDS, ())))
        return body

    return put_on_record


def _guarded(body: _Body, kind: HookType, when: Callable[..., bool]) -> Callable[..., Any]:
    """``body`` as SGLang calls it, and as good as absent where ``when`` does not hold."""

    @functools.wraps(body)
    def around(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if when(*args, **kwargs):
            return body(original, *args, **kwargs)
        return original(*args, **kwargs)

    @functools.wraps(body)
    def after(result: Any, *args: Any, **kwargs: Any) -> Any:
        # To SGLang, None means that the result stands.
        return body(result, *args, **kwargs) if when(*args, **kwargs) else None

    return around if kind is AROUND else after


def hooks_of(*modules: ModuleType) -> list[Hook]:
    """The hooks whose bodies ``modules`` define, in the order of their lines."""
    return [
        record
        for module in modules
        for body in vars(module).values()
        if getattr(body, "__module__", None) == module.__name__
        for record in getattr(body, _RECORDS, ())
    ]


def problems_of(hooks: Sequence[Hook]) -> list[str]:
    """Why each of ``hooks`` that does not fit the installed SGLang does not."""
    return [problem for hook in hooks if (problem := hook.problem())]


def install(hooks: Sequence[Hook]) -> None:
    """Apply ``hooks``, all or none. Raises ``SystemExit`` when one does not fit or did not take."""
    hooks = [hook for hook in hooks if hook.target not in _installed]
    problems = problems_of(hooks)
    if problems:
        raise refuse(
            f"SGLang {versions.installed_sglang()}",
            f"{'; '.join(problems)}. Reinstall sglang{versions.SUPPORTED_SGLANG}, or uninstall "
            "jenga-sglang",
        )
    before = [hook.resolve() for hook in hooks]
    for hook in hooks:
        HookRegistry.register(hook.target, hook.run, hook.kind, source=_SOURCE)
    with _propagated_at_once(), _said_at_once(len(hooks)):
        HookRegistry.apply_hooks()
    for hook, original in zip(hooks, before, strict=True):
        if hook.resolve() is original:
            raise refuse(hook.target, "the hook did not take hold; see the log above")
        _installed.add(hook.target)


@contextmanager
def _said_at_once(num_hooks: int) -> Iterator[None]:
    """SGLang's registry logs a line for every hook, in each process of a server; here it is one."""

    def is_others(record: logging.LogRecord) -> bool:
        return f"dist={_SOURCE.dist_name}" not in record.getMessage()

    hook_registry.logger.addFilter(is_others)
    try:
        yield
    finally:
        hook_registry.logger.removeFilter(is_others)
    if num_hooks:
        logger.info("Applied %d hooks to SGLang; `jenga doctor` lists them", num_hooks)


@contextmanager
def _propagated_at_once() -> Iterator[None]:
    """SGLang's registry goes through every loaded module once a hook, for those that imported the
    function by name (`hook_registry._propagate_patch`): seconds in each process of a server. Here
    it is done once for all hooks, at the end."""
    hooked: dict[int, tuple[Any, Any, Any]] = {}

    def note(original: Any, wrapped: Any, source: Any) -> int:
        hooked[id(original)] = original, wrapped, source
        return 0

    propagate, hook_registry._propagate_patch = hook_registry._propagate_patch, note
    try:
        yield
    finally:
        hook_registry._propagate_patch = propagate
        _propagate(hooked)


def _propagate(hooked: Mapping[int, tuple[Any, Any, Any]]) -> None:
    """Put (original, wrapped, source), by the original's id, into all modules but the source."""
    for path, module in list(sys.modules.items()):
        if not isinstance(module, ModuleType) or path.partition(".")[0] in _BELOW_SGLANG:
            continue
        for name, value in list(vars(module).items()):
            if (found := hooked.get(id(value))) and found[2] is not module:
                setattr(module, name, found[1])


# Large packages that SGLang imports and that import nothing of it: two thirds of all names.
_BELOW_SGLANG = frozenset(
    {
        *("cuda", "cutlass", "flashinfer", "mpmath", "networkx", "numpy", "openai", "pydantic"),
        *("scipy", "sympy", "timm", "torch", "torchaudio", "torchvision", "transformers", "triton"),
    }
)
_SOURCE = HookSource("jenga", "jenga-sglang")
_installed: set[str] = set()
