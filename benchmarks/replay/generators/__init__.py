"""Seeded synthetic traces: `GENERATORS[kind](seed, num_requests)` gives about so many requests.

Lengths are tokens, times are seconds. The same seed gives the same trace.
"""

from collections.abc import Callable, Mapping

from benchmarks.replay.generators.agents import generate_agents
from benchmarks.replay.generators.chat import generate_chat
from benchmarks.replay.generators.docqa import generate_docqa
from benchmarks.replay.generators.fewshot import generate_fewshot
from benchmarks.replay.generators.mix import generate_mix
from benchmarks.replay.generators.tree import generate_tree
from benchmarks.replay.trace import Request

GENERATORS: Mapping[str, Callable[[int, int], list[Request]]] = {
    "agents": generate_agents,
    "chat": generate_chat,
    "docqa": generate_docqa,
    "fewshot": generate_fewshot,
    "mix": generate_mix,
    "tree-of-thought": generate_tree,
}

__all__ = ["GENERATORS"]
