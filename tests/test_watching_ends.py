"""The end of a watch, its pauses and its troubles; and functions that are called on changes."""

from __future__ import annotations

import itertools
import logging
import signal
import subprocess
import sys
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest

import remotedict
from faults import INDEX, lose_request
from following import (
    FAST,
    HANG,
    NEVER,
    Followers,
    closing,
    eventually,
    fill,
    make_small,
    offline,
    past,
    remake,
    told,
)
from remotedict import (
    ClosedError,
    DictionaryChangedError,
    HistoryGapError,
    InvalidKeyError,
    StoreUnavailableError,
    UnknownCommitError,
)
from test_leaving import run_to_its_end

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Shop
    from faults import World
    from remotedict.features.events import Event

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signal")


@pytest.fixture
def world(world: World) -> Iterator[World]:
    with closing(world):
        yield world


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits at which a few commits roll over, merge, and make checkpoints with their logs."""
    make_small(monkeypatch)


# -- the end of a watch ---------------------------------------------------------------------


def test_a_timeout_of_zero_ends_with_what_has_happened_though_more_happens(world: World) -> None:
    d = world.open()
    d["k"] = 0
    seen = 0
    for seen, _ in enumerate(d.watch(since=0, timeout=0), 1):
        d["k"] = seen
        assert seen < 10
    assert seen >= 1


def test_a_timeout_ends_a_watch_though_others_write_all_the_time(world: World) -> None:
    d = world.open()
    begun = world.clock.now
    d["k"] = 0
    for event in d.watch(since=0, timeout=10):
        world.clock.now += 1
        d["k"] = event.seq
        assert event.seq < 30
    assert 10 <= world.clock.now - begun <= 15


def test_a_timeout_is_waited_for_to_its_end(world: World) -> None:
    d, other = world.open(), world.open()
    waits, wait = [], world.runtime.wait

    def wait_and_write(signal: Any, seconds: float) -> bool:
        waits.append(seconds)
        if sum(waits) >= 29:
            other["last"] = 1
        return wait(signal, seconds)

    world.runtime.wait = wait_and_write
    w = d.watch(timeout=30, poll=(2.0, 7.0))
    begun = world.clock.now
    assert [event.key for event in w] == ["last"]
    assert world.clock.now - begun == pytest.approx(30)
    assert list(w) == []


def test_stop_ends_a_watch_that_waits_in_another_thread() -> None:
    with remotedict.MemoryDictionary() as d:
        w = d.watch(poll=NEVER)
        ended = threading.Thread(target=lambda: list(w))
        ended.start()
        w.stop()
        ended.join(HANG)
        assert not ended.is_alive()
        w.stop()
        d["k"] = 1
        assert list(w) == []


def test_stop_ends_a_watch_that_is_in_the_middle_of_a_bulk_write(world: World) -> None:
    d = world.open()
    d.update({f"k{n}": n for n in range(5)})
    seen = []
    with d.watch(since=0) as w:
        for event in w:
            seen.append(event)
            if event.key == "k1":
                w.stop()
    assert [event.key for event in seen] == ["k0", "k1"]
    assert [event.key for event in past(d, seen[-1])] == ["k2", "k3", "k4"]


def test_a_watch_ends_with_its_context(world: World) -> None:
    d = world.open()
    with d.watch(since=0) as w:
        d["k"] = 1
        d["l"] = 2
        assert next(w).key == "k"
    assert list(w) == []
    with pytest.raises(StopIteration):
        next(w)


def test_the_handle_is_closed_under_a_watch(shop: Shop) -> None:
    d = shop.open()
    w = d.watch(poll=FAST)
    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            next(w)
        except BaseException as exc:  # noqa: BLE001 - it is looked at below
            outcome.append(exc)

    waiting = threading.Thread(target=wait)
    waiting.start()
    d.close()
    waiting.join(HANG)
    assert [type(exc) for exc in outcome] == [ClosedError]
    with pytest.raises(ClosedError):
        next(w)
    with pytest.raises(ClosedError):
        d.watch()


# -- an interrupt ---------------------------------------------------------------------------


@posix
def test_ctrl_c_ends_a_watch_that_waits_and_the_handle_goes_on(tmp_path: Path) -> None:
    code = (
        "import signal, sys, remotedict\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # also in a background job
        "d = remotedict.open(sys.argv[1])\n"
        "w = d.watch(poll=(0.5, 500))\n"
        "try:\n"
        "    print('ready', flush=True)\n"
        "    for event in w:\n"
        "        print(event)\n"
        "except KeyboardInterrupt:\n"
        "    d['k'] = 1\n"
        "    d['l'] = d['k'] + 1\n"
        "    print(next(w).key, next(w).key, d['l'], flush=True)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with child:
        assert child.stdout.readline() == b"ready\n"
        begun = time.monotonic()
        child.send_signal(signal.SIGINT)
        try:
            assert child.communicate(timeout=HANG) == (b"k l 2\n", b"")
        finally:
            child.kill()
        assert child.returncode == 0
    assert time.monotonic() - begun < HANG


@posix
@pytest.mark.parametrize("at", range(1, 9))
def test_ctrl_c_during_any_request_of_a_watch_loses_no_event(
    at: int, world: World, small: None
) -> None:
    d = world.open()
    for n in range(40):
        d[f"k{n}"] = n
    d._engine.upkeep.finish()
    backend, requests = world.of(d), itertools.count(1)
    w = d.watch(since=0, timeout=0)
    do, through = backend._do, threading.Event()

    def interrupted(call: Any, act: Any) -> Any:
        if next(requests) == at:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            through.wait(0.3)  # no longer: main may have been about to wait, and notices later
        return do(call, act)

    backend._do = interrupted
    events: list[Event] = []
    try:
        for event in w:
            events.append(event)  # noqa: PERF402 - those before an interrupt count
    except KeyboardInterrupt:
        through.set()
        events += w
    finally:
        through.set()
    assert [event.key for event in events] == [f"k{n}" for n in range(40)]
    assert next(requests) > at or through.is_set()


# -- how often it looks ---------------------------------------------------------------------


def test_an_idle_watch_sends_one_request_at_a_time_ever_more_rarely(world: World) -> None:
    d, other = world.open(), world.open()
    d["k"] = 0
    backend, waits, wait = world.of(d), [], world.runtime.wait

    def recorded(signal: Any, seconds: float) -> bool:
        waits.append((seconds, len(backend.calls)))
        if len(waits) == 20:
            other["k"] = 1
        return wait(signal, seconds)

    world.runtime.wait = recorded
    w = d.watch(timeout=300, poll=(0.5, 6.0))
    etag = world.store.get(INDEX).etag
    before = len(backend.calls)
    events = list(w)
    assert told(events) == [("set", "k", 2)]
    growing = [0.5, 0.75, 1.125, 1.6875, 2.53125, 3.796875, 5.6953125]
    pauses = [seconds for seconds, _ in waits]
    assert pauses[:20] == [*growing, *[6.0] * 13]
    assert pauses[20:28] == [*growing, 6.0]
    assert set(pauses[28:-1]) == {6.0}
    assert pauses[-1] <= 6
    # The look that begins it has told what it begins after.
    counts = [count - before for _, count in waits]
    assert counts[:20] == list(range(20))
    assert counts[20:] == list(range(21, len(counts) + 1))
    calls = backend.calls[before:]
    assert {(call.verb, call.path) for call in calls} == {("get", INDEX)}
    assert {call.args["if_none_match"] for call in calls[:20]} == {etag}


@pytest.mark.parametrize("poll", [(1, 1), [0.25, 8], (2.5, 2.5)])
def test_the_bounds_of_the_pauses_are_obeyed(poll: Any, world: World) -> None:
    d = world.open()
    pauses = []

    def recorded(signal: Any, seconds: float) -> bool:
        pauses.append(seconds)
        world.clock.now += seconds
        return False

    world.runtime.wait = recorded
    assert list(d.watch(timeout=50, poll=poll)) == []
    assert (min(pauses[:-1]), max(pauses)) == tuple(poll)
    assert sum(pauses) == pytest.approx(50)


def test_a_watch_that_has_much_to_catch_up_with_does_not_pause(world: World, small: None) -> None:
    d = world.open()
    for n in range(60):
        d[f"k{n}"] = n
    w = d.watch(since=0)
    world.runtime.wait = lambda *_: pytest.fail("it has paused")
    assert [next(w).key for _ in range(60)] == [f"k{n}" for n in range(60)]


# -- a lost connection ----------------------------------------------------------------------


@pytest.mark.parametrize("lost_for", [2, 30, 1000])
def test_a_watch_goes_on_after_the_connection_was_lost(
    lost_for: float, world: World, small: None
) -> None:
    d, other = world.open(timeout=20), world.open()
    w = d.watch()
    other["k"] = 0
    assert next(w).seq == 1
    for n in range(1, 41):
        other["k"] = n
    end = world.clock.now + lost_for
    backend = world.of(d)
    do = backend._do
    backend._do = lambda call, act: lose_request(act) if world.clock.now < end else do(call, act)
    assert [next(w).version for _ in range(40)] == list(range(2, 42))
    assert world.clock.now >= end


@pytest.mark.parametrize("lost_for", [2, 100])
def test_a_connection_that_is_lost_while_commits_are_read_costs_none_of_them(
    lost_for: float, world: World, small: None
) -> None:
    d = world.open(timeout=20)
    for n in range(60):
        d["k"] = n
    d._engine.upkeep.finish()
    assert d._engine.index.known.index.log
    backend = world.of(d)
    do, ends = backend._do, []

    def unreliable(call: Any, act: Any) -> Any:
        """Lose all but the index for a while, from each third request on."""
        if len(backend.calls) % 3 == 0 and len(ends) < 5:
            ends.append(world.clock.now + lost_for)
        lost = call.path != INDEX and ends and world.clock.now < ends[-1]
        return do(call, (lambda: lose_request(act)) if lost else act)

    w = d.watch(since=0)
    backend._do = unreliable
    assert [next(w).version for _ in range(60)] == list(range(1, 61))
    assert ends


def test_a_timeout_that_ends_while_the_connection_is_lost_says_so(world: World) -> None:
    d, other = world.open(timeout=20), world.open()
    other["k"] = 1
    w = d.watch(since=0, timeout=100)
    assert next(w).seq == 1
    other["k"] = 2
    begun = world.clock.now
    with offline(world.of(d)), pytest.raises(StoreUnavailableError):
        list(w)
    assert 100 <= world.clock.now - begun < 150
    assert told(w) == [("set", "k", 2)]  # nothing is lost to one who tries again


# -- another dictionary ---------------------------------------------------------------------


def test_a_dictionary_that_is_made_anew_ends_a_watch(world: World) -> None:
    d = world.open()
    d["k"] = 1
    w = d.watch()
    new = remake(world)
    with pytest.raises(DictionaryChangedError, match="deleted"):
        next(w)
    new["k"] = 2
    new["k"] = 3
    with pytest.raises(DictionaryChangedError, match="made anew"):
        next(w)


def test_an_event_of_another_dictionary_is_refused(world: World) -> None:
    d = world.open()
    d["k"] = 1
    d["k"] = 2
    first, second = past(d)
    new = remake(world)
    new["k"] = 3
    for event in (first, second):
        with pytest.raises(UnknownCommitError) as refused:
            new.watch(since=event)
        assert refused.value.commit == event
    with pytest.raises(UnknownCommitError):
        new.watch(since=first.commit)


def test_an_old_event_of_another_dictionary_is_refused(
    world: World, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remotedict.pure.state.RECENT_IDS", 5)
    d = world.open()
    d["k"] = 1
    [event] = past(d)
    new = remake(world)
    new.history_policy = "all"
    fill(world, new, 100)  # so that the ids of the first commits are no longer in the state
    fresh = world.open()
    assert fresh._engine.now().state.commit_id(1) is None
    with pytest.raises(UnknownCommitError):
        past(fresh, event)


# -- functions that are called on changes ---------------------------------------------------


def taken(queue: SimpleQueue[Event], count: int) -> list[Event]:
    return [queue.get(timeout=HANG) for _ in range(count)]


@pytest.fixture
def followers() -> Followers:
    return Followers()


def test_a_function_is_called_with_each_change_in_order(shop: Shop) -> None:
    d, queue = shop.open(author="ann"), SimpleQueue()
    with d.on_change(queue.put, poll=FAST) as subscription:
        other = shop.open(author="bob")
        other["k"] = 1
        other.update({f"k{n}": n for n in range(20)})
        d.metadata["k"] = {"a": 1}
        del d["k"]
        with d.lock("k"):
            other["last"] = 1
        events = taken(queue, 26)
    assert events == past(d)
    assert subscription.error is None


KEYS = ["a/b", "a/c", "A/b", "run-1/loss", "a[1]", "é"]


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [
        ("*", KEYS),
        ("a/b", ["a/b"]),
        ("a/*", ["a/b", "a/c"]),
        ("?/b", ["a/b", "A/b"]),
        ("run-*/loss", ["run-1/loss"]),
        ("[!a]*", ["A/b", "run-1/loss", "é"]),
        ("a[[]1]", ["a[1]"]),
        ("nothing", []),
    ],
)
def test_a_function_is_called_for_the_keys_that_match(
    pattern: str, keys: list[str], world: World
) -> None:
    d, queue = world.open(), SimpleQueue()
    d.update(dict.fromkeys(KEYS))
    subscription = d.on_change(queue.put, pattern, since=0)
    watch = subscription._watch
    eventually(lambda: watch._after == 1 and not watch._ready)
    subscription.stop()
    assert [event.key for event in taken(queue, len(keys))] == keys
    assert queue.empty()


def test_a_function_that_fails_is_logged_and_hurts_nobody(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    d, queue = shop.open(), SimpleQueue()
    failing: SimpleQueue[Event] = SimpleQueue()

    def fail(event: Event) -> None:
        failing.put(event)
        raise ZeroDivisionError(event.key)

    subscriptions = [
        d.on_change(queue.put, poll=FAST),
        d.on_change(fail, poll=FAST),
        d.on_change(fail, "k2", poll=FAST),
        d.on_change(queue.put, poll=FAST),
    ]
    d.update(k1=1, k2=2, k3=3)
    assert sorted(event.key for event in taken(queue, 6)) == ["k1", "k1", "k2", "k2", "k3", "k3"]
    assert sorted(event.key for event in taken(failing, 4)) == ["k1", "k2", "k2", "k3"]
    d["k2"] = 4
    taken(queue, 2)
    taken(failing, 2)
    eventually(lambda: len(caplog.records) == 6)
    for record in caplog.records:
        assert (record.name, record.levelno) == ("remotedict", logging.ERROR)
        assert record.exc_info
        assert record.exc_info[0] is ZeroDivisionError
        assert "on_change" in record.getMessage()
        assert "key='k" in record.getMessage()
    assert [subscription.error for subscription in subscriptions] == [None] * 4


def test_a_subscription_that_is_stopped_calls_no_more(world: World, followers: Followers) -> None:
    d, other = world.open(), world.open()
    queue, kept = SimpleQueue(), SimpleQueue()
    subscriptions = []

    def stop_at_once(event: Event) -> None:
        queue.put(event)
        subscriptions[0].stop()

    d.update({f"k{n}": n for n in range(5)})
    world.runtime.wait = lambda given, _: given.wait(0.005)
    subscriptions.append(d.on_change(stop_at_once))
    d.on_change(kept.put)
    other.update({f"k{n}": n for n in range(5)})
    other["last"] = 1
    taken(kept, 6)
    eventually(lambda: followers.names == ["subscription"])
    assert [event.key for event in taken(queue, 1)] == ["k0"]
    assert queue.empty()
    subscriptions[0].stop()
    assert subscriptions[0].error is None


def test_a_subscription_ends_with_its_handle(shop: Shop, followers: Followers) -> None:
    d, other, queue = shop.open(), shop.open(), SimpleQueue()
    subscriptions = [d.on_change(queue.put, poll=poll) for poll in (FAST, NEVER)]
    kept = other.on_change(queue.put, poll=FAST)
    assert followers.names == ["subscription"] * 3
    d.close()
    eventually(lambda: followers.names == ["subscription"])
    other["k"] = 1
    taken(queue, 1)
    other.close()
    eventually(lambda: not followers.names)
    assert [s.error for s in (*subscriptions, kept)] == [None] * 3
    with pytest.raises(ClosedError):
        d.on_change(queue.put)
    assert queue.empty()


def test_a_function_may_use_the_dictionary_and_close_it(shop: Shop, followers: Followers) -> None:
    d, done = shop.open(), SimpleQueue()

    def double(event: Event) -> None:
        d[f"{event.key}-doubled"] = 2 * d[event.key]

    def close(event: Event) -> None:
        done.put(d[event.key])
        d.close()

    d.on_change(double, "k?", poll=FAST)
    d.on_change(close, "k2-doubled", poll=FAST)
    shop.open().update(k1=1, k2=2)
    assert done.get(timeout=HANG) == 4
    eventually(lambda: not followers.names)
    assert dict(shop.open()) == {"k1": 1, "k2": 2, "k1-doubled": 2, "k2-doubled": 4}


def test_what_ends_a_subscription_is_its_error(
    world: World, small: None, followers: Followers, caplog: pytest.LogCaptureFixture
) -> None:
    d, queue = world.open(), SimpleQueue()
    resume, real = threading.Event(), world.runtime.wait
    world.runtime.wait = lambda given, seconds: resume.wait(HANG) and real(given, seconds)
    gap = world.open().on_change(queue.put)
    fill(world, d, 120)
    resume.set()
    eventually(lambda: gap.error)
    assert isinstance(gap.error, HistoryGapError)
    changed = d.on_change(queue.put)
    remake(world)
    eventually(lambda: changed.error)
    assert isinstance(changed.error, DictionaryChangedError)
    eventually(lambda: not followers.names)
    assert queue.empty()
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 2


def test_a_subscription_outlives_a_lost_connection(world: World) -> None:
    d, other, queue = world.open(timeout=5), world.open(), SimpleQueue()
    subscription = d.on_change(queue.put)
    with offline(world.of(d)):
        begun = world.clock.now
        other["k"] = 1
        eventually(lambda: world.clock.now > begun + 60)
    assert taken(queue, 1)[0].key == "k"
    assert subscription.error is None


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"fn": None}, TypeError),
        ({"fn": "print"}, TypeError),
        ({"key": None}, InvalidKeyError),
        ({"key": 1}, InvalidKeyError),
        ({"key": ""}, InvalidKeyError),
        ({"since": 7}, UnknownCommitError),
        ({"poll": (0, 1)}, ValueError),
    ],
    ids=str,
)
def test_a_subscription_that_makes_no_sense_is_refused_at_once(
    wrong: Any, error: type[Exception], world: World, followers: Followers
) -> None:
    d = world.open()
    with pytest.raises(error):
        d.on_change(**{"fn": print, **wrong})
    assert followers.names == []


# -- the end of the process -----------------------------------------------------------------


def test_what_follows_keeps_no_process_from_ending(tmp_path: Path) -> None:
    code = (
        "import sys, threading, remotedict\n"
        "d = remotedict.open(sys.argv[1])\n"
        "quick = 0.001, 0.002\n"
        "d.on_change(lambda event: d.get(event.key), poll=quick)\n"
        "d.on_change(print, 'never', poll=(500, 500))\n"
        "m = d.mirror(prefetch=True, poll=quick)\n"
        "def watch():\n"
        "    for event in d.watch(since=0, poll=quick):\n"
        "        m.wait_for(event.key)\n"
        "threading.Thread(target=watch, daemon=True).start()\n"
        "threading.Thread(target=m.wait_for, args=('never',), daemon=True).start()\n"
        "for n in range(20):\n"
        "    d[f'k{n}'] = n\n"
        "assert m.wait_for('k19') == 1\n"
    )
    begun = time.monotonic()
    run_to_its_end(code, tmp_path)
    assert time.monotonic() - begun < HANG
