from enum import Enum
from typing import Any


class SharedReadEnds(Enum):
    PRE_REPLAY = 1
    IN_REPLAY = 2
    POST_REPLAY = 3
    UNKNOWN = 4


class AttentionBackend:
    def __init__(self) -> None:
        pass

    def forward(
        self,
        q: Any,
        k: Any,
        v: Any,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> Any:
        is_decode = forward_batch.forward_mode.is_decode()
        run = self.forward_decode if is_decode else self.forward_extend
        return run(q, k, v, layer, forward_batch, save_kv_cache=save_kv_cache, **kwargs)

    def shared_read_ends(self, fm: Any) -> SharedReadEnds:
        return SharedReadEnds.IN_REPLAY if fm.is_decode() else SharedReadEnds.UNKNOWN

    def forward_decode(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def forward_extend(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError
