"""The rules of locks, each with the interleaving that breaks it when the rule is dropped.

The numbers are those of the list in docs/design.md.
"""

from __future__ import annotations

import threading
import time

import pytest

from faults import INDEX, lose_reply, lose_request
from interrupting import Interrupt
from remotedict import (
    ClosedError,
    ItemLockedError,
    LockLostError,
    LockNotHeldError,
    LockTimeoutError,
    StoreUnavailableError,
    UnknownOutcomeError,
)
from remotedict.backend import LeaseHeld, LeaseLost, TransientError
from remotedict.engine.runtime import AbandonedError
from remotedict.features.holdings import Holdings
from remotedict.features.locks import LEASE_SECONDS
from remotedict.pure.records import Set, Unlock


@pytest.fixture
def sleepy(monkeypatch):
    """Let nobody renew: every holder is one that sleeps."""
    monkeypatch.setattr(Holdings, "_renew", lambda _: None)


@pytest.fixture
def clients(world, sleepy):
    made = world.open(), world.open()
    made[0]["k"] = "old"
    return made


def epoch(client, key="k"):
    lock = client._engine.known().state.lock(key)
    return lock and lock.epoch


def holds(client, key):
    return client._parts.locks._held.get(key) is not None


def lease_runs_out(world):
    world.clock.now += LEASE_SECONDS + 1


def lease_is_lost(world, holder):
    lease_runs_out(world)
    path = holder._engine.layout.lock("k")
    world.store.lease(path, 15, lease_id="somebody").release()


# Rule 6: read the state, then ask for the lease, then commit if the lock is still the one read.


def test_a_lock_reads_the_state_then_asks_for_the_lease_then_commits(world, clients):
    a, _ = clients
    world.of(a).calls.clear()
    a.lock_item("k")
    assert [c.verb for c in world.of(a).calls] == ["get", "lease", "put"]


def test_a_sleeper_between_lease_and_commit_never_supersedes_a_living_holder(world, clients):
    sleeper, holder = clients

    def sleeps(act):
        lease = act()
        lease_runs_out(world)
        holder.lock_item("k", duration=-1)
        return lease

    world.of(sleeper).at("lease", "", sleeps)
    with pytest.raises(ItemLockedError):
        sleeper.lock_item("k", wait=False)
    assert holder.locks["k"].mine
    holder["k"] = "the holder's"


def test_a_sleeper_between_state_and_lease_supersedes_nobody_it_has_not_seen(world, clients):
    sleeper, holder = clients

    def sleeps(act):
        holder.lock_item("k", duration=-1)
        return act()

    world.of(sleeper).at("lease", "", sleeps)
    with pytest.raises(ItemLockedError) as caught:
        sleeper.lock_item("k", wait=False)
    assert caught.value.item_name == "k"
    assert holder.locks["k"].mine


# Rule 7: the holder's writes, and its unlock, demand exactly its epoch.


@pytest.mark.parametrize("still_locked", [False, True])
def test_a_superseded_holder_can_not_write_even_when_the_key_is_free_again(
    world, clients, still_locked
):
    holder, other = clients
    holder.lock_item("k", duration=-1)
    lease_runs_out(world)
    other.lock_item("k")
    other["k"] = "other's"
    if not still_locked:
        other.unlock_item("k")
    with pytest.raises(LockLostError) as caught:
        holder["k"] = "stale"
    assert caught.value.item_name == "k"
    assert other["k"] == "other's"
    if not still_locked:
        holder["k"] = "knowing"  # the loss is said once, and then forgotten
        assert other["k"] == "knowing"


def test_the_unlock_of_a_superseded_holder_unlocks_nobody_else(world, clients):
    holder, other = clients
    holder.lock_item("k")
    lease_runs_out(world)
    other.lock_item("k")
    with pytest.raises(LockLostError):
        holder.unlock_item("k")
    assert other.locks["k"].mine
    with pytest.raises(LockNotHeldError):
        holder.unlock_item("k")


def test_a_holder_is_superseded_between_its_decision_and_its_put(world, clients):
    holder, other = clients
    holder.lock_item("k")

    def paused(act):
        lease_runs_out(world)
        other["k"] = "other's"
        return act()

    world.of(holder).at("put", INDEX, paused)
    with pytest.raises(LockLostError):
        holder["k"] = "stale"
    assert other["k"] == "other's"


def test_an_orderly_unlock_never_looks_like_a_loss(world, clients):
    holder, other = clients
    holder.lock_item("k")
    refused = []

    def just_before_the_unlock(act):
        with pytest.raises(ItemLockedError):
            other["k"] = "too early"
        refused.append(True)
        return act()

    world.of(holder).at("put", INDEX, just_before_the_unlock)
    holder.unlock_item("k")
    assert refused
    other["k"] = "in time"


# Rule 8: an epoch is a commit id; each acquisition has a fresh lease; a lost one stays lost.


def test_an_epoch_is_the_id_of_the_commit_that_locked(world, clients):
    a, b = clients
    a.lock_item("k")
    assert epoch(b) == b._engine.known().state.head


def test_each_acquisition_has_a_fresh_lease(world, clients):
    a, _ = clients
    for _ in range(3):
        a.lock_item("k")
        a.unlock_item("k")
    ids = [call.args["lease_id"] for call in world.of(a).sent("lease")]
    assert len(set(ids)) == len(ids) == 3


def test_a_lost_lease_is_not_taken_again_under_the_old_epoch(world, clients):
    holder, other = clients
    holder.lock_item("k", duration=-1)
    before = epoch(other)
    lease_is_lost(world, holder)
    holder.lock_item("k", duration=-1)
    assert epoch(other) != before
    holder["k"] = "new"
    assert other["k"] == "new"


# Rule 9: whoever writes through a dead holder's lock ends that epoch in the same commit.


@pytest.mark.parametrize("write", ["set", "del", "clear", "bulk"])
def test_a_write_through_a_dead_holders_lock_ends_its_epoch_in_the_same_commit(
    world, clients, write
):
    holder, other = clients
    holder.lock_item("k", duration=-1)
    old = epoch(other)
    lease_runs_out(world)
    {
        "set": lambda: other.__setitem__("k", 1),
        "del": lambda: other.__delitem__("k"),
        "clear": other.clear,
        "bulk": lambda: other.update(k=1, z=2),
    }[write]()
    newest = other._engine.index.known.index.tail[-1]
    assert newest.changes[0] == Unlock("k", old)
    assert any(not isinstance(change, Unlock | Set) or change.key for change in newest.changes[1:])
    assert other.locks == {}
    with pytest.raises(LockLostError):
        holder["k"] = "stale"


def test_a_writer_that_took_a_dead_holders_lease_does_not_end_a_newer_lock(world, clients):
    dead, writer = clients
    third = world.open()
    dead.lock_item("k")
    lease_runs_out(world)

    def paused(act):
        lease_runs_out(world)  # the writer's own lease on the lock blob runs out as well
        third.lock_item("k", duration=-1)
        return act()

    world.of(writer).at("lease", "", lambda act: (act(), paused(lambda: None))[0])
    with pytest.raises(ItemLockedError):
        writer["k"] = "stale"
    assert third.locks["k"].mine
    assert third["k"] == "old"


@pytest.mark.parametrize("lose", [lose_reply, lose_request])
def test_a_takeover_survives_a_lost_answer(world, clients, lose):
    holder, other = clients
    holder.lock_item("k")
    lease_runs_out(world)
    world.of(other).at("lease", "", lose)
    world.of(other).at("put", INDEX, lose)
    other["k"] = "taken"
    assert holder.get("k") == "taken"
    assert epoch(other) is None


# Rule 10: several locks are taken in sorted order. (Of the writers' queue: test_turns.py.)


def test_several_locks_are_taken_in_sorted_order_whatever_order_they_are_named_in(world, clients):
    a, _ = clients
    a.lock_item(["c", "a", "b"])
    layout = a._engine.layout
    assert [c.path for c in world.of(a).sent("lease")] == [layout.lock(k) for k in "abc"]
    assert len({epoch(a, k) for k in "abc"}) == 1  # one commit: all or none


def test_of_several_locks_all_are_taken_or_none(world, clients):
    a, b = clients
    b.lock_item("b", duration=-1)
    with pytest.raises(ItemLockedError) as caught:
        a.lock_item(["a", "b", "c"], wait=False)
    assert caught.value.item_name == "b"
    assert list(b.locks) == ["b"]
    b.lock_item(["a", "c"], wait=False)  # a's leases on them are given back


# Around the rules.


def test_everybody_reads_and_nobody_else_writes_a_locked_key(world, clients):
    holder, other = clients
    holder.lock_item("k", duration=30)
    before = world.store.get(INDEX)
    refused = [
        lambda: other.__setitem__("k", 1),
        lambda: other.__delitem__("k"),
        lambda: other.pop("k"),
        other.popitem,
        other.clear,
        lambda: other.update(k=1, z=2),
        lambda: other.__setitem__(["z", "k"], [1, 2]),
    ]
    for write in refused:
        with pytest.raises(ItemLockedError) as caught:
            write()
        assert caught.value.item_name == "k"
        assert str(caught.value.seconds_left)
        assert "root" not in caught.value.holder or holder.locks["k"].author in caught.value.holder
    assert world.store.get(INDEX) == before
    assert other["k"] == "old"
    other["free"] = 1


def test_a_lock_reserves_the_name_of_a_key_that_does_not_exist(world, clients):
    holder, other = clients
    holder.lock_item("new")
    assert "new" not in other
    with pytest.raises(ItemLockedError):
        other["new"] = 1
    holder["new"] = 2
    holder.unlock_item("new")
    other["new"] = 3


def test_locking_again_extends(world, clients):
    holder, other = clients
    holder.lock_item("k", duration=20)
    world.clock.now += 1
    holder.lock_item("k", duration=60)
    assert holder._parts.locks._held.get("k").until == world.clock.now + 60
    world.clock.now += 3
    with pytest.raises(ItemLockedError) as caught:
        other.lock_item("k", wait=False)
    assert 50 < caught.value.seconds_left <= 60
    holder["k"] = "new"
    holder.unlock_item("k")
    other["k"] = "mine"


def test_locking_again_for_less_does_not_shorten(world, clients):
    holder, _ = clients
    holder.lock_item("k", duration=-1)
    holder.lock_item("k", duration=2)
    assert holder._parts.locks._held.get("k").until is None
    assert len(world.of(holder).sent("lease")) == 1


def test_force_supersedes_and_the_next_locker_need_not_wait(world, clients):
    holder, other = clients
    holder.lock_item("k", duration=-1)
    other.unlock_item("k", force=True)
    assert other.locks == {}
    other.lock_item("k", wait=False)
    with pytest.raises(LockLostError):
        holder["k"] = "stale"
    other.unlock_item("k")
    other.unlock_item("k", force=True)  # nobody's: nothing to do


def test_a_lock_that_can_not_be_had_in_time_says_so(world, clients):
    holder, other = clients
    holder.lock_item("k", duration=-1)

    class Renewing:
        """The holder's renewals: its lease doesn't run out while the other waits."""

        def __enter__(self):
            self.was = world.runtime.sleep
            world.runtime.sleep = self.sleep

        def sleep(self, seconds):
            world.clock.now += seconds
            holder._parts.locks._held.get("k").lease.renew()

        def __exit__(self, *_):
            del world.runtime.sleep

    with Renewing(), pytest.raises(LockTimeoutError) as caught:
        other.lock_item("k", timeout=40)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.seconds_left is None


def test_a_waiter_gets_the_lock_once_the_holder_is_gone(world, clients):
    dead, other = clients
    dead.lock_item("k", duration=-1)
    began = world.clock.now
    other.lock_item("k", timeout=60)
    assert world.clock.now - began <= LEASE_SECONDS + 1
    other["k"] = "mine"
    with pytest.raises(LockLostError):
        dead["k"] = "stale"


def test_an_acquisition_whose_reply_is_lost_is_still_the_callers(world, clients):
    a, b = clients
    world.of(a).at("lease", "", lose_reply)
    world.of(a).at("put", INDEX, lose_reply)
    a.lock_item("k")
    assert b.locks["k"].pid
    a["k"] = 1
    a.unlock_item("k")
    assert b.locks == {}


def test_an_acquisition_of_unknown_outcome_locks_nobody_out_for_long(world, clients):
    a, b = clients
    a._engine.backend.timeout = 3

    def cut_off(act):
        act()
        for _ in range(100):
            world.of(a).at("get", INDEX, lose_request)
        return lose_request(act)

    world.of(a).at("put", INDEX, cut_off)
    with pytest.raises(UnknownOutcomeError):
        a.lock_item("k")
    world.of(a).steps.clear()
    b["k"] = "free"  # its lease was given back: the holder counts as gone
    a["k"] = "also"
    assert b["k"] == "also"


def test_a_critical_section_excludes_threads_of_one_handle(world, clients):
    a, _ = clients
    a["n"] = 0

    def count():
        for _ in range(20):
            with a.lock("n"):
                a["n"] += 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert a["n"] == 80
    assert a.locks == {}


def test_critical_sections_nest_and_only_the_outermost_unlocks(world, clients):
    a, b = clients
    with a.lock("k", "m"):
        with a.lock("k"):
            a["k"] = 1
        with pytest.raises(ItemLockedError):
            b["k"] = 2
    b["k"] = 3
    a.lock_item("k", duration=-1)
    with a.lock("k"):
        pass
    assert b.locks["k"].pid  # locked by lock_item before, and so after


def test_another_thread_does_not_wait_when_told_not_to(world, clients):
    a, _ = clients
    refused = []

    def other():
        try:
            with a.lock("k", wait=False):
                pass
        except ItemLockedError as exc:
            refused.append(exc)

    with a.lock("k"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(30)
    assert refused
    assert refused[0].item_name == "k"


def test_an_exception_in_a_critical_section_unlocks_and_passes(world, clients):
    a, b = clients
    with pytest.raises(ZeroDivisionError), a.lock("k"):
        a["k"] = 1 / 0
    assert b.locks == {}
    assert b["k"] == "old"


def test_a_lock_lost_inside_a_section_is_said_at_its_end(world, clients):
    a, b = clients
    section = a.lock("k")
    section.__enter__()
    lease_runs_out(world)
    b["k"] = "theirs"
    with pytest.raises(LockLostError):
        section.__exit__(None, None, None)


def test_closing_a_handle_releases_its_locks(world, clients):
    a, b = clients
    a.lock_item(["k", "m"], duration=-1)
    a.close()
    assert b.locks == {}
    b.lock_item("k", wait=False)


def eventually(done):
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_lock_is_renewed_until_its_end_and_no_longer(world):
    holder, other = world.open(), world.open()
    holder.lock_item("k", duration=40)
    path = holder._engine.layout.lock("k")
    holdings = holder._parts.locks._held

    def pass_time(seconds, until):
        world.clock.now += seconds
        eventually(lambda: until() or holdings.wake())

    for _ in range(6):  # 36 seconds, more than two leases
        pass_time(6, lambda: world.store._leases[path][1] == world.clock.now + LEASE_SECONDS)
        with pytest.raises(ItemLockedError):
            other["k"] = "too early"
    pass_time(6, lambda: path not in world.store._leases)
    other["k"] = "in time"
    with pytest.raises(LockLostError):
        holder["k"] = "stale"


def test_a_renewal_without_an_answer_holds_up_no_other(world, monkeypatch):
    holder = world.open()
    holder.lock_item("a", duration=-1)
    holder.lock_item("b", duration=-1)
    holdings, go = holder._parts.locks._held, threading.Event()
    renewed = threading.Event()
    monkeypatch.setattr(holdings.get("a").lease, "renew", lambda: go.wait(30))
    monkeypatch.setattr(holdings.get("b").lease, "renew", renewed.set)
    world.clock.now += 6
    holdings.wake()
    assert renewed.wait(30)
    go.set()


def test_renewals_without_an_answer_do_not_pile_up(world, monkeypatch):
    holder = world.open()
    holder.lock_item("k", duration=-1)
    holdings, go, begun = holder._parts.locks._held, threading.Event(), []
    held = holdings.get("k")
    monkeypatch.setattr(held.lease, "renew", lambda: begun.append(1) or go.wait(30))
    for _ in range(10):
        asked = held.asked
        world.clock.now += 6
        eventually(lambda: holdings.wake() or held.asked != asked)  # noqa: B023 - called at once
    eventually(lambda: len(begun) >= 3)
    assert (len(begun), held.asking) == (3, 3)
    go.set()
    eventually(lambda: not held.asking)
    world.clock.now += 6
    eventually(lambda: holdings.wake() or len(begun) > 3)


def test_a_lock_that_is_found_to_be_lost_while_it_is_unlocked_can_be_unlocked_by_another_thread(
    world, clients
):
    # A section is about to unlock; meanwhile a write of another thread finds that the lock was lost,
    # and a third thread unlocks, too. Each has to come to its end, and to tell those who wait.
    holder, other = clients
    holdings, held_up, go, told = (
        holder._parts.locks._held,
        threading.Event(),
        threading.Event(),
        [],
    )

    def leave_late(act):
        held_up.set()
        assert go.wait(30)
        return act()

    def section():
        with pytest.raises(LockLostError), holder.lock("k"):  # noqa: PT012 - its end raises
            lease_runs_out(world)
            other["k"] = "taken"
            world.of(holder).at("put", INDEX, leave_late)
        told.append("section")

    def unlock():
        with pytest.raises(LockLostError):
            holder.unlock_item("k")
        told.append("unlock")

    threads = [threading.Thread(target=section), threading.Thread(target=unlock)]
    threads[0].start()
    assert held_up.wait(30)
    held = holdings.get("k")
    endings = [held.unlocked]
    holdings.lose("k", held)
    threads[1].start()
    eventually(lambda: held.unlocked is not endings[0])
    endings.append(held.unlocked)
    go.set()
    for thread in threads:
        thread.join(30)
    assert sorted(told) == ["section", "unlock"]
    assert all(ending.done() for ending in endings)
    holder["k"] = "on"
    assert other["k"] == "on"


def test_locks_say_who_holds_what_until_when(world, clients):
    a, b = clients
    a.lock_item("k", duration=30)
    b.lock_item("m", duration=-1)
    locks = a.locks
    assert list(locks) == ["k", "m"]
    assert locks["k"].mine
    assert not locks["m"].mine
    assert locks["m"].until is None
    assert abs(locks["k"].until.timestamp() - world.clock.now - 30) < 1


def test_a_section_is_entered_once_at_a_time(world, clients):
    a, b = clients
    section = a.lock("k")
    with section:
        with pytest.raises(RuntimeError, match="lock of 'k' is already entered"), section:
            pass
        a["k"] = "still mine"
    with section:
        a["k"] = "mine again"
    assert b.locks == {}


# Regressions: interleavings that an independent review found.


def test_a_thread_may_write_while_another_of_the_same_handle_unlocks(world, clients):
    a, b = clients
    a.lock_item("k")
    errors = []

    def writes(act):
        result = act()  # the unlock stands, but its thread doesn't know yet
        thread = threading.Thread(target=write)
        thread.start()
        thread.join(0.2)
        return result

    def write():
        try:
            a["k"] = "from another thread"
        except Exception as exc:  # noqa: BLE001 - which one is the point
            errors.append(exc)

    world.of(a).at("put", INDEX, writes)
    a.unlock_item("k")
    while b["k"] == "old" and not errors:
        pass
    assert not errors
    assert b["k"] == "from another thread"


def test_a_section_does_not_write_while_an_unlock_beneath_it_finds_the_lock_lost(world, clients):
    """Seed 47824: by another thread; whose unlock, while it goes on, makes the lock seem his."""
    a, b = clients
    superseded = threading.Event()
    told = []

    def supersede(act):
        b.unlock_item("k", force=True)
        b["k"] = "newer"
        superseded.set()
        time.sleep(0.3)  # the section's write gets in line behind the unlock, or waits for it
        return act()

    def unlock():
        try:
            a.unlock_item("k")
        except LockLostError as exc:
            told.append(exc)

    section = entered(a)
    world.of(a).at("put", INDEX, supersede)
    thread = threading.Thread(target=unlock)
    thread.start()
    superseded.wait(10)
    with pytest.raises(LockLostError):
        a["k"] = "what was read, and more"
    thread.join()
    assert told
    with pytest.raises(LockLostError):
        leave(section)
    assert b["k"] == a["k"] == "newer"


def test_a_lock_that_another_thread_has_lost_meanwhile_is_not_that_of_a_section(world, clients):
    """Seed 124604: the section waits for its lock while another thread has one, and loses it."""
    a, b = clients

    def lock_and_lose():
        a.lock_item("k")
        b.unlock_item("k", force=True)
        b["k"] = "theirs"
        with pytest.raises(LockLostError):
            a["k"] = "late"
        lost.append(True)

    def meanwhile(act):
        thread = threading.Thread(target=lock_and_lose)
        thread.start()
        thread.join(30)
        return act()

    lost = []
    world.of(a).at("lease", "", meanwhile)
    with a.lock("k"):
        assert a["k"] == "theirs"
        a["k"] = "mine"
    assert lost
    assert b["k"] == "mine"
    assert b.locks == {}


def test_a_section_may_write_once_another_thread_has_unlocked_it(world, clients):
    a, _ = clients
    with a.lock("k"):
        thread = threading.Thread(target=a.unlock_item, args=["k"])
        thread.start()
        while a.locks:
            pass
        a["k"] = "new"
        thread.join()
    assert a["k"] == "new"


def test_two_threads_of_one_handle_may_lock_the_same_key_at_once(world, clients, monkeypatch):
    a, _ = clients
    # The other thread polls until this one is done: that must not let the lease run out.
    monkeypatch.setattr(world.runtime, "sleep", lambda _: threading.Event().wait(0.01))
    errors = []

    def lock():
        try:
            a.lock_item("k")
        except Exception as exc:  # noqa: BLE001 - which one is the point
            errors.append(exc)

    def the_other_comes(act):
        thread = threading.Thread(target=lock)
        thread.start()
        thread.join(0.2)
        return act()

    world.of(a).at("put", INDEX, the_other_comes)
    lock()
    a["k"] = "mine"
    assert errors == []


@pytest.mark.parametrize("held_before", [False, True], ids=["locks", "extends"])
def test_what_another_thread_locks_after_the_look_is_no_loss(world, clients, held_before):
    a, _ = clients
    if held_before:
        a.lock_item("k", duration=5)

    engine = a._engine
    look = engine.now

    def the_other_is_quicker():
        engine.now = look
        seen = look()
        thread = threading.Thread(target=lambda: a.lock_item("k", duration=20))
        thread.start()
        thread.join(30)
        return seen

    engine.now = the_other_is_quicker
    a.lock_item("k", duration=30)
    assert a._parts.locks._held.get("k").until == world.clock.now + 30 or not held_before
    a["k"] = "mine"


def begin_outage(faulty):
    """Lose the next write of the index, and all that is asked of it from then on."""

    def lose_all(act):
        for _ in range(200):
            faulty.at("get", INDEX, lose_request)
        return lose_request(act)

    faulty.at("put", INDEX, lose_all)


def test_an_outage_at_the_end_of_a_section_locks_nobody_out(world, clients):
    a, b = clients
    a._engine.backend.timeout = 3

    section = a.lock("k")
    section.__enter__()
    begin_outage(world.of(a))
    with pytest.raises(UnknownOutcomeError):
        section.__exit__(None, None, None)
    world.of(a).steps.clear()
    assert not holds(a, "k")
    b["k"] = "free again"
    with a.lock("k"):
        a["k"] = "and again"
    assert a.locks == {}


def test_a_lock_that_nobody_waits_for_any_more_runs_out_if_it_cannot_be_unlocked(world, clients):
    a, b = clients
    a._engine.backend.timeout = 3
    ends = a._parts.locks.acquire(["k"], duration=None, wait=False, timeout=None)

    begin_outage(world.of(a))
    a._parts.locks._undo(ends)  # as an interrupt lets it be done
    world.of(a).steps.clear()
    assert not holds(a, "k")
    b["k"] = "free again"


@pytest.mark.parametrize("within", [None, ZeroDivisionError()])
def test_what_a_section_wrote_is_not_denied_at_an_end_that_nobody_hears(world, clients, within):
    a, b = clients
    a._engine.backend.timeout = 3
    section = a.lock("k")
    section.__enter__()
    a["k"] = "mine"

    def others_are_quicker(act):
        world.clock.now += 1
        b["other"] = world.clock.now
        world.of(a).at("put", INDEX, others_are_quicker)
        return act()

    world.of(a).at("put", INDEX, others_are_quicker)
    if within:  # which is what the caller is to hear of
        section.__exit__(type(within), within, None)
    else:
        with pytest.raises(UnknownOutcomeError, match="what was written in it is written"):
            section.__exit__(None, None, None)
    world.of(a).steps.clear()
    assert b["k"] == "mine"
    b["k"] = "free again"


def test_a_lock_that_is_extended_at_its_end_does_not_end(world, clients):
    a, b = clients
    a.lock_item("k", duration=5)
    held = a._parts.locks._held.get("k")

    def its_end_comes(act):
        world.clock.now += 6
        a._parts.locks._held._renew_one(held, world.clock.now)
        return act()

    world.of(a).at("put", INDEX, its_end_comes)
    a.lock_item("k", duration=60)
    with pytest.raises(ItemLockedError):
        b["k"] = "too early"
    a["k"] = "mine"


def test_a_lock_that_ends_just_before_it_is_extended_is_taken_anew(world, clients):
    a, b = clients
    a.lock_item("k", duration=5)
    holdings = a._parts.locks._held
    announce = holdings.announce

    def its_end_comes(*args):
        holdings.announce = announce
        world.clock.now += 6
        holdings._renew_one(holdings.get("k"), world.clock.now)
        return announce(*args)

    holdings.announce = its_end_comes
    a.lock_item("k", duration=60)
    with pytest.raises(ItemLockedError):
        b["k"] = "too early"
    a["k"] = "mine"


def test_a_handle_that_is_closed_while_it_locks_holds_nothing(world, clients):
    a, b = clients
    a.lock_item("m")

    def closing(act):
        left = a._parts.locks._held.close()
        assert left == ["m"]  # and not the one under way
        return act()

    world.of(a).at("put", INDEX, closing)
    with pytest.raises(ClosedError):
        a.lock_item("k")
    b["k"] = "free"


def test_an_unlock_beside_an_extension_stands(world, clients):
    a, b = clients
    a.lock_item("k", duration=5)
    holdings = a._parts.locks._held
    confirm = holdings.confirm

    def unlocked_before(*args):
        holdings.confirm = confirm
        a.unlock_item("k")
        return confirm(*args)

    holdings.confirm = unlocked_before
    a.lock_item("k", duration=60)
    assert not holds(a, "k")
    assert b.locks == {}
    a["k"] = "an ordinary write"


def test_a_section_in_a_held_lock_leaves_its_end_as_it_was(world, clients):
    a, _ = clients
    a.lock_item("k", duration=5)
    end = a._parts.locks._held.get("k").until
    with a.lock("k"):
        assert a._parts.locks._held.get("k").until is None
    assert a._parts.locks._held.get("k").until == end


def in_another_thread(act):
    errors = []

    def run():
        try:
            act()
        except LockLostError as exc:
            errors.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    return errors


@pytest.mark.parametrize("told", ["by a write", "by an unlock", "by locking again"])
def test_a_loss_that_another_thread_is_told_of_still_ends_a_critical_section(world, clients, told):
    # Thread 1: lock_item. Thread 2: enters a section, and reads. Somebody else supersedes the lock,
    # writes, and is gone. Thread 1 is told. Thread 2 writes on what it has read.
    a, b = clients
    a.lock_item("k", duration=-1)
    section = a.lock("k")
    section.__enter__()
    assert a["k"] == "old"
    lease_runs_out(world)
    b["k"] = "theirs"
    tell = {
        "by a write": lambda: a.put("k", "mine"),
        "by an unlock": lambda: a.unlock_item("k"),
        "by locking again": lambda: a.lock_item("k"),
    }[told]
    assert in_another_thread(tell)
    assert in_another_thread(lambda: a.lock_item("k"))  # nor may the section write under a new lock
    for _ in range(2):
        with pytest.raises(LockLostError):
            a["k"] = "stale"
    section.__exit__(None, None, None)
    assert b["k"] == "theirs"
    a["k"] = "knowing"
    assert b["k"] == "knowing"


def test_a_fresh_lease_taken_by_another_thread_keeps_a_section_whole_or_ends_it(world, clients):
    # The lease is lost, and thread 1 takes a fresh one, so that somebody else must not get in
    # between unnoticed by thread 2's section.
    a, b = clients
    with a.lock("k"):
        lease_is_lost(world, a)
        assert not in_another_thread(lambda: a.lock_item("k", duration=-1))
        with pytest.raises(ItemLockedError):
            b["k"] = "theirs"
        a["k"] = "mine"

    section = a.lock("k")
    section.__enter__()
    lease_is_lost(world, a)

    def superseded(act):
        b["k"] = "theirs"
        return act()

    world.of(a).at("lease", "", superseded)
    assert in_another_thread(lambda: a.lock_item("k"))
    with pytest.raises(LockLostError):
        a["k"] = "stale"
    with pytest.raises(LockLostError):
        section.__exit__(None, None, None)


def test_a_fresh_lease_is_renewed_whatever_becomes_of_the_lost_one(world, clients):
    a, _ = clients
    a.lock_item("k", duration=-1)
    held, lost = a._parts.locks._held.get("k"), a._parts.locks._held.get("k").lease
    lease_runs_out(world)
    path = a._engine.layout.lock("k")
    world.store.lease(path, 15, lease_id="somebody").release()

    renew = lost.renew

    def slowly():
        lost.renew = renew
        a.lock_item("k", duration=-1)
        raise LeaseLost

    lost.renew = slowly
    a._parts.locks._held._renew_one(held, world.clock.now)
    assert held.lease is not lost
    assert held.renewing


@pytest.mark.parametrize("duration", [0, -2, 0.5, float("nan"), float("inf"), "15", None, True])
def test_a_duration_that_makes_no_sense_is_refused(clients, duration):
    with pytest.raises((ValueError, TypeError), match="duration"):
        clients[0].lock_item("k", duration=duration)
    assert clients[0].locks == {}


# What ends a lock, or a wait for one, in the midst.


def no_answer(*_args):
    raise TransientError("no answer")


def test_a_writer_goes_on_when_another_ends_the_dead_holders_epoch_first(world, clients):
    dead, writer = clients
    other = world.open()
    dead.lock_item("k")
    lease_runs_out(world)

    def quicker(_act):
        other["k"] = "theirs"
        raise LeaseHeld("by the other, just then")

    world.of(writer).at("lease", "", quicker)
    writer["k"] = "mine"
    assert len(world.of(writer).sent("lease")) == 1
    assert (other["k"], other.locks) == ("mine", {})
    with pytest.raises(LockLostError):
        dead["k"] = "stale"


def test_a_lock_that_can_not_be_renewed_is_not_extended_and_not_lost(world, clients, monkeypatch):
    a, b = clients
    a.lock_item("k", duration=10)
    held = a._parts.locks._held.get("k")
    with monkeypatch.context() as patched:
        patched.setattr(held.lease, "renew", no_answer)
        with pytest.raises(StoreUnavailableError, match="a lock couldn't be renewed: no answer"):
            a.lock_item("k", duration=60)
    assert held.until == world.clock.now + 10
    with pytest.raises(ItemLockedError):
        b["k"] = "theirs"
    a["k"] = "mine"


def test_force_leaves_a_lock_to_a_waiter_who_is_just_taking_it(world, clients):
    dead, other = clients
    dead.lock_item("k")
    before = epoch(other)

    def taken(_act):
        raise LeaseHeld("by a waiter")

    world.of(other).at("lease", "", taken)
    other.unlock_item("k", force=True)
    assert epoch(other) == before


def test_force_ends_ones_own_lock_as_well(world, clients):
    a, b = clients
    a.lock_item(["k", "m"])
    a.unlock_item("k", force=True)
    assert not holds(a, "k")
    assert holds(a, "m")
    b["k"] = "theirs"
    a["k"] = "an ordinary write"
    assert list(b.locks) == ["m"]


def test_a_forked_child_holds_nothing(world, clients):
    parent, child = clients
    parent.lock_item("k")
    # A child has a copy of the parent's memory: here, of what it holds.
    child._parts.locks._held._held.update(parent._parts.locks._held._held)
    assert holds(child, "k")
    child._parts.locks.orphan()
    assert not holds(child, "k")
    with pytest.raises(ItemLockedError):
        child["k"] = "the child's"
    parent["k"] = "the parent's"


def test_in_a_forked_child_no_thread_of_its_parent_is_in_a_section(world, clients):
    parent, child = clients
    section, inside = parent.lock("k"), parent._parts.locks._held._sections
    thread = threading.Thread(target=section.__enter__)
    thread.start()
    thread.join(30)
    child._parts.locks._held._sections.update(inside)
    with pytest.raises(ItemLockedError, match="another thread"), child.lock("k", wait=False):
        pass
    child._parts.locks.orphan()
    with pytest.raises(ItemLockedError, match="process"), child.lock("k", wait=False):
        pass
    section.__exit__(None, None, None)
    assert child.locks == {}


def test_a_section_that_was_entered_before_the_fork_ends_nothing_in_the_child(world, clients):
    parent, other = clients
    section = parent.lock("k")
    section.__enter__()
    parent._parts.locks.orphan()
    section.__exit__(None, None, None)
    assert list(other.locks) == ["k"]


def test_an_interrupted_wait_for_a_lock_ends(world, clients, monkeypatch):
    holder, waiter = clients
    holder.lock_item("k", duration=-1)
    locks, interrupt, ended = waiter._parts.locks, Interrupt(), threading.Event()
    acquire = locks._acquire

    def acquires(*args):
        try:
            return acquire(*args)
        except AbandonedError:
            ended.set()
            raise

    monkeypatch.setattr(locks, "_acquire", acquires)
    monkeypatch.setattr(world.runtime, "sleep", lambda _seconds: interrupt.strike())
    with interrupt, pytest.raises(KeyboardInterrupt):
        waiter.lock_item("k")
    assert ended.wait(30)
    holder.unlock_item("k")
    assert holder.locks == {}


@pytest.mark.parametrize("outage", [False, True])
def test_a_section_that_never_gets_to_its_end_is_unlocked_all_the_same(
    world, clients, caplog, outage
):
    a, b = clients
    section = a.lock("k")
    section.__enter__()
    assert b.locks
    if outage:
        a._engine.backend.timeout = 3
        world.of(a).steps += [("put", INDEX, no_answer)] * 200 + [("get", INDEX, no_answer)] * 200
    with caplog.at_level("INFO", "remotedict"):
        del section
        eventually(lambda: not holds(a, "k"))
        if outage:
            eventually(lambda: "the locks on 'k' were dropped" in caplog.text)
    world.of(a).steps.clear()
    b["k"] = "free again"
    assert b.locks == {}


def test_a_section_in_a_held_lock_that_never_gets_to_its_end_is_none_any_more(world, clients):
    a, b = clients
    a.lock_item("k", duration=5)
    held = a._parts.locks._held.get("k")
    end = held.until
    section = a.lock("k")
    section.__enter__()
    assert held.until is None
    del section
    eventually(lambda: held.until == end)
    assert holds(a, "k")
    lease_runs_out(world)
    b["k"] = "theirs"
    with pytest.raises(LockLostError):
        a["k"] = "stale"
    a["k"] = "knowing"  # told once: no section is left that may have read what was before


# A section that an interrupt has cut off is ended by another thread, some time later. Meanwhile the
# thread that was interrupted may be in other sections of the key, or enter one.


@pytest.fixture
def posted(world, monkeypatch):
    """What other threads are to do: they wait until the test lets them."""
    jobs = []
    monkeypatch.setattr(world.runtime, "post", jobs.append)
    return jobs


def done_elsewhere(posted):
    while posted:
        thread = threading.Thread(target=posted.pop(0))
        thread.start()
        thread.join(30)


def entered(client, key="k"):
    section = client.lock(key)
    section.__enter__()
    return section


def leave(section):
    section.__exit__(None, None, None)


def others_may_enter(client, key="k"):
    """Tell whether another thread of the handle may enter a section, within some time."""
    done = threading.Event()

    def enter():
        with client.lock(key):
            pass
        done.set()

    threading.Thread(target=enter, daemon=True).start()
    return done.wait(30)


def assert_locked(client, other):
    with pytest.raises(ItemLockedError):
        other["k"] = "theirs"
    client["k"] = "mine"
    assert other["k"] == "mine"


def assert_free(client, other):
    assert other.locks == {}
    assert others_may_enter(client)
    other["k"] = "theirs"
    client["k"] = "an ordinary write"


def test_other_threads_wait_until_a_section_that_was_cut_off_is_unlocked(world, clients, posted):
    a, b = clients
    section = entered(a)
    del section
    assert_locked(a, b)
    with pytest.raises(ItemLockedError, match="another thread"):
        raise in_a_thread(lambda: a.lock("k", wait=False).__enter__())
    with pytest.raises(LockTimeoutError, match="has to end first"):
        raise in_a_thread(lambda: a.lock("k", timeout=0).__enter__())
    done_elsewhere(posted)
    assert_free(a, b)


def in_a_thread(act):
    errors = []

    def run():
        try:
            act()
        except ItemLockedError as exc:
            errors.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    return errors[0]


@pytest.mark.parametrize("ended", ["within the new one", "after the new one"])
def test_a_section_that_was_cut_off_is_not_unlocked_beneath_a_new_one(
    world, clients, posted, ended
):
    # Thread 1 is cut off, and enters a new section, which finds the lock held. Thread 2 ends the
    # first one. Thread 1 writes: under no lock, were it unlocked by that.
    a, b = clients
    section = entered(a)
    with a.lock("k"):
        del section
        if ended == "within the new one":
            done_elsewhere(posted)
        assert_locked(a, b)
    done_elsewhere(posted)
    assert_free(a, b)


@pytest.mark.parametrize("ended", ["within the new one", "after the new one"])
def test_the_end_of_a_lock_does_not_come_back_beneath_a_new_section(world, clients, posted, ended):
    a, _ = clients
    a.lock_item("k", duration=5)
    held = a._parts.locks._held.get("k")
    end = held.until
    section = entered(a)
    with a.lock("k"):
        del section
        if ended == "within the new one":
            done_elsewhere(posted)
        assert held.until is None
    done_elsewhere(posted)
    assert held.until == end
    assert holds(a, "k")
    assert others_may_enter(a)


def test_a_section_that_was_cut_off_ends_while_a_new_one_acquires_its_locks(
    world, clients, posted, monkeypatch
):
    # The new one has excluded the other threads, and found the lock held; then it's another one's.
    a, b = clients
    section = entered(a)
    locks, sections = a._parts.locks, [section]
    acquire = locks._acquire
    del section

    def acquires(*args):
        ends = acquire(*args)
        sections.clear()
        done_elsewhere(posted)
        return ends

    monkeypatch.setattr(locks, "_acquire", acquires)
    with a.lock("k"):
        assert_locked(a, b)
    monkeypatch.undo()
    assert_free(a, b)


def test_a_new_section_takes_no_lock_that_is_just_being_unlocked(
    world, clients, posted, monkeypatch
):
    a, b = clients
    section = entered(a)
    before = epoch(a)
    del section
    locks, unlocking, refused = a._parts.locks, threading.Event(), threading.Event()
    try_ = locks._try

    def unlock(act):
        unlocking.set()
        assert refused.wait(30)
        return act()

    def tries(*args):
        outcome = try_(*args)
        refused.set()
        return outcome

    world.of(a).at("put", INDEX, unlock)
    monkeypatch.setattr(locks, "_try", tries)
    elsewhere = threading.Thread(target=posted.pop())
    elsewhere.start()
    assert unlocking.wait(30)
    with a.lock("k"):
        elsewhere.join(30)
        assert epoch(a) not in {before, None}
        assert_locked(a, b)
    assert_free(a, b)


@pytest.mark.parametrize("ended", ["within the outer one", "after the outer one"])
def test_an_inner_section_that_was_cut_off_lets_the_other_threads_in(world, clients, posted, ended):
    a, b = clients
    with a.lock("k"):
        inner = entered(a)
        del inner
        if ended == "within the outer one":
            done_elsewhere(posted)
        assert_locked(a, b)
    done_elsewhere(posted)
    assert_free(a, b)


def test_of_sections_that_overlap_the_last_one_unlocks(world, clients):
    a, b = clients
    first = a.lock("k", "m")
    first.__enter__()
    second = entered(a)
    leave(first)
    assert list(b.locks) == ["k"]
    assert_locked(a, b)
    leave(second)
    assert_free(a, b)


@pytest.mark.parametrize("ended", ["while the second acquires", "within the second"])
def test_a_lock_that_a_section_took_itself_is_unlocked_whatever_was_held_before(
    world, clients, posted, monkeypatch, ended
):
    a, b = clients
    a.lock_item("k", duration=-1)
    sections = [entered(a)]
    a.unlock_item("k")
    locks = a._parts.locks
    acquire = locks._acquire

    def acquires(*args):
        ends = acquire(*args)
        sections.clear()
        done_elsewhere(posted)
        return ends

    if ended == "while the second acquires":
        monkeypatch.setattr(locks, "_acquire", acquires)
    with a.lock("k"):
        sections.clear()
        done_elsewhere(posted)
        assert_locked(a, b)
    monkeypatch.undo()
    assert_free(a, b)


def test_a_section_ends_while_another_thread_unlocks_its_key(world, clients):
    a, b = clients
    section = entered(a)
    unlocking, ended = threading.Event(), threading.Event()

    def unlock(act):
        unlocking.set()
        assert ended.wait(30)
        return act()

    world.of(a).at("put", INDEX, unlock)
    thread = threading.Thread(target=a.unlock_item, args=["k"])
    thread.start()
    assert unlocking.wait(30)
    leave(section)
    ended.set()
    thread.join(30)
    assert_free(a, b)


def test_a_section_ends_once(world, clients, posted):
    a, b = clients
    section = entered(a)
    leave(section)
    a.lock_item("k")
    leave(section)
    assert list(b.locks) == ["k"]
    del section
    assert not posted


@pytest.mark.parametrize("after", ["lease", "_acquire", "took", "__exit__", "leave"])
def test_a_section_that_is_interrupted_at_its_beginning_or_end_ends_all_the_same(
    world, clients, monkeypatch, after
):
    a, b = clients
    interrupt, locks = Interrupt(), a._parts.locks
    if after == "lease":
        world.of(a).at("lease", "", interrupt.after(lambda act: act()))
    elif after == "__exit__":
        monkeypatch.setattr(locks, "leave", interrupt.before(locks.leave))
    else:
        monkeypatch.setattr(locks, after, interrupt.after(getattr(locks, after)))
    with interrupt, pytest.raises(KeyboardInterrupt) as raised, a.lock("k", "m"):
        pass
    assert raised.tb  # it keeps the section alive
    assert others_may_enter(a)
    assert others_may_enter(a, "m")
    eventually(lambda: b.locks == {})
    assert_free(a, b)


def test_a_lock_that_is_acquired_for_nobody_is_unlocked(world, clients, monkeypatch):
    a, b = clients
    locks, interrupt = a._parts.locks, Interrupt()
    monkeypatch.setattr(locks, "_acquire", interrupt.after(locks._acquire))
    with interrupt, pytest.raises(KeyboardInterrupt):
        a.lock_item("k", duration=-1)
    eventually(lambda: b.locks == {})
    assert_free(a, b)


@pytest.mark.parametrize(("before", "stays"), [("_release_all", True), ("_unlock", False)])
def test_an_unlock_that_is_interrupted_is_not_begun_or_done(
    world, clients, monkeypatch, before, stays
):
    a, b = clients
    locks, interrupt = a._parts.locks, Interrupt()
    a.lock_item(["k", "m"], duration=-1)
    ended = threading.Event()
    act = getattr(locks, before)

    def acted(*args):
        try:
            act(*args)
        finally:
            ended.set()

    monkeypatch.setattr(locks, before, interrupt.before(acted))
    with interrupt, pytest.raises(KeyboardInterrupt):
        a.unlock_item(["k", "m"])
    assert ended.wait(10)
    assert {key: info.mine for key, info in a.locks.items()} == dict.fromkeys("km" * stays, True)
    if stays:
        monkeypatch.undo()
        a.unlock_item(["k", "m"])
    assert_free(a, b)


def test_an_interrupt_ends_the_wait_for_another_thread(world, clients, monkeypatch):
    a, b = clients
    locks, interrupt = a._parts.locks, Interrupt()
    inside, waiting, end = threading.Event(), threading.Event(), threading.Event()
    enter = locks.enter

    def enters(key, section):
        others = enter(key, section)
        if others:
            waiting.set()
        return others

    def hold():
        with a.lock("k"):
            inside.set()
            assert waiting.wait(30)
            interrupt.strike()
            assert end.wait(30)

    monkeypatch.setattr(locks, "enter", enters)
    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(30)
    with interrupt, pytest.raises(KeyboardInterrupt), a.lock("j", "k"):
        pass
    assert others_may_enter(a, "j")
    assert_locked(a, b)
    end.set()
    holder.join(30)
    assert_free(a, b)
