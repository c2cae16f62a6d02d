"""A store in this process's memory: for tests, for trying things out, and for simulation."""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, NamedTuple

from remotedict.backend import (
    NOT_MODIFIED,
    BlobInfo,
    BlobNotFound,
    Data,
    Got,
    LeaseHeld,
    LeaseLost,
    NotModified,
    PreconditionFailed,
    pieces,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


_stores: weakref.WeakSet[MemoryBackend] = weakref.WeakSet()


def _after_fork() -> None:
    for store in _stores:
        store.renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Blob(NamedTuple):
    data: bytes
    etag: str
    time: float


class MemoryBackend:
    """Blobs in a dict; a forked child has a copy of its own.

    Parameters
    ----------
    clock : callable, optional
        The store's clock, in seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._blobs: dict[str, _Blob] = {}
        self._leases: dict[str, tuple[str, float]] = {}
        self._writes = 0
        self._lock = threading.Lock()
        _stores.add(self)

    def renew_lock(self) -> None:
        """Forget who holds the lock: after a fork nobody does."""
        self._lock = threading.Lock()

    def get(
        self,
        path: str,
        *,
        range: tuple[int, int] | None = None,  # noqa: A002
        if_none_match: str | None = None,
    ) -> Got | NotModified:
        """See `Backend.get`."""
        blob = self._blobs.get(path)
        if blob is None:
            raise BlobNotFound(path)
        if blob.etag == if_none_match:
            return NOT_MODIFIED
        if range is None:
            return Got(blob.data, blob.etag)
        offset, length = range
        if offset >= len(blob.data):
            raise BlobNotFound(path)
        return Got(blob.data[offset : offset + length], blob.etag)

    def put(
        self, path: str, data: Data, *, if_match: str | None = None, if_absent: bool = False
    ) -> str:
        """See `Backend.put`."""
        whole = b"".join(pieces(data))
        with self._lock:
            blob = self._blobs.get(path)
            if (if_absent and blob) or (
                if_match is not None and (blob is None or blob.etag != if_match)
            ):
                raise PreconditionFailed(path)
            self._writes += 1
            new = _Blob(whole, f"m{self._writes}", self._clock())
            self._blobs[path] = new
        return new.etag

    def delete(self, paths: Iterable[str]) -> None:
        """See `Backend.delete`."""
        for path in paths:
            self._blobs.pop(path, None)

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """See `Backend.list`."""
        for path, blob in sorted(self._blobs.copy().items()):
            if path.startswith(prefix):
                yield BlobInfo(path, len(blob.data), blob.time)

    def lease(
        self, path: str, seconds: float, *, lease_id: str, force: bool = False
    ) -> MemoryLease:
        """See `Backend.lease`."""
        with self._lock:
            holder, until = self._leases.get(path, ("", 0.0))
            if not force and holder != lease_id and until > self._clock():
                raise LeaseHeld(path)
            self._blobs.setdefault(path, _Blob(b"", "m0", self._clock()))
            self._leases[path] = (lease_id, self._clock() + seconds)
        return MemoryLease(self, path, lease_id, seconds)

    def _change_lease(self, path: str, lease_id: str, seconds: float | None) -> None:
        with self._lock:
            if self._leases.get(path, ("", 0.0))[0] != lease_id:
                raise LeaseLost(path)
            if seconds is None:
                del self._leases[path]
            else:
                self._leases[path] = (lease_id, self._clock() + seconds)

    def close(self) -> None:
        """Do nothing: the blobs live as long as the store."""


class MemoryLease:
    """See `Lease`."""

    def __init__(self, store: MemoryBackend, path: str, lease_id: str, seconds: float) -> None:
        self._store = store
        self._path = path
        self.id = lease_id
        self.seconds = seconds

    def renew(self) -> None:
        """See `Lease.renew`."""
        self._store._change_lease(self._path, self.id, self.seconds)  # noqa: SLF001

    def release(self) -> None:
        """See `Lease.release`."""
        self._store._change_lease(self._path, self.id, None)  # noqa: SLF001
