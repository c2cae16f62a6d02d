"""Critical sections: ``with d.lock("a", "b"):``, which excludes machines and threads alike."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from remotedict.engine.runtime import log
from remotedict.errors import (
    OTHER_THREAD,
    ItemLockedError,
    LockLostError,
    LockTimeoutError,
    StoreUnavailableError,
    UnknownOutcomeError,
)
from remotedict.features.holdings import Section

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from remotedict.features.locks import Locks

_POLL_SECONDS = 0.5


class CriticalSection:
    """What ``d.lock(...)`` returns: a context in which this thread alone holds the keys.

    Other threads of the handle wait for the thread that is in sections of the key, everybody else
    for its locks. Only what this section has locked is unlocked at its end: so sections nest. Use
    it once.
    """

    def __init__(
        self,
        locks: Callable[[], Locks],
        keys: Sequence[str],
        *,
        duration: float | None,
        wait: bool,
        timeout: float | None,
    ) -> None:
        self._find_locks = locks
        self._keys = sorted(set(keys))
        self._duration = duration
        self._wait = wait
        self._timeout = timeout
        self._section = Section(0)  # none yet

    def __repr__(self) -> str:
        return f'<lock of {self._names}; it is held within "with d.lock(...):">'

    @property
    def _names(self) -> str:
        return ", ".join(map(repr, self._keys))

    def __enter__(self) -> None:
        if self._section.inside:
            msg = f"the lock of {self._names} is already entered: use a d.lock(...) of its own"
            raise RuntimeError(msg)
        # Not before: a section that was made before a fork belongs to whoever enters it.
        self._locks = self._find_locks()
        section = Section(self._locks.runtime.ident())
        # The job refers to this object: so `__del__` comes after all that the job does.
        self._locks.runtime.call(
            lambda: self._enter(section), undo=lambda _: self._locks.drop(section)
        )

    def _enter(self, section: Section) -> None:
        begun = self._locks.runtime.monotonic()
        try:
            for key in self._keys:
                self._exclude_threads(key, section, begun)
            self._section = section
            ends = self._locks.acquire(
                self._keys,
                duration=self._duration,
                wait=self._wait,
                timeout=self._left(begun),
                section=section,
            )
            self._locks.took(section, ends)
        except BaseException:
            self._locks.drop(section)
            raise

    def _exclude_threads(self, key: str, section: Section, begun: float) -> None:
        while True:
            with self._locks.runtime.still_wanted():  # or an interrupt has ended the wait
                others = self._locks.enter(key, section)
            if others is None:
                return
            if not self._wait:
                raise ItemLockedError(key, OTHER_THREAD)
            left = self._left(begun)
            if left == 0:
                raise LockTimeoutError(key, OTHER_THREAD)
            with suppress(TimeoutError):
                others.result(_POLL_SECONDS if left is None else min(left, _POLL_SECONDS))

    def _left(self, begun: float) -> float | None:
        if self._timeout is None:
            return None
        return max(self._timeout - (self._locks.runtime.monotonic() - begun), 0)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._locks.runtime.call(lambda: self._locks.leave(self._section))
        except (LockLostError, StoreUnavailableError) as failure:
            if exc is not None:
                log.warning("the critical section of %s didn't end well: %s", self._names, failure)
            elif isinstance(failure, LockLostError):
                raise
            else:
                doubt = (
                    f"whether the locks on {self._names} were held to the end of their critical "
                    "section; what was written in it is written, and the locks will run out"
                )
                raise UnknownOutcomeError(None, str(failure), doubt) from failure

    def __del__(self) -> None:
        """See that nothing stays locked if an interrupt came between the body and `__exit__`."""
        if self._section.inside:  # this may be any thread, and have a guard: another one does it
            self._locks.runtime.post(partial(self._locks.drop, self._section))
