"""The scheduler: virtual threads, one at a time, on a virtual clock.

A thread is a greenlet. It runs until it waits; then the event that comes next by the clock goes
on. Events of one moment come in random order. So whatever happens follows from the seed.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from greenlet import GreenletExit, getcurrent, greenlet

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

_MOMENT = 1e-6
"""Within it the order of what is ready is random."""


class Killed(BaseException):
    """The process has died: nothing that is done from here on reaches anybody."""


class Stuck(Exception):  # noqa: N818
    """The scenario doesn't come to an end."""


class Raise:
    """What a thread that waits is to raise."""

    __slots__ = ("exc",)

    def __init__(self, exc: BaseException) -> None:
        self.exc = exc


class Thread(greenlet):
    """A virtual thread; at its end it is idle until it is begun anew, with other work.

    Attributes
    ----------
    process : Process
        Whose it is.
    op : object
        The operation on whose behalf it runs, or None.
    turn : int
        How often it has waited: an event for an earlier wait is void.
    job : object
        The work that an interrupt may have made useless (see `Runtime.still_wanted`).
    """

    def __init__(self, hub: greenlet) -> None:
        super().__init__(self._live, hub)  # where control goes if it dies
        self.turn = 0
        self._hub = hub
        self._idle: list[Thread] = hub.__dict__.setdefault("idle", [])

    def begin(self, fn: Callable[[], Any] | None, process: Process | None, op: Any) -> None:
        """Be ready for some work; with None, for none."""
        self._fn = fn
        self.process: Any = process
        self.op = op
        self.turn += 1  # what woke the one that it was before means nothing to it
        self.job: Any = None
        self.interruptible = False

    def _live(self, value: Any) -> None:
        while True:
            process = self.process
            try:
                if type(value) is not Raise:
                    self._fn()
            except (Killed, GreenletExit):
                pass
            except BaseException:
                if process.alive:
                    raise
            finally:
                process.threads.pop(self, None)
            if not process.alive:
                return
            self.begin(None, None, None)
            self._idle.append(self)
            process = value = None
            value = self._hub.switch()


class Process:
    """What dies, and is paused, as a whole.

    Attributes
    ----------
    skew : float
        What its clock for people is ahead of the true one.
    newer : bool
        Whether it knows a format version that others don't.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.paused_until = 0.0
        self.skew = 0.0
        self.newer = False
        self.threads: dict[Thread, None] = {}


class Scheduler:
    """Runs virtual threads, and callbacks, in the order of a virtual clock."""

    def __init__(self, random: random.Random, limit: int) -> None:
        self.now = 1_000_000.0
        self.steps = 0
        self.over = False
        self._limit = limit
        self._random = random.random
        self._events: list[tuple[float, int, Any, int, Any]] = []
        self._count = 0
        self._going = False
        self._hub = getcurrent()
        self._idle: list[Thread] = self._hub.__dict__.setdefault("idle", [])

    # -- for what is outside of threads -----------------------------------------------------

    def at(self, time: float, fn: Callable[[], Any]) -> None:
        """Call `fn` at some time."""
        self._count += 1
        heappush(self._events, (time, self._count, None, 0, fn))

    def run(self) -> None:
        """Let everything happen until somebody calls `stop`, or nothing will happen any more."""
        events = self._events
        self._going = True
        while self._going and events:
            time, _, thread, turn, value = heappop(events)
            if thread is not None:
                if thread.turn != turn:
                    continue
                process = thread.process
                if process.paused_until > time:
                    self._push(process.paused_until + self._random() * _MOMENT, thread, turn, value)
                    continue
            self.now = max(self.now, time)
            self.steps += 1
            if self.steps > self._limit:
                msg = f"more than {self._limit} steps"
                raise Stuck(msg)
            if thread is None:
                value()
            else:
                thread.turn += 1
                thread.switch(value)

    def stop(self) -> None:
        """End `run` after this event."""
        self._going = False

    def kill(self, process: Process) -> None:
        """End a process here and now."""
        process.alive = False
        here = getcurrent()
        for thread in list(process.threads):
            if thread is not here:
                self._end(thread)

    def _end(self, thread: Thread) -> None:
        thread.process.threads.pop(thread, None)
        thread.turn += 1
        if thread:  # begun, and not ended
            thread.parent = getcurrent()
            for _ in range(1000):
                if not thread:
                    return
                thread.switch(Raise(Killed()))
            msg = "a thread goes on after it was killed"
            raise RuntimeError(msg)

    # -- for threads ------------------------------------------------------------------------

    def begin(self, fn: Callable[[], Any], process: Process, op: Any) -> Thread:
        """Begin a thread, in a moment."""
        thread = self._idle.pop() if self._idle else Thread(self._hub)
        thread.begin(fn, process, op)
        process.threads[thread] = None
        self._push(self.now + self._random() * _MOMENT, thread, thread.turn, None)
        return thread

    def wait(self) -> Any:
        """Let others run until this thread is woken; return what it is woken with, or raise it."""
        thread = getcurrent()
        if not thread.process.alive:
            raise Killed
        value = self._hub.switch()
        if type(value) is Raise:
            raise value.exc
        return value

    def wake(self, thread: Thread, turn: int, value: Any, delay: float = 0.0) -> None:
        """Let a thread that waits for its `turn`-th time go on."""
        self._count += 1
        moment = self.now + delay + self._random() * _MOMENT
        heappush(self._events, (moment, self._count, thread, turn, value))

    def _push(self, time: float, thread: Thread, turn: int, value: Any) -> None:
        self._count += 1
        heappush(self._events, (time, self._count, thread, turn, value))

    def sleep(self, seconds: float) -> None:
        """Wait for so long."""
        thread = getcurrent()
        self.wake(thread, thread.turn, None, seconds)
        self.wait()


class Future:
    """What one thread gives its result to, and others wait for; as `concurrent.futures.Future`."""

    __slots__ = ("_done", "_exc", "_scheduler", "_value", "_waiting")

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._done = False
        self._exc: BaseException | None = None
        self._value: Any = None
        self._waiting: list[tuple[Thread, int]] = []

    def done(self) -> bool:
        return self._done

    def cancel(self) -> bool:
        return False

    def set_result(self, value: Any) -> None:
        self._conclude(value, None)

    def set_exception(self, exc: BaseException) -> None:
        self._conclude(None, exc)

    def _conclude(self, value: Any, exc: BaseException | None) -> None:
        if self._done:
            msg = "a future was concluded twice"
            raise RuntimeError(msg)
        self._done, self._value, self._exc = True, value, exc
        for thread, turn in self._waiting:
            self._scheduler.wake(thread, turn, None)
        self._waiting.clear()

    def exception(self) -> BaseException | None:
        try:
            self.result()
        except BaseException as exc:  # the thread may be killed while it waits
            if exc is not self._exc:
                raise
        return self._exc

    def result(self, timeout: float | None = None) -> Any:
        if not self._done:
            scheduler, thread = self._scheduler, getcurrent()
            self._waiting.append((thread, thread.turn))
            if timeout is not None:
                scheduler.wake(thread, thread.turn, None, timeout)
            scheduler.wait()
            if not self._done:
                raise TimeoutError
        if self._exc is not None:
            raise self._exc
        return self._value
