"""A model's layer groups, read from its ``config.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jenga_sglang.core.cut.geometry import LayerGroupSpec, told_apart
from jenga_sglang.core.dependency import (
    ChunkedLocal,
    CrossAttention,
    Dependency,
    Full,
    LastState,
    SlidingWindow,
)
from jenga_sglang.layer_flags import AS_THE_REST, AS_TRAINED, Keep, KvDtypes
from jenga_sglang.plan.defaults import CLASS_DEFAULTS
from jenga_sglang.plan.fields import ConfigError, Fields
from jenga_sglang.plan.kinds import Kind, read_kinds
from jenga_sglang.plan.rows import Row, of_layer, read_row
from jenga_sglang.plan.states import DTYPE_BYTES, read_state_bytes
from jenga_sglang.plan.stock import Stock, stock_of

_TEXT_SECTIONS = ("text_config", "llm_config", "language_config")
# Of models with recurrent layers, those whose checkpoints have a head that drafts (NEXTN).
_HEADS = ("Qwen3Next", "Qwen3_5")
_DTYPE_NAMES = {"half": "float16", "float": "float32"}


@dataclass(frozen=True)
class ReadOptions:
    """How the model will be served. ``None`` takes what the config says.

    ``window`` is ``model`` (as SGLang's model class does, which may ignore the config's window)
    or ``config`` (as the config says). ``image_tokens`` are those of one request.
    """

    tp: int = 1
    kv_dtype: str | None = None
    state_dtype: str | None = None
    window: str = "model"
    max_length: int | None = None
    image_tokens: int | None = None
    kv_dtypes: KvDtypes = AS_THE_REST
    keep: Keep = AS_TRAINED


@dataclass(frozen=True)
class Layer:
    """What one layer keeps: rows of tokens, or a state. ``shares`` means another layer's;
    ``dtype`` is that of its rows where the user gave it one."""

    index: int
    dependency: Dependency
    k_bytes: int = 0
    v_bytes: int = 0
    state_bytes: tuple[int, ...] = ()
    shares: bool = False
    dtype: str = ""


@dataclass(frozen=True)
class Model:
    """What a model keeps per layer, and how SGLang 0.5.23 stores it.

    ``image_tokens`` come in front of the text of every request, for cross-attention only.
    ``ignored_window`` is a window in the config that SGLang's class does not apply, and neither
    do these layers. ``tail_tokens`` are room for drafts behind every request's own. ``is_exact``:
    the layers are those of SGLang's class, not read from the config.
    """

    name: str
    layers: tuple[Layer, ...]
    max_length: int
    kv_dtype: str
    tp: int
    stock: Stock
    image_tokens: int = 0
    ignored_window: object = None
    tail_tokens: int = 0
    is_exact: bool = False

    @property
    def specs(self) -> tuple[LayerGroupSpec, ...]:
        """Layers grouped by what they keep, in order of first appearance; none for sharing."""
        groups: dict[Layer, list[int]] = {}
        for layer in self.layers:
            if not layer.shares:
                dependency = layer.dependency.effective(self.max_length)
                key = replace(layer, index=0, dependency=dependency)
                groups.setdefault(key, []).append(layer.index)
        return told_apart(
            LayerGroupSpec(
                "state" if key.state_bytes else f"{key.dependency} {key.dtype}".rstrip(),
                *(tuple(layers), key.dependency, key.k_bytes, key.v_bytes, key.state_bytes),
            )
            for key, layers in groups.items()
        )


def read_model(path: Path, options: ReadOptions | None = None) -> Model:
    """Read a ``config.json``, or the one in a folder. Raises `ConfigError`, naming the field."""
    file = path / "config.json" if path.is_dir() else path
    try:
        raw = json.loads(file.read_text())
    except OSError as error:
        why = f"{error.strerror or error}; give a model's config.json or the folder that has it"
        raise ConfigError(f"{file}: {why}") from error
    except ValueError as error:
        raise ConfigError(f"{file}: not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{file}: expected a JSON object")
    name = file.parent.resolve().name if file.name == "config.json" else file.stem
    try:
        return model_from_config(raw, name, options)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def with_draft(model: Model, draft: Model) -> Model:
    """``model`` with the layers of one that drafts for it, numbered on; the same model stands for
    the head in its checkpoint where its class has one. Raises `ConfigError` for layers that no
    draft may have."""
    name, layers = f"{model.name} + {draft.name}", draft.layers
    if any(layer.state_bytes for layer in draft.layers):
        name, layers = f"{model.name} + its head", (_own_head(model, draft),)
    first = 1 + max(layer.index for layer in model.layers)
    drafting = tuple(replace(layer, index=layer.index + first) for layer in layers)
    return replace(model, name=name, layers=(*model.layers, *drafting))


def _own_head(model: Model, draft: Model) -> Layer:
    """One more of the layers with attention, which are all alike in these models."""
    if draft.layers != model.layers or not model.stock.architecture.startswith(_HEADS):
        raise ConfigError("a model with recurrent layers drafts for nobody yet; leave --draft out")
    return replace(next(layer for layer in model.layers if not layer.state_bytes), index=0)


def model_from_config(raw: dict[str, Any], name: str, options: ReadOptions | None = None) -> Model:
    """What the model of a parsed ``config.json`` keeps. Raises `ConfigError`."""
    options = options or ReadOptions()
    config = _text_fields(raw)
    names = raw.get("architectures") or config.get("architectures")
    stock = stock_of(str(names[0]) if names and isinstance(names, list) else "")
    kinds = read_kinds(config)
    ignored = None
    if stock.ignores_window and options.window == "model" and Kind.WINDOW in kinds:
        kinds = [Kind.FULL if kind is Kind.WINDOW else kind for kind in kinds]
        ignored = config.get("sliding_window")
    kv_dtype = _kv_dtype(raw, config, options)
    if options.image_tokens is not None and Kind.CROSS not in kinds:
        raise ConfigError(
            "no layer has cross-attention, which --image-tokens is about: "
            "this model's images are part of the text"
        )
    images = _image_tokens(raw, options) if Kind.CROSS in kinds else 0
    layers = _Layers(config, options, kv_dtype, images).read(kinds)
    max_length = _max_length(config, options)
    return Model(name, layers, max_length, kv_dtype, options.tp, stock, images, ignored)


@dataclass(frozen=True)
class _Layers:
    config: Fields
    options: ReadOptions
    kv_dtype: str
    image_tokens: int

    def read(self, kinds: list[Kind]) -> tuple[Layer, ...]:
        shared = self.config.optional_integer("num_kv_shared_layers", at_least=0) or 0
        first_shared = len(kinds) - shared
        rows = {n: self._row(n, kind) for n, kind in enumerate(kinds) if kind.is_attention}
        needs = self._needs({n: self._dependency(kinds[n], n) for n in rows})
        found: list[Layer] = []
        for index, kind in enumerate(kinds):
            if kind.is_attention:
                found.append(self._layer(index, needs[index], rows[index], index >= first_shared))
            if kind.has_state:
                found.append(Layer(index, LastState(), state_bytes=self._state_bytes()))
        if not rows:
            raise ConfigError("no layer has attention, and states alone this cannot plan")
        return tuple(found)

    def _row(self, index: int, kind: Kind) -> Row:
        """The row of a layer with items of one byte."""
        return read_row(of_layer(self.config, index), kind, self.options.tp, 1)

    def _needs(self, trained: dict[int, Dependency]) -> dict[int, Dependency]:
        """What layers keep, by their numbers, where the model was ``trained`` for something."""
        if not trained:
            return {}
        max_length, keep = _max_length(self.config, self.options), self.options.keep
        needs = {n: need.effective(max_length) for n, need in trained.items()}
        keep.check(needs)
        needs = {n: keep.of(n, need).effective(max_length) for n, need in needs.items()}
        self.options.kv_dtypes.check(needs.values())
        return needs

    def _layer(self, index: int, need: Dependency, row: Row, shares: bool) -> Layer:
        dtype = self.options.kv_dtypes.of(need) or self.kv_dtype
        k_bytes, v_bytes = (size * DTYPE_BYTES[dtype] for size in row)
        own = dtype if dtype != self.kv_dtype else ""
        need = need.after_encoder(self.image_tokens)
        return Layer(index, need, k_bytes, v_bytes, (), shares, own)

    def _state_bytes(self) -> tuple[int, ...]:
        return read_state_bytes(self.config, self.options.tp, self.options.state_dtype)

    def _dependency(self, kind: Kind, index: int) -> Dependency:
        if kind is Kind.WINDOW:
            return self._window(index)
        if kind is Kind.CHUNK:
            return ChunkedLocal(self.config.integer("attention_chunk_size"))
        if kind is Kind.CROSS:
            return CrossAttention()
        return Full()

    def _window(self, index: int) -> Dependency:
        """The layer's window; a list of windows is repeated over the layers, null for full."""
        if isinstance(self.config.get("sliding_window"), list):
            windows = self.config.items("sliding_window")
            if not windows:
                raise self.config.error("sliding_window", "an integer or a list of some", windows)
            window = windows[index % len(windows)]
            if window is None:
                return Full()
            if not isinstance(window, int) or window < 1:
                place = f"sliding_window[{index % len(windows)}]"
                raise self.config.error(place, "an integer >= 1 or null", window)
            return SlidingWindow(window)
        return SlidingWindow(self.config.integer("sliding_window", "sliding_window_size"))


def _max_length(config: Fields, options: ReadOptions) -> int:
    names = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "model_max_length")
    return options.max_length or config.integer(*names)


def _text_fields(raw: dict[str, Any]) -> Fields:
    """The part of the config that describes the language model, with its class's defaults."""
    text = Fields(raw)
    # A model that speaks as well as hears nests what thinks, and in it the text.
    for names in (("thinker_config",), _TEXT_SECTIONS):
        section = next((name for name in names if text.has(name)), None)
        text = text.section(section) if section else text
    model_type = text.get("model_type") or raw.get("model_type")
    return Fields(text.values, text.path, CLASS_DEFAULTS.get(str(model_type)))


def _kv_dtype(raw: dict[str, Any], config: Fields, options: ReadOptions) -> str:
    """The dtype of K and V: as asked for, else the model's, else bfloat16."""
    name = options.kv_dtype
    for fields in (config, Fields(raw)):
        name = name or fields.get("dtype") or fields.get("torch_dtype")
    name = str(name or "bfloat16").removeprefix("torch.")
    name = _DTYPE_NAMES.get(name, name)
    if name not in DTYPE_BYTES:
        raise config.error("torch_dtype", f"one of {', '.join(DTYPE_BYTES)}", name)
    return name


def _image_tokens(raw: dict[str, Any], options: ReadOptions) -> int:
    """Tokens of one image of the largest size, unless the user says how many a request has."""
    if options.image_tokens is not None:
        return options.image_tokens
    vision = Fields(raw).section("vision_config")
    side = vision.integer("image_size") // vision.integer("patch_size")
    return vision.integer("max_num_tiles") * (side * side + 1)
