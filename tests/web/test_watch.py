"""`jenga top`, `report` and `explain` against a server that replays a recorded run."""

import base64
import io
import json
import re
import socket
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jenga_sglang.cli import main
from jenga_sglang.watch import report
from jenga_sglang.watch.top import page_map, render, render_ranks

KEY = "secret"
VERDICTS = {500: "now", 5000: "later", 100_000: "never", 700: "now later now"}


def of_ranks(sample: dict[str, Any], *answers: Any) -> dict[str, Any]:
    """An answer of several data-parallel ranks: ``sample`` with what each adds, or so many."""
    if isinstance(answers[0], int):
        answers = tuple({"refused_reservations": 77_000 + rank} for rank in range(answers[0]))
    number = {"data_parallel_ranks": len(answers)}
    ranks = [sample | answer | number | {"dp_rank": r} for r, answer in enumerate(answers)]
    return number | {"ranks": ranks}


@pytest.fixture
def url(samples: list[dict[str, Any]]) -> Iterator[str]:
    """Of a server that wants a key and answers like the recorded one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = self.answer()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def answer(self) -> tuple[int, Any]:
            if self.headers["Authorization"] != f"Bearer {KEY}":
                return 401, {"error": "Unauthorized"}
            if self.path == "/jenga/stats":
                return 200, samples[-1]
            if self.path == "/jenga/stats?dp_rank=1":
                return 200, of_ranks(samples[-1], 2)["ranks"][1]
            asked = re.fullmatch(r"/jenga/explain\?prompt_tokens=(\d+)&max_new_tokens=7", self.path)
            if asked is None:
                return 404, {}
            verdicts = VERDICTS[int(asked[1])].split()
            answers = [{"answer": answer, "reason": "because"} for answer in verdicts]
            return 200, answers[0] if len(answers) == 1 else of_ranks({}, *answers)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("tokens", "status", "said"),
    [(500, 0, "Yes, now"), (5000, 1, "Not now"), (100_000, 3, "Never")],
)
def test_explain_says_so_and_exits_with_it(
    tokens: int, status: int, said: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = ["--prompt-tokens", str(tokens), "--max-new-tokens", "7"]
    assert main(["explain", url, "--api-key", KEY, *numbers]) == status
    assert capsys.readouterr().out == f"{said}: because\n"


def test_report_writes_a_page_with_the_samples_inside(
    url: str, samples: list[dict[str, Any]], tmp_path: Path
) -> None:
    page, raw = tmp_path / "report.html", tmp_path / "samples.json"
    command = ["report", url, "--api-key", KEY, "-o", str(page), "--json", str(raw)]
    assert main([*command, "--seconds", "0.2", "--interval", "0.05"]) == 0
    recorded = json.loads(raw.read_text())
    assert len(recorded) >= 2 and recorded[-1] == samples[-1]
    assert all("map" not in sample for sample in recorded[:-1])
    assert samples[-1]["queue"]["head"]["request_id"] in page.read_text()


def test_top_shows_the_groups_and_why_the_next_request_waits(
    url: str, samples: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", url, "--api-key", KEY, "--once"]) == 0
    said = " ".join(re.sub(r"[│\s]+", " ", capsys.readouterr().out).split())
    head = samples[-1]["queue"]["head"]
    assert head["request_id"] in said and head["reason"].split(":")[0] in said
    for group in samples[-1]["groups"]:
        assert group["name"].split()[0] in said and f"{group['lost_hit_tokens']:,}" in said


def test_the_map_in_a_terminal_stands_for_every_large_page(samples: list[dict[str, Any]]) -> None:
    now = samples[-1]
    for width in (20, 80, 200):
        rows = page_map(now, width).plain.split("\n")
        assert len(rows) <= 8 and all(len(row) == width for row in rows[:-1])
        characters = sum(map(len, rows))
        per_character = -(-now["num_large_pages"] // (8 * width))
        assert characters == -(-now["num_large_pages"] // per_character)


def test_a_character_shows_whose_bytes_most_are_and_what_they_are() -> None:
    free, used, cached, hole = (0, 0), (1, 0xF0), (2, 0x0F), (1, 0x10)
    shown = page_map(packed(free, used, cached, hole), 20)
    assert shown.plain == "·█▒░"
    assert [span.style for span in shown.spans] == ["bright_black", "blue", "dark_orange", "blue"]
    assert page_map(packed(*(free, used, used) * 8), 1).plain == "\n".join("█" * 8)


def packed(*cells: tuple[int, int]) -> dict[str, Any]:
    """A sample with a map of an owner and its shares per large page."""
    raw = bytes(byte for cell in cells for byte in cell)
    return {"map": base64.b64encode(zlib.compress(raw)).decode()}


def test_top_tells_the_hit_rate_so_far_and_since_the_last_look(
    samples: list[dict[str, Any]],
) -> None:
    before, now = samples[0], samples[-1]
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(render(now, before, 120))
    hits, prompts = (now[key] - before[key] for key in ("hit_tokens", "prompt_tokens"))
    rates = f"{now['hit_tokens'] / now['prompt_tokens']:.1%} (now {hits / prompts:.1%})"
    assert f"hit rate {rates}" in console.export_text()


def test_an_interrupted_command_is_no_traceback(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report.time, "sleep", interrupted)
    assert main(["report", url, "--api-key", KEY]) == 130
    assert main(["top", url, "--api-key", KEY]) == 0
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "wants its API key"), (["--api-key", "wrong"], "wants its API key")],
)
def test_a_missing_key_is_one_line(
    arguments: list[str], said: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", url, "--once", *arguments]) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1


def test_an_address_needs_no_scheme(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", url.removeprefix("http://"), "--once", "--api-key", KEY]) == 0
    assert main(["top", "127.0.0.1:9", "--once"]) == 2
    assert "http://127.0.0.1:9: no server answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"", "no server answers"),
        (b"SSH-2.0-OpenSSH\r\n", "no server answers"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", "no SGLang server"),
        (b"HTTP/1.1 200 OK\r\n\r\n[]", "no SGLang server"),
        (b"HTTP/1.1 500 Broken\r\n\r\nboom", "500 boom"),
    ],
)
def test_something_else_on_the_port_is_one_line(
    reply: bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(listener: socket.socket) -> None:
        with listener.accept()[0] as connection:
            connection.recv(1 << 16)
            connection.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        assert main(["top", f"127.0.0.1:{listener.getsockname()[1]}", "--once"]) == 2
        thread.join()
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["explain", "--prompt-tokens", "-5"],
        ["explain", "--prompt-tokens", "0"],
        ["top", "--interval", "-1"],
        ["report", "--seconds", "nan"],
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert f"argument {arguments[1]}: expected " in capsys.readouterr().err


def test_a_report_keeps_what_a_server_said_before_it_stopped(
    samples: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    replies = iter([samples[-1] | {"map": "old"}, samples[-1]])

    class Stopping:
        def stats(self) -> list[dict[str, Any]]:
            for reply in replies:
                return [reply]
            raise OSError("http://x: no server answers")

    recorded = report.record(Stopping(), seconds=60, interval=0.001)
    assert len(recorded) == 2 and "map" not in recorded[0] and recorded[1] == samples[-1]
    assert "the report ends before that" in capsys.readouterr().err


def test_no_server_and_no_jenga_are_one_line(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "http://127.0.0.1:9", "--once"]) == 2
    assert "no server answers" in capsys.readouterr().err
    numbers = ["--prompt-tokens", "1"]  # the recorded server knows 7 new tokens only
    assert main(["explain", url, "--api-key", KEY, *numbers]) == 2
    assert "--memory-backend jenga" in capsys.readouterr().err


class TestRanks:
    """Of a server with several data-parallel ranks."""

    def test_explain_tells_each_and_ends_with_the_one_that_lets_wait(
        self, url: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        numbers = ["--prompt-tokens", "700", "--max-new-tokens", "7"]
        assert main(["explain", url, "--api-key", KEY, *numbers]) == 1
        said = capsys.readouterr().out.splitlines()
        assert said == [
            "rank 0 of 3: Yes, now: because",
            "rank 1 of 3: Not now: because",
            "rank 2 of 3: Yes, now: because",
        ]

    def test_top_shows_all_or_one(
        self, url: str, samples: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        console = Console(width=120, file=io.StringIO(), record=True)
        ranks = of_ranks(samples[-1], 2)["ranks"]
        console.print(render_ranks(ranks, ranks, 120))
        said = console.export_text()
        assert said.index("rank 0 of 2") < said.index("rank 1 of 2")
        assert said.count("queue") == 2
        assert main(["top", url, "--api-key", KEY, "--once", "--dp-rank", "1"]) == 0
        said = capsys.readouterr().out
        assert "rank 1 of 2" in said and "rank 0" not in said

    def test_a_report_keeps_the_last_map_of_each(self, samples: list[dict[str, Any]]) -> None:
        class Serving:
            def stats(self) -> list[dict[str, Any]]:
                ranks: list[dict[str, Any]] = of_ranks(samples[-1], 2)["ranks"]
                return ranks

        recorded = report.record(Serving(), seconds=0.1, interval=0.02)
        assert len(recorded) >= 4
        assert {sample["dp_rank"] for sample in recorded[:-2]} == {0, 1}
        assert not any("map" in sample for sample in recorded[:-2])
        assert [sample["dp_rank"] for sample in recorded[-2:] if sample["map"]] == [0, 1]
