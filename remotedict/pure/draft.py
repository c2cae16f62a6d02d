"""Drafts: what a state will be, once the commits in line are made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from remotedict.pure.entry import Entry, Item, Stamp, kept
from remotedict.pure.records import (
    Annotate,
    Change,
    Commit,
    Delete,
    Drop,
    Forget,
    Lock,
    LockEntry,
    Set,
    Unlock,
)
from remotedict.pure.state import State, advanced, locked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Draft:
    """A state and what is about to be added to it: what the next writer in line is judged on."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._waiting: list[Commit] = []  # not looked at yet: often nobody asks any more
        self._made: dict[str, list[Item]] = {}
        self._locks: dict[str, LockEntry | None] = {}
        self._forgotten: set[str] = set()
        self._drops: list[Drop] = []
        self.own: set[str] = set()  # keys that the commit in the making has changed so far
        # Beyond every order that the state has given or will give.
        self._first_order = self._next_order = 1 << 62

    def copy(self) -> Draft:
        """Return a draft that goes its own way from here."""
        other = Draft(self.state)
        other._made = {key: [*items] for key, items in self._items.items()}
        other._locks = dict(self._locks)
        other._forgotten = set(self._forgotten)
        other._drops = [*self._drops]
        other._next_order = self._next_order
        other.own = set(self.own)
        return other

    @property
    def _items(self) -> dict[str, list[Item]]:
        """What the commits so far make of each key that they change."""
        waiting, self._waiting = self._waiting, []
        for commit in waiting:
            stamp = Stamp.of(commit)
            for change in commit.changes:
                if not isinstance(change, Lock | Unlock | Drop):
                    self._add(change, stamp)
        return self._made

    def changed(self, since: int) -> Iterator[str]:
        """Return the keys that will have changed after commit `since`."""
        yield from self._items
        yield from self.state.changed(since)

    def item(self, key: str) -> Item | None:
        """Return what will be known of `key`."""
        items = self._items.get(key)
        return items[-1] if items else self.state.item(key)

    def get(self, key: str) -> Entry | None:
        """Return the entry that `key` will have, or None."""
        item = self.item(key)
        return item if isinstance(item, Entry) else None

    def version(self, key: str) -> int:
        """Return how often `key` will have been set or deleted."""
        item = self.item(key)
        return item.version if item else 0

    def versions(self, keys: Sequence[str]) -> dict[str, int]:
        """Return how often each of these keys will have been set or deleted."""
        made = self._items
        versions = dict(zip(keys, self.state.versions(keys), strict=True))
        return versions | {key: made[key][-1].version for key in versions if key in made}

    def listed(self, key: str) -> Sequence[Item]:
        """Return all that will be listed of `key`, oldest first."""
        made = self._items.get(key, ())
        old = [] if key in self._forgotten else self.state.listed(key)
        new = [item for item in made if item.version]
        items: Sequence[Item] = [*old, *new]
        for drop in self._drops:
            items = kept(items, drop)
        return items

    def lock(self, key: str) -> LockEntry | None:
        """Return the lock that `key` will have, or None."""
        return self._locks[key] if key in self._locks else self.state.lock(key)

    def __iter__(self) -> Iterator[str]:
        for key in self.state:
            if self._untouched(key):
                yield key
        yield from self._added()

    def __reversed__(self) -> Iterator[str]:
        yield from reversed(self._added())
        for key in reversed(self.state):
            if self._untouched(key):
                yield key

    def _untouched(self, key: str) -> bool:
        items = self._items.get(key)
        if not items:
            return True
        item = items[-1]
        return isinstance(item, Entry) and item.order < self._first_order

    def _added(self) -> list[str]:
        added = [
            (items[-1].order, key)
            for key, items in self._items.items()
            if isinstance(items[-1], Entry) and items[-1].order >= self._first_order
        ]
        return [key for _, key in sorted(added)]

    def add(self, commit: Commit) -> None:
        """Take `commit` as made."""
        self._waiting.append(commit)
        for change in commit.changes:
            if isinstance(change, Lock | Unlock):
                self._locks[change.key] = locked(change, commit)
            elif isinstance(change, Drop):
                self._drops.append(change)

    def _add(self, change: Set | Delete | Annotate | Forget, stamp: Stamp) -> None:
        key = change.key
        items = self._made.get(key)
        old = items[-1] if items else self.state.item(key)
        new = advanced(old, change, stamp, self._next_order)
        self._next_order += 1
        if isinstance(change, Forget):
            self._forgotten.add(key)
            self._made[key] = []
        items = self._made.setdefault(key, [])
        if isinstance(change, Annotate) and items and items[-1].stamp == stamp:
            items[-1] = new  # part of what set it
        else:
            items.append(new)


def versioned(changes: Sequence[Change], draft: Draft) -> list[Change]:
    """Return the changes of one commit on the state that `draft` has, with their versions."""
    counted = [change for change in changes if isinstance(change, Set | Delete | Annotate)]
    versions = draft.versions([change.key for change in counted])
    numbered: list[Change] = []
    for change in changes:
        if isinstance(change, Forget):
            versions[change.key] = 0
        if not isinstance(change, Set | Delete | Annotate):
            numbered.append(change)
            continue
        version = versions[change.key]
        if not isinstance(change, Annotate):
            version = versions[change.key] = version + 1
        numbered.append(change if change.version == version else replace(change, version=version))
    return numbered
