"""Trees of drafts in plain torch: what SGLang has as kernels only.

Each function writes into tensors that the caller gives, of any integer dtype unless said otherwise.

Drafts are nodes 0 to n - 1 of a tree, parents first; node 0 is the last token that is known. Per
request ``retrieve_index`` (n,) are the nodes' places in the batch, and ``retrieve_next_token`` and
``retrieve_next_sibling`` (n,) a node's first child and its next sibling, -1 for none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

FULL_MASK = 0  # of SGLang's `TreeMaskMode`: a mask of the whole history, not of drafts alone


def reconstruct_indices_from_tree_mask_func(
    tree_mask: torch.Tensor,
    verified_seq_len: torch.Tensor,
    positions: torch.Tensor,
    retrieve_index: torch.Tensor,
    retrieve_next_token: torch.Tensor,
    retrieve_next_sibling: torch.Tensor,
    batch_size: int,
    draft_token_num: int,
) -> None:
    """Positions and links of trees, from ``tree_mask`` (batch · n · n) bool: who follows whom."""
    n = draft_token_num
    masks = tree_mask.flatten()[: batch_size * n * n].view(batch_size, n, n).tolist()
    places: list[int] = []
    for request, mask in enumerate(masks):
        before = [[j for j in range(i) if row[j]] for i, row in enumerate(mask)]
        parents = [nodes[-1] if nodes else -1 for nodes in before]
        _link(parents, retrieve_next_token[request], retrieve_next_sibling[request])
        places += [int(verified_seq_len[request]) + len(nodes) for nodes in before]
    positions.copy_(torch.tensor(places))
    retrieve_index.copy_(torch.arange(batch_size * n).view(batch_size, n))


def build_tree_kernel_efficient_func(
    parent_list: torch.Tensor,
    top_scores_index: torch.Tensor,
    seq_lens: torch.Tensor,
    tree_mask: torch.Tensor,
    positions: torch.Tensor,
    retrieve_index: torch.Tensor,
    retrieve_next_token: torch.Tensor,
    retrieve_next_sibling: torch.Tensor,
    topk: int,
    spec_steps: int,
    num_verify_tokens: int,
    tree_mask_mode: int,
) -> None:
    """Masks, positions and links of the trees that a draft model has made.

    ``top_scores_index`` (batch, n - 1) are the drafts that were kept, numbered in the order in
    which they were made, ``topk`` at a time; ``parent_list`` (batch, groups) says which draft each
    such group follows.
    """
    n, offset = num_verify_tokens, 0
    for request, length in enumerate(seq_lens.tolist()):
        parents = _parents(top_scores_index[request].tolist(), parent_list[request].tolist(), topk)
        _link(parents, retrieve_next_token[request], retrieve_next_sibling[request])
        follows = _follows(parents)
        first = request * n
        positions[first : first + n] = length - 1 + follows.sum(1)
        retrieve_index[request] = torch.arange(first, first + n)
        history = length if int(tree_mask_mode) == FULL_MASK else 0
        size = n * (history + n)
        tree_mask[offset : offset + size].view(n, -1)[:, history:] = follows
        offset += size


def _parents(kept: Sequence[int], followed: Sequence[int], topk: int) -> list[int]:
    """The parent of each node, of drafts that are ``kept``. The first group follows node 0."""
    nodes = {draft: node for node, draft in enumerate(kept, start=1)}
    groups = [draft // topk for draft in kept]
    return [-1, *(nodes[followed[group]] if group else 0 for group in groups)]


def _follows(parents: Sequence[int]) -> torch.Tensor:
    """(n, n) bool: the nodes from the root to each, itself among them."""
    follows = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            follows[node] |= follows[parent]
    return follows


def _link(parents: Sequence[int], first_child: torch.Tensor, sibling: torch.Tensor) -> None:
    first_child.fill_(-1)
    sibling.fill_(-1)
    for node in range(len(parents) - 1, 0, -1):
        if parents[node] >= 0:
            sibling[node] = first_child[parents[node]].item()
            first_child[parents[node]] = node


def verify_tree_greedy_func(
    predicts: torch.Tensor,
    accept_index: torch.Tensor,
    accept_token_num: torch.Tensor,
    candidates: torch.Tensor,
    retrieve_index: torch.Tensor,
    retrieve_next_token: torch.Tensor,
    retrieve_next_sibling: torch.Tensor,
    target_predict: torch.Tensor,
    topk: int = -1,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Accept drafts as long as they are what the target predicts, ``target_predict`` (batch, n).

    ``candidates`` (batch, n) are the drafts. Writes ``predicts`` (batch · n,) at the places of
    accepted nodes, those places in ``accept_index`` (batch, most), and ``accept_token_num``
    (batch,), how many were accepted beside node 0.
    """
    for request in range(len(candidates)):
        drafts, wanted = candidates[request].tolist(), target_predict[request].tolist()
        links = retrieve_next_token[request].tolist(), retrieve_next_sibling[request].tolist()
        path = [0]
        while len(path) < accept_index.shape[1]:
            last = path[-1]
            right = (node for node in _children(last, *links) if drafts[node] == wanted[last])
            if (node := next(right, None)) is None:
                break
            path.append(node)
        places = retrieve_index[request][path]
        predicts[places.long()] = target_predict[request][path].to(predicts.dtype)
        accept_index[request, : len(path)] = places.to(accept_index.dtype)
        accept_token_num[request] = len(path) - 1
    return predicts, accept_index, accept_token_num


def _children(node: int, first_child: Sequence[int], sibling: Sequence[int]) -> Iterator[int]:
    child = first_child[node]
    while child != -1:
        yield child
        child = sibling[child]


def tree_speculative_sampling_target_only(
    predicts: torch.Tensor,
    accept_index: torch.Tensor,
    accept_token_num: torch.Tensor,
    candidates: torch.Tensor,
    retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    uniform_samples: torch.Tensor,
    uniform_samples_for_final_sampling: torch.Tensor,
    target_probs: torch.Tensor,
    draft_probs: torch.Tensor,
    threshold_single: float = 1.0,
    threshold_acc: float = 1.0,
    deterministic: bool = True,
) -> None:
    """Accept drafts at random, so that each token has the target's probability.

    Of a node's children, one that holds token t is taken with ``target_probs`` (batch, n, tokens)
    of t there: ``uniform_samples`` (batch, n) decide. Where none is taken, a token that no child
    holds is, as ``uniform_samples_for_final_sampling`` (batch,) has it. Thresholds below 1 accept
    more. Writes what `verify_tree_greedy_func` does; ``draft_probs`` is not read.
    """
    for request in range(len(candidates)):
        drafts, probs = candidates[request].tolist(), target_probs[request]
        links = retrive_next_token[request].tolist(), retrive_next_sibling[request].tolist()
        path, left = [0], probs[0].clone()
        while len(path) < accept_index.shape[1]:
            last, passed = path[-1], 0.0
            coin = float(uniform_samples[request, last])
            for node in _children(last, *links):
                single = float(probs[last, drafts[node]])
                passed += single
                if coin <= passed / threshold_acc or single >= threshold_single:
                    path.append(node)
                    break
                left[drafts[node]] = 0
            if path[-1] == last:
                break
            left = probs[path[-1]].clone()
        tokens = [drafts[node] for node in path[1:]]
        tokens.append(_draw(left, float(uniform_samples_for_final_sampling[request])))
        places = retrive_index[request][path]
        predicts[places.long()] = torch.tensor(tokens, dtype=predicts.dtype)
        accept_index[request, : len(path)] = places.to(accept_index.dtype)
        accept_token_num[request] = len(path) - 1


def _draw(weights: torch.Tensor, coin: float) -> int:
    """The token at share ``coin`` of all ``weights``."""
    sums = weights.double().cumsum(0)
    token = torch.searchsorted(sums, coin * sums[-1], right=True)
    return int(token.clamp(max=int(weights.nonzero().max())))


def top_k_renorm_prob(probs: torch.Tensor, top_k: Any) -> torch.Tensor:
    """(rows, tokens): the ``top_k`` (rows,) most probable tokens of each row, adding up to 1."""
    counts = torch.as_tensor(top_k).reshape(-1, 1).clamp(max=probs.shape[1]).long()
    least = probs.sort(-1, descending=True).values.gather(1, counts.expand(len(probs), 1) - 1)
    return _normal(probs.where(probs >= least, 0))


def top_p_renorm_prob(probs: torch.Tensor, top_p: Any) -> torch.Tensor:
    """(rows, tokens): of each row the fewest tokens that have ``top_p`` (rows,) of all together."""
    ordered, order = probs.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    kept = before < torch.as_tensor(top_p).reshape(-1, 1)
    kept[:, 0] = True
    return _normal(probs.where(torch.empty_like(kept).scatter_(1, order, kept), 0))


def _normal(probs: torch.Tensor) -> torch.Tensor:
    return probs / probs.sum(-1, keepdim=True)
