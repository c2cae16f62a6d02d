"""Files: values of bytes that are streamed, in and out, in constant memory."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest

from faults import lose_reply, lose_request
from remotedict import errors
from remotedict.engine.committer import UploadExpired
from remotedict.features import files
from remotedict.pure import codec, stream
from remotedict.pure.chunks import PREFIX_BYTES, closing
from remotedict.pure.coding import Codec

MIB = 1024 * 1024
SIZES = [0, 1, MIB - 1, MIB, MIB + 1, 5 * MIB + 3]
FULL = MIB + PREFIX_BYTES  # a chunk that LZ4 can't shrink, as stored
PICKLE = Codec("pickle")
MINE = {"key": "k", "dictionary": b"d" * 16, "generation": b"g" * 16}
RNG = random.Random(7)


def bar(total):
    return nullcontext(lambda _: None)


def put(d, key, file, told=bar):
    def commit(changes):
        return d._parts.locks.commit(lambda _: changes)

    return files.put_file(d._engine, key, file, commit, told)


def get(d, key, target, told=bar):
    files.get_file(d._engine, key, target, told)


def opened(d, key):
    return files.open_value(d._engine, key)


def got(d, key):
    out = io.BytesIO()
    get(d, key, out)
    return out.getvalue()


def entry_of(d, key):
    return d._engine.now().state.get(key)


def content(kind, size):
    if kind == "noise":
        return RNG.randbytes(size)
    return (b"all work and no play %d " % size * (size // 20 + 1))[:size]


@pytest.fixture(scope="module")
def large():
    """Chunks of both kinds: LZ4 shrinks some of them."""
    return b"".join(content(kind, 4 * MIB + 17) for kind in ("noise", "text", "noise", "text"))


# -- round trips ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["noise", "text"])
def test_what_was_put_is_what_is_got(d, tmp_path, kind):
    for size in SIZES:
        data = content(kind, size)
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(data)
        put(d, "k", source)
        assert d["k"] == data
        get(d, "k", target)
        assert target.read_bytes() == data
        with opened(d, "k") as file:
            assert file.read() == data
        d["k"] = data
        assert got(d, "k") == data
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "source",
        "target",
    ]


@pytest.mark.parametrize("kind", ["noise", "text"])
@pytest.mark.parametrize("size", SIZES)
def test_a_stream_is_encoded_as_the_whole_is(kind, size):
    data = content(kind, size)
    chunks = [data[at : at + MIB] for at in range(0, size, MIB)]
    sent = codec.Sent("k", MINE["generation"])
    streamed = stream.encoded(size, chunks, sent, key="k", dictionary=MINE["dictionary"])
    assert b"".join(streamed) == codec.encode(data, PICKLE, **MINE).join()


def test_an_entry_doesnt_tell_how_it_was_put(d):
    data = content("text", 3 * MIB)
    put(d, "k", io.BytesIO(data))
    d["same"] = data
    one, other = entry_of(d, "k"), entry_of(d, "same")
    assert one.facts == other.facts
    assert one.stored == other.stored - len("same") + len("k")


def test_a_small_file_goes_where_small_values_go(d):
    put(d, "k", io.BytesIO(b"small"))
    assert isinstance(entry_of(d, "k").place, bytes)
    put(d, "empty", io.BytesIO())
    assert d["empty"] == got(d, "empty") == b""


def test_a_pack_and_the_cache_are_read_as_well(shop):
    d, other = shop.open(), shop.open(cache_bytes=0)
    many = {f"k{i}": content("noise", 50_000 + i) for i in range(5)}
    d.update(many)
    for handle in (d, other):
        for key, data in many.items():
            with opened(handle, key) as file:
                assert file.seek(-10, os.SEEK_END) == len(data) - 10
                assert file.read() == data[-10:]
            assert got(handle, key) == data


# -- reading as a file ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_it_reads_as_any_file(d, large, seed):
    d["k"] = large
    rng = random.Random(seed)
    with opened(d, "k") as file:
        same = io.BytesIO(large)
        for _ in range(40):
            what = rng.randrange(6)
            if what == 0:
                offset, whence = rng.randrange(len(large) + 100), os.SEEK_SET
            elif what == 1:
                offset, whence = -rng.randrange(len(large)), os.SEEK_END
            elif what == 2:
                offset, whence = rng.randrange(-min(same.tell(), 99), 3 * MIB), os.SEEK_CUR
            else:
                offset, whence = 0, os.SEEK_CUR
            assert file.seek(offset, whence) == same.seek(offset, whence) == file.tell()
            size = rng.choice([0, 1, 100, 70_000, MIB, 3 * MIB])
            assert file.read(size) == same.read(size)
        file.seek(MIB - 3)
        same.seek(MIB - 3)
        buffer, other = bytearray(2 * MIB), bytearray(2 * MIB)
        assert file.readinto(buffer) == same.readinto(other)
        assert buffer == other
        assert file.readline() == same.readline()
        assert file.read() == same.read()


def test_it_is_a_binary_file_to_read(d):
    d["k"] = b"content"
    file = opened(d, "k")
    assert isinstance(file, io.BufferedReader)
    assert (file.readable(), file.seekable(), file.writable(), file.mode) == (
        True,
        True,
        False,
        "rb",
    )
    assert file.read(3) == b"con"
    for offset, whence in [(-1, 0), (-8, 2), (-8, 1)]:
        with pytest.raises(ValueError, match="before the beginning"):
            file.raw.seek(offset, whence)
    with pytest.raises(ValueError, match="whence"):
        file.raw.seek(0, 7)
    with pytest.raises(io.UnsupportedOperation):
        file.fileno()
    with pytest.raises(io.UnsupportedOperation):
        file.write(b"x")
    file.close()
    for act in (file.read, file.tell, file.raw.readall, file.raw.tell, lambda: file.seek(0)):
        with pytest.raises(ValueError, match="closed"):
            act()


def test_others_take_it_for_a_file(d):
    array = np.random.default_rng(0).normal(size=(500, 700))
    out = io.BytesIO()
    np.save(out, array)
    put(d, "array", io.BytesIO(out.getvalue()))
    assert np.array_equal(np.load(opened(d, "array")), array)
    frame = pd.DataFrame({"a": range(200_000), "b": "text"})
    put(d, "csv", io.BytesIO(frame.to_csv(index=False).encode()))
    assert pd.read_csv(opened(d, "csv")).equals(frame)


def test_one_that_was_opened_can_be_put(d, large):
    d["k"] = large
    with opened(d, "k") as file:
        file.seek(10)
        put(d, "copy", file)
    assert d["copy"] == large[10:]


def test_it_stays_with_what_it_opened(d, large):
    put(d, "k", io.BytesIO(large))
    with opened(d, "k") as file:
        first = file.read(10)
        d["k"] = b"new"
        assert first + file.read() == large
    assert got(d, "k") == b"new"


def test_threads_can_share_it(d, large):
    put(d, "k", io.BytesIO(large))
    file, wrong = opened(d, "k"), []

    def work(seed):
        rng = random.Random(seed)
        for _ in range(20):
            with lock:
                at = file.seek(rng.randrange(len(large)))
                data = file.read(1000)
            if data != large[at : at + 1000]:
                wrong.append(at)

    lock = threading.Lock()
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- what it costs --------------------------------------------------------------------------


@pytest.fixture
def counted(world):
    """A value of 64 MiB that doesn't compress, a handle without a cache, and its requests."""
    data = random.Random(1).randbytes(64 * MIB)
    world.open()["k"] = data
    d = world.open(cache_bytes=0)

    def cost(act):
        backend = world.of(d)
        backend.calls.clear()
        result = act()
        calls = [call for call in backend.sent("get") if call.args["range"]]
        return result, len(calls), sum(call.args["range"][1] for call in calls)

    return d, data, cost


def test_a_slice_of_a_large_value_takes_a_few_chunks(counted):
    d, data, cost = counted
    file, requests, nbytes = cost(lambda: opened(d, "k"))
    assert requests == 2  # the head and the table, at once
    assert nbytes < 70_000

    def read(at, size):
        file.seek(at)
        return file.read(size)

    found, requests, nbytes = cost(lambda: read(30 * MIB + 5, 1000))
    assert found == data[30 * MIB + 5 :][:1000]
    assert (requests, nbytes) == (1, FULL)
    assert cost(lambda: read(30 * MIB + 900_000, 1000))[1:] == (0, 0)  # the same chunk
    found, requests, nbytes = cost(lambda: read(10 * MIB - 5, 10))
    assert found == data[10 * MIB - 5 :][:10]
    assert requests <= 2
    assert nbytes <= 3 * FULL
    assert cost(lambda: read(64 * MIB - 10, 100))[1:] == (1, FULL)  # nothing beyond the end


def test_reading_on_takes_ever_larger_pieces(counted):
    d, data, cost = counted
    file = opened(d, "k")

    def read():
        return [file.read(100_000) for _ in range(len(data) // 100_000 + 1)]

    found, requests, nbytes = cost(read)
    assert b"".join(found) == data
    assert requests == 3 + (64 - 7 + 7) // 8
    assert nbytes == 64 * FULL


def test_a_large_read_is_as_many_pieces(counted):
    d, data, cost = counted
    file = opened(d, "k")
    found, requests, nbytes = cost(file.read)
    assert found == data
    assert (requests, nbytes) == (8, 64 * FULL)
    found, requests, _ = cost(partial(got, d, "k"))
    assert found == data
    assert requests == 2 + 8
    file.seek(MIB)
    found, requests, nbytes = cost(lambda: file.read(4 * MIB))
    assert found == data[MIB : 5 * MIB]
    assert requests <= 2
    assert nbytes <= 5 * FULL


def test_what_is_at_hand_takes_no_request(counted, world):
    d, _, cost = counted
    d["inline"] = b"small"
    d["one chunk"] = data = content("noise", MIB // 2)
    assert cost(lambda: got(d, "inline")) == (b"small", 0, 0)
    assert cost(lambda: got(d, "one chunk"))[:2] == (data, 1)
    d = world.open()  # with a cache
    for requests in (1, 0):
        before = len(world.of(d).sent("get"))
        assert got(d, "one chunk") == data
        calls = world.of(d).sent("get")[before:]
        assert len([call for call in calls if call.args["range"]]) == requests


def test_a_very_long_key_takes_one_request_more(world):
    d, key = world.open(inline_bytes=0), "k" * 100_000
    put(d, key, io.BytesIO(data := content("noise", 3 * MIB)))
    assert got(d, key) == data


# -- what can be wrong with a value ---------------------------------------------------------


def test_what_isnt_bytes_isnt_a_file(d):
    for value in (bytearray(b"x"), "text", {"a": b"x"}, np.arange(3)):
        d["k"] = value
        kind = entry_of(d, "k").facts.type
        for act in (opened, got):
            with pytest.raises(TypeError, match=rf"'k' is of type {kind}, .* d\['k'\]"):
                act(d, "k")
    for act in (opened, got):
        with pytest.raises(errors.KeyNotFoundError):
            act(d, "nobody")


def stored_chunks(blob):
    """Return the offsets of a value's chunks, and of its table."""
    header = codec.head_bytes(blob)
    table = int.from_bytes(blob[-16:-12], "little")
    lengths = msgspec.msgpack.decode(blob[-16 - table : -16])
    return [header + sum(lengths[:i]) for i in range(len(lengths) + 1)]


def spoilt(blob, at):
    broken = bytearray(blob)
    broken[at] ^= 0x10
    return bytes(broken)


def test_damage_is_named(world):
    world.open()["k"] = data = content("noise", 3 * MIB + 5)
    d = world.open(cache_bytes=0)
    path = d.index["k"]
    whole = world.store.get(path).data
    first, second, third, last, table = stored_chunks(whole)
    end = len(whole)
    in_head = [0, 5, 6, 9, 15, 30, first - 1]
    in_chunks = [second, second + 3, second + 7, second + 12, second + 17, third - 1, last - 1]
    in_table = [table, table + 4, end - 16, end - 12, end - 1]
    cases = [
        *(spoilt(whole, at) for at in in_head + in_chunks + in_table),
        whole[:-1],
        whole[:table],
        whole[:second],
        whole[:10],
        whole + b"x",  # unnoticed, as long as the index says how long it is
    ]
    for number, blob in enumerate(cases):
        world.store.put(path, blob)
        fails = (
            nullcontext()
            if number == len(cases) - 1
            else pytest.raises((errors.CorruptBlobError, errors.FormatVersionError))
        )
        with fails as failed:
            assert got(d, "k") == data
        if failed:
            assert failed.value.blob == path, number
            assert path in str(failed.value)
    # A part that is whole can be read.
    world.store.put(path, spoilt(whole, second + 100))
    with opened(d, "k") as file:
        assert file.read(1000) == data[:1000]
        with pytest.raises(errors.CorruptBlobError, match="checksum"):
            file.read(MIB)
        file.seek(3 * MIB)
        assert file.read() == data[3 * MIB :]


def test_chunks_of_another_value_or_place_are_noticed(world):
    d = world.open(cache_bytes=0)
    d["k"], d["other"] = bytes(3 * MIB), bytes(3 * MIB)
    path, other = d.index["k"], d.index["other"]
    whole = world.store.get(path).data
    first, second, third, _ = stored_chunks(whole)
    swapped = whole[:first] + whole[second:third] + whole[first:second] + whole[third:]
    assert len(swapped) == len(whole)
    for blob in (swapped, world.store.get(other).data[: len(whole)]):
        world.store.put(path, blob)
        with pytest.raises(errors.CorruptBlobError):
            got(d, "k")


@pytest.mark.parametrize(
    ("parts", "chunk"),
    [
        ([5, 5], MIB),
        ([2**63], MIB),
        ([2**63], 2**32 - 1),
        ([2**40], 1),
        ([3 * MIB], 0),
        ([3 * MIB], MIB - 1),
        ([3 * MIB - 1], MIB),
        ([2 * MIB], MIB),
        ([3 * MIB], 3 * MIB),
    ],
)
def test_a_header_that_lies_is_refused(monkeypatch, parts, chunk):
    data = content("noise", 3 * MIB)
    whole = codec.encode(data, PICKLE, **MINE).join()
    rest = whole[stored_chunks(whole)[0] :]
    monkeypatch.setattr(codec, "CHUNK_BYTES", chunk)
    lying = codec.opening("bytes", parts, **MINE, library="") + rest

    def read():
        chunks = stream.Chunks(
            lying[: stream.HEAD_BYTES],
            len(lying),
            dictionary=MINE["dictionary"],
            generation=MINE["generation"],
            path="the/blob",
        )
        chunks.place(lying[-chunks.tail :])
        span = range(chunks.count)
        at, length = chunks.span(span)
        return [chunks.unpack(span, n, lying[at : at + length]) for n in span]

    with pytest.raises(errors.CorruptBlobError, match="the/blob"):
        read()


@pytest.mark.parametrize(
    "lengths",
    [
        [],
        [FULL] * 2,
        [FULL] * 4,
        [FULL + 1, FULL - 1, FULL],
        [FULL, FULL, PREFIX_BYTES],
        [FULL, -5, FULL],
        [2**64 - 1, FULL, FULL],
        [MIB, MIB, MIB],
    ],
)
def test_a_table_that_lies_is_refused(lengths):
    data = content("noise", 3 * MIB)
    whole = codec.encode(data, PICKLE, **MINE).join()
    table = closing([*lengths, *[1] * (2 - len(lengths))]) if lengths else b""
    lying = whole[: stored_chunks(whole)[-1]] + table
    chunks = stream.Chunks(
        lying[: stream.HEAD_BYTES],
        len(lying),
        dictionary=MINE["dictionary"],
        generation=MINE["generation"],
        path="the/blob",
    )
    with pytest.raises(errors.CorruptBlobError, match="the/blob"):
        chunks.place(lying[-chunks.tail :])


def test_chunks_of_another_size_are_read(monkeypatch, world):
    """A later version, or another program, may cut values otherwise."""
    d = world.open(cache_bytes=0, inline_bytes=0)
    data = content("noise", 3 * MIB)
    monkeypatch.setattr(codec, "CHUNK_BYTES", 10_000)
    d["k"] = data
    monkeypatch.undo()
    monkeypatch.setattr("remotedict.session.default_runtime", lambda: world.runtime)
    assert got(d, "k") == data
    with opened(d, "k") as file:
        file.seek(MIB)
        assert file.read(100) == data[MIB : MIB + 100]


def test_a_codec_of_the_future_needs_a_newer_version(world, monkeypatch):
    d = world.open(cache_bytes=0)
    monkeypatch.setattr(codec, "_CODECS", ("zstd", "pickle", "bytes"))
    d["k"] = content("noise", 2 * MIB)
    monkeypatch.setattr(codec, "_CODECS", ("zstd", "pickle"))
    with pytest.raises(errors.FormatVersionError, match="codec 2"):
        opened(d, "k")


def test_what_vanished_was_replaced_or_deleted(world, large):
    d, other = world.open(cache_bytes=0), world.open()
    put(d, "k", io.BytesIO(large))
    file, path = opened(d, "k"), d.index["k"]
    assert file.read(10) == large[:10]
    entry, dictionary = entry_of(d, "k"), d._engine.known().index.dictionary
    other["k"] = b"new"
    world.store.delete([path])
    for act in (
        file.read,
        lambda: files.open_value(d._engine, "k", entry, dictionary),
        lambda: files.get_file(d._engine, "k", io.BytesIO(), bar, entry, dictionary),
    ):
        with pytest.raises(errors.SnapshotExpiredError, match="'k'"):
            act()
    assert got(d, "k") == b"new"
    # As found by a handle that hasn't heard of it.
    late = world.open(cache_bytes=0, max_staleness=1e9)
    other["k"] = large
    late._engine.now()
    gone = d.index["k"]
    other["k"] = b"newer"
    world.store.delete([gone])
    assert got(late, "k") == b"newer"
    put(d, "k", io.BytesIO(large))
    world.store.delete([path := d.index["k"]])
    for act in (opened, got):
        with pytest.raises(errors.MissingValueError, match="k") as failed:
            act(d, "k")
        assert failed.value.blob == path


def test_a_closed_handle_reads_no_more(shop, large):
    d = shop.open()
    put(d, "k", io.BytesIO(large))
    file = opened(d, "k")
    d.close()
    for act in (file.read, lambda: opened(d, "k"), lambda: put(d, "k", io.BytesIO(large))):
        with pytest.raises(errors.ClosedError):
            act()


# -- sources --------------------------------------------------------------------------------


def test_an_open_file_is_taken_from_where_it_stands(d, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(data := content("text", 3 * MIB))
    with path.open("rb") as file:
        file.seek(MIB)
        put(d, "k", file)
        assert d["k"] == data[MIB:]
        assert file.tell() == len(data)
    with path.open("rb", buffering=0) as file:
        put(d, "k", file)
    assert d["k"] == data
    put(d, "k", str(path))
    file = io.BytesIO(b"x")
    file.seek(10)
    put(d, "beyond", file)
    assert (d["k"], d["beyond"]) == (data, b"")


@pytest.mark.parametrize("size", [10, 2 * MIB + 1])
def test_a_pipe_is_taken_to_its_end(d, size):
    data = content("noise", size)
    out, into = os.pipe()

    def feed():
        with os.fdopen(into, "wb") as pipe:
            pipe.write(data)

    feeder = threading.Thread(target=feed)
    feeder.start()
    with os.fdopen(out, "rb") as pipe:
        put(d, "k", pipe)
    feeder.join()
    assert d["k"] == data


class Stingy:
    """No more than a file must have: it can only read, a few bytes at a time."""

    def __init__(self, data):
        self._file = io.BytesIO(data)

    def read(self, size):
        return self._file.read(min(size, 300_000))


def test_anything_that_reads_is_a_file(d):
    data = content("noise", 2 * MIB + 1)
    put(d, "k", Stingy(data))
    assert d["k"] == data


@pytest.mark.skipif(os.name == "nt", reason="pipes there always block")
def test_a_pipe_that_doesnt_block_is_refused(d):
    out, into = os.pipe()
    os.set_blocking(out, False)
    with os.fdopen(out, "rb", buffering=0) as pipe, pytest.raises(BlockingIOError, match="block"):
        put(d, "k", pipe)
    os.close(into)


def test_what_isnt_a_binary_file_is_refused(d, tmp_path):
    path = tmp_path / "text"
    path.write_text("text")
    for file in (io.StringIO("text"), path.open("r+"), io.TextIOWrapper(io.BytesIO())):
        with pytest.raises(TypeError, match="text mode; open it in mode 'rb'"):
            put(d, "k", file)
        with pytest.raises(TypeError, match="text mode; open it in mode 'wb'"):
            get(d, "k", file)
        file.close()
    for other in (b"bytes", 5, None):
        with pytest.raises(TypeError, match="a path or a binary file object to read, not"):
            put(d, "k", other)
        with pytest.raises(TypeError, match="a path or a binary file object to write, not"):
            get(d, "k", other)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        put(d, "k", tmp_path / "nowhere")
    with pytest.raises(OSError, match=tmp_path.name):  # a folder: PermissionError on Windows
        put(d, "k", tmp_path)
    assert "k" not in d


class Changing(io.BytesIO):
    """A file that is cut, or grows, once so much of it was read."""

    def __init__(self, data, after, now):
        super().__init__(data)
        self._after, self._now = after, now

    def read(self, size):
        if self.tell() < self._after:
            return super().read(size)
        at = self.tell()
        self.truncate(self._now)
        self.seek(0, os.SEEK_END)
        self.write(bytes(max(self._now - self.tell(), 0)))
        self.seek(at)
        return super().read(size)


@pytest.mark.parametrize("size", [1000, 5 * MIB + 1000, 40 * MIB])
def test_a_file_that_changes_while_it_is_read_is_refused(shop, size):
    d = shop.open()
    d["k"] = b"old"
    for now in (size - 1, size // 2, size + 1, size + MIB):
        file = Changing(bytes(size), 0 if size < MIB else size // 2, now)
        with pytest.raises(ValueError, match=f"changed .* had {size:,} bytes.* Nothing was"):
            put(d, "k", file)
        assert d["k"] == b"old"
    if shop.kind == "local":
        blobs = [path.name for path in Path(shop.where).rglob("*") if path.is_file()]
        assert not [name for name in blobs if name.startswith("~tmp")]


def test_an_error_of_the_source_is_its_own(d):
    class Broken(io.BytesIO):
        def read(self, size):
            if self.tell() > 2 * MIB:
                raise PermissionError(13, "the disk says no")
            return super().read(size)

    with pytest.raises(PermissionError, match="the disk says no") as failed:
        put(d, "k", Broken(bytes(5 * MIB)))
    assert not isinstance(failed.value, errors.RemoteDictError)
    assert "k" not in d


def test_a_failed_upload_begins_anew(world):
    d, data = world.open(), content("noise", 5 * MIB)
    put(d, "before", io.BytesIO(b""))
    told = []
    for step in (lose_request, lose_reply):
        world.of(d).at("put", "", step)
        put(d, "k", io.BytesIO(data), lambda _: nullcontext(told.append))
        assert d["k"] == data
        assert sum(told) == len(data)
        assert min(told) == -len(data)  # what was told is taken back
        told.clear()


def test_an_upload_that_expired_is_done_again(world):
    d, data = world.open(), content("noise", 3 * MIB)
    file = io.BytesIO(b"skipped" + data)
    file.seek(7)
    tries = []

    def commit(changes):
        tries.append(changes)
        if len(tries) < 3:
            raise UploadExpired
        d._parts.locks.commit(lambda _: changes)

    told = []
    files.put_file(d._engine, "k", file, commit, lambda _: nullcontext(told.append))
    assert d["k"] == data
    assert len({change.generation for [change] in tries}) == 3
    assert sum(told) == len(data) * 3


def test_a_lock_of_somebody_else_is_respected(shop):
    d, other = shop.open(), shop.open()
    other.lock_item("k")
    with pytest.raises(errors.ItemLockedError):
        put(d, "k", io.BytesIO(bytes(3 * MIB)))
    assert "k" not in d


# -- targets --------------------------------------------------------------------------------


def test_a_target_is_replaced_whole_or_not_at_all(world, tmp_path):
    d = world.open(cache_bytes=0)
    put(d, "k", io.BytesIO(data := content("noise", 30 * MIB)))
    path, target = d.index["k"], tmp_path / "target"
    target.write_bytes(b"precious")
    whole = world.store.get(path).data
    for damage in (spoilt(whole, len(whole) - 1000_000), whole[:-MIB], None):
        world.store.delete([path])
        if damage:
            world.store.put(path, damage)
        with pytest.raises((errors.CorruptBlobError, errors.MissingValueError)):
            get(d, "k", target)
        assert target.read_bytes() == b"precious"
        assert [p.name for p in tmp_path.iterdir()] == ["target"]
    for key, error in [("nobody", KeyError), ("k", OSError)]:
        with pytest.raises(error):
            get(d, key, tmp_path if key == "k" else target)
    world.store.put(path, whole)
    with pytest.raises(FileNotFoundError, match="no folder"):
        get(d, "k", tmp_path / "no" / "where")
    get(d, "k", str(target))
    assert target.read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == ["target"]


def test_a_target_that_vanishes_meanwhile_is_written(d, tmp_path, monkeypatch):
    put(d, "k", io.BytesIO(b"data"))
    target, copymode = tmp_path / "for" / "target", shutil.copymode
    target.parent.mkdir()
    target.write_bytes(b"old")

    def late(source, *args):
        target.unlink()
        copymode(source, *args)

    monkeypatch.setattr(shutil, "copymode", late)
    get(d, "k", target)
    assert target.read_bytes() == b"data"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.skipif(os.name == "nt", reason="modes and links of POSIX")
def test_a_target_keeps_its_mode_and_its_link(d, tmp_path):
    put(d, "k", io.BytesIO(b"data"))
    target, link, new = tmp_path / "target", tmp_path / "link", tmp_path / "new"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    get(d, "k", link)
    assert link.is_symlink()
    assert target.read_bytes() == b"data"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    get(d, "k", new)
    (tmp_path / "plain").write_bytes(b"")
    assert new.stat().st_mode == (tmp_path / "plain").stat().st_mode
    get(d, "k", "/dev/null")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_target_may_take_less_than_all_at_once(d):
    class Stubborn(io.RawIOBase):
        taken = b""

        def writable(self):
            return True

        def write(self, data):
            self.taken += bytes(data[:300_000])
            return min(len(data), 300_000)

    put(d, "k", io.BytesIO(data := content("noise", 3 * MIB)))
    target = Stubborn()
    get(d, "k", target)
    assert target.taken == data
    assert not target.closed


def test_an_error_of_the_target_is_its_own(d):
    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(28, "no space left")

    put(d, "k", io.BytesIO(bytes(3 * MIB)))
    with pytest.raises(OSError, match="no space left"):
        get(d, "k", Full())


def test_progress_is_told_in_bytes(d, large):
    told, totals = [], []

    def told_bar(total):
        totals.append(total)
        return nullcontext(told.append)

    put(d, "k", io.BytesIO(large), told_bar)
    assert sum(told) == len(large)
    get(d, "k", io.BytesIO(), told_bar)
    assert sum(told) == 2 * len(large)
    assert totals == [len(large)] * 2


# -- interrupts, and memory -----------------------------------------------------------------


def interrupt():
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    time.sleep(0.2)


def interrupt_then(act):
    interrupt()
    return act()


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_an_interrupt_ends_an_upload(world):
    class Interrupting(io.BytesIO):
        def read(self, size):
            if self.tell() == 10 * MIB:
                interrupt()
            return super().read(size)

    d = world.open()
    put(d, "k", io.BytesIO(b"old"))
    file, before = Interrupting(bytes(500 * MIB)), set(world.store._blobs)
    with pytest.raises(KeyboardInterrupt):
        put(d, "k", file)
    time.sleep(0.3)
    assert file.tell() < 100 * MIB
    assert d["k"] == b"old"
    assert set(world.store._blobs) == before


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_an_interrupted_read_can_be_done_again(counted, world):
    d, data, _ = counted
    with opened(d, "k") as file:
        for at in (5 * MIB, 20 * MIB):
            world.of(d).at("get", d.index["k"], interrupt_then)
            file.seek(at)
            with pytest.raises(KeyboardInterrupt):
                file.read(1000 if at == 5 * MIB else 30 * MIB)
            assert file.tell() == at
            assert file.read(1000) == data[at : at + 1000]
        assert file.read() == data[20 * MIB + 1000 :]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_opens_its_own(shop, large):
    d = shop.open()
    put(d, "k", io.BytesIO(large))
    file = opened(d, "k")
    file.read(10)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            file.read()
        except errors.ClosedError:
            with opened(d, "k") as own:
                code = 0 if own.read() == large else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert file.read() == large[10:]


STREAM = """
import hashlib, sys, tempfile
from contextlib import nullcontext
import remotedict
from remotedict.features import files

MIB = 1024 * 1024
size = int(sys.argv[1]) * MIB


class Noise:
    '''Half of it noise; made as it is read, so that it takes neither memory nor a disk.'''

    def __init__(self):
        self.at = 0

    def seekable(self):
        return True

    def tell(self):
        return self.at

    def seek(self, offset, whence=0):
        self.at = offset if whence == 0 else size
        return self.at

    def read(self, count):
        start, self.at = self.at, min(self.at + count, size)
        number = start // MIB
        block = hashlib.shake_128(b"%d" % number).digest(MIB) if number % 8 == 0 else bytes(MIB)
        return block[start % MIB :][: self.at - start] if start < size else b""


class Check(Noise):
    def write(self, data):
        assert self.read(len(data)) == data
        return len(data)


def bar(total):
    return nullcontext(lambda _: None)


def peak():
    # Not ru_maxrss: that begins with what the parent of this process had.
    status = open("/proc/self/status").read()
    return int(status.partition("VmHWM:")[2].split()[0])


with tempfile.TemporaryDirectory() as folder:
    d = remotedict.LocalDictionary(folder)
    d["small"] = 1
    commit = lambda changes: d._parts.locks.commit(lambda _: changes)
    before = peak()
    files.put_file(d._engine, "k", Noise(), commit, bar)
    put = peak()
    check = Check()
    files.get_file(d._engine, "k", check, bar)
    assert check.tell() == size
    got = peak()
    with files.open_value(d._engine, "k") as file:
        check = Check()
        while data := file.read(100_000):
            check.seek(check.tell() + len(data))
    assert check.tell() == size
    print(before, put - before, got - before, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells how much memory was taken")
def test_memory_doesnt_grow_with_the_file(tmp_path):
    """What may be in memory at once, at the most.

    Going up: a window of 6 blocks of 8 MiB before and after compression; of this content, where
    seven chunks of eight are zeros, 6 * (8 + 1) = 54 MiB. Coming down: 8 pieces
    of 8 MiB, each as stored beside what was decompressed, 128 MiB; of this content, where seven
    chunks of eight are zeros, 8 * (1 + 8) = 72 MiB. Allocators keep some more.
    """
    script = tmp_path / "script.py"
    script.write_text(STREAM)
    for mib in (256, 768):
        done = subprocess.run(
            [sys.executable, script, str(mib)],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        before, put, got, read = (int(kib) / 1024 for kib in done.stdout.split())
        print(f"{mib} MiB: {before:.0f} MiB before, {put:.0f} put, {got:.0f} got, {read:.0f} read")  # noqa: T201
        assert put < 80
        assert max(got, read) < 150
