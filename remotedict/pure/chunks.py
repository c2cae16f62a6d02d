"""Chunks: the pieces of a value, each packed, closed and checked for itself."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from xxhash import xxh3_64_intdigest as digest

from remotedict.errors import CorruptBlobError
from remotedict.pure import lz4

if TYPE_CHECKING:
    from remotedict.pure.keyring import Keyring
    from remotedict.pure.lz4 import Buffer

MAGIC = b"RDvl"
"""What a value begins with, and ends with if it has a table."""

HEADER = struct.Struct("<QI")
"""Before each chunk: the checksum of what is stored of it, and its size."""

PREFIX_BYTES = HEADER.size
INSTANT_BYTES = 64 * 1024
"""Fewer bytes are copied sooner than the GIL is let go."""

_END = struct.Struct("<IQ4s")  # table length, its checksum, magic
_LZ4_MIN = 64  # fewer bytes LZ4 can hardly shrink
_SAMPLE, _SAMPLES = 4096, 8  # of a chunk, to see whether LZ4 is worth a try
_table_decoder = msgspec.msgpack.Decoder(list[int])
_encode = msgspec.msgpack.encode


class Binding:
    """What ties chunks to their value, and to their place in it.

    Parameters
    ----------
    checksum : int
        That of the header.
    generation : bytes
        The value's.
    keyring : Keyring or None
        What closes and opens them.
    """

    __slots__ = ("_checksum", "_generation", "_keyring", "overhead")

    def __init__(self, checksum: int, generation: bytes, keyring: Keyring | None) -> None:
        self._checksum = checksum
        self._generation = generation
        self._keyring = keyring
        self.overhead = keyring.overhead if keyring else 0

    def digest(self, number: int, body: Buffer) -> int:
        """Return the checksum of a chunk as stored."""
        return digest(body, (self._checksum + number) % (1 << 64))

    def close(self, number: int, body: Buffer) -> Buffer:
        """Return what is to be stored of a chunk."""
        if self._keyring is None:
            return body
        return self._keyring.close(body, self._context(number))

    def open(self, number: int, body: Buffer, checksum: int, path: str) -> Buffer:
        """Return what was closed, once its checksum, and its signature if any, prove right."""
        if self.digest(number, body) != checksum:
            raise CorruptBlobError(path, "a chunk of a value fails its checksum")
        if self._keyring is None:
            return body
        return self._keyring.open(body, self._context(number), path)

    def _context(self, number: int) -> bytes:
        return b"chunk" + self._generation + number.to_bytes(8, "little")


def pack(chunk: Buffer, out: memoryview) -> int:
    """Write a chunk as an LZ4 block, or as it is if that gains little; return its size."""
    size = len(chunk)
    if size >= _LZ4_MIN and _shrinks(chunk):
        stored = lz4.deflate_into(chunk, out[: size - size // 16])
        if stored:
            return stored
    copy(chunk, out)
    return size


def small(data: Buffer, binding: Binding) -> bytes:
    """Return the only chunk of a small value, with what stands before it."""
    size = len(data)
    body = data
    if size >= _LZ4_MIN:
        packed = lz4.deflate(data)
        if len(packed) <= size - size // 16:
            body = packed
    body = binding.close(0, body)
    return HEADER.pack(binding.digest(0, body), len(body)) + body


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


def copy(source: Buffer, target: memoryview) -> None:
    """Copy bytes."""
    if len(source) < INSTANT_BYTES:
        target[:] = source
    else:  # without the GIL
        np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))


def unpack_into(
    path: str, binding: Binding, chunk: tuple[memoryview, memoryview, int, int]
) -> None:
    """Fill a chunk's place with what is in it; it comes with its checksum and number."""
    out, closed, checksum, number = chunk
    body = binding.open(number, closed, checksum, path)
    if len(body) == len(out):
        copy(body, out)
        return
    try:
        lz4.inflate_into(body, out)
    except ValueError as exc:
        raise CorruptBlobError(path, f"a chunk of a value: {exc}") from exc


def opened(stored: memoryview, size: int, number: int, binding: Binding, path: str) -> Buffer:
    """Return what one chunk holds: its own bytes, if they are stored so, or what is in them."""
    if len(stored) < PREFIX_BYTES:
        raise CorruptBlobError(path, "a value ends before its last chunk")
    checksum, length = HEADER.unpack_from(stored)
    if len(stored) != PREFIX_BYTES + length or length > size + binding.overhead:
        raise CorruptBlobError(path, "a chunk of a value has the wrong size")
    body = binding.open(number, stored[PREFIX_BYTES:], checksum, path)
    if len(body) == size:
        return body
    try:
        return lz4.inflate(body, size)
    except ValueError as exc:
        raise CorruptBlobError(path, f"a chunk of a value: {exc}") from exc


def closing(lengths: list[int]) -> bytes:
    """Return what stands behind chunks that take so many bytes each: table and end, if any."""
    if len(lengths) < 2:
        return b""
    table = _encode(lengths)
    return table + _END.pack(len(table), digest(table), MAGIC)


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
