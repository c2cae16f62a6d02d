"""States, method by method, with what lies in the base and what has come since.

test_pure.py and test_past.py compare them with a model, commit by commit.
"""

from __future__ import annotations

from itertools import accumulate, chain

import pytest
from msgspec.structs import replace

from remotedict import CorruptBlobError
from remotedict.pure import records, state
from remotedict.pure.entry import Entry, Stamp, Tombstone
from remotedict.pure.records import (
    Annotate,
    Checkpoint,
    Commit,
    Delete,
    Drop,
    Facts,
    Forget,
    Holder,
    Lock,
    LockEntry,
    Range,
    Set,
    Unlock,
)
from remotedict.pure.state import State, advanced, locked

FACTS = Facts("bytes", 9)
HOLDER = Holder("host", 1, "me", None)
PACK, OTHER = f"p:{0:012}-{1:032x}", f"p:{0:012}-{2:032x}"
PLACE = Range(PACK, 3, 4)
ORDER = 7


def an_id(seq, branch=0):
    return bytes([branch]) * 8 + seq.to_bytes(8, "big")


def put(key, version=1, place=PLACE):
    """Return a value: in a pack, unless `place` is its length, or its bytes."""
    return Set(key, version, key.encode().ljust(15) + bytes([version % 256]), 0, place, FACTS, None)


def note(key, version=1, metadata='{"a":1}'):
    return Annotate(key, version, metadata)


def gone(key, version=2):
    return Delete(key, version)


def commit(seq, *changes, branch=0):
    return Commit(an_id(seq, branch), seq, seq * 10, "me", f"commit {seq}", list(changes))


def play(*steps, since=None):
    """Return the state after commits, each a change or a tuple of them."""
    now = State.empty() if since is None else since
    for step in steps:
        now = now.apply(commit(now.seq + 1, *(step if isinstance(step, tuple) else (step,))))
    return now


def stamp(seq):
    return Stamp.of(commit(seq))


def an_entry(change, seq, order, *, metadata="", written=None):
    """Return what a key is by a Set of commit `written`, after another one in `seq`."""
    return Entry(
        version=change.version,
        generation=change.generation,
        born=change.born,
        place=change.place,
        facts=change.facts,
        metadata=metadata,
        written=stamp(written or seq),
        stamp=stamp(seq),
        order=order,
    )


def many(count, prefix="k"):
    return tuple(put(f"{prefix}{n:05}") for n in range(count))


def keys_of(changes):
    return [change.key for change in changes]


def told(now):
    """Return all that a state tells of its keys."""
    return [
        (now.seq, now.head, now.floor, len(now), list(now), list(reversed(now)), now.locks),
        [
            (key, now.listed(key), now.item(key))
            for key in sorted(now.known_keys())
            if now.listed(key)
        ],
    ]


@pytest.fixture
def soon(monkeypatch):
    """A base is outgrown by five changes."""
    monkeypatch.setattr(state, "_REBASE_MIN", 4)


# -- what a key becomes ---------------------------------------------------------------------

OLD = an_entry(put("k"), 3, ORDER, metadata="old", written=2)


@pytest.mark.parametrize(
    ("old", "change", "new"),
    [
        (None, put("k"), an_entry(put("k"), 5, 99)),
        (Tombstone(1, stamp(3)), put("k", 2, 77), an_entry(put("k", 2, 77), 5, 99)),
        (OLD, put("k", 2, b"in"), an_entry(put("k", 2, b"in"), 5, ORDER, metadata="old")),
        (OLD, note("k"), an_entry(put("k"), 5, ORDER, metadata='{"a":1}', written=2)),
        (OLD, gone("k"), Tombstone(2, stamp(5))),
        (OLD, Forget("k"), Tombstone(0, stamp(5))),
        (None, Forget("k"), Tombstone(0, stamp(5))),
    ],
)
def test_what_a_key_becomes_by_a_change(old, change, new):
    assert advanced(old, change, stamp(5), 99) == new


@pytest.mark.parametrize("old", [None, Tombstone(1, stamp(3))])
def test_nothing_has_no_metadata(old):
    with pytest.raises(AssertionError, match="metadata of nothing"):
        advanced(old, note("k"), stamp(5), 99)


def test_the_epoch_of_a_lock_is_the_id_of_its_commit():
    assert locked(Lock("k", HOLDER), commit(5)) == LockEntry("k", an_id(5), HOLDER)
    assert locked(Unlock("k", an_id(5)), commit(6)) is None


# -- commits --------------------------------------------------------------------------------


def test_nothing_is_there_before_the_first_commit():
    empty = State.empty()
    assert told(empty) == [(0, b"", 0, 0, [], [], {}), []]
    assert empty.commit_id(0) is None
    assert (empty.past, empty.base.rows, list(empty.later())) == (0, 0, [])
    assert not empty._beyond_base
    assert empty.apply(commit(1))._grown is empty._grown  # no branch of its own
    assert not hasattr(empty, "__dict__")


def test_a_state_is_what_the_commits_made_it():
    now = play(
        (put("a"), put("b"), note("b")),
        (put("b", 2), put("c"), Lock("c", HOLDER)),
        gone("a"),
        (note("c"), Lock("z", HOLDER)),
        (put("a", 3), Unlock("c", an_id(2))),
    )
    a, b, c = (
        an_entry(put("a", 3), 5, 3),
        an_entry(put("b", 2), 2, 1, metadata='{"a":1}'),
        an_entry(put("c"), 4, 2, metadata='{"a":1}', written=2),
    )
    for one in (now, now.rebased(), now.rebased().rebased()):
        assert (one.seq, one.head, len(one), list(one)) == (5, an_id(5), 3, ["b", "c", "a"])
        assert list(reversed(one)) == ["a", "c", "b"]
        assert one.entries(["a", "b", "c", "x"]) == [a, b, c, None]
        assert one.entries(["b", "c"]) == [b, c]
        assert [key in one for key in "abcx"] == [True, True, True, False]
        assert dict(one.items()) == {"b": b, "c": c, "a": a}
        places = [b.location("b"), c.location("c"), a.location("a")]
        assert list(chain(*one.locations())) == places
        assert list(chain(*one.locations(reverse=True))) == places[::-1]
        assert [one.get(key) for key in "abcx"] == [a, b, c, None]
        assert one.listed("a") == [
            an_entry(put("a"), 1, 0),
            Tombstone(2, stamp(3)),
            a,
        ]
        assert one.listed("b") == [an_entry(put("b"), 1, 1, metadata='{"a":1}'), b]
        assert one.listed("c") == [an_entry(put("c"), 2, 2), c]
        assert one.listed("x") == []
        assert one.lock("z") == LockEntry("z", an_id(4), HOLDER)
        assert one.lock("c") is one.lock("x") is None
        assert one.locks == {"z": one.lock("z")}
        assert sorted(one.known_keys()) == ["a", "b", "c"]
        assert {stamp.seq for stamp in one.stamps()} == {1, 2, 3, 4, 5}
        assert [one.commit_id(seq) for seq in range(7)] == [None, *map(an_id, range(1, 6)), None]
        assert one.floor == 0


def test_metadata_beside_a_value_are_part_of_its_version_and_later_ones_are_an_item():
    now = play((put("a"), note("a")), note("a", 1, "later"), (put("a", 2), note("a", 2, "")))
    assert now.listed("a") == [
        an_entry(put("a"), 1, 0, metadata='{"a":1}'),
        an_entry(put("a"), 2, 0, metadata="later", written=1),
        an_entry(put("a", 2), 3, 0),
    ]


def test_a_commit_must_be_the_next_one():
    now = play(put("a"))
    for seq in (1, 3):
        with pytest.raises(AssertionError, match=f"commit {seq} can't follow 1"):
            now.apply(commit(seq, put("b")))


@pytest.mark.parametrize("base", [False, True])
def test_an_older_state_is_not_changed_by_what_comes_later(base):
    first = play((put("a"), put("b"), Lock("b", HOLDER)))
    first = first.rebased() if base else first
    before = told(first)
    later = play(
        (put("a", 2), put("c")), (gone("b"), Unlock("b", an_id(1)), Lock("c", HOLDER)), since=first
    )
    assert told(first) == before
    assert first.entries(["a", "b", "c"]) == [*map(first.get, "ab"), None]
    assert first.versions(["a", "b", "c"]) == [1, 1, 0]
    assert [key in first for key in "abc"] == [True, True, False]
    places = [first.get("a").location("a"), first.get("b").location("b")]
    assert list(chain(*first.locations())) == places
    assert list(chain(*first.locations(reverse=True))) == places[::-1]
    assert sorted(set(first.changed(0))) == ["a", "b"]
    assert list(first.changed(1)) == []
    assert [entry.version for _, entry in first.later()] == ([] if base else [1, 1])
    assert told(first.rebased()) == before
    assert list(later) == ["a", "c"]


def test_a_state_parts_ways_with_one_that_went_on_from_the_same_point():
    start = play((put("a"), Lock("a", HOLDER)), put("b"))
    left = start.apply(commit(3, put("a", 2, b"left"), branch=1))
    right = start.apply(commit(3, put("a", 2, b"right"), put("c"), branch=2))
    assert [one.get("a").place for one in (start, left, right)] == [PLACE, b"left", b"right"]
    assert [list(one) for one in (start, left, right)] == [["a", "b"], ["a", "b"], list("abc")]
    assert (left.commit_id(3), left.head) == (an_id(3, 1), an_id(3, 1))
    assert (right.commit_id(3), right.head) == (an_id(3, 2), an_id(3, 2))
    assert (right.commit_id(1), right.commit_id(2)) == (an_id(1), an_id(2))
    assert start.commit_id(3) is None
    assert right.lock("a") == start.lock("a")
    assert right.get("c").order == 2
    assert len(right) == 3


def test_orders_go_on_where_another_branch_began():
    """What came after the point where they part takes no number away."""
    start = play(put("a"))
    left = play((put("b"), put("c")), since=start)
    right = start.apply(commit(2, put("x"), branch=1))
    assert [left.get(key).order for key in "abc"] == [0, 1, 2]
    record, _ = start.checkpoint(bytes(16), bytes(16), "", 0)
    assert record.next_order == 1
    assert list(right) == ["a", "x"]


@pytest.mark.parametrize("base", [False, True])
def test_a_deleted_key_is_not_there_but_its_version_is_known(base):
    now = play((put("a"), put("b"), put("c")), (gone("a"), gone("c")))
    now = now.rebased() if base else now
    assert [key in now for key in "abc"] == [False, True, False]
    assert now.entries(["a", "b", "c"]) == [None, now.get("b"), None]
    assert now.entries(["a", "c"]) == [None, None]
    assert now.versions(["a", "b", "c", "x"]) == [2, 1, 2, 0]
    assert [now.version(key) for key in "abcx"] == [2, 1, 2, 0]
    assert (list(now), len(now), now.get("a"), now.item("a")) == (
        ["b"],
        1,
        None,
        Tombstone(2, stamp(2)),
    )


def test_a_key_that_was_deleted_and_set_in_one_commit_comes_last():
    now = play((put("a"), put("b")), (gone("a"), put("a", 3)))
    assert list(now) == list(now.rebased()) == ["b", "a"]
    assert list(reversed(now)) == ["a", "b"]
    listed = [an_entry(put("a"), 1, 0), Tombstone(2, stamp(2)), an_entry(put("a", 3), 2, 2)]
    assert now.listed("a") == now.rebased().listed("a") == listed
    now = play((gone("b"), put("b", 3)), since=now.rebased())
    assert list(now) == ["a", "b"]
    assert len(now) == 2


# -- views of the past ----------------------------------------------------------------------


@pytest.mark.parametrize("base", [None, 2, 4], ids=str)
def test_a_view_shows_what_was(base):
    now = State.empty()
    for seq, step in enumerate(
        [(put("a"), put("b")), (put("c"), Lock("a", HOLDER)), gone("b"), (put("b", 3),)], 1
    ):
        now = play(step, since=now)
        now = now.rebased() if seq == base else now
    seen = [["a", "b"], ["a", "b", "c"], ["a", "c"], ["a", "c", "b"]]
    for seq, keys in enumerate(seen, 1):
        view = now.at(seq)
        assert (view.seq, view.head, list(view), len(view)) == (seq, an_id(seq), keys, len(keys))
        assert list(reversed(view)) == keys[::-1]
        assert [key in view for key in "abcd"] == [key in keys for key in "abcd"]
        assert view.versions(list("abcd")) == [
            1,
            [1, 1, 2, 3][seq - 1],
            int("c" in keys),
            0,
        ]
        assert [bool(entry) for entry in view.entries(list("abc"))] == [k in keys for k in "abc"]
        assert [key for key, _ in view.items()] == keys
        assert [entry.stamp.seq <= seq for _, entry in view.items()] == [True] * len(keys)
        assert sum(len(view.listed(key)) for key in "abc") == [2, 3, 4, 5][seq - 1]
    assert [list(block) for block in now.at(1).blocks()] == [["a", "b"]]


def test_a_view_from_before_all_ids_that_are_known_has_no_head():
    now = play(put("a"), put("b"))
    late = State(state._Growth(now.rebased().base, 2, 2, [an_id(2)], 2, 1), 2, an_id(2), None)
    assert late.at(2).head == an_id(2)
    assert late.at(1).head == b""
    assert list(late.at(1)) == ["a"]
    assert len(late) == 2
    assert late.floor == 1


# -- the walk -------------------------------------------------------------------------------


def walked(now):
    return [(len(keys), row) for keys, row in now._walk()]


def test_keys_are_taken_from_the_base_in_growing_blocks():
    changes = many(12_300)
    now = play(changes)
    assert now.base.rows == 12_300  # so many go to a base at once
    sizes = [64, 128, 256, 512, 1024, 2048, 4096, 4096, 76]
    rows = [0, *accumulate(sizes)]
    assert walked(now) == list(zip(sizes, rows, strict=False))
    assert [len(block) for block in now.blocks()] == sizes
    assert list(now) == keys_of(changes)
    assert list(reversed(now)) == keys_of(changes)[::-1]
    assert [len(block) for block, _ in now._backwards()] == sizes
    assert [where.key for where in chain(*now.locations(reverse=True))] == keys_of(changes)[::-1]
    touched = play(put("k00100", 2), since=now)
    rows[1] = -1
    assert walked(touched) == list(zip(sizes, rows, strict=False))
    assert list(touched) == keys_of(changes)


def test_keys_come_from_the_base_then_from_what_came_later():
    now = play(many(100)).rebased()
    assert walked(now) == [(64, 0), (36, 64)]
    now = play(many(70, "n"), since=now)
    assert walked(now) == [(64, 0), (36, 64), (70, -1)]
    now = play(many(200, "x"), since=now)
    assert walked(now) == [(64, 0), (36, 64), (256, -1), (14, -1)]
    assert list(now) == [*keys_of(many(100)), *keys_of(many(70, "n")), *keys_of(many(200, "x"))]
    assert list(now.at(1)) == keys_of(many(100))
    assert list(now.at(2)) == [*keys_of(many(100)), *keys_of(many(70, "n"))]
    assert list(reversed(now.at(2))) == list(now.at(2))[::-1]


def test_what_was_found_dead_is_not_visited_again(monkeypatch):
    """Else to pop all items, one by one, would take quadratic time."""
    keys = keys_of(many(10))
    now = play(many(10)).rebased()
    for dead in range(9):
        now = play(gone(keys[dead]), since=now)
        assert next(iter(now)) == keys[dead + 1]
        assert now._grown.dead_front == (now.seq, 0)
    now = play(many(100)).rebased()
    keys = keys_of(many(100))
    for dead in range(70):
        now = play(gone(keys[dead]), since=now)
        assert next(iter(now)) == keys[dead + 1]
    assert now._grown.dead_front == (now.seq, 64)
    visited, read = [], now.base.keys
    monkeypatch.setattr(now.base, "keys", lambda *rows: visited.append(rows) or read(*rows))
    assert next(iter(now)) == keys[70]
    assert visited == [(64, 100)]
    assert next(iter(now.at(30))) == keys[29]
    assert visited == [(64, 100), (0, 64)]
    assert list(now.at(1)) == keys
    assert list(now) == keys[70:]
    assert walked(now) == [(30, -1)]


def test_what_was_found_dead_at_the_end_is_not_visited_again(monkeypatch):
    keys = keys_of(many(10))
    now = play(many(10)).rebased()
    visited, read = [], now.base.key
    monkeypatch.setattr(now.base, "key", lambda row: visited.append(row) or read(row))
    for dead in range(9, 0, -1):
        now = play(gone(keys[dead]), since=now)
        assert next(reversed(now)) == keys[dead - 1]
        assert now._grown.dead_back == (now.seq, dead, 10)
        visited.clear()
        assert next(reversed(now)) == keys[dead - 1]
        assert visited == [dead - 1]
    assert list(reversed(now)) == keys[:1]
    assert list(reversed(now.at(5))) == keys[:6][::-1]
    now = play(many(2, "n"), since=now)
    assert list(reversed(now)) == ["n00001", "n00000", keys[0]]
    assert now._grown.dead_back == (now.seq, 12, 12)
    now = play((gone("n00000"), gone("n00001")), since=now)
    assert list(reversed(now)) == keys[:1]
    assert now._grown.dead_back == (now.seq, 1, 12)


def test_a_key_that_another_thread_is_just_adding_is_not_taken_for_dead():
    now = play((put("a"), put("b")))
    now._grown.inserted.append((2, 2, "c"))  # by the next commit, which isn't the tip yet
    assert list(reversed(now)) == ["b", "a"]
    assert list(now) == ["a", "b"]
    assert now._grown.dead_back == (1, 2, 2)


def test_a_walk_that_a_later_commit_overtakes_shows_its_own_state():
    now = play((put("a"), put("b"))).rebased()
    forwards, backwards = iter(now), reversed(now)
    play((gone("b"), put("c"), put("a", 2)), since=now)
    assert list(forwards) == ["a", "b"]
    assert list(backwards) == ["b", "a"]
    assert walked(now) == [(2, -1)]


def test_only_the_newest_state_remembers_what_is_dead():
    keys = keys_of(many(100))
    old = play(many(100)).rebased()
    old = play(tuple(map(gone, keys[:70])), since=old)
    old = play(tuple(map(gone, keys[90:])), since=old)
    now = play((put(keys[0], 3), put(keys[99], 3)), since=old)
    before = now._grown.dead_front, now._grown.dead_back
    assert (next(iter(old)), next(reversed(old))) == (keys[70], keys[89])
    assert (now._grown.dead_front, now._grown.dead_back) == before
    assert list(now) == [*keys[70:90], keys[0], keys[99]]


def test_paths_say_where_each_value_lies():
    now = play(
        (put("a"), put("b", place=77), put("c", place=b"in"), put("d", place=Range("", 1, 2)))
    )
    own = f"v:b/{0:012}-{put('b').generation.hex()}"
    for one in (now, now.rebased()):
        [(keys, paths)] = one.paths(list)
        assert (keys, list(paths)) == (list("abcd"), [PACK, own, "", ""])
    based = play((put("a"), put("b", place=77))).rebased()
    [(keys, paths)] = based.paths(list)
    assert (keys, list(paths)) == (["a", "b"], [PACK, own])
    assert walked(based) == [(2, 0)]


# -- the base -------------------------------------------------------------------------------


def test_a_base_is_outgrown_by_so_many_changes(soon):
    now = play((put("a"), put("b")), (note("a"), Lock("a", HOLDER)))
    assert not now.due_for_rebase()
    assert play(note("b"), since=now).due_for_rebase()
    assert not now.rebased().due_for_rebase()


def test_a_base_is_outgrown_by_an_eighth_of_it(soon):
    now = play(many(47)).rebased()
    assert now.base.rows == 47
    now = play(tuple(note(key) for key in keys_of(many(6))), since=now)
    assert now.due_for_rebase()
    now = play(many(48)).rebased()
    now = play(tuple(note(key) for key in keys_of(many(6))), since=now)
    assert not now.due_for_rebase()
    assert play(note("k00007"), since=now).due_for_rebase()


def test_a_small_base_is_outgrown_by_4096_changes():
    changes = tuple(put(f"k{n}", place=b"") for n in range(4096))
    now = play(changes)
    assert not now.due_for_rebase()
    assert play(put("x"), since=now).due_for_rebase()


def test_a_checkpoint_carries_the_ids_of_1024_commits():
    now = play(*(put("k", n) for n in range(1, 1031)))
    record, _ = now.checkpoint(bytes(16), bytes(16), "", 0)
    assert record.recent == [an_id(seq) for seq in range(7, 1031)]
    again = now.rebased()
    assert again.commit_id(7) == an_id(7)
    assert again.commit_id(6) is None
    assert now.commit_id(6) == an_id(6)
    assert again.at(6).head == b""


def test_a_large_commit_goes_to_a_new_base_at_once(soon):
    start = play((put("a"), put("b"), note("b")), (Lock("a", HOLDER), gone("a")))
    for old in (start, start.rebased()):
        now = play((put("b", 2), *many(5)), since=old)
        assert not list(now.later())
        assert now.base.rows == len(now) == 6
        assert list(now) == ["b", *keys_of(many(5))]
        assert now.get("b") == an_entry(put("b", 2), 3, 1, metadata='{"a":1}')
        assert [now.get(key).order for key in keys_of(many(5))] == [2, 3, 4, 5, 6]
        assert now.lock("a") == start.lock("a")
        assert (now.seq, now.head, now.commit_id(2)) == (3, an_id(3), an_id(2))
        assert now.listed("a") == start.listed("a")
        after = play(put("z"), since=now)
        assert after.get("z").order == 7
        assert list(after) == [*now, "z"]
        assert [list(after.at(seq)) for seq in (1, 2, 3)] == [["a", "b"], ["b"], list(now)]


@pytest.mark.parametrize(
    "changes",
    [
        many(4),
        (*many(4), put("i", place=b"inline")),
        (*many(4), Lock("k", HOLDER)),
        (*many(5), note("k00000")),
        (*many(4), put("k00000", 2)),
    ],
    ids=["few", "inline", "locking", "metadata", "twice"],
)
def test_any_other_commit_does_not(soon, changes):
    now = play(changes)
    assert now.base.rows == 0
    assert list(now.later())
    if len(changes) > 4:
        assert now.due_for_rebase()


def test_a_large_commit_waits_for_what_is_inline(soon):
    now = play(put("i", place=b"inline"), many(5))
    assert now.base.rows == 0
    assert list(now) == ["i", *keys_of(many(5))]
    deleted = play(put("i", place=b"inline"), gone("i"), many(5))
    assert deleted.base.rows == 0


def test_a_base_ends_before_the_first_inline_value():
    now = play(
        (put("a"), put("x")), (put("b"), note("a")), (put("c", place=b"in"), gone("x")), note("b")
    )
    again = now.rebased()
    assert list(again.base.keys(0, again.base.rows)) == ["a", "x", "b"]
    assert {key: entry.stamp.seq for key, entry in again.later()} == {"c": 3, "b": 4}
    assert told(again) == told(now)
    assert again.past == again.base.past + 3 == 4
    assert play(put("a", 2), since=again).get("a").order == 0
    assert play(put("n"), since=again).get("n").order == 4
    assert list(again.at(1)) == ["a", "x"]
    assert list(again.at(2)) == ["a", "x", "b"]
    assert told(again.rebased()) == told(now)


def test_the_base_of_an_older_state_has_nothing_to_do_with_later_inline_values():
    old = play(put("a"))
    play(put("b"), put("c", place=b"in"), since=old)
    again = old.rebased()
    assert not again._beyond_base
    assert list(again) == ["a"]


def test_where_inline_values_went_is_learnt_and_older_views_know_it_too():
    first = play(
        (put("a", place=b"one"), put("b", place=b"two")), (put("a", 2, b"three"), note("b"))
    )
    commits = [
        commit(1, put("a", place=Range(PACK, 0, 3)), put("b", place=Range(PACK, 3, 3))),
        commit(2, put("a", 2, 77), note("b")),
    ]
    old = first.at(1)
    first.relocate(commits)
    assert [item.place for item in first.listed("a")] == [Range(PACK, 0, 3), b"three"]
    assert [item.place for item in first.listed("b")] == [Range(PACK, 3, 3)] * 2
    assert old.get("a").place == Range(PACK, 0, 3)
    first.relocate([commit(2, put("a", 2, Range(OTHER, 0, 5)))])
    assert first.get("a").place == Range(OTHER, 0, 5)
    first.relocate([commit(2, put("a", 2, Range(PACK, 9, 9)), put("x"))])
    assert first.get("a").place == Range(OTHER, 0, 5)  # it isn't inline any more


def test_only_the_value_that_went_there_is_relocated():
    now = play(put("a", place=b"one"), put("a", 2, b"two"), gone("a", 3))
    other = replace(put("a", place=Range(PACK, 0, 3)), generation=bytes(16))
    now.relocate([commit(1, other), commit(3, put("a", place=PLACE))])
    assert [item.place for item in now.listed("a")[:2]] == [b"one", b"two"]
    now.relocate([commit(2, put("a", 2))])
    assert [item.place for item in now.listed("a")[:2]] == [b"one", PLACE]


def test_a_settled_state_is_apart_and_has_no_inline_values():
    now = play(put("a"), put("b", place=b"in"), note("b"))
    settled = now.settled([commit(2, put("b", place=Range(PACK, 0, 2)))])
    assert not list(settled.later())
    assert settled.base.rows == 2
    assert settled.get("b").place == Range(PACK, 0, 2)
    assert now.get("b").place == b"in"


def test_values_that_were_moved_are_found_elsewhere():
    now = play((put("a"), put("b", place=Range(OTHER, 3, 4)), Lock("a", HOLDER)), put("a", 2, 77))
    now = now.settled([])
    moved = now.moved({(PACK, 3): Range(OTHER, 100, 4)})
    assert [item.place for item in moved.listed("a")] == [Range(OTHER, 100, 4), 77]
    assert moved.get("b").place == Range(OTHER, 3, 4)
    assert told(moved)[0] == told(now)[0]
    assert [moved.commit_id(seq) for seq in (0, 1, 2)] == [None, an_id(1), an_id(2)]
    assert [item.place for item in now.listed("a")] == [PLACE, 77]
    assert list(moved.at(1)) == ["a", "b"]
    assert play(put("c"), since=moved).get("c").order == 2


# -- what is listed -------------------------------------------------------------------------


@pytest.mark.parametrize("base", [0, 1, 2, 3])
def test_changed_keys_are_those_of_later_commits(base):
    now = State.empty()
    for seq, step in enumerate([(put("a"), put("b")), put("c"), gone("b")], 1):
        now = play(step, since=now)
        now = now.rebased() if seq == base else now
    assert [sorted(set(now.changed(seq))) for seq in range(4)] == [
        list("abc"),
        list("bc"),
        ["b"],
        [],
    ]


def test_the_past_is_counted_at_the_most():
    now = play(put("a"), put("a", 2), gone("a", 3))
    assert now.past == 3
    assert now.rebased().past == 2
    assert play(put("a", 4), since=now.rebased()).past == 3


@pytest.mark.parametrize("base", [0, 3, 5])
def test_a_drop_takes_old_versions_off_the_list(base):
    now = State.empty()
    for seq in range(1, 6):
        now = play(put("k", seq), since=now)
        now = now.rebased() if seq == base else now
    for drop, gone_ in [(Drop(4, 2), 2), (Drop(5, 1), 4), (Drop(1, 1), 0), (Drop(5, 5), 0)]:
        assert now.droppable(drop) == bool(gone_)
        assert [(k, e.version) for k, e in now.dropping(drop)] == [
            ("k", n + 1) for n in range(gone_)
        ]
    after = play(Drop(4, 2), since=now)
    assert [item.version for item in after.listed("k")] == [3, 4, 5]
    assert (after.floor, after.seq, after.head) == (3, 6, an_id(6))
    assert len(now.listed("k")) == 5 or base != 0
    twice = play(Drop(2, 1), Drop(4, 1), since=after)
    assert twice.floor == 4
    assert play(Drop(2, 1), since=twice).floor == 4
    both = play((put("z"), Drop(4, 1)), since=now)
    assert [item.version for item in both.listed("k")] == [4, 5]
    assert "z" in both


def test_what_a_view_of_old_could_drop():
    now = play(*(put("k", seq) for seq in range(1, 5))).rebased()
    assert now.at(3).droppable(Drop(3, 1))
    assert not now.at(1).droppable(Drop(1, 1))


def test_what_is_forgotten_was_never_there():
    now = play((put("a"), put("b")), put("a", 2)).rebased()
    for old in (play(note("a", 2), since=now), play(put("a", 3, b"in"), since=now)):
        after = play((Forget("a"), put("c")), since=old)
        assert (list(after), len(after)) == (["b", "c"], 2)
        assert after.listed("a") == []
        assert after.version("a") == 0
        assert after.get("a") is None
        assert after.item("a") == Tombstone(0, stamp(4))
        assert "a" in after.known_keys()
        again = play(put("a"), since=after)
        assert (list(again), again.version("a")) == (["b", "c", "a"], 1)
        assert again.listed("a") == [an_entry(put("a"), 5, again.get("a").order)]


def test_a_forgotten_key_takes_its_inline_values_along():
    now = play(put("a", place=b"in"), (put("b", place=b"too"), Lock("a", HOLDER)), Forget("a"))
    assert [key for key, _ in now.later()] == ["b"]
    assert now.lock("a")
    assert list(now) == ["b"]


# -- checkpoints ----------------------------------------------------------------------------


def test_a_checkpoint_is_all_of_it():
    now = play((put("a"), put("b"), Lock("b", HOLDER)), gone("a"), put("a", 3), Drop(3, 1))
    now = play(Lock("x", HOLDER), since=now)
    record, data = now.checkpoint(b"d" * 16, b"i" * 16, "s:before", 4)
    assert replace(record, table=None) == Checkpoint(
        dictionary=b"d" * 16,
        incarnation=b"i" * 16,
        previous="s:before",
        seq=5,
        horizon=4,
        floor=3,
        next_order=3,
        recent=list(map(an_id, range(1, 6))),
        locks=[LockEntry("b", an_id(1), HOLDER), LockEntry("x", an_id(5), HOLDER)],
        table=None,
    )
    assert (record.table.rows, record.table.past) == (2, now.rebased().base.past)
    loaded = State.from_checkpoint(record, memoryview(b"".join(data)), "p")
    assert told(loaded) == told(now.rebased())
    assert loaded._count == 2
    assert [loaded.commit_id(seq) for seq in range(7)] == [now.commit_id(seq) for seq in range(7)]
    assert not loaded._beyond_base
    after = play(put("n"), since=loaded)
    assert (after.get("n").order, list(after)) == (3, ["b", "a", "n"])


def test_the_columns_of_a_checkpoint_are_made_by_whoever_runs_them():
    ran = []

    def run(work, items):
        ran.extend(items)
        return map(work, ran)

    play(put("a")).checkpoint(bytes(16), bytes(16), "", 0, run)
    assert ran


def test_the_checkpoint_of_a_view_has_the_orders_that_were_given_by_then():
    now = play(put("a"), put("b"), (put("c"), put("d")))
    for view, order in [(now.at(1), 1), (now.at(2), 2), (now, 4)]:
        assert view.checkpoint(bytes(16), bytes(16), "", 0)[0].next_order == order


def test_a_checkpoint_has_no_inline_values():
    with pytest.raises(AssertionError, match="inline values in a checkpoint"):
        play(put("a", place=b"in")).checkpoint(bytes(16), bytes(16), "", 0)


def test_the_checkpoint_of_nothing_has_no_head():
    record, data = State.empty().checkpoint(bytes(16), bytes(16), "", 0)
    loaded = State.from_checkpoint(record, memoryview(b"".join(data)), "p")
    assert told(loaded) == told(State.empty())


def test_a_checkpoint_that_can_not_be_is_refused_by_its_path():
    record, data = play(put("a")).checkpoint(bytes(16), bytes(16), "", 0)
    table = replace(record.table, columns=record.table.columns[:-1])
    with pytest.raises(CorruptBlobError) as caught:
        State.from_checkpoint(replace(record, table=table), memoryview(b"".join(data)), "the/blob")
    assert caught.value.blob == "the/blob"
    assert records.size(record)
