"""One real server under load, seen through everything that shows it."""

import json
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from chromium import Chromium

from jenga_sglang.watch.client import Server
from jenga_sglang.watch.report import record
from jenga_sglang.web.page import recorded_page

POOL_TOKENS = 1200
NUM_CLIENTS = 12
SETTLE_SECONDS = 60


@dataclass(frozen=True)
class Run:
    """What was seen of one server: samples while it worked, and events from its start."""

    server: Server
    samples: list[dict[str, Any]]
    events: list[dict[str, Any]]
    log_path: Path

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.server.url + path, timeout=60) as reply:
            text: str = reply.read().decode()
            return text


@pytest.fixture(scope="module")
def run(demo_model: Path, free_port: Callable[[], int], start_server: Callable[..., Any]) -> Run:
    """Twelve clients ask about few documents at once; the pool holds half of their requests."""
    port = free_port()
    flags = ["--memory-backend", "jenga", "--model-path", str(demo_model), "--dtype", "float32"]
    flags += ["--max-total-tokens", str(POOL_TOKENS), "--chunked-prefill-size", "512"]
    flags += ["--enable-metrics", "--served-model-name", "demo"]
    flags += ["--kv-events-config", json.dumps(publisher(port))]
    server = start_server(*flags, env={"OMP_NUM_THREADS": "1"})
    url = f"http://127.0.0.1:{server.port}"
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.connect(f"tcp://127.0.0.1:{port}")
        socket.setsockopt(zmq.SUBSCRIBE, b"")
        wait_for_events(url, socket)
        flush(url)
        with ThreadPoolExecutor(NUM_CLIENTS) as clients:
            asked = [clients.submit(ask, url, prompt) for prompt in prompts()]
            samples = record(Server(url), seconds=6, interval=0.1)
            while not all(reply.done() for reply in asked):
                samples += record(Server(url), seconds=1, interval=0.1)
            for reply in asked:
                reply.result()
        events = list(receive(socket, seconds=3))
    return Run(Server(url), samples, events, server.log_path)


def publisher(port: int) -> dict[str, Any]:
    return {"publisher": "zmq", "endpoint": f"tcp://127.0.0.1:{port}", "bind": True}


def wait_for_events(url: str, socket: zmq.Socket[bytes]) -> None:
    """Until the subscription has reached the server: what was published before is lost."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        ask(url, ([random.randrange(4, 260) for _ in range(40)], 2))
        if list(receive(socket, seconds=0.5)):
            return
    pytest.fail("no KV events arrive")


def flush(url: str) -> None:
    """Empty the cache, as soon as nothing runs."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        try:
            request = urllib.request.Request(f"{url}/flush_cache", method="POST")
            urllib.request.urlopen(request, timeout=30).close()
            return
        except urllib.error.HTTPError:
            time.sleep(0.2)
    pytest.fail("the cache cannot be flushed")


def receive(socket: zmq.Socket[bytes], seconds: float) -> Iterator[dict[str, Any]]:
    """Events until there are none for so long."""
    while socket.poll(int(seconds * 1000)):
        _, _, payload = socket.recv_multipart()
        yield from msgspec.msgpack.decode(payload)[1]


def prompts() -> list[tuple[list[int], int]]:
    """(tokens, new tokens): the beginning of one of four documents and a question."""
    generator = random.Random(0)
    documents = [[generator.randrange(4, 260) for _ in range(900)] for _ in range(4)]
    return [
        (
            generator.choice(documents)[: generator.randrange(200, 900)]
            + [generator.randrange(4, 260) for _ in range(40)],
            generator.randrange(40, 120),
        )
        for _ in range(4 * NUM_CLIENTS)
    ]


def ask(url: str, prompt: tuple[list[int], int]) -> None:
    tokens, new_tokens = prompt
    sampling = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True}
    body = json.dumps({"input_ids": tokens, "sampling_params": sampling}).encode()
    request = urllib.request.Request(
        f"{url}/generate", body, {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=300) as reply:
        assert len(json.load(reply)["output_ids"]) == new_tokens


def test_bytes_add_up_in_every_sample(run: Run) -> None:
    for sample in run.samples:
        total = sample["free_bytes"] + sample["unusable_bytes"]
        for group in sample["groups"]:
            total += group["used_bytes"] + group["cached_bytes"] + group["free_bytes"]
        assert total == sample["pool_bytes"]


def test_a_waiting_request_is_named_with_the_memory_that_it_lacks(run: Run) -> None:
    heads = [s["queue"]["head"] for s in run.samples if s["queue"]["head"]]
    lacking = [head for head in heads if head["cause"] == "memory"]
    assert lacking, "no request ever waited for memory"
    for queue in (s["queue"] for s in run.samples if s["queue"]["head"]):
        assert len(queue["waiting"]) == queue["waiting_requests"]
        assert queue["waiting"][0]["request_id"] == queue["head"]["request_id"]
    for head in lacking:
        weighing = head["weighing"]
        asked = weighing["promised_large_pages"] + sum(weighing["asked_large_pages"])
        missing = asked - weighing["available_large_pages"]
        assert weighing["missing_large_pages"] == missing > 0
        assert f"{missing:,} too few" in head["reason"]


def test_counters_only_rise_and_something_happened(run: Run) -> None:
    for key in ("prompt_tokens", "hit_tokens", "refused_reservations"):
        values = [sample[key] for sample in run.samples]
        assert values == sorted(values)
    (last,) = run.server.stats()
    assert last["hit_tokens"] > 0 and sum(g["evicted_pages"] for g in last["groups"]) > 0
    assert last["queue"]["head"] is None and last["queue"]["running_requests"] == 0


def test_a_prompt_is_explained_before_it_is_sent(run: Run) -> None:
    short, long = (run.server.explain(n, 16)[0] for n in (100, 100_000))
    assert (short["answer"], long["answer"]) == ("now", "never")
    assert "it fits" in short["reason"] and "does not fit into the KV pool" in long["reason"]


def test_prometheus_says_what_the_page_says(run: Run) -> None:
    (stats,) = run.server.stats()
    expected = {"pool_bytes": stats["pool_bytes"], "pool_free_bytes": stats["free_bytes"]}
    expected |= {f"{k}_total": stats[k] for k in ("prompt_tokens", "hit_tokens")}
    for group in stats["groups"]:
        keys = ("used_bytes", "cached_bytes", "free_bytes", "waste_bytes", "large_pages")
        expected |= {f"{key}[{group['name']}]": group[key] for key in keys}
        expected[f"lost_hit_tokens_total[{group['name']}]"] = group["lost_hit_tokens"]
        causes = {"room": "evicted_pages", "out_of_reach": "cascaded_pages"}
        for cause, key in causes.items():
            expected[f"evicted_pages_total[{cause},{group['name']}]"] = group[key]
    deadline = time.monotonic() + SETTLE_SECONDS
    while (seen := jenga_metrics(run.get("/metrics"))) and time.monotonic() < deadline:
        if all(seen.get(key) == value for key, value in expected.items()):
            break
        time.sleep(1)  # SGLang publishes now and then
    assert {key: seen.get(key) for key in expected} == expected


def jenga_metrics(text: str) -> dict[str, float]:
    """``name[group]`` or ``name[cause,group]`` of every `sglang:jenga_*` sample."""
    found = {}
    for name, labels, value in re.findall(
        r"^sglang:jenga_(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE
    ):
        known = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        more = ",".join(known[key] for key in ("cause", "group") if key in known)
        found[f"{name}[{more}]" if more else name] = float(value)
    return found


def test_events_name_the_group_and_agree_with_what_is_cached(run: Run) -> None:
    """The flush before the load leaves nothing, so what was stored and not removed is there."""
    (stats,) = run.server.stats()
    held: list[set[int]] = [set() for _ in stats["groups"]]
    for event in run.events:
        if event["type"] == "AllBlocksCleared":
            held = [set() for _ in stats["groups"]]
            continue
        blocks = held[event["group_idx"]]
        assert event["group"] == stats["groups"][event["group_idx"]]["dependency"]
        (blocks.update if event["type"] == "BlockStored" else blocks.difference_update)(
            event["block_hashes"]
        )
    for group, blocks in zip(stats["groups"], held, strict=True):
        page_bytes = group["small_page_bytes"] * group["stripes"]
        assert len(blocks) * page_bytes == group["cached_bytes"] > 0


def test_the_live_page_in_a_browser(run: Run, browser: Chromium) -> None:
    document = browser.document(f"{run.server.url}/jenga")
    (stats,) = run.server.stats()
    assert 'data-state="live"' in document
    assert f'data-cells="{stats["num_large_pages"]}"' in document
    for group in stats["groups"]:
        assert f"{group['lost_hit_tokens']:,}" in document


def test_a_report_of_the_run_opens_in_a_browser(
    run: Run, browser: Chromium, tmp_path: Path
) -> None:
    report = tmp_path / "report.html"
    report.write_text(recorded_page(run.samples), encoding="utf-8")
    assert 'data-state="recorded"' in browser.document(report.as_uri())


def test_the_log_is_clean(run: Run) -> None:
    log = run.log_path.read_text(errors="replace")
    for trouble in ("Traceback", "leak detected", "jenga watchdog"):
        assert trouble not in log
