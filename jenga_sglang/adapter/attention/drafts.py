"""Drafts that are verified together: a chain is text like any other, a tree has a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tree:
    """Drafts of one request in the order of its tokens' places: ``follows`` (drafts, drafts) bool,
    which others each has before it, itself among them."""

    follows: NDArray[np.bool_]

    @property
    def depths(self) -> NDArray[np.int64]:
        """(drafts,) how many others each has before it: its place in the text, from the first."""
        return self.follows.sum(1) - 1

    def paths(self) -> list[NDArray[np.int64]]:
        """Every way from the root to a draft that none follows, each as the drafts on it."""
        leaves = np.flatnonzero(self.follows.sum(0) == 1)
        return [np.flatnonzero(self.follows[leaf]) for leaf in leaves]

    def of_nodes(self, visible: NDArray[np.bool_], history: int) -> NDArray[np.bool_]:
        """What each draft reads. ``visible`` (drafts, history + drafts) bool is what as many tokens
        that follow one another would."""
        depths = self.depths
        by_place = visible[depths]
        drafts = by_place[:, history + depths] & self.follows
        return np.concatenate((by_place[:, :history], drafts), 1)


def trees_of(spec: Any, lengths: Sequence[int]) -> list[Tree | None]:
    """The tree of each request of a batch that is verified, out of SGLang's mask of all that each
    draft reads, the ``lengths`` tokens of its history first; None for a chain."""
    drafts = spec.draft_token_num
    if not has_trees(spec):
        return [None] * len(lengths)
    mask = spec.custom_mask.cpu().numpy().astype(np.bool_)
    sizes = [drafts * (length + drafts) for length in lengths]
    if len(mask) < sum(sizes):
        raise ValueError(f"mask of drafts: expected {sum(sizes)} cells, got {len(mask)}")
    parts = np.split(mask[: sum(sizes)], np.cumsum(sizes)[:-1])
    return [_tree(part.reshape(drafts, -1)[:, -drafts:]) for part in parts]


def as_chains(
    drafts: NDArray[Any], mask: NDArray[Any], count: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The same drafts of each request, ``count`` of them, as a chain: the longest path of their
    tree, the first of equally long ones, and the others behind it, where they are drafts as good as
    any. ``drafts`` (requests · count,), ``mask`` (requests · count · count,): which follow which.
    Of dtypes and shapes as given."""
    tokens, follows = drafts.reshape(-1, count), mask.reshape(-1, count, count)
    chain = np.tri(count, dtype=np.bool_)
    orders = []
    for tree in follows.astype(np.bool_) & chain:
        on_path = tree[np.argmax(tree.sum(1))]
        orders.append(np.concatenate((np.flatnonzero(on_path), np.flatnonzero(~on_path))))
    ordered = np.take_along_axis(tokens, np.stack(orders), 1)
    chains = np.broadcast_to(chain.astype(mask.dtype), follows.shape)
    return ordered.reshape(drafts.shape), np.ascontiguousarray(chains).reshape(mask.shape)


def has_trees(spec: Any) -> bool:
    """Whether drafts may be a tree: those that a table of n-grams gives are one even where each is
    to have one successor, for what follows suffixes of different lengths is put together."""
    return bool(spec.tree_topk != 1 and spec.custom_mask is not None)


def _tree(follows: NDArray[np.bool_]) -> Tree | None:
    earlier = np.tri(len(follows), dtype=np.bool_)
    follows = (follows & earlier) | np.eye(len(follows), dtype=np.bool_)
    return None if (follows == earlier).all() else Tree(follows)
