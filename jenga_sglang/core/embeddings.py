"""Embeddings of images or sound in the pool: what a vision encoder made, until the text model has
read it.

An embedding is a history of its own in the prefix tree, in a group that no request has pages in.
An encoder made all of it, so it is there as a whole or not at all. Nobody pins it: it takes room
that nothing else needs now, and once it has been read it is the first to go.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from jenga_sglang.core.books.tree import Encoded, Tokens
from jenga_sglang.core.ids import Ids, each_once, round_up
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.running import Hit


class Embeddings:
    """Keeps embeddings by number in ``group`` of ``manager``, whose only encoder group it is."""

    def __init__(self, manager: Manager, group: int) -> None:
        if manager.memory.encoder_groups != [group]:
            raise ValueError(
                f"group {group}: expected the only group of what encoders make, among "
                f"{manager.memory.encoder_groups}"
            )
        self.manager = manager
        self.group = group

    def store(self, number: int, num_tokens: int) -> Ids | None:
        """Virtual pages for the embedding ``number``, evicting what is merely cached; None when
        there is no room, or no prefix cache."""
        manager, memory = self.manager, self.manager.memory
        tokens = self._tokens(number, num_tokens)
        parts = ((len(tokens) // manager.page_size, (self.group,)),)
        demand = memory.demand_of_parts(parts)
        if not manager.prefix_cache or not memory.large.can_serve(demand):
            return None
        manager.evictor.make_any_room(demand)
        if not manager.evictor.make_names(parts[0][0]):
            return None
        namespace = self._namespace(tokens)
        running = manager.lock(manager.miss(namespace))
        pages = memory.take(parts, running.number, scarce=True)
        running.grow(pages, len(tokens))
        manager.publish(running, namespace, tokens)
        manager.release(running)
        return self.find(number, num_tokens)

    def find(self, number: int, num_tokens: int) -> Ids | None:
        """The virtual pages of an embedding that is there; somebody is about to read it."""
        hit = self._hit(number, num_tokens)
        if hit is None:
            return None
        self.manager.refresh(hit)
        return self.manager.tree.pages(hit.path)

    def has_been_read(self, number: int, num_tokens: int) -> None:
        """Make an embedding the first to be evicted, but for large pages that others lie in."""
        hit = self._hit(number, num_tokens)
        if hit is None:
            return
        memory = self.manager.memory
        pages = self.manager.tree.pages(hit.path)
        large = each_once(
            memory.large.large_of(self.group, memory.table[self.group][pages].ravel())
        )
        tenants = memory.tenants(self.group, large)
        alone = large[(np.isin(tenants, pages) | (tenants == 0)).all(axis=1)]
        memory.lru.touch(alone, 0)
        memory.lru.add(alone)

    def free(self, number: int, num_tokens: int) -> bool:
        """Forget an embedding; whether it was there."""
        hit = self._hit(number, num_tokens)
        if hit is None:
            return False
        pages = self.manager.tree.pages(hit.path)
        self.manager.evictor.drop(self.group, pages)
        self.manager.evictor.forget_hollow(pages)
        self.manager.changes += 1
        return True

    def _hit(self, number: int, num_tokens: int) -> Hit | None:
        tokens = self._tokens(number, num_tokens)
        hit = self.manager.match(self._namespace(tokens), tokens)
        return hit if hit.path.num_pages * self.manager.page_size == len(tokens) else None

    def _tokens(self, number: int, num_tokens: int) -> Tokens:
        """Whole pages of tokens that name the embedding."""
        size = self.manager.page_size
        return np.full(round_up(num_tokens, size), number, np.int64)

    @staticmethod
    def _namespace(tokens: Tokens) -> Hashable:
        return Encoded("embeddings", len(tokens))
