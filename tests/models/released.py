"""Tiny models with the layer patterns of models that people serve, by what their layers keep."""

from models.released_full import FULL
from models.released_states import STATES
from models.released_windows import CHUNK, WINDOWS
from models.tiny import WINDOW, Architecture
from models.tiny_step import STEP_3P5

RELEASED: dict[str, Architecture] = FULL | WINDOWS | STATES | {"step3p5": STEP_3P5}


def dependencies(kind: Architecture) -> set[str]:
    """What a server should say of a model's layer groups."""
    shown = {"w": f"window {WINDOW + kind.sees_more}", "k": f"chunk {CHUNK}", "f": "full"}
    found = {shown.get(letter, "last state") for letter in kind.layers}
    return found | ({"last state"} if kind.states else set())
