"""A store in a local folder: a file a blob, compare-and-swap under a file lock."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import time
import uuid
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import msgspec
import xxhash
from filelock import FileLock, Timeout
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_random_exponential

from remotedict.backend import (
    NOT_MODIFIED,
    BlobInfo,
    BlobNotFound,
    Data,
    Got,
    LeaseHeld,
    LeaseLost,
    NotModified,
    PreconditionFailed,
    TransientError,
    pieces,
)
from remotedict.errors import (
    AccessDeniedError,
    InvalidNameError,
    RemoteDictError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_OURS = "~"  # begins the names of locks, leases and temporary files; no blob's name does
_TEMPORARY = f"{_OURS}tmp-"
_ABANDONED = 86_400.0  # seconds after which the process that wrote a temporary file has died
_LOCK_TIMEOUT = 10.0
_ATTEMPTS = 10
_NOT_DONE = {
    *("EACCES", "EPERM", "EROFS", "EDQUOT", "ENOSPC"),
    *("EEXIST", "EISDIR", "ENOTDIR", "ENOTEMPTY"),
}
"""What a rename that wasn't done fails with; else, on a network, only its answer may be lost."""
_T = TypeVar("_T")

if sys.platform == "win32":
    # There a file can't be replaced, nor opened, at the moment in which somebody else opens or
    # replaces it, and a folder not used at the one in which it is deleted; that moment passes.
    _patient = retry(
        retry=retry_if_exception_type(PermissionError),
        wait=wait_random_exponential(0.001, max=0.1),
        stop=stop_after_delay(_LOCK_TIMEOUT),
        reraise=True,
    )
    _replace = _patient(os.replace)
    _read_bytes = _patient(Path.read_bytes)
    _open = _patient(Path.open)
    _unlink = _patient(Path.unlink)
    _mkdir = _patient(Path.mkdir)
    _create = _patient(os.open)
    _scandir = _patient(os.scandir)
else:
    _replace, _read_bytes, _open, _unlink = os.replace, Path.read_bytes, Path.open, Path.unlink
    _mkdir, _create, _scandir = Path.mkdir, os.open, os.scandir

_JUNCTION = getattr(stat, "IO_REPARSE_TAG_MOUNT_POINT", None)  # a link to a folder, on Windows


class _LeaseFile(msgspec.Struct):
    id: str
    until: float


# Made here, in one thread: see `records`.
_decode_lease = msgspec.json.Decoder(_LeaseFile).decode


class LocalBackend:
    """Blobs as files below `root`.

    The etag of a blob is a hash of its bytes. That is enough for compare-and-swap, since every
    index blob holds the unique id of its newest commit: equal bytes are the same state.

    Parameters
    ----------
    root : path
        The folder; made when the first blob is written.
    clock : callable, optional
        The clock of the leases, in seconds since the epoch; processes that share the folder must
        share it, as those of one machine do.

    Notes
    -----
    Files and their folders are made for this user alone (mode 0700 and 0600): a pickle that
    somebody else can write is code that somebody else can run. A folder that is there already
    keeps its mode.

    `root` may be a link, or lie behind one. Below it none is followed, whatever it leads to: who
    planted it may want something outside to be read, overwritten or deleted.
    """

    def __init__(
        self, root: str | os.PathLike[str], clock: Callable[[], float] = time.time
    ) -> None:
        self.root = Path(root).expanduser().resolve()
        self._clock = clock
        if self.root.exists() and not self.root.is_dir():
            msg = f"{str(self.root)!r} is a file; a local dictionary lives in a folder"
            raise InvalidNameError(msg)

    def get(
        self,
        path: str,
        *,
        range: tuple[int, int] | None = None,  # noqa: A002
        if_none_match: str | None = None,
    ) -> Got | NotModified:
        """See `Backend.get`."""
        with _translated(path):
            if range is None:
                data = _read_bytes(self._file(path))
                etag = xxhash.xxh3_128_hexdigest(data)
                return NOT_MODIFIED if etag == if_none_match else Got(data, etag)
            offset, length = range
            with _open(self._file(path), "rb") as file:
                left = os.fstat(file.fileno()).st_size - offset
                if left <= 0:
                    raise BlobNotFound(path)
                file.seek(offset)
                return Got(file.read(min(length, left)), "")

    def put(
        self, path: str, data: Data, *, if_match: str | None = None, if_absent: bool = False
    ) -> str:
        """See `Backend.put`."""
        target = self._file(path)
        with _translated(path):
            with _temporary(target.parent) as (temporary, out):
                etag = _write(out, data)
                if if_match is None and not if_absent:
                    _put_in_place(temporary, target)
                else:
                    self._swap(temporary, target, if_match)
            _sync_folder(target.parent)
        return etag

    def _swap(self, temporary: Path, target: Path, if_match: str | None) -> None:
        with self._locked(target.parent):
            if self._etag(target) != if_match:
                raise PreconditionFailed(target)
            _put_in_place(temporary, target)

    def delete(self, paths: Iterable[str]) -> None:
        """See `Backend.delete`."""
        for path in paths:
            file = self._file(path)
            with _translated(path):
                _remove(file)

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """See `Backend.list`."""
        found = []
        with _translated(prefix):
            for folder, names in _walk(self._file(prefix.rpartition("/")[0])):
                where = folder.relative_to(self.root).as_posix()
                for name in names:
                    path = str(PurePosixPath(where) / name)
                    if name.startswith(_TEMPORARY):
                        self._unlink_abandoned(folder / name)
                    elif not name.startswith(_OURS) and path.startswith(prefix):
                        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                            file = (folder / name).lstat()
                            if not _is_link(file):
                                found.append(BlobInfo(path, file.st_size, file.st_mtime))
        yield from sorted(found)

    def _unlink_abandoned(self, temporary: Path) -> None:
        with contextlib.suppress(OSError):  # it is gone, or this folder may only be read
            if temporary.stat().st_mtime < self._clock() - _ABANDONED:
                _remove(temporary)

    def lease(self, path: str, seconds: float, *, lease_id: str, force: bool = False) -> LocalLease:
        """See `Backend.lease`."""
        target = self._file(path)

        def acquire() -> None:
            with self._locked(target.parent):
                held = self._read_lease(target)
                if held and not force and held.id != lease_id and held.until > self._clock():
                    raise LeaseHeld(path)
                if not target.exists():
                    target.touch(mode=0o600)
                self._write_lease(target, lease_id, seconds)

        with _translated(path):
            _in_folder(target.parent, acquire)
        return LocalLease(self, path, lease_id, seconds)

    def _change_lease(self, path: str, lease_id: str, seconds: float | None) -> None:
        target = self._file(path)
        with _translated(path):
            try:
                self._check_lease(path, lease_id)  # locking would make a folder that is gone
                with self._locked(target.parent):
                    self._check_lease(path, lease_id)
                    if seconds is None:
                        _unlink(_lease_file(target))
                    else:
                        self._write_lease(target, lease_id, seconds)
            except FileNotFoundError as exc:
                raise LeaseLost(path) from exc

    def _check_lease(self, path: str, lease_id: str) -> None:
        held = self._read_lease(self._file(path))
        if held is None or held.id != lease_id:
            raise LeaseLost(path)

    def _read_lease(self, target: Path) -> _LeaseFile | None:
        try:
            return _decode_lease(_read_bytes(_lease_file(target)))
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _write_lease(self, target: Path, lease_id: str, seconds: float) -> None:
        with _temporary(target.parent) as (temporary, out):
            _write(out, msgspec.json.encode(_LeaseFile(lease_id, self._clock() + seconds)))
            _put_in_place(temporary, _lease_file(target))

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _file(self, path: str) -> Path:
        """Return the file of a blob, which is below `root` and behind no link."""
        parts = PurePosixPath(path).parts
        if ".." in parts or path.startswith("/") or (os.name == "nt" and set(path) & {"\\", ":"}):
            msg = f"{path!r:.200} leads out of the folder"
            raise InvalidNameError(msg)
        file = str(self.root)
        for part in parts:
            file = os.path.join(file, part)  # noqa: PTH118 - for each request
            _refuse_link(file)
        return Path(file)

    def _etag(self, target: Path) -> str | None:
        try:
            return xxhash.xxh3_128_hexdigest(_read_bytes(target))
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        # An object of its own for each use: so nothing of it is shared with threads or children.
        file = folder / f"{_OURS}lock"
        _refuse_link(file)
        lock = FileLock(file, timeout=_LOCK_TIMEOUT, mode=0o600, poll_interval=0.001)
        try:
            lock.acquire()
            yield
        except Timeout as exc:
            msg = f"the lock file of {str(folder)!r} stayed busy for {_LOCK_TIMEOUT:.0f} s"
            raise TransientError(msg) from exc
        finally:
            try:
                lock.release()
            except OSError as exc:  # what was done under it stands
                msg = f"the lock file of {str(folder)!r} couldn't be unlocked: {exc.strerror}"
                raise TransientError(msg) from exc


class LocalLease:
    """See `Lease`."""

    def __init__(self, store: LocalBackend, path: str, lease_id: str, seconds: float) -> None:
        self._store = store
        self._path = path
        self.id = lease_id
        self.seconds = seconds

    def renew(self) -> None:
        """See `Lease.renew`."""
        self._store._change_lease(self._path, self.id, self.seconds)  # noqa: SLF001

    def release(self) -> None:
        """See `Lease.release`."""
        self._store._change_lease(self._path, self.id, None)  # noqa: SLF001


def _is_link(found: os.stat_result) -> bool:
    return stat.S_ISLNK(found.st_mode) or (
        _JUNCTION is not None and getattr(found, "st_reparse_tag", None) == _JUNCTION
    )


def _refuse_link(file: str | Path) -> None:
    """Raise AccessDeniedError if a file or folder is a link; it needn't be there."""
    try:
        found = os.lstat(file)
    except OSError:  # whoever opens it will say what is wrong
        return
    if _is_link(found):
        msg = (
            f"{str(file)!r} is a link, and in the folder of a dictionary none is followed. If it "
            "is yours, open the dictionary at the place that it leads to"
        )
        raise AccessDeniedError(msg)


def _lease_file(target: Path) -> Path:
    return target.parent / f"{_OURS}lease-{target.name}"


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        # Path.mkdir(parents=True) would give the parents the umask's mode, not this one.
        if folder == folder.parent:
            raise FileNotFoundError(folder)  # a drive that isn't there
        _make_folder(folder.parent)
        _mkdir(folder, mode=0o700, exist_ok=True)


def _in_folder(folder: Path, act: Callable[[], _T]) -> _T:
    """Do what needs a folder, which is made if it is missing."""
    cause: OSError | None = None
    for _ in range(_ATTEMPTS):
        try:
            _make_folder(folder)
            return act()
        except (FileExistsError, FileNotFoundError) as exc:
            cause = exc  # another made the folder just now, or deleted it with its last blob
    msg = f"folder {str(folder)!r} can't be made: {cause}"
    raise StoreUnavailableError(msg) from cause


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Yield a new file in `folder`, which is made if it is missing; it goes if anything fails."""
    file = folder / f"{_TEMPORARY}{uuid.uuid4().hex}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    out = _in_folder(folder, lambda: os.fdopen(_create(file, flags, 0o600), "wb"))
    try:
        yield file, out
    except BaseException:
        _remove(file)
        raise


def _remove(file: Path) -> None:
    """Delete a file, and its folder with the last one.

    The folder of a key's generations goes so. A writer that is about to put one there makes it
    again.
    """
    _unlink(file, missing_ok=True)
    with contextlib.suppress(OSError):
        file.parent.rmdir()


def _put_in_place(temporary: Path, target: Path) -> None:
    try:
        _replace(temporary, target)
    except FileNotFoundError as exc:  # this process was suspended, and taken for dead
        msg = f"{str(temporary)!r} was taken away before it was complete"
        raise TransientError(msg) from exc
    except OSError as exc:
        if errno.errorcode.get(exc.errno or 0) in _NOT_DONE:
            raise
        msg = f"{str(target)!r} may have been replaced, or not: {exc.strerror}"
        raise TransientError(msg) from exc


def _write(out: BinaryIO, data: Data) -> str:
    """Write, sync and close a file; return the hash of its bytes."""
    digest = xxhash.xxh3_128()
    with out:
        for piece in pieces(data):
            out.write(piece)
            digest.update(piece)
        out.flush()
        os.fsync(out.fileno())
        return digest.hexdigest()


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield a folder and those below it, each with what else is in it; no link is followed."""
    try:
        if _is_link(folder.lstat()):
            return
        with _scandir(folder) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except FileNotFoundError:  # deleted meanwhile
        return
    yield folder, [name for name, is_folder in found if not is_folder]
    for name, is_folder in found:
        if is_folder:
            yield from _walk(folder / name)


def _sync_folder(folder: Path) -> None:
    """Make a rename outlive a loss of power, where the system can."""
    if os.name == "posix":
        try:
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        except FileNotFoundError:
            pass  # deleted meanwhile, with all that was in it
        except OSError as exc:
            # The rename stands, but may not outlive a loss of power: neither yes nor no.
            msg = f"folder {str(folder)!r} couldn't be synced: {exc.strerror}"
            raise TransientError(msg) from exc


@contextlib.contextmanager
def _translated(path: str) -> Iterator[None]:
    """Turn the errors of the operating system into those of the protocol."""
    try:
        yield
    except RemoteDictError:  # which may be an OSError as well
        raise
    except FileNotFoundError as exc:
        raise BlobNotFound(path) from exc
    except PermissionError as exc:
        msg = f"the file system refused access to {path!r}: {exc.strerror}"
        raise AccessDeniedError(msg) from exc
    except OSError as exc:
        msg = f"the file system can't serve {path!r}: {exc.strerror}"
        raise StoreUnavailableError(msg) from exc
