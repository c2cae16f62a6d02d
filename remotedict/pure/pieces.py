"""Bytes that came in several pieces, and need not be joined."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Buffer = bytes | bytearray | memoryview


class Pieces:
    """The bytes of several buffers, one after the other. Iterating yields the buffers.

    >>> pieces = Pieces([b"not ", b"joined"])
    >>> len(pieces), bytes(pieces[2:6])
    (10, b't jo')
    """

    __slots__ = ("_buffers", "_length")

    def __init__(self, buffers: Iterable[Buffer]) -> None:
        self._buffers = tuple(buffers)
        self._length = sum(map(len, self._buffers))

    def __len__(self) -> int:
        """Return the number of bytes."""
        return self._length

    def __iter__(self) -> Iterator[Buffer]:
        """Yield the buffers."""
        return iter(self._buffers)

    def __getitem__(self, bounds: slice) -> Buffer | Pieces:
        """Return a range of the bytes, without a copy."""
        start, stop, _ = bounds.indices(self._length)
        found = []
        for buffer in self._buffers:
            if start < len(buffer) and stop > 0:
                found.append(memoryview(buffer)[max(start, 0) : stop])
            start, stop = start - len(buffer), stop - len(buffer)
        return found[0] if len(found) == 1 else Pieces(found)

    def __bytes__(self) -> bytes:
        """Join them."""
        return b"".join(self._buffers)


Stored = Buffer | Pieces
"""Bytes as they came from the store."""
