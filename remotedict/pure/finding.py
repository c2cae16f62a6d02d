"""Values found by what they say of themselves, where no index tells of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remotedict.errors import CorruptBlobError, FormatVersionError
from remotedict.pure import codec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from remotedict.pure.codec import ValueHeader

    Buffer = bytes | bytearray | memoryview


def measure(data: Buffer | Iterable[Buffer], path: str) -> tuple[ValueHeader, int]:
    """Return what a value says of itself, and how many bytes it takes, having checked them all.

    Nothing is unpacked. Other bytes may follow.

    Parameters
    ----------
    data : bytes-like, or iterable of bytes-like
        Bytes that begin with a value, perhaps as they arrive.
    path : str
        Where they come from, for errors.

    Raises
    ------
    CorruptBlobError
        They don't begin with a whole value.
    FormatVersionError
        A newer remotedict wrote it.
    """
    view, more = codec.begun(data)
    header, at = codec.introduction(view, path)
    source = codec.Source(view, at, more, path)
    lengths: list[int] = []
    for part in header.parts:
        for start in range(0, part, header.chunk):
            checksum, body = source.chunk(min(header.chunk, part - start))
            codec.check(body, checksum, codec.seed(header.generation, len(lengths)), path)
            lengths.append(codec.PREFIX_BYTES + len(body))
    end = codec.closing(lengths)
    if source.take(len(end)) != end:
        raise CorruptBlobError(path, "a value's table isn't that of its chunks")
    return header, at + sum(lengths) + len(end)


def values(data: Buffer, path: str) -> Iterator[tuple[int, int, ValueHeader]]:
    """Yield offset and length of the whole values in these bytes, and what they say.

    What lies between them, damaged or not a value at all, is passed over.
    """
    raw, at = bytes(data), 0
    view = memoryview(raw)
    while (at := raw.find(codec.MAGIC, at)) >= 0:
        try:
            header, length = measure(view[at:], path)
        except (CorruptBlobError, FormatVersionError):
            at += 1
        else:
            yield at, length, header
            at += length
