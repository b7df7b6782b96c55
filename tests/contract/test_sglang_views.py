"""Every name that `adapter/sglang_views.py` says an object of SGLang has, it has."""

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import pytest
from sglang.srt.constrained.grammar_manager import GrammarManager
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.managers.schedule_batch import MultimodalInputs, Req, ScheduleBatch
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.scheduler_components.new_token_ratio_tracker import NewTokenRatioTracker
from sglang.srt.observability.req_time_stats import SchedulerReqTimeStats
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import ServerArgs

from jenga_sglang.adapter import sglang_views as views

PAIRS = {
    views.SamplingView: SamplingParams,
    views.TimesView: SchedulerReqTimeStats,
    views.ImagesView: MultimodalInputs,
    views.ReqView: Req,
    views.BatchView: ScheduleBatch,
    views.GrammarsView: GrammarManager,
    views.RatioView: NewTokenRatioTracker,
    views.SchedulerView: Scheduler,
    views.LayerView: RadixAttention,
    views.ServerArgsView: ServerArgs,
}


def names_of(cls: type) -> set[str]:
    """Whatever a class or its bases define, declare, or set on ``self``."""
    names: set[str] = set()
    for base in cls.__mro__[:-1]:
        names |= {*vars(base), *set_on_self(base)}
        for fields in ("__annotations__", "__dataclass_fields__", "__struct_fields__"):
            found = vars(base).get(fields, ())
            # `msgspec.Struct` itself has a descriptor there.
            names |= set(found) if isinstance(found, Iterable) else set()
    return names


def set_on_self(cls: type) -> Iterator[str]:
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):  # built in
        return
    for node in ast.walk(ast.parse(textwrap.dedent(source))):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), ctx=ast.Store()):
                yield node.attr


def methods_of(view: type) -> dict[str, Any]:
    return {name: f for name, f in vars(view).items() if inspect.isfunction(f) and name[0] != "_"}


def test_every_view_has_its_class() -> None:
    found = {
        view
        for view in vars(views).values()
        if isinstance(view, type) and view is not Protocol and view.__module__ == views.__name__
    }
    assert found == set(PAIRS)


@pytest.mark.parametrize("view", PAIRS, ids=lambda view: view.__name__)
def test_what_it_names_is_there(view: type) -> None:
    touched = {*vars(view).get("__annotations__", {}), *methods_of(view)}
    assert touched and touched <= names_of(PAIRS[view]), touched - names_of(PAIRS[view])


@pytest.mark.parametrize("view", PAIRS, ids=lambda view: view.__name__)
def test_methods_can_be_called_as_they_are(view: type) -> None:
    for name, method in methods_of(view).items():
        theirs = inspect.signature(getattr(PAIRS[view], name))
        arguments = list(inspect.signature(method).parameters)
        theirs.bind(*arguments)
        assert list(theirs.parameters)[: len(arguments)] == arguments, (name, theirs)


def test_a_name_that_is_nowhere_would_be_noticed() -> None:
    assert "no_such_name" not in names_of(Scheduler)
    assert {"waiting_queue", "get_prefill_adder_class"} <= names_of(Scheduler)
