"""Values kept in memory, to be read again without a download."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remotedict.pure.pieces import Stored


class Cache:
    """The bytes of generations, at most `limit` in all. Thread-safe.

    A generation never changes: what is here is never stale, it only may no longer be wanted.

    Attributes
    ----------
    cleared : int
        How often all was forgotten.
    """

    def __init__(self, limit: int) -> None:
        self.cleared = 0
        self._limit = limit
        self._bytes: OrderedDict[bytes, Stored] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def get(self, generation: bytes) -> Stored | None:
        """Return the bytes of a generation, or None."""
        with self._lock:
            if generation in self._bytes:
                self._bytes.move_to_end(generation)
            return self._bytes.get(generation)

    def add(self, generation: bytes, data: Stored, cleared: int | None = None) -> None:
        """Keep the bytes of a generation, in place of those that were used longest ago.

        Not if all was forgotten since it was `cleared` so often: they may be what it was about.
        """
        if len(data) > self._limit // 2:
            return
        with self._lock:
            if generation not in self._bytes and cleared in (None, self.cleared):
                self._bytes[generation] = data
                self._size += len(data)
            while self._size > self._limit:
                _, dropped = self._bytes.popitem(last=False)
                self._size -= len(dropped)

    def discard(self, generation: bytes) -> None:
        """Keep a generation no longer."""
        with self._lock:
            self._size -= len(self._bytes.pop(generation, b""))

    def clear(self) -> None:
        """Keep nothing of what is here."""
        with self._lock:
            self.cleared += 1
            self._bytes.clear()
            self._size = 0
