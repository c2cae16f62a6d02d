"""Ownership: which dictionary a blob belongs to, by a few of its bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remotedict.pure import codec, records

if TYPE_CHECKING:
    from collections.abc import Callable

    Read = Callable[[int, int], bytes]

_HEAD = 128
_ID = b"\xc4\x10"  # what stands before 16 bytes in msgpack
_SHORT = 1 + len(_ID) + 16
_TEXTS = range(0xA0, 0xC0)  # what stands before up to 31 letters
_ARRAYS = range(0x90, 0xA0)  # what stands before up to 15 fields


def dictionary_of(read: Read) -> bytes | None:
    """Return the id of the dictionary that a blob was written for; None if it isn't of our kind.

    Parameters
    ----------
    read : callable
        Returns so many bytes of the blob (or fewer, at its end) from an offset on.
    """
    head = read(0, _HEAD)
    if codec.is_value(head):
        record = head[codec.START_BYTES :]
        text = record[1] if len(record) > 1 else 0
        return _id(record, 2 + text - _TEXTS[0]) if text in _TEXTS else None
    at = records.record_offset(head)
    if at is None:
        return None
    return _id(head[at:] if at + _SHORT <= len(head) else read(at, _SHORT), 1)


def _id(record: bytes, at: int) -> bytes | None:
    """Return the id that is a field of a record in msgpack."""
    end = at + len(_ID)
    if record[:1] == b"" or record[0] not in _ARRAYS or record[at:end] != _ID:
        return None
    return record[end : end + 16] if len(record) >= end + 16 else None
