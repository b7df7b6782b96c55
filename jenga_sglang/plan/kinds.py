"""What each layer of a model remembers, read from whichever field its config says it in."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from jenga_sglang.plan.fields import Fields
from jenga_sglang.plan.unread import refuse_unread


class Kind(Enum):
    """What a layer keeps of the past."""

    FULL = "full attention"
    WINDOW = "sliding window"
    CHUNK = "chunked local attention"
    STATE = "recurrent state"
    FULL_AND_STATE = "full attention and recurrent state"
    CROSS = "cross-attention"
    NONE = "nothing"

    @property
    def is_attention(self) -> bool:
        return self not in (Kind.STATE, Kind.NONE)

    @property
    def has_state(self) -> bool:
        return self in (Kind.STATE, Kind.FULL_AND_STATE)


_LAYER_TYPES = {
    "full_attention": Kind.FULL,
    "attention": Kind.FULL,
    "sliding_attention": Kind.WINDOW,
    "chunked_attention": Kind.CHUNK,
    "linear_attention": Kind.STATE,
    "mamba": Kind.STATE,
    "conv": Kind.STATE,
    "short_conv": Kind.STATE,
    "mlp": Kind.NONE,
    "moe": Kind.NONE,
}
# Models whose layers have several attentions each, with keys and values of their own.
_ATTENTIONS_PER_LAYER = {"longcat_flash": 2}
_PATTERN_LETTERS = {"M": Kind.STATE, "*": Kind.FULL, "-": Kind.NONE, "E": Kind.NONE}


def read_kinds(config: Fields) -> list[Kind]:
    """The kind of every attention or state layer, first one first. Raises `ConfigError` on what it
    cannot read."""
    refuse_unread(config)
    attentions = _ATTENTIONS_PER_LAYER.get(str(config.get("model_type")))
    if attentions:
        return [Kind.FULL] * attentions * config.integer("num_layers", "num_hidden_layers")
    read = next(read for names, read in _READERS if all(config.has(name) for name in names))
    return read(config)


def _num_layers(config: Fields) -> int:
    return config.integer("num_hidden_layers", "n_layer", "num_layers")


def _from_layer_types(config: Fields, field: str = "layer_types") -> list[Kind]:
    names = config.items(field, config.optional_integer("num_hidden_layers"))
    for index, name in enumerate(names):
        if name not in _LAYER_TYPES:
            known = ", ".join(_LAYER_TYPES)
            raise config.error(f"{field}[{index}]", f"one of {known}", name)
    return [_LAYER_TYPES[name] for name in names]


def _from_layers_block_type(config: Fields) -> list[Kind]:
    return _from_layer_types(config, "layers_block_type")


def _from_override_pattern(config: Fields) -> list[Kind]:
    pattern = config.text("hybrid_override_pattern")
    if unknown := set(pattern) - set(_PATTERN_LETTERS):
        raise config.error("hybrid_override_pattern", "letters M * - E", "".join(sorted(unknown)))
    return [_PATTERN_LETTERS[letter] for letter in pattern]


def _from_linear_attn_config(config: Fields) -> list[Kind]:
    linear = config.section("linear_attn_config")
    states = set(linear.integers("kda_layers"))  # counted from 1
    return [_state_or_full(i + 1 in states) for i in range(_num_layers(config))]


def _from_full_interval(config: Fields) -> list[Kind]:
    every = config.integer("full_attention_interval")
    return [_state_or_full((i + 1) % every != 0) for i in range(_num_layers(config))]


def _from_attn_period(config: Fields) -> list[Kind]:
    period = config.integer("attn_layer_period")
    offset = config.integer("attn_layer_offset", at_least=0)
    return [_state_or_full(i % period != offset) for i in range(_num_layers(config))]


def _from_attn_indices(config: Fields) -> list[Kind]:
    full = set(config.integers("attn_layer_indices"))
    return [_state_or_full(i not in full) for i in range(_num_layers(config))]


def _parallel_states(config: Fields) -> list[Kind]:
    return [Kind.FULL_AND_STATE] * _num_layers(config)


def _from_cross_layers(config: Fields) -> list[Kind]:
    cross = set(config.integers("cross_attention_layers"))
    return [Kind.CROSS if i in cross else Kind.FULL for i in range(_num_layers(config))]


def _from_window_flags(config: Fields) -> list[Kind]:
    flags = config.integers("hybrid_layer_pattern", _num_layers(config))
    return [_window_or_full(flag == 1) for flag in flags]


def _from_no_rope_layers(config: Fields) -> list[Kind]:
    """Llama-4: layers with rotary positions attend within a chunk, the others to everything."""
    num_layers = _num_layers(config)
    if config.get("no_rope_layers"):
        local = [flag != 0 for flag in config.integers("no_rope_layers", num_layers)]
    else:
        every = config.integer("no_rope_layer_interval")
        local = [(i + 1) % every != 0 for i in range(num_layers)]
    return [Kind.CHUNK if is_local else Kind.FULL for is_local in local]


def _from_window_pattern(config: Fields) -> list[Kind]:
    """A period (every n-th layer is full) or letters: L for a window, G for full."""
    num_layers = _num_layers(config)
    pattern = config.get("sliding_window_pattern")
    if isinstance(pattern, str):
        if not pattern or set(pattern) - {"L", "G"}:
            raise config.error("sliding_window_pattern", "letters L and G", pattern)
        return [_window_or_full(pattern[i % len(pattern)] == "L") for i in range(num_layers)]
    every = config.integer("sliding_window_pattern")
    return [_window_or_full((i + 1) % every != 0) for i in range(num_layers)]


def _from_full_every(config: Fields) -> list[Kind]:
    every = config.integer("global_attn_every_n_layers")
    return [_window_or_full((i + 1) % every != 0) for i in range(_num_layers(config))]


def _from_window(config: Fields) -> list[Kind]:
    """One window for all layers; where it can be switched off, for those from a layer on."""
    first = 0
    if config.get("use_sliding_window") is False:
        first = _num_layers(config)
    elif config.has("use_sliding_window"):
        first = config.optional_integer("max_window_layers", at_least=0) or 0
    return [_window_or_full(i >= first) for i in range(_num_layers(config))]


def _all_full(config: Fields) -> list[Kind]:
    return [Kind.FULL] * _num_layers(config)


def _state_or_full(is_state: bool) -> Kind:
    return Kind.STATE if is_state else Kind.FULL


def _window_or_full(is_window: bool) -> Kind:
    return Kind.WINDOW if is_window else Kind.FULL


# The first reader whose fields are all there decides; more telling fields come first.
_READERS: tuple[tuple[tuple[str, ...], Callable[[Fields], list[Kind]]], ...] = (
    (("layer_types",), _from_layer_types),
    (("layers_block_type",), _from_layers_block_type),
    (("hybrid_override_pattern",), _from_override_pattern),
    (("linear_attn_config",), _from_linear_attn_config),
    (("hybrid_layer_pattern",), _from_window_flags),
    (("cross_attention_layers",), _from_cross_layers),
    (("mamba_d_ssm", "mamba_n_heads"), _parallel_states),
    (("attn_layer_indices",), _from_attn_indices),
    (("attn_layer_period",), _from_attn_period),
    (("full_attention_interval",), _from_full_interval),
    (("attention_chunk_size", "no_rope_layer_interval"), _from_no_rope_layers),
    (("attention_chunk_size", "no_rope_layers"), _from_no_rope_layers),
    (("sliding_window", "sliding_window_pattern"), _from_window_pattern),
    (("sliding_window", "global_attn_every_n_layers"), _from_full_every),
    (("sliding_window",), _from_window),
    ((), _all_full),
)
