"""A document turned into JSON that a program can use: the schema is enforced, token by token."""

from __future__ import annotations

import json
from typing import Any

import sglang as sgl

from examples.document import licence, readme

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["licence", "manual", "letter"]},
        "title": {"type": "string", "pattern": "^[A-Z][a-z]{2,12}( [A-Za-z][a-z]{1,9}){0,2}$"},
        "grants": {
            "type": "array",
            "items": {"enum": ["copyright", "patent", "trademark"]},
            "minItems": 1,
            "maxItems": 3,
        },
        "has_warranty": {"type": "boolean"},
    },
    "required": ["kind", "title", "grants", "has_warranty"],
    "additionalProperties": False,
}


@sgl.function
def extract(s: Any, document: str) -> None:
    s += document + "\n\nDescribe this text as JSON: "
    s += sgl.gen("facts", json_schema=json.dumps(SCHEMA), max_tokens=160, temperature=0)


def run() -> Any:
    """Both documents, as one batch. Raises ``ValueError`` if an answer is not JSON."""
    states = extract.run_batch([{"document": licence()}, {"document": readme()}])
    for state in states:
        json.loads(state["facts"])
    return states
