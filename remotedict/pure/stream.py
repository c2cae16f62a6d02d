"""Values of ``bytes`` a piece at a time: encoded so, found chunk by chunk, and read as a file."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from remotedict.errors import CorruptBlobError
from remotedict.pure import codec
from remotedict.pure.chunks import PREFIX_BYTES, Binding, opened, read_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from remotedict.pure.codec import Map, Sent
    from remotedict.pure.keyring import Keyring

    Buffer = bytes | bytearray | memoryview

HEAD_BYTES = 64 * 1024
"""The first bytes of a value, in which its header ends unless its key is a very long one."""

_ITEM_MAX = 5  # bytes that a chunk takes in the table
_FRAME_MAX = 5 + 16  # bytes of the table beside its items, and of the end
_CHUNK_MAX = 64 * 1024 * 1024
_COUNT_MAX = 1 << 22  # 4 TiB in chunks of 1 MiB: their places take 32 MiB of memory


def encoded(
    size: int,
    chunks: Iterable[Buffer],
    sent: Sent,
    *,
    key: str,
    dictionary: bytes,
    run: Map = map,
    keyring: Keyring | None = None,
) -> Iterator[Buffer]:
    """Yield, block by block, what `codec.encode` would return for ``bytes``.

    Parameters
    ----------
    size : int
        Their length.
    chunks : iterable of bytes-like
        The bytes, cut into `codec.CHUNK_BYTES`.
    sent : Sent
        Has the generation, and what was sent of it before.
    key, dictionary
        What they are written for.
    run : callable, optional
        Like ``map``; called to make the blocks.
    keyring : Keyring, optional
        What signs and encrypts them.
    """
    head = codec.opening(
        "bytes",
        [size],
        key=key,
        dictionary=dictionary,
        generation=sent.generation,
        library="",
        keyring=keyring,
    )
    return codec.blocks(head, chunks, sent, run, keyring)


def exactly(file: Any, size: int) -> bytes:
    """Return so many bytes of a file; fewer only at its end."""
    parts = []
    while size > 0:
        part = file.read(size)
        if part is None:
            msg = f"{file!r} has nothing to read at the moment; open it in blocking mode"
            raise BlockingIOError(msg)
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def cut(size: int, file: Any) -> Iterator[bytes]:
    """Yield the next `size` bytes of a file in chunks; ValueError if it has fewer, or more."""
    for at in range(0, size, codec.CHUNK_BYTES):
        wanted = min(codec.CHUNK_BYTES, size - at)
        chunk = exactly(file, wanted)
        if len(chunk) != wanted:
            raise _changed(file, size, f"{at + len(chunk):,}")
        yield chunk
    if exactly(file, 1):
        raise _changed(file, size, "more")


def _changed(file: Any, was: int, now: str) -> ValueError:
    return ValueError(
        f"file {getattr(file, 'name', file)!r} changed while it was read: it had {was:,} bytes, "
        f"and now has {now}. Nothing was written; try again when nobody else writes to it"
    )


def tail_bytes(nbytes: int, chunk: int = codec.CHUNK_BYTES) -> int:
    """Return how many bytes stand behind the last chunk of a ``bytes`` value at the most."""
    return -(-nbytes // chunk) * _ITEM_MAX + _FRAME_MAX


class Chunks:
    """Where the chunks of one ``bytes`` value are, learnt from its head and then from its tail.

    Nothing that they say is believed unchecked: the chunks are contiguous, fill exactly the bytes
    that the value takes, and none is larger than what it holds.

    Parameters
    ----------
    head : bytes-like
        The first bytes of the value: `codec.head_bytes` of them, or more.
    stored : int
        How many bytes it takes, as the index says.
    dictionary, generation : bytes
        What it should have been written for.
    path : str
        The path of its blob, for errors.
    keyring : Keyring, optional
        What it must be signed and encrypted by.

    Attributes
    ----------
    codec : str
        How it is stored. If that isn't ``bytes``, nothing else of this object is to be used.
    size : int
        The bytes of the value itself.
    chunk : int
        How many of them each chunk holds, but for the last one.
    count : int
        The number of chunks.
    tail : int
        How many of the last bytes `place` needs.

    Raises
    ------
    CorruptBlobError
        The head is damaged, or of another value.
    FormatVersionError
        A newer remotedict wrote it.
    """

    def __init__(
        self,
        head: Buffer,
        stored: int,
        *,
        dictionary: bytes,
        generation: bytes,
        path: str,
        keyring: Keyring | None = None,
    ) -> None:
        header, self._at = codec.read_header(
            memoryview(head), dictionary, generation, path, keyring
        )
        self._binding = Binding(header.checksum, generation, keyring)
        self.codec = header.codec
        self.size = header.parts[0]
        self.chunk = min(header.chunk, max(self.size, 1))
        self.count = -(-self.size // self.chunk)
        self._path = path
        self._stored = stored
        self._bounds: np.ndarray[Any, np.dtype[np.int64]] = np.empty(0, np.int64)
        if self.codec != "bytes":
            return
        # Before anything is read, or memory taken, in proportion to it: is there room for this?
        if (
            len(header.parts) != 1
            or self.count * (PREFIX_BYTES + self._binding.overhead + 1) > stored
            or self.count > _COUNT_MAX
            or self.chunk > _CHUNK_MAX
        ):
            raise self._damaged()
        self.tail = min(tail_bytes(self.size, self.chunk), stored) if self.count > 1 else 0

    def _damaged(self) -> CorruptBlobError:
        return CorruptBlobError(self._path, "a value's chunks aren't as many or large as it says")

    def place(self, tail: Buffer) -> None:
        """Learn where the chunks are, from so many of the last bytes, or more.

        Raises
        ------
        CorruptBlobError
            The table is damaged, or isn't that of such a value.
        """
        if self.tail:
            lengths, after = read_table(memoryview(tail), self._path)
        else:
            lengths, after = [self._stored - self._at] * self.count, 0
        least = PREFIX_BYTES + self._binding.overhead
        if len(lengths) != self.count or not all(
            least < length <= least + self.length(number) for number, length in enumerate(lengths)
        ):
            raise self._damaged()
        self._bounds = np.cumsum(np.array([self._at, *lengths], np.int64))
        if int(self._bounds[-1]) + after != self._stored:
            raise self._damaged()

    def length(self, number: int) -> int:
        """Return how many bytes a chunk holds."""
        return min(self.chunk, self.size - number * self.chunk)

    def pieces(self, first: int, stop: int, nbytes: int) -> Iterator[range]:
        """Yield chunks `first` to `stop` in ranges that hold no more than `nbytes`, or one."""
        # As stored they take hardly more. They may take far less, but both are in memory at once.
        step = max(nbytes // self.chunk, 1)
        for start in range(first, stop, step):
            yield range(start, min(start + step, stop))

    def span(self, chunks: range) -> tuple[int, int]:
        """Return the offset in the value, and the length, of neighbouring chunks as stored."""
        start, stop = self._bounds[chunks.start], self._bounds[chunks.stop]
        return int(start), int(stop - start)

    def unpack(self, chunks: range, number: int, data: Buffer) -> Buffer:
        """Return the bytes in one of neighbouring chunks; `data` is all of their span.

        Raises
        ------
        CorruptBlobError
            It is damaged, or another chunk.
        """
        at, length = self.span(range(number, number + 1))
        at -= self.span(chunks)[0]
        stored = memoryview(data)[at : at + length]
        return opened(stored, self.length(number), number, self._binding, self._path)


class ReadAhead:
    """Gives chunks, and fetches more than one while they are asked for in order.

    Each request then fetches twice as many as the one before, up to a piece. From four on, the
    next ones are requested while these are read. Kept are two pieces and two chunks at the most.

    Parameters
    ----------
    chunks : Chunks
        The chunks.
    fetch : callable
        Returns neighbouring chunks as they are stored.
    begin : callable
        Begins to do so, and returns what waits for them.
    piece : int
        How many bytes to fetch at once.
    """

    def __init__(
        self,
        chunks: Chunks,
        fetch: Callable[[range], Buffer],
        begin: Callable[[range], Callable[[], Buffer]],
        piece: int,
    ) -> None:
        self._chunks = chunks
        self._fetch = fetch
        self._begin = begin
        self._piece_bytes = piece
        # Set as a whole: `recent` may be called while another thread is in `load`.
        self._recent: tuple[tuple[int, Buffer], ...] = ()
        self._batch: tuple[range, Buffer] = (range(0), b"")
        self._coming: tuple[range, Callable[[], Buffer]] | None = None
        self._next = -1
        self._step = 1

    def recent(self, number: int) -> Buffer | None:
        """Return what a chunk holds if it is one of those that were read last."""
        return next((data for recent, data in self._recent if recent == number), None)

    def load(self, number: int, wanted: int) -> Buffer:
        """Return what a chunk holds, the first of so many that are wanted."""
        if number not in self._batch[0]:
            self._turn_to(number, wanted)
        data = self._chunks.unpack(self._batch[0], number, self._batch[1])
        self._recent = ((number, data), *self._recent[:1])
        self._next = number + 1
        return data

    def _turn_to(self, number: int, wanted: int) -> None:
        coming, self._coming = self._coming, None
        self._step = self._step * 2 if number == self._next else 1
        if coming and number in coming[0]:
            self._batch = coming[0], coming[1]()
        else:
            piece = self._piece(number, max(self._step, wanted))
            self._batch = piece, self._fetch(piece)
        ahead = self._piece(self._batch[0].stop, self._step)
        if self._step >= 4 and ahead:
            self._coming = ahead, self._begin(ahead)

    def _piece(self, number: int, count: int) -> range:
        stop = min(number + count, self._chunks.count)
        return next(self._chunks.pieces(number, stop, self._piece_bytes), range(0))


class ChunkFile(io.RawIOBase):
    """The file that chunks make up; to be wrapped in an `io.BufferedReader`.

    Parameters
    ----------
    chunks : Chunks
        The chunks.
    one : callable
        Given the number of a chunk, and of how many from there on are wanted, returns what the
        first of them holds.
    several : callable
        Given the number of a chunk, and of the one to stop at, yields what each holds.
    large : int
        The bytes of a read for which `several` is called.
    """

    mode = "rb"

    def __init__(
        self,
        chunks: Chunks,
        one: Callable[[int, int], Buffer],
        several: Callable[[int, int], Iterable[Buffer]],
        large: int,
    ) -> None:
        self._chunks = chunks
        self._one = one
        self._several = several
        self._large = large
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    seekable = readable

    def tell(self) -> int:
        """Return the position."""
        self._check_not_closed()
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a position, which may be beyond the end."""
        self._check_not_closed()
        starts = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._chunks.size}
        if whence not in starts:
            msg = f"whence must be 0, 1 or 2, not {whence}"
            raise ValueError(msg)
        if starts[whence] + offset < 0:
            msg = f"can't seek to {starts[whence] + offset}, before the beginning of the value"
            raise ValueError(msg)
        self._at = starts[whence] + offset
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """Read into a buffer, of a small one no more than the rest of a chunk."""
        self._check_not_closed()
        view = memoryview(buffer).cast("B")
        end = min(self._at + len(view), self._chunks.size)
        done = 0
        for part in self._parts(end, few=end - self._at < self._large):
            view[done : done + len(part)] = part
            done += len(part)
        # Not before all is there: a read that fails has read nothing.
        self._at += done
        return done

    def readall(self) -> bytes:
        """Read all that remains."""
        self._check_not_closed()
        out = io.BytesIO()  # gives its bytes without a copy
        for part in self._parts(self._chunks.size, few=False):
            out.write(part)
        self._at += out.tell()
        return out.getvalue()

    def _parts(self, end: int, *, few: bool) -> Iterator[memoryview]:
        """Yield the bytes from the position to `end`; if `few`, what one chunk has of them."""
        if self._at >= end:
            return
        chunk = self._chunks.chunk
        first, skipped = divmod(self._at, chunk)
        stop = -(-end // chunk)
        left = end - self._at
        found = [self._one(first, stop - first)] if few else self._several(first, stop)
        for data in found:
            part = memoryview(data)[skipped : skipped + left]
            yield part
            left -= len(part)
            skipped = 0

    def _check_not_closed(self) -> None:
        if self.closed:
            msg = "I/O operation on closed file"
            raise ValueError(msg)
