"""Bytes of one layer's recurrent state on one rank, per part: convolution, then temporal.

The shapes are those of SGLang's state pools (``configs/mamba_utils.py``): the convolution keeps
``kernel - 1`` inputs of every channel, in bfloat16 whatever the model's dtype; the temporal state
is float32 unless the config (``mamba_ssm_dtype``) or the user says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

from jenga_sglang.plan.fields import ConfigError, Fields

CONV_ITEM_BYTES = 2
DTYPE_BYTES = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
}


def read_state_bytes(config: Fields, tp: int, state_dtype: str | None) -> tuple[int, ...]:
    """Bytes of every part of one layer's state, empty parts left out."""
    dtype = str(state_dtype or config.get("mamba_ssm_dtype") or "float32")
    if dtype not in DTYPE_BYTES:
        raise config.error("mamba_ssm_dtype", f"one of {', '.join(DTYPE_BYTES)}", dtype)
    read = next((read for name, read in _READERS if config.has(name)), None)
    if read is None:
        known = ", ".join(name for name, _ in _READERS)
        raise ConfigError(
            f"layers with a state, but none of the fields that say its size ({config.path}: "
            f"{known}): this cannot plan them"
        )
    conv_items, temporal_items = read(config, tp)
    parts = (conv_items * CONV_ITEM_BYTES, temporal_items * DTYPE_BYTES[dtype])
    return tuple(part for part in parts if part)


def _split(config: Fields, name: str, number: int, tp: int) -> int:
    """``number`` items of field ``name`` shared out over ``tp`` ranks."""
    if number % tp:
        raise config.error(name, f"a size that {tp} ranks can split", number)
    return number // tp


def _gated_delta_net(config: Fields, tp: int) -> tuple[int, int]:
    value_heads = config.integer("linear_num_value_heads")
    key_heads = config.integer("linear_num_key_heads")
    key_dim = config.integer("linear_key_head_dim")
    value_dim = config.integer("linear_value_head_dim")
    heads = _split(config, "linear_num_value_heads", value_heads, tp)
    channels = value_heads * value_dim + 2 * _groups(key_heads, tp) * key_dim
    conv = _split(config, "linear_num_value_heads", channels, tp)
    kernel = config.integer("linear_conv_kernel_dim")
    return conv * (kernel - 1), heads * value_dim * key_dim


def _kimi_delta(config: Fields, tp: int) -> tuple[int, int]:
    linear = config.section("linear_attn_config")
    head_dim = linear.integer("head_dim")
    heads = _split(linear, "num_heads", linear.integer("num_heads"), tp)
    kernel = linear.integer("short_conv_kernel_size")
    return 3 * heads * head_dim * (kernel - 1), heads * head_dim * head_dim


def _mamba2_nemotron(config: Fields, tp: int) -> tuple[int, int]:
    return _mamba2(
        config,
        tp,
        "mamba_num_heads",
        head_dim=config.integer("mamba_head_dim"),
        groups=config.integer("n_groups", "mamba_n_groups"),
        state=config.integer("ssm_state_size"),
        kernel=config.integer("conv_kernel", "mamba_d_conv"),
    )


def _mamba2_falcon(config: Fields, tp: int) -> tuple[int, int]:
    inner = config.optional_integer("mamba_d_ssm")
    if inner is None:
        inner = config.integer("mamba_expand") * config.integer("hidden_size")
    num_heads = config.integer("mamba_n_heads")
    if inner % num_heads:
        raise config.error("mamba_n_heads", f"a divisor of {inner}", num_heads)
    return _mamba2(
        config,
        tp,
        "mamba_n_heads",
        head_dim=inner // num_heads,
        groups=config.integer("mamba_n_groups"),
        state=config.integer("mamba_d_state"),
        kernel=config.integer("mamba_d_conv"),
    )


def _mamba2(
    config: Fields,
    tp: int,
    heads_field: str,
    *,
    head_dim: int,
    groups: int,
    state: int,
    kernel: int,
) -> tuple[int, int]:
    num_heads = config.integer(heads_field)
    channels = num_heads * head_dim + 2 * _groups(groups, tp) * state
    heads = _split(config, heads_field, num_heads, tp)
    return channels // tp * (kernel - 1), heads * head_dim * state


def _mamba1(config: Fields, tp: int) -> tuple[int, int]:
    inner = config.integer("mamba_expand") * config.integer("hidden_size")
    channels = _split(config, "mamba_expand", inner, tp)
    kernel = config.integer("mamba_d_conv")
    return channels * (kernel - 1), channels * config.integer("mamba_d_state")


def _short_conv(config: Fields, tp: int) -> tuple[int, int]:
    hidden = _split(config, "hidden_size", config.integer("hidden_size"), tp)
    return hidden * (config.integer("conv_L_cache") - 1), 0


def _groups(groups: int, tp: int) -> int:
    """Groups of B and C over all ranks: one each, copied, where they do not split evenly."""
    return groups if groups % tp == 0 else tp


_READERS: tuple[tuple[str, Callable[[Fields, int], tuple[int, int]]], ...] = (
    ("linear_attn_config", _kimi_delta),
    ("linear_num_value_heads", _gated_delta_net),
    ("mamba_num_heads", _mamba2_nemotron),
    ("mamba_n_heads", _mamba2_falcon),
    ("mamba_d_state", _mamba1),
    ("conv_L_cache", _short_conv),
)
