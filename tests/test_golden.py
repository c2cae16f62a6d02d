"""What format version 1 wrote is read for ever, and format.md says what the code does.

``tests/golden/v1`` is never written anew once this version is released: a change that breaks one of
these tests needs a new format version, and code that still reads this one.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from remotedict import LocalDictionary, LockLostError, SnapshotExpiredError
from remotedict.pure import chunks, codec, columns, packing, plan, records, table
from remotedict.pure.entry import Entry
from remotedict.pure.naming import Layout
from remotedict.pure.records import Change

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))

import make  # noqa: E402
import stranger  # noqa: E402

FORMAT = (Path(__file__).parent.parent / "docs" / "format.md").read_text("utf-8")
INDEX_SIDE = "v1/Index/default"
KINDS = {"segments": records.Segment, "checkpoints": records.Checkpoint, "logs": records.Log}


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


def decoded(kind: type[records.Record]) -> list[records.Record]:
    """Return all golden records of a kind, oldest first."""
    return [records.decode(path.read_bytes(), k, path.name)[0] for k, path in blobs() if k is kind]


def test_the_golden_files_are_of_every_kind():
    [index] = decoded(records.Index)
    assert index.checkpoint
    assert index.log
    assert index.moved
    assert any(is_merged(ref) for ref in index.segments)
    assert not all(is_merged(ref) for ref in index.segments)
    commits = [commit for one in decoded(records.Segment) for commit in one.commits]
    changes = [change for commit in commits + index.tail for change in commit.changes]
    assert {type(change) for change in changes} >= {*Change.__args__} - {records.Unlock}
    sets = [change for change in changes if isinstance(change, records.Set)]
    places = {type(change.place) for change in sets if change.origin is not None}
    assert places == {bytes, int, records.Range}
    assert {type(change) for change in index.tail[-2].changes} == {records.Annotate}
    checkpoint = decoded(records.Checkpoint)[-1]
    assert checkpoint.table.past
    assert checkpoint.table.tombstones
    assert checkpoint.floor
    assert checkpoint.locks
    assert any((GOLDEN / "v1" / "default" / ".packs").iterdir())


def test_every_value_is_read_in_its_order(d):
    content = make.model().content
    assert list(d) == list(content)
    assert list(reversed(d)) == list(content)[::-1]
    read = d.copy()
    assert [key for key in content if not same(content[key], read[key])] == []


def test_each_value_is_read_by_itself(where):
    content = make.model().content
    with LocalDictionary(where, cache_bytes=0) as d:
        assert [key for key in content if not same(content[key], d[key])] == []


def test_every_version_is_read_of_deleted_keys_too(d):
    model = make.model()
    state = d._engine.known().state
    assert {key: state.version(key) for key in model.versions} == model.versions
    assert "gone" not in d
    for key, was in model.listed.items():
        items = state.listed(key)
        assert [(i.stamp.seq, i.version, isinstance(i, Entry)) for i in items] == [
            (w.seq, w.version, w.value is not make.GONE) for w in was
        ], key
        for item in was:
            if item.value is not make.GONE:
                assert same(d.at(key, item.version), item.value), item


def test_all_metadata_are_read_past_ones_too(d):
    model = make.model()
    assert {key: dict(fields) for key, fields in d.metadata.items() if fields} == model.metadata
    told = [was for was in model.listed["described"] if was.seq >= model.floor]
    assert len({str(was.metadata) for was in told}) > 3
    for was in told:
        assert dict(d.snapshot(at=was.seq).metadata["described"]) == was.metadata


def test_the_dictionary_is_read_as_of_any_commit_from_the_floor_on(d):
    model = make.model()
    assert d._engine.known().state.floor == model.floor > 1
    for seq in {model.floor, *range(model.floor, model.seq, 17), model.seq}:
        then, content = d.snapshot(at=seq), model.as_of(seq)
        assert list(then) == list(content)
        read = then.copy()
        assert [key for key in content if not same(content[key], read[key])] == []
    with pytest.raises(SnapshotExpiredError):
        d.snapshot(at=model.floor - 1)


def test_all_commits_are_read(d):
    history = d.history()
    [index] = decoded(records.Index)
    commits = [commit for one in decoded(records.Segment) for commit in one.commits]
    silent = {
        commit.seq
        for commit in commits + index.tail
        if all(isinstance(change, records.Drop) for change in commit.changes)
    }
    assert set(history["seq"]) == set(range(1, make.model().seq + 1)) - silent
    assert set(history["author"]) == {make.AUTHOR, "bob"}
    assert history[history["key"] == "forgotten"]["kind"].tolist() == ["set", "forget"]


def test_the_locks_are_read(d):
    locked = make.model().locked
    assert sorted(d.locks) == sorted(locked)
    for info in d.locks.values():
        assert (info.author, info.host, info.pid) == (make.AUTHOR, make.HOST, make.PID)
        assert info.until is not None
        assert not info.mine


def test_it_can_be_written_to(where, d):
    model = make.model()
    content, versions, locked = model.content, model.versions, model.locked
    d["new"] = "new"
    d["a", "A"] = "changed", "too"
    del d["con"]
    d[locked[0]] = "its holder is gone"
    with d.lock(locked[1]):
        pass
    d.revert("first", model.listed["first"][0].version)
    d.metadata["pack 01"] = {"new": True}
    content |= {"new": "new", "a": "changed", "A": "too", locked[0]: "its holder is gone"}
    content["first"] = model.listed["first"][0].value
    del content["con"]
    with LocalDictionary(where) as other:
        assert list(other) == list(content)
        assert [key for key in content if not same(content[key], other[key])] == []
        assert not other.locks
        assert other._engine.known().state.version("a") == versions["a"] + 1
        assert other.metadata["pack 01"] == {"new": True}
        old = model.listed["con"][0]
        assert other.at("con", old.version) == old.value


def test_it_can_be_written_to_until_all_of_it_is_in_a_new_checkpoint(where, monkeypatch):
    monkeypatch.setattr(plan, "CHECKPOINT_MIN", 16 * 1024)
    model = make.model()
    content = model.content
    with LocalDictionary(where) as d:
        for i in range(300):
            d[f"more {i}"] = make.noise(1200, i)
        d._engine.upkeep.finish()
        checkpoint = d._engine.known().index.checkpoint
    assert checkpoint.seq > model.seq
    with LocalDictionary(where) as d:
        assert len(d) == len(content) + 300
        read = d[list(content)]
        assert [k for k, v in zip(content, read, strict=True) if not same(content[k], v)] == []
        for key, was in model.listed.items():
            assert [item.version for item in d._engine.known().state.listed(key)] == [
                item.version for item in was
            ]
        assert list(d.snapshot(at=model.floor)) == list(model.as_of(model.floor))


def test_a_holder_of_then_that_is_superseded_stays_so(where):
    locked = make.model().locked
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
        again, _ = table.decode(record.table, data, path.name).encode()
        # Sizes and bytes before compression: another LZ4 may compress otherwise.
        assert msgspec.structs.replace(again, columns=[]) == msgspec.structs.replace(
            record.table, columns=[]
        )
        assert [(c.name, c.dtype, c.coding, c.size) for c in again.columns] == [
            (c.name, c.dtype, c.coding, c.size) for c in record.table.columns
        ]


def test_names_are_those_of_then():
    names = {path.relative_to(GOLDEN / "v1").as_posix() for path in (GOLDEN / "v1").rglob("*")}
    layout = Layout("default")
    for key in make.model().locked:
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
    model = make.model()
    reader = stranger.Reader(GOLDEN / "v1", "default")
    read = reader.read()
    content = model.content
    assert list(read.values) == list(content)
    assert [key for key in content if not same(content[key], read.values[key])] == []
    assert read.versions == model.versions
    assert {key: json.loads(text) for key, text in read.metadata.items()} == model.metadata
    assert sorted(read.locks) == sorted(model.locked)
    assert [seq for seq, _, _ in read.comments] == list(range(1, model.seq + 1))
    assert (1, make.AUTHOR, "set 3") in read.comments


def test_a_reader_written_from_the_page_alone_reads_all_that_is_listed_of_the_past():
    model = make.model()
    reader = stranger.Reader(GOLDEN / "v1", "default")
    past = reader.read().past
    assert past.keys() == model.listed.keys()
    for key, was in model.listed.items():
        listed = {item.version: item.value for item in was if item.value is not make.GONE}
        assert past[key].keys() == listed.keys(), key
        assert [v for v in listed if not same(listed[v], past[key][v])] == [], key
    assert reader.listing.floor == model.floor
    for seq in range(model.floor, model.seq + 1, 7):
        then, content = reader.as_of(seq), model.as_of(seq)
        assert list(then) == list(content)
        assert [key for key in content if not same(content[key], then[key])] == []


def test_a_reader_written_from_the_page_alone_reads_what_is_written_today(where, d):
    locked = make.model().locked
    d[locked] = 1, 2
    d.update({f"more {i}": i for i in range(2000)})
    for i in range(100):
        d[f"single {i:03}"] = i
    d["again"] = np.arange(100_000)
    d.metadata["again"] = {"rows": 100_000}
    d.copy_item("again", "and again")
    d.revert("first", make.model().listed["first"][-1].version)
    read = stranger.Reader(where, "default").read()
    assert list(read.values) == list(d)
    mine = d.copy()
    assert [key for key in mine if not same(mine[key], read.values[key])] == []
    assert not read.locks
    assert read.metadata["and again"] == read.metadata["again"] == '{"rows":100000}'


@pytest.mark.parametrize(
    ("title", "layout"),
    [
        ("Frame header", records._HEADER),
        ("Value start", codec._START),
        ("Chunk header", chunks.HEADER),
        ("Value end", chunks._END),
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
    records.LogRef,
    records.Commit,
    records.Set,
    records.Delete,
    records.Annotate,
    records.Forget,
    records.Drop,
    records.Lock,
    records.Unlock,
    records.Facts,
    records.Range,
    records.Holder,
    records.Segment,
    records.Log,
    records.Checkpoint,
    records.LockEntry,
    records.TableRecord,
    records.Column,
    codec.About,
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_the_documented_fields_are_those_of_the_code(record):
    names = [field.name for field in msgspec.structs.fields(record)]
    tag = record.__struct_config__.tag
    expected = [f'"{tag}"', *names] if tag else names
    assert [name for name, *_ in rows(record.__name__)] == expected


def test_the_documented_columns_are_those_of_the_code():
    assert [tuple(row[:2]) for row in rows("Columns")] == list(columns.SCHEMA.items())


def test_the_documented_constants_are_those_of_the_code():
    documented = {name: value for name, value, *_ in rows("Constants")}
    assert documented == {
        "format version": str(records.FORMAT_VERSION),
        "magic of frames": records._MAGIC.decode(),
        "magic of values": chunks.MAGIC.decode(),
        "kind of the index": str(records.INDEX),
        "kind of a segment": str(records.SEGMENT),
        "kind of a checkpoint": str(records.CHECKPOINT),
        "kind of a log": str(records.LOG),
        "blob number: own blob": str(columns.OWN),
        "blob number: deleted": str(columns.GONE),
        "blob number: first of the list": str(columns.FIRST_BLOB),
        "column coding: plain": str(packing.PLAIN),
        "column coding: differences": str(packing.DIFFERENCES),
        "column coding: progression": str(packing.PROGRESSION),
        "column alignment": str(packing.ALIGNMENT),
    }
