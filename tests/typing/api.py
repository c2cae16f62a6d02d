"""What users write, for the type checker: it is checked by ``mypy --strict``, and never run."""

from __future__ import annotations

import pickle
from collections.abc import (
    ItemsView,
    Iterator,
    KeysView,
    Mapping,
    MutableMapping,
    Reversible,
    ValuesView,
)
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import pandas as pd

import remotedict
from remotedict import (
    CopyReport,
    Event,
    ItemLockedError,
    ItemLockedException,
    KeyNotFoundError,
    LocalDictionary,
    LockInfo,
    MemoryDictionary,
    RemoteDict,
    RemoteDictError,
    RepairReport,
    Snapshot,
    Stats,
    UnknownOutcomeError,
    VersionConflictError,
)
from remotedict.azure import AzureDictionary

# -- opening --------------------------------------------------------------------------------

AzureDictionary("connection string", container_name="mycontainer", folder_name="myfolder")
AzureDictionary(container_name="mycontainer")
AzureDictionary(account_url="https://x", credential=object(), container_name="mycontainer")
LocalDictionary("folder")
LocalDictionary(Path("folder"), folder_name="other", timeout=5, inline_bytes=0)
MemoryDictionary()
MemoryDictionary("name", max_staleness=0.5, cache_bytes=0, author="me", progress=False)
MemoryDictionary(history="all", retention=60)
MemoryDictionary(history=3)
assert_type(remotedict.open("az://container/folder", pickle_credentials=True), RemoteDict)
assert_type(remotedict.open(Path("folder")), RemoteDict)

d: RemoteDict = MemoryDictionary()
with LocalDictionary("folder") as local:
    assert_type(local, LocalDictionary)

# -- a mapping ------------------------------------------------------------------------------


def takes_a_mapping(mapping: Mapping[str, Any]) -> None:
    """Any mapping will do."""


def takes_a_mutable_mapping(mapping: MutableMapping[str, int]) -> None:
    """Values are Any."""


def takes_a_reversible(keys: Reversible[str]) -> None:
    """A dict is one, and so is this."""


takes_a_mapping(d)
takes_a_mutable_mapping(d)
takes_a_reversible(d)

d["foo"] = "bar"
d["arr"] = np.zeros(3)
assert_type(d["foo"], Any)
assert_type(len(d), int)
assert_type("foo" in d, bool)
assert_type(list(d), list[str])
assert_type(iter(d), Iterator[str])
assert_type(reversed(d), Iterator[str])
del d["foo"]

number: int = d.get("n", 0)
text: str = d.pop("text")
text = d.pop("text", "")
key, value = d.popitem()
assert_type(key, str)
d.setdefault("list", []).append(1)
d.update({"a": 1}, b=2)
d.update([("a", 1)])
d.update(d)
d.clear()
d |= {"a": 1}
assert_type(d | {"a": 1}, dict[Any, Any])
assert_type({"a": 1} | d, dict[Any, Any])
assert_type(d.copy(), dict[str, Any])
assert_type(d == {}, bool)

keys: KeysView[str] = d.keys()
values: ValuesView[Any] = d.values()
items: ItemsView[str, Any] = d.items()
common: set[str] = d.keys() & {"a"}
takes_a_reversible(d.keys())
for name, something in d.items():
    d[name] = something

# -- several keys ---------------------------------------------------------------------------

d[["a", "b", "c"]] = "hello", b"binary", 42
d["a", "b", "c"] = [1, 2, 3]
d[pd.Index(["a", "b"])] = 1, 2
x, y = d[["a", "b"]]
del d["a", "b"]
del d[np.array(["c"])]

# -- index and locks ------------------------------------------------------------------------

paths: pd.Series[str] = d.index

d.lock_item("foo", duration=15)
d.lock_item(["foo", "bar"], duration=-1, wait=True, timeout=2.5)
d.lock_item("foo", 30, False)
d.unlock_item("foo", force=True)
with d.lock("foo", "n", timeout=10):
    d["n"] += 1
assert_type(d.locks, dict[str, LockInfo])
assert_type(d.locks["foo"].mine, bool)

# -- history --------------------------------------------------------------------------------

assert_type(d.version("k"), int)
assert_type(d.put("k", 1, version=7, metadata={"owner": "ann"}), int | None)
d.put("k", 1, if_absent=True)
d.history_policy = "all"
d.history_policy = 5
changes: pd.DataFrame = d.history()
changes = d.history("k")
old: Any = d.at("k", version=3)
before = d.snapshot(at=12)
before = d.snapshot(datetime.now(UTC))
assert_type(before, Snapshot)
takes_a_mapping(before)
changes = d.diff(before, 14)
d.revert("k", 1)
d.forget("k")
assert_type(d.vacuum(grace=0, dry_run=True), remotedict.VacuumReport)
assert_type(d.vacuum().deleted["values"].nbytes, int)
assert_type(d.verify(deep=True), remotedict.VerifyReport)
assert_type(d.verify().findings[0].keys, tuple[str, ...])
with d.commit(comment="why", author="me") as commit:
    d["a"] = 1
assert_type(commit.id, str | None)

# -- transactions ---------------------------------------------------------------------------

with d.transaction(comment="why") as t:
    t["a"] += 1
    t["b", "c"] = 1, 2
    del t["b"]
    takes_a_mapping(t)
total: float = d.run(lambda t: t["a"] + t["c"], timeout=3)
total = d.modify("n", lambda n: n + 1, default=0)

# -- metadata -------------------------------------------------------------------------------

d.metadata["k"] = {"owner": "ann"}
d.metadata["k"].update(stage=1)
d.metadata["k"]["stage"] = 2
assert_type(d.query(owner="ann", facts={"nbytes": lambda n: n > 9}), list[str])
assert_type(d.glob("run-*"), list[str])
about: pd.DataFrame = d.info()
d.copy_item("a", "b")

# -- files ----------------------------------------------------------------------------------

with d.open("raw") as file:
    assert_type(file.read(10), bytes)
d.put_file("raw", "a/path")
d.get_file("raw", file=Path("a/path"))

# -- changes --------------------------------------------------------------------------------

for event in d.watch(since=3, timeout=0):
    assert_type(event, Event)
    assert_type(event.version, int | None)
    d.watch(since=event).stop()
with d.on_change(print, key="run-*"), d.mirror(prefetch=True, poll=(0.1, 1)) as m:
    assert_type(m.wait_for("k", version=2, timeout=1.5), int)
    assert_type(m.age, float)
    takes_a_mapping(m)

# -- errors ---------------------------------------------------------------------------------

try:
    d["a", "b"]
except KeyNotFoundError as missing:
    assert_type(missing.keys, tuple[str, ...])
except ItemLockedException as locked:
    assert_type(locked, ItemLockedError)
    assert_type(locked.item_name, str)
    assert_type(locked.seconds_left, float | None)
except VersionConflictError as conflict:
    assert_type(conflict.expected, int)
    assert_type(conflict.provided, int | None)
except UnknownOutcomeError as unknown:
    assert_type(unknown.commit_id, str | None)
except RemoteDictError as error:
    assert_type(error, RemoteDictError)

# -- the handle -----------------------------------------------------------------------------

other: RemoteDict = pickle.loads(pickle.dumps(d))
other.close()
assert_type(d.stats - other.stats, Stats)
assert_type(d.stats.requests, int)
MemoryDictionary(cache_dir=Path("cache"), cache_dir_bytes=10**9)

# -- the bad day, and moving house ------------------------------------------------------------

assert_type(d.repair(), RepairReport)
assert_type(d.repair(dry_run=True, deep=True, fall_back=True).restored, dict[str, str])
assert_type(d.repair().lost_commits, tuple[tuple[int, int | None], ...])
assert_type(d.export("file:///backup"), CopyReport)
assert_type(d.export(MemoryDictionary()).missing, tuple[str, ...])
assert_type(remotedict.copy("here", Path("there")), CopyReport)
assert_type(remotedict.copy(d, local), CopyReport)
