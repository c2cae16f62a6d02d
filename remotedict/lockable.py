"""Locks: one holder at a time, across machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remotedict.errors import InvalidKeyError
from remotedict.features.critical import CriticalSection
from remotedict.features.selection import select
from remotedict.features.timing import check_timeout

if TYPE_CHECKING:
    from remotedict.features.locks import LockInfo
    from remotedict.session import Parts, Session

_DURATION_MAX = 366 * 86_400


class Lockable:
    """A dictionary whose keys can be locked."""

    _session: Session

    @property
    def _parts(self) -> Parts:
        return self._session.parts()

    def lock_item(
        self,
        item: Any,
        duration: float = 15,
        wait: bool = True,
        timeout: float | None = None,
    ) -> None:
        """Lock a key (or several: all or none) for this handle, across machines.

        While it is locked only this handle can write, delete or lock it; everybody can read it.
        Locking it again extends the lock.

        Parameters
        ----------
        item : str or several
            The key; it need not exist yet.
        duration : float
            Seconds, 1 or more; -1 locks until `unlock_item`, or until the process ends. A holder
            that dies loses its locks after 15 seconds at the most.
        wait : bool
            Whether to wait while somebody else holds it.
        timeout : float, optional
            For how many seconds to wait; by default as long as it takes.

        Raises
        ------
        ItemLockedError
            Somebody else holds it, and `wait` is False.
        LockTimeoutError
            Somebody else held it until `timeout`.

        Examples
        --------
        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> d.lock_item("model", duration=30)
        >>> d.locks["model"].mine
        True
        >>> d.unlock_item("model")
        """
        keys = _lockable(select(item)[0])
        lasting = _check_duration(duration)
        self._parts.locks.acquire(keys, duration=lasting, wait=wait, timeout=check_timeout(timeout))

    def unlock_item(self, item: Any, *, force: bool = False) -> None:
        """Unlock a key, or several in one commit.

        Parameters
        ----------
        item : str or several
            The key.
        force : bool
            Whether to end the lock even if somebody else holds it: their next write of the key
            then raises LockLostError.

        Raises
        ------
        LockNotHeldError
            This handle doesn't hold it.
        LockLostError
            It did, but somebody has superseded it since.
        """
        keys = _lockable(select(item)[0])
        locks = self._parts.locks
        if force:
            locks.force(keys)
        else:
            locks.release(keys)

    def lock(
        self,
        *items: Any,
        duration: float | None = None,
        wait: bool = True,
        timeout: float | None = None,
    ) -> CriticalSection:
        """Return a context in which this thread alone, on all machines, holds the keys.

        Parameters
        ----------
        *items : str
            The keys; several are locked in one step, all or none.
        duration : float, optional
            Seconds after which the lock is given up; by default at the end of the context.
        wait, timeout
            As for `lock_item`.

        Raises
        ------
        ItemLockedError, LockTimeoutError
            At the beginning: as for `lock_item`; or another thread of this handle holds a key.
        LockLostError
            At the end: somebody else has superseded a lock. No write was made after that.
        UnknownOutcomeError
            At the end: the store gives no answer, so that it isn't known whether the locks were
            held so long. What was written inside is written; the locks run out.

        Examples
        --------
        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> d["n"] = 1
        >>> with d.lock("n", timeout=10):
        ...     d["n"] += 1
        >>> d["n"]
        2
        """
        keys = _lockable([key for item in items for key in select(item)[0]])
        return CriticalSection(
            lambda: self._parts.locks,
            keys,
            duration=None if duration is None else _check_duration(duration),
            wait=wait,
            timeout=check_timeout(timeout),
        )

    @property
    def locks(self) -> dict[str, LockInfo]:
        """Who holds which key: a dict of `LockInfo`."""
        return self._parts.locks.listing()


def _lockable(keys: list[str]) -> list[str]:
    if not keys:
        msg = "a lock needs at least one key"
        raise InvalidKeyError(msg)
    return keys


def _check_duration(duration: Any) -> float | None:
    """Return how long a lock is renewed: None for as long as it is held."""
    if isinstance(duration, bool) or not isinstance(duration, int | float):
        msg = f"duration= must be a number of seconds, not {type(duration).__name__}"
        raise TypeError(msg)
    if duration == -1:
        return None
    if not 1 <= duration <= _DURATION_MAX:
        msg = f"duration= must be 1 second to a year, or -1 for until unlocked; not {duration}"
        raise ValueError(msg)
    return duration
