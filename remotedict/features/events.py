"""Events: what commits say, change by change."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - for those who ask for the type hints
from typing import TYPE_CHECKING, NamedTuple

from remotedict.features.query import when
from remotedict.pure.entry import Entry, Tombstone
from remotedict.pure.records import Annotate, Delete, Drop, Forget, Lock, Range, Set

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remotedict.pure.entry import Item
    from remotedict.pure.records import Change, Commit


class Event(NamedTuple):
    """One change of one key."""

    key: str
    kind: str
    """``set``, ``delete``, ``metadata``, ``lock``, ``unlock`` or ``forget``."""
    version: int | None
    """What the key's version is since; None where it plays no part."""
    author: str
    comment: str
    time: datetime
    """When its writer made it, by its writer's clock, in UTC."""
    size: int | None
    """The bytes that a value takes in the store."""
    commit: str
    """The id of the commit."""
    seq: int
    """The number of the commit."""
    position: int
    """Which change of the commit it is, from 0."""


def events(commit: Commit) -> list[Event]:
    """Return the changes of a commit that concern users, in their order."""
    return [
        Event(
            key=change.key,
            kind=_kind(change),
            version=change.version if isinstance(change, Set | Delete | Annotate) else None,
            author=commit.author,
            comment=commit.comment,
            time=when(commit.time),
            size=_size(change),
            commit=commit.id.hex(),
            seq=commit.seq,
            position=position,
        )
        for position, change in enumerate(commit.changes)
        if not isinstance(change, Drop)
    ]


def _kind(change: Change) -> str:
    if isinstance(change, Set):
        return "set"
    if isinstance(change, Delete):
        return "delete"
    if isinstance(change, Annotate):
        return "metadata"
    if isinstance(change, Forget):
        return "forget"
    return "lock" if isinstance(change, Lock) else "unlock"


def _size(change: Change) -> int | None:
    if not isinstance(change, Set):
        return None
    if isinstance(change.place, Range):
        return change.place.length
    return change.place if isinstance(change.place, int) else len(change.place)


def remembered(key: str, items: list[Item], before: int) -> Iterator[Event]:
    """Yield what the state knows of the commits before `before` that made a key what it was."""
    for position, item in enumerate(items):
        stamp = item.stamp
        if stamp.seq >= before:
            return
        kind = "delete" if isinstance(item, Tombstone) else "set"
        if isinstance(item, Entry) and item.written.seq != stamp.seq:
            kind = "metadata"
        yield Event(
            key=key,
            kind=kind,
            version=item.version,
            author=stamp.author,
            comment=stamp.comment,
            time=when(stamp.time),
            size=item.stored if isinstance(item, Entry) and kind == "set" else None,
            commit=stamp.id.hex(),
            seq=stamp.seq,
            position=position,
        )
