"""Files: values of ``bytes`` that are written and read a piece at a time, whatever their size."""

from __future__ import annotations

import io
import os
import shutil
import threading
from collections import deque
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from remotedict.backend import NOT_MODIFIED, PIECE_BYTES, BlobNotFound
from remotedict.engine.committer import UploadExpired
from remotedict.engine.core import entries
from remotedict.errors import CorruptBlobError, MissingValueError, SnapshotExpiredError
from remotedict.pure import codec, naming, stream
from remotedict.pure.pieces import Pieces
from remotedict.pure.records import Facts, Set

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from contextlib import AbstractContextManager

    from remotedict.engine.core import Engine
    from remotedict.pure.entry import Entry

    Buffer = bytes | bytearray | memoryview
    Progress = Callable[[int], Any]
    Bar = Callable[[int], AbstractContextManager[Progress]]
    File = str | os.PathLike[str] | BinaryIO

_SMALL = codec.CHUNK_BYTES  # what is no larger is written, and read, as one
_READING = 6  # pieces at once
_BUFFER = 64 * 1024
_ATTEMPTS = 10

_T = TypeVar("_T")


class _Value:
    """The ``bytes`` of one generation, read a few chunks at a time. Thread-safe."""

    def __init__(self, engine: Engine, key: str, entry: Entry, dictionary: bytes) -> None:
        engine.check_open()
        engine.codec.check_size(key, entry.facts.nbytes, entry.stored)
        blob = entry.blob(key)
        self._engine = engine
        self._key = key
        self._entry = entry
        self._path = engine.layout.path(blob) if blob else engine.layout.index
        self._offset = entry.range(key).offset if blob else 0
        self._data = engine.values.at_hand(entry.location(key))
        self._check_type(entry.facts.type)
        self.chunks = engine.runtime.call(partial(self._find_chunks, dictionary))
        self._check_type(self.chunks.codec)

    def _check_type(self, stored: str) -> None:
        if stored != "bytes":
            msg = (
                f"the value of key {self._key!r} is of type {self._entry.facts.type}, and only "
                f"bytes can be read as a file; read it by d[{self._key!r}]"
            )
            raise TypeError(msg)

    def _find_chunks(self, dictionary: bytes) -> stream.Chunks:
        entry, stored = self._entry, self._entry.stored
        if self._data is None and stored <= _SMALL + stream.HEAD_BYTES:
            self._data = bytes(self._get(0, stored))
            self._engine.values.cache.add(entry.generation, self._data)
        length = min(stream.tail_bytes(entry.facts.nbytes), stored)
        ends = [(0, min(stream.HEAD_BYTES, stored)), (stored - length, length)]
        run = map if self._data is not None else self._engine.runtime.map
        head, tail = run(lambda span: self._get(*span), ends)
        if len(head) < (needed := min(codec.head_bytes(head), stored)):
            head = self._get(0, needed)
        chunks = stream.Chunks(
            head,
            stored,
            dictionary=dictionary,
            generation=entry.generation,
            path=self._path,
            keyring=self._engine.keyring,
        )
        if chunks.codec == "bytes":
            if chunks.size > entry.facts.nbytes:
                raise CorruptBlobError(self._path, "a value claims more than the index says")
            if len(tail) < chunks.tail:  # its chunks are smaller than those that we write
                tail = self._get(stored - chunks.tail, chunks.tail)
            chunks.place(tail)
        return chunks

    def _get(self, at: int, length: int) -> Buffer:
        if self._data is not None:
            if isinstance(self._data, Pieces):
                return bytes(self._data[at : at + length])
            return memoryview(self._data)[at : at + length]
        backend, at = self._engine.backend, self._offset + at
        try:
            got = backend.get(self._path, range=(at, length))
        except BlobNotFound:
            try:
                got = backend.get(self._path, range=(0, 1))  # is it gone, or too short?
            except BlobNotFound as exc:
                raise SnapshotExpiredError(self._key) from exc
            raise CorruptBlobError(self._path, f"it ends before byte {at}") from None
        assert got is not NOT_MODIFIED  # noqa: S101 - for the type checker
        if len(got.data) != length:
            raise CorruptBlobError(self._path, f"it ends before byte {at + length}")
        return got.data

    def fetch(self, piece: range) -> Buffer:
        """Return neighbouring chunks as they are stored."""
        return self._get(*self.chunks.span(piece))

    def _unpacked(self, piece: range) -> list[Buffer]:
        data = self.fetch(piece)
        return [self.chunks.unpack(piece, number, data) for number in piece]

    def read(self, first: int, stop: int) -> Iterator[Buffer]:
        """Yield what chunks `first` to `stop` hold, read ahead within a window."""
        runtime, pieces = self._engine.runtime, self.chunks.pieces(first, stop, PIECE_BYTES)
        waiting: deque[Future[list[Buffer]]] = deque()
        while True:
            self._engine.check_open()
            for piece in islice(pieces, _READING - len(waiting)):
                waiting.append(runtime.call(partial(runtime.spawn, partial(self._unpacked, piece))))
            if not waiting:
                return
            yield from runtime.call(waiting.popleft().result)


def _value(engine: Engine, key: str, entry: Entry | None, dictionary: bytes) -> _Value:
    if entry is not None:
        return _Value(engine, key, entry, dictionary)
    known, gone = engine.known(), None
    for _ in range(_ATTEMPTS):
        entry = entries(known.state, [key])[0][1]
        assert known.index is not None  # noqa: S101 - it has an entry
        try:
            return _Value(engine, key, entry, known.index.dictionary)
        except SnapshotExpiredError:
            if gone == (gone := (entry.generation, entry.place)):
                break
            known = engine.now()  # another writer has replaced it, and its bytes are gone
    raise MissingValueError(
        key, engine.layout.path(entries(known.state, [key])[0][1].range(key).blob)
    )


def open_value(
    engine: Engine, key: str, entry: Entry | None = None, dictionary: bytes = b""
) -> io.BufferedReader:
    """Return a readable and seekable file over the ``bytes`` of `key`.

    Parameters
    ----------
    engine : Engine
        Whose key it is.
    key : str
        The key.
    entry, dictionary : optional
        Which generation, and the id of the dictionary; by default the one of now.

    Raises
    ------
    KeyNotFoundError
        The key isn't there.
    TypeError
        The value isn't ``bytes``.
    SnapshotExpiredError
        That generation is no longer kept. Reading may raise this, too.
    CorruptBlobError
        It is damaged. Reading may raise this, too.
    """
    value = _value(engine, key, entry, dictionary)
    runtime, lock = engine.runtime, threading.Lock()

    def begin(piece: range) -> Callable[[], Buffer]:
        return runtime.spawn(partial(value.fetch, piece)).result

    ahead = stream.ReadAhead(value.chunks, value.fetch, begin, PIECE_BYTES)

    def load(number: int, wanted: int) -> Buffer:
        # Only threads that no interrupt can strike take the lock. It is needed when they go on
        # with a read whose caller was interrupted, and has begun another one.
        with lock:
            return ahead.load(number, wanted)

    def chunk(number: int, wanted: int) -> Buffer:
        engine.check_open()
        data = ahead.recent(number)
        return runtime.call(partial(load, number, wanted)) if data is None else data

    raw = stream.ChunkFile(value.chunks, chunk, value.read, 2 * PIECE_BYTES)
    return io.BufferedReader(raw, _BUFFER)


def get_file(
    engine: Engine,
    key: str,
    target: File,
    bar: Bar,
    entry: Entry | None = None,
    dictionary: bytes = b"",
) -> None:
    """Write the ``bytes`` of `key` to a file; see `open_value`, also for what is raised.

    Parameters
    ----------
    engine, key, entry, dictionary
        As there.
    target : path or binary file
        A file at a path is replaced when all has arrived, or not at all.
    bar : callable
        Given a number of bytes, returns a context whose value is told how many more are done.
    """
    with _opened_target(target) as out:
        value = _value(engine, key, entry, dictionary)
        with bar(value.chunks.size) as done:
            for data in value.read(0, value.chunks.count):
                out.write(data)
                done(len(data))


@contextmanager
def _opened_target(target: File) -> Iterator[BinaryIO]:
    if not isinstance(target, str | os.PathLike):
        out = _checked(target, "write")
        if not isinstance(out, io.RawIOBase):
            yield out
            return
        whole = io.BufferedWriter(out)  # it may itself take less than all at once
        try:
            yield cast("BinaryIO", whole)
        finally:
            whole.detach()
        return
    path = Path(os.path.realpath(target))  # what a link leads to is replaced, not the link
    if path.exists() and not path.is_file():
        with path.open("wb") as out:  # a device takes it; a folder raises
            yield out
        return
    if not path.parent.is_dir():
        msg = f"{str(path)!r} can't be written: there is no folder {str(path.parent)!r}"
        raise FileNotFoundError(msg)
    temporary = path.with_name(f".{os.urandom(16).hex()}.part")
    try:
        with temporary.open("xb") as out:
            yield out
        with suppress(FileNotFoundError):  # it is new
            shutil.copymode(path, temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def put_file(
    engine: Engine, key: str, file: File, commit: Callable[[list[Set]], _T], bar: Bar
) -> _T:
    """Upload a file as the ``bytes`` of `key`, then call `commit` with the change that names it.

    Parameters
    ----------
    engine : Engine
        Where to.
    key : str
        The key.
    file : path or binary file
        An open one is taken from its position to its end.
    commit : callable
        Makes the commit; what it returns is returned.
    bar : callable
        Given a number of bytes, returns a context whose value is told how many more are done.

    Raises
    ------
    TypeError
        It is open in text mode, or isn't a file.
    ValueError
        It became shorter or longer meanwhile. Nothing was written.
    """
    with _opened_source(file) as source:
        start = source.tell()
        size = max(source.seek(0, os.SEEK_END) - start, 0)
        engine.codec.check_size(key, size)

        def chunks() -> Iterator[bytes]:
            source.seek(start)
            return stream.cut(size, source)

        if size <= _SMALL:
            value = b"".join(chunks())
            return engine.write(engine.encode([(key, value)]), commit, lambda _: None)
        with bar(size) as done:
            while True:
                upload = _Upload(engine, key, size, chunks, done)
                try:
                    return commit([upload.place()])
                except UploadExpired:
                    engine.now()


@dataclass(eq=False)
class _Upload:
    """The bytes of a value, made from its file anew each time they are iterated over.

    So they can be sent again when an attempt has failed, and are never in memory as a whole.
    """

    engine: Engine
    key: str
    size: int
    read: Callable[[], Iterator[bytes]]
    done: Progress
    told: int = 0
    length: int = 0

    def place(self) -> Set:
        """Upload them; return the change that will name them."""
        engine, generation = self.engine, self.engine.runtime.uuid()
        self.sent = codec.Sent(self.key, generation)
        known = engine.created()
        assert known.index is not None  # noqa: S101 - it was created
        self.dictionary, born = known.index.dictionary, known.state.seq
        blob = f"v:{naming.escape(self.key)}/{naming.unique(born, generation)}"
        path, pieces = engine.layout.path(blob), cast("Iterator[Buffer]", self)
        try:
            engine.runtime.call(lambda: engine.backend.put(path, pieces))
        except _SourceFailed as failed:
            raise cast("Exception", failed.__cause__) from None
        facts = Facts("bytes", self.size)
        return Set(self.key, 0, generation, born, self.length, facts, None)

    def __iter__(self) -> Iterator[Buffer]:
        self._tell(-self.told)
        self.length = 0
        for piece in stream.encoded(
            self.size,
            self._chunks(),
            self.sent,
            key=self.key,
            dictionary=self.dictionary,
            run=self.engine.runtime.work,
            keyring=self.engine.keyring,
        ):
            with self.engine.runtime.still_wanted():  # an interrupt ends the upload, too
                self.length += len(piece)
            yield piece

    def _chunks(self) -> Iterator[bytes]:
        try:
            for chunk in self.read():
                yield chunk
                self._tell(len(chunk))
        except Exception as exc:
            raise _SourceFailed from exc

    def _tell(self, nbytes: int) -> None:
        self.told += nbytes
        self.done(nbytes)


class _SourceFailed(Exception):  # noqa: N818 - not a backend's, which would take its cause for its own
    """The source has raised an error: the cause."""


@contextmanager
def _opened_source(file: File) -> Iterator[BinaryIO]:
    with ExitStack() as stack:
        if isinstance(file, str | os.PathLike):
            opened: BinaryIO = stack.enter_context(Path(file).open("rb"))
        else:
            opened = _checked(file, "read")
        seekable = getattr(opened, "seekable", None)
        if seekable is None or not seekable():
            # The size stands in the header, before all else, and so must be known first.
            spool = stack.enter_context(TemporaryFile())
            while chunk := stream.exactly(opened, codec.CHUNK_BYTES):
                spool.write(chunk)
            spool.seek(0)
            opened = cast("BinaryIO", spool)
        yield opened


def _checked(file: Any, verb: str) -> BinaryIO:
    """Return a binary file object, or raise TypeError."""
    if not hasattr(file, verb):
        msg = f"a file is a path or a binary file object to {verb}, not {type(file).__name__}"
        raise TypeError(msg)
    if hasattr(file, "encoding"):
        msg = f"{file!r} is open in text mode; open it in mode '{verb[0]}b'"
        raise TypeError(msg)
    return cast("BinaryIO", file)
