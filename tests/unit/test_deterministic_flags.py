"""Which starts with `--enable-deterministic-inference` go on."""

from pathlib import Path
from typing import Any

import pytest
import torch

from jenga_sglang import deterministic_flags, flags

DOCS = Path(__file__).parents[2] / "docs" / "deterministic.md"
ASKED = {"memory_backend": "jenga", "enable_deterministic_inference": True, "device": "cpu"}


@pytest.mark.parametrize("backend", [None, *deterministic_flags.BACKENDS])
def test_backends_that_can_start(backend: str | None) -> None:
    values: dict[str, Any] = ASKED | {"attention_backend": backend, "tp_size": 2}
    assert flags.apply_flag(values)
    assert values["attention_backend"] == (backend or "jenga_torch")


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"attention_backend": "fa3"},
            "--attention-backend fa3 yet, which takes one piece a history",
        ),
        ({"attention_backend": "flashinfer"}, "which takes pieces of fixed sizes in our plans"),
        (
            {"speculative_algorithm": "NGRAM"},
            "NGRAM with --enable-deterministic-inference: has not",
        ),
        ({"enable_lora": True}, "--enable-lora with --enable-deterministic-inference: has not"),
        ({"tp_size": 4}, "more than 2 ranks sum in an order that changes with the batch"),
    ],
)
def test_others_are_refused_in_one_line(values: dict[str, Any], line: str) -> None:
    with pytest.raises(SystemExit) as refused:
        flags.apply_flag(ASKED | values)
    (only,) = str(refused.value).splitlines()
    assert line in only


def test_plain_torch_is_for_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    values = {"attention_backend": "jenga_torch", "device": "cuda"}
    with pytest.raises(SystemExit, match=r"which takes a device to compare .* choose triton"):
        flags.apply_flag(ASKED | values)


def test_on_a_gpu_triton_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags, "default_attention_backend", lambda device: "flashinfer")
    values = ASKED | {"device": "cuda"}
    assert flags.apply_flag(values)
    assert values["attention_backend"] == "triton"


def test_the_documentation_has_the_codes_table() -> None:
    head = "| attention backend | works | what it would take |\n|---|---|---|\n"
    table = DOCS.read_text().split(head)[1].split("\n\n")[0]
    assert table.splitlines() == deterministic_flags.table()
    for flag, _ in deterministic_flags.UNTRIED.values():
        assert f"`{flag}`" in DOCS.read_text()
