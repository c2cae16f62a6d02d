"""Values: from objects to self-describing bytes and back.

A value is a fixed start, a header record, and chunks that each carry their size and checksum;
with more than one chunk, a table of them closes it. docs/format.md says every byte.

No byte is moved without need. Writing packs each chunk, or copies it as it is, into the block that
will travel, and takes its checksum there: so what others do to an array meanwhile can't part the
two. Reading unpacks each chunk into the memory that the object will keep.
"""

from __future__ import annotations

import io
import struct
from functools import partial
from itertools import islice
from platform import python_version
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

import msgspec
import numpy as np
from xxhash import xxh3_64_intdigest as digest

from remotedict.errors import (
    CorruptBlobError,
    FormatVersionError,
    UnpicklableValueError,
)
from remotedict.pure import lz4
from remotedict.pure.chunks import (
    HEADER,
    INSTANT_BYTES,
    MAGIC,
    PREFIX_BYTES,
    Binding,
    closing,
    opened,
    pack,
    small,
    unpack_into,
)
from remotedict.pure.facts import facts, library
from remotedict.pure.keyring import check_flags
from remotedict.pure.records import FORMAT_VERSION, Count, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from remotedict.pure.coding import Codec
    from remotedict.pure.keyring import Keyring
    from remotedict.pure.pieces import Pieces
    from remotedict.pure.records import Facts

    Buffer = bytes | bytearray | memoryview

CHUNK_BYTES = 1024 * 1024
"""How many bytes of a value are compressed, checked and read as one."""

# Magic, format version, codec, flags; checksum of all that and of what follows up to the first
# chunk; length of that, size of a chunk, dictionary, generation, size of the first part.
_START = struct.Struct("<4sHBBQII16s16sQ")
_CHECKED = 16  # from here on; what comes before the checksum is its seed
_SEED_BYTES = 8
_BUFFERS = (bytes, bytearray, memoryview)
START_BYTES = _START.size

_BLOCK_CHUNKS = 8  # chunks that are made, and travel, as one
_MORE = 128  # a flag, beside those of keyrings: the value has more than one part
_CODECS = ("bytes", "pickle", "safe")
_HEADER_MAX = 16 * 1024 * 1024
PYTHON = python_version()

_USUAL = {
    int.from_bytes(struct.pack("<4sHBB", MAGIC, FORMAT_VERSION, kind, 0), "little"): codec
    for kind, codec in enumerate(_CODECS)
}
_T = TypeVar("_T")
_R = TypeVar("_R")


class Map(Protocol):
    """What applies a function to many items, perhaps in parallel, in their order."""

    def __call__(self, fn: Callable[[_T], _R], items: Iterable[_T], /) -> Iterable[_R]:
        """Yield the results in the order of the items."""


class About(Record, frozen=True):
    """What a value says of itself, behind its fixed start. `more` are the sizes of later parts."""

    key: str
    python: str
    library: str
    more: list[Count]


class ValueHeader(NamedTuple):
    """What stands before the chunks of a value.

    `parts` are the raw sizes: the pickle, then its buffers. Each is cut into chunks of `chunk`
    bytes, of which the last may be smaller. `checksum` is that of the header.
    """

    codec: str
    flags: int
    checksum: int
    chunk: int
    dictionary: bytes
    generation: bytes
    parts: list[int]
    about: About


_about_decoder = msgspec.msgpack.Decoder(About)
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
    value: Any,
    by: Codec,
    *,
    key: str,
    dictionary: bytes,
    generation: bytes,
    run: Map = map,
    keyring: Keyring | None = None,
) -> Encoded:
    """Return `value` as bytes.

    Parameters
    ----------
    value : object
        ``bytes`` are stored as they are.
    by : Codec
        What makes bytes of anything else.
    key, dictionary, generation
        What the bytes are written for; they carry it.
    run : callable, optional
        Like ``map``; called to make the blocks of a large value.
    keyring : Keyring, optional
        What signs and encrypts them.

    Raises
    ------
    RemoteDictError
        The codec refuses; see `Codec.write`.
    """
    codec, parts = by.write(value, key)
    sizes = [len(part) for part in parts]
    head = opening(
        codec,
        sizes,
        key=key,
        dictionary=dictionary,
        generation=generation,
        library=library(value),
        keyring=keyring,
    )
    if len(parts) == 1 and 0 < sizes[0] <= min(INSTANT_BYTES, CHUNK_BYTES):
        whole = head + small(parts[0], _binding(head, keyring))
        return Encoded(facts(value, sizes[0]), lambda: iter([memoryview(whole)]), whole)
    several, sent = sum(sizes) > _BLOCK_CHUNKS * CHUNK_BYTES, Sent(key, generation)

    def make() -> Iterator[memoryview]:
        chunks = (
            part[at : at + CHUNK_BYTES] for part in parts for at in range(0, len(part), CHUNK_BYTES)
        )
        return blocks(head, chunks, sent, run if several else map, keyring)

    return Encoded(facts(value, sum(sizes)), make)


def opening(
    codec: str,
    parts: list[int],
    *,
    key: str,
    dictionary: bytes,
    generation: bytes,
    library: str,
    keyring: Keyring | None = None,
) -> bytes:
    """Return what stands before the chunks of a value whose parts have these sizes."""
    about: Buffer = _encode(About(key, PYTHON, library, parts[1:]))
    flags = (keyring.flags if keyring else 0) | (_MORE if len(parts) > 1 else 0)
    length = len(about) + (keyring.overhead if keyring else 0)
    kind = _CODECS.index(codec)
    fields = (length, CHUNK_BYTES, dictionary, generation, parts[0])
    if keyring:
        context = _START.pack(MAGIC, FORMAT_VERSION, kind, flags, 0, *fields)
        about = keyring.close(about, context)
    unchecked = _START.pack(MAGIC, FORMAT_VERSION, kind, flags, 0, *fields) + about
    checksum = digest(unchecked[_CHECKED:], _seed(unchecked))
    return _START.pack(MAGIC, FORMAT_VERSION, kind, flags, checksum, *fields) + about


def _seed(head: Buffer) -> int:
    return int.from_bytes(head[:_SEED_BYTES], "little")


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
    head: bytes,
    chunks: Iterable[Buffer],
    sent: Sent,
    run: Map = map,
    keyring: Keyring | None = None,
) -> Iterator[memoryview]:
    """Yield a value's bytes: the head, chunks, table and end, a few chunks at a time.

    Parameters
    ----------
    head : bytes
        Its `opening`.
    chunks : iterable of bytes-like
        Its parts, cut into chunks. They may change meanwhile: they are looked at once.
    sent : Sent
        What was sent of it before.
    run : callable, optional
        Like ``map``; called to make the blocks.
    keyring : Keyring, optional
        What signs and encrypts them.
    """
    lengths: list[int] = []
    make = partial(_block, _binding(head, keyring))
    for block, made in run(make, _batches(head, iter(chunks))):
        for checksum, stored in made:
            sent.check(len(lengths), checksum)
            lengths.append(PREFIX_BYTES + stored)
        yield block
    if end := closing(lengths):
        yield memoryview(end)


def _binding(head: bytes, keyring: Keyring | None) -> Binding:
    """Return that of a value which begins so."""
    _, _, _, _, checksum, _, _, _, generation, _ = _START.unpack_from(head)
    return Binding(checksum, generation, keyring)


def _batches(head: bytes, chunks: Iterator[Buffer]) -> Iterator[tuple[bytes, int, list[Buffer]]]:
    """Yield what `_block` is to make: what comes first, the number of the first chunk, chunks."""
    number, batch = 0, list(islice(chunks, _BLOCK_CHUNKS))
    yield head, number, batch
    while len(batch) == _BLOCK_CHUNKS and (batch := list(islice(chunks, _BLOCK_CHUNKS))):
        number += _BLOCK_CHUNKS
        yield b"", number, batch


def _block(
    binding: Binding, batch: tuple[bytes, int, list[Buffer]]
) -> tuple[memoryview, list[tuple[int, int]]]:
    """Return a block, and of each of its chunks the checksum and the size as stored."""
    head, number, chunks = batch
    at = len(head)
    size = at + sum(map(len, chunks)) + (PREFIX_BYTES + binding.overhead) * len(chunks)
    # A bytearray would be zeroed first; but it is made sooner.
    out = memoryview(bytearray(size)) if size < INSTANT_BYTES else np.empty(size, np.uint8).data
    out[:at] = head
    made = []
    for chunk in chunks:
        start = at + PREFIX_BYTES
        stored = pack(chunk, out[start : start + len(chunk)])
        if binding.overhead:
            closed = binding.close(number, out[start : start + stored])
            stored = len(closed)
            out[start : start + stored] = closed
        checksum = binding.digest(number, out[start : start + stored])
        HEADER.pack_into(out, at, checksum, stored)
        made.append((checksum, stored))
        at = start + stored
        number += 1
    return out[:at], made


# -- reading ------------------------------------------------------------------------------------


Unpacked = tuple[str, list[Any], "About | bytes"]
"""A value's codec and its parts, checked and unpacked, in memory that nobody else has.

And what it says of itself, or the bytes that begin with that.
"""


def decode(
    data: Buffer | Pieces,
    by: Codec,
    *,
    key: str,
    dictionary: bytes,
    generation: bytes,
    path: str,
    run: Map = map,
    keyring: Keyring | None = None,
) -> Any:
    """Return the object that the bytes hold; see `unpack` and `Codec.read`."""
    unpacked = unpack(
        data,
        len(data),
        dictionary=dictionary,
        generation=generation,
        path=path,
        run=run,
        keyring=keyring,
    )
    return by.read(unpacked, key)


class _Quick(dict[int, "Callable[[bytes], tuple[Any, ...]]"]):
    """What reads the start of a value, and that of its first chunk, in one; by the size between.

    As `_START`, but all before the checksum is one number, and so are both ids.
    """

    def __missing__(self, about: int) -> Callable[[bytes], tuple[Any, ...]]:
        self[about] = struct.Struct(f"<QQII32sQ{about}xQI").unpack_from
        return self[about]


_quick = _Quick()


def intact(data: bytes, dictionary: bytes, generation: bytes, nbytes: int) -> Unpacked | None:
    """Return the parts of a small value if all is as usual; else `unpack` has to look closer.

    To look at many small values part by part costs more than the values.
    """
    if len(data) < START_BYTES:
        return None
    # The lowest bytes of its length: enough, as a rule, and there can't be many of them.
    about = data[_CHECKED] | (data[_CHECKED + 1] & 15) << 8
    at = START_BYTES + about
    body = data[at + PREFIX_BYTES :]
    if not body:
        return None
    seed, checksum, length, chunk, whose, size, first, stored = _quick[about](data)
    codec = _USUAL.get(seed)
    if (
        codec is None
        or length != about
        or whose != dictionary + generation
        or digest(data[_CHECKED:at], seed) != checksum
        or digest(body, checksum) != first
        or len(body) != stored
        or not 0 < size <= chunk
        or size != nbytes
    ):
        return None
    if len(body) != size:
        try:
            body = lz4.inflate_small(body, size)
        except ValueError:
            return None
    return codec, [body], data


def unpack(
    data: Buffer | Iterable[Buffer],
    length: int,
    *,
    dictionary: bytes,
    generation: bytes,
    path: str,
    run: Map = map,
    keyring: Keyring | None = None,
    nbytes: int | None = None,
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
    keyring : Keyring, optional
        What they must be signed and encrypted by.
    nbytes : int, optional
        How many bytes they may hold, as the index says.

    Raises
    ------
    CorruptBlobError
        The bytes fail a checksum, or are those of another generation or dictionary.
    FormatVersionError
        A newer remotedict wrote them.
    """
    view, more = begun(data)
    header, at = read_header(view, dictionary, generation, path, keyring)
    binding = Binding(header.checksum, generation, keyring)
    codec, sizes, about = header.codec, header.parts, header.about
    size = sum(sizes)
    if size > lz4.possible(length):  # before any memory is taken
        raise CorruptBlobError(path, "a value claims to hold more than it can")
    if nbytes is not None and size > nbytes:
        raise CorruptBlobError(path, "a value claims to hold more than the index says")
    if len(sizes) == 1 and 0 < size <= header.chunk and len(view) == length:
        data = opened(view[at:], size, 0, binding, path)
        return codec, [bytes(data) if codec == "bytes" else data], about
    source = Source(view, at, more, path)
    if codec == "bytes":
        whole = io.BytesIO(bytes(size))  # to be filled, and then given away without a copy
        with whole.getbuffer() as memory:
            _fill([memory], source, header.chunk, binding, run)
        return codec, [whole.getvalue()], about
    parts = [np.empty(part, np.uint8).data for part in sizes]
    _fill(parts, source, header.chunk, binding, map if size < INSTANT_BYTES else run)
    return codec, parts, about


def begun(data: Buffer | Iterable[Buffer]) -> tuple[memoryview, Iterator[Buffer]]:
    """Return the bytes that a value's header is in, and what comes then."""
    more: Iterator[Buffer] = iter(())
    if not isinstance(data, _BUFFERS):
        more = iter(data)
        data = next(more, b"")
    view = memoryview(data)
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
        checksum, stored = HEADER.unpack(self.take(PREFIX_BYTES))
        if stored > size:
            raise CorruptBlobError(self.path, "a chunk of a value is too large")
        return checksum, self.take(stored)

    def end(self) -> None:
        """Raise CorruptBlobError if there is anything left."""
        if self._at != len(self._view) or any(self._more):
            raise CorruptBlobError(self.path, "a value has bytes after its end")


def dictionary_of(head: bytes) -> bytes | None:
    """Return the id of the dictionary that a value was written for; None if it isn't one."""
    if len(head) < START_BYTES or not head.startswith(MAGIC):
        return None
    return cast("bytes", _START.unpack_from(head)[7])


def head_bytes(head: Buffer) -> int:
    """Return how many bytes stand before the first chunk of a value that begins so."""
    length = _START.unpack_from(head)[5] if len(head) >= START_BYTES else 0
    # What is damaged claims anything; who wrote it can't have had a key of such a size.
    return START_BYTES + length if length <= _HEADER_MAX else len(head)


def read_header(
    view: memoryview,
    dictionary: bytes,
    generation: bytes,
    path: str,
    keyring: Keyring | None = None,
) -> tuple[ValueHeader, int]:
    """Return what a value that begins so says of itself, and the offset of its first chunk.

    It must have been written for this dictionary and generation.
    """
    header, at = any_header(view, path, keyring)
    if header.dictionary != dictionary or header.generation != generation:
        key = header.about.key
        reason = f"it was written for key {key!r} of another dictionary or generation"
        raise CorruptBlobError(path, reason)
    return header, at


def any_header(
    view: memoryview, path: str, keyring: Keyring | None = None
) -> tuple[ValueHeader, int]:
    """Return the header of a value, whatever it was written for, and where its chunks begin."""
    if len(view) < START_BYTES:
        raise CorruptBlobError(path, f"a value of {len(view)} bytes is too short")
    magic, version, kind, flags, checksum, *fields = _START.unpack_from(view)
    length, chunk, dictionary, generation, size = fields
    if magic != MAGIC:
        raise CorruptBlobError(path, f"a value begins with {magic!r}")
    if version > FORMAT_VERSION:
        raise FormatVersionError(path, f"a value has format version {version}")
    at = START_BYTES + length
    if digest(view[_CHECKED:at], _seed(view)) != checksum or version != FORMAT_VERSION:
        raise CorruptBlobError(path, "a value's header fails its checksum")
    check_flags(flags & ~_MORE, keyring, path)
    if kind >= len(_CODECS):
        raise FormatVersionError(path, f"a value has codec {kind}")
    raw: Buffer = view[START_BYTES:at]
    if keyring:
        context = _START.pack(magic, version, kind, flags, 0, *fields)
        raw = keyring.open(raw, context, path)
    try:
        about = _about_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise CorruptBlobError(path, f"a value's header can't be decoded: {exc}") from exc
    if not chunk or bool(about.more) != bool(flags & _MORE):
        raise CorruptBlobError(path, "a value's header contradicts itself")
    parts = [size, *about.more]
    header = ValueHeader(
        _CODECS[kind], flags, checksum, chunk, dictionary, generation, parts, about
    )
    return header, at


def _fill(parts: list[memoryview], source: Source, size: int, binding: Binding, run: Map) -> None:
    """Unpack each chunk to its place while the next ones are taken; check the table."""
    lengths: list[int] = []

    def chunks() -> Iterator[tuple[memoryview, memoryview, int, int]]:
        for part in parts:
            for at in range(0, len(part), size):
                out = part[at : at + size]
                checksum, body = source.chunk(len(out) + binding.overhead)
                yield out, body, checksum, len(lengths)
                lengths.append(PREFIX_BYTES + len(body))

    for _ in run(partial(unpack_into, source.path, binding), chunks()):
        pass
    end = closing(lengths)
    if source.take(len(end)) != end:
        raise CorruptBlobError(source.path, "a value's table isn't that of its chunks")
    source.end()
