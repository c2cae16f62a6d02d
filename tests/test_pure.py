"""The pure part: names, records, values, states and plans, each against a model or by mutation."""

from __future__ import annotations

import itertools
import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from remotedict import CorruptBlobError, FormatVersionError, InvalidNameError
from remotedict.pure import codec, frames, naming, plan, records
from remotedict.pure.records import (
    Checkpoint,
    CheckpointRef,
    Commit,
    Delete,
    Facts,
    Holder,
    Index,
    Lock,
    Range,
    Segment,
    Set,
    Unlock,
)
from remotedict.pure.state import Draft, State

KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


# -- names ----------------------------------------------------------------------------------


@given(KEYS)
def test_an_escaped_key_is_safe_in_every_store(key):
    name = naming.escape(key)
    assert len(name) <= 120
    assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-=")
    assert name.casefold() not in naming._DEVICES


@given(KEYS, KEYS)
def test_different_keys_have_different_names(one, other):
    assert (naming.escape(one) == naming.escape(other)) == (one == other)


def test_long_keys_that_differ_at_their_end_have_different_names():
    assert naming.escape("k" * 500 + "a") != naming.escape("k" * 500 + "b")


@pytest.mark.parametrize("key", ["con", "NUL", "Aux", "com1", "lpt9"])
def test_no_name_is_a_device_of_windows(key):
    assert naming.escape(key).startswith("=")


@pytest.mark.parametrize(
    "folder",
    [
        "",
        "Index",
        "INDEX",
        "a/b",
        "a\\b",
        "..",
        ".hidden",
        "a..b",
        "end.",
        "nul",
        "x" * 201,
        None,
        3,
        "a\nb",
        "\ud800",
        "~tmp",
        "a?b",
        "a#b",
        " a",
        "a ",
    ],
)
def test_a_folder_that_could_reach_elsewhere_is_refused(folder):
    with pytest.raises(InvalidNameError, match="folder name"):
        naming.check_folder(folder)


@pytest.mark.parametrize("folder", ["default", "my folder", "Größe", "a.b", "index2", "0"])
def test_an_ordinary_folder_is_taken(folder):
    assert naming.check_folder(folder) == folder


def test_the_seq_in_a_name_is_found_by_path_and_by_reference():
    name = naming.unique(42, b"\xab" * 16)
    assert naming.born(f"f/.packs/{name}") == naming.born(f"p:{name}") == 42


# -- records --------------------------------------------------------------------------------


def an_index():
    commit = Commit(
        b"c" * 16,
        1,
        1,
        "me",
        "why",
        [
            Set("k", b"g" * 16, 0, b"inline", Facts("str", 6)),
            Set(
                "l",
                b"h" * 16,
                0,
                Range(f"p:000000000000-{'a' * 32}", 3, 4),
                Facts("a", 6, (1, 2), "f8"),
            ),
            Set("m", b"i" * 16, 0, 77, Facts("int", 6)),
            Delete("x"),
            Lock("k", Holder("host", 1, "me", None)),
            Unlock("k", b"e" * 16),
        ],
    )
    return replace(plan.genesis(b"d" * 16, b"i" * 16), seq=1, tail=[commit])


def test_a_record_read_back_is_the_same():
    index = an_index()
    assert records.decode(records.encode(index), Index, "p") == (index, b"")


def test_any_flipped_bit_of_a_record_is_noticed_and_names_the_blob():
    blob = records.encode(an_index(), [b"some data"])
    for at, bit in itertools.product(range(len(blob)), range(8)):
        broken = bytearray(blob)
        broken[at] ^= 1 << bit
        with pytest.raises((CorruptBlobError, FormatVersionError)) as caught:
            records.decode(bytes(broken), Index, "the/blob")
        assert caught.value.blob == "the/blob"


def test_any_truncation_of_a_record_is_noticed():
    blob = records.encode(an_index())
    for end in range(len(blob)):
        with pytest.raises(CorruptBlobError):
            records.decode(blob[:end], Index, "p")


def forge(payload, kind=records.INDEX, version=records.FORMAT_VERSION):
    """Return a frame whose checksum is right, around any payload."""
    fields = (b"RDct", version, kind, 0, len(payload), 0)
    return records._HEADER.pack(*fields, records._checksum(fields, payload)) + payload


@given(st.binary(max_size=200))
def test_garbage_with_a_right_checksum_gives_only_typed_errors(payload):
    for cls, kind in records._KINDS.items():
        with pytest.raises(CorruptBlobError):
            records.decode(forge(payload, kind), cls, "p")


@pytest.mark.parametrize(
    "reference", ["s:../../x", "v:../x", "x:000000000001-" + "0" * 32, "/etc/passwd", "s:1-a"]
)
def test_a_reference_that_could_lead_elsewhere_is_refused(reference):
    index = replace(an_index(), checkpoint=CheckpointRef(reference, 0, 1))
    with pytest.raises(CorruptBlobError):
        records.decode(records.encode(index), Index, "p")


def test_a_frame_takes_no_more_memory_than_it_was_said_to_need():
    bomb = frames.deflate(bytes(50_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="1000 bytes"):
            frames.inflate(bomb, 1000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_deep_nesting_is_refused():
    with pytest.raises(CorruptBlobError):
        records.decode(forge(b"\x91" * 100_000), Index, "p")


def test_a_newer_format_is_said_to_be_newer():
    with pytest.raises(FormatVersionError, match="newer remotedict"):
        records.decode(forge(b"", version=records.FORMAT_VERSION + 1), Index, "p")


def test_a_required_feature_that_is_unknown_is_said():
    blob = records.encode(replace(an_index(), features=["telepathy"]))
    with pytest.raises(FormatVersionError, match="telepathy"):
        records.decode(blob, Index, "p")


@pytest.mark.parametrize(
    "changes",
    [
        {"seq": 2},
        {"seq": 0},
        {"segments": [records.SegmentRef(f"s:000000000001-{0:032x}", 2, 3, 1)]},
        {"checkpoint": CheckpointRef(f"c:000000000001-{0:032x}", 5, 1)},
    ],
)
def test_an_index_whose_seqs_do_not_follow_each_other_is_refused(changes):
    with pytest.raises(CorruptBlobError):
        records.decode(records.encode(replace(an_index(), **changes)), Index, "p")


# -- values ---------------------------------------------------------------------------------

MINE = {"key": "k", "dictionary": b"d" * 16, "generation": b"g" * 16}


@pytest.fixture(scope="module")
def small_chunks():
    was, codec.CHUNK_BYTES = codec.CHUNK_BYTES, 1500
    yield
    codec.CHUNK_BYTES = was


@pytest.mark.parametrize(
    "value",
    [b"", b"bytes", bytes(4000), "text", np.arange(700), np.random.default_rng(0).bytes(4000)],
    ids=["empty", "bytes", "zeros", "text", "array", "noise"],
)
def test_any_flipped_bit_or_truncation_of_a_value_is_noticed(value, small_chunks):
    blob = codec.encode(value, **MINE).join()
    assert np.array_equal(codec.decode(blob, **MINE, path="p"), value)
    rng = random.Random(0)
    for at in range(len(blob)):
        broken = bytearray(blob)
        broken[at] ^= 1 << rng.randrange(8)
        with pytest.raises((CorruptBlobError, FormatVersionError)) as caught:
            codec.decode(bytes(broken), **MINE, path="the/blob")
        assert caught.value.blob == "the/blob"
    for end in {*range(0, len(blob), 7), len(blob) - 1}:
        with pytest.raises(CorruptBlobError):
            codec.decode(blob[:end], **MINE, path="p")
    with pytest.raises(CorruptBlobError):
        codec.decode(blob + b"x", **MINE, path="p")


@pytest.mark.parametrize("other", ["dictionary", "generation"])
def test_a_value_of_another_dictionary_or_generation_is_refused(other):
    blob = codec.encode("secret", **MINE).join()
    with pytest.raises(CorruptBlobError, match="'k'"):
        codec.decode(blob, **MINE | {other: b"o" * 16}, path="p")


def test_what_lz4_can_not_shrink_is_stored_as_it_is():
    noise = np.random.default_rng(0).bytes(100_000)
    encoded = codec.encode(noise, **MINE)
    assert len(noise) < encoded.length < len(noise) + 2000


def test_large_buffers_are_neither_copied_into_the_stream_nor_shared_with_what_is_read():
    array = np.random.default_rng(0).integers(0, 255, 2_000_000, dtype=np.uint8)
    encoded = codec.encode(array, **MINE)
    assert any(
        isinstance(piece, memoryview) and np.shares_memory(np.frombuffer(piece, np.uint8), array)
        for piece in encoded.pieces
    )
    blob = encoded.join()
    read = codec.decode(blob, **MINE, path="p")
    read[:] = 0
    assert np.array_equal(codec.decode(blob, **MINE, path="p"), array)


# -- states and plans -----------------------------------------------------------------------


class Machine:
    """Commits to an index, by the plan's rules, with blobs in a dict; and a dict as the model."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.index = plan.genesis(b"d" * 16, b"i" * 16)
        self.state = self.settled = State.empty()
        self.blobs = {}
        self.model = {}  # key -> generation
        self.versions = {}
        self.locks = {}

    def uuid(self):
        return self.random.randbytes(16)

    def change(self, key, commit_id):
        kind = self.random.random()
        if kind < 0.1:
            if key in self.locks:
                return Unlock(key, self.locks.pop(key))
            self.locks[key] = commit_id
            return Lock(key, Holder("h", 1, "me", None))
        self.versions[key] = self.versions.get(key, 0) + 1
        if kind < 0.35 and key in self.model:
            del self.model[key]
            return Delete(key)
        generation = self.model[key] = self.uuid()
        pack = f"p:{self.index.seq // 10:012d}-{0:032x}"
        place = self.random.choice([generation, generation, Range(pack, 0, 9), 77])
        return Set(key, generation, self.index.seq, place, Facts("bytes", 16))

    def commit(self, count):
        commits = []
        for n in range(count):
            commit_id = self.uuid()
            keys = self.random.sample([f"k{i}" for i in range(60)], self.random.choice([1, 1, 5]))
            changes = [self.change(key, commit_id) for key in keys]
            commits.append(Commit(commit_id, self.index.seq + n + 1, n, "me", "", changes))
        index, segment = plan.extend(self.index, commits, self.uuid)
        if segment:
            self.blobs[segment.ref.blob] = segment.blob
            self.state.relocate([c for c in segment.commits if c.seq <= self.state.seq])
            self.settled = self.state
            moved = {c.seq: c for c in segment.commits}
            commits = [moved.get(c.seq, c) for c in commits]
        for commit in commits:
            self.state = self.state.apply(commit)
            if segment and commit.seq == index.settled:
                self.settled = self.state
        self.index = index

    def upkeep(self):
        if refs := plan.due_merge(self.index):
            segments = [records.decode(self.blobs[r.blob], Segment, "")[0] for r in refs]
            merged = plan.merge(self.index, refs, segments, self.uuid())
            self.blobs[merged.ref.blob] = merged.blob
            self.index = plan.swap_merged(self.index, refs, merged.ref)
        if plan.due_checkpoint(self.index):
            record, data = self.settled.checkpoint(b"d" * 16, b"i" * 16, "", 0)
            blob = records.encode(record, data)
            name = f"c:{naming.unique(self.index.seq, self.uuid())}"
            self.blobs[name] = blob
            ref = CheckpointRef(name, self.settled.seq, len(blob))
            self.index = plan.swap_checkpoint(self.index, ref)

    def load(self):
        """Return the state as a reader finds it who has never seen it."""
        index = records.decode(records.encode(self.index), Index, "")[0]
        state = State.empty()
        if index.checkpoint:
            record, data = records.decode(self.blobs[index.checkpoint.blob], Checkpoint, "")
            state = State.from_checkpoint(record, data, "")
        for ref in index.segments:
            segment = records.decode(self.blobs[ref.blob], Segment, "")[0]
            for commit in plan.resolve(segment.commits, ref.blob):
                state = state.apply(commit)
        for commit in index.tail:
            state = state.apply(commit)
        return state

    def value(self, entry):
        """Return the bytes that an entry stands for, where they are inline or in a segment."""
        if isinstance(entry.place, bytes):
            return entry.place
        if isinstance(entry.place, Range) and entry.place.blob.startswith("s:"):
            at = entry.place.offset
            return self.blobs[entry.place.blob][at : at + entry.place.length]
        return entry.generation


def facts_of(state, machine):
    """Return all that a state says, in terms that don't depend on how it came about."""
    return (
        [(k, state.get(k).version, state.get(k).generation) for k in state],
        list(reversed(state)) == list(state)[::-1],
        len(state),
        {k: lock.epoch for k, lock in state.locks.items()},
        {k: state.version(k) for k in machine.versions},
        state.retired,
        [machine.value(state.get(k)) == state.get(k).generation for k in state].count(False),
        state.head,
    )


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(plan, "INDEX_BYTES", 1500)
    monkeypatch.setattr(plan, "CHECKPOINT_MIN", 4000)
    monkeypatch.setattr("remotedict.pure.state._REBASE_MIN", 40)


@pytest.mark.parametrize("seed", range(12))
def test_a_state_is_the_same_however_it_was_come_by(seed, small):
    machine = Machine(seed)
    frozen = []
    for step in range(400):
        machine.commit(machine.random.choice([1, 1, 1, 3]))
        machine.upkeep()
        if step % 7 == 0 and machine.state.due_for_rebase():
            machine.state = machine.state.rebased()
        if step % 50 == 0:
            frozen.append((machine.state, facts_of(machine.state, machine)[:4]))
        if step % 40 == 39:
            mine = facts_of(machine.state, machine)
            assert mine == facts_of(machine.load(), machine)
            assert mine == facts_of(machine.state.rebased(), machine)
            assert {k: g for k, _, g in mine[0]} == machine.model
            assert list(machine.state) == list(machine.model)
            assert mine[3] == machine.locks
            assert mine[4] == machine.versions
            assert mine[6] == 0
    for state, before in frozen:
        assert facts_of(state, machine)[:4] == before  # what came later changed no older view
    assert machine.index.checkpoint


def test_a_state_parts_ways_with_one_that_went_on_from_the_same_point():
    def commit(seq, name):
        change = Set("k", name.ljust(16), 0, name, Facts("bytes", 1))
        return Commit(name.ljust(16), seq, 0, "me", "", [change])

    start = State.empty().apply(commit(1, b"start"))
    left, right = start.apply(commit(2, b"left")), start.apply(commit(2, b"right"))
    assert [s.get("k").place for s in (start, left, right)] == [b"start", b"left", b"right"]
    assert left.commit_id(2).strip() == b"left"
    assert right.commit_id(2).strip() == b"right"
    assert start.commit_id(2) is None


@pytest.mark.parametrize("seed", range(5))
def test_a_draft_says_what_the_state_will_be(seed, small):
    machine = Machine(seed)
    machine.commit(200)
    draft, before = Draft(machine.state), machine.state
    machine.commit(10)
    for commit in newest(machine, 10):
        draft.add(commit)
    after = machine.state
    assert list(draft) == list(after)
    assert list(reversed(draft)) == list(reversed(after))
    for key in machine.versions:
        assert draft.lock(key) == after.lock(key)
        assert (draft.get(key) is None) == (after.get(key) is None)
        if after.get(key):
            assert draft.get(key).generation == after.get(key).generation
            assert draft.get(key).version == after.get(key).version
    assert before.seq == 200


def newest(machine, count):
    commits = [
        commit
        for ref in machine.index.segments
        for commit in records.decode(machine.blobs[ref.blob], Segment, "")[0].commits
    ]
    return [*commits, *machine.index.tail][-count:]


@pytest.mark.parametrize("nbytes", [10, 150, 1000, 2000])
@pytest.mark.parametrize("bulk", [1, 500])
def test_the_index_stays_small_and_a_reopen_reads_few_blobs(nbytes, bulk):
    """Only the layout is simulated: 20,000 keys, in single commits or in now and then a bulk."""
    rng = random.Random(0)
    index, keys, worst, largest = plan.genesis(b"d" * 16, b"i" * 16), 0, 0, 0
    sizes = {}  # of the records alone, by blob

    def merged_size(refs):
        return sum(sizes[ref.blob] for ref in refs)

    while keys < 20_000:
        count = rng.randrange(1, bulk) if bulk > 1 and rng.random() < 0.02 else 1
        changes = [
            Set(f"key-{keys + n:06}", rng.randbytes(16), index.seq, bytes(nbytes), Facts("int", 5))
            for n in range(count)
        ]
        keys += count
        commit = Commit(rng.randbytes(16), index.seq + 1, 1 << 50, "alice@example", "", changes)
        index, segment = plan.extend(index, [commit], lambda: rng.randbytes(16))
        if segment:
            blob = segment.blob
            sizes[segment.ref.blob] = len(blob) - len(records.decode(blob, Segment, "")[1])
        largest = max(largest, len(records.encode(index)))
        worst = max(worst, len(index.segments) + 1 + bool(index.checkpoint))
        if refs := plan.due_merge(index):
            name = f"s:{naming.unique(index.seq, rng.randbytes(16))}"
            sizes[name] = merged_size(refs)
            ref = records.SegmentRef(name, refs[0].first, refs[-1].last, sizes[name])
            index = plan.swap_merged(index, refs, ref)
        if plan.due_checkpoint(index):
            name = f"c:{naming.unique(index.seq, rng.randbytes(16))}"
            index = plan.swap_checkpoint(index, CheckpointRef(name, index.settled, keys * 90))
    assert worst <= 12
    assert largest <= plan.INDEX_BYTES
