"""Every config in `tests/configs` gives the groups that its model has."""

import pytest
from plan_configs import MIB, NAMES, load

# (group, layers, bytes of one token's row or of one state's parts in one layer)
GROUPS = {
    "command-r7b": [("window 4096", 24, 4096), ("full", 8, 4096)],
    "deepseek-v3": [("full", 61, 1152)],
    "exaone-4-32b": [("window 4096", 48, 4096), ("full", 16, 4096)],
    "falcon-h1-7b": [("full", 44, 1024), ("state", 44, (21504, 3 * MIB))],
    "gemma-2-27b": [("window 4096", 23, 8192), ("full", 23, 8192)],
    "gemma-3-27b": [("window 1024", 52, 8192), ("full", 10, 8192)],
    "gemma-3-4b": [("window 1024", 29, 4096), ("full", 5, 4096)],
    "gemma-3n-e4b": [("window 512", 16, 2048), ("full", 4, 2048)],
    "gemma-4-31b": [("window 1024", 50, 16384), ("full", 10, 8192)],
    "gemma-4-e4b": [("window 512", 20, 2048), ("full", 4, 4096)],
    "glm-4.5-air": [("full", 46, 4096)],
    "glm-4.7-flash": [("full", 47, 1152)],
    "gpt-oss-120b": [("window 128", 18, 2048), ("full", 18, 2048)],
    "gpt-oss-20b": [("window 128", 12, 2048), ("full", 12, 2048)],
    "jamba-1.5-mini": [("state", 28, (49152, 524288)), ("full", 4, 4096)],
    "kimi-linear-48b": [("state", 20, (73728, 2 * MIB)), ("full", 7, 1152)],
    "lfm2-1.2b": [("state", 10, (8192,)), ("full", 6, 2048)],
    "llama-3.1-8b": [("full", 32, 4096)],
    "llama-3.2-11b-vision": [("after 6404", 32, 4096), ("first 6404", 8, 4096)],
    "llama-4-scout": [("chunk 8192", 36, 4096), ("full", 12, 4096)],
    "mimo-v2-flash": [("full", 9, 2560), ("window 128", 39, 5120)],
    "minimax-m2": [("full", 62, 4096)],
    "ministral-8b": [("full", 36, 4096)],
    "mistral-7b-v0.1": [("full", 32, 4096)],
    "mixtral-8x7b": [("full", 32, 4096)],
    "nemotron-h-8b": [("state", 24, (61440, 4 * MIB)), ("full", 4, 4096)],
    "nemotron-nano-9b-v2": [("state", 27, (73728, 5 * MIB)), ("full", 4, 4096)],
    "olmo-3-7b": [("window 4096", 24, 16384), ("full", 8, 16384)],
    "phi-3-mini-4k": [("full", 32, 12288)],
    "phi-4-mini": [("full", 32, 4096)],
    "qwen3-30b-a3b": [("full", 48, 2048)],
    "qwen3-next-80b": [("state", 36, (49152, 2 * MIB)), ("full", 12, 2048)],
    "qwen3.5-27b": [("state", 48, (61440, 3 * MIB)), ("full", 16, 4096)],
    "qwen3.5-35b-a3b": [("state", 30, (49152, 2 * MIB)), ("full", 10, 2048)],
    "seed-oss-36b": [("full", 64, 4096)],
    "smollm3-3b": [("full", 36, 2048)],
    "step-3.5-flash": [("full", 12, 4096), ("window 512", 33, 4096)],
}

# What the config declares where SGLang's class ignores it.
CONFIG_WINDOWS = {
    "ministral-8b": [("full", 9, 4096), ("window 32768", 27, 4096)],
    "mistral-7b-v0.1": [("window 4096", 32, 4096)],
    "phi-3-mini-4k": [("window 2047", 32, 12288)],
    "phi-4-mini": [("full", 32, 4096)],  # its window is longer than the model
}


def shown(name: str, **options: object) -> list[tuple[str, int, object]]:
    specs = load(name, **options).specs
    return [(s.name, len(s.layers), s.state_bytes or s.row_bytes) for s in specs]


def test_every_config_has_an_expectation() -> None:
    assert set(GROUPS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_groups_are_those_of_the_model(name: str) -> None:
    assert shown(name) == GROUPS[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_config_s_window_differs_only_where_the_class_ignores_it(name: str) -> None:
    assert shown(name, window="config") == CONFIG_WINDOWS.get(name, GROUPS[name])


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_is_in_one_group_of_rows_or_shares(name: str) -> None:
    model = load(name)
    rows = [i for s in model.specs if not s.is_state for i in s.layers]
    sharing = [layer.index for layer in model.layers if layer.shares]
    kept = [layer.index for layer in model.layers if not layer.state_bytes]
    assert sorted(rows + sharing) == kept


def test_sharing_layers_are_the_last_ones() -> None:
    assert [x.index for x in load("gemma-3n-e4b").layers if x.shares] == list(range(20, 35))
    assert [x.index for x in load("gemma-4-e4b").layers if x.shares] == list(range(24, 42))


def test_the_parts_of_a_k_and_a_v_row_may_differ() -> None:
    full, window = load("mimo-v2-flash").specs
    assert (full.k_bytes, full.v_bytes) == (4 * 192 * 2, 4 * 128 * 2)
    assert (window.k_bytes, window.v_bytes) == (8 * 192 * 2, 8 * 128 * 2)


def test_a_latent_row_has_no_v_and_is_whole_on_every_rank() -> None:
    for tp in (1, 8):
        (latent,) = load("deepseek-v3", tp=tp).specs
        assert (latent.k_bytes, latent.v_bytes) == ((512 + 64) * 2, 0)


@pytest.mark.parametrize(("tp", "row_bytes"), [(1, 4096), (2, 2048), (8, 512), (16, 512)])
def test_ranks_split_the_heads_until_they_copy_them(tp: int, row_bytes: int) -> None:
    assert load("llama-3.1-8b", tp=tp).specs[0].row_bytes == row_bytes


@pytest.mark.parametrize(("dtype", "row_bytes"), [("fp8_e4m3", 2048), ("float32", 8192)])
def test_the_kv_dtype_scales_rows_and_leaves_states(dtype: str, row_bytes: int) -> None:
    assert load("llama-3.1-8b", kv_dtype=dtype).specs[0].row_bytes == row_bytes
    assert load("qwen3.5-27b", kv_dtype=dtype).specs[0].state_bytes == (61440, 3 * MIB)


def test_the_state_dtype_scales_the_temporal_part_only() -> None:
    assert load("qwen3.5-27b", state_dtype="bfloat16").specs[0].state_bytes == (61440, 3 * MIB // 2)


def test_ranks_split_states() -> None:
    assert load("qwen3.5-27b", tp=4).specs[0].state_bytes == (61440 // 4, 3 * MIB // 4)
    assert load("kimi-linear-48b", tp=4).specs[0].state_bytes == (73728 // 4, 2 * MIB // 4)
    # One group of B and C (256 wide) is copied to every rank: 3072 / 2 + 2 * 256 channels.
    assert load("falcon-h1-7b", tp=2).specs[1].state_bytes == ((1536 + 512) * 3 * 2, 3 * MIB // 2)
