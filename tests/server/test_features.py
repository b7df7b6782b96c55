"""What else SGLang can do, on Jenga pages: one server with the defaults, one with everything the
other way round, and for the long run one for each thing that needs its own.

Structured output (JSON schema, regex, EBNF) is in test_kits.py.
"""

import random
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from client import Client
from taught_model import WINDOW
from transformers import AutoModelForCausalLM

PAGE_SIZE = 16
NUM_TOKENS = 24


def prompt(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(4, 260) for _ in range(length)]


PROMPTS = [prompt(length, length) for length in (1, 15, 16, 17, 64, 65, 200, 700, 1300)]


@cache
def expected(model: Path, index: int) -> list[int]:
    """The greedy answer of Hugging Face's own model."""
    ids = torch.tensor([PROMPTS[index]])
    out = _model(model).generate(
        ids, max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    tokens: list[int] = out[0, ids.shape[1] :].tolist()
    return tokens


@cache
def _model(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def ask_all_at_once(server: Client) -> list[list[int]]:
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        answers = pool.map(lambda ids: server.generate(ids, NUM_TOKENS), PROMPTS)
    return [answer["output_ids"] for answer in answers]


def assert_answers_are_right(server: Client, model: Path) -> None:
    """All together, from an empty cache and from a full one."""
    wanted = [expected(model, index) for index in range(len(PROMPTS))]
    server.flush_cache()
    for _ in range(2):
        assert ask_all_at_once(server) == wanted
    server.assert_clean()


def cached_tokens(answer: Any) -> int:
    return int(answer["meta_info"]["cached_tokens"])


class TestStart:
    def test_the_log_has_the_table(self, server: Client) -> None:
        log = server.log()
        table = log[log.index("Jenga memory pool") :]
        header = r"group +layers +bytes/token +tables +small page +large page +pages"
        assert re.search(header, table)
        assert re.search(rf"window {WINDOW} +6 +6,144 ", table)
        assert re.search(r"full +2 +2,048 ", table)
        assert "requests of full length (131,072 tokens) that fit: 0." in table

    def test_a_pool_that_is_too_small_for_one_full_request_says_what_fits(
        self, server: Client
    ) -> None:
        longest = server.facts()["longest_request_tokens"]
        assert f"The longest request that fits has {longest} tokens" in server.log()

    def test_server_info_tells_the_same(self, server: Client) -> None:
        facts = server.facts()
        assert [group["dependency"] for group in facts["groups"]] == [f"window {WINDOW}", "full"]
        assert [group["layers"] for group in facts["groups"]] == [6, 2]
        assert facts["page_size"] == PAGE_SIZE and facts["max_length"] == 131_072

    def test_the_pool_has_the_bytes_of_the_stock_pool(self, server: Client) -> None:
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

        stock = MHATokenToKVPool(
            size=20_000,
            page_size=PAGE_SIZE,
            dtype=torch.float32,
            head_num=2,
            head_dim=64,
            layer_num=8,
            device="cpu",
            enable_memory_saver=False,
        )
        buffers = [*stock.k_buffer, *stock.v_buffer]
        assert server.facts()["pool_bytes"] == sum(buffer.nbytes for buffer in buffers)


class TestAnswers:
    def test_chunked_prefill_under_the_overlap_schedule(
        self, server: Client, taught_model: Path
    ) -> None:
        assert_answers_are_right(server, taught_model)

    def test_a_prompt_hits_itself_whatever_its_length(self, server: Client) -> None:
        """All but its last page: also where the next token's page is taken, and the window slides,
        before the prompt is in the tree."""
        for length in (383, 384, 385, 400, 512, 1024):
            ids = prompt(length, seed=1_000 + length)
            server.generate(ids)
            whole = (length - 1) // PAGE_SIZE * PAGE_SIZE
            assert cached_tokens(server.generate(ids)) == whole, length

    def test_a_flushed_cache_is_empty(self, server: Client) -> None:
        server.generate(PROMPTS[-1])
        assert cached_tokens(server.generate(PROMPTS[-1])) == 1296
        server.flush_cache()
        facts = server.facts()
        assert not any(group["cached_bytes"] for group in facts["groups"])
        assert facts["free_large_pages"] == facts["num_large_pages"]
        assert cached_tokens(server.generate(PROMPTS[-1])) == 0

    def test_a_stream_says_the_same(self, server: Client) -> None:
        body = {"sampling_params": {"temperature": 0, "max_new_tokens": 16, "ignore_eos": True}}
        events = list(server.stream("/generate", {"input_ids": PROMPTS[6], "stream": True, **body}))
        assert len(events) > 1
        assert events[-1]["output_ids"] == server.generate(PROMPTS[6])["output_ids"]

    @pytest.mark.parametrize("cached", [False, True])
    def test_logprobs_are_the_models_own(
        self, server: Client, taught_model: Path, cached: bool
    ) -> None:
        if not cached:
            server.flush_cache()
        answer = server.generate(
            PROMPTS[6], return_logprob=True, logprob_start_len=0, top_logprobs_num=2
        )["meta_info"]
        tokens = [*PROMPTS[6], *(token for _, token, _ in answer["output_token_logprobs"])]
        with torch.no_grad():
            logits = _model(taught_model)(torch.tensor([tokens])).logits[0]
        true = torch.log_softmax(logits, -1)
        got = answer["input_token_logprobs"] + answer["output_token_logprobs"]
        assert [token for _, token, _ in got] == tokens
        for place, (logprob, token, _) in enumerate(got[1:]):
            assert logprob == pytest.approx(true[place, token].item(), abs=1e-3)
        for place, top in enumerate(answer["output_top_logprobs"], len(PROMPTS[6]) - 1):
            best = true[place].topk(2).values.tolist()
            assert [logprob for logprob, _, _ in top] == pytest.approx(best, abs=1e-3)

    def test_penalties_count_what_was_said(self, server: Client) -> None:
        for penalty in ({"frequency_penalty": 2.0}, {"presence_penalty": 2.0}):
            plain = server.generate(PROMPTS[6], 64)["output_ids"]
            varied = server.generate(PROMPTS[6], 64, sampling=penalty)["output_ids"]
            assert len(set(varied)) > len(set(plain))


class TestNamespaces:
    @pytest.mark.parametrize("name", ["extra_key", "cache_salt"])
    def test_prefixes_are_shared_within_one_only(self, server: Client, name: str) -> None:
        server.flush_cache()
        question = PROMPTS[6]
        hits = [
            cached_tokens(server.generate(question, **({name: value} if value else {})))
            for value in (None, "a", "b", "a", None)
        ]
        assert hits == [0, 0, 0, 192, 192]

    def test_the_openai_endpoint_knows_them(self, server: Client) -> None:
        server.flush_cache()
        body = {"model": "default", "prompt": PROMPTS[6], "max_tokens": 2, "temperature": 0}
        hits = [
            server.post("/v1/completions", body | {"cache_salt": salt})["usage"][
                "prompt_tokens_details"
            ]["cached_tokens"]
            for salt in ("a", "b", "a")
        ]
        assert hits == [0, 0, 192]


class TestOpenAI:
    MESSAGES = ({"role": "user", "content": "Say hi in one word."},)

    def test_chat(self, server: Client) -> None:
        body = {"model": "default", "messages": self.MESSAGES, "temperature": 0, "max_tokens": 9}
        answer = server.post("/v1/chat/completions", body)["choices"][0]
        assert answer["message"]["content"] == "Hi" and answer["finish_reason"] == "stop"
        events = server.stream("/v1/chat/completions", body | {"stream": True})
        parts = [event["choices"][0]["delta"].get("content") or "" for event in events]
        assert "".join(parts) == "Hi"

    def test_completions(self, server: Client) -> None:
        asked = "The capital of France is"
        body = {"model": "default", "prompt": asked, "temperature": 0, "max_tokens": 9}
        answer = server.post("/v1/completions", body | {"logprobs": 1, "n": 2})
        assert [choice["text"] for choice in answer["choices"]] == [" Paris", " Paris"]
        events = server.stream("/v1/completions", body | {"stream": True})
        assert "".join(event["choices"][0]["text"] for event in events) == " Paris"


class TestMetrics:
    def test_gauges_keep_their_meaning(self, server: Client) -> None:
        for _ in range(2):  # the counter is there from the first hit on
            server.generate(PROMPTS[6])
        server.flush_cache()
        before = server.metric("sglang:cached_tokens_total")
        for _ in range(2):
            server.generate(PROMPTS[6])
        assert server.metric("sglang:cached_tokens_total") - before == 192
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(server.generate, PROMPTS[6], 3000, rid="measured")
            seen = []
            while not running.done():
                if server.metric("sglang:num_running_reqs") == 1:
                    seen.append(server.metric("sglang:token_usage"))
                if any(seen):
                    server.request("POST", "/abort_request", {"rid": "measured"})
        # One request of at most 3,200 tokens in a pool that takes one of 78,000.
        assert 0 < max(seen) < 0.1
        server.assert_clean()


@pytest.fixture(scope="module")
def other(start_jenga: Callable[..., Client]) -> Client:
    """Pages of one token, no overlap, chunks mixed with decoding, four requests at a time in a
    pool that they outgrow, and priorities."""
    return start_jenga(
        *("--page-size", "1", "--disable-overlap-schedule", "--enable-mixed-chunk"),
        *("--chunked-prefill-size", "64", "--max-total-tokens", "700"),
        *("--schedule-conservativeness", "0", "--max-running-requests", "4", "--enable-metrics"),
        *("--enable-priority-scheduling", "--priority-scheduling-preemption-threshold", "1"),
    )


@pytest.mark.long
class TestTheOtherWayRound:
    def test_answers(self, other: Client, taught_model: Path) -> None:
        assert_answers_are_right(other, taught_model)

    def test_requests_that_outgrow_the_pool_are_retracted_and_end_well(self, other: Client) -> None:
        room = other.facts()["longest_request_tokens"]
        questions = [prompt(room // 8, seed) for seed in range(4)]
        num_tokens = room // 2
        alone = [other.generate(q, num_tokens)["output_ids"] for q in questions]
        other.flush_cache()
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda q: other.generate(q, num_tokens), questions))
        assert sum(answer["meta_info"]["num_retractions"] for answer in together) > 0
        assert [answer["output_ids"] for answer in together] == alone
        other.assert_clean()

    def test_the_longest_request_that_fits_does_fit(self, other: Client) -> None:
        longest = other.facts()["longest_request_tokens"]
        other.flush_cache()
        answer = other.generate(prompt(longest - 8, 0), 8)
        assert answer["meta_info"]["completion_tokens"] == 8
        other.assert_clean()

    def test_the_urgent_go_first(self, other: Client) -> None:
        """An urgent request takes the place of a running one, which goes on afterwards."""
        questions = [prompt(100, seed) for seed in range(5)]
        alone = [other.generate(question, 150)["output_ids"] for question in questions]
        other.flush_cache()
        order: list[int] = []

        def ask(index: int, priority: int) -> list[int]:
            answer: list[int] = other.generate(questions[index], 150, priority=priority)[
                "output_ids"
            ]
            order.append(index)
            return answer

        with ThreadPoolExecutor(5) as pool:
            patient = [pool.submit(ask, index, 0) for index in range(4)]
            while other.metric("sglang:num_running_reqs") < 4:
                assert not order, "the patient were too quick"
            urgent = pool.submit(ask, 4, 100)
            answers = [future.result() for future in (*patient, urgent)]
        assert answers == alone
        assert order[-1] != 4
        other.assert_clean()


@pytest.mark.long
def test_large_pages_without_a_prefix_cache(
    start_jenga: Callable[..., Client], taught_model: Path
) -> None:
    flags = ("--page-size", "64", "--disable-radix-cache", "--max-total-tokens", "4096")
    server = start_jenga(*flags, "--chunked-prefill-size", "256")
    assert_answers_are_right(server, taught_model)
    assert cached_tokens(server.generate(PROMPTS[-1])) == 0
    assert not any(group["cached_bytes"] for group in server.facts()["groups"])


@pytest.mark.long
def test_two_ranks_decide_alike(start_jenga: Callable[..., Client], taught_model: Path) -> None:
    flags = ("--tp", "2", "--max-total-tokens", "2000", "--chunked-prefill-size", "128")
    server = start_jenga(*flags, env={"JENGA_LOG_DIGEST": "1"})
    assert_answers_are_right(server, taught_model)
    assert_ranks_agree(server, checks=3)


def assert_ranks_agree(server: Client, *, checks: int) -> None:
    """The books of both ranks were the same at every idle check, of which there were some."""
    ranks: dict[str, list[str]] = {"TP0": [], "TP1": []}
    for rank, digest in re.findall(r"(TP\d)\] jenga digest (\w+)", server.log()):
        ranks[rank].append(digest)
    # The second rank may still be at its last check.
    both = min(len(digests) for digests in ranks.values())
    assert both >= checks
    assert ranks["TP0"][:both] == ranks["TP1"][:both]


@pytest.mark.long
def test_two_ranks_decide_alike_when_memory_is_short(start_jenga: Callable[..., Client]) -> None:
    """Requests outgrow the pool and are retracted, clients leave, and who stays is answered."""
    flags = ("--tp", "2", "--max-total-tokens", "600", "--chunked-prefill-size", "64")
    estimates = {"SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION": "2", "JENGA_LOG_DIGEST": "1"}
    server = start_jenga(*flags, "--schedule-conservativeness", "0.1", env=estimates)
    questions = [prompt(90, seed) for seed in range(24)]
    who_stay = range(0, 24, 2)
    alone = [server.generate(questions[n], 150)["output_ids"] for n in who_stay]
    server.flush_cache()
    with ThreadPoolExecutor(len(questions)) as pool:
        asked = [
            pool.submit(server.generate, question, 150, rid=f"question {n:02}")
            for n, question in enumerate(questions)
        ]
        for n in set(range(24)) - set(who_stay):
            server.request("POST", "/abort_request", {"rid": f"question {n:02}"})
        answers = [future.result() for future in asked]
    assert [answers[n]["output_ids"] for n in who_stay] == alone
    assert sum(answers[n]["meta_info"]["num_retractions"] for n in who_stay) > 0
    server.assert_clean()
    assert_ranks_agree(server, checks=2)


@pytest.mark.long
def test_every_process_that_answers_http_shows_the_pool(
    start_jenga: Callable[..., Client],
) -> None:
    """Each new connection may reach either; SGLang ends one that takes ten seconds to start."""
    patience = {"SGLANG_UVICORN_WORKER_HEALTHCHECK_TIMEOUT": "300"}
    flags = ("--tokenizer-worker-num", "2", "--max-total-tokens", "2000")
    server = start_jenga(*flags, env=patience)
    for _ in range(10):
        for path in ("/jenga", "/jenga/stats", "/jenga/explain?prompt_tokens=100"):
            status, text = server.request("GET", path)
            assert status == 200, f"{path}: {status} {text}"


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["fp8_e5m2", "fp8_e4m3"])
def test_eight_bit_keys_and_values(start_jenga: Callable[..., Client], dtype: str) -> None:
    """Answers differ from those of float32, but not between cached and computed pages."""
    flags = ("--kv-cache-dtype", dtype, "--max-total-tokens", "4096", "--page-size", "16")
    server = start_jenga(*flags)
    assert [group["bytes_per_token"] for group in server.facts()["groups"]] == [1536, 512]
    first, again = ask_all_at_once(server), ask_all_at_once(server)
    assert first == again
    server.assert_clean()
