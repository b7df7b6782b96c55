"""Two replicas of each memory behind the router, under each policy, on the same conversations."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.capacity.models import make_gemma_shaped
from benchmarks.capacity.servers import Server, free_port, start
from benchmarks.router.trace import Conversations

POLICIES = ("round_robin", "cache_aware")
MEMORIES = {"stock": [], "jenga": ["--memory-backend=jenga"]}
REPLICAS = 2
AT_ONCE = 4
ANSWER_TOKENS = 8
WINDOW_TOKENS = 32
POOL_TOKENS = 4_096  # of each server's stock pool; Jenga gets its bytes
FLAGS = [
    "--dtype=float32",
    "--page-size=16",
    "--chunked-prefill-size=256",
    "--max-running-requests=16",
    "--context-length=4096",
    f"--max-total-tokens={POOL_TOKENS}",
    "--random-seed=0",
    "--sleep-on-idle",
]


def compare(conversations: Conversations, repeats: int) -> dict[str, Any]:
    """Run it all; returns what was run and every outcome, ready for JSON."""
    if find_spec("sglang_router") is None:
        raise SystemExit("The router is a package of its own: pip install sglang-router==0.3.2")
    with tempfile.TemporaryDirectory() as folder:
        model = make_gemma_shaped(Path(folder) / "model", window=WINDOW_TOKENS)
        runs = [run for name in MEMORIES for run in _of_memory(name, model, conversations, repeats)]
    return {
        "sglang": version("sglang"),
        "sglang-router": version("sglang-router"),
        "torch": version("torch"),
        "flags": FLAGS,
        "window_tokens": WINDOW_TOKENS,
        "conversations": asdict(conversations),
        "repeats": repeats,
        "runs": runs,
    }


def _of_memory(
    name: str, model: Path, conversations: Conversations, repeats: int
) -> Iterator[dict[str, Any]]:
    flags = [f"--model-path={model}", *FLAGS, *MEMORIES[name]]
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(start(f"{name} {n}", flags, model / f"{name}{n}.log"))
            for n in range(REPLICAS)
        ]
        for repeat in range(repeats):
            for policy in POLICIES:
                for server in servers:
                    server.post("/flush_cache?timeout=60")
                with router(policy, servers, model / "router.log") as front:
                    outcome = play(front, conversations.rounds(seed=repeat))
                yield {"memory": name, "policy": policy, "repeat": repeat} | outcome


def play(front: Server, rounds: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Send every round, a few prompts at once; what came of all of them."""
    asked: Counter[str] = Counter()

    def ask(prompt: str) -> None:
        sampling = {"max_new_tokens": ANSWER_TOKENS, "temperature": 0, "ignore_eos": True}
        answer = front.post("/generate", {"text": prompt, "sampling_params": sampling})
        meta = answer["meta_info"]
        asked.update(prompt_tokens=meta["prompt_tokens"], hit_tokens=meta["cached_tokens"])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for prompts in rounds:
            list(pool.map(ask, prompts))
    return {**asked, "hit_rate": asked["hit_tokens"] / asked["prompt_tokens"]}


def router(
    policy: str, servers: Sequence[Server], log: Path
) -> contextlib.AbstractContextManager[Server]:
    """The router in front of ``servers``, as a server that has them to send to."""
    flags = ["--policy", policy, "--host", "127.0.0.1", "--prometheus-port", str(free_port())]
    flags += ["--worker-urls", *[f"http://127.0.0.1:{server.port}" for server in servers]]
    return start(policy, flags, log, "sglang_router.launch_router", "/readiness")
