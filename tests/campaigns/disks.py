"""A disk runs full, or is read-only, in the middle of operations: of the dictionary, or of its cache.

An operation on the dictionary succeeds, or fails with an error of ours and changes nothing; what
was written stays; and once there is room again, all goes on. A cache never fails a read.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import resource
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from campaigns.operations import OPERATIONS, prepare, seen
from campaigns.report import Report, short
from crew import crew_of, received
from remotedict import (
    AccessDeniedError,
    LocalDictionary,
    StoreUnavailableError,
    UnknownOutcomeError,
)

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from campaigns.operations import Operation

FULL, SMALL = 20, 1
KINDS = ("local",)
SIZE = 4 * 1024 * 1024  # of the disk
PAGE = 4096
NOBODY = 65534
_NEWNS, _NEWUSER = 0x00020000, 0x10000000


def run(_: str, times: int, rng: random.Random, report: Report) -> None:
    """Let each operation meet a full disk `times` times, and a read-only one once.

    If that is once, the operations take turns.
    """
    with crew_of("forkserver") as crew:
        for target in (meet_full_disks, meet_read_only_disks, meet_forbidden_folders):
            process, told = crew.start_with_report(target, times, rng.randrange(2**32))
            while (found := received(told)) is not None:
                report.counts += found.counts
                for text in found.anomalies:
                    report.wrong(text)
            crew.join(process)


class Disk:
    """A small disk of this process's own; where there may be none, a limit on what files may hold.

    Attributes
    ----------
    folder : Path
        Where it is mounted.
    real : bool
        Whether it is a disk.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.real = _may_mount() and self._mount("-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs")

    def fill(self, free: int) -> None:
        """Leave so many bytes free."""
        if not self.real:
            resource.setrlimit(resource.RLIMIT_FSIZE, (free, resource.RLIM_INFINITY))
            return
        stat = os.statvfs(self.folder)
        with (self.folder / "filler").open("wb") as file:
            file.write(bytes(max(stat.f_bavail * stat.f_frsize - free, 0)))

    def free(self) -> None:
        """Make room again."""
        if self.real:
            (self.folder / "filler").unlink()
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)

    def protect(self, how: str) -> None:
        """Make it read-only (ro), or not (rw)."""
        assert self._mount("-o", f"remount,{how}")

    def end(self) -> None:
        """Take it away."""
        if self.real:
            subprocess.run(["umount", self.folder], check=True)  # noqa: S607

    def _mount(self, *options: str) -> bool:
        return not subprocess.run(["mount", *options, self.folder], check=False).returncode  # noqa: S607


def _may_mount() -> bool:
    """Give this process mounts of its own."""
    uid, gid = os.geteuid(), os.getegid()
    if ctypes.CDLL(None).unshare(_NEWNS | (_NEWUSER if uid else 0)):
        return False
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    private = ["mount", "--make-rprivate", "/"]
    return not subprocess.run(private, check=False).returncode


def meet_full_disks(times: int, seed: int, told: Connection) -> None:
    """Let each operation run out of space."""
    rng, report = random.Random(seed), Report()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        disk = Disk(folder)
        stack.callback(disk.end)
        report.did("operations on a full disk" if disk.real else "operations under a limit", 0)
        for operation in _some(times, 0):
            outcomes = _outcomes(disk.folder, operation)
            for time in range(times):
                # None at all; then what may end in any of its files.
                free = 0 if not time else rng.randrange(60) * PAGE
                trial = _Trial(disk.folder, operation, outcomes, report)
                trial.run(lambda free=free: disk.fill(free), disk.free)
                _read_with_cache(disk, operation, free, outcomes, report)
            _tell(told, report)
    told.send(None)


def meet_read_only_disks(times: int, seed: int, told: Connection) -> None:
    """Let each operation meet a disk that is read-only."""
    del seed
    report = Report()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        disk = Disk(folder)
        stack.callback(disk.end)
        for operation in _some(times, 1) if disk.real else ():
            outcomes = _outcomes(disk.folder, operation)
            trial = _Trial(disk.folder, operation, outcomes, report)
            trial.run(lambda: disk.protect("ro"), lambda: disk.protect("rw"))
            _tell(told, report)
    told.send(None)


def meet_forbidden_folders(times: int, seed: int, told: Connection) -> None:
    """Let each operation meet a folder in which this user may only read."""
    del seed
    report = Report()
    if os.geteuid() == 0:  # who may write everywhere
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    with tempfile.TemporaryDirectory() as folder:
        for operation in _some(times, 2):
            outcomes = _outcomes(Path(folder), operation)
            trial = _Trial(Path(folder), operation, outcomes, report)
            trial.run(lambda: _chmod(folder, 0o500), lambda: _chmod(folder, 0o700))
            _tell(told, report)
    told.send(None)


def _tell(told: Connection, report: Report) -> None:
    """Tell what was found, and begin anew."""
    told.send(report)
    report.counts.clear()
    report.anomalies.clear()


def _some(times: int, turn: int) -> list[Operation]:
    return OPERATIONS if times > 1 else OPERATIONS[turn::3]


def _chmod(folder: str, mode: int) -> None:
    for path, _, _ in os.walk(folder):
        Path(path).chmod(mode)


def _outcomes(folder: Path, operation: Operation) -> tuple[Any, Any, Any]:
    """Return what there is before and after an operation, and its result."""
    with LocalDictionary(folder / "undisturbed") as d:
        prepare(d)
        before = seen(d)
        result = operation.act(d)
        after = seen(d)
    shutil.rmtree(folder / "undisturbed")
    return before, after, result


class _Trial:
    """An operation on a dictionary of its own, in a folder on which something is wrong."""

    def __init__(
        self, folder: Path, operation: Operation, outcomes: tuple[Any, Any, Any], report: Report
    ) -> None:
        self._folder = folder / "disturbed"
        self._operation = operation
        self._outcomes = outcomes
        self._report = report

    def run(self, harm: Any, mend: Any) -> None:
        """Harm, do it, judge what comes of it, mend, and go on."""
        result, error = None, None
        with LocalDictionary(self._folder, timeout=5) as d, LocalDictionary(self._folder) as other:
            prepare(d)
            harm()
            try:
                result = self._operation.act(d)
            except Exception as exc:  # noqa: BLE001 - it is judged below
                error = exc
            self._report.did("operations harmed")
            self._report.did(type(error).__name__ if error else "succeeded")
            self._judge(result, error, seen(d))
            self._report.check(seen(other) == seen(d), f"{self._operation.name}: others see others")
            mend()
            d["next"] = "all"
            self._report.check(other["next"] == "all", f"{self._operation.name}: no next write")
            with d.lock("next", timeout=5):
                pass
        torn = [*self._folder.rglob("~tmp-*")]
        self._report.check(not torn, f"{self._operation.name} left {torn} behind")
        shutil.rmtree(self._folder)

    def _judge(self, result: Any, error: Exception | None, then: Any) -> None:
        operation, (before, after, expected) = self._operation, self._outcomes
        how = f"{operation.name} raised {error!r}, with {short(result)}"
        if error is None:
            right = (result, then) == (expected, after) or operation.name == "close"
        elif operation.commits > 1 or isinstance(error, UnknownOutcomeError):
            right = isinstance(error, AccessDeniedError | StoreUnavailableError)
        else:
            right = then == before and isinstance(error, AccessDeniedError | StoreUnavailableError)
        self._report.check(right, f"{how}; there is {short(then)}")


def _read_with_cache(
    disk: Disk, operation: Operation, free: int, outcomes: tuple[Any, Any, Any], report: Report
) -> None:
    """See that an operation goes on as ever if it is the cache whose disk is full, or read-only."""
    _, after, expected = outcomes
    for harm in ("full", "ro") if disk.real else ("full",):
        with tempfile.TemporaryDirectory() as folder:
            options: dict[str, Any] = {"cache_dir": disk.folder / "cache", "cache_bytes": 0}
            with LocalDictionary(folder, **options) as d:
                prepare(d)
                if free % (2 * PAGE):
                    d.copy()  # some of it is in the cache already
                if harm == "full":
                    disk.fill(free)
                else:
                    disk.protect("ro")
                report.did("operations with a harmed cache")
                try:
                    right = operation.act(d) == expected and seen(d) == after
                    report.check(right, f"{operation.name} went wrong with a cache that is {harm}")
                except Exception as exc:  # noqa: BLE001 - none may come
                    report.wrong(f"{operation.name} with a cache that is {harm}: {exc!r}")
                finally:
                    if harm == "full":
                        disk.free()
                    else:
                        disk.protect("rw")
        shutil.rmtree(disk.folder / "cache", ignore_errors=True)
