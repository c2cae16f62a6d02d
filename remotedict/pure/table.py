"""Columns: the entries of a checkpoint, a few bytes a key instead of an object a key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np
import xxhash

from remotedict.errors import CorruptBlobError
from remotedict.pure import frames, naming
from remotedict.pure.records import Column, Facts, Place, Range

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    Array = np.ndarray[Any, np.dtype[Any]]

_OWN = 0xFFFFFFFF  # in the blob column: the value has a blob of its own

# The columns, in the order of the store. The first four have a row for every live entry and,
# after those, one for every tombstone; the others have live rows only.
_ALL = {"key_end": "<u8", "version": "<u8", "hash": "<u8", "hash_row": "<u4"}
_LIVE = {
    "generation": "V16",
    "born": "<u8",
    "blob": "<u4",
    "offset": "<u8",
    "length": "<u8",
    "kind": "<u4",
    "nbytes": "<u8",
    "modified": "<i8",
    "author": "<u4",
}
_SCHEMA = {"key": "|u1", **_ALL, **_LIVE}


class Entry(msgspec.Struct, frozen=True):
    """One key's newest generation.

    `order` gives the place in the iteration: an overwrite keeps it. `modified` is in
    microseconds of UTC.
    """

    version: int
    generation: bytes
    born: int
    place: Place
    facts: Facts
    modified: int
    author: str
    order: int

    def blob(self, key: str) -> str | None:
        """Return the reference of the blob that holds the value; None when it is inline."""
        if isinstance(self.place, Range):
            return self.place.blob
        if isinstance(self.place, int):
            return f"v:{naming.escape(key)}/{naming.unique(self.born, self.generation)}"
        return None

    def range(self, key: str) -> Range:
        """Return where the value's bytes are, which must not be inline."""
        if isinstance(self.place, Range):
            return self.place
        return Range(cast("str", self.blob(key)), 0, cast("int", self.place))

    @property
    def stored(self) -> int:
        """The number of bytes that the value takes in the store."""
        if isinstance(self.place, Range):
            return self.place.length
        return self.place if isinstance(self.place, int) else len(self.place)


class Tombstone(msgspec.Struct, frozen=True):
    """What is kept of a deleted key: its version never goes back."""

    version: int


class Table:
    """An immutable table of entries in insertion order, and of tombstones.

    A key is found by binary search in the sorted hashes of the keys. Thread-safe.
    """

    def __init__(
        self,
        columns: Mapping[str, Array],
        blobs: list[str],
        kinds: list[tuple[str, tuple[int, ...] | None, str | None]],
        authors: list[str],
    ) -> None:
        self._c = dict(columns)
        self._text = memoryview(columns["key"].tobytes())
        self.rows = len(columns["generation"])
        self.tombstones = len(columns["key_end"]) - self.rows
        self.blobs = blobs
        self.kinds = kinds
        self.authors = authors

    @classmethod
    def empty(cls) -> Table:
        """Return the table of nothing."""
        return cls({name: np.empty(0, dtype) for name, dtype in _SCHEMA.items()}, [], [], [])

    def find(self, key: str) -> int:
        """Return the row of `key` (a tombstone's is `rows` or more), or -1."""
        hashes, raw = self._c["hash"], key.encode()
        wanted = np.uint64(xxhash.xxh3_64_intdigest(raw))
        at = int(np.searchsorted(hashes, wanted))
        while at < len(hashes) and hashes[at] == wanted:
            row = int(self._c["hash_row"][at])
            if self._raw(row) == raw:
                return row
            at += 1
        return -1

    def get(self, key: str) -> Entry | Tombstone | None:
        """Return what is known of `key`."""
        row = self.find(key)
        if row < 0:
            return None
        return self.entry(row) if row < self.rows else Tombstone(int(self._c["version"][row]))

    def key(self, row: int) -> str:
        """Return the key of a row."""
        return str(self._raw(row), "utf-8")

    def keys(self, rows: Iterable[int]) -> Iterator[str]:
        """Return the keys of `rows`."""
        return map(self.key, rows)

    def entry(self, row: int) -> Entry:
        """Return the entry of a live row."""
        c = self._c
        blob, length = int(c["blob"][row]), int(c["length"][row])
        place = length if blob == _OWN else Range(self.blobs[blob], int(c["offset"][row]), length)
        kind = self.kinds[int(c["kind"][row])]
        return Entry(
            version=int(c["version"][row]),
            generation=c["generation"][row].tobytes(),
            born=int(c["born"][row]),
            place=place,
            facts=Facts(kind[0], int(c["nbytes"][row]), kind[1], kind[2]),
            modified=int(c["modified"][row]),
            author=self.authors[int(c["author"][row])],
            order=row,
        )

    def uses(self) -> dict[str, int]:
        """Return how many entries live in each shared blob."""
        used = self._c["blob"][self._c["blob"] != _OWN]
        counts = np.bincount(used, minlength=len(self.blobs))
        return {self.blobs[i]: int(counts[i]) for i in np.flatnonzero(counts)}

    def updated(self, changes: Mapping[str, Entry | Tombstone]) -> Table:
        """Return a new table with `changes` made; none of them may be inline.

        An entry whose `order` is the row that its key has stays there; others go to the end.
        """
        keep = np.ones(self.rows + self.tombstones, bool)
        replaced: list[tuple[int, Entry]] = []
        added: list[tuple[str, Entry]] = []
        gone: list[tuple[str, Tombstone]] = []
        for key, item in changes.items():
            row = self.find(key)
            if isinstance(item, Entry) and row == item.order:
                replaced.append((row, item))
                continue
            if row >= 0:
                keep[row] = False
            if isinstance(item, Entry):
                added.append((key, item))
            else:
                gone.append((key, item))
        added.sort(key=lambda pair: pair[1].order)

        intern = _Interner(self)
        columns = {name: self._c[name].copy() for name in _LIVE}
        version = self._c["version"].copy()
        if replaced:
            rows = np.array([row for row, _ in replaced])
            for name, values in intern.columns([(self.key(r), e) for r, e in replaced]).items():
                columns[name][rows] = values
            version[rows] = [entry.version for _, entry in replaced]
        new = intern.columns(added)
        live = keep[: self.rows]
        columns = {n: np.concatenate([columns[n][live], new[n]]) for n in _LIVE}

        columns |= self._merge_keys(keep, [key for key, _ in added], [key for key, _ in gone])
        columns["version"] = np.concatenate(
            [
                version[: self.rows][live],
                np.array([entry.version for _, entry in added], "<u8"),
                version[self.rows :][keep[self.rows :]],
                np.array([stone.version for _, stone in gone], "<u8"),
            ]
        )
        # What no row names any more is dropped from the lists.
        shared = columns["blob"] != _OWN
        used, columns["blob"][shared] = np.unique(columns["blob"][shared], return_inverse=True)
        kinds, columns["kind"] = np.unique(columns["kind"], return_inverse=True)
        authors, columns["author"] = np.unique(columns["author"], return_inverse=True)
        return Table(
            {name: columns[name].astype(dtype, copy=False) for name, dtype in _SCHEMA.items()},
            [intern.blobs[i] for i in used],
            [intern.kinds[i] for i in kinds],
            [intern.authors[i] for i in authors],
        )

    def _merge_keys(self, keep: Array, added: list[str], gone: list[str]) -> dict[str, Array]:
        """Return the columns that hold and find the keys: kept, added, kept dead, newly dead."""
        lengths = np.diff(self._c["key_end"], prepend=np.uint64(0)).astype(np.int64)
        text = np.frombuffer(self._text, np.uint8)
        hashes = np.empty(len(keep), "<u8")
        hashes[self._c["hash_row"]] = self._c["hash"]
        texts, sizes, digests = [], [], []
        split = int(lengths[: self.rows].sum())
        halves = (
            (text[:split], slice(None, self.rows), added),
            (text[split:], slice(self.rows, None), gone),
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

    def _raw(self, row: int) -> memoryview:
        ends = self._c["key_end"]
        return self._text[int(ends[row - 1]) if row else 0 : int(ends[row])]

    def encode(self) -> tuple[list[Column], list[bytes]]:
        """Return the description of the columns, and their bytes as LZ4 frames."""
        described, data = [], []
        for name, dtype in _SCHEMA.items():
            raw = np.ascontiguousarray(self._c[name]).view(np.uint8)
            data.append(frames.deflate(raw.data))
            described.append(Column(name, dtype, len(data[-1]), raw.nbytes))
        return described, data


class _Interner:
    """Collects the values that many rows share: blob names, kinds and authors."""

    def __init__(self, table: Table) -> None:
        self.blobs, self.kinds, self.authors = (
            list(table.blobs),
            list(table.kinds),
            list(table.authors),
        )
        self._known: list[dict[Any, int]] = [
            {value: i for i, value in enumerate(values)}
            for values in (self.blobs, self.kinds, self.authors)
        ]

    def columns(self, entries: list[tuple[str, Entry]]) -> dict[str, Array]:
        """Return the live columns of `entries`, but for their versions."""
        items = [entry for _, entry in entries]
        blob = [self._blob(entry) for entry in items]
        kinds = [(e.facts.type, e.facts.shape, e.facts.dtype) for e in items]
        values: dict[str, Any] = {
            "generation": np.frombuffer(b"".join([e.generation for e in items]), "V16"),
            "born": [e.born for e in items],
            "blob": blob,
            "offset": [e.place.offset if isinstance(e.place, Range) else 0 for e in items],
            "length": [e.stored for e in items],
            "kind": [self._number(1, self.kinds, kind) for kind in kinds],
            "nbytes": [e.facts.nbytes for e in items],
            "modified": [e.modified for e in items],
            "author": [self._number(2, self.authors, e.author) for e in items],
        }
        return {name: np.asarray(values[name], dtype) for name, dtype in _LIVE.items()}

    def _blob(self, entry: Entry) -> int:
        if isinstance(entry.place, int):
            return _OWN
        assert isinstance(entry.place, Range), "an inline value in a table"  # noqa: S101
        return self._number(0, self.blobs, entry.place.blob)

    def _number(self, which: int, values: list[Any], value: Any) -> int:
        known = self._known[which]
        number = known.get(value)
        if number is None:
            number = known[value] = len(values)
            values.append(value)
        return number


def decode(
    described: list[Column],
    data: memoryview,
    rows: int,
    tombstones: int,
    blobs: list[str],
    kinds: list[tuple[str, tuple[int, ...] | None, str | None]],
    authors: list[str],
    path: str,
) -> Table:
    """Return the table whose columns are in `data`; raise CorruptBlobError if they can't be."""
    if [column.name for column in described] != list(_SCHEMA) or min(rows, tombstones) < 0:
        raise CorruptBlobError(path, "its columns are not those of this format")
    columns, at = {}, 0
    for column in described:
        dtype = np.dtype(_SCHEMA[column.name])
        count = rows + tombstones if column.name in _ALL else rows
        if column.name == "key":
            count = column.size
        if column.size != count * dtype.itemsize or column.stored > len(data) - at:
            raise CorruptBlobError(path, f"column {column.name} has the wrong size")
        # LZ4 can't shrink by more than 255 to 1: a larger claim is not worth the memory.
        if column.size > 256 * column.stored:
            raise CorruptBlobError(path, f"column {column.name} claims an impossible size")
        frame = data[at : at + column.stored]
        at += column.stored
        try:
            raw = frames.inflate(frame, column.size)
        except ValueError as exc:
            raise CorruptBlobError(path, f"column {column.name}: {exc}") from exc
        columns[column.name] = np.frombuffer(raw, dtype)
    _check_bounds(columns, rows, tombstones, blobs, kinds, authors, path)
    return Table(columns, blobs, kinds, authors)


def _check_bounds(
    columns: dict[str, Array],
    rows: int,
    tombstones: int,
    blobs: list[str],
    kinds: list[Any],
    authors: list[str],
    path: str,
) -> None:
    ends = columns["key_end"]
    if not (np.diff(ends, prepend=np.uint64(0)).astype(np.int64) > 0).all() or (
        int(ends[-1]) if len(ends) else 0
    ) != len(columns["key"]):
        raise CorruptBlobError(path, "its key column doesn't add up")
    try:
        columns["key"].tobytes().decode()
    except UnicodeDecodeError as exc:
        raise CorruptBlobError(path, f"its keys aren't UTF-8: {exc}") from exc
    numbers = {
        "hash_row": rows + tombstones,
        "kind": len(kinds),
        "author": len(authors),
    }
    own = columns["blob"] == _OWN
    if (columns["blob"][~own] >= len(blobs)).any() or any(
        (columns[name] >= limit).any() for name, limit in numbers.items()
    ):
        raise CorruptBlobError(path, "a column points outside its list")
