"""The runtime of a virtual process: its waits are switches, its ids come from the seed."""

from __future__ import annotations

from collections import deque
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent

from remotedict.engine.runtime import _WINDOW, Runtime, Signal, _Job
from simulation.scheduler import Future, Process, Scheduler, Thread

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager


class SimRuntime(Runtime):
    """What the engine of one virtual process uses of the world.

    Parameters
    ----------
    scheduler : Scheduler
        Runs the threads.
    process : Process
        Whose threads they are.
    rng : random.Random
        Gives ids and jitter.
    owners : dict
        Is told by id which operation drew it.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        process: Process,
        rng: random.Random,
        owners: dict[bytes, Any],
    ) -> None:
        # Not `super().__init__`: it would make pools of real threads.
        self._scheduler = scheduler
        self._process = self.owner = process
        self._random = rng
        self._owners = owners

    def renew_threads(self) -> None:
        raise NotImplementedError

    def monotonic(self) -> float:
        return self._scheduler.now

    def time(self) -> float:
        return self._scheduler.now + self._process.skew

    def sleep(self, seconds: float) -> None:
        self._scheduler.sleep(seconds)

    def wait(self, signal: Signal, seconds: float) -> bool:
        if not signal.given:
            if not isinstance(signal._queue, _Bell):
                signal._queue = _Bell(self._scheduler)
            thread = getcurrent()
            signal._queue.waiting.append((thread, thread.turn))
            self._scheduler.wake(thread, thread.turn, None, max(seconds, 0.0))
            self._scheduler.wait()
        return signal.given

    def thread(self, fn: Callable[[], Any], name: str) -> None:
        del name
        self._begin(fn, None)

    def jitter(self, seconds: float) -> float:
        return self._random.random() * seconds

    def uuid(self) -> bytes:
        made = self._random.getrandbits(128).to_bytes(16, "big")
        self._owners[made] = getcurrent().op if self._process.alive else None
        return made

    def process(self) -> tuple[str, int]:
        return self._process.name, 1

    def future(self) -> Future:
        return Future(self._scheduler)

    def ident(self) -> int:
        return id(getcurrent())

    def _begin(self, fn: Callable[[], Any], op: Any) -> Thread:
        return self._scheduler.begin(fn, self._process, op)

    def _promise(self, fn: Callable[[], Any], op: Any) -> Future:
        future = Future(self._scheduler)

        def run() -> None:
            try:
                result = fn()
            except BaseException as exc:  # noqa: BLE001 - a future carries whatever was raised
                if self._process.alive:
                    future.set_exception(exc)
            else:
                future.set_result(result)

        self._begin(run, op)
        return future

    def spawn(self, fn: Callable[[], Any]) -> Future:
        return self._promise(fn, getcurrent().op)

    def background(self, fn: Callable[[], Any]) -> Future:
        return self._promise(fn, None)

    def start(self) -> None:
        pass

    def post(self, fn: Callable[[], Any]) -> None:
        # From the garbage collector, that is, at moments which no seed determines.
        if not self._scheduler.over and isinstance(getcurrent(), Thread):
            self._begin(fn, None)

    def call(
        self,
        fn: Callable[[], Any],
        *,
        undo: Callable[[Any], Any] | None = None,
        timeout: float | None = None,
    ) -> Any:
        thread = getcurrent()
        if not thread.interruptible:
            return fn() if timeout is None else self.spawn(fn).result(timeout)
        job = _SimJob(fn, undo, _Here(), self._scheduler)
        self._begin(job.run, thread.op)
        try:
            return job.wait(timeout)
        except BaseException:
            if self._process.alive and job.abandon():
                self._begin(job.clean_up, thread.op)
            raise

    def still_wanted(self) -> AbstractContextManager[None]:
        job = getcurrent().job
        return job.still_wanted() if job else nullcontext()

    def map(
        self, fn: Callable[[Any], Any], items: Iterable[Any], /, *, window: int = _WINDOW
    ) -> Iterator[Any]:
        waiting: deque[Future] = deque()
        for item in items:
            waiting.append(self.spawn(partial(fn, item)))
            if len(waiting) == window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Bell:
    """Stands in a signal where its queue is, and wakes virtual threads."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.waiting: list[tuple[Thread, int]] = []

    def put(self, _: None) -> None:
        for thread, turn in self.waiting:
            self._scheduler.wake(thread, turn, None)
        self.waiting.clear()


class _Here:
    """What each thread has to itself: here, its job."""

    @property
    def job(self) -> Any:
        return getcurrent().job

    @job.setter
    def job(self, job: Any) -> None:
        getcurrent().job = job


class _SimJob(_Job):
    """What a main thread waits for, and an interrupt may abandon."""

    def __init__(
        self,
        fn: Callable[[], Any],
        undo: Callable[[Any], Any] | None,
        here: Any,
        scheduler: Scheduler,
    ) -> None:
        super().__init__(fn, undo, here)
        self._came = Future(scheduler)
        self._answer = _Answer(self._came)

    def wait(self, timeout: float | None) -> Any:
        done, value = self._came.result(timeout)
        if done:
            return value
        try:
            self._outcome = None
            raise value
        finally:
            del value


class _Answer:
    """A queue of one."""

    def __init__(self, future: Future) -> None:
        self._future = future

    def put(self, outcome: tuple[bool, Any]) -> None:
        self._future.set_result(outcome)
