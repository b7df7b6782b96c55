"""What the stages of a pipeline make of each other's groups, and a pool of one stage's bytes."""

from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from adapter_builders import make_cache, make_scheduler
from core_builders import begin, make_manager, tokens

from jenga_sglang.adapter.cache import batch_alloc
from jenga_sglang.adapter.cache.budget import JengaPrefillBudget
from jenga_sglang.adapter.discovery import DiscoveredGroup
from jenga_sglang.adapter.hooks.scheduling import _retract_decode
from jenga_sglang.adapter.kv_pool import JengaKVPool
from jenga_sglang.adapter.start.stages import OfStage, Stages
from jenga_sglang.adapter.states import DiscoveredStates, StatePart
from jenga_sglang.core.cut.geometry import LayerGroupSpec, exact_lcm
from jenga_sglang.core.cut.stages import StageCut
from jenga_sglang.core.dependency import Dependency, Full, LastState, SlidingWindow
from jenga_sglang.core.manager import Manager

PAGE = 4
ROW_BYTES = 2 * 8 * 4  # two heads of eight float32 elements
PART = StatePart((2, 8), torch.float32)


def group(dependency: Dependency, *layers: int, heads: int = 2) -> DiscoveredGroup:
    row = heads * 8 * 4
    spec = LayerGroupSpec(str(dependency), layers, dependency, row, row)
    return DiscoveredGroup(spec, heads, 8, 8, dtype=torch.float32)


def states(*layers: int) -> DiscoveredStates:
    spec = LayerGroupSpec("states", layers, LastState(), state_bytes=(64, 64))
    return DiscoveredStates(spec, (PART,), PART)


FULL, WINDOW = Full(), SlidingWindow(8)
# Layers 0 to 2 have a window but for the first, 3 to 7 but for the last two.
TOLD = (
    OfStage((group(FULL, 0), group(WINDOW, 1, 2)), states(8), 20_000),
    OfStage((group(WINDOW, 3, 4, 5), group(FULL, 6, 7)), states(9, 10), 30_000),
)


def both(told: Sequence[OfStage] = TOLD) -> list[Stages]:
    return [Stages(told, rank) for rank in range(len(told))]


def make_pools(num_requests: int = 2) -> list[JengaKVPool]:
    pools = []
    for stages in both():
        books, held = stages.cut(exact_lcm(stages.specs, PAGE, 1 << 20), 0)
        manager = Manager(books, max_requests=num_requests, max_length=64)
        pool = JengaKVPool(
            manager,
            stages.groups,
            stages.states,
            cut=held,
            dtype=torch.float32,
            device="cpu",
            enable_memory_saver=False,
            poison_freed=True,
        )
        pools.append(pool)
    return pools


def test_groups_come_in_the_models_order_on_every_stage() -> None:
    first, second = both()
    assert first.specs == second.specs
    layers = [(str(spec.dependency), spec.layers) for spec in first.specs]
    assert layers == [("full", (6, 7)), ("window 8", (3, 4, 5)), ("last state", (9, 10))]
    own = [[g and g.spec.layers for g in stages.groups] for stages in (first, second)]
    assert own == [[(0,), (1, 2)], [(6, 7), (3, 4, 5)]]


def test_layers_of_other_rows_are_other_groups_and_may_be_on_one_stage() -> None:
    wide = group(FULL, 3, heads=4)
    first, second = both([OfStage((group(FULL, 0, 1),), None, 9), OfStage((wide,), None, 9)])
    assert [spec.name for spec in first.specs] == ["full from layer 0", "full from layer 3"]
    assert [bool(g) for g in (*first.groups, *second.groups)] == [True, False, False, True]


def test_a_stage_without_recurrent_layers_is_refused() -> None:
    told = [TOLD[0], OfStage(TOLD[1].groups, None, 30_000)]
    with pytest.raises(SystemExit, match="--pp-size 2: leaves a stage without recurrent layers"):
        both(told)


def test_one_stage_has_the_whole_books_for_its_bytes() -> None:
    (alone,) = both(TOLD[:1])
    books, held = alone.cut(exact_lcm(alone.specs, PAGE, 1 << 20), 1_000)
    assert books is held and books.pool_bytes == 19_000


def test_stages_have_the_same_books_and_bytes_of_their_own() -> None:
    first, second = make_pools()
    assert first.manager.geometry == second.manager.geometry
    pages = first.manager.geometry.num_large_pages + 1
    for pool, budget in ((first, 20_000), (second, 30_000)):
        assert isinstance(pool.cut, StageCut)
        assert pool.buffer.numel() == pages * pool.cut.large_page_bytes <= budget
    assert first.buffer.numel() < second.buffer.numel()


def test_no_two_layers_or_pages_share_a_byte_on_any_stage() -> None:
    """A request's pages, and states, in every layer: written one by one, each is as it was."""
    for pool in make_pools():
        running = begin(pool.manager, tokens(range(10)))
        written = {}
        for number, layer_id in enumerate(sorted(pool.place), start=1):
            place = pool.place[layer_id]
            rows = pool.small_pages(place.group, place.stripe, running.row)
            for page, small in enumerate(rows.tolist()):
                where = torch.tensor([small] * PAGE), torch.arange(PAGE)
                value = torch.full((PAGE, 2, 8), 100.0 * number + page)
                pool.write(layer_id, *where, value, -value)
                written[layer_id, small] = value
        for (layer_id, small), value in written.items():
            assert torch.equal(pool.k_pages[layer_id][small], value)
            assert torch.equal(pool.v_pages[layer_id][small], -value)
        assert pool.states is not None
        spans = sorted(span(pool, view) for view in views_of(pool))
        assert all(stop <= start for (_, stop), (start, _) in pairwise(spans))


def views_of(pool: JengaKVPool) -> list[torch.Tensor]:
    """The parts of one state in every recurrent layer."""
    assert pool.states is not None
    layers = pool.states.layers.values()
    return [part[1] for layer in layers for part in (*layer.conv, layer.temporal)]


def span(pool: JengaKVPool, view: torch.Tensor) -> tuple[int, int]:
    start = view.data_ptr() - pool.buffer.data_ptr()
    return start, start + view.numel() * view.element_size()


def test_freed_pages_are_poisoned_where_a_stage_has_them() -> None:
    for pool in make_pools():
        running = begin(pool.manager, tokens(range(10)))
        layer_id = min(pool.place)
        place = pool.place[layer_id]
        rows = torch.from_numpy(pool.small_pages(place.group, place.stripe, running.row))
        pool.manager.release(running)
        pool.poison_freed()
        assert pool.k_pages[layer_id][rows].isnan().all()


def test_a_stage_gets_no_more_groups() -> None:
    with pytest.raises(ValueError, match="stages of a pipeline get no more groups"):
        make_pools()[0].add_group(group(FULL, 20))


def batch(*reqs: SimpleNamespace) -> SimpleNamespace:
    return SimpleNamespace(reqs=reqs)


def request(rid: str, most: int, done: int = 0, *, ignore_eos: bool = False) -> SimpleNamespace:
    sampling = SimpleNamespace(max_new_tokens=most, ignore_eos=ignore_eos)
    return SimpleNamespace(rid=rid, sampling_params=sampling, output_ids=[0] * done)


def test_room_is_left_for_what_other_batches_still_decode() -> None:
    """Half of 100 - 20 tokens, and all of 10 - 4; a batch in flight that has been merged into a
    running one counts once, and this turn's own, with what it has just computed, not at all."""
    half, all_of = request("half", 100, 20), request("all", 10, 4, ignore_eos=True)
    own, last = batch(request("own", 1000)), batch(request("last", 1000))
    scheduler = make_scheduler()
    scheduler.running_batch, scheduler.last_batch = own, last
    scheduler.running_mbs = [own, batch(half, all_of), batch()]
    scheduler.mbs = [last, batch(all_of), None]
    scheduler.new_token_ratio_tracker = SimpleNamespace(current=0.5)
    cache = make_cache(make_manager(Full(), num_large=40, page_size=PAGE))
    with cache.admission.passing(scheduler):
        assert JengaPrefillBudget(cache.admission, num_mixed_decode_tokens=3).total_offset == 49
    with cache.admission.passing(make_scheduler()):
        assert JengaPrefillBudget(cache.admission).total_offset == 0


@pytest.mark.parametrize(
    ("stages", "others_run", "waits"), [(2, True, True), (2, False, False), (1, True, False)]
)
def test_the_last_request_of_a_batch_waits_for_those_of_others(
    stages: int, others_run: bool, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang has retracted one and would abort the last; alone it would never fit."""
    monkeypatch.setattr(batch_alloc, "get_parallel", lambda: SimpleNamespace(pp_size=stages))
    cache = make_cache(make_manager(Full(), num_large=40, page_size=PAGE))
    if others_run:
        begin(cache.manager, tokens(range(10)))
    last = SimpleNamespace(to_finish="out of memory")
    answer = _retract_decode(
        lambda batch: (["other"], 0.5, [last]), SimpleNamespace(tree_cache=cache)
    )
    if waits:
        assert answer == (["other", last], 0.5, []) and last.to_finish is None
    else:
        assert answer == (["other"], 0.5, [last]) and last.to_finish == "out of memory"
