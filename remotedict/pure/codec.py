"""Values: from objects to self-describing bytes and back.

A value is a fixed start, a header record, and chunks that each carry their size and checksum;
with more than one chunk, a table of them closes it. docs/format.md says every byte.

No byte is moved without need. Writing packs each chunk, or copies it as it is, into the block that
will travel, and takes its checksum there: so what others do to an array meanwhile can't part the
two. Reading unpacks each chunk into the memory that the object will keep.
"""

from __future__ import annotations

import io
import pickle
import struct
from functools import partial
from itertools import islice
from platform import python_version
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol, TypeVar, cast

import msgspec
import numpy as np
from xxhash import xxh3_64_intdigest as digest

from remotedict.errors import (
    CorruptBlobError,
    FormatVersionError,
    UnpicklableValueError,
    UnreadableValueError,
)
from remotedict.pure import lz4
from remotedict.pure.facts import facts, library
from remotedict.pure.pickling import pickled
from remotedict.pure.records import FORMAT_VERSION, Count, Id, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from remotedict.pure.pieces import Pieces
    from remotedict.pure.records import Facts

    Buffer = bytes | bytearray | memoryview

CHUNK_BYTES = 1024 * 1024
"""How many bytes of a value are compressed, checked and read as one."""

MAGIC = b"RDvl"
_START = struct.Struct("<4sHQI")  # magic, format version, checksum of the header, its length
_CHUNK = struct.Struct("<QI")  # checksum, stored size
_BUFFERS = (bytes, bytearray, memoryview)
_END = struct.Struct("<IQ4s")  # table length, its checksum, magic
PREFIX_BYTES = _CHUNK.size
START_BYTES = _START.size

_BLOCK_CHUNKS = 8  # chunks that are made, and travel, as one
_INSTANT = 64 * 1024  # fewer bytes are copied sooner than the GIL is let go
_LZ4_MIN = 64  # fewer bytes LZ4 can hardly shrink
_SAMPLE, _SAMPLES = 4096, 8  # of a chunk, to see whether LZ4 is worth a try
_HEADER_MAX = 16 * 1024 * 1024
PYTHON = python_version()

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
    chunk: Annotated[int, msgspec.Meta(ge=1)]
    parts: Annotated[list[Count], msgspec.Meta(min_length=1)]


_header_decoder = msgspec.msgpack.Decoder(ValueHeader)
_table_decoder = msgspec.msgpack.Decoder(list[int])
_encode = msgspec.msgpack.encode


# -- writing ------------------------------------------------------------------------------------


class Encoded:
    """A value's bytes, in blocks that are made while they are iterated over.

    They can be iterated over again, to be sent again. Those of a small value are made at once.

    Attributes
    ----------
    facts : Facts
        What is known of the value.
    length : int
        How many bytes it takes as stored; -1 until all of them were made.
    """

    __slots__ = ("_make", "_whole", "facts", "length")

    def __init__(
        self,
        facts: Facts,
        make: Callable[[], Iterator[memoryview]],
        whole: bytes | None = None,
    ) -> None:
        self.facts = facts
        self.length = -1 if whole is None else len(whole)
        self._make = make
        self._whole = whole
        if whole is None and facts.nbytes <= CHUNK_BYTES:
            self.keep()

    def __iter__(self) -> Iterator[memoryview]:
        """Yield the blocks."""
        length = 0
        for block in self._make():
            length += len(block)
            yield block
        self.length = length

    def keep(self) -> None:
        """Make them now, once and for all: the value may change from here on."""
        made = list(self)
        for n, block in enumerate(made):
            if block.nbytes < memoryview(cast("Buffer", block.obj)).nbytes:
                made[n] = memoryview(bytes(block))  # and not all the room that there was for it
        self._make = lambda: iter(made)

    def join(self) -> bytes:
        """Return the bytes as one."""
        return b"".join(self) if self._whole is None else self._whole


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
        Like ``map``; called to make the blocks of a large value.

    Raises
    ------
    UnpicklableValueError
        The value can't be pickled.
    """
    if type(value) is bytes:
        codec, parts = "bytes", [memoryview(value)]
    else:
        codec, parts = "pickle", pickled(value, key)
    sizes = [len(part) for part in parts]
    head = opening(
        codec,
        sizes,
        key=key,
        dictionary=dictionary,
        generation=generation,
        library=library(value),
    )
    if len(parts) == 1 and 0 < sizes[0] <= min(_INSTANT, CHUNK_BYTES):
        whole = head + _chunk(parts[0], seed(generation, 0))
        return Encoded(facts(value, sizes[0]), lambda: iter([memoryview(whole)]), whole)
    several, sent = sum(sizes) > _BLOCK_CHUNKS * CHUNK_BYTES, Sent(key, generation)

    def make() -> Iterator[memoryview]:
        chunks = (
            part[at : at + CHUNK_BYTES] for part in parts for at in range(0, len(part), CHUNK_BYTES)
        )
        return blocks(head, chunks, sent, run if several else map)

    return Encoded(facts(value, sum(sizes)), make)


def opening(
    codec: str, parts: list[int], *, key: str, dictionary: bytes, generation: bytes, library: str
) -> bytes:
    """Return what stands before the chunks of a value whose parts have these sizes."""
    header = _encode(
        ValueHeader(codec, dictionary, key, generation, PYTHON, library, CHUNK_BYTES, parts)
    )
    return _START.pack(MAGIC, FORMAT_VERSION, digest(header), len(header)) + header


def closing(lengths: list[int]) -> bytes:
    """Return what stands behind chunks that take so many bytes each: table and end, if any."""
    if len(lengths) < 2:
        return b""
    table = _encode(lengths)
    return table + _END.pack(len(table), digest(table), MAGIC)


class Sent:
    """Sees to it that what is sent again under one name is the same.

    An attempt that went without an answer may be carried out after a later one.
    """

    def __init__(self, key: str, generation: bytes) -> None:
        self.generation = generation
        self._key = key
        self._checksums: list[int] = []

    def check(self, number: int, checksum: int) -> None:
        """Raise UnpicklableValueError if chunk `number` was another one before."""
        if number == len(self._checksums):
            self._checksums.append(checksum)
        elif self._checksums[number] != checksum:
            reason = "it changed while it was uploaded, and had to be sent again"
            raise UnpicklableValueError(self._key, reason)


def blocks(
    head: bytes, chunks: Iterable[Buffer], sent: Sent, run: Map = map
) -> Iterator[memoryview]:
    """Yield a value's bytes: the head, chunks, table and end, a few chunks at a time.

    Parameters
    ----------
    head : bytes
        Its `opening`.
    chunks : iterable of bytes-like
        Its parts, cut into chunks. They may change meanwhile: they are looked at once.
    sent : Sent
        Has the generation, and what was sent of it before.
    run : callable, optional
        Like ``map``; called to make the blocks.
    """
    lengths: list[int] = []
    batches = _batches(head, iter(chunks), sent.generation)
    for block, made in run(_block, batches):
        for checksum, stored in made:
            sent.check(len(lengths), checksum)
            lengths.append(PREFIX_BYTES + stored)
        yield block
    if end := closing(lengths):
        yield memoryview(end)


def _batches(
    head: bytes, chunks: Iterator[Buffer], generation: bytes
) -> Iterator[tuple[bytes, int, list[Buffer]]]:
    """Yield what `_block` is to make: what comes first, the seed of the first chunk, chunks."""
    number, batch = 0, list(islice(chunks, _BLOCK_CHUNKS))
    yield head, seed(generation, 0), batch
    while len(batch) == _BLOCK_CHUNKS and (batch := list(islice(chunks, _BLOCK_CHUNKS))):
        number += _BLOCK_CHUNKS
        yield b"", seed(generation, number), batch


def _block(batch: tuple[bytes, int, list[Buffer]]) -> tuple[memoryview, list[tuple[int, int]]]:
    """Return a block, and of each of its chunks the checksum and the size as stored."""
    head, salt, chunks = batch
    at = len(head)
    size = at + sum(map(len, chunks)) + PREFIX_BYTES * len(chunks)
    # A bytearray would be zeroed first; but it is made sooner.
    out = memoryview(bytearray(size)) if size < _INSTANT else np.empty(size, np.uint8).data
    out[:at] = head
    made = []
    for chunk in chunks:
        start = at + PREFIX_BYTES
        stored = _pack(chunk, out[start : start + len(chunk)])
        checksum = digest(out[start : start + stored], salt)
        _CHUNK.pack_into(out, at, checksum, stored)
        made.append((checksum, stored))
        at = start + stored
        salt = (salt + 1) % (1 << 64)
    return out[:at], made


def _pack(chunk: Buffer, out: memoryview) -> int:
    """Write a chunk as an LZ4 block, or as it is if that gains little; return its size."""
    size = len(chunk)
    if size >= _LZ4_MIN and _shrinks(chunk):
        stored = lz4.deflate_into(chunk, out[: size - size // 16])
        if stored:
            return stored
    _copy(chunk, out)
    return size


def _chunk(data: Buffer, salt: int) -> bytes:
    """Return a small chunk, with what stands before it."""
    size = len(data)
    body = data
    if size >= _LZ4_MIN:
        packed = lz4.deflate(data)
        if len(packed) <= size - size // 16:
            body = packed
    return _CHUNK.pack(digest(body, salt), len(body)) + body


def _shrinks(chunk: Buffer) -> bool:
    """Tell whether LZ4 gains something on a chunk, or, if it is large, on a few samples of it."""
    step = len(chunk) // _SAMPLES
    if step < 4 * _SAMPLE:
        return True
    view, scratch = memoryview(chunk), bytearray(_SAMPLE + _SAMPLE // 16)
    return any(
        lz4.deflate_into(view[at : at + _SAMPLE], scratch) < _SAMPLE - _SAMPLE // 16
        for at in range(step // 2, len(chunk), step)
    )


def _copy(source: Buffer, target: memoryview) -> None:
    if len(source) < _INSTANT:
        target[:] = source
    else:  # without the GIL
        np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))


def seed(generation: bytes, number: int) -> int:
    """Return what ties a chunk's checksum to its value, and to its place in it."""
    return (int.from_bytes(generation[:8], "little") + number) % (1 << 64)


# -- reading ------------------------------------------------------------------------------------


class Unpacked(NamedTuple):
    """A value's parts, checked and unpacked, in memory that nobody else has."""

    header: ValueHeader
    parts: list[Any]


def decode(
    data: Buffer | Pieces,
    *,
    key: str,
    dictionary: bytes,
    generation: bytes,
    path: str,
    run: Map = map,
) -> Any:
    """Return the object that the bytes hold; see `unpack` and `load`."""
    unpacked = unpack(
        data, len(data), dictionary=dictionary, generation=generation, path=path, run=run
    )
    return load(unpacked, key)


def load(unpacked: Unpacked, key: str) -> Any:
    """Return the object; it shares no memory with what was unpacked. Runs its own code.

    Raises
    ------
    UnreadableValueError
        It can't be made: a module is missing, say.
    """
    header, parts = unpacked
    if header.codec == "bytes":
        return parts[0]
    try:
        return pickle.loads(parts[0], buffers=parts[1:])
    except Exception as exc:
        written = f"Python {header.python}" + (f" and {header.library}" if header.library else "")
        reason = f"{type(exc).__name__}: {exc} (it was written with {written})"
        raise UnreadableValueError(key, reason) from exc


def intact(data: Buffer, dictionary: bytes, generation: bytes) -> Unpacked | None:
    """Return the parts of a small value if all is as usual; else `unpack` has to look closer.

    To look at many small values part by part costs more than the values.
    """
    try:
        magic, version, checksum, length = _START.unpack_from(data)
        at = START_BYTES + length
        view = memoryview(data)
        raw = view[START_BYTES:at]
        if magic != MAGIC or version != FORMAT_VERSION or digest(raw) != checksum:
            return None
        header = _header_decoder.decode(raw)
        checksum, stored = _CHUNK.unpack_from(data, at)
        body: Buffer = view[at + PREFIX_BYTES :]
        codec, size = header.codec, header.parts[0]
        if (
            header.dictionary != dictionary
            or header.generation != generation
            or codec not in ("bytes", "pickle")
            or len(header.parts) != 1
            or not 0 < size <= header.chunk
            or len(body) != stored
            or digest(body, seed(generation, 0)) != checksum
        ):
            return None
        if stored != size:
            body = lz4.inflate(body, size)
    except (struct.error, msgspec.DecodeError, ValueError, RecursionError):
        return None
    return Unpacked(header, [bytes(body) if codec == "bytes" else body])


def unpack(
    data: Buffer | Iterable[Buffer],
    length: int,
    *,
    dictionary: bytes,
    generation: bytes,
    path: str,
    run: Map = map,
) -> Unpacked:
    """Return the parts of a value, each unpacked straight into memory of its own.

    Parameters
    ----------
    data : bytes-like, or iterable of bytes-like
        A value's bytes, perhaps as they arrive.
    length : int
        How many there should be.
    dictionary, generation
        What it should have been written for.
    path : str
        Where they come from, for errors.
    run : callable, optional
        Like ``map``; called with the chunks of a large value.

    Raises
    ------
    CorruptBlobError
        The bytes fail a checksum, or are those of another generation or dictionary.
    FormatVersionError
        A newer remotedict wrote them.
    """
    view, more = begun(data)
    header, at = read_header(view, dictionary, generation, path)
    codec, sizes = header.codec, header.parts
    if codec not in ("bytes", "pickle"):
        raise FormatVersionError(path, f"its codec is {codec!r}")
    size = sum(sizes)
    if size > lz4.possible(length):  # before any memory is taken
        raise CorruptBlobError(path, "a value claims to hold more than it can")
    if len(sizes) == 1 and 0 < size <= header.chunk and len(view) == length:
        data = opened(view[at:], size, seed(generation, 0), path)
        return Unpacked(header, [bytes(data) if codec == "bytes" else data])
    source = Source(view, at, more, path)
    if codec == "bytes":
        whole = io.BytesIO(bytes(size))  # to be filled, and then given away without a copy
        with whole.getbuffer() as memory:
            _fill([memory], source, header, run)
        return Unpacked(header, [whole.getvalue()])
    parts = [np.empty(part, np.uint8).data for part in sizes]
    _fill(parts, source, header, map if size < _INSTANT else run)
    return Unpacked(header, parts)


def begun(data: Buffer | Iterable[Buffer]) -> tuple[memoryview, Iterator[Buffer]]:
    """Return the bytes that a value's header is in, and what comes then."""
    whole = isinstance(data, _BUFFERS)
    more = iter(cast("Iterable[Buffer]", () if whole else data))
    view = memoryview(cast("Buffer", data) if whole else next(more, b""))
    while len(view) < head_bytes(view) and (piece := next(more, None)):  # a very long key
        view = memoryview(b"".join([view, piece]))
    return view, more


class Source:
    """A value's bytes behind its header, from which one piece is taken after the other.

    Parameters
    ----------
    view : memoryview
        What came first.
    at : int
        How much of that is taken.
    more : iterator of bytes-like
        What comes then.
    path : str
        Where it comes from.
    """

    __slots__ = ("_at", "_more", "_view", "path")

    def __init__(self, view: memoryview, at: int, more: Iterator[Buffer], path: str) -> None:
        self._view = view
        self._at = at
        self._more = more
        self.path = path

    def take(self, size: int) -> memoryview:
        """Return the next bytes; only those that came in several pieces are copied."""
        start, end = self._at, self._at + size
        if end <= len(self._view):
            self._at = end
            return self._view[start:end]
        pieces = [self._view[start:]]
        missing = end - len(self._view)
        while missing:
            piece = next(self._more, None)
            if piece is None:
                raise CorruptBlobError(self.path, f"a value ends {missing} bytes too early")
            self._view, self._at = memoryview(piece), min(missing, len(piece))
            pieces.append(self._view[: self._at])
            missing -= self._at
        return memoryview(b"".join(pieces))

    def chunk(self, size: int) -> tuple[int, memoryview]:
        """Return the checksum and the stored bytes of a chunk that holds so many."""
        checksum, stored = _CHUNK.unpack(self.take(PREFIX_BYTES))
        if stored > size:
            raise CorruptBlobError(self.path, "a chunk of a value is too large")
        return checksum, self.take(stored)

    def end(self) -> None:
        """Raise CorruptBlobError if there is anything left."""
        if self._at != len(self._view) or any(self._more):
            raise CorruptBlobError(self.path, "a value has bytes after its end")


def is_value(head: bytes) -> bool:
    """Tell whether a blob that begins so is a value, or a pack of them."""
    return head.startswith(MAGIC)


def head_bytes(head: Buffer) -> int:
    """Return how many bytes stand before the first chunk of a value that begins so."""
    length = _START.unpack_from(head)[3] if len(head) >= START_BYTES else 0
    # What is damaged claims anything; who wrote it can't have had a key of such a size.
    return START_BYTES + length if length <= _HEADER_MAX else len(head)


def read_header(
    view: memoryview, dictionary: bytes, generation: bytes, path: str
) -> tuple[ValueHeader, int]:
    """Return what a value that begins so says of itself, and the offset of its first chunk."""
    header, at = introduction(view, path)
    if header.dictionary != dictionary or header.generation != generation:
        raise CorruptBlobError(
            path, f"it was written for key {header.key!r} of another dictionary or generation"
        )
    return header, at


def introduction(view: memoryview, path: str) -> tuple[ValueHeader, int]:
    """Do the same for a value of which nothing is known; whose it is isn't checked."""
    if len(view) < START_BYTES:
        raise CorruptBlobError(path, f"a value of {len(view)} bytes is too short")
    magic, version, checksum, length = _START.unpack_from(view)
    if magic != MAGIC:
        raise CorruptBlobError(path, f"a value begins with {magic!r}")
    if version > FORMAT_VERSION:
        raise FormatVersionError(path, f"a value has format version {version}")
    at = START_BYTES + length
    raw = view[START_BYTES:at]
    if digest(raw) != checksum or version != FORMAT_VERSION:
        raise CorruptBlobError(path, "a value's header fails its checksum")
    try:
        header = _header_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise CorruptBlobError(path, f"a value's header can't be decoded: {exc}") from exc
    return header, at


def _fill(parts: list[memoryview], source: Source, header: ValueHeader, run: Map) -> None:
    """Unpack each chunk to its place while the next ones are taken; check the table."""
    lengths: list[int] = []

    def chunks() -> Iterator[tuple[memoryview, memoryview, int, int]]:
        for part in parts:
            for at in range(0, len(part), header.chunk):
                out = part[at : at + header.chunk]
                checksum, body = source.chunk(len(out))
                yield out, body, checksum, seed(header.generation, len(lengths))
                lengths.append(PREFIX_BYTES + len(body))

    for _ in run(partial(_unpack, source.path), chunks()):
        pass
    end = closing(lengths)
    if source.take(len(end)) != end:
        raise CorruptBlobError(source.path, "a value's table isn't that of its chunks")
    source.end()


def _unpack(path: str, chunk: tuple[memoryview, memoryview, int, int]) -> None:
    out, body, checksum, salt = chunk
    check(body, checksum, salt, path)
    if len(body) == len(out):
        _copy(body, out)
        return
    try:
        lz4.inflate_into(body, out)
    except ValueError as exc:
        raise CorruptBlobError(path, f"a chunk of a value: {exc}") from exc


def opened(stored: memoryview, size: int, salt: int, path: str) -> Buffer:
    """Return what one chunk holds: its own bytes, if they are stored so, or what is in them."""
    if len(stored) < PREFIX_BYTES:
        raise CorruptBlobError(path, "a value ends before its last chunk")
    checksum, length = _CHUNK.unpack_from(stored)
    body = stored[PREFIX_BYTES:]
    if len(body) != length or length > size:
        raise CorruptBlobError(path, "a chunk of a value has the wrong size")
    check(body, checksum, salt, path)
    if length == size:
        return body
    try:
        return lz4.inflate(body, size)
    except ValueError as exc:
        raise CorruptBlobError(path, f"a chunk of a value: {exc}") from exc


def check(body: memoryview, checksum: int, salt: int, path: str) -> None:
    """Raise CorruptBlobError unless this is the checksum of a chunk as it is stored."""
    if digest(body, salt) != checksum:
        raise CorruptBlobError(path, "a chunk of a value fails its checksum")


def read_table(tail: memoryview, path: str) -> tuple[list[int], int]:
    """Return how many bytes each chunk takes, and table and end of a value that ends so."""
    at = len(tail) - _END.size
    length, checksum, magic = _END.unpack_from(tail, at) if at >= 0 else (1, 0, b"")
    table = tail[at - length : at] if length <= at else tail[:0]
    if (len(table), magic, digest(table)) != (length, MAGIC, checksum):
        raise CorruptBlobError(path, "a value's table fails its checksum")
    try:
        lengths = _table_decoder.decode(table)
    except msgspec.DecodeError as exc:
        raise CorruptBlobError(path, f"a value's table can't be decoded: {exc}") from exc
    return lengths, length + _END.size
