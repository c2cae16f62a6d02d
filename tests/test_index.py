"""The index blob as a handle follows it: shared checks, what is lost, and what another one becomes."""

from __future__ import annotations

import random
import threading

import pytest
from msgspec.structs import replace

from faults import INDEX
from remotedict import AccessDeniedError, CorruptBlobError, DictionaryChangedError
from remotedict.backend import BlobNotFound
from remotedict.engine import index as engine_index
from remotedict.pure import plan, state
from remotedict.pure.records import Index, decode, encode

NOISE = random.Random(0).randbytes(300_000)


@pytest.fixture
def small(monkeypatch):
    """Let few commits roll, merge and make checkpoints."""
    monkeypatch.setattr(plan, "INDEX_BYTES", 2048)
    monkeypatch.setattr(plan, "CHECKPOINT_MIN", 8192)


@pytest.fixture
def a(world):
    """A handle that knows its dictionary."""
    a = world.open()
    a["begin"] = 0
    return a


def in_a_thread(act):
    """Do something in another thread, and wait for it."""
    thread = threading.Thread(target=act)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


def rewrite(world, **fields):
    """Let somebody put another index in its place."""
    index, _ = decode(world.store.get(INDEX).data, Index, INDEX)
    world.store.put(INDEX, encode(replace(index, **fields)))


def contents(world):
    """Return all blobs of the store."""
    return {info.name: world.store.get(info.name).data for info in world.store.list("")}


def restore(world, blobs):
    """Let somebody bring a backup back."""
    world.store.delete(contents(world))
    for path, data in blobs.items():
        world.store.put(path, data)


# -- checks ---------------------------------------------------------------------------------


def test_a_check_begun_after_the_ticket_need_not_be_made_again(world, a):
    index, backend = a._engine.index, world.of(a)
    ticket = index.ticket()
    newest = index.now()
    sent = len(backend.sent("get", INDEX))
    assert index.since(ticket) is newest
    assert len(backend.sent("get", INDEX)) == sent
    index.since(index.ticket())
    assert len(backend.sent("get", INDEX)) == sent + 1


def test_what_was_current_a_short_while_ago_will_do_for_who_said_so(world, a):
    b = world.open(max_staleness=10)
    assert list(b) == ["begin"]
    sent = len(world.of(b).sent("get", INDEX))
    a["news"] = 1
    world.clock.now += 9
    assert list(b) == ["begin"]
    assert len(world.of(b).sent("get", INDEX)) == sent
    world.clock.now += 1
    assert list(b) == ["begin", "news"]
    assert len(world.of(b).sent("get", INDEX)) == sent + 1


def test_a_view_of_the_past_is_one_of_the_same_dictionary(world, a):
    a["k"] = 1
    known = a._engine.index.known
    past = known.as_of(known.state.at(1))
    assert (past.index, past.etag, past.settled) == (known.index, known.etag, known.settled)
    assert (list(past.state), list(known.state)) == (["begin"], ["begin", "k"])


class Slow:
    """Lets the next so many checks wait at the store."""

    def __init__(self, backend, count):
        self.go = threading.Event()
        self.arrived = threading.Semaphore(0)
        for _ in range(count):
            backend.at("get", INDEX, self)

    def __call__(self, act):
        self.arrived.release()
        assert self.go.wait(30)
        return act()


def checks(a, count):
    """Begin checks of so many threads; return these and what each has found."""
    found = []

    def check():
        try:
            found.append(a._engine.index.now())
        except AccessDeniedError as exc:
            found.append(exc)

    threads = [threading.Thread(target=check) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, found


@pytest.mark.parametrize("denied", [False, True])
def test_checks_beyond_eight_wait_for_one_that_is_yet_to_be_sent(world, a, monkeypatch, denied):
    index, backend, joined = a._engine.index, world.of(a), threading.Semaphore(0)
    slow = Slow(backend, 8)
    early, found_early = checks(a, 8)
    for _ in early:
        assert slow.arrived.acquire(timeout=30)
    sent = len(backend.sent("get", INDEX))

    join = index._join
    monkeypatch.setattr(index, "_join", lambda: (join(), joined.release())[0])
    late, found = checks(a, 5)
    for _ in late:
        assert joined.acquire(timeout=30)

    def deny(_act):
        raise AccessDeniedError("the key was rotated just now")

    world.open()["news"] = 1  # before the check that they share is sent
    if denied:
        backend.at("get", INDEX, deny)
    slow.go.set()
    for thread in (*early, *late):
        thread.join(30)
    assert len(found_early) == 8
    assert len(found) == 5
    assert len({id(one) for one in found}) == 1
    if denied:
        assert isinstance(found[0], AccessDeniedError)
    else:
        assert "news" in found[0].state
    assert len(backend.sent("get", INDEX)) == sent + 1
    slow = Slow(backend, 8)  # and all places are free again
    early, _ = checks(a, 8)
    for _ in early:
        assert slow.arrived.acquire(timeout=30)
    slow.go.set()
    for thread in early:
        thread.join(30)
    assert a["news"] == 1


# -- an index that is gone ------------------------------------------------------------------


def test_an_index_that_is_lost_is_said_and_no_empty_dictionary_begun(world, a):
    a["large"] = NOISE
    world.store.delete([INDEX])
    with pytest.raises(
        CorruptBlobError, match="it is gone, though blobs of the dictionary"
    ) as lost:
        len(world.open())
    assert lost.value.blob == INDEX
    with pytest.raises(DictionaryChangedError, match="is gone: the dictionary was deleted"):
        len(a)
    assert a.repair()
    assert a["begin"] == 0
    a["again"] = 1
    assert world.open()["again"] == 1


def test_an_index_that_is_made_after_the_first_look_is_not_lost(world, monkeypatch):
    other, get = world.open(), world.store.get

    def too_early(path, **options):
        monkeypatch.setattr(world.store, "get", get)
        other["large"] = NOISE
        raise BlobNotFound(path)

    monkeypatch.setattr(world.store, "get", too_early)
    assert list(world.open()) == ["large"]


def test_who_may_not_list_blobs_begins_a_dictionary_all_the_same(world, monkeypatch):
    def denied(_prefix):
        raise AccessDeniedError("this SAS may not list")

    monkeypatch.setattr(world.store, "list", denied)
    a = world.open()
    assert len(a) == 0
    a["k"] = 1
    assert world.open()["k"] == 1


# -- an index that has moved on -------------------------------------------------------------


def segments(a):
    return [a._engine.layout.path(ref.blob) for ref in a._engine.index.known.index.segments]


def test_a_segment_that_was_merged_away_meanwhile_is_not_missed(world, a, small):
    b = world.open()
    for n in range(40):
        a[f"k{n}"] = n

    def merged_away(act):
        a["newest"] = 1
        raise BlobNotFound(segments(a)[0])

    world.of(b).at("get", segments(a)[0], merged_away)
    assert b["newest"] == 1
    assert len(b) == 42


def test_a_segment_that_is_not_there_is_named(world, a, small):
    for n in range(40):
        a[f"k{n}"] = n
    gone = segments(a)[0]
    world.store.delete([gone])
    with pytest.raises(CorruptBlobError, match="the index names it, but it isn't there") as caught:
        len(world.open())
    assert caught.value.blob == gone


def test_what_another_thread_learns_meanwhile_is_built_upon(world, a, small, monkeypatch):
    b = world.open()
    assert len(b) == 1
    for n in range(40):
        a[f"k{n}"] = n
    reader = b._engine.index.reader
    wanted = reader.wanted

    def slowly(*indexes):
        monkeypatch.setattr(reader, "wanted", wanted)
        in_a_thread(lambda: len(b))
        return wanted(*indexes)

    monkeypatch.setattr(reader, "wanted", slowly)
    a["newest"] = 1
    assert sorted(b) == sorted(["begin", "newest", *(f"k{n}" for n in range(40))])
    assert b._engine.index.known.state.commit_id(1)


def test_a_commit_too_large_for_the_tail_is_settled_at_once(world, a, small):
    with a.commit():
        for n in range(40):
            a[f"k{n}"] = bytes(60)
    known = a._engine.index.known
    assert known.index.settled == known.settled.seq == known.state.seq == 2
    assert len(known.settled) == 41
    assert all(a[f"k{n}"] == bytes(60) for n in range(40))


# -- another index --------------------------------------------------------------------------


def test_a_dictionary_that_was_deleted_and_made_anew_is_another_one(world, a):
    world.store.delete(contents(world))
    world.open()["k"] = 1
    with pytest.raises(DictionaryChangedError, match="'f' was deleted and made anew since"):
        a["k"]


def test_a_dictionary_that_was_restored_from_a_copy_is_another_one(world, a):
    rewrite(world, incarnation=b"x" * 16)
    with pytest.raises(DictionaryChangedError, match="was restored from a copy since"):
        a["k"]


def test_another_index_of_the_same_revision_and_commits_is_another_one(world, a):
    rewrite(world, moved=1)
    with pytest.raises(DictionaryChangedError, match="has another revision 2 since"):
        a["k"]


def test_a_branch_that_is_longer_and_has_a_checkpoint_is_another_one(world, a, small):
    old = contents(world)
    a["k"] = 1
    known = a._engine.index.known
    restore(world, old)
    other = world.open()
    for n in range(200):
        other[f"k{n}"] = n
        other._engine.upkeep.finish()
    newest = other._engine.index.known.index
    assert a._engine.index.reader.wanted(known.index, newest) is None
    with pytest.raises(DictionaryChangedError, match="has another commit 2 since"):
        len(a)


def test_a_branch_that_was_noticed_stays_another_one_when_nothing_tells_it_any_more(
    world, a, small, monkeypatch
):
    """Seed 246189: the ids of the commits since are no longer listed."""
    monkeypatch.setattr(state, "RECENT_IDS", 6)
    old = contents(world)
    a["k"] = 1
    restore(world, old)
    with pytest.raises(DictionaryChangedError, match="went back"):
        len(a)
    other = world.open()
    for n in range(200):
        other[f"k{n}"] = n
        other._engine.upkeep.finish()
    with pytest.raises(DictionaryChangedError, match="went back"):
        len(a)
    with pytest.raises(DictionaryChangedError, match="went back"):
        a["k"] = 2
    assert len(world.open()) == 201


def test_an_etag_is_not_taken_for_what_another_thread_has_learnt_meanwhile(world, a, monkeypatch):
    b = world.open()
    assert len(b) == 1
    world.store.put(INDEX, world.store.get(INDEX).data)
    encoded = engine_index.encode

    def slowly(index):
        monkeypatch.undo()
        in_a_thread(lambda: b.__setitem__("k", 1))
        return encoded(index)

    monkeypatch.setattr(engine_index, "encode", slowly)
    assert sorted(b) == ["begin", "k"]
    known = b._engine.index.known
    assert known.etag == world.store.get(INDEX).etag
    assert known.index.revision == 3


def test_an_answer_older_than_what_was_committed_meanwhile_changes_nothing(world, a):
    b = world.open()
    assert len(b) == 1
    a["k"] = 1

    def late(act):
        answer = act()
        b["mine"] = 1
        return answer

    world.of(b).at("get", INDEX, late)
    assert sorted(b) == ["begin", "k", "mine"]
