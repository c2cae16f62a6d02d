"""Columns: what a table is made of, and the lists whose items its columns number."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from remotedict.pure.entry import Entry, Item, Stamp
from remotedict.pure.packing import narrowed
from remotedict.pure.records import Facts, Range, Set

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from remotedict.pure.packing import Array

    Columns = Mapping[str, Array]
    Kind = tuple[str, tuple[int, ...] | None, str | None]

# In the blob column:
OWN = 0  # the value has a blob of its own
GONE = 1  # an item of the past, or one that is new: the key was deleted
FIRST_BLOB = 2  # the first of the list

# The columns, in the order of the store, and the widest type of each: most are narrower. First
# those with an item for every key, be it live or deleted; the deleted ones come last.
KEYS = {"key_end": "<u8", "hash": "<u4", "hash_row": "<u4"}
ITEM = {"version": "<u8", "stamp": "<u4"}
# Live keys only:
VALUE = {
    "order": "<u8",
    "generation": "|V16",
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
    "stamp_id": "|V16",
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


class Lazy(Mapping[str, "Array"]):
    """Columns of which each is made when it is first needed. Thread-safe."""

    def __init__(self, makers: dict[str, Callable[[], Array]]) -> None:
        self._makers = makers
        self._names = list(makers)
        self._made: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        make = self._makers.get(name)
        if make is not None:
            # Two threads may both do it, to the same effect.
            self._made[name] = make()
            self._makers.pop(name, None)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Interner:
    """Collects what many rows share: commits, blob names, kinds and texts."""

    def __init__(self, columns: Columns, lists: Lists) -> None:
        self._c = columns
        self.lists = Lists([*lists.blobs], [*lists.kinds], [*lists.texts])
        self._blobs, self._kinds, self._texts = (
            {value: n for n, value in enumerate(values)} for values in lists
        )
        self._old = columns["stamp_seq"]
        self._known: dict[int, int] = {}
        self._added: list[Stamp] = []

    def columns(self, items: Sequence[Item]) -> dict[str, Array]:
        """Return the columns of `items`, be they live or past."""
        values = [item if isinstance(item, Entry) else _NOTHING for item in items]
        stamps = self._stamps([item.stamp for item in items])
        columns = self._values(values)
        columns |= {
            "version": _numbers([item.version for item in items]),
            "stamp": stamps,
            "order": _numbers([value.order for value in values]),
            "metadata": _numbers([self.text(value.metadata) for value in values]),
            "written": self._stamps(
                [item.written if isinstance(item, Entry) else item.stamp for item in items]
            ),
        }
        gone = [value is _NOTHING for value in values]
        columns["blob"][gone] = GONE
        return columns

    def sets(self, sets: Sequence[Set], stamp: Stamp) -> dict[str, Array]:
        """Return the columns of what a commit sets, but for orders and metadata."""
        number = np.full(len(sets), self._stamps([stamp])[0])
        version = _numbers([change.version for change in sets])
        return self._values(sets) | {"version": version, "stamp": number, "written": number}

    def _values(self, values: Sequence[Entry | Set]) -> dict[str, Array]:
        places = [value.place for value in values]
        facts = [value.facts for value in values]
        lengths = [p.length if isinstance(p, Range) else p for p in places]
        assert bytes not in set(map(type, lengths)), "an inline value in a table"  # noqa: S101
        ranges = [place if isinstance(place, Range) else None for place in places]
        blobs, kinds = self._blobs, self._kinds
        return {
            "generation": np.frombuffer(b"".join([v.generation for v in values]), "V16"),
            "born": _numbers([value.born for value in values]),
            "blob": _numbers(
                [
                    FIRST_BLOB + numbered(blobs, self.lists.blobs, place.blob) if place else OWN
                    for place in ranges
                ]
            ),
            "offset": _numbers([place.offset if place else 0 for place in ranges]),
            "length": _numbers(cast("list[int]", lengths)),
            "kind": _numbers(
                [numbered(kinds, self.lists.kinds, kind) for kind in map(_KIND, facts)]
            ),
            "nbytes": _numbers([fact.nbytes for fact in facts]),
        }

    def nothing(self, stamps: Array) -> dict[str, Array]:
        """Return the columns of the values of deleted keys, which have none."""
        one = self._values([_NOTHING])
        one |= {"blob": _numbers([GONE]), "order": _numbers([0])}
        one["metadata"] = _numbers([self.text("")])
        return {name: np.repeat(column, len(stamps)) for name, column in one.items()} | {
            "written": stamps
        }

    def text(self, text: str) -> int:
        """Return the number of a text."""
        return numbered(self._texts, self.lists.texts, text)

    def _stamps(self, stamps: Iterable[Stamp]) -> Array:
        return _numbers([self._stamp(stamp) for stamp in stamps])

    def _stamp(self, stamp: Stamp) -> int:
        number = self._known.get(stamp.seq)
        if number is None:
            number = int(self._old.searchsorted(np.uint64(stamp.seq)))
            if number == len(self._old) or self._old[number] != stamp.seq:
                number = len(self._old) + len(self._added)
                self._added.append(stamp)
            self._known[stamp.seq] = number
        return number

    def stamps(self) -> dict[str, Array]:
        """Return the columns of the commits: those of the table, and the new ones."""
        new = {
            "stamp_id": np.frombuffer(b"".join([s.id for s in self._added]), "V16"),
            "stamp_seq": _numbers([s.seq for s in self._added]),
            "stamp_time": np.array([s.time for s in self._added], "<i8"),
            "stamp_author": _numbers([self.text(s.author) for s in self._added]),
            "stamp_comment": _numbers([self.text(s.comment) for s in self._added]),
        }
        return {name: np.concatenate([self._c[name], column]) for name, column in new.items()}


_KIND: Callable[[Any], Kind] = attrgetter("type", "shape", "dtype")
_NOBODY = Stamp(bytes(16), 0, 0, "", "")
_NOTHING = Entry(0, bytes(16), 0, 0, Facts("", 0), "", _NOBODY, _NOBODY, 0)


def _numbers(values: Sequence[int]) -> Array:
    return np.array(values, "<u8")


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


def compacted(columns: Columns, lists: Lists) -> tuple[dict[str, Array], Lists]:
    """Return columns and lists without what no row names any more, and commits in their order."""
    columns = dict(columns)
    blobs, kinds, texts = lists
    stamps = _Used.of(len(columns["stamp_seq"]), [columns[name] for name in STAMPS])
    ranks = np.argsort(columns["stamp_seq"][stamps.items], kind="stable")
    places = np.empty(len(ranks), np.int64)
    places[ranks] = np.arange(len(ranks))
    for name in STAMPS:
        columns[name] = places[stamps.numbers[columns[name]]]
    for name in STAMP:
        columns[name] = columns[name][stamps.items[ranks]]
    used_texts = _Used.of(len(texts), [columns[name] for name in TEXTS])
    for name in TEXTS:
        columns[name] = used_texts.numbers[columns[name]]
    used_kinds = _Used.of(len(kinds), [columns["kind"], columns["past_kind"]])
    used_blobs = _Used.of(
        FIRST_BLOB + len(blobs), [columns["blob"], columns["past_blob"], np.arange(FIRST_BLOB)]
    )
    for which in ("", "past_"):
        columns[which + "kind"] = used_kinds.numbers[columns[which + "kind"]]
        columns[which + "blob"] = used_blobs.numbers[columns[which + "blob"]]
    cast = {
        name: columns[name]
        if name == "key" or np.dtype(dtype).kind != "u"
        else narrowed(columns[name].astype("<u8", copy=False))
        for name, dtype in SCHEMA.items()
    }
    return cast, Lists(
        [blobs[n - FIRST_BLOB] for n in used_blobs.items[FIRST_BLOB:]],
        [kinds[n] for n in used_kinds.items],
        [texts[n] for n in used_texts.items],
    )
