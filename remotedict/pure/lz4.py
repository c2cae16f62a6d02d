"""LZ4 blocks: packed and unpacked in place, and never larger than they were said to be."""

from __future__ import annotations

import cramjam
import lz4.block

Buffer = bytes | bytearray | memoryview

_RATIO_MAX = 255  # no LZ4 block says more with less


def deflate(data: Buffer) -> bytes:
    """Return `data` as one LZ4 block."""
    packed: bytes = lz4.block.compress(data, store_size=False)
    return packed


def deflate_into(data: Buffer, out: Buffer) -> int:
    """Write `data` as one LZ4 block; return its size, or 0 if it doesn't fit into `out`."""
    packed = deflate(data)
    if len(packed) > len(out):
        return 0
    memoryview(out)[: len(packed)] = packed
    return len(packed)


def inflate_into(block: Buffer, out: Buffer) -> None:
    """Fill `out` with what an LZ4 block holds; raise ValueError if it holds more, or less."""
    try:
        size = cramjam.lz4.decompress_block_into(block, out, output_len=len(out))
    except cramjam.DecompressionError as exc:
        raise ValueError(str(exc)) from exc
    if size != len(out):
        msg = f"it holds {size} bytes and not the {len(out)} that it should"
        raise ValueError(msg)


def inflate(block: Buffer, size: int) -> bytearray:
    """Return the `size` bytes in an LZ4 block; raise ValueError if it holds others.

    Whatever `size` is said to be, no more memory is taken than the block could need.
    """
    if size > possible(len(block)):
        msg = f"it can't hold the {size} bytes that it should"
        raise ValueError(msg)
    raw = bytearray(size)
    inflate_into(block, raw)
    return raw


def inflate_small(block: bytes, size: int) -> bytes:
    """Do the same, sooner if they are few."""
    if size > possible(len(block)):
        msg = f"it can't hold the {size} bytes that it should"
        raise ValueError(msg)
    try:
        raw: bytes = lz4.block.decompress(block, uncompressed_size=size)
    except lz4.block.LZ4BlockError as exc:
        raise ValueError(str(exc)) from exc
    if len(raw) != size:
        msg = f"it holds {len(raw)} bytes and not the {size} that it should"
        raise ValueError(msg)
    return raw


def possible(stored: int) -> int:
    """Return how many bytes LZ4 could make of so many at the most."""
    return stored * _RATIO_MAX
