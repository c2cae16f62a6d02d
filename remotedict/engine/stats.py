"""What a handle has asked of its store, counted."""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remotedict.backend import Verb


@dataclass(frozen=True, slots=True, repr=False)
class Stats:
    """What a handle has asked of its store; the difference of two tells what was asked between.

    Attributes
    ----------
    requests : int
        All that were sent, also those that got no answer: the sum of the five below.
    gets, puts, deletes, lists, leases : int
        The same by what they do. A large value takes a `get` or `put` for each 8 MiB; a lease is
        acquired, renewed and released by one each.
    bytes_up, bytes_down : int
        What they carried, without HTTP's own headers.
    memory_hits, disk_hits : int
        Values that were read without a download, since they were in memory, or in `cache_dir`.
        What lies inline in the index isn't counted: it takes no download anyway.
    misses : int
        Values that were downloaded.
    not_modified : int
        Looks at the index that found nothing new: a request without a body.
    conflicts : int
        Compare-and-swaps that the store refused, another writer having been quicker. The commit
        was then judged anew, and sent again.
    retries : int
        Requests without a usable answer: they were sent again, or at the end of `timeout` given
        up.

    Examples
    --------
    >>> import remotedict
    >>> d = remotedict.MemoryDictionary()
    >>> d["k"] = 1
    >>> before = d.stats
    >>> d["k"], "other" in d
    (1, False)
    >>> d.stats - before
    Stats(requests=2, gets=2, not_modified=2)
    """

    gets: int = 0
    puts: int = 0
    deletes: int = 0
    lists: int = 0
    leases: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    memory_hits: int = 0
    disk_hits: int = 0
    misses: int = 0
    not_modified: int = 0
    conflicts: int = 0
    retries: int = 0

    @property
    def requests(self) -> int:
        """All requests that were sent."""
        return self.gets + self.puts + self.deletes + self.lists + self.leases

    def __sub__(self, earlier: Stats) -> Stats:
        """Return what was counted since an earlier moment."""
        if not isinstance(earlier, Stats):
            return NotImplemented
        return Stats(*(getattr(self, name) - getattr(earlier, name) for name in _NAMES))

    def __repr__(self) -> str:
        """Return what isn't 0."""
        shown = {name: getattr(self, name) for name in ("requests", *_NAMES)}
        some = {name: n for name, n in shown.items() if n or name == "requests"}
        return f"Stats({', '.join(f'{name}={n}' for name, n in some.items())})"


_NAMES = [field.name for field in fields(Stats)]


class Meter:
    """Counts. Thread-safe."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(_NAMES, 0)
        self._lock = threading.Lock()

    def read(self) -> Stats:
        """Return what was counted up to now."""
        with self._lock:
            return Stats(**self._counts)

    def add(self, **counts: int) -> None:
        """Count so many of each."""
        with self._lock:
            for name, n in counts.items():
                self._counts[name] += n

    def request(self, verb: Verb, *, up: int = 0, down: int = 0) -> None:
        """See `remotedict.backend.Meter`."""
        counts = self._counts
        with self._lock:
            counts[f"{verb}s"] += 1
            counts["bytes_up"] += up
            counts["bytes_down"] += down

    def received(self, down: int) -> None:
        """See `remotedict.backend.Meter`."""
        with self._lock:
            self._counts["bytes_down"] += down

    def retry(self) -> None:
        """See `remotedict.backend.Meter`."""
        self.add(retries=1)
