"""What is cached of a history: which of its prefixes every group can continue from."""

from __future__ import annotations

from collections.abc import Hashable

from jenga_sglang.core.books.memory import Memory
from jenga_sglang.core.books.tree import Path, PrefixTree, Tokens
from jenga_sglang.core.cut.geometry import Geometry
from jenga_sglang.core.dependency import Dependency
from jenga_sglang.core.eviction import Evictor
from jenga_sglang.core.holding import Holding
from jenga_sglang.core.needs import History, Needs
from jenga_sglang.core.recency import Place, Recency
from jenga_sglang.core.running import Hit


class Prefixes:
    """The questions about prefixes that `Manager` answers, who makes all of this."""

    geometry: Geometry
    prefix_cache: bool
    needs: Needs
    memory: Memory
    tree: PrefixTree
    evictor: Evictor
    holding: Holding
    recency: Recency
    _histories: dict[int, History]

    @property
    def dependencies(self) -> list[Dependency]:
        return self.needs.dependencies

    def match(self, namespace: Hashable, tokens: Tokens) -> Hit:
        """The longest prefix of ``tokens``, in whole pages, that every group can continue from. A
        ``namespace`` is anything; a `tree.Encoded` says that an encoder made the first tokens."""
        if not self.prefix_cache:
            return self.miss(namespace)
        return self.hit_of(self.tree.find(namespace, tokens))

    def hit_of(self, path: Path) -> Hit:
        """The longest prefix of ``path`` that every group can continue from."""
        history = self.history(path.node.encoder_pages)
        num_pages, cut_by = history.longest_hit(self.tree.pages(path))
        return Hit(Path(path.node, num_pages), path.num_pages, cut_by)

    def places_of(self, path: Path) -> list[Place]:
        """Where in all tiers lies what a hit of all of them on ``path`` needs; nothing where the
        pool is the only one."""
        return []

    def lost_tokens(self, saved_tokens: int, large_pages: float) -> int:
        """What it costs to evict a prefix from the pool that saves so many tokens of prompt and
        takes so many large pages, in tokens of prompt."""
        return saved_tokens

    def miss(self, namespace: Hashable) -> Hit:
        """The empty prefix."""
        return Hit(Path(self.tree.root(namespace), 0), 0, None)

    def history(self, encoder_pages: int) -> History:
        """What the groups need of histories whose first ``encoder_pages`` an encoder made."""
        if encoder_pages not in self._histories:
            self._histories[encoder_pages] = History(self.needs, self.memory, encoder_pages)
        return self._histories[encoder_pages]

    def prompt_slack(self, prompt_tokens: int) -> int:
        """How far before the end of a prompt a hit is kept possible, in tokens."""
        return self.holding.prompt_slack(self.geometry, prompt_tokens)

    def refresh(self, hit: Hit) -> None:
        """Make what ``hit`` needs the last to be evicted: somebody is going to ask for it."""
        history, pages = self.history(hit.encoder_pages), self.tree.pages(hit.path)
        self.recency.touch_large(self.recency.large_pages(history, pages))

    def give_up(self, path: Path) -> None:
        """Evict what every group holds of ``path``, which nobody may have pinned."""
        for g in self.needs.groups:
            # Evicting in one group may put the rest out of reach, in all of them.
            if self.tree.is_alive(path.node):
                self.evictor.evict_pages(g, self.tree.pages(path))

    def evict(self, pages: int) -> int:
        """Evict until ``pages`` virtual pages are free that were not; how many it came to."""
        return self.evictor.evict(pages)
