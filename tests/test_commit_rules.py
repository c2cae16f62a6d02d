"""The rules of committing, each with the interleaving that breaks it when the rule is dropped.

The numbers are those of the list in docs/design.md.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
from msgspec.structs import replace

from faults import INDEX, after, lose_reply, lose_request, send_twice
from remotedict import (
    AccessDeniedError,
    DictionaryChangedError,
    FormatVersionError,
    KeyNotFoundError,
    StoreUnavailableError,
    UnknownOutcomeError,
)
from remotedict.backend import TransientError
from remotedict.engine.committer import Request, Swap, _InDoubtError, _own
from remotedict.pure import plan
from remotedict.pure.records import (
    CheckpointRef,
    Commit,
    Facts,
    Index,
    LogRef,
    Segment,
    Set,
    decode,
)


@pytest.fixture
def small(monkeypatch):
    """Let few commits roll, merge and make checkpoints."""
    monkeypatch.setattr(plan, "INDEX_BYTES", 2048)
    monkeypatch.setattr(plan, "CHECKPOINT_MIN", 8192)


def version(client, key):
    return client._engine.known().state.version(key)


def pair(world, **options):
    """Return two clients that know of each other's first commit."""
    a, b = world.open(**options), world.open(**options)
    a["begin"] = 0
    assert b["begin"] == 0
    return a, b


# Rule 1: the look after a lost reply covers every commit since the base.


@pytest.mark.parametrize("others", [0, 1, 30, 300], ids=["none", "tail", "segments", "checkpoint"])
def test_a_commit_whose_reply_is_lost_is_found_wherever_it_went(world, small, others):
    a, b = pair(world)

    def commits_of_others(act):
        result = act()
        for n in range(others):
            b[f"b{n}"] = n
            b._engine.upkeep.finish()
        assert result
        raise TransientError("lost")

    world.of(a).at("put", INDEX, commits_of_others)
    a["k"] = "mine"
    assert world.open()["k"] == "mine"
    assert version(b, "k") == 1  # not applied again
    if others == 300:
        assert b._engine.known().index.checkpoint is not None


def test_a_412_may_be_ones_own_first_put_that_won(world):
    a, _ = pair(world)
    world.of(a).at("put", INDEX, send_twice)
    a["k"] = 1
    assert version(a, "k") == 1


def test_a_412_that_cant_be_looked_up_leaves_the_outcome_unknown(world):
    a, b = pair(world)

    def denied(act):
        raise AccessDeniedError("the key was rotated just now")

    world.of(a).at("put", INDEX, send_twice)
    world.of(a).at("get", INDEX, denied)
    with pytest.raises(UnknownOutcomeError):
        a["k"] = 1
    assert b["k"] == 1


def test_a_lost_reply_never_applies_twice(world):
    a, b = pair(world)
    a["n"] = 0
    for n in range(1, 6):
        world.of(a).at("put", INDEX, lose_reply)
        a["n"] = n
    assert b["n"] == 5
    assert version(b, "n") == 6


def test_when_anothers_commit_stands_where_mine_would_mine_is_made_anew(world):
    a, b = pair(world)

    def lost_to_another(act):
        b["k"] = "theirs"
        with pytest.raises(Exception, match="index"):
            act()
        raise TransientError("and the 412 was lost as well")

    world.of(a).at("put", INDEX, lost_to_another)
    a["k"] = "mine"
    assert b["k"] == "mine"
    assert version(b, "k") == 2


def test_a_lost_reply_of_a_bulk_of_threads_is_found_for_each_of_them(world):
    a, b = pair(world)
    world.of(a).at("put", INDEX, lose_reply)
    threads = [threading.Thread(target=a.__setitem__, args=(f"t{n}", n)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [b[f"t{n}"] for n in range(8)] == list(range(8))
    assert {version(b, f"t{n}") for n in range(8)} == {1}


# Rule 2: while a put may still be under way the same change keeps the same commit id; out of
# time, the outcome is unknown and says so.


def test_a_late_request_and_its_repetition_are_one_commit(world):
    a, b = pair(world)
    late = []

    def delayed(act):
        late.append(act)
        raise TransientError("no answer yet")

    world.of(a).at("put", INDEX, delayed)
    a["k"] = 1
    first, second = world.of(a).sent("put", INDEX)[-2:]
    assert first.data == second.data
    with pytest.raises(Exception, match="index"):
        late[0]()  # it arrives after all, and finds its etag gone
    assert version(b, "k") == 1


def test_a_late_request_that_wins_is_not_committed_a_second_time(world):
    a, b = pair(world)
    late = []

    def delayed(act):
        late.append(act)
        raise TransientError("no answer yet")

    world.of(a).at("put", INDEX, delayed)
    # The look finds the old etag; then, just before the same is put again, the first arrives.
    world.of(a).at("put", INDEX, after(lambda: late[0]()))  # noqa: PLW0108 - not there yet
    a["k"] = 1
    assert version(b, "k") == 1


def test_out_of_time_the_outcome_is_unknown_and_never_failed(world):
    a, b = pair(world, timeout=5)

    def cut_off(act):
        act()
        for _ in range(100):
            world.of(a).at("get", INDEX, lose_request)
        raise TransientError("lost")

    world.of(a).at("put", INDEX, cut_off)
    with pytest.raises(UnknownOutcomeError) as caught:
        a["k"] = 1
    assert caught.value.commit_id == b._engine.known().state.head.hex()  # it did apply
    world.of(a).steps.clear()
    assert a["k"] == 1
    a["k"] = 2
    assert b["k"] == 2


def test_a_change_of_policy_that_is_cut_off_has_an_unknown_outcome_too(world):
    a, b = pair(world, timeout=5)

    def cut_off(act):
        act()
        for _ in range(100):
            world.of(a).at("get", INDEX, lose_request)
        raise TransientError("lost")

    world.of(a).at("put", INDEX, cut_off)
    with pytest.raises(UnknownOutcomeError, match="whether the change was applied") as caught:
        a.history_policy = 7
    assert caught.value.commit_id is None
    assert b.history_policy == 7  # it did apply
    world.of(a).steps.clear()
    a.history_policy = 7
    assert b.history_policy == 7


def test_a_refusal_in_a_round_of_unknown_outcome_is_said_to_have_written_nothing(world):
    a, _ = pair(world, timeout=5)
    a["there"] = 1
    both_wait, go, errors = threading.Event(), threading.Event(), {}

    def hold_up(act):
        both_wait.set()
        assert go.wait(30)
        return act()

    def run(name, write):
        try:
            write()
        except Exception as exc:  # noqa: BLE001 - which one is the point
            errors[name] = exc

    def cut_off(act):
        for _ in range(100):
            world.of(a).at("get", INDEX, lose_request)
        return lose_reply(act)

    # One commit holds up the line; behind it a refusal and a commit wait for the same round.
    world.of(a).at("put", INDEX, hold_up)
    jobs = {
        "first": lambda: a.__setitem__("first", 1),
        "refused": lambda: a.__delitem__("missing"),
        "unknown": lambda: a.__setitem__("k", 1),
    }
    threads = [threading.Thread(target=run, args=job) for job in jobs.items()]
    threads[0].start()
    assert both_wait.wait(30)
    for thread in threads[1:]:
        thread.start()
    while len(a._engine.committer._queue) < 2:
        pass
    world.of(a).at("put", INDEX, cut_off)
    go.set()
    for thread in threads:
        thread.join(30)
    world.of(a).steps.clear()
    assert type(errors["refused"]) is StoreUnavailableError
    assert type(errors["unknown"]) is UnknownOutcomeError
    assert a["k"] == 1


@pytest.mark.parametrize("kept", [True, False])
def test_a_commit_that_no_id_is_known_of_is_looked_up_in_the_log(world, small, monkeypatch, kept):
    monkeypatch.setattr("remotedict.pure.state.RECENT_IDS", 3)
    if not kept:
        monkeypatch.setattr("remotedict.engine.upkeep.LOG_SECONDS", -1)
    a, b = pair(world)

    def forgotten(act):
        act()
        for n in range(400):
            b[f"b{n}"] = n
            b._engine.upkeep.finish()
        raise TransientError("lost")

    world.of(a).at("put", INDEX, forgotten)
    if kept:
        a["k"] = 1
    else:
        with pytest.raises(UnknownOutcomeError):
            a["k"] = 1
    assert version(b, "k") == 1


# Rule 3: a refusal is given only on a state confirmed by a request sent during the call.


def test_a_key_that_another_machine_has_just_set_can_be_deleted(world):
    a, b = pair(world)
    assert "k" not in a
    b["k"] = 1
    del a["k"]  # a's own state says: missing
    assert "k" not in b


def test_a_lock_that_another_machine_has_just_released_refuses_nothing(world):
    a, b = pair(world)
    b.lock_item("k")
    assert not a.locks["k"].mine
    b.unlock_item("k")
    a["k"] = 1  # a's own state says: locked
    assert b["k"] == 1


def test_nothing_to_do_is_said_only_of_a_confirmed_state(world):
    a, b = pair(world)
    a.clear()
    b["k"] = 1
    a.clear()  # a's own state says: empty already
    assert len(b) == 0


# Rule 4: all keys of a bulk operation are judged on one state, and on each new state again.


def test_conditions_are_judged_again_on_each_new_state(world):
    a, b = pair(world)
    a["x", "y"] = 1, 2
    world.of(a).at("put", INDEX, after(lambda: b.__delitem__("y")))
    with pytest.raises(KeyNotFoundError) as caught:
        del a["x", "y"]
    assert caught.value.keys == ("y",)
    assert list(b) == ["begin", "x"]


def test_setdefault_gives_way_to_a_key_set_just_before_its_put(world):
    a, b = pair(world)
    world.of(a).at("put", INDEX, after(lambda: b.__setitem__("k", "theirs")))
    assert a.setdefault("k", "mine") == "theirs"
    assert b["k"] == "theirs"


def test_pop_returns_what_it_deleted(world):
    a, b = pair(world)
    a["k"] = "old"
    world.of(a).at("put", INDEX, after(lambda: b.__setitem__("k", "new")))
    assert a.pop("k") == "new"
    assert "k" not in b


def test_popitem_takes_the_last_key_of_the_state_it_commits_on(world):
    a, b = pair(world)
    world.of(a).at("put", INDEX, after(lambda: b.__setitem__("last", 9)))
    assert a.popitem() == ("last", 9)


def test_a_bulk_read_is_of_one_state(world):
    a, b = pair(world, inline_bytes=0)
    a["x", "y"] = 1, 1
    fresh = world.open(inline_bytes=0, cache_bytes=0)
    # Between its check and its fetches, both are replaced.
    world.of(fresh).at("get", "", lambda act: act())
    backend = world.of(fresh)

    def replaced(act):
        b["x", "y"] = 2, 2
        return act()

    backend.steps.clear()
    backend.at("get", "", lambda act: act())  # the check
    backend.at("get", "", replaced)
    assert fresh[["x", "y"]] in ([1, 1], [2, 2])


# Rule 5: a value encoded anew takes a new name.


def test_an_upload_below_the_horizon_is_made_again_under_a_new_name(world):
    a, b = pair(world, inline_bytes=0)
    b["other"] = 1

    def horizon_passes(act):
        result = act()
        seq = b._engine.known().state.seq
        swap = Swap(
            lambda index: (
                replace(index, horizon=seq + 1, revision=index.revision + 1)
                if index.horizon <= seq
                else None
            )
        )
        b["later"] = 1
        b._engine.committer.submit(swap)
        b._engine.committer.begin()
        assert swap.verdict.result(10)
        return result

    world.of(a).at("put", "", horizon_passes)
    a["k"] = "value"
    names = [c.path for c in world.of(a).sent("put") if c.path.startswith("f/k/")]
    assert len(set(names)) == len(names) == 2
    index, _ = decode(world.store.get(INDEX).data, Index, INDEX)
    assert index.horizon > 0
    assert b["k"] == "value"


def test_one_name_has_one_content_for_ever(world, small):
    a, b = pair(world)
    for n in range(200):
        (a, b)[n % 2][f"k{n % 17}"] = bytes(n * 40)
        if n % 5 == 0:
            world.of(a).at("put", INDEX, lose_reply)
            world.of(b).at("put", "", lose_request)
    contents = {}
    for client in (a, b):
        client._engine.upkeep.finish()
        for call in world.of(client).sent("put"):
            if call.path != INDEX:
                assert contents.setdefault(call.path, call.data) == call.data
    assert len(contents) > 20


# Around the rules.


def test_a_dictionary_is_made_once_by_however_many_begin_it(world):
    clients = [world.open() for _ in range(4)]
    world.of(clients[0]).at("put", INDEX, lose_reply)
    world.of(clients[1]).at("put", INDEX, after(lambda: clients[2].__setitem__("c", 3)))
    clients[0]["a"] = 1
    clients[1]["b"] = 2
    clients[3]["d"] = 4
    assert sorted(clients[0].items()) == [("a", 1), ("b", 2), ("c", 3), ("d", 4)]


def test_a_check_serves_only_callers_who_asked_before_it_was_sent(world):
    a, b = pair(world)
    sent, go = threading.Event(), threading.Event()

    def slow(act):
        answer = act()
        sent.set()
        assert go.wait(30)
        return answer

    world.of(a).at("get", INDEX, slow)
    early = []
    thread = threading.Thread(target=lambda: early.append(a.get("k")))
    thread.start()
    assert sent.wait(30)
    b["k"] = 1  # after the first check was answered, before the second caller asks
    assert a.get("k") == 1
    go.set()
    thread.join(30)
    assert early in ([None], [1])


def test_a_slow_answer_raises_no_false_alarm(world):
    a, b = pair(world)
    sent, go = threading.Event(), threading.Event()

    def slow(act):
        answer = act()
        sent.set()
        assert go.wait(30)
        return answer

    b["x"] = 0  # so that the slow answer is a whole index, not a 304
    world.of(a).at("get", INDEX, slow)
    results = []
    thread = threading.Thread(target=lambda: results.append(len(a)))
    thread.start()
    assert sent.wait(30)
    a["y"], a["z"] = 1, 2
    go.set()
    thread.join(30)
    assert results == [4]
    assert len(a) == 4


def test_an_index_that_went_back_is_said_and_never_followed(world):
    a, b = pair(world)
    old = world.store.get(INDEX).data
    b["k"] = 1
    assert a["k"] == 1
    world.store.put(INDEX, old)
    for _ in range(2):
        with pytest.raises(DictionaryChangedError, match="went back"):
            a["k"]
    with pytest.raises(DictionaryChangedError):
        b["k"] = 2
    assert list(world.open()) == ["begin"]


def test_only_a_read_that_an_old_answer_overtook_may_miss_that_the_index_went_back(world):
    # A's first check is answered before the restore, slowly; its second is sent after it. Both are
    # under way at once, and the first answer comes first. Then for all that A can know the second
    # was carried out before the first: nothing went back. So the second read shows what the first
    # does. To tell the two cases apart takes a request that is sent later: as the next one is.
    a, b = pair(world)
    old = world.store.get(INDEX).data
    b["k"] = "before the restore"
    answered, restored, learnt = threading.Event(), threading.Event(), threading.Event()

    def slow(act):
        answer = act()
        answered.set()
        assert restored.wait(30)
        return answer

    def later(act):
        world.store.put(INDEX, old)
        answer = act()
        restored.set()
        assert learnt.wait(30)
        return answer

    seen = {}

    def first():
        seen["first"] = a.get("k")
        learnt.set()

    world.of(a).at("get", INDEX, slow)
    world.of(a).at("get", INDEX, later)
    threads = [threading.Thread(target=first)]
    threads.append(threading.Thread(target=lambda: seen.update(second=a.get("k"))))
    threads[0].start()
    assert answered.wait(30)
    threads[1].start()
    for thread in threads:
        thread.join(30)
    assert seen == {"first": "before the restore", "second": "before the restore"}
    for act in (lambda: a.get("k"), lambda: a.update(k=1), lambda: list(a)):
        with pytest.raises(DictionaryChangedError, match="went back"):
            act()
    assert list(world.open()) == ["begin"]


def test_no_later_read_leans_on_an_answer_that_was_overtaken(world):
    # A's commit is answered slowly, and undone by a restore meanwhile. A check that was sent before
    # that answer, and answered after it, shows what was before the commit.
    world.open()["k"] = "before"
    a = world.open(max_staleness=1)
    assert a["k"] == "before"
    old = world.store.get(INDEX).data
    sent, landed = threading.Event(), threading.Event()

    def overtaken(act):
        sent.set()
        assert landed.wait(30)
        return act()

    def slow(act):
        answer = act()
        world.store.put(INDEX, old)
        world.clock.now += 5
        world.of(a).at("get", INDEX, overtaken)
        reader.start()
        assert sent.wait(30)
        return answer

    seen = []
    reader = threading.Thread(target=lambda: seen.append(a.get("k")))
    world.of(a).at("put", INDEX, slow)
    a["k"] = "mine"
    landed.set()
    reader.join(30)
    assert seen == ["mine"]  # as if its request had been carried out before the commit
    with pytest.raises(DictionaryChangedError, match="went back"):
        a.get("k")


def test_who_knew_of_no_dictionary_when_it_asked_takes_no_other_one_for_its_own(world):
    # A begins the dictionary, which is lost; B begins another one. An answer to a request that A had
    # sent before it knew of any shows B's, when A is about to commit to its own.
    a, b = world.open(), world.open()
    sent, answer_now = threading.Event(), threading.Event()

    def slow(act):
        sent.set()
        assert answer_now.wait(30)
        return act()

    def first_of_another(act):
        act()
        world.store.delete([INDEX])
        b["k"] = "theirs"
        answer_now.set()
        reader.join(30)
        return act()

    failed = []

    def read():
        with pytest.raises(DictionaryChangedError, match="made anew"):
            a.get("k")
        failed.append("read")

    reader = threading.Thread(target=read)
    world.of(a).at("get", INDEX, slow)
    reader.start()
    assert sent.wait(30)
    world.of(a).at("put", INDEX, lambda act: act())
    world.of(a).at("put", INDEX, first_of_another)
    with pytest.raises(DictionaryChangedError, match="made anew"):
        a["k"] = np.arange(9000)
    assert failed == ["read"]
    assert b["k"] == "theirs"


def test_another_history_of_the_same_length_is_noticed(world):
    a, b = pair(world)
    old = world.store.get(INDEX).data
    b["k"] = 1
    assert a["k"] == 1
    world.store.put(INDEX, old)
    c = world.open()
    c["other"] = 1
    c["another"] = 1
    with pytest.raises(DictionaryChangedError):
        a["k"]


# Regressions: interleavings that an independent review found.


def test_the_first_write_gives_up_at_its_deadline(world):
    a = world.open(timeout=5)
    for _ in range(10_000):
        world.of(a).at("put", INDEX, lose_request)
    with pytest.raises(StoreUnavailableError):
        a["k"] = 1
    assert len(world.of(a).sent("put", INDEX)) < 100


def test_a_commit_in_doubt_is_not_called_refused_when_its_repetition_is(world):
    a, b = pair(world)
    late = []

    def delayed(act):
        late.append(act)
        raise TransientError("no answer yet")

    def denied(act):
        raise AccessDeniedError("the key was rotated just now")

    world.of(a).at("put", INDEX, delayed)
    world.of(a).at("put", INDEX, denied)
    with pytest.raises(UnknownOutcomeError):
        a["k"] = 1
    late[0]()
    assert b["k"] == 1


def test_an_etag_that_changes_without_the_bytes_stops_nobody(world):
    a, b = pair(world)
    world.store.put(INDEX, world.store.get(INDEX).data)
    a["k"] = 1
    assert b["k"] == 1
    world.of(b).calls.clear()
    assert "k" in b
    assert len(world.of(b).calls) == 1


def test_another_index_of_the_same_revision_is_noticed(world):
    a, b = pair(world)
    old = world.store.get(INDEX).data
    b["k"] = 1
    assert a["k"] == 1
    world.store.put(INDEX, old)
    world.open()["other"] = 1
    with pytest.raises(DictionaryChangedError):
        a["k"]


def test_an_idle_handle_writes_after_others_made_more_commits_than_ids_are_kept(
    world, small, monkeypatch
):
    monkeypatch.setattr("remotedict.pure.state.RECENT_IDS", 5)
    idle, b = pair(world)
    for n in range(400):
        b[f"b{n}"] = n
        b._engine.upkeep.finish()
    idle["k"] = 1
    assert b["k"] == 1


def test_a_merge_below_the_horizon_is_not_swapped_in(small):
    uuids = (n.to_bytes(16) for n in range(10_000))
    index = plan.genesis(b"d" * 16, b"i" * 16)
    segments = {}
    while not (refs := plan.due_merge(index)):
        facts = Facts("bytes", 300)
        change = Set("k", index.seq + 1, next(uuids), index.seq, bytes(300), facts, None)
        commit = Commit(next(uuids), index.seq + 1, 0, "me", "", [change])
        index, segment = plan.extend(index, [commit], lambda: next(uuids))
        if segment:
            segments[segment.ref.blob] = decode(segment.blob, Segment, "")[0]
    merged = plan.merge(index, refs, [segments[ref.blob] for ref in refs], next(uuids)).ref
    assert plan.swap_merged(index, refs, merged)
    passed = replace(index, horizon=index.seq + 1)
    assert plan.swap_merged(passed, refs, merged) is None
    checkpoint = CheckpointRef(f"c:{index.seq:012d}-00", index.settled, 1)
    log = LogRef(f"l:{index.seq:012d}-00", 1, index.settled, 1)
    assert plan.swap_checkpoint(index, checkpoint, index.segments, log)
    assert plan.swap_checkpoint(passed, checkpoint, index.segments, log) is None


def test_a_key_set_again_after_its_tombstone_was_tabled_is_found(world, monkeypatch):
    monkeypatch.setattr("remotedict.pure.state._REBASE_MIN", 2)
    a, b = pair(world)
    for n in range(40):
        a["k"] = n
        del a["k"]
        a[f"x{n}"] = n
        a["k"] = n
        assert list(b) == list(a)
    # In each round but the first, "k" is there already when it is set for the first time.
    assert version(b, "k") == 40 * 3


def test_who_was_no_part_of_a_commit_in_doubt_is_told_what_is_wrong_itself():
    # Seed 27134 of the simulation, of this commit's parent: a deletion that had nothing to delete
    # shared a round with a write, whose reply was lost, and then the format became a newer one.
    newer = FormatVersionError("Index/f/index", "it requires simulated")
    in_doubt = _InDoubtError({b"w"}, str(newer))
    in_doubt.__cause__ = newer
    options = {"author": "", "comment": "", "ticket": 0, "deadline": 0.0}
    write, deletion = (Request(list, commit_id=one, **options) for one in (b"w", b"d"))
    assert isinstance(_own(in_doubt, write), UnknownOutcomeError)
    assert _own(in_doubt, deletion) is newer
    in_doubt.__cause__ = TransientError("lost")
    assert isinstance(_own(in_doubt, deletion), StoreUnavailableError)
