"""Pages that pass, as servers ask for them: of which layers, and which hits stay possible."""

from array import array
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adapter_builders import make_cache, make_scheduler
from core_builders import make_manager

from jenga_sglang.adapter.discovery import discover_groups
from jenga_sglang.core.dependency import Full, SlidingWindow
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.running import Running


def layer(number: int, window: int = 8) -> Any:
    """A layer of one head; its rows are those of layer ``number``."""
    return SimpleNamespace(
        layer_id=number,
        is_cross_attention=False,
        sliding_window_size=window,
        use_irope=False,
        tp_k_head_num=1,
        qk_head_dim=8,
        v_head_dim=8,
    )


@pytest.mark.parametrize(
    ("order", "late"),
    [
        ([0, 1, 2, 3], False),
        # A neighbour reads them, before the next layer writes.
        ([0, 0, 2, 2], False),
        # As in Gemma-3n: what the last layers read is written last.
        ([0, 1, 2, 2, 2], False),
        ([0, 1, 2, 1, 2], True),
        ([0, 2, 0], True),
    ],
)
def test_rows_that_are_read_again_after_a_later_layer_are_known(
    order: Sequence[int], late: bool
) -> None:
    (group,) = discover_groups(map(layer, order), store_dtype=torch.float32, max_length=64)
    assert group.spec.is_read_late == late


def test_a_layer_of_another_group_between_them_does_no_harm() -> None:
    layers = [layer(0), layer(1, window=-1), layer(0), layer(2)]
    groups = discover_groups(layers, store_dtype=torch.float32, max_length=64)
    assert [group.spec.is_read_late for group in groups] == [False, False]


def request(running: Running, *parts: range, prompt: int | None = None) -> Any:
    tokens = [token for part in parts for token in part][:prompt]
    names = {"lora_id": None, "extra_key": None, "cache_salt": None, "rid": "other"}
    return SimpleNamespace(
        origin_input_ids=array("q", tokens),
        lock=SimpleNamespace(receipt=running),
        multimodal_inputs=None,
        req_pool_idx=0,
        **names,
    )


def make_pool() -> Manager:
    return make_manager(
        Full(), SlidingWindow(4), num_large=79, layers=[1, 3], stripes=[1, 3], page_size=2
    )


def test_hits_are_wanted_near_the_end_and_where_requests_that_wait_part() -> None:
    manager = make_pool()
    cache = make_cache(manager)
    running = manager.lock(manager.miss(None))
    other = request(running, range(7), range(50, 60))
    cache.admission.now.waiting = (other,)
    slack = max(1, manager.prompt_slack(40))
    mine = request(running, range(40))
    assert cache.wanted_hits(mine, 0) == [40 - slack, 40, 7]
    assert cache.wanted_hits(mine, 8) == [40 - slack, 40]


def test_the_next_pass_ends_what_passes() -> None:
    """An admission pass comes after a step's launch, and before pages are handed out again."""
    manager = make_pool()
    cache = make_cache(manager)
    running = manager.lock(manager.miss(None))
    assert manager.reserve([(running, 20)], [()])
    manager.extend(running, 40)
    assert running.passing
    with cache.admission.passing(make_scheduler()):
        assert not running.passing
    manager.check()
