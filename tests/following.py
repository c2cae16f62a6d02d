"""What the tests of watches, subscriptions and mirrors share."""

from __future__ import annotations

import contextlib
import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from faults import lose_request
from remotedict.pure import plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import pytest

    from faults import Call, FaultyBackend, World
    from remotedict import RemoteDict
    from remotedict.features.events import Event

HANG = 60
FAST = (0.005, 0.02)
NEVER = (500.0, 500.0)


def told(events: Iterable[Event]) -> list[tuple[str, str, int | None]]:
    """Return what events tell of their keys."""
    return [(event.kind, event.key, event.version) for event in events]


def past(d: RemoteDict, since: Any = 0) -> list[Event]:
    """Return the changes until now."""
    return list(d.watch(since=since, timeout=0))


def eventually(condition: Callable[[], Any]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@contextlib.contextmanager
def offline(backend: FaultyBackend) -> Iterator[None]:
    """Lose all requests."""
    backend._do = lambda _, act: lose_request(act)
    try:
        yield
    finally:
        del backend._do


def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set limits at which a few commits roll over, merge, and make checkpoints with their logs."""
    monkeypatch.setattr(plan, "INDEX_BYTES", 1500)
    monkeypatch.setattr(plan, "CHECKPOINT_MIN", 3000)
    monkeypatch.setattr(plan, "FAN", 2)


def fill(world: World, d: RemoteDict, count: int) -> None:
    """Make commits, each an hour after the one before, with the upkeep that is due."""
    for n in range(count):
        d[f"k{n % 5}"] = n
        d._engine.upkeep.finish()
        world.clock.now += 3600


def remake(world: World) -> RemoteDict:
    """Delete the dictionary, and make another in its place."""
    world.store.delete([blob.name for blob in world.store.list("")])
    return world.open()


@contextlib.contextmanager
def closing(world: World) -> Iterator[World]:
    """Close all clients in the end: threads that follow must not go on behind the other tests."""
    opened, open_ = [], world.open

    def open_and_note(**options: Any) -> RemoteDict:
        opened.append(open_(**options))
        return opened[-1]

    world.open = open_and_note
    followers = Followers()
    yield world
    for client in opened:
        client.close()
    eventually(lambda: not followers.names)


class Followers:
    """The threads that have begun to follow a dictionary since this was made."""

    def __init__(self) -> None:
        self._before = set(threading.enumerate())

    @property
    def names(self) -> list[str]:
        """What is alive of them, by kind."""
        kinds = ["remotedict-subscription", "remotedict-mirror"]
        new = [thread for thread in threading.enumerate() if thread not in self._before]
        return [thread.name[11:] for thread in new if thread.name in kinds]


class Pauses:
    """The pauses of what follows: each ends when the test says so."""

    def __init__(self, world: World) -> None:
        self._clock = world.clock
        self._ends: SimpleQueue[None] = SimpleQueue()
        self.asked: list[float] = []

    def wait(self, signal: Any, seconds: float) -> bool:
        """Stand in for `Runtime.wait`."""
        self.asked.append(seconds)
        while not signal.given:
            try:
                self._ends.get(timeout=0.002)
            except Empty:
                continue
            self._clock.now += seconds
            return bool(signal.given)
        return True

    def end(self) -> None:
        """Let the one mirror of a test look once, and wait until it has."""
        eventually(lambda: self.asked)  # it may not have begun yet
        before = len(self.asked)
        self._ends.put(None)
        eventually(lambda: len(self.asked) > before)


def requests(world: World, d: RemoteDict, act: Callable[[], Any]) -> list[Call]:
    """Return what a handle has asked for during `act`."""
    calls = world.of(d).calls
    before = len(calls)
    act()
    return calls[before:]
