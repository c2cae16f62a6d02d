"""The tree of a safe value: what may be in it, by exact type, and what may be read back.

A node is what msgpack has for None, bool, int, float, str and bytes; anything else is an array
that begins with a tag. Buffers of `OUT_OF_BAND_BYTES` or more are parts of their own, and their
node is the number of the part.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import msgspec
import numpy as np

from remotedict.pure.facts import type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DEPTH_MAX = 128
"""How deep containers may be nested in each other."""

OUT_OF_BAND_BYTES = 1024  # a smaller buffer isn't worth a part of its own

NATIVE = frozenset({type(None), bool, int, float, str})
"""What stands in the tree as it is, but for the ints and strings that msgpack doesn't have."""

_INTS = range(-(1 << 63), 1 << 64)
_READ_AS_IS = NATIVE | {bytes}
_decode = msgspec.msgpack.Decoder().decode
_encode = msgspec.msgpack.Encoder().encode


class RefusedError(Exception):
    """A part of a value is not safe; `where` is how it is found, such as ``['a'][3]``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.where = ""


class Writer:
    """Makes the tree of one value, and collects its large buffers.

    Parameters
    ----------
    careful : bool
        Whether each string is looked at: one has a surrogate that UTF-8 doesn't have.

    Attributes
    ----------
    parts : list of memoryview
        The large buffers.
    """

    writers: ClassVar[dict[type, Callable[[Writer, Any], list[Any]]]] = {}
    """How each type is written; subclasses are others."""

    others: ClassVar[list[Callable[[type], Callable[[Writer, Any], list[Any]] | None]]] = []
    """Asked for what writes a type that isn't in the table."""

    def __init__(self, *, careful: bool = False) -> None:
        self.parts: list[memoryview] = []
        self._careful = careful
        self._depth = 0

    def node(self, value: Any) -> Any:
        """Return the node of a value.

        Raises
        ------
        RefusedError
            It isn't safe, or something in it isn't.
        """
        cls = type(value)
        if cls in NATIVE and self._as_is(value):
            return value
        if cls is bytes and len(value) < OUT_OF_BAND_BYTES:
            return value
        write = self.writers.get(cls)
        if write is None:
            write = next((found for other in self.others if (found := other(cls))), _refuse)
        if self._depth == DEPTH_MAX:
            msg = f"is nested more than {DEPTH_MAX} deep, or contains itself"
            raise RefusedError(msg)
        self._depth += 1
        try:
            return write(self, value)
        finally:
            self._depth -= 1

    def nodes(self, values: Sequence[Any], place: str = "[{}]") -> list[Any]:
        """Return the nodes of what a container holds; `place` names one by its number."""
        if self.all_as_is(values):
            return [*values]
        made = []
        for n, value in enumerate(values):
            with within(place, n):
                made.append(self.node(value))
        return made

    def buffer(self, data: memoryview) -> bytes | int:
        """Return the node of a buffer of bytes: they themselves, or the number of a part."""
        if data.nbytes < OUT_OF_BAND_BYTES:
            return bytes(data)
        self.parts.append(data)
        return len(self.parts) - 1

    def _as_is(self, value: Any) -> bool:
        if type(value) is int:
            return value in _INTS
        return not (self._careful and type(value) is str and _odd(value))

    def all_as_is(self, values: Sequence[Any]) -> bool:
        """Tell whether all of these are nodes themselves."""
        types = {*map(type, values)}
        if not types <= NATIVE or (self._careful and str in types):
            return False
        if types == {int}:
            return min(values) in _INTS and max(values) in _INTS
        return int not in types or all(map(self._as_is, values))


def written(value: Any) -> list[memoryview]:
    """Return the parts of a safe value: the tree, then its large buffers.

    Raises
    ------
    RefusedError
        It isn't safe.
    """
    try:
        writer = Writer()
        tree = _encode(writer.node(value))
    except UnicodeEncodeError:
        writer = Writer(careful=True)
        tree = _encode(writer.node(value))
    return [memoryview(tree), *writer.parts]


@contextmanager
def within(place: str, *names: Any) -> Iterator[None]:
    """Say of what is refused within that it is at this place."""
    try:
        yield
    except RefusedError as refused:
        refused.where = place.format(*names) + refused.where
        raise


def _refuse(writer: Writer, value: Any) -> NoReturn:
    del writer
    cls = type(value)
    known = next(
        (base for base in cls.__mro__[1:] if base in Writer.writers or base in NATIVE), None
    )
    plain = f"; make it a plain {type_name(known)}" if known else ""
    msg = f"is of type {type_name(cls)}, which isn't one of the safe types{plain}"
    raise RefusedError(msg)


def _odd(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


class Reader:
    """Makes a value of its tree and its large buffers. Believes nothing.

    Parameters
    ----------
    parts : sequence of memoryview
        The large buffers, in memory that the value may keep.
    """

    readers: ClassVar[dict[int, Callable[..., Any]]] = {}
    """How each tag is read: called with the reader and the fields behind the tag."""

    def __init__(self, parts: Sequence[memoryview]) -> None:
        self._parts = parts
        self._taken = 0
        self._depth = 0

    def value(self, node: Any) -> Any:
        """Return the value of a node; raise ValueError, or some other error, if it isn't one."""
        if type(node) is not list:
            if type(node) in _READ_AS_IS:
                return node
            msg = f"a node is of type {type(node).__name__}"
            raise ValueError(msg)
        tag, *fields = node
        if type(tag) is not int or tag not in self.readers:
            msg = f"there is no tag {tag!r:.40}; perhaps a newer remotedict wrote it"
            raise ValueError(msg)
        if self._depth == DEPTH_MAX:
            msg = f"it is nested more than {DEPTH_MAX} deep"
            raise ValueError(msg)
        self._depth += 1
        try:
            return self.readers[tag](self, *fields)
        finally:
            self._depth -= 1

    def values(self, nodes: Any) -> list[Any]:
        """Return the values of a list of nodes."""
        items: list[Any] = checked(nodes, list)
        return items if {*map(type, items)} <= _READ_AS_IS else [*map(self.value, items)]

    def buffer(self, node: Any) -> memoryview:
        """Return a buffer in memory of its own. Each part is taken once, in their order."""
        if type(node) is bytes:
            return np.frombuffer(bytearray(node), np.uint8).data
        number: int = checked(node, int)
        if number != self._taken or number >= len(self._parts):
            msg = "its buffers aren't those of its tree"
            raise ValueError(msg)
        self._taken += 1
        return self._parts[number]

    def end(self) -> None:
        """Raise ValueError if there are buffers that nothing has taken."""
        if self._taken != len(self._parts):
            msg = "it has buffers that nothing names"
            raise ValueError(msg)


def read(parts: Sequence[memoryview]) -> Any:
    """Return the value whose parts these are; raise ValueError, or some other error, if it isn't."""
    reader = Reader(parts[1:])
    value = reader.value(_decode(parts[0]))
    reader.end()
    return value


def checked(node: Any, *types: type) -> Any:
    """Return a field of a node if it is of one of these types, exactly; else raise ValueError."""
    if type(node) not in types:
        names = " or ".join(cls.__name__ for cls in types)
        msg = f"a field is of type {type(node).__name__}, not {names}"
        raise ValueError(msg)
    return node


def checked_all(nodes: Any, *types: type) -> list[Any]:
    """Return a list of fields if all of them are of these types."""
    for node in checked(nodes, list):
        checked(node, *types)
    return list(nodes)
