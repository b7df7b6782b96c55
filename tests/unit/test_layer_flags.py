"""`--jenga-kv-dtype` and `--jenga-keep`: what they may say, and which layers they are about."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from backend_bench import Model

from jenga_sglang import flags, settings
from jenga_sglang.adapter.discovery import DiscoveredGroup, discover_groups
from jenga_sglang.core.dependency import Full, SlidingWindow
from jenga_sglang.layer_flags import Keep, KvDtypes
from jenga_sglang.plan.model import ReadOptions, model_from_config

MAX_LENGTH = 256
MODEL = Model(("window 9", "full", "window 9", "full", "full"))
CONFIG = {
    "architectures": ["Gemma3ForCausalLM"],
    "num_hidden_layers": 5,
    "layer_types": [f"{kind}_attention" for kind in ("sliding", "full", "sliding", "full", "full")],
    "sliding_window": 9,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "torch_dtype": "float32",
    "max_position_embeddings": MAX_LENGTH,
}


def discovered(dtypes: str = "", keep: str = "") -> list[DiscoveredGroup]:
    return discover_groups(
        MODEL.modules(),
        store_dtype=torch.float32,
        max_length=MAX_LENGTH,
        kv_dtypes=KvDtypes.parse(dtypes),
        keep=Keep.parse(keep),
    )


def said(call: Callable[[], Any]) -> str:
    """The one line with which ``call`` ends."""
    with pytest.raises(SystemExit) as caught:
        call()
    line = str(caught.value.code)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("dtypes", "keep", "groups"),
    [
        ("", "", {"window 9": (0, 2), "full": (1, 3, 4)}),
        ("full=fp8_e5m2", "", {"window 9": (0, 2), "full float8_e5m2": (1, 3, 4)}),
        ("full=float32,window=bfloat16", "", {"window 9 bfloat16": (0, 2), "full": (1, 3, 4)}),
        ("", "4+32", {"window 9": (0, 2), "window 32 + 4 sink": (1, 3, 4)}),
        # Without first tokens and as long as others, it is one of them.
        ("", "0+9", {"window 9": (0, 1, 2, 3, 4)}),
        # The last that names a layer counts; a window that never slides is full attention.
        (
            "",
            "4+32,3-4=4+16,4=0+300",
            {
                "window 9": (0, 2),
                "window 32 + 4 sink": (1,),
                "window 16 + 4 sink": (3,),
                "full": (4,),
            },
        ),
        (
            "window=fp8_e4m3",
            "3=0+9",
            {"window 9 float8_e4m3fn": (0, 2, 3), "full": (1, 4)},
        ),
    ],
)
def test_a_server_and_its_plan_group_layers_alike(
    dtypes: str, keep: str, groups: dict[str, tuple[int, ...]]
) -> None:
    found = [group.spec for group in discovered(dtypes, keep)]
    assert {spec.name: spec.layers for spec in found} == groups
    options = ReadOptions(kv_dtypes=KvDtypes.parse(dtypes), keep=Keep.parse(keep))
    planned = model_from_config(CONFIG, "", options).specs
    # Names of dtypes are torch's there and the command line's here.
    assert [(s.layers, s.dependency, s.row_bytes) for s in planned] == [
        (s.layers, s.dependency, s.row_bytes) for s in found
    ]


def test_rows_have_the_bytes_of_their_dtype() -> None:
    row = 2 * (16 + 16)
    by_name = {g.spec.name: g for g in discovered("full=fp8_e4m3")}
    assert by_name["full float8_e4m3fn"].spec.row_bytes == row
    assert by_name["full float8_e4m3fn"].dtype == torch.float8_e4m3fn
    assert by_name["window 9"].spec.row_bytes == 4 * row


@pytest.mark.parametrize(
    ("dtypes", "keep", "why"),
    [
        ("chunk=fp8_e4m3", "", "it has window, full"),
        ("full=fp8_e4m3", "4+16", "it has window"),
        ("", "0=4+16", "layer 0 has window 9; name layers among 1, 3-4"),
        ("", "3-9=4+16", "layer 5 has no K and V"),
    ],
)
def test_layers_that_are_not_there_are_refused(dtypes: str, keep: str, why: str) -> None:
    line = said(lambda: discovered(dtypes, keep))
    assert why in line and ("--jenga-kv-dtype" in line or "--jenga-keep" in line)


@pytest.mark.parametrize(
    ("field", "text", "why"),
    [
        ("kv_dtype", "full", "full is not KIND=DTYPE"),
        ("kv_dtype", "full=fp8", "fp8_e4m3"),
        ("kv_dtype", "window 9=fp8_e4m3", "full, window, chunk, cross"),
        ("keep", "1024", "write 4+1024"),
        ("keep", "4+0", "write 4+1024"),
        ("keep", "5-3=4+16", "write the lower layer first"),
    ],
)
def test_what_means_nothing_is_refused_before_anything_is_loaded(
    field: str, text: str, why: str
) -> None:
    flag = f"--jenga-{field.replace('_', '-')} {text}"
    values = {"memory_backend": "jenga", f"jenga_{field}": text}
    line = said(lambda: flags.apply_flag(values))
    assert flag in line and why in line
    line = said(lambda: flags.apply_flag({f"jenga_{field}": text}))
    assert flag in line and "needs --memory-backend jenga" in line


def test_both_reach_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in ("window", "kv_dtype", "keep"):
        monkeypatch.setenv(settings.name_of(setting), "")
    values = {
        "memory_backend": "jenga",
        "jenga_kv_dtype": "full=fp8_e4m3",
        "jenga_keep": "4+64",
    }
    assert flags.apply_flag(values)
    assert not {"jenga_kv_dtype", "jenga_keep"} & values.keys()
    assert settings.current().kv_dtype.of(Full()) == "fp8_e4m3"
    assert settings.current().keep.of(0, Full()) == SlidingWindow(64, sink_tokens=4)
    # The next server of the same process asks for nothing.
    assert flags.apply_flag({"memory_backend": "jenga"})
    assert settings.current().kv_dtype == KvDtypes() and settings.current().keep == Keep()
