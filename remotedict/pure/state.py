"""State: what a dictionary is as of one commit, and how a commit changes it.

A state never changes: `State.apply` returns a new one. Yet no commit copies it: a state is a
*view*, at its seq, of a shared store that only grows. Most entries lie in a columnar table (the
*base*); the changes since then in dicts of chains ``[(seq, value), …]``, in which a view looks
for the newest item that is not newer than itself. The table holds what came before, as far as it is listed, so
that a view may look back beyond the base as well.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from msgspec.structs import replace

from remotedict.pure import merging
from remotedict.pure.entry import Entry, Item, Stamp, Tombstone, kept
from remotedict.pure.location import Locations
from remotedict.pure.mvcc import Chains
from remotedict.pure.records import (
    Annotate,
    Change,
    Checkpoint,
    Commit,
    Delete,
    Drop,
    Forget,
    Lock,
    LockEntry,
    Range,
    Set,
    Unlock,
)
from remotedict.pure.table import Table
from remotedict.pure.table import decode as decode_table

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from remotedict.pure.packing import Array

RECENT_IDS = 1024
"""How many ids of commits a checkpoint carries, for writers in doubt about theirs."""

_REBASE_MIN = 4096
_REBASE_SHARE = 8  # changes outgrow a base that isn't so many times as large

# So many keys are taken from the base at once: few at first, for who wants only the first one.
_FIRST_BLOCK, _BLOCK = 64, 4096


class _Growth:
    """What a lineage of states shares: the base, and all that was added since.

    The base is the state as of commit `base_seq`, and what it lists of the past.
    """

    def __init__(
        self,
        base: Table,
        base_seq: int,
        tip: int,
        ids: Iterable[bytes],
        next_order: int,
        floor: int,
    ) -> None:
        self.base = base
        self.base_seq = base_seq
        self.tip = tip
        self.size = 0
        self.next_order = next_order
        self.floor = floor
        self.entries: Chains[Item] = Chains()
        self.inserted: list[tuple[int, int, str]] = []  # seq, order, key
        self.locks: Chains[LockEntry | None] = Chains()
        self.ids = list(ids)
        self.ids_start = tip - len(self.ids) + 1  # the seq of the first; the list only grows
        # What a walk need not visit: as of a seq, and ever after, all positions before the first
        # number are dead; and all from the second to the third.
        self.dead_front = (tip, 0)
        self.dead_back = (tip, 0, 0)

    def outgrown_by(self, changes: int) -> bool:
        """Tell whether so many more changes outgrow the base."""
        return self.size + changes > max(_REBASE_MIN, self.base.rows // _REBASE_SHARE)


def advanced(
    old: Item | None, change: Set | Delete | Annotate | Forget, stamp: Stamp, next_order: int
) -> Item:
    """Return what a key becomes by `change`; a new one gets the order `next_order`."""
    if isinstance(change, Forget):
        return Tombstone(0, stamp)
    if isinstance(change, Delete):
        return Tombstone(change.version, stamp)
    if isinstance(change, Annotate):
        assert isinstance(old, Entry), "metadata of nothing"  # noqa: S101
        return replace(old, metadata=change.metadata, stamp=stamp)
    before = old if isinstance(old, Entry) else None
    return Entry(
        version=change.version,
        generation=change.generation,
        born=change.born,
        place=change.place,
        facts=change.facts,
        metadata=before.metadata if before else "",
        written=stamp,
        stamp=stamp,
        order=before.order if before else next_order,
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

    def __init__(self, grown: _Growth, seq: int, head: bytes, count: int | None) -> None:
        self._grown = grown
        self.seq = seq
        self.head = head
        self._count = count

    @classmethod
    def empty(cls) -> State:
        """Return the state before the first commit."""
        return cls(_Growth(Table.empty(), 0, 0, (), 0, 0), 0, b"", 0)

    def __len__(self) -> int:
        if self._count is None:  # a view of the past is counted when that is asked for
            self._count = sum(1 for _ in self)
        return self._count

    def at(self, seq: int) -> State:
        """Return the state as of an earlier commit. Below `floor` it is not complete."""
        return State(self._grown, seq, self.commit_id(seq) or b"", None)

    @property
    def floor(self) -> int:
        """The oldest commit as of which nothing has been taken off the list."""
        return self._grown.floor

    @property
    def _beyond_base(self) -> bool:
        return self.seq < self._grown.base_seq

    def item(self, key: str) -> Item | None:
        """Return what is known of `key`, be it deleted."""
        found = self._grown.entries.at(self.seq, key)
        return self._in_base(key, self.seq) if found is None else found

    def _in_base(self, key: str, seq: int) -> Item | None:
        row = self._grown.base.find(key)
        # A forgotten key is in the base at once, with a newer stamp; before it there is nothing.
        return None if row < 0 else self._grown.base.at(row, seq)

    def listed(self, key: str) -> list[Item]:
        """Return all that is listed of `key`, oldest first: what it was, and what it is."""
        base = self._grown.base
        row = base.find(key)
        items = base.listed(row) if row >= 0 else []
        items += [item for _, item in self._grown.entries.of.get(key, ())]
        return [item for item in items if item.stamp.seq <= self.seq and item.version]

    def changed(self, since: int) -> Iterator[str]:
        """Return the keys that have changed after commit `since`."""
        for key in list(self._grown.entries.of):
            item = self.item(key)
            if item and item.stamp.seq > since:
                yield key
        yield from self._grown.base.changed(since)

    def known_keys(self) -> list[str]:
        """Return all keys of which anything is known, also deleted ones, in no order."""
        base = self._grown.base
        keys = base.keys(0, base.rows + base.tombstones)
        return list(dict.fromkeys([*keys, *self._grown.entries.of]))

    def stamps(self) -> Iterator[Stamp]:
        """Return the commits that made what is listed, in no order, some of them repeatedly."""
        yield from self._grown.base.stamps()
        for chain in list(self._grown.entries.of.values()):
            for _, item in list(chain):
                yield item.stamp

    def entries(self, keys: Sequence[str]) -> list[Entry | None]:
        """Return the entries of many keys, or None for each that isn't there."""
        grown, base = self._grown, self._grown.base
        if self._beyond_base:
            return [self.get(key) for key in keys]
        touched = grown.entries.of
        if touched and not touched.keys().isdisjoint(keys):
            found = {key: self.get(key) for key in keys if key in touched}
            rest = iter(self.entries([key for key in keys if key not in found]))
            return [found[key] if key in found else next(rest) for key in keys]
        rows = base.find_all(keys)
        there = (rows >= 0) & (rows < base.rows)
        if there.all():
            return [*base.entries(rows)]
        entries = iter(base.entries(rows[there]))
        return [next(entries) if one else None for one in there.tolist()]

    def get(self, key: str) -> Entry | None:
        """Return the entry of `key`, or None."""
        item = self.item(key)
        return item if isinstance(item, Entry) else None

    def __contains__(self, key: str) -> bool:
        grown = self._grown
        if self._beyond_base or key in grown.entries.of:
            return self.get(key) is not None
        return 0 <= grown.base.find(key) < grown.base.rows

    def version(self, key: str) -> int:
        """Return how often `key` was set or deleted."""
        item = self.item(key)
        return item.version if item else 0

    def versions(self, keys: Sequence[str]) -> list[int]:
        """Return how often each of many keys was set or deleted."""
        grown, base = self._grown, self._grown.base
        touched = grown.entries.of
        if self._beyond_base or (touched and not touched.keys().isdisjoint(keys)):
            return [self.version(key) for key in keys]
        return base.versions(base.find_all(keys))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys in insertion order."""
        return itertools.chain.from_iterable(self.blocks())

    def blocks(self) -> Iterator[list[str]]:
        """Yield the keys in insertion order, many at a time."""
        return (keys for keys, _ in self._walk())

    def items(self) -> Iterator[tuple[str, Entry]]:
        """Iterate over the keys with their entries, in insertion order."""
        for keys, row in self._walk():
            if row >= 0:
                yield from zip(
                    keys, self._grown.base.entries(slice(row, row + len(keys))), strict=True
                )
            else:
                yield from zip(keys, cast("list[Entry]", self.entries(keys)), strict=True)

    def locations(self, *, reverse: bool = False) -> Iterator[Locations]:
        """Yield where the values are, many at a time: in insertion order, or from the last one on."""
        for keys, row in self._backwards() if reverse else self._walk():
            if row >= 0:
                yield self._grown.base.locations(keys, row)
            else:
                entries = cast("list[Entry]", self.entries(keys))
                yield Locations.of(map(Entry.location, entries, keys))

    def _backwards(self) -> Iterator[tuple[list[str], int]]:
        keys, size = reversed(self), _FIRST_BLOCK
        while block := list(itertools.islice(keys, size)):
            yield block, -1
            size = min(2 * size, _BLOCK)

    def paths(
        self, path: Callable[[Iterable[str]], list[str]]
    ) -> Iterator[tuple[list[str], Array]]:
        """Yield the keys, many at a time, and the path of the blob that has the value of each.

        `path` makes paths of references, of which "" stands for the index.
        """
        base = self._grown.base
        for keys, row in self._walk():
            if row >= 0:
                yield keys, base.paths(keys, row, path)
            else:
                entries = zip(keys, cast("list[Entry]", self.entries(keys)), strict=True)
                paths = path([entry.blob(key) or "" for key, entry in entries])
                yield keys, np.array(paths, object)

    def _walk(self) -> Iterator[tuple[list[str], int]]:
        """Yield the keys in insertion order, many at a time.

        With each the row of the first, if they are neighbours in the base and haven't changed
        since; else -1.
        """
        grown, base, first = self._grown, self._grown.base, True
        if self._beyond_base:
            yield base.standing(self.seq), -1
            return
        since, front = grown.dead_front
        at, size = (front if since <= self.seq else 0), _FIRST_BLOCK
        while at < base.rows + len(grown.inserted):
            start, row = at, -1
            if at < base.rows:
                keys = base.keys(at, min(at + size, base.rows))
                at += len(keys)
                # What another thread adds meanwhile is newer: this view doesn't want it.
                touched = grown.entries.of
                if not touched or touched.keys().isdisjoint(keys):
                    row = start
                else:
                    keys = [
                        key
                        for n, key in enumerate(keys, start)
                        if key not in touched or self._standing(n) is not None
                    ]
            else:
                at = min(at + size, base.rows + len(grown.inserted))
                standing = map(self._standing, range(start, at))
                keys = [key for key in standing if key is not None]
            size = min(2 * size, _BLOCK)
            if keys:
                if first and self.seq == grown.tip:
                    grown.dead_front = (self.seq, start)
                first = False
                yield keys, row

    def __reversed__(self) -> Iterator[str]:
        grown, first = self._grown, True
        if self._beyond_base:
            yield from reversed(list(self))
            return
        since, low, high = grown.dead_back
        end = grown.base.rows + len(grown.inserted)
        # Another thread may be adding the keys of the next commit: they aren't dead.
        while end > grown.base.rows and grown.inserted[end - 1 - grown.base.rows][0] > self.seq:
            end -= 1
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
        if at < grown.base.rows:
            order, key = -1, grown.base.key(at)
        else:
            since, order, key = grown.inserted[at - grown.base.rows]
            if since > self.seq:
                return None
        item = grown.entries.at(self.seq, key)
        if item is None:  # only a row of the base can be meant
            return key
        if order < 0:
            order = grown.base.order(at)
        return key if isinstance(item, Entry) and item.order == order else None

    def lock(self, key: str) -> LockEntry | None:
        """Return the lock on `key`, or None."""
        lock: LockEntry | None = self._grown.locks.at(self.seq, key)
        return lock

    @property
    def locks(self) -> dict[str, LockEntry]:
        """All locks by key."""
        return {key: lock for key, lock in self._grown.locks.items(self.seq) if lock}

    def commit_id(self, seq: int) -> bytes | None:
        """Return the id of a commit, or None when it is too old to be known."""
        grown = self._grown
        at = seq - grown.ids_start
        # A commit that this view doesn't see has no id here, known though it may be.
        return grown.ids[at] if at >= 0 and seq <= self.seq else None

    def _recent(self) -> list[bytes]:
        grown = self._grown
        end = max(self.seq + 1 - grown.ids_start, 0)
        return grown.ids[max(end - RECENT_IDS, 0) : end]

    def apply(self, commit: Commit) -> State:
        """Return the state after `commit`, which must be the next one."""
        grown = self._grown
        if commit.seq != self.seq + 1:
            msg = f"commit {commit.seq} can't follow {self.seq}"
            raise AssertionError(msg)
        if grown.tip != self.seq:
            # Somebody has applied another commit to this very state: part ways.
            return self.rebased().apply(commit)
        stamp = Stamp.of(commit)
        if self._is_bulk(commit):
            return self._apply_bulk(cast("list[Set]", commit.changes), stamp)
        count = len(self)
        for change in commit.changes:
            count += self._change(change, commit, stamp)
        grown.size += len(commit.changes)
        grown.ids.append(commit.id)
        grown.tip = commit.seq
        after = State(grown, commit.seq, commit.id, count)
        forgotten = {change.key for change in commit.changes if isinstance(change, Forget)}
        if forgotten:
            after = after.rebased(forgotten=forgotten)
        for change in commit.changes:
            if isinstance(change, Drop):
                after = after.rebased(drop=change)
        return after

    def _is_bulk(self, commit: Commit) -> bool:
        """Tell whether a commit is so large that it had better go to a new base at once."""
        changes = commit.changes
        return (
            self._grown.outgrown_by(len(changes))
            and all(type(c) is Set and type(c.place) is not bytes for c in changes)
            and len({cast("Set", change).key for change in changes}) == len(changes)
            and self._before_inline() == self.seq
        )

    def _apply_bulk(self, sets: Sequence[Set], stamp: Stamp) -> State:
        """Return the state after a commit of which no key becomes an object."""
        before = self.rebased() if self._grown.size else self
        grown = before._grown  # noqa: SLF001
        table, added = merging.extended(grown.base, sets, stamp, grown.next_order)
        ids = [*self._recent(), stamp.id]
        order = grown.next_order + added
        new = _Growth(table, stamp.seq, stamp.seq, ids, order, grown.floor)
        return before._on(new, stamp.seq, stamp.id, table.rows)  # noqa: SLF001

    def _on(self, grown: _Growth, seq: int, head: bytes, count: int | None) -> State:
        """Return a state of other growth, which has the locks of this one."""
        for key, lock in self.locks.items():
            grown.locks.add(seq, key, lock)
        return State(grown, seq, head, count)

    def _change(self, change: Change, commit: Commit, stamp: Stamp) -> int:
        """Add one change to what has grown; return by how much the number of keys changes."""
        grown, seq = self._grown, commit.seq
        if isinstance(change, Drop):
            return 0
        if isinstance(change, Lock | Unlock):
            grown.locks.add(seq, change.key, locked(change, commit))
            return 0
        key = change.key
        since = grown.entries.of.get(key)
        old = since[-1][1] if since else self._in_base(key, seq)
        new = advanced(old, change, stamp, grown.next_order)
        if isinstance(new, Entry) and new.order == grown.next_order:
            grown.inserted.append((seq, new.order, key))
            grown.next_order += 1
        if isinstance(change, Annotate) and old and old.stamp.seq == seq:
            grown.entries.of[key][-1] = (seq, new)  # part of what set it
        else:
            grown.entries.add(seq, key, new)
        return isinstance(new, Entry) - isinstance(old, Entry)

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
                            and item.written.seq == commit.seq
                            and item.generation == change.generation
                            and isinstance(item.place, bytes)
                        ):
                            chain[at] = (seq, replace(item, place=change.place))

    def due_for_rebase(self) -> bool:
        """Tell whether the changes since the base have outgrown it."""
        return self._grown.outgrown_by(0)

    def rebased(self, *, forgotten: Collection[str] = (), drop: Drop | None = None) -> State:
        """Return the same state on a base of its own, or what a Forget or Drop makes of it.

        A commit that forgets a key does nothing else to it.

        Inline values can't be in a base: it ends before the first of them, and what came later
        goes on top of it again.
        """
        grown = self._grown
        cut = self._before_inline()
        settled: dict[str, list[Item]] = {}
        later = Chains[Item]()
        for key, chain in list(grown.entries.of.items()):
            items = [(seq, item) for seq, item in chain if seq <= self.seq]
            if key in forgotten:
                settled[key] = [items[-1][1]]
                continue
            if early := [item for seq, item in items if seq <= cut]:
                settled[key] = early
            if late := [(seq, item) for seq, item in items if seq > cut]:
                later.of[key] = late
        table, floor = grown.base, grown.floor
        if settled:
            table = merging.updated(table, settled, forgotten)
        if drop:
            table, dropped = table.pruned(drop.before, drop.versions)
            floor = max(floor, dropped)
        new = _Growth(table, cut, self.seq, self._recent(), grown.next_order, floor)
        new.entries = later
        new.size = sum(map(len, later.of.values()))
        new.inserted = [
            (seq, order, key)
            for seq, order, key in grown.inserted
            if cut < seq <= self.seq and key in later.of
        ]
        return self._on(new, self.seq, self.head, self._count)

    @property
    def _next_order(self) -> int:
        later = (order for seq, order, _ in self._grown.inserted if seq > self.seq)
        return next(later, self._grown.next_order)

    def _before_inline(self) -> int:
        """Return the newest commit before the first that has an inline value still."""
        return min(
            (
                seq - 1
                for chain in list(self._grown.entries.of.values())
                for seq, item in list(chain)
                if seq <= self.seq and isinstance(item, Entry) and isinstance(item.place, bytes)
            ),
            default=self.seq,
        )

    @property
    def past(self) -> int:
        """How many items are listed, at the most, that aren't what a key is now."""
        return self._grown.base.past + self._grown.size

    def droppable(self, drop: Drop) -> bool:
        """Tell whether `drop` would take anything off the list."""
        if self._grown.base.droppable(drop.before, drop.versions):
            return True
        changed = map(self.listed, list(self._grown.entries.of))
        return any(len(kept(items, drop)) < len(items) for items in changed)

    def dropping(self, drop: Drop) -> Iterator[tuple[str, Entry]]:
        """Yield what `drop` would take off the list, with the keys. No value may be inline."""
        return self.rebased().base.dropping(drop)

    def settled(self, commits: Iterable[Commit]) -> State:
        """Return the same state, apart from this one, with the values of `commits` where they say.

        After this none may be inline any more.
        """
        apart = self.rebased()
        apart.relocate(commits)
        return apart.rebased()

    @property
    def base(self) -> Table:
        """What most of it lies in; see `later`."""
        return self._grown.base

    def later(self) -> Iterator[tuple[str, Entry]]:
        """Yield what lies beyond the base: entries, also past ones, with their keys."""
        for key, chain in list(self._grown.entries.of.items()):
            for seq, item in list(chain):
                if seq <= self.seq and isinstance(item, Entry):
                    yield key, item

    def moved(self, places: Mapping[tuple[str, int], Range]) -> State:
        """Return a state that was `settled` with its values elsewhere."""
        grown = self._grown
        new = _Growth(
            grown.base.moved(places),
            grown.base_seq,
            self.seq,
            self._recent(),
            grown.next_order,
            grown.floor,
        )
        return self._on(new, self.seq, self.head, self._count)

    def checkpoint(
        self,
        dictionary: bytes,
        incarnation: bytes,
        previous: str,
        horizon: int,
        run: Callable[..., Iterable[Any]] = map,
    ) -> tuple[Checkpoint, list[bytes]]:
        """Return the record of this state, and its data. No value may be inline.

        `run` is like `map`, and may be parallel.
        """
        grown = self.rebased()._grown  # noqa: SLF001
        assert not grown.entries.of, "inline values in a checkpoint"  # noqa: S101
        table, data = grown.base.encode(run)
        record = Checkpoint(
            dictionary=dictionary,
            incarnation=incarnation,
            previous=previous,
            seq=self.seq,
            horizon=horizon,
            floor=self.floor,
            next_order=self._next_order,
            recent=self._recent(),
            locks=list(self.locks.values()),
            table=table,
        )
        return record, data

    @classmethod
    def from_checkpoint(cls, record: Checkpoint, data: memoryview, path: str) -> State:
        """Return the state that a checkpoint holds; raise CorruptBlobError if it can't be."""
        table = decode_table(record.table, data, path)
        grown = _Growth(
            table, record.seq, record.seq, record.recent, record.next_order, record.floor
        )
        for lock in record.locks:
            grown.locks.add(record.seq, lock.key, lock)
        head = record.recent[-1] if record.recent else b""
        return cls(grown, record.seq, head, table.rows)
