"""The runtime: threads, clocks, randomness and ids, all in one place to be injected."""

from __future__ import annotations

import logging
import os
import random
import socket
import sys
import threading
import time
import uuid
import weakref
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

log = logging.getLogger("remotedict")
log.addHandler(logging.NullHandler())

IO_THREADS = 16
_WINDOW = 4 * IO_THREADS
_WORKERS = min(os.cpu_count() or 1, 4) + 2
_IDLE_THREADS = 4
_IDS = 256
# On Windows nothing interrupts a wait without end.
_POLL = 0.5 if os.name == "nt" else None

_runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()

_T = TypeVar("_T")


class Runtime:
    """What the engine uses of the world; a test injects its own.

    Work for the store runs in threads of two pools. *Leaf* work, which waits for nothing but the
    store, shares `IO_THREADS` threads. Work that may itself wait for leaf work gets a thread at
    once, so that it can't starve what it waits for.

    The main thread only waits, in `call`: a KeyboardInterrupt, which strikes nowhere else, ends
    the wait and not the work. It can't tear a request apart, nor leave a lock of the pools
    behind: even `Future.result` could be struck between taking a lock and the `with` that
    guards it.
    """

    def __init__(self) -> None:
        self.renew_threads()
        _runtimes.add(self)

    def renew_threads(self) -> None:
        """Begin with no threads: a forked child doesn't have those of its parent."""
        self._ids: list[bytes] = []  # nor may it draw the same
        self._leaf = ThreadPoolExecutor(IO_THREADS, "remotedict-io")
        self._control = ThreadPoolExecutor(10_000, "remotedict")
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._here = threading.local()
        self._serving = False
        self._idle = 1  # threads that wait for jobs, the first of which is yet to be started
        self._idle_lock = threading.Lock()

    def monotonic(self) -> float:
        """Return seconds of a clock that never goes back."""
        return time.monotonic()

    def time(self) -> float:
        """Return seconds since the epoch, for people."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def wait(self, signal: Signal, seconds: float) -> bool:
        """Wait for a signal, but no longer than that; tell whether it was given."""
        return signal.wait(seconds)

    def thread(self, fn: Callable[[], Any], name: str) -> None:
        """Run `fn` in a thread that ends with the process, if not before."""
        threading.Thread(target=fn, name=f"remotedict-{name}", daemon=True).start()

    def jitter(self, seconds: float) -> float:
        """Return a random time between nothing and `seconds`."""
        return random.uniform(0, seconds)  # noqa: S311 - no secret

    def uuid(self) -> bytes:
        """Return 16 bytes that nobody else has."""
        try:
            return self._ids.pop()
        except IndexError:
            drawn = os.urandom(16 * _IDS)  # one system call for many
            self._ids += (drawn[at : at + 16] for at in range(16, len(drawn), 16))
            return drawn[:16]

    def process(self) -> tuple[str, int]:
        """Return the name of this machine and the number of this process, for people."""
        return socket.gethostname(), os.getpid()

    def lease_id(self) -> str:
        """Return a fresh id for a lease, in the form that Azure wants."""
        return str(uuid.UUID(bytes=self.uuid()))

    def future(self) -> Future[Any]:
        """Return what one thread gives its result to, and others wait for."""
        return Future()

    def ident(self) -> int:
        """Return what tells this thread from others."""
        return threading.get_ident()

    def spawn(self, fn: Callable[[], _T]) -> Future[_T]:
        """Begin `fn` in a thread of its own."""
        return _submit(self._control, fn)

    def call(
        self,
        fn: Callable[[], _T],
        *,
        undo: Callable[[_T], Any] | None = None,
        timeout: float | None = None,
    ) -> _T:
        """Return what `fn` returns; in the main thread an interrupt ends the wait, not the work.

        Parameters
        ----------
        fn : callable
            What to do.
        undo : callable, optional
            Called with what `fn` has returned if by then nobody waits for it any more.
        timeout : float, optional
            Seconds after which TimeoutError is raised; the work goes on.
        """
        if threading.current_thread() is not threading.main_thread() or sys.is_finalizing():
            return fn() if timeout is None else self.spawn(fn).result(timeout)
        job = _Job(fn, undo, self._here)
        try:
            self.start()
            self._jobs.put(job)
            return cast("_T", job.wait(timeout))
        except BaseException:
            self._abandon(job)
            raise

    def _abandon(self, job: _Job) -> None:
        while True:
            try:
                if job.abandon():
                    self.post(job.clean_up)
            except KeyboardInterrupt:  # another one: the first will be raised
                continue
            return

    def start(self) -> None:
        """See that somebody waits for the jobs of the main thread."""
        if not self._serving:
            self.thread(self._serve, "jobs")
            self._serving = True

    def background(self, fn: Callable[[], Any]) -> Future[Any] | None:
        """Begin what may as well be left undone; None when no threads are to be had any more."""
        try:
            return self._control.submit(fn)
        except RuntimeError:
            return None

    def post(self, fn: Callable[[], Any]) -> None:
        """Do something some time later, once there is a thread for it; nobody waits for it."""
        self._jobs.put(_Job(fn, None, self._here))

    def still_wanted(self) -> AbstractContextManager[None]:
        """Guard what must happen before an interrupt ends the caller's wait, or never.

        So an interrupted write can't overtake what the caller does next. Raises AbandonedError
        if nobody waits for the work of this thread any more.
        """
        job: _Job | None = getattr(self._here, "job", None)
        return job.still_wanted() if job else nullcontext()

    def _serve(self) -> None:
        """Do the main thread's jobs. While one is done another thread waits for the next."""
        while True:
            job = self._jobs.get()
            with self._idle_lock:
                self._idle -= 1
                alone = not self._idle
            if alone:
                try:
                    self.thread(self._serve, "jobs")
                except BaseException:  # no more threads: then the next job waits for this one
                    log.debug("no thread for the next job", exc_info=True)
                else:
                    with self._idle_lock:
                        self._idle += 1
            job.run()
            del job
            with self._idle_lock:
                if self._idle >= _IDLE_THREADS:
                    return
                self._idle += 1

    def map(
        self, fn: Callable[[Any], _T], items: Iterable[Any], /, *, window: int = _WINDOW
    ) -> Iterator[_T]:
        """Apply leaf work to items in parallel; yield the results in their order.

        Only a window of items is taken ahead, so that not all need be in memory at once. Should
        one raise, the others that haven't begun never do.
        """
        waiting: deque[Future[_T]] = deque()
        try:
            for item in items:
                waiting.append(_submit(self._leaf, partial(fn, item)))
                if len(waiting) == window:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def work(self, fn: Callable[[Any], _T], items: Iterable[Any], /) -> Iterator[_T]:
        """Like `map`, for work of this machine's own: a little ahead, and not behind requests."""
        waiting: deque[Future[_T]] = deque()
        for item in items:
            waiting.append(self.call(partial(self.spawn, partial(fn, item))))
            if len(waiting) == _WORKERS:
                yield self.call(waiting.popleft().result)
        while waiting:
            yield self.call(waiting.popleft().result)


class Signal:
    """Given once, for all who wait. An interrupt of a wait leaves nothing behind."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[None] = SimpleQueue()
        self.given = False

    def give(self) -> None:
        """End all waits, also later ones."""
        self.given = True
        self._queue.put(None)

    def wait(self, seconds: float) -> bool:
        """Wait for it, but no longer than that; tell whether it was given."""
        if not self.given:
            try:
                self._queue.get(timeout=max(seconds, 0.0))
            except Empty:
                return self.given
            self._queue.put(None)  # for others who wait
        return True


class AbandonedError(BaseException):
    """An interrupt has ended the wait for this work. Nobody will see this error."""


class _Job:
    """What the main thread waits for. It shares nothing but C primitives with who does it."""

    def __init__(
        self,
        fn: Callable[[], Any],
        undo: Callable[[Any], Any] | None,
        here: threading.local,
    ) -> None:
        self._fn = fn
        self._undo = undo
        self._here = here
        self._answer: SimpleQueue[tuple[bool, Any]] = SimpleQueue()
        self._lock = threading.Lock()
        self._outcome: tuple[bool, Any] | None = None
        self._abandoned = False

    def run(self) -> None:
        self._here.job = self
        try:
            outcome = (True, self._fn())
        except BaseException as exc:  # noqa: BLE001 - whoever waits must hear of it
            outcome = (False, exc)
        self._here.job = None
        self._conclude(outcome)

    def _conclude(self, outcome: tuple[bool, Any]) -> None:
        with self._lock:
            self._outcome = outcome
            abandoned = self._abandoned
        if abandoned:
            self.clean_up()
        else:
            self._answer.put(outcome)

    def wait(self, timeout: float | None) -> Any:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _POLL if deadline is None else max(deadline - time.monotonic(), 0)
            try:
                done, value = self._answer.get(timeout=left)
            except Empty:
                if deadline is not None:
                    raise TimeoutError from None
                continue
            if done:
                return value
            try:
                # Nothing is to be undone; and no error may keep its caller's frames alive.
                self._outcome = None
                raise value
            finally:
                del value

    @contextmanager
    def still_wanted(self) -> Iterator[None]:
        with self._lock:
            if self._abandoned:
                raise AbandonedError
            yield

    def abandon(self) -> bool:
        """Wait no longer; tell whether there is something to clean up."""
        with self._lock:
            self._abandoned = True
            return self._outcome is not None and self._undo is not None

    def clean_up(self) -> None:
        if self._undo and self._outcome and self._outcome[0]:
            self._undo(self._outcome[1])


def _submit(pool: ThreadPoolExecutor, fn: Callable[[], _T]) -> Future[_T]:
    """Begin `fn` in a thread of the pool; if it can't have one any more, do it here."""
    future: Future[_T] = Future()
    claim = threading.Lock()

    def run() -> None:
        # Once: a pool that can't start a thread has taken the work into its queue all the same.
        if not claim.acquire(blocking=False) or not future.set_running_or_notify_cancel():
            return
        try:
            result = fn()
        except BaseException as exc:  # noqa: BLE001 - a future carries whatever was raised
            future.set_exception(exc)
        else:
            future.set_result(result)

    try:
        pool.submit(run)
    except RuntimeError:  # the interpreter is shutting down, or the system has no more threads
        run()
    return future


@cache
def default_runtime() -> Runtime:
    """Return the runtime that all dictionaries of this process share."""
    return Runtime()


def _after_fork() -> None:
    for runtime in list(_runtimes):
        runtime.renew_threads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
