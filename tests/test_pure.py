"""The pure part: names, values, states and plans, each against a model or by mutation."""

from __future__ import annotations

import contextlib
import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine import Machine, content
from remotedict import CorruptBlobError, FormatVersionError, InvalidNameError
from remotedict.pure import codec, lz4, naming, plan, records
from remotedict.pure.coding import Codec
from remotedict.pure.records import (
    CheckpointRef,
    Commit,
    Facts,
    LogRef,
    Segment,
    Set,
)

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


# -- blocks of LZ4 --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1000, 49_999_999, 50_000_001, 1 << 40, 1 << 70])
def test_a_block_takes_no_more_memory_than_it_was_said_to_need(size):
    bomb = lz4.deflate(bytes(50_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"nput|bytes"):
            lz4.inflate(bomb, size)
        assert tracemalloc.get_traced_memory()[1] < 2 * min(size, 50_000_001) + 1_000_000
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=5000))
def test_a_block_holds_what_was_put_into_it(data):
    block = lz4.deflate(data)
    assert lz4.inflate(block, len(data)) == data
    for size in {0, len(data) - 1, len(data) + 1} - {len(data), -1}:
        with pytest.raises(ValueError, match=r"nput|bytes"):
            lz4.inflate(block, size)


@given(st.binary(max_size=300), st.integers(0, 3000))
def test_what_is_no_block_is_refused_or_is_one(garbage, size):
    with contextlib.suppress(ValueError):
        assert len(lz4.inflate(garbage, size)) == size


# -- values ---------------------------------------------------------------------------------

MINE = {"key": "k", "dictionary": b"d" * 16, "generation": b"g" * 16, "by": Codec("pickle")}


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
    assert len(noise) < len(codec.encode(noise, **MINE).join()) < len(noise) + 2000


def test_what_is_read_shares_no_memory_with_what_was_stored():
    array = np.random.default_rng(0).integers(0, 255, 2_000_000, dtype=np.uint8)
    blob = codec.encode(array, **MINE).join()
    read = codec.decode(blob, **MINE, path="p")
    read[:] = 0
    assert np.array_equal(codec.decode(blob, **MINE, path="p"), array)


# -- states and plans -----------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(plan, "INDEX_BYTES", 1500)
    monkeypatch.setattr(plan, "CHECKPOINT_MIN", 4000)
    monkeypatch.setattr("remotedict.pure.state._REBASE_MIN", 40)


def check_everything(machine, followers):
    """Check what each of the states of the newest commit tells, and 3 views of each."""
    fresh = machine.load()
    for known in (machine.known, *(follower.now() for follower in followers)):
        assert content(known.state) == content(fresh.state)
        assert content(known.settled) == content(fresh.settled)
        machine.check_places(known)
    states = [
        machine.state,
        machine.state.rebased(),
        fresh.state,
        *(follower.known.state for follower in followers),
    ]
    floor, seq = machine.model.floor, machine.state.seq
    for state in states:
        machine.check(state)
        for at in {max(floor, 1), machine.random.randrange(floor, seq) + 1, seq}:
            machine.check_view(state, at)


@pytest.mark.parametrize("seed", range(8))
def test_a_state_is_the_same_however_it_was_come_by(seed, small):
    machine = Machine(seed)
    followers = [machine.store.client() for _ in range(3)]
    frozen = []
    for step in range(200):
        machine.commit(machine.random.choice([1, 1, 1, 3, 8]))
        machine.upkeep()
        for follower in followers:
            if machine.random.random() < 0.1:
                machine.check_places(follower.now())
        if step % 25 == 0:
            frozen.append((machine.state, content(machine.state, places=False)))
        if step % 25 == 24:
            check_everything(machine, followers)
    for state, before in frozen:
        assert content(state, places=False) == before  # what came later changed no older view
    assert machine.index.checkpoint
    assert machine.model.floor


@pytest.mark.parametrize("seed", range(5))
def test_a_draft_says_what_the_state_will_be(seed, small):
    machine = Machine(seed)
    for _ in range(60):
        before = machine.state
        draft = machine.commit(machine.random.choice([1, 2, 10]))
        machine.check_draft(draft)
        machine.check_draft(draft.copy())
        assert draft.state is before
        assert set(draft.changed(before.seq)) == set(machine.state.changed(before.seq))


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
            Set(
                f"key-{keys + n:06}",
                1,
                rng.randbytes(16),
                index.seq,
                bytes(nbytes),
                Facts("int", 5),
                None,
            )
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
            ref = CheckpointRef(name, index.settled, keys * 90)
            log = LogRef(name.replace("c:", "l:"), 1, index.settled, 100)
            index = plan.swap_checkpoint(index, ref, index.segments, log)
    assert worst <= 12
    assert largest <= plan.INDEX_BYTES
