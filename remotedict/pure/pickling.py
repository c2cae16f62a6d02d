"""Pickling: cloudpickle, with large buffers out of band, and no slower than pickle where it can be."""

from __future__ import annotations

import io
import pickle
from copyreg import dispatch_table
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar

import cloudpickle
import numpy as np

from remotedict.errors import UnpicklableValueError
from remotedict.pure.facts import ATOMS

if TYPE_CHECKING:
    from collections.abc import Callable

_OUT_OF_BAND_MIN = 1024  # a smaller buffer isn't worth a chunk of its own


def pickled(value: Any, key: str) -> list[memoryview]:
    """Return a pickle stream of protocol 5 and, behind it, the value's large buffers themselves.

    Raises
    ------
    UnpicklableValueError
        It can't be pickled.
    """
    if type(value) in ATOMS:
        return [memoryview(pickle.dumps(value, 5))]
    parts: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        """Take a buffer out of band, or return True to leave it in the stream."""
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if raw.nbytes < _OUT_OF_BAND_MIN:
            return True
        parts.append(raw)
        return False

    out = io.BytesIO()
    try:
        _Pickler(out, protocol=5, buffer_callback=keep).dump(value)
    except Exception as exc:
        reason = f"{type(exc).__name__}: {exc}"
        raise UnpicklableValueError(key, reason) from exc
    return [out.getbuffer(), *parts]


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle, but a read-only array (a memory map's, say) comes back writable.

    Its reducers, with those of `copyreg`, are in a plain dict: in cloudpickle's ChainMap each look
    takes longer than pickling a small object.
    """

    dispatch_table: ClassVar[dict[type, Callable[[Any], Any]]] = {}
    _registered: ClassVar[dict[type, Callable[[Any], Any]] | None] = None

    def __init__(self, out: io.BytesIO, **options: Any) -> None:
        if _Pickler._registered != dispatch_table:
            _Pickler.dispatch_table = dict(cloudpickle.Pickler.dispatch_table)
            _Pickler._registered = dict(dispatch_table)
        super().__init__(out, **options)

    def reducer_override(self, obj: Any) -> Any:
        cls = type(obj)
        if cls is np.ndarray:
            if not obj.flags.writeable and not obj.dtype.hasobject:
                return _WritableAlias.of(obj).__reduce_ex__(5)
            return NotImplemented
        # cloudpickle's own would say so, too, but slowly.
        if not issubclass(cls, type | FunctionType):
            return NotImplemented
        return super().reducer_override(obj)


class _WritableAlias:
    """Lets numpy see an array's memory as writable: only so is it pickled as such."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array = array  # keeps the memory alive
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}

    @classmethod
    def of(cls, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.asarray(cls(array)).view(array.dtype)
