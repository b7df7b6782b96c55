"""SGLang's own test kits, against a Jenga server. README.md says what does not apply, and why.

The kits are SGLang's classes and functions, run as they are; what is set here are the sizes that
they leave to their host.
"""

import json
import random
import unittest
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from client import Client
from sglang.test import kl_test_utils
from sglang.test.kits import (
    abort_timeout_kit,
    anthropic_messages_kit,
    basic_api_contract_kit,
    basic_decode_correctness_kit,
    basic_scheduler_stress_kit,
    cache_hit_kit,
    ebnf_constrained_kit,
    json_constrained_kit,
    json_mode_kit,
    kl_divergence_kit,
    matched_stop_kit,
    pause_generation_kit,
    prefix_cache_branching_kit,
    radix_cache_server_kit,
    regex_constrained_kit,
    spec_server_kits,
    unified_radix_cache_kit,
)

PAGE_SIZE = 16
NUM_PROMPTS = 48  # what the kits that compare logprobs would fetch from a hub


def host(request: pytest.FixtureRequest, server: Client, model: Path) -> None:
    """Give a kit's class what it asks of its host."""
    request.cls.base_url = server.url
    request.cls.process = server.process
    request.cls.model = str(model)
    request.cls.flush_cache = server.flush_cache


@pytest.fixture(scope="class")
def on_server(request: pytest.FixtureRequest, server: Client, taught_model: Path) -> Iterator[None]:
    host(request, server, taught_model)
    yield
    server.assert_clean()


@pytest.fixture(scope="module")
def prompts(taught_model: Path) -> Iterator[list[list[int]]]:
    """Prompts of 100 to 600 random tokens, where the kits look before they download any."""
    rng = random.Random(0)
    lengths = [rng.randrange(100, 600) for _ in range(NUM_PROMPTS)]
    prompts = [[rng.randrange(4, 260) for _ in range(length)] for length in lengths]
    key = f"{taught_model}_{kl_test_utils.DEFAULT_PROMPT_TOKENS}_{NUM_PROMPTS}"
    kl_test_utils._cached_input_ids[key] = prompts
    yield prompts
    del kl_test_utils._cached_input_ids[key]


@pytest.mark.usefixtures("on_server")
class TestBasicAPIContract(basic_api_contract_kit.BasicAPIContractMixin, unittest.TestCase):
    pass


@pytest.mark.usefixtures("on_server")
class TestBasicDecodeCorrectness(
    basic_decode_correctness_kit.BasicDecodeCorrectnessMixin, unittest.TestCase
):
    pass


@pytest.mark.usefixtures("on_server")
class TestBasicSchedulerStress(
    basic_scheduler_stress_kit.BasicSchedulerStressMixin, unittest.TestCase
):
    # 36,000 tokens in chunks of 512.
    test_long_prompt = pytest.mark.long(
        basic_scheduler_stress_kit.BasicSchedulerStressMixin.test_long_prompt
    )


@pytest.mark.usefixtures("on_server")
class TestJSONConstrained(json_constrained_kit.JSONConstrainedMixin, unittest.TestCase):
    pass


@pytest.mark.usefixtures("on_server")
class TestJSONMode(json_mode_kit.JSONModeMixin, unittest.TestCase):
    def setUp(self) -> None:
        self.client = openai.OpenAI(base_url=f"{self.base_url}/v1", api_key="none")


@pytest.mark.usefixtures("on_server")
class TestAnthropicMessages(anthropic_messages_kit.AnthropicMessagesMixin, unittest.TestCase):
    api_key = "none"


@pytest.mark.usefixtures("on_server")
class TestRegexConstrained(regex_constrained_kit.RegexConstrainedMixin, unittest.TestCase):
    pass


@pytest.mark.usefixtures("on_server")
class TestEBNFConstrained(ebnf_constrained_kit.EBNFConstrainedMixin, unittest.TestCase):
    pass


@pytest.mark.usefixtures("on_server")
class TestMatchedStop(matched_stop_kit.MatchedStopMixin, unittest.TestCase):
    pass


@pytest.mark.usefixtures("on_server")
class TestAbortAll(abort_timeout_kit.AbortAllMixin, unittest.TestCase):
    pass


@pytest.mark.usefixtures("on_server")
class TestPauseResumeInPlace(pause_generation_kit.PauseResumeInPlaceMixin, unittest.TestCase):
    pause_num_requests = 8
    pause_duration = 1
    pause_ignore_eos = True


@pytest.mark.long
@pytest.mark.usefixtures("on_server")
class TestLogprobs(spec_server_kits.SpecLogprobKit, unittest.TestCase):
    logprob_match_delta = 1e-3


@pytest.mark.usefixtures("on_server", "prompts")
class TestKLDivergence(kl_divergence_kit.KLDivergenceMixin):
    kl_div_thres = 1e-6
    kl_div_max_samples = 8
    kl_div_prefill_max_new_tokens = 16
    kl_div_decode_max_new_tokens = 16


@pytest.mark.long
@pytest.mark.usefixtures("on_server")
class TestUnifiedRadixTree(unified_radix_cache_kit.UnifiedRadixTreeTestMixin, unittest.TestCase):
    kl_threshold = 1e-6
    max_new_tokens = 32
    test_gsm8k = None  # asks a model that can reason

    @pytest.fixture(autouse=True)
    def give_prompts(self, prompts: list[list[int]]) -> None:
        self.input_ids = [3 * prompt for prompt in prompts]

    @staticmethod
    def prefill_cache_assert(result: Any, prefix_len: int, label: str) -> None:
        assert result["meta_info"]["cached_tokens"] == prefix_len // PAGE_SIZE * PAGE_SIZE, label


def test_prefix_cache_branching(server: Client) -> None:
    """The kit's three requests. It expects the second to miss, as recurrent states do that were
    not kept at the branch; pages are there at once, so both later requests must hit."""
    kit = prefix_cache_branching_kit.PrefixCacheBranchingMixin
    host_of_kit = type("Host", (kit,), {"base_url": server.url})
    server.flush_cache()
    prefix = "hi" * 257
    cached = [
        host_of_kit.send_request_helper(prefix + PAGE_SIZE * 4 * suffix)["meta_info"][
            "cached_tokens"
        ]
        for suffix in ("this", "here", "that")
    ]
    shared = len(prefix) // PAGE_SIZE * PAGE_SIZE
    # "this" and "that" begin alike.
    assert cached == [0, shared, (len(prefix) + 2) // PAGE_SIZE * PAGE_SIZE]
    server.assert_clean()


def test_multiturn_cache_hit(server: Client, taught_model: Path, tmp_path: Path) -> None:
    """Every page of every earlier turn is hit. The texts are local: any will do."""
    talk = {"conversations": [{"value": "to be or not to be " * 20}, {"value": "that is it"}]}
    dataset = tmp_path / "talks.json"
    dataset.write_text(json.dumps([talk] * 64))
    cache_hit_kit.run_multiturn_cache_hit_test(
        server.url,
        str(taught_model),
        num_clients=4,
        num_rounds=3,
        request_length=200,
        output_length=24,
        dataset_path=str(dataset),
    )
    server.assert_clean()


@pytest.mark.parametrize(
    ("num_nodes", "chunk_length"), [(60, 64), pytest.param(400, 256, marks=pytest.mark.long)]
)
def test_radix_attention(
    server: Client, monkeypatch: pytest.MonkeyPatch, num_nodes: int, chunk_length: int
) -> None:
    """A forest of branching prompts at once; of the kit's own size in the long run."""
    forest = partial(radix_cache_server_kit.gen_radix_tree, num_nodes, chunk_length)
    monkeypatch.setattr(radix_cache_server_kit, "gen_radix_tree", forest)
    random.seed(0)
    radix_cache_server_kit.run_radix_attention_test(server.url)
    server.assert_clean()


# -- timeouts: the kits want a server each ---------------------------------------------------------


@pytest.fixture(scope="class")
def impatient_server(
    request: pytest.FixtureRequest, start_jenga: Callable[..., Client], taught_model: Path
) -> Iterator[None]:
    server = start_jenga("--max-total-tokens", "20000", *request.cls.flags, env=request.cls.env)
    host(request, server, taught_model)
    yield
    server.assert_clean()


@pytest.mark.long
@pytest.mark.usefixtures("impatient_server")
class TestWaitingTimeout(abort_timeout_kit.WaitingTimeoutMixin, unittest.TestCase):
    flags = ("--max-running-requests", "1")
    env = {"SGLANG_REQ_WAITING_TIMEOUT": "0.5"}  # noqa: RUF012


@pytest.mark.long
@pytest.mark.usefixtures("impatient_server")
class TestRunningTimeout(abort_timeout_kit.RunningTimeoutTwoWaveMixin, unittest.TestCase):
    flags = ("--max-running-requests", "16")
    env = {"SGLANG_REQ_RUNNING_TIMEOUT": "2"}  # noqa: RUF012
