"""Transactions: they read one state, see their own writes, and commit only if it still holds."""

# ruff: noqa: PT012 - what raises is the end of a transaction, or something inside that it survives

from __future__ import annotations

import itertools
import random
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from faults import INDEX, after, lose_reply
from remotedict import (
    ConflictError,
    InvalidKeyError,
    ItemLockedError,
    KeyNotFoundError,
    VersionConflictError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Shop
    from faults import World
    from remotedict import RemoteDict

LARGE = random.Random(0).randbytes(9000)


def pair(world: World, **options: Any) -> tuple[RemoteDict, RemoteDict]:
    """Return two clients that know of each other's first commit."""
    a, b = world.open(**options), world.open(**options)
    a["x"], a["y"] = 1, 2
    assert b.copy() == {"x": 1, "y": 2}
    return a, b


# -- reading and writing ----------------------------------------------------------------------


def test_a_transaction_reads_one_state(shop: Shop) -> None:
    d, other = shop.open(inline_bytes=0, cache_bytes=0), shop.open()
    d.update(a=1, b=2, c=3)
    with d.transaction() as t:
        assert t["a"] == 1
        other.update(a=10, b=20, new=4)
        del other["c"]
        assert t[["a", "b", "c"]] == [1, 2, 3]
        assert t.get("new", 7) == 7
        assert ("c" in t, "new" in t, 5 in t) == (True, False, False)
        assert list(t) == ["a", "b", "c"] == list(t.keys())
        assert (len(t), list(reversed(t)), dict(t.items())) == (3, ["c", "b", "a"], {**t})
        assert t == {"a": 1, "b": 2, "c": 3}
        assert (t.version("a"), d.version("a"), t.version("new")) == (1, 2, 0)
        with pytest.raises(KeyNotFoundError) as caught:
            t["a", "new", "none"]
        assert caught.value.keys == ("new", "none")
    assert d.copy() == {"a": 10, "b": 20, "new": 4}


def test_a_transaction_sees_its_own_writes_and_nobody_else_does(shop: Shop) -> None:
    d, other = shop.open(), shop.open()
    d.update(a=1, b=LARGE, c=3)
    with d.transaction(comment="why", author="ann") as t:
        t["a"] = 5
        t["new", "d"] = LARGE, [1]
        del t["b"]
        assert t[["a", "new", "d"]] == [5, LARGE, [1]]
        assert (list(t), "b" in t, len(t)) == (["a", "c", "new", "d"], False, 4)
        assert t.pop("c") == 3
        assert t.pop("c", None) is None
        assert t.setdefault("a", 9) == 5
        assert t.setdefault("e", 9) == 9
        assert t.popitem() == ("e", 9)
        t.update(f=6)
        t["b"] = "again"
        assert dict(t) == {"a": 5, "new": LARGE, "d": [1], "f": 6, "b": "again"}
        for handle in (d, other):
            assert handle.copy() == {"a": 1, "b": LARGE, "c": 3}
        expected = list(t.items())
        assert (t.id, t.seq) == (None, None)
    assert list(other.items()) == expected
    assert (t.seq, t.id) == (2, other.snapshot().commit)
    told = d.history()
    assert set(told["seq"]) == {1, 2}
    assert set(told[told["seq"] == 2]["comment"]) == {"why"}
    assert set(told[told["seq"] == 2]["author"]) == {"ann"}


def test_what_is_read_is_a_copy_also_of_ones_own_writes(d: RemoteDict) -> None:
    d["old"] = [1]
    with d.transaction() as t:
        mine = t["new"] = [2]
        mine.append(3)  # as with the dictionary: what counts is what it was when it was set
        for key in ("old", "new"):
            t[key].append(4)
        assert t[["old", "new"]] == [[1], [2]]
        t["array"] = np.arange(1000)
        assert np.array_equal(t["array"], np.arange(1000))
    assert d[["old", "new"]] == [[1], [2]]


def test_writes_of_the_dictionary_inside_belong_to_it(shop: Shop) -> None:
    d = shop.open(history="all")
    d.put("a", 1, metadata={"x": 1})
    d["a"] = 2
    with d.transaction() as t:
        d["b"] = LARGE
        t["c"] = 3
        d.copy_item("c", "d")
        d.copy_item("a", "e")
        d.revert("a", 1)
        d.metadata["c"] = {"y": 1}
        d.put("f", 6, if_absent=True)
        assert dict(t) == {"a": 1, "b": LARGE, "c": 3, "d": 3, "e": 2, "f": 6}
        del t["b"]
        assert d.copy() == {"a": 2}
    assert d.copy() == {"a": 1, "c": 3, "d": 3, "e": 2, "f": 6}
    assert (d.metadata["c"], d.metadata["e"]) == ({"y": 1}, {"x": 1})
    assert d.snapshot().seq == 3


def test_it_clears_what_it_read(world: World) -> None:
    a, b = pair(world)
    with a.transaction() as t:
        t.clear()
        assert not t
        with pytest.raises(KeyNotFoundError):
            t.popitem()
        t["z"] = 1
    assert b.copy() == {"z": 1}
    with pytest.raises(ConflictError), a.transaction() as t:
        t.clear()
        b["new"] = 1
    assert b.copy() == {"z": 1, "new": 1}


def test_several_writes_of_a_key_are_one_version(d: RemoteDict) -> None:
    d["n"] = 0
    with d.transaction() as t:
        for _ in range(5):
            t["n"] += 1
    assert (d["n"], d.version("n")) == (5, 2)


def test_a_transaction_without_writes_is_no_commit(d: RemoteDict) -> None:
    d["a"] = 1
    with d.transaction() as t:
        assert t["a"] == 1
        t["b"] = 1
        del t["b"]
    assert (t.id, d.snapshot().seq, d.version("b")) == (None, 1, 0)


def test_a_transaction_on_an_empty_dictionary_begins_it(shop: Shop) -> None:
    d = shop.open()
    with d.transaction() as t:
        assert (len(t), "a" in t) == (0, False)
        t["a"] = 1
        assert t["a"] == 1
    assert shop.open().copy() == {"a": 1}


# -- conflicts --------------------------------------------------------------------------------

READS: dict[str, Callable[[Any], Any]] = {
    "value": lambda t: t["x"],
    "several": lambda t: t["y", "x"],
    "get": lambda t: t.get("x"),
    "in": lambda t: "x" in t,
    "version": lambda t: t.version("x"),
    "pop": lambda t: t.pop("x"),
    "del": lambda t: t.__delitem__("x"),
    "setdefault": lambda t: t.setdefault("x", 5),
    "iter": list,
    "first": lambda t: next(iter(t)),
    "len": len,
    "bool": bool,
    "keys": lambda t: list(t.keys()),
    "values": lambda t: list(t.values()),
    "items": lambda t: dict(t.items()),
    "equals": lambda t: t == {},
    "reversed": lambda t: list(reversed(t)),
    "popitem": lambda t: t.popitem(),
}
CHANGES: dict[str, Callable[[RemoteDict], Any]] = {
    "value": lambda b: b.__setitem__("x", 9),
    "the same value": lambda b: b.__setitem__("x", 1),
    "metadata": lambda b: b.metadata["x"].update(n=b.snapshot().seq),
    "deletion": lambda b: b.__delitem__("x"),
    "deleted and set": lambda b: (b.pop("x"), b.__setitem__("x", 1)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_what_was_read_must_still_hold(world: World, read: Any, change: Any) -> None:
    a, b = pair(world)
    with pytest.raises(ConflictError) as caught, a.transaction() as t:
        read(t)
        t["mine"] = LARGE
        change(b)
    assert "x" in caught.value.keys
    assert "'x'" in str(caught.value)
    if "x" in b:  # the same at the last moment, between the judgement and the put
        world.of(a).at("put", INDEX, after(lambda: change(b)))
        with pytest.raises(ConflictError), a.transaction() as t:
            read(t)
            t["mine"] = 1
    assert "mine" not in b


MISSES: dict[str, Callable[[Any], Any]] = {
    "in": lambda t: "new" in t,
    "get": lambda t: t.get("new"),
    "pop": lambda t: t.pop("new", None),
    "setdefault": lambda t: t.setdefault("new", 1),
    "version": lambda t: t.version("new"),
    "len": len,
    "iter": list,
}


@pytest.mark.parametrize("read", MISSES.values(), ids=MISSES)
def test_a_key_that_was_missed_must_not_appear(world: World, read: Any) -> None:
    a, b = pair(world)
    with pytest.raises(ConflictError) as caught, a.transaction() as t:
        read(t)
        t["mine"] = 1
        b["new"] = 2
    assert caught.value.keys == ("new",)
    assert b.copy() == {"x": 1, "y": 2, "new": 2}


def test_a_key_error_that_was_caught_is_a_read(world: World) -> None:
    a, b = pair(world)
    for act in (lambda t: t["new"], lambda t: t["x", "new"], lambda t: t.pop("new")):
        with pytest.raises(ConflictError), a.transaction() as t:
            with pytest.raises(KeyError):
                act(t)
            with pytest.raises(KeyError):
                del t["new"]
            t["mine"] = 1
            b["new"] = 2
        del b["new"]


def test_what_was_not_read_may_change(world: World) -> None:
    a, b = pair(world)
    with a.transaction() as t:
        assert t["x"] == 1
        assert "z" not in t
        t["mine"] = 1
        b["y"] = 3
        b["new"] = 4
        b.metadata["y"] = {"n": 1}
    world.of(a).at("put", INDEX, after(lambda: b.__delitem__("y")))
    with a.transaction() as t:
        t["x"] += 1
    assert b.copy() == {"x": 2, "new": 4, "mine": 1}


def test_a_lock_is_no_change_of_what_was_read(world: World) -> None:
    a, b = pair(world)
    with a.transaction() as t:
        t["mine"] = t["x"] + len(t)
        b.lock_item("x")
    assert b["mine"] == 3
    with pytest.raises(ItemLockedError), a.transaction() as t:
        t["y"] = 1
        t["x"] = 1
    assert b["y"] == 2


def test_writes_of_what_was_never_read_are_never_in_conflict(world: World) -> None:
    a, b = pair(world)
    with a.transaction() as t:
        t["x"] = "mine"
        t["new"] = "mine"
        assert t["x"] == "mine"  # to read what one has written is to read nothing
        assert "new" in t
        b.update(x="theirs", new="theirs")
    assert b[["x", "new"]] == ["mine", "mine"]
    assert b.version("x") == 3


def test_a_transaction_that_only_reads_is_never_in_conflict(world: World) -> None:
    a, b = pair(world)
    with a.transaction() as t:
        assert dict(t) == {"x": 1, "y": 2}
        b["x"] = 5
        assert dict(t) == {"x": 1, "y": 2}


def test_a_condition_inside_counts_as_well(world: World) -> None:
    a, b = pair(world)
    with pytest.raises(VersionConflictError), a.transaction() as t:
        t["mine"] = 1
        a.put("x", 5, version=2)
        b["x"] = 3
    assert "mine" not in b


def test_what_the_dictionary_does_inside_is_judged_on_what_it_sees(world: World) -> None:
    a, b = pair(world)
    with a.transaction() as t:
        t["mine"] = 1
        b["new"] = 5
        with pytest.raises(KeyNotFoundError):
            a.metadata["new"] = {}
        with pytest.raises(VersionConflictError):
            a.put("x", 6, version=1)
        a.copy_item("mine", "copy")
        assert t[["copy", "x"]] == [1, 1]
    assert b.copy() == {"x": 1, "y": 2, "new": 5, "mine": 1, "copy": 1}
    with pytest.raises(ConflictError) as caught, a.transaction() as t:
        a.copy_item("x", "copy")
        assert t["copy"] == 1  # which is to read its source
        b["x"] = 3
    assert (caught.value.keys, b["copy"]) == (("x",), 1)


def test_write_skew_is_impossible(world: World) -> None:
    a, b = pair(world)
    with pytest.raises(ConflictError) as caught, a.transaction() as one, b.transaction() as other:
        assert one["x"] + one["y"] == other["x"] + other["y"] == 3
        one["x"] = 0
        other["y"] = 0
    assert caught.value.keys == ("y",)
    assert b.copy() == {"x": 1, "y": 0}


def test_values_that_were_dropped_meanwhile_are_a_conflict(world: World) -> None:
    a, b = pair(world, inline_bytes=0, cache_bytes=0)
    with pytest.raises(ConflictError) as caught, a.transaction() as t:
        assert t["x"] == 1
        (blob,) = world.store.list("f/y/")
        b["y"] = 3
        world.store.delete([blob.name])
        t["y"]
    assert caught.value.keys == ("y",)


def test_a_lost_reply_is_looked_up_and_no_conflict_with_oneself(world: World) -> None:
    a, b = pair(world)
    for n in range(1, 6):
        world.of(a).at("put", INDEX, lose_reply)
        with a.transaction() as t:
            t["x"] += 1
        assert t.seq == b.snapshot().seq == n + 2
    assert (b["x"], b.version("x")) == (6, 6)


# -- ends -------------------------------------------------------------------------------------


def test_an_exception_leaves_no_trace(world: World) -> None:
    a, b = pair(world, inline_bytes=0)
    world.of(a).calls.clear()
    with pytest.raises(ZeroDivisionError), a.transaction() as t:
        t["x"] = LARGE
        t["new"] = LARGE
        del t["y"]
        a["too"] = LARGE
        1 / 0  # noqa: B018 - it raises
    assert not world.of(a).sent("put")
    assert b.copy() == a.copy() == {"x": 1, "y": 2}
    assert (b.snapshot().seq, t.id) == (2, None)
    a["z"] = 3


def test_a_transaction_inside_joins_the_one_outside(d: RemoteDict) -> None:
    d["a"] = 1
    with d.transaction(comment="outer") as t:
        t["a"] = 2
        with d.transaction(comment="inner") as inner:
            assert inner["a"] == 2
            inner["b"] = 3
        assert (t["b"], inner.id) == (3, None)
        with pytest.raises(RuntimeError, match="only there"):
            inner["b"]
        assert d.copy() == {"a": 1}
    assert (d.copy(), d.snapshot().seq) == ({"a": 2, "b": 3}, 2)
    assert (t.id, t.seq) == (inner.id, inner.seq) == (d.snapshot().commit, 2)
    assert set(d.history()["comment"]) == {"", "outer"}
    with d.commit(comment="commit"):
        d["c"] = 1
        with d.transaction() as t:
            t["c"] += 1
        assert "c" not in d
    assert (d["c"], d.snapshot().seq) == (2, 3)


@pytest.mark.parametrize("kind", ["transaction", "commit"])
def test_what_fails_inside_is_undone_alone(d: RemoteDict, kind: str) -> None:
    d.update(a=1, b=2)
    with d.transaction() as t:
        t["a"] = 10
        with pytest.raises(ZeroDivisionError), getattr(d, kind)():
            t["a"] = 100
            d["c"] = 300
            del t["b"]
            assert dict(t) == {"a": 100, "c": 300}
            1 / 0  # noqa: B018 - it raises
        assert dict(t) == {"a": 10, "b": 2}
        t["e"] = 5
        assert t["e"] == 5
    assert d.copy() == {"a": 10, "b": 2, "e": 5}
    assert d.version("c") == 0


def test_what_the_inner_one_read_the_outer_depends_on(world: World) -> None:
    a, b = pair(world)
    with pytest.raises(ConflictError), a.transaction() as t:
        with a.transaction() as inner:
            inner["sum"] = inner["x"] + inner["y"]
        t["other"] = 1
        b["y"] = 5
    assert b.copy() == {"x": 1, "y": 5}


ACTS: dict[str, Callable[[Any], Any]] = {
    "get": lambda t: t["a"],
    "set": lambda t: t.__setitem__("a", 1),
    "del": lambda t: t.__delitem__("a"),
    "in": lambda t: "a" in t,
    "iter": list,
    "len": len,
    "version": lambda t: t.version("a"),
    "clear": lambda t: t.clear(),
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_outside_of_its_block_it_is_of_no_use(d: RemoteDict, act: Any) -> None:
    d["a"] = 1
    t = d.transaction()
    with pytest.raises(RuntimeError, match="block"):
        act(t)
    with t:
        pass
    with pytest.raises(RuntimeError, match="block"):
        act(t)
    with pytest.raises(RuntimeError, match="anew"), t:
        pass
    assert "ended" in repr(t)
    assert (d.copy(), d.version("a")) == ({"a": 1}, 1)


@pytest.mark.parametrize("key", [5, None, b"a", "", "\ud800"], ids=repr)
def test_what_can_not_be_a_key_is_refused(d: RemoteDict, key: Any) -> None:
    d["a"] = 1
    with d.transaction() as t:
        assert key not in t
        acts = [t.version, t.__getitem__, t.__delitem__, t.get, t.pop]
        for act in [*acts, lambda key: t.__setitem__(key, 1), lambda key: t.setdefault(key, 1)]:
            with pytest.raises(InvalidKeyError):
                act(key)
    assert d.copy() == {"a": 1}


# -- again and again --------------------------------------------------------------------------


def test_run_tries_until_there_is_no_conflict(world: World) -> None:
    a, b = pair(world)
    tries = []

    def add(t: Any) -> str:
        t["sum"] = t["x"] + t["y"]
        tries.append(t["sum"])
        if len(tries) < 4:
            b["x"] = len(tries) * 10
        return f"{len(tries)} tries"

    begun = world.clock.now
    assert a.run(add, comment="why", author="ann") == "4 tries"
    assert tries == [3, 12, 22, 32]
    assert (b["sum"], b.version("sum")) == (32, 1)
    assert a.history("sum")[["comment", "author"]].to_numpy().tolist() == [["why", "ann"]]
    assert 0 < world.clock.now - begun < 1


def test_run_gives_up_at_its_deadline(world: World) -> None:
    a, b = pair(world, timeout=30)
    for timeout, seconds in ((5, 5), (None, 30), (0, 0)):
        tries = itertools.count()

        def busy(t: Any, tries: Any = tries) -> None:
            t["mine"] = t["x"]
            b["x"] = next(tries)

        begun = world.clock.now
        with pytest.raises(ConflictError):
            a.run(busy, timeout=timeout)
        assert seconds - 2 <= world.clock.now - begun <= seconds + 1
        assert next(tries) >= 1 + 5 * (seconds > 0)
    assert "mine" not in b


def test_run_hands_on_every_other_exception_at_once(world: World) -> None:
    a, b = pair(world)
    tries = []

    def fail(t: Any) -> None:
        tries.append(1)
        t["mine"] = 1
        b["x"] = t["x"] + 1
        raise LookupError

    with pytest.raises(LookupError):
        a.run(fail)
    with pytest.raises(KeyNotFoundError):
        a.run(lambda t: t["missing"])
    with pytest.raises(ItemLockedError), b.lock("y"):
        a.run(lambda t: t.__setitem__("y", 1))
    assert (len(tries), b.copy()) == (1, {"x": 2, "y": 2})


def test_inside_another_one_run_leaves_it_to_that(world: World) -> None:
    a, b = pair(world)
    tries = []

    def add(t: Any) -> int:
        tries.append(1)
        t["x"] += 1
        return t["x"]

    with a.transaction() as t:
        assert a.run(add) == 2
        assert a.modify("x", lambda x: x * 10) == 20
        assert (t["x"], b["x"]) == (20, 1)
    assert b["x"] == 20
    with pytest.raises(ConflictError), a.transaction():
        a.run(add)
        b["x"] = 0
    with pytest.raises(VersionConflictError), a.transaction():
        a.run(lambda _: tries.append(1) or a.put("x", 5, version=1))
    assert (len(tries), b["x"]) == (3, 0)


@pytest.mark.parametrize("timeout", [-1, "1", True, float("nan")], ids=repr)
def test_a_timeout_that_makes_no_sense_is_refused(d: RemoteDict, timeout: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="timeout"):
        d.run(len, timeout=timeout)
    with pytest.raises((TypeError, ValueError), match="timeout"):
        d.modify("a", str, timeout=timeout)


def test_modify_sets_a_key_to_what_is_made_of_its_value(d: RemoteDict) -> None:
    d.put("n", [1], metadata={"x": 1})
    assert d.modify("n", lambda n: [*n, 2]) == [1, 2] == d["n"]
    assert (d.version("n"), d.metadata["n"]) == (2, {"x": 1})
    assert d.modify("new", lambda n: n + 1, default=0) == 1
    assert d.modify("new", lambda n: n + 1, default=0) == 2
    assert d.modify("none", lambda n: n is None, default=None) is True
    with pytest.raises(KeyNotFoundError) as caught:
        d.modify("missing", len)
    assert caught.value.keys == ("missing",)
    with pytest.raises(InvalidKeyError):
        d.modify(5, len)
    with pytest.raises(ZeroDivisionError):
        d.modify("new", lambda n: n / 0)
    assert d.copy() == {"n": [1, 2], "new": 2, "none": True}


def test_modify_loses_nobodys_write(world: World) -> None:
    a, b = pair(world)
    seen = []
    for value in ("first", "second"):
        world.of(a).at("put", INDEX, after(lambda value=value: b.__setitem__("x", value)))

    def append(old: Any) -> Any:
        seen.append(old)
        return f"{old}, mine"

    assert a.modify("x", append) == "second, mine" == b["x"]
    assert seen == [1, "first", "second"]
    world.of(a).at("put", INDEX, after(lambda: b.__delitem__("x")))
    assert a.modify("x", lambda old: f"{old}!", default="none") == "none!"
    world.of(a).at("put", INDEX, after(lambda: b.__delitem__("x")))
    with pytest.raises(KeyNotFoundError):
        a.modify("x", lambda old: old)


def test_counters_lose_no_increment_of_many_threads(shop: Shop) -> None:
    handles = [shop.open() for _ in range(2)]
    each, errors = 10 if shop.kind == "azure" else 25, []

    def count(d: RemoteDict) -> None:
        try:
            for _ in range(each):
                d.modify("n", lambda n: n + 1, default=0)
        except Exception as exc:  # noqa: BLE001 - which one is the point
            errors.append(exc)

    run_all([lambda d=handles[n % 2]: count(d) for n in range(8)])
    assert not errors
    assert (handles[0]["n"], handles[1].version("n")) == (8 * each, 8 * each)


def test_on_other_keys_a_busy_dictionary_is_no_hindrance(shop: Shop) -> None:
    d, other = shop.open(), shop.open()
    done = threading.Event()
    errors = []

    def be_busy() -> None:
        for n in itertools.count():
            other[f"busy{n % 5}"] = n
            if done.is_set():
                return

    def work(key: str) -> None:
        try:
            for _ in range(10):
                with d.transaction() as t:  # no second try
                    t[key] = t.get(key, 0) + 1
        except Exception as exc:  # noqa: BLE001 - which one is the point
            errors.append(exc)

    busy = threading.Thread(target=be_busy)
    busy.start()
    run_all([lambda key=key: work(key) for key in "abcd"])
    done.set()
    busy.join(60)
    assert not errors
    assert d[["a", "b", "c", "d"]] == [10] * 4


def run_all(jobs: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
