"""Transactions: reads of one state and writes that hold only if it still holds."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any, Self

from remotedict.backend import BlobNotFound
from remotedict.errors import ConflictError, InvalidKeyError, KeyNotFoundError, SnapshotExpiredError
from remotedict.features.selection import no_repeats, pair, select
from remotedict.features.writing import Gather, changing, placeholders, pretend, setting
from remotedict.pure.draft import Draft
from remotedict.pure.naming import check_key
from remotedict.pure.records import Delete, Set

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from remotedict.engine.core import Engine
    from remotedict.engine.index import Known
    from remotedict.features.writing import Gathering, Operation, Writer
    from remotedict.pure.codec import Encoded


class Transaction(MutableMapping[str, Any]):
    """The dictionary as of one commit, with the writes made here on top of it.

    At the end of its context all writes are one commit, if nothing that was read here has changed
    since; else `ConflictError` is raised, and nothing was written. Iterating, ``len``, and what
    uses them, count as reading all keys. Two transactions that share no keys never conflict.

    Made by `RemoteDict.transaction`; for one thread or task.

    Attributes
    ----------
    id : str or None
        The id of the commit, once it is made.
    seq : int or None
        Its number.
    """

    def __init__(self, engine: Callable[[], Engine], writer: Writer, gather: Gather) -> None:
        self._get_engine = engine
        self._writer = writer
        self._gather = gather
        self._begun = False

    def __enter__(self) -> Self:
        gathering = self._gather.begin()
        try:
            reads = next((c for c in gathering.conditions if isinstance(c, _Reads)), None)
            if reads is None:
                reads = _Reads(self._get_engine().now())
                gathering.conditions.append(reads)
                gathering.view = lambda: reads.overlay(gathering).draft.copy()  # noqa: PLW0108
        except BaseException as exc:
            self._gather.__exit__(type(exc), exc, None)
            raise
        self._reads = reads
        self._gathering = gathering
        self._begun = True
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._gather.__exit__(exc_type, exc, traceback)
        self._begun = False

    @property
    def id(self) -> str | None:
        """The id of the commit, once it is made."""
        return self._gather.id

    @property
    def seq(self) -> int | None:
        """The number of the commit, once it is made."""
        return self._gather.seq

    # -- reading ----------------------------------------------------------------------------

    def __getitem__(self, selector: Any) -> Any:
        """Return the value of a key, or a list of those of several."""
        keys, several = select(selector)
        mine = self._overlay()
        self._reads.keys.update(key for key in keys if key not in mine.written)
        # What a copy made here has is what its source had.
        self._reads.keys.update(mine.sources[key] for key in keys if key in mine.sources)
        missing = [key for key in keys if mine.draft.get(key) is None]
        if missing:
            raise KeyNotFoundError(dict.fromkeys(missing))
        old = list(dict.fromkeys(key for key in keys if key not in mine.written))
        values = self._read(old) if old else {}
        found = [
            mine.value(key, self._get_engine()) if key in mine.written else values[key]
            for key in keys
        ]
        return found if several else found[0]

    def _read(self, keys: list[str]) -> dict[str, Any]:
        try:
            return self._get_engine().read_many(keys, self._reads.known, lambda _: None)
        except SnapshotExpiredError as exc:
            raise ConflictError([exc.key or ""]) from exc

    def __contains__(self, key: object) -> bool:
        """Tell whether `key` is there."""
        try:
            name = check_key(key)
        except InvalidKeyError:
            return False
        mine = self._overlay()
        if name not in mine.written:
            self._reads.keys.add(name)
        return mine.draft.get(name) is not None

    def __iter__(self) -> Iterator[str]:
        """Iterate over all keys, which counts as reading all of them."""
        return iter(self._scan())

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._scan())

    def __len__(self) -> int:
        return len(self._scan())

    def _scan(self) -> list[str]:
        draft = self._overlay().draft
        self._reads.all = True
        return list(draft)

    def version(self, key: str) -> int:
        """Return the version of `key`; what is written here is not one yet."""
        check_key(key)
        self._overlay()
        self._reads.keys.add(key)
        return self._reads.known.state.version(key)

    # -- writing ----------------------------------------------------------------------------

    def __setitem__(self, selector: Any, value: Any) -> None:
        """Set a key, or several."""
        keys, several = select(selector)
        self._overlay()
        items = pair(keys, value) if several else [(keys[0], value)]
        self._add(setting(self._writer.encode(items)))

    def __ior__(self, other: Any) -> Self:
        """Update from another mapping, or from pairs."""
        self.update(other)
        return self

    def __delitem__(self, selector: Any) -> None:
        """Delete a key, or several."""
        keys, several = select(selector)
        if several:
            no_repeats(keys, "delete")
        mine = self._overlay()
        self._reads.keys.update(key for key in keys if key not in mine.written)
        missing = [key for key in keys if mine.draft.get(key) is None]
        if missing:
            raise KeyNotFoundError(missing)
        self._add(changing(lambda _: [Delete(key, 0) for key in keys]))

    def popitem(self) -> tuple[str, Any]:
        """Delete the key that was inserted last; return it with its value."""
        key = next(reversed(self), None)
        if key is None:
            raise KeyNotFoundError([], "popitem(): the dictionary is empty")
        return key, self.pop(key)

    def clear(self) -> None:
        """Delete all keys."""
        del self[self._scan()]

    def _add(self, operation: Operation) -> None:
        self._gathering.add(operation)

    def _overlay(self) -> _Overlay:
        if not self._begun or not self._gathering.open:
            msg = "a transaction is used inside its own `with` block, and only there"
            raise RuntimeError(msg)
        return self._reads.overlay(self._gathering)

    def __repr__(self) -> str:
        if not self._begun:
            return "<transaction, ended>"
        return f"<transaction on commit {self._reads.known.state.seq}>"


class _Overlay:
    """What the operations so far would leave: who is there, and the bytes of the new values."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self.draft = Draft(known.state)
        self.written: set[str] = set()
        self.sources: dict[str, str] = {}
        self.encoded: dict[bytes, Encoded] = {}
        self.made = 0

    def add(self, operation: Operation) -> None:
        self.encoded |= {generation: encoded for _, generation, encoded in operation.values}
        changes = pretend(self.draft, operation, placeholders(operation))
        for change in changes:
            if isinstance(change, Set | Delete):
                self.written.add(change.key)
                self.sources.pop(change.key, None)
            if isinstance(change, Set) and change.origin not in (None, change.key):
                source = str(change.origin)
                self.sources[change.key] = self.sources.get(source, source)
        self.made += 1

    def value(self, key: str, engine: Engine) -> Any:
        """Return what reading a written key gives: a copy, as of its assignment."""
        entry = self.draft.get(key)
        assert entry is not None  # noqa: S101 - it is there
        encoded, where = self.encoded.get(entry.generation), entry.location(key)
        if encoded is None:  # a copy, or a revert, of what was there before
            try:
                data = engine.runtime.call(lambda: engine.values.fetch(where))
            except BlobNotFound:
                raise ConflictError([key]) from None
        else:
            data = encoded.join()
        index = engine.created().index
        assert index is not None  # noqa: S101 - it was created
        return engine.values.decode(where, data, index.dictionary)


class _Reads:
    """What a transaction has read, and the condition that it has not changed."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self.keys: set[str] = set()
        self.all = False
        self._cuts = 0
        self._overlay = _Overlay(known)

    def overlay(self, gathering: Gathering) -> _Overlay:
        if self._cuts != gathering.cuts:
            self._cuts, self._overlay = gathering.cuts, _Overlay(self.known)
        for operation in gathering.operations[self._overlay.made :]:
            self._overlay.add(operation)
        return self._overlay

    def __call__(self, draft: Draft) -> None:
        """Raise ConflictError if what was read is not as it was."""
        base = self.known.state.seq
        changed = set(draft.changed(base)) if self.all else set()
        for key in self.keys:
            item = draft.item(key)
            if item and item.stamp.seq > base:
                changed.add(key)
        if changed:
            raise ConflictError(sorted(changed)[:10])
