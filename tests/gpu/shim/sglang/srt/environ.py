"""Settings that SGLang reads from the environment, at their defaults."""

from typing import Any


class Setting:
    def __init__(self, value: Any) -> None:
        self._value = value

    def get(self) -> Any:
        return self._value


class Settings:
    SGLANG_FLASHINFER_WORKSPACE_SIZE = Setting(384 << 20)

    def __getattr__(self, name: str) -> Setting:
        """Switches of SGLang's Triton kernels; all are off by default on NVIDIA's GPUs."""
        return Setting(False)


envs = Settings()
