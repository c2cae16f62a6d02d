"""Columns: the entries of a checkpoint, a few bytes a key instead of an object a key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from remotedict.errors import CorruptBlobError
from remotedict.pure import lz4
from remotedict.pure.columns import (
    GONE,
    ITEM,
    KEYS,
    OWN,
    PAST,
    PAST_ITEM,
    SCHEMA,
    STAMP,
    STAMPS,
    TEXTS,
    VALUE,
    Interner,
    Lists,
    compacted,
    numbered,
)
from remotedict.pure.entry import Entry, Item, Stamp, Tombstone
from remotedict.pure.records import Column, Facts, Range, TableRecord

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from remotedict.pure.columns import Array, Columns


class Table:
    """An immutable table of what keys are and were.

    Live keys come first, in insertion order, then deleted ones. A key is found by binary search
    in the sorted hashes of the keys. Thread-safe.
    """

    def __init__(self, columns: Columns, lists: Lists) -> None:
        self._c = columns
        self._lists = lists
        self._text = memoryview(columns["key"].tobytes())
        self.rows = len(columns["generation"])
        self.tombstones = len(columns["key_end"]) - self.rows
        self.past = len(columns["past_of"])

    @classmethod
    def empty(cls) -> Table:
        """Return the table of nothing."""
        return cls({name: np.empty(0, dtype) for name, dtype in SCHEMA.items()}, Lists([], [], []))

    # -- looking up -------------------------------------------------------------------------

    def find(self, key: str) -> int:
        """Return the row of `key` (a deleted one's is `rows` or more), or -1."""
        hashes, raw = self._c["hash"], key.encode()
        wanted = np.uint64(xxhash.xxh3_64_intdigest(raw))
        at = int(np.searchsorted(hashes, wanted))
        while at < len(hashes) and hashes[at] == wanted:
            row = int(self._c["hash_row"][at])
            if self._raw(row) == raw:
                return row
            at += 1
        return -1

    def key(self, row: int) -> str:
        """Return the key of a row."""
        return str(self._raw(row), "utf-8")

    def order(self, row: int) -> int:
        """Return the place in the iteration of a live row."""
        return int(self._c["order"][row])

    def get(self, key: str) -> Item | None:
        """Return what is known of `key`."""
        row = self.find(key)
        return None if row < 0 else self.item(row)

    def item(self, row: int) -> Item:
        """Return what the key of a row is now."""
        if row < self.rows:
            return self._entry("", row)
        return Tombstone(int(self._c["version"][row]), self._stamp(self._c["stamp"][row]))

    def at(self, row: int, seq: int) -> Item | None:
        """Return what the key of a row was as of commit `seq`."""
        if self._since("stamp", row) <= seq:
            return self.item(row)
        for n in reversed(self._past(row)):
            if self._since("past_stamp", n) <= seq:
                return self._past_item(n)
        return None

    def listed(self, row: int) -> list[Item]:
        """Return all that is listed of the key of a row, oldest first."""
        return [*map(self._past_item, self._past(row)), self.item(row)]

    def standing(self, seq: int) -> Iterator[str]:
        """Return the keys that were there as of commit `seq`, in insertion order."""
        found = []
        for row in range(self.rows + self.tombstones):
            item = self.at(row, seq)
            if isinstance(item, Entry):
                found.append((item.order, row))
        return (self.key(row) for _, row in sorted(found))

    def changed(self, seq: int) -> Iterator[str]:
        """Return the keys that have changed since commit `seq`."""
        since = self._c["stamp_seq"][self._c["stamp"]]
        return (self.key(int(row)) for row in np.flatnonzero(since > seq))

    def stamps(self) -> Iterator[Stamp]:
        """Return all commits that are named."""
        return map(self._stamp, range(len(self._c["stamp_seq"])))

    def _raw(self, row: int) -> memoryview:
        ends = self._c["key_end"]
        return self._text[int(ends[row - 1]) if row else 0 : int(ends[row])]

    def _past(self, row: int) -> range:
        of = self._c["past_of"]
        return range(int(np.searchsorted(of, row)), int(np.searchsorted(of, row, "right")))

    def _past_item(self, n: int) -> Item:
        if self._c["past_blob"][n] == GONE:
            version = int(self._c["past_version"][n])
            return Tombstone(version, self._stamp(self._c["past_stamp"][n]))
        return self._entry("past_", n)

    def _since(self, column: str, n: int) -> int:
        return int(self._c["stamp_seq"][self._c[column][n]])

    def _stamp(self, number: Any) -> Stamp:
        c = self._c
        return Stamp(
            c["stamp_id"][number].tobytes(),
            int(c["stamp_seq"][number]),
            int(c["stamp_time"][number]),
            self._lists.texts[c["stamp_author"][number]],
            self._lists.texts[c["stamp_comment"][number]],
        )

    def _entry(self, which: str, n: int) -> Entry:
        def column(name: str) -> Any:
            return self._c[which + name][n]

        blob, length = int(column("blob")), int(column("length"))
        kind = self._lists.kinds[column("kind")]
        stamp = self._stamp(column("stamp"))
        same = column("written") == column("stamp")
        return Entry(
            version=int(column("version")),
            generation=column("generation").tobytes(),
            born=int(column("born")),
            place=length
            if blob == OWN
            else Range(self._lists.blobs[blob], int(column("offset")), length),
            facts=Facts(kind[0], int(column("nbytes")), kind[1], kind[2]),
            metadata=self._lists.texts[column("metadata")],
            written=stamp if same else self._stamp(column("written")),
            stamp=stamp,
            order=int(column("order")),
        )

    # -- changing ---------------------------------------------------------------------------

    def updated(
        self, changes: Mapping[str, Sequence[Item]], forgotten: Collection[str] = ()
    ) -> Table:
        """Return a new table with `changes` made; none of them may be inline.

        Parameters
        ----------
        changes : mapping
            For each key what it became, one after the other: the last is what it is now, and all
            before, with what is here, join the past.
        forgotten : collection
            Those of the keys that have no past.
        """
        moves = _Moves(self, changes, forgotten)
        intern = Interner(self._c, self._lists)
        live = moves.keep[: self.rows]
        dead = moves.keep[self.rows :]
        columns: Columns = {}
        new = intern.columns([entry for _, entry in moves.added])
        stones = intern.columns([stone for _, stone in moves.gone])
        over = intern.columns([entry for _, entry in moves.replaced])
        at = np.array([row for row, _ in moves.replaced], np.int64)
        for name in ITEM | VALUE:
            column = self._c[name].copy()
            column[at] = over[name]
            parts = [column[: self.rows][live], new[name]]
            if name in ITEM:
                parts += [column[self.rows :][dead], stones[name]]
            columns[name] = np.concatenate(parts)
        columns |= self._merge_keys(moves)

        kept = np.ones(self.past, bool)
        for row in moves.forgotten:
            kept[self._past(row)] = False
        numbers = moves.numbers()
        past = intern.columns([item for _, item in moves.past])
        of = np.array([moves.number(key, numbers) for key, _ in moves.past], "<u4")
        columns["past_of"] = np.concatenate([numbers[self._c["past_of"][kept]], of])
        for name in PAST_ITEM:
            columns[name] = np.concatenate([self._c[name][kept], past[name.removeprefix("past_")]])
        columns |= intern.stamps()
        since = columns["stamp_seq"][columns["past_stamp"]]
        sort = np.lexsort((columns["past_version"], since, columns["past_of"]))
        columns |= {name: columns[name][sort] for name in PAST}
        return Table(*compacted(columns, intern.lists))

    def _merge_keys(self, moves: _Moves) -> Columns:
        """Return the columns that hold and find the keys: kept, added, kept dead, newly dead."""
        keep = moves.keep
        lengths = np.diff(self._c["key_end"], prepend=np.uint64(0)).astype(np.int64)
        text = np.frombuffer(self._text, np.uint8)
        hashes = np.empty(len(keep), "<u8")
        hashes[self._c["hash_row"]] = self._c["hash"]
        texts, sizes, digests = [], [], []
        split = int(lengths[: self.rows].sum())
        halves = (
            (text[:split], slice(None, self.rows), [key for key, _ in moves.added]),
            (text[split:], slice(self.rows, None), [key for key, _ in moves.gone]),
        )
        for chars, part, new in halves:
            kept, raw = keep[part], [key.encode() for key in new]
            texts += [
                chars if kept.all() else chars[np.repeat(kept, lengths[part])],
                np.frombuffer(b"".join(raw), np.uint8),
            ]
            sizes += [lengths[part][kept], np.array([len(r) for r in raw], np.int64)]
            digests += [
                hashes[part][kept],
                np.array([xxhash.xxh3_64_intdigest(r) for r in raw], "<u8"),
            ]
        digest = np.concatenate(digests)
        rows = np.argsort(digest, kind="stable").astype("<u4")
        return {
            "key": np.concatenate(texts),
            "key_end": np.cumsum(np.concatenate(sizes)).astype("<u8"),
            "hash": digest[rows],
            "hash_row": rows,
        }

    def pruned(self, before: int, versions: int) -> tuple[Table, int]:
        """Return the table without old past items, and since when the newest of them was past.

        It is what `entry.kept` does for one key, for all of them at once; 0 for nothing dropped.
        """
        c = self._c
        of, version = c["past_of"], c["past_version"].astype(np.int64)
        since = c["stamp_seq"][c["past_stamp"]]
        now = c["stamp_seq"][c["stamp"]]
        replaced = now[of]
        same = of[1:] == of[:-1]
        replaced[:-1][same] = since[1:][same]
        # The version that each key had as of commit `before`.
        then = np.where(now <= before, c["version"].astype(np.int64), 0)
        old = since <= before
        np.maximum.at(then, of[old], version[old])
        dropped = (replaced <= before) & (version + versions <= then[of])
        if not dropped.any():
            return self, 0
        columns = {name: c[name][~dropped] for name in PAST}
        pruned = Table(*compacted(c | columns, self._lists))
        return pruned, int(replaced[dropped].max())

    def ranges(self, blobs: Collection[str]) -> list[Range]:
        """Return where values, also past ones, lie in these blobs; each place once."""
        wanted = {n for n, blob in enumerate(self._lists.blobs) if blob in blobs}
        found: dict[tuple[int, int], int] = {}
        for which in ("", "past_"):
            blob, offset, length = (self._c[which + n] for n in ("blob", "offset", "length"))
            for n in np.flatnonzero(np.isin(blob, list(wanted))):
                found[int(blob[n]), int(offset[n])] = int(length[n])
        return [Range(self._lists.blobs[b], o, n) for (b, o), n in sorted(found.items())]

    def generations(self, wanted: Collection[bytes]) -> set[bytes]:
        """Return those of the generations that are listed, for whatever key."""
        sought = np.frombuffer(b"".join(wanted), "V16")
        found: set[bytes] = set()
        for which in ("", "past_"):
            column = self._c[which + "generation"]
            found.update(one.tobytes() for one in column[np.isin(column, sought)])
        return found

    def moved(self, places: Mapping[tuple[str, int], Range]) -> Table:
        """Return the table with other places for the values that begin at these."""
        blobs = [*self._lists.blobs]
        numbers = {blob: n for n, blob in enumerate(blobs)}
        columns = dict(self._c)
        old = {blob for blob, _ in places}
        for which in ("", "past_"):
            blob, offset = self._c[which + "blob"].copy(), self._c[which + "offset"].copy()
            here = [numbers[name] for name in old if name in numbers]
            for n in np.flatnonzero(np.isin(self._c[which + "blob"], here)):
                place = places.get((blobs[self._c[which + "blob"][n]], int(offset[n])))
                if place is not None:
                    blob[n], offset[n] = numbered(numbers, blobs, place.blob), place.offset
            columns |= {which + "blob": blob, which + "offset": offset}
        return Table(*compacted(columns, self._lists._replace(blobs=blobs)))

    # -- the record -------------------------------------------------------------------------

    def encode(self) -> tuple[TableRecord, list[bytes]]:
        """Return the record of the table, and the columns as LZ4 blocks."""
        described, data = [], []
        for name, dtype in SCHEMA.items():
            raw = np.ascontiguousarray(self._c[name]).view(np.uint8)
            data.append(lz4.deflate(raw.data))
            described.append(Column(name, dtype, len(data[-1]), raw.nbytes))
        record = TableRecord(
            rows=self.rows,
            tombstones=self.tombstones,
            past=self.past,
            stamps=len(self._c["stamp_seq"]),
            blobs=self._lists.blobs,
            kinds=self._lists.kinds,
            texts=self._lists.texts,
            columns=described,
        )
        return record, data


class _Moves:
    """Which rows of a table stay, which are replaced where they are, and which move or are new."""

    def __init__(
        self, table: Table, changes: Mapping[str, Sequence[Item]], forgotten: Collection[str]
    ) -> None:
        self._table = table
        self.keep = np.ones(table.rows + table.tombstones, bool)
        self.replaced: list[tuple[int, Entry]] = []
        self.added: list[tuple[str, Entry]] = []
        self.gone: list[tuple[str, Tombstone]] = []
        self.past: list[tuple[str, Item]] = []
        self.forgotten: list[int] = []
        self._row: dict[str, int] = {}
        for key, items in changes.items():
            *earlier, last = items
            row = self._row[key] = table.find(key)
            if key in forgotten:
                self.forgotten += [row] if row >= 0 else []
            elif row >= 0 and (item := table.item(row)).version:
                self.past.append((key, item))
            self.past += [(key, item) for item in earlier]
            if isinstance(last, Entry) and 0 <= row < table.rows and table.order(row) == last.order:
                self.replaced.append((row, last))
                continue
            if row >= 0:
                self.keep[row] = False
            if isinstance(last, Entry):
                self.added.append((key, last))
            else:
                self.gone.append((key, last))
        self.added.sort(key=lambda pair: pair[1].order)

    def numbers(self) -> Array:
        """Return the new row of each old one."""
        rows, keep = self._table.rows, self.keep
        live = int(keep[:rows].sum())
        numbers = np.empty(len(keep), "<u4")
        numbers[:rows] = np.cumsum(keep[:rows]) - 1
        first_dead = live + len(self.added)
        numbers[rows:] = first_dead + np.cumsum(keep[rows:]) - 1
        self._new = {key: live + n for n, (key, _) in enumerate(self.added)}
        newly_dead = first_dead + int(keep[rows:].sum())
        self._new |= {key: newly_dead + n for n, (key, _) in enumerate(self.gone)}
        for key, number in self._new.items():
            if self._row[key] >= 0:
                numbers[self._row[key]] = number
        return numbers

    def number(self, key: str, numbers: Array) -> int:
        """Return the new row of a key that changes."""
        new = self._new.get(key)
        return int(numbers[self._row[key]]) if new is None else new


def decode(record: TableRecord, data: memoryview, path: str) -> Table:
    """Return the table whose columns are in `data`; raise CorruptBlobError if they can't be."""
    if [column.name for column in record.columns] != list(SCHEMA):
        raise CorruptBlobError(path, "its columns are not those of this format")
    counts = dict.fromkeys(KEYS | ITEM, record.rows + record.tombstones)
    counts |= dict.fromkeys(VALUE, record.rows)
    counts |= dict.fromkeys(PAST, record.past)
    counts |= dict.fromkeys(STAMP, record.stamps)
    columns, at = {}, 0
    for column in record.columns:
        dtype = np.dtype(SCHEMA[column.name])
        count = counts.get(column.name, column.size)  # of "key" any
        if column.size != count * dtype.itemsize or column.stored > len(data) - at:
            raise CorruptBlobError(path, f"column {column.name} has the wrong size")
        frame = data[at : at + column.stored]
        at += column.stored
        try:
            raw = lz4.inflate(frame, column.size)
        except ValueError as exc:
            raise CorruptBlobError(path, f"column {column.name}: {exc}") from exc
        columns[column.name] = np.frombuffer(raw, dtype)
    _check_bounds(columns, record, path)
    return Table(columns, Lists(record.blobs, record.kinds, record.texts))


def _check_bounds(columns: Columns, record: TableRecord, path: str) -> None:
    ends = columns["key_end"]
    if not (np.diff(ends, prepend=np.uint64(0)).astype(np.int64) > 0).all() or (
        int(ends[-1]) if len(ends) else 0
    ) != len(columns["key"]):
        raise CorruptBlobError(path, "its key column doesn't add up")
    try:
        columns["key"].tobytes().decode()
    except UnicodeDecodeError as exc:
        raise CorruptBlobError(path, f"its keys aren't UTF-8: {exc}") from exc
    keys = record.rows + record.tombstones
    limits = {"hash_row": keys, "past_of": keys}
    limits |= dict.fromkeys(TEXTS, len(record.texts))
    limits |= dict.fromkeys(STAMPS, record.stamps)
    limits |= dict.fromkeys(("kind", "past_kind"), len(record.kinds))
    bad = [name for name, limit in limits.items() if (columns[name] >= limit).any()]
    if bad or any(
        ((columns[name] >= len(record.blobs)) & (columns[name] < first_special)).any()
        for name, first_special in (("blob", OWN), ("past_blob", GONE))
    ):
        raise CorruptBlobError(path, "a column points outside its list")
    if (np.diff(columns["past_of"].astype(np.int64)) < 0).any():
        raise CorruptBlobError(path, "its past items aren't in order")
