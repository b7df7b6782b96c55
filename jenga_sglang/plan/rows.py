"""Bytes of one token's K and V row in one layer on one rank."""

from __future__ import annotations

from typing import NamedTuple

from jenga_sglang.plan.fields import Fields
from jenga_sglang.plan.kinds import Kind


class Row(NamedTuple):
    """Bytes of K and of V; a latent row (MLA) is all K."""

    k_bytes: int
    v_bytes: int


# What a config class sets for its full layers, where the file lists layers one by one instead.
_OF_FULL_LAYERS = ("global_head_dim", "num_global_key_value_heads")


def of_layer(config: Fields, index: int) -> Fields:
    """The config as it is for one layer: Transformers lists what differs from the rest in
    ``per_layer_config``, by the layer's number."""
    if not config.has("per_layer_config"):
        return config
    own = config.section("per_layer_config").section(str(index))
    defaults = {k: v for k, v in config.defaults.items() if k not in _OF_FULL_LAYERS}
    return Fields({**config.values, **own.values}, config.path, defaults)


def read_row(config: Fields, kind: Kind, tp: int, item_bytes: int) -> Row:
    """The row of a layer of ``kind``; window layers may have a shape of their own."""
    if config.has("kv_lora_rank"):
        latent = config.integer("kv_lora_rank") + config.integer("qk_rope_head_dim")
        return Row(latent * item_bytes, 0)  # every rank holds all of it
    heads = _per_rank(config, *_kv_heads(config, kind), tp)
    k_dim, v_dim = _head_dims(config, kind)
    return Row(heads * k_dim * item_bytes, heads * v_dim * item_bytes)


def _kv_heads(config: Fields, kind: Kind) -> tuple[str, int]:
    """The field that says it, and how many KV heads the layer has over all ranks."""
    other = config.section("attention_other_setting")
    if kind is Kind.WINDOW and other.has("num_attention_groups"):
        return "attention_other_setting", other.integer("num_attention_groups")
    own = "swa_num_key_value_heads" if kind is Kind.WINDOW else "num_global_key_value_heads"
    name = next((name for name in (own, *_KV_HEADS) if config.has(name)), _KV_HEADS[0])
    return name, config.integer(name)


_KV_HEADS = ("num_key_value_heads", "num_attention_groups", "num_attention_heads")


def _head_dims(config: Fields, kind: Kind) -> tuple[int, int]:
    prefix = "swa_" if kind is Kind.WINDOW and config.has("swa_head_dim") else ""
    if kind is not Kind.WINDOW and config.has("global_head_dim"):
        both = config.integer("global_head_dim")
        return both, both
    k_dim = config.optional_integer(f"{prefix}head_dim", "attention_head_dim")
    if k_dim is None:
        hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
        if hidden % heads:
            raise config.error(
                "head_dim", f"a value, as {heads} heads do not divide {hidden}", None
            )
        k_dim = hidden // heads
    return k_dim, config.optional_integer(f"{prefix}v_head_dim") or k_dim


def _per_rank(config: Fields, name: str, heads: int, tp: int) -> int:
    """Heads on one rank: shared out, or copied when there are fewer heads than ranks."""
    if heads % tp and tp % heads:
        raise config.error(name, f"heads that {tp} ranks can split or copy", heads)
    return max(1, heads // tp)
