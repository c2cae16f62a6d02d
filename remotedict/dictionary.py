"""The face: a mutable mapping that every machine with the same connection shares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sized
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import numpy as np
import pandas as pd

from remotedict.errors import (
    ConflictError,
    CorruptBlobError,
    DecryptionError,
    KeyNotFoundError,
    RemoteDictError,
    SignatureError,
    VersionConflictError,
)
from remotedict.features import files
from remotedict.features.history import again, check_version
from remotedict.features.metadata import WritableMetadata, encoded
from remotedict.features.progress import progress
from remotedict.features.reading import Readable
from remotedict.features.selection import no_repeats, pair, select
from remotedict.features.showing import html
from remotedict.features.writing import Changed, Operation, Writer, changing, setting
from remotedict.lockable import Lockable
from remotedict.mendable import Mendable
from remotedict.pure.draft import Draft
from remotedict.pure.naming import check_key
from remotedict.pure.records import Annotate, Change, Delete, Set
from remotedict.pure.secrecy import Hidden
from remotedict.session import Options, Session
from remotedict.transactional import Transactional
from remotedict.versioned import Versioned

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from types import TracebackType
    from typing import BinaryIO

    from remotedict.engine.index import Known
    from remotedict.engine.stats import Stats
    from remotedict.pure.entry import Entry
    from remotedict.pure.state import State
    from remotedict.session import Place

_D = TypeVar("_D", bound="RemoteDict")
_MISSING: Any = object()
_REPR_SECONDS = 1.5
_COMPLETIONS = 10_000


class RemoteDict(Transactional, Versioned, Lockable, Mendable, MutableMapping[str, Any]):
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
    history : str or int, optional
        Which versions of a key are kept, for all who use the dictionary: ``"none"`` (the newest),
        ``"all"``, or how many. By default it stays as it is, and is ``"none"`` at first; another
        one than before is stored, for everybody.
    retention : float
        Seconds, at the least, for which a replaced value is kept though `history` doesn't: for
        those who are reading it. An hour by default. It is whoever does the upkeep whose
        retention counts: give all writers the same.
    codec : str
        ``"pickle"`` stores whatever can be pickled: open only dictionaries that you trust.
        ``"safe"`` stores, and reads, only what needs no code to be read.
    max_value_bytes : int, optional
        How large a value may be, before compression, to be written or to be read.
    cache_bytes : int
        How many bytes of values (as stored) are kept in memory, to be read again without a
        download. What is cached can't be stale: whether it is current is asked each time.
    cache_dir : path-like, optional
        A folder of this machine in which what was read is kept as well, for all processes of
        this user, and for later ones.
    cache_dir_bytes : int
        How many bytes there, of all dictionaries together. 4 GiB by default.
    progress : bool, optional
        Whether long batches show a bar on stderr; by default if it is a terminal or a notebook.
    pickle_credentials : bool
        Whether a pickle of this handle carries its credentials. By default it doesn't, and the
        process that opens it finds its own.
    signing_key : str, bytes or list of them, optional
        Signs everything that is stored (HMAC-SHA256), and refuses all that isn't signed so: what
        somebody else wrote is neither decoded nor unpickled. At least 16 bytes, best
        ``secrets.token_hex(32)``. Of several the first one signs, and all are accepted. By
        default that of the environment variable ``REMOTEDICT_SIGNING_KEY``, if any (several with
        commas between them); ``()`` for none.
    encryption_key : str, bytes or list of them, optional
        Encrypts everything that is stored (AES-256-GCM): the store sees only sizes, and the names
        of blobs, in which keys appear. Otherwise the same, with ``REMOTEDICT_ENCRYPTION_KEY``.
        Needs ``remotedict[crypto]``.

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
        options = Hidden(options)
        self._attach(Session(place, folder_name, Options.of(options)))
        try:
            self._engine.known()  # say now what is wrong with the place, not at the first use
        except (SignatureError, DecryptionError):
            raise  # with other keys it may be whole
        except CorruptBlobError:
            return  # whatever is done next says so; but for repair, which needs a handle
        policy = self._session.options.history
        if policy is not None and policy != self.history_policy:
            self.history_policy = policy

    def _attach(self, session: Session) -> None:
        self._session = session
        self._writer = Writer(session.parts, session.options.progress)
        self._shown_index: tuple[int, pd.Series[str]] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Set what can be set: `history_policy`. Other names are mistakes."""
        if not name.startswith("_") and not isinstance(getattr(type(self), name, None), property):
            hint = "assign to history_policy" if name == "history" else "see help(type(d))"
            msg = (
                f"a dictionary has no {name!r} that can be set: {hint}. Its keys are set as d[key]"
            )
            raise AttributeError(msg)
        super().__setattr__(name, value)

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

    def _value(self, key: str) -> Any:
        # The check of the index and the fetch of the value go out together.
        return self._engine.read(key)[0]

    def _located(self, key: str) -> tuple[Entry | None, bytes]:  # noqa: ARG002
        return None, b""  # the newest, also if that changes meanwhile

    def _values(self, keys: list[str], known: Known | None) -> dict[str, Any]:
        with progress(len(keys), "reading", self._session.options.progress) as done:
            return self._engine.read_many(keys, known, done)

    @property
    def metadata(self) -> WritableMetadata:
        """The metadata of all keys: a live mapping of each key to its dict.

        ``d.metadata["k"] = {...}`` replaces that of a key, ``d.metadata["k"].update(...)`` merges
        into it. The value is untouched, and so is its version.

        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> d["k"] = 1
        >>> d.metadata["k"] = {"owner": "ann"}
        >>> d.metadata["k"].update(stage="raw")
        >>> d.metadata["k"]
        {'owner': 'ann', 'stage': 'raw'}
        """
        return WritableMetadata(self._known, self._writer)

    @property
    def index(self) -> pd.Series[str]:
        """Where each key's value is: a Series named "name", key -> path of the blob.

        Checked by etag, and built anew only when something has changed; what the caller does
        with it changes nothing.
        """
        known: Known = self._engine.known()
        revision = known.index.revision if known.index else 0
        if self._shown_index is None or self._shown_index[0] != revision:
            blocks = list(known.state.paths(self._engine.layout.paths))
            keys = list(chain.from_iterable(keys for keys, _ in blocks))
            series = pd.Series(
                np.concatenate([np.empty(0, object), *(paths for _, paths in blocks)]),
                index=pd.Index(keys, name="index", dtype="str"),
                name="name",
                dtype="str",
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
        self._set(pair(keys, value) if several else [(keys[0], value)])

    def update(self, other: Any = (), /, **more: Any) -> None:
        """Set many keys in one commit. Of a key given twice the last value counts.

        However many they are, no more than some 32 MiB of values are in memory at once: those of
        a generator, say, are uploaded as they come, and then named by one commit.

        Parameters
        ----------
        other : mapping, or iterable of pairs
            Keys with their values.
        **more
            More of them.

        Raises
        ------
        UnpicklableValueError
            A value can't be pickled. Nothing is set then.
        """
        for key in other if isinstance(other, dict) else ():
            check_key(key)  # before anything is uploaded
        pairs = ((check_key(key), value) for key, value in chain(_pairs(other), more.items()))
        if self._writer.gathering:
            self._set(list(dict(pairs).items()))
        else:
            self._writer.stream(pairs, len(other) if isinstance(other, Sized) else None)

    def __ior__(self, other: Any) -> Self:  # type: ignore[override,misc]
        """Update from another mapping, or from pairs, in one commit."""
        self.update(other)
        return self

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
            return [Delete(key, 0) for key in keys]

        if keys:
            self._writer.make(changing(decide), early=True)

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
            except Changed:
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
            except (Changed, KeyNotFoundError):
                continue
            return key, value

    def _delete_exactly(self, key: str, entry: Entry, *, last: bool = False) -> None:
        def decide(draft: Draft) -> list[Change]:
            now = draft.get(key)
            if now is None or now.generation != entry.generation:
                raise Changed(key)
            if last and next(reversed(draft)) != key:
                raise Changed(key)
            return [Delete(key, 0)]

        self._make_exactly(changing(decide))

    def _make_exactly(self, operation: Operation) -> None:
        """Make an operation on what was read; raise Changed if that must be read anew."""
        try:
            self._writer.make(operation, early=True)
        except Changed as changed:
            if self._writer.gathering is None:
                raise
            msg = f"key {changed.key!r} was changed earlier in this commit, or by somebody else"
            raise ConflictError([changed.key], msg) from None

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the value of `key`; if it isn't there, set it to `default` first."""
        check_key(key)

        def absent(draft: Draft) -> None:
            if draft.get(key):
                raise Changed(key)

        while True:
            try:
                return self._engine.read(key, confirmed=True)[0]
            except KeyNotFoundError:
                pass
            try:
                self._make_exactly(setting(self._writer.encode([(key, default)]), absent))
            except Changed:
                continue
            return default

    def clear(self) -> None:
        """Delete all keys in one commit."""
        self._writer.make(changing(lambda draft: [Delete(key, 0) for key in draft]))

    def put(
        self,
        key: str,
        value: Any,
        *,
        version: int | None = None,
        if_absent: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> int | None:
        """Set a key on a condition, or with metadata; return its new version.

        Parameters
        ----------
        key : str
            The key.
        value : object
            The value.
        version : int, optional
            The version that this shall be: one more than the newest; 1 only for a key that was
            never set.
        if_absent : bool
            Only if the key isn't there now; it may have been.
        metadata : dict, optional
            Replaces the key's metadata, in the same commit. By default they stay.

        Returns
        -------
        int or None
            The new version; None inside `commit` and `transaction`, whose end makes it.

        Raises
        ------
        VersionConflictError
            The condition doesn't hold; nothing was written.
        MetadataError
            The metadata isn't a dict that JSON can hold.

        Examples
        --------
        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> d.put("k", "mine", version=1, metadata={"owner": "ann"})
        1
        >>> try:
        ...     d.put("k", "yours", version=1)
        ... except remotedict.VersionConflictError as conflict:
        ...     conflict.expected
        2
        """
        check_key(key)
        if version is not None:
            version = check_version(version)
        text = None if metadata is None else encoded(metadata)

        def require(draft: Draft | State) -> None:
            comes = draft.version(key) + 1
            if version is not None and isinstance(draft, Draft) and key in draft.own:
                msg = f"key {key!r} was written in this commit already; version= is for the first"
                raise ConflictError([key], msg)
            if version is not None and version != comes:
                raise VersionConflictError(key, comes, version)
            if if_absent and draft.get(key):
                raise VersionConflictError(key, comes, None)

        self._refuse_early(require)
        values = self._writer.encode([(key, value)])

        def decide(draft: Draft, sets: list[Set]) -> list[Change]:
            require(draft)
            return [*sets] if text is None else [*sets, Annotate(key, 0, text)]

        commit = self._writer.make(
            Operation(values, decide), early=version is not None or if_absent
        )
        if commit is None:
            return None
        return next(change.version for change in commit.changes if isinstance(change, Set))

    def _refuse_early(self, require: Callable[[State], None]) -> None:
        """Raise what speaks against a write before its value is uploaded, if that is known."""
        known = self._engine.index.known
        if known and not self._writer.gathering:
            try:
                require(known.state)
            except VersionConflictError:
                require(self._engine.now().state)

    def put_file(self, key: str, file: str | os.PathLike[str] | BinaryIO) -> None:
        """Set a key to the ``bytes`` of a file, in constant memory.

        Parameters
        ----------
        key : str
            The key.
        file : path or binary file
            An open one is taken from its position to its end.

        Raises
        ------
        TypeError
            It is open in text mode, or isn't a file.
        ValueError
            It became shorter or longer meanwhile. Nothing was written.
        RuntimeError
            Inside `commit` or `transaction`: upload it first, and `copy_item` it there.
        """
        check_key(key)
        if self._writer.gathering:
            msg = (
                "put_file() is a commit of its own: call it before commit() or transaction(), "
                "under another key, and copy_item() that inside"
            )
            raise RuntimeError(msg)
        files.put_file(
            self._engine,
            key,
            file,
            lambda sets: self._writer.make(changing(lambda _: sets)),
            self._bar("writing"),
        )

    def copy_item(self, source: str, target: str) -> None:
        """Set `target` to the value and metadata of `source`; the bytes are shared.

        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> d["a"] = "large"
        >>> d.copy_item("a", "b")
        >>> d["b"]
        'large'
        """
        check_key(source)
        check_key(target)

        def decide(draft: Draft) -> list[Change]:
            entry = draft.get(source)
            if entry is None:
                raise KeyNotFoundError([source])
            old = draft.get(target)
            changes: list[Change] = [again(target, source, entry)]
            if entry.metadata != (old.metadata if old else ""):
                changes.append(Annotate(target, 0, entry.metadata))
            return changes

        self._writer.make(changing(decide), early=True)

    def _set(self, items: list[tuple[str, Any]]) -> None:
        if items:
            self._writer.make(setting(self._writer.encode(items)))

    # -- the handle -------------------------------------------------------------------------

    @property
    def stats(self) -> Stats:
        """What this handle has asked of the store since it was opened; no request is made.

        With all that goes on beside: watching, mirrors, upkeep. It can be asked for after
        `close`. A process that got the handle by a pickle or a fork begins with 0.

        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> before = d.stats
        >>> d["k"] = "value"
        >>> (d.stats - before).requests
        3
        >>> before = d.stats
        >>> d["k"]
        'value'
        >>> d.stats - before
        Stats(requests=1, gets=1, not_modified=1)
        """
        return self._session.meter.read()

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
        if not hasattr(self, "_session"):
            return f"<{type(self).__name__} that wasn't opened>"
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


def _reopened(cls: type[_D], session: Session) -> _D:
    made = cls.__new__(cls)
    made._attach(session)  # noqa: SLF001
    return made


def _pairs(other: Any) -> Iterable[tuple[Any, Any]]:
    """Return what `dict` would make a dict of, as pairs."""
    if isinstance(other, Readable):
        return other.items()
    if hasattr(other, "keys"):
        return ((key, other[key]) for key in other.keys())  # noqa: SIM118 - as dict does it
    return cast("Iterable[tuple[Any, Any]]", other)
