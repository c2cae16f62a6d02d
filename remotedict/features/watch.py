"""Watching: every change, in the order of the commits, none twice and none missed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fnmatch import fnmatchcase
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from remotedict.engine.commits import first_kept
from remotedict.engine.runtime import Signal, log
from remotedict.errors import (
    ClosedError,
    HistoryGapError,
    RemoteDictError,
    StoreUnavailableError,
    UnknownCommitError,
)
from remotedict.features.events import Event, events
from remotedict.features.moment import resolve

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from remotedict.engine.core import Engine
    from remotedict.engine.index import Known
    from remotedict.pure.records import Commit


class Poll(NamedTuple):
    """How many seconds lie between two looks: few after a change, then ever more."""

    least: float
    most: float

    @classmethod
    def of(cls, given: Any) -> Poll:
        """Return the bounds that users gave; raise TypeError or ValueError if they can't be."""
        msg = f"poll= must be the least and the most seconds between looks; not {given!r}"
        if not (
            isinstance(given, tuple | list)
            and len(given) == 2
            and all(isinstance(n, int | float) and not isinstance(n, bool) for n in given)
        ):
            raise TypeError(msg)
        least, most = given
        if not 0 < least <= most < float("inf"):
            raise ValueError(msg)
        return cls(least, most)

    def after(self, pause: float) -> float:
        """Return the pause after one of `pause` in which nothing has changed."""
        return min(pause * 1.5, self.most)


class Watch(Iterator[Event]):
    """The changes of a dictionary as they come: an iterator of `Event`.

    It looks at the index now and then (a 304 while nothing has changed), and waits out lost
    connections. For one thread, but `stop` may be called by any. Made by `RemoteDict.watch`.
    """

    def __init__(
        self, engine: Callable[[], Engine], since: Any, *, timeout: float | None, poll: Poll
    ) -> None:
        self._engine = engine
        self._poll = poll
        self._pause = poll.least
        self._signal = Signal()
        self._runtime = engine().runtime
        self._folder = engine().layout.folder
        self._deadline = None if timeout is None else self._runtime.monotonic() + timeout
        self._known = engine().now()
        self._looked = True  # whether that is the newest look, still to be made use of
        self._last = timeout == 0  # whether the last look was made
        self._after = _begin(engine(), self._known, since)
        self._done = (since.seq, since.position) if isinstance(since, Event) else (0, 0)
        self._commits: Iterator[Commit] = iter(())
        self._ready: deque[Event] = deque()

    def stop(self) -> None:
        """End the iteration, also one that waits in another thread."""
        self._signal.give()

    def __enter__(self) -> Self:
        """Return itself; the iteration ends with the context."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the iteration."""
        self.stop()

    def __next__(self) -> Event:
        """Return the next change, or wait for it.

        Raises
        ------
        HistoryGapError
            It slept for so long that commits in between are no longer kept.
        """
        while not (self._ready or self._signal.given):
            if (commit := self._commit()) is not None:
                # In this order an interrupt in between makes the commit come again, and `_done`
                # then knows what was handed out.
                self._ready.extend(e for e in events(commit) if (e.seq, e.position) > self._done)
                self._after = commit.seq
        if self._signal.given:
            raise StopIteration
        event = self._ready.popleft()
        self._done = (event.seq, event.position)
        return event

    def _commit(self) -> Commit | None:
        """Return the next commit; None after a look, or a wait, that brought none."""
        try:
            commit = self._runtime.call(lambda: next(self._commits, None))
            if commit is not None:
                self._pause = self._poll.least
                return commit
            if not self._looked:
                self._look()
            self._looked = False
            if self._known.state.seq > self._after:
                self._commits = self._engine().commits.after(self._after, self._known)
                return None
        except BaseException as exc:
            # Nobody waits for the commit that may be on its way: it has to be read again.
            self._commits, self._looked = iter(()), True
            if self._last or self._left() <= 0 or not isinstance(exc, StoreUnavailableError):
                raise
            log.warning("a watch goes on once the store answers again: %s", exc)
        if not self._last:
            self._runtime.wait(self._signal, min(self._pause, max(self._left(), 0.0)))
        self._pause = self._poll.after(self._pause)
        return None

    def _left(self) -> float:
        """Return how many seconds are left."""
        return inf if self._deadline is None else self._deadline - self._runtime.monotonic()

    def _look(self) -> None:
        """Look at the state now; the look after the deadline is the last."""
        if self._last:
            raise StopIteration
        last = self._left() <= 0
        self._known = self._engine().now()
        self._last = last

    def __repr__(self) -> str:
        return f"<watch of {self._folder!r}, at commit {self._after}>"

    def __reduce__(self) -> Any:
        msg = "a watch can't be pickled; pickle the dictionary, and go on there with since="
        raise TypeError(msg)


def _begin(engine: Engine, known: Known, since: Any) -> int:
    """Return the newest commit that isn't wanted any more, or only in part."""
    newest = known.state.seq
    if since is None:
        return newest
    event = since if isinstance(since, Event) else None
    seq = event.seq - 1 if event else resolve(engine, known, since, before_all=0)
    first = first_kept(known.index) if known.index else 1
    if seq + 1 < first and seq < newest:
        raise HistoryGapError(seq, first)
    if event:
        _check_there(engine, known, event)
    return seq


def _check_there(engine: Engine, known: Known, event: Event) -> None:
    """Raise UnknownCommitError if an event isn't one of this dictionary."""
    there = known.state.commit_id(event.seq)
    if there is None and event.seq <= known.state.seq:
        commits = engine.commits.after(event.seq - 1, known, event.seq)
        there = engine.runtime.call(lambda: next(commit.id for commit in commits))
    if there is None or there.hex() != event.commit:
        reason = f"commit {event.seq} of this dictionary isn't {event.commit}"
        raise UnknownCommitError(event, reason)


class Subscription:
    """Calls a function for each change of keys, in a background thread.

    Made by `RemoteDict.on_change`; it ends by `stop`, with its handle, or with the process.

    Attributes
    ----------
    error : Exception or None
        What has ended it, if that was not `stop`.
    """

    def __init__(self, watch: Watch, fn: Callable[[Event], Any], pattern: str) -> None:
        self._watch = watch
        self._fn = fn
        self._pattern = pattern
        self.error: Exception | None = None

    def stop(self) -> None:
        """End it; a call that is under way goes on to its end."""
        self._watch.stop()

    def __enter__(self) -> Self:
        """Return itself; it ends with the context."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it."""
        self.stop()

    end = stop

    def __repr__(self) -> str:
        return f"<calls {self._fn!r} for {self._pattern!r}, by {self._watch!r}>"

    def orphan(self) -> None:
        """Call no more: this is a forked child, and its parent goes on."""
        self.error = ClosedError("on_change was begun before a fork, and goes on in the parent")

    def follower(self) -> Callable[[], None]:
        """Return what calls until stopped."""
        return self._run

    def _run(self) -> None:
        try:
            for event in self._watch:
                if fnmatchcase(event.key, self._pattern):
                    self._call(event)
        except ClosedError:
            pass
        except RemoteDictError as exc:
            self.error = exc
            log.exception("on_change(%r) has ended", self._pattern)

    def _call(self, event: Event) -> None:
        try:
            self._fn(event)
        except Exception:  # noqa: BLE001 - one's mistake must not stop the others
            log.exception("on_change: the callback failed for %r", event)
