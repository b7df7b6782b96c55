"""Masks of trees of drafts, and rows of accepted ones that move to where they belong."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from adapter_builders import make_pool
from core_builders import begin, tokens

from jenga_sglang.adapter.attention.drafts import Tree, trees_of
from jenga_sglang.adapter.attention.torch_backend import visible
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


def test_rows_move_in_every_layer_and_padding_stays() -> None:
    """Tokens 5 and 6 of 9 become copies of 7 and 5 as they were; pages have 4 tokens."""
    pool = make_pool(Full(), SlidingWindow(9), page_size=4, layers=[2, 1])
    pin = begin(pool.manager, tokens(range(9)))
    ids = (pin.row[:, None] * 4 + np.arange(4)).ravel()
    for layer_id, place in pool.place.items():
        for token in range(9):
            page = pool.small_pages(place.group, place.stripe, pin.row)[token // 4]
            pool.k_pages[layer_id][page, token % 4] = 100 * layer_id + token
            pool.v_pages[layer_id][page, token % 4] = -100 * layer_id - token
    pool.move_kv_cache(torch.tensor([ids[5], ids[6], 0]), torch.tensor([ids[7], ids[5], 0]))
    for layer_id, place in pool.place.items():
        pages = torch.from_numpy(pool.small_pages(place.group, place.stripe, pin.row))
        expected = [100 * layer_id + token for token in (0, 1, 2, 3, 4, 7, 5, 7, 8)]
        assert pool.k_pages[layer_id][pages].flatten(0, 1)[:9, 0, 0].tolist() == expected
        assert (-pool.v_pages[layer_id][pages].flatten(0, 1)[:9, 0, 0]).tolist() == expected
