"""What format version 1 wrote is read for ever, and format.md says what the code does.

``tests/golden/v1`` is never written anew once this version is released: a change that breaks one of
these tests needs a new format version, and code that still reads this one.
"""

from __future__ import annotations

import re
import shutil
import struct
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from remotedict import LocalDictionary, LockLostError
from remotedict.pure import codec, plan, records, table
from remotedict.pure.naming import Layout

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))

import make  # noqa: E402
import stranger  # noqa: E402

FORMAT = (Path(__file__).parent.parent / "docs" / "format.md").read_text("utf-8")
INDEX_SIDE = "v1/Index/default"
KINDS = {"segments": records.Segment, "checkpoints": records.Checkpoint}


def blobs() -> list[tuple[type[records.Record], Path]]:
    found = [
        (kind, path)
        for folder, kind in KINDS.items()
        for path in sorted((GOLDEN / INDEX_SIDE / folder).iterdir())
    ]
    return [(records.Index, GOLDEN / INDEX_SIDE / "index"), *found]


@pytest.fixture
def where(tmp_path):
    """A copy of the golden dictionary."""
    return shutil.copytree(GOLDEN / "v1", tmp_path / "golden")


@pytest.fixture
def d(where):
    with LocalDictionary(where) as handle:
        yield handle


def same(a, b) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and a == b


def is_merged(ref: records.SegmentRef) -> bool:
    """Tell whether values of its commits lie in other segments."""
    path = GOLDEN / INDEX_SIDE / "segments" / ref.blob.removeprefix("s:")
    segment, _ = records.decode(path.read_bytes(), records.Segment, path.name)
    places = [
        change.place
        for commit in segment.commits
        for change in commit.changes
        if isinstance(change, records.Set) and isinstance(change.place, records.Range)
    ]
    return any(place.blob.startswith("s:") for place in places)


def test_the_golden_files_are_of_every_kind():
    index, _ = records.decode((GOLDEN / INDEX_SIDE / "index").read_bytes(), records.Index, "index")
    assert index.checkpoint
    assert any(is_merged(ref) for ref in index.segments)
    assert not all(is_merged(ref) for ref in index.segments)
    changes = {type(change) for commit in index.tail for change in commit.changes}
    assert changes >= {records.Set, records.Lock}
    assert any((GOLDEN / "v1" / "default" / ".packs").iterdir())


def test_every_value_is_read_in_its_order(d):
    content, _, _ = make.model()
    assert list(d) == list(content)
    read = d.copy()
    assert [key for key in content if not same(content[key], read[key])] == []


def test_each_value_is_read_by_itself(where):
    content, _, _ = make.model()
    with LocalDictionary(where, cache_bytes=0) as d:
        assert [key for key in content if not same(content[key], d[key])] == []


def test_every_version_is_read_of_deleted_keys_too(d):
    _, versions, _ = make.model()
    state = d._engine.known().state
    assert {key: state.version(key) for key in versions} == versions
    assert "gone" not in d


def test_the_locks_are_read(d):
    _, _, locked = make.model()
    assert sorted(d.locks) == sorted(locked)
    for info in d.locks.values():
        assert (info.author, info.host, info.pid) == (make.AUTHOR, make.HOST, make.PID)
        assert info.until is not None
        assert not info.mine


def test_it_can_be_written_to(where, d):
    content, versions, locked = make.model()
    d["new"] = "new"
    d["a", "A"] = "changed", "too"
    del d["con"]
    d[locked[0]] = "its holder is gone"
    with d.lock(locked[1]):
        pass
    content |= {"new": "new", "a": "changed", "A": "too", locked[0]: "its holder is gone"}
    del content["con"]
    with LocalDictionary(where) as other:
        assert list(other) == list(content)
        assert [key for key in content if not same(content[key], other[key])] == []
        assert not other.locks
        assert other._engine.known().state.version("a") == versions["a"] + 1


def test_it_can_be_written_to_until_all_of_it_is_in_a_new_checkpoint(where, monkeypatch):
    monkeypatch.setattr(plan, "CHECKPOINT_MIN", 16 * 1024)
    content, _, _ = make.model()
    with LocalDictionary(where) as d:
        for i in range(300):
            d[f"more {i}"] = make.noise(1200, i)
        d._engine.upkeep.finish()
        checkpoint = d._engine.known().index.checkpoint
    assert checkpoint.seq > 200
    with LocalDictionary(where) as d:
        assert len(d) == len(content) + 300
        read = d[list(content)]
        assert [k for k, v in zip(content, read, strict=True) if not same(content[k], v)] == []


def test_a_holder_of_then_that_is_superseded_stays_so(where):
    _, _, locked = make.model()
    with LocalDictionary(where) as d, LocalDictionary(where) as other:
        d.lock_item(locked[0])
        other.unlock_item(locked[0], force=True)
        with pytest.raises(LockLostError):
            d[locked[0]] = 1


@pytest.mark.parametrize(("kind", "path"), blobs(), ids=lambda value: getattr(value, "name", ""))
def test_a_record_decoded_and_encoded_again_is_the_same_bytes(kind, path):
    blob = path.read_bytes()
    record, data = records.decode(blob, kind, path.name)
    assert records.encode(record, [bytes(data)]) == blob


def test_checkpoints_are_the_same_columns_again():
    for path in (GOLDEN / INDEX_SIDE / "checkpoints").iterdir():
        record, data = records.decode(path.read_bytes(), records.Checkpoint, path.name)
        decoded = table.decode(
            record.columns,
            data,
            record.rows,
            record.tombstones,
            record.blobs,
            record.kinds,
            record.authors,
            path.name,
        )
        # Sizes and bytes before compression: another LZ4 may compress otherwise.
        described, _ = decoded.encode()
        assert [(c.name, c.dtype, c.size) for c in described] == [
            (c.name, c.dtype, c.size) for c in record.columns
        ]


def test_names_are_those_of_then():
    names = {path.relative_to(GOLDEN / "v1").as_posix() for path in (GOLDEN / "v1").rglob("*")}
    layout = Layout("default")
    for key in make.model()[2]:
        assert layout.lock(key) in names
    with LocalDictionary(GOLDEN / "v1") as d:  # reading changes nothing
        assert set(d.index) <= names


# -- format.md ------------------------------------------------------------------------------


def rows(title: str) -> list[list[str]]:
    """Return the cells of the table after a heading of format.md."""
    section = re.search(
        rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", FORMAT, re.DOTALL | re.MULTILINE
    )
    assert section, f"format.md has no heading {title!r}"
    lines = [line for line in section[1].splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[2:]]
    return [[cell.strip(" `").replace("\\|", "|") for cell in row] for row in cells]


def test_a_reader_written_from_the_page_alone_reads_everything():
    content, versions, locked = make.model()
    read = stranger.Reader(GOLDEN / "v1", "default").read()
    assert list(read.values) == list(content)
    assert [key for key in content if not same(content[key], read.values[key])] == []
    assert read.versions == versions
    assert sorted(read.locks) == sorted(locked)


def test_a_reader_written_from_the_page_alone_reads_what_is_written_today(where, d):
    _, _, locked = make.model()
    d[locked] = 1, 2
    d.update({f"more {i}": i for i in range(2000)})
    for i in range(100):
        d[f"single {i:03}"] = i
    d["again"] = np.arange(100_000)
    read = stranger.Reader(where, "default").read()
    assert list(read.values) == list(d)
    mine = d.copy()
    assert [key for key in mine if not same(mine[key], read.values[key])] == []
    assert not read.locks


@pytest.mark.parametrize(
    ("title", "layout"),
    [
        ("Frame header", records._HEADER),
        ("Value start", codec._START),
        ("Chunk header", codec._CHUNK),
        ("Value end", codec._END),
    ],
)
def test_the_documented_layout_is_that_of_the_code(title, layout):
    form, at = "<", 0
    for offset, size, code, *_ in rows(title):
        assert int(offset) == at
        assert int(size) == struct.calcsize(f"<{code}")
        form += code
        at += int(size)
    assert form == layout.format
    assert at == layout.size


RECORDS = [
    records.Index,
    records.CheckpointRef,
    records.SegmentRef,
    records.Commit,
    records.Set,
    records.Delete,
    records.Lock,
    records.Unlock,
    records.Facts,
    records.Range,
    records.Holder,
    records.Segment,
    records.Checkpoint,
    records.LockEntry,
    records.Retired,
    records.Column,
    codec.ValueHeader,
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_the_documented_fields_are_those_of_the_code(record):
    names = [field.name for field in msgspec.structs.fields(record)]
    tag = record.__struct_config__.tag
    expected = [f'"{tag}"', *names] if tag else names
    assert [name for name, *_ in rows(record.__name__)] == expected


def test_the_documented_columns_are_those_of_the_code():
    assert [tuple(row[:2]) for row in rows("Columns")] == list(table._SCHEMA.items())


def test_the_documented_constants_are_those_of_the_code():
    documented = {name: value for name, value, *_ in rows("Constants")}
    assert documented == {
        "format version": str(records.FORMAT_VERSION),
        "magic of frames": records._MAGIC.decode(),
        "magic of values": codec._MAGIC.decode(),
        "kind of the index": str(records.INDEX),
        "kind of a segment": str(records.SEGMENT),
        "kind of a checkpoint": str(records.CHECKPOINT),
        "chunk kind: as it is": str(codec._RAW),
        "chunk kind: LZ4 frame": str(codec._LZ4),
        "flag: table at the end": str(codec._TABLE),
        "blob number: own blob": str(table._OWN),
    }
