"""To forget a key leaves nothing of it, and takes nothing from any other."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from faults import lose_reply, lose_request
from remotedict import (
    FormatVersionError,
    ItemLockedError,
    KeyNotFoundError,
    SnapshotExpiredError,
)
from remotedict.backend import TransientError
from remotedict.engine import upkeep
from remotedict.engine.relayout import Relayout
from remotedict.pure import plan, records, state

SECRET = "Zaphod-Beeblebrox"
KEY = "patient/4711"


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(plan, "INDEX_BYTES", 2000)
    monkeypatch.setattr(plan, "CHECKPOINT_MIN", 4000)
    monkeypatch.setattr(plan, "FAN", 2)
    monkeypatch.setattr(state, "_REBASE_MIN", 5)


def blobs(d):
    """Return the bytes of all blobs of a dictionary, by path."""
    backend = d._engine.backend
    return {
        blob.name: bytes(backend.get(blob.name).data)
        for prefix in ("Index/", f"{d._engine.layout.folder}/")
        for blob in backend.list(prefix)
        if blob.size
    }


def naming(d):
    """Return how often the key is named in the store, by the kind of blob."""
    counts = {path: data.count(KEY.encode()) for path, data in blobs(d).items()}
    return sorted((path.split("/")[2], n) for path, n in counts.items() if n)


def fill(d, rng):
    """Write the key in every kind of place, with others beside it."""
    for n in range(30):
        d[f"n{n}"] = rng.randbytes(rng.choice([5, 90, 700]))
        if n % 7 == 0:
            d[KEY] = SECRET + str(n)
    d.update({KEY: SECRET * 20, **{f"p{n}": rng.randbytes(900) for n in range(9)}})
    d[KEY] = SECRET.encode() * 30_000
    d.metadata[KEY] = {"name": SECRET}
    d.put("kept", "kept", metadata={"owner": "ann"})
    d.copy_item("p1", "copy")
    d["p1"] = "another"
    del d[KEY]
    d[KEY] = SECRET


@pytest.mark.parametrize("inline_bytes", [0, 300, 2048])
def test_nothing_is_left_but_who_forgot_it(shop, small, inline_bytes):
    d = shop.open(history="all", inline_bytes=inline_bytes, cache_bytes=0, author="ann")
    idle = shop.open(cache_bytes=0)
    fill(d, random.Random(1))
    assert idle["kept"] == "kept"
    before = d.copy()
    del before[KEY]
    listed = {key: d.history(key).query("kind == 'set'")["version"].tolist() for key in before}
    d.forget(KEY)
    fresh = shop.open(cache_bytes=0)
    for handle in (d, idle, fresh):
        assert (handle.copy(), list(handle)) == (before, list(before))
        assert handle.version(KEY) == 0
        assert handle.metadata["kept"] == {"owner": "ann"}
        for key, versions in listed.items():
            for version in versions:
                handle.at(key, version)  # every other value of the past is still there
        assert handle.history(KEY)[["kind", "author"]].to_numpy().tolist() == [["forget", "ann"]]
        with pytest.raises(KeyNotFoundError):
            handle.at(KEY, 1)
        assert KEY not in handle.snapshot(handle.snapshot().seq - 1)
    assert not [path for path, data in blobs(d).items() if SECRET.encode() in data]
    # The tombstone, and the commit.
    assert naming(d) == [("checkpoints", 1), ("segments", 1)]
    fresh[KEY] = "new"
    assert [handle[KEY] for handle in (d, idle, fresh)] == ["new"] * 3
    assert d.version(KEY) == 1


def test_what_copies_share_stays_theirs(shop):
    d = shop.open(inline_bytes=0)
    d[KEY] = "shared"
    d.copy_item(KEY, "copy")
    d.forget(KEY)
    assert (d["copy"], shop.open()["copy"]) == ("shared", "shared")
    d.forget("copy")
    assert d.copy() == {}
    assert not [path for path in blobs(d) if not path.startswith("Index/")]


def test_a_key_that_was_renamed_leaves_nothing_under_its_old_name(world, monkeypatch):
    monkeypatch.setattr(plan, "CHECKPOINT_MIN", 100)
    monkeypatch.setattr(plan, "INDEX_BYTES", 1000)
    d = world.open(inline_bytes=0, retention=0)
    d["old"] = SECRET
    d.copy_item("old", KEY)
    del d["old"]
    for n in range(40):  # until the old name is off the list
        world.clock.now += 60
        d["x"] = n
        d._engine.upkeep.finish()
    with pytest.raises(SnapshotExpiredError):
        d.at("old", 1)
    d.forget(KEY)
    assert not [path for path in blobs(d) if path.startswith("f/old/")]


def test_it_can_be_refused(shop):
    d, other = shop.open(), shop.open()
    with pytest.raises(KeyNotFoundError):
        d.forget(KEY)
    d[KEY] = 1
    with other.lock(KEY), pytest.raises(ItemLockedError):
        d.forget(KEY)
    with d.commit(), pytest.raises(RuntimeError, match="of its own"):
        d.forget(KEY)
    assert d[KEY] == 1


def test_a_copy_that_is_made_meanwhile_has_its_bytes(world):
    a, b = world.open(inline_bytes=0, cache_bytes=0), world.open(cache_bytes=0)
    a.update({KEY: SECRET, "x": b"x" * 900, "y": b"y" * 900})  # one pack
    a["later"] = 0
    assert b["x"] == b"x" * 900

    original, seen = world.of(a)._do, []

    def do(call, act):
        if call.verb == "put" and "/logs/" in call.path and not seen:
            # When all is written, and just before it is swapped in: it still names the pack
            # that is about to be deleted.
            seen.append(b.copy_item("x", "copied"))
        return original(call, act)

    world.of(a)._do = do
    a.forget(KEY)
    assert seen
    for handle in (a, b, world.open(cache_bytes=0)):
        assert handle.copy() == {"x": b"x" * 900, "y": b"y" * 900, "later": 0, "copied": b"x" * 900}
    assert not [path for path, data in blobs(a).items() if SECRET.encode() in data]


def test_a_copy_by_another_thread_of_the_same_handle_has_its_bytes(world):
    a = world.open(inline_bytes=0, cache_bytes=0)
    a.update({KEY: SECRET, "x": b"x" * 900, "y": b"y" * 900})
    original, seen = world.of(a)._do, []

    def do(call, act):
        if call.verb == "put" and "/logs/" in call.path and not seen:
            # In line for the very compare-and-swap that moves the bytes.
            seen.append(a._engine.runtime.spawn(lambda: a.copy_item("x", "copied")))
        return original(call, act)

    world.of(a)._do = do
    a.forget(KEY)
    seen[0].result(10)
    for handle in (a, world.open(cache_bytes=0)):
        assert handle["copied"] == handle["x"] == b"x" * 900


@pytest.mark.parametrize("fault", [lose_request, lose_reply])
@pytest.mark.parametrize("which", range(12))
def test_a_lost_request_or_reply_is_made_good(world, small, fault, which):
    a, b = world.open(history="all"), world.open()
    fill(a, random.Random(2))
    a._engine.upkeep.finish()
    before = a.copy()
    del before[KEY]
    original, count = world.of(a)._do, []

    def do(call, act):
        count.append(call)
        if len(count) == which + 1:
            return original(call, lambda: fault(act))
        return original(call, act)

    world.of(a)._do = do
    a.forget(KEY)
    world.of(a)._do = original
    for handle in (a, b, world.open()):
        assert handle.copy() == before
    assert naming(a) == [("checkpoints", 1), ("segments", 1)]


def test_what_was_left_undone_is_done_by_forgetting_again(world, small):
    a, b = world.open(history="all", timeout=1), world.open()
    fill(a, random.Random(3))
    a._engine.upkeep.finish()
    before = a.copy()
    del before[KEY]
    original = world.of(a)._do

    def do(call, act):
        if call.verb == "put" and "/checkpoints/" in call.path:
            raise TransientError
        return original(call, act)

    world.of(a)._do = do
    with pytest.raises(TimeoutError):
        a.forget(KEY)
    assert b.copy() == before  # it is off the list
    assert [path for path, data in blobs(b).items() if SECRET.encode() in data]
    b.forget(KEY)
    assert not [path for path, data in blobs(b).items() if SECRET.encode() in data]
    assert b.history(KEY)["kind"].tolist() == ["forget"]
    assert world.open().copy() == before


def test_two_may_forget_at_the_same_time(world, small):
    a, b = world.open(history="all"), world.open()
    fill(a, random.Random(4))
    a._engine.upkeep.finish()
    before = a.copy()
    for key in (KEY, "p3"):
        del before[key]
    original, seen = world.of(a)._do, []

    def do(call, act):
        if call.verb == "get" and "/segments/" in call.path and not seen:
            seen.append(1)
            b.forget("p3")
        return original(call, act)

    world.of(a)._do = do
    a.forget(KEY)
    assert seen
    for handle in (a, b, world.open()):
        assert handle.copy() == before
    assert not [path for path, data in blobs(a).items() if SECRET.encode() in data]


def test_events_keep_their_places(world):
    d = world.open()
    d.update(a=1, b=2, c=3)
    events = list(d.watch(since=0, timeout=0))
    d.forget("a")
    for n, event in enumerate(events[:2]):
        later = [e.key for e in d.watch(since=event, timeout=0)]
        assert later == ["b", "c", "a"][n:]


def test_what_a_newer_version_has_asked_for_meanwhile_stays_asked_for(world, monkeypatch):
    """Else older versions would take the index for one that they understand."""
    monkeypatch.setattr(records, "FEATURES", frozenset({"newer"}))
    d, other = world.open(), world.open()
    d.update({KEY: SECRET, "x": 1})
    laid_out = Relayout._laid_out

    def asked(*args):
        new = laid_out(*args)
        other._engine.swap(
            lambda index: None if index.features else replace(index, features=["newer"])
        )
        return new

    monkeypatch.setattr(Relayout, "_laid_out", asked)
    d.forget(KEY)
    assert other.copy() == {"x": 1}
    monkeypatch.setattr(records, "FEATURES", frozenset())
    with pytest.raises(FormatVersionError):
        world.open().copy()


def test_a_mirror_follows_what_was_moved(world):
    d = world.open(inline_bytes=0)
    d.update({KEY: SECRET, "x": b"x" * 900})
    mirror = world.open(cache_bytes=0).mirror(poll=(1e6, 1e6))
    d.forget(KEY)
    assert mirror["x"] == b"x" * 900


def test_the_log_of_a_day_ago_is_forgotten_as_well(world, small, monkeypatch):
    monkeypatch.setattr(upkeep, "LOG_SECONDS", 1.0)
    d = world.open(retention=0)
    for n in range(60):
        world.clock.now += 60
        d[KEY] = SECRET + str(n)
        d[f"n{n % 9}"] = n
        d._engine.upkeep.finish()
    d.forget(KEY)
    assert not [path for path, data in blobs(d).items() if SECRET.encode() in data]
    assert d.copy() == {f"n{n % 9}": n for n in range(51, 60)}
