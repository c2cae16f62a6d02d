"""Blobs that never change, kept in a folder of this machine."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import stat
import struct
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from remotedict.backend import pieces
from remotedict.engine.runtime import log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from remotedict.backend import Buffer
    from remotedict.pure.pieces import Stored
    from remotedict.pure.records import Index

_HEADER = struct.Struct("<8sQ16s")  # magic, length, checksum
_MAGIC = b"\x8drdcache"
_MAPPED_BYTES = 1024 * 1024  # what is larger is mapped, and what is smaller read
_BLOCK = 4096  # of a file system: no file takes less
_ABANDONED = 600.0  # seconds after which nobody writes to a temporary file any more
_FOLDER = re.compile(r"([0-9a-f]{32})-([0-9a-f]{32})-(\d+)")
_FILE = re.compile(r"[0-9a-f]{32}-\d+-\d+")
_TEMPORARY = re.compile(r"~[0-9a-f]{32}")
_BLOB = re.compile(r".*/\d+-([0-9a-f]{32})")
_SAFELY = sum(getattr(os, flag, 0) for flag in ("O_BINARY", "O_NOFOLLOW", "O_NONBLOCK"))
_ME = os.geteuid() if hasattr(os, "geteuid") else None  # the cache of another user isn't ours


class DiskCache:
    """Ranges of blobs as files, shared by the processes of one user. Thread-safe.

    A file is written under a temporary name, and never changed once it has its own. It carries a
    checksum of its bytes and of its name: whatever else is found there is deleted, and not read.
    Nothing that goes wrong here is an error: the bytes are in the store.

    All bytes of a dictionary are in one folder, whose name says how often bytes were forgotten in
    it (`moved`). Who learns of another time takes another folder, and deletes the older ones.

    Parameters
    ----------
    root : str
        The folder, perhaps of several dictionaries; made when it is first needed.
    limit : int
        How many bytes all that is below it may take.
    clock : callable
        Seconds since the epoch: what was used longest ago goes first.

    Attributes
    ----------
    folder : Path, optional
        Where all bytes are as of the newest index that is known.
    """

    def __init__(self, root: str, limit: int, clock: Callable[[], float]) -> None:
        self._root = Path(root)
        self._limit = limit
        self._clock = clock
        self.folder: Path | None = None
        self._unseen = limit  # bytes written since the sizes of all were added up
        self._lock = threading.Lock()
        self._complained = False

    def turn_to(self, index: Index) -> None:
        """Use the folder of a dictionary, as of its index; delete those before a forgetting."""
        dictionary, incarnation = index.dictionary.hex(), index.incarnation.hex()
        folder = self._root / f"{dictionary}-{incarnation}-{index.moved}"
        with self._no_error():
            self.folder = folder if _is_private(folder) else None
            for other, match in _matching(self._root, _FOLDER):
                if match[1] == dictionary and (
                    match[2] != incarnation or int(match[3]) < index.moved
                ):
                    _empty(other.path)
            if self.folder is None:
                self._complain(f"{str(folder)!r} belongs to another user, or is open to others")

    def get(self, path: str, offset: int, length: int) -> Buffer | None:
        """Return a range of a blob, if it is here."""
        name, folder = _name(path, offset, length), self.folder
        if name is None or folder is None:
            return None
        with self._no_error():
            file = folder / name
            data = _read(file, length, f"{folder.name}/{name}")
            if data is not None:
                with contextlib.suppress(OSError):  # deleted just now, or read-only
                    os.utime(file, times=(self._clock(),) * 2)
                return data
            log.info("file %r of the cache is damaged, and was deleted", str(file))
            file.unlink()
        return None

    def add(self, folder: Path | None, path: str, offset: int, data: Stored) -> None:
        """Keep a range of a blob, in place of what was used longest ago.

        Not if `folder`, which was that of the moment in which it was asked for, no longer is: it
        may be what was forgotten since.
        """
        name, size = _name(path, offset, len(data)), _taken(_HEADER.size + len(data))
        if name is None or folder is None or folder != self.folder or size > self._limit // 4:
            return
        with self._no_error():
            self._make_room(size)
            header = _HEADER.pack(_MAGIC, len(data), _checksum(f"{folder.name}/{name}", data))
            try:
                self._write(folder / name, header, data)
            except FileNotFoundError:  # it is the first one, or somebody has deleted them all
                _make(folder)
                self._write(folder / name, header, data)
            if folder != self.folder:
                (folder / name).unlink()

    def discard(self, path: str) -> None:
        """Keep nothing of a blob: its bytes make no sense."""
        if self.folder and (match := _BLOB.fullmatch(path)):
            with self._no_error():
                for file in self.folder.glob(f"{match[1]}-*"):
                    file.unlink(missing_ok=True)

    def _write(self, file: Path, header: bytes, data: Stored) -> None:
        temporary = file.parent / f"~{uuid.uuid4().hex}"
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFELY, 0o600)
        try:
            with os.fdopen(handle, "wb") as out:
                if hasattr(os, "fchmod"):  # whatever the umask has taken away
                    os.fchmod(handle, 0o600)
                out.write(header)
                out.writelines(pieces(data))
            os.utime(temporary, times=(self._clock(),) * 2)
            temporary.replace(file)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise

    def _make_room(self, size: int) -> None:
        """See that there is room for so many bytes more.

        The sizes are added up when much was written since, not each time. Meanwhile each process
        may write a sixteenth of the limit: so an eighth of it is kept free.
        """
        with self._lock:
            self._unseen += size
            if self._unseen <= self._limit // 16:
                return
            self._unseen = size
        files, total = [], size
        for folder, _ in _matching(self._root, _FOLDER):
            if folder.path != str(self.folder):
                with contextlib.suppress(OSError):  # there is still something in it
                    Path(folder).rmdir()
            for file in _files(folder.path):
                if file.temporary and file.used < self._clock() - _ABANDONED:
                    _unlink(file.path)
                    continue
                total += file.size
                if not file.temporary:
                    files.append(file)
        for file in sorted(files, key=lambda file: file.used):
            if total <= self._limit * 7 // 8:
                break
            _unlink(file.path)
            total -= file.size

    @contextlib.contextmanager
    def _no_error(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            pass  # a miss, or another process was quicker
        except (OSError, ValueError) as exc:  # a full disk, no permission, a name with a null
            self._complain(str(exc))

    def _complain(self, why: str) -> None:
        if not self._complained:
            self._complained = True
            log.warning("the cache on disk can't be used (reading goes on without it): %s", why)


class _File(NamedTuple):
    path: str
    size: int
    used: float
    temporary: bool


def _files(folder: str) -> Iterator[_File]:
    with contextlib.suppress(OSError):  # it is another user's, or no folder: not ours to empty
        for kind in (_FILE, _TEMPORARY):
            for file, _ in _matching(folder, kind):
                with contextlib.suppress(FileNotFoundError):
                    found = file.stat(follow_symlinks=False)
                    size, used = _taken(found.st_size), found.st_mtime
                    yield _File(file.path, size, used, kind is _TEMPORARY)


def _name(path: str, offset: int, length: int) -> str | None:
    """Return the name of the file for a range of a blob; None for one that may change."""
    match = _BLOB.fullmatch(path)
    return f"{match[1]}-{offset}-{length}" if match else None


def _checksum(name: str, data: Stored) -> bytes:
    digest = xxhash.xxh3_128(name.encode())
    for buffer in pieces(data):
        digest.update(buffer)
    return digest.digest()


def _read(file: Path, length: int, name: str) -> Buffer | None:
    """Return what a file holds; None if that isn't what it should."""
    handle = os.open(file, os.O_RDONLY | _SAFELY)
    try:
        found = os.fstat(handle)
        if (
            not stat.S_ISREG(found.st_mode)
            or (_ME is not None and found.st_uid != _ME)
            or found.st_size != _HEADER.size + length
        ):
            return None
        magic, size, checksum = _HEADER.unpack(os.read(handle, _HEADER.size))
        data: Buffer
        if length > _MAPPED_BYTES:
            # It is never changed in place, and deleting it leaves the mapping as it is.
            data = memoryview(mmap.mmap(handle, 0, access=mmap.ACCESS_READ))[_HEADER.size :]
        else:
            data = os.read(handle, length)
    finally:
        os.close(handle)
    intact = (magic, size, checksum) == (_MAGIC, len(data), _checksum(name, data))
    return data if intact else None


def _is_private(folder: Path) -> bool:
    """Tell whether only this user can have put something there; also if it isn't there."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return True
    return _ME is None or (
        stat.S_ISDIR(found.st_mode) and found.st_uid == _ME and not found.st_mode & 0o022
    )


def _make(folder: Path) -> None:
    if not folder.is_dir():
        if folder == folder.parent:
            raise FileNotFoundError(folder)  # a drive that isn't there
        _make(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            folder.chmod(0o700)  # whatever the umask has taken away


def _matching(
    folder: str | Path, pattern: re.Pattern[str]
) -> Iterator[tuple[os.DirEntry[str], re.Match[str]]]:
    """Yield what is in a folder under a name of ours."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if match := pattern.fullmatch(entry.name):
                yield entry, match


def _empty(folder: str) -> None:
    for file in _files(folder):
        _unlink(file.path)
    with contextlib.suppress(OSError):  # something else is in it
        Path(folder).rmdir()


def _unlink(file: str) -> None:
    with contextlib.suppress(OSError):  # another process was quicker; or, on Windows, has it open
        Path(file).unlink()


def _taken(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
