"""References: which blobs a dictionary needs as of one commit, and how much of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from remotedict.pure import naming
from remotedict.pure.columns import FIRST_BLOB, OWN
from remotedict.pure.entry import Entry
from remotedict.pure.records import Range

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from remotedict.pure.packing import Array
    from remotedict.pure.records import Index, SegmentRef
    from remotedict.pure.state import State
    from remotedict.pure.table import Table


class Use(NamedTuple):
    """What listed values take of a blob that may hold several: how many bytes, and up to where."""

    live: int
    end: int


class References:
    """What the index, its log, and the listed items of its state name: also past ones.

    Some 24 bytes a value that has a blob of its own, whatever its key. Thread-safe.

    Parameters
    ----------
    state : State
        The state of the index.
    index : Index
        The index.
    log : sequence of SegmentRef
        The segments that its log names.

    Attributes
    ----------
    named : dict
        What the index and the log name, and how large each is.
    shared : dict
        The blobs that hold ranges with values.
    lengths : array
        Of the values' own blobs; see `rows`.
    """

    def __init__(self, state: State, index: Index, log: Sequence[SegmentRef]) -> None:
        refs = (index.checkpoint, index.log, *index.segments, *log)
        self.named = {ref.blob: ref.size for ref in refs if ref}
        own, places = _later(state)
        parts = [own, _own(state.base, ""), _own(state.base, "past_")]
        ids, born, length = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.lexsort((born, ids))
        ids, born, length = ids[order], born[order], length[order]
        first = np.ones(len(ids), bool)  # metadata alone make another item of the same value
        first[1:] = (ids[1:] != ids[:-1]) | (born[1:] != born[:-1])
        self._ids, self._born, self.lengths = ids[first], born[first], length[first]
        self.shared = _uses([*_ranges(state.base, ""), *_ranges(state.base, "past_")], places)

    def needed(self, references: Sequence[str]) -> list[bool]:
        """Tell for each blob whether it is needed."""
        own = [n for n, blob in enumerate(references) if blob[0] == "v"]
        needed = [blob in self.named or blob in self.shared for blob in references]
        for n, row in zip(own, self.rows([references[n] for n in own]), strict=True):
            needed[n] |= row >= 0
        return needed

    def rows(self, references: Sequence[str]) -> list[int]:
        """Return the numbers of values' own blobs; -1 for those that aren't needed."""
        rows = np.full(len(references), -1, np.int64)
        if not len(rows) or not len(self._ids):
            return [-1] * len(references)
        generations = [bytes.fromhex(blob[-32:]) for blob in references]
        born = np.array([naming.born(blob) for blob in references], np.uint64)
        ids = np.frombuffer(b"".join(generations), "<u8")[::2]
        # An upload that was refused, and done again, has another name, but the same generation.
        at = np.searchsorted(self._ids, ids)
        wanted = np.flatnonzero(at < len(self._ids))
        while len(wanted):
            here = at[wanted]
            same = self._ids[here] == ids[wanted]
            hit = same & (self._born[here] == born[wanted])
            rows[wanted[hit]] = here[hit]
            wanted = wanted[same & ~hit]
            at[wanted] += 1
            wanted = wanted[at[wanted] < len(self._ids)]
        found: list[int] = rows.tolist()
        return found


class Roll:
    """What of `references` has been seen in a listing, and what is missing when it is over."""

    def __init__(self, references: References) -> None:
        self._references = references
        self._seen = np.zeros(len(references.lengths), bool)
        self._missing = {*references.named, *references.shared}

    def see(self, blobs: Sequence[tuple[str, int]]) -> list[str | None]:
        """Return for each blob, given with its size, what is wrong with it; None if not needed.

        "" is nothing.
        """
        verdicts = [self._see_shared(blob, size) for blob, size in blobs]
        own = [n for n, (blob, _) in enumerate(blobs) if blob[0] == "v"]
        rows = self._references.rows([blobs[n][0] for n in own])
        for n, row in zip(own, rows, strict=True):
            if row >= 0:
                self._seen[row] = True
                verdicts[n] = _unequal(int(self._references.lengths[row]), blobs[n][1])
        return verdicts

    def _see_shared(self, blob: str, size: int) -> str | None:
        self._missing.discard(blob)
        named, use = self._references.named.get(blob), self._references.shared.get(blob)
        if named is not None:
            return _unequal(named, size)
        if use is None:
            return None
        return f"it has only {size} bytes, and not {use.end}" if size < use.end else ""

    def missing(self, state: State) -> Iterator[str]:
        """Yield the blobs that are needed, and weren't seen."""
        yield from sorted(self._missing)
        if self._seen.all():
            return
        own = {
            entry.range(key).blob for key, entry in listed(state) if isinstance(entry.place, int)
        }
        blobs = sorted(own)
        for blob, row in zip(blobs, self._references.rows(blobs), strict=True):
            if row >= 0 and not self._seen[row]:
                yield blob


def listed(state: State) -> Iterator[tuple[str, Entry]]:
    """Yield all values that are listed, also past ones, with their keys."""
    for key in state.known_keys():
        for item in state.listed(key):
            if isinstance(item, Entry):
                yield key, item


def ranges(state: State, blobs: Collection[str]) -> list[Range]:
    """Return where listed values, also past ones, lie in these blobs; each place once."""
    places = [entry.place for _, entry in state.later() if isinstance(entry.place, Range)]
    later = {(place.blob, place.offset): place for place in places if place.blob in blobs}
    return [*state.base.ranges(blobs), *later.values()]


def generations(state: State, wanted: Collection[bytes]) -> set[bytes]:
    """Return those of the generations that are listed, for whatever key."""
    later = {entry.generation for _, entry in state.later()}
    return state.base.generations(wanted) | (later & set(wanted))


def _unequal(expected: int, size: int) -> str:
    return "" if size == expected else f"it has {size} bytes, and not {expected}"


def _own(table: Table, which: str) -> tuple[Array, Array, Array]:
    """Return generations (the first half will do), births and lengths of values with own blobs."""
    columns = table.columns
    here = columns[which + "blob"] == OWN
    generations = np.ascontiguousarray(columns[which + "generation"][here])
    ids = generations.view("<u8")[::2]
    born, length = (columns[which + name][here].astype("<u8") for name in ("born", "length"))
    return ids, born, length


def _ranges(table: Table, which: str) -> Iterator[tuple[str, Array, Array]]:
    """Yield the blobs that hold ranges, with the offsets and lengths of these."""
    blob, offset, length = (table.columns[which + name] for name in ("blob", "offset", "length"))
    here = np.flatnonzero(blob >= FIRST_BLOB)
    if not len(here):
        return
    here = here[np.argsort(blob[here], kind="stable")]
    numbers, starts = np.unique(blob[here], return_index=True)
    for number, rows in zip(numbers.tolist(), np.split(here, starts[1:]), strict=True):
        yield table.lists.blobs[number - FIRST_BLOB], offset[rows], length[rows]


def _later(state: State) -> tuple[tuple[Array, Array, Array], list[Range]]:
    """Return the same of what lies beyond the base."""
    entries = [entry for _, entry in state.later()]
    places = [entry.place for entry in entries if isinstance(entry.place, Range)]
    own = [entry for entry in entries if isinstance(entry.place, int)]
    ids = np.frombuffer(b"".join([entry.generation for entry in own]), "<u8")[::2]
    born = np.array([entry.born for entry in own], "<u8")
    return (ids, born, np.array([entry.place for entry in own], "<u8")), places


def _uses(ranges: Iterable[tuple[str, Array, Array]], places: Iterable[Range]) -> dict[str, Use]:
    """Return what is used of each blob; a place that is named twice counts once."""
    found: dict[str, list[tuple[Array, Array]]] = {}
    for blob, offsets, lengths in ranges:
        found.setdefault(blob, []).append((offsets, lengths))
    later: dict[str, dict[int, int]] = {}
    for place in places:
        later.setdefault(place.blob, {})[place.offset] = place.length
    for blob, some in later.items():
        found.setdefault(blob, []).append((np.array([*some]), np.array([*some.values()])))
    uses = {}
    for blob, parts in found.items():
        offsets = np.concatenate([offset.astype(np.int64) for offset, _ in parts])
        lengths = np.concatenate([length.astype(np.int64) for _, length in parts])
        offsets, first = np.unique(offsets, return_index=True)
        lengths = lengths[first]
        uses[blob] = Use(int(lengths.sum()), int((offsets + lengths).max()))
    return uses
