"""History: who changed what, when and why; and how it was before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
from msgspec.structs import replace

from remotedict.engine.commits import first_kept
from remotedict.errors import KeyNotFoundError, SnapshotExpiredError
from remotedict.features.events import Event, events, remembered
from remotedict.features.moment import integer
from remotedict.pure.entry import Entry
from remotedict.pure.records import Set

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remotedict.engine.core import Engine
    from remotedict.engine.index import Known
    from remotedict.pure.draft import Draft
    from remotedict.pure.entry import Item
    from remotedict.pure.records import Index
    from remotedict.pure.state import State

POLICIES = "'none' (the newest version alone), 'all', or a number of versions"


def versions_kept(history: Any) -> int | None:
    """Return how many versions a policy keeps; None for all.

    Raises
    ------
    TypeError, ValueError
        It isn't a policy.
    """
    if history == "all":
        return None
    if history == "none":
        return 1
    if isinstance(history, bool) or not isinstance(history, int | str):
        msg = f"history= must be {POLICIES}; not of type {type(history).__name__}"
        raise TypeError(msg)
    if isinstance(history, str) or history < 1:
        msg = f"history= must be {POLICIES}; not {history!r}"
        raise ValueError(msg)
    return history


def policy(index: Index | None) -> str | int:
    """Return the policy of a dictionary, as users write it."""
    if index is None or index.history == 1:
        return "none"
    return "all" if index.history is None else index.history


def keeping(index: Index, kept: int | None) -> Index | None:
    """Return `index` with another policy; None if it has this one."""
    return None if index.history == kept else replace(index, history=kept)


def frame(engine: Engine, known: Known, key: str | None) -> pd.DataFrame:
    """Return the changes of a key, or of all, newest first.

    As far back as commits are kept, by these; before that by what the state lists.
    """
    rows: list[Event] = []
    first = first_kept(known.index) if known.index else 1
    for name in [key] if key is not None else _all(known.state, first):
        rows += remembered(name, known.state.listed(name), first)

    def kept() -> list[Event]:
        return [
            event
            for commit in engine.commits.after(first - 1, known)
            for event in events(commit)
            if key is None or event.key == key
        ]

    rows += engine.runtime.call(kept)
    rows.sort(key=lambda event: (event.seq, event.position), reverse=True)
    table = pd.DataFrame(rows, columns=Event._fields).drop(columns="position")
    texts = dict.fromkeys(("key", "kind", "author", "comment", "commit"), "str")
    times = pd.to_datetime(table["time"], utc=True).astype("datetime64[us, UTC]")
    numbers = {"version": "Int64", "size": "Int64", "seq": "int64"}
    return table.astype(texts | numbers).assign(time=times)


def _all(state: State, first: int) -> Iterator[str]:
    """Return the keys of which something older than commit `first` may be listed."""
    return iter(state.known_keys()) if first > 1 else iter(())


def as_of(known: Known, seq: int) -> State:
    """Return the state as of a commit.

    Raises
    ------
    SnapshotExpiredError
        Values that were there then have been dropped.
    """
    if seq < known.state.floor:
        raise SnapshotExpiredError(
            None,
            f"the dictionary as of commit {seq} is no longer whole: replaced values were dropped "
            f"up to commit {known.state.floor}, for history is {policy(known.index)!r}. "
            "history='all' keeps every version from then on",
        )
    return known.state if seq == known.state.seq else known.state.at(seq)


def check_version(version: Any) -> int:
    """Return a version that users gave; raise TypeError or ValueError if it can't be one."""
    number = integer(version)
    if number is None:
        msg = f"a version is a positive int, not {type(version).__name__}"
        raise TypeError(msg)
    if number < 1:
        msg = f"a version is a positive int, not {number}"
        raise ValueError(msg)
    return number


def version_of(key: str, version: int, items: list[Item] | Any, history: str | int) -> Entry:
    """Return the entry that `key` had as its version `version`, among those listed.

    Raises
    ------
    KeyNotFoundError
        The key never had this version, or was deleted by it.
    SnapshotExpiredError
        It is no longer kept.
    """
    newest = items[-1].version if items else 0
    if version > newest:
        reason = f"its newest version is {newest}" if newest else "it was never set, or forgotten"
        raise KeyNotFoundError([key], f"key {key!r} has no version {version}: {reason}")
    found = [item for item in items if item.version == version]
    if not found:
        raise SnapshotExpiredError(
            key,
            f"version {version} of key {key!r} is no longer kept: history is {history!r}. "
            "history='all' keeps every version from then on",
        )
    if not isinstance(found[-1], Entry):
        raise KeyNotFoundError([key], f"version {version} of key {key!r} is its deletion")
    return found[-1]


def again(key: str, origin: str, entry: Entry) -> Set:
    """Return the change that gives `key` the bytes of an entry of `origin`, which stay."""
    place = entry.place
    if isinstance(place, int) and key != origin:
        place = entry.range(origin)
    return Set(key, 0, entry.generation, entry.born, place, entry.facts, origin)


def reverting(draft: Draft, key: str, version: int, history: str | int) -> list[Set]:
    """Return the change that makes an old version the newest."""
    return [again(key, key, version_of(key, version, draft.listed(key), history))]


def difference(one: State, other: State) -> pd.DataFrame:
    """Return the keys that differ between two states, and how."""
    rows = []
    for key in dict.fromkeys([*one, *other]):
        a, b = one.get(key), other.get(key)
        if a is None or b is None:
            change = "added" if a is None else "removed"
        elif (a.version, a.generation) != (b.version, b.generation):
            change = "changed"
        elif a.metadata != b.metadata:
            change = "metadata"
        else:
            continue
        after = other.item(key)
        author = b.author if b and change == "changed" else after.stamp.author if after else ""
        rows.append((key, change, a and a.version, b and b.version, author))
    columns = ["key", "change", "version_a", "version_b", "author"]
    table = pd.DataFrame(rows, columns=columns).astype({"key": "str"}).set_index("key")
    return table.astype(
        {"change": "str", "author": "str", "version_a": "Int64", "version_b": "Int64"}
    )
