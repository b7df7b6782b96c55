"""All programs by name, and what is left of a run: outputs and cached tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sglang as sgl

from examples import agent, ask_document, chat, extract_json, few_shot, tree_of_thought

PROGRAMS: dict[str, Callable[[], Any]] = {
    "ask_document": ask_document.run,
    "extract_json": extract_json.run,
    "chat": chat.run,
    "few_shot": few_shot.run,
    "tree_of_thought": tree_of_thought.run,
    "agent": agent.run,
}


@dataclass(frozen=True)
class Outcome:
    """``outputs`` are the values of a run's variables, in order of their names and states;
    prompt and cached tokens are those of the calls that generated them."""

    outputs: list[tuple[str, str]]
    prompt_tokens: int
    cached_tokens: int


def run_program(name: str, url: str, api_key: str | None = None) -> Outcome:
    """Run a program on the server at ``url``. Raises what the program raised."""
    sgl.set_default_backend(sgl.RuntimeEndpoint(url, api_key=api_key))
    result = PROGRAMS[name]()
    states = result if isinstance(result, list) else [result]
    outputs, prompt_tokens, cached_tokens = [], 0, 0
    for number, state in enumerate(states):
        if error := state.error():
            raise error
        for variable in sorted(state.stream_executor.variables):
            label = f"{variable} {number + 1}" if len(states) > 1 else variable
            outputs.append((label, str(state[variable])))
            facts = state.get_meta_info(variable) or {}
            # A selection has facts of another kind.
            prompt_tokens += facts.get("prompt_tokens", 0)
            cached_tokens += facts.get("cached_tokens", 0)
    return Outcome(outputs, prompt_tokens, cached_tokens)
