"""Turns: how writers that get in each other's way make way for each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remotedict.backend import BackendError, Lease, LeaseHeld
from remotedict.engine.runtime import log
from remotedict.errors import RemoteDictError

if TYPE_CHECKING:
    from remotedict.engine.patient import Patient
    from remotedict.engine.runtime import Runtime

FIRST_PAUSE = 0.01
_PATIENT_LOSSES = 5  # after so many losses in a row a writer lines up
_LONGEST = 16  # the longest pause, in times of the first one or of a request
_QUEUE_SECONDS = 15.0
_RUN = 256  # after so many commits at the first attempt, without a rest, it lines up, too
_RUN_AMONG_RIVALS = 32  # or after so many, if it met another writer among them
_REST = 1.0  # the seconds from one commit to the next that end a run
_PATIENCE = 2.0  # the seconds that it then waits for who is in the queue
_IMPATIENCE = 5.0  # the seconds for which it asks no more, having waited in vain


class Turn:
    """A writer's turn at one commit after the other: when it pauses, and when it lines up.

    After a loss it pauses; after several it lines up. Who is quicker than the others never loses,
    and so would never learn that they wait: it lines up now and then, and lets the one that is
    first go first.

    The queue is a lease, and advisory: the index blob itself is never leased, so a dead waiter
    stops nobody. It slows down who lines up, until its lease ends.

    Attributes
    ----------
    losses : int
        How often another writer was quicker at this commit.
    """

    def __init__(self, backend: Patient, runtime: Runtime, queue: str) -> None:
        self._backend = backend
        self._runtime = runtime
        self._queue = queue
        self._lease: Lease | None = None
        self._leased = 0.0  # when
        self._run = 0
        self._rivals = False  # whether it met any in this run
        self._began = 0.0
        self._impatient = 0.0  # until when
        self.losses = 0

    def begin(self) -> None:
        """Begin with a commit; `end` is to be called in any case."""
        self.losses = 0
        now = self._runtime.monotonic()
        if now - self._began >= _REST:
            self._run, self._rivals = 0, False
        self._run += 1
        self._began = now
        if self._run < (_RUN_AMONG_RIVALS if self._rivals else _RUN) or now < self._impatient:
            return
        self._run, pause = 0, FIRST_PAUSE
        while self._is_anothers():
            self._rivals = True
            if self._runtime.monotonic() >= now + _PATIENCE:
                self._impatient = self._runtime.monotonic() + _IMPATIENCE
                return
            self._runtime.sleep(self._runtime.jitter(pause))
            pause = min(pause * 2, _LONGEST * FIRST_PAUSE)

    def lost(self, took: float) -> None:
        """Let others go first, having lost after a request that took so many seconds.

        Full jitter: https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/
        """
        self._run -= not self.losses  # who loses, too, keeps nobody out
        self.losses += 1
        self._rivals = True
        if self._lease and self._runtime.monotonic() > self._leased + _QUEUE_SECONDS:
            self._lease = None
        if self.losses >= _PATIENT_LOSSES and not self._lease:
            self._is_anothers()
        # Who is kept out of the queue goes on all the same: it may belong to one that is dead.
        if not self._lease:
            factor = min(2**self.losses, _LONGEST)
            self._runtime.sleep(self._runtime.jitter(max(took, FIRST_PAUSE) * factor))

    def end(self) -> None:
        """Leave the queue."""
        lease, self._lease = self._lease, None
        if not lease:
            return
        if self.losses:
            _release(lease)  # before its process may end: others wait for it
        else:
            self._runtime.spawn(lambda: _release(lease))

    def _is_anothers(self) -> bool:
        """Take the place in the queue if it is free; return whether another writer has it."""
        self._leased = self._runtime.monotonic()
        try:
            self._lease = self._backend.raw.lease(
                self._queue, _QUEUE_SECONDS, lease_id=self._runtime.lease_id()
            )
        except LeaseHeld:
            return True
        except (BackendError, RemoteDictError) as exc:
            log.debug("no place in the writers' queue: %s", exc)
        return False


def _release(lease: Lease) -> None:
    try:
        lease.release()
    except Exception as exc:  # noqa: BLE001 - it ends by itself in a moment
        log.debug("the writers' queue wasn't released: %s", exc)
