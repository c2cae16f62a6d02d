"""Several processes use one dictionary, and are killed, stopped, forked and interrupted."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest

import workers
from crew import HANG, Crew, crew_of, received
from workers import Where, token_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from remotedict import RemoteDict

FORKS = "fork" in multiprocessing.get_all_start_methods()
METHODS = ["forkserver", "fork"] if FORKS else ["spawn"]

if FORKS:
    multiprocessing.set_forkserver_preload(["workers"])  # else each process imports it all anew

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither fork nor signals")


@pytest.fixture(params=["local", "azure"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Where:
    if request.param == "local":
        return Where("local", str(tmp_path))
    azurite = request.getfixturevalue("azurite")
    return Where("azure", f"t{uuid.uuid4().hex}", azurite.connection_string)


@pytest.fixture
def d(where: Where) -> Iterator[RemoteDict]:
    with where.open() as d:
        yield d


@pytest.fixture(params=METHODS)
def crew(request: pytest.FixtureRequest) -> Iterator[Crew]:
    with crew_of(request.param) as crew:
        yield crew


@pytest.fixture
def forks() -> Iterator[Crew]:
    with crew_of("fork") as crew:
        yield crew


@pytest.fixture
def some() -> Iterator[Crew]:
    """Processes made in the way that is quickest here: for what doesn't depend on it."""
    with crew_of("fork" if FORKS else "spawn") as crew:
        yield crew


@pytest.fixture
def seed() -> int:
    """A seed that the output of a failing test shows."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed = {seed}")  # noqa: T201
    return seed


# -- many writers, one dictionary -----------------------------------------------------------


def test_eight_processes_lose_no_write_and_no_reader_sees_half_a_pair(
    where: Where, d: RemoteDict, crew: Crew
) -> None:
    d[["x", "y"]] = 0, 0
    barrier, stop = crew.context.Barrier(8 + 2 + 1), crew.context.Event()
    writers = [crew.start(workers.write_many, where, barrier, me, 100) for me in range(8)]
    pairs = crew.start(workers.write_pairs, where, barrier, stop)
    reader, report = crew.start_with_report(workers.read_pairs, where, barrier, stop)
    barrier.wait(HANG)
    begun = time.monotonic()
    crew.join(*writers)
    print(f"800 writes took {time.monotonic() - begun:.1f} s")  # noqa: T201
    stop.set()
    seen, torn = received(report)
    crew.join(pairs, reader)

    keys = list(d)
    assert len(keys) == len(set(keys)) == 802
    assert d.copy() == {
        **dict.fromkeys("xy", d["x"]),
        **{f"{me}-{i}": (me, i) for me in range(8) for i in range(100)},
    }
    with where.open() as fresh:
        assert list(fresh) == keys
        assert fresh.copy() == d.copy()
    for me in range(8):  # each one's own order is kept
        own = [key for key in keys if key.startswith(f"{me}-")]
        assert own == [f"{me}-{i}" for i in range(100)]
    assert torn == []
    assert seen > 1, "the reader saw no change: it has shown nothing"


# -- versions, events, transactions ---------------------------------------------------------


def test_two_processes_that_save_optimistically_make_versions_without_a_hole(
    where: Where, d: RemoteDict, some: Crew
) -> None:
    d.history_policy = "all"
    barrier = some.context.Barrier(2)
    savers = [
        some.start_with_report(workers.save_optimistically, where, barrier, me, 200)
        for me in range(2)
    ]
    begun = time.monotonic()
    won, losses = {}, 0
    for _, report in savers:
        mine, lost = received(report)
        assert len(mine) + len(lost) == 200
        assert won.keys().isdisjoint(mine)
        won |= mine
        losses += len(lost)
        for key, expected, provided, version in lost:
            assert (key, provided) == ("k", version)
            assert expected > version
    some.join(*(process for process, _ in savers))
    print(f"{losses} of 400 lost, in {time.monotonic() - begun:.1f} s")  # noqa: T201
    newest = 400 - losses
    assert sorted(won) == list(range(1, newest + 1))
    assert d.version("k") == newest
    history = d.history("k")
    assert list(history["version"]) == list(range(newest, 0, -1))
    assert set(history["kind"]) == {"set"}
    assert {version: d.at("k", version) for version in range(1, newest + 1, 10)} == {
        version: won[version] for version in range(1, newest + 1, 10)
    }
    assert losses > 0, "nobody was in anybody's way: this has shown nothing"


def test_a_watcher_sees_every_commit_of_four_writers_once_and_in_order(
    where: Where, d: RemoteDict, some: Crew
) -> None:
    barrier = some.context.Barrier(4 + 1)
    watching = some.context.Barrier(2)
    watcher, report = some.start_with_report(workers.watch_all, where, watching, 1000)
    watching.wait(HANG)
    writers = [some.start(workers.write_shared, where, barrier, me, 250) for me in range(4)]
    barrier.wait(HANG)
    begun = time.monotonic()
    some.join(*writers)
    written = time.monotonic() - begun
    events = received(report)
    seen = time.monotonic() - begun
    print(f"1000 commits took {written:.1f} s; the watcher was {seen - written:.2f} s behind")  # noqa: T201
    watching.wait(HANG)
    assert received(report) == []
    some.join(watcher)
    assert [event.seq for event in events] == sorted({event.seq for event in events})
    assert [event.commit for event in events] == list(d.history()["commit"])[::-1]
    versions = {f"k{n}": [e.version for e in events if e.key == f"k{n}"] for n in range(25)}
    assert versions == {key: list(range(1, 41)) for key in versions}
    for me in range(4):  # each one's own order is kept
        keys = [event.key for event in events if event.author == f"writer-{me}"]
        assert keys == [f"k{(n + me) % 25}" for n in range(250)]


@posix
def test_a_watcher_killed_again_and_again_sees_each_event_once(
    where: Where, d: RemoteDict, forks: Crew, seed: int
) -> None:
    rng = random.Random(seed)
    barrier, stop = forks.context.Barrier(2), forks.context.Event()
    writers = [
        forks.start_with_report(workers.write_some_bulks, where, barrier, me, stop)
        for me in range(2)
    ]
    changes = None
    since, told, killed_within, lives = 0, [], 0, 0
    while changes is None or len(told) < changes:
        lives += 1
        process, report = forks.start_with_report(workers.watch_until_killed, where, since)
        if rng.random() < 0.8 and lives > 1:
            received_one = report.poll(HANG)
            assert received_one, "the watcher hangs"
        time.sleep(rng.uniform(0, 0.05))  # the random moment
        process.kill()
        process.join(HANG)
        with contextlib.suppress(EOFError):
            while report.poll(HANG):
                since = report.recv()
                told.append(since)
        killed_within += changes is None or len(told) < changes
        if changes is None and killed_within > 5:
            stop.set()
            changes = sum(received(report) for _, report in writers)
    forks.join(*(process for process, _ in writers))
    print(f"{lives} lives, {killed_within} of them ended before the last event")  # noqa: T201
    assert told == list(d.watch(since=0, timeout=0))
    assert len(told) == changes
    assert len({(event.seq, event.position) for event in told}) == changes
    for key in d:
        versions = [event.version for event in told if event.key == key]
        assert versions == list(range(1, len(versions) + 1))


def test_modifications_of_one_value_by_several_processes_are_all_kept(
    where: Where, d: RemoteDict, some: Crew
) -> None:
    rounds = 50 if where.kind == "local" else 25
    barrier = some.context.Barrier(4 + 1)
    counters = [some.start(workers.count_up_by_modify, where, barrier, rounds) for _ in range(4)]
    barrier.wait(HANG)
    begun = time.monotonic()
    some.join(*counters)
    print(f"4 x {rounds} modifications took {time.monotonic() - begun:.1f} s")  # noqa: T201
    assert d["n"] == d.version("n") == 4 * rounds


def test_transactions_keep_the_sum_that_all_readers_see(
    where: Where, d: RemoteDict, some: Crew, seed: int
) -> None:
    accounts = [f"account-{n}" for n in range(5)]
    d[accounts] = [100] * 5
    rounds = 40 if where.kind == "local" else 15
    barrier, stop = some.context.Barrier(4 + 1 + 1), some.context.Event()
    movers = [
        some.start(workers.move_money, where, barrier, accounts, seed + me, rounds)
        for me in range(4)
    ]
    auditor, report = some.start_with_report(workers.audit, where, barrier, accounts, stop)
    barrier.wait(HANG)
    begun = time.monotonic()
    some.join(*movers)
    stop.set()
    sums, seen = received(report)
    print(f"{4 * rounds} transfers took {time.monotonic() - begun:.1f} s; {seen} states seen")  # noqa: T201
    some.join(auditor)
    assert sums == {500}
    assert sum(d[accounts]) == 500
    assert len(d.history()) == 5 + 2 * 4 * rounds
    assert seen > 5, "too few states were seen: this has shown nothing"


# -- a counter under a lock -----------------------------------------------------------------


def test_a_counter_under_a_lock_counts_every_round(where: Where, d: RemoteDict, crew: Crew) -> None:
    d["n"] = 0
    barrier = crew.context.Barrier(8 + 1)
    counters = [crew.start(workers.count_up, where, barrier, 50, None) for _ in range(8)]
    barrier.wait(HANG)
    begun = time.monotonic()
    crew.join(*counters)
    print(f"8 x 50 rounds took {time.monotonic() - begun:.1f} s")  # noqa: T201
    assert d["n"] == 400
    assert d.locks == {}


@posix
def test_a_counter_survives_a_holder_that_is_killed_in_its_critical_section(
    where: Where, d: RemoteDict, forks: Crew
) -> None:
    d["n"] = 0
    short = 5 if where.kind == "local" else None  # on Azure a lease lasts 15 s at the least
    barrier = forks.context.Barrier(8 + 1)
    counters = [forks.start(workers.count_up, where, barrier, 50, None) for _ in range(7)]
    victim, report = forks.start_with_report(workers.count_up_and_stick, where, barrier, 25, short)
    barrier.wait(HANG)
    for done in range(1, 26):
        assert received(report)[0] == done
    victim.kill()
    victim.join(HANG)
    assert d.locks["n"].pid == victim.pid
    at_death = d["n"]
    begun = time.monotonic()
    forks.join(*counters)
    # If the others were done before the kill, nobody else would meet the dead holder's lock.
    with d.lock("n"):
        d["n"] += 1
    print(f"the others ended {time.monotonic() - begun:.1f} s later, from {at_death}")  # noqa: T201
    assert d["n"] == 7 * 50 + 25 + 1
    assert d.locks == {}


# -- a writer that is killed ----------------------------------------------------------------


@posix
def test_a_writer_killed_a_hundred_times_loses_nothing_that_it_acknowledged(
    where: Where, d: RemoteDict, forks: Crew, seed: int
) -> None:
    rng = random.Random(seed)
    # For each key the tokens that its value may have: that of the last acknowledged write, and
    # those of later ones that were begun.
    possible: dict[str, list[Any]] = {}
    acknowledged = killed_within = 0

    def check(handle: RemoteDict, life: int) -> None:
        values = handle.copy()  # reads all of them: none is missing behind its key
        for key, tokens in possible.items():
            if None in tokens and key not in values:
                continue
            assert token_of(values[key]) in tokens, f"{key!r} after life {life}, seed {seed}"
        assert values.keys() <= possible.keys()
        for pair in ("xy", "pq"):
            left, right = (values.get(key) for key in pair)
            assert (left is None) == (right is None)
            assert left is None or token_of(left) == token_of(right)

    for life in range(100):
        process, report = forks.start_with_report(
            workers.write_until_killed, where, life, rng.randrange(2**32)
        )
        assert received(report)[0] == "ready"
        time.sleep(rng.uniform(0, 0.12))  # the random moment
        process.kill()
        process.join(HANG)
        open_write = None
        with contextlib.suppress(EOFError):
            while report.poll(HANG):
                what, token, keys = report.recv()
                open_write = token if what == "begun" else None
                acknowledged += what == "done"
                for key in keys:
                    if what == "begun":
                        possible.setdefault(key, [None]).append(token)
                    else:
                        possible[key] = [token]
        killed_within += open_write is not None
        check(d, life)
        if life % 10 == 9:
            with where.open() as fresh:
                check(fresh, life)
    print(f"{acknowledged} writes acknowledged, {killed_within} kills within a write")  # noqa: T201
    assert killed_within > 30, "too few kills within a write: they have shown nothing"
    d["after"] = "all"
    with where.open() as fresh:
        assert fresh["after"] == "all"


# -- a handle that is forked ----------------------------------------------------------------


@posix
def test_parent_and_children_share_a_handle_that_was_open_at_the_fork(
    d: RemoteDict, forks: Crew
) -> None:
    d["from before"] = "the fork"
    d["large"] = b"x" * 100_000
    children = []
    for me in range(4):
        children.append(forks.start_with_report(workers.use_inherited, d, me))
        d[f"parent-{me}"] = me  # while they begin
    n = 0
    while any(process.is_alive() for process, _ in children):
        n += 1
        d["parent"] = n
        assert d["parent"] == n
        assert d["from before"] == "the fork"
        assert len(d["large"]) == 100_000
    for me, (_, report) in enumerate(children):
        assert received(report) == me
    forks.join(*(process for process, _ in children))
    for me in range(4):
        for i in range(25):
            assert d[f"child-{me}-{i}"] == (me, i, "x" * 10 * i)
        assert d[f"parent-{me}"] == me
    assert len(d) == 3 + 4 + 4 * 26


@posix
def test_a_child_does_not_hold_the_locks_of_its_parent(d: RemoteDict, forks: Crew) -> None:
    d["held"] = "by the parent"
    with d.lock("held"):
        child, report = forks.start_with_report(workers.try_lock_of_parent, d)
        errors = received(report)
        forks.join(child)
        locked = "ItemLockedError"
        assert errors == [locked, locked, "LockNotHeldError", locked]
        assert d.locks["held"].mine
        assert d["held"] == "by the parent"
        d["held"] = "still by the parent"
    assert d.locks == {}


@posix
def test_a_child_forked_in_a_critical_section_does_not_unlock_it_on_its_way_out(
    where: Where, d: RemoteDict, forks: Crew
) -> None:
    process, report = forks.start_with_report(workers.fork_inside_lock, where)
    assert received(report) == ("ended with 0", True)
    forks.join(process)
    assert d["k"] == 2
    assert d.locks == {}


# -- a holder that is stopped ---------------------------------------------------------------


@posix
def test_a_holder_that_slept_past_its_lease_writes_nothing(
    where: Where, d: RemoteDict, forks: Crew
) -> None:
    # A local folder may be stopped in the middle of a compare-and-swap, under its file lock.
    duration, writes_on = (2, False) if where.kind == "local" else (15, True)
    orders, ours = forks.context.Pipe(duplex=False)
    holder, report = forks.start_with_report(
        workers.hold_and_write, where, duration, writes_on, orders
    )
    with orders, ours:
        assert received(report) == "locked"
        os.kill(holder.pid, signal.SIGSTOP)
        try:
            assert d.locks["k"].pid == holder.pid
            d.lock_item("k", duration=60, timeout=HANG)
            d["k"] = "theirs"
        finally:
            os.kill(holder.pid, signal.SIGCONT)
        ours.send("write")
        assert received(report) == ("LockLostError", "ItemLockedError")
        forks.join(holder)
    assert d["k"] == "theirs"
    assert d.locks["k"].mine
    d["k"] = "mine"
    d.unlock_item("k")
    with where.open() as fresh:
        assert fresh["k"] == "mine"


# -- a writer that is interrupted -----------------------------------------------------------


@posix
def test_a_writer_interrupted_by_ctrl_c_goes_on_with_the_right_values(
    where: Where, d: RemoteDict, crew: Crew, seed: int
) -> None:
    rng = random.Random(seed)
    process, report = crew.start_with_report(workers.write_interrupted, where, 30)
    counted, final = 0, {}
    for round_ in range(30):
        assert received(report) == "ready"
        time.sleep(rng.uniform(0, 0.1))  # the random moment
        os.kill(process.pid, signal.SIGINT)
        wrong, rounds, final = received(report)
        assert wrong == "", f"round {round_}, seed {seed}"
        counted += rounds + 1
    # Nothing that an interrupt left behind comes late, and no lock stays behind.
    assert {key: d[key] for key in final} == final
    with d.lock("n", timeout=HANG):
        # An interrupted increment may have been made, or not.
        assert counted <= d["n"] <= counted + 30
    assert d.locks == {}


@posix
def test_an_interrupt_during_any_request_leaves_nothing_behind(where: Where, forks: Crew) -> None:
    process, report = forks.start_with_report(workers.interrupt_each_request, where)
    rounds, wrong = received(report)
    assert wrong == []
    assert rounds > 20, "too few requests: this has shown nothing"
    forks.join(process)


@posix
def test_an_interrupted_write_never_lands_after_a_later_one(where: Where, forks: Crew) -> None:
    process, report = forks.start_with_report(workers.delay_submission, where)
    assert received(report) == "later"
    forks.join(process)


@posix
def test_hundreds_of_interrupts_at_any_moment_leave_the_handle_usable(
    tmp_path: Path, forks: Crew, seed: int
) -> None:
    where = Where("local", str(tmp_path))
    process, report = forks.start_with_report(workers.write_alarmed, where, 400, seed)
    assert received(report) > 100, "too few interrupts"
    forks.join(process)
    with where.open() as d:
        assert d["k"] == (399, 1)
