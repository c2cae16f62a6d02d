"""LZ4 frames that claim no more memory than they were said to need."""

from __future__ import annotations

import lz4.frame

Buffer = bytes | bytearray | memoryview


def deflate(data: Buffer) -> bytes:
    """Return `data` as one LZ4 frame."""
    packed: bytes = lz4.frame.compress(data, store_size=False)
    return packed


def inflate(frame: Buffer, size: int) -> bytearray:
    """Return the `size` bytes in an LZ4 frame; raise ValueError if it holds others.

    However much it would expand to, no more than that is taken.
    """
    decompressor = lz4.frame.LZ4FrameDecompressor(return_bytearray=True)
    try:
        # A frame of nothing still has an end to be read.
        raw: bytearray = decompressor.decompress(frame, max_length=max(size, 1))
    except (RuntimeError, EOFError) as exc:
        raise ValueError(str(exc)) from exc
    if len(raw) != size or not decompressor.eof or decompressor.unused_data:
        msg = f"it doesn't hold the {size} bytes that it should"
        raise ValueError(msg)
    return raw
