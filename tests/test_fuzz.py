"""What the decoders make of anything, past its checksums: typed errors, and bounded memory.

Each example is a seed. It takes what was really written, changes it (in its structure, or its
bytes), and gives it right checksums again, as somebody would who can write to the store. ``nox -s
fuzz`` tries many; ``FUZZ_EXAMPLES`` says how many.
"""

from __future__ import annotations

import contextlib
import copy
import os
import random
import struct
import tracemalloc
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from remotedict import MemoryDictionary, RemoteDict, RemoteDictError, errors
from remotedict.backend.memory import MemoryBackend
from remotedict.pure import chunks, codec, records, stream, table
from remotedict.pure.coding import Codec
from remotedict.pure.records import Checkpoint, Index, Log, Segment
from remotedict.pure.state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]  # a smaller seed isn't a smaller example
FUZZ = settings(phases=PHASES, **{"max_examples": EXAMPLES} if EXAMPLES else {})
SEEDS = st.integers(0, (1 << 64) - 1)
MIB = 1024 * 1024
PER_BYTE = 400
"""How many bytes of memory one byte of msgpack may take, as Python's objects (an empty dict)."""

LZ4 = 255

# -- mutations ----------------------------------------------------------------------------------

ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 8, 16, 255, 256, 65_535, 1 << 31, 1 << 32, 1 << 40),
    *((1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63), 0.0, -1.5, float("nan"), float("inf")),
    *("", "a", "x" * 300, "\0", "ü", "../x", "<f8", "|O", "<U3", "safe", b"", b"\0", b"\xff" * 16),
    *(bytes(16), bytes(32), b"x" * 300, [], [[]], [0], [1, 2], {}, {"a": 1}, [[[[[[]]]]]], ["a"]),
]


def spots(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield where in a tree something can be replaced."""
    todo = [node]
    while todo:
        one = todo.pop()
        if isinstance(one, list | dict):
            for at in range(len(one)) if isinstance(one, list) else list(one):
                yield one, at
                todo.append(one[at])


def mutated(rnd: random.Random, tree: Any) -> Any:
    """Return a tree with a few changes."""
    box = [copy.deepcopy(tree)]
    for _ in range(rnd.choice([1, 1, 1, 2, 3, 8])):
        places = list(spots(box))
        where, at = rnd.choice(places)
        other, there = rnd.choice(places)
        act = rnd.randrange(8)
        if act == 0 and isinstance(where, list) and where is not box:
            del where[at]
        elif act == 1 and isinstance(where, list) and where is not box:
            where.insert(at, copy.deepcopy(other[there]))
        elif act == 2:
            where[at] = copy.deepcopy(other[there])
        elif act == 3:
            where[at] = copy.deepcopy(rnd.choice(ODD))
        else:
            where[at] = tweaked(rnd, where[at])
    return box[0]


def tweaked(rnd: random.Random, value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        changed = value + rnd.choice([-1, 1, 2, -value, value, 1 << rnd.randrange(64)])
        return max(min(changed, (1 << 64) - 1), -(1 << 63))
    if isinstance(value, str):
        at = rnd.randrange(len(value) + 1)
        return value[:at] + rnd.choice(["", "x", "9", "/", "..", "\0", "é"]) + value[at + 1 :]
    if isinstance(value, bytes):
        return flipped(rnd, value)
    if isinstance(value, list):
        return value[: rnd.randrange(len(value) + 1)] + value[: rnd.randrange(3)]
    return rnd.choice(ODD)


def flipped(rnd: random.Random, data: bytes) -> bytes:
    """Return bytes with a few changes."""
    changed = bytearray(data)
    for _ in range(rnd.choice([1, 1, 2, 8])):
        at = rnd.randrange(len(changed) + 1)
        act = rnd.randrange(5)
        if act == 0:
            del changed[at : at + rnd.choice([1, 2, 8, 1000])]
        elif act == 1:
            changed[at:at] = rnd.randbytes(rnd.choice([1, 2, 8, 40]))
        elif act == 2:
            changed[at : at + 4] = rnd.choice([b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"])
        elif at < len(changed):
            changed[at] = rnd.choice([changed[at] ^ 1 << rnd.randrange(8), 0, 255, 0x90, 0x91])
    return bytes(changed)


def either(rnd: random.Random, raw: bytes) -> bytes:
    """Return a record in msgpack with changes in its structure, or in its bytes."""
    if rnd.random() < 0.7:
        with contextlib.suppress(OverflowError, UnicodeEncodeError, TypeError):
            return msgspec.msgpack.encode(mutated(rnd, msgspec.msgpack.decode(raw)))
    return flipped(rnd, raw)


@contextlib.contextmanager
def bounded(limit: int) -> Iterator[None]:
    """See that no more memory is taken, at any moment, than this."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= limit, f"{peak:,} bytes were taken, and {limit:,} allowed"


# -- what was really written --------------------------------------------------------------------


@cache
def store() -> dict[str, bytes]:
    """Return the blobs of a dictionary that has some of everything."""
    with MemoryDictionary(history=3, retention=0) as d:
        d.update({f"bulk {n}": "some text " * 5 for n in range(9000)})
        for n in range(400):
            d[f"k{n % 150}"] = [n, {"text": "x" * (n % 90)}]
            if n % 40 == 7:
                d.metadata["k1"] = {"n": n, "list": [1]}
                del d[f"k{n % 150}"]
        d["own"] = np.random.default_rng(0).bytes(100_000)
        d["several"] = {"a": np.arange(2000.0), "b": pd.DataFrame({"c": range(500)})}
        d.lock_item("k1")
        d._engine.upkeep.finish()
        return {
            info.name: bytes(d._engine.backend.raw.get(info.name).data)
            for info in d._engine.backend.raw.list("")
        }


def blobs(kind: str) -> list[str]:
    found = [name for name in store() if f"/{kind}" in name]
    assert found, f"there is no {kind} to change"
    return [name for name in found if len(store()[name]) < 50_000] or found


def reframed(blob: bytes, payload: bytes, data_length: int, kind: int | None = None) -> bytes:
    """Return a frame around other bytes, with a right checksum."""
    magic, version, was, flags, *_ = records._HEADER.unpack_from(blob)
    fields = (magic, version, was if kind is None else kind, flags, len(payload), data_length)
    return records._HEADER.pack(*fields, records._checksum(fields, payload)) + payload


def damaged(rnd: random.Random, blob: bytes) -> bytes:
    """Return a frame whose record, or data area, is another one."""
    *_, data_length, _ = records._HEADER.unpack_from(blob)
    data, record = blob[32 : 32 + data_length], blob[32 + data_length :]
    if data and rnd.random() < 0.3:
        data = flipped(rnd, data)
    else:
        record = either(rnd, record)
    length = rnd.choice([len(data)] * 8 + [0, len(data) + 1, len(data) + len(record)])
    return reframed(blob, data + record, length)


# -- records and tables -------------------------------------------------------------------------

CLASSES = {"index": Index, "segments/": Segment, "checkpoints/": Checkpoint, "logs/": Log}


@pytest.mark.parametrize("kind", CLASSES)
@FUZZ
@given(seed=SEEDS)
def test_a_record_is_decoded_or_refused(kind: str, seed: int) -> None:
    rnd = random.Random(seed)
    blob = damaged(rnd, store()[rnd.choice(blobs(kind))])
    with bounded(PER_BYTE * len(blob) + MIB), contextlib.suppress(RemoteDictError):
        record, data = records.decode(blob, CLASSES[kind], "p")
        assert isinstance(record, CLASSES[kind])
        assert len(data) <= len(blob)


@FUZZ
@given(seed=SEEDS)
def test_a_checkpoint_is_used_or_refused(seed: int) -> None:
    """Its columns are unpacked when they are first needed: so all of them are used."""
    rnd = random.Random(seed)
    blob = rnd.choice([*small_checkpoints(), store()[blobs("checkpoints/")[0]]])
    changed = damaged(rnd, blob)
    for act in USES:
        with (
            bounded(LZ4 * PER_BYTE * len(changed) + 64 * MIB),
            contextlib.suppress(RemoteDictError),
        ):
            record, data = records.decode(changed, Checkpoint, "p")
            act(table.decode(record.table, data, "p"))
            State.from_checkpoint(record, data, "p")


@cache
def small_checkpoints() -> list[bytes]:
    """Return checkpoints so small that a change strikes what matters."""
    found = []
    for count in (0, 1, 5):
        with MemoryDictionary(history="all", inline_bytes=0) as d:
            for n in range(count):
                d[f"k{n}"] = n
                d[f"k{n // 2}"] = b"x" * 3000
                d.metadata[f"k{n}"] = {"n": n}
            if count > 2:
                del d["k1"], d["k3"]
            known = d._engine.now()
            if known.index is None:
                continue
            ids = known.index.dictionary, known.index.incarnation
            record, data = known.state.checkpoint(*ids, "", known.index.seq)
            found.append(records.encode(record, data))
    return found


USES: list[Callable[[table.Table], Any]] = [
    lambda t: [t.keys(0, t.rows + t.tombstones), t.rows and [t.item(0), t.listed(0)]],
    lambda t: t.find("k1"),
    lambda t: t.find_all([f"k{n}" for n in range(40)]),
    lambda t: t.entries((rows := t.find_all(["k0", "k2"]))[(rows >= 0) & (rows < t.rows)]),
    lambda t: [t.rows and t.at(0, 3), t.standing(3), list(t.changed(3))],
    lambda t: t.pruned(5, 1),
    lambda t: [t.droppable(1 << 63, 1), t.generations([bytes(16)]), t.ranges([""])],
    lambda t: list(t.stamps()),
    lambda t: t.paths(t.keys(0, t.rows), 0, list),
    lambda t: t.encode(),
]

# -- the whole ----------------------------------------------------------------------------------


class Place:
    """A store that is there already."""

    def __init__(self, backend: MemoryBackend) -> None:
        self._backend = backend

    def backend(self, timeout: float, runtime: Any) -> MemoryBackend:
        del timeout, runtime
        return self._backend

    def describe(self) -> str:
        return "Fuzz"


READS: list[Callable[[Any], Any]] = [
    lambda d: [len(d), list(d)[:50], "k1" in d],
    lambda d: d["k1"],
    lambda d: d[["k2", "k3", "bulk 1"]],
    lambda d: d["own"],
    lambda d: d["several"],
    lambda d: d.open("own").read(10),
    lambda d: d.metadata["k1"],
    lambda d: [d.history("k1"), d.at("k1", d.version("k1"))],
    lambda d: [d.info(), d.index],
    lambda d: len(d.snapshot()),
    lambda d: d.query(n=1),
    lambda d: d.locks,
    lambda d: [pair for pair, _ in zip(d.items(), range(20), strict=False)],
    lambda d: d.__setitem__("new", 1),
    lambda d: d.__delitem__("k2"),
]


@pytest.mark.parametrize("codec_name", ["pickle", "safe"])
@settings(FUZZ, max_examples=max(EXAMPLES // 10, 30))
@given(seed=SEEDS)
def test_a_dictionary_with_a_damaged_blob_answers_or_says_so(codec_name: str, seed: int) -> None:
    rnd = random.Random(seed)
    backend = MemoryBackend()
    kind = rnd.choice([*CLASSES])
    name = rnd.choice(blobs(kind))
    for path, data in store().items():
        backend.put(path, damaged(rnd, data) if path == name else data)
    with contextlib.suppress(RemoteDictError):
        d = RemoteDict(Place(backend), "default", timeout=0.2, codec=codec_name)
        try:
            for read in rnd.sample(READS, 5):
                with contextlib.suppress(RemoteDictError):
                    read(d)
        finally:
            d.close()


# -- values -------------------------------------------------------------------------------------

MINE = {"dictionary": b"d" * 16, "generation": b"g" * 16}
PICKLE, SAFE = Codec("pickle"), Codec("safe")


@cache
def values() -> list[bytes]:
    rng = np.random.default_rng(0)
    made: list[tuple[Any, Codec]] = [
        (b"", PICKLE),
        (b"some bytes " * 20, PICKLE),
        (rng.bytes(5000), PICKLE),
        (rng.bytes(MIB + 5) + bytes(MIB), PICKLE),
        ({"a": np.arange(3000), "b": bytes(4000)}, SAFE),
        ([1, "two", {"x": None}], SAFE),
    ]
    return [codec.encode(value, by, key="k", **MINE).join() for value, by in made]


def damaged_value(rnd: random.Random, blob: bytes) -> bytes:
    """Return a value of other sizes, chunks or table, whose checksums are right."""
    magic, version, kind, flags, _, length, *fields = codec._START.unpack_from(blob)
    at = codec.START_BYTES + length
    about, rest = blob[codec.START_BYTES : at], blob[at:]
    act = rnd.randrange(5)
    if act == 0:
        about = either(rnd, about)
    elif act == 1:  # the size of chunks, or of the first part
        which = rnd.choice([0, 3])
        most = (1 << 32) - 1 if which == 0 else (1 << 64) - 1
        changed = tweaked(rnd, fields[which])
        fields[which] = min(max(rnd.choice([changed, 0, 1, most, 1 << 30]), 0), most)
    elif act == 2:
        flags, kind = rnd.choice([0, 1, 2, 128, 255]), rnd.choice([0, 1, 2, 3, 255])
    elif act == 3 and len(rest) > 30:  # a chunk
        _, stored = chunks.HEADER.unpack_from(rest)
        body = flipped(rnd, rest[12 : 12 + stored])
        rest = chunks.HEADER.pack(0, len(body)) + body + rest[12 + stored :]
    elif len(rest) > 16:  # the table
        size = struct.unpack_from("<I", rest, len(rest) - 16)[0]
        raw = either(rnd, rest[-16 - size : -16]) if size < len(rest) - 16 else b"\x90"
        end = chunks._END.pack(len(raw), codec.digest(raw), chunks.MAGIC)
        rest = rest[: -16 - min(size, len(rest) - 16)] + raw + end
    fields = [len(about), *fields]
    unchecked = codec._START.pack(magic, version, kind, flags, 0, *fields) + about
    checksum = codec.digest(unchecked[codec._CHECKED :], codec._seed(unchecked))
    head = codec._START.pack(magic, version, kind, flags, checksum, *fields) + about
    return head + rechecked(rest, checksum)


def rechecked(rest: bytes, checksum: int) -> bytes:
    """Return chunks with right checksums, as far as they look like chunks."""
    made, at, number = [], 0, 0
    while at + 12 < len(rest):
        _, stored = chunks.HEADER.unpack_from(rest, at)
        body = rest[at + 12 : at + 12 + stored]
        if not stored or len(body) != stored:
            break
        made.append(
            chunks.HEADER.pack(codec.digest(body, (checksum + number) % (1 << 64)), stored) + body
        )
        at, number = at + 12 + stored, number + 1
    return b"".join(made) + rest[at:]


@FUZZ
@given(seed=SEEDS)
def test_a_value_is_unpacked_or_refused(seed: int) -> None:
    rnd = random.Random(seed)
    blob = damaged_value(rnd, rnd.choice(values()))
    nbytes = rnd.choice([5000, 3 * MIB, 1 << 40])
    pieces = [blob[at : at + 7000] for at in range(0, len(blob), 7000)]
    with bounded(min(LZ4 * len(blob), nbytes) + PER_BYTE * len(blob) + MIB):
        for data in (blob, iter(pieces)):
            with contextlib.suppress(errors.CorruptBlobError, errors.FormatVersionError, *SEALED):
                _, parts, _ = codec.unpack(data, len(blob), **MINE, path="p", nbytes=nbytes)
                assert sum(map(len, parts)) <= nbytes
            parts = []
        found = codec.intact(blob, *MINE.values(), nbytes)
        assert found is None or len(found[1][0]) == nbytes


SEALED = (errors.SignatureError, errors.DecryptionError)


@FUZZ
@given(seed=SEEDS)
def test_chunks_are_found_or_refused(seed: int) -> None:
    rnd = random.Random(seed)
    blob = damaged_value(rnd, rnd.choice(values()))
    with (
        bounded(LZ4 * len(blob) + PER_BYTE * len(blob) + MIB),
        contextlib.suppress(errors.CorruptBlobError, errors.FormatVersionError, *SEALED),
    ):
        found = stream.Chunks(blob, len(blob), **MINE, path="p")
        if found.codec != "bytes":
            return
        found.place(blob)
        for number in range(min(found.count, 5)):
            part = range(number, number + 1)
            at, length = found.span(part)
            assert len(found.unpack(part, number, blob[at : at + length])) == found.length(number)


# -- safe values --------------------------------------------------------------------------------


@cache
def safe_values() -> list[list[bytes]]:
    third = [1, None, 3]
    frame = pd.DataFrame(
        {
            "i": range(3),
            "f": [0.5, 1.5, 2.5],
            "s": ["a", None, "b"],
            "c": pd.Categorical(["a", "b", None]),
            "t": pd.date_range("2026", periods=3, tz="Europe/Berlin"),
            "I": pd.array(third, dtype="Int64"),
            "p": pd.period_range("2026", periods=3, freq="M"),
            "v": pd.interval_range(0, 3),
            "S": pd.array(["a", None, "b"], dtype="string[python]"),
            "A": pd.array(third, dtype=pd.ArrowDtype(pa.int64())),
        },
        index=pd.MultiIndex.from_product([["x"], [1, 2, 3]]),
    )
    arrow = pa.table(
        {
            "i": pa.array(third),
            "s": pa.array(["a", None, "bc"]),
            "l": pa.array([[1, 2], None, []]),
            "st": pa.array([{"a": 1, "b": "x"}, None, {"a": 2, "b": None}]),
            "m": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
            "d": pa.array(["a", "b", "a"]).dictionary_encode(),
            "f": pa.array([[1, 2]] * 3, pa.list_(pa.int8(), 2)),
        }
    )
    struct_type = np.dtype({"names": ["a", "b"], "formats": ["<i4", (">f8", (2,))], "itemsize": 32})
    made = [
        {"a": [1, (2, {3}), frozenset([4])], 5: b"x", None: 10**30, "c": 1j},
        [pd.Timestamp("2026", tz="UTC"), pd.Timedelta("1s"), pd.Period("2026"), pd.NA, pd.NaT],
        np.arange(6, dtype=">u2").reshape(2, 3),
        [np.zeros(3, struct_type), np.array(["a", "bc"]), np.array(["2026"], "M8[D]")],
        {"large": np.arange(500), "other": bytes(2000)},
        frame,
        frame["t"],
        arrow,
        pd.DataFrame({"a": range(3)}, index=pd.date_range("2026", periods=3, freq="D")),
    ]
    return [[bytes(part) for part in SAFE.write(value, "k")[1]] for value in made]


ABOUT = codec.About("k", "3", "", [])


@FUZZ
@given(seed=SEEDS)
@example(seed=0)
def test_a_safe_value_is_read_or_refused(seed: int) -> None:
    rnd = random.Random(seed)
    tree_part, *buffers = rnd.choice(safe_values())
    if buffers and rnd.random() < 0.2:
        buffers = [flipped(rnd, buffer) for buffer in buffers][: rnd.randrange(3)]
    parts = [either(rnd, tree_part), *map(bytearray, buffers)]
    size = sum(map(len, parts))
    with bounded(PER_BYTE * size + 4 * MIB), contextlib.suppress(errors.UnreadableValueError):
        value = SAFE.read(("safe", [memoryview(part) for part in parts], ABOUT), "k")
        with contextlib.suppress(Exception):  # it is whole, whatever it is
            repr(value)
        with contextlib.suppress(errors.UnsafeValueError):
            SAFE.write(value, "k")
