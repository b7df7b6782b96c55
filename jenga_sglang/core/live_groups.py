"""Layer groups that come and go while a pool is in use: a modality or an adapter seen for the first
time, and never again.

A new group takes no memory until a request has pages in it. Requests that run already go on
without it; requests that begin later have pages in it, so what is cached from before is no hit for
them until they have computed the group's part. A group that has gone gives every page back to the
common pool. Numbers of groups never change, so a retired group keeps its number.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from jenga_sglang.core.cut.geometry import ALIGN_BYTES, Geometry, GroupGeometry, LayerGroupSpec
from jenga_sglang.core.manager import Manager


def fitting_cut(geometry: Geometry, spec: LayerGroupSpec) -> GroupGeometry:
    """The cut of a new group that suits a pool's large page: the least padding, and among equals
    the fewest stripes. Raises ``ValueError`` where not even one layer's page fits."""
    large, cuts = geometry.large_page_bytes, []
    for stripes in (n for n in range(1, len(spec.layers) + 1) if len(spec.layers) % n == 0):
        cut = GroupGeometry(spec, geometry.page_size, stripes)
        # As many small pages as fit, or the next fewer that cut the large page evenly.
        for count in range(large // cut.small_page_bytes, 0, -1):
            size, rest = divmod(large, count)
            if not rest and not size % ALIGN_BYTES:
                cuts.append(replace(cut, padding_bytes=size - cut.small_page_bytes))
                break
    if not cuts:
        raise ValueError(
            f"group {spec.name}: {spec.layer_page_bytes(geometry.page_size):,} bytes of one layer "
            f"do not fit into the pool's large page of {large:,}"
        )
    return min(cuts, key=lambda cut: (cut.stripes * cut.padding_bytes, cut.stripes))


def register_group(manager: Manager, cut: GroupGeometry) -> int:
    """Add a group of KV rows to a live pool; returns its number. No byte is moved.

    Raises ``ValueError`` and changes nothing for a group of states, for another page size, over
    host memory, and where the pool's large page is no multiple of the group's small page.
    """
    geometry = manager.geometry
    if len(manager.memories) > 1:
        raise ValueError(f"group {cut.spec.name}: host memory has the groups it began with only")
    if cut.spec.is_state:
        raise ValueError(f"group {cut.spec.name}: states must be there when the pool is made")
    if geometry.large_page_bytes % cut.small_page_bytes:
        raise ValueError(
            f"group {cut.spec.name}: a small page of {cut.small_page_bytes:,} bytes does not "
            f"divide the pool's large page of {geometry.large_page_bytes:,}; choose other stripes "
            "or padding"
        )
    manager.geometry = replace(geometry, groups=(*geometry.groups, cut))
    group = manager.needs.add_group(cut)
    manager.memory.add_group(manager.geometry)
    for running in manager.running.values():
        running.add_group()
    _note_change(manager)
    return group


def retire_group(manager: Manager, group: int) -> None:
    """Forget a group of KV rows: everything cached in it becomes free.

    Raises ``ValueError`` and changes nothing for a group of states, one that is retired already,
    and while a running request has pages in it.
    """
    memory = manager.memory
    if group not in memory.row_groups + memory.encoder_groups:
        raise ValueError(f"group {group} is not a group of rows in use")
    running = manager.running.values()
    if users := [r.number for r in running if group in r.groups + r.encoder_groups]:
        raise ValueError(f"group {group} is in use by {len(users)} running requests")
    for groups in (memory.row_groups, memory.encoder_groups):
        groups[:] = [g for g in groups if g != group]
    manager.needs.retire_group(group)
    cached = np.flatnonzero(memory.table[group][:, 0])
    memory.drop(group, cached)
    manager.evictor.forget_hollow(cached)
    _note_change(manager)


def _note_change(manager: Manager) -> None:
    """What was known of the pool and its tree may be known no more."""
    manager.changes += 1
    manager.tree.change(manager.tree)
