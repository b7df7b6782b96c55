"""README and docs agree with the code and with each other."""

import json
import re
from pathlib import Path

import pytest

from jenga_sglang.cli import main
from jenga_sglang.refused_flags import (
    refused_between_servers_table,
    refused_between_stages_table,
    refused_table,
)

ROOT = Path(__file__).parents[2]
FRONT = (ROOT / "README.md").read_text()
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")], key=lambda p: p.name
)
# Name on the front page, file in tests/configs.
CAPACITY = {
    "Gemma-3-27B": "gemma-3-27b",
    "Gemma-4-31B": "gemma-4-31b",
    "gpt-oss-120b": "gpt-oss-120b",
    "Llama-4-Scout": "llama-4-scout",
    "Qwen3-Next-80B": "qwen3-next-80b",
    "Llama-3.1-8B": "llama-3.1-8b",
}


def planned(config: str, capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """Requests of 1k, 8k, 32k and 128k tokens that fit by `jenga plan`."""
    path = str(ROOT / "tests" / "configs" / f"{config}.json")
    lengths = ["--lengths", "1k,8k,32k,128k"]
    assert main(["plan", path, "--kv-bytes", "40GiB", *lengths, "--json"]) == 0
    layouts = json.loads(capsys.readouterr().out)["layouts"]
    (stock,) = (layout for layout in layouts if layout["is_stock"])
    (ours,) = (layout for layout in layouts if layout["name"] == "planned (ours)")
    shown = {"SGLang": stock, "Jenga": ours}
    return {who: [f"{n:.1f}" for n in layout["concurrent"]] for who, layout in shown.items()}


@pytest.mark.parametrize("name", CAPACITY)
def test_the_front_pages_capacity_is_what_jenga_plan_says(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = planned(CAPACITY[name], capsys)
    rows = dict(re.findall(rf"^\| {re.escape(name)}, (\w+) \| (.*) \|$", FRONT, re.MULTILINE))
    if "both" in rows:
        rows = dict.fromkeys(said, rows["both"])
    assert {who: row.replace("*", "").split(" | ") for who, row in rows.items()} == said


def test_the_front_page_stays_short() -> None:
    assert len(FRONT.splitlines()) <= 150


def test_refused_flags_are_listed_with_the_codes_reasons() -> None:
    page = (ROOT / "docs" / "features.md").read_text()
    table = page.split("| flag | why | what it would take |\n|---|---|---|\n")[1].split("\n\n")[0]
    assert table.splitlines() == refused_table()


def test_flags_refused_between_servers_and_stages_are_listed_with_the_codes_reasons() -> None:
    page = (ROOT / "docs" / "disaggregation.md").read_text()
    head = "| flag | works | why no other value | what it would take |\n|---|---|---|---|\n"
    tables = [part.split("\n\n")[0].splitlines() for part in page.split(head)[1:]]
    assert tables == [refused_between_servers_table(), refused_between_stages_table()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page: Path) -> None:
    names = re.findall(r"`((?:jenga_sglang|flashinfer_ext|tests|docs)/[\w./-]+)`", page.read_text())
    assert not [name for name in names if not (ROOT / name).exists()]
