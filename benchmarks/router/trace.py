"""Conversations that share system prompts, turn by turn; answers are scripted, so that every server
gets the same prompts."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

WORDS = string.ascii_lowercase + " "


@dataclass(frozen=True)
class Conversations:
    """How many, and how long their parts are, in characters: a character is a token or less."""

    systems: int = 4
    per_system: int = 6
    turns: int = 4
    system_chars: int = 400
    turn_chars: int = 100

    def rounds(self, seed: int) -> list[list[str]]:
        """Every conversation's prompt, one round a turn, each round in an order of its own."""
        draw = random.Random(seed)
        systems = [_text(draw, self.system_chars) for _ in range(self.systems)]
        talks = [system for system in systems for _ in range(self.per_system)]
        rounds = []
        for _ in range(self.turns):
            talks = [talk + _text(draw, self.turn_chars) for talk in talks]
            rounds.append(draw.sample(talks, len(talks)))
        return rounds


def _text(draw: random.Random, count: int) -> str:
    return "".join(draw.choice(WORDS) for _ in range(count))
