"""`/jenga` on SGLang's own application parts: its key, its channel to the scheduler."""

import asyncio
import base64
import json
import zlib
from collections.abc import Callable
from inspect import unwrap
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sglang.srt.managers.communicator import FanOutCommunicator
from sglang.srt.managers.io_struct import (
    GetInternalStateReq,
    GetInternalStateReqOutput,
    msgpack_decode,
    msgpack_encode,
)
from sglang.srt.utils.auth import add_api_key_middleware

from jenga_sglang import questions
from jenga_sglang.web import routes
from jenga_sglang.web.key_form import KeyForm
from jenga_sglang.web.page import page

MAP = bytes(range(200))


class FakeScheduler:
    """Answers over SGLang's own communicator and wire format, at once or when told; of several
    ranks the last is the first to answer."""

    def __init__(self, *, at_once: bool = True, ranks: int = 1) -> None:
        self.asked: list[str] = []
        self.at_once = at_once
        self.ranks = ranks
        self.get_internal_state_communicator = FanOutCommunicator(self.send, ranks)
        self.served_model_name = "model"

    def auto_create_handle_loop(self) -> None:
        pass

    def send(self, request: GetInternalStateReq) -> None:
        received = msgpack_decode(msgpack_encode(request))
        self.asked.append(received.rid)
        if self.at_once:
            asyncio.get_running_loop().call_soon(self.answer, received.rid)

    def answer(self, question: str) -> None:
        state = {"map": MAP} if question == questions.STATS else {"question": question}
        for rank in reversed(range(self.ranks)):
            output = GetInternalStateReqOutput(internal_state=state | {"dp_rank": rank})
            received = msgpack_decode(msgpack_encode(output))
            self.get_internal_state_communicator.handle_recv(received)

    def global_state(self) -> Any:
        return SimpleNamespace(tokenizer_manager=self)


@pytest.fixture
def client() -> Callable[..., TestClient]:
    def make(scheduler: FakeScheduler, api_key: str | None = None) -> TestClient:
        app = FastAPI()
        routes.add_routes(app, scheduler.global_state)
        if api_key:
            unwrap(add_api_key_middleware)(app, api_key=api_key, admin_api_key=None)
            app.add_middleware(KeyForm)
        return TestClient(app)

    return make


def test_the_map_arrives_packed(client: Callable[..., TestClient]) -> None:
    answer = client(FakeScheduler()).get("/jenga/stats").json()
    assert zlib.decompress(base64.b64decode(answer["map"])) == MAP
    assert answer["model"] == "model" and answer["data_parallel_ranks"] == 1
    assert "ranks" not in answer


class TestRanks:
    """Of a server whose requests are shared out to several."""

    @pytest.mark.parametrize("path", ["stats", "explain?prompt_tokens=12"])
    def test_all_answer_in_their_order(self, path: str, client: Callable[..., TestClient]) -> None:
        answer = client(FakeScheduler(ranks=3)).get(f"/jenga/{path}").json()
        assert answer["data_parallel_ranks"] == 3
        assert [rank["dp_rank"] for rank in answer["ranks"]] == [0, 1, 2]
        assert all(rank["model"] == "model" for rank in answer["ranks"])

    def test_one_answers_like_an_only_one(self, client: Callable[..., TestClient]) -> None:
        alone = client(FakeScheduler()).get("/jenga/stats").json()
        answer = client(FakeScheduler(ranks=3)).get("/jenga/stats?dp_rank=2").json()
        assert answer.keys() == alone.keys()
        assert answer["dp_rank"] == 2 and answer["map"] == alone["map"]

    @pytest.mark.parametrize("path", ["stats?", "explain?prompt_tokens=12&"])
    def test_one_that_is_not_there_is_one_line(
        self, path: str, client: Callable[..., TestClient]
    ) -> None:
        refused = client(FakeScheduler(ranks=2)).get(f"/jenga/{path}dp_rank=2")
        assert refused.status_code == 422
        assert refused.json() == {
            "error": "dp_rank 2: the server has 2 data-parallel ranks, counted from 0"
        }
        assert client(FakeScheduler()).get(f"/jenga/{path}dp_rank=-1").status_code == 422


def test_a_question_about_a_prompt_keeps_its_numbers(client: Callable[..., TestClient]) -> None:
    scheduler = FakeScheduler()
    client(scheduler).get("/jenga/explain?prompt_tokens=12&max_new_tokens=3")
    assert [questions.parse_explain(question) for question in scheduler.asked] == [(12, 3)]


@pytest.mark.parametrize("query", ["", "?prompt_tokens=-1", "?prompt_tokens=many"])
def test_a_question_that_makes_no_sense_is_refused(
    query: str, client: Callable[..., TestClient]
) -> None:
    scheduler = FakeScheduler()
    assert client(scheduler).get(f"/jenga/explain{query}").status_code == 422
    assert not scheduler.asked


class TestKey:
    def test_without_it_nothing_but_the_form_is_given(
        self, client: Callable[..., TestClient]
    ) -> None:
        scheduler = FakeScheduler()
        browser = client(scheduler, api_key="secret")
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            refused = browser.get("/jenga", headers=headers)
            assert refused.status_code == 401 and refused.text == page()
            for path in ("/jenga/stats", "/jenga/explain?prompt_tokens=1"):
                refused = browser.get(path, headers=headers)
                assert refused.status_code == 401 and refused.json() == {"error": "Unauthorized"}
        assert not scheduler.asked

    def test_with_it_everything_opens(self, client: Callable[..., TestClient]) -> None:
        browser = client(FakeScheduler(), api_key="secret")
        key = {"Authorization": "Bearer secret"}
        assert browser.get("/jenga", headers=key).text == page()
        assert browser.get("/jenga/stats", headers=key).status_code == 200


class TestSilence:
    def test_it_is_said_and_the_late_answer_reaches_nobody_else(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(routes, "ANSWER_SECONDS", 0.01)
        asyncio.run(self.ask_twice())

    async def ask_twice(self) -> None:
        fake = FakeScheduler(at_once=False)
        scheduler = routes.Scheduler(fake.global_state)
        silent = await routes._reply(scheduler, questions.STATS, None)
        assert silent.status_code == 504 and b"did not answer" in bytes(silent.body)

        state = asyncio.ensure_future(fake.get_internal_state_communicator(GetInternalStateReq()))
        await asyncio.sleep(0)
        assert len(fake.asked) == 1, "the next question waits for the answer to the last"
        fake.answer(questions.STATS)
        await asyncio.sleep(0.01)
        fake.answer("state")
        assert (await state)[0].internal_state == {"question": "state", "dp_rank": 0}

    def test_who_asks_the_same_shares_the_answer(self) -> None:
        async def ask() -> None:
            fake = FakeScheduler()
            scheduler = routes.Scheduler(fake.global_state)
            asked = (routes._reply(scheduler, questions.STATS, None) for _ in range(5))
            answers = [json.loads(bytes(reply.body)) for reply in await asyncio.gather(*asked)]
            assert len(fake.asked) == 1 and len({answer["map"] for answer in answers}) == 1

        asyncio.run(ask())
