"""What a large dictionary costs: bytes, requests and memory, which are exact; and that the ways
taken for many keys at once lead where those for one lead."""

from __future__ import annotations

import tracemalloc
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine import FACTS, IDS, content
from remotedict import LocalDictionary
from remotedict.backend.local import LocalBackend
from remotedict.pure import merging, naming, packing, records, state, table
from remotedict.pure.columns import SCHEMA
from remotedict.pure.entry import Entry
from remotedict.pure.naming import Layout
from remotedict.pure.records import CheckpointRef, Commit, LogRef, Range, Set
from remotedict.pure.state import State
from test_past import MORTAL, NAMES, Play, reloaded, scripts

PACK = f"p:000000000000-{0:032x}"


# -- columns ------------------------------------------------------------------------------------

WIDTHS = ["|u1", "<u2", "<u4", "<u8"]
NUMBERS = st.integers(0, (1 << 64) - 1)
COLUMNS = st.one_of(
    st.lists(NUMBERS),
    st.lists(st.integers(0, 300)),
    st.lists(NUMBERS).map(sorted),
    st.lists(st.integers(0, 1 << 40)).map(sorted),
    st.builds(
        lambda first, step, count: [first + step * n for n in range(count)],
        st.integers(0, 1 << 40),
        st.integers(0, 1 << 20),
        st.integers(0, 50),
    ),
)


@given(COLUMNS)
def test_a_column_that_was_packed_is_the_same_again(numbers):
    array = np.array(numbers, "<u8")
    for column in (array, packing.narrowed(array)):
        description, data = packing.pack("order", column)
        assert len(data) == description.stored <= max(description.size, 1)
        count = packing.counted(description, "<u8")
        assert count == len(numbers) or description.coding == packing.PROGRESSION
        again = packing.unpack(description, memoryview(data), len(numbers))
        assert again.tolist() == numbers


@pytest.mark.parametrize(
    ("numbers", "nbytes"),
    [
        ([7] * 1000, 16),
        (range(1000), 16),
        (range(5, 100_000, 7), 16),
        ([n // 2 for n in range(1000)], 1000),  # differences of 0 and 1
        ([n * 250 + n % 3 for n in range(1000)], 1000),
        ([n * 2654435761 % 251 for n in range(1000)], 1000),
    ],
)
def test_a_column_takes_no_more_than_its_numbers_need(numbers, nbytes):
    column = packing.narrowed(np.array(numbers, "<u8"))
    assert packing.pack("order", column)[0].size == nbytes


@given(
    st.sampled_from([*WIDTHS, "<i8", "|V16", "<f8", "|O", "", "nonsense"]),
    st.integers(0, 4),
    st.integers(0, 5000),
    st.integers(0, 100),
    st.binary(max_size=40),
    st.sampled_from(sorted({*SCHEMA.values()})),
)
def test_a_column_that_is_made_up_is_refused_or_read_within_bounds(
    dtype, coding, size, count, data, wide
):
    column = records.Column("x", dtype, coding, len(data), size)
    try:
        claimed = packing.counted(column, wide)
        if coding != packing.PROGRESSION and claimed != count:
            return
        array = packing.unpack(column, memoryview(data), count)
    except ValueError:
        return
    assert len(array) == count
    assert array.dtype.itemsize <= 16


# -- many at once, as one by one ------------------------------------------------------------------


@contextmanager
def colliding(bits):
    """Let the hashes of keys have so few bits that most keys share one."""

    def digest(raw):
        return sum(raw) % (1 << bits)

    def digests(raws):
        return np.array(list(map(digest, raws)), "<u4")

    with (
        mock.patch.object(table, "digest", digest),
        mock.patch.object(table, "digests", digests),
        mock.patch.object(merging, "digests", digests),
    ):
        yield


@given(scripts(*MORTAL, "forget"), st.sampled_from([0, 2, 32]))
def test_many_keys_are_looked_up_as_each_alone(script, bits):
    asked = [*NAMES, "never", "ä", *(f"{n}" for n in range(20)), *NAMES]
    with colliding(bits):
        play = Play(script)
        for one in (play.state, play.state.rebased(), reloaded(play.state), play.state.at(1)):
            assert one.entries(asked) == [one.get(key) for key in asked]
            assert one.versions(asked) == [one.version(key) for key in asked]
            assert [key in one for key in asked] == [one.get(key) is not None for key in asked]
            keys = [key for keys, _ in one.paths(list) for key in keys]
            paths = [path for _, paths in one.paths(list) for path in paths]
            assert keys == list(one)
            assert paths == [one.get(key).blob(key) for key in keys]
        base = play.table
        assert base.find_all(asked).tolist() == [base.find(key) for key in asked]


def bulk(seq, keys, *, versions=None, own=False):
    """Return a commit that sets many keys."""
    made = [
        Set(
            key,
            (versions or {}).get(key, 0) + 1,
            (seq << 64 | n).to_bytes(16, "big"),
            seq - 1,
            77 if own else Range(PACK, 1000 * seq + 100 * n, 50 + n % 50),
            FACTS,
            None,
        )
        for n, key in enumerate(keys)
    ]
    return Commit(seq.to_bytes(16, "little"), seq, seq, f"author {seq}", "why", made)


@given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, unique=True), max_size=5))
def test_a_bulk_commit_leaves_what_its_changes_leave_one_by_one(commits):
    one_by_one, at_once = State.empty(), State.empty()
    merged = []
    with mock.patch.object(merging, "extended", side_effect=merging.extended) as extended:
        for seq, keys in enumerate(commits, 1):
            versions = {key: one_by_one.version(key) for key in keys}
            commit = bulk(seq, keys, versions=versions, own=seq % 2)
            before = at_once
            was = content(before)
            one_by_one = one_by_one.apply(commit)
            with mock.patch.object(state, "_REBASE_MIN", 0):
                at_once = at_once.apply(commit)
            assert content(before) == was
            merged.append(at_once)
            for one in (at_once, reloaded(at_once), at_once.rebased()):
                assert content(one) == content(one_by_one)
                assert list(one) == list(one_by_one)
                assert len(one) == len(one_by_one)
                assert (one.seq, one.head) == (one_by_one.seq, one_by_one.head)
                assert [one.commit_id(n) for n in range(seq + 1)] == [
                    one_by_one.commit_id(n) for n in range(seq + 1)
                ]
        assert extended.call_count == len(commits)
    for seq, view in enumerate(merged, 1):
        assert list(view) == list(one_by_one.at(seq))
        assert view.entries("abcdef") == one_by_one.at(seq).entries("abcdef")


@given(scripts(*MORTAL, "forget", max_size=8))
def test_a_state_is_the_same_if_all_that_can_be_is_merged_at_once(script):
    with mock.patch.object(state, "_REBASE_MIN", 0):
        play = Play(script)
    play.check(play.state)
    play.check(reloaded(play.state))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=20))
def test_many_keys_are_escaped_as_each_alone(keys):
    keys = [*keys, "con", "NUL", "k" * 130, "ü" * 50, "=", "a/b", "plain"]
    assert naming.escape_all(keys) == [naming.escape(key) for key in keys]
    with mock.patch.object(naming, "_FEW", 0):
        assert naming.escape_all(keys) == [naming.escape(key) for key in keys]


# -- what it costs --------------------------------------------------------------------------------


def large(count):
    """Return a state with many keys, and how many bytes their text has."""
    keys = [f"run-{n:07}/loss" for n in range(count)]
    return State.empty().apply(bulk(1, keys)), sum(map(len, keys))


def checkpoint(of):
    """Return the blob of a checkpoint of a state."""
    return records.encode(*of.checkpoint(**IDS, previous="", horizon=0))


def planted(folder, count):
    """Make a dictionary with many keys, whose values are nowhere."""
    made = large(count)[0]
    blob = checkpoint(made)
    name = naming.unique(1, b"n" * 16)
    log = records.encode(
        records.Log(
            *IDS.values(), [records.SegmentRef(f"s:{naming.unique(0, b'n' * 16)}", 1, 1, 1)]
        )
    )
    index = records.Index(
        *IDS.values(),
        [],
        2,
        1,
        0,
        0,
        0,
        1,
        made.head,
        CheckpointRef(f"c:{name}", 1, len(blob)),
        LogRef(f"l:{name}", 1, 1, len(log)),
        [],
        [],
    )
    layout, backend = Layout("default"), LocalBackend(str(folder))
    backend.put(layout.path(f"c:{name}"), blob)
    backend.put(layout.path(f"l:{name}"), log)
    backend.put(layout.index, records.encode(index))


class Counted(LocalBackend):
    """Notes each request, and its bytes."""

    def __init__(self, root):
        super().__init__(root)
        self.seen = []

    def get(self, path, **options):
        got = super().get(path, **options)
        self.seen.append(("get", path, len(getattr(got, "data", b""))))
        return got

    def put(self, path, data, **options):
        data = data if isinstance(data, bytes) else b"".join(data)
        self.seen.append(("put", path, len(data)))
        return super().put(path, data, **options)


def one_more(folder):
    """Return the requests of adding one key, then of asking for it; and the index's numbers."""
    with LocalDictionary(folder) as d:
        assert len(d)
        backend = d._engine.backend.raw = Counted(str(folder))
        d["one more"] = 0.5
        assert "one more" in d
        index = d._engine.index.known.index
    # A number takes more digits where there are more keys.
    return backend.seen, len(records._encoder.encode(index.checkpoint.size))


def test_one_more_key_costs_the_same_requests_and_bytes_however_many_there_are(tmp_path):
    costs = []
    for count in (1000, 100_000):
        planted(tmp_path / str(count), count)
        seen, digits = one_more(tmp_path / str(count))
        costs.append([(verb, path, size and size - digits) for verb, path, size in seen])
    few, many = costs
    assert few == many
    assert [verb for verb, _, _ in few] == ["put", "get"]
    assert few[0][2] < 1000


def test_a_checkpoint_takes_few_bytes_a_key():
    made, text = large(100_000)
    # A generation, the order of the hashes, and the places in packs can't be made smaller.
    assert len(checkpoint(made)) < 100_000 * (16 + 4 + 4 + 4 + 3) + text // 2


def test_the_first_look_up_unpacks_no_more_than_keys_and_hashes():
    blob = checkpoint(large(10_000)[0])
    record, area = records.decode(blob, records.Checkpoint, "")
    read = State.from_checkpoint(record, area, "")
    made = read._grown.base.columns._made
    assert not made
    assert "run-0000007/loss" in read
    assert "k" not in read
    assert {*made} == {"hash", "hash_row", "key", "key_end"}
    assert read.version("run-0000007/loss") == 1


def traced(work):
    """Return what `work` returns, and how many bytes it leaves, and took at the most."""
    tracemalloc.start()
    try:
        kept = work()
        return kept, *tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()


def test_a_state_takes_little_memory_a_key_beside_the_keys_text():
    count = 30_000
    made, text = large(count)
    blob = checkpoint(made)

    def load():
        record, area = records.decode(blob, records.Checkpoint, "")
        read = State.from_checkpoint(record, area, "")
        assert "k" not in read
        return read

    read, left, most = traced(load)
    assert left + len(blob) - text < 60 * count
    assert most - text < 60 * count
    # All columns are unpacked, and each key's entry was an object for a moment.
    _, left, most = traced(lambda: [len(read.entries(keys)) for keys in read.blocks()])
    assert left < 60 * count
    assert most < 120 * count


def test_what_a_bulk_commit_adds_takes_no_object_a_key():
    keys = [f"run-{n:07}/loss" for n in range(20_000)]
    commit = bulk(1, keys)
    after, left, _ = traced(lambda: State.empty().apply(commit))
    assert left < 100 * len(keys)
    assert len(after) == len(keys)


def test_reading_a_key_of_many_makes_few_objects():
    made = reloaded(large(10_000)[0])
    assert isinstance(made.get("run-0000007/loss"), Entry)
    _, _, most = traced(lambda: [bool(made.get(f"run-{n:07}/loss")) for n in range(1000)])
    assert most < 1_000_000


def test_iterating_goes_by_windows_whose_values_are_read_as_one(tmp_path):
    with LocalDictionary(tmp_path) as d:
        d.update({f"k{n:05}": n for n in range(6000)})
    with LocalDictionary(tmp_path, cache_bytes=0) as d:
        backend = d._engine.backend.raw = Counted(str(tmp_path))
        assert list(d.items()) == [(f"k{n:05}", n) for n in range(6000)]
    packs = [path for _, path, _ in backend.seen if ".packs" in path]
    assert len(packs) == 5  # windows of 256, 512, 1024, 2048 keys, and what is left


@pytest.mark.parametrize("offset", range(8))
def test_a_checkpoint_is_read_wherever_its_bytes_lie(offset):
    state = State.empty()
    keys = [f"key-{n}" for n in range(100)]
    place = Range(f"p:{'0' * 12}-{'0' * 32}", 0, 1)
    sets = [Set(key, 1, bytes([n] * 16), 0, place, FACTS, None) for n, key in enumerate(keys)]
    state = state.apply(Commit(b"c" * 16, 1, 0, "", "", sets))
    record, data = state.checkpoint(b"d" * 16, b"i" * 16, "", 0)
    stored = b"".join(data)
    room = bytearray(8 + offset + len(stored))
    lies = memoryview(room)[8 + offset :]
    lies[:] = stored
    read = State.from_checkpoint(record, lies, "path")
    assert list(read) == keys
    assert [read.get(key) for key in keys] == [state.get(key) for key in keys]
    assert "missing" not in read
