"""Safe values of numpy: arrays and scalars of all types but objects."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

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
    DType = np.dtype[Any]
    Array = np.ndarray[Any, DType]

# The forms of a type's node that isn't a string.
_STRUCT, _SUBARRAY, _METADATA, _LONG = "struct", "subarray", "metadata", "long"
_SIMPLE = re.compile(r"[<>|][biufcmMSUV]\d{1,10}(\[\d{0,9}[A-Za-z]{1,7}\])?")
_LONGEST = {"f": 8, "c": 16}  # bytes of floats that are the same on all machines

# -- types --------------------------------------------------------------------------------------


def dtype_node(writer: Writer, dtype: DType) -> Any:
    """Return the node of a type; it is refused unless the very same can be made of it."""
    if dtype.hasobject:
        msg = f"holds objects (dtype {dtype!s:.60}); give it a dtype without them, or store a list"
        raise RefusedError(msg)
    node = _dtype_node(writer, dtype)
    try:
        back = _read_dtype(Reader([]), node)
    except Exception:  # noqa: BLE001 - whatever it is: such a type can't be stored
        back = None
    if back is None or not _same(back, dtype):
        msg = f"has a dtype that can't be stored: {dtype!s:.60}"
        raise RefusedError(msg)
    return node


def _dtype_node(writer: Writer, dtype: DType) -> Any:
    node: Any = dtype.str
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        node = [_SUBARRAY, _dtype_node(writer, base), [*shape]]
    elif dtype.fields is not None and dtype.names is not None:
        fields = [(*dtype.fields[name], None)[:3] for name in dtype.names]
        node = [
            _STRUCT,
            [*dtype.names],
            [_dtype_node(writer, field[0]) for field in fields],
            [field[1] for field in fields],
            [field[2] for field in fields],
            dtype.itemsize,
            dtype.isalignedstruct,
        ]
    elif dtype.itemsize > _LONGEST.get(dtype.kind, dtype.itemsize):
        node = [_LONG, dtype.str, _mantissa(dtype)]
    if dtype.metadata:
        with within(".dtype.metadata"):
            node = [_METADATA, node, writer.node(dict(dtype.metadata))]
    return node


def _mantissa(dtype: DType) -> int:
    """Return what differs in long floats of different machines."""
    return int(np.finfo(dtype).nmant)


def _same(one: DType, other: DType) -> bool:
    return (
        one == other
        and one.type is not np.object_
        and (one.type is other.type or one.kind in "iu")  # two names for one C type
        and one.isalignedstruct == other.isalignedstruct
        and (one.metadata is None) == (not other.metadata)
        and one.itemsize == other.itemsize
    )


def _read_dtype(reader: Reader, node: Any) -> DType:
    """Return a type without objects; raise ValueError if the node isn't that of one."""
    if type(node) is str:
        if not _SIMPLE.fullmatch(node):
            msg = f"{node!r:.60} is not the type of an array"
            raise ValueError(msg)
        return np.dtype(node)
    form, *fields = checked(node, list)
    if form == _SUBARRAY:
        base, shape = fields
        return np.dtype((_read_dtype(reader, base), tuple(checked_all(shape, int))))
    if form == _METADATA:
        base, metadata = fields
        return np.dtype(
            _read_dtype(reader, base),
            metadata=checked(reader.value(metadata), dict),
        )
    if form == _LONG:
        text, mantissa = fields
        dtype = _read_dtype(reader, text)
        if _mantissa(dtype) != mantissa:
            msg = f"floats of type {text} are others on this machine"
            raise ValueError(msg)
        return dtype
    if form != _STRUCT:
        msg = f"there is no form {form!r:.40} of a type"
        raise ValueError(msg)
    names, formats, offsets, titles, itemsize, aligned = fields
    described = {
        "names": checked_all(names, str),
        "formats": [_read_dtype(reader, one) for one in checked(formats, list)],
        "offsets": checked_all(offsets, int),
        "titles": checked_all(titles, str, type(None)),
        "itemsize": checked(itemsize, int),
    }
    if not any(title is not None for title in described["titles"]):
        del described["titles"]
    return np.dtype(described, align=checked(aligned, bool))  # type: ignore[call-overload,no-any-return]


# -- arrays -------------------------------------------------------------------------------------


def array_node(writer: Writer, array: Array) -> list[Any]:
    """Return the node of an array: its type, shape, order, and bytes."""
    dtype = dtype_node(writer, array.dtype)
    if not array.itemsize:
        msg = f"has a dtype of no size: {array.dtype}"
        raise RefusedError(msg)
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    flat = np.ascontiguousarray(array.T if fortran else array).reshape(-1)
    node = writer.buffer(flat.view(np.uint8).data) if flat.size else b""
    return [tags.ARRAY, dtype, [*array.shape], fortran, node]


def _scalar(writer: Writer, value: np.generic) -> list[Any]:
    if isinstance(value, np.str_):
        return [tags.TEXT_SCALAR, writer.node(str.__str__(value))]
    if isinstance(value, np.bytes_):
        return [tags.BYTES_SCALAR, writer.node(bytes(value))]
    dtype = dtype_node(writer, value.dtype)
    if np.dtype(value.dtype.str).type is not type(value):
        msg = f"is of type {type(value).__name__}, which isn't the same on all machines"
        raise RefusedError(msg)
    return [tags.SCALAR, dtype, value.tobytes()]


_SCALARS = {*np.sctypeDict.values()} - {np.object_}
Writer.writers |= dict.fromkeys(_SCALARS, _scalar)
Writer.writers[np.ndarray] = array_node


def read_array(reader: Reader, dtype: Any, shape: Any, fortran: Any, buffer: Any) -> Array:
    """Return an array in memory of its own, once its shape fits its bytes."""
    made, dims = _read_dtype(reader, dtype), checked_all(shape, int)
    size = math.prod(dims)
    data = reader.buffer(buffer)
    if min(dims, default=0) < 0 or not made.itemsize or size * made.itemsize != data.nbytes:
        msg = "an array's bytes don't fit its shape"
        raise ValueError(msg)
    array: Array = np.ndarray(
        tuple(dims), made, data if size else None, order="F" if checked(fortran, bool) else "C"
    )
    if made.kind == "b" and size and array.view(np.uint8).max() > 1:
        msg = "an array of bools holds something else"
        raise ValueError(msg)
    return array


def _read_scalar(reader: Reader, dtype: Any, raw: Any) -> Any:
    return read_array(reader, dtype, [], False, checked(raw, bytes))[()]


def _read_text_scalar(reader: Reader, node: Any) -> np.str_:
    return np.str_(checked(reader.value(node), str))


def _read_bytes_scalar(reader: Reader, node: Any) -> np.bytes_:
    return np.bytes_(checked(reader.value(node), bytes))


Reader.readers |= {
    tags.ARRAY: read_array,
    tags.SCALAR: _read_scalar,
    tags.TEXT_SCALAR: _read_text_scalar,
    tags.BYTES_SCALAR: _read_bytes_scalar,
}
