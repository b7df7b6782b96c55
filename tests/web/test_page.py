"""The page in a real browser, fed a recorded run: everything that it says, and nothing fetched."""

import base64
import html
import random
import re
import zlib
from pathlib import Path
from typing import Any

from chromium import Chromium

from jenga_sglang.web.page import page, recorded_page

Samples = list[dict[str, Any]]


def open_recorded(browser: Chromium, samples: Samples, folder: Path, query: str = "") -> str:
    file = folder / "report.html"
    file.write_text(recorded_page(samples), encoding="utf-8")
    return browser.document(file.as_uri() + query)


def text_of(document: str, element_id: str) -> str:
    """The text inside an element that has no element of its own kind inside."""
    found = re.search(rf'<(\w+)[^>]*id="{element_id}"[^>]*>(.*?)</\1>', document, re.DOTALL)
    assert found, element_id
    return html.unescape(re.sub(r"<[^>]+>", " ", found[2]))


def test_it_loads_nothing_from_anywhere() -> None:
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)", page())
    assert not re.search(r"https?://|@import|url\(", page())


def test_it_shows_the_numbers_of_the_last_sample(
    browser: Chromium, samples: Samples, tmp_path: Path
) -> None:
    document = open_recorded(browser, samples, tmp_path)
    now = samples[-1]
    assert 'data-state="recorded"' in document
    assert f'data-cells="{now["num_large_pages"]}"' in document
    used = sum(g["used_bytes"] for g in now["groups"]) / now["pool_bytes"]
    assert text_of(document, "tile-used") == f"{100 * used:.1f} %"
    hit_rate = now["hit_tokens"] / now["prompt_tokens"]
    assert text_of(document, "tile-hit-rate") == f"{100 * hit_rate:.1f} %"
    rows = text_of(document, "groups")
    for group in now["groups"]:
        assert group["name"] in rows
        assert f"{group['large_pages']:,}" in rows and f"{group['lost_hit_tokens']:,}" in rows


def test_it_says_why_the_next_request_waits(
    browser: Chromium, samples: Samples, tmp_path: Path
) -> None:
    head = samples[-1]["queue"]["head"]
    assert head["cause"] == "memory" and head["weighing"]["missing_large_pages"] > 0
    said = text_of(open_recorded(browser, samples, tmp_path), "next")
    assert "Why the next request waits" in said
    assert head["request_id"] in said and head["reason"] in said

    behind = head | {"request_id": "behind", "prompt_tokens": 4321}
    samples[-1]["queue"]["waiting"] = [head, behind]
    said = text_of(open_recorded(browser, samples, tmp_path), "queue")
    assert said.index(head["request_id"]) < said.index("behind: 4,321 prompt tokens")

    samples[-1]["queue"]["head"] = None
    assert "Nothing waits" in text_of(open_recorded(browser, samples, tmp_path), "next")


def test_a_group_may_be_born_while_somebody_watches(
    browser: Chromium, samples: Samples, tmp_path: Path
) -> None:
    """As that of images is, with the first of them."""
    for sample in samples[:-1]:
        del sample["groups"][1:]
    document = open_recorded(browser, samples, tmp_path)
    assert 'data-state="recorded"' in document
    assert samples[-1]["groups"][1]["name"] in text_of(document, "groups")


def test_each_data_parallel_rank_can_be_chosen(
    browser: Chromium, samples: Samples, tmp_path: Path
) -> None:
    both = []
    for sample in samples:
        for rank, refused in enumerate((111, 222)):
            own = {"dp_rank": rank, "data_parallel_ranks": 2, "refused_reservations": refused}
            both.append(sample | own)
    for query, rank, refused in (
        ("", 0, "111"),
        ("?dp_rank=1", 1, "222"),
        ("?dp_rank=7", 0, "111"),
    ):
        document = open_recorded(browser, both, tmp_path, query)
        assert text_of(document, "tile-refused") == refused
        assert f"rank {rank} of 2" in text_of(document, "model")
        assert re.search(r'<label[^>]*id="rank"(?! hidden)[^>]*>.*?value="1"', document, re.DOTALL)
    document = open_recorded(browser, samples, tmp_path)
    assert re.search(r'<label[^>]*id="rank"[^>]* hidden', document)


def test_a_hundred_thousand_large_pages(
    browser: Chromium, samples: Samples, tmp_path: Path
) -> None:
    generator = random.Random(0)
    cells = bytearray()
    for _ in range(100_000):
        owner = generator.randint(0, 2)
        cells += bytes((owner, generator.choice((0xF0, 0x0F, 0x78)) if owner else 0))
    now = samples[-1]
    now["map"] = base64.b64encode(zlib.compress(bytes(cells))).decode()
    now["num_large_pages"] = 100_000
    document = open_recorded(browser, samples, tmp_path)
    assert 'data-cells="100000"' in document and 'data-state="recorded"' in document
    height = re.search(r'<canvas id="map"[^>]*style="[^"]*height: (\d+)px', document)
    assert height and 100 < int(height[1]) < 1000, "the map fits on a screen"


def test_host_memory_has_a_map_of_its_own(
    browser: Chromium, samples: Samples, tmp_path: Path
) -> None:
    assert re.search(r'<section id="host"[^>]* hidden', open_recorded(browser, samples, tmp_path))
    now = samples[-1]
    now["host_map"] = base64.b64encode(zlib.compress(bytes([1, 0x0F, 0, 0] * 30))).decode()
    group = {"name": now["groups"][0]["name"], "large_pages": 30}
    now["host"] = {
        "num_large_pages": 60,
        "free_large_pages": 30,
        "hit_tokens": 1234,
        "written_bytes": 2048,
        "loaded_bytes": 1024,
        "groups": [group],
    }
    now["storage"] = {"hit_tokens": 77}
    document = open_recorded(browser, samples, tmp_path)
    assert re.search(r'<section id="host"(?![^>]* hidden)', document)
    title = text_of(document, "host-title")
    for words in ("60 large pages, 30 free", "1,234 tokens", "2.0 KiB written", "storage: 77"):
        assert words in title
    assert re.search(r'<canvas id="host-map"[^>]*aria-label="60 large pages', document)


def test_names_from_outside_are_shown_as_text(
    browser: Chromium, samples: Samples, tmp_path: Path
) -> None:
    name = '</script><img id="planted">'
    samples[-1]["model"] = name
    document = open_recorded(browser, samples, tmp_path)
    assert '<img id="planted">' not in document
    assert name in text_of(document, "model")
