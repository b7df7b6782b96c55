"""Pages in one of SGLang's storage backends, each an object under a key of its own.

An object is the page's bytes with a digest of them and of its key behind. So whatever a backend
gives back, a page that was cut short, written in part, or stored under another key is no page.
Backends fail and are slow: nothing here raises, a failure is a page that is not there.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from jenga_sglang.adapter.storage.objects import Objects

logger = logging.getLogger(__name__)

SEAL_BYTES = 16
WARN_EVERY = 1000  # failures of one kind; the first is always told


class PageStore:
    """The pages among ``objects``. Used by two threads, one that reads and one that writes; the
    backend's own locks suffice, as they do SGLang's two.

    A page that cannot be read as it was written is deleted, or its next writer would take it for
    one that is there; where that cannot be, it is not asked for until this server has written it.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._unsound: set[str] = set()
        self.failures: Counter[str] = Counter()

    def exists(self, keys: Sequence[str]) -> int:
        """How many of ``keys`` there are, from the first on."""
        sound = next((n for n, key in enumerate(keys) if key in self._unsound), len(keys))
        if not sound:
            return 0
        try:
            return self._objects.exists(keys[:sound])
        except Exception as error:
            self._failed("exists", error)
            return 0

    def write(self, key: str, page: torch.Tensor) -> bool:
        """Store the bytes of ``page``, uint8; whether they are there now."""
        try:
            stored = self._objects.write(key, sealed(key, page))
        except Exception as error:
            self._failed("write", error)
            return False
        if stored:
            self._unsound.discard(key)
        else:
            self._failed("write", None)
        return stored

    def read(self, key: str, page_bytes: int) -> torch.Tensor | None:
        """The bytes of a page, uint8, or None; good until the next one is read."""
        try:
            found = self._objects.read(key, page_bytes + SEAL_BYTES)
            if found is None:
                # Once more: it was there a moment ago, and without it goes all that follows.
                self._failed("read", None)
                found = self._objects.read(key, page_bytes + SEAL_BYTES)
        except Exception as error:
            self._is_unsound(key)
            self._failed("read", error)
            return None
        if found is None:
            self._failed("read", None)
            return None
        page = unsealed(key, found, page_bytes)
        if page is None:
            self._is_unsound(key)
            self._failed("seal", None)
        return page

    def _is_unsound(self, key: str) -> None:
        self._unsound.add(key)
        try:
            self._objects.discard(key)
        except Exception as error:
            self._failed("delete", error)

    def clear(self) -> bool:
        """Delete everything in the backend; whether it could."""
        try:
            cleared = self._objects.clear()
        except Exception as error:
            self._failed("clear", error)
            return False
        self._unsound.clear()
        # A backend that cannot tell says nothing.
        return cleared is not False

    def close(self) -> None:
        self._objects.close()

    def _failed(self, what: str, error: Exception | None) -> None:
        if self.failures[what] % WARN_EVERY == 0:
            reason = f": {error!r}" if error else ""
            logger.warning(
                "Storage: %s failed (%d times before)%s", what, self.failures[what], reason
            )
        self.failures[what] += 1


def sealed(key: str, page: torch.Tensor) -> torch.Tensor:
    """``page`` with its digest behind; (bytes + `SEAL_BYTES`,) uint8."""
    return torch.cat([page, torch.frombuffer(bytearray(_seal(key, page)), dtype=torch.uint8)])


def unsealed(key: str, found: Any, page_bytes: int) -> torch.Tensor | None:
    """The page in an object that was ``found`` under ``key``, or None where it is none."""
    if not isinstance(found, torch.Tensor) or found.nbytes != page_bytes + SEAL_BYTES:
        return None
    found = found.contiguous().view(torch.uint8)
    page, seal = found[:page_bytes], found[page_bytes:]
    return page if seal.numpy().tobytes() == _seal(key, page) else None


def _seal(key: str, page: torch.Tensor) -> bytes:
    digest = hashlib.blake2b(key.encode(), digest_size=SEAL_BYTES)
    digest.update(memoryview(page.contiguous().numpy()))
    return digest.digest()


def keys_of(page_digests: Sequence[str], tag: str) -> list[str]:
    """The keys of pages with these digests in a group with this ``tag``."""
    return [f"{digest}.{tag}" for digest in page_digests]
