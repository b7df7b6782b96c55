"""The configs in ``tests/configs``, read."""

from pathlib import Path

from jenga_sglang.plan.model import Model, ReadOptions, read_model

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.json"))
GIB, MIB, KIB = 1 << 30, 1 << 20, 1 << 10


def load(name: str, **options: object) -> Model:
    return read_model(CONFIGS / f"{name}.json", ReadOptions(**options))  # type: ignore[arg-type]
