"""The cache on disk saves downloads, and can neither harm nor outlive what was forgotten."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import random
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from remotedict import (
    CorruptBlobError,
    CredentialsError,
    KeyNotFoundError,
    LocalDictionary,
    MemoryDictionary,
)
from remotedict.engine import disk
from remotedict.engine.blobs import Blobs
from remotedict.engine.cache import Cache
from remotedict.engine.disk import DiskCache
from remotedict.pure import plan, state
from test_flights import HANG, Gate
from test_requests import Shop as CountedShop

VALUE = random.Random(0).randbytes(5000)
SECRET = random.Random(1).randbytes(600)
POSIX = os.name == "posix"


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(plan, "INDEX_BYTES", 2000)
    monkeypatch.setattr(plan, "CHECKPOINT_MIN", 4000)
    monkeypatch.setattr(state, "_REBASE_MIN", 5)


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if not path.is_dir() or path.is_symlink())


def sent(world, d, verb: str = "get") -> list[str]:
    return [call.path for call in world.of(d).sent(verb)]


# -- what it saves --------------------------------------------------------------------------


def test_a_value_read_before_costs_one_look_at_the_index(world, root):
    writer = world.open(inline_bytes=0)
    writer["k"] = VALUE
    assert world.open(cache_dir=root)["k"] == VALUE
    d = world.open(cache_dir=root, cache_bytes=0)
    before = d.stats
    assert d["k"] == VALUE
    assert d["k"] == VALUE
    stats = d.stats - before
    assert (stats.gets, stats.not_modified, stats.disk_hits, stats.misses) == (2, 2, 2, 0)


def test_a_reopen_costs_one_request_however_much_there_is_to_load(world, root, small):
    d = world.open()
    for n in range(300):
        d[f"k{n}"] = n
        d._engine.upkeep.finish()
    index = d._engine.now().index
    assert index.checkpoint
    assert index.segments
    cold, warm = world.open(cache_dir=root), world.open(cache_dir=root)
    assert len(sent(world, cold)) == 2 + len(index.segments)
    assert sent(world, warm) == ["Index/f/index"]
    assert list(warm) == list(cold) == [f"k{n}" for n in range(300)]
    assert warm.copy() == {f"k{n}": n for n in range(300)}


def test_on_azure_only_the_index_is_asked_for(azurite, root):
    shop = CountedShop(azurite)
    try:
        shop.open().d.update({f"k{n}": random.Random(n).randbytes(900) for n in range(100)})
        keys = [f"k{n}" for n in range(100)]
        cold = shop.open(cache_dir=root)
        found = cold.d[keys]
        warm = shop.open(cache_dir=root)
        requests = warm.cost(lambda: found.append(warm.d[keys]))
        assert found[:-1] == found[-1]
        assert [(request.is_index, request.status) for request in requests] == [(True, 304)]
        assert (warm.d.stats.disk_hits, warm.d.stats.misses) == (100, 0)
    finally:
        shop.close()


def test_a_new_generation_is_never_served_by_an_old_file(world, root):
    a, b = world.open(inline_bytes=0), world.open(cache_dir=root)
    for n in range(5):
        a["k"] = [n]
        assert b["k"] == [n]
    a.revert("k", 2)
    before = b.stats
    assert b["k"] == [1]
    assert (b.stats - before).disk_hits + (b.stats - before).memory_hits == 1


def test_what_is_large_is_mapped_and_what_comes_out_is_writable(world, root, monkeypatch):
    monkeypatch.setattr(disk, "_MAPPED_BYTES", 10_000)
    array = np.random.default_rng(0).normal(size=10_000)
    writer = world.open()
    writer["array"] = array
    assert (world.open(cache_dir=root)["array"] == array).all()
    d = world.open(cache_dir=root)
    found = d["array"]
    assert d.stats.disk_hits == 1
    shutil.rmtree(root)  # the mapping, if there were one still, would stay
    found += 1
    assert (found == array + 1).all()
    assert (d["array"] == array).all()  # from the store: what is mapped isn't kept in memory too
    assert d.stats.misses == 1


def test_without_a_dictionary_there_is_no_folder(world, root):
    d = world.open(cache_dir=root)
    assert "k" not in d
    d["k"] = 1
    assert d["k"] == 1
    assert not root.exists()


# -- what is found there --------------------------------------------------------------------


def flip(at):
    def damage(path):
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)

    return damage


def cut(length):
    return lambda path: path.write_bytes(path.read_bytes()[:length])


def swap(path):
    other = next(file for file in files(path.parent) if file != path)
    path.write_bytes(other.read_bytes())


def to_link(path):
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


def to_folder(path):
    path.unlink()
    path.mkdir()


def to_pipe(path):
    path.unlink()
    os.mkfifo(path)


DAMAGE = {
    "magic": flip(0),
    "length": flip(9),
    "checksum": flip(20),
    "first byte": flip(32),
    "last byte": flip(-1),
    "empty": cut(0),
    "half a header": cut(20),
    "only the header": cut(32),
    "half": cut(2000),
    "one byte short": cut(-1),
    "too long": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "another file": swap,
}
if POSIX:
    DAMAGE |= {"a link": to_link, "a folder": to_folder, "a pipe": to_pipe}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("what", DAMAGE)
def test_whatever_else_is_found_is_a_miss(world, root, monkeypatch, what, mapped):
    if mapped:
        monkeypatch.setattr(disk, "_MAPPED_BYTES", 100)
    writer = world.open(inline_bytes=0)
    writer["k"], writer["other"] = VALUE, VALUE[::-1]  # of one length
    warm = world.open(cache_dir=root)
    assert warm[["k", "other"]] == [VALUE, VALUE[::-1]]
    entry = warm._engine.index.known.state.get("k")
    [path] = [file for file in files(root) if file.name.startswith(entry.generation.hex())]
    DAMAGE[what](path)
    for hits in (0, 0 if what == "a folder" else 1):
        d = world.open(cache_dir=root)
        assert d["k"] == VALUE
        assert (d.stats.disk_hits, d.stats.misses) == (hits, 1 - hits)
        assert d["other"] == VALUE[::-1]


def test_a_damaged_checkpoint_is_fetched_anew(world, root, small):
    d = world.open()
    for n in range(100):
        d[f"k{n}"] = n
        d._engine.upkeep.finish()
    world.open(cache_dir=root)
    for file in files(root):
        flip(-5)(file)
    assert len(world.open(cache_dir=root)) == 100
    again = world.open(cache_dir=root)
    assert sent(world, again) == ["Index/f/index"]


def test_what_came_damaged_from_the_store_is_not_kept(world, root):
    writer = world.open(inline_bytes=0)
    writer["k"] = VALUE
    path = world.of(writer).sent("put")[-2].path
    good = world.store.get(path).data
    world.store.put(path, good[:-1] + b"!")
    d = world.open(cache_dir=root)
    for _ in range(2):
        with pytest.raises(CorruptBlobError):
            d["k"]
    assert files(root) == []
    world.store.put(path, good)  # restored from a backup
    assert d["k"] == VALUE


def test_files_of_others_are_left_alone(world, root):
    root.mkdir()
    (root / "notes.txt").write_text("mine")
    (root / "deadbeef").mkdir()
    writer = world.open(inline_bytes=0)
    writer.update({f"k{n}": random.Random(n).randbytes(20_000) for n in range(20)})
    d = world.open(cache_dir=root, cache_dir_bytes=100_000)
    assert len(d.copy()) == 20
    writer.forget("k1")
    assert len(d.copy()) == 19
    assert (root / "notes.txt").read_text() == "mine"
    assert (root / "deadbeef").is_dir()


# -- who may read it ------------------------------------------------------------------------


@pytest.mark.skipif(not POSIX, reason="Windows keeps what is in a user's folders to the user")
@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_it_is_private_whatever_the_umask(world, root, umask):
    writer = world.open(inline_bytes=0)
    writer["k"] = VALUE
    before = os.umask(umask)
    try:
        d = world.open(cache_dir=root / "deep")
        assert d["k"] == VALUE
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [root, *root.rglob("*")]}
    assert set(modes.values()) == {0o600, 0o700}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert world.open(cache_dir=root / "deep")["k"] == VALUE


@pytest.mark.skipif(not POSIX, reason="no modes")
def test_a_folder_that_others_may_write_is_not_used(world, root, caplog):
    writer = world.open(inline_bytes=0)
    writer["k"] = VALUE
    assert world.open(cache_dir=root)["k"] == VALUE
    [folder] = root.iterdir()
    folder.chmod(0o777)
    d = world.open(cache_dir=root)
    assert d["k"] == VALUE
    assert (d.stats.disk_hits, d.stats.misses) == (0, 1)
    assert "open to others" in caplog.text


@pytest.mark.skipif(not POSIX, reason="no owners")
def test_a_file_of_another_user_is_not_read(world, root, monkeypatch):
    writer = world.open(inline_bytes=0)
    writer["k"] = VALUE
    assert world.open(cache_dir=root)["k"] == VALUE
    monkeypatch.setattr(disk, "_ME", os.geteuid() + 1)
    monkeypatch.setattr(disk, "_is_private", lambda _: True)
    d = world.open(cache_dir=root)
    assert d["k"] == VALUE
    assert (d.stats.disk_hits, d.stats.misses) == (0, 1)


# -- when it doesn't work -------------------------------------------------------------------


def refuse(code):
    def refused(*_args, **_options):
        raise OSError(code, os.strerror(code))

    return refused


@pytest.mark.parametrize("what", ["full", "full at the end", "read-only", "not replaced"])
def test_a_disk_that_takes_nothing_fails_no_read(world, root, monkeypatch, caplog, what):
    target, name, code = {
        "full": (disk.os, "open", errno.ENOSPC),
        "full at the end": (disk.os, "utime", errno.ENOSPC),
        "read-only": (disk.os, "open", errno.EROFS),
        "not replaced": (Path, "replace", errno.EACCES),
    }[what]
    writer = world.open(inline_bytes=0)
    writer.update(k=VALUE, other=1)
    d = world.open(cache_dir=root, cache_bytes=0)
    with monkeypatch.context() as patch:
        patch.setattr(target, name, refuse(code))
        for _ in range(3):
            assert d["k"] == VALUE
            assert d[["k", "other"]] == [VALUE, 1]
    assert caplog.text.count("can't be used") == 1
    assert files(root) == []
    assert d["k"] == VALUE
    assert len(files(root)) == 1


def test_a_disk_that_can_only_be_read_is_read(world, root, monkeypatch):
    writer = world.open(inline_bytes=0)
    writer["k"] = VALUE
    assert world.open(cache_dir=root)["k"] == VALUE
    monkeypatch.setattr(disk.os, "utime", refuse(errno.EROFS))
    d = world.open(cache_dir=root)
    assert d["k"] == VALUE
    assert d.stats.disk_hits == 1


def test_a_place_where_no_folder_can_be(world, tmp_path, caplog):
    file = tmp_path / "file"
    file.write_text("text")
    writer = world.open(inline_bytes=0)
    writer["k"] = VALUE
    for where in (file, file / "below", "/proc/nowhere", tmp_path / ("x" * 300)):
        assert world.open(cache_dir=where)["k"] == VALUE
    assert file.read_text() == "text"
    assert "can't be used" in caplog.text


def test_a_folder_that_vanishes_is_made_again(world, root):
    writer = world.open(inline_bytes=0)
    writer["k"] = VALUE
    d = world.open(cache_dir=root, cache_bytes=0)
    for _ in range(3):
        assert d["k"] == VALUE
        assert len(files(root)) == 1
        shutil.rmtree(root)
    assert d.stats.misses == 3


# -- its bound ------------------------------------------------------------------------------


def cache(root, limit, clock=time.time, moved=0, dictionary=1):
    made = DiskCache(str(root), limit, clock)
    made.turn_to(identity(moved, dictionary))
    return made


def identity(moved, dictionary=1):
    return SimpleNamespace(
        dictionary=bytes([dictionary]) * 16, incarnation=bytes([2]) * 16, moved=moved
    )


def blob(n):
    return f"f/k/{n:012d}-{n:032x}"


def put(kept, n, data):
    kept.add(kept.folder, blob(n), 0, data)


def taken(root):
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in files(root))


def test_it_never_takes_more_than_its_bound(root):
    limit, rng = 1_000_000, random.Random(0)
    one, other = cache(root, limit), cache(root, limit, dictionary=2)
    for n in range(500):
        put(rng.choice([one, other]), n, bytes(rng.randrange(1, 60_000)))
        assert taken(root) <= limit
    assert taken(root) > limit // 2
    put(one, 1000, bytes(limit // 3))  # one that would take the place of all others
    assert one.get(blob(1000), 0, limit // 3) is None


def test_what_of_another_user_is_there_changes_no_bound(root, monkeypatch):
    limit = 1_000_000
    kept, others = cache(root, limit), cache(root, limit, dictionary=2)
    put(others, 0, b"theirs")
    scandir = os.scandir

    def refuse(folder):
        if Path(folder) == others.folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    for n in range(1, 300):
        put(kept, n, bytes(12_000))
    assert limit // 2 < taken(root) <= limit
    newer = cache(root, limit, dictionary=1, moved=1)
    assert newer.folder != kept.folder
    assert not kept.folder.exists()
    assert others.folder.exists()


def test_the_folder_in_use_is_never_an_older_one(root):
    kept = cache(root, 1_000_000)
    began, other = threading.Event(), threading.Event()

    class Slow(DiskCache):
        def turn_to(self, index):
            if index.moved == 5:
                began.set()
                other.wait(0.5)
            super().turn_to(index)
            if index.moved == 6:
                other.set()

    slow = Slow(str(root), 1_000_000, time.time)
    blobs = Blobs(None, SimpleNamespace(future=None), Cache(0), slow)
    first, second = (
        threading.Thread(target=blobs.turn_to, args=[identity(moved=moved)]) for moved in (5, 6)
    )
    first.start()
    assert began.wait(HANG)
    second.start()
    first.join(HANG)
    second.join(HANG)
    assert slow.folder.name == f"{kept.folder.name[:-1]}6"


def test_what_was_used_longest_ago_goes_first(root):
    now = [1000.0]
    kept = cache(root, 200_000, lambda: now[0])
    for n in range(10):
        now[0] += 1
        put(kept, n, bytes(12_000))  # 16 KiB each, so that ten fit
    now[0] += 1
    assert kept.get(blob(3), 0, 12_000) is not None
    for n in range(10, 18):
        now[0] += 1
        put(kept, n, bytes(12_000))
    there = [n for n in range(18) if kept.get(blob(n), 0, 12_000) is not None]
    assert 3 in there
    assert there[1:] == list(range(there[1], 18))
    assert there[1] > 4


def test_what_a_killed_process_left_is_collected(root):
    now = [1000.0]
    kept = cache(root, 1_000_000, lambda: now[0])
    put(kept, 0, b"x")
    left = files(root)[0].with_name("~" + "0" * 32)
    left.write_bytes(bytes(1000))
    os.utime(left, (now[0], now[0]))
    put(cache(root, 1_000_000, lambda: now[0] + 60), 1, b"x")
    assert left.exists()  # somebody may be writing to it
    put(cache(root, 1_000_000, lambda: now[0] + 1000), 2, b"x")
    assert not left.exists()
    assert len(files(root)) == 3


KILLED = """
import os, random, signal, sys, time
sys.path[:0] = {path!r}
from test_disk_cache import blob, cache, put

def use(seed):
    kept, rng = cache(sys.argv[1], 3_000_000), random.Random(seed)
    while True:
        n = rng.randrange(200)
        content = random.Random(n).randbytes(n * 300)
        found = kept.get(blob(n), 0, len(content))
        assert found is None or found == content
        put(kept, n, content)

def begin(seed):
    child = os.fork()
    if not child:
        try:
            use(seed)
        finally:
            os._exit(1)
    return child

for round_ in range(200):
    children = [begin(3 * round_ + n) for n in range(3)]
    time.sleep(random.Random(round_).uniform(0.01, 0.1))
    for child in children:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
    torn = [name for _, _, names in os.walk(sys.argv[1]) for name in names if name[0] == "~"]
    if round_ >= 20 and torn:
        break
"""


@pytest.mark.skipif(not POSIX, reason="Windows has no SIGKILL")
def test_processes_that_are_killed_at_any_moment_leave_no_wrong_byte(root):
    code = KILLED.format(path=sys.path)
    subprocess.run([sys.executable, "-c", code, str(root)], check=True, timeout=5 * HANG)
    assert any(file.name.startswith("~") for file in files(root))
    kept = cache(root, 3_000_000, lambda: time.time() + 1000)
    contents = {n: random.Random(n).randbytes(n * 300) for n in range(200)}
    found = {n: kept.get(blob(n), 0, len(content)) for n, content in contents.items()}
    assert any(found.values())
    assert all(data is None or data == contents[n] for n, data in found.items())
    put(kept, 1000, b"x")
    assert not [file for file in files(root) if file.name.startswith("~")]
    assert taken(root) <= 3_000_000


# -- forgetting -----------------------------------------------------------------------------


def holds(root, mark=SECRET[:100]):
    return [path for path in files(root) if mark in path.read_bytes()]


@pytest.mark.parametrize("inline_bytes", [0, 100, 2048])
def test_forgetting_leaves_no_byte_here(world, root, small, inline_bytes):
    d = world.open(cache_dir=root, inline_bytes=inline_bytes, history="all", retention=0)
    idle = world.open(cache_dir=root, max_staleness=1e9)
    for n in range(40):
        d[f"k{n}"] = n
        if n % 9 == 0:
            d["secret"] = SECRET + bytes([n])
    d.update({"secret": SECRET, "p1": VALUE[:900], "p2": VALUE[900:1800]})
    d._engine.upkeep.finish()
    idle._engine.now()
    fresh = world.open(cache_dir=root)
    for handle in (d, idle, fresh):
        assert handle["secret"] == SECRET
        assert handle.at("secret", 2) == SECRET + bytes([9])
    assert holds(root)
    d.forget("secret")
    assert holds(root) == []
    memory = d._engine.values.cache._bytes
    assert not any(SECRET[:100] in data for data in memory.values())
    # Who hasn't looked since may still put some there: until it looks.
    for key in list(idle):
        idle.get(key)
    for handle in (idle, fresh):
        handle._engine.now()
        assert "secret" not in handle
    assert holds(root) == []
    assert not any(SECRET[:100] in data for data in idle._engine.values.cache._bytes.values())
    assert fresh[["p1", "p2"]] == [VALUE[:900], VALUE[900:1800]]
    assert len(list(root.iterdir())) == 1


def test_a_download_that_ends_after_the_forgetting_leaves_nothing(world, root):
    writer = world.open(inline_bytes=0)
    writer["secret"] = SECRET
    d, gate = world.open(cache_dir=root), Gate()
    assert len(d) == 1

    def held(act):
        got = act()
        gate(lambda: None)
        return got

    path = world.of(writer).sent("put")[-2].path
    world.of(d).at("get", path, held)

    def read():
        with contextlib.suppress(KeyNotFoundError):  # if its look at the index came later
            d["secret"]

    reader = threading.Thread(target=read)
    reader.start()
    assert gate.reached.wait(HANG)
    writer.forget("secret")
    d._engine.now()
    gate.opened.set()
    reader.join(HANG)
    assert holds(root) == []
    assert not d._engine.values.cache._bytes


def test_what_another_process_left_goes_when_the_dictionary_is_opened(world, root):
    d = world.open(inline_bytes=0)
    d["secret"] = SECRET
    assert world.open(cache_dir=root)["secret"] == SECRET
    d.forget("secret")  # on another machine, say
    assert holds(root)
    assert "secret" not in world.open(cache_dir=root)
    assert holds(root) == []


def test_dictionaries_share_a_folder_and_its_bound(root):
    a, b_name = MemoryDictionary(cache_dir=root), root.name
    b = MemoryDictionary(b_name, cache_dir=root)
    for d in (a, b):
        d["own"] = random.Random(id(d)).randbytes(300_000)
        assert len(d["own"]) == 300_000
    before = {path.name for path in root.iterdir()}
    assert len(before) == 2
    a.forget("own")
    after = {path.name for path in root.iterdir()}
    assert len(before & after) == 1  # the other's
    other = MemoryDictionary(b_name, cache_dir=root)
    assert len(other["own"]) == 300_000
    assert (other.stats.disk_hits, other.stats.misses) == (1, 0)


# -- the options ----------------------------------------------------------------------------


def test_it_travels_with_a_pickle_and_is_left_out_where_it_can_t_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    d = LocalDictionary("d", cache_dir="cache", cache_bytes=0)
    d["own"] = VALUE * 100
    monkeypatch.chdir("/")
    sent = pickle.loads(pickle.dumps(d))
    assert sent["own"] == d["own"]
    assert (d.stats.disk_hits, sent.stats.misses) == (1, 1)
    assert files(tmp_path / "cache")
    object.__setattr__(sent._session.options, "cache_dir", "C:\\Users\\ann\\cache")
    monkeypatch.chdir(tmp_path)
    elsewhere = pickle.loads(pickle.dumps(sent))
    object.__setattr__(elsewhere._session.options, "cache_dir", "C:\\Users\\ann\\cache")
    assert elsewhere["own"] == d["own"]
    assert {path.name for path in tmp_path.iterdir()} == {"d", "cache"}


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"cache_dir": 5}, TypeError),
        ({"cache_dir": b"bytes"}, TypeError),
        ({"cache_dir": ""}, ValueError),
        ({"cache_dir": "nu\0ll"}, ValueError),
        ({"cache_dir": "DefaultEndpointsProtocol=https;AccountKey=c2VjcmV0"}, CredentialsError),
        ({"cache_dir_bytes": -1}, ValueError),
        ({"cache_dir_bytes": "1 GB"}, TypeError),
    ],
)
def test_what_makes_no_sense_is_refused(wrong, error):
    with pytest.raises(error):
        MemoryDictionary(**wrong)


def test_the_home_folder_may_be_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME" if POSIX else "USERPROFILE", str(tmp_path))
    d = MemoryDictionary(cache_dir="~/cache", inline_bytes=0, cache_bytes=0)
    d["k"] = VALUE
    assert d["k"] == VALUE
    assert len(files(tmp_path / "cache")) == 1
