"""The torch versions of what SGLang's kernels do with drafts, against brute force."""

import itertools
import random

import pytest
import torch

from jenga_sglang.platform import draft_slots, draft_trees

SEEDS = range(20)


def random_parents(rng: random.Random, count: int) -> list[int]:
    """A tree of nodes, parents first."""
    return [-1, *(rng.randrange(node) for node in range(1, count))]


def path_to(parents: list[int], node: int) -> list[int]:
    """From the root to ``node``."""
    path = [node]
    while parents[path[-1]] >= 0:
        path.append(parents[path[-1]])
    return path[::-1]


def mask_of(parents: list[int]) -> torch.Tensor:
    mask = torch.zeros(len(parents), len(parents), dtype=torch.bool)
    for node in range(len(parents)):
        mask[node, path_to(parents, node)] = True
    return mask


def children_of(first_child: torch.Tensor, sibling: torch.Tensor, node: int) -> list[int]:
    found, child = [], int(first_child[node])
    while child != -1:
        found.append(child)
        child = int(sibling[child])
    return found


def empty_links(requests: int, count: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.full((requests, count), 99) for _ in range(3))


def check_links(all_parents: list[list[int]], *links: torch.Tensor) -> None:
    index, first_child, sibling = links
    count = len(all_parents[0])
    assert index.tolist() == torch.arange(len(all_parents) * count).view(-1, count).tolist()
    for request, parents in enumerate(all_parents):
        for node in range(count):
            expected = [n for n, parent in enumerate(parents) if parent == node]
            assert children_of(first_child[request], sibling[request], node) == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_links_and_positions_are_those_of_the_tree(seed: int) -> None:
    rng = random.Random(seed)
    count, requests = rng.randint(1, 12), rng.randint(1, 3)
    all_parents = [random_parents(rng, count) for _ in range(requests)]
    lengths = [rng.randint(0, 50) for _ in all_parents]
    masks = torch.stack([mask_of(parents) for parents in all_parents])
    positions, links = (
        torch.empty(requests * count, dtype=torch.int64),
        empty_links(requests, count),
    )
    draft_trees.reconstruct_indices_from_tree_mask_func(
        masks.flatten(), torch.tensor(lengths), positions, *links, requests, count
    )
    check_links(all_parents, *links)
    depths = [len(path_to(parents, n)) - 1 for parents in all_parents for n in range(count)]
    starts = [length for length in lengths for _ in range(count)]
    assert positions.tolist() == [a + b for a, b in zip(starts, depths, strict=True)]


@pytest.mark.parametrize("mode", [draft_trees.FULL_MASK, 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_draft_models_trees_have_their_masks(seed: int, mode: int) -> None:
    """Drafts are made ``topk`` at a time, each such group after one draft; some are kept, none
    without the one that it follows."""
    rng = random.Random(seed)
    topk, groups, count = rng.randint(1, 3), rng.randint(1, 5), rng.randint(2, 6)
    count = min(count, 1 + topk * groups)
    all_parents, all_kept, all_followed = [], [], []
    for _ in range(2):
        followed = [-1, *(rng.randrange(topk * group) for group in range(1, groups))]
        kept: list[int] = []
        while len(kept) < count - 1:
            group = rng.randrange(groups)
            draft = group * topk + rng.randrange(topk)
            if draft not in kept and (not group or followed[group] in kept):
                kept.append(draft)
        kept.sort()
        all_kept.append(kept)
        all_followed.append(followed)
        place = {draft: node for node, draft in enumerate(kept, 1)}
        parents = [-1]
        for draft in kept:
            parents.append(place[followed[draft // topk]] if draft // topk else 0)
        all_parents.append(parents)
    lengths = [rng.randint(1, 9), rng.randint(1, 9)]
    history = [length if mode == draft_trees.FULL_MASK else 0 for length in lengths]
    mask = torch.ones(sum(count * (h + count) for h in history), dtype=torch.bool)
    positions, links = torch.empty(2 * count, dtype=torch.int64), empty_links(2, count)
    draft_trees.build_tree_kernel_efficient_func(
        torch.tensor(all_followed), torch.tensor(all_kept), torch.tensor(lengths),
        mask, positions, *links, topk, groups, count, mode,
    )  # fmt: skip
    check_links(all_parents, *links)
    parts = mask.split([count * (h + count) for h in history])
    for part, h, parents in zip(parts, history, all_parents, strict=True):
        shown = part.view(count, h + count)
        assert shown[:, :h].all()
        assert (shown[:, h:] == mask_of(parents)).all()
    expected = [
        length + len(path_to(parents, node)) - 1
        for length, parents in zip(lengths, all_parents, strict=True)
        for node in range(count)
    ]
    assert positions.tolist() == expected


def verify(
    parents: list[int], drafts: list[int], *, most: int, place: int = 0
) -> dict[str, object]:
    """Arguments for one request that is the second of a batch whose first has a single node."""
    links = empty_links(1, len(parents))
    positions = torch.empty(len(parents), dtype=torch.int64)
    draft_trees.reconstruct_indices_from_tree_mask_func(
        mask_of(parents).flatten(), torch.tensor([0]), positions, *links, 1, len(parents)
    )
    return {
        "predicts": torch.full((len(parents) + place,), -7, dtype=torch.int32),
        "accept_index": torch.full((1, most), -1, dtype=torch.int32),
        "accept_token_num": torch.full((1,), -7, dtype=torch.int32),
        "candidates": torch.tensor([drafts]),
        "links": (links[0] + place, *links[1:]),
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_the_longest_path_that_the_target_predicts_is_accepted(seed: int) -> None:
    """Children hold different tokens, so there is one path at most."""
    rng = random.Random(seed)
    count, most = rng.randint(1, 9), rng.randint(1, 5)
    parents = random_parents(rng, count)
    drafts = [sum(p == parents[n] for p in parents[:n]) for n in range(count)]
    wanted = [rng.randrange(3) for _ in range(count)]
    paths = [path_to(parents, node) for node in range(count)]
    right = [
        path
        for path in paths
        if all(wanted[node] == drafts[child] for node, child in itertools.pairwise(path))
    ]
    longest = max(right, key=len)[:most]
    args = verify(parents, drafts, most=most, place=5)
    predicts, accepted, counts = draft_trees.verify_tree_greedy_func(
        args["predicts"], args["accept_index"], args["accept_token_num"], args["candidates"],
        *args["links"], torch.tensor([wanted]),
    )  # fmt: skip
    assert counts.tolist() == [len(longest) - 1]
    places = [node + 5 for node in longest]
    assert accepted.tolist() == [places + [-1] * (most - len(longest))]
    for place in range(len(predicts)):
        assert predicts[place] == (wanted[place - 5] if place in places else -7)


def test_what_is_sampled_has_the_targets_probabilities() -> None:
    """Two drafts follow the root, and one the first of them: over an even grid of coins, the first
    token and, where the first draft was taken, the second come as often as the target has them."""
    parents, drafts = [-1, 0, 0, 1], [9, 2, 0, 1]
    probs = torch.tensor([[0.2, 0.3, 0.4, 0.1], [0.5, 0.25, 0.25, 0.0], *[[0.25] * 4] * 2])
    steps = 20
    grid = [(i + 0.5) / steps for i in range(steps)]
    first, second = [0] * 4, [0] * 4
    for coins in itertools.product(grid, repeat=3):
        args = verify(parents, drafts, most=3)
        draft_trees.tree_speculative_sampling_target_only(
            args["predicts"], args["accept_index"], args["accept_token_num"], args["candidates"],
            *args["links"], torch.tensor([[coins[0], coins[1], 0.5, 0.5]]),
            torch.tensor([coins[2]]), probs[None], torch.zeros(1, 4, 4),
        )  # fmt: skip
        path = [n for n in args["accept_index"][0].tolist() if n >= 0]
        tokens = [int(args["predicts"][n]) for n in path]
        assert len(path) == 1 + int(args["accept_token_num"])
        first[tokens[0]] += 1
        if path[1:2] == [1]:
            second[tokens[1]] += 1
    shares = [count / steps**3 for count in first]
    assert shares == pytest.approx(probs[0].tolist(), abs=0.02)
    shares = [count / sum(second) for count in second]
    assert shares == pytest.approx(probs[1].tolist(), abs=0.02)


def test_a_threshold_accepts_what_is_probable_enough() -> None:
    args = verify([-1, 0], [9, 2], most=2)
    probs = torch.tensor([[[0.2, 0.3, 0.4, 0.1], [0.0, 1.0, 0.0, 0.0]]])
    draft_trees.tree_speculative_sampling_target_only(
        args["predicts"], args["accept_index"], args["accept_token_num"], args["candidates"],
        *args["links"], torch.tensor([[0.99, 0.5]]), torch.tensor([0.5]), probs,
        torch.zeros_like(probs), threshold_single=0.4,
    )  # fmt: skip
    assert args["predicts"].tolist() == [2, 1]


def test_probabilities_are_cut_off_and_add_up_again() -> None:
    probs = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.7, 0.1, 0.1, 0.1]])
    cut = draft_trees.top_k_renorm_prob(probs, torch.tensor([2, 1]))
    assert torch.allclose(cut, torch.tensor([[0, 4 / 7, 0, 3 / 7], [1, 0, 0, 0]]))
    cut = draft_trees.top_p_renorm_prob(probs, torch.tensor([0.6, 0.5]))
    assert torch.allclose(cut, torch.tensor([[0, 4 / 7, 0, 3 / 7], [1, 0, 0, 0]]))
    whole = draft_trees.top_k_renorm_prob(probs, torch.tensor([1 << 30, 4]))
    assert torch.allclose(whole, probs)


TABLE = torch.arange(40, dtype=torch.int32).view(4, 10)


def test_slots_are_read_from_rows() -> None:
    rows, starts, stops = torch.tensor([3, 1]), torch.tensor([2, 0]), torch.tensor([4, 3])
    slots = draft_slots.assign_extend_cache_locs(
        req_pool_indices=rows,
        req_to_token=TABLE,
        start_offset=starts,
        end_offset=stops,
        batch_size=2,
        draft_token_num=3,
        device="cpu",
    )
    assert slots.tolist() == [32, 33, 10, 11, 12] and slots.dtype == torch.int64
    out, positions = torch.empty(4, dtype=torch.int64), torch.empty(2, dtype=torch.int64)
    draft_slots.assign_draft_cache_locs_contiguous_func(
        rows, TABLE, starts, out, 1, 2, positions=positions
    )
    assert out.tolist() == [32, 33, 10, 11] and positions.tolist() == [2, 0]


def test_slots_are_written_to_rows() -> None:
    table = TABLE.clone()
    rows, starts, stops = torch.tensor([3, 1]), torch.tensor([2, 0]), torch.tensor([4, 1])
    new = torch.tensor([70, 71, 72])
    draft_slots.assign_req_to_token_pool_func(rows, table, starts, stops, new, 2)
    changed = (table != TABLE).nonzero().tolist()
    assert changed == [[1, 0], [3, 2], [3, 3]]
    assert table[3, 2:4].tolist() == [70, 71] and table[1, 0] == 72


def test_accepted_slots_come_first() -> None:
    slots = torch.arange(100, 106)
    front, kept = (torch.zeros(4, dtype=torch.int64) for _ in range(2))
    draft_slots.fill_front_out_cache_loc_func(torch.tensor([1, 2]), slots, front)
    assert front.tolist() == [100, 103, 104, 0]
    accepted = torch.tensor([[0, -1], [3, 5]], dtype=torch.int32)
    draft_slots.fill_accept_out_cache_loc_func(accepted, slots, kept, 4)
    assert kept.tolist() == [100, 103, 105, 0]


def test_the_last_accepted_token_of_each_request() -> None:
    bonus = torch.zeros(2, dtype=torch.int64)
    tokens, lengths = torch.tensor([5, 6, 7, 8, 9, 10]), torch.tensor([3, 1])
    draft_slots.fill_bonus_tokens_func(tokens, lengths, bonus, 3, 2)
    assert bonus.tolist() == [7, 8]


def test_rows_of_the_last_step_are_gathered() -> None:
    buffers = [torch.arange(6.0).view(3, 2) + 10 * n for n in range(4)]
    picked = draft_slots.gather_spec_extras(torch.tensor([2, 0]), *buffers)
    assert [p.tolist() for p in picked if p is not None] == [
        [[4 + 10 * n, 5 + 10 * n], [10 * n, 1 + 10 * n]] for n in range(4)
    ]
    assert draft_slots.gather_spec_extras(torch.tensor([2]), *buffers[:3], None)[3] is None
