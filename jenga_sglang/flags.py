"""The command line: what `--memory-backend jenga` sets, and what it refuses."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from importlib.util import find_spec
from typing import Any

from jenga_sglang import deterministic_flags, draft_flags, settings, storage_flags
from jenga_sglang.layer_flags import KEEP_FLAG, KV_DTYPE_FLAG, Keep, KvDtypes
from jenga_sglang.refusal import refuse
from jenga_sglang.refused_flags import (
    REFUSED,
    REFUSED_BETWEEN_SERVERS,
    REFUSED_BETWEEN_STAGES,
    RefusedValue,
)
from jenga_sglang.settings import WINDOWS

FLAG = "--memory-backend"
WINDOW_FLAG = "--jenga-window"
BACKENDS = ("default", "jenga")
RADIX_CACHE_BACKEND = "jenga"
TORCH_BACKEND = "jenga_torch"
FLASHINFER_BACKEND = "flashinfer"
TRITON_BACKEND = "triton"
FA3_BACKEND = "fa3"
PAGE_SIZES = "a power of two from 1 to 256"
ATTENTION_BACKENDS = (FLASHINFER_BACKEND, FA3_BACKEND, TRITON_BACKEND, TORCH_BACKEND)
_ATTENTION = ("attention_backend", "prefill_attention_backend", "decode_attention_backend")
# By field of `settings.Settings`.
_OF_LAYERS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "kv_dtype": (KV_DTYPE_FLAG, KvDtypes.parse),
    "keep": (KEEP_FLAG, Keep.parse),
}


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--memory-backend`` to SGLang's parser."""
    parser.add_argument(
        FLAG,
        choices=BACKENDS,
        default="default",
        help="Who manages KV memory. 'jenga' keeps every layer group's pages in one pool of shared "
        "large pages, so that layers with a window hold their window only; 'default' is SGLang's "
        "own pools.",
    )

    parser.add_argument(
        WINDOW_FLAG,
        choices=WINDOWS,
        default="model",
        help="Which sliding windows layers have under --memory-backend jenga. 'model' follows "
        "SGLang's model class, bit for bit; 'config' also applies the window of the model's config "
        "where the class ignores it, as Hugging Face does (Mistral, Mixtral, Phi-3, Qwen2, …).",
    )

    parser.add_argument(
        KV_DTYPE_FLAG,
        default="",
        metavar="KIND=DTYPE[,…]",
        help="The dtype of K and V of some layers under --memory-backend jenga, such as "
        "full=fp8_e4m3: of those with full attention, a window, a chunk or cross-attention. "
        "All others have that of --kv-cache-dtype.",
    )

    parser.add_argument(
        KEEP_FLAG,
        default="",
        metavar="[LAYERS=]FIRST+WINDOW[,…]",
        help="Have full-attention layers keep so many first tokens and a window only, under "
        "--memory-backend jenga: 4+1024 for all of them, 0-15=4+4096,16-31=4+1024 for some. The "
        "model was not trained for that, and forgets the rest of the text there.",
    )


def apply_flag(values: MutableMapping[str, Any]) -> bool:
    """Turn ``memory_backend`` in ``values`` (fields of ServerArgs) into settings SGLang knows.

    Returns whether Jenga was chosen. Raises ``SystemExit`` with one line for an unknown backend
    or a combination that is not supported; nothing is set then.
    """
    backend = values.pop("memory_backend", "default")
    window = values.pop("jenga_window", "model")
    of_layers = {field: values.pop(f"jenga_{field}", "") for field in _OF_LAYERS}
    if backend not in BACKENDS:
        raise refuse(f"{FLAG} {backend}", f"unknown; choose one of {', '.join(BACKENDS)}")
    if window not in WINDOWS:
        raise refuse(f"{WINDOW_FLAG} {window}", f"unknown; choose one of {', '.join(WINDOWS)}")
    if backend == "default":
        if window != "model":
            raise refuse(f"{WINDOW_FLAG} {window}", f"needs {FLAG} jenga; add it or leave this out")
        for field, text in of_layers.items():
            if text:
                flag, _ = _OF_LAYERS[field]
                raise refuse(f"{flag} {text}", f"needs {FLAG} jenga; add it or leave this out")
        if TORCH_BACKEND in (values.get(field) for field in _ATTENTION):
            raise refuse(
                f"--attention-backend {TORCH_BACKEND}",
                f"reads Jenga pages; add {FLAG} jenga or leave this out",
            )
        if values.get("radix_cache_backend") == RADIX_CACHE_BACKEND:
            raise refuse("--radix-cache-backend jenga", f"is set by {FLAG} jenga; use that flag")
        return False
    for field, (flag, off, why, _, others) in REFUSED.items():
        value = values.get(field, off)
        if value not in (off, None, False, *others):
            shown = flag if value is True else f"{flag} {value}"
            raise refuse(
                shown,
                f"does not work with {FLAG} jenga yet: {_plain(why)}; leave one of the two out",
            )
    mode, stages = values.get("disaggregation_mode"), values.get("pp_size") or 1
    if mode not in (None, "null"):
        _check_beside(f"--disaggregation-mode {mode}", REFUSED_BETWEEN_SERVERS, values)
    if stages > 1:
        asked = {f"jenga_{field}": text for field, text in of_layers.items()}
        _check_beside(f"--pp-size {stages}", REFUSED_BETWEEN_STAGES, {**values, **asked})
    storage_flags.check(values)
    radix = values.get("radix_cache_backend")
    if radix not in (None, RADIX_CACHE_BACKEND):
        raise refuse(
            f"--radix-cache-backend {radix}", f"{FLAG} jenga brings its own; leave one of them out"
        )
    _check_page_size(values)
    _check_attention(values)
    _check_layers(of_layers)
    settings.check()
    values["radix_cache_backend"] = RADIX_CACHE_BACKEND
    # Processes that the server spawns load plug-ins before they see any flag.
    settings.hand_down(window=window, **of_layers)
    return True


def _check_layers(of_layers: Mapping[str, str]) -> None:
    """Raise ``SystemExit`` with one line for what nothing can be read off, whatever the model."""
    for field, text in of_layers.items():
        flag, parse = _OF_LAYERS[field]
        try:
            parse(text)
        except ValueError as error:
            raise refuse(f"{flag} {text}", str(error)) from error


def _check_beside(
    beside: str, refused: Mapping[str, RefusedValue], values: Mapping[str, Any]
) -> None:
    for field, (flag, works, why, _) in refused.items():
        value = values.get(field, works[0])
        if value not in works:
            shown = flag if value is True else f"{flag} {value}"
            raise refuse(
                f"{shown} with {beside}",
                f"does not work with {FLAG} jenga yet: {_plain(why)}; leave it out",
            )


def _plain(markdown: str) -> str:
    """A reason as the tables of the documentation have it, for a terminal."""
    return markdown.replace("`", "")


def _check_page_size(values: MutableMapping[str, Any]) -> None:
    """None stays None: the default depends on the model (`adapter/start/page_size.py`)."""
    page_size = values.get("page_size")
    if page_size is not None and not is_page_size(page_size):
        raise refuse(f"--page-size {page_size}", f"is not {PAGE_SIZES}; 16 is usual")


def is_page_size(page_size_tokens: int) -> bool:
    """Whether pages may have this many tokens."""
    return 1 <= page_size_tokens <= 256 and page_size_tokens.bit_count() == 1


def _check_attention(values: MutableMapping[str, Any]) -> None:
    chosen: set[str] = set()
    for field in _ATTENTION:
        backend = values.get(field)
        if backend not in (None, *ATTENTION_BACKENDS):
            known = ", ".join(ATTENTION_BACKENDS)
            raise refuse(
                f"--{field.replace('_', '-')} {backend}",
                f"cannot read Jenga pages; with {FLAG} jenga leave it out or choose one of {known}",
            )
        chosen |= {backend} if backend else set()
    if len(chosen) > 1:
        raise refuse(
            f"attention backends {' and '.join(sorted(chosen))}",
            f"do not share their page tables; with {FLAG} jenga name one with --attention-backend",
        )
    default = deterministic_flags.preferred(default_attention_backend(values.get("device")), values)
    backend = chosen.pop() if chosen else default
    _check_graphs(values, backend)
    draft_flags.check(values, backend)
    draft_flags.fill_in(values)
    deterministic_flags.check(values, backend)
    if backend == FLASHINFER_BACKEND:
        _check_compiler(values.get("device"))
    values["attention_backend"] = backend
    if backend == TORCH_BACKEND:
        # Page tables are read on the host for every batch, which no captured graph can do.
        values["disable_cuda_graph"] = True


def _check_compiler(device: str | None) -> None:
    """FlashInfer compiles a kernel when a batch first needs it, long after the weights were loaded.
    Modules that were compiled before are not listed anywhere: whoever names them is trusted."""
    import torch

    from flashinfer_ext import toolchain

    if device not in (None, "cuda") or not torch.cuda.is_available():
        return
    if settings.current().flashinfer_modules or find_spec("flashinfer_jit_cache"):
        return
    try:
        toolchain.find_cuda_home(os.environ)
    except toolchain.ToolchainError as error:
        major, minor = torch.cuda.get_device_capability()
        arch = f"{major}.{minor}{'a' if major >= 9 else ''}"
        raise refuse(
            f"--attention-backend {FLASHINFER_BACKEND}",
            f"compiles its kernels at the first start: {error}; or compile them where that is, "
            f"with `python -m flashinfer_ext.aot --arch {arch} --set all --out FOLDER`, "
            f"and set {settings.name_of('flashinfer_modules')}=FOLDER/{arch}; or choose "
            f"--attention-backend {TRITON_BACKEND}",
        ) from error


def _check_graphs(values: MutableMapping[str, Any], attention_backend: str) -> None:
    """What a user asks for by name goes before what ``disable_cuda_graph`` says."""
    from sglang.srt.environ import envs

    of_tables = "SGLANG_ENABLE_METADATA_GLUE_GRAPH"
    if hasattr(envs, of_tables) and getattr(envs, of_tables).get():
        raise refuse(
            f"{of_tables}=1",
            f"captures what prepares a step; with {FLAG} jenga the host counts its pages anew for "
            "every step; leave it out",
        )
    for phase in ("decode", "prefill"):
        shown, graphs = _graphs_asked_for(values, phase)
        if attention_backend == TORCH_BACKEND and graphs not in (None, "disabled"):
            raise refuse(
                shown,
                f"needs page tables on the device; with --attention-backend {TORCH_BACKEND} choose "
                "disabled",
            )
        if phase == "prefill" and graphs == "full":
            raise refuse(
                shown,
                f"captures attention of a fixed shape; with {FLAG} jenga choose breakable or "
                "disabled",
            )


def _graphs_asked_for(values: MutableMapping[str, Any], phase: str) -> tuple[str, str | None]:
    """The flag that names the phase's CUDA graphs, and the name; SGLang prefers the JSON."""
    config = values.get("cuda_graph_config")
    if config is not None and not isinstance(config, Mapping):
        config = config.to_dict()
    graphs = (config or {}).get(phase, {}).get("backend")
    if graphs is not None:
        return f'--cuda-graph-config {{"{phase}":{{"backend":"{graphs}"}}}}', graphs
    graphs = values.get(f"cuda_graph_backend_{phase}")
    return f"--cuda-graph-backend-{phase} {graphs}", graphs


def default_attention_backend(device: str | None) -> str:
    """FlashInfer on NVIDIA's GPUs, Triton on AMD's, plain torch elsewhere. ``device`` is the
    user's choice, as `--device` takes it."""
    import torch

    if device not in (None, "cuda") or not torch.cuda.is_available():
        return TORCH_BACKEND
    return TRITON_BACKEND if torch.version.hip else FLASHINFER_BACKEND


def follows_config_windows() -> bool:
    """Whether `--jenga-window config` was chosen for this server."""
    return settings.current().window == "config"


def is_asked_for(arguments: Sequence[str]) -> bool:
    """Whether a command line chooses Jenga, for an SGLang whose parser does not know the flag."""
    following = (*arguments[1:], None)
    return any(
        given == f"{FLAG}={RADIX_CACHE_BACKEND}" or (given, value) == (FLAG, RADIX_CACHE_BACKEND)
        for given, value in zip(arguments, following, strict=False)
    )


def is_active() -> bool:
    """Whether this process belongs to a server that was started with Jenga."""
    # Asked wherever SGLang is: no variable may end a process that never heard of the flag.
    return os.environ.get(settings.name_of("sglang_active")) == "1"
