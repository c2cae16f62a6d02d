"""The face: a mutable mapping that every machine with the same connection shares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Self, TypeVar

import pandas as pd

from remotedict.errors import InvalidKeyError, KeyNotFoundError, RemoteDictError
from remotedict.features.critical import CriticalSection
from remotedict.features.progress import progress
from remotedict.features.selection import no_repeats, pair, select
from remotedict.features.showing import html
from remotedict.features.views import Items, Keys, Values
from remotedict.pure.naming import check_key
from remotedict.pure.records import Change, Delete, Set
from remotedict.session import Options, Session

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from remotedict.engine.core import Engine
    from remotedict.engine.index import Known
    from remotedict.features.locks import LockInfo
    from remotedict.pure.state import Draft, State
    from remotedict.pure.table import Entry
    from remotedict.session import Parts, Place

_D = TypeVar("_D", bound="RemoteDict")
_MISSING: Any = object()
_REPR_SECONDS = 1.5
_COMPLETIONS = 10_000
_DURATION_MAX = 366 * 86_400


class RemoteDict(MutableMapping[str, Any]):
    """A dictionary of Python objects that lives in a store and is shared by all who open it.

    Made by `remotedict.open`, `AzureDictionary`, `LocalDictionary` or `MemoryDictionary`.
    Whatever a ``dict`` with ``str`` keys does, it does; several keys are read and written at
    once by a list or tuple of keys.

    Parameters
    ----------
    place : Place
        Where it is.
    folder_name : str
        Which dictionary there.
    author : str, optional
        Who writes, for the history; ``user@host`` by default.
    timeout : float
        Seconds without any answer from the store after which an operation gives up.
    max_staleness : float
        Seconds for which a read may trust what it knows of the index without asking. 0, the
        default, asks each time: a read then sees every write that had returned before it.
    inline_bytes : int
        Values of no more bytes are stored in the index itself. With 0 every value is a blob of
        its own.
    cache_bytes : int
        How many bytes of values (as stored) are kept in memory, to be read again without a
        download. What is cached can't be stale: whether it is current is asked each time.
    progress : bool, optional
        Whether long batches show a bar on stderr; by default if it is a terminal or a notebook.
    pickle_credentials : bool
        Whether a pickle of this handle carries its credentials. By default it doesn't, and the
        process that opens it finds its own.

    Raises
    ------
    RemoteDictError
        The store can't be reached, or refuses.

    Notes
    -----
    Thread-safe. After a fork both processes may use it; locks stay with the parent. Each read
    and write is atomic and takes effect at one moment between its call and its return: all
    machines see the same order.

    Examples
    --------
    >>> import remotedict
    >>> d = remotedict.open("memory://docs")
    >>> d["a", "b"] = 1, 2
    >>> d[["a", "b"]]
    [1, 2]
    >>> d.pop("a"), list(d)
    (1, ['b'])
    """

    def __init__(self, place: Place, folder_name: str, **options: Any) -> None:
        self._session = Session(place, folder_name, Options.of(options))
        self._engine.known()  # say now what is wrong with the place, not at the first use
        self._shown_index: tuple[int, pd.Series[str]] | None = None

    @property
    def _parts(self) -> Parts:
        return self._session.parts()

    @property
    def _engine(self) -> Engine:
        return self._parts.engine

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle where it is, not what is in it, and no secrets: see `pickle_credentials`."""
        return _reopened, (type(self), self._session)

    def __copy__(self) -> Self:
        """Return another handle on the same dictionary."""
        return _reopened(type(self), self._session.again())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return another handle on the same dictionary, whose values live in the store."""
        return self.__copy__()

    # -- reading ----------------------------------------------------------------------------

    def __getitem__(self, selector: Any) -> Any:
        """Return the value of a key, or a list of those of several, all as of one moment.

        Raises
        ------
        KeyNotFoundError
            A ``KeyError`` that names all missing keys.
        """
        keys, several = select(selector)
        if not several:
            return self._engine.read(keys[0])[0]
        found = self._read(keys, None)
        return [found[key] for key in keys]

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of `key`, or `default` if it isn't there."""
        check_key(key)
        try:
            return self[key]
        except KeyNotFoundError:
            return default

    def __contains__(self, key: object) -> bool:
        """Tell whether `key` is there; what can't be a key isn't."""
        try:
            name = check_key(key)
        except InvalidKeyError:
            return False
        return name in self._engine.known().state

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._engine.known().state)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys in insertion order, as of one moment: when the first is asked for."""
        return _Lazy(self._engine, reverse=False)

    def __reversed__(self) -> Iterator[str]:
        """Iterate over the keys from the last one inserted to the first."""
        return _Lazy(self._engine, reverse=True)

    def keys(self) -> Keys:
        """Return a live view of the keys."""
        return Keys(self)

    def values(self) -> Values:
        """Return a live view of the values; iterating fetches them ahead, a window at a time."""
        return Values(self, self._stream)

    def items(self) -> Items:
        """Return a live view of the pairs of key and value."""
        return Items(self, self._stream)

    def copy(self) -> dict[str, Any]:
        """Return a plain dict with everything in it, as of one moment.

        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> d.update(a=1, b=2)
        >>> d.copy()
        {'a': 1, 'b': 2}
        """
        known = self._engine.known()
        return self._read(list(known.state), known)

    def __eq__(self, other: object) -> bool:
        """Compare with another mapping: first the keys, then the values."""
        if self is other:
            return True
        if not isinstance(other, Mapping):
            return NotImplemented
        known = self._engine.known()
        if isinstance(other, RemoteDict):  # its keys and values as of one moment, too
            seen = other._engine.known()
            if set(known.state) != set(seen.state):
                return False
            theirs: Mapping[str, Any] = other._read(list(seen.state), seen)
        elif set(known.state) != set(other.keys()):
            return False
        else:
            theirs = other
        return all(
            value is theirs[key] or value == theirs[key]
            for key, value in self._engine.stream(iter(known.state), known)
        )

    __hash__ = None  # type: ignore[assignment]

    def __or__(self, other: object) -> dict[Any, Any]:
        """Return a plain dict of both; where they share a key, the right one's value."""
        return self.copy() | dict(other) if isinstance(other, Mapping) else NotImplemented

    def __ror__(self, other: object) -> dict[Any, Any]:
        """Return a plain dict of both; where they share a key, this one's value."""
        return dict(other) | self.copy() if isinstance(other, Mapping) else NotImplemented

    def __ior__(self, other: Any) -> Self:  # type: ignore[misc]
        """Update from another mapping, or from pairs, in one commit."""
        self.update(other)
        return self

    @property
    def index(self) -> pd.Series[str]:
        """Where each key's value is: a Series named "name", key -> path of the blob.

        Checked by etag, and built anew only when something has changed; what the caller does
        with it changes nothing.
        """
        known: Known = self._engine.known()
        revision = known.index.revision if known.index else 0
        if self._shown_index is None or self._shown_index[0] != revision:
            layout, keys, paths = self._engine.layout, [], []
            for key in known.state:
                entry = known.state.get(key)
                blob = entry.blob(key) if entry else None
                keys.append(key)
                paths.append(layout.path(blob) if blob else layout.index)
            series = pd.Series(
                paths, index=pd.Index(keys, name="index", dtype="str"), name="name", dtype="str"
            )
            self._shown_index = (revision, series)
        return self._shown_index[1].copy()

    # -- writing ----------------------------------------------------------------------------

    def __setitem__(self, selector: Any, value: Any) -> None:
        """Set a key, or several in one commit: every reader sees all of it, or none.

        Raises
        ------
        UnpicklableValueError
            A value can't be pickled.
        ItemLockedError
            Somebody else holds the lock of one of the keys.
        """
        keys, several = select(selector)
        self._write(pair(keys, value) if several else [(keys[0], value)])

    def update(self, other: Any = (), /, **more: Any) -> None:
        """Set many keys in one commit. Of a key given twice the last value counts."""
        if isinstance(other, RemoteDict):
            other = other.copy()
        merged: dict[str, Any] = {}
        for key, value in dict(other, **more).items():
            merged[check_key(key)] = value
        self._write(list(merged.items()))

    def __delitem__(self, selector: Any) -> None:
        """Delete a key, or several in one commit.

        Raises
        ------
        KeyNotFoundError
            Naming all of those that aren't there; nothing is deleted then.
        """
        keys, several = select(selector)
        if several:
            no_repeats(keys, "delete")

        def decide(draft: Draft) -> list[Change]:
            missing = [key for key in keys if draft.get(key) is None]
            if missing:
                raise KeyNotFoundError(missing)
            return [Delete(key) for key in keys]

        if keys:
            self._parts.locks.commit(decide)

    def pop(self, key: str, default: Any = _MISSING) -> Any:
        """Delete `key` and return its value; of several who pop it only one gets it.

        Raises
        ------
        KeyNotFoundError
            It isn't there, and no `default` was given.
        """
        check_key(key)
        while True:
            try:
                value, entry = self._engine.read(key, confirmed=True)
                self._delete_exactly(key, entry)
            except _Changed:
                continue  # read it anew: what is returned must be what was deleted
            except KeyNotFoundError:
                if default is _MISSING:
                    raise
                return default
            return value

    def popitem(self) -> tuple[str, Any]:
        """Delete the key that was inserted last; return it with its value."""
        while True:
            known = self._engine.now()
            key = next(reversed(known.state), None)
            if key is None:
                raise KeyNotFoundError([], "popitem(): the dictionary is empty")
            try:
                value, entry = self._engine.read(key, known=known)
                self._delete_exactly(key, entry, last=True)
            except (_Changed, KeyNotFoundError):
                continue
            return key, value

    def _delete_exactly(self, key: str, entry: Entry, *, last: bool = False) -> None:
        def decide(draft: Draft) -> list[Change]:
            now = draft.get(key)
            if now is None or now.generation != entry.generation:
                raise _Changed
            if last and next(reversed(draft)) != key:
                raise _Changed
            return [Delete(key)]

        self._parts.locks.commit(decide)

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the value of `key`; if it isn't there, set it to `default` first."""
        check_key(key)
        while True:
            try:
                return self._engine.read(key, confirmed=True)[0]
            except KeyNotFoundError:
                pass
            try:
                self._write([(key, default)], absent=True)
            except _Changed:
                continue
            return default

    def clear(self) -> None:
        """Delete all keys in one commit."""
        self._parts.locks.commit(lambda draft: [Delete(key) for key in draft])

    def _write(self, items: list[tuple[str, Any]], *, absent: bool = False) -> None:
        if not items:
            return
        parts = self._parts

        def commit(changes: list[Set]) -> None:
            def decide(draft: Draft) -> list[Set]:
                if absent and any(draft.get(change.key) for change in changes):
                    raise _Changed
                return changes

            parts.locks.commit(decide)

        with progress(len(items), "writing", self._session.options.progress) as done:
            parts.engine.write(items, commit, done)

    # -- locks ------------------------------------------------------------------------------

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
        self._parts.locks.acquire(
            keys, duration=lasting, wait=wait, timeout=_check_timeout(timeout)
        )

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
            timeout=_check_timeout(timeout),
        )

    @property
    def locks(self) -> dict[str, LockInfo]:
        """Who holds which key: a dict of `LockInfo`."""
        return self._parts.locks.listing()

    # -- the handle -------------------------------------------------------------------------

    def close(self) -> None:
        """Release what this handle has locked, and its connections. Other handles go on."""
        self._session.close()

    def __enter__(self) -> Self:
        """Return the dictionary itself; it is closed at the end of the context."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the handle."""
        self.close()

    def __repr__(self) -> str:
        """Return where it is and how many keys it has; waits at most two seconds for that."""
        state, note = self._glance()
        count = "unknown" if state is None else str(len(state))
        return f"{self._session.title()}; Num elements: {count}{note}"

    def _repr_html_(self) -> str:
        state, note = self._glance()
        count = "unknown" if state is None else f"{len(state):,}"
        title = f"{self._session.title()}; Num elements: {count}{note}"
        return html(title, state, self._engine.runtime.time() if state else 0)

    def _glance(self) -> tuple[State | None, str]:
        """Return what can be learnt of the state in a moment, and what to say about it."""
        known = None
        try:
            engine = self._engine
            known = engine.index.known
            return engine.now(_REPR_SECONDS).state, ""
        except Exception as exc:  # noqa: BLE001 - a repr must never raise
            if isinstance(exc, RemoteDictError) and not isinstance(exc, TimeoutError):
                note = f" ({type(exc).__name__})"
            else:
                note = f" ({'as last seen; ' if known else ''}the store doesn't answer)"
            return known.state if known else None, note

    def _ipython_key_completions_(self) -> list[str]:
        state, _ = self._glance()
        return list(islice(state or (), _COMPLETIONS))

    # -- the inside -------------------------------------------------------------------------

    def _read(self, keys: list[str], known: Known | None) -> dict[str, Any]:
        with progress(len(keys), "reading", self._session.options.progress) as done:
            return self._engine.read_many(keys, known, done)

    def _stream(self, reverse: bool) -> Iterator[tuple[str, Any]]:
        return _Lazy(self._engine, reverse=reverse, take=self._engine.stream)


class _Lazy(Iterator[Any]):
    """Iterates over the state of the moment in which the first item is asked for.

    ``list(d)`` calls `iter`, then `len`, then `next`: the check that `len` makes will do for
    both, since it was begun after `iter`.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        reverse: bool,
        take: Callable[[Iterator[str], Known], Iterator[Any]] = lambda keys, _: keys,
    ) -> None:
        self._engine = engine
        self._reverse = reverse
        self._take = take
        self._ticket = engine.index.ticket()
        self._items: Iterator[Any] | None = None

    def __next__(self) -> Any:
        if self._items is None:
            known = self._engine.since(self._ticket)
            keys = reversed(known.state) if self._reverse else iter(known.state)
            self._items = self._take(keys, known)
        return next(self._items)


class _Changed(RemoteDictError):  # noqa: N818 - an answer to this module alone
    """The state isn't the one that was read."""


def _reopened(cls: type[_D], session: Session) -> _D:
    made = cls.__new__(cls)
    made._session = session  # noqa: SLF001
    made._shown_index = None  # noqa: SLF001
    return made


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


def _check_timeout(timeout: Any) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        msg = f"timeout= must be a number of seconds, not {type(timeout).__name__}"
        raise TypeError(msg)
    if not timeout >= 0:
        msg = f"timeout= must not be {timeout}"
        raise ValueError(msg)
    return timeout
