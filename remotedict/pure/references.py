"""References: which blobs a dictionary needs as of one commit, and how much of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from remotedict.pure import naming
from remotedict.pure.columns import FIRST_BLOB, OWN
from remotedict.pure.records import Range

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

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
    """

    def __init__(self, state: State, index: Index, log: Sequence[SegmentRef]) -> None:
        refs = (index.checkpoint, index.log, *index.segments, *log)
        self.named = {ref.blob: ref.size for ref in refs if ref}
        own, places = _later(state)
        parts = [own, _own(state.base, ""), _own(state.base, "past_")]
        ids, born, length = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.lexsort((born, ids))
        self._ids, self._born, self._length = ids[order], born[order], length[order]
        self.shared = _uses([*_ranges(state.base, ""), *_ranges(state.base, "past_")], places)

    def needed(self, references: Sequence[str]) -> list[bool]:
        """Tell for each blob whether it is needed."""
        sizes = self.sizes(references)
        return [size >= 0 for size in sizes]

    def sizes(self, references: Sequence[str]) -> list[int]:
        """Return how many bytes each blob must have at the least; -1 for one that isn't needed.

        One of the index side, and a value's own, must have just so many.
        """
        sizes = [max(self.named.get(blob, -1), self._shared_end(blob)) for blob in references]
        own = [n for n, blob in enumerate(references) if blob[0] == "v" and sizes[n] < 0]
        for n, size in zip(own, self._own_sizes([references[n] for n in own]), strict=True):
            sizes[n] = size
        return sizes

    def _shared_end(self, blob: str) -> int:
        use = self.shared.get(blob)
        return use.end if use else -1

    def _own_sizes(self, references: Sequence[str]) -> list[int]:
        if not references or not len(self._ids):
            return [-1] * len(references)
        generations = [bytes.fromhex(blob[-32:]) for blob in references]
        born = np.array([naming.born(blob) for blob in references], np.uint64)
        ids = np.frombuffer(b"".join(generations), "<u8")[::2]
        # An upload that was refused, and done again, has another name, but the same generation.
        at = np.searchsorted(self._ids, ids)
        sizes = np.full(len(references), -1, np.int64)
        wanted = np.flatnonzero(at < len(self._ids))
        while len(wanted):
            here = at[wanted]
            same = self._ids[here] == ids[wanted]
            hit = same & (self._born[here] == born[wanted])
            sizes[wanted[hit]] = self._length[here[hit]]
            wanted = wanted[same & ~hit]
            at[wanted] += 1
            wanted = wanted[at[wanted] < len(self._ids)]
        return sizes.tolist()


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
