"""Steps of recurrent layers in rounds, and drafts on copies of their states, with a layer that can
be worked out by hand: a state is twice the one before it, and the token."""

from functools import partial, reduce
from itertools import chain
from types import SimpleNamespace
from typing import Any, NamedTuple

import core_inspector as inside
import numpy as np
import pytest
import torch
from core_builders import tokens
from e2e.host_graphs import HostGraphs
from sglang.srt.mem_cache.memory_pool import MambaPool
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from flashinfer_ext.states import StatePart
from jenga_sglang.adapter.attention.drafts import Tree
from jenga_sglang.adapter.attention.state_backend import StateRounds
from jenga_sglang.adapter.attention.state_rounds import (
    Round,
    cut,
    of_drafts,
    one_after_the_other,
    order_of,
    part_of,
    places_of,
)
from jenga_sglang.adapter.discovery import DiscoveredGroup
from jenga_sglang.adapter.kv_pool import JengaKVPool
from jenga_sglang.adapter.states import DiscoveredStates, StateViews
from jenga_sglang.core.cut.geometry import Geometry, GroupGeometry, LayerGroupSpec
from jenga_sglang.core.dependency import Full, LastState
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.core.running import Running

PAGE = 4
LAYERS = (1, 2)
# Node 0 is the last known token; 1 and 2 follow it, 3 follows 1, 4 follows 3.
FOLLOWS = np.array(
    [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]], np.bool_
)
CHAIN = np.tri(5, dtype=np.bool_)


def lists(arrays: list[Any]) -> list[list[int]]:
    return [array.tolist() for array in arrays]


def test_every_path_of_a_tree_is_a_piece() -> None:
    places = one_after_the_other([5, 5])
    pieces = of_drafts([7, 9], places, [Tree(FOLLOWS), None])
    assert [(p.row, p.start, p.stop) for p in pieces] == [(0, 7, 9), (0, 7, 11), (1, 9, 14)]
    assert lists([p.places for p in pieces]) == [[0, 2], [0, 1, 3, 4], [5, 6, 7, 8, 9]]


def test_results_of_pieces_are_put_in_the_order_of_the_batch() -> None:
    places = places_of(of_drafts([7, 9], one_after_the_other([5, 5]), [Tree(FOLLOWS), None]))
    order = order_of(places)
    assert order is not None and places[order].tolist() == list(range(10))
    assert order_of(np.arange(6)) is None
    assert lists([order_of(np.array([2, 3, 0, 1]))]) == [[2, 3, 0, 1]]


def test_a_step_is_cut_where_a_snapshot_is_due() -> None:
    saves = [(8, "a"), (12, "b"), (12, "c")]
    first = SimpleNamespace(take_saves=lambda: saves)
    second = SimpleNamespace(take_saves=lambda: [])
    rounds = cut([first, second], [6, 3], [np.arange(7), np.array([9, 7])])
    assert [[(p.row, p.start, p.stop, p.saves) for p in pieces] for pieces in rounds] == [
        [(0, 6, 8, ("a",)), (1, 3, 5, ())],
        [(0, 8, 12, ("b", "c"))],
        [(0, 12, 13, ())],
    ]
    assert [lists([p.places for p in pieces]) for pieces in rounds] == [
        [[0, 1], [9, 7]],
        [[2, 3, 4, 5]],
        [[6]],
    ]


def test_a_part_of_drafts_looks_like_prompts() -> None:
    batch = verifying([5, 8], FOLLOWS)
    pieces = of_drafts([5, 8], one_after_the_other([5, 5]), [Tree(FOLLOWS), Tree(FOLLOWS)])
    part: Any = part_of(batch, pieces)
    assert part.forward_mode is ForwardMode.EXTEND and part.spec_info is None
    assert part.batch_size == 4 and part.extend_num_tokens == 12
    assert part.req_pool_indices.tolist() == [0, 0, 1, 1]
    assert part.extend_prefix_lens.tolist() == part.extend_prefix_lens_cpu == [5, 5, 8, 8]
    assert part.extend_seq_lens.tolist() == part.extend_seq_lens_cpu == [2, 4, 2, 4]
    assert part.extend_start_loc.tolist() == [0, 2, 6, 8]
    assert part.seq_lens.tolist() == part.seq_lens_cpu.tolist() == [7, 9, 10, 12]
    assert batch.forward_mode is ForwardMode.TARGET_VERIFY


# -- states ---------------------------------------------------------------------------------------


def verifying(lengths: list[int], follows: np.ndarray) -> Any:
    """A batch whose requests, in the rows 0, 1, …, all have such a tree of drafts."""
    whole = [np.concatenate((np.ones((len(follows), n), np.bool_), follows), 1) for n in lengths]
    spec = SimpleNamespace(
        draft_token_num=len(follows),
        custom_mask=torch.from_numpy(np.concatenate([mask.ravel() for mask in whole])),
        tree_topk=-1,
    )
    return batch_of(ForwardMode.TARGET_VERIFY, lengths, spec_info=spec)


def batch_of(mode: ForwardMode, lengths: list[int], **fields: Any) -> Any:
    rows = torch.arange(len(lengths))
    known = {
        "batch_size": len(lengths),
        "forward_mode": mode,
        "seq_lens": torch.tensor(lengths),
        "seq_lens_cpu": torch.tensor(lengths),
        "req_pool_indices": rows,
        "req_pool_indices_cpu": rows,
        "extend_prefix_lens": torch.zeros_like(rows),
        "extend_prefix_lens_cpu": [0] * len(lengths),
        "spec_info": None,
    }
    return SimpleNamespace(**known | fields)


class Key(NamedTuple):
    """Of a graph."""

    size: int


class Rows:
    """The part of SGLang's request rows that its backends ask."""

    def __init__(self, views: StateViews) -> None:
        self.views = views
        self.state_index: torch.Tensor
        self.copied: MambaPool.State | None = None


class Doubling:
    """What SGLang's backends are: they see a batch of prompts, and one layer's states."""

    def __init__(self, runner: Any) -> None:
        self.device = "cpu"

    def init_forward_metadata(self, batch: Any) -> None:
        sizes = getattr(batch, "extend_seq_lens_cpu", None) or batch.seq_lens.tolist()
        self.forward_metadata = list(zip(self.rows.state_index.tolist(), sizes, strict=True))

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        self.state_indices_list = [torch.full((n + 1,), -1) for n in range(max_bs)]

    def init_forward_metadata_out_graph(self, batch: Any, in_capture: bool) -> None:
        self.forward_metadata = self.state_indices_list[batch.batch_size - 1]
        self.forward_metadata.copy_(self.rows.state_index)

    def decode(self, states: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """(requests,) the state behind one token of each; nothing of what pads the batch."""
        known = self.forward_metadata >= 0
        index, out = self.forward_metadata[known], torch.zeros_like(values)
        states[index] = 2 * states[index] + values[known, None]
        out[known] = states[index][:, 0]
        return out

    def layer(self, layer_id: int, values: torch.Tensor) -> torch.Tensor:
        """(tokens,) the state behind each token."""
        (kept,) = self.kept(layer_id, values)

        def compute(now: Round) -> torch.Tensor:
            states = (self.rows.copied or self.rows.views.layers[layer_id]).temporal
            if now.drafts:
                return now.together([self.decode(states, x) for x in now.one_by_one(kept)])
            out, given = [], iter(now.pick(kept).tolist())
            for index, size in self.forward_metadata:
                for _ in range(size):
                    states[index] = 2 * states[index] + next(given)
                    out.append(float(states[index]))
            return torch.tensor(out, dtype=torch.float64)

        return self.run(layer_id, compute, lambda: values)


class Backend(StateRounds, Doubling):
    """The first of the layers in `LAYERS` reads tokens, each other one what the one before gave."""

    def forward(self, batch: Any, values: list[int]) -> list[list[float]]:
        self.init_forward_metadata(batch)
        outputs = self.layers(torch.tensor(values, dtype=torch.float64))
        return [x.tolist() for x in outputs]

    def layers(self, x: torch.Tensor) -> list[torch.Tensor]:
        outputs = []
        for layer_id in LAYERS:
            x = self.layer(layer_id, x)
            outputs.append(x)
        return outputs


def make_backend() -> Backend:
    parts = (StatePart((1,), torch.float64),)
    rows = LayerGroupSpec("full", (0,), Full(), 4, 4)
    spec = LayerGroupSpec("states", LAYERS, LastState(), state_bytes=(parts[0].num_bytes,))
    cuts = (GroupGeometry(rows, PAGE, 1), GroupGeometry(spec, PAGE, 2))
    ample = Geometry(cuts, PAGE, 1 << 40)
    manager = Manager(
        ample.resized(41 * ample.large_page_bytes),
        max_requests=4,
        max_length=100,
        policy=CachePolicy(answer_state_tokens=PAGE),
        tail_tokens=10,
    )
    pool = JengaKVPool(
        manager,
        [DiscoveredGroup(rows, 1, 1, 1, dtype=torch.float32)],
        DiscoveredStates(spec, (), parts[0]),
        dtype=torch.float32,
        device="cpu",
        enable_memory_saver=False,
        poison_freed=True,
    )
    assert pool.states is not None
    return Backend(
        SimpleNamespace(token_to_kv_pool=pool, req_to_token_pool=Rows(pool.states), device="cpu")
    )


def after(text: list[int]) -> list[float]:
    """What the layers' states are behind ``text``."""
    states = []
    for _ in LAYERS:
        text = [int(x) for x in outputs(text)]
        states.append(float(text[-1]))
    return states


def outputs(text: list[int]) -> list[float]:
    return [reduce(lambda s, x: 2 * s + x, text[: n + 1], 0) for n in range(len(text))]


def states_of(backend: Backend, page: np.ndarray) -> list[float]:
    """The layers' states in the small pages of one virtual page."""
    views = backend.states
    return [float(views.layers[i].temporal[int(page[views.stripe[i]])]) for i in LAYERS]


def begin_all(backend: Backend, prompts: list[list[int]]) -> list[Running]:
    manager, all_running = backend.pool.manager, []
    for row, prompt in enumerate(prompts):
        running = manager.lock(manager.match(None, tokens(prompt)))
        assert manager.reserve([(running, manager.new_pages(running, len(prompt)))])
        manager.extend(running, len(prompt))
        backend.pool.running_of_row[row] = running
        all_running.append(running)
    lengths = [len(prompt) for prompt in prompts]
    backend.forward(batch_of(ForwardMode.EXTEND, lengths), [*chain.from_iterable(prompts)])
    return all_running


PROMPTS = [[3, 1, 2, 5, 4], [1, 1]]
DRAFTS = [6, 2, 7, 1, 3]


@pytest.mark.parametrize(
    ("follows", "paths"),
    [
        (CHAIN, [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]),
        (FOLLOWS, [[0], [0, 1], [0, 2], [0, 1, 3], [0, 1, 3, 4]]),
    ],
)
def test_drafts_leave_states_as_they_are_until_some_are_accepted(
    follows: np.ndarray, paths: list[list[int]]
) -> None:
    for accepted in paths:
        backend = make_backend()
        all_running = begin_all(backend, PROMPTS)
        drafts = [DRAFTS, [d + 1 for d in DRAFTS]]
        texts = [
            [*prompt, *(own[node] for node in path)]
            for prompt, own in zip(PROMPTS, drafts, strict=True)
            for path in paths
        ]
        given = backend.forward(
            verifying([len(p) for p in PROMPTS], follows), [*chain.from_iterable(drafts)]
        )
        assert [list(pair) for pair in zip(*given, strict=True)] == [after(t) for t in texts]
        table = inside.tables(backend.pool.manager)[1]
        for running, prompt in zip(all_running, PROMPTS, strict=True):
            assert states_of(backend, table[running.state_page]) == after(prompt)
        # The other request accepts the last known token alone.
        backend.accept([np.array(accepted), np.array([5])])
        first, second = all_running
        text = [*PROMPTS[0], *(DRAFTS[node] for node in accepted)]
        assert states_of(backend, table[first.state_page]) == after(text)
        assert states_of(backend, table[second.state_page]) == after([*PROMPTS[1], DRAFTS[0] + 1])


def test_a_graph_that_verifies_keeps_what_is_accepted_later() -> None:
    """Requests that come and go are replayed in a graph of four and one of two, in turns. Both read
    states where they are now, in two stripes, and leave them as they were; each step accepts other
    drafts, which are computed once more from where the graph has put them."""
    backend = make_backend()
    count = len(DRAFTS)
    backend.init_cuda_graph_state(4, 4 * count)
    tokens_in = torch.zeros(4 * count, dtype=torch.float64)
    graphs = HostGraphs(SimpleNamespace(attn_backend=backend))
    keys = {size: Key(size) for size in (4, 2)}
    for size, key in keys.items():
        backend.init_forward_metadata_out_graph(verifying([1] * size, CHAIN), in_capture=True)
        graphs.capture_one(key, partial(backend.layers, tokens_in[: size * count]))
    prompts = [list(prompt) for prompt in (*PROMPTS, [2, 9, 4])]
    all_running = begin_all(backend, prompts)
    table = inside.tables(backend.pool.manager)[1]
    for step, (rows, size) in enumerate([((0, 1, 2), 4), ((1, 2), 2), ((0, 2), 4), ((0, 2), 2)]):
        drafts = [[d + step + row for d in DRAFTS] for row in rows]
        lengths = [len(prompts[row]) for row in rows]
        batch = verifying(lengths, CHAIN)
        batch.req_pool_indices = batch.req_pool_indices_cpu = torch.tensor(rows)
        backend.before_replay(batch)
        padding = size - len(rows)
        padded = verifying([*lengths, *[1] * padding], CHAIN)
        padded.req_pool_indices = torch.tensor([*rows, *[0] * padding])
        tokens_in[: len(rows) * count] = torch.tensor(drafts, dtype=torch.float64).ravel()
        backend.init_forward_metadata_out_graph(padded)
        given = graphs.replay(keys[size], batch)
        backend.after_replay()
        texts = [
            [*prompts[row], *own[: n + 1]]
            for row, own in zip(rows, drafts, strict=True)
            for n in range(count)
        ]
        seen = zip(*(x[: len(texts)].tolist() for x in given), strict=True)
        assert [list(pair) for pair in seen] == [after(text) for text in texts]
        for row, prompt in enumerate(prompts):
            assert states_of(backend, table[all_running[row].state_page]) == after(prompt)
        assert backend.drafted_behind == lengths
        accepted = [1 + (step + row) % count for row in rows]
        backend.accept([np.arange(n * count, n * count + most) for n, most in enumerate(accepted)])
        for row, own, most in zip(rows, drafts, accepted, strict=True):
            prompts[row] += own[:most]
            assert states_of(backend, table[all_running[row].state_page]) == after(prompts[row])


def test_a_snapshot_is_of_the_page_that_accepted_drafts_pass() -> None:
    """5 tokens and 5 accepted ones pass the ends of two pages of 4; what moves along with the
    answer is left behind the last of them. What was freed to make room is poisoned before."""
    backend = make_backend()
    manager = backend.pool.manager
    (running,) = begin_all(backend, PROMPTS[:1])
    assert manager.reserve([(running, manager.new_pages(running, 15))])
    manager.extend_tail(running, 15)
    backend.forward(verifying([5], CHAIN), DRAFTS)
    manager.save_states(running, 5, 10, 5)
    backend.accept([np.arange(5)])
    table = inside.tables(manager)[1]
    text = [*PROMPTS[0], *DRAFTS]
    assert states_of(backend, table[running.row[1]]) == after(text[:8])
    assert states_of(backend, table[running.state_page]) == after(text)
    manager.commit(running, 10)
    manager.publish(running, None, tokens(text))
    manager.release(running)
    manager.check_idle()
    assert manager.match(None, tokens([*text, 1])).path.num_pages == 2


def test_nothing_is_accepted_that_was_not_verified() -> None:
    backend = make_backend()
    begin_all(backend, PROMPTS)
    with pytest.raises(RuntimeError, match="drafts that were not verified"):
        backend.accept([np.array([0]), np.array([1])])
