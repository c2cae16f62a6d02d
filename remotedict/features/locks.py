"""Locks: leases that tell whether a holder lives, epochs that tell whether it may write.

The state says who holds a key: a lock change, whose commit's id is the *epoch*. While the newest
state says "locked, epoch e", a commit that touches the key must come from the holder of exactly e;
the committer judges that on the very state that it compare-and-swaps against. The lease on the
key's lock blob is only the failure detector: whoever can take it knows that the holder is gone.
A holder that slept past its lease and was superseded can never write again, since its epoch is
old (a fencing token: https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from remotedict.backend import BackendError, LeaseHeld, LeaseLost, TransientError
from remotedict.engine.runtime import log
from remotedict.errors import (
    ItemLockedError,
    LockLostError,
    LockTimeoutError,
    RemoteDictError,
    StoreUnavailableError,
    UnknownOutcomeError,
)
from remotedict.features.holdings import UNLOCKED, Held, Holdings, later
from remotedict.pure.records import Change, Drop, Holder, Lock, LockEntry, Unlock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from concurrent.futures import Future

    from remotedict.backend import Lease
    from remotedict.engine.core import Engine
    from remotedict.features.holdings import Ending, Ends, Section
    from remotedict.pure.draft import Draft
    from remotedict.pure.records import Commit

LEASE_SECONDS = 15.0
"""How long a dead holder is waited for, at the most: a lease is renewed a few times in that."""

_POLL_SECONDS = 0.5
_LAST_SECOND = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
_TAKEOVER_SECONDS = 0.3
_SETTLE_SECONDS = 2.0  # how long a lock may take between its lease and its commit


class LockInfo(NamedTuple):
    """Who holds a lock, for people to read."""

    author: str
    host: str
    pid: int
    until: datetime | None
    """When it ends, by the holder's clock; None when it is renewed until released."""
    mine: bool
    """Whether this handle holds it."""


class _Obstructed(RemoteDictError):  # noqa: N818 - an answer to `Locks.commit`
    """A commit touches keys that somebody else has locked."""

    def __init__(self, locks: list[LockEntry]) -> None:
        super().__init__("locked")
        self.locks = locks


class _Lost(RemoteDictError):  # noqa: N818 - an answer to `Locks.commit`
    """A commit touches a key whose lock this handle has lost."""

    def __init__(self, key: str, held: Held) -> None:
        super().__init__("lost")
        self.key = key
        self.held = held


class _Unsettled(RemoteDictError):  # noqa: N818 - an answer to `Locks.commit`
    """A commit touches a key that is just being unlocked, and perhaps was lost before."""

    def __init__(self, unlocked: Future[None]) -> None:
        super().__init__("unsettled")
        self.unlocked = unlocked


class _Moved(RemoteDictError):  # noqa: N818 - an answer to `Locks._try`
    """A lock is no longer what was read before the lease was asked for."""


class Locks:
    """The locks that one handle holds, and the rules for writing past those of others.

    The holder is the handle: all of its threads write under its locks. Thread-safe.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.runtime = engine.runtime
        self._held = Holdings(engine.runtime)

    # -- writing past locks -----------------------------------------------------------------

    def commit(
        self,
        decide: Callable[[Draft], Sequence[Change]],
        *,
        comment: str = "",
        author: str | None = None,
        commit_id: bytes | None = None,
    ) -> Commit | None:
        """Make a commit that respects all locks.

        A lock of somebody else whose lease can be had is that of a dead holder: the commit then
        ends its epoch.

        Raises
        ------
        ItemLockedError
            Somebody else holds the lock of a key that the commit touches.
        LockLostError
            This handle held such a lock and lost it.
        """
        return self.runtime.call(lambda: self._commit(decide, comment, author, commit_id))

    def _commit(
        self,
        decide: Callable[[Draft], Sequence[Change]],
        comment: str,
        author: str | None,
        commit_id: bytes | None,
    ) -> Commit | None:
        dead: dict[str, bytes] = {}
        leases: list[Lease] = []
        try:
            while True:
                try:
                    return self._engine.commit(
                        lambda draft: self._judged(draft, decide(draft), dead),
                        comment=comment,
                        author=author,
                        commit_id=commit_id,
                    )
                except _Obstructed as obstructed:
                    for lock in sorted(obstructed.locks, key=lambda lock: lock.key):
                        if lease := self._lease_of_dead(lock):
                            leases.append(lease)
                            dead[lock.key] = lock.epoch
                except _Unsettled as unsettled:
                    unsettled.unlocked.result()
                except _Lost as lost:
                    self._held.lose(lost.key, lost.held)
                    raise LockLostError(lost.key) from None
        finally:
            for lease in leases:
                self._release(lease)

    def _judged(
        self, draft: Draft, changes: Sequence[Change], dead: dict[str, bytes]
    ) -> Sequence[Change]:
        """Return `changes`, and those that end dead holders' epochs; or refuse."""
        ended: list[Change] = []
        obstructing: list[LockEntry] = []
        touched = [c.key for c in changes if not isinstance(c, Lock | Unlock | Drop)]
        for key in dict.fromkeys(touched):
            lock, held = draft.lock(key), self._held.get(key)
            if held and lock and lock.epoch in held.epochs and not held.lost:
                continue
            if held and not held.pending:
                raise _Lost(key, held)
            if held and held.unlocked and self._held.inside(key):
                # By another thread than that of the section: if the lock turns out to be lost,
                # the section must not write, for it hasn't seen what was written since.
                raise _Unsettled(held.unlocked)
            if lock and dead.get(key) == lock.epoch:
                ended.append(Unlock(key, lock.epoch))
            elif lock:
                obstructing.append(lock)
        if obstructing:
            raise _Obstructed(obstructing)
        return [*ended, *changes]

    def _lease_of_dead(self, lock: LockEntry) -> Lease | None:
        """Return the lease on a dead holder's lock; None if the lock is gone by itself."""
        begun = self.runtime.monotonic()
        while True:
            try:
                lease = self._lease(lock.key, LEASE_SECONDS)
            except LeaseHeld:
                # Perhaps by another writer, who is ending the dead holder's epoch just now.
                now = self._engine.now().state.lock(lock.key)
                if now is None or now.epoch != lock.epoch:
                    return None
                if self.runtime.monotonic() - begun > _TAKEOVER_SECONDS:
                    raise self._locked(lock.key, lock) from None
                self.runtime.sleep(self.runtime.jitter(_TAKEOVER_SECONDS / 2))
            else:
                log.warning("the lock of %s on key %r has run out", _who(lock.holder), lock.key)
                return lease

    # -- locking ----------------------------------------------------------------------------

    def acquire(
        self,
        keys: Sequence[str],
        *,
        duration: float | None,
        wait: bool,
        timeout: float | None,
        section: Section | None = None,
    ) -> Ends:
        """Lock all of `keys`, or none; return what ends their locks had before.

        Parameters
        ----------
        keys : sequence of str
            In any order; they are taken in sorted order, so that lockers can't wait in a ring.
        duration : float or None
            Seconds after which the lock is no longer renewed; None for until released.
        wait : bool
            Whether to wait for other holders.
        timeout : float or None
            For how many seconds; None for as long as it takes.
        section : Section, optional
            The critical section that they are for.

        Raises
        ------
        ItemLockedError, LockTimeoutError
            Somebody else holds one of the keys.
        """
        return self.runtime.call(
            lambda: self._acquire(sorted(set(keys)), duration, wait, timeout, section),
            undo=self._undo,
        )

    def _acquire(
        self,
        keys: Sequence[str],
        duration: float | None,
        wait: bool,
        timeout: float | None,
        section: Section | None,
    ) -> Ends:
        begun = self.runtime.monotonic()
        while True:
            with self.runtime.still_wanted():  # or an interrupt has ended the caller's wait
                pass
            if section:
                self._held.disown(section)
            outcome = self._try(keys, duration)
            if isinstance(outcome, dict):
                return outcome
            key, lock = outcome
            waited = self.runtime.monotonic() - begun
            # No lock in the state, but a lease on it: somebody is just locking or unlocking.
            settling = lock is None and waited < _SETTLE_SECONDS
            if not wait and not settling:
                raise self._locked(key, lock)
            if timeout is not None and waited >= timeout:
                raise self._locked(key, lock, LockTimeoutError, f", after {timeout:g} s of waiting")
            pause = self.runtime.jitter(_POLL_SECONDS)
            if timeout is not None:
                pause = min(pause, max(timeout - waited, 0))
            self.runtime.sleep(pause)

    def _try(
        self, keys: Sequence[str], duration: float | None
    ) -> Ends | tuple[str, LockEntry | None]:
        """Try once; return the ends there were before, or a key that can't be had, and its lock.

        First the state is read, *then* the lease asked for, then the commit made, on condition
        that the lock is still the one read. In any other order one who slept in between could
        supersede a living holder.
        """
        engine = self._engine
        # What this handle holds, from before the state is read: another thread may lock, extend
        # or unlock in between, and that must not look like a loss.
        # So what is only about to be locked doesn't count yet.
        before = {
            key: (h, set(h.epochs)) for key in keys if (h := self._held.get(key)) and not h.pending
        }
        state = engine.now().state
        read = {key: state.lock(key) for key in keys}
        until = None if duration is None else self.runtime.monotonic() + duration
        held: dict[str, Held] = {}
        leases: dict[str, Lease] = {}
        try:
            for key in keys:
                mine, epochs = before.get(key, (None, set()))
                if self._held.get(key) is not mine or (mine and mine.pending):
                    return key, None  # another thread is locking or unlocking it
                if mine:
                    self._check_mine(key, read[key], mine, epochs)
                    held[key] = mine
                    if self._renewed(mine):
                        continue
                    # Its lease is lost for good: a fresh one needs a fresh epoch.
                try:
                    leases[key] = self._lease(key, min(duration or LEASE_SECONDS, LEASE_SECONDS))
                except LeaseHeld:
                    return key, read[key]
            ends = {key: held[key].until if key in held else UNLOCKED for key in keys}
            if leases or any(later(until, mine.until) for mine in held.values()):
                self._commit_locks(read, held, leases, duration)
            leases = {}
        except (_Moved, LeaseLost):
            # Whoever was quicker holds it now, or a lock ended before it was extended: look again.
            return keys[0], None
        finally:
            for lease in leases.values():
                self._release(lease)
        return ends

    def _commit_locks(
        self,
        read: dict[str, LockEntry | None],
        extended: dict[str, Held],
        fresh: dict[str, Lease],
        duration: float | None,
    ) -> None:
        runtime = self.runtime
        end = None if duration is None else int((runtime.time() + duration) * 1e6)
        holder = Holder(*runtime.process(), self._engine.tuning.author, end)
        epoch = runtime.uuid()
        until = None if duration is None else runtime.monotonic() + duration
        leases = {key: held.lease for key, held in extended.items()} | fresh

        def decide(draft: Draft) -> list[Change]:
            changes: list[Change] = []
            for key, before in read.items():
                lock = draft.lock(key)
                if (lock and lock.epoch) != (before and before.epoch):
                    raise _Moved
                if lock and key not in extended:
                    changes.append(Unlock(key, lock.epoch))
                changes.append(Lock(key, holder))
            return changes

        announced = self._held.announce(leases, until, epoch, extended)
        try:
            self._engine.commit(decide, commit_id=epoch)
        except BaseException as exc:
            self._held.retract(announced, epoch, in_doubt=isinstance(exc, UnknownOutcomeError))
            raise
        for key, lock in read.items():
            if lock and key not in extended:
                log.warning("took over the lock of %s on key %r", _who(lock.holder), key)
        self._held.confirm(announced, until, epoch)

    def _check_mine(self, key: str, lock: LockEntry | None, held: Held, epochs: set[bytes]) -> None:
        """Raise LockLostError unless the lock is one of this handle's epochs."""
        if held.lost or lock is None or lock.epoch not in epochs | held.epochs:
            self._held.lose(key, held)
            raise LockLostError(key)

    def _renewed(self, held: Held) -> bool:
        try:
            held.lease.renew()
        except LeaseLost:
            return False
        except TransientError as exc:
            msg = f"a lock couldn't be renewed: {exc}"
            raise StoreUnavailableError(msg) from exc
        held.asked = self.runtime.monotonic()
        return True

    # -- unlocking --------------------------------------------------------------------------

    def release(self, keys: Iterable[str]) -> None:
        """Unlock `keys`, all of which this handle holds, in one commit.

        Raises
        ------
        LockNotHeldError
            It doesn't hold one of them.
        LockLostError
            It did, and somebody else has superseded it. The others are unlocked.
        """
        self.runtime.call(lambda: self._release_all(list(dict.fromkeys(keys))))

    def _release_all(self, keys: list[str]) -> None:
        with self.runtime.still_wanted():  # or an interrupt leaves them locked
            ending = self._held.give_up(keys)
        self._unlock(ending)

    def _unlock(self, ending: Ending) -> None:
        """Unlock what is marked as being unlocked, also if an interrupt ends the wait for that."""
        lost: list[str] = []

        def decide(draft: Draft) -> list[Change]:
            lost.clear()
            changes: list[Change] = []
            for key, (one, _) in ending.items():
                lock = draft.lock(key)
                if lock and lock.epoch in one.epochs:
                    changes.append(Unlock(key, lock.epoch))
                else:
                    lost.append(key)
            return changes

        # The commit first: released before it, the lease would let somebody supersede the lock,
        # and this orderly unlock would look like a loss. If it fails, the locks are given up all
        # the same: one whose lease is free is ended by whoever meets it.
        try:
            # In a thread that nobody can abandon.
            self.runtime.spawn(lambda: self._engine.commit(decide)).result()
        finally:
            for key, (one, ended) in ending.items():
                if key in lost:
                    self._held.lose(key, one)
                else:
                    self._held.forget(key, one)
                ended.set_result(None)
                self._release(one.lease)
        if lost:
            raise LockLostError(lost[0])

    def force(self, keys: Iterable[str]) -> None:
        """End the locks on `keys`, whoever holds them."""
        self.runtime.call(lambda: self._force(sorted(set(keys))))

    def _force(self, keys: list[str]) -> None:
        for key in keys:
            lock = self._engine.now().state.lock(key)
            if lock is None:
                continue
            # In the order of every acquisition: state, lease, commit on condition. The holder's
            # lease is broken, so that the next locker need not wait for its end.
            try:
                lease = self._lease(key, LEASE_SECONDS, force=True)
            except LeaseHeld:
                continue  # a waiter got hold of it just now: so the old holder is done with it
            try:
                self._engine.commit(lambda draft, lock=lock: _ending(draft, lock))  # type: ignore[misc]
            finally:
                self._release(lease)
            log.warning("forced the lock of %s on key %r", _who(lock.holder), key)
            held = self._held.get(key)
            if held and lock.epoch in held.epochs:
                self._held.forget(key, held)

    def orphan(self) -> None:
        """Hold nothing: this is a forked child, and the locks are its parent's."""
        self._held.orphan()

    def _undo(self, ends: Ends) -> None:
        """Unlock what was acquired for nobody, and wasn't held before."""
        for key in self._held.settled(key for key, end in ends.items() if end == UNLOCKED):
            try:
                self._release_all([key])
            except RemoteDictError as exc:
                log.info("the lock on key %r was dropped, and will run out: %s", key, exc)

    # -- critical sections ------------------------------------------------------------------

    def enter(self, key: str, section: Section) -> Future[None] | None:
        """Let a section of `key` begin; or return what tells that no other thread is in one."""
        return self._held.enter(key, section)

    def took(self, section: Section, ends: Ends) -> None:
        """Know what ends the locks had before the section acquired them."""
        self._held.took(section, ends)

    def leave(self, section: Section) -> None:
        """End a section: its locks become what they were before, and other threads may enter."""
        try:
            if ending := self._held.leave(section):
                self._unlock(ending)
        finally:
            self._held.exit(section)

    def drop(self, section: Section) -> None:
        """End a section that was cut off; nobody hears of an error."""
        keys = ", ".join(map(repr, section.inside))
        try:
            self.leave(section)
        except RemoteDictError as exc:
            log.info("the locks on %s were dropped, and will run out: %s", keys, exc)

    # -- looking ----------------------------------------------------------------------------

    def listing(self) -> dict[str, LockInfo]:
        """Return all locks of the dictionary by key."""
        state = self._engine.known().state
        listing = {}
        for key, lock in sorted(state.locks.items()):
            held, until = self._held.get(key), lock.holder.until
            listing[key] = LockInfo(
                lock.holder.author,
                lock.holder.host,
                lock.holder.pid,
                _datetime(until),
                held is not None and lock.epoch in held.epochs,
            )
        return listing

    def close(self) -> None:
        """Unlock all that is held, as well as can be, and stop renewing."""
        if keys := self._held.close():
            try:
                self.release(keys)
            except RemoteDictError as exc:
                log.warning("locks on %s weren't released: %s", ", ".join(keys), exc)

    # -- leases -----------------------------------------------------------------------------

    def _lease(self, key: str, seconds: float, *, force: bool = False) -> Lease:
        engine = self._engine
        lease_id = engine.runtime.lease_id()
        path = engine.layout.lock(key)
        return engine.backend.lease(path, seconds, lease_id=lease_id, force=force)

    def _release(self, lease: Lease) -> None:
        try:
            lease.release()
        except (BackendError, RemoteDictError) as exc:
            log.info("a lease wasn't released, and will run out: %s", exc)

    def _locked(
        self,
        key: str,
        lock: LockEntry | None,
        cls: type[ItemLockedError] = ItemLockedError,
        note: str = "",
    ) -> ItemLockedError:
        if lock is None:
            return cls(key, "unknown", None, note)
        left = None
        if lock.holder.until is not None:
            left = max(lock.holder.until / 1e6 - self.runtime.time(), 0)
        return cls(key, _who(lock.holder), left, note)


def _datetime(micros: int | None) -> datetime | None:
    if micros is None:
        return None
    # Somebody else wrote it: what is beyond all calendars must not break the list.
    return datetime.fromtimestamp(min(micros / 1e6, _LAST_SECOND), UTC)


def _ending(draft: Draft, lock: LockEntry) -> list[Change]:
    now = draft.lock(lock.key)
    return [Unlock(lock.key, lock.epoch)] if now and now.epoch == lock.epoch else []


def _who(holder: Holder) -> str:
    return f"{holder.author} (process {holder.pid} on {holder.host})"
