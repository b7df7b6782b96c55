"""Sessions: SGLang keeps the tokens of their turns, the prefix cache what was computed of them."""

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from client import PATIENCE_SECONDS, Client
from models.tiny import ARCHITECTURES, write_model

ANSWER = 20
Turn = tuple[str, list[int]]  # its request's id, and its prompt with its answer


def tokens(count: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(32, 120) for _ in range(count)]


class Talk:
    """An open session, and what its turns must have been asked by what SGLang says of each
    parameter."""

    def __init__(self, server: Client, **fields: Any) -> None:
        self.server = server
        self.id = server.post("/open_session", {"capacity_of_str_len": 4000, **fields})
        # (prompt, answer, cached tokens)
        self.heard: list[tuple[list[int], list[int], int]] = []

    def say(self, new: list[int], behind: Turn | None = None, **how: Any) -> Turn:
        """``new`` tokens behind a turn or anew; ``how`` is of `session_params`."""
        params = {"id": self.id, "rid": behind and behind[0], **how}
        answer = self.server.generate(new, ANSWER, session_params=params)
        before = behind[1] if behind else []
        if how.get("drop_previous_output"):
            before = before[:-ANSWER]
        if offset := how.get("offset"):
            before = before[:offset]
        prompt, said = [*before, *new], answer["output_ids"]
        assert answer["meta_info"]["prompt_tokens"] == len(prompt)
        self.heard.append((prompt, said, answer["meta_info"]["cached_tokens"]))
        return answer["meta_info"]["id"], [*prompt, *said]

    def refused(self, behind: str | None = None) -> str:
        """Why no turn goes on from there."""
        sampling = {"temperature": 0, "max_new_tokens": 4}
        params = {"id": self.id, "rid": behind}
        body = {"input_ids": [50, 51], "sampling_params": sampling, "session_params": params}
        status, text = self.server.request("POST", "/generate", body)
        assert status == 400, text
        return text

    def close(self) -> None:
        assert self.server.request("POST", "/close_session", {"session_id": self.id})[0] == 200


def branches(server: Client) -> Talk:
    """Every way to go on from a turn."""
    talk = Talk(server)
    first = talk.say(tokens(90, 1))
    second = talk.say(tokens(30, 2), first)
    talk.say(tokens(33, 3), first)
    third = talk.say(tokens(1, 4), second)
    talk.say(tokens(15, 5), third, offset=100)
    talk.say(tokens(15, 6), second, drop_previous_output=True)
    talk.say(tokens(300, 7))
    # Takes the place of the first turn's children, which are gone then.
    again = talk.say(tokens(20, 8), first, replace=True)
    assert "Invalid request session id" in talk.refused(second[0])
    assert "Invalid request session id" in talk.refused("unknown")
    talk.say(tokens(5, 9), again)
    talk.close()
    assert "does not exist" in talk.refused()
    return talk


def assert_each_is_as_without_a_session(server: Client, talk: Talk) -> None:
    for prompt, said, _ in talk.heard:
        server.flush_cache()
        assert server.generate(prompt, ANSWER)["output_ids"] == said


def test_a_turn_goes_on_from_any_other_and_hits_what_it_had(server: Client) -> None:
    server.flush_cache()
    talk = branches(server)
    before: list[list[int]] = []
    for prompt, said, cached in talk.heard:
        assert cached == hit_of(prompt, before)
        # The last token of an answer is never computed.
        before.append([*prompt, *said[:-1]])
    assert_each_is_as_without_a_session(server, talk)
    server.assert_clean()


def hit_of(prompt: list[int], before: list[list[int]], page: int = 16) -> int:
    """The longest prefix of whole pages that is in a history, but for the prompt's last token."""
    common = [
        next(
            (n for n, (a, b) in enumerate(zip(prompt[:-1], had, strict=False)) if a != b), len(had)
        )
        for had in before
    ]
    shorter = min(max([0, *common]), len(prompt) - 1)
    return shorter // page * page


def test_turns_are_aborted_and_sessions_closed_under_them(server: Client) -> None:
    talk = Talk(server)
    first = talk.say(tokens(60, 11))
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(long_turn, talk, "aborted", first)
        wait_until_running(server)
        assert server.request("POST", "/abort_request", {"rid": "aborted"})[0] == 200
        status, _ = running.result()
        assert status in (200, 400)
        after = talk.say(tokens(10, 12), first)
        running = threads.submit(long_turn, talk, "left", after)
        wait_until_running(server)
        assert "hasn't finished" in talk.refused("left")
        talk.close()
        # What runs goes on to its end.
        assert running.result()[0] == 200
    assert "does not exist" in talk.refused(after[0])
    assert_each_is_as_without_a_session(server, talk)
    server.assert_clean()


def long_turn(talk: Talk, name: str, behind: Turn, num_tokens: int = 400) -> tuple[int, str]:
    sampling = {"temperature": 0, "max_new_tokens": num_tokens, "ignore_eos": True}
    params = {"id": talk.id, "rid": behind[0]}
    body = {"rid": name, "input_ids": [50], "sampling_params": sampling, "session_params": params}
    return talk.server.request("POST", "/generate", body)


def wait_until_running(server: Client) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while server.metric("sglang:num_running_reqs") == 0:
        assert time.monotonic() < deadline, "the turn never ran"
        time.sleep(0.01)


def test_a_session_times_out_when_nobody_comes(server: Client) -> None:
    talk = Talk(server, timeout=1.0)
    first = talk.say(tokens(40, 21))
    time.sleep(2.5)
    # Sessions are looked after when something arrives.
    server.generate([60], 1)
    assert "does not exist" in talk.refused(first[0])
    server.assert_clean()


def test_streaming_sessions_are_refused_when_they_are_opened(server: Client) -> None:
    body = {"capacity_of_str_len": 4000, "streaming": True}
    status, text = server.request("POST", "/open_session", body)
    assert status == 400 and "--enable-streaming-session" in text


@pytest.mark.long
def test_turns_hit_as_much_as_with_stock_and_give_way(
    start_jenga: Callable[..., Client], start_server: Callable[..., Any], tmp_path: Path
) -> None:
    """Llama: the same tokens and the same hits; and what was evicted of a session is computed
    again."""
    model = write_model(tmp_path / "model", ARCHITECTURES["llama"], seed=0)
    pool = ("--page-size", "16", "--max-total-tokens", "2000", "--enable-cache-report")
    ours = start_jenga(*pool, model=model)
    common = ("--model-path", str(model), "--dtype", "float32", "--random-seed", "0")
    started = start_server(*common, *pool)
    stock = Client(started.port, started.process, started.log_path)
    assert branches(ours).heard == branches(stock).heard
    talks = [Talk(ours), Talk(stock)]
    for talk in talks:
        first = talk.say(tokens(300, 31))
        for seed in range(12):
            talk.server.generate(tokens(400, 100 + seed), 1)
        talk.say(tokens(10, 32), first)
        assert talk.heard[-1][2] < 300
        talk.close()
    assert [said for _, said, _ in talks[0].heard] == [said for _, said, _ in talks[1].heard]
    ours.assert_clean()
