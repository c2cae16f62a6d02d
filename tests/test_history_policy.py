"""Which versions are kept: the policy of a dictionary, and what becomes of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from remotedict import SnapshotExpiredError
from remotedict.pure import plan, state

if TYPE_CHECKING:
    from conftest import Shop
    from faults import World
    from remotedict import RemoteDict


@pytest.fixture
def small(monkeypatch):
    """Let few commits roll, merge, rebase and make checkpoints."""
    monkeypatch.setattr(plan, "INDEX_BYTES", 2000)
    monkeypatch.setattr(plan, "CHECKPOINT_MIN", 4000)
    monkeypatch.setattr(plan, "FAN", 2)
    monkeypatch.setattr(state, "_REBASE_MIN", 5)


def test_the_policy_is_that_of_the_dictionary(shop: Shop) -> None:
    d, other = shop.open(), shop.open()
    assert d.history_policy == "none"
    for policy in ("all", 3, 1, "none"):
        d.history_policy = policy
        expected = "none" if policy == 1 else policy
        assert d.history_policy == other.history_policy == expected
        assert shop.open().history_policy == expected
    assert shop.open(history=7).history_policy == d.history_policy == 7
    assert shop.open(history="all").history_policy == d.history_policy == "all"
    assert shop.open(history=None).history_policy == "all"
    assert len(d.history()) == 0


def test_a_policy_is_set_whatever_the_handle_knew(shop: Shop) -> None:
    """Seed 60969: that there is nothing to do, only an index tells that is asked for now."""
    d, other = shop.open(history="all"), shop.open()
    other.history_policy = 3
    d.history_policy = "all"
    assert other.history_policy == "all"


@pytest.mark.parametrize(
    ("policy", "error"),
    [
        *[(bad, ValueError) for bad in (0, -1, "some", "3")],
        *[(bad, TypeError) for bad in (True, 1.5, [], b"all")],
    ],
    ids=repr,
)
def test_what_is_no_policy_is_refused(shop: Shop, policy: Any, error: type[Exception]) -> None:
    d = shop.open()
    with pytest.raises(error, match="history="):
        d.history_policy = policy
    with pytest.raises(error, match="history="):
        shop.open(history=policy)
    assert d.history_policy == "none"


def churn(world: World, d: RemoteDict, commits: int = 120) -> None:
    """Make so many commits, and let so much time pass, that old versions are dropped."""
    for n in range(commits):
        d["churn"] = n
        world.clock.now += 1
        d._engine.upkeep.finish()


def expired(policy: Any, act: Any, *args: Any) -> None:
    with pytest.raises(SnapshotExpiredError, match=f"history is {policy!r}") as caught:
        act(*args)
    assert isinstance(caught.value, LookupError)


@pytest.mark.parametrize("policy", ["none", 1, 2, 5])
def test_what_the_policy_does_not_keep_goes_after_its_retention(
    world: World, small, policy: Any
) -> None:
    d = world.open(history=policy, retention=0)
    idle = world.open()
    for n in range(1, 9):
        d["k"] = n
    assert [d.at("k", version) for version in range(1, 9)] == list(range(1, 9))
    churn(world, d)
    kept = 1 if policy in ("none", 1) else policy
    shown = "none" if policy in ("none", 1) else policy
    for handle in (d, idle, world.open()):
        assert [handle.at("k", version) for version in range(9 - kept, 9)] == list(
            range(9 - kept, 9)
        )
        for version in range(1, 9 - kept):
            expired(shown, handle.at, "k", version)
            expired(shown, handle.revert, "k", version)
        expired(shown, handle.snapshot, 7)
        expired(shown, handle.diff, 1)
        assert handle["k"] == 8
        assert handle.version("k") == 8
        assert handle.snapshot().copy() == {"k": 8, "churn": 119}


def test_what_a_few_keys_were_is_dropped_though_a_large_dictionary_has_no_new_checkpoint(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "INDEX_BYTES", 1500)
    monkeypatch.setattr(plan, "PAST_MIN", 20)
    d = world.open(retention=0)
    churn(world, d, 300)
    index = d._engine.index.known.index
    assert index.checkpoint is None
    for handle in (d, world.open()):
        state = handle._engine.known().state
        assert len(state.listed("churn")) < 150
        assert state.floor
        assert handle["churn"] == 299
        assert handle.version("churn") == 300


def test_within_its_retention_everything_is_kept(world: World, small) -> None:
    d = world.open(retention=10_000)
    for n in range(9):
        d["k"] = n
    churn(world, d)
    for handle in (d, world.open()):
        assert [handle.at("k", version) for version in range(1, 10)] == list(range(9))
        assert handle.snapshot(at=1) == {"k": 0}


def test_a_policy_holds_from_then_on(world: World, small) -> None:
    d = world.open(retention=0)
    d["k"] = 1
    d["k"] = 2
    churn(world, d)
    other = world.open(history="all")
    expired("all", d.at, "k", 1)
    d["k"] = 3
    begin = d.snapshot().seq
    churn(world, d)
    for handle in (d, other, world.open()):
        assert [handle.at("k", version) for version in (2, 3)] == [2, 3]
        assert handle.snapshot(at=begin)["k"] == 3
        assert handle.snapshot(at=begin)["churn"] == 119
        assert len(handle.history("churn")) >= 120
    other.history_policy = 2
    d["k"] = 4
    churn(world, d)
    expired(2, other.at, "k", 2)
    assert [other.at("k", version) for version in (3, 4)] == [3, 4]


@pytest.mark.parametrize("retention", [0, 10_000])
@pytest.mark.parametrize("inline_bytes", [0, 2048])
def test_a_snapshot_begun_before_its_values_were_dropped_is_whole_or_says_that_it_is_not(
    world: World, small, retention: float, inline_bytes: int
) -> None:
    d = world.open(retention=retention, inline_bytes=inline_bytes, cache_bytes=0)
    d.update(k="old", l="old")
    then = d.snapshot()
    d["k"] = "new"
    churn(world, d)
    if retention or inline_bytes:  # of those the segment is kept, for its commits
        assert then == {"k": "old", "l": "old"}
    else:
        with pytest.raises(SnapshotExpiredError):
            then["k"]
        assert then["l"] == "old"
        assert list(then) == ["k", "l"]
    if not retention:
        expired("none", d.snapshot, then)


def test_a_deleted_key_keeps_its_version_when_its_history_is_dropped(world: World, small) -> None:
    d = world.open(retention=0)
    for n in range(5):
        d["k"] = n
    del d["k"]
    churn(world, d)
    for handle in (d, world.open()):
        expired("none", handle.at, "k", 5)
        assert handle.version("k") == 6
    d["k"] = "again"
    assert d.version("k") == 7


def test_the_history_has_what_is_listed_still_when_commits_are_gone(
    world: World, small, monkeypatch
) -> None:
    monkeypatch.setattr("remotedict.engine.upkeep.LOG_SECONDS", 0.0)
    d = world.open(history=2, retention=0)
    with d.commit(comment="first"):
        d["stays"] = 1
    d.metadata["stays"] = {"a": 1}
    d["gone"], d["again"] = 1, 1
    with d.commit(comment="last", author="ann"):
        del d["gone"]
        del d["again"]
        d["again"] = 2
    churn(world, d)
    for handle in (d, world.open()):
        told = handle.history("stays")
        assert list(told["kind"]) == ["metadata", "set"]
        told = handle.history("again")
        assert told[["kind", "version"]].to_numpy().tolist() == [["set", 3], ["delete", 2]]
        told = handle.history("gone")
        assert told[["kind", "version", "author", "comment"]].to_numpy().tolist() == [
            ["delete", 2, "ann", "last"],
            ["set", 1, told["author"][1], ""],
        ]
        whole = handle.history()
        assert whole["seq"].is_monotonic_decreasing
        assert {"stays", "gone", "again", "churn"} == set(whole["key"])
        assert len(whole[whole["key"] == "churn"]) < 100
