"""A dictionary in a store is a dict in every way that a dict's user relies on."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
import threading
import uuid
from collections import Counter, UserDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from remotedict import LocalDictionary, MemoryDictionary
from remotedict.engine import core

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Shop
    from remotedict import RemoteDict

Both = tuple["RemoteDict", dict[str, Any]]

PLAIN = {"b": 1, "a": [2, {"x": b"3"}], "ä/€ 😀": None, "n": math.inf}


@pytest.fixture
def both(d: RemoteDict) -> Both:
    """A dictionary on each backend, and the dict that it should equal."""
    d.update(PLAIN)
    return d, dict(PLAIN)


@pytest.fixture
def m() -> Iterator[RemoteDict]:
    """A dictionary in memory, where the backend doesn't matter."""
    with MemoryDictionary() as d:
        yield d


@pytest.fixture
def pair() -> Iterator[tuple[RemoteDict, RemoteDict]]:
    """Two handles on one dictionary in memory."""
    name = uuid.uuid4().hex
    with MemoryDictionary(name) as one, MemoryDictionary(name) as other:
        yield one, other


def fetches(d: RemoteDict, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by the path of every blob that `d` gets."""
    seen: list[str] = []
    backend = d._engine.backend.raw
    get = backend.get

    def noting(path: str, **options: Any) -> Any:
        seen.append(path)
        return get(path, **options)

    monkeypatch.setattr(backend, "get", noting)
    return seen


# -- a mapping --------------------------------------------------------------------------------


def test_it_looks_like_the_dict(both: Both) -> None:
    d, model = both
    assert len(d) == len(model)
    assert list(d) == list(model)
    assert list(reversed(d)) == list(reversed(model))
    assert bool(d)
    assert [key in d for key in [*model, "z"]] == [key in model for key in [*model, "z"]]
    assert {key: d[key] for key in d} == model
    assert dict(d) == dict(**d) == {**d} == model


@pytest.mark.parametrize("key", [1, None, b"a", "", "\ud800", ("a",), ["a"], {}, math.nan, str])
def test_what_cannot_be_a_key_is_not_in_it(both: Both, key: Any) -> None:
    d, _ = both
    assert key not in d
    assert key not in d.keys()  # noqa: SIM118


def test_what_cannot_even_be_shown_is_not_in_it(m: RemoteDict) -> None:
    class Mute:
        def __repr__(self) -> str:
            raise RuntimeError

    assert Mute() not in m


def test_an_overwrite_keeps_the_place_and_a_new_set_goes_to_the_end(both: Both) -> None:
    d, model = both
    for mapping in both:
        mapping["a"] = "again"
        del mapping["b"]
        mapping["b"] = "anew"
    assert list(d.items()) == list(model.items())
    assert list(reversed(d.items())) == list(reversed(model.items()))


def test_get_pop_popitem_setdefault_and_clear_answer_as_a_dict_does(both: Both) -> None:
    answers = [
        [
            mapping.get("a"),
            mapping.get("z"),
            mapping.get("z", 5),
            mapping.pop("a"),
            mapping.pop("a", "gone"),
            mapping.setdefault("b", 7),
            mapping.setdefault("new", [8]),
            mapping.setdefault("none"),
            mapping.setdefault("none", 9),
            mapping.popitem(),
            mapping.popitem(),
            list(mapping.items()),
            mapping.clear(),
            len(mapping),
            bool(mapping),
        ]
        for mapping in both
    ]
    assert answers[0] == answers[1]
    for mapping in both:
        with pytest.raises(KeyError):
            mapping["a"]
        with pytest.raises(KeyError):
            mapping.pop("a")
        with pytest.raises(KeyError):
            mapping.popitem()
        with pytest.raises(KeyError):
            del mapping["a"]


@pytest.mark.parametrize(
    ("make", "more"),
    [
        (lambda: {"x": 1, "b": 2}, {}),
        (lambda: UserDict(x=1, b=2), {}),
        (lambda: [("x", 1), ("b", 2), ("x", 3)], {}),
        (lambda: ((key, i) for i, key in enumerate("xbx")), {}),
        (list, {"other": 1, "self": 2}),
        (lambda: {"x": 1}, {"x": 2, "y": 3}),
        (MemoryDictionary, {"x": 1}),
    ],
    ids=["mapping", "user dict", "pairs", "generator", "keywords", "mapping+kw", "another"],
)
def test_update_takes_what_a_dict_takes(both: Both, make: Callable[[], Any], more: Any) -> None:
    d, model = both
    d.update(make(), **more)
    model.update(make(), **more)
    assert list(d.items()) == list(model.items())


@pytest.mark.parametrize("wrong", [5, None, ["ab", "c"], [(1, 2, 3)]])
def test_update_refuses_what_a_dict_refuses(m: RemoteDict, wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as expected:
        {}.update(wrong)
    with pytest.raises(expected.type):
        m.update(wrong)
    assert not m


def test_an_update_is_one_commit(pair: tuple[RemoteDict, RemoteDict]) -> None:
    d, _ = pair
    before = d._engine.known().state.seq
    d.update({str(i): i for i in range(1000)})
    d.clear()
    assert d._engine.known().state.seq == before + 2


def test_union_gives_a_plain_dict_and_union_in_place_writes(both: Both) -> None:
    d, model = both
    other = {"b": "theirs", "new": 1}
    for ours, theirs in [(d | other, model | other), (other | d, other | model)]:
        assert type(ours) is dict
        assert list(ours.items()) == list(theirs.items())
    handle = d
    d |= other
    model |= [("p", 1)]
    model |= other
    assert handle is d
    d |= [("p", 1)]
    assert d.copy() == model
    with pytest.raises(TypeError):
        d | 5


def test_equality_is_of_keys_then_values(both: Both) -> None:
    d, model = both
    assert d == model
    assert model == d
    assert d == d.copy()
    assert d == dict(reversed(model.items()))
    assert d != {**model, "b": 2}
    assert d != {**model, "z": 1}
    assert d != {}
    assert d != list(model)
    assert d is not None
    assert (d == 5) is False
    with pytest.raises(TypeError):
        hash(d)


def test_two_dictionaries_are_compared_by_what_they_hold(
    pair: tuple[RemoteDict, RemoteDict], m: RemoteDict
) -> None:
    one, other = pair
    one.update(PLAIN)
    assert one == other
    assert one != m
    m.update(PLAIN)
    assert one == m


def test_equality_with_arrays_is_a_dicts(m: RemoteDict) -> None:
    model = {"a": np.arange(3)}
    m.update(model)
    assert model.keys() == {"a"}
    for mapping in (m, {"a": np.arange(3)}):
        assert mapping != {"b": np.arange(3)}  # the keys differ: no array is compared
        with pytest.raises(ValueError, match="ambiguous"):
            mapping == model  # noqa: B015


def test_keys_that_differ_are_told_without_a_value(
    m: RemoteDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    m["a"] = 1
    monkeypatch.setattr(m._engine.values, "decode", None)
    assert m != {"b": 1}


def test_a_copy_is_a_plain_dict_as_of_one_moment(both: Both) -> None:
    d, model = both
    copied = d.copy()
    d["b"] = "later"
    assert type(copied) is dict
    assert list(copied.items()) == list(model.items())
    copied["a"].append("mine")
    assert d["a"] == model["a"]


# -- views ------------------------------------------------------------------------------------


def test_views_are_live(d: RemoteDict) -> None:
    keys, values, items = d.keys(), d.values(), d.items()
    d["a"], d["b"] = 1, 2
    assert (list(keys), list(values), list(items)) == (["a", "b"], [1, 2], [("a", 1), ("b", 2)])
    assert (len(keys), len(values), len(items)) == (2, 2, 2)
    del d["a"]
    assert list(reversed(keys)) == ["b"]
    assert list(reversed(values)) == [2]
    assert list(reversed(items)) == [("b", 2)]
    assert 2 in values
    assert 1 not in values


def test_keys_are_a_set(both: Both) -> None:
    d, model = both
    ours, theirs = d.keys(), model.keys()
    for other in ({"a", "z"}, {"a": 1, "z": 2}.keys(), set(model), {*model, "z"}, {"b"}, set()):
        assert ours & other == theirs & other
        assert ours | other == theirs | other
        assert ours - other == theirs - other
        assert ours ^ other == theirs ^ other
        assert other - ours == other - theirs
        assert other & ours == other & theirs
        assert (ours == other, ours <= other, ours < other) == (
            theirs == other,
            theirs <= other,
            theirs < other,
        )
        assert (ours >= other, ours > other) == (theirs >= other, theirs > other)
        assert ours.isdisjoint(other) == theirs.isdisjoint(other)
    assert ours == d.keys()
    assert ours != list(model)


def test_items_know_what_is_in_them(both: Both) -> None:
    d, model = both
    for item in [
        ("b", 1),
        ("b", 2),
        ("z", 1),
        (1, 1),
        ("", 1),
        (["b"], [1]),
        (("b",), [1]),
        ("b", 1, 1),
        "b",
        5,
    ]:
        try:
            expected = item in model.items()
        except TypeError:  # a list can't be hashed, but isn't there either
            expected = False
        assert (item in d.items()) == expected, item
    assert d.items() == model.items()
    assert model.items() == d.items()


def test_values_are_fetched_a_window_at_a_time(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_WINDOW_ITEMS", 5)
    shop.open(inline_bytes=0).update({f"k{i:02}": i for i in range(40)})
    d = shop.open(cache_bytes=0)
    seen = fetches(d, monkeypatch)
    iterator = iter(d.values())
    assert next(iterator) == 0
    assert len([path for path in seen if "Index" not in path]) <= 10  # this window and the next
    assert [*iterator] == list(range(1, 40))
    assert len([path for path in seen if "Index" not in path]) == 40


def test_a_window_is_bounded_in_bytes_too(m: RemoteDict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_WINDOW_BYTES", 50_000)
    model = {str(i): random.Random(i).randbytes(20_000) for i in range(10)}
    m.update(model)
    known = m._engine.known()
    windows = list(core._windows(known.state.locations()))
    assert [len(window) for window in windows] == [2] * 5
    assert list(m.items()) == list(model.items())


@pytest.mark.parametrize("view", ["keys", "values", "items"])
def test_an_iteration_sees_one_state_while_others_write(shop: Shop, view: str) -> None:
    one, other = shop.open(), shop.open()
    model = {f"k{i}": f"{i}" * 2000 for i in range(8)}
    one.update(model)
    iterator = iter(getattr(one, view)())
    seen = [next(iterator)]
    other["k1"] = "changed"
    del other["k2", "k3"]
    other["new"] = "new"
    one["k5"] = "changed"
    seen += iterator
    assert seen == list(getattr(model, view)())


def test_an_iteration_outlives_the_rolls_merges_and_checkpoints_of_others(
    pair: tuple[RemoteDict, RemoteDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remotedict.pure.plan.INDEX_BYTES", 2000)
    monkeypatch.setattr("remotedict.pure.plan.CHECKPOINT_MIN", 4000)
    monkeypatch.setattr("remotedict.pure.state._REBASE_MIN", 5)
    one, other = pair
    for i in range(30):
        one[str(i)] = i
    iterators = [iter(one.items()), iter(other.items()), reversed(one.items())]
    seen = [[next(iterator)] for iterator in iterators]
    for i in range(30):
        other[str(i)] = -i
        if i % 3 == 0:
            del one[str(i)]
    for items, iterator in zip(seen, iterators, strict=True):
        items.extend(iterator)
    assert seen[0] == seen[1] == seen[2][::-1] == [(str(i), i) for i in range(30)]


# -- atomicity --------------------------------------------------------------------------------


def drained(handles: list[RemoteDict], take: Callable[[RemoteDict, Any], Any]) -> list[Any]:
    """Return what 8 threads, spread over the handles, have taken until nothing was left."""

    def work(number: int) -> list[Any]:
        return [*iter(lambda: take(handles[number % len(handles)], None), None)]

    with ThreadPoolExecutor(8) as pool:
        return list(itertools.chain.from_iterable(pool.map(work, range(8))))


def test_every_item_is_popped_once(shop: Shop) -> None:
    handles = [shop.open(), shop.open()]
    handles[0].update({str(i): i for i in range(24)})

    def take(d: RemoteDict, _: Any) -> Any:
        try:
            return d.popitem()[1]
        except KeyError:
            return None

    assert sorted(drained(handles, take)) == list(range(24))
    assert not handles[1]


def test_of_several_who_pop_a_key_one_gets_it(shop: Shop) -> None:
    handles = [shop.open(), shop.open()]
    handles[0].update({str(i): i for i in range(6)})
    with ThreadPoolExecutor(8) as pool:
        taken = list(
            pool.map(
                lambda job: handles[job[0] % 2].pop(str(job[1]), None),
                itertools.product(range(4), range(6)),
            )
        )
    assert Counter(one for one in taken if one is not None) == Counter(range(6))


def test_all_who_set_a_default_agree(shop: Shop) -> None:
    handles = [shop.open(), shop.open()]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: handles[i % 2].setdefault("k", i), range(8)))
    assert len(set(found)) == 1
    assert handles[0]["k"] == found[0]


def test_a_pop_does_not_refuse_by_what_is_stale(pair: tuple[RemoteDict, RemoteDict]) -> None:
    one, _ = pair
    with MemoryDictionary(one._session.place._name, max_staleness=1000) as stale:
        assert list(stale) == []
        one["a"], one["b"] = 1, 2
        assert stale.pop("a") == 1
        one["c"] = 3
        assert stale.popitem() == ("c", 3)
        one["d"] = 4
        del stale["d"]


# -- several keys -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "selector",
    [
        ["b", "a"],
        ("b", "a"),
        pd.Index(["b", "a"]),
        pd.Series(["b", "a"], index=[5, 6]),
        np.array(["b", "a"]),
        np.array(["b", "a"], dtype=object),
        [np.str_("b"), np.str_("a")],
    ],
    ids=lambda selector: type(selector).__name__,
)
def test_several_keys_are_selected_by(both: Both, selector: Any) -> None:
    d, model = both
    assert d[selector] == [model["b"], model["a"]]
    d[selector] = [10, 20]
    assert (d["b"], d["a"]) == (10, 20)
    assert {type(key) for key in d} == {str}
    del d[selector]
    assert list(d) == [key for key in model if key not in {"a", "b"}]


@pytest.mark.parametrize("nothing", [[], (), pd.Index([], dtype=str), np.array([], dtype=str)])
def test_an_empty_selection_is_nothing_at_all(m: RemoteDict, nothing: Any) -> None:
    m["a"] = 1
    before = m._engine.known().state.seq
    assert m[nothing] == []
    m[nothing] = []
    del m[nothing]
    m.update()
    assert m._engine.known().state.seq == before


def test_a_bulk_read_repeats_a_key_with_a_value_of_its_own(m: RemoteDict) -> None:
    m["a", "b"] = [1], [2]
    first, other, again = m[["a", "b", "a"]]
    assert (first, other, again) == ([1], [2], [1])


def test_a_tuple_of_one_key_selects_a_list(m: RemoteDict) -> None:
    m["a",] = ([1, 2],)
    assert m["a"] == [1, 2]
    assert m["a",] == [[1, 2]]


# -- values -----------------------------------------------------------------------------------

F_ORDER = np.asfortranarray(np.arange(3000.0).reshape(50, 60))
READ_ONLY = np.arange(3000.0)
READ_ONLY.flags.writeable = False
ARRAYS = {
    "C order": np.arange(3000.0).reshape(50, 60),
    "F order": F_ORDER,
    "strided": np.arange(6000.0)[::2],
    "reversed": np.arange(3000)[::-1],
    "0-d": np.array(5.0),
    "structured": np.zeros(500, dtype=[("a", "i4"), ("b", "f8", (2,)), ("c", "U3")]),
    "object": np.array([{"a": 1}, None, "text"], dtype=object),
    "read-only": READ_ONLY,
    "small and read-only": READ_ONLY[:3],
    "read-only, F order": np.broadcast_to(F_ORDER, F_ORDER.shape),
    "broadcast": np.broadcast_to(np.arange(100.0), (30, 100)),
    "empty": np.empty((0, 3)),
    "bool": np.ones(2000, bool),
    "datetime": np.arange("2020", "2030", dtype="M8[D]"),
    "big-endian": np.arange(3000, dtype=">i4"),
    "text": np.array(["ä", "bcd"]),
    "complex": np.full(400, 1j),
}
FRAMES = {
    "frame": pd.DataFrame({"i": range(2000), "f": np.arange(2000.0), "s": ["ä"] * 2000}),
    "categorical": pd.DataFrame({"c": pd.Categorical(["x", "y"] * 500)}),
    "time zone": pd.DataFrame({"t": pd.date_range("2020", periods=500, tz="Europe/Berlin")}),
    "multi-index": pd.DataFrame(
        {"v": np.arange(600.0)}, index=pd.MultiIndex.from_product([range(20), range(30)])
    ),
    "empty": pd.DataFrame(),
    "no rows": pd.DataFrame({"a": np.array([], dtype="i8")}),
    "of a read-only array": pd.DataFrame(READ_ONLY.reshape(50, 60), copy=False),
    "nullable": pd.DataFrame({"n": pd.array([1, None, 3] * 200, dtype="Int64")}),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_an_array_comes_back_equal_writable_and_alone(m: RemoteDict, array: np.ndarray) -> None:
    m["x"] = array
    m["y", "z"] = array, {"deep": [array]}
    for read in (lambda: m["x"], lambda: m["y"], lambda: m["z"]["deep"][0]):
        back = read()
        np.testing.assert_array_equal(back, array)
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        assert back.flags.writeable
        back[...] = np.zeros((), array.dtype)
        np.testing.assert_array_equal(read(), array)


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_a_frame_comes_back_equal_mutable_and_alone(m: RemoteDict, frame: pd.DataFrame) -> None:
    m["x"] = frame
    back = m["x"]
    pd.testing.assert_frame_equal(back, frame)
    if len(back):
        back.iloc[0, 0] = back.iloc[1, 0]
    back["more"] = 1
    pd.testing.assert_frame_equal(m["x"], frame)
    for column in frame:
        m["s"] = frame[column]
        series = m["s"]
        pd.testing.assert_series_equal(series, frame[column])
        if len(series):
            series.iloc[0] = series.iloc[1]
            pd.testing.assert_series_equal(m["s"], frame[column])


@pytest.mark.parametrize(
    "value",
    [
        "",
        "ä€😀",
        "\ud800",
        0,
        -(2**100),
        True,
        None,
        ...,
        1.5,
        1j,
        b"",
        b"\0" * 10_000,
        bytearray(b"x" * 5000),
        (),
        (1, [2, {"3": {4, 5}}]),
        frozenset("ab"),
        range(5),
        {"this": {"is": b"nested"}},
        np.float64(1.5),
        pd.Timestamp("2020-01-01", tz="UTC"),
        pd.NaT,
        math.inf,
        uuid.UUID(int=5),
        KeyError("a"),
        int,
        math.sin,
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_a_value_comes_back_with_its_type(m: RemoteDict, value: Any) -> None:
    m["x"] = value
    back = m["x"]
    assert type(back) is type(value)
    assert back == value or back is value or repr(back) == repr(value)


def test_values_that_hold_themselves_or_one_thing_twice_keep_their_form(m: RemoteDict) -> None:
    ring: list[Any] = []
    ring.append(ring)
    shared = np.arange(1000.0)
    m["ring", "twice"] = ring, [shared, shared]
    back = m["ring"]
    assert back[0] is back
    one, other = m["twice"]
    assert one is other


def test_a_mutable_value_is_never_shared(m: RemoteDict) -> None:
    mine = {"list": [1], "raw": bytearray(b"abc" * 1000)}
    m["x"] = mine
    mine["list"].append(2)
    mine["raw"][0] = 0
    m["x"]["list"].append(3)
    m["x"]["raw"][0] = 0
    assert m["x"] == {"list": [1], "raw": bytearray(b"abc" * 1000)}


def test_code_from_a_script_comes_back_in_another_process(tmp_path: Path) -> None:
    script = """
import sys
from remotedict import LocalDictionary
class Point:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return self.x == other.x
def outer(n):
    def inner(x): return helper(x) + n
    return inner
def helper(x): return x * 2
with LocalDictionary(sys.argv[1]) as d:
    d["lambda", "closure", "class", "instance"] = lambda x: x + 1, outer(5), Point, Point(3)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script, str(tmp_path)], check=True)
    with LocalDictionary(tmp_path) as d:
        assert d["lambda"](1) == 2
        assert d["closure"](10) == 25
        assert d["class"](3) == d["class"](3)
        assert d["instance"].x == 3


class Odd:
    shape = "round"

    @property
    def dtype(self) -> Any:
        raise ZeroDivisionError


def test_odd_values_are_stored_like_any_other(m: RemoteDict) -> None:
    homeless = type("Homeless", (), {"__module__": None})
    m["odd"] = Odd()
    m["homeless"] = homeless()
    assert m["odd"].shape == "round"
    assert type(m["homeless"]).__name__ == "Homeless"
    assert "Homeless" in m._repr_html_()


@pytest.mark.parametrize(
    "value",
    [
        random.Random(0).randbytes(18 << 20),
        bytes(20 << 20),
        np.random.default_rng(0).random(5 << 18),  # 10 MiB that don't shrink
        {"a": np.zeros(2 << 20), "b": random.Random(1).randbytes(9 << 20)},
    ],
    ids=["random bytes", "zeros", "random array", "parts"],
)
def test_a_large_value_travels_in_pieces(shop: Shop, value: Any) -> None:
    shop.open()["big"] = value
    back = shop.open(cache_bytes=0)["big"]
    if isinstance(value, np.ndarray):
        np.testing.assert_array_equal(back, value)
        back[0] = 1
    elif isinstance(value, dict):
        np.testing.assert_array_equal(back["a"], value["a"])
        back["a"][0] = 1
        assert back["b"] == value["b"]
    else:
        assert back == value


# -- where values are -------------------------------------------------------------------------


def incompressible(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def test_each_kind_of_place_is_read_back_by_anyone(shop: Shop) -> None:
    d = shop.open()
    model = {
        "inline": incompressible(100),
        "own": incompressible(10_000),
        "large": incompressible(300_000),
    }
    for key, value in model.items():
        d[key] = value
    packed = {f"packed{i}": incompressible(6000 + i) for i in range(5)}
    d.update(packed)
    model |= packed

    index = d.index
    folder = "default"
    assert index["inline"] == f"Index/{folder}/index"
    assert index["own"].startswith(f"{folder}/own/")
    assert index["large"].startswith(f"{folder}/large/")
    assert {path.rpartition("/")[0] for path in index[list(packed)]} == {f"{folder}/.packs"}
    assert len(set(index[list(packed)])) == 1
    stored = {info.name for info in d._engine.backend.list("")}
    assert set(index) <= stored

    for reader in (d, shop.open(), shop.open(cache_bytes=0)):
        assert reader.copy() == model
        assert reader[list(model)] == list(model.values())
        assert {key: reader[key] for key in model} == model
        assert list(reversed(reader.items())) == list(reversed(model.items()))


def test_values_inline_in_the_tail_are_found_after_it_moved_to_a_segment(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remotedict.pure.plan.INDEX_BYTES", 2000)
    d, reader = shop.open(), shop.open(cache_bytes=0)
    model = {f"k{i}": incompressible(200 + i) for i in range(12)}
    for key, value in model.items():
        d[key] = value
    assert d.index.str.contains("/segments/").sum() > 6
    assert d.copy() == reader.copy() == shop.open(cache_bytes=0).copy() == model


def test_with_inline_bytes_0_every_entry_is_a_blob_of_its_own(shop: Shop) -> None:
    d = shop.open(inline_bytes=0)
    d["one"] = 1
    d.update({f"k{i}": i for i in range(5)})
    index = d.index
    assert index.nunique() == 6
    assert {path.split("/")[1] for path in index} == set(d)
    assert shop.open().copy() == {"one": 1, **{f"k{i}": i for i in range(5)}}


def test_the_index_is_a_series_of_the_callers_own(both: Both) -> None:
    d, model = both
    index = d.index
    expected = index.copy()
    assert index.name == "name"
    assert list(index.index) == list(model)
    assert index.dtype == pd.Series(["a"]).dtype
    index.iloc[0] = "mine"
    index["new"] = "mine"
    index.name = index.index.name = "mine"
    pd.testing.assert_series_equal(d.index, expected)


def test_the_index_is_built_anew_only_when_something_changed(
    m: RemoteDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    m["a"] = 1
    assert list(m.index.index) == ["a"]
    with monkeypatch.context() as patch:
        patch.setattr(type(m._engine.known().state), "__iter__", None)
        assert list(m.index.index) == ["a"]
    m["b"] = 1
    assert list(m.index.index) == ["a", "b"]
    del m["a"], m["b"]
    assert m.index.empty
    assert m.index.dtype == pd.Series(["a"]).dtype


def test_keys_of_all_kinds_do_not_meet_in_one_blob(shop: Shop) -> None:
    keys = ["a", "A", "a/b", "a=2Fb", ".packs", "..", "CON", "con", "\xe9", "e\u0301", " ", "\0"]
    keys += ["x" * 5000, "x" * 4999 + "y", "index", "😀", "~lock", "a.", "%2F", "\\"]
    d = shop.open(inline_bytes=0)
    for number, key in enumerate(keys):
        d[key] = number
    assert list(shop.open()) == keys
    assert shop.open(cache_bytes=0)[keys] == list(range(len(keys)))
    assert d.index.nunique() == len(keys)


def test_threads_that_share_a_handle_lose_nothing(d: RemoteDict) -> None:
    barrier = threading.Barrier(6)

    def work(number: int) -> None:
        barrier.wait()
        for i in range(5):
            d[f"{number}-{i}"] = number * i
            d["shared"] = number
            assert d[f"{number}-{i}"] == number * i

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    expected = {f"{number}-{i}": number * i for number in range(6) for i in range(5)}
    copied = d.copy()
    assert copied.pop("shared") in range(6)
    assert copied == expected
