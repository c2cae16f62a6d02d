"""Values kept in memory, to be read again without a download."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from remotedict.pure.pieces import Stored


_ROOM = 8
"""Of so many parts of a full cache one is made free at once."""


class Cache:
    """The bytes of generations, at most `limit` in all. Thread-safe.

    A generation never changes: what is here is never stale, it only may no longer be wanted.

    What was used last stands last. It is a plain dict: an OrderedDict takes five times as long to
    fill with a million values, and all that a dict is slow at is to drop its first item again and
    again, which many at once don't do.

    Attributes
    ----------
    cleared : int
        How often all was forgotten.
    """

    def __init__(self, limit: int) -> None:
        self.cleared = 0
        self._limit = limit
        self._bytes: dict[bytes, Stored] = {}
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
                        self._bytes[generation] = self._bytes.pop(generation)
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
            kept, most = self._bytes, self._limit // 2
            for generation, data in pairs:
                if generation not in kept and len(data) <= most:
                    kept[generation] = data
                    self._size += len(data)
            if self._size > self._limit:
                self._make_room()

    def _make_room(self) -> None:
        dropped = []
        for generation, data in self._bytes.items():
            dropped.append(generation)
            self._size -= len(data)
            if self._size <= self._limit - self._limit // _ROOM:
                break
        for generation in dropped:
            del self._bytes[generation]

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
