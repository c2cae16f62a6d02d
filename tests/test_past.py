"""The past as the states list it: what a Drop takes, what a Forget leaves, and what moves."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from machine import FACTS, IDS, Machine, Model, content, copied, seen
from remotedict import CorruptBlobError
from remotedict.pure import packing, plan, records, table
from remotedict.pure import state as state_module
from remotedict.pure.columns import GONE, SCHEMA, STAMPS, TEXTS
from remotedict.pure.draft import Draft, versioned
from remotedict.pure.entry import Entry, Tombstone, kept
from remotedict.pure.records import Annotate, Commit, Delete, Drop, Forget, Range, Set
from remotedict.pure.state import State

PACK = f"p:000000000000-{0:032x}"
NAMES = "abc"


def changes(kind, key, number, state):
    """Return what a step of a script does, on the state before it."""
    generation = xxhash.xxh3_128_digest(number.to_bytes(4, "big"))
    new = Set(key, 0, generation, 0, 77 if number % 2 else Range(PACK, 32 * number, 9), FACTS, None)
    if kind == "forget":
        return [Forget(key)]
    if kind == "copy":
        other = NAMES[number % len(NAMES)]
        entries = [item for item in state.listed(other) if isinstance(item, Entry)]
        return [copied(key, other, entries[0]) if entries else new]
    note = Annotate(key, 0, f'{{"n":{number}}}')
    if kind == "described":
        return [new, note]
    if key not in state:
        return [new]
    return {"delete": [Delete(key, 0)], "anew": [Delete(key, 0), new], "note": [note]}.get(
        kind, [new]
    )


class Play:
    """The commits of a script, the state after them with all in chains, and the model."""

    def __init__(self, script):
        self.state, self.model = State.empty(), Model()
        for steps in script:
            made = {key: kind for kind, key in steps}  # one thing to a key
            number = 16 * len(self.model.commits)
            self.make(
                [
                    change
                    for n, (key, kind) in enumerate(made.items())
                    for change in changes(kind, key, number + n, self.state)
                ]
            )

    def make(self, made):
        """Make a commit of these changes."""
        seq = self.state.seq + 1
        numbered = versioned(made, Draft(self.state))
        commit = Commit(seq.to_bytes(16, "little"), seq, seq, f"author {seq}", "why", numbered)
        self.model.apply(commit)
        self.state = self.state.apply(commit)
        return commit

    @property
    def table(self):
        """The table that holds all of it."""
        return self.state.rebased()._grown.base

    def check(self, state):
        """Check all that a state lists, and its views from the floor on."""
        for key in NAMES:
            assert [seen(item) for item in state.listed(key)] == self.model.listed.get(key, [])
        assert state.floor == self.model.floor
        for seq in range(max(state.floor, 1), state.seq + 1):
            view, (order, items) = state.at(seq), self.model.as_of(seq)
            assert list(view) == order
            assert list(reversed(view)) == order[::-1]
            assert {key: seen(view.item(key)) for key in NAMES if view.version(key)} == items


def reloaded(state):
    """Return a state as it is read from a checkpoint of it."""
    record, data = state.checkpoint(**IDS, previous="", horizon=0)
    record, area = records.decode(records.encode(record, data), records.Checkpoint, "")
    return State.from_checkpoint(record, area, "")


def scripts(*kinds, max_size=16):
    """Return a strategy of scripts: for each commit what it does to which keys."""
    step = st.tuples(st.sampled_from(kinds), st.sampled_from(NAMES))
    return st.lists(st.lists(step, min_size=1, max_size=3), min_size=1, max_size=max_size)


MORTAL = ("set", "set", "delete", "anew", "note", "described", "copy")
DROPS = st.builds(Drop, st.integers(0, 20), st.integers(1, 4))


# -- drops ----------------------------------------------------------------------------------


@given(scripts(*MORTAL, "forget"), st.lists(DROPS, min_size=1, max_size=3))
def test_what_a_table_drops_is_what_each_key_alone_would_drop(script, drops):
    listed = Play(script).table
    keys = [listed.key(row) for row in range(listed.rows + listed.tombstones)]
    for drop in drops:
        pruned, floor = listed.pruned(drop.before, drop.versions)
        replaced = [0]
        for row in range(listed.rows + listed.tombstones):
            items = listed.listed(row)
            assert all(item.version for item in items[:-1])  # what was forgotten has no past
            stay = kept(items, drop)
            assert pruned.listed(row) == list(stay)
            if len(stay) < len(items):
                replaced.append(stay[0].stamp.seq)
        assert floor == max(replaced)
        assert (pruned is listed) == (floor == 0)
        assert [pruned.key(row) for row in range(pruned.rows + pruned.tombstones)] == keys
        listed = pruned


@given(scripts(*MORTAL), DROPS)
def test_what_stays_is_what_was_current_then_with_the_last_versions_and_all_that_came_later(
    script, drop
):
    for items in map(Play(script).state.listed, NAMES):
        current = [n for n, item in enumerate(items) if item.stamp.seq <= drop.before][-1:]
        stay = [
            item
            for n, item in enumerate(items)
            if not current
            or n >= current[0]
            or item.version > items[current[0]].version - drop.versions
        ]
        assert kept(items, drop) == stay


@given(scripts(*MORTAL), DROPS, DROPS)
@example([[("set", "a"), ("set", "b")], [("set", "b")], [("set", "a")]], Drop(3, 1), Drop(3, 1))
def test_the_floor_is_the_oldest_commit_as_of_which_nothing_is_missing(script, drop, other):
    play = Play(script)
    for one in (drop, other):
        play.make([one])
        play.check(play.state)
        play.check(reloaded(play.state))
        floor = play.state.floor
        if floor:
            view, (_, items) = play.state.at(floor - 1), play.model.as_of(floor - 1)
            assert {k: seen(view.item(k)) for k in NAMES if view.version(k)} != items


@given(scripts(*MORTAL, "forget"), DROPS, DROPS)
@example(  # what is dropped was replaced before the floor that another key has set
    [[("set", k)] for k in "abbaa"] + [[("set", "b")]], Drop(5, 2), Drop(6, 2)
)
def test_a_drop_is_worth_a_commit_just_if_it_takes_something(script, drop, other):
    play = Play(script)
    play.make([drop])
    for one in (drop, other):
        before = content(play.state)
        worth = play.state.droppable(one)
        assert content(play.state) == before
        past = sum(len(items) for items in play.model.listed.values())
        play.make([one])
        assert worth == (sum(len(items) for items in play.model.listed.values()) < past)
    assert not play.state.droppable(drop)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(plan, "INDEX_BYTES", 1500)
    monkeypatch.setattr(plan, "CHECKPOINT_MIN", 4000)


@pytest.mark.parametrize("seed", range(8))
def test_a_drop_is_the_same_for_all_however_they_came_by_their_state(seed, small):
    machine = Machine(seed)
    follower = machine.store.client()
    for step in range(60):
        machine.commit(1)
        machine.upkeep()
        if step in {20, 40}:
            follower.now()
    for before in machine.random.sample(range(1, machine.index.settled + 1), 4):
        drop = Drop(before, machine.random.choice([1, 2, 3]))
        mine = machine.state
        states = [
            mine,
            mine,  # once more: parts ways with the first
            mine.rebased(),
            mine.rebased().rebased(),
            machine.load().state,
            follower.now().state,
        ]
        commit = machine.make(drop)
        after = [state.apply(commit) for state in states]
        for state in after:
            machine.check(state)
            machine.check_view(state, state.seq)
            machine.check_view(state, max(state.floor, 1))
            assert content(state, places=False) == content(after[0], places=False)
        assert content(machine.load().state) == content(machine.state)


@given(scripts(*MORTAL, "forget"), DROPS, st.integers(0, 16))
@example([[("described", "a")], [("forget", "a")]], Drop(0, 1), 0)
def test_a_draft_lists_what_the_state_will_list(script, drop, cut):
    play = Play(script)
    play.make([Drop(min(drop.before, play.state.seq), drop.versions)])
    play.make(changes("copy", "a", play.state.seq, play.state))
    state = State.empty()
    for commit in play.model.commits[:cut]:
        state = state.apply(commit)
    draft = Draft(state)
    for commit in play.model.commits[cut:]:
        draft.add(commit)
    assert list(draft) == list(play.state)
    assert list(reversed(draft)) == list(reversed(play.state))
    for key in NAMES:
        assert [*map(seen, draft.listed(key))] == [*map(seen, play.state.listed(key))]
        assert seen(draft.item(key)) == seen(play.state.item(key))


# -- forgetting -----------------------------------------------------------------------------


@given(scripts(*MORTAL, "forget"))
def test_what_is_forgotten_was_never_there(script):
    play = Play(script)
    for key in NAMES:
        play.make([Forget(key)])
        for state in (play.state, play.state.rebased(), reloaded(play.state)):
            assert key not in state
            assert (state.listed(key), state.version(key)) == ([], 0)
            assert all(key not in list(state.at(seq)) for seq in range(1, state.seq + 1))
            assert all(not state.at(seq).version(key) for seq in range(1, state.seq + 1))
            play.check(state)


@given(scripts(*[kind for kind in MORTAL if kind != "copy"]), st.sampled_from(NAMES))
def test_a_checkpoint_has_nothing_of_a_forgotten_key_but_its_name_and_who_forgot_it(script, key):
    play = Play(script)
    written = [
        change
        for commit in play.model.commits
        for change in commit.changes
        if change.key == key and not isinstance(change, Delete)
    ]
    forgot = play.make([Forget(key)])
    record, data = play.state.checkpoint(**IDS, previous="", horizon=0)
    columns = table.decode(record.table, memoryview(b"".join(data)), "").columns
    stored = b"".join(column.tobytes() for column in columns.values())
    for change in written:
        if isinstance(change, Annotate):
            assert change.metadata not in record.table.texts
        else:
            assert change.generation not in stored
    named = {bytes(stamp) for stamp in columns["stamp_id"]}
    alone = [c for c in play.model.commits if {change.key for change in c.changes} == {key}]
    assert {commit.id for commit in alone} & named == {forgot.id}
    assert not {commit.author for commit in alone[:-1]} & {*record.table.texts}


@given(scripts(*MORTAL), scripts(*MORTAL, max_size=5), st.sampled_from(NAMES))
def test_after_it_was_forgotten_a_key_begins_anew_and_comes_last(script, more, key):
    play = Play(script)
    forgot = play.make([Forget(key)])
    play.make([Set(key, 0, b"n" * 16, 0, 77, FACTS, None)])
    [item] = play.state.listed(key)
    assert (item.version, item.metadata) == (1, "")
    assert list(play.state)[-1] == key
    for state in (play.state, play.state.rebased(), reloaded(play.state)):
        play.check(state)
        assert key not in list(state.at(forgot.seq))
    for steps in more:
        for kind, name in steps:
            play.make(changes(kind, name, 1000 + play.state.seq, play.state))
    play.check(reloaded(play.state))
    assert play.state.listed(key)[0].version == 1


# -- the order of iteration -----------------------------------------------------------------


@given(scripts("set", "delete", "note", "anew"), st.integers(0, 16))
def test_a_key_that_is_set_again_after_its_deletion_comes_last_as_of_each_commit(script, cut):
    play, state = Play(script), State.empty()
    model, then = {}, {}
    for commit in play.model.commits:
        for change in commit.changes:
            if isinstance(change, Delete):
                del model[change.key]
            elif isinstance(change, Set):
                model[change.key] = change.generation
        then[commit.seq] = dict(model)
        state = state.apply(commit)
        if commit.seq == cut:
            state = reloaded(state)
    for seq, content_then in then.items():
        for one in (play.state, play.state.rebased(), reloaded(play.state), state):
            view = one.at(seq)
            assert [(key, view.get(key).generation) for key in view] == list(content_then.items())
            assert len(view) == len(content_then)


# -- inline values that leave the tail ------------------------------------------------------


def places(known, key):
    """Return where the items of a key are."""
    return [item.place for item in known.state.listed(key) if isinstance(item, Entry)]


def inline(key, number):
    """Return a change that sets an inline value."""
    generation = number.to_bytes(16, "big")
    return Set(key, 0, generation, 0, generation, FACTS, None)


def fill(machine):
    """Make commits until the tail is sealed."""
    segments, number = len(machine.index.segments), 1000
    while len(machine.index.segments) == segments:
        machine.make(inline("filler", number := number + 1))


@pytest.mark.parametrize("looked", ["never", "before", "in between", "always"])
def test_once_the_tail_is_sealed_nobody_has_inline_values_and_all_know_the_same_places(
    looked, small
):
    machine = Machine(0)
    follower = machine.store.client()

    def look(when):
        if looked in {when, "always"}:
            follower.now()

    machine.make(inline("a", 1))
    look("before")
    machine.make(Annotate("a", 0, '{"n":1}'))
    machine.make(inline("a", 2), Annotate("a", 0, '{"n":2}'))
    look("in between")
    machine.make(copied("b", "a", machine.state.listed("a")[0]))
    machine.make(Delete("a", 0))
    machine.make(copied("a", "a", machine.state.listed("a")[1]))
    look("in between")
    machine.make(Drop(0, 1), inline("c", 3))
    machine.make(Forget("c"))
    look("always")
    assert all(isinstance(place, bytes) for place in places(machine.known, "a"))
    fill(machine)
    machine.check(machine.state)

    fresh = machine.load()
    first, noted, second, again = places(fresh, "a")
    [copy] = places(fresh, "b")
    assert first == noted
    assert len({first, second, again, copy}) == 4  # each Set has bytes of its own
    assert {place.blob for place in (first, second, again, copy)} == {
        machine.index.segments[-1].blob
    }
    for known in (machine.known, follower.now(), fresh):
        machine.check(known.state)
        machine.check_places(known)
        assert content(known.state) == content(fresh.state)
        assert content(known.settled) == content(fresh.settled)


def test_a_view_of_old_learns_where_its_inline_values_went(small):
    machine = Machine(0)
    machine.make(inline("a", 1))
    view = machine.state
    machine.make(inline("a", 2))
    assert view.get("a").place == b"\0" * 15 + b"\1"
    fill(machine)
    assert machine.value(view.get("a")) == b"\0" * 15 + b"\1"
    assert view.get("a").place == places(machine.load(), "a")[0]


# -- what can't be a table ------------------------------------------------------------------

NUMBERS = {"hash_row", "past_of", "kind", "past_kind", "blob", "past_blob", *TEXTS, *STAMPS}


@functools.cache
def recorded():
    """Return the record of a table with something in each column, and the columns."""
    script = [[("described", "a"), ("set", "b")], [("note", "a"), ("delete", "b")]]
    script += [[("set", "a"), ("anew", "b")], [("delete", "b"), ("set", "c")], [("set", "b")]]
    made = Play(script).table
    return made.encode()[0], {name: np.array(made.columns[name]) for name in SCHEMA}


def forged(name, change):
    """Decode the table with one of its columns changed, and look at all of it."""
    record, columns = recorded()
    data, described = [], []
    for column, array in columns.items():
        description, packed = packing.pack(column, array)
        if column == name:
            changed = change(array.copy())
            packed, size = changed.tobytes(), changed.nbytes
            description = records.Column(name, changed.dtype.str, packing.PLAIN, size, size)
        described.append(description)
        data.append(packed + bytes(-len(packed) % packing.ALIGNMENT))
    record = replace(record, columns=described)
    read = table.decode(record, memoryview(b"".join(data)), "the/blob")
    return read if list(read.columns.values()) else None


@pytest.mark.parametrize("name", sorted(NUMBERS))
@pytest.mark.parametrize("number", [100, 1 << 20, (1 << 32) - 1])
def test_a_number_that_points_outside_its_list_is_refused(name, number):
    def change(column):
        column = column.astype("<u4")
        column[-1 if name == "past_of" else 0] = number
        return column

    with pytest.raises(CorruptBlobError) as caught:
        forged(name, change)
    assert caught.value.blob == "the/blob"


@pytest.mark.parametrize("name", sorted(SCHEMA))
def test_a_column_of_another_length_is_refused(name):
    with pytest.raises(CorruptBlobError):
        forged(name, lambda column: column[:-1])


@pytest.mark.parametrize(("name", "number"), [("blob", GONE), ("key", 0xFF), ("key_end", 0)])
def test_a_column_that_can_not_be_is_refused(name, number):
    def change(column):
        column[0] = number
        return column

    with pytest.raises(CorruptBlobError, match=name):
        forged(name, change)


@pytest.mark.parametrize("name", [n for n in SCHEMA if SCHEMA[n] == "<u8" and n != "key_end"])
@pytest.mark.parametrize("number", [records.COUNT_MAX + 1, (1 << 64) - 1])
def test_a_number_that_can_not_be_added_to_another_is_refused(name, number):
    def change(column):
        column = column.astype("<u8")
        column[-1] = number
        return column

    with pytest.raises(CorruptBlobError, match=f"{name} has a number that is too large"):
        forged(name, change)


@pytest.mark.parametrize("name", ["hash", "stamp_seq"])
def test_a_column_that_is_searched_must_be_sorted(name):
    with pytest.raises(CorruptBlobError, match=f"{name} (isn't in order|doesn't ascend)"):
        forged(name, lambda column: column[::-1].copy())


def test_past_items_that_are_not_in_the_order_of_their_keys_are_refused():
    assert len({*forged("key", lambda c: c).columns["past_of"]}) > 1
    with pytest.raises(CorruptBlobError, match="past_of isn't in order"):
        forged("past_of", lambda column: column[::-1].copy())


def test_a_table_read_back_is_the_same():
    first = forged("key", lambda column: column)
    record, data = first.encode()
    again = table.decode(record, memoryview(b"".join(data)), "")
    items = [first.listed(row) for row in range(first.rows + first.tombstones)]
    assert [again.listed(row) for row in range(again.rows + again.tombstones)] == items
    assert {type(item) for listed in items for item in listed} == {Entry, Tombstone}


def test_a_view_older_than_all_ids_that_are_known_knows_none(monkeypatch):
    monkeypatch.setattr(state_module, "RECENT_IDS", 2)
    play = Play([[("set", "a")]] * 6)
    reopened = reloaded(play.state)
    assert reopened.commit_id(6)
    for seq in range(1, 5):
        view = reopened.at(seq).rebased()
        assert [view.commit_id(one) for one in range(8)] == [None] * 8
