"""Turns: how writers that get in each other's way make way for each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remotedict.backend import BackendError, Lease, LeaseHeld
from remotedict.engine.runtime import log
from remotedict.errors import RemoteDictError

if TYPE_CHECKING:
    from remotedict.engine.patient import Patient
    from remotedict.engine.runtime import Runtime

_PATIENT_LOSSES = 5  # after so many losses in a row a writer queues up
_LONGEST = 16  # the longest pause, in times of a request
_QUEUE_SECONDS = 15.0
FIRST_PAUSE = 0.01


class Turn:
    """The attempts at one commit: after a loss it pauses; after several it lines up.

    The queue is a lease, and advisory: the index blob itself is never leased, so a dead waiter
    stops nobody.

    Attributes
    ----------
    losses : int
        How often another writer was quicker.
    """

    def __init__(self, backend: Patient, runtime: Runtime, queue: str) -> None:
        self._backend = backend
        self._runtime = runtime
        self._queue = queue
        self._lease: Lease | None = None
        self.losses = 0

    def lost(self, took: float) -> None:
        """Let others go first, having lost after a request that took so many seconds.

        Full jitter: https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/
        """
        self.losses += 1
        if self._lease:
            return
        if self.losses >= _PATIENT_LOSSES:
            try:
                self._lease = self._backend.raw.lease(
                    self._queue, _QUEUE_SECONDS, lease_id=self._runtime.lease_id()
                )
            except LeaseHeld:
                pass
            except (BackendError, RemoteDictError) as exc:
                log.debug("no place in the writers' queue: %s", exc)
            else:
                return
        # Who is kept out of the queue goes on all the same: it may belong to one that is dead.
        factor = min(2**self.losses, _LONGEST)
        self._runtime.sleep(self._runtime.jitter(max(took, FIRST_PAUSE) * factor))

    def end(self) -> None:
        """Leave the queue."""
        lease, self._lease = self._lease, None
        if lease:
            self._runtime.spawn(lambda: _release(lease))


def _release(lease: Lease) -> None:
    try:
        lease.release()
    except Exception as exc:  # noqa: BLE001 - it ends by itself in a moment
        log.debug("the writers' queue wasn't released: %s", exc)
