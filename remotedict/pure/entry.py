"""Entries: what is known of a key, as of one commit."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import msgspec

from remotedict.pure import naming
from remotedict.pure.location import Location
from remotedict.pure.records import Facts, Place, Range

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remotedict.pure.records import Commit, Drop


class Stamp(msgspec.Struct, frozen=True, gc=False):
    """Who changed something, when and why: a commit without its changes."""

    id: bytes
    seq: int
    time: int
    author: str
    comment: str

    @classmethod
    def of(cls, commit: Commit) -> Stamp:
        """Return the stamp of a commit."""
        return cls(commit.id, commit.seq, commit.time, commit.author, commit.comment)


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A key that is there: one of its generations, and its metadata.

    `stamp` is the commit that made it so, `written` the one that set the value: another one when
    only the metadata has changed since. `order` gives the place in the iteration: an overwrite
    keeps it.
    """

    version: int
    generation: bytes
    born: int
    place: Place
    facts: Facts
    metadata: str
    written: Stamp
    stamp: Stamp
    order: int

    @property
    def modified(self) -> int:
        """When the value was set, in microseconds of UTC."""
        return self.written.time

    @property
    def author(self) -> str:
        """Who set the value."""
        return self.written.author

    def blob(self, key: str) -> str | None:
        """Return the reference of the blob that holds the value; None when it is inline."""
        if isinstance(self.place, Range):
            return self.place.blob
        if isinstance(self.place, int):
            return f"v:{naming.escape(key)}/{naming.unique(self.born, self.generation)}"
        return None

    def location(self, key: str) -> Location:
        """Return where the value is, this being the entry of `key`."""
        place, more = self.place, (key, self.generation, self.facts.nbytes)
        if isinstance(place, Range):
            return Location(place.blob, place.offset, place.length, *more)
        return Location(self.blob(key) or cast("bytes", place), 0, self.stored, *more)

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


class Tombstone(msgspec.Struct, frozen=True, gc=False):
    """What is kept of a deleted key: its version never goes back; 0 for a forgotten one."""

    version: int
    stamp: Stamp


Item = Entry | Tombstone


def kept(items: Sequence[Item], drop: Drop) -> Sequence[Item]:
    """Return those of a key's items, oldest first, that stay listed after `drop`.

    All that decides was there as of commit `drop.before`: so it does not matter what came later.
    """
    then = [item for item in items if item.stamp.seq <= drop.before]
    if not then:
        return items
    limit = then[-1].version - drop.versions
    first = next(
        (n for n, item in enumerate(then[:-1]) if item.version > limit),
        len(then) - 1,
    )
    return items[first:]
