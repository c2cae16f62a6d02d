"""The store: the memory backend, and a witness who sees what lands in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remotedict.backend.memory import MemoryBackend

if TYPE_CHECKING:
    from collections.abc import Iterable

    from remotedict.backend import Data
    from remotedict.backend.memory import MemoryLease
    from simulation.scheduler import Scheduler
    from simulation.witness import Witness


class Elsewhere(MemoryBackend):
    """A place to copy to, which no witness sees."""

    def __init__(self, scheduler: Scheduler, index: str) -> None:
        super().__init__(lambda: scheduler.now)
        self.index = index

    def put(
        self,
        path: str,
        data: Data,
        *,
        if_match: str | None = None,
        if_absent: bool = False,
        who: str = "",
    ) -> str:
        del who
        return super().put(path, data, if_match=if_match, if_absent=if_absent)


class Store(MemoryBackend):
    """Blobs in a dict, by the clock of the scheduler.

    Attributes
    ----------
    lost : set of str
        The ids of leases that were released, broken or taken by somebody else.
    holders : dict
        By path, the lease that was granted last.
    """

    def __init__(self, scheduler: Scheduler, index: str, witness: Witness) -> None:
        super().__init__(lambda: scheduler.now)
        self.index = index
        self.witness = witness
        self.lost: set[str] = set()
        witness.store = self

    def put(
        self,
        path: str,
        data: Data,
        *,
        if_match: str | None = None,
        if_absent: bool = False,
        who: str = "",
    ) -> str:
        old = self._blobs.get(path)
        done = super().put(path, data, if_match=if_match, if_absent=if_absent)
        if path == self.index:
            self.witness.landed(self._blobs[path].data, who)
        elif old is None:
            self.witness.repairs.sealed(path, self._blobs[path].data)
        elif old is not None and old.data != self._blobs[path].data:
            self.witness.fail("overwritten", f"{path} was put again, with other bytes")
        return done

    def delete(self, paths: Iterable[str]) -> None:
        paths = list(paths)
        super().delete(paths)
        self.witness.deleted(paths)

    def lease(
        self, path: str, seconds: float, *, lease_id: str, force: bool = False
    ) -> MemoryLease:
        self.witness.waits(path, seconds)
        before = self._leases.get(path)
        lease = super().lease(path, seconds, lease_id=lease_id, force=force)
        if before and before[0] != lease_id:
            self.lost.add(before[0])
        self.witness.leased(path, lease_id)
        return lease

    def _change_lease(self, path: str, lease_id: str, seconds: float | None) -> None:
        super()._change_lease(path, lease_id, seconds)
        if seconds is None:
            self.lost.add(lease_id)

    def blob(self, path: str) -> bytes | None:
        """Return a blob's bytes, asked by nobody."""
        blob = self._blobs.get(path)
        return blob.data if blob else None

    def rewind(self, data: bytes) -> None:
        """Bring the index blob back to what it was once, as a restored backup does."""
        super().put(self.index, data)
        self.witness.rewound(data)

    def damage(self, data: bytes | None) -> None:
        """Put this in the place of the index, or take it away: so does a disk, or a program."""
        if data is None:
            super().delete([self.index])
        else:
            super().put(self.index, data)
        self.witness.repairs.damaged(data)

    def copy_index(self) -> None:
        """Put the same bytes again: so does who copies the blob, or sets its tier."""
        super().put(self.index, self._blobs[self.index].data)

    def blobs(self) -> list[tuple[str, bytes, float]]:
        """Return all blobs and since when they are there, asked by nobody."""
        return [(path, blob.data, blob.time) for path, blob in self._blobs.items()]
