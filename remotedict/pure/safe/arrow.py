"""Safe values of Arrow: tables, batches and arrays, by their buffers.

Not in Arrow's own format of files: that one has compressed buffers, and types that bring code
along. What is made of buffers is checked by Arrow in full before anybody has it.
"""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from remotedict.pure.facts import type_name
from remotedict.pure.safe import tags
from remotedict.pure.safe.tree import (
    Reader,
    RefusedError,
    Writer,
    checked,
    checked_all,
    within,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_PLAIN = {
    *("null", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("halffloat", "float", "double", "string", "large_string", "binary", "large_binary"),
    *("date32[day]", "date64[ms]", "time32[s]", "time32[ms]", "time64[us]", "time64[ns]"),
    *("duration[s]", "duration[ms]", "duration[us]", "duration[ns]"),
}
_FACTORIES = {  # of those whose name isn't that of the function that makes them
    "bool": "bool_",
    "halffloat": "float16",
    "float": "float32",
    "double": "float64",
}
_UNITS = ("s", "ms", "us", "ns")
_PARAMETERS = re.compile(r"(\w+)\[(\w+)\]")
_NESTED_MAX = 64


def _arrow() -> Any:
    return importlib.import_module("pyarrow")


# -- types --------------------------------------------------------------------------------------


def _type_node(kind: Any) -> Any:
    """Return the node of a type: its name, or its form and what it is made of."""
    name = str(kind)
    if name in _PLAIN:
        return name
    for is_a, describe in _DESCRIBED.items():
        if getattr(_arrow().types, is_a)(kind):
            return describe(kind)
    msg = f"has an Arrow type that isn't safe: {name:.60}"
    raise RefusedError(msg)


_DESCRIBED: dict[str, Callable[[Any], list[Any]]] = {
    "is_timestamp": lambda kind: ["timestamp", kind.unit, kind.tz],
    "is_fixed_size_binary": lambda kind: ["fixed_size_binary", kind.byte_width],
    "is_decimal128": lambda kind: ["decimal128", kind.precision, kind.scale],
    "is_decimal256": lambda kind: ["decimal256", kind.precision, kind.scale],
    "is_dictionary": lambda kind: [
        "dictionary",
        _type_node(kind.index_type),
        _type_node(kind.value_type),
        kind.ordered,
    ],
    "is_struct": lambda kind: ["struct", [*map(_field_node, _fields(kind))]],
    "is_map": lambda kind: [
        "map",
        _field_node(kind.key_field),
        _field_node(kind.item_field),
        kind.keys_sorted,
    ],
    "is_fixed_size_list": lambda kind: [
        "fixed_size_list",
        _field_node(kind.value_field),
        kind.list_size,
    ],
    "is_list": lambda kind: ["list", _field_node(kind.value_field)],
    "is_large_list": lambda kind: ["large_list", _field_node(kind.value_field)],
}


def _fields(kind: Any) -> list[Any]:
    return [kind.field(n) for n in range(kind.num_fields)]


def _field_node(field: Any) -> list[Any]:
    return [field.name, _type_node(field.type), field.nullable, _metadata_node(field.metadata)]


def _metadata_node(metadata: Any) -> Any:
    return None if metadata is None else [[*metadata.keys()], [*metadata.values()]]


def _read_type(node: Any, depth: int = 0) -> Any:
    pa = _arrow()
    if depth > _NESTED_MAX:
        msg = "an Arrow type is nested too deeply"
        raise ValueError(msg)
    if type(node) is str:
        if node not in _PLAIN:
            msg = f"there is no Arrow type {node!r:.40}"
            raise ValueError(msg)
        match = _PARAMETERS.fullmatch(node)
        if match is None:
            return getattr(pa, _FACTORIES.get(node, node))()
        return (
            getattr(pa, match[1])() if match[1][:4] == "date" else getattr(pa, match[1])(match[2])
        )
    form, *fields = checked(node, list)
    return _FORMS[checked(form, str)](pa, depth + 1, *fields)


def _timestamp(pa: Any, _: int, unit: Any, zone: Any) -> Any:
    if unit not in _UNITS:
        msg = f"there is no unit {unit!r:.20}"
        raise ValueError(msg)
    return pa.timestamp(unit, checked(zone, str, type(None)))


def _dictionary(pa: Any, depth: int, index: Any, value: Any, ordered: Any) -> Any:
    return pa.dictionary(_read_type(index, depth), _read_type(value, depth), checked(ordered, bool))


def _struct(pa: Any, depth: int, fields: Any) -> Any:
    return pa.struct([_read_field(field, depth) for field in checked(fields, list)])


def _map(pa: Any, depth: int, key: Any, item: Any, keys_sorted: Any) -> Any:
    fields = _read_field(key, depth), _read_field(item, depth)
    return pa.map_(*fields, keys_sorted=checked(keys_sorted, bool))


def _fixed_size_list(pa: Any, depth: int, field: Any, size: Any) -> Any:
    if checked(size, int) < 0:
        msg = "a list of Arrow has a negative size"
        raise ValueError(msg)
    return pa.list_(_read_field(field, depth), size)


_FORMS: dict[str, Callable[..., Any]] = {
    "timestamp": _timestamp,
    "fixed_size_binary": lambda pa, _, width: pa.binary(max(checked(width, int), 0)),
    "decimal128": lambda pa, _, *numbers: pa.decimal128(*checked_all([*numbers], int)),
    "decimal256": lambda pa, _, *numbers: pa.decimal256(*checked_all([*numbers], int)),
    "dictionary": _dictionary,
    "struct": _struct,
    "map": _map,
    "fixed_size_list": _fixed_size_list,
    "list": lambda pa, depth, field: pa.list_(_read_field(field, depth)),
    "large_list": lambda pa, depth, field: pa.large_list(_read_field(field, depth)),
}


def _read_field(node: Any, depth: int = 0) -> Any:
    name, kind, nullable, metadata = checked(node, list)
    return _arrow().field(
        checked(name, str),
        _read_type(kind, depth),
        nullable=checked(nullable, bool),
        metadata=_read_metadata(metadata),
    )


def _read_metadata(node: Any) -> dict[bytes, bytes] | None:
    if node is None:
        return None
    names, values = checked(node, list)
    return dict(zip(checked_all(names, bytes), checked_all(values, bytes), strict=True))


# -- arrays -------------------------------------------------------------------------------------


def _array_node(writer: Writer, array: Any) -> list[Any]:
    """Return the node of an array, without what a slice left out."""
    if array.offset or array.get_total_buffer_size() > array.nbytes + array.nbytes // 8 + 1024:
        array = _arrow().concat_arrays([array, array.slice(0, 0)])
    return _data_node(writer, array)


def _data_node(writer: Writer, array: Any) -> list[Any]:
    """Return the node of an array that begins at the beginning of its buffers."""
    kind, is_a = array.type, _arrow().types
    if is_a.is_dictionary(kind):
        parts = [_data_node(writer, array.indices), _array_node(writer, array.dictionary)]
        return [len(array), [], parts]
    if is_a.is_struct(kind):
        children = [array.field(n) for n in range(kind.num_fields)]
    elif is_a.is_map(kind):
        pa = _arrow()
        entries = pa.struct([kind.key_field, kind.item_field])
        children = [pa.StructArray.from_arrays([array.keys, array.items], fields=[*entries])]
    else:
        children = [array.values] if hasattr(array, "values") else []
    own = array.buffers()[: kind.num_buffers]
    buffers = [
        None if buffer is None else writer.buffer(memoryview(buffer).cast("B")) for buffer in own
    ]
    return [len(array), buffers, [_array_node(writer, child) for child in children]]


def _read_data(reader: Reader, kind: Any, node: Any, depth: int = 0) -> Any:
    pa = _arrow()
    length, buffers, children = checked(node, list)
    if depth > _NESTED_MAX or checked(length, int) < 0:
        msg = "an array of Arrow has no such length or depth"
        raise ValueError(msg)
    if pa.types.is_dictionary(kind):
        if buffers:
            msg = "a dictionary of Arrow has buffers of its own"
            raise ValueError(msg)
        indices, values = checked(children, list)
        codes = _read_data(reader, kind.index_type, indices, depth + 1)
        if len(codes) != length:
            msg = "a dictionary of Arrow has another length"
            raise ValueError(msg)
        codes.validate(full=True)
        words = _read_data(reader, kind.value_type, values, depth + 1)
        words.validate(full=True)
        return pa.DictionaryArray.from_arrays(codes, words, ordered=kind.ordered)
    types = _child_types(pa, kind)
    if (
        len(checked(children, list)) != len(types)
        or len(checked(buffers, list)) != kind.num_buffers
    ):
        msg = "an array of Arrow has other buffers than its type"
        raise ValueError(msg)
    made = [_read_buffer(reader, buffer) for buffer in buffers]
    below = [
        _read_data(reader, one, child, depth + 1)
        for one, child in zip(types, children, strict=True)
    ]
    if pa.types.is_map(kind) and (below[0].null_count or below[0].field(0).null_count):
        msg = "a map of Arrow lacks keys"  # which would end the process
        raise ValueError(msg)
    if not types and kind != pa.null() and made[-1] is None and length:
        msg = "an array of Arrow has no data"
        raise ValueError(msg)
    array = pa.Array.from_buffers(kind, length, made, children=below or None)
    array.validate()
    return array


def _child_types(pa: Any, kind: Any) -> list[Any]:
    if pa.types.is_map(kind):
        return [pa.struct([kind.key_field, kind.item_field])]
    return [field.type for field in _fields(kind)]


def _read_buffer(reader: Reader, node: Any) -> Any:
    if node is None:
        return None
    data = np.frombuffer(reader.buffer(node), np.uint8)
    return _arrow().py_buffer(data)


def _whole(reader: Reader, kind: Any, node: Any) -> Any:
    array = _read_data(reader, kind, node)
    array.validate(full=True)
    return array


# -- what stands in the tree --------------------------------------------------------------------


def _check(value: Any) -> None:
    """Refuse what Arrow itself would refuse when it is read."""
    try:
        value.validate(full=True)
    except _arrow().ArrowInvalid as exc:
        msg = f"isn't valid: {exc}"
        raise RefusedError(msg) from exc


def chunks_node(writer: Writer, chunked: Any) -> list[Any]:
    """Return the node of a chunked array: its type, and its chunks."""
    _check(chunked)
    kind = _type_node(chunked.type)
    return [kind, [_array_node(writer, chunk) for chunk in chunked.chunks]]


def read_chunks(reader: Reader, node: Any) -> Any:
    """Return a chunked array."""
    kind, chunks = checked(node, list)
    made = _read_type(kind)
    arrays = [_whole(reader, made, chunk) for chunk in checked(chunks, list)]
    return _arrow().chunked_array(arrays, type=made)


def _table(writer: Writer, table: Any) -> list[Any]:
    _check(table)
    fields, columns = [], []
    for n, field in enumerate(table.schema):
        with within("[{!r:.60}]", field.name):
            fields.append(_field_node(field))
            columns.append([_array_node(writer, chunk) for chunk in table.column(n).chunks])
    return [tags.ARROW_TABLE, fields, _metadata_node(table.schema.metadata), columns, len(table)]


def _batch(writer: Writer, batch: Any) -> list[Any]:
    _check(batch)
    fields = []
    for field in batch.schema:
        with within("[{!r:.60}]", field.name):
            fields.append(_field_node(field))
    columns = [_array_node(writer, column) for column in batch.columns]
    metadata = _metadata_node(batch.schema.metadata)
    return [tags.ARROW_BATCH, fields, metadata, columns, batch.num_rows]


def _chunks(writer: Writer, chunked: Any) -> list[Any]:
    return [tags.ARROW_CHUNKS, chunks_node(writer, chunked)]


def _array(writer: Writer, array: Any) -> list[Any]:
    _check(array)
    return [tags.ARROW_ARRAY, _type_node(array.type), _array_node(writer, array)]


def _read_schema(fields: Any, metadata: Any) -> Any:
    made = [_read_field(field) for field in checked(fields, list)]
    return _arrow().schema(made, metadata=_read_metadata(metadata))


def _read_table(reader: Reader, fields: Any, metadata: Any, columns: Any, rows: Any) -> Any:
    pa, schema = _arrow(), _read_schema(fields, metadata)
    arrays = [
        pa.chunked_array(
            [_whole(reader, field.type, chunk) for chunk in checked(chunks, list)], type=field.type
        )
        for field, chunks in zip(schema, checked(columns, list), strict=True)
    ]
    table = pa.Table.from_arrays(arrays, schema=schema)
    table.validate(full=True)
    return _of_length(table, rows)


def _read_batch(reader: Reader, fields: Any, metadata: Any, columns: Any, rows: Any) -> Any:
    schema = _read_schema(fields, metadata)
    arrays = [
        _whole(reader, field.type, column)
        for field, column in zip(schema, checked(columns, list), strict=True)
    ]
    batch = _arrow().RecordBatch.from_arrays(arrays, schema=schema)
    batch.validate(full=True)
    return _of_length(batch, rows)


def _of_length(table: Any, rows: Any) -> Any:
    if table.num_rows != checked(rows, int):
        msg = "a table has another number of rows than it says"
        raise ValueError(msg)
    return table


def _read_chunks(reader: Reader, node: Any) -> Any:
    return read_chunks(reader, node)


def _read_array(reader: Reader, kind: Any, node: Any) -> Any:
    return _whole(reader, _read_type(kind), node)


def _writer(cls: type) -> Callable[[Writer, Any], list[Any]] | None:
    """Return what writes a type of Arrow: pyarrow is imported if there is a value of it."""
    if type_name(cls).partition(".")[0] != "pyarrow":
        return None
    pa = _arrow()
    if cls in (pa.Table, pa.RecordBatch, pa.ChunkedArray):
        return {pa.Table: _table, pa.RecordBatch: _batch, pa.ChunkedArray: _chunks}[cls]
    return _array if issubclass(cls, pa.Array) and cls.__module__ == "pyarrow.lib" else None


Writer.others.append(_writer)
Reader.readers |= {
    tags.ARROW_TABLE: _read_table,
    tags.ARROW_BATCH: _read_batch,
    tags.ARROW_CHUNKS: _read_chunks,
    tags.ARROW_ARRAY: _read_array,
}
