"""Which drafts `--speculative-algorithm` may name, by attention backend."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from jenga_sglang import versions
from jenga_sglang.refusal import refuse

FLAG = "--speculative-algorithm"
# Names as SGLang's parser takes them, in upper case. NEXTN is another name for EAGLE, and both for
# FROZEN_KV_MTP where the draft model is an assistant that reads what its target keeps.
WITHOUT_MODEL = ("NGRAM",)
OWN_LAYERS = ("STANDALONE", "EAGLE", "EAGLE3", "NEXTN")
WITH_MODEL = (*OWN_LAYERS, "FROZEN_KV_MTP")
ALGORITHMS: Mapping[str, tuple[str, ...]] = {
    "jenga_torch": (*WITHOUT_MODEL, *WITH_MODEL),
    "triton": (*WITHOUT_MODEL, *OWN_LAYERS),
    "flashinfer": (*WITHOUT_MODEL, *OWN_LAYERS),
}
# What SGLang takes for most models where nothing is said; for a Llama it would take trees.
CHAIN = {
    "speculative_num_steps": 3,
    "speculative_eagle_topk": 1,
    "speculative_num_draft_tokens": 4,
}
CHAINS_ONLY = ("triton", "flashinfer")
# By field of SGLang's ServerArgs.
_NOT_BESIDE = {
    "enable_dp_attention": "--enable-dp-attention",
    "enable_hierarchical_cache": "--enable-hierarchical-cache",
    # Changes SGLang's own pool of recurrent states, which is not built.
    "enable_linear_replayssm_spec": "--enable-linear-replayssm-spec",
}


def check(values: Mapping[str, Any], attention_backend: str) -> None:
    """Raise ``SystemExit`` with one line for drafts that this backend does not serve. ``values``
    are fields of SGLang's ``ServerArgs``."""
    asked = values.get("speculative_algorithm")
    if asked is None:
        return
    algorithm = str(asked).upper()
    if not versions.can_draft(installed := versions.installed_sglang()):
        needed = f"SGLang {versions.DRAFTING_SGLANG} with --memory-backend jenga"
        raise refuse(f"{FLAG} {asked}", f"needs {needed}, and this is {installed}")
    if algorithm not in ALGORITHMS.get(attention_backend, ()):
        raise refuse(
            f"{FLAG} {asked}",
            f"does not work with --memory-backend jenga and --attention-backend "
            f"{attention_backend} yet; {_instead(algorithm)}",
        )
    for field, flag in _NOT_BESIDE.items():
        if values.get(field):
            raise refuse(
                f"{FLAG} {asked}",
                f"does not work with --memory-backend jenga and {flag} yet; leave one of them out",
            )
    topk = values.get("speculative_eagle_topk")
    if algorithm in WITH_MODEL and topk not in (None, 1):
        raise refuse(
            f"--speculative-eagle-topk {topk}",
            "makes trees of drafts; with --memory-backend jenga choose 1, a chain",
        )
    if algorithm in WITH_MODEL and _plans_on_another_stream():
        raise refuse(
            "SGLANG_ENABLE_OVERLAP_PLAN_STREAM=1",
            "builds page tables on a stream of its own, which has not been tried with "
            f"--memory-backend jenga and {FLAG} {asked}; leave it out",
        )
    breadth = values.get("speculative_ngram_max_bfs_breadth")
    if algorithm == "NGRAM" and attention_backend in CHAINS_ONLY and breadth != 1:
        raise refuse(
            f"{FLAG} {asked}",
            f"makes trees of drafts, which --attention-backend {attention_backend} does not verify "
            "with --memory-backend jenga yet; add --speculative-ngram-max-bfs-breadth 1, or choose "
            "--attention-backend jenga_torch",
        )


def fill_in(values: MutableMapping[str, Any]) -> None:
    """Where nothing is said of the drafts that a model makes, they are `CHAIN`."""
    algorithm = str(values.get("speculative_algorithm")).upper()
    if algorithm in WITH_MODEL and all(values.get(field) is None for field in CHAIN):
        values.update(CHAIN)


def _plans_on_another_stream() -> bool:
    from sglang.srt.environ import envs

    return bool(envs.SGLANG_ENABLE_OVERLAP_PLAN_STREAM.get())


def _instead(algorithm: str) -> str:
    backends = [name for name, served in ALGORITHMS.items() if algorithm in served]
    if backends:
        return f"choose --attention-backend {' or '.join(backends)}, or leave it out"
    served = sorted({name for names in ALGORITHMS.values() for name in names})
    return f"choose one of {', '.join(served)}, or leave it out"
