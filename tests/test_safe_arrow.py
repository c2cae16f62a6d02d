"""codec="safe": tables of Arrow come back exactly, and are checked in full before."""

from __future__ import annotations

import datetime as dt
import decimal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from remotedict import LocalDictionary, MemoryDictionary, errors
from remotedict.pure.safe import read, tags, written

if TYPE_CHECKING:
    from pathlib import Path

# The "str" of pandas, which it has since 2.3.
TEXT = (
    pd.StringDtype("pyarrow")
    if pd.__version__ < "2.3"
    else pd.StringDtype("pyarrow", na_value=np.nan)
)
NESTED = [[{"a": [1, None]}], None, []]
COLUMNS = {
    "int": pa.array([1, None, 3]),
    "uint8": pa.array([1, 2, 3], pa.uint8()),
    "half": pa.array(np.array([1, 2, 3], "f2")),
    "bool": pa.array([True, None, False]),
    "null": pa.nulls(3),
    "string": pa.array(["a", None, "ü"]),
    "large string": pa.array(["a", "b", None], pa.large_string()),
    "binary": pa.array([b"a", b"\0", None]),
    "fixed binary": pa.array([b"ab", None, b"cd"], pa.binary(2)),
    "decimal": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("-2.25")]),
    "zoned": pa.array(
        [dt.datetime(2026, 1, 1, tzinfo=dt.UTC), None, None], pa.timestamp("us", "Europe/Berlin")
    ),
    "date": pa.array([dt.date(2026, 1, 2)] * 3),
    "date64": pa.array([0, 86_400_000, None], pa.date64()),
    "time": pa.array([1, 2, 3], pa.time32("s")),
    "duration": pa.array([1, 2, 3], pa.duration("ns")),
    "list": pa.array([[1, 2], None, []]),
    "large list": pa.array([["x"], [], None], pa.large_list(pa.string())),
    "fixed list": pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int8(), 2)),
    "struct": pa.array([{"a": 1, "b": "x"}, None, {"a": 2, "b": None}]),
    "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
    "dictionary": pa.array(["a", "b", "a"]).dictionary_encode(),
    "nested": pa.array(NESTED),
}


def again(value: Any) -> Any:
    tree_part, *buffers = written(value)
    owned = [memoryview(bytearray(buffer)) for buffer in buffers]
    return read([memoryview(bytes(tree_part)), *owned])


def table() -> pa.Table:
    made = pa.table(COLUMNS)
    fields = [made.schema.field(0).with_metadata({"of": "field"}), *made.schema][:1]
    schema = pa.schema([*fields, *[*made.schema][1:]], metadata={"k": "v"})
    return made.cast(schema)


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("part", [slice(None), slice(1, 2), slice(2, None), slice(0, 0)])
def test_an_array_comes_back_exactly(name: str, part: slice) -> None:
    array = COLUMNS[name][part]
    for value in (array, pa.chunked_array([array, array])):
        found = again(value)
        assert type(found) is type(value)
        assert found.type == value.type
        assert found.to_pylist() == value.to_pylist()
        assert found.equals(value)


def test_a_table_and_a_batch_come_back_exactly() -> None:
    small = table()
    large = pa.concat_tables([small] * 500)
    for value in (small, large, small.slice(1, 1), small.slice(0, 0), pa.table({}), large[700:703]):
        found = again({"t": value})["t"]
        assert found.equals(value, check_metadata=True)
        assert found.to_pylist() == value.to_pylist()
    batch = small.to_batches()[0]
    assert again(batch).equals(batch, check_metadata=True)


def test_a_slice_is_stored_without_what_is_around_it() -> None:
    large = pa.table({"n": np.arange(1_000_000), "s": ["some text"] * 1_000_000})
    assert sum(map(len, written(large.slice(500_000, 10)))) < 2000


def test_a_large_buffer_is_not_copied() -> None:
    array = pa.array(np.arange(100_000.0))
    _, buffer = written(array)
    assert np.shares_memory(np.frombuffer(buffer, np.uint8), array.to_numpy())


def test_frames_of_arrow_types_come_back_exactly() -> None:
    names = ["int", "string", "decimal", "zoned", "list", "dictionary"]
    frame = table().select(names).to_pandas(types_mapper=pd.ArrowDtype)
    frame["s"] = pd.array(["a", None, "b"], dtype="string[pyarrow]")
    frame["str"] = pd.array(["a", None, "b"], dtype=TEXT)
    found = again(frame)
    pd.testing.assert_frame_equal(found, frame)
    assert [*found.dtypes] == [*frame.dtypes]


@pytest.mark.parametrize(
    "array",
    [
        pc.run_end_encode(pa.array([1, 1])),
        pa.UnionArray.from_dense(
            pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([1])]
        ),
        pa.array(["a"], pa.string_view()),
        pa.array([1]).view(pa.int64()).cast(pa.date64(), safe=False),
    ],
    ids=["run ends", "union", "view", "not valid"],
)
def test_what_could_not_be_checked_is_refused(array: Any) -> None:
    with MemoryDictionary(codec="safe") as d, pytest.raises(errors.UnsafeValueError, match="'k'"):
        d["k"] = {"deep": array}


LIES = {
    "buffer too small": ["int64", [9, [None, bytes(8)], []]],
    "no data": ["int64", [9, [None, None], []]],
    "offset outside": ["string", [1, [None, bytes([0, 0, 0, 0, 99, 0, 0, 0]), b"ab"], []]],
    "offset below zero": ["string", [1, [None, b"\xff" * 4 + bytes(4), b"ab"], []]],
    "not UTF-8": ["string", [1, [None, bytes([0, 0, 0, 0, 1, 0, 0, 0]), b"\xff"], []]],
    "length below zero": ["int64", [-1, [None, bytes(8)], []]],
    "length too large": ["int64", [1 << 62, [None, bytes(8)], []]],
    "too few buffers": ["int64", [1, [bytes(8)], []]],
    "child missing": [["list", ["item", "int64", True, None]], [1, [None, bytes(8)], []]],
    "child too short": [
        ["list", ["item", "int64", True, None]],
        [1, [None, bytes([0, 0, 0, 0, 9, 0, 0, 0])], [[1, [None, bytes(8)], []]]],
    ],
    "code outside": [
        ["dictionary", "int8", "int64", False],
        [1, [], [[1, [None, b"\x05"], []], [1, [None, bytes(8)], []]]],
    ],
    "map without keys": [
        ["map", ["key", "int8", False, None], ["value", "int8", True, None], False],
        [
            1,
            [None, bytes([0, 0, 0, 0, 1, 0, 0, 0])],
            [[1, [None], [[1, [b"\0", b"a"], []], [1, [None, b"a"], []]]]],
        ],
    ],
    "unknown type": ["os.system", [0, [None, b""], []]],
    "unknown form": [["union", []], [0, [], []]],
    "unit": [["timestamp", "days", None], [0, [None, b""], []]],
    "precision": [["decimal128", 1 << 40, 0], [0, [None, b""], []]],
    "width": [["fixed_size_binary", 1 << 40], [0, [None, b""], []]],
    "list size": [["fixed_size_list", ["item", "int8", True, None], -5], [0, [None], []]],
}


@pytest.mark.parametrize("fields", LIES.values(), ids=LIES)
def test_buffers_that_lie_are_an_error(fields: list[Any]) -> None:
    raw = msgspec.msgpack.encode([tags.ARROW_ARRAY, *fields])
    with pytest.raises((ValueError, TypeError, OverflowError, LookupError, pa.ArrowInvalid)):
        read([memoryview(raw)])


WITHOUT = """
import sys
sys.modules["pyarrow"] = None
import remotedict
with remotedict.LocalDictionary(sys.argv[1], codec="safe") as d:
    assert d["text"].tolist() == ["a", "b"], d["text"]
    for key in ("table", "explicit"):
        try:
            d[key]
        except remotedict.UnreadableValueError as exc:
            print(exc)
"""


def test_without_pyarrow_an_error_says_what_is_missing(tmp_path: Path) -> None:
    with LocalDictionary(tmp_path, codec="safe") as d:
        d["table"] = table()
        d["explicit"] = pd.Series(["a"], dtype="string[pyarrow]")
        d["text"] = pd.Series(["a", "b"])  # of pyarrow as well, but not explicitly
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pyarrow") >= 2, done.stdout
