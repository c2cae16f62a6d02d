"""Safe values of pandas: frames, series, indexes, and scalars."""

from __future__ import annotations

import datetime as dt
import importlib
import re
import zoneinfo
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pandas.tseries.frequencies import to_offset

from remotedict.pure.facts import type_name
from remotedict.pure.safe import arrow, tags
from remotedict.pure.safe.arrays import array_node
from remotedict.pure.safe.plain import zone_of
from remotedict.pure.safe.tree import (
    NATIVE,
    Reader,
    RefusedError,
    Writer,
    checked,
    checked_all,
    within,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_UNIT = re.compile(r"s|ms|us|ns")
_PERIOD = re.compile(r"period\[[A-Za-z0-9\-]{1,20}\]")
_STORAGES = ("python", "pyarrow")
_MASKED = (pd.arrays.IntegerArray, pd.arrays.FloatingArray, pd.arrays.BooleanArray)
_INDEXES = {
    *(pd.Index, pd.DatetimeIndex, pd.TimedeltaIndex, pd.PeriodIndex, pd.IntervalIndex),
    pd.CategoricalIndex,
}
_FREQUENCY = re.compile(r"[A-Za-z0-9\-]{1,40}")

# -- columns ------------------------------------------------------------------------------------


def _column(writer: Writer, array: Any) -> list[Any]:
    """Return the node of an array of pandas, or of numpy, perhaps with objects."""
    if type(array) is pd.arrays.NumpyExtensionArray:
        array = array.to_numpy()
    if isinstance(array.dtype, np.dtype):
        values = np.asarray(array)
        if values.dtype == object:
            return [tags.OBJECTS, [*values.shape], writer.nodes(values.ravel().tolist())]
        return array_node(writer, values)
    for cls, write in _COLUMNS.items():
        if isinstance(array, cls):
            return write(writer, array)
    msg = f"holds a {type_name(type(array))} (dtype {array.dtype!s:.60}), which isn't a safe type"
    raise RefusedError(msg)


def _strings(writer: Writer, array: Any) -> list[Any]:
    dtype = array.dtype
    if dtype.storage not in _STORAGES:
        msg = f"has dtype {dtype!r:.60}, which isn't a safe type; make it str or 'string'"
        raise RefusedError(msg)
    missing = array.isna()
    items = np.asarray(array, object)
    if missing.any():
        items = items.copy()
        items[missing] = None
    return [tags.STRINGS, dtype.storage, dtype.na_value is pd.NA, writer.nodes(items.tolist())]


def _categorical(writer: Writer, array: Any) -> list[Any]:
    with within(" (its categories)"):
        categories = writer.node(array.categories)
    codes = array_node(writer, array.codes)
    return [tags.CATEGORICAL, categories, codes, bool(array.ordered)]


def _zoned(writer: Writer, array: Any) -> list[Any]:
    """Return the node of datetimes of a time zone: those of UTC, and the zone."""
    values = array.asi8.view(f"M8[{array.unit}]")
    return [tags.ZONED, array_node(writer, values), _zone(writer, array.tz)]


def _zone(writer: Writer, zone: Any) -> Any:
    """Return the node of a time zone; the name alone of one of pytz, which pandas 2 uses."""
    if type(zone).__module__.partition(".")[0] == "pytz" and type(getattr(zone, "zone", 0)) is str:
        return zone.zone
    if type(zone) not in (dt.timezone, zoneinfo.ZoneInfo):
        msg = f"has a time zone of type {type_name(type(zone))}; convert it to one by name"
        raise RefusedError(msg)
    return writer.node(zone)


def _read_zone(reader: Reader, node: Any) -> dt.tzinfo:
    zone = reader.value(node)
    if type(zone) is not str:
        checked(zone, dt.timezone, zoneinfo.ZoneInfo)
        return zone  # type: ignore[no-any-return]
    found = zone_of(zone)
    try:
        pytz = importlib.import_module("pytz")
    except ImportError:
        return found
    return pytz.timezone(zone)  # type: ignore[no-any-return]


def _periods(writer: Writer, array: Any) -> list[Any]:
    return [tags.PERIODS, str(array.dtype), array_node(writer, array.asi8)]


def _intervals(writer: Writer, array: Any) -> list[Any]:
    return [
        tags.INTERVALS,
        writer.node(pd.Index(array.left)),
        writer.node(pd.Index(array.right)),
        array.closed,
    ]


def _masked(writer: Writer, array: Any) -> list[Any]:
    number = next(
        n for n, cls in enumerate(_MASKED) if type(array) is cls or isinstance(array, cls)
    )
    values, mask = array._data, array._mask  # noqa: SLF001 - what the constructor takes
    return [tags.MASKED, number, array_node(writer, values), array_node(writer, mask)]


def _arrow_column(writer: Writer, array: Any) -> list[Any]:
    return [tags.ARROW_COLUMN, arrow.chunks_node(writer, array.__arrow_array__())]


_COLUMNS: dict[type, Callable[[Writer, Any], list[Any]]] = {
    pd.arrays.StringArray: _strings,
    pd.arrays.ArrowStringArray: _strings,
    pd.Categorical: _categorical,
    pd.arrays.DatetimeArray: _zoned,
    pd.arrays.PeriodArray: _periods,
    pd.arrays.IntervalArray: _intervals,
    **dict.fromkeys(_MASKED, _masked),
    pd.arrays.ArrowExtensionArray: _arrow_column,
}


def _read_array(reader: Reader, node: Any) -> np.ndarray[Any, Any]:
    array = reader.value(node)
    if type(array) is not np.ndarray:
        msg = "a column is no array"
        raise ValueError(msg)
    return array


def _read_index(reader: Reader, node: Any) -> Any:
    index = reader.value(node)
    if not isinstance(index, pd.Index):
        msg = "an index is none"
        raise ValueError(msg)  # noqa: TRY004 - of a type that was stored
    return index


def _read_objects(reader: Reader, shape: Any, nodes: Any) -> np.ndarray[Any, Any]:
    items = reader.values(nodes)
    array = np.empty(len(items), object)
    if {*map(type, items)} <= NATIVE:
        array[:] = items
    else:
        for n, item in enumerate(items):  # as a whole, lists would be taken apart
            array[n] = item
    return array.reshape(checked_all(shape, int))


def _read_strings(reader: Reader, storage: Any, na: Any, nodes: Any) -> Any:
    items = reader.values(nodes)
    if not {*map(type, items)} <= {str, type(None)}:
        msg = "a column of strings holds something else"
        raise ValueError(msg)
    if checked(storage, str) not in _STORAGES:
        msg = f"there is no storage {storage!r:.40} of strings"
        raise ValueError(msg)
    if not checked(na, bool):
        if storage == "pyarrow" and find_spec("pyarrow") is None:
            storage = "python"  # of the type "str" it is a detail
        return pd.array(items, dtype=pd.StringDtype(storage, na_value=np.nan))
    return pd.array(items, dtype=pd.StringDtype(storage))


def _read_categorical(reader: Reader, categories: Any, codes: Any, ordered: Any) -> Any:
    index = _read_index(reader, categories)
    numbers = _read_array(reader, codes)
    return pd.Categorical.from_codes(numbers, categories=index, ordered=checked(ordered, bool))


def _read_zoned(reader: Reader, values: Any, zone: Any) -> Any:
    times, made = _read_array(reader, values), _read_zone(reader, zone)
    if times.dtype.kind != "M" or times.ndim != 1:
        msg = "datetimes are of another type"
        raise ValueError(msg)
    return pd.DatetimeIndex(times, copy=False).tz_localize("UTC").tz_convert(made).array


def _read_periods(reader: Reader, dtype: Any, ordinals: Any) -> Any:
    numbers = _read_array(reader, ordinals)
    if not _PERIOD.fullmatch(checked(dtype, str)) or numbers.dtype != np.int64:
        msg = f"{dtype!r:.60} is not a type of periods"
        raise ValueError(msg)
    return pd.arrays.PeriodArray(numbers, dtype=pd.PeriodDtype(dtype[7:-1]))


def _read_intervals(reader: Reader, left: Any, right: Any, closed: Any) -> Any:
    ends = _read_index(reader, left), _read_index(reader, right)
    return pd.arrays.IntervalArray.from_arrays(*ends, closed=checked(closed, str))


def _read_masked(reader: Reader, number: Any, values: Any, mask: Any) -> Any:
    cls = dict(enumerate(_MASKED))[checked(number, int)]
    data, hidden = _read_array(reader, values), _read_array(reader, mask)
    if data.ndim != 1 or data.shape != hidden.shape:
        msg = "a column and its mask have other lengths"
        raise ValueError(msg)
    return cls(data, hidden)


def _read_arrow_column(reader: Reader, node: Any) -> Any:
    return pd.arrays.ArrowExtensionArray(arrow.read_chunks(reader, node))


# -- frames, series and indexes -----------------------------------------------------------------


def _frame(writer: Writer, frame: pd.DataFrame) -> list[Any]:
    with within(".columns"):
        columns = writer.node(frame.columns)
    with within(".index"):
        index = writer.node(frame.index)
    blocks = []
    for block in frame._mgr.blocks:  # noqa: SLF001 - so it isn't copied
        places = block.mgr_locs.as_array.tolist()
        if isinstance(block.dtype, np.dtype) and block.dtype != object:
            blocks.append([places, _column(writer, np.asarray(block.values))])
            continue
        for place in places:
            with within("[{!r:.60}]", frame.columns[place]):
                blocks.append([[place], _column(writer, frame.iloc[:, place].array)])
    return [tags.FRAME, columns, index, blocks, *_extras(writer, frame)]


def _series(writer: Writer, series: pd.Series[Any]) -> list[Any]:
    with within(".index"):
        index = writer.node(series.index)
    with within(".name"):
        name = writer.node(series.name)
    return [tags.SERIES, index, _column(writer, series.array), name, *_extras(writer, series)]


def _extras(writer: Writer, of: Any) -> list[Any]:
    with within(".attrs"):
        return [writer.node(dict(of.attrs)), of.flags.allows_duplicate_labels]


def _index(writer: Writer, index: Any) -> list[Any]:
    with within(".name"):
        name = writer.node(index.name)
    frequency = None
    if isinstance(index, pd.DatetimeIndex | pd.TimedeltaIndex) and index.freq is not None:
        frequency = index.freq.freqstr
        if not _FREQUENCY.fullmatch(frequency) or to_offset(frequency) != index.freq:
            msg = f"has a frequency that can't be stored: {index.freq!r:.60}; set freq to None"
            raise RefusedError(msg)
    return [tags.INDEX, _column(writer, index.array), name, frequency]


def _range_index(writer: Writer, index: pd.RangeIndex) -> list[Any]:
    with within(".name"):
        return [tags.RANGE_INDEX, index.start, index.stop, index.step, writer.node(index.name)]


def _multi_index(writer: Writer, index: Any) -> list[Any]:
    with within(".names"):
        names = writer.nodes([*index.names])
    levels = []
    for n, level in enumerate(index.levels):
        with within(".levels[{}]", n):
            levels.append(writer.node(level))
    codes = [array_node(writer, np.asarray(codes)) for codes in index.codes]
    return [tags.MULTI_INDEX, levels, codes, names, index.sortorder]


def _read_frame(
    reader: Reader, columns: Any, index: Any, blocks: Any, attrs: Any, duplicates: Any
) -> Any:
    labels, rows = _read_index(reader, columns), _read_index(reader, index)
    made: list[tuple[list[int], Any]] = []
    for places, node in checked(blocks, list):
        array = reader.value(node)
        if isinstance(array, np.ndarray) and array.ndim == 1:
            array = array.reshape(1, -1)
        numbers = checked_all(places, int)
        wanted = (len(numbers), len(rows))
        if not isinstance(array, np.ndarray | pd.api.extensions.ExtensionArray) or (
            array.shape != wanted if array.ndim == 2 else (1, *array.shape) != wanted
        ):
            msg = "the columns of a frame don't fit it"
            raise ValueError(msg)
        made.append((numbers, array))
    if sorted(n for places, _ in made for n in places) != [*range(len(labels))]:
        msg = "a frame has other columns than it says"
        raise ValueError(msg)
    return _with_extras(reader, _of_blocks(made, rows, labels), attrs, duplicates)


def _of_blocks(
    blocks: list[tuple[list[int], Any]], rows: pd.Index[Any], labels: pd.Index[Any]
) -> Any:
    try:
        make = importlib.import_module("pandas.api.internals").create_dataframe_from_blocks
    except (ImportError, AttributeError):  # before pandas 3
        if len(blocks) == 1 and isinstance(blocks[0][1], np.ndarray):
            return pd.DataFrame(blocks[0][1].T, index=rows, columns=labels, copy=False)
        single = {
            place: array[n] if isinstance(array, np.ndarray) else array
            for places, array in blocks
            for n, place in enumerate(places)
        }
        ordered = {place: pd.Series(single[place], rows, copy=False) for place in sorted(single)}
        frame = pd.DataFrame(ordered, index=rows, copy=False)
        frame.columns = labels
        return frame
    shaped = [
        (array.reshape(1, -1) if isinstance(array, pd.arrays.DatetimeArray) else array, places)
        for places, array in blocks
    ]
    return make([(array, np.array(places, np.intp)) for array, places in shaped], rows, labels)


def _read_series(
    reader: Reader, index: Any, column: Any, name: Any, attrs: Any, duplicates: Any
) -> Any:
    labels, array = _read_index(reader, index), reader.value(column)
    if not isinstance(array, np.ndarray | pd.api.extensions.ExtensionArray):
        msg = "a series has no column"
        raise ValueError(msg)  # noqa: TRY004 - of a type that was stored
    series = pd.Series(array, labels, dtype=array.dtype, name=reader.value(name), copy=False)
    return _with_extras(reader, series, attrs, duplicates)


def _with_extras(reader: Reader, of: Any, attrs: Any, duplicates: Any) -> Any:
    of.attrs = checked(reader.value(attrs), dict)
    if not checked(duplicates, bool):
        of.flags.allows_duplicate_labels = False
    return of


def _make_index(reader: Reader, column: Any, name: Any, frequency: Any) -> pd.Index[Any]:
    array = reader.value(column)
    if not isinstance(array, np.ndarray | pd.api.extensions.ExtensionArray) or array.ndim != 1:
        msg = "an index has no column"
        raise ValueError(msg)
    label = reader.value(name)
    index = pd.Index(array, dtype=array.dtype, name=label, copy=False, tupleize_cols=False)
    if frequency is not None:
        if not _FREQUENCY.fullmatch(checked(frequency, str)):
            msg = f"{frequency!r:.60} is not a frequency"
            raise ValueError(msg)
        index.freq = to_offset(frequency)  # type: ignore[attr-defined]
    return index


def _make_range_index(reader: Reader, start: Any, stop: Any, step: Any, name: Any) -> pd.RangeIndex:
    bounds = range(*(checked(number, int) for number in (start, stop, step)))
    return pd.RangeIndex(bounds, name=reader.value(name))


def _make_multi_index(reader: Reader, levels: Any, codes: Any, names: Any, sortorder: Any) -> Any:
    make: Any = pd.MultiIndex
    return make(
        levels=[_read_index(reader, level) for level in checked(levels, list)],
        codes=[_read_array(reader, one) for one in checked(codes, list)],
        names=reader.values(names),
        sortorder=checked(sortorder, int, type(None)),
    )


# -- scalars ------------------------------------------------------------------------------------


def _timestamp(writer: Writer, value: pd.Timestamp) -> list[Any]:
    zone = None if value.tz is None else _zone(writer, value.tz)
    return [tags.TIMESTAMP, int(value.asm8.view("i8")), value.unit, zone]


def _interval(writer: Writer, value: pd.Interval[Any]) -> list[Any]:
    return [tags.INTERVAL, writer.node(value.left), writer.node(value.right), value.closed]


def _period(_: Writer, value: Any) -> list[Any]:
    return [tags.PERIOD, value.ordinal, str(pd.PeriodDtype(value.freq))]


def _in_units(make: Any, number: Any, unit: Any) -> Any:
    """Return so many units of time as what numpy has for it."""
    if not _UNIT.fullmatch(checked(unit, str)):
        msg = f"there is no unit {unit!r:.20}"
        raise ValueError(msg)
    return make(checked(number, int), unit)


def _read_timestamp(reader: Reader, number: Any, unit: Any, zone: Any) -> pd.Timestamp:
    made = pd.Timestamp(_in_units(np.datetime64, number, unit))
    if zone is None:
        return made
    return made.tz_localize("UTC").tz_convert(_read_zone(reader, zone))


def _read_delta(_: Reader, number: Any, unit: Any) -> pd.Timedelta:
    return pd.Timedelta(_in_units(np.timedelta64, number, unit))


def _read_period(_: Reader, ordinal: Any, dtype: Any) -> Any:
    if not _PERIOD.fullmatch(checked(dtype, str)):
        msg = f"{dtype!r:.60} is not a type of periods"
        raise ValueError(msg)
    numbers = np.array([checked(ordinal, int)], np.int64)
    return pd.arrays.PeriodArray(numbers, dtype=pd.PeriodDtype(dtype[7:-1]))[0]


def _read_interval(reader: Reader, left: Any, right: Any, closed: Any) -> Any:
    return pd.Interval(reader.value(left), reader.value(right), closed=checked(closed, str))


Writer.writers |= dict.fromkeys(_INDEXES, _index)
Writer.writers |= dict.fromkeys(_COLUMNS, _column)
Writer.writers |= {
    pd.DataFrame: _frame,
    pd.Series: _series,
    pd.RangeIndex: _range_index,
    pd.MultiIndex: _multi_index,
    pd.Timestamp: _timestamp,
    pd.Timedelta: lambda _, value: [tags.DELTA, int(value.asm8.view("i8")), value.unit],
    pd.Period: _period,
    pd.Interval: _interval,
    type(pd.NaT): lambda *_: [tags.NOT_A_TIME],
    type(pd.NA): lambda *_: [tags.MISSING],
}
Reader.readers |= {
    tags.FRAME: _read_frame,
    tags.SERIES: _read_series,
    tags.INDEX: _make_index,
    tags.RANGE_INDEX: _make_range_index,
    tags.MULTI_INDEX: _make_multi_index,
    tags.OBJECTS: _read_objects,
    tags.STRINGS: _read_strings,
    tags.CATEGORICAL: _read_categorical,
    tags.ZONED: _read_zoned,
    tags.PERIODS: _read_periods,
    tags.INTERVALS: _read_intervals,
    tags.MASKED: _read_masked,
    tags.ARROW_COLUMN: _read_arrow_column,
    tags.MISSING: lambda _: pd.NA,
    tags.NOT_A_TIME: lambda _: pd.NaT,
    tags.TIMESTAMP: _read_timestamp,
    tags.DELTA: _read_delta,
    tags.PERIOD: _read_period,
    tags.INTERVAL: _read_interval,
}
