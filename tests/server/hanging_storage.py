"""A storage backend as a user may bring one (`--hicache-storage-backend dynamic`): SGLang's files,
which rank 1 alone finds hanging for as long as there is a file named `HANGS` beside them."""

import time
from pathlib import Path
from typing import Any

from sglang.srt.mem_cache.hicache_storage import HiCacheFile

HANGS = "hangs"


class HangingStorage(HiCacheFile):
    def __init__(self, storage_config: Any, kwargs: Any) -> None:
        super().__init__(storage_config)
        self._hangs = Path(self.file_path) / HANGS if storage_config.tp_rank == 1 else None

    def exists(self, key: str) -> bool:
        while self._hangs is not None and self._hangs.exists():
            time.sleep(0.05)
        return bool(super().exists(key))
