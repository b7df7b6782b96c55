"""Models that SGLang does not have, for its external-model mechanism."""


def register() -> None:
    """As SGLang does with SGLANG_EXTERNAL_MODEL_PACKAGE, which it reads while it is imported."""
    from sglang.srt.models.registry import ModelRegistry

    ModelRegistry.register(__name__)
