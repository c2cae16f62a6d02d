"""Values: from objects to self-describing bytes and back.

A value is a fixed header, a header record, and chunks that each carry their size and checksum;
with more than one chunk, a table of them closes it. docs/format.md says every byte.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
from platform import python_version
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import cloudpickle
import msgspec
import numpy as np
import xxhash

from remotedict.errors import (
    CorruptBlobError,
    FormatVersionError,
    UnpicklableValueError,
    UnreadableValueError,
)
from remotedict.pure import frames
from remotedict.pure.records import FORMAT_VERSION, Facts, Id, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

CHUNK_BYTES = 1024 * 1024
"""How many bytes of a value are compressed, checked and read as one."""

_MAGIC = b"RDvl"
_START = struct.Struct("<4sHHIQ")  # magic, format version, flags, header length, checksum
_CHUNK = struct.Struct("<BIIQ")  # kind, raw size, stored size, checksum
_END = struct.Struct("<IQ4s")  # table length, its checksum, magic
_TABLE = 1  # flag: a table and an end follow the chunks
_RAW, _LZ4 = 0, 1
_OUT_OF_BAND_MIN = 1024  # a smaller buffer isn't worth a chunk of its own
_INSTANT = 64 * 1024  # fewer bytes are compressed sooner than handed to a thread

_T = TypeVar("_T")
_R = TypeVar("_R")


class Map(Protocol):
    """What applies a function to many items, perhaps in parallel, in their order."""

    def __call__(self, fn: Callable[[_T], _R], items: Iterable[_T], /) -> Iterable[_R]:
        """Yield the results in the order of the items."""


class ValueHeader(Record, frozen=True):
    """What a value says of itself.

    `parts` are the raw sizes: the pickle, then its buffers. Each is cut into chunks of `chunk`
    bytes, of which the last may be smaller.
    """

    codec: str
    dictionary: Id
    key: str
    generation: Id
    python: str
    library: str
    chunk: int
    parts: list[int]


class Encoded(NamedTuple):
    """A value's bytes, in pieces that need not be joined, and what is known of it."""

    pieces: list[bytes | memoryview]
    length: int
    facts: Facts

    def join(self) -> bytes:
        """Return the bytes as one."""
        return b"".join(self.pieces)


_header_decoder = msgspec.msgpack.Decoder(ValueHeader)
_table_decoder = msgspec.msgpack.Decoder(list[int])
_encode = msgspec.msgpack.encode


def encode(
    value: Any, *, key: str, dictionary: bytes, generation: bytes, run: Map = map
) -> Encoded:
    """Return `value` as bytes.

    Parameters
    ----------
    value : object
        ``bytes`` are stored as they are; anything else is pickled by cloudpickle (protocol 5,
        buffers out of band).
    key, dictionary, generation
        What the bytes are written for; they carry it.
    run : callable, optional
        Like ``map``; called with the chunks of a large value.

    Raises
    ------
    UnpicklableValueError
        The value can't be pickled.
    """
    if type(value) is bytes:
        codec, parts = "bytes", [memoryview(value)]
    else:
        codec, parts = "pickle", _pickled(value, key)
    pieces: list[bytes | memoryview] = opening(
        codec,
        [part.nbytes for part in parts],
        key=key,
        dictionary=dictionary,
        generation=generation,
        library=_library(value),
    )
    cuts = (
        part[at : at + CHUNK_BYTES] for part in parts for at in range(0, part.nbytes, CHUNK_BYTES)
    )
    chunks = [(seed(generation, number), cut) for number, cut in enumerate(cuts)]
    nbytes = sum(part.nbytes for part in parts)
    stored = list(map(compressed, chunks) if nbytes < _INSTANT else run(compressed, chunks))
    for prefix, body in stored:
        pieces += [prefix, body]
    pieces += closing([len(prefix) + len(body) for prefix, body in stored])
    return Encoded(pieces, sum(map(len, pieces)), _facts(value, nbytes))


def opening(
    codec: str, parts: list[int], *, key: str, dictionary: bytes, generation: bytes, library: str
) -> list[bytes | memoryview]:
    """Return what stands before the chunks of a value whose parts have these sizes."""
    header = _encode(
        ValueHeader(
            codec, dictionary, key, generation, python_version(), library, CHUNK_BYTES, parts
        )
    )
    flags = _TABLE if sum(-(-size // CHUNK_BYTES) for size in parts) > 1 else 0
    return [_sealed(_START, (_MAGIC, FORMAT_VERSION, flags, len(header)), header), header]


def closing(lengths: list[int]) -> list[bytes]:
    """Return what stands behind chunks that take so many bytes each: table and end, if any."""
    if len(lengths) < 2:
        return []
    table = _encode(lengths)
    return [table, _END.pack(len(table), xxhash.xxh3_64_intdigest(table), _MAGIC)]


def _pickled(value: Any, key: str) -> list[memoryview]:
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
    return [memoryview(out.getvalue()), *parts]


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle, but a read-only array (a memory map's, say) comes back writable."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is np.ndarray and not obj.flags.writeable and not obj.dtype.hasobject:
            return _WritableAlias.of(obj).__reduce_ex__(5)
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


def seed(generation: bytes, number: int) -> int:
    """Return what ties a chunk's checksum to its value, and to its place in it."""
    return (int.from_bytes(generation[:8], "little") + number) % (1 << 64)


def compressed(seeded: tuple[int, memoryview]) -> tuple[bytes, bytes | memoryview]:
    """Return a chunk's header and body: an LZ4 frame, or the bytes if LZ4 can't shrink them."""
    salt, chunk = seeded
    packed = frames.deflate(chunk)
    kind, body = (_LZ4, packed) if len(packed) < chunk.nbytes else (_RAW, chunk)
    return _sealed(_CHUNK, (kind, chunk.nbytes, len(body)), body, salt), body


def _sealed(prefix: struct.Struct, fields: tuple[Any, ...], body: Any, salt: int = 0) -> bytes:
    """Return a prefix: its fields, and the checksum of them and of the body."""
    digest = xxhash.xxh3_64(prefix.pack(*fields, 0), salt)
    digest.update(body)
    return prefix.pack(*fields, digest.intdigest())


def decode(
    blob: bytes | bytearray | memoryview,
    *,
    key: str,
    dictionary: bytes,
    generation: bytes,
    path: str,
    run: Map = map,
) -> Any:
    """Return the object that the bytes hold; it shares no memory with them.

    Raises
    ------
    CorruptBlobError
        The bytes fail a checksum, or are those of another key, generation or dictionary.
    FormatVersionError
        A newer remotedict wrote them.
    UnreadableValueError
        They are whole, but the object can't be made: a module is missing, say.
    """
    view = memoryview(blob)
    header, at, tabled = read_header(view, dictionary, generation, path)
    chunks = list(_chunks(view, at, header, tabled, path))

    def unpack(chunk: Chunk) -> bytes | bytearray | memoryview:
        return chunk.unpack(path)

    bodies = iter(map(unpack, chunks) if len(blob) < _INSTANT else run(unpack, chunks))
    counts = [-(-size // header.chunk) for size in header.parts]
    parts = [[next(bodies) for _ in range(count)] for count in counts]
    if header.codec == "bytes":
        return b"".join(parts[0])
    if header.codec != "pickle":
        raise FormatVersionError(path, f"its codec is {header.codec!r}")
    try:
        buffers = [_writable(part, size) for part, size in zip(parts, header.parts, strict=True)]
        return pickle.loads(buffers[0], buffers=buffers[1:])
    except Exception as exc:
        written = f"Python {header.python}" + (f" and {header.library}" if header.library else "")
        reason = f"{type(exc).__name__}: {exc} (it was written with {written})"
        raise UnreadableValueError(key, reason) from exc


def read_header(
    view: memoryview, dictionary: bytes, generation: bytes, path: str
) -> tuple[ValueHeader, int, bool]:
    """Return what a value says of itself, the offset of its first chunk, and if it has a table."""
    if len(view) < _START.size:
        raise CorruptBlobError(path, f"a value of {len(view)} bytes is too short")
    magic, version, flags, length, _checksum = _START.unpack_from(view)
    if magic != _MAGIC:
        raise CorruptBlobError(path, f"a value begins with {magic!r}")
    if version > FORMAT_VERSION:
        raise FormatVersionError(path, f"a value has format version {version}")
    raw = view[_START.size : _START.size + length]
    if view[: _START.size] != _sealed(_START, (magic, version, flags, length), raw):
        raise CorruptBlobError(path, "a value's header fails its checksum")
    try:
        header = _header_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise CorruptBlobError(path, f"a value's header can't be decoded: {exc}") from exc
    if not header.parts or min(header.parts) < 0 or header.chunk < 1:
        raise CorruptBlobError(path, "a value has no parts")
    if (header.dictionary, header.generation) != (dictionary, generation):
        raise CorruptBlobError(
            path, f"it was written for key {header.key!r} of another dictionary or generation"
        )
    return header, _START.size + length, bool(flags & _TABLE)


class Chunk(NamedTuple):
    """A chunk as it is stored, of which only the sizes were checked."""

    salt: int
    prefix: memoryview
    kind: int
    size: int
    body: memoryview

    @classmethod
    def at(cls, view: memoryview, at: int, size: int, salt: int, path: str) -> Chunk:
        """Return the chunk at an offset, which holds `size` bytes before compression."""
        if len(view) - at < _CHUNK.size:
            raise CorruptBlobError(path, "a value ends before its last chunk")
        prefix = view[at : at + _CHUNK.size]
        kind, raw, stored, _checksum = _CHUNK.unpack(prefix)
        body = view[at + _CHUNK.size : at + _CHUNK.size + stored]
        right = raw == size and len(body) == stored and kind in (_RAW, _LZ4)
        if not right or (kind == _RAW and stored != size):
            raise CorruptBlobError(path, "a chunk of a value has the wrong size or kind")
        return cls(salt, prefix, kind, size, body)

    def unpack(self, path: str) -> bytes | bytearray | memoryview:
        """Return the bytes before compression, or raise CorruptBlobError."""
        fields = (self.kind, self.size, len(self.body))
        if self.prefix != _sealed(_CHUNK, fields, self.body, self.salt):
            raise CorruptBlobError(path, "a chunk of a value fails its checksum")
        if self.kind == _RAW:
            return self.body
        try:
            return frames.inflate(self.body, self.size)
        except ValueError as exc:
            raise CorruptBlobError(path, f"a chunk of a value: {exc}") from exc


def _chunks(
    view: memoryview, at: int, header: ValueHeader, tabled: bool, path: str
) -> Iterator[Chunk]:
    lengths: list[int] = []
    for part in header.parts:
        left = part
        while left:
            salt = seed(header.generation, len(lengths))
            chunk = Chunk.at(view, at, min(left, header.chunk), salt, path)
            yield chunk
            lengths.append(len(chunk.prefix) + len(chunk.body))
            at += lengths[-1]
            left -= chunk.size
    if tabled:
        table, length = read_table(view[at:], path)
        at += length
        if table != lengths:
            raise CorruptBlobError(path, "a value's table isn't that of its chunks")
    if at != len(view):
        raise CorruptBlobError(path, "a value has bytes after its end")


def read_table(tail: memoryview, path: str) -> tuple[list[int], int]:
    """Return how many bytes each chunk takes, and table and end of a value that ends so."""
    at = len(tail) - _END.size
    length, checksum, magic = _END.unpack_from(tail, at) if at >= 0 else (1, 0, b"")
    table = tail[at - length : at] if length <= at else tail[:0]
    if (len(table), magic, xxhash.xxh3_64_intdigest(table)) != (length, _MAGIC, checksum):
        raise CorruptBlobError(path, "a value's table fails its checksum")
    try:
        lengths = _table_decoder.decode(table)
    except msgspec.DecodeError as exc:
        raise CorruptBlobError(path, f"a value's table can't be decoded: {exc}") from exc
    return lengths, length + _END.size


def _writable(pieces: list[bytes | bytearray | memoryview], size: int) -> bytearray | memoryview:
    """Return a part in memory of its own, for the object to keep."""
    if len(pieces) == 1:
        only = pieces[0]
        return only if isinstance(only, bytearray) else bytearray(only)
    # np.empty, since a bytearray would be zeroed first.
    whole = np.empty(size, np.uint8).data
    at = 0
    for piece in pieces:
        whole[at : at + len(piece)] = piece
        at += len(piece)
    return whole


def _facts(value: Any, nbytes: int) -> Facts:
    shape = dtype = None
    try:
        shape = getattr(value, "shape", None)
        dtype = getattr(value, "dtype", None)
        if not (isinstance(shape, tuple) and all(type(n) is int for n in shape)):
            shape = None
        dtype = None if dtype is None or isinstance(dtype, type(lambda: 0)) else str(dtype)[:60]
    except Exception:  # noqa: BLE001 - a foreign object's attributes may do anything
        shape = dtype = None
    return Facts(type_name(type(value)), nbytes, shape, dtype)


def type_name(cls: type) -> str:
    """Return what the facts call a class: the first part of its module, and its name."""
    package = _package(cls)
    return cls.__qualname__ if package in ("", "builtins") else f"{package}.{cls.__qualname__}"


def _library(value: Any) -> str:
    package = _package(type(value))
    # The module's own dict: a lazy module's __getattr__ may do anything.
    version = getattr(sys.modules.get(package), "__dict__", {}).get("__version__")
    return f"{package} {version}" if isinstance(version, str) else ""


def _package(cls: type) -> str:
    module = getattr(cls, "__module__", None)
    return module.partition(".")[0] if isinstance(module, str) else ""
