"""Checking: whether a value's bytes are whole, without keeping them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remotedict.errors import CorruptBlobError
from remotedict.pure import codec, lz4
from remotedict.pure.chunks import PREFIX_BYTES, Binding, closing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from remotedict.pure.keyring import Keyring
    from remotedict.pure.lz4 import Buffer


def check_value(
    data: Iterable[Buffer],
    *,
    dictionary: bytes,
    generation: bytes,
    path: str,
    keyring: Keyring | None = None,
) -> None:
    """Check a value as it arrives, chunk by chunk: no more than one is in memory at once.

    Parameters
    ----------
    data : iterable of bytes-like
        A value's bytes.
    dictionary, generation
        What it should have been written for.
    path : str
        Where they come from, for errors.
    keyring : Keyring, optional
        What they must be signed and encrypted by.

    Raises
    ------
    CorruptBlobError
        The bytes fail a checksum, or are those of another generation or dictionary.
    """
    view, more = codec.begun(data)
    header, at = codec.read_header(view, dictionary, generation, path, keyring)
    binding = Binding(header.checksum, generation, keyring)
    source = codec.Source(view, at, more, path)
    lengths: list[int] = []
    for part in header.parts:
        for start in range(0, part, header.chunk):
            size = min(header.chunk, part - start)
            checksum, stored = source.chunk(size + binding.overhead)
            body = binding.open(len(lengths), stored, checksum, path)
            if len(body) != size:
                try:
                    lz4.inflate(body, size)
                except ValueError as exc:
                    raise CorruptBlobError(path, f"a chunk of a value: {exc}") from exc
            lengths.append(PREFIX_BYTES + len(stored))
    end = closing(lengths)
    if source.take(len(end)) != end:
        raise CorruptBlobError(path, "a value's table isn't that of its chunks")
    source.end()
