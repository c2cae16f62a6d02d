"""Reading: the surface that the dictionary, its snapshots and its mirrors share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from remotedict.engine.core import entries
from remotedict.errors import InvalidKeyError, KeyNotFoundError, SnapshotExpiredError
from remotedict.features import files
from remotedict.features import query as querying
from remotedict.features.metadata import Metadata
from remotedict.features.progress import progress
from remotedict.features.selection import select
from remotedict.features.views import Items, Keys, Values
from remotedict.pure.naming import check_key

if TYPE_CHECKING:
    import os
    from io import BufferedReader
    from typing import BinaryIO

    import pandas as pd

    from remotedict.engine.core import Engine
    from remotedict.engine.index import Known
    from remotedict.pure.entry import Entry
    from remotedict.pure.location import Locations

_T = TypeVar("_T")
_COMPLETIONS = 10_000
_ATTEMPTS = 10


class Readable(Mapping[str, Any]):
    """A mapping of keys to values as of some commit: now, then, or as last seen.

    Whatever does not change a dictionary; all of it but values comes from the index.
    """

    _show_progress: bool | None = None

    @property
    @abstractmethod
    def _engine(self) -> Engine:
        """What reads."""

    @abstractmethod
    def _known(self, ticket: int | None = None) -> Known:
        """Return the state to read; one that was current after `ticket` was drawn, if given."""

    # -- as a dict --------------------------------------------------------------------------

    def __getitem__(self, selector: Any) -> Any:
        """Return the value of a key, or a list of those of several, all as of one moment.

        Raises
        ------
        KeyNotFoundError
            A ``KeyError`` that names all missing keys.
        """
        keys, several = select(selector)
        if not several:
            return self._value(keys[0])
        found = self._values(keys, None)
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
        return name in self._known().state

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._known().state)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys in insertion order, as of one moment: when the first is asked for."""
        return _Lazy(self, lambda known: iter(known.state))

    def __reversed__(self) -> Iterator[str]:
        """Iterate over the keys from the last one inserted to the first."""
        return _Lazy(self, lambda known: reversed(known.state))

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

        def read() -> dict[str, Any]:
            known = self._known()
            return self._values(list(known.state), known)

        return self._whole(read)

    def __eq__(self, other: object) -> bool:
        """Compare with another mapping: first the keys, then the values."""
        if self is other:
            return True
        if not isinstance(other, Mapping):
            return NotImplemented
        return self._whole(lambda: self._equals(other))

    def _equals(self, other: Mapping[str, Any]) -> bool:
        known = self._known()
        if isinstance(other, Readable):  # its keys and values as of one moment, too
            seen = other._known()  # noqa: SLF001
            if set(known.state) != set(seen.state):
                return False
            theirs: Mapping[str, Any] = other._values(list(seen.state), seen)  # noqa: SLF001
        elif set(known.state) != set(other.keys()):
            return False
        else:
            theirs = other
        return all(
            value is theirs[key] or value == theirs[key]
            for key, value in self._pairs(known.state.locations(), known)
        )

    __hash__ = None  # type: ignore[assignment]

    def __or__(self, other: object) -> dict[Any, Any]:
        """Return a plain dict of both; where they share a key, the right one's value."""
        return self.copy() | dict(other) if isinstance(other, Mapping) else NotImplemented

    def __ror__(self, other: object) -> dict[Any, Any]:
        """Return a plain dict of both; where they share a key, this one's value."""
        return dict(other) | self.copy() if isinstance(other, Mapping) else NotImplemented

    def __ior__(self, other: object) -> Any:
        """Refuse: it is read-only."""
        msg = f"{type(self).__name__} is read-only: |= can't change it"
        raise TypeError(msg)

    # -- what the index knows ---------------------------------------------------------------

    def version(self, key: str) -> int:
        """Return how often `key` was set or deleted: 0 for a key that never was set.

        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> d["k"] = 1
        >>> d["k"] = 2
        >>> d.version("k")
        2
        """
        return self._known().state.version(check_key(key))

    @property
    def metadata(self) -> Metadata:
        """The metadata of all keys: a live mapping of each key to its dict."""
        return Metadata(self._known)

    def query(
        self,
        metadata: Mapping[str, Any] | None = None,
        /,
        *,
        facts: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> list[str]:
        """Return the keys whose metadata and facts are as given, in insertion order.

        No value is read.

        Parameters
        ----------
        metadata, **more
            Fields of the metadata: what they must equal, or a callable that tells whether a
            value will do. A key without the field doesn't match.
        facts : mapping, optional
            The same for what is recorded of a value: `type` (a class, or its name: `DataFrame`),
            `shape`, `dtype` (as text), `nbytes`, `stored`, `modified` (a datetime), `version` and
            `author`.

        Raises
        ------
        ValueError
            There is no such fact.

        Examples
        --------
        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> d.put("run-1", 0.5, metadata={"owner": "nightly-job"})
        1
        >>> d.put("run-2", "failed", metadata={"owner": "nightly-job"})
        1
        >>> d.query(owner="nightly-job", facts={"type": "float"})
        ['run-1']
        >>> d.query(facts={"nbytes": lambda n: n > 1000})
        []
        """
        wanted = {} if metadata is None else metadata
        return querying.query(self._known().state, wanted, facts or {}, more)

    def glob(self, pattern: str) -> list[str]:
        """Return the keys that match a shell pattern: ``*`` anything, ``?`` a letter, ``[ab]``.

        Case counts, and ``/`` is a letter like any other.

        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> d.update({"run-1/loss": 1, "run-2/loss": 2, "run-2/model": 3})
        >>> d.glob("run-*/loss")
        ['run-1/loss', 'run-2/loss']
        """
        if not isinstance(pattern, str):
            msg = f"a pattern must be a str, not {type(pattern).__name__}"
            raise TypeError(msg)
        return [key for key in self._known().state if fnmatchcase(key, pattern)]

    def info(self) -> pd.DataFrame:
        """Return what the index knows of each key: a DataFrame with a row for each.

        Its columns are type, shape, dtype, nbytes (in memory), stored (in the store, compressed),
        version, modified, author and metadata.
        """
        return querying.info(self._known().state)

    # -- bytes as files ---------------------------------------------------------------------

    def open(self, key: str) -> BufferedReader:
        r"""Return a readable binary file over a ``bytes`` value, without loading it whole.

        Only the parts that are read are downloaded, in chunks of 1 MiB. The file stays on the
        value that it was opened on.

        Raises
        ------
        TypeError
            The value isn't ``bytes``.
        SnapshotExpiredError
            While reading: the value was replaced, and is no longer kept.

        Examples
        --------
        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> d["log"] = b"first line\nsecond line\n"
        >>> with d.open("log") as file:
        ...     _ = file.seek(6)
        ...     file.readline()
        b'line\n'
        """
        return files.open_value(self._engine, check_key(key), *self._located(key))

    def get_file(self, key: str, file: str | os.PathLike[str] | BinaryIO) -> None:
        """Write a ``bytes`` value to a file, in constant memory.

        Parameters
        ----------
        key : str
            The key.
        file : path or binary file
            A path is replaced at once when all is there; if that fails it stays as it was.

        Raises
        ------
        TypeError
            The value isn't ``bytes``.
        """
        bar = self._bar("reading")
        files.get_file(self._engine, check_key(key), file, bar, *self._located(key))

    def _located(self, key: str) -> tuple[Entry | None, bytes]:
        """Return which entry to read, and of which dictionary; None for the newest."""
        known = self._known()
        [(_, entry)] = entries(known.state, [key])
        assert known.index is not None  # noqa: S101 - it has an entry
        return entry, known.index.dictionary

    def _bar(self, what: str) -> files.Bar:
        return lambda size: progress(size, what, self._show_progress, "B")

    def _ipython_key_completions_(self) -> list[str]:
        return list(islice(self._known().state, _COMPLETIONS))

    # -- the inside -------------------------------------------------------------------------

    def _value(self, key: str) -> Any:
        return self._values([key], self._known())[key]

    def _values(self, keys: list[str], known: Known | None) -> dict[str, Any]:
        with progress(len(keys), "reading", self._show_progress) as done:
            return self._engine.read_many(keys, known or self._known(), done)

    def _renew(self) -> bool:
        """Look for a newer state, a value of this one being gone; tell whether there can be one."""
        return False

    def _whole(self, read: Callable[[], _T]) -> _T:
        """Return what `read` makes of one state: of a newer one if it has gone by meanwhile."""
        for _ in range(_ATTEMPTS):
            try:
                return read()
            except SnapshotExpiredError:
                if not self._renew():
                    raise
        return read()

    def _stream(self, reverse: bool) -> Iterator[tuple[str, Any]]:
        """Yield all pairs; if their state has gone by before the first, those of a newer one."""

        def begun() -> tuple[_Lazy, tuple[str, Any] | None]:
            pairs = _Lazy(
                self, lambda known: self._pairs(known.state.locations(reverse=reverse), known)
            )
            return pairs, next(pairs, None)

        pairs, first = self._whole(begun)
        if first is None:
            return
        yield first
        try:
            yield from pairs.rest()
        except SnapshotExpiredError:
            self._renew()  # so that it can be begun anew
            raise

    def _pairs(self, wanted: Iterator[Locations], known: Known) -> Iterator[tuple[str, Any]]:
        return self._engine.stream(wanted, known)


class _Lazy(Iterator[Any]):
    """Iterates over the state of the moment in which the first item is asked for.

    ``list(d)`` calls `iter`, then `len`, then `next`: the check that `len` makes will do for
    both, since it was begun after `iter`.
    """

    def __init__(self, mapping: Readable, take: Callable[[Known], Iterator[Any]]) -> None:
        self._mapping = mapping
        self._take = take
        self._ticket = mapping._engine.index.ticket()  # noqa: SLF001
        self._items: Iterator[Any] | None = None

    def __next__(self) -> Any:
        return next(self.rest())

    def rest(self) -> Iterator[Any]:
        """Return what iterates over what is left, without a detour."""
        if self._items is None:
            self._items = self._take(self._mapping._known(self._ticket))  # noqa: SLF001
        return self._items
