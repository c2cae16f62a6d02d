"""Whatever becomes of a blob: reading is right, or says which blob; and repairing brings back what is left.

``DAMAGE=all`` flips a bit in every byte, and takes its time.
"""

from __future__ import annotations

import os
import random
import tracemalloc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from remotedict import LocalDictionary, RemoteDict, errors
from remotedict.backend.memory import MemoryBackend
from remotedict.pure import codec, records
from remotedict.pure.coding import Codec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

INDEX = "Index/f/index"
KINDS = {
    "index": lambda path: path == INDEX,
    "segment": lambda path: "/segments/" in path,
    "checkpoint": lambda path: "/checkpoints/" in path,
    "log": lambda path: "/logs/" in path,
    "pack": lambda path: "/.packs/" in path,
    "value": lambda path: path.startswith("f/") and "/.packs/" not in path,
}
PLAIN = ("index", "segment", "pack", "value")  # what a small dictionary has
SAMPLES = 3  # positions in a blob that are flipped, beside its first and last ones
ALL = os.environ.get("DAMAGE") == "all"


def noise(seed: object, size: int) -> bytes:
    """Return bytes that LZ4 can't shrink."""
    return random.Random(str(seed)).randbytes(size)


@dataclass
class Place:
    """A store that a test has filled itself."""

    store: Any

    def backend(self, timeout: float, runtime: Any) -> Any:
        del timeout, runtime
        return self.store

    def describe(self) -> str:
        return "Damaged"

    def portable(self, *, credentials: bool) -> Place:
        del credentials
        return self


@dataclass
class Whole:
    """A dictionary with blobs of all kinds, and all there is to know about it.

    `places` are the blob, offset and length of the value of each key; `was` what each key has
    ever been.
    """

    blobs: dict[str, bytes]
    want: dict[str, Any]
    was: dict[str, list[Any]]
    places: dict[str, tuple[str, int, int]]
    metadata: dict[str, Any]
    named: set[str]
    rows: int


@pytest.fixture(scope="module")
def whole(request: pytest.FixtureRequest) -> Iterator[Whole]:
    """A dictionary with small limits: one with merges, checkpoints and a log, one without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("remotedict.pure.plan.INDEX_BYTES", 1400)
        patch.setattr("remotedict.pure.plan.CHECKPOINT_MIN", 6000)
        if request.param == "plain":
            patch.setattr("remotedict.pure.plan.INDEX_BYTES", 2600)
            patch.setattr("remotedict.pure.plan.FAN", 1000)
            patch.setattr("remotedict.pure.plan.CHECKPOINT_MIN", 10**9)
        yield made(request.param)


SHAPES = ["merged", "plain"]
EACH = pytest.mark.parametrize(
    ("whole", "kind"),
    [(shape, kind) for shape in SHAPES for kind in KINDS if shape == "merged" or kind in PLAIN],
    indirect=["whole"],
)

MERGED = pytest.mark.parametrize("whole", ["merged"], indirect=True)


def made(shape: str) -> Whole:
    store = MemoryBackend()
    history = "all" if shape == "merged" else "none"
    d = RemoteDict(Place(store), "f", author="ann", history=history, inline_bytes=512)
    was: dict[str, list[Any]] = {}

    def put(**values: Any) -> None:
        d.update(values) if len(values) > 1 else d.__setitem__(*next(iter(values.items())))
        for key, value in values.items():
            was.setdefault(key, []).append(value)
        d._engine.upkeep.finish()

    for n in range(24):
        put(**{f"k{n % 10}": noise(n, 120)})
    put(gone=1)
    del d["gone"]
    put(own=noise("own", 700), large=noise("large", 1_300_000))
    put(**{f"p{n}": noise(n, 600) for n in range(4)})
    d.put("with", "metadata", metadata={"unit": "s"})
    was["with"] = ["metadata"]
    put(text="compressible " * 100_000)
    for n in range(24, 60):
        put(**{f"k{n % 10}": noise(n, 120)})
    put(own=noise("own again", 700))
    put(last=noise("last", 700))
    put(inline=noise("inline", 60))
    put(k0=noise("the newest", 60))
    index = d._engine.index.known.index
    state = d._engine.index.known.state
    assert bool(index.checkpoint) == bool(index.log) == (shape == "merged")
    assert index.segments
    assert len(index.tail) > 1
    blobs = {info.name: bytes(store.get(info.name).data) for info in store.list("")}
    blobs = {path: data for path, data in blobs.items() if data}
    places = {}
    for key in d:
        entry = state.get(key)
        if isinstance(entry.place, bytes):
            places[key] = (INDEX, blobs[INDEX].index(entry.place), len(entry.place))
        else:
            where = entry.range(key)
            places[key] = (d._engine.layout.path(where.blob), where.offset, where.length)
    refs = [index.checkpoint, index.log, *index.segments, *d._engine.commits.log(index)]
    named = {INDEX} | {d._engine.layout.path(ref.blob) for ref in refs if ref}
    metadata = {key: dict(d.metadata[key]) for key in d}
    rows = len(d.history())
    return Whole(blobs, dict(d.items()), was, places, metadata, named, rows)


def paths(whole: Whole, kind: str) -> list[str]:
    found = [path for path in whole.blobs if KINDS[kind](path)]
    assert found
    # What nothing names any more is garbage, or stands in for what does.
    rest = [path for path in found if path not in whole.named] if kind == "segment" else []
    return [path for path in found if ALL or path not in rest[4:]]


def in_memory(blobs: dict[str, bytes]) -> RemoteDict:
    """Return a new handle on a new store with these blobs."""
    store = MemoryBackend()
    for path, data in blobs.items():
        store.put(path, data)
    return RemoteDict(Place(store), "f")


def damages(data: bytes, samples: int = SAMPLES) -> Iterator[tuple[int, int, bytes]]:
    """Yield what may become of a blob, and from where to where it isn't what it was."""
    if ALL and len(data) < 10_000:
        positions: Any = range(len(data))
    else:
        rng = random.Random(len(data))
        edges = {2, 4, 9, 26, len(data) - 2}
        positions = sorted(edges | {rng.randrange(len(data)) for _ in range(samples)})
    for at in positions:
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        yield at, at + 1, bytes(flipped)
    for length in (0, 17, len(data) // 2, len(data) - 1):
        yield length, len(data), data[:length]


def attempt(act: Callable[[], Any], victim: str) -> tuple[Any, Exception | None]:
    """Return what `act` returns, or the error, which must be typed and name the blob.

    That of a version that is no longer kept names its key.
    """
    try:
        return act(), None
    except errors.RemoteDictError as exc:
        failure = exc
    assert victim in str(failure) or isinstance(failure, errors.SnapshotExpiredError)
    return None, failure


def check_reading(d: RemoteDict, whole: Whole, victim: str) -> None:
    """See that nothing that is read is wrong."""
    got, failure = attempt(d.copy, victim)
    if failure is None:
        assert got == whole.want
    else:
        keys, failure = attempt(lambda: list(d), victim)
        for key in keys if failure is None else whole.want:
            value, failure = attempt(lambda: d[key], victim)  # noqa: B023 - called at once
            assert failure or value == whole.want[key]
    for key, values in whole.was.items():
        value, failure = attempt(lambda: d.at(key, 1), victim)  # noqa: B023 - called at once
        assert failure or value == values[0]
    rows, failure = attempt(lambda: len(d.history()), victim)
    assert failure or rows == whole.rows


def check_repair(d: RemoteDict, whole: Whole, victim: str, first: int, stop: int) -> None:
    """See that all comes back that is left, and that the rest is told."""
    report = d.repair(deep=True)
    got = {key: attempt(lambda: d[key], victim) for key in d}  # noqa: B023 - called at once
    if victim in whole.named and not report.rebuilt:
        pytest.fail(f"{victim} is damaged, and {report!r}")
    for key, want in whole.want.items():
        blob, offset, length = whole.places[key]
        harmed = blob == victim and first < offset + length and offset < stop
        value, failure = got.get(key, (None, None))
        if not harmed:
            assert failure is None
            assert value == want, f"{key} isn't what it was: {report!r}"
        elif key in report.lost:
            assert failure
        else:
            assert report.lost_commits
            assert failure is None
            assert value in [None, *whole.was[key]]
        if not harmed and not report.lost_commits:
            assert d.metadata[key] == whole.metadata[key]
    assert got.keys() - whole.want.keys() <= {"gone"}
    if "gone" in got:
        assert report.lost_commits
    assert repr(report)
    again = d.repair(deep=True)
    assert not again.rebuilt
    assert again.lost == report.lost
    d["goes on"] = 1
    assert d["goes on"] == 1


@EACH
def test_no_blob_can_be_lost_unnoticed(whole: Whole, kind: str):
    for victim in paths(whole, kind):
        blobs = {path: data for path, data in whole.blobs.items() if path != victim}
        check_reading(in_memory(blobs), whole, victim)
        check_repair(in_memory(blobs), whole, victim, 0, len(whole.blobs[victim]))


@EACH
def test_no_blob_can_be_damaged_unnoticed(whole: Whole, kind: str):
    for victim in paths(whole, kind):
        for first, stop, data in damages(whole.blobs[victim]):
            blobs = whole.blobs | {victim: data}
            check_reading(in_memory(blobs), whole, victim)
            check_repair(in_memory(blobs), whole, victim, first, stop)


@EACH
def test_nor_on_a_disk(whole: Whole, kind: str, tmp_path: Path):
    victim = max(paths(whole, kind), key=lambda path: path in whole.named)
    for n, (first, stop, data) in enumerate([(0, 1, None), *damages(whole.blobs[victim], 2)]):
        root = tmp_path / str(n)
        for path, good in (whole.blobs | {victim: data}).items():
            if good is not None:
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_bytes(good)
        stop = stop if data is not None else len(whole.blobs[victim])  # noqa: PLW2901
        with LocalDictionary(root, "f") as d:
            check_reading(d, whole, victim)
            check_repair(d, whole, victim, first, stop)


@pytest.mark.parametrize("kind", ["index", "segment", "checkpoint", "log"])
@MERGED
def test_every_bit_of_a_frame_counts(whole: Whole, kind: str):
    cls = getattr(records, kind.title())
    for path in paths(whole, kind):
        data = bytearray(whole.blobs[path])
        records.decode(bytes(data), cls, path)
        for at in range(len(data)):
            for bit in range(8):
                if at == 7:
                    continue  # flags, which readers ignore: but the checksum has them
                data[at] ^= 1 << bit
                with pytest.raises((errors.CorruptBlobError, errors.FormatVersionError)):
                    records.decode(bytes(data), cls, path)
                data[at] ^= 1 << bit


@MERGED
def test_every_bit_of_a_value_counts(whole: Whole):
    for key, (path, offset, length) in whole.places.items():
        if length > 2000:
            continue
        data = bytearray(whole.blobs[path][offset : offset + length])
        header, _ = codec.any_header(memoryview(bytes(data)), path)
        known = {"dictionary": header.dictionary, "generation": header.generation, "path": path}
        assert codec.decode(bytes(data), key=key, by=Codec("pickle"), **known) == whole.want[key]
        for at in range(len(data)):
            for bit in range(8):
                data[at] ^= 1 << bit
                with pytest.raises((errors.CorruptBlobError, errors.FormatVersionError)):
                    codec.decode(bytes(data), key=key, by=Codec("pickle"), **known)
                data[at] ^= 1 << bit


@EACH
def test_no_claim_of_a_size_takes_memory(whole: Whole, kind: str):
    victim = paths(whole, kind)[0]
    limit = 4 * sum(map(len, whole.blobs.values())) + 50_000_000
    for at in range(0, 36, 4):
        for width in (4, 8):
            data = bytearray(whole.blobs[victim])
            data[at : at + width] = b"\xff" * (width - 1) + b"\x0f"
            try:
                d = in_memory(whole.blobs | {victim: bytes(data)})
            except errors.FormatVersionError:
                continue
            tracemalloc.start()
            try:
                check_reading(d, whole, victim)
                attempt(lambda: d.repair(deep=True), victim)  # noqa: B023 - called at once
                assert tracemalloc.get_traced_memory()[1] < limit
            finally:
                tracemalloc.stop()


@pytest.mark.parametrize("whole", SHAPES, indirect=True)
def test_without_all_segments_and_checkpoints_the_values_that_have_blobs_come_back(whole: Whole):
    blobs = {path: data for path, data in whole.blobs.items() if not path.startswith("Index/")}
    d = in_memory(blobs)
    report = d.repair()
    for key, want in whole.want.items():
        if not whole.places[key][0].startswith("Index/"):
            assert d[key] == want
            assert key in report.restored
    assert report.lost_commits == ((1, None),)
