"""The pool's own part: whose bytes its views show, latent rows, and groups that come and go."""

from random import Random
from types import SimpleNamespace
from typing import Any

import core_inspector as inside
import pytest
import torch
from core_builders import begin, serve, tokens
from fake_engine import FakeEngine
from fake_engine import Job as EngineJob

from jenga_sglang.adapter.discovery import DiscoveredGroup, LatentRow, discover_groups
from jenga_sglang.adapter.hooks.pool_bytes import _resume_memory_occupation
from jenga_sglang.adapter.kv_pool import JengaKVPool
from jenga_sglang.core.cut.geometry import GroupGeometry, LayerGroupSpec, exact_lcm
from jenga_sglang.core.cut.planner import plan_geometry
from jenga_sglang.core.dependency import Full, SlidingWindow
from jenga_sglang.core.live_groups import fitting_cut
from jenga_sglang.core.manager import Manager

PAGE = 4
HISTORY = tokens(range(100, 116))
LATENT = LatentRow(24, 8)


def attention(layer_id: int, heads: int, dim_k: int, dim_v: int, window: int = 0) -> Any:
    return SimpleNamespace(
        layer_id=layer_id,
        tp_k_head_num=heads,
        qk_head_dim=dim_k,
        v_head_dim=dim_v,
        sliding_window_size=window - 1,
        use_irope=False,
        is_cross_attention=False,
    )


def latent_layers(count: int) -> list[Any]:
    """As SGLang's DeepSeek has them: a layer over latent rows, and one over what they expand to."""
    both = [(attention(i, 1, 32, 24), attention(i, 4, 24, 16)) for i in range(count)]
    return [layer for pair in both for layer in pair]


def make_pool(
    layers: list[Any],
    *,
    latent: LatentRow | None = None,
    num_large: int = 40,
    poison_freed: bool = False,
) -> JengaKVPool:
    groups = discover_groups(layers, store_dtype=torch.float32, max_length=64, latent=latent)
    geometry = exact_lcm(tuple(group.spec for group in groups), PAGE, 1 << 30)
    geometry = geometry.resized((num_large + 1) * geometry.large_page_bytes)
    manager = Manager(geometry, max_requests=4, max_length=64)
    return JengaKVPool(
        manager,
        groups,
        dtype=torch.float32,
        device="cpu",
        enable_memory_saver=False,
        poison_freed=poison_freed,
    )


def test_v_of_a_latent_row_is_a_view_of_k() -> None:
    pool = make_pool(latent_layers(3), latent=LATENT)
    assert pool.manager.geometry.groups[0].spec.bytes_per_token == 3 * 32 * 4
    row = torch.randn(1, 1, 32)
    pool.write(1, torch.tensor([2]), torch.tensor([3]), row, row[..., :24])
    k, v = pool.get_kv_buffer(1)
    assert torch.equal(k[2, 3], row[0]) and torch.equal(v[2, 3], row[0, :, :24])
    assert v.data_ptr() == k.data_ptr()
    others = pool.buffer.view(torch.float32).count_nonzero()
    assert others == row.count_nonzero(), "nothing else was written"
    assert pool.get_kv_size_bytes()[1] == 0


def test_only_a_model_with_latent_rows_has_layers_that_keep_nothing() -> None:
    with pytest.raises(ValueError, match="layer 0 is shared"):
        make_pool(latent_layers(1))


@pytest.mark.parametrize("name", ["set_kv_buffer", "set_mla_kv_buffer", "get_mla_kv_buffer"])
def test_nobody_writes_past_the_page_tables(name: str) -> None:
    with pytest.raises(NotImplementedError, match="through the attention backend"):
        getattr(make_pool(latent_layers(1), latent=LATENT), name)(None, None)


@pytest.mark.parametrize("poison_freed", [True, False])
def test_freed_pages_are_nan_only_where_that_is_asked_for(poison_freed: bool) -> None:
    """Twenty tokens; the window of 8 lets go of all but two of its five pages. What it held before
    goes to other requests as it is unless it is poisoned."""
    layers = [attention(0, 2, 16, 16), attention(1, 2, 16, 16, window=8)]
    pool = make_pool(layers, poison_freed=poison_freed)
    running = begin(pool.manager, tokens(range(20)))
    pages = [torch.from_numpy(pool.small_pages(g, 0, running.row)).long() for g in (0, 1)]
    for layer, own in enumerate(pages):
        for slot in range(PAGE):
            ones = torch.ones(len(own), 2, 16)
            pool.write(layer, own, torch.full_like(own, slot), ones, ones)
    pool.manager.slide(running, 20)
    pool.poison_freed()
    assert (pool.k_pages[0][pages[0]] == 1).all() and (pool.k_pages[1][pages[1][3:]] == 1).all()
    for kept in (pool.k_pages, pool.v_pages):
        assert kept[1][pages[1][:3]].isnan().all() == poison_freed
    pool.manager.release(running)
    pool.poison_freed()
    assert pool.k_pages[0][pages[0]].isnan().all() == poison_freed


def new_group(
    *layers: int, heads: int = 2, dim: int = 16, dtype: torch.dtype = torch.bfloat16
) -> DiscoveredGroup:
    row_bytes = heads * dim * dtype.itemsize
    spec = LayerGroupSpec("adapter", layers, Full(), row_bytes, row_bytes)
    return DiscoveredGroup(spec, heads, dim, dim, dtype=dtype)


def test_a_group_is_born_on_the_live_pool_and_dies_and_no_byte_is_moved() -> None:
    pool = make_pool([attention(0, 2, 16, 16), attention(1, 2, 16, 16, window=8)])
    manager = pool.manager
    serve(manager, HISTORY)
    running = begin(manager, tokens(7, HISTORY))
    old_pages = torch.from_numpy(pool.small_pages(0, 0, running.row[:4])).long()
    for page in old_pages:
        for slot in range(PAGE):
            value = torch.full((1, 2, 16), float(page * PAGE + slot))
            pool.write(0, page[None], torch.tensor([slot]), value, -value)
    bytes_before = pool.buffer.clone()
    free = inside.num_free(manager)

    number = pool.add_group(new_group(8, 9))
    assert inside.num_free(manager) == free and torch.equal(pool.buffer, bytes_before)
    later = begin(manager, tokens(8, HISTORY))
    new_pages = torch.from_numpy(pool.small_pages(number, 0, later.row[:4])).long()
    assert pool.k_pages[9].dtype == torch.bfloat16 and pool.k_pages[0].dtype == torch.float32
    for layer in (8, 9):
        ones = torch.ones(4, 2, 16)
        pool.write(layer, new_pages, torch.arange(4) % PAGE, ones, 2 * ones)
        assert (pool.v_pages[layer][new_pages, torch.arange(4) % PAGE] == 2).all()
    assert (pool.small_pages(0, 0, running.row[:4]) == old_pages.numpy()).all()
    for page in old_pages:
        for slot in range(PAGE):
            assert (pool.k_pages[0][page, slot] == page * PAGE + slot).all()

    with pytest.raises(ValueError, match="in use by 1 running"):
        pool.retire_group(number)
    manager.release(later)
    manager.release(running)
    pool.retire_group(number)
    assert inside.num_owned(manager)[number] == 0
    assert 8 not in pool.place and 9 not in pool.k_pages and number not in pool.layouts
    manager.check_idle()
    again = pool.add_group(new_group(8))
    assert again == number + 1 and pool.place[8].group == again


def test_groups_of_one_dependency_have_names_of_their_own() -> None:
    """Rows of other shapes, one pair of them with as many bytes: metrics go by name."""
    shapes = [(2, 16), (4, 16), (4, 16), (2, 32)]
    layers = [attention(i, heads, dim, dim) for i, (heads, dim) in enumerate(shapes)]
    layers.append(attention(4, 2, 16, 16, window=8))
    groups = discover_groups(layers, store_dtype=torch.float32, max_length=64)
    assert {group.spec.name: group.spec.layers for group in groups} == {
        "full from layer 0": (0,),
        "full from layer 1": (1, 2),
        "full from layer 3": (3,),
        "window 8": (4,),
    }


def test_a_draft_models_layers_are_a_group_more_of_the_same_pool() -> None:
    """A target of full and windowed layers and a draft of one narrow layer, planned, served, and
    the draft switched off."""
    target = discover_groups(
        [attention(i, 2, 16, 16, window=0 if i == 3 else 8) for i in range(4)],
        store_dtype=torch.float32,
        max_length=200,
    )
    # The draft's layer ids go on where the target's end.
    draft = discover_groups([attention(4, 1, 16, 16)], store_dtype=torch.bfloat16, max_length=200)
    groups = [*target, *draft]
    assert [(g.spec.name, g.spec.layers) for g in groups] == [
        ("window 8", (0, 1, 2)),
        ("full", (3,)),
        ("full", (4,)),
    ]
    plan = plan_geometry(
        tuple(g.spec for g in groups), pool_bytes=200_000, max_length=200, page_size=PAGE
    )
    manager = Manager(plan.geometry, max_requests=4, max_length=200)
    picks = Random(1)
    engine = FakeEngine(manager, picks.randint)
    for length in range(1, 120, 4):
        engine.submit(EngineJob("", list(range(length)), to_generate=8))
    while engine.waiting or engine.running:
        engine.step()
        manager.check()
    manager.check_idle()
    assert engine.counts["hit tokens"] > 100 and engine.counts["checked tokens"] > 1000

    manager.reset()
    pool = JengaKVPool(
        manager,
        groups,
        dtype=torch.float32,
        device="cpu",
        enable_memory_saver=False,
    )
    assert pool.k_pages[4].shape[2:] == (1, 16) and pool.k_pages[4].dtype == torch.bfloat16
    serve(manager, HISTORY)
    assert inside.num_owned(manager)[2] > 0
    pool.retire_group(2)
    assert inside.num_owned(manager)[2] == 0 and 4 not in pool.place
    assert manager.match(None, HISTORY).path.num_pages == len(HISTORY) // PAGE


def test_a_layer_has_one_place() -> None:
    pool = make_pool([attention(0, 2, 16, 16)])
    with pytest.raises(ValueError, match=r"the pool has layers \[0\] already"):
        pool.add_group(new_group(0, 1))
    assert len(pool.manager.dependencies) == 1


@pytest.mark.parametrize(
    ("layers", "row_bytes", "stripes", "padding"),
    [
        (1, 64, 1, 0),  # as the pool's own
        (4, 64, 4, 0),  # a stripe a layer, not a page of four layers
        (4, 16, 1, 0),
        (3, 16, 3, 0),  # three do not divide the large page, one does
        (2, 40, 2, 96),  # 160 bytes on 256, rather than 320 on none
    ],
)
def test_a_new_group_is_cut_to_the_pools_large_page(
    layers: int, row_bytes: int, stripes: int, padding: int
) -> None:
    pool_spec = LayerGroupSpec("full", (0,), Full(), 32, 32)
    geometry = exact_lcm((pool_spec,), PAGE, 1 << 20)
    assert geometry.large_page_bytes == 256
    spec = LayerGroupSpec("new", tuple(range(1, 1 + layers)), SlidingWindow(8), row_bytes, 0)
    assert fitting_cut(geometry, spec) == GroupGeometry(spec, PAGE, stripes, padding)


def test_a_row_too_large_for_the_pool_is_refused() -> None:
    pool_spec = LayerGroupSpec("full", (0,), Full(), 32, 32)
    geometry = exact_lcm((pool_spec,), PAGE, 1 << 20)
    with pytest.raises(ValueError, match="do not fit into the pool's large page of 256"):
        fitting_cut(geometry, LayerGroupSpec("new", (1,), Full(), 128, 0))


@pytest.mark.parametrize("still_away", [True, False])
def test_memory_that_comes_back_has_null_pages_of_zeros(still_away: bool) -> None:
    """`/resume_memory_occupation` under a memory saver: whatever bytes come back are not zeros."""
    pool = make_pool([attention(0, 2, 16, 16), attention(1, 2, 16, 16, window=8)])
    pool.buffer.fill_(0xFF)  # NaN in every float format
    pool.req_to_token = torch.full((3, 8), 0x7FFFFFFF, dtype=torch.int32)
    allocator = SimpleNamespace(get_kvcache=lambda: pool)
    updater = SimpleNamespace(
        scheduler=SimpleNamespace(token_to_kv_pool_allocator=allocator),
        offload_tags={"weights", "kv_cache"} if still_away else {"weights"},
    )
    _resume_memory_occupation(None, updater, None)
    assert bool(pool.req_to_token[0].any()) == still_away, "a padding request's row"
    assert pool.req_to_token[1:].all(), "rows of requests are theirs"
    for layer in (0, 1):
        for pages in pool.get_kv_buffer(layer):
            assert bool(pages[0].isnan().any()) == still_away
            assert pages[1:].isnan().all(), "what requests own is theirs"
