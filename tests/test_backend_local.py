"""The store in a folder keeps the contract of all stores, for processes as for threads."""

from __future__ import annotations

import errno
import importlib
import multiprocessing
import os
import shutil
import stat
import sys
import threading
import time
from pathlib import Path

import pytest

from backend_contract import (
    GUARD,
    LEASE,
    BackendContract,
    Clock,
    ClockedLeaseContract,
    done,
    new_id,
)
from remotedict import LocalDictionary, RemoteDictError
from remotedict.backend import (
    BackendError,
    LeaseHeld,
    LeaseLost,
    PreconditionFailed,
    TransientError,
)
from remotedict.backend.local import LocalBackend, LocalLease
from remotedict.errors import AccessDeniedError, InvalidNameError, StoreUnavailableError

MODULE = "remotedict.backend.local"

posix = pytest.mark.skipif(sys.platform == "win32", reason="of POSIX systems only")


class TestLocalBackend(ClockedLeaseContract, BackendContract):
    @pytest.fixture
    def clock(self):
        return Clock()

    @pytest.fixture
    def backend(self, tmp_path, clock):
        return LocalBackend(tmp_path / "made" / "when needed", clock)

    @pytest.fixture
    def wait(self, clock):
        return clock.wait

    def stored(self, backend):
        return {
            file.relative_to(backend.root).as_posix(): file.read_bytes()
            for file in backend.root.rglob("*")
            if file.is_file() and not file.name.startswith("~")
        }


@pytest.fixture
def store(tmp_path):
    return LocalBackend(tmp_path / "store")


# -- where and for whom ---------------------------------------------------------------------


@posix
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_files_and_folders_are_for_this_user_alone(tmp_path, umask):
    before = os.umask(umask)
    try:
        store = LocalBackend(tmp_path / "new" / "store")
        etag = store.put("f/k/x", b"data")
        store.put("f/k/x", b"more", if_match=etag)
        store.lease("f/locks/x", LEASE, lease_id=new_id()).renew()
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").rglob("*")}
    for path, mode in {tmp_path / "new": _mode(tmp_path / "new"), **modes}.items():
        assert mode & 0o077 == 0, path
        if not umask & 0o700:
            assert mode == (0o700 if path.is_dir() else 0o600), path


def _mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@posix
def test_a_folder_that_was_there_keeps_its_mode(tmp_path):
    tmp_path.chmod(0o755)
    LocalBackend(tmp_path).put("f/x", b"data")
    assert _mode(tmp_path) == 0o755
    assert _mode(tmp_path / "f") == 0o700


def test_nothing_is_made_before_the_first_write(tmp_path):
    store = LocalBackend(tmp_path / "store")
    assert list(store.list("")) == []
    store.delete(["f/x"])
    with LocalDictionary(tmp_path / "store") as d:
        assert len(d) == 0
    assert not (tmp_path / "store").exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    for open_ in (LocalBackend, LocalDictionary):
        with pytest.raises(InvalidNameError, match="file"):
            open_(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_file_in_place_of_a_parent_folder_is_a_typed_error(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(RemoteDictError), LocalDictionary(tmp_path / "file" / "folder") as d:
        d["k"] = 1
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_change_of_the_working_directory_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = LocalBackend("store")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.put("x", b"data")
    assert (tmp_path / "store" / "x").read_bytes() == b"data"


def test_a_folder_that_another_makes_and_deletes_meanwhile_is_made_again(store, monkeypatch):
    store.root.mkdir()
    mkdir, late = os.mkdir, iter([True])

    def overtaken(path, *args, **options):
        mkdir(path, *args, **options)
        if next(late, False):
            try:
                mkdir(path, *args, **options)
            finally:
                Path(path).rmdir()

    monkeypatch.setattr(os, "mkdir", overtaken)
    store.put("f/x", b"data")
    assert store.get("f/x").data == b"data"


def test_a_folder_that_cant_be_made_says_why(store):
    store.root.mkdir()
    (store.root / "f").write_bytes(b"mine")
    with pytest.raises(StoreUnavailableError, match=r"'.*f' can't be made.*exists"):
        store.put("f/x", b"data")
    assert (store.root / "f").read_bytes() == b"mine"


# -- failures of the file system ------------------------------------------------------------


def test_what_a_crash_left_behind_is_not_listed_and_disturbs_nothing(store):
    store.put("f/k/x", b"data")
    folder = store.root / "f" / "k"
    (folder / "~tmp-0123").write_bytes(b"half of it")
    (folder / "~lock").write_bytes(b"")  # unlocked by the system when its process died
    (folder / "~lease-x").write_bytes(b"")  # as after a loss of power
    (folder / "~tmp-4567").mkdir()
    assert [blob.name for blob in store.list("")] == ["f/k/x"]
    etag = store.put("f/k/x", b"more", if_match=store.get("f/k/x").etag)
    store.lease("f/k/x", LEASE, lease_id=new_id()).release()
    assert store.get("f/k/x") == (b"more", etag)
    store.delete(["f/k/x"])
    assert list(store.list("")) == []


def test_a_lease_that_fails_leaves_nothing(store, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(StoreUnavailableError, match="no space left"):
            store.lease("f/x", LEASE, lease_id=new_id())
    assert not [*store.root.rglob("~tmp-*")]
    store.lease("f/x", LEASE, lease_id=new_id()).release()


def test_a_listing_takes_temporary_files_of_dead_processes_away(tmp_path):
    now = 1_000_000.0
    store = LocalBackend(tmp_path, clock=lambda: now)
    store.put("f/x", b"data")
    for name, age in (("~tmp-old", 86_500), ("~tmp-new", 86_300)):
        (tmp_path / "f" / name).write_bytes(b"torn")
        os.utime(tmp_path / "f" / name, (now - age,) * 2)
    assert [blob.name for blob in store.list("")] == ["f/x"]
    assert {file.name for file in (tmp_path / "f").iterdir()} == {"x", "~tmp-new"}


@pytest.mark.parametrize("condition", ["none", "match"])
def test_a_put_that_slept_until_its_file_was_taken_away_may_be_tried_again(
    store, monkeypatch, condition
):
    options = {"if_match": store.put("f/x", b"old")} if condition == "match" else {}

    def sleep(handle):
        for file in store.root.rglob("~tmp-*"):
            file.unlink()

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", sleep)
        with pytest.raises(TransientError, match="taken away"):
            store.put("f/x", b"new", **options)
    assert store.get("f/x").data == b"old" if options else not list(store.list(""))
    store.put("f/x", b"new", **options)


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, StoreUnavailableError),
        (errno.EROFS, StoreUnavailableError),
        (errno.EIO, StoreUnavailableError),
        (errno.EMFILE, StoreUnavailableError),
        (errno.EACCES, AccessDeniedError),
        (errno.EPERM, AccessDeniedError),
    ],
    ids=errno.errorcode.get,
)
@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
@pytest.mark.parametrize("condition", ["none", "match", "absent"])
def test_a_put_that_fails_changes_nothing_and_leaves_nothing(
    store, monkeypatch, number, error, call, condition
):
    etag = store.put("f/x", b"current")
    name = "f/new" if condition == "absent" else "f/x"
    options = {"none": {}, "match": {"if_match": etag}, "absent": {"if_absent": True}}[condition]

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    if call == "replace" and number in {errno.EIO, errno.EMFILE}:
        error = TransientError  # it may have been done, for all that this says
    verb = {"open": f"{MODULE}._create", "fsync": "os.fsync", "replace": f"{MODULE}._replace"}[call]
    with monkeypatch.context() as patch:
        patch.setattr(verb, fail)
        with pytest.raises(error, match=os.strerror(number)) as caught:
            store.put(name, b"mine", **options)
    assert caught.value.__cause__.errno == number
    assert {file.name for file in (store.root / "f").iterdir()} <= {"x", "~lock"}
    assert store.get("f/x") == (b"current", etag)
    store.put(name, b"mine", **options)
    assert store.get(name).data == b"mine"


def failing_once(monkeypatch, where, real, fails):
    """Let a function do its work, and fail nevertheless, once, as on a network file system."""
    left = [OSError(errno.EIO, os.strerror(errno.EIO))]

    def act(*args, **kwargs):
        result = real(*args, **kwargs)
        if left and fails(*args):
            raise left.pop()
        return result

    monkeypatch.setattr(where, act)
    return left


def test_a_rename_whose_answer_was_lost_is_no_failure(tmp_path, monkeypatch):
    with LocalDictionary(tmp_path) as d:
        d["k"] = 0
        left = failing_once(
            monkeypatch, f"{MODULE}._replace", os.replace, lambda _, to: to.name == "index"
        )
        d["k"] = 1
        assert not left
        assert (d["k"], len(d.history("k"))) == (1, 2)


@posix
def test_an_unlock_that_fails_undoes_nothing(tmp_path, monkeypatch):
    fcntl = importlib.import_module("fcntl")
    with LocalDictionary(tmp_path) as d:
        d["k"] = 0
        left = failing_once(
            monkeypatch, "fcntl.flock", fcntl.flock, lambda _, what: what == fcntl.LOCK_UN
        )
        d["k"] = 1
        assert not left
        assert (d["k"], len(d.history("k"))) == (1, 2)


def test_a_put_whose_blob_is_deleted_at_once_is_done(store, monkeypatch):
    def replace(temporary, target):
        temporary.replace(target)
        store.delete(["f/x"])

    monkeypatch.setattr(f"{MODULE}._replace", replace)
    assert store.put("f/x", b"data")
    assert not list(store.root.iterdir())


def test_no_empty_folder_stays(tmp_path):
    now = time.time()
    store = LocalBackend(tmp_path / "store", clock=lambda: now)

    def broken():
        yield b"half of it"
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(StoreUnavailableError):
        store.put("f/failed/x", broken())
    store.put("f/killed/x", b"data")
    (store.root / "f" / "killed" / "~tmp-0").write_bytes(b"half of it")
    store.delete(["f/killed/x"])
    assert not list(store.list(""))
    assert [file.name for file in (store.root / "f").iterdir()] == ["killed"]
    now += 90_000
    assert not list(store.list(""))
    assert not list(store.root.rglob("*/*"))


def test_a_lease_on_what_was_deleted_is_lost_and_makes_nothing(store):
    lease = store.lease("f/lock", LEASE, lease_id=new_id())
    shutil.rmtree(store.root)
    for act in (lease.renew, lease.release):
        with pytest.raises(LeaseLost):
            act()
    assert not store.root.exists()


def test_a_lease_on_what_is_just_being_deleted_is_lost(store, monkeypatch):
    def acquire(self):
        shutil.rmtree(store.root)
        Path(self.lock_file).touch()

    for act in (LocalLease.renew, LocalLease.release):
        lease = store.lease("f/lock", LEASE, lease_id=new_id())
        with monkeypatch.context() as patch:
            patch.setattr("filelock.FileLock.acquire", acquire)
            with pytest.raises(LeaseLost):
                act(lease)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO], ids=errno.errorcode.get)
def test_a_read_that_fails_is_never_a_missing_blob(store, monkeypatch, number):
    store.put("f/x", b"data")

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    for name in ("_read_bytes", "_open"):
        monkeypatch.setattr(f"{MODULE}.{name}", fail)
    for options in ({}, {"range": (0, 1)}):
        with pytest.raises((AccessDeniedError, StoreUnavailableError)):
            store.get("f/x", **options)


def test_a_listing_is_never_partial(store, monkeypatch):
    store.put("f/k/x", b"data")
    store.put("g/k/x", b"data")

    def fail(path):
        if path.name == "g":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return os.scandir(path)

    monkeypatch.setattr(f"{MODULE}._scandir", fail)
    with pytest.raises(AccessDeniedError):
        list(store.list(""))


def test_every_write_is_synced_before_it_is_seen(store, monkeypatch):
    events = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr("os.fsync", lambda fd: (events.append("sync"), sync(fd))[1])
    monkeypatch.setattr(
        f"{MODULE}._replace",
        lambda *paths: (events.append("replace"), replace(*paths))[1],
    )
    store.put("f/x", b"data")
    after = ["sync"] if os.name == "posix" else []  # the folder's
    assert events == ["sync", "replace", *after]


# -- processes ------------------------------------------------------------------------------

METHODS = ["spawn"] if sys.platform == "win32" else ["spawn", "fork"]
forking = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def _add(root, times):
    store = LocalBackend(root)
    for _ in range(times):
        while True:
            data, etag = store.get("f/counter")
            try:
                store.put("f/counter", b"%d" % (int(data) + 1), if_match=etag)
            except PreconditionFailed:
                continue
            break


@forking
@pytest.mark.parametrize("method", METHODS)
def test_a_counter_of_two_processes_loses_nothing(store, method):
    store.put("f/counter", b"0")
    context = multiprocessing.get_context(method)
    processes = [context.Process(target=_add, args=(store.root, 50)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(GUARD)
    assert [process.exitcode for process in processes] == [0, 0]
    assert store.get("f/counter").data == b"100"


def _take(root, asked, answers):
    store = LocalBackend(root)
    for lease_id, force in asked:
        taken = done(
            lambda: store.lease("f/lock", LEASE, lease_id=lease_id, force=force),  # noqa: B023
            LeaseHeld,
        )
        answers.put(taken)


@forking
@pytest.mark.parametrize("method", METHODS)
def test_a_lease_holds_against_other_processes(store, method):
    context = multiprocessing.get_context(method)
    answers = context.SimpleQueue()
    lease = store.lease("f/lock", LEASE, lease_id=new_id())
    asked = [(new_id(), False), (lease.id, False), (new_id(), True)]
    process = context.Process(target=_take, args=(store.root, asked, answers))
    process.start()
    process.join(GUARD)
    assert process.exitcode == 0
    # Another's is refused, the same acquisition isn't, and force takes it.
    assert [answers.get() for _ in asked] == [False, True, True]
    with pytest.raises(LeaseLost):
        lease.renew()


@posix
@forking
def test_a_forked_child_uses_its_parents_store_at_once(store):
    etag = store.put("f/x", b"parent")
    inside, ended = threading.Event(), threading.Event()

    def hold():
        with store._locked(store.root / "f"):
            inside.set()
            ended.wait(GUARD)

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait(GUARD)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=store.put, args=("f/x", b"child"), kwargs={"if_match": etag})
    process.start()  # while another thread of the parent is within the lock
    ended.set()
    holder.join()
    process.join(GUARD)
    assert process.exitcode == 0
    assert store.get("f/x").data == b"child"


@posix
@forking
def test_a_child_that_is_killed_leaves_no_lock(store):
    etag = store.put("f/x", b"before")

    def hold(inside):
        with store._locked(store.root / "f"):
            inside.set()
            threading.Event().wait(GUARD)

    context = multiprocessing.get_context("fork")
    inside = context.Event()
    process = context.Process(target=hold, args=(inside,))
    process.start()
    assert inside.wait(GUARD)
    process.kill()
    process.join(GUARD)
    store.put("f/x", b"after", if_match=etag)
    assert store.get("f/x").data == b"after"


def test_a_lock_that_stays_busy_is_told_not_waited_for_without_end(store, monkeypatch):
    monkeypatch.setattr("remotedict.backend.local._LOCK_TIMEOUT", 0.05)
    etag = store.put("f/x", b"data")
    with store._locked(store.root / "f"):
        with pytest.raises((BackendError, StoreUnavailableError), match="busy"):
            store.put("f/x", b"mine", if_match=etag)
        store.put("f/y", b"no precondition, no lock")
    assert {file.name for file in (store.root / "f").iterdir()} <= {"x", "y", "~lock"}
    assert store.get("f/x").data == b"data"


# -- links ----------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path):
    """Something of the user's that no store has any business with."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "x").write_bytes(b"mine")
    (folder / "~lock").write_bytes(b"mine, too")
    return folder


VERBS = {
    "get": lambda store, path: store.get(path),
    "get range": lambda store, path: store.get(path, range=(0, 1)),
    "put": lambda store, path: store.put(path, b"theirs"),
    "put if absent": lambda store, path: store.put(path, b"theirs", if_absent=True),
    "put if match": lambda store, path: store.put(path, b"theirs", if_match="etag"),
    "delete": lambda store, path: store.delete([path]),
    "lease": lambda store, path: store.lease(path, LEASE, lease_id=new_id()),
    "list": lambda store, path: list(store.list(path)),
}


@posix
@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_no_link_to_a_folder_is_followed(tmp_path, outside, verb):
    store = LocalBackend(tmp_path / "store")
    (tmp_path / "store" / "f").mkdir(parents=True)
    (tmp_path / "store" / "f" / "k").symlink_to(outside)
    for path in ("f/k/x", "f/k/new", "f/k/deep/new"):
        with pytest.raises(AccessDeniedError, match="is a link"):
            verb(store, path)
    assert {file.name: file.read_bytes() for file in outside.iterdir()} == {
        "x": b"mine",
        "~lock": b"mine, too",
    }


@posix
@pytest.mark.parametrize("verb", [*VERBS][:-1])
@pytest.mark.parametrize("to", ["x", "dangling"])
def test_no_link_to_a_file_is_followed(tmp_path, outside, verb, to):
    store = LocalBackend(tmp_path / "store")
    (tmp_path / "store" / "f").mkdir(parents=True)
    (tmp_path / "store" / "f" / "x").symlink_to(outside / to)
    with pytest.raises(AccessDeniedError, match="is a link"):
        VERBS[verb](store, "f/x")
    assert list(store.list("")) == []
    assert sorted(file.name for file in outside.iterdir()) == ["x", "~lock"]
    assert (outside / "x").read_bytes() == b"mine"


@posix
def test_a_lock_file_that_is_a_link_is_not_emptied(tmp_path, outside):
    store = LocalBackend(tmp_path / "store")
    (tmp_path / "store" / "f").mkdir(parents=True)
    (tmp_path / "store" / "f" / "~lock").symlink_to(outside / "~lock")
    with pytest.raises(AccessDeniedError, match="is a link"):
        store.put("f/x", b"data", if_absent=True)
    assert (outside / "~lock").read_bytes() == b"mine, too"


@posix
def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with LocalDictionary(tmp_path / "link") as d:
        d["k"] = 1
    with LocalDictionary(tmp_path / "real") as d:
        assert d["k"] == 1


@pytest.mark.parametrize("path", ["../x", "f/../../x", "/etc/passwd", "f/../x"])
@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_no_path_leads_out(tmp_path, path, verb):
    (tmp_path / "x").write_bytes(b"mine")
    store = LocalBackend(tmp_path / "store")
    with pytest.raises(InvalidNameError, match="leads out"):
        verb(store, path)
    assert (tmp_path / "x").read_bytes() == b"mine"
