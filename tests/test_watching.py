"""Watching: every change once, in the order of the commits, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from following import FAST, fill, make_small, past, told
from remotedict import HistoryGapError, UnknownCommitError
from remotedict.engine import upkeep
from remotedict.pure import plan

if TYPE_CHECKING:
    from conftest import Shop
    from faults import World
    from remotedict import RemoteDict


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits at which a few commits roll over, merge, and make checkpoints with their logs."""
    make_small(monkeypatch)


# -- what an event tells --------------------------------------------------------------------


def test_every_kind_of_change_is_told_in_order(shop: Shop) -> None:
    begun = datetime.now(UTC)
    d = shop.open(author="ann")
    d["k"] = 1
    d["k"] = 2
    d.metadata["k"] = {"unit": "m"}
    del d["k"]
    d.lock_item("k")
    d.unlock_item("k")
    d.put("k", 3, version=4, metadata={"unit": "s"})
    d.copy_item("k", "l")
    d.revert("k", 1)
    d.pop("l")
    events = past(shop.open())
    assert told(events) == [
        ("set", "k", 1),
        ("set", "k", 2),
        ("metadata", "k", 2),
        ("delete", "k", 3),
        ("lock", "k", None),
        ("unlock", "k", None),
        ("set", "k", 4),
        ("metadata", "k", 4),
        ("set", "l", 1),
        ("metadata", "l", 1),
        ("set", "k", 5),
        ("delete", "l", 2),
    ]
    assert [(e.seq, e.position) for e in events] == [
        *((seq, 0) for seq in range(1, 7)),
        *((7, 0), (7, 1), (8, 0), (8, 1), (9, 0), (10, 0)),
    ]
    assert {e.author for e in events} == {"ann"}
    assert {e.comment for e in events} == {""}
    second = timedelta(seconds=1)
    assert all(begun - second <= e.time <= datetime.now(UTC) + second for e in events)
    assert [bool(e.size) for e in events] == [e.kind == "set" for e in events]


def test_a_commit_is_told_with_its_author_and_comment_and_id(shop: Shop) -> None:
    d = shop.open(author="ann")
    d["old"] = 0
    with d.commit(comment="why", author="bob") as made:
        d["new"] = 1
        del d["old"]
        d.metadata["new"] = {"a": 1}
    d.run(lambda t: t.update(x=1), comment="run")
    old, *those, last = past(d)
    assert told(those) == [("set", "new", 1), ("delete", "old", 2), ("metadata", "new", 1)]
    assert {(e.author, e.comment, e.commit, e.seq) for e in those} == {
        ("bob", "why", made.id, made.seq)
    }
    assert [e.position for e in those] == [0, 1, 2]
    assert len({e.time for e in those}) == 1
    assert (old.author, old.comment, old.seq) == ("ann", "", 1)
    assert (last.author, last.comment, last.seq) == ("ann", "run", 3)


def test_what_a_watch_tells_is_what_the_history_lists(shop: Shop) -> None:
    d = shop.open()
    d.update({f"k{n}": n for n in range(5)})
    d.pop("k3")
    d.metadata["k1"] = {"a": 1}
    with d.lock("k2"):
        d["k2"] = 4
    listed = d.history()[::-1].drop(columns=["version", "size"]).to_dict("records")
    events = [event._asdict() for event in past(d)]
    for event in events:
        del event["position"], event["version"], event["size"]
    assert events == listed


def test_a_bulk_write_is_told_in_the_order_of_its_changes(shop: Shop) -> None:
    d = shop.open()
    keys = [f"k{n}" for n in random.Random(1).sample(range(300), 300)]
    d[keys] = list(range(300))
    d[keys[::-1]] = list(range(300))
    events = past(d)
    assert [e.key for e in events] == [*keys, *reversed(keys)]
    assert [e.seq for e in events] == [1] * 300 + [2] * 300
    assert [e.position for e in events] == [*range(300), *range(300)]


def test_what_an_abandoned_write_would_have_done_is_not_told(shop: Shop) -> None:
    d = shop.open()
    with contextlib.suppress(ZeroDivisionError), d.commit():
        d["k"] = 1 / 0
    with contextlib.suppress(ZeroDivisionError), d.transaction() as t:
        t["k"] = 1
        t["l"] = 1 / 0
    d["k"] = 1
    d.metadata["k"] = {"a": 1}
    d.metadata["k"] = {"a": 1}  # no change
    with d.commit():
        pass
    assert told(past(d)) == [("set", "k", 1), ("metadata", "k", 1)]


def test_a_key_that_is_forgotten_is_told_to_be_and_its_past_is_told_no_more(shop: Shop) -> None:
    d = shop.open(history="all")
    w = shop.open().watch(poll=FAST)
    d.update(a=1, b=2, c=3)
    events = [next(w) for _ in range(3)]
    d["b"] = 4
    events.append(next(w))
    d.forget("b")
    assert told([next(w)]) == [("forget", "b", None)]
    d["b"] = 5
    last = next(w)
    assert told([last]) == [("set", "b", 1)]
    left = past(shop.open())
    assert told(left) == [("set", "a", 1), ("set", "c", 1), ("forget", "b", None), ("set", "b", 1)]
    assert [event.key for event in past(d, events[0])] == ["c", "b", "b"]
    assert [event.key for event in past(d, events[1])] == ["c", "b", "b"]
    assert [event.key for event in past(d, events[2])] == ["b", "b"]
    assert [event.key for event in past(d, events[3])] == ["b", "b"]


# -- since ----------------------------------------------------------------------------------


def test_a_watch_begins_after_the_commit_that_is_named_in_any_way(shop: Shop) -> None:
    d = shop.open()
    moments, snapshots = [datetime.now(UTC) - timedelta(seconds=1)], []
    for n in range(5):
        d[f"k{n}"] = n
        snapshots.append(d.snapshot())
    events = past(d)
    keys = [e.key for e in events]
    assert keys == [f"k{n}" for n in range(5)]
    for n, event in enumerate(events):
        other = shop.open()
        for since in (n + 1, event.commit, event, snapshots[n], snapshots[n].commit):
            assert [e.key for e in past(other, since)] == keys[n + 1 :], (n, since)
        # Several commits may be of one moment.
        later = [e.key for e in events if e.time > event.time]
        assert [e.key for e in past(other, event.time)] == later
        assert [e.key for e in past(other, event.time.isoformat())] == later
        assert [e.key for e in past(other, event.time.astimezone().replace(tzinfo=None))] == later
    assert [e.key for e in past(d, moments[0])] == keys
    assert past(d, None) == []


def test_a_watch_of_an_empty_dictionary_sees_its_first_commit(shop: Shop) -> None:
    d = shop.open()
    watches = [d.watch(since=since, poll=FAST) for since in (None, 0, d.snapshot())]
    watches.append(d.watch(since=datetime.now(UTC), poll=FAST))
    shop.open()["k"] = 1
    for w in watches:
        assert told([next(w)]) == [("set", "k", 1)]


def test_an_event_in_the_middle_of_a_bulk_write_is_resumed_exactly_after(shop: Shop) -> None:
    d = shop.open()
    d["before"] = 0
    d.update({f"k{n}": n for n in range(6)})
    with d.commit():
        d["k1"] = 7
        del d["k2"]
    d["after"] = 0
    events = past(d)
    assert len(events) == 10
    for n, event in enumerate(events):
        assert past(d, since=event) == events[n + 1 :]


@pytest.mark.parametrize("since", [-1, 3, "f" * 32, "nonsense", "", "1e5", "2020-13-01"])
def test_a_commit_that_there_is_not_is_refused(since: Any, shop: Shop) -> None:
    d = shop.open()
    d["k"] = 1
    d["k"] = 2
    with pytest.raises(UnknownCommitError) as refused:
        d.watch(since=since)
    assert refused.value.commit == since


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"since": True}, TypeError),
        ({"since": 0.0}, TypeError),
        ({"since": 1.5}, TypeError),
        ({"since": b"x"}, TypeError),
        ({"since": []}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"timeout": True}, TypeError),
        ({"poll": 1}, TypeError),
        ({"poll": (1,)}, TypeError),
        ({"poll": (1, 2, 3)}, TypeError),
        ({"poll": ("a", "b")}, TypeError),
        ({"poll": "12"}, TypeError),
        ({"poll": None}, TypeError),
        ({"poll": (0, 1)}, ValueError),
        ({"poll": (2, 1)}, ValueError),
        ({"poll": (-1, 1)}, ValueError),
        ({"poll": (1, float("inf"))}, ValueError),
        ({"poll": (float("nan"), 1)}, ValueError),
    ],
    ids=str,
)
def test_arguments_that_make_no_sense_are_refused_at_once(
    wrong: Any, error: type[Exception], world: World
) -> None:
    d = world.open()
    d["k"] = 1
    [name] = wrong
    with pytest.raises(error, match="moment" if name == "since" else name):
        d.watch(**wrong)


# -- rollovers, merges, checkpoints, logs ---------------------------------------------------


class Changes:
    """Random writes, and what a watch must tell of them."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.versions: dict[str, int] = {}
        self.there: list[str] = []
        self.expected: list[tuple[str, str, int | None]] = []
        self.count = itertools.count()

    def set(self, key: str) -> int:
        self.versions[key] = self.versions.get(key, 0) + 1
        self.expected.append(("set", key, self.versions[key]))
        if key not in self.there:
            self.there.append(key)
        return next(self.count)

    def delete(self) -> str:
        key = self.there.pop(self.rng.randrange(len(self.there)))
        self.versions[key] += 1
        self.expected.append(("delete", key, self.versions[key]))
        return key

    def make(self, d: RemoteDict) -> None:
        kind, keys = self.rng.randrange(8), [f"k{n}" for n in self.rng.sample(range(12), 4)]
        if kind == 0:
            d[keys] = [self.set(key) for key in keys]
        elif kind == 1 and self.there:
            del d[self.delete()]
        elif kind == 2 and self.there:
            key = self.rng.choice(self.there)
            self.expected.append(("metadata", key, self.versions[key]))
            d.metadata[key] = {"n": next(self.count)}
        elif kind == 3 and self.there:
            with d.commit():
                del d[self.delete()]
                new = f"new-{next(self.count)}"
                d[new] = self.set(new)
        else:
            d[keys[0]] = bytes(self.set(keys[0]) % 900)


STEPS = {"memory": 200, "local": 80, "azure": 40}


def test_none_is_missed_or_told_twice_however_the_index_is_laid_out(
    shop: Shop, small: None
) -> None:
    # What is dropped, of one of these, makes commits that tell nothing.
    history = "all" if shop.kind == "local" else "none"
    writers = [shop.open(history=history, retention=0), shop.open(retention=0)]
    changes, rng = Changes(seed=1), random.Random(2)
    close = shop.open().watch(poll=FAST)
    lagging = shop.open().watch(poll=FAST)
    slow = shop.open().watch(poll=FAST)
    now, then = [], []
    for _ in range(STEPS[shop.kind]):
        changes.make(rng.choice(writers))
        now += [next(close) for _ in changes.expected[len(now) :]]
        if rng.random() < 0.05:
            then += [next(lagging) for _ in changes.expected[len(then) :]]
            for writer in writers:
                writer._engine.upkeep.finish()
            since = rng.randrange(len(now))
            with shop.open() as fresh:
                assert past(fresh) == now
                assert past(fresh, since=now[since]) == now[since + 1 :]
    then += [next(lagging) for _ in changes.expected[len(then) :]]
    assert told(now) == changes.expected
    assert then == [next(slow) for _ in now] == now
    seqs = [(e.seq, e.position) for e in now]
    assert seqs == sorted(set(seqs))
    index = writers[0]._engine.now().index
    assert index.log, "too few commits: this has shown nothing"


def test_commits_are_told_once_while_others_write_and_tidy_up(shop: Shop, small: None) -> None:
    each = STEPS[shop.kind] // 4

    def write(me: int) -> None:
        with shop.open() as d:
            for n in range(each):
                d[f"{me}-{n % 5}"] = n

    w = shop.open().watch(poll=FAST)
    writers = [threading.Thread(target=write, args=(me,)) for me in range(3)]
    for writer in writers:
        writer.start()
    events = [next(w) for _ in range(3 * each)]
    for writer in writers:
        writer.join()
    assert [e.seq for e in events] == sorted({e.seq for e in events})
    for me in range(3):
        mine = [(e.key, e.version) for e in events if e.key.startswith(f"{me}-")]
        assert mine == [(f"{me}-{n % 5}", n // 5 + 1) for n in range(each)]
    assert past(shop.open()) == events


def test_what_is_merged_away_under_a_slow_watch_is_read_where_it_went(
    world: World, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "CHECKPOINT_MIN", 10**9)
    monkeypatch.setattr(plan, "FAN", 10**9)  # merges are made here, each at the worst moment
    monkeypatch.setattr("remotedict.engine.commits._AT_ONCE", 1)
    d = world.open(inline_bytes=0)
    for n in range(300):
        d[f"k{n}"] = n
    engine = d._engine
    ends = {ref.last for ref in engine.index.known.index.segments}
    events, merged = [], 0
    for event in d.watch(since=0, timeout=0):
        events.append(event.key)
        index = engine.index.known.index
        refs = [ref for ref in index.segments if ref.first > event.seq][:2]
        if event.seq in ends and len(refs) == 2:
            segments = [engine.upkeep._reader.segment(ref, index) for ref in refs]
            new = plan.merge(index, refs, segments, world.runtime.uuid())
            world.store.put(d._engine.layout.path(new.ref.blob), new.blob)
            assert engine.swap(
                lambda index, refs=refs, new=new: plan.swap_merged(index, refs, new.ref)
            )
            world.store.delete(engine.layout.path(ref.blob) for ref in refs)
            merged += 1
    assert events == [f"k{n}" for n in range(300)]
    assert merged > 10, "too few: this has shown nothing"


# -- what is no longer kept -----------------------------------------------------------------


@pytest.fixture
def trimmed(world: World, small: None) -> tuple[RemoteDict, int]:
    """A dictionary whose oldest commits are no longer kept, and the oldest one that is."""
    d = world.open()
    fill(world, d, 120)
    first = d._engine.now().index.log.first
    assert first > 10
    return d, first


def test_a_log_keeps_the_commits_of_a_day(trimmed: tuple[RemoteDict, int], world: World) -> None:
    d, first = trimmed
    kept = past(d, since=first - 1)
    assert [e.seq for e in kept] == [e.seq for e in kept if e.seq >= first]
    day = datetime.fromtimestamp(world.clock.now, UTC) - timedelta(days=1)
    assert kept[0].time < day


def test_a_watch_since_what_is_no_longer_kept_is_refused(
    trimmed: tuple[RemoteDict, int], world: World
) -> None:
    d, first = trimmed
    for since in range(first - 1):
        with pytest.raises(HistoryGapError) as refused:
            d.watch(since=since)
        assert (refused.value.since, refused.value.first) == (since, first)
        assert isinstance(refused.value, LookupError)
        assert "history='all'" in str(refused.value)
    longago = datetime.fromtimestamp(world.clock.now, UTC) - timedelta(days=6)
    with pytest.raises(HistoryGapError):
        d.watch(since=longago)
    events = past(d, since=refused.value.first - 1)
    assert events[0].seq == first
    assert past(world.open(), since=events[0]) == events[1:]


def test_an_event_that_is_no_longer_kept_is_a_gap_and_the_newest_is_kept(
    world: World, small: None
) -> None:
    d = world.open()
    w = d.watch()
    fill(world, d, 3)
    old = next(w)
    fill(world, d, 100)
    with pytest.raises(HistoryGapError):
        d.watch(since=old)
    world.clock.now += 30 * 86_400
    fill(world, d, 1)
    newest = past(d, since=d.snapshot().seq - 1)[-1]
    world.clock.now += 30 * 86_400
    assert past(d, since=newest) == []


def test_a_watch_that_slept_too_long_is_told_of_the_gap(world: World, small: None) -> None:
    d = world.open()
    d["k"] = 0
    w = world.open().watch(since=0)
    assert next(w).seq == 1
    fill(world, d, 120)
    with pytest.raises(HistoryGapError) as refused:
        next(w)
    assert refused.value.since == 1
    assert past(d, since=refused.value.first - 1)


def test_a_watch_that_is_overtaken_by_the_trimming_is_told_of_the_gap(
    world: World, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remotedict.engine.commits._AT_ONCE", 1)
    d = world.open()
    fill(world, d, 20)
    w = world.open().watch(since=0)
    seen = [next(w) for _ in range(3)]
    fill(world, d, 120)
    index = d._engine.now().index
    named = {ref.blob for ref in [*d._engine.commits.log(index), *index.segments]}
    segments = world.store.list("Index/f/segments/")
    paths = {d._engine.layout.path(blob) for blob in named}
    world.store.delete([blob.name for blob in segments if blob.name not in paths])
    with pytest.raises(HistoryGapError) as refused:
        seen += w
    assert [e.seq for e in seen] == list(range(1, len(seen) + 1))
    assert refused.value.since == len(seen)
    assert refused.value.first == index.log.first


def test_with_all_history_nothing_is_ever_trimmed(
    world: World, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "LOG_SECONDS", 0.0)
    d = world.open(history="all", retention=0)
    fill(world, d, 200)
    events = past(world.open())
    assert [e.seq for e in events] == list(range(1, 201))
    assert told(events) == [("set", f"k{n % 5}", n // 5 + 1) for n in range(200)]
