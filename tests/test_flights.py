"""Threads that want the same bytes at the same time share one request, and no failure."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import pytest

from faults import lose_request
from interrupting import Interrupt
from remotedict import MissingValueError
from remotedict.backend import BlobNotFound
from remotedict.engine import flights, values
from remotedict.engine.flights import Flights
from remotedict.engine.runtime import IO_THREADS, Runtime

HANG = 30.0
VALUE = random.Random(0).randbytes(5000)
THREADS = 8


class Gate:
    """Holds a request until a test lets it go."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, act):
        self.reached.set()
        assert self.opened.wait(HANG)
        return act()


def until(true) -> None:
    for _ in range(int(HANG * 1000)):
        if true():
            return
        time.sleep(0.001)
    pytest.fail("it never came true")


def waiting(engine_flights: Flights) -> int:
    """Return how many wait for what others fetch."""
    return sum(
        len(flight.landed._condition._waiters)
        for some in list(engine_flights._under_way.values())
        for flight in some
    )


@pytest.fixture
def d(world):
    """A handle that has nothing at hand, but knows the newest state, and doesn't ask again."""
    writer = world.open(inline_bytes=100)
    writer["one"] = VALUE
    writer.update({f"k{i}": random.Random(i).randbytes(900) for i in range(20)})  # a pack
    d = world.open(max_staleness=1e9)
    len(d)
    return d


def fetches(world, d):
    return [call for call in world.of(d).calls if not call.path.startswith("Index/")]


def flights_of(d) -> Flights:
    return d._engine.values._blobs.flights


def test_threads_that_read_one_value_share_one_request(world, d):
    gate = Gate()
    world.of(d).at("get", "", gate)
    with ThreadPoolExecutor(THREADS) as pool:
        found = [pool.submit(lambda: d["one"]) for _ in range(THREADS)]
        assert gate.reached.wait(HANG)
        gate.opened.set()
        assert [future.result(HANG) for future in found] == [VALUE] * THREADS
    # However late they came: whoever saw neither the value nor the flight looks again.
    assert len(fetches(world, d)) == 1
    assert (d.stats.misses, d.stats.memory_hits) == (1, THREADS - 1)


def test_what_they_get_is_their_own(world, d):
    writer = world.open(inline_bytes=0)
    writer["list"] = [VALUE.hex()]
    fresh, gate = world.open(), Gate()
    len(fresh)
    world.of(fresh).at("get", "list", gate)
    world.of(fresh).steps[:] = [("get", step[1], step[2]) for step in world.of(fresh).steps]
    with ThreadPoolExecutor(2) as pool:
        one, other = (pool.submit(lambda: fresh["list"]) for _ in range(2))
        gate.opened.set()
        assert one.result(HANG) == other.result(HANG)
        assert one.result() is not other.result()


def test_a_value_of_a_pack_that_is_being_read_is_waited_for(world, d):
    gate = Gate()
    world.of(d).at("get", "", gate)
    with ThreadPoolExecutor(2) as pool:
        all_of_it = pool.submit(lambda: d[[f"k{i}" for i in range(20)]])
        assert gate.reached.wait(HANG)
        one = pool.submit(lambda: d["k7"])
        until(lambda: waiting(flights_of(d)) == 1)
        gate.opened.set()
        assert one.result(HANG) == all_of_it.result(HANG)[7] == random.Random(7).randbytes(900)
    assert len(fetches(world, d)) == 1


def test_a_failure_of_the_one_who_asks_is_not_that_of_those_who_wait(world, d):
    def out_of_memory(act):
        assert gate.opened.wait(HANG)
        raise MemoryError

    gate = Gate()
    world.of(d).at("get", "", out_of_memory)
    with ThreadPoolExecutor(THREADS) as pool:
        found = [pool.submit(lambda: d["one"])]
        until(lambda: flights_of(d)._under_way)
        found += [pool.submit(lambda: d["one"]) for _ in range(THREADS - 1)]
        until(lambda: waiting(flights_of(d)) == THREADS - 1)
        gate.opened.set()
        assert isinstance(found[0].exception(HANG), MemoryError)
        assert [future.result(HANG) for future in found[1:]] == [VALUE] * (THREADS - 1)


def test_nor_is_a_deadline_that_has_passed(world, d):
    def silence(act):
        assert gate.opened.wait(HANG)
        world.clock.now += 1000
        lose_request(act)

    gate = Gate()
    world.of(d).at("get", "", silence)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: d["one"])
        until(lambda: flights_of(d)._under_way)
        second = pool.submit(lambda: d["one"])
        until(lambda: waiting(flights_of(d)) == 1)
        gate.opened.set()
        assert isinstance(first.exception(HANG), TimeoutError)
        assert second.result(HANG) == VALUE


def test_a_blob_that_is_gone_is_gone_for_all(world, d):
    entry = d._engine.index.known.state.get("one")
    path = d._engine.layout.path(entry.blob("one"))
    gate = Gate()
    world.of(d).at("get", "", gate)
    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(lambda: d["one"])]
        assert gate.reached.wait(HANG)
        found += [pool.submit(lambda: d["one"]) for _ in range(2)]
        until(lambda: waiting(flights_of(d)) == 2)
        world.store.delete([path])
        gate.opened.set()
        for future in found:
            assert isinstance(future.exception(HANG), MissingValueError)
    assert len(fetches(world, d)) == 1


def test_an_interrupt_of_the_one_who_asks_stops_nobody(world, d):
    gate = Gate()
    world.of(d).at("get", "", gate)
    found = []

    def other():
        assert gate.reached.wait(HANG)
        found.append(d["one"])

    interrupt = Interrupt()

    def strike():
        until(lambda: waiting(flights_of(d)) == 1)
        interrupt.strike()

    threads = [threading.Thread(target=other), threading.Thread(target=strike)]
    for thread in threads:
        thread.start()
    with interrupt, pytest.raises(KeyboardInterrupt):
        d["one"]
    gate.opened.set()
    for thread in threads:
        thread.join(HANG)
    assert found == [VALUE]
    assert d["one"] == VALUE
    assert len(fetches(world, d)) == 1
    assert not flights_of(d)._under_way


def test_nothing_is_left_of_a_flight_that_has_landed_or_failed():
    shared = Flights(Future)
    assert shared.share("a", 0, 3, lambda: b"abc") == b"abc"
    with pytest.raises(BlobNotFound):
        shared.share("a", 0, 3, lambda: (_ for _ in ()).throw(BlobNotFound("a")))
    assert not shared._under_way


def test_leaf_threads_never_wait_for_what_needs_leaf_threads(monkeypatch):
    """All threads of the pool want a part of what is read in pieces by this very pool."""
    monkeypatch.setattr(flights, "PIECE_BYTES", 10)
    shared, runtime = Flights(Future), Runtime()
    crowded = threading.Barrier(IO_THREADS + 1, timeout=HANG)

    def part(at):
        crowded.wait()
        return shared.share("a", at, 1, lambda: b"x")

    def whole():
        crowded.wait()  # until all leaf threads are taken
        return b"".join(runtime.map(lambda _: b"y", range(20)))

    begun = runtime.spawn(lambda: shared.share("a", 0, 20, whole))
    until(lambda: shared._under_way)
    assert list(runtime.map(part, range(IO_THREADS))) == [b"x"] * IO_THREADS
    assert begun.result(HANG) == b"y" * 20


def test_a_large_range_is_shared_too(monkeypatch):
    monkeypatch.setattr(flights, "PIECE_BYTES", 10)
    shared, gate = Flights(Future), Gate()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(
            lambda: shared.share("a", 0, 30, lambda: gate(lambda: bytes(range(30))))
        )
        assert gate.reached.wait(HANG)
        second = pool.submit(lambda: shared.share("a", 5, 20, lambda: pytest.fail("again")))
        until(lambda: waiting(shared) == 1)
        gate.opened.set()
        assert first.result(HANG) == bytes(range(30))
        assert second.result(HANG) == bytes(range(5, 25))


def test_ranges_that_only_overlap_are_read_apart():
    shared = Flights(Future)

    def outer():
        return shared.share("a", 5, 10, lambda: b"inner....!") and b"outer....!"

    assert shared.share("a", 0, 10, outer) == b"outer....!"


def test_random_ranges_are_always_the_right_bytes():
    content = random.Random(0).randbytes(1000)
    shared, reads = Flights(Future), []

    def use(seed):
        rng = random.Random(seed)
        for _ in range(200):
            at = rng.randrange(1000)
            length = rng.randrange(1, 1001 - at)

            def fetch(at=at, length=length):
                reads.append(1)
                if rng.random() < 0.1:
                    raise OSError
                time.sleep(0.0001)
                return content[at : at + length]

            with suppress(OSError):
                assert shared.share("a", at, length, fetch) == content[at : at + length]

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(use, range(THREADS)))
    assert not shared._under_way
    assert values.PIECE_BYTES > 1000
    assert len(reads) < THREADS * 200
