"""Holdings: the locks that one handle holds, and the renewal of their leases."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from remotedict.backend import BackendError, LeaseLost
from remotedict.engine.runtime import Signal, log
from remotedict.errors import ClosedError, LockNotHeldError, RemoteDictError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from concurrent.futures import Future

    from remotedict.backend import Lease
    from remotedict.engine.runtime import Runtime

_RENEWALS_PER_LEASE = 3
_IDLE_SECONDS = 15.0

UNLOCKED = -math.inf
"""The end of a lock that wasn't held: it was long ago."""

Ends = dict[str, float | None]
"""By key, when the renewals of its lock end, by the runtime's monotonic clock; None for never."""


@dataclass
class Held:
    """A lock that this handle holds.

    `epochs` has two while it is being extended; it is `pending` while its first commit, or its
    unlock, isn't known to stand. Both are for other threads, whose writes may be judged right
    after that commit, and need not find the lock in the state. `until` is when the renewals end,
    by the runtime's monotonic clock; None for never. It is `lost` once it was superseded, and
    kept for the critical sections in it. `unlocked` tells that its unlock has come to an end.
    """

    lease: Lease
    until: float | None
    asked: float  # when it was last acquired, or asked to be renewed
    epochs: set[bytes]
    renewing: bool = True
    pending: bool = False
    lost: bool = False
    unlocked: Future[None] | None = None
    asking: int = 0  # renewals that have had no answer yet

    def due(self) -> float:
        """Return when it is to be renewed, or, at its end, released."""
        renewal = self.asked + self.lease.seconds / _RENEWALS_PER_LEASE
        return min(renewal, self.end())

    def end(self) -> float:
        """Return when the renewals end; not while it is being extended."""
        return self.until if self.until is not None and len(self.epochs) == 1 else math.inf


@dataclass(eq=False)
class Section:
    """A critical section.

    `owner` is the thread that it excludes the others for, `inside` the keys that it has entered,
    and `ends` what the ends of their locks become when it has ended.
    """

    owner: int
    inside: list[str] = field(default_factory=list)
    ends: Ends = field(default_factory=dict)


Ending = dict[str, tuple[Held, "Future[None]"]]
"""By key, a lock that is being unlocked, and what is to tell that this has come to an end."""

Announced = dict[str, tuple[Held, "Lease", bool]]
"""By key, a lock that is about to have a new epoch, its lease, and whether it was held before."""


class Holdings:
    """The locks that one handle holds, by key. Thread-safe.

    While there are any, a background thread renews their leases in time, until each one's end,
    or that of the process. A renewal that gets no answer is tried again while the lease may
    still be the holder's; a lease that is lost is lost for good.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._held: dict[str, Held] = {}
        self._closed = False
        self._renew_guard()

    def _renew_guard(self) -> None:
        self._guard = threading.Lock()
        self._sections: dict[str, list[Section]] = {}  # all of one thread, the outermost first
        self._waiting: dict[str, Future[None]] = {}
        self._news = Signal()
        self._renewing = False

    def orphan(self) -> None:
        """Hold nothing: this is a forked child, and the locks are its parent's."""
        self._held = {}
        self._renew_guard()  # another thread may have had it at that moment

    def close(self) -> list[str]:
        """Renew nothing any more; return what is still held."""
        with self._guard:
            self._closed = True
            self.wake()
        return self.settled(list(self._held))

    def get(self, key: str) -> Held | None:
        """Return the lock on `key`, if this handle holds it."""
        return self._held.get(key)

    def inside(self, key: str) -> bool:
        """Tell whether a thread is in a critical section of `key`."""
        with self._guard:
            return key in self._sections

    def forget(self, key: str, held: Held) -> None:
        """Hold a lock on `key` no more; one that was taken since stays."""
        with self._guard:
            if self._held.get(key) is held:
                del self._held[key]

    def enter(self, key: str, section: Section) -> Future[None] | None:
        """Let a section of `key` begin; or return what tells that no other thread is in one."""
        with self._guard:
            sections = self._sections.setdefault(key, [])
            if sections and sections[0].owner != section.owner:
                return self._waiting.setdefault(key, self._runtime.future())
            sections.append(section)
            section.inside.append(key)
            return None

    def disown(self, section: Section) -> None:
        """Forget what other threads have locked and lost before a section could acquire its own."""
        with self._guard:
            for key in section.inside:
                held = self._held.get(key)
                if held and held.lost and self._sections.get(key) == [section]:
                    del self._held[key]

    def took(self, section: Section, ends: Ends) -> None:
        """Know what ends the locks had before the section acquired them."""
        with self._guard:
            # One around it may have been cut off meanwhile, and have left it another end.
            section.ends = {
                key: end if end == UNLOCKED else section.ends.get(key, end)
                for key, end in ends.items()
            }

    def leave(self, section: Section) -> Ending:
        """Give the locks the ends that they had before a section; return those to be unlocked.

        These are marked so. If another section was entered after this one, and hasn't ended yet,
        then its own end is to do that: it must not lose its lock.
        """
        unlocked = {}
        with self._guard:
            for key, end in section.ends.items():
                sections = self._sections.get(key, [section])  # a forked child knows of none
                held = self._held.get(key)
                if sections[-1] is not section:
                    within = sections[sections.index(section) + 1]
                    if within.ends.get(key) != UNLOCKED:
                        within.ends[key] = end
                elif held and not held.pending:
                    if end == UNLOCKED:
                        unlocked[key] = self._end(held)
                    else:
                        held.until = end
                        self.wake()
            section.ends = {}
        return unlocked

    def exit(self, section: Section) -> None:
        """Let other threads enter, if no other section of this thread is left."""
        with self._guard:
            for key in section.inside:
                sections = self._sections.get(key, [section])
                sections.remove(section)
                if not sections:
                    self._sections.pop(key, None)
                    if (held := self._held.get(key)) and held.lost:
                        self._lose(key, held)
                    if waiting := self._waiting.pop(key, None):
                        waiting.set_result(None)
            section.inside = []

    def lose(self, key: str, held: Held) -> None:
        """Know that a lock was superseded.

        It is forgotten, but not before the critical sections of the key have ended: some other
        thread may be told of the loss first, and what a section writes then, or under a lock that
        was taken anew, would come after writes that it hasn't seen.
        """
        with self._guard:
            if self._held.get(key) is held:
                self._lose(key, held)

    def _lose(self, key: str, held: Held) -> None:
        held.lost, held.pending = True, False
        if key not in self._sections:
            del self._held[key]

    def announce(
        self,
        leases: Mapping[str, Lease],
        until: float | None,
        epoch: bytes,
        extended: Mapping[str, Held],
    ) -> Announced:
        """Let the other threads know of an epoch that is about to be.

        Raises LeaseLost if just now a lock that is to be extended has come to its end, or was lost;
        or if another thread has locked or unlocked meanwhile.
        """
        now = self._runtime.monotonic()
        with self._guard:
            if self._closed:
                msg = "this handle was closed; open a new one"
                raise ClosedError(msg)
            for key, lease in leases.items():
                held = self._held.get(key)
                if held is not extended.get(key):
                    raise LeaseLost
                if held and (held.lost or (held.lease is lease and not held.renewing)):
                    raise LeaseLost
            if not self._renewing:
                self._runtime.thread(self._renew, "renewer")
                self._renewing = True
            announced = {}
            for key, lease in leases.items():
                held, was_there = self._held.get(key), key in self._held
                if held is None:
                    held = self._held[key] = Held(lease, until, now, {epoch}, pending=True)
                held.epochs.add(epoch)
                announced[key] = (held, lease, was_there)
            self.wake()
        return announced

    def retract(self, announced: Announced, epoch: bytes, *, in_doubt: bool) -> None:
        """Undo `announce`; but an epoch that may have come to be stays good for its holder."""
        with self._guard:
            for key, (held, _, was_there) in announced.items():
                if not was_there and self._held.get(key) is held:
                    del self._held[key]
                elif not in_doubt:
                    held.epochs.discard(epoch)

    def confirm(self, announced: Announced, until: float | None, epoch: bytes) -> None:
        """Hold what was announced; a lock that was held before doesn't end any sooner.

        What another thread has unlocked meanwhile stays so. Raises ClosedError if the handle was
        closed meanwhile.
        """
        with self._guard:
            for key, (held, lease, was_there) in announced.items():
                held.epochs = {epoch}
                if was_there:
                    if held.lease is not lease:
                        held.lease, held.renewing = lease, True
                        held.asked = self._runtime.monotonic()
                    held.until = until if later(until, held.until) else held.until
                else:
                    held.pending = False
                    if self._closed and self._held.get(key) is held:
                        del self._held[key]
            self.wake()
            if self._closed:
                msg = "the handle was closed while it locked"
                raise ClosedError(msg)

    def give_up(self, keys: Sequence[str]) -> Ending:
        """Mark `keys` as being unlocked, and return them; raise LockNotHeldError otherwise."""
        with self._guard:
            for key in keys:
                if key not in self._held or self._held[key].pending:
                    raise LockNotHeldError(key)
            return {key: self._end(self._held[key]) for key in keys}

    def _end(self, held: Held) -> tuple[Held, Future[None]]:
        """Mark a lock as being unlocked.

        One that is found to be lost meanwhile is marked again if another thread unlocks it, too:
        so each has a future of its own to conclude.
        """
        held.pending, held.unlocked = True, self._runtime.future()
        return held, held.unlocked

    def settled(self, keys: Iterable[str]) -> list[str]:
        """Return those of `keys` that are held and that no other thread is just unlocking."""
        with self._guard:
            return [key for key in keys if key in self._held and not self._held[key].pending]

    def wake(self) -> None:
        """Let the renewer look again: something has changed."""
        self._news.give()

    def _renew(self) -> None:
        clock = self._runtime.monotonic
        while True:
            with self._guard:
                if self._closed or not self._held:
                    self._renewing = False
                    return
                due = [held.due() for held in self._held.values() if held.renewing]
                news = self._news = Signal()
            pause = min(due, default=clock() + _IDLE_SECONDS) - clock()
            self._runtime.wait(news, max(pause, 0.01))
            with self._guard:
                now = clock()
                ripe = [h for h in self._held.values() if h.renewing and h.due() <= now]
                for held in ripe:
                    held.asked = now
                # By the time that so many wait for an answer, the lease of the first has run out.
                ripe = [held for held in ripe if held.asking < _RENEWALS_PER_LEASE]
                for held in ripe:
                    held.asking += 1
            for held in ripe:
                # Each on its own: one that gets no answer must not hold up the others.
                self._runtime.spawn(partial(self._renew_one, held, now))

    def _renew_one(self, held: Held, now: float) -> None:
        try:
            with self._guard:
                if not held.renewing:
                    return
                held.renewing = now < held.end()
                lease = held.lease
            if held.renewing:
                lease.renew()
            else:
                lease.release()
        except LeaseLost:
            log.warning("a lease on a lock was lost")
            with self._guard:
                if held.lease is lease:  # and not a fresh one by now
                    held.renewing = False
        except (BackendError, RemoteDictError) as exc:
            log.info("a lease wasn't renewed, and is tried again: %s", exc)
        finally:
            with self._guard:
                held.asking -= 1


def later(end: float | None, other: float | None) -> bool:
    """Tell whether a lock until `end` outlasts one until `other`; None is for ever."""
    return other is not None and (end is None or end > other)
