"""State: what a dictionary is as of one commit, and how a commit changes it.

A state never changes: `State.apply` returns a new one. Yet no commit copies it: a state is a
*view*, at its seq, of a shared store that only grows. Most entries lie in a columnar table (the
*base*); the changes since then in dicts of chains ``[(seq, value), …]``, in which a view looks
for the newest item that is not newer than itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from msgspec.structs import replace

from remotedict.pure.records import (
    Change,
    Checkpoint,
    Commit,
    Delete,
    Lock,
    LockEntry,
    Range,
    Retired,
    Set,
    Unlock,
)
from remotedict.pure.table import Entry, Table, Tombstone
from remotedict.pure.table import decode as decode_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

RECENT_IDS = 1024
"""How many ids of commits a checkpoint carries, for writers in doubt about theirs."""

_REBASE_MIN = 4096

_V = TypeVar("_V")


class _Chains(Generic[_V]):
    """Values by key and seq; only ever appended to, in the order of the seqs."""

    def __init__(self) -> None:
        self.of: dict[str, list[tuple[int, _V]]] = {}

    def at(self, seq: int, key: str, default: Any = None) -> _V | Any:
        for since, value in reversed(self.of.get(key, ())):
            if since <= seq:
                return value
        return default

    def add(self, seq: int, key: str, value: _V) -> None:
        self.of.setdefault(key, []).append((seq, value))

    def items(self, seq: int) -> Iterator[tuple[str, _V]]:
        # list(): another thread may append a newer chain meanwhile; this view doesn't want it.
        for key in list(self.of):
            value = self.at(seq, key)
            if value is not None:
                yield key, value


class _Growth:
    """What a lineage of states shares: the base, and all that was added since."""

    def __init__(self, base: Table, seq: int, ids: Iterable[bytes]) -> None:
        self.base = base
        self.tip = seq
        self.size = 0
        # Beyond the tombstones as well: no new key's order may look like the row of one.
        self.next_order = base.rows + base.tombstones
        self.entries: _Chains[Entry | Tombstone] = _Chains()
        self.inserted: list[tuple[int, int, str]] = []  # seq, order, key
        self.locks: _Chains[LockEntry | None] = _Chains()
        self.uses: _Chains[int] = _Chains()
        self.retired: _Chains[int | None] = _Chains()
        self.ids = list(ids)
        self.ids_start = seq - len(self.ids) + 1  # the seq of the first; the list only grows
        # What a walk need not visit: as of a seq, and ever after, all positions before the first
        # number are dead; and all from the second to the third.
        self.dead_front = (seq, 0)
        self.dead_back = (seq, 0, 0)


def advanced(
    old: Entry | Tombstone | None, change: Set | Delete, commit: Commit, next_order: int
) -> Entry | Tombstone:
    """Return what a key becomes by `change`; a new one gets the order `next_order`."""
    version = (old.version if old else 0) + 1
    if isinstance(change, Delete):
        return Tombstone(version)
    return Entry(
        version=version,
        generation=change.generation,
        born=change.born,
        place=change.place,
        facts=change.facts,
        modified=commit.time,
        author=commit.author,
        order=old.order if isinstance(old, Entry) else next_order,
    )


def locked(change: Lock | Unlock, commit: Commit) -> LockEntry | None:
    """Return what a lock becomes by `change`: the id of the commit is its epoch."""
    return LockEntry(change.key, commit.id, change.holder) if isinstance(change, Lock) else None


class State:
    """A dictionary as of commit `seq`. Immutable; thread-safe.

    Attributes
    ----------
    seq : int
        The commit.
    head : bytes
        The commit's id; empty before the first.
    """

    __slots__ = ("_count", "_grown", "head", "seq")

    def __init__(self, grown: _Growth, seq: int, head: bytes, count: int) -> None:
        self._grown = grown
        self.seq = seq
        self.head = head
        self._count = count

    @classmethod
    def empty(cls) -> State:
        """Return the state before the first commit."""
        return cls(_Growth(Table.empty(), 0, ()), 0, b"", 0)

    def __len__(self) -> int:
        return self._count

    def item(self, key: str) -> Entry | Tombstone | None:
        """Return what is known of `key`, be it deleted."""
        found = self._grown.entries.at(self.seq, key)
        return self._grown.base.get(key) if found is None else found

    def get(self, key: str) -> Entry | None:
        """Return the entry of `key`, or None."""
        item = self.item(key)
        return item if isinstance(item, Entry) else None

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def version(self, key: str) -> int:
        """Return how often `key` was set or deleted."""
        item = self.item(key)
        return item.version if item else 0

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys in insertion order."""
        grown, first = self._grown, True
        since, front = grown.dead_front
        end = grown.base.rows + len(grown.inserted)
        for at in range(front if since <= self.seq else 0, end):
            key = self._standing(at)
            if key is not None:
                if first and self.seq == grown.tip:
                    grown.dead_front = (self.seq, at)
                first = False
                yield key

    def __reversed__(self) -> Iterator[str]:
        grown, first = self._grown, True
        since, low, high = grown.dead_back
        end = grown.base.rows + len(grown.inserted)
        at = end - 1
        while at >= 0:
            if low <= at < high and since <= self.seq:
                at = low - 1
                continue
            key = self._standing(at)
            if key is not None:
                if first and self.seq == grown.tip:
                    grown.dead_back = (self.seq, at + 1, end)
                first = False
                yield key
            at -= 1

    def _standing(self, at: int) -> str | None:
        """Return the key at a position of the insertion order, if it stands there still."""
        grown = self._grown
        order, key = at, ""
        if at < grown.base.rows:
            key = grown.base.key(at)
        else:
            since, order, key = grown.inserted[at - grown.base.rows]
            if since > self.seq:
                return None
        item = grown.entries.at(self.seq, key)
        if item is None:  # only a row of the base can be meant
            return key
        return key if isinstance(item, Entry) and item.order == order else None

    def lock(self, key: str) -> LockEntry | None:
        """Return the lock on `key`, or None."""
        lock: LockEntry | None = self._grown.locks.at(self.seq, key)
        return lock

    @property
    def locks(self) -> dict[str, LockEntry]:
        """All locks by key."""
        return {key: lock for key, lock in self._grown.locks.items(self.seq) if lock}

    @property
    def retired(self) -> dict[str, int]:
        """The blobs that no key needs any more, and since which commit."""
        return {b: s for b, s in self._grown.retired.items(self.seq) if s is not None}

    def commit_id(self, seq: int) -> bytes | None:
        """Return the id of a commit, or None when it is too old to be known."""
        grown = self._grown
        at = seq - grown.ids_start
        # A commit that this view doesn't see has no id here, known though it may be.
        return grown.ids[at] if 0 <= at < len(grown.ids) and seq <= self.seq else None

    def _recent(self) -> list[bytes]:
        seqs = range(self.seq - RECENT_IDS + 1, self.seq + 1)
        return [known for seq in seqs if (known := self.commit_id(seq))]

    def apply(self, commit: Commit) -> State:
        """Return the state after `commit`, which must be the next one."""
        grown = self._grown
        if commit.seq != self.seq + 1:
            msg = f"commit {commit.seq} can't follow {self.seq}"
            raise AssertionError(msg)
        if grown.tip != self.seq:
            # Somebody has applied another commit to this very state: part ways.
            return self.rebased().apply(commit)
        count = self._count
        for change in commit.changes:
            count += self._change(change, commit)
        grown.size += len(commit.changes)
        grown.ids.append(commit.id)
        grown.tip = commit.seq
        return State(grown, commit.seq, commit.id, count)

    def _change(self, change: Change, commit: Commit) -> int:
        """Add one change to what has grown; return by how much the number of keys changes."""
        grown, seq = self._grown, commit.seq
        if isinstance(change, Lock | Unlock):
            grown.locks.add(seq, change.key, locked(change, commit))
            return 0
        key = change.key
        old = State(grown, seq, b"", 0).item(key)
        new = advanced(old, change, commit, grown.next_order)
        if isinstance(old, Entry):
            self._unuse(key, old, seq)
        if isinstance(new, Entry):
            if isinstance(new.place, Range):
                self._use(new.place.blob, seq)
            if new.order == grown.next_order:
                grown.inserted.append((seq, new.order, key))
                grown.next_order += 1
        grown.entries.add(seq, key, new)
        return isinstance(new, Entry) - isinstance(old, Entry)

    def _use(self, blob: str, seq: int) -> None:
        self._grown.uses.add(seq, blob, self._grown.uses.at(seq, blob, 0) + 1)

    def _unuse(self, key: str, old: Entry, seq: int) -> None:
        grown, blob = self._grown, old.blob(key)
        if blob is None:
            return
        left = 0
        if isinstance(old.place, Range):
            left = grown.uses.at(seq, blob) - 1
            grown.uses.add(seq, blob, left)
        # Segments are never retired: they go when the index no longer names them.
        if not left and not blob.startswith("s:"):
            grown.retired.add(seq, blob, seq)

    def relocate(self, commits: Iterable[Commit]) -> None:
        """Learn where inline values have gone: `commits`, known already, name other places.

        The bytes are the same, so this is no change of state, and older views share it.
        """
        grown = self._grown
        for commit in commits:
            for change in commit.changes:
                if isinstance(change, Set) and isinstance(change.place, Range):
                    chain = grown.entries.of.get(change.key, [])
                    for at, (seq, item) in enumerate(chain):
                        if (
                            isinstance(item, Entry)
                            and item.generation == change.generation
                            and isinstance(item.place, bytes)
                        ):
                            chain[at] = (seq, replace(item, place=change.place))
                            if at == len(chain) - 1:
                                self._use(change.place.blob, grown.tip)

    def due_for_rebase(self) -> bool:
        """Tell whether the changes since the base have outgrown it."""
        return self._grown.size > max(_REBASE_MIN, self._grown.base.rows)

    def table(self) -> Table:
        """Return all entries and tombstones as columns. None may be inline."""
        return self._grown.base.updated(dict(self._grown.entries.items(self.seq)))

    def rebased(self) -> State:
        """Return the same state on a base of its own."""
        items = dict(self._grown.entries.items(self.seq))
        inline = {
            key: item
            for key, item in items.items()
            if isinstance(item, Entry) and isinstance(item.place, bytes)
        }
        # A placeholder keeps the row; the inline bytes go on top of it.
        placed = {k: replace(e, place=Range("", 0, e.stored)) for k, e in inline.items()}
        table = self._grown.base.updated(items | placed)
        grown = _Growth(table, self.seq, self._recent())
        for key, entry in inline.items():
            row = table.find(key)
            grown.entries.add(self.seq, key, replace(entry, order=row))
        for key, lock in self.locks.items():
            grown.locks.add(self.seq, key, lock)
        for blob, count in table.uses().items():
            if blob:
                grown.uses.add(self.seq, blob, count)
        for blob, since in self.retired.items():
            grown.retired.add(self.seq, blob, since)
        return State(grown, self.seq, self.head, self._count)

    def checkpoint(
        self, dictionary: bytes, incarnation: bytes, previous: str, horizon: int
    ) -> tuple[Checkpoint, list[bytes]]:
        """Return the record of this state, and its data."""
        table = self.table()
        columns, data = table.encode()
        record = Checkpoint(
            dictionary=dictionary,
            incarnation=incarnation,
            previous=previous,
            seq=self.seq,
            horizon=horizon,
            recent=self._recent(),
            rows=table.rows,
            tombstones=table.tombstones,
            blobs=table.blobs,
            kinds=table.kinds,
            authors=table.authors,
            locks=list(self.locks.values()),
            retired=[Retired(blob, since) for blob, since in self.retired.items()],
            columns=columns,
        )
        return record, data

    @classmethod
    def from_checkpoint(cls, record: Checkpoint, data: memoryview, path: str) -> State:
        """Return the state that a checkpoint holds; raise CorruptBlobError if it can't be."""
        table = decode_table(
            record.columns,
            data,
            record.rows,
            record.tombstones,
            record.blobs,
            record.kinds,
            record.authors,
            path,
        )
        grown = _Growth(table, record.seq, record.recent)
        for lock in record.locks:
            grown.locks.add(record.seq, lock.key, lock)
        for blob, count in table.uses().items():
            grown.uses.add(record.seq, blob, count)
        for retired in record.retired:
            grown.retired.add(record.seq, retired.blob, retired.seq)
        head = record.recent[-1] if record.recent else b""
        return cls(grown, record.seq, head, table.rows)


class Draft:
    """A state and what is about to be added to it: what the next writer in line is judged on."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._items: dict[str, Entry | Tombstone] = {}
        self._locks: dict[str, LockEntry | None] = {}
        # Beyond every order that the state has given or will give.
        self._first_order = self._next_order = 1 << 62

    def item(self, key: str) -> Entry | Tombstone | None:
        """Return what will be known of `key`."""
        return self._items.get(key) or self.state.item(key)

    def get(self, key: str) -> Entry | None:
        """Return the entry that `key` will have, or None."""
        item = self.item(key)
        return item if isinstance(item, Entry) else None

    def lock(self, key: str) -> LockEntry | None:
        """Return the lock that `key` will have, or None."""
        return self._locks[key] if key in self._locks else self.state.lock(key)

    def __iter__(self) -> Iterator[str]:
        for key in self.state:
            if self._untouched(key):
                yield key
        yield from self._added()

    def __reversed__(self) -> Iterator[str]:
        yield from reversed(self._added())
        for key in reversed(self.state):
            if self._untouched(key):
                yield key

    def _untouched(self, key: str) -> bool:
        item = self._items.get(key)
        return item is None or (isinstance(item, Entry) and item.order < self._first_order)

    def _added(self) -> list[str]:
        added = [
            (item.order, key)
            for key, item in self._items.items()
            if isinstance(item, Entry) and item.order >= self._first_order
        ]
        return [key for _, key in sorted(added)]

    def add(self, commit: Commit) -> None:
        """Take `commit` as made."""
        for change in commit.changes:
            if isinstance(change, Lock | Unlock):
                self._locks[change.key] = locked(change, commit)
                continue
            self._items[change.key] = advanced(
                self.item(change.key), change, commit, self._next_order
            )
            self._next_order += 1
