"""What one admission pass grants, on a pool of twelve large pages of four tokens each."""

from collections.abc import Sequence

import pytest
from core_builders import begin, make_manager, serve, tokens

from jenga_sglang.adapter.cache.admission_pass import Admission, Refusal
from jenga_sglang.adapter.cache.budget import JengaPrefillBudget
from jenga_sglang.core.books.corrupt import present
from jenga_sglang.core.dependency import Full, SlidingWindow
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.manager import Manager

NUM_LARGE = 12


@pytest.fixture
def manager() -> Manager:
    return make_manager(Full(), num_large=NUM_LARGE, page_size=4, max_length=100)


class Queue(Admission):
    """``waiting`` are the histories of the requests in the queue."""

    def __init__(self, manager: Manager, waiting: Sequence[Ids]) -> None:
        super().__init__(manager)
        self.waiting = waiting

    def look_ahead(self) -> None:
        names = [f"waiting {n}" for n in range(len(self.waiting))]
        self.lookahead.look(names, lambda index: (None, self.waiting[index]))


def make_budget(manager: Manager, *waiting: Ids) -> JengaPrefillBudget:
    """A pass of its own."""
    return JengaPrefillBudget(Queue(manager, waiting))


def refusal_of(budget: JengaPrefillBudget) -> Refusal:
    return present(budget.admission.now.refusal, "nothing was refused")


def offer(budget: JengaPrefillBudget, prompt: int, output: int = 0, cached: int = 0) -> bool:
    """Whether a request is admitted; if so, it is charged."""
    admitted, _ = budget.check_prefill(
        extend_input_len=prompt - cached,
        total_tokens=0,
        max_new_tokens=output,
        input_tokens=prompt,
        swa_host_hit_length=0,
        chunk_limit=None,
    )
    if admitted:
        budget.reserve(prompt - cached, output)
    return admitted


def test_a_pass_grants_what_fits_and_no_more(manager: Manager) -> None:
    """Sixteen tokens to compute and eight to answer are six pages."""
    budget = make_budget(manager)
    assert offer(budget, 16, 8) and offer(budget, 16, 8)
    assert not offer(budget, 1)
    assert (refusal_of(budget).cause, refusal_of(budget).short) == ("memory", 1)


def test_what_running_requests_may_still_decode_is_kept_for_them(manager: Manager) -> None:
    begin(manager, tokens(range(16)))
    assert offer(make_budget(manager), 32)
    budget = make_budget(manager)
    budget.total_offset = 5
    assert not offer(budget, 28), "five tokens may open two pages"
    assert offer(budget, 24)


def test_a_request_is_kept_no_room_that_it_cannot_grow_into(manager: Manager) -> None:
    """A request of 40 of at most 44 tokens: one page, however much SGLang expects of it."""
    manager = make_manager(Full(), num_large=NUM_LARGE, page_size=4, max_length=44)
    begin(manager, tokens(range(40)))
    budget = make_budget(manager)
    budget.total_offset = 1000
    assert offer(budget, 4) and not offer(budget, 1)


def test_a_cached_prefix_is_room_and_a_pinned_one_is_not_asked_for_again(manager: Manager) -> None:
    serve(manager, tokens(range(40)))
    assert offer(make_budget(manager), 48), "all that is cached may go"
    manager.lock(manager.match(None, tokens(range(40))))
    assert not offer(make_budget(manager), 12)
    assert offer(make_budget(manager), 48, cached=40)


def test_the_next_chunk_of_a_prompt_keeps_others_out_while_it_waits(manager: Manager) -> None:
    """The pool has three pages left; a chunk of eight tokens takes two, one of 16 four."""
    begin(manager, tokens(range(36)))
    budget = make_budget(manager)
    assert budget.fit_chunk(extend_input_len=30, max_new_tokens=0, chunk_limit=8) == 8
    budget = make_budget(manager)
    assert budget.fit_chunk(extend_input_len=30, max_new_tokens=0, chunk_limit=16) is None
    assert refusal_of(budget).cause == "chunk"
    assert not offer(budget, 1)


def test_prefixes_that_others_wait_for_may_be_worth_more_than_a_request(manager: Manager) -> None:
    """Eight pages are cached and wanted by all that wait, three are used, each by one request; a
    prompt of eight pages would push seven of them out. A step costs as much as 32 tokens of prompt,
    an answer is one long: a page of a fourth request is worth 32 / (3 · 3) tokens, theirs four."""
    document = tokens(range(32))
    serve(manager, document)
    running = [begin(manager, tokens(900 + n)) for n in range(3)]
    manager.lock(manager.miss(None))  # the candidate's own prefix
    manager.counters.mean_decode_steps = 1.0
    manager.prices.step_cost_tokens = 32
    wanted = [tokens(document, 1000 + n) for n in range(8)]
    budget = make_budget(manager, *wanted)
    assert not offer(budget, 32)
    assert (refusal_of(budget).cause, refusal_of(budget).short) == ("cache", 7)
    assert offer(make_budget(manager), 32), "nobody waits for it"
    budget = make_budget(manager, *wanted)
    guard = budget.admission.lookahead.guard
    for _ in range(manager.policy.longest_kept_out_passes):
        assert not offer(budget, 32)
        guard.begin_pass("head", kept_out=True, num_running=4)
    assert offer(budget, 4) and not offer(budget, 32), "that is for who waits first alone"
    budget = make_budget(manager, *wanted)
    budget.admission.lookahead.guard = guard
    assert offer(budget, 32), "it has waited long enough"
    for request in running:
        manager.release(request)
    assert offer(make_budget(manager, *wanted), 32), "nothing else runs"


@pytest.mark.parametrize(("num_large", "admitted"), [(120, False), (121, True)])
def test_a_request_is_weighed_with_the_room_that_its_step_takes(
    num_large: int, admitted: bool
) -> None:
    """A token a page, a window of four in three stripes, a small page a large page. 41 pages are
    wanted, 12 used. A prompt of 20 tokens takes 68 where 15 of its pages pass, so many must be
    unwanted; the 80 that it would take where none passes need not be."""
    manager = make_manager(
        Full(), SlidingWindow(4), num_large=num_large, layers=[1, 3], stripes=[1, 3], max_length=100
    )
    document = tokens(range(32))
    for length in range(4, 33, 4):
        serve(manager, document[:length])
    for n in range(3):
        begin(manager, tokens(900 + n))
    manager.lock(manager.miss(None))  # the candidate's own prefix
    manager.counters.mean_decode_steps = 1.0
    manager.prices.step_cost_tokens = 1
    budget = make_budget(manager, tokens(document, 1000))
    assert offer(budget, 20) == admitted
    if not admitted:
        assert (refusal_of(budget).cause, refusal_of(budget).short) == ("cache", 1)
