"""Columns: what a table is made of, and the lists whose items its columns number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from remotedict.pure.entry import Item, Stamp, Tombstone
from remotedict.pure.records import Range

if TYPE_CHECKING:
    from collections.abc import Sequence

    Array = np.ndarray[Any, np.dtype[Any]]
    Columns = dict[str, Array]
    Kind = tuple[str, tuple[int, ...] | None, str | None]

# In the blob column:
OWN = 0xFFFFFFFF  # the value has a blob of its own
GONE = 0xFFFFFFFE  # a past item: the key was deleted

# The columns, in the order of the store. First those with an item for every key, be it live or
# deleted; the deleted ones come last.
KEYS = {"key_end": "<u8", "hash": "<u8", "hash_row": "<u4"}
ITEM = {"version": "<u8", "stamp": "<u4"}
# Live keys only:
VALUE = {
    "order": "<u8",
    "generation": "V16",
    "born": "<u8",
    "blob": "<u4",
    "offset": "<u8",
    "length": "<u8",
    "kind": "<u4",
    "nbytes": "<u8",
    "metadata": "<u4",
    "written": "<u4",
}
# What keys were before, sorted by key (its row) and then by age.
PAST_ITEM = {f"past_{name}": dtype for name, dtype in (ITEM | VALUE).items()}
PAST = {"past_of": "<u4", **PAST_ITEM}
# The commits that all of these name.
STAMP = {
    "stamp_id": "V16",
    "stamp_seq": "<u8",
    "stamp_time": "<i8",
    "stamp_author": "<u4",
    "stamp_comment": "<u4",
}
SCHEMA = {"key": "|u1", **KEYS, **ITEM, **VALUE, **PAST, **STAMP}

TEXTS = ("metadata", "past_metadata", "stamp_author", "stamp_comment")
STAMPS = ("stamp", "written", "past_stamp", "past_written")


class Lists(NamedTuple):
    """What columns number: references of blobs; type, shape and dtype; and texts."""

    blobs: list[str]
    kinds: list[Kind]
    texts: list[str]


class Interner:
    """Collects what many rows share: commits, blob names, kinds and texts."""

    def __init__(self, columns: Columns, lists: Lists) -> None:
        self._c = columns
        self.lists = Lists([*lists.blobs], [*lists.kinds], [*lists.texts])
        self._blobs, self._kinds, self._texts = (
            {value: n for n, value in enumerate(values)} for values in lists
        )
        self._old = len(self._c["stamp_seq"])
        self._known: dict[bytes, int] | None = None
        self._added: list[Stamp] = []

    def columns(self, items: Sequence[Item]) -> Columns:
        """Return the columns of `items`, be they live or past."""
        rows = [self._row(item) for item in items]
        dtypes = (ITEM | VALUE).items()
        turned = list(zip(*rows, strict=True)) if rows else [()] * len(dtypes)
        return {
            name: np.frombuffer(b"".join(values), "V16")
            if name == "generation"
            else np.asarray(values, dtype)
            for (name, dtype), values in zip(dtypes, turned, strict=True)
        }

    def _row(self, item: Item) -> tuple[Any, ...]:
        """Return the values of an item, in the order of the columns."""
        head = (item.version, self._stamp(item.stamp))
        if isinstance(item, Tombstone):
            return (*head, 0, bytes(16), 0, GONE, 0, 0, self._kind(("", None, None)), 0,
                    self._text(""), head[1])  # fmt: skip
        place, facts = item.place, item.facts
        assert not isinstance(place, bytes), "an inline value in a table"  # noqa: S101
        blob, offset = OWN, 0
        if isinstance(place, Range):
            blob, offset = numbered(self._blobs, self.lists.blobs, place.blob), place.offset
        return (
            *head,
            item.order,
            item.generation,
            item.born,
            blob,
            offset,
            item.stored,
            self._kind((facts.type, facts.shape, facts.dtype)),
            facts.nbytes,
            self._text(item.metadata),
            head[1] if item.written == item.stamp else self._stamp(item.written),
        )

    def _kind(self, kind: Kind) -> int:
        return numbered(self._kinds, self.lists.kinds, kind)

    def _text(self, text: str) -> int:
        return numbered(self._texts, self.lists.texts, text)

    def _stamp(self, stamp: Stamp) -> int:
        if self._known is None:
            ids = self._c["stamp_id"]
            self._known = {ids[n].tobytes(): n for n in range(self._old)}
        number = self._known.get(stamp.id)
        if number is None:
            number = self._known[stamp.id] = self._old + len(self._added)
            self._added.append(stamp)
        return number

    def stamps(self) -> Columns:
        """Return the columns of the commits: those of the table, and the new ones."""
        new: dict[str, Any] = {
            "stamp_id": np.frombuffer(b"".join([s.id for s in self._added]), "V16"),
            "stamp_seq": [s.seq for s in self._added],
            "stamp_time": [s.time for s in self._added],
            "stamp_author": [self._text(s.author) for s in self._added],
            "stamp_comment": [self._text(s.comment) for s in self._added],
        }
        return {
            name: np.concatenate([self._c[name], np.asarray(new[name], dtype)])
            for name, dtype in STAMP.items()
        }


def numbered(known: dict[Any, int], values: list[Any], value: Any) -> int:
    """Return the number of a value in a list, where it is put if it isn't there."""
    number = known.get(value)
    if number is None:
        number = known[value] = len(values)
        values.append(value)
    return number


class _Used(NamedTuple):
    """Which items of a list are named, and their new numbers."""

    items: Array
    numbers: Array

    @classmethod
    def of(cls, total: int, columns: Sequence[Array]) -> _Used:
        used = np.zeros(total, bool)
        for column in columns:
            used[column] = True
        return cls(np.flatnonzero(used), np.cumsum(used) - 1)


def compacted(columns: Columns, lists: Lists) -> tuple[Columns, Lists]:
    """Return columns and lists without what no row names any more."""
    columns = dict(columns)
    blobs, kinds, texts = lists
    stamps = _Used.of(len(columns["stamp_seq"]), [columns[name] for name in STAMPS])
    for name in STAMPS:
        columns[name] = stamps.numbers[columns[name]]
    for name in STAMP:
        columns[name] = columns[name][stamps.items]
    used_texts = _Used.of(len(texts), [columns[name] for name in TEXTS])
    for name in TEXTS:
        columns[name] = used_texts.numbers[columns[name]]
    used_kinds = _Used.of(len(kinds), [columns["kind"], columns["past_kind"]])
    shared = {name: columns[name] < GONE for name in ("blob", "past_blob")}
    used_blobs = _Used.of(len(blobs), [columns[name][mask] for name, mask in shared.items()])
    for name, mask in shared.items():
        columns[name] = columns[name].copy()
        columns[name][mask] = used_blobs.numbers[columns[name][mask]]
        kind = name.replace("blob", "kind")
        columns[kind] = used_kinds.numbers[columns[kind]]
    cast = {name: columns[name].astype(dtype, copy=False) for name, dtype in SCHEMA.items()}
    return cast, Lists(
        [blobs[n] for n in used_blobs.items],
        [kinds[n] for n in used_kinds.items],
        [texts[n] for n in used_texts.items],
    )
