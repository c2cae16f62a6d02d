"""Values kept in memory, to be read again without a download."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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
        return self.get_all([generation])[0]

    def get_all(self, generations: Sequence[bytes]) -> list[Stored | None]:
        """Return the bytes of each of several generations, or None."""
        with self._lock:
            found = list(map(self._bytes.get, generations))
            if found.count(None) < len(found):
                for generation, data in zip(generations, found, strict=True):
                    if data is not None:
                        self._bytes.move_to_end(generation)
            return found

    def add(self, generation: bytes, data: Stored) -> None:
        """Keep the bytes of a generation, in place of those that were used longest ago."""
        self.add_all([(generation, data)], self.cleared)

    def add_all(self, pairs: Iterable[tuple[bytes, Stored]], cleared: int) -> None:
        """Keep the bytes of several.

        Not if all was forgotten since it was `cleared` so often: they may be what it was about.
        """
        with self._lock:
            if cleared != self.cleared:
                return
            new = {
                generation: data
                for generation, data in pairs
                if generation not in self._bytes and len(data) <= self._limit // 2
            }
            self._bytes.update(new)
            self._size += sum(map(len, new.values()))
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
