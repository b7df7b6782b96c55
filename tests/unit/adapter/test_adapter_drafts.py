"""Masks of trees of drafts, and rows of accepted ones that move to where they belong."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from adapter_builders import make_cache, make_pool
from core_builders import begin, make_manager, tokens
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool

from jenga_sglang.adapter.attention.drafts import Tree, as_chains, trees_of
from jenga_sglang.adapter.attention.torch_backend import visible
from jenga_sglang.adapter.cache.batch_alloc import alloc_for_drafts
from jenga_sglang.adapter.cache.prefix_cache import JengaPrefixCache
from jenga_sglang.core.dependency import ChunkedLocal, Dependency, Full, SlidingWindow

# Node 0 is the last known token; 1 and 2 follow it, 3 follows 1, 4 follows 3.
PARENTS = [-1, 0, 0, 1, 3]
FOLLOWS = np.array(
    [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]], np.bool_
)


def path_to(node: int) -> list[int]:
    return [] if node < 0 else [*path_to(PARENTS[node]), node]


@pytest.mark.parametrize("history", [0, 1, 9])
@pytest.mark.parametrize(
    "dependency", [Full(), SlidingWindow(2), SlidingWindow(3, sink_tokens=1), ChunkedLocal(4)]
)
def test_a_draft_reads_what_a_text_that_ends_with_it_would(
    dependency: Dependency, history: int
) -> None:
    first, seen = visible(dependency, range(history, history + len(PARENTS)))
    mask = Tree(FOLLOWS).of_nodes(seen, history - first)
    for node in range(len(PARENTS)):
        text = [*range(history), *(("node", n) for n in path_to(node))]
        read = {text[t] for r in dependency.visible(len(text) - 1) for t in range(r.start, r.stop)}
        keys = [*range(first, history), *(("node", n) for n in range(len(PARENTS)))]
        assert {key for key, shown in zip(keys, mask[node], strict=True) if shown} == read


def verified(*parts: np.ndarray, **fields: object) -> SimpleNamespace:
    mask = torch.from_numpy(np.concatenate([part.ravel() for part in parts]))
    known = {"draft_token_num": len(parts[0]), "custom_mask": mask, "tree_topk": -1}
    return SimpleNamespace(**known | fields)


def test_trees_are_read_off_the_mask_and_chains_are_none() -> None:
    lengths, chain = [3, 0, 2], np.tri(5, dtype=np.bool_)
    masks = [
        np.concatenate((np.ones((5, n), np.bool_), part), 1)
        for n, part in zip(lengths, (FOLLOWS, chain, FOLLOWS), strict=True)
    ]
    trees = trees_of(verified(*masks), lengths)
    assert [tree is None for tree in trees] == [False, True, False]
    for tree in (trees[0], trees[2]):
        assert tree is not None and (tree.follows == FOLLOWS).all()
        assert tree.depths.tolist() == [0, 1, 1, 2, 3]


def test_what_a_draft_model_makes_is_a_chain_without_a_look_at_its_mask() -> None:
    assert trees_of(verified(FOLLOWS, tree_topk=1), [7]) == [None]


def test_a_mask_that_is_too_short_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected 40 cells, got 25"):
        trees_of(verified(FOLLOWS), [3])


def test_a_tree_becomes_a_chain_by_its_longest_path() -> None:
    """Of the tree above 0, 1, 3, 4; a chain stays, and so do a tree's siblings, at the end."""
    chain = np.tri(5, dtype=np.uint8)
    fork = np.eye(5, dtype=np.uint8)  # four that follow the last known token
    fork[:, 0] = 1
    drafts = np.arange(100, 115)
    mask = np.stack([FOLLOWS.astype(np.uint8), chain, fork]).ravel()
    chains, masks = as_chains(drafts, mask, 5)
    assert chains.tolist() == [
        *(100, 101, 103, 104, 102),
        *(105, 106, 107, 108, 109),
        *(110, 111, 112, 113, 114),
    ]
    assert (masks.reshape(3, 5, 5) == chain).all()
    assert (masks.dtype, masks.shape, chains.dtype) == (mask.dtype, mask.shape, drafts.dtype)


def test_rows_of_chains_do_not_move() -> None:
    """They are where they belong; to find that out would wait for the device."""
    pool = make_pool(Full(), page_size=4, layers=[1])
    running = begin(pool.manager, tokens(range(9)))
    ids = torch.from_numpy((running.row[:, None] * 4 + np.arange(4)).ravel())
    pool.buffer.copy_(torch.arange(len(pool.buffer)))
    for pool.drafts_are_chains in (True, False):
        before = pool.buffer.clone()
        pool.move_kv_cache(ids[[5]], ids[[1]])
        assert torch.equal(pool.buffer, before) == pool.drafts_are_chains


def test_rows_move_in_every_layer_and_padding_stays() -> None:
    """Tokens 5 and 6 of 9 become copies of 7 and 5 as they were; pages have 4 tokens."""
    pool = make_pool(Full(), SlidingWindow(9), page_size=4, layers=[2, 1])
    running = begin(pool.manager, tokens(range(9)))
    ids = (running.row[:, None] * 4 + np.arange(4)).ravel()
    for layer_id, place in pool.place.items():
        for token in range(9):
            page = pool.small_pages(place.group, place.stripe, running.row)[token // 4]
            pool.k_pages[layer_id][page, token % 4] = 100 * layer_id + token
            pool.v_pages[layer_id][page, token % 4] = -100 * layer_id - token
    pool.move_kv_cache(torch.tensor([ids[5], ids[6], 0]), torch.tensor([ids[7], ids[5], 0]))
    for layer_id, place in pool.place.items():
        pages = torch.from_numpy(pool.small_pages(place.group, place.stripe, running.row))
        expected = [100 * layer_id + token for token in (0, 1, 2, 3, 4, 7, 5, 7, 8)]
        assert pool.k_pages[layer_id][pages].flatten(0, 1)[:9, 0, 0].tolist() == expected
        assert (-pool.v_pages[layer_id][pages].flatten(0, 1)[:9, 0, 0]).tolist() == expected


WIDTH, PAGE = 40, 4


def drafting_request(cache: JengaPrefixCache, length: int) -> SimpleNamespace:
    """One that has computed ``length`` tokens, in row 2."""
    running = begin(cache.manager, tokens(range(length)))
    table = cache.req_to_token_pool.req_to_token
    table[2, :length] = torch.from_numpy(cache.token_ids(running.row)[:length])
    return SimpleNamespace(
        lock=SimpleNamespace(receipt=running),
        kv=SimpleNamespace(req_pool_idx=2, kv_allocated_len=length, kv_committed_len=length),
    )


def draft(cache: JengaPrefixCache, req: SimpleNamespace, stop: int) -> None:
    alloc_for_drafts(cache, [req], [req.kv.kv_allocated_len], [stop])


@pytest.fixture
def cache() -> JengaPrefixCache:
    made = make_cache(make_manager(Full(), SlidingWindow(6), num_large=60, page_size=PAGE))
    made.req_to_token_pool = ReqToTokenPool(
        size=4, max_context_len=WIDTH, device="cpu", enable_memory_saver=False
    )
    return made


def test_a_row_goes_on_behind_what_was_written_of_its_last_page(cache: JengaPrefixCache) -> None:
    req = drafting_request(cache, 18)
    draft(cache, req, 28)
    running, table = req.lock.receipt, cache.req_to_token_pool.req_to_token
    assert (running.length, running.num_pages, req.kv.kv_allocated_len) == (18, 7, 28)
    assert table[2, :28].tolist() == cache.token_ids(running.row).tolist()
    assert not table[2, 28:].any() and not table[[0, 1, 3]].any()
    # Six of its tokens were accepted; the next step needs four more slots, and writes those alone.
    req.kv.kv_committed_len = 24
    table[2, :28] = -1
    draft(cache, req, 32)
    assert (running.length, running.num_pages) == (24, 8)
    assert table[2, 28:32].tolist() == cache.token_ids(running.row)[28:].tolist()
    assert (table[2, :28] == -1).all()
    draft(cache, req, 32)
    assert (running.num_pages, req.kv.kv_allocated_len) == (8, 32)


def test_a_row_ends_where_its_table_does(cache: JengaPrefixCache) -> None:
    """At the model's full length SGLang asks for more than a row has; nobody reads that."""
    req = drafting_request(cache, 37)
    draft(cache, req, 52)
    running, table = req.lock.receipt, cache.req_to_token_pool.req_to_token
    width = table.shape[1]
    assert width < 52 and running.num_pages == 13 and req.kv.kv_allocated_len == 52
    assert table[2].tolist() == cache.token_ids(running.row)[:width].tolist()
    assert not table[3].any()


def test_room_for_drafts_is_what_the_next_step_will_take(cache: JengaPrefixCache) -> None:
    cache.manager.tail_tokens = 10
    req = drafting_request(cache, 18)
    assert cache.slide_for_drafts([req]) == 7 - 5  # type: ignore[list-item]
    draft(cache, req, 28)
    assert cache.slide_for_drafts([req]) == 0  # type: ignore[list-item]
    req.kv.kv_committed_len = 19
    assert cache.slide_for_drafts([req]) == 1  # type: ignore[list-item]
    assert req.lock.receipt.length == 19
