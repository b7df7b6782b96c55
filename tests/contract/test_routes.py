"""`/jenga` on SGLang's own application parts: its key, its channel to the scheduler."""

import asyncio
import base64
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
    """Answers over SGLang's own communicator and wire format, at once or when told."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.asked: list[str] = []
        self.at_once = at_once
        self.get_internal_state_communicator = FanOutCommunicator(self.send, 1)
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
        output = GetInternalStateReqOutput(internal_state=state)
        self.get_internal_state_communicator.handle_recv(msgpack_decode(msgpack_encode(output)))

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
        silent = await routes._reply(scheduler, questions.STATS)
        assert silent.status_code == 504 and b"did not answer" in bytes(silent.body)

        state = asyncio.ensure_future(fake.get_internal_state_communicator(GetInternalStateReq()))
        await asyncio.sleep(0)
        assert len(fake.asked) == 1, "the next question waits for the answer to the last"
        fake.answer(questions.STATS)
        await asyncio.sleep(0.01)
        fake.answer("state")
        assert (await state)[0].internal_state == {"question": "state"}

    def test_who_asks_the_same_shares_the_answer(self) -> None:
        async def ask() -> None:
            fake = FakeScheduler()
            scheduler = routes.Scheduler(fake.global_state)
            answers = await asyncio.gather(*(scheduler.ask(questions.STATS) for _ in range(5)))
            assert len(fake.asked) == 1 and all(a == answers[0] for a in answers)

        asyncio.run(ask())
