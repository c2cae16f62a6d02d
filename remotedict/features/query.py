"""Queries: which keys have the metadata and facts wanted. No value is read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pandas as pd

from remotedict.features.metadata import parsed
from remotedict.pure.facts import type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from remotedict.pure.entry import Entry
    from remotedict.pure.state import State

FACTS: dict[str, Callable[[Entry], Any]] = {
    "type": lambda entry: entry.facts.type,
    "shape": lambda entry: entry.facts.shape,
    "dtype": lambda entry: entry.facts.dtype,
    "nbytes": lambda entry: entry.facts.nbytes,
    "stored": lambda entry: entry.stored,
    "version": lambda entry: entry.version,
    "modified": lambda entry: when(entry.modified),
    "author": lambda entry: entry.author,
}
_MAX_MICROS = int(datetime(9999, 1, 1, tzinfo=UTC).timestamp() * 1e6)


def when(micros: int) -> datetime:
    """Return a time as people read it."""
    # Somebody else wrote it: what is beyond all calendars must not break a list.
    return datetime.fromtimestamp(max(0, min(micros, _MAX_MICROS)) / 1e6, UTC)


def query(
    state: State, metadata: Mapping[str, Any], facts: Mapping[str, Any], more: Mapping[str, Any]
) -> list[str]:
    """Return the keys of `state` that match; see `Readable.query`."""
    for name, given in (("metadata", metadata), ("facts", facts)):
        if not isinstance(given, Mapping):
            msg = f"{name} are given as a mapping, or as keywords, not as {type(given).__name__}"
            raise TypeError(msg)
    if unknown := [name for name in facts if name not in FACTS]:
        msg = f"there is no fact {unknown[0]!r}; there are {', '.join(FACTS)}"
        raise ValueError(msg)
    metadata = {**metadata, **more}
    wanted = dict(facts)
    if "type" in wanted:
        wanted["type"] = _named(wanted["type"])
    if isinstance(wanted.get("shape"), list):
        wanted["shape"] = tuple(wanted["shape"])
    found = []
    for key, entry in _all(state):
        if not all(_fits(FACTS[name](entry), value) for name, value in wanted.items()):
            continue
        if metadata:
            fields = parsed(entry.metadata)
            if not all(
                name in fields and _fits(fields[name], value) for name, value in metadata.items()
            ):
                continue
        found.append(key)
    return found


def _all(state: State) -> Iterator[tuple[str, Entry]]:
    """Yield all keys with their entries."""
    for keys in state.blocks():
        for key, entry in zip(keys, state.entries(keys), strict=True):
            assert entry is not None  # noqa: S101 - keys are those of the state
            yield key, entry


def _named(wanted: Any) -> Any:
    """Return what a type must be: a class means its name, and a short name is one, too."""
    if isinstance(wanted, type):
        wanted = type_name(wanted)
    if not isinstance(wanted, str):
        return wanted
    return lambda name: wanted in (name, name.rpartition(".")[2])


def _fits(value: Any, wanted: Any) -> bool:
    return bool(wanted(value)) if callable(wanted) else bool(value == wanted)


def info(state: State) -> pd.DataFrame:
    """Return a row for each key; see `Readable.info`."""
    columns: dict[str, list[Any]] = {name: [] for name in (*FACTS, "metadata")}
    keys = []
    for key, entry in _all(state):
        keys.append(key)
        for name, fact in FACTS.items():
            columns[name].append(fact(entry))
        columns["metadata"].append(parsed(entry.metadata))
    frame = pd.DataFrame(columns, index=pd.Index(keys, name="key", dtype="str"))
    times = pd.to_datetime(pd.Series(columns["modified"], index=frame.index), utc=True)
    texts = dict.fromkeys(("type", "author"), "str")
    numbers = dict.fromkeys(("nbytes", "stored", "version"), "int64")
    return frame.astype(texts | numbers).assign(modified=times.astype("datetime64[us, UTC]"))
