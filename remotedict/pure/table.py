"""Tables: the entries of a checkpoint, a few bytes a key instead of an object a key."""

from __future__ import annotations

from bisect import bisect_left
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from remotedict.errors import CorruptBlobError
from remotedict.pure import naming
from remotedict.pure.columns import (
    FIRST_BLOB,
    GONE,
    ITEM,
    KEYS,
    OWN,
    PAST,
    SCHEMA,
    STAMP,
    STAMPS,
    TEXTS,
    VALUE,
    Lazy,
    Lists,
    compacted,
    numbered,
)
from remotedict.pure.entry import Entry, Item, Stamp, Tombstone
from remotedict.pure.location import Locations
from remotedict.pure.packing import ALIGNMENT, PROGRESSION, counted, pack, unpack
from remotedict.pure.records import COUNT_MAX, Facts, Range, TableRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from remotedict.pure.columns import Columns
    from remotedict.pure.packing import Array
    from remotedict.pure.records import Column, Drop, Place

_FEW = 16  # so many keys are looked up sooner one by one
_STAMPS_AT_HAND = 4096  # of commits, as objects


class Table:
    """An immutable table of what keys are and were.

    Live keys come first, in insertion order, then deleted ones. A key is found by binary search
    in the sorted hashes of the keys. Thread-safe.
    """

    def __init__(self, columns: Columns, lists: Lists, rows: int, keys: int, past: int) -> None:
        self.columns = columns
        self.lists = lists
        self.rows = rows
        self.tombstones = keys - rows
        self.past = past
        self._stamps: dict[int, Stamp] = {}
        self._views: dict[str, memoryview] = {}
        self._paths: tuple[Callable[..., list[str]], Array] | None = None

    @classmethod
    def of(cls, columns: Columns, lists: Lists) -> Table:
        """Return the table that has these columns."""
        rows, keys = len(columns["generation"]), len(columns["key_end"])
        return cls(columns, lists, rows, keys, len(columns["past_of"]))

    @classmethod
    @cache
    def empty(cls) -> Table:
        """Return the table of nothing."""
        columns = {name: np.empty(0, dtype) for name, dtype in SCHEMA.items()}
        return cls.of(columns, Lists([], [], []))

    # -- looking up -------------------------------------------------------------------------

    def _view(self, name: str) -> memoryview:
        """Return a column to take single numbers from, which numpy is slow at."""
        view = self._views.get(name)
        if view is None:
            column = self.columns[name]
            bytewise = column.view(np.uint8) if column.dtype.kind == "V" else column
            view = self._views[name] = bytewise.data
        return view

    def find(self, key: str) -> int:
        """Return the row of `key` (a deleted one's is `rows` or more), or -1."""
        hashes, rows, text, ends = self._finder
        raw = key.encode()
        wanted = digest(raw)
        for at in range(bisect_left(hashes, wanted), len(hashes)):
            if hashes[at] != wanted:
                break
            row: int = rows[at]
            if text[ends[row - 1] if row else 0 : ends[row]] == raw:
                return row
        return -1

    @cached_property
    def _finder(self) -> tuple[memoryview, ...]:
        return tuple(self._view(name) for name in ("hash", "hash_row", "key", "key_end"))

    def find_all(self, keys: Sequence[str]) -> Array:
        """Return the rows of many keys, -1 for each that isn't there."""
        if not len(self.columns["hash"]):
            return np.full(len(keys), -1, np.int64)
        if len(keys) < _FEW:
            return np.array([self.find(key) for key in keys], np.int64)
        raws = [key.encode() for key in keys]
        hashes, wanted = self.columns["hash"], digests(raws)
        at = hashes.searchsorted(wanted.astype(hashes.dtype, copy=False))
        np.minimum(at, len(hashes) - 1, out=at)
        rows = self.columns["hash_row"][at].astype(np.int64)
        ends = self.columns["key_end"]
        stops = ends[rows].tolist()
        starts = np.where(rows > 0, ends[rows - 1], 0).tolist()
        text = self._view("key")
        found = hashes[at] == wanted
        for n in np.flatnonzero(found).tolist():
            if text[starts[n] : stops[n]] != raws[n]:  # another key of the same hash
                rows[n] = self.find(keys[n])
        rows[~found] = -1
        return rows

    def key(self, row: int) -> str:
        """Return the key of a row."""
        return str(self._raw(row), "utf-8")

    def keys(self, start: int, stop: int) -> list[str]:
        """Return the keys of neighbouring rows."""
        if start >= stop:
            return []
        first = self._view("key_end")[start - 1] if start else 0
        ends = (self.columns["key_end"][start:stop] - first).tolist()
        raw = bytes(self._view("key")[first : first + ends[-1]])
        text = str(raw, "utf-8")
        if len(text) == len(raw):
            return [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        return [str(raw[a:b], "utf-8") for a, b in zip([0, *ends], ends, strict=False)]

    def keys_of(self, rows: Array) -> list[str]:
        """Return the keys of some rows."""
        return list(map(self.key, rows.tolist()))

    def order(self, row: int) -> int:
        """Return the place in the iteration of a live row."""
        return int(self._view("order")[row])

    def item(self, row: int) -> Item:
        """Return what the key of a row is now."""
        if row < self.rows:
            return self._entry("", row)
        return Tombstone(self._view("version")[row], self._stamp(self._view("stamp")[row]))

    def entries(self, rows: Array | slice) -> list[Entry]:
        """Return what the keys of some live rows are now."""
        columns = [self.columns[name][rows].tolist() for name in _SINGLE]
        return self._entries(_generations(self.columns["generation"][rows]), *columns)

    def locations(self, keys: list[str], start: int) -> Locations:
        """Return where the values of neighbouring live rows are; `keys` are their keys."""
        rows = slice(start, start + len(keys))
        sources = self.paths(keys, start, list).tolist()
        offsets, lengths, sizes = (
            self.columns[name][rows].tolist() for name in ("offset", "length", "nbytes")
        )
        generations = _generations(self.columns["generation"][rows])
        return Locations(sources, offsets, lengths, keys, generations, sizes)

    def versions(self, rows: Array) -> list[int]:
        """Return the versions of some rows, 0 for -1."""
        if not len(self.columns["version"]):
            return [0] * len(rows)
        versions: list[int] = np.where(rows >= 0, self.columns["version"][rows], 0).tolist()
        return versions

    def paths(
        self, keys: Sequence[str], start: int, path: Callable[[Iterable[str]], list[str]]
    ) -> Array:
        """Return the paths of the blobs that have the values of neighbouring live rows.

        `keys` are their keys; `path` makes paths of references.
        """
        rows = slice(start, start + len(keys))
        numbers = self.columns["blob"][rows]
        named = self._named(path)[numbers]
        own = np.flatnonzero(numbers == OWN)
        if len(own):
            hexes = self.columns["generation"][rows][own].tobytes().hex()
            born = self.columns["born"][rows][own].tolist()
            escaped = naming.escape_all([keys[n] for n in own.tolist()])
            references = [
                f"v:{name}/{seq:012d}-{hexes[at : at + 32]}"
                for name, seq, at in zip(escaped, born, range(0, len(hexes), 32), strict=True)
            ]
            named[own] = path(references)
        return named

    def _named(self, path: Callable[[Iterable[str]], list[str]]) -> Array:
        if self._paths is None or self._paths[0] != path:
            named = path([""] * FIRST_BLOB + self.lists.blobs)
            self._paths = (path, np.array(named, object))
        return self._paths[1]

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

    def standing(self, seq: int) -> list[str]:
        """Return the keys that were there as of commit `seq`, in insertion order."""
        c = self.columns
        since, past_since = c["stamp_seq"][c["stamp"]], c["stamp_seq"][c["past_stamp"]]
        still = np.flatnonzero(since[: self.rows] <= seq)
        # The newest past item that isn't newer, of each key that has changed since.
        early = np.flatnonzero((past_since <= seq) & (since[c["past_of"]] > seq))
        of = c["past_of"][early]
        then = early[np.append(of[1:] != of[:-1], True)[: len(of)]]
        then = then[c["past_blob"][then] != GONE]
        rows = np.concatenate([still, c["past_of"][then].astype(np.int64)])
        order = np.concatenate([c["order"][still], c["past_order"][then]])
        return self.keys_of(rows[np.argsort(order)])

    def changed(self, seq: int) -> Iterator[str]:
        """Return the keys that have changed since commit `seq`."""
        late = np.flatnonzero(self.columns["stamp_seq"] > seq)
        if not len(late):
            return iter(())
        return iter(self.keys_of(np.flatnonzero(np.isin(self.columns["stamp"], late))))

    def stamps(self) -> Iterator[Stamp]:
        """Return all commits that are named."""
        return map(self._stamp, range(len(self.columns["stamp_seq"])))

    def _raw(self, row: int) -> memoryview:
        ends = self._view("key_end")
        return self._view("key")[ends[row - 1] if row else 0 : ends[row]]

    def _past(self, row: int) -> range:
        of = self._view("past_of")
        return range(bisect_left(of, row), bisect_left(of, row + 1))

    def _past_item(self, n: int) -> Item:
        if self._view("past_blob")[n] == GONE:
            stamp = self._stamp(self._view("past_stamp")[n])
            return Tombstone(self._view("past_version")[n], stamp)
        return self._entry("past_", n)

    def _since(self, column: str, n: int) -> int:
        return int(self._view("stamp_seq")[self._view(column)[n]])

    def _stamp(self, number: int) -> Stamp:
        stamp = self._stamps.get(number)
        if stamp is None:
            if len(self._stamps) >= _STAMPS_AT_HAND:
                self._stamps.clear()
            texts = self.lists.texts
            stamp = self._stamps[number] = Stamp(
                bytes(self._view("stamp_id")[16 * number : 16 * number + 16]),
                self._view("stamp_seq")[number],
                self._view("stamp_time")[number],
                texts[self._view("stamp_author")[number]],
                texts[self._view("stamp_comment")[number]],
            )
        return stamp

    def _entry(self, which: str, n: int) -> Entry:
        generations, *views = self._past_values if which else self._values
        single: list[int] = [view[n] for view in views]
        version, stamp, order, born, blob, offset, length, kind, nbytes, metadata, written = single
        name, shape, dtype = self.lists.kinds[kind]
        return Entry(
            version,
            bytes(generations[16 * n : 16 * n + 16]),
            born,
            length if blob == OWN else Range(self._blobs[blob], offset, length),
            Facts(name, nbytes, shape, dtype),
            self.lists.texts[metadata],
            self._stamp(written),
            self._stamp(stamp),
            order,
        )

    @cached_property
    def _blobs(self) -> list[str]:
        return [""] * FIRST_BLOB + self.lists.blobs

    @cached_property
    def _values(self) -> list[memoryview]:
        return [self._view(name) for name in ("generation", *_SINGLE)]

    @cached_property
    def _past_values(self) -> list[memoryview]:
        return [self._view(f"past_{name}") for name in ("generation", *_SINGLE)]

    def _entries(
        self,
        generation: list[bytes],
        version: list[int],
        stamp: list[int],
        order: list[int],
        born: list[int],
        blob: list[int],
        offset: list[int],
        length: list[int],
        kind: list[int],
        nbytes: list[int],
        metadata: list[int],
        written: list[int],
    ) -> list[Entry]:
        """Return the entries of some rows, without a step of the interpreter for each of them."""
        if not blob:
            return []
        places: list[Place] = list(map(Range, map(self._blobs.__getitem__, blob), offset, length))
        if OWN in blob:
            places = [
                size if number == OWN else place
                for number, size, place in zip(blob, length, places, strict=True)
            ]
        types, shapes, dtypes = zip(*map(self.lists.kinds.__getitem__, kind), strict=True)
        stamps = {number: self._stamp(number) for number in {*stamp, *written}}.__getitem__
        return list(
            map(
                Entry,
                version,
                generation,
                born,
                places,
                map(Facts, types, nbytes, shapes, dtypes),
                map(self.lists.texts.__getitem__, metadata),
                map(stamps, written),
                map(stamps, stamp),
                order,
            )
        )

    # -- what is listed ---------------------------------------------------------------------

    def pruned(self, before: int, versions: int) -> tuple[Table, int]:
        """Return the table without old past items, and since when the newest of them was past.

        It is what `entry.kept` does for one key, for all of them at once; 0 for nothing dropped.
        """
        dropped, replaced = self._dropped(before, versions)
        if not dropped.any():
            return self, 0
        columns = {name: self.columns[name][~dropped] for name in PAST}
        pruned = Table.of(*compacted({**self.columns, **columns}, self.lists))
        return pruned, int(replaced[dropped].max())

    def droppable(self, before: int, versions: int) -> bool:
        """Tell whether `pruned` would take anything off the list."""
        return bool(self._dropped(before, versions)[0].any())

    def dropping(self, drop: Drop) -> Iterator[tuple[str, Entry]]:
        """Yield what `pruned` takes off the list, with the keys; but for deletions."""
        for n in np.flatnonzero(self._dropped(drop.before, drop.versions)[0]).tolist():
            item = self._past_item(n)
            if isinstance(item, Entry):
                yield self.key(self._view("past_of")[n]), item

    def _dropped(self, before: int, versions: int) -> tuple[Array, Array]:
        """Return which past items are dropped, and since when each of all was past."""
        c = self.columns
        if not self.past:
            return np.zeros(0, bool), np.zeros(0, "<u8")
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
        return (replaced <= before) & (version + versions <= then[of]), replaced

    def ranges(self, blobs: Collection[str]) -> list[Range]:
        """Return where values, also past ones, lie in these blobs; each place once."""
        wanted = self._numbers(blobs)
        found: dict[tuple[int, int], int] = {}
        for which in ("", "past_"):
            blob, offset, length = (self.columns[which + n] for n in ("blob", "offset", "length"))
            here = np.flatnonzero(np.isin(blob, wanted))
            places = zip(blob[here].tolist(), offset[here].tolist(), strict=True)
            found.update(zip(places, length[here].tolist(), strict=True))
        return [
            Range(self.lists.blobs[b - FIRST_BLOB], o, n) for (b, o), n in sorted(found.items())
        ]

    def _numbers(self, blobs: Collection[str]) -> list[int]:
        return [n for n, blob in enumerate(self.lists.blobs, FIRST_BLOB) if blob in blobs]

    def generations(self, wanted: Collection[bytes]) -> set[bytes]:
        """Return those of the generations that are listed, for whatever key."""
        sought = np.frombuffer(b"".join(wanted), "V16")
        found: set[bytes] = set()
        for which in ("", "past_"):
            column = self.columns[which + "generation"]
            found.update(one.tobytes() for one in column[np.isin(column, sought)])
        return found

    def moved(self, places: Mapping[tuple[str, int], Range]) -> Table:
        """Return the table with other places for the values that begin at these."""
        blobs = [*self.lists.blobs]
        numbers = {blob: n for n, blob in enumerate(blobs)}
        columns = dict(self.columns)
        here = self._numbers({blob for blob, _ in places})
        for which in ("", "past_"):
            blob = self.columns[which + "blob"].astype("<u8")
            offset = self.columns[which + "offset"].astype("<u8")
            for n in np.flatnonzero(np.isin(blob, here)).tolist():
                place = places.get((blobs[int(blob[n]) - FIRST_BLOB], int(offset[n])))
                if place is not None:
                    blob[n] = FIRST_BLOB + numbered(numbers, blobs, place.blob)
                    offset[n] = place.offset
            columns |= {which + "blob": blob, which + "offset": offset}
        return Table.of(*compacted(columns, self.lists._replace(blobs=blobs)))

    # -- the record -------------------------------------------------------------------------

    def encode(self, run: Callable[..., Iterable[Any]] = map) -> tuple[TableRecord, list[bytes]]:
        """Return the record of the table, and what is stored of its columns.

        `run` is like `map`, and may be parallel.
        """
        described, data = [], []
        for column, packed in run(lambda name: pack(name, self.columns[name]), SCHEMA):
            described.append(column)
            data += [packed, bytes(-len(packed) % ALIGNMENT)]
        record = TableRecord(
            rows=self.rows,
            tombstones=self.tombstones,
            past=self.past,
            stamps=len(self.columns["stamp_seq"]),
            blobs=self.lists.blobs,
            kinds=self.lists.kinds,
            texts=self.lists.texts,
            columns=described,
        )
        return record, data


def _generations(column: Array) -> list[bytes]:
    raw = column.tobytes()
    return [raw[at : at + 16] for at in range(0, len(raw), 16)]


_SINGLE = [name for name in ITEM | VALUE if name != "generation"]


def digest(raw: bytes) -> int:
    """Return the hash by which a key is found."""
    return xxhash.xxh3_64_intdigest(raw) >> 32


def digests(raws: Sequence[bytes]) -> Array:
    """Return the hashes of many keys."""
    wide = np.fromiter(map(xxhash.xxh3_64_intdigest, raws), "<u8", len(raws))
    return (wide >> np.uint64(32)).astype("<u4")


def decode(record: TableRecord, data: memoryview, path: str) -> Table:
    """Return the table whose columns are in `data`.

    Each is unpacked, and checked, when it is first needed.

    Raises
    ------
    CorruptBlobError
        Some can't be such columns; also later, from the table, when one turns out to hold others.
    """
    if [column.name for column in record.columns] != list(SCHEMA):
        raise CorruptBlobError(path, "its columns are not those of this format")
    keys = record.rows + record.tombstones
    counts = dict.fromkeys(KEYS | ITEM, keys)
    counts |= dict.fromkeys(VALUE, record.rows)
    counts |= dict.fromkeys(PAST, record.past)
    counts |= dict.fromkeys(STAMP, record.stamps)
    check = _Check(record, path)
    makers: dict[str, Callable[[], Array]] = {}
    at = 0
    for column in record.columns:
        try:
            count = counted(column, SCHEMA[column.name])
        except ValueError as exc:
            raise CorruptBlobError(path, str(exc)) from exc
        wanted = counts.get(column.name, count)  # of "key" any
        if column.stored > len(data) - at or (count != wanted and column.coding != PROGRESSION):
            raise CorruptBlobError(path, f"column {column.name} has the wrong size")
        if column.name == "key" and keys > count:
            raise CorruptBlobError(path, "it has more keys than letters")
        frame = data[at : at + column.stored]
        at += column.stored + -column.stored % ALIGNMENT
        makers[column.name] = partial(check.unpack, column, frame, wanted)
    columns = check.columns = Lazy(makers)
    lists = Lists(record.blobs, record.kinds, record.texts)
    return Table(columns, lists, record.rows, keys, record.past)


class _Check:
    """Unpacks the columns of a record, and checks each by what it must be."""

    def __init__(self, record: TableRecord, path: str) -> None:
        keys = record.rows + record.tombstones
        self._path = path
        self._limits = {"hash_row": keys, "past_of": keys}
        self._limits |= dict.fromkeys(TEXTS, len(record.texts))
        self._limits |= dict.fromkeys(STAMPS, record.stamps)
        self._limits |= dict.fromkeys(("kind", "past_kind"), len(record.kinds))
        self._limits |= dict.fromkeys(("blob", "past_blob"), FIRST_BLOB + len(record.blobs))
        self.columns: Columns = {}

    def unpack(self, column: Column, frame: memoryview, count: int) -> Array:
        name = column.name
        try:
            array = unpack(column, frame, count)
        except ValueError as exc:
            raise CorruptBlobError(self._path, f"column {name}: {exc}") from exc
        if reason := self._wrong(name, array):
            raise CorruptBlobError(self._path, f"column {name} {reason}")
        return array

    def _wrong(self, name: str, array: Array) -> str | None:
        """Return what is wrong with a column, if anything is."""
        if len(array) and name in self._limits and int(array.max()) >= self._limits[name]:
            return "points outside its list"
        if SCHEMA[name] == "<u8" and len(array) and int(array.max()) > COUNT_MAX:
            return "has a number that is too large"
        if name in {"hash", "past_of"} and (array[1:] < array[:-1]).any():
            return "isn't in order"
        if name in {"key_end", "stamp_seq"} and (array[1:] <= array[:-1]).any():
            return "doesn't ascend"
        if name == "blob" and (array == GONE).any():
            return "has a deleted key among those that are there"
        wrong = {"key": _wrong_text, "key_end": self._wrong_ends}.get(name)
        return wrong(array) if wrong else None

    def _wrong_ends(self, ends: Array) -> str | None:
        text = self.columns["key"]
        if (int(ends[-1]) if len(ends) else 0) != len(text) or (len(ends) and not ends[0]):
            return "doesn't add up"
        if len(text) and text.max() >= 0x80 and (text[ends[:-1]] & 0xC0 == 0x80).any():
            return "cuts a letter in two"
        return None


def _wrong_text(array: Array) -> str | None:
    try:
        str(array.data, "utf-8")
    except UnicodeDecodeError as exc:
        return f"isn't UTF-8: {exc}"
    return None
