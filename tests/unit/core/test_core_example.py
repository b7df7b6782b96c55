"""The example of `docs/architecture.md`, run."""

import re
from pathlib import Path

import core_inspector as inside
from core_builders import begin, grow, held_pages, hit_tokens, make_manager, tokens

from jenga_sglang.core.dependency import Full, SlidingWindow
from jenga_sglang.core.manager import Manager

PAGE = Path(__file__).parents[3] / "docs" / "architecture.md"
PROMPT, ANSWERED, STRANGER = tokens(range(18)), tokens(range(30)), tokens(range(500, 524))


def test_pages_move_as_the_document_says() -> None:
    manager = make_manager(Full(), SlidingWindow(6), num_large=20, page_size=4)
    rows = []
    running = begin(manager, PROMPT, publish=True)
    rows.append(["extend to 18", *counts(manager)])
    manager.publish(running, None, PROMPT)
    rows.append(["publish 18", *counts(manager)])
    for length in range(19, 31):
        manager.slide(running, length)
        grow(manager, running, length)
    rows.append(["decode to 30", *counts(manager)])
    manager.publish(running, None, ANSWERED)
    manager.release(running)
    rows.append(["release", *counts(manager)])
    begin(manager, STRANGER)
    rows.append(["stranger, 24", *counts(manager)])
    assert rows == told()
    assert hit_tokens(manager, PROMPT) == 16
    assert set(range(4)) <= set(held_pages(manager, 0, ANSWERED))
    assert held_pages(manager, 1, ANSWERED) == [2, 3]
    assert running.num_pages == 0


def counts(manager: Manager) -> list[str]:
    """Of the full group and of the window's: used and cached pages; then the free ones."""
    used, held = inside.num_used(manager), inside.num_held(manager)
    numbers = [n for u, h in zip(used, held, strict=True) for n in (u, h - u)]
    return [str(n) for n in (*numbers, inside.num_free(manager))]


def told() -> list[list[str]]:
    table = PAGE.read_text().split("| step | full, used |")[1].split("\n\n")[0]
    return [re.split(r"\s*\|\s*", line.strip("| ")) for line in table.splitlines()[2:]]
