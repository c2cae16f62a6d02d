"""The writers' queue: who loses lines up, and who never loses makes way for those who do."""

from __future__ import annotations

import threading
import time

import pytest

from faults import INDEX, World, after
from remotedict import AccessDeniedError
from remotedict.engine import turn

QUEUE = "locks/.commit"
HANG = 30.0


@pytest.fixture
def clients(world):
    made = world.open(timeout=300), world.open()
    made[0]["k"] = "old"
    assert made[1]["k"] == "old"
    return made


def asked(world, client):
    """Return how often a client asked for a place in the queue."""
    return len(world.of(client).sent("lease", QUEUE))


def lose(world, client, other, times):
    for n in range(times):
        world.of(client).at("put", INDEX, after(lambda n=n: other.__setitem__("k", n)))


def test_a_writer_that_loses_several_times_lines_up(world, clients):
    a, b = clients
    lose(world, a, b, 5)
    a["mine"] = 1
    assert asked(world, a) == 1
    world.store.lease(a._engine.layout.commit_queue, 15, lease_id="the next")  # it was given back


def test_the_queue_has_a_finite_lease_and_a_dead_waiter_stops_nobody(world, clients):
    a, b = clients
    world.store.lease(a._engine.layout.commit_queue, 15, lease_id="a waiter that is dead")
    lose(world, a, b, 6)
    a["mine"] = 1
    queued = world.of(a).sent("lease", QUEUE)
    assert queued
    assert all(0 < call.args["seconds"] <= 60 for call in queued)
    assert b["mine"] == 1


def test_a_refused_place_in_the_queue_refuses_no_commit(world, clients):
    a, b = clients

    def denied(act):
        raise AccessDeniedError("this SAS may not lease")

    world.of(a).at("lease", QUEUE, denied)
    lose(world, a, b, 5)
    a["mine"] = 1
    assert b["mine"] == 1


def test_a_place_in_the_queue_that_ran_out_is_taken_again(world, clients):
    a, b = clients

    def lose_slowly(n):
        world.clock.now += 4
        b["k"] = n

    for n in range(12):
        world.of(a).at("put", INDEX, after(lambda n=n: lose_slowly(n)))
    a["mine"] = 1
    assert asked(world, a) == 2
    world.store.lease(a._engine.layout.commit_queue, 15, lease_id="the next")  # it was given back


def test_a_writer_that_never_loses_lets_the_one_in_the_queue_go_first(world, clients):
    quick, slow = clients
    world.clock.now += turn._REST
    lease = world.store.lease(quick._engine.layout.commit_queue, 15, lease_id="slow")

    def go_first(act):
        assert slow["k"] == turn._RUN - 2
        slow["k"] = "slow"
        lease.release()
        return act()

    world.of(quick).at("lease", QUEUE, lambda act: act())
    world.of(quick).at("lease", QUEUE, go_first)
    for n in range(turn._RUN):
        assert asked(world, quick) == 0
        quick["k"] = n
    assert asked(world, quick) == 2
    assert slow["k"] == turn._RUN - 1


def test_a_writer_makes_way_more_often_among_others_and_never_if_it_rests(world, clients):
    quick, other = clients
    world.clock.now += turn._REST
    lose(world, quick, other, 1)
    quick["k"] = "lost first"
    for n in range(turn._RUN_AMONG_RIVALS):
        assert asked(world, quick) == 0
        quick["k"] = n
    assert asked(world, quick) == 1
    world.clock.now += turn._REST
    for n in range(turn._RUN - 1):
        quick["k"] = n
    for n in range(turn._RUN):
        world.clock.now += turn._REST
        quick["k"] = n
    assert asked(world, quick) == 1


def test_a_dead_one_in_the_queue_holds_up_a_quick_writer_a_little_and_not_again_at_once(
    world, clients
):
    quick, _ = clients
    world.clock.now += turn._REST
    world.store.lease(quick._engine.layout.commit_queue, 60, lease_id="dead")
    began = world.clock.now
    for n in range(turn._RUN):
        quick["k"] = n
    held_up, requests = world.clock.now - began, asked(world, quick)
    assert turn._PATIENCE <= held_up < 2 * turn._PATIENCE
    assert 3 < requests < 40
    for n in range(2 * turn._RUN):
        quick["k"] = n
    assert (world.clock.now - began, asked(world, quick)) == (held_up, requests)
    world.clock.now = began + held_up + turn._IMPATIENCE
    for n in range(turn._RUN):
        quick["k"] = n
    assert asked(world, quick) > requests


def test_a_quick_writer_does_not_keep_a_slow_one_out(monkeypatch):
    world, over = World(), threading.Event()  # of real time
    quick, slow = world.open(), world.open(timeout=2 * HANG)
    quick["n"] = 0
    put = world.of(slow).put

    def put_late(path, data, **conditions):
        """Let the quick one commit first, unless it waits in the queue."""
        others = world.of(quick).calls
        begun = len(others)
        while path == INDEX and thread.is_alive():
            verbs = [call.verb for call in others[begun:] if call.path.endswith((INDEX, QUEUE))]
            if verbs.count("put") > 1 or "lease" in verbs:
                break
            time.sleep(0.001)
        return put(path, data, **conditions)

    def hammer():
        while not over.is_set():
            quick["n"] += 1

    monkeypatch.setattr(world.of(slow), "put", put_late)
    thread = threading.Thread(target=hammer)
    thread.start()
    try:
        slow["mine"] = 1
    finally:
        over.set()
        thread.join(HANG)
    assert quick["mine"] == 1
