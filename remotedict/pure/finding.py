"""Values found by what they say of themselves, where no index tells of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remotedict.errors import CorruptBlobError, FormatVersionError
from remotedict.pure import codec
from remotedict.pure.chunks import MAGIC, PREFIX_BYTES, Binding, closing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from remotedict.pure.codec import ValueHeader
    from remotedict.pure.keyring import Keyring
    from remotedict.pure.lz4 import Buffer


def measure(data: Iterable[Buffer], path: str, keyring: Keyring | None) -> tuple[ValueHeader, int]:
    """Return what a value says of itself, and how many bytes it takes, having checked them all.

    Nothing is unpacked. Other bytes may follow.

    Parameters
    ----------
    data : iterable of bytes-like
        Bytes that begin with a value, perhaps as they arrive.
    path : str
        Where they come from, for errors.
    keyring : Keyring or None
        What they must be signed and encrypted by.

    Raises
    ------
    CorruptBlobError
        They don't begin with a whole value.
    FormatVersionError
        A newer remotedict wrote it.
    """
    view, more = codec.begun(data)
    header, at = codec.any_header(view, path, keyring)
    binding = Binding(header.checksum, header.generation, keyring)
    source = codec.Source(view, at, more, path)
    lengths: list[int] = []
    for part in header.parts:
        for start in range(0, part, header.chunk):
            size = min(header.chunk, part - start)
            checksum, stored = source.chunk(size + binding.overhead)
            binding.open(len(lengths), stored, checksum, path)
            lengths.append(PREFIX_BYTES + len(stored))
    end = closing(lengths)
    if source.take(len(end)) != end:
        raise CorruptBlobError(path, "a value's table isn't that of its chunks")
    return header, at + sum(lengths) + len(end)


def values(
    data: Buffer, path: str, keyring: Keyring | None
) -> Iterator[tuple[int, int, ValueHeader]]:
    """Yield offset and length of the whole values in these bytes, and what they say.

    What lies between them, damaged or not a value at all, is passed over.
    """
    raw, at = bytes(data), 0
    view = memoryview(raw)
    while (at := raw.find(MAGIC, at)) >= 0:
        try:
            header, length = measure([view[at:]], path, keyring)
        except (CorruptBlobError, FormatVersionError):
            at += 1
        else:
            yield at, length, header
            at += length
