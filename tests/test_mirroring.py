"""Mirrors and snapshots: what they show, what they ask of the store, and that none can be written."""

from __future__ import annotations

import gc
import pickle
import random
import sys
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest

from following import (
    FAST,
    HANG,
    NEVER,
    Followers,
    Pauses,
    closing,
    eventually,
    offline,
    remake,
)
from remotedict import (
    ClosedError,
    DictionaryChangedError,
    InvalidKeyError,
    KeyNotFoundError,
    MemoryDictionary,
    StoreUnavailableError,
)
from test_leaving import run_to_its_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Shop
    from faults import Call, World
    from remotedict.features.mirror import Mirror


@pytest.fixture
def world(world: World) -> Iterator[World]:
    with closing(world):
        yield world


@pytest.fixture
def pauses(world: World, monkeypatch: pytest.MonkeyPatch) -> Pauses:
    pauses = Pauses(world)
    monkeypatch.setattr(world.runtime, "wait", pauses.wait)
    return pauses


# -- what it shows --------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [False, True], ids=["lazy", "prefetched"])
def test_a_mirror_becomes_what_the_dictionary_is(shop: Shop, prefetch: bool) -> None:
    d, rng = shop.open(inline_bytes=100), random.Random(1)
    d["before"] = b"x" * 500
    m = shop.open().mirror(prefetch=prefetch, poll=FAST)
    assert m.copy() == {"before": b"x" * 500}
    for n in range(3):
        keys = [f"k{i}" for i in rng.sample(range(8), 4)]
        d[keys] = [rng.randbytes(rng.choice([5, 300, 3000])) for _ in keys]
        d[f"new{n}"] = n
        del d[keys[0]]
        d.put("k9", n, metadata={"n": n})
        assert m.wait_for("k9", version=n + 1, timeout=HANG) == n + 1
        assert list(m) == list(d)
        assert list(reversed(m)) == list(reversed(d))
        assert len(m) == len(d)
        assert m.keys() == d.keys()
        assert list(m.items()) == list(d.items())
        assert list(m.values()) == list(d.values())
        assert m.copy() == dict(m) == d.copy()
        assert m == d
        assert d == m
        assert m[["k9", "before"]] == [n, b"x" * 500]
        assert [m.version(key) for key in keys] == [d.version(key) for key in keys]
        assert m.metadata["k9"] == {"n": n}
        assert m.query(n=n) == ["k9"]
        assert m.glob("k*") == d.glob("k*")
        assert m.info().equals(d.info())
        assert m.seq == d.snapshot().seq
        assert keys[0] not in m
        assert m.get(keys[0], "gone") == "gone"
        with pytest.raises(KeyNotFoundError):
            m[keys[0]]
    assert m.error is None
    assert repr(m).endswith(f"s old; Num elements: {len(d)}")


def test_a_mirror_shows_what_was_until_it_has_looked(world: World, pauses: Pauses) -> None:
    d, other = world.open(), world.open()
    d["k"] = "old"
    m = d.mirror(prefetch=True)
    other["k"] = "new"
    assert (m["k"], m.version("k"), m.seq) == ("old", 1, 1)
    pauses.end()
    assert (m["k"], m.version("k"), m.seq) == ("new", 2, 2)


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Let threads take turns so often that one which polls holds up nobody."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


def test_bulk_writes_are_never_seen_in_part(shop: Shop, quick_switches: None) -> None:
    d = shop.open(inline_bytes=0, retention=0)
    d[["x", "y", "z"]] = 0, 0, 0
    mirrors = [shop.open().mirror(prefetch=prefetch, poll=FAST) for prefetch in (True, False)]
    count = {"memory": 50, "local": 25, "azure": 12}[shop.kind]
    torn: list[Any] = []
    written: list[int] = []  # how often, once it is done
    seen: list[set[int]] = [set(), set()]

    def read(m: Mirror, seen: set[int]) -> None:
        last = 0
        while not written or last < written[0]:
            for read in (lambda m: m[["x", "y", "z"]], lambda m: list(m.copy().values())):
                now = read(m)
                if len(set(now)) > 1 or now[0] < last:
                    torn.append((last, now))
                last = now[0]
                seen.add(last)

    readers = [
        threading.Thread(target=read, args=(m, s)) for m, s in zip(mirrors, seen, strict=True)
    ]
    for reader in readers:
        reader.start()
    n = 0
    while n < count or not all(len(some) > 2 for some in seen):
        n += 1
        d[["x", "y", "z"]] = n, n, n
    written.append(n)
    for reader in readers:
        reader.join(HANG)
        assert not reader.is_alive()
    assert torn == []


def test_two_looks_at_once_never_take_a_mirror_back(world: World, pauses: Pauses) -> None:
    d, other = world.open(), world.open(inline_bytes=0)
    m = d.mirror(prefetch=True)
    fetching, go_on = threading.Event(), threading.Event()

    def delay(act: Callable[[], Any]) -> Any:
        fetching.set()
        assert go_on.wait(HANG)
        return act()

    other["k"] = 1
    world.of(d).at("get", world.store.list("f/k/").__next__().name, delay)
    slow = threading.Thread(target=m._look)
    slow.start()
    assert fetching.wait(HANG)
    other["k"] = 2
    m._look()
    assert (m.seq, m["k"]) == (2, 2)
    go_on.set()
    slow.join(HANG)
    assert (m.seq, m["k"]) == (2, 2)


# -- waiting --------------------------------------------------------------------------------


def test_waiting_for_what_is_there_returns_at_once(world: World, pauses: Pauses) -> None:
    d = world.open()
    d["k"] = 1
    d["k"] = 2
    d["gone"] = 1
    del d["gone"]
    m = d.mirror()
    assert m.wait_for("k") == 2
    assert m.wait_for("k", timeout=0) == 2
    assert [m.wait_for("k", version=version, timeout=0) for version in (1, 2)] == [2, 2]
    assert [m.wait_for("gone", version=version, timeout=0) for version in (1, 2)] == [2, 2]


def test_waiting_ends_when_it_comes(shop: Shop) -> None:
    d = shop.open()
    m = shop.open().mirror(poll=FAST)
    came: SimpleQueue[Any] = SimpleQueue()

    def wait(name: str, **arguments: Any) -> threading.Thread:
        thread = threading.Thread(
            target=lambda: came.put((name, m.wait_for("k", timeout=HANG, **arguments)))
        )
        thread.start()
        eventually(lambda: len(m._waiting) > 0 or not thread.is_alive())
        return thread

    wait("there")
    d["k"] = 1
    assert came.get(timeout=HANG) == ("there", 1)
    wait("deleted", version=2)
    d["other"] = 1
    del d["k"]
    assert came.get(timeout=HANG) == ("deleted", 2)
    wait("there again")
    d["k"] = 2
    assert came.get(timeout=HANG) == ("there again", 3)
    waiting = [wait("all", version=5) for _ in range(4)]
    d["k"] = 3
    d["k"] = 4
    for _ in waiting:
        assert came.get(timeout=HANG) == ("all", 5)


def test_waiting_in_vain_ends_with_the_timeout() -> None:
    with MemoryDictionary() as d:
        d["k"] = 1
        m = d.mirror(poll=FAST)
        with pytest.raises(TimeoutError) as late:
            m.wait_for("k", version=3, timeout=0.02)
        assert str(late.value) == "key 'k' was not at version 3 within 0.02 s; it is at 1"
        with pytest.raises(TimeoutError) as late:
            m.wait_for("other", timeout=0)
        assert str(late.value) == "key 'other' was not there within 0 s; it is at 0"
        assert m._waiting == []


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"key": None}, InvalidKeyError),
        ({"key": ""}, InvalidKeyError),
        ({"version": 0}, ValueError),
        ({"version": -1}, ValueError),
        ({"version": "1"}, TypeError),
        ({"version": 1.0}, TypeError),
        ({"version": True}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": "1"}, TypeError),
    ],
    ids=str,
)
def test_waiting_for_what_makes_no_sense_is_refused(
    wrong: Any, error: type[Exception], world: World, pauses: Pauses
) -> None:
    d = world.open()
    d["k"] = 1
    with pytest.raises(error):
        d.mirror().wait_for(**{"key": "k", **wrong})


@pytest.mark.parametrize("poll", [(0, 1), (2, 1), (1, float("inf"))])
def test_pauses_that_make_no_sense_are_refused(poll: Any, world: World) -> None:
    with pytest.raises(ValueError, match="poll="):
        world.open().mirror(poll=poll)


# -- a lost connection ----------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [False, True], ids=["lazy", "prefetched"])
def test_a_mirror_serves_what_it_has_while_the_connection_is_lost(
    world: World, pauses: Pauses, prefetch: bool, caplog: pytest.LogCaptureFixture
) -> None:
    d, other = world.open(inline_bytes=0, timeout=10), world.open(inline_bytes=0)
    d.update({f"k{n}": n for n in range(5)})
    m = d.mirror(prefetch=prefetch, poll=(1.0, 2.0))
    shown = m.copy()
    assert m.age == 0
    world.clock.now += 7
    assert m.age == 7
    pauses.end()
    assert 0 <= m.age <= 1
    with offline(world.of(d)):
        other["k0"] = "new"
        ages = []
        for _ in range(5):
            pauses.end()
            ages.append(m.age)
            assert isinstance(m.error, StoreUnavailableError)
            assert m.copy() == shown
            assert m["k0"] == 0
        assert ages == sorted(ages)
        assert ages[-1] > 50
        assert f"{ages[-1]:.1f} s old" in repr(m)
    assert len(caplog.records) == 1
    pauses.end()
    assert m.error is None
    assert m.age <= 2
    assert m["k0"] == "new"


def test_a_prefetching_mirror_that_fails_halfway_keeps_the_state_it_has(
    world: World, pauses: Pauses
) -> None:
    d, other = world.open(timeout=5, cache_bytes=0), world.open(inline_bytes=0)
    other.update(a=1, b=1)
    m = d.mirror(prefetch=True)
    other.update(a=2, b=2)
    backend = world.of(d)
    do = backend._do
    lost = offline(backend)

    def half(call: Call, act: Callable[[], Any]) -> Any:
        answer = do(call, act)
        lost.__enter__()  # all that comes after the index
        return answer

    backend._do = half
    pauses.end()
    assert isinstance(m.error, StoreUnavailableError)
    assert (m.seq, m.copy()) == (1, {"a": 1, "b": 1})
    lost.__exit__(None, None, None)
    pauses.end()
    assert (m.seq, m.copy(), m.error) == (2, {"a": 2, "b": 2}, None)


def test_a_dictionary_that_is_made_anew_is_an_error_of_the_mirror(
    world: World, pauses: Pauses
) -> None:
    d = world.open()
    d["k"] = 1
    m = d.mirror()
    remake(world)["k"] = 2
    pauses.end()
    assert isinstance(m.error, DictionaryChangedError)
    assert m["k"] == 1
    with pytest.raises(DictionaryChangedError):
        d["k"]


# -- that none can be written ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mirror", "snapshot", "mirror's metadata", "snapshot's metadata"])
def test_neither_a_mirror_nor_a_snapshot_can_be_written(kind: str, shop: Shop) -> None:
    d = shop.open()
    d.put("k", 1, metadata={"a": 1})
    given: Any = d.mirror(poll=NEVER) if "mirror" in kind else d.snapshot()
    given = given.metadata if "metadata" in kind else given
    with pytest.raises(TypeError, match="assignment"):
        given["k"] = {}
    with pytest.raises(TypeError, match="deletion"):
        del given["k"]
    with pytest.raises(TypeError):
        given |= {"k": 2}
    if "metadata" in kind:
        with pytest.raises(TypeError):
            given["k"]["a"] = 2
        assert not hasattr(given["k"], "update")
    changing = "clear pop popitem setdefault update put put_file modify transaction"
    changing += " lock lock_item unlock_item revert copy_item forget"
    assert [name for name in changing.split() if hasattr(given, name)] == []
    assert d["k"] == 1
    assert d.metadata["k"] == {"a": 1}


# -- the end --------------------------------------------------------------------------------


def test_a_closed_mirror_follows_no_longer_and_still_reads(
    shop: Shop, followers: Followers
) -> None:
    d, other = shop.open(), shop.open()
    d["k"] = 1
    with d.mirror(poll=FAST) as m:
        assert followers.names == ["mirror"]
        failed: SimpleQueue[BaseException] = SimpleQueue()

        def wait() -> None:
            try:
                m.wait_for("never")
            except ClosedError as exc:
                failed.put(exc)

        waiting = threading.Thread(target=wait)
        waiting.start()
    assert "closed" in str(failed.get(timeout=HANG))
    waiting.join()
    eventually(lambda: not followers.names)
    other["k"] = 2
    assert (m["k"], list(m), m.version("k")) == (1, ["k"], 1)
    assert m.wait_for("k") == 1
    with pytest.raises(ClosedError):
        m.wait_for("k", version=2)
    m.close()


@pytest.mark.parametrize("prefetch", [False, True], ids=["lazy", "prefetched"])
def test_a_mirror_ends_with_its_handle(shop: Shop, prefetch: bool, followers: Followers) -> None:
    d = shop.open()
    d["k"] = 1
    m = d.mirror(prefetch=prefetch, poll=FAST)
    d.close()
    eventually(lambda: not followers.names)
    for read in (len, list, dict, lambda m: m["k"], lambda m: "k" in m, lambda m: m.copy()):
        with pytest.raises(ClosedError):
            read(m)
    with pytest.raises(ClosedError):
        m.wait_for("never")
    with pytest.raises(ClosedError):
        d.mirror()
    assert m.age >= 0
    m.close()


def test_a_mirror_stays_in_its_process(world: World, pauses: Pauses) -> None:
    d = world.open()
    m = d.mirror()
    with pytest.raises(TypeError, match="can't be pickled"):
        pickle.dumps(m)
    with pytest.raises(TypeError, match="can't be pickled"):
        pickle.dumps(d.watch())


def test_a_mirror_that_nobody_has_any_more_ends(shop: Shop, followers: Followers) -> None:
    d = shop.open()
    d["k"] = 1
    m = d.mirror(poll=FAST)
    assert d.mirror(poll=NEVER).wait_for("k") == 1
    gc.collect()
    eventually(lambda: followers.names == ["mirror"])
    d["k"] = 2
    assert m.wait_for("k", version=2) == 2
    del m
    gc.collect()
    eventually(lambda: not followers.names)
    assert d["k"] == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_a_forked_child_is_told_that_its_parents_mirror_does_not_follow(tmp_path: Path) -> None:
    code = (
        "import os, sys, remotedict\n"
        "d = remotedict.open(sys.argv[1])\n"
        "d['k'] = 1\n"
        "poll = 0.01, 0.05\n"
        "m, s = d.mirror(poll=poll), d.on_change(lambda _: None, poll=poll)\n"
        "w = d.watch(since=0)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    d['k'] = 2\n"
        "    try:\n"
        "        m.wait_for('k', version=2)\n"
        "    except remotedict.ClosedError:\n"
        "        told = 'fork' in str(m.error) and 'fork' in str(s.error)\n"
        "        watched = [next(w).version, next(w).version] == [1, 2]\n"
        "        with d.mirror(poll=poll) as new:\n"
        "            followed = new.wait_for('k', version=2) == 2\n"
        "        os._exit(0 if told and watched and followed and m['k'] == 1 else 1)\n"
        "    os._exit(2)\n"
        "_, status = os.waitpid(child, 0)\n"
        "assert status == 0, status\n"
        "assert m.wait_for('k', version=2) == 2\n"
        "assert m.error is s.error is None\n"
    )
    run_to_its_end(code, tmp_path)


@pytest.fixture
def followers() -> Followers:
    return Followers()
