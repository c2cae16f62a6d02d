"""Critical sections: ``with d.lock("a", "b"):``, which excludes machines and threads alike."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from remotedict.engine.runtime import log
from remotedict.errors import ItemLockedError, LockLostError, LockTimeoutError
from remotedict.features.locks import Taken

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from remotedict.features.locks import Locks


class CriticalSection:
    """What ``d.lock(...)`` returns: a context in which this thread alone holds the keys.

    The mutexes keep out the other threads of the handle, the locks everybody else. Only what
    this section has locked is unlocked at its end: so sections nest. Use it once.
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
        self._inside = object()  # what it is known by; a reference to itself would keep it alive
        self._taken = Taken([], {})
        self._stack = ExitStack()

    def __repr__(self) -> str:
        keys = ", ".join(map(repr, self._keys))
        return f'<lock of {keys}; it is held within "with d.lock(...):">'

    def __enter__(self) -> None:
        # Not before: a section that was made before a fork belongs to whoever enters it.
        self._locks = self._find_locks()
        begun = self._locks.monotonic()
        taken = Taken([], {})
        try:
            with ExitStack() as stack:
                for key in self._keys:
                    self._enter_mutex(stack, key, self._left(begun))
                    stack.callback(self._locks.exit, key, self._inside)
                    self._locks.enter(key, self._inside)
                taken = self._locks.acquire(
                    self._keys, duration=self._duration, wait=self._wait, timeout=self._left(begun)
                )
                self._taken = taken
                self._stack = stack.pop_all()
        except BaseException:  # an interrupt, perhaps between two lines of this
            self._locks.drop(taken.new)
            raise

    def _left(self, begun: float) -> float | None:
        if self._timeout is None:
            return None
        return max(self._timeout - (self._locks.monotonic() - begun), 0)

    def _enter_mutex(self, stack: ExitStack, key: str, left: float | None) -> None:
        mutex = self._locks.mutex(key)
        if not mutex.acquire(
            blocking=self._wait, timeout=-1 if left is None or not self._wait else left
        ):
            cls = LockTimeoutError if self._wait else ItemLockedError
            raise cls(key, "another thread of this handle")
        stack.callback(mutex.release)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with self._stack:
                for key, end in self._taken.ends.items():
                    self._locks.end_at(key, end)
                # A key that was unlocked inside is nothing to unlock here; a loss is said (again).
                if left := [key for key in self._taken.new if self._locks.holds(key)]:
                    self._locks.release(left)
        except LockLostError as lost:
            if exc is None:
                raise
            log.warning("the lock on %r was lost as well", lost.item_name)
        finally:
            self._locks.drop(self._taken.new)
            self._taken = Taken([], {})

    def __del__(self) -> None:
        """See that nothing stays locked if an interrupt came between the body and `__exit__`."""
        if any(self._taken):
            self._locks.end_later(self._keys, self._inside, self._taken)
