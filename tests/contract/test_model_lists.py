"""Model classes for which SGLang names the attention backends that it accepts take ours too."""

from pathlib import Path

from resolved import resolve, write_config

from jenga_sglang import flags

LISTED = ("gpt-oss-20b", "llama-4-scout", "gemma-4-31b", "olmo-3-7b")


def test_listed_models_take_every_backend_of_ours(tmp_path: Path) -> None:
    models = [write_config(tmp_path, name) for name in LISTED]
    servers = [
        {"model_path": model, "attention_backend": backend}
        for model in models
        for backend in flags.ATTENTION_BACKENDS
    ]
    found = [resolved["attention_backend"] for resolved in resolve(servers)]
    assert found == [server["attention_backend"] for server in servers]
