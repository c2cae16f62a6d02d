"""Where values are: all that is needed to read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, overload

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable


class Location(msgspec.Struct, frozen=True, gc=False):
    """What is needed to read a value.

    `source` is the reference of a blob, in which the value takes `length` bytes at `offset`; or
    these bytes themselves, when it is inline. It is what `key` has, and holds `nbytes`.
    """

    source: str | bytes
    offset: int
    length: int
    key: str
    generation: bytes
    nbytes: int

    @property
    def blob(self) -> str | None:
        """The reference of the blob that holds the value; None when it is inline."""
        return self.source if isinstance(self.source, str) else None


@dataclass(slots=True, eq=False)
class Locations(Sequence[Location]):
    """Where many values are, by columns.

    An object for each value, and a look into it wherever something of it is needed, is a quarter
    of the time in which a million small values are read.
    """

    sources: list[str | bytes]
    offsets: list[int]
    lengths: list[int]
    keys: list[str]
    generations: list[bytes]
    sizes: list[int]

    @classmethod
    def of(cls, locations: Iterable[Location]) -> Locations:
        """Return them by columns."""
        rows = list(locations)
        return cls(*([getattr(row, name) for row in rows] for name in Location.__struct_fields__))

    @classmethod
    def joined(cls, parts: Sequence[Locations]) -> Locations:
        """Return those of all parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        columns = zip(*(part.columns for part in parts), strict=True)
        return cls(*(list(chain(*column)) for column in columns))

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, at: int) -> Location: ...
    @overload
    def __getitem__(self, at: slice) -> Locations: ...
    def __getitem__(self, at: int | slice) -> Location | Locations:
        if isinstance(at, slice):
            return Locations(*(column[at] for column in self.columns))
        return Location(*(column[at] for column in self.columns))

    def taken(self, rows: Sequence[int]) -> Locations:
        """Return some of them, in this order."""
        return Locations(*([column[row] for row in rows] for column in self.columns))

    @property
    def columns(self) -> tuple[list[Any], ...]:
        """All of it, in the order of what a `Location` has."""
        return (
            self.sources,
            self.offsets,
            self.lengths,
            self.keys,
            self.generations,
            self.sizes,
        )
