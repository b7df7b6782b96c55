from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


class NoMemorySaver:
    @contextmanager
    def region(self, tag: str) -> Iterator[None]:
        yield


class KVCache:
    def __init__(
        self,
        size: int,
        page_size: int,
        dtype: Any,
        layer_num: int,
        device: str,
        enable_memory_saver: bool,
        start_layer: int | None = None,
        end_layer: int | None = None,
    ) -> None:
        self.size, self.page_size, self.dtype, self.device = size, page_size, dtype, device
        self.memory_saver_adapter = NoMemorySaver()


class MambaPool:
    @dataclass(frozen=True)
    class State:
        conv: list[Any]
        temporal: Any


class ReqToTokenPool:
    pass
