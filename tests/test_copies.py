"""No needless copy: how often the bytes of a value are moved, and the memory that it takes."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from copies import MIB, Wire, counted, opened
from remotedict import MemoryDictionary, UnpicklableValueError
from remotedict.engine import runtime
from remotedict.engine.values import PACK_BYTES
from remotedict.pure import chunks, codec, lz4
from remotedict.pure.pickling import pickled
from remotedict.pure.pieces import Pieces

BLOCK = 8 * MIB  # what travels as one
SIZE = 10 * BLOCK
NOISE = random.Random(0).randbytes(SIZE)
SLACK = 4 * MIB
MINE = {"key": "k", "dictionary": b"d" * 16, "generation": b"g" * 16}


def values():
    rounded = np.random.default_rng(0).standard_normal(SIZE // 8).round(1)
    return {"array": np.frombuffer(NOISE, "<u8"), "bytes": NOISE, "shrinks": rounded}


@pytest.fixture
def wire():
    return Wire()


@pytest.fixture
def d(wire):
    with opened(wire) as handle:
        handle["warm"] = np.zeros(2 * MIB)  # threads, and what is imported when it is needed
        handle["warm"]
        yield handle


@pytest.mark.parametrize("kind", ["array", "bytes", "shrinks"])
def test_a_byte_is_moved_once_on_its_way_up(d, wire, kind):
    value = values()[kind]
    wire.keeps = False
    with counted() as moves:
        d["k"] = value
    shrinks = kind == "shrinks"
    assert moves.copied // 1000 == (0 if shrinks else SIZE // 1000)  # and the pickle's few bytes
    samples = SIZE // 32  # are packed to see whether more is worth it
    assert moves.packed // 1000 - (SIZE // 1000 if shrinks else 0) in range(samples // 1000 + 2)
    assert moves.unpacked == moves.joined == 0
    # The blocks that are made ahead, and that which travels.
    assert moves.peak <= (runtime._WORKERS + 1) * (BLOCK + MIB) + SLACK


@pytest.mark.parametrize("kind", ["array", "bytes", "shrinks"])
@pytest.mark.parametrize("options", [{}, {"cache_bytes": 0}], ids=["cache", "no cache"])
def test_a_byte_is_moved_once_on_its_way_down_to_where_it_stays(d, wire, kind, options):
    d["k"] = value = values()[kind]
    wire.refit(BLOCK)
    with opened(wire, **options) as reader:
        reader["warm"]
        for _ in range(2):  # the second one without a download, if there is a cache
            with counted() as moves:
                read = reader["k"]
            assert np.array_equal(read, value)
            moved = (moves.copied // 1000, moves.unpacked // 1000)  # and the pickle's few bytes
            assert moved == ((0, SIZE // 1000) if kind == "shrinks" else (SIZE // 1000, 0))
            assert moves.packed == 0
            # A chunk that came half in one piece and half in the next.
            assert moves.joined <= (SIZE // BLOCK) * (MIB + chunks.PREFIX_BYTES)
            assert moves.peak <= SIZE + runtime._WORKERS * MIB + SLACK
            del read


def test_what_is_read_is_private_and_writable(d):
    d["k"] = value = values()["array"]
    for _ in range(2):
        read = d["k"]
        assert read.flags.writeable
        read[:] = 0
    assert np.array_equal(d["k"], value)


def test_a_small_pickle_is_read_where_it_lies():
    blob = codec.encode({"a": "text" * 10}, **MINE).join()
    _, [part], _ = codec.unpack(
        blob, len(blob), dictionary=MINE["dictionary"], generation=MINE["generation"], path="p"
    )
    assert np.shares_memory(np.frombuffer(part, np.uint8), np.frombuffer(blob, np.uint8))


# -- what changes while it is written ---------------------------------------------------------


@pytest.mark.parametrize("how", ["commit", "transaction"])
@pytest.mark.parametrize("size", [100, 100_000, 3_000_000])
def test_a_value_is_as_it_was_when_it_was_assigned(d, how, size):
    array = np.random.default_rng(0).standard_normal(size)
    was = array.copy()
    with getattr(d, how)() as t:
        (t if how == "transaction" else d)["k"] = array
        array[:] = 0
        d["list"] = [array, array[::2]]
        array.fill(7)
        if how == "transaction":
            assert np.array_equal(t["k"], was)
    assert np.array_equal(d["k"], was)
    assert not np.concatenate(d["list"]).any()


def test_gathered_values_keep_no_hold_on_what_they_were_made_of(d):
    with d.commit():
        buffer = bytearray(NOISE[: 20 * MIB])
        d["k"] = np.frombuffer(buffer, np.uint8)
        buffer.clear()  # raises BufferError while anybody looks at it
    assert d["k"].tobytes() == NOISE[: 20 * MIB]


def test_checksums_are_of_the_very_bytes_that_travel():
    """Another thread may write to an array meanwhile: what is stored is some of it, but whole."""
    array = np.frombuffer(bytearray(NOISE[: 3 * MIB]), np.uint8)
    blocks = []
    for block in codec.encode(array, **MINE):
        array[:] = 0
        blocks.append(block)
    read = codec.decode(Pieces(blocks), **MINE, path="p")
    assert read.tobytes() == NOISE[: 3 * MIB]


def test_what_is_sent_again_is_the_same_or_refused():
    array = np.frombuffer(bytearray(NOISE[: 3 * MIB]), np.uint8)
    encoded = codec.encode(array, **MINE)
    assert [*map(bytes, encoded)] == [*map(bytes, encoded)]
    array[-1] ^= 1
    with pytest.raises(UnpicklableValueError, match=r"'k'.*it changed while it was uploaded"):
        list(encoded)


# -- blocks and pieces ------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 7, 1000, 40_000])
@pytest.mark.parametrize(
    "value",
    [b"", b"x" * 50_000, NOISE[:50_000], np.arange(9000), [np.arange(200.0), NOISE[:3000]], "text"],
    ids=["none", "shrinks", "noise", "array", "parts", "small"],
)
def test_a_value_may_arrive_in_any_pieces(monkeypatch, value, step):
    monkeypatch.setattr(codec, "CHUNK_BYTES", 4096)
    blob = codec.encode(value, **MINE).join()
    pieces = Pieces(blob[at : at + step] for at in range(0, len(blob), step))
    read = codec.decode(pieces, **MINE, path="p")
    assert pickled(read, "k")[0].tobytes() == pickled(value, "k")[0].tobytes()
    for broken in ([*pieces, b"x"], [bytes(pieces[:-1])], []):
        with pytest.raises(Exception, match="p' is damaged"):
            codec.decode(Pieces(broken), **MINE, path="p")


def test_pieces_are_sliced_as_bytes_are():
    whole = bytes(range(50))
    pieces = Pieces([whole[:10], whole[10:11], b"", whole[11:]])
    assert (len(pieces), bytes(pieces)) == (50, whole)
    for start in range(-3, 55, 4):
        for stop in (None, -60, -7, 0, 9, 10, 11, 12, 50, 70):
            assert bytes(pieces[start:stop]) == whole[start:stop]


@pytest.mark.parametrize("parts", [[1 << 62], [100, 1 << 50], [1 << 30] * 9])
def test_a_header_that_claims_too_much_takes_no_memory(parts):
    head = codec.opening("pickle", parts, **MINE, library="")
    with pytest.raises(Exception, match="claims to hold more"):
        codec.decode(head + bytes(1000), **MINE, path="p")


@pytest.mark.parametrize("share", [0.0, 0.06, 0.5, 1.0])
def test_samples_find_what_shrinks(share):
    """In a chunk of noise with zeros at its end."""
    zeros = int(share * MIB)
    chunk = NOISE[: MIB - zeros] + bytes(zeros)
    stored = chunks.pack(chunk, memoryview(bytearray(MIB)))
    assert stored == MIB if share < 0.1 else stored < MIB - zeros * 0.9
    tried = lz4.deflate_into(chunk, bytearray(MIB + MIB // 16))
    assert stored <= tried + MIB // 16


def test_a_large_update_holds_few_values_at_a_time():
    with MemoryDictionary() as d:
        large = ((f"k{n}", np.zeros(PACK_BYTES // 8 + 1)) for n in range(3))
        assert [len(window) for window in d._engine.encoded(large)] == [1, 1, 1]
        small = ((f"k{n}", n) for n in range(30))
        assert [len(window) for window in d._engine.encoded(small)] == [30]
