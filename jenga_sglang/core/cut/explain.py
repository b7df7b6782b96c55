"""A plan in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jenga_sglang.core.cut.geometry import GroupGeometry
from jenga_sglang.core.cut.search import Candidate

if TYPE_CHECKING:
    from jenga_sglang.core.cut.planner import Plan


def explain_plan(plan: Plan, rejected: int) -> list[str]:
    """Lines of text: the chosen cut, its cost, and the best ``rejected`` others."""
    geometry, chosen = plan.geometry, plan.chosen
    lines = [
        f"{len(geometry.groups)} groups, {geometry.num_large_pages:,} large pages of "
        f"{human_bytes(geometry.large_page_bytes)}, {geometry.page_size} tokens a page, "
        f"{chosen.num_tables} page tables"
    ]
    lines += [_group_line(g, geometry.small_per_large(i)) for i, g in enumerate(geometry.groups)]
    if plan.bound_bytes > plan.wanted_bound_bytes:
        lines.append(
            f"no cut keeps large pages within {human_bytes(plan.wanted_bound_bytes)}; "
            f"the bound is raised to {human_bytes(plan.bound_bytes)}"
        )
    lines.append(f"chosen:   {candidate_line(chosen)}")
    others = [c for c in plan.candidates if c is not chosen][:rejected]
    if not chosen.is_exact_lcm and plan.exact_lcm not in others:
        others.append(plan.exact_lcm)
    reasons = [plan.why_not(c) or "dearer" for c in others]
    pairs = zip(others, reasons, strict=True)
    return lines + [f"rejected: {candidate_line(c)}; {reason}" for c, reason in pairs]


def candidate_line(candidate: Candidate) -> str:
    """One candidate with the terms of its cost, as shares of what requests need."""
    cost = candidate.cost
    label = " (exact LCM)" if candidate.is_exact_lcm else ""
    if any(part is not None for _, part in candidate.origins):
        label += " (state parts apart)"
    return (
        f"stripes {'/'.join(str(g.stripes) for g in candidate.groups)}, "
        f"large page {human_bytes(candidate.large_page_bytes)}{label}, "
        f"{candidate.page_size} tokens a page: cost {cost.total:.2%} = "
        f"last pages {cost.last_pages:.2%} + padding {cost.padding:.2%} + holes {cost.holes:.2%} "
        f"+ pool {cost.pool:.2%} + tables {cost.tables:.2%}"
    )


def human_bytes(num_bytes: float) -> str:
    """Bytes in the largest binary unit that leaves at least 1."""
    units = ("B", "KiB", "MiB", "GiB")
    power = 0
    while num_bytes >= 1024 and power < len(units) - 1:
        num_bytes /= 1024
        power += 1
    digits = 0 if num_bytes == int(num_bytes) else 2 if num_bytes < 100 else 1
    return f"{num_bytes:,.{digits}f} {units[power]}"


def _group_line(group: GroupGeometry, per_large: int) -> str:
    spec = group.spec
    stripes = f" in {group.stripes} stripes" if group.stripes > 1 else ""
    padding = f" ({group.padding_bytes:,} B of it padding)" if group.padding_bytes else ""
    return (
        f"  {spec.name}: {len(spec.layers)} layers{stripes}, {spec.dependency}, small page "
        f"{human_bytes(group.small_page_bytes)}{padding}, {per_large} in a large page"
    )
