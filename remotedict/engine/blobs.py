"""The blobs that never change: read from the disk of this machine, or from the store."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from remotedict.engine.flights import Flights
from remotedict.engine.reader import read_pieces, take_all
from remotedict.errors import CorruptBlobError
from remotedict.pure.pieces import Pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from remotedict.backend import Buffer
    from remotedict.engine.cache import Cache
    from remotedict.engine.disk import DiskCache
    from remotedict.engine.patient import Patient
    from remotedict.engine.runtime import Runtime
    from remotedict.pure.pieces import Stored
    from remotedict.pure.records import Index


class Blobs:
    """Reads ranges of the blobs that never change. Thread-safe.

    Parameters
    ----------
    backend, runtime
        What to ask, and what runs it.
    memory : Cache
        What the values that were read are kept in.
    disk : DiskCache, optional
        Where what was read is kept as well.

    Attributes
    ----------
    flights : Flights
        The reads that are under way.
    """

    def __init__(
        self, backend: Patient, runtime: Runtime, memory: Cache, disk: DiskCache | None = None
    ) -> None:
        self._backend = backend
        self._runtime = runtime
        self._memory = memory
        self._disk = disk
        self._moved = -1
        self._lock = threading.Lock()
        self.flights = Flights(runtime.future)

    def turn_to(self, index: Index) -> None:
        """Learn of a newer index: if bytes were forgotten since the one before, forget all."""
        with self._lock:
            first, news = self._moved < 0, index.moved > self._moved
            self._moved = max(self._moved, index.moved)
            if news and self._disk:  # in the order in which they came: it can't go back
                self._disk.turn_to(index)
        if news and not first:
            self._memory.clear()

    def read(self, path: str, offset: int, length: int) -> Buffer:
        """Return a range of a blob; those who want it at the same time share it.

        Raises
        ------
        BlobNotFound
            There is no such blob.
        CorruptBlobError
            It is shorter than that.
        """
        load = partial(self.load, path, offset, length)
        data = self.flights.share(path, offset, length, lambda: load()[0])
        return bytes(data) if isinstance(data, Pieces) else data

    def load(
        self,
        path: str,
        offset: int,
        length: int,
        use: Callable[[Iterator[Buffer]], object] = take_all,
    ) -> tuple[Stored, bool]:
        """Return a range of a blob, and whether it was on disk; see `read` and `read_pieces`."""
        disk = self._disk
        if disk is None:
            return read_pieces(self._backend, self._runtime, path, offset, length, use), False
        folder, kept = disk.folder, disk.get(path, offset, length)
        if kept is not None:
            return kept, True
        data = read_pieces(self._backend, self._runtime, path, offset, length, use)
        disk.add(folder, path, offset, data)
        return data, False

    @contextmanager
    def trusted(self, path: str) -> Iterator[None]:
        """Keep a blob on disk no longer if what is done with its bytes finds them corrupt.

        They came so from the store, which may have better ones the next time.
        """
        try:
            yield
        except CorruptBlobError:
            if self._disk:
                self._disk.discard(path)
            raise
