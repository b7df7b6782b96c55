"""Choose the geometry: stripes, state splitting, padding and page size (design: Jenga §4.1).

    plan = plan_geometry(specs, pool_bytes=…, max_length=…, page_size=16)
    plan.geometry            # what the pool is cut into
    plan.explain()           # lines of text: what was chosen, what it costs, what was not

The exact least common multiple explodes on many models. The planner minimises
`core.cut.cost.Cost.total` under a bound on the large page. It looks at every large page size that
some choice of stripes makes without padding, or with one small page padded up to a multiple of
the others; for a given large page the groups can choose apart from each other, so each takes its
cheapest cut. Pure and deterministic; equal costs go to fewer tables, then to less padding, then
to the smaller large page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from jenga_sglang.core.cut.cost import Load
from jenga_sglang.core.cut.explain import explain_plan
from jenga_sglang.core.cut.geometry import Geometry, LayerGroupSpec
from jenga_sglang.core.cut.search import Candidate, Limits, Search
from jenga_sglang.core.dependency import Full

DEFAULT_LENGTHS = (4096, 32768, 131072)  # tokens
PAGE_SIZE = 16  # tokens
SMALLER_PAGE_SIZE = 8  # tokens
LARGEST_PAGE_BYTES = 4 << 20  # of a page in all groups
# Costs this close are equal: the model of costs cannot tell them apart.
EQUAL_SHARE = 2e-4


@dataclass(frozen=True)
class Plan:
    """The chosen geometry and everything it was chosen from, best first.

    ``origins`` names, for every group of the geometry, the given spec's index and, where the
    parts of a state were split, the part's index.
    """

    geometry: Geometry
    chosen: Candidate
    candidates: tuple[Candidate, ...] = field(repr=False)
    origins: tuple[tuple[int, int | None], ...]
    lengths: tuple[int, ...]
    bound_bytes: int
    wanted_bound_bytes: int

    @property
    def exact_lcm(self) -> Candidate:
        """The best of the paper's layouts among the page sizes, allowed or not."""
        return next(c for c in self.candidates if c.is_exact_lcm)

    def why_not(self, candidate: Candidate) -> str:
        """Why a candidate may not be chosen; empty where only its cost speaks against it."""
        if candidate.large_page_bytes > self.bound_bytes:
            return "its large page exceeds the bound"
        return "" if candidate.is_aligned else "its pages are not aligned"

    def explain(self, rejected: int = 3) -> list[str]:
        """Lines of text: the chosen cut, its cost, and the best of the others."""
        return explain_plan(self, rejected)


def default_page_size(specs: Sequence[LayerGroupSpec]) -> int:
    """Tokens a page where nobody names a number.

    Fewer where one group depends on everything: other memories run such models on pages of one
    token, and all that pages cost there is the end of a request and of a hit that fills no page.
    With several groups what they save is far more than that, and every page costs the host an
    entry in each. Rows of any shape count alike, latent ones (MLA) too: the loss is in tokens.

    Fewer also where a page of all groups would exceed `LARGEST_PAGE_BYTES`. Every request loses up
    to a page at each end of what it has for itself, and where rows are so large a pool holds few
    pages for many requests; that few pages cost the host little.
    """
    is_plain = len(specs) == 1 and specs[0].dependency == Full()
    page_bytes = PAGE_SIZE * sum(spec.bytes_per_token for spec in specs)
    return SMALLER_PAGE_SIZE if is_plain or page_bytes > LARGEST_PAGE_BYTES else PAGE_SIZE


def plan_geometry(
    specs: Sequence[LayerGroupSpec],
    *,
    pool_bytes: int,
    max_length: int,
    page_size: int | Sequence[int] | None = None,
    lengths: Sequence[int] = DEFAULT_LENGTHS,
    limits: Limits | None = None,
) -> Plan:
    """Cut ``pool_bytes`` for ``specs`` at the least expected cost (`core.cut.cost`).

    ``max_length`` is the model's, in tokens: dependencies are simplified to it and longer
    ``lengths`` count as it. One ``page_size`` (tokens) is a given, of several the best is taken,
    and None is `default_page_size`.
    Where no large page can keep to the bound of ``limits``, the bound is raised to a little
    above the smallest possible one; `Plan.bound_bytes` says how far. Raises ``ValueError`` when
    the pool does not hold two large pages.
    """
    if not specs or not lengths or min(lengths) < 1 or max_length < 1:
        raise ValueError("expected groups, and lengths of at least one token")
    limits = limits or Limits()
    load_lengths = tuple(sorted({min(n, max_length) for n in lengths}))
    simple = tuple(replace(s, dependency=s.dependency.effective(max_length)) for s in specs)
    page_size = default_page_size(simple) if page_size is None else page_size
    page_sizes = (page_size,) if isinstance(page_size, int) else tuple(page_size)
    search = Search(Load(simple, load_lengths, pool_bytes), limits, page_sizes)
    wanted = limits.bound_bytes(pool_bytes)
    allowed, bound = search.within(wanted)
    least = min(c.cost.total for c in allowed)
    equal = [c for c in allowed if c.cost.total <= least + EQUAL_SHARE]
    chosen = min(equal, key=Candidate.simplicity)
    known = {c.groups for c in allowed}
    rejected = [c for c in search.references() if c.groups not in known]
    return Plan(
        Geometry(chosen.groups, chosen.page_size, pool_bytes),
        chosen,
        tuple(sorted([*allowed, *rejected], key=Candidate.order)),
        chosen.origins,
        load_lengths,
        bound,
        wanted,
    )
