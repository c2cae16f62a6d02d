"""Every commit is remembered: versions, history, the dictionary as it was, and going back."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from remotedict import (
    KeyNotFoundError,
    RemoteDictError,
    UnknownCommitError,
)
from remotedict.features.snapshot import Snapshot
from remotedict.pure import plan, state

if TYPE_CHECKING:
    from conftest import Shop
    from faults import World
    from remotedict import RemoteDict

COLUMNS = ["key", "kind", "version", "author", "comment", "time", "size", "commit", "seq"]
INLINE, OWN = 20, 3000  # bytes of a value that stay in the index; of one that gets a blob


@pytest.fixture
def small(monkeypatch):
    """Let few commits roll, merge, rebase and make checkpoints."""
    monkeypatch.setattr(plan, "INDEX_BYTES", 2000)
    monkeypatch.setattr(plan, "CHECKPOINT_MIN", 4000)
    monkeypatch.setattr(plan, "FAN", 2)
    monkeypatch.setattr(state, "_REBASE_MIN", 5)


# -- versions ---------------------------------------------------------------------------------


def test_a_version_counts_the_sets_and_deletions_of_a_key(d: RemoteDict) -> None:
    seen = [d.version("k")]
    for _ in range(2):
        d["k"] = "value"
        seen.append(d.version("k"))
        d["k", "other"] = 1, 2
        seen.append(d.version("k"))
        del d["k"]
        seen.append(d.version("k"))
    assert seen == list(range(7))
    assert (d.version("other"), d.version("never")) == (2, 0)


def test_what_is_no_change_of_a_value_is_no_version(d: RemoteDict) -> None:
    d["k"] = 1
    d.metadata["k"] = {"a": 1}
    d.metadata["k"].update(b=2)
    with d.lock("k"):
        pass
    with pytest.raises(KeyError):
        del d["k", "missing"]
    d.history_policy = 5
    assert d.version("k") == 1


def test_versions_go_on_for_all_handles_and_after_all_else_is_gone(shop: Shop, small) -> None:
    one, other = shop.open(), shop.open()
    for n in range(1, 31, 3):
        one["k"] = n
        other["k"] = n
        del one["k"]
        assert one.version("k") == other.version("k") == n + 2
    one._engine.upkeep.finish()
    fresh = shop.open()
    fresh["k"] = 1
    assert fresh.version("k") == 31


# -- history ----------------------------------------------------------------------------------


def test_the_history_tells_who_changed_what_when_and_why(shop: Shop) -> None:
    d = shop.open(author="ann")
    other = shop.open(author="bob")
    before = datetime.now(UTC)
    d["k"] = bytes(100)
    other.put("k", "", metadata={"a": 1})
    with d.commit(comment="why", author="nightly-job"):
        d["x"], d["y"] = 1, 2
        del d["k"]
    d.metadata["x"] = {"b": 2}
    with other.lock("y"):
        pass
    told = d.history()
    assert list(told.columns) == COLUMNS
    assert told[["key", "kind", "version", "author", "comment", "seq"]].to_numpy().tolist() == [
        ["y", "unlock", pd.NA, "bob", "", 6],
        ["y", "lock", pd.NA, "bob", "", 5],
        ["x", "metadata", 1, "ann", "", 4],
        ["k", "delete", 3, "nightly-job", "why", 3],
        ["y", "set", 1, "nightly-job", "why", 3],
        ["x", "set", 1, "nightly-job", "why", 3],
        ["k", "metadata", 2, "bob", "", 2],
        ["k", "set", 2, "bob", "", 2],
        ["k", "set", 1, "ann", "", 1],
    ]
    assert told["commit"].str.fullmatch("[0-9a-f]{32}").all()
    assert told["commit"].nunique() == 6
    assert (told["size"].notna() == (told["kind"] == "set")).all()
    assert told["size"][8] == d.history()["size"][8] > 0
    assert told["time"].between(before - timedelta(seconds=5), datetime.now(UTC)).all()
    assert told["time"].is_monotonic_decreasing
    assert (told["version"].dtype, told["size"].dtype) == ("Int64", "Int64")
    assert told["seq"].dtype == "int64"


def test_the_history_of_a_key_has_only_its_own_changes(d: RemoteDict) -> None:
    d["k", "l"] = 1, 2
    del d["k"]
    d["k"] = 3
    d.lock_item("k")
    d.unlock_item("k")
    whole = d.history()
    assert list(d.history("k")["kind"]) == ["unlock", "lock", "set", "delete", "set"]
    for key in ("k", "l"):
        mine = whole[whole["key"] == key].reset_index(drop=True)
        pd.testing.assert_frame_equal(d.history(key), mine)
    del d["k"]
    assert d.history("k")["kind"][0] == "delete"


def test_a_dictionary_or_key_without_changes_has_an_empty_history(d: RemoteDict) -> None:
    empty = [d.history(), d.history("k")]
    d["other"] = 1
    for told in [*empty, d.history("k")]:
        assert list(told.columns) == COLUMNS
        assert len(told) == 0
        assert told["time"].dtype.tz is not None
        assert told["version"].dtype == "Int64"


def test_a_write_that_changed_nothing_is_no_commit(d: RemoteDict) -> None:
    d.clear()
    d.update({})
    with d.commit(comment="nothing"):
        pass
    with pytest.raises(KeyError):
        del d["k"]
    d["k"] = 1
    d.metadata["k"] = {}
    d.metadata["k"].update({})
    d.metadata.clear()
    assert len(d.history()) == 1


def test_the_history_goes_on_over_rolls_and_checkpoints(shop: Shop, small) -> None:
    d = shop.open(history="all", author="ann")
    idle = shop.open()
    expected = []
    for n in range(60):
        with d.commit(comment=f"step {n}"):
            d[f"k{n % 3}"] = n
        expected.insert(0, [f"k{n % 3}", "set", n // 3 + 1, "ann", f"step {n}", n + 1])
    d._engine.upkeep.finish()
    assert d._engine.known().index.checkpoint
    columns = ["key", "kind", "version", "author", "comment", "seq"]
    for handle in (d, idle, shop.open()):
        assert handle.history()[columns].to_numpy().tolist() == expected
        assert handle.history("k1")[columns].to_numpy().tolist() == [
            row for row in expected if row[0] == "k1"
        ]


# -- the dictionary as it was -----------------------------------------------------------------


class Told:
    """Makes random changes, and remembers what the dictionary was after each commit."""

    def __init__(self, d: RemoteDict, seed: int) -> None:
        self.d = d
        self.random = random.Random(seed)
        self.model: dict[str, Any] = {}
        self.metadata: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, int] = {}
        self.states: dict[int, tuple[dict[str, Any], dict[str, Any], dict[str, int]]] = {}
        self.values: dict[tuple[str, int], Any] = {}

    def go_on(self, steps: int) -> None:
        for n in range(steps):
            self.step(n)
            seq = self.d._engine.known().state.seq
            self.states[seq] = dict(self.model), dict(self.metadata), dict(self.versions)

    def step(self, n: int) -> None:
        d, choose = self.d, self.random
        key = choose.choice("abcdef")
        act = choose.choice(["set", "set", "set", "several", "delete", "note", "copy", "revert"])
        if act == "set" or key not in self.model:
            self.sets(key, choose.randbytes(choose.choice([0, INLINE, 600, OWN])))
            d[key] = self.model[key]
        elif act == "several":
            for other in "fdb":
                self.sets(other, choose.randbytes(600))
            d.update({other: self.model[other] for other in "fdb"})
        elif act == "delete":
            del d[key], self.model[key]
            self.metadata.pop(key, None)
            self.versions[key] += 1
        elif act == "note":
            d.metadata[key] = self.metadata[key] = {"n": n}
        elif act == "copy":
            d.copy_item(key, "a")
            self.sets("a", self.model[key])
            self.metadata["a"] = self.metadata.get(key, {})
        else:
            version = choose.choice([v for k, v in self.values if k == key])
            d.revert(key, version)
            self.sets(key, self.values[key, version])

    def sets(self, key: str, value: Any) -> None:
        self.model[key] = value
        self.versions[key] = self.versions.get(key, 0) + 1
        self.values[key, self.versions[key]] = value

    def check(self, d: RemoteDict, seqs: list[int]) -> None:
        for seq in seqs:
            model, metadata, versions = self.states[seq]
            then = d.snapshot(at=seq)
            assert (then.seq, len(then), list(then)) == (seq, len(model), list(model))
            assert list(reversed(then)) == list(reversed(model))
            assert list(then.items()) == list(model.items())
            for key in "abcdef":
                assert (key in then) == (key in model)
                assert then.version(key) == versions.get(key, 0)
                if key in model:
                    assert then.metadata[key] == metadata.get(key, {})

    def check_versions(self, d: RemoteDict) -> None:
        for (key, version), value in self.values.items():
            assert d.at(key, version) == value


def test_a_snapshot_is_the_dictionary_as_it_was_at_any_commit(shop: Shop, small) -> None:
    d = shop.open(history="all", inline_bytes=256, cache_bytes=0)
    idle = shop.open(cache_bytes=0)
    told = Told(d, 1)
    d["first"] = 1
    idle.copy()
    del d["first"]
    for _ in range(3):
        told.go_on(16 if shop.kind == "azure" else 25)
        told.check(d, sorted(told.states)[::7])
    d._engine.upkeep.finish()
    assert d._engine.known().index.checkpoint
    seqs = sorted(told.states)[:: 1 if shop.kind == "memory" else 8]
    for handle in (d, idle, shop.open(cache_bytes=0)):
        told.check(handle, seqs)
        told.check_versions(handle)
    told.go_on(16 if shop.kind == "azure" else 25)
    told.check(idle, seqs[:5])


@pytest.fixture
def grown(shop: Shop) -> RemoteDict:
    """A dictionary after commits 1 to 6."""
    d = shop.open(author="ann", history="all")
    d["a"] = 1
    d.put("b", pd.Series([1.0, 2.0]), metadata={"owner": "ann"})
    d["c"] = random.Random(0).randbytes(9000)
    d["a"] = "two"
    del d["b"]
    d.update(b=3, d=4)
    return d


def test_a_snapshot_reads_as_the_dictionary_did(grown: RemoteDict) -> None:
    now, then = grown.copy(), grown.snapshot(at=3)
    assert isinstance(then, Snapshot)
    assert (then.seq, then.commit) == (3, grown.history("c")["commit"][0])
    assert list(then) == list(then.keys()) == ["a", "b", "c"]
    assert then["a"] == then.get("a") == 1
    assert then[["c", "a"]] == [now["c"], 1]
    assert next(iter(then.values())) == 1
    assert then["b"].equals(pd.Series([1.0, 2.0]))
    assert (then.get("d", 7), "d" in then, 5 in then) == (7, False, False)
    assert {key: then.version(key) for key in "abcd"} == {"a": 1, "b": 1, "c": 1, "d": 0}
    assert then.metadata["b"] == {"owner": "ann"}
    assert then.query(owner="ann") == then.query(facts={"shape": [2]}) == ["b"]
    assert then.glob("[bcd]") == ["b", "c"]
    info = then.info()
    assert (list(info.index), list(info["version"])) == (["a", "b", "c"], [1, 1, 1])
    with pytest.raises(KeyNotFoundError) as caught:
        then["a", "d", "e"]
    assert caught.value.keys == ("d", "e")
    assert grown.snapshot() == grown == now == grown.snapshot().copy()
    assert grown.snapshot(at=4) != grown
    assert grown.snapshot(at=1) == {"a": 1}
    assert grown.snapshot(at=1) | {"z": 0} == {"a": 1, "z": 0}


def test_a_snapshot_stays_as_it_is(shop: Shop, small) -> None:
    d, other = shop.open(inline_bytes=0), shop.open()
    d.update(a=1, b=2)
    then = d.snapshot()
    for n in range(50):
        other[f"n{n}"] = n
    other.clear()
    other._engine.upkeep.finish()
    assert (list(then), then.copy(), len(d)) == (["a", "b"], {"a": 1, "b": 2}, 0)


def test_a_snapshot_can_not_be_written(grown: RemoteDict) -> None:
    then: Any = grown.snapshot()
    with pytest.raises(TypeError):
        then["a"] = 1
    with pytest.raises(TypeError):
        del then["a"]
    with pytest.raises(TypeError):
        then.metadata["a"] = {}
    with pytest.raises(TypeError):
        then.metadata["a"]["x"] = 1
    with pytest.raises(TypeError):
        hash(then)
    for verb in ("pop", "popitem", "clear", "update", "setdefault", "put", "lock_item", "revert"):
        assert not hasattr(then, verb)


def test_a_snapshot_says_where_and_of_which_commit_it_is(grown: RemoteDict) -> None:
    assert "commit 3" in repr(grown.snapshot(at=3))
    assert "3" in repr(grown.snapshot(at=3).values())


def test_a_commit_is_named_by_number_id_event_or_snapshot(shop: Shop, grown: RemoteDict) -> None:
    told = grown.history("a")
    events = {event.seq: event for event in grown.watch(since=0, timeout=0)}
    for handle in (grown, shop.open()):
        for seq, commit in zip(told["seq"], told["commit"], strict=True):
            for at in (
                int(seq),
                seq,
                commit,
                commit.upper(),
                events[seq],
                grown.snapshot(at=int(seq)),
            ):
                assert handle.snapshot(at=at).seq == seq
        with handle.commit() as made:
            handle["new"] = 1
        assert handle.snapshot(at=made.id).seq == made.seq == handle.snapshot().seq


def test_a_time_means_the_newest_commit_up_to_then(shop: Shop) -> None:
    d = shop.open()
    times = []
    for n in range(3):
        d["n"] = n
        time.sleep(0.01)
        times.append(datetime.now(UTC))
        time.sleep(0.01)
    for handle in (d, shop.open()):
        for n, aware in enumerate(times):
            naive = aware.astimezone().replace(tzinfo=None)
            for at in (aware, naive, aware.isoformat(), naive.isoformat(), pd.Timestamp(aware)):
                assert handle.snapshot(at=at)["n"] == n
        assert handle.snapshot(at=datetime.now(UTC) + timedelta(days=1))["n"] == 2
        assert handle.snapshot(at="2999-01-01") == {"n": 2}
        for moment, seq in zip(handle.history()["time"], (3, 2, 1), strict=True):
            assert handle.snapshot(at=moment).seq == seq


UNKNOWN = {
    "zero": 0,
    "negative": -1,
    "the next": 7,
    "id": "0" * 32,
    "text": "yesterday, about noon",
    "no hex": "x" * 32,
    "empty": "",
    "nat": pd.NaT,
    "before the first": datetime(2020, 1, 1, tzinfo=UTC),
    "before, as text": "2020-01-01",
    "the first of all times": datetime.min,  # noqa: DTZ901 - a naive one is meant
    "the first, aware": datetime.min.replace(tzinfo=UTC),
}


@pytest.mark.parametrize("at", UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_commit_is_said(grown: RemoteDict, at: Any) -> None:
    for act in (grown.snapshot, grown.diff, lambda at: grown.diff(1, at)):
        with pytest.raises(UnknownCommitError) as caught:
            act(at)
        assert isinstance(caught.value, LookupError)
        assert str(caught.value)


@pytest.mark.parametrize("at", [True, 1.0, b"x", [1], {}], ids=repr)
def test_what_can_not_name_a_commit_is_refused(grown: RemoteDict, at: Any) -> None:
    for act in (grown.snapshot, grown.diff, lambda at: grown.diff(1, at)):
        with pytest.raises(TypeError, match="commit"):
            act(at)


def test_an_empty_dictionary_has_a_snapshot_of_now_alone(d: RemoteDict) -> None:
    then = d.snapshot()
    d["a"] = 1
    assert (then.seq, then.commit, list(then), then.copy()) == (0, "", [], {})
    for at in (0, "2020-01-01"):
        with pytest.raises(UnknownCommitError):
            d.snapshot(at=at)


# -- old versions -----------------------------------------------------------------------------


def test_old_versions_can_be_read(grown: RemoteDict) -> None:
    assert grown.at("a", 1) == 1
    assert grown.at("a", version=2) == grown["a"] == "two"
    assert grown.at("b", 1).equals(pd.Series([1.0, 2.0]))
    assert grown.at("b", 3) == 3
    assert grown.at("a", grown.history("a")["version"][1]) == 1
    del grown["a"]
    assert grown.at("a", 1) == 1


@pytest.mark.parametrize("act", ["at", "revert"])
def test_a_version_that_never_was_is_said(grown: RemoteDict, act: str) -> None:
    for key, version, says in [
        ("a", 3, "newest version is 2"),
        ("b", 2, "deletion"),
        ("missing", 1, "never set"),
    ]:
        with pytest.raises(KeyNotFoundError, match=says) as caught:
            getattr(grown, act)(key, version)
        assert caught.value.keys == (key,)
    for version, error in [(0, ValueError), (-1, ValueError), (True, TypeError), (1.0, TypeError)]:
        with pytest.raises(error, match="positive int"):
            getattr(grown, act)("a", version)
    for bad in ("1", None):
        with pytest.raises(TypeError, match="positive int"):
            getattr(grown, act)("a", bad)
    with pytest.raises(RemoteDictError):
        getattr(grown, act)("", 1)
    assert len(grown.history()) == 8


def test_diff_tells_what_lies_between_two_moments(grown: RemoteDict) -> None:
    grown.metadata["c"] = {"x": 1}
    told = grown.diff(3)
    assert told.index.name == "key"
    assert list(told.columns) == ["change", "version_a", "version_b", "author"]
    rows = {key: list(row) for key, row in zip(told.index, told.to_numpy().tolist(), strict=True)}
    assert rows == {
        "a": ["changed", 1, 2, "ann"],
        "b": ["changed", 1, 3, "ann"],
        "c": ["metadata", 1, 1, "ann"],
        "d": ["added", pd.NA, 1, "ann"],
    }
    assert grown.diff(5, 6)["change"].to_dict() == {"b": "added", "d": "added"}
    assert grown.diff(6, 5)["change"].to_dict() == {"b": "removed", "d": "removed"}
    assert grown.diff(grown.snapshot(at=4), 5)["change"].to_dict() == {"b": "removed"}
    assert len(grown.diff(3, 3)) == 0
    with grown.commit():
        grown["a"] = "three"
        del grown["d"]
    assert grown.diff(7)["change"].to_dict() == {"a": "changed", "d": "removed"}


# -- going back -------------------------------------------------------------------------------


def test_revert_makes_an_old_value_the_newest(grown: RemoteDict) -> None:
    grown.metadata["a"] = {"x": 1}
    order = list(grown)
    grown.revert("a", 1)
    assert (grown["a"], grown.version("a"), grown.at("a", 2)) == (1, 3, "two")
    assert (grown.metadata["a"], list(grown)) == ({"x": 1}, order)
    grown.revert("a", 3)
    assert (grown["a"], grown.version("a")) == (1, 4)
    del grown["c"]
    grown.revert("c", 1)
    assert grown["c"] == random.Random(0).randbytes(9000)
    assert (grown.version("c"), list(grown)[-1], grown.metadata["c"]) == (3, "c", {})
    assert list(grown.history("c")["kind"]) == ["set", "delete", "set"]


@pytest.mark.parametrize("kind", ["inline", "packed", "own"])
@pytest.mark.parametrize("rolled", [False, True], ids=["in the tail", "rolled"])
def test_revert_moves_no_bytes(world: World, small, kind: str, rolled: bool) -> None:
    old = {"inline": bytes(9), "packed": random.Random(0).randbytes(700), "own": bytes(10**6)}
    d = world.open(inline_bytes=256 if kind == "inline" else 0, cache_bytes=0)
    d.update({"k": old[kind], "l": old[kind]} if kind == "packed" else {"k": old[kind]})
    d["k"] = "new"
    if rolled:
        for n in range(30):
            d["other"] = n
        d._engine.upkeep.finish()
    calls = world.of(d).calls
    calls.clear()
    d.revert("k", 1)
    d._engine.upkeep.finish()
    assert not [c.path for c in calls if c.verb == "put" and not c.path.startswith("Index/")]
    assert not [c for c in calls if c.verb == "get"]
    for handle in (d, world.open(cache_bytes=0)):
        assert (handle["k"], handle.version("k")) == (old[kind], 3)
    d["k"] = "newer"
    d.revert("k", 3)
    assert d["k"] == d.at("k", 1) == old[kind]
