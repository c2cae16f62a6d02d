"""Packing: how the columns of a checkpoint are stored, in as few bytes as they need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from remotedict.pure import lz4
from remotedict.pure.records import Column

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]

PLAIN = 0  # the numbers themselves
DIFFERENCES = 1  # of each to the one before; of the first to 0
PROGRESSION = 2  # the first number, and the difference of any two neighbours

ALIGNMENT = 8  # of what is stored of each column

_FEW = 64  # numbers, of which a list is sooner made than numpy asked anything
_UNSIGNED = ("|u1", "<u2", "<u4", "<u8")


def narrowed(array: Array) -> Array:
    """Return the same numbers in the least width that holds them; many like one in none at all."""
    if array.dtype.kind != "u":
        return array
    if not len(array):
        return array.astype(np.uint8)
    if len(array) < _FEW:
        return array.astype(_least(max(array.tolist())), copy=False)
    low, high = int(array.min()), int(array.max())
    dtype = np.min_scalar_type(high)
    if low == high:
        return np.broadcast_to(np.array(high, dtype), len(array))
    return array.astype(dtype, copy=False)


def _least(number: int) -> str:
    """Return the least type that holds a number."""
    return _UNSIGNED[(number >= 1 << 8) + (number >= 1 << 16) + (number >= 1 << 32)]


def pack(name: str, array: Array) -> tuple[Column, bytes]:
    """Return the description of a column, and what is stored of it."""
    coding, coded = (PLAIN, array) if name == "key" else _coded(array)
    raw = np.ascontiguousarray(coded).view(np.uint8).data
    block = lz4.deflate(raw)
    data = block if len(block) < raw.nbytes else bytes(raw)
    return Column(name, coded.dtype.str, coding, len(data), raw.nbytes), data


def _coded(array: Array) -> tuple[int, Array]:
    if array.dtype.kind != "u" or len(array) < 2:
        return PLAIN, array
    steps = np.diff(array)  # modulo 2**width, if they descend
    first, step = int(array[0]), int(steps[0])
    if first + step * len(steps) == int(array[-1]) and (steps == step).all():
        return PROGRESSION, np.array([first, step], "<u8")
    if (array[1:] >= array[:-1]).all():
        differences = np.empty_like(array)
        differences[0], differences[1:] = first, steps
        dtype = np.min_scalar_type(int(differences.max()))
        if dtype.itemsize < array.itemsize:
            return DIFFERENCES, differences.astype(dtype)
    return PLAIN, array


def counted(column: Column, dtype: str) -> int:
    """Return how many numbers a column of the type `dtype`, or less, claims to store.

    Raises
    ------
    ValueError
        It can't be such a column.
    """
    wide = np.dtype(dtype)
    allowed = _UNSIGNED if wide.kind == "u" else (wide.str,)
    itemsize = np.dtype(column.dtype).itemsize if column.dtype in allowed else 0
    progression = column.coding == PROGRESSION
    if progression:
        fits = itemsize == 8 and wide.kind == "u"
    elif column.coding == DIFFERENCES:  # of numbers so narrow that their sum is never too large
        fits = 0 < itemsize < 8 and wide.kind == "u"
    else:
        fits = column.coding == PLAIN and 0 < itemsize <= wide.itemsize
    if not fits:
        msg = f"column {column.name} can't be of type {column.dtype:.9} and coding {column.coding}"
        raise ValueError(msg)
    if column.size % itemsize or (progression and column.size != 2 * itemsize):
        msg = f"column {column.name} has the wrong size"
        raise ValueError(msg)
    if column.size > lz4.possible(column.stored):  # a larger claim is not worth the memory
        msg = f"column {column.name} claims an impossible size"
        raise ValueError(msg)
    return column.size // itemsize


def unpack(column: Column, data: memoryview, count: int) -> Array:
    """Return the numbers of a column that has `count`, by its description and what is stored.

    Raises
    ------
    ValueError
        It holds others.
    """
    raw = data if column.stored == column.size else lz4.inflate(data, column.size)
    # A blob may lie anywhere in memory; but a view of numbers must have each where it belongs.
    array: Array = np.require(np.frombuffer(raw, column.dtype), requirements="A")
    if column.coding == DIFFERENCES:
        total = int(array.sum(dtype="<u8"))
        return np.cumsum(array, dtype=np.min_scalar_type(total))
    if column.coding == PROGRESSION:
        first, step = array.tolist()
        last = first + step * max(count - 1, 0)
        if last >= 1 << 64:
            msg = f"column {column.name} goes beyond 64 bits"
            raise ValueError(msg)
        dtype = np.min_scalar_type(last)
        if not step:
            return np.broadcast_to(np.array(first, dtype), count)
        array = np.arange(count, dtype=dtype)
        array *= dtype.type(step)
        array += dtype.type(first)
    return array
