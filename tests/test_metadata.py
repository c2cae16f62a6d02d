"""Metadata and queries: what the index knows of values that nobody reads."""

from __future__ import annotations

import enum
import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from faults import INDEX, after
from remotedict import InvalidKeyError, ItemLockedError, KeyNotFoundError, MetadataError
from remotedict.pure import plan, state

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Shop
    from faults import World
    from remotedict import RemoteDict

LARGE = random.Random(0).randbytes(9000)


@pytest.fixture
def small(monkeypatch):
    """Let few commits roll, merge, rebase and make checkpoints."""
    monkeypatch.setattr(plan, "INDEX_BYTES", 2000)
    monkeypatch.setattr(plan, "CHECKPOINT_MIN", 4000)
    monkeypatch.setattr(plan, "FAN", 2)
    monkeypatch.setattr(state, "_REBASE_MIN", 5)


# -- metadata ---------------------------------------------------------------------------------


def test_metadata_stays_until_the_key_is_deleted(shop: Shop) -> None:
    d, other = shop.open(), shop.open()
    assert d.put("k", 1, metadata={"owner": "ann"}) == 1
    d["k"] = 2
    d.update(k=3)
    assert d.put("k", 4) == 4
    assert d.metadata["k"] == other.metadata["k"] == {"owner": "ann"}
    d.put("k", 5, metadata={"stage": "raw"})
    assert other.metadata["k"] == {"stage": "raw"}
    d.put("k", 6, metadata={})
    assert other.metadata["k"] == {}
    d.metadata["k"] = {"a": 1}
    del d["k"]
    with pytest.raises(KeyNotFoundError):
        d.metadata["k"]
    d["k"] = 7
    assert d.metadata["k"] == other.metadata["k"] == {}


def test_the_metadata_of_a_key_is_a_dict_of_its_own(d: RemoteDict) -> None:
    d["k"] = 1
    fields = d.metadata["k"]
    assert (fields, len(fields), list(fields), bool(fields)) == ({}, 0, [], False)
    fields["a"] = 1
    fields.update(b=[1, {"c": None}], a=2)
    fields.update({"x y": 1.5})
    fields.update([("z", True)])
    assert d.metadata["k"] == fields == {"a": 2, "b": [1, {"c": None}], "x y": 1.5, "z": True}
    assert (list(fields), len(fields), "a" in fields, "q" in fields) == (
        ["a", "b", "x y", "z"],
        4,
        True,
        False,
    )
    assert (fields["a"], fields.get("q", 5), repr(fields)) == (2, 5, repr(dict(fields)))
    assert list(fields.values()) == list(dict(fields).values())
    assert dict(fields.items()) == fields
    assert fields.pop("a") == 2
    assert fields.pop("a", None) is None
    assert fields.setdefault("b", 9) == [1, {"c": None}]
    assert fields.setdefault("n", 9) == 9
    assert fields.popitem() == ("n", 9)
    del fields["b"]
    for act in (lambda: fields["b"], lambda: fields.__delitem__("b"), lambda: fields.pop("b")):
        with pytest.raises(KeyError, match="b"):
            act()
    fields |= {"m": 1}
    assert fields["m"] == 1
    fields.clear()
    assert d.metadata["k"] == {} != {"a": 1}
    with pytest.raises(KeyError):
        fields.popitem()
    with pytest.raises(TypeError):
        hash(fields)
    fields["nested"] = {}
    fields["nested"]["lost"] = 1  # what is read is a copy
    assert fields == {"nested": {}}
    assert (d["k"], d.version("k")) == (1, 1)


def test_the_metadata_of_all_keys_is_a_mapping_of_them(d: RemoteDict) -> None:
    d.update(a=1, b=2, c=3)
    everything = d.metadata
    everything["b"] = {"x": 1}
    everything["c"] = everything["b"]
    assert (list(everything), len(everything), "b" in everything) == (["a", "b", "c"], 3, True)
    assert {key: dict(fields) for key, fields in everything.items()} == {
        "a": {},
        "b": {"x": 1},
        "c": {"x": 1},
    }
    everything["b"]["y"] = 2
    assert everything["c"] == {"x": 1}
    assert everything.get("missing") is None
    assert "missing" not in everything
    del everything["b"]
    assert (everything["b"], d["b"], len(d)) == ({}, 2, 3)
    everything["a"].update(x=2)
    commits = len(d.history())
    everything.clear()
    assert [*map(dict, everything.values())] == [{}, {}, {}]
    assert len(d.history()) == commits + 2  # of "a" and "c", in one commit
    assert d.history()["seq"].nunique() == commits - 2 + 1
    assert "3 keys" in repr(everything)


def test_metadata_is_live(shop: Shop) -> None:
    d, other = shop.open(), shop.open()
    d["k"] = 1
    fields = d.metadata["k"]
    other.metadata["k"] = {"a": 1}
    assert fields == {"a": 1}
    other.metadata["k"].update(b=2)
    fields["c"] = 3
    assert other.metadata["k"] == fields == {"a": 1, "b": 2, "c": 3}
    del other["k"]
    for act in (lambda: fields["a"], lambda: len(fields), lambda: repr(fields)):
        with pytest.raises(KeyNotFoundError):
            act()
    with pytest.raises(KeyNotFoundError):
        fields["a"] = 1
    other["k"] = 2
    assert fields == {}


def test_an_update_loses_nobodys_field(world: World) -> None:
    a, b = world.open(), world.open()
    a.put("k", 1, metadata={"mine": 0, "theirs": 0, "both": 0})
    world.of(a).at("put", INDEX, after(lambda: b.metadata["k"].update(theirs=1, both=1)))
    a.metadata["k"].update(mine=1)
    assert b.metadata["k"] == {"mine": 1, "theirs": 1, "both": 1}
    world.of(a).at("put", INDEX, after(lambda: b.metadata["k"].pop("both")))
    with pytest.raises(KeyError):
        del a.metadata["k"]["both"]
    world.of(a).at("put", INDEX, after(lambda: b.__delitem__("k")))
    with pytest.raises(KeyNotFoundError):
        a.metadata["k"]["mine"] = 2


def test_metadata_is_one_commit_beside_a_value_and_no_version(d: RemoteDict) -> None:
    d.put("k", 1, metadata={"a": 1})
    d.metadata["k"].update(b=2, c=3)
    d.metadata["k"] = {"a": 1}
    d.metadata["k"] = {"a": 1}  # nothing new
    told = d.history()[["kind", "version", "seq"]].to_numpy().tolist()
    assert told == [["metadata", 1, 3], ["metadata", 1, 2], ["metadata", 1, 1], ["set", 1, 1]]
    assert d.version("k") == 1


def test_values_stay_where_they_are(world: World, small) -> None:
    d = world.open(inline_bytes=256, cache_bytes=0)
    d.update(inline=1, packed=LARGE[:700], packed2=LARGE[:701])
    d["own"] = LARGE
    for key in ("inline", "packed", "own"):
        before = d._engine.known().state.get(key)
        calls = world.of(d).calls
        calls.clear()
        d.metadata[key] = {"a": 1}
        assert [(c.verb, c.path) for c in calls if not c.path.startswith("f/s")] == [("put", INDEX)]
        now = d._engine.known().state.get(key)
        assert (now.generation, now.version) == (before.generation, before.version)
        assert now.modified == before.modified
    for handle in (d, world.open(cache_bytes=0)):
        assert handle["own"] == LARGE
        assert handle[["inline", "packed"]] == [1, LARGE[:700]]


def test_metadata_survives_rolls_and_checkpoints_and_is_told_as_it_was(shop: Shop, small) -> None:
    d = shop.open(history="all")
    idle = shop.open()
    text = {"text": 'größer 多い 🦉 " \\ \n \x00 \u2028', "key ä": ["é"]}
    d.put("k", LARGE, metadata=text)
    seqs = {}
    for n in range(40):
        d.metadata["k"].update(n=n)
        seqs[d.snapshot().seq] = n
        d[f"other{n % 4}"] = n
        d["k" if n % 8 == 0 else "other0"] = n
    d._engine.upkeep.finish()
    assert d._engine.known().index.checkpoint
    for handle in (d, idle, shop.open()):
        assert handle.metadata["k"] == {**text, "n": 39}
        assert handle.metadata["other0"] == {}
        assert handle.snapshot(at=1).metadata["k"] == text
        for seq in list(seqs)[::10]:
            assert handle.snapshot(at=seq).metadata["k"] == {**text, "n": seqs[seq]}
        assert handle.query(n=39) == ["k"]


def test_the_metadata_of_a_locked_key_is_locked(shop: Shop) -> None:
    d, other = shop.open(), shop.open()
    d.update(k=1, l=1)
    with d.lock("k"):
        with pytest.raises(ItemLockedError):
            other.metadata["k"] = {"a": 1}
        with pytest.raises(ItemLockedError):
            other.metadata["k"].update(a=1)
        with pytest.raises(ItemLockedError):
            other.put("k", 2, metadata={})
        other.metadata["l"] = {"a": 1}
        d.metadata["k"] = {"b": 1}
    assert (other.metadata["k"], other["k"]) == ({"b": 1}, 1)


# -- what metadata can not be -----------------------------------------------------------------


def nested(depth: int, *, lists: bool) -> dict[str, Any]:
    inner: Any = 1
    for _ in range(depth):
        inner = [inner] if lists else {"a": inner}
    return {"a": inner}


BAD: dict[str, Any] = {
    "set": {"a": {1}},
    "tuple": {"a": (1, 2)},
    "tuple inside": {"a": [{"b": (1,)}]},
    "bytes": {"a": b"x"},
    "datetime": {"a": datetime(2020, 1, 1, tzinfo=UTC)},
    "array": {"a": np.arange(3)},
    "frame": {"a": pd.DataFrame()},
    "object": {"a": object()},
    "nan": {"a": float("nan")},
    "inf": {"a": [float("-inf")]},
    "numpy nan": {"a": np.float64("nan")},
    "int key": {1: "a"},
    "none key": {None: "a"},
    "inner int key": {"a": {"b": {2: 1}}},
    "surrogate": {"a": "\ud800"},
    "surrogate key": {"\ud800": 1},
    "long": {"a": "x" * 70_000},
    "long in bytes": {"a": "多" * 30_000},
    "many": {str(n): n for n in range(20_000)},
    "long number": {"a": 10**5000},
    "deep lists": nested(200, lists=True),
    "deep dicts": nested(200, lists=False),
    "very deep": nested(100_000, lists=True),
    "list": ["a"],
    "pairs": [("a", 1)],
    "str": "a",
    "number": 5,
    "type": dict,
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_metadata_must_be_a_dict_that_json_can_hold(world: World, bad: Any) -> None:
    d = world.open()
    d.put("k", 1, metadata={"good": 1})
    begun = d.snapshot().seq
    acts: list[Callable[[], Any]] = [
        lambda: d.put("k", 2, metadata=bad),
        lambda: d.put("new", 2, metadata=bad),
        lambda: d.metadata.__setitem__("k", bad),
    ]
    if isinstance(bad, dict):
        acts.append(lambda: d.metadata["k"].update(bad))
        acts.append(lambda: d.metadata["k"].__setitem__("a", bad))
    for act in acts:
        with pytest.raises(MetadataError) as caught:
            act()
        assert isinstance(caught.value, TypeError)
        assert isinstance(caught.value, ValueError)
        assert "metadata" in str(caught.value)
        assert len(str(caught.value)) < 500
    assert (d.copy(), d.metadata["k"], d.snapshot().seq) == ({"k": 1}, {"good": 1}, begun)


def test_what_refers_to_itself_is_refused(d: RemoteDict) -> None:
    d["k"] = 1
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(MetadataError):
        d.metadata["k"] = {"a": loop}
    assert d.metadata["k"] == {}


def test_an_update_that_makes_it_too_large_changes_nothing(d: RemoteDict) -> None:
    d.put("k", 1, metadata={"a": "x" * 40_000})
    with pytest.raises(MetadataError, match="too large"):
        d.metadata["k"].update(b="x" * 40_000)
    assert list(d.metadata["k"]) == ["a"]
    with pytest.raises(MetadataError, match="too large"), d.commit():  # noqa: PT012
        d["other"] = 1
        d.metadata["k"]["b"] = "x" * 40_000
    assert d.copy() == {"k": 1}


def test_nested_as_deep_as_allowed_it_is_read_from_any_depth(d: RemoteDict) -> None:
    d["k"] = 1
    depth = next(n for n in range(500, 0, -1) if accepts(d, nested(n, lists=True)))
    assert depth > 20

    def from_deep_down(left: int) -> Any:
        return from_deep_down(left - 1) if left else (d.metadata["k"].read(), d.info())

    assert from_deep_down(600)[0] == nested(depth, lists=True)


def accepts(d: RemoteDict, metadata: dict[str, Any]) -> bool:
    """Tell whether this can be metadata."""
    try:
        d.metadata["k"] = metadata
    except MetadataError:
        return False
    return True


class Stage(str, enum.Enum):  # noqa: UP042 - its str() is another than its value
    RAW = "raw"


class Level(enum.IntEnum):
    HIGH = 3


def test_scalars_that_are_numbers_or_text_are_taken_as_such(d: RemoteDict) -> None:
    given = {
        "float": np.float64(0.5),
        "single": np.float32(0.5),
        "int": np.int64(7),
        "bool": np.bool_(True),
        "text": np.str_("x"),
        "stage": Stage.RAW,
        "level": Level.HIGH,
        "big": 10**30,
        "list": [np.int8(1), None],
    }
    d.put("k", 1, metadata=given)
    assert d.metadata["k"] == {
        "float": 0.5,
        "single": 0.5,
        "int": 7,
        "bool": True,
        "text": "x",
        "stage": "raw",
        "level": 3,
        "big": 10**30,
        "list": [1, None],
    }
    assert d.query(stage=Stage.RAW, float=np.float64(0.5)) == ["k"]


def test_what_becomes_of_the_callers_dict_later_changes_nothing(d: RemoteDict) -> None:
    d["k"] = 1
    one, other = {"tags": ["a"]}, ["b"]
    with d.commit():
        d.metadata["k"] = one
        d.metadata["k"].update(more=other)
        d.put("l", 1, metadata=one)
        one["tags"].append("changed")
        other.append("changed")
    assert d.metadata["k"] == {"tags": ["a"], "more": ["b"]}
    assert d.metadata["l"] == {"tags": ["a"]}


def test_a_key_that_is_not_there_has_no_metadata(d: RemoteDict) -> None:
    acts: list[Callable[[], Any]] = [
        lambda: d.metadata["missing"],
        lambda: d.metadata.__setitem__("missing", {}),
        lambda: d.metadata.__setitem__("missing", {"a": 1}),
        lambda: d.metadata.__delitem__("missing"),
    ]
    for act in acts:
        with pytest.raises(KeyNotFoundError) as caught:
            act()
        assert caught.value.keys == ("missing",)
    for bad in (5, "", None):
        with pytest.raises(InvalidKeyError):
            d.metadata[bad]
        with pytest.raises(InvalidKeyError):
            d.metadata[bad] = {}
        with pytest.raises(InvalidKeyError):
            del d.metadata[bad]
    assert len(d.history()) == 0


# -- queries ----------------------------------------------------------------------------------


@pytest.fixture
def stocked(shop: Shop) -> RemoteDict:
    """A dictionary of several kinds of values."""
    d = shop.open(author="ann")
    d.put("run-1/loss", 0.5, metadata={"owner": "nightly", "n": 1, "tags": ["a"], "ok": None})
    d.put("run-2/loss", np.zeros((2, 3)), metadata={"owner": "nightly", "n": 2})
    shop.open(author="bob").put("run-2/model", "tree", metadata={"owner": "eve", "n": 30})
    d["Run-3/loss"] = pd.DataFrame({"a": [1, 2, 3]})
    d["plain"] = LARGE
    d["plain"] = LARGE
    return d


def test_queries_match_metadata(stocked: RemoteDict) -> None:
    query = stocked.query
    assert query(owner="nightly") == ["run-1/loss", "run-2/loss"]
    assert query({"owner": "nightly"}, n=2) == query(owner="nightly", n=2) == ["run-2/loss"]
    assert query(tags=["a"]) == query(ok=None) == ["run-1/loss"]
    assert query(n=lambda n: n > 1) == ["run-2/loss", "run-2/model"]
    assert query(n=lambda n: n > 1, owner="eve") == ["run-2/model"]
    assert query(missing=None) == query(missing=lambda _: True) == query(owner="Nightly") == []
    assert query() == query({}) == query(facts={}) == list(stocked)
    assert query({"facts": 1}) == query({"metadata": 1}) == []
    stocked.metadata["plain"] = {"facts": 1, "metadata": 2, "self": 3}
    assert query({"facts": 1, "metadata": 2, "self": 3}) == ["plain"]


def test_queries_match_facts(stocked: RemoteDict) -> None:
    def query(**facts: Any) -> list[str]:
        return stocked.query(facts=facts)

    assert query(type="float") == ["run-1/loss"]
    assert query(dtype="float64") == query(shape=(2, 3)) == query(shape=[2, 3]) == ["run-2/loss"]
    assert query(shape=lambda shape: shape and len(shape) == 2) == ["run-2/loss", "Run-3/loss"]
    assert query(version=2) == query(stored=lambda n: n >= 9000) == ["plain"]
    assert query(nbytes=lambda n: n >= 9000) == ["plain"]
    assert query(author="bob") == ["run-2/model"]
    now = datetime.now(UTC)
    assert query(modified=lambda t: t > now + timedelta(minutes=1)) == []
    assert query(modified=lambda t: abs(now - t) < timedelta(minutes=1)) == list(stocked)
    exact = stocked.info()["modified"]["run-1/loss"]
    assert "run-1/loss" in query(modified=exact.to_pydatetime())
    assert stocked.query(owner="nightly", facts={"dtype": "float64"}) == ["run-2/loss"]
    assert query(type=None) == query(author=5) == []


def test_queries_that_make_no_sense_are_refused(stocked: RemoteDict) -> None:
    with pytest.raises(ValueError, match=r"'typ'.*type, shape, dtype"):
        stocked.query(facts={"typ": "float"})
    for bad in (5, "type", ["type"]):
        with pytest.raises(TypeError, match="mapping"):
            stocked.query(facts=bad)
    with pytest.raises(TypeError):
        stocked.query(5)
    with pytest.raises(ZeroDivisionError):
        stocked.query(n=lambda n: n / 0)
    with pytest.raises(TypeError):
        stocked.query(n=lambda n: n > "text")


def test_glob_matches_as_a_shell_does(stocked: RemoteDict) -> None:
    assert stocked.glob("run-*/loss") == ["run-1/loss", "run-2/loss"]
    assert stocked.glob("[Rr]un-?/*") == list(stocked)[:4]
    assert stocked.glob("*[!0-9s]") == ["run-2/model", "plain"]
    assert (stocked.glob("*"), stocked.glob("plain"), stocked.glob("lai")) == (
        list(stocked),
        ["plain"],
        [],
    )
    assert stocked.glob("") == []
    stocked["[x]*"] = 1
    assert stocked.glob("[[]x[]][*]") == ["[x]*"]
    for bad in (5, None, b"*", ["*"]):
        with pytest.raises(TypeError, match="pattern"):
            stocked.glob(bad)


def test_info_is_a_table_of_all_keys(stocked: RemoteDict) -> None:
    info = stocked.info()
    assert list(info.columns) == [
        *("type", "shape", "dtype", "nbytes", "stored", "version", "modified", "author"),
        "metadata",
    ]
    assert (info.index.name, list(info.index)) == ("key", list(stocked))
    assert list(info["shape"])[1:4] == [(2, 3), None, (3, 1)]
    assert list(info["version"]) == [1, 1, 1, 1, 2]
    assert list(info["author"]) == ["ann", "ann", "bob", "ann", "ann"]
    assert info["metadata"]["run-2/loss"] == {"owner": "nightly", "n": 2}
    assert info["metadata"]["plain"] == {}
    assert info["stored"]["plain"] >= 9000 <= info["nbytes"]["plain"]
    assert {str(info[name].dtype) for name in ("nbytes", "stored", "version")} == {"int64"}
    assert abs(info["modified"]["plain"] - datetime.now(UTC)) < timedelta(minutes=1)
    info.loc["plain", "version"] = 99  # it is the caller's
    assert stocked.info()["version"]["plain"] == 2
    stocked.clear()
    empty = stocked.info()
    assert (len(empty), list(empty.columns), empty.index.name) == (0, list(info.columns), "key")
    assert (empty["nbytes"].dtype, empty["modified"].dtype) == ("int64", info["modified"].dtype)


def test_no_value_is_read_for_any_of_it(world: World, small) -> None:
    d = world.open(inline_bytes=0, cache_bytes=0)
    for n in range(30):
        d.put(f"k{n}", n, metadata={"n": n})
    d._engine.upkeep.finish()
    fresh = world.open(cache_bytes=0)
    for handle in (d, fresh):
        calls = world.of(handle).calls
        calls.clear()
        assert handle.query(n=7, facts={"type": "int"}) == ["k7"]
        assert handle.glob("*7") == ["k7", "k17", "k27"]
        assert len(handle.info()) == 30
        assert handle.metadata["k7"] == {"n": 7}
        assert handle.version("k7") == 1
        assert [(c.verb, c.path) for c in calls] == [("get", INDEX)] * len(calls)
        assert len(calls) <= 7


# -- copies -----------------------------------------------------------------------------------

KINDS = {"inline": 20, "packed": 700, "own": 5000}


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, d: RemoteDict, shop: Shop) -> RemoteDict:
    """A dictionary with a value under "a" that is stored in one of the three ways."""
    writer = shop.open(inline_bytes=256, history="all")
    value = LARGE[: KINDS[request.param]]
    writer.update({"a": value, "b": value} if request.param == "packed" else {"a": value})
    writer.metadata["a"] = {"x": 1}
    return writer


def test_a_copy_is_as_good_as_its_source(shop: Shop, source: RemoteDict, small) -> None:
    d, value = source, source["a"]
    d.copy_item("a", "copy")
    d["over"] = 1
    d.metadata["over"] = {"y": 2}
    d.copy_item("a", "over")
    d.copy_item("copy", "copy of copy")
    d.copy_item("a", "a")
    assert (d.version("a"), d.version("copy"), d.version("over")) == (2, 1, 2)
    d.metadata["a"]["x"] = 2
    d["a"] = "overwritten"
    del d["a"]
    for n in range(20):
        d[f"other{n}"] = n
    d._engine.upkeep.finish()
    for handle in (d, shop.open(cache_bytes=0)):
        for key in ("copy", "over", "copy of copy"):
            assert handle[key] == value
            assert handle.metadata[key] == {"x": 1}
        assert handle.at("a", 1) == handle.at("a", 2) == value
    del d["copy"]
    d.revert("copy", 1)
    d.copy_item("copy", "a")
    assert shop.open(cache_bytes=0)[["a", "copy"]] == [value, value]
    kinds = list(d.history("copy")["kind"])
    assert kinds == ["set", "delete", "metadata", "set"]


def test_a_copy_moves_no_bytes(world: World, small) -> None:
    d = world.open(inline_bytes=256, cache_bytes=0)
    d.update(packed=LARGE[:700], packed2=LARGE[:701])
    d["own"] = LARGE
    calls = world.of(d).calls
    for key in ("packed", "own"):
        calls.clear()
        d.copy_item(key, f"copy of {key}")
        assert [c.verb for c in calls if not c.path.startswith("f/s")] == ["put"]
        assert d.index[f"copy of {key}"] == d.index[key]


def test_what_can_not_be_copied_is_said(world: World) -> None:
    d, other = world.open(), world.open()
    d["a"] = 1
    with pytest.raises(KeyNotFoundError) as caught:
        d.copy_item("missing", "a")
    assert caught.value.keys == ("missing",)
    for pair in [(5, "a"), ("a", 5), ("", "a"), ("a", "")]:
        with pytest.raises(InvalidKeyError):
            d.copy_item(*pair)
    world.of(d).at("put", INDEX, after(lambda: other.__delitem__("a")))
    with pytest.raises(KeyNotFoundError):
        d.copy_item("a", "b")
    other["a"] = 2
    world.of(d).at("put", INDEX, after(lambda: other.__setitem__("a", 3)))
    d.copy_item("a", "b")
    assert d["b"] == 3
    with other.lock("b"), pytest.raises(ItemLockedError):
        d.copy_item("a", "b")
    with other.lock("a"):
        d.copy_item("a", "c")  # to read what is locked is no sin
    assert d["c"] == 3
