"""Which drafts a start takes, and the line that the others get."""

from typing import Any

import pytest

from jenga_sglang import draft_flags, flags, versions


def refusal(**values: Any) -> str:
    with pytest.raises(SystemExit) as refused:
        flags.apply_flag({"memory_backend": "jenga", "device": "cpu", **values})
    line = str(refused.value)
    assert line.startswith("jenga-sglang: ") and "\n" not in line
    return line


@pytest.mark.parametrize("backend", ["jenga_torch", "triton", "flashinfer"])
@pytest.mark.parametrize("algorithm", ["NGRAM", "ngram", "STANDALONE", "EAGLE", "EAGLE3", "NEXTN"])
def test_chains_of_drafts(algorithm: str, backend: str) -> None:
    values: dict[str, Any] = {"memory_backend": "jenga", "device": "cpu"}
    values |= {"speculative_algorithm": algorithm, "attention_backend": backend}
    values |= {"speculative_ngram_max_bfs_breadth": 1}
    assert flags.apply_flag(values)
    assert values["speculative_algorithm"] == algorithm


def test_assistants_draft_in_plain_torch_alone() -> None:
    values: dict[str, Any] = {"memory_backend": "jenga", "device": "cpu"}
    values |= {"speculative_algorithm": "FROZEN_KV_MTP", "attention_backend": "jenga_torch"}
    assert flags.apply_flag(values)
    assert {field: values[field] for field in draft_flags.CHAIN} == draft_flags.CHAIN
    for backend in ("triton", "flashinfer"):
        line = refusal(speculative_algorithm="FROZEN_KV_MTP", attention_backend=backend)
        assert line.endswith("choose --attention-backend jenga_torch, or leave it out.")


@pytest.mark.parametrize("breadth", [None, 2, 10])
def test_kernels_verify_no_trees_of_n_grams(breadth: int | None) -> None:
    values: dict[str, Any] = {"speculative_algorithm": "NGRAM"}
    if breadth is not None:
        values["speculative_ngram_max_bfs_breadth"] = breadth
    for backend in ("triton", "flashinfer"):
        line = refusal(attention_backend=backend, **values)
        assert "--speculative-algorithm NGRAM" in line and f"{backend} does not verify" in line
        assert "add --speculative-ngram-max-bfs-breadth 1" in line
        assert "--attention-backend jenga_torch" in line
    assert flags.apply_flag({"memory_backend": "jenga", "device": "cpu", **values})


def test_every_other_algorithm_of_sglangs_is_refused() -> None:
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    names = {algorithm.name for algorithm in SpeculativeAlgorithm} - {"NONE"}
    served = {name for names in draft_flags.ALGORITHMS.values() for name in names}
    assert served - {"NEXTN"} < names
    for name in {*names - served, "SOMEBODYS_OWN"}:
        line = refusal(speculative_algorithm=name)
        assert f"--speculative-algorithm {name}" in line and "NGRAM, STANDALONE" in line


def test_page_tables_on_another_stream_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_ENABLE_OVERLAP_PLAN_STREAM", "1")
    line = refusal(speculative_algorithm="EAGLE")
    assert "SGLANG_ENABLE_OVERLAP_PLAN_STREAM=1" in line and "leave it out" in line
    without_model = {"speculative_algorithm": "NGRAM", "speculative_ngram_max_bfs_breadth": 1}
    assert flags.apply_flag({"memory_backend": "jenga", "device": "cpu", **without_model})


def test_a_draft_models_trees_are_refused() -> None:
    line = refusal(speculative_algorithm="EAGLE", speculative_eagle_topk=4)
    assert "--speculative-eagle-topk 4" in line and "choose 1" in line


@pytest.mark.parametrize("algorithm", ["STANDALONE", "EAGLE", "eagle3", "NEXTN"])
def test_a_draft_model_makes_chains_where_nothing_is_said(algorithm: str) -> None:
    """As SGLang has them for most models; for a Llama it would take trees."""
    from sglang.srt.arg_groups import speculative_hook
    from sglang.srt.server_args import ServerArgs

    values: dict[str, Any] = {"memory_backend": "jenga", "device": "cpu"}
    values["speculative_algorithm"] = algorithm
    assert flags.apply_flag(values)
    chain = tuple(values[field] for field in draft_flags.CHAIN)
    arguments = ServerArgs(model_path="m", device="cpu")
    chosen = speculative_hook._auto_choose_speculative_params
    assert chain == chosen(arguments, "Qwen3NextForCausalLM") == (3, 1, 4)
    assert chosen(arguments, "LlamaForCausalLM")[1] > 1


def test_what_a_user_says_of_drafts_stands() -> None:
    values: dict[str, Any] = {"memory_backend": "jenga", "device": "cpu"}
    values |= {"speculative_algorithm": "EAGLE", "speculative_num_steps": 5}
    assert flags.apply_flag(values)
    assert values["speculative_num_steps"] == 5 and "speculative_num_draft_tokens" not in values
    values = {"memory_backend": "jenga", "device": "cpu", "speculative_algorithm": "NGRAM"}
    assert flags.apply_flag({**values, "speculative_ngram_max_bfs_breadth": 1})
    assert not values.keys() & draft_flags.CHAIN.keys()


@pytest.mark.parametrize(
    "field",
    ["enable_dp_attention", "enable_hierarchical_cache", "enable_linear_replayssm_spec"],
)
def test_what_drafts_do_not_go_with_yet_is_refused(field: str) -> None:
    line = refusal(speculative_algorithm="EAGLE", **{field: True})
    assert "--speculative-algorithm EAGLE" in line
    assert f"--{field.replace('_', '-')} yet" in line


def test_an_sglang_without_these_workers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed_sglang", lambda: "0.5.22")
    line = refusal(speculative_algorithm="NGRAM")
    assert "needs SGLang >=0.5.23" in line and "this is 0.5.22" in line
