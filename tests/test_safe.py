"""codec="safe": what it stores comes back exactly, all else is refused, and no code runs."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import io
import pathlib
import re
import subprocess
import sys
import uuid
import zoneinfo
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remotedict import LocalDictionary, MemoryDictionary, errors
from remotedict.pure.safe import RefusedError, read, tags, tree, written

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remotedict import RemoteDict

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
ROWS = 300


def again(value: Any) -> Any:
    """Return a value after it was written and read."""
    tree_part, *buffers = written(value)
    owned = [memoryview(bytearray(buffer)) for buffer in buffers]
    return read([memoryview(bytes(tree_part)), *owned])


@pytest.fixture
def safe() -> Iterator[RemoteDict]:
    with MemoryDictionary(codec="safe") as d:
        yield d


# -- what comes back ----------------------------------------------------------------------------

PLAIN = [
    *(None, True, False, 0, -1, 1 << 63, 1 << 64, -(1 << 63) - 1, 10**40, -(10**40)),
    *(0.0, -0.0, 1.5, float("inf"), float("nan"), 1 - 2j, "", "ä", "\ud800", "a\0b"),
    *(b"", b"x" * 2000, bytearray(b"y"), bytearray(2000), range(3), range(0, 10**30, 7)),
    *([], (), {}, set(), frozenset(), [1, "a", None, 2.5], [10**30, "\udc80"], ({1: [(2,)]},)),
    {"a": 1, 2: [{3}], (4, (5,)): frozenset([6]), None: b"small", 1.5: {"deep": [[[]]]}},
    *({1, "a", (2, 3)}, frozenset([frozenset()]), {frozenset([1]): 2}),
    *(dt.date(2026, 1, 2), dt.time(1, 2, 3, 4, fold=1), dt.time(5, tzinfo=dt.UTC)),
    *(dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC), dt.datetime(9999, 12, 31, 23)),  # noqa: DTZ001 - a naive one
    dt.datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1),
    *(dt.timedelta(-1, 2, 3), dt.UTC, BERLIN, dt.timezone(dt.timedelta(hours=-3), "X")),
    *(decimal.Decimal("1.10"), decimal.Decimal("-Infinity"), decimal.Decimal("sNaN12")),
    *(uuid.UUID(int=5), pathlib.Path("a/b"), pathlib.PureWindowsPath("c:\\x")),
    *(np.float64(1.5), np.float32("nan"), np.int8(-1), np.bool_(True), np.complex64(1j)),
    *(np.str_("ä"), np.bytes_(b"a\0"), np.datetime64("2026-01-02", "D"), np.timedelta64(5, "ns")),
    *(pd.Timestamp("2026-01-02"), pd.Timestamp(5, unit="ns"), pd.Timedelta("1s"), pd.NaT, pd.NA),
    *(pd.Timestamp("2026-10-25 02:30+02:00").tz_convert("Europe/Berlin"), pd.Interval(1, 2)),
    *(pd.Period("2026-01", "M"), pd.Period("2026Q1"), pd.Interval(0.5, 1, closed="both")),
]


@pytest.mark.parametrize(
    "value", PLAIN, ids=lambda value: type(value).__name__
)  # sets have no order
def test_a_plain_value_comes_back_exactly(value: Any) -> None:
    found = again(value)
    assert type(found) is type(value)
    assert repr(found) == repr(value)
    if hasattr(value, "unit") and value is not pd.NaT:
        assert found.unit == value.unit


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=[]))
    | st.binary(max_size=2000)
    | st.datetimes(timezones=st.just(None) | st.timezones())
    | st.timedeltas()
    | st.decimals()
    | st.uuids()
)
KEYS = st.recursive(
    st.none() | st.integers() | st.text() | st.binary(max_size=30),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=4),
    max_leaves=5,
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(KEYS, inner)
        | st.frozensets(KEYS)
        | st.sets(KEYS)
    ),
)


def same(one: Any, other: Any) -> bool:
    """Tell whether two trees are the same, types and signs of zeros included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return [*one] == [*other] and all(
            same(one[key], item) for key, item in zip(one, other.values(), strict=True)
        )
    return one == other if isinstance(one, set | frozenset) else repr(one) == repr(other)


@given(VALUES)
def test_any_tree_of_plain_values_comes_back_exactly(value: Any) -> None:
    assert same(again(value), value)


STRUCT = np.dtype(
    {
        "names": ["a", "b", "c"],
        "formats": ["<i4", (">f8", (2,)), [("x", "U3"), ("y", "M8[us]")]],
        "offsets": [0, 8, 32],
        "titles": ["first", None, None],
        "itemsize": 64,
    }
)
ARRAYS = {
    "empty": np.zeros((0, 5)),
    "0-d": np.array(5),
    "large": np.arange(10_000.0),
    "fortran": np.asfortranarray(np.arange(20_000).reshape(100, 200)),
    "transposed": np.arange(20_000).reshape(100, 200).T,
    "strided": np.arange(20_000).reshape(100, 200)[::3, ::-2],
    "broadcast": np.broadcast_to(np.arange(3), (1000, 3)),
    "read-only": np.frombuffer(bytes(5000), np.uint8),
    "big endian": np.arange(9, dtype=">u2"),
    "bool": np.arange(9) % 2 == 0,
    "half": np.array([1, np.nan], "f2"),
    "long": np.array([1, 2], np.longdouble),
    "long complex": np.array([1j], np.clongdouble),
    "text": np.array(["a", "bcd", ""]),
    "bytes": np.array([b"a", b"b\0c"]),
    "void": np.zeros(3, "V5"),
    "datetime": np.array(["2026-01-02", "NaT"], "M8[s]"),
    "25 seconds": np.array([1, 2], "m8[25s]"),
    "no unit": np.array([1], "m8"),
    "struct": np.zeros(50, STRUCT),
    "aligned": np.ones(3, np.dtype("i1,f8", align=True)),
    "metadata": np.zeros(3, np.dtype("f8", metadata={"unit": "m", "of": [1, (2,)]})),
    "inner metadata": np.zeros(3, [("a", np.dtype("f8", metadata={"unit": "m"}))]),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_an_array_comes_back_exactly_and_writable(array: np.ndarray) -> None:
    found = again({"a": array})["a"]
    assert type(found) is np.ndarray
    assert found.dtype == array.dtype
    assert found.dtype.metadata == array.dtype.metadata
    assert found.dtype.isalignedstruct == array.dtype.isalignedstruct
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()
    assert found.flags.writeable
    if array.flags.c_contiguous or array.flags.f_contiguous:
        assert found.flags.c_contiguous == array.flags.c_contiguous


def frame() -> pd.DataFrame:
    third = ROWS // 3
    hours = pd.date_range("2026-10-24 20:00", periods=ROWS, freq="h", tz="UTC")
    made = pd.DataFrame(
        {
            "int": np.arange(ROWS),
            "float": np.linspace(0, 1, ROWS),
            "bool": np.arange(ROWS) % 2 == 0,
            "text": ["x", None, "ü"] * third,
            "objects": pd.Series([None, "a", 1.5] * third, dtype=object),
            "nested": pd.Series([[1, {"a": pd.Timestamp("2026")}], (), None] * third, dtype=object),
            "category": pd.Categorical(["a", "b", None] * third),
            "ordered": pd.Categorical([3, 1, 2] * third, categories=[3, 2, 1], ordered=True),
            "zoned": hours.tz_convert("Europe/Berlin"),
            "naive": pd.date_range("2026", periods=ROWS, freq="D"),
            "delta": pd.to_timedelta(np.arange(ROWS), unit="s"),
            "Int": pd.array([1, None, 3] * third, dtype="Int16"),
            "Float": pd.array([1, None, 3] * third, dtype="Float32"),
            "boolean": pd.array([True, None, False] * third, dtype="boolean"),
            "string": pd.array(["a", None, "ü"] * third, dtype="string[python]"),
            "period": pd.period_range("2026", periods=ROWS, freq="M"),
            "interval": pd.interval_range(0, ROWS),
            "int again": np.arange(ROWS),
            "small": np.arange(ROWS).astype("u1"),
            "complex": np.arange(ROWS) * 1j,
        }
    )
    made.attrs = {"unit": "m", "list": [1, {"a": 2}]}
    return made


FRAMES = {
    "all": frame,
    "empty": pd.DataFrame,
    "rows only": lambda: pd.DataFrame(index=[1, 2]),
    "columns only": lambda: pd.DataFrame(columns=["a"]),
    "no rows": lambda: frame().iloc[:0],
    "one block": lambda: pd.DataFrame(np.arange(2000.0).reshape(50, 40)),
    "strided": lambda: pd.DataFrame(np.arange(2000.0).reshape(50, 40)).iloc[::2, ::3],
    "transposed": lambda: frame()[["float", "int"]].T,
    "equal columns": lambda: pd.DataFrame([[1, "b"], [3, "d"]], columns=["a", "a"]),
    "text index": lambda: frame().set_index("text"),
    "zoned index": lambda: frame().set_index("zoned"),
    "interval index": lambda: frame().set_index("interval"),
    "category index": lambda: frame().set_index("category"),
    "period index": lambda: frame().set_index("period"),
    "frequency": lambda: frame().set_index("naive").asfreq("D"),
    "months": lambda: pd.DataFrame({"a": 1}, index=pd.date_range("2026", periods=3, freq="MS")),
    "several levels": lambda: frame().set_index(["int", "text", "zoned"]),
    "missing level": lambda: pd.DataFrame(
        {"a": [1]}, index=pd.MultiIndex.from_tuples([(1, None)], names=["x", None])
    ),
    "pivot": lambda: frame().pivot_table(index="string", columns=["bool", "small"], values="float"),
    "tuples": lambda: pd.DataFrame({"x": [0, 1]}, index=pd.Index([(1, 2), 3], tupleize_cols=False)),
    "names": lambda: pd.DataFrame({"a": [1]}, pd.Index([2], name=("i", 1))).rename_axis(
        columns="c"
    ),
}


@pytest.mark.parametrize("make", FRAMES.values(), ids=FRAMES)
def test_a_frame_comes_back_exactly(make: Any) -> None:
    wanted = make()
    found = again([wanted])[0]
    pd.testing.assert_frame_equal(found, wanted, check_exact=True, check_freq=True)
    assert found.attrs == wanted.attrs
    assert type(found.index) is type(wanted.index)
    assert type(found.columns) is type(wanted.columns)
    assert [*found.dtypes] == [*wanted.dtypes]
    if found.columns.nlevels > 1:
        return
    found["new"] = 1  # and it can be used: changed, sorted, taken apart
    if len(found):
        found.iloc[0, -1] = 2
        assert found.sort_values("new", kind="stable").iloc[-1]["new"].tolist() == 2


@pytest.mark.parametrize("name", frame().columns)
def test_a_series_and_an_index_come_back_exactly(name: str) -> None:
    series = frame()[name]
    found = again(series)
    pd.testing.assert_series_equal(found, series, check_exact=True)
    assert type(found.array) is type(series.array)
    index = pd.Index(series) if name != "nested" else series.index
    pd.testing.assert_index_equal(again(index), index, exact=True)
    if not isinstance(series.dtype, np.dtype):
        assert type(again(series.array)) is type(series.array)


def test_flags_of_a_frame_come_back() -> None:
    strict = pd.DataFrame({"a": [1]}).set_flags(allows_duplicate_labels=False)
    assert again(strict).flags.allows_duplicate_labels is False


def test_a_column_of_a_frame_is_written_where_it_lies() -> None:
    """Large buffers are neither copied nor put into the tree."""
    array = np.arange(100_000.0).reshape(4, 25_000)
    tree_part, *buffers = written({"frame": pd.DataFrame(array.T, copy=False), "array": array})
    assert len(tree_part) < 1000
    assert [buffer.nbytes for buffer in buffers] == [array.nbytes] * 2
    for buffer in buffers:
        assert np.shares_memory(np.frombuffer(buffer, np.uint8), array)
    owned = [memoryview(bytearray(buffer)) for buffer in buffers]
    found = read([memoryview(bytes(tree_part)), *owned])
    assert np.shares_memory(found["frame"].to_numpy(), np.frombuffer(owned[0], np.uint8))


# -- what is refused ----------------------------------------------------------------------------


class Number(int):
    """A subclass: what it adds would be lost."""


class Level(enum.IntEnum):
    LOW = 1


class Text(enum.StrEnum):
    A = "a"


class Point(NamedTuple):
    x: int
    y: int


@dataclasses.dataclass
class Data:
    x: int = 1


class Frame(pd.DataFrame):
    pass


class Zone(dt.tzinfo):
    def utcoffset(self, _: Any) -> dt.timedelta:
        return dt.timedelta(hours=1)


ITSELF: list[Any] = []
ITSELF.append({"again": ITSELF})
MARKED = pd.DataFrame({"a": [1]})
MARKED.attrs["x"] = len
HOLIDAYS = pd.offsets.CustomBusinessDay(holidays=["2026-01-06"])
UNSAFE = {
    "subclass": (Number(1), "value is of type", "make it a plain int"),
    "inside": ([1, {"a": [0, 1, 2, Number(3)]}], "value[1]['a'][3] is", "plain int"),
    "enum": (Level.LOW, "value is", "plain int"),
    "text enum": ({"t": Text.A}, "value['t'] is", "plain str"),
    "namedtuple": (Point(1, 2), "Point", "plain tuple"),
    "dataclass": (Data(), "Data", "isn't one of the safe types"),
    "function": (len, "builtin_function", ""),
    "class": (int, "type", ""),
    "lambda": ({"f": lambda: 1}, "value['f']", ""),
    "key": ({"a": {Level.LOW: 1}}, "value['a'] (a key of the dict) is", ""),
    "element": ({Number(3)}, "(an element of the set)", ""),
    "itself": (ITSELF, "contains itself", "['again']"),
    "objects": (np.array([1, "a"], object), "holds objects", "dtype"),
    "object field": (np.zeros(1, [("a", object)]), "holds objects", ""),
    "masked": (np.ma.array([1]), "MaskedArray", "plain numpy.ndarray"),
    "records": (np.rec.array([(1, 2)]), "recarray", "plain numpy.ndarray"),
    "metadata": (np.zeros(1, np.dtype("f8", metadata={"u": len})), "value.dtype.metadata['u']", ""),
    "no size": (np.zeros(1, "V0"), "no size", ""),
    "machine's": (np.longlong(1), "isn't the same on all machines", ""),
    "frame": (Frame({"a": [1]}), "Frame", "plain pandas.DataFrame"),
    "column": (pd.DataFrame({"ok": 1, "a": [len]}), "value['a'][0]", ""),
    "index": (pd.Series([1], index=[Data]), "value.index[0]", ""),
    "attrs": ({"f": MARKED}, "value['f'].attrs['x']", ""),
    "sparse": (pd.Series(pd.arrays.SparseArray([0, 1])), "SparseArray", ""),
    "frequency": (pd.date_range("2026", periods=2, freq=HOLIDAYS), "frequency", "freq to None"),
    "class of pandas": (pd.offsets.Day(1), "Day", ""),
    "zone": ([dt.datetime(2026, 1, 2, tzinfo=Zone())], "value[0] has a time zone", "zoneinfo"),
}


@pytest.mark.parametrize(("value", "says", "advice"), UNSAFE.values(), ids=UNSAFE)
def test_what_is_not_safe_is_refused_by_name(
    safe: RemoteDict, value: Any, says: str, advice: str
) -> None:
    with pytest.raises(errors.UnsafeValueError) as caught:
        safe["my key"] = value
    assert caught.value.key == "my key"
    assert "'my key'" in str(caught.value)
    assert says in str(caught.value)
    assert advice in str(caught.value)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)
    assert list(safe) == []


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_nesting_is_bounded_on_both_ways() -> None:
    assert again(nested(tree.DEPTH_MAX)) == nested(tree.DEPTH_MAX)
    with pytest.raises(RefusedError):
        written(nested(tree.DEPTH_MAX + 1))
    for depth in (tree.DEPTH_MAX, 10_000, 1_000_000):
        raw = b"\x92\x00\x91" * depth + b"\x92\x00\x90"
        with pytest.raises((ValueError, RecursionError)):
            read([memoryview(raw)])


def node(*fields: Any) -> list[memoryview]:
    return [memoryview(msgspec.msgpack.encode(list(fields)))]


ARRAY = [tags.ARRAY, "<f8", [2], False, bytes(16)]
LIES = {
    "no tag": [],
    "unknown tag": [200, 1],
    "tag that is no int": [True, []],
    "fields too few": [tags.ARRAY, "<f8"],
    "fields too many": [*ARRAY, 1],
    "map": [tags.LIST, [{"a": 1}]],
    "objects": [tags.ARRAY, "|O", [2], False, bytes(16)],
    "evaluated type": [tags.ARRAY, "i4,O", [2], False, bytes(16)],
    "struct of objects": [
        tags.ARRAY,
        ["struct", ["a"], ["|O8"], [0], [None], 8, False],
        [2],
        False,
        bytes(16),
    ],
    "field outside": [
        tags.ARRAY,
        ["struct", ["a"], ["<f8"], [4], [None], 8, False],
        [2],
        False,
        bytes(16),
    ],
    "shape too large": [tags.ARRAY, "<f8", [3], False, bytes(16)],
    "shape below zero": [tags.ARRAY, "<f8", [-2], False, bytes(16)],
    "shape of no size": [tags.ARRAY, "|V0", [1 << 40], False, b""],
    "shape that overflows": [tags.ARRAY, "<f8", [1 << 62, 4], False, b""],
    "odd bool": [tags.ARRAY, "|b1", [1], False, b"\x02"],
    "no such part": [tags.ARRAY, "<f8", [2], False, 0],
    "key twice": [tags.DICT, ["a", "a"], [1, 2]],
    "key unhashable": [tags.DICT, [[tags.LIST, []]], [1]],
    "keys and values": [tags.DICT, ["a"], []],
    "element twice": [tags.SET, [1, 1]],
    "zone outside": [tags.ZONE, "../../etc/passwd"],
    "zone of a module": [tags.ZONE, "a.b"],
    "hour 25": [tags.TIME, [25, 0, 0, 0, 0], None],
    "path of no kind": [tags.PATH, "Popen", "x"],
    "decimal": [tags.DECIMAL, "no number"],
    "frame without columns": [
        tags.FRAME,
        [tags.RANGE_INDEX, 0, 2, 1, None],
        [tags.RANGE_INDEX, 0, 2, 1, None],
        [[[0], ARRAY]],
        [tags.DICT, [], []],
        True,
    ],
    "frame with a column twice": [
        tags.FRAME,
        [tags.RANGE_INDEX, 0, 2, 1, None],
        [tags.RANGE_INDEX, 0, 2, 1, None],
        [[[0], ARRAY], [[0], ARRAY]],
        [tags.DICT, [], []],
        True,
    ],
    "column too short": [
        tags.FRAME,
        [tags.RANGE_INDEX, 0, 1, 1, None],
        [tags.RANGE_INDEX, 0, 9, 1, None],
        [[[0], ARRAY]],
        [tags.DICT, [], []],
        True,
    ],
    "codes outside": [
        tags.CATEGORICAL,
        [tags.INDEX, [tags.OBJECTS, [1], ["a"]], None, None],
        [tags.ARRAY, "|i1", [1], False, b"\x05"],
        False,
    ],
    "levels outside": [
        tags.MULTI_INDEX,
        [[tags.RANGE_INDEX, 0, 1, 1, None]],
        [[tags.ARRAY, "|i1", [1], False, b"\x05"]],
        [None],
        None,
    ],
    "frequency": [tags.INDEX, [tags.ARRAY, "<M8[ns]", [2], False, bytes(16)], None, "D"],
    "strings": [tags.STRINGS, "python", False, ["a", 5]],
    "storage": [tags.STRINGS, "os", False, ["a"]],
    "mask": [tags.MASKED, 0, ARRAY, ARRAY],
    "period": [tags.PERIOD, 1, "period[__import__('os')]"],
    "unit": [tags.DELTA, 1, "no"],
}


@pytest.mark.parametrize("fields", LIES.values(), ids=LIES)
def test_a_tree_that_lies_is_an_error(fields: list[Any]) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the codec makes one kind of all
        read(node(*fields))
    assert not isinstance(caught.value, MemoryError | RuntimeError)


def test_parts_are_those_that_the_tree_names() -> None:
    tree_part, *buffers = written([np.arange(200), np.arange(300)])
    for wrong in ([], buffers[:1], buffers[::-1], [*buffers, buffers[0]]):
        with pytest.raises(ValueError, match=r"buffers|fit"):
            read([tree_part, *wrong])


# -- the dictionary -----------------------------------------------------------------------------


class Ran(Exception):  # noqa: N818 - not an error of anything
    """Says that it was unpickled."""


class Bomb:
    def __reduce__(self) -> Any:
        return _explode, ()


def _explode() -> None:
    raise Ran


WAYS = {
    "get": lambda d: d["pickled"],
    "several": lambda d: d[["plain", "pickled"]],
    "get default": lambda d: d.get("pickled"),
    "pop": lambda d: d.pop("pickled"),
    "popitem": lambda d: d.popitem(),
    "setdefault": lambda d: d.setdefault("pickled", 1),
    "values": lambda d: list(d.values()),
    "items": lambda d: list(d.items()),
    "copy": lambda d: d.copy(),
    "equality": lambda d: d == {"plain": 1.5, "pickled": 2},
    "snapshot": lambda d: d.snapshot()["pickled"],
    "past": lambda d: d.at("pickled", 1),
    "mirror": lambda d: d.mirror()["pickled"],
    "prefetched": lambda d: d.mirror(prefetch=True)["pickled"],
    "modify": lambda d: d.modify("pickled", lambda value: value),
}


@pytest.mark.parametrize("inline", [2048, 0])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_no_way_of_reading_unpickles(tmp_path: pathlib.Path, way: Any, inline: int) -> None:
    with LocalDictionary(tmp_path, inline_bytes=inline) as trusting:
        trusting["plain"] = 1.5
        trusting["pickled"] = Bomb()
        with pytest.raises(errors.UnreadableValueError, match="Ran"):
            way(trusting)  # so it would have run
    with LocalDictionary(tmp_path, codec="safe", history="all") as d:
        seq = d.snapshot().seq
        with pytest.raises(errors.UnsafeValueError, match=r"'p.*codec='pickle'"):
            way(d)
        assert d.snapshot().seq == seq


def test_a_transaction_goes_the_same_way(safe: RemoteDict) -> None:
    with safe.transaction() as t:
        t["a"] = {"x": np.arange(3)}
        assert t["a"]["x"].tolist() == [0, 1, 2]
        with pytest.raises(errors.UnsafeValueError):
            t["b"] = Bomb()
    assert list(safe) == ["a"]


def test_what_is_not_pickled_is_read_with_either_codec(tmp_path: pathlib.Path) -> None:
    values = {"tree": {"a": [1, (2,)]}, "frame": frame(), "bytes": b"x" * 5000}
    with LocalDictionary(tmp_path, codec="safe") as d:
        d.update(values)
        d["one"] = values["frame"]
    for codec in ("safe", "pickle"):
        with LocalDictionary(tmp_path, codec=codec) as d:
            assert d["tree"] == values["tree"]
            assert d["bytes"] == values["bytes"]
            assert d.open("bytes").read(3) == b"xxx"
            out = io.BytesIO()
            d.get_file("bytes", out)
            assert out.getvalue() == values["bytes"]
            for key in ("frame", "one"):
                pd.testing.assert_frame_equal(d[key], values["frame"])
            with pytest.raises(TypeError, match="only bytes can be read as a file"):
                d.open("tree")
            assert len(d.index) == len(d.info()) == 4


def test_files_and_metadata_need_no_codec(safe: RemoteDict) -> None:
    safe.put_file("f", io.BytesIO(b"abc"))
    safe.put("m", 1, metadata={"a": [1]})
    assert (safe["f"], safe.metadata["m"], safe.query(a=[1])) == (b"abc", {"a": [1]}, ["m"])


@pytest.mark.parametrize("codec", ["json", "", None, 5, "Safe"])
def test_there_are_two_codecs(codec: Any) -> None:
    with pytest.raises(ValueError, match="'pickle' or 'safe'"):
        MemoryDictionary(codec=codec)


WATCHED = """
import sys
found = []
def hook(event, args):
    if event == "pickle.find_class":
        found.append(args)
    if event == "import" and args[0] == "cloudpickle":
        found.append(args)
sys.addaudithook(hook)
sys.modules["pyarrow"] = None  # imports cloudpickle, and pandas imports it
import numpy as np, pandas as pd, remotedict
with remotedict.LocalDictionary(sys.argv[1], codec="safe") as d:
    d.update(a=[1, {"b": (2.5, None)}], n=np.arange(5000), f=pd.DataFrame({"x": ["a", None]}))
    d["m"] = {"when": pd.Timestamp("2026"), "c": pd.Categorical(["a"])}
    with d.transaction() as t:
        t["a"] = t["n"]
    d.mirror()["m"], d.snapshot()["f"], dict(d.items()), d.index, d.info(), d.history("a")
    d.query(facts={"type": "int"})
with remotedict.LocalDictionary(sys.argv[1], codec="safe") as d:
    assert len(d.copy()) == 4
    try:
        d["pickled"]
    except KeyError:
        pass
    try:
        d["x"] = print
    except remotedict.RemoteDictError:
        pass
assert "cloudpickle" not in sys.modules
assert found == [], found
import pickle
pickle.loads(b"cbuiltins\\nint\\n.")
assert found, "the hook hears nothing"
"""


def test_nothing_is_unpickled_and_cloudpickle_not_imported(tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_format_names_each_tag() -> None:
    page = (pathlib.Path(__file__).parent.parent / "docs" / "format.md").read_text("utf-8")
    listed = page.partition("\n## Safe values")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([\d, ]+) \|", listed, re.MULTILINE)
    numbers = [int(number) for row in rows for number in row.split(",")]
    known = {value for name, value in vars(tags).items() if name.isupper()}
    assert sorted(numbers) == sorted(known) == sorted(tree.Reader.readers)
