"""Many writes as one commit; and writes on a condition."""

# ruff: noqa: PT012 - what raises is the end of a commit, or something inside that it must survive

from __future__ import annotations

import asyncio
import pickle
import random
import threading
from typing import TYPE_CHECKING, Any

import pytest

from faults import INDEX, after, lose_reply
from remotedict import (
    ConflictError,
    ItemLockedError,
    KeyNotFoundError,
    MetadataError,
    UnpicklableValueError,
    VersionConflictError,
)

if TYPE_CHECKING:
    from conftest import Shop
    from faults import World
    from remotedict import RemoteDict

LARGE = random.Random(0).randbytes(9000)


def rows(d: RemoteDict, *columns: str) -> list[list[Any]]:
    """Return what the history tells, oldest first."""
    return d.history()[list(columns)].values.tolist()[::-1]


def pair(world: World, **options: Any) -> tuple[RemoteDict, RemoteDict]:
    """Return two clients that know of each other's first commit."""
    a, b = world.open(**options), world.open(**options)
    a["begin"] = 0
    assert b["begin"] == 0
    return a, b


# -- gathering --------------------------------------------------------------------------------


def test_all_writes_inside_are_one_commit(shop: Shop) -> None:
    d, other = shop.open(author="ann"), shop.open()
    d["old"] = 1
    with d.commit(comment="why", author="nightly-job") as made:
        d["a"] = 1
        d["b", "c"] = 2, LARGE
        del d["old"]
        d.update(e=5)
        d.put("f", 6, metadata={"x": 1})
        for handle in (d, other):  # nobody sees it before its end
            assert handle.copy() == {"old": 1}
        assert (made.id, made.seq) == (None, None)
    assert list(other.items()) == [("a", 1), ("b", 2), ("c", LARGE), ("e", 5), ("f", 6)]
    assert other.metadata["f"] == {"x": 1}
    assert rows(d, "key", "kind", "author", "comment", "seq")[1:] == [
        [key, kind, "nightly-job", "why", 2]
        for key, kind in [
            *[("a", "set"), ("b", "set"), ("c", "set"), ("old", "delete")],
            *[("e", "set"), ("f", "set"), ("f", "metadata")],
        ]
    ]
    assert (made.seq, made.id) == (2, d.history()["commit"][0])
    d["g"] = 7
    assert rows(d, "author", "comment")[-1] == ["ann", ""]


def test_an_exception_drops_all_of_it(d: RemoteDict) -> None:
    d["a"] = 1
    with pytest.raises(ZeroDivisionError), d.commit() as made:
        d["a"] = 2
        d["b"] = LARGE
        del d["a"]
        1 / 0  # noqa: B018 - it raises
    assert (d.copy(), d.version("a"), len(d.history())) == ({"a": 1}, 1, 1)
    assert (made.id, made.seq) == (None, None)
    d["c"] = 3  # and what comes then is a commit of its own
    assert d.copy() == {"a": 1, "c": 3}


def test_a_write_that_is_refused_inside_need_not_end_it(d: RemoteDict) -> None:
    d["a"] = 1
    with d.commit():
        d["b"] = 2
        with pytest.raises(KeyNotFoundError):
            del d["missing"]
        with pytest.raises(UnpicklableValueError):
            d["c"] = threading.Lock()
        with pytest.raises(MetadataError):
            d.put("c", 1, metadata={1: 2})
        with pytest.raises(VersionConflictError):
            d.put("a", 1, version=1)
        d["e"] = 5
    assert d.copy() == {"a": 1, "b": 2, "e": 5}
    assert len(d.history()) == 3


def test_a_commit_without_writes_is_none(d: RemoteDict) -> None:
    with d.commit(comment="nothing") as made:
        assert len(d) == 0
    with d.commit():
        d["a"] = 1
        del d["a"]
    assert (made.id, made.seq, len(d.history()), d.version("a")) == (None, None, 0, 0)


def test_a_key_written_twice_inside_is_one_version(d: RemoteDict) -> None:
    d["a"] = 0
    with d.commit():
        d["a"] = 1
        d["b"] = 1
        d["a"] = 2
        d.update(a=3, b=2)
        d.put("b", 3)
    assert d.copy() == {"a": 3, "b": 3}
    assert (d.version("a"), d.version("b"), len(d.history())) == (2, 1, 3)


def test_inside_too_a_key_deleted_and_set_goes_to_the_end_and_begins_without_metadata(
    d: RemoteDict,
) -> None:
    for key in "abc":
        d.put(key, key, metadata={"was": key})
    with d.commit():
        del d["a"]
        d["new"] = 1
        d["a"] = 2
        d["b"] = 3
    assert list(d.items()) == [("b", 3), ("c", "c"), ("new", 1), ("a", 2)]
    assert (d.version("a"), d.version("b")) == (3, 2)
    assert (d.metadata["a"], d.metadata["b"]) == ({}, {"was": "b"})
    with d.commit():
        d["x"] = 1
        d["y"] = 1
        del d["x"]
        d["x"] = 2
    assert list(d)[-2:] == ["y", "x"]
    assert d.version("x") == 1
    with d.commit():
        d["x"] = 3
        del d["x"]
    assert "x" not in d
    assert d.version("x") == 2


def test_all_that_writes_can_be_part_of_a_commit(shop: Shop) -> None:
    d = shop.open(history="all")
    d.update(a=1, b=2, c=3, last=4, own=LARGE)
    d["b"] = "new"
    seq = d.snapshot().seq
    with d.commit():
        assert d.pop("a") == 1
        assert d.pop("missing", None) is None
        assert d.popitem() == ("own", LARGE)
        assert d.setdefault("c", 9) == 3
        assert d.setdefault("s", 5) == 5
        d |= {"c": 7}
        d.revert("b", 1)
        d.copy_item("last", "copy")
        d.metadata["last"] = {"x": 1}
        d.metadata["last"].update(y=2)
        d.copy_item("last", "annotated")
        assert d.put("p", 1, if_absent=True) is None
    assert d.snapshot().seq == seq + 1
    assert d.copy() == {"b": 2, "c": 7, "last": 4, "s": 5, "copy": 4, "annotated": 4, "p": 1}
    assert d.metadata["last"] == d.metadata["annotated"] == {"x": 1, "y": 2}
    assert d.metadata["copy"] == {}
    with d.commit():
        d.clear()
        d["z"] = 1
    assert d.copy() == {"z": 1}
    assert d.snapshot(at=seq)["own"] == LARGE


def test_what_an_operation_needs_may_have_been_made_in_the_same_commit(d: RemoteDict) -> None:
    with d.commit():
        d["a"] = LARGE
        d.metadata["a"] = {"x": 1}
        d.copy_item("a", "b")
        d.copy_item("b", "c")
        del d["a"]
        d.put("a", 1, if_absent=True)
        with pytest.raises(VersionConflictError):
            d.put("a", 2, if_absent=True)
        with pytest.raises(KeyNotFoundError):
            del d["missing", "a"]
    assert list(d.items()) == [("b", LARGE), ("c", LARGE), ("a", 1)]
    assert (d.metadata["b"], d.metadata["c"], d.metadata["a"]) == ({"x": 1}, {"x": 1}, {})
    assert {d.version(key) for key in "abc"} == {1}


def test_a_key_set_earlier_inside_is_no_longer_what_pop_and_setdefault_have_read(
    d: RemoteDict,
) -> None:
    d["a"] = 1
    with d.commit():
        d["a"], d["b"] = 2, 3
        with pytest.raises(ConflictError, match="'a'"):
            d.pop("a")
        with pytest.raises(ConflictError, match="'b'"):
            d.setdefault("b", 4)
        with pytest.raises(ConflictError):
            d.popitem()
    assert d.copy() == {"a": 2, "b": 3}


def test_writes_of_other_threads_and_handles_are_their_own(shop: Shop) -> None:
    d, other = shop.open(), shop.open()
    with d.commit(comment="mine"):
        d["mine"] = 1
        thread = threading.Thread(target=d.__setitem__, args=("thread", 2))
        thread.start()
        thread.join(30)
        other["other"] = 3
        assert d.copy() == {"thread": 2, "other": 3}
    assert rows(d, "key", "comment") == [["thread", ""], ["other", ""], ["mine", "mine"]]


def test_two_dictionaries_gather_beside_each_other(shop: Shop) -> None:
    one, other = shop.open(folder_name="one"), shop.open(folder_name="other")
    with one.commit(comment="one"), other.commit(comment="other"):
        one["a"], other["b"] = 1, 2
        one["c"] = 3
    assert rows(one, "key", "comment", "seq") == [["a", "one", 1], ["c", "one", 1]]
    assert rows(other, "key", "comment", "seq") == [["b", "other", 1]]


def test_asyncio_tasks_gather_each_their_own(d: RemoteDict) -> None:
    async def work(name: str, turn: asyncio.Barrier) -> None:
        with d.commit(comment=name):
            for n in range(3):
                await turn.wait()
                d[f"{name}{n}"] = n

    async def main() -> None:
        turn = asyncio.Barrier(3)
        await asyncio.gather(*(work(name, turn) for name in "abc"))
        d["plain"] = 1

    asyncio.run(main())
    told = d.history()
    assert told["seq"].nunique() == 4
    assert told[told["key"] != "plain"].groupby("seq")["comment"].agg(set).tolist() == [
        {comment} for comment in told["comment"][::-1].unique() if comment
    ]
    assert sorted(told["comment"]) == ["", *"aaabbbccc"]


def test_a_task_or_thread_begun_inside_a_commit_is_no_part_of_it(d: RemoteDict) -> None:
    async def child() -> None:
        d["plain"] = 1
        with d.commit(comment="child"):
            d["lost"] = 1
            await asyncio.sleep(0.02)
            raise ZeroDivisionError

    async def main() -> None:
        with d.commit(comment="parent"):
            d["before"] = 1
            task = asyncio.create_task(child())
            await asyncio.to_thread(d.__setitem__, "thread", 1)
            d["meanwhile"] = 1
            with pytest.raises(ZeroDivisionError):
                await task
            d["after"] = 1
            assert sorted(d) == ["plain", "thread"]

    asyncio.run(main())
    assert sorted(rows(d, "key", "comment")) == [
        ["after", "parent"],
        ["before", "parent"],
        ["meanwhile", "parent"],
        ["plain", ""],
        ["thread", ""],
    ]


def test_a_commit_inside_a_commit_joins_it(d: RemoteDict) -> None:
    with d.commit(comment="outer") as outer:
        d["a"] = 1
        with d.commit(comment="inner", author="bob") as inner:
            d["b"] = 2
        assert (inner.id, inner.seq) == (None, None)
        assert len(d) == 0
        with pytest.raises(ZeroDivisionError), d.commit():
            d["c"] = 3
            1 / 0  # noqa: B018 - it raises
        d["d"] = 4
    assert (inner.id, inner.seq) == (outer.id, outer.seq) == (d.snapshot().commit, 1)
    assert rows(d, "key", "comment", "author", "seq") == [
        [key, "outer", "bob", 1] for key in ("a", "b", "d")
    ]


def test_a_context_serves_once(d: RemoteDict) -> None:
    context = d.commit()
    with context:
        d["a"] = 1
        with pytest.raises(RuntimeError, match="anew"), context:
            d["lost"] = 1
    with pytest.raises(RuntimeError, match="anew"), context:
        d["lost"] = 1
    assert d.copy() == {"a": 1}


@pytest.mark.parametrize("bad", [{"comment": 5}, {"author": 5}, {"comment": None}], ids=str)
def test_what_can_not_sign_a_commit_is_refused(d: RemoteDict, bad: dict[str, Any]) -> None:
    for make in (d.commit, d.transaction):
        with pytest.raises(TypeError, match=next(iter(bad))):
            make(**bad)


def test_comments_and_authors_may_be_in_any_script(shop: Shop) -> None:
    d = shop.open(author="Ünal 🦉")
    with d.commit(comment="größer\n'\"; 多い"):
        d["a"] = 1
    assert rows(shop.open(), "author", "comment") == [["Ünal 🦉", "größer\n'\"; 多い"]]


# -- what may come between --------------------------------------------------------------------


def test_conditions_are_judged_again_at_the_end(world: World) -> None:
    a, b = pair(world)
    a.update(gone=1, moved=1, popped=1)
    with pytest.raises(KeyNotFoundError, match="gone"), a.commit():
        a["x"] = 1
        del a["gone"]
        del b["gone"]
    with pytest.raises(VersionConflictError) as caught, a.commit():
        a["x"] = 1
        a.put("moved", 2, version=2)
        b["moved"] = "theirs"
    assert (caught.value.expected, caught.value.provided) == (3, 2)
    with pytest.raises(ConflictError) as conflict, a.commit():
        a["x"] = 1
        assert a.pop("popped") == 1
        b["popped"] = "theirs"
    assert conflict.value.keys == ("popped",)
    with pytest.raises(VersionConflictError), a.commit():
        a.put("new", 2, if_absent=True)
        b["new"] = 1
    assert b.copy() == {"begin": 0, "moved": "theirs", "popped": "theirs", "new": 1}


def test_conditions_are_judged_again_on_the_very_state_it_is_made_on(world: World) -> None:
    a, b = pair(world)
    a["k"] = 1
    world.of(a).at("put", INDEX, after(lambda: b.__delitem__("k")))
    with pytest.raises(KeyNotFoundError), a.commit():
        a["x"] = 1
        del a["k"]
    world.of(a).at("put", INDEX, after(lambda: b.__setitem__("other", 2)))
    with a.commit():
        a["x"] = 1
        del a["begin"]
    assert b.copy() == {"other": 2, "x": 1}
    assert b.version("x") == 1


def test_what_another_has_just_set_can_be_deleted_inside_however_stale_one_reads(
    world: World,
) -> None:
    a, b = world.open(max_staleness=60), world.open()
    b["begin"] = 0
    assert "k" not in a
    b.update(k=1, l=2)
    with a.commit():
        del a["k"]
        a.metadata["l"] = {"x": 1}
        a.put("l", 3, version=2)
    assert (b.copy(), b.metadata["l"]) == ({"begin": 0, "l": 3}, {"x": 1})


def test_locks_of_others_refuse_all_of_it(shop: Shop) -> None:
    d, other = shop.open(), shop.open()
    d.update(a=1, b=2)
    with other.lock("b"):
        with pytest.raises(ItemLockedError) as caught, d.commit():
            d["a"] = 9
            d["new"] = 9
            d.metadata["b"] = {"x": 1}
        assert caught.value.item_name == "b"
        with d.commit():
            d["a"] = 3
    assert (d.copy(), d.metadata["b"], d.version("new")) == ({"a": 3, "b": 2}, {}, 0)
    with d.lock("a"), d.commit():
        d["a"] = 4
    assert other["a"] == 4


def test_a_lost_reply_at_its_end_is_looked_up_and_never_made_twice(world: World) -> None:
    a, b = pair(world)
    for n in range(1, 4):
        world.of(a).at("put", INDEX, lose_reply)
        with a.commit(comment=str(n)) as made:
            a["k"] = n
            a["l"] = LARGE
        assert (made.seq, made.id) == (b.snapshot().seq, b.snapshot().commit)
    assert (b["k"], b.version("k"), b.version("l"), b.snapshot().seq) == (3, 3, 3, 4)


def test_a_commit_costs_as_many_requests_as_one_write(world: World) -> None:
    a, _ = pair(world)
    world.of(a).calls.clear()
    with a.commit():
        for n in range(20):
            a[f"k{n}"] = n
    assert [(call.verb, call.path) for call in world.of(a).calls] == [("put", INDEX)]


# -- on a condition ---------------------------------------------------------------------------


def test_put_takes_the_version_that_comes_next(d: RemoteDict) -> None:
    assert d.put("k", 1, version=1) == 1
    assert d.put("k", 2, version=2) == 2
    assert d.put("k", 3) == 3
    del d["k"]
    assert d.put("k", 5, version=5) == 5
    for wrong in (1, 4, 5, 7):
        with pytest.raises(VersionConflictError) as caught:
            d.put("k", 0, version=wrong)
        error = caught.value
        assert (error.key, error.expected, error.provided) == ("k", 6, wrong)
        assert error.keys == ("k",)
        assert "6" in str(error)
        assert "nothing was written" in str(error)
    assert (d["k"], d.version("k")) == (5, 5)


def test_put_if_absent_asks_for_what_is_there_now(d: RemoteDict) -> None:
    assert d.put("k", 1, if_absent=True) == 1
    with pytest.raises(VersionConflictError) as caught:
        d.put("k", 2, if_absent=True)
    assert (caught.value.key, caught.value.expected, caught.value.provided) == ("k", 2, None)
    del d["k"]
    assert d.put("k", 3, if_absent=True) == 3
    del d["k"]
    with pytest.raises(VersionConflictError):
        d.put("k", 4, if_absent=True, version=4)
    assert d.put("k", 5, if_absent=True, version=5) == 5


@pytest.mark.parametrize(
    ("version", "error"),
    [(0, ValueError), (-3, ValueError), (True, TypeError), (2.0, TypeError), ("2", TypeError)],
    ids=repr,
)
def test_what_is_no_version_is_refused(d: RemoteDict, version: Any, error: type) -> None:
    d["k"] = 1
    with pytest.raises(error, match="version"):
        d.put("k", 2, version=version)
    assert d["k"] == 1


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_version_conflict_arrives_whole_in_another_process(protocol: int) -> None:
    for provided in (3, None):
        error = VersionConflictError("k", 7, provided)
        back = pickle.loads(pickle.dumps(error, protocol))
        assert type(back) is VersionConflictError
        assert isinstance(back, ConflictError)
        assert vars(back) == vars(error)
        assert str(back) == str(error)
        assert (back.key, back.expected, back.provided) == ("k", 7, provided)


def test_of_two_who_provide_the_same_version_one_gets_it(world: World) -> None:
    a, b = pair(world)
    a["k"] = 1
    world.of(a).at("put", INDEX, after(lambda: b.put("k", "theirs", version=2)))
    with pytest.raises(VersionConflictError) as caught:
        a.put("k", "mine", version=2)
    assert (caught.value.expected, caught.value.provided) == (3, 2)
    assert (b["k"], b.version("k")) == ("theirs", 2)
    world.of(a).at("put", INDEX, after(lambda: b.__setitem__("other", 1)))
    assert a.put("k", "mine", version=3) == 3


def test_ones_own_version_is_no_conflict_when_the_reply_was_lost(world: World) -> None:
    a, b = pair(world)
    for n in (1, 2, 3):
        world.of(a).at("put", INDEX, lose_reply)
        assert a.put("k", n, version=n) == n
    assert (b["k"], b.version("k")) == (3, 3)


def test_threads_that_save_optimistically_lose_nothing(d: RemoteDict) -> None:
    def save() -> None:
        for _ in range(10):
            while True:
                version = d.version("k")
                try:
                    wins.append(d.put("k", len(wins), version=version + 1))
                    break
                except VersionConflictError as error:
                    losses.append(error)

    wins: list[Any] = []
    losses: list[VersionConflictError] = []
    threads = [threading.Thread(target=save) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(wins) == list(range(1, 41))
    assert all(error.expected != error.provided for error in losses)


def test_a_conflict_known_early_costs_no_upload(world: World) -> None:
    a, b = pair(world, inline_bytes=0)
    a["k"] = 1
    b["late"] = 1
    for put in (
        lambda: a.put("k", LARGE, version=1),
        lambda: a.put("k", LARGE, if_absent=True),
        lambda: a.put("begin", LARGE, version=3),
    ):
        world.of(a).calls.clear()
        with pytest.raises(VersionConflictError):
            put()
        assert not world.of(a).sent("put")
    world.of(a).calls.clear()
    with pytest.raises(VersionConflictError):  # what only the store knows costs one
        a.put("late", LARGE, version=1)
    assert len([c for c in world.of(a).sent("put") if c.path != INDEX]) <= 1
    # What one's own state speaks against may be possible by now.
    del b["k"]
    assert a.put("k", LARGE, if_absent=True) == 3
    assert b["k"] == LARGE


def test_an_upload_in_vain_leaves_the_dictionary_as_it_is(world: World) -> None:
    a, b = pair(world, inline_bytes=0)
    world.of(a).at("put", INDEX, after(lambda: b.__setitem__("k", "theirs")))
    with pytest.raises(VersionConflictError), a.commit():
        a["x"] = LARGE
        a.put("k", LARGE, version=1)
    for handle in (a, b, world.open()):
        assert handle.copy() == {"begin": 0, "k": "theirs"}


def test_a_version_that_does_not_come_next_is_not_tried_again(d: RemoteDict) -> None:
    d["k"] = 1
    calls = []
    with pytest.raises(VersionConflictError):
        d.run(lambda _: calls.append(d.put("k", 2, version=1)))
    assert (calls, d["k"]) == ([], 1)
