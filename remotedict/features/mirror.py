"""Mirrors: a dictionary followed in the background, read without asking."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from remotedict.engine.core import entries
from remotedict.engine.index import Known
from remotedict.engine.runtime import Signal, log
from remotedict.errors import ClosedError, RemoteDictError, SnapshotExpiredError
from remotedict.features.history import check_version
from remotedict.features.reading import Readable
from remotedict.features.timing import check_timeout
from remotedict.pure.naming import check_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from remotedict.engine.core import Engine
    from remotedict.features.watch import Poll
    from remotedict.pure.location import Location, Locations
    from remotedict.pure.pieces import Stored

_ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class _Held(Known):
    """A state, and the bytes of its values by generation."""

    data: Mapping[bytes, Stored]

    @classmethod
    def of(cls, known: Known, data: Mapping[bytes, Stored]) -> _Held:
        fields = (known.etag, known.index, known.state, known.settled, known.checked)
        return cls(*fields, data)


def _revision(known: Known) -> int:
    # Not the seq: what moves bytes adds no commit.
    return known.index.revision if known.index else 0


class Mirror(Readable):
    """A dictionary as it was a moment ago: a read-only mapping, kept current in the background.

    Reads never ask the index. While the connection is lost they go on, on what is known: `age`
    says how old that is. Made by `RemoteDict.mirror`; ends by `close`, or with its handle.
    Thread-safe.

    Attributes
    ----------
    error : Exception or None
        Why the last look failed; None when it didn't.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        title: str,
        *,
        prefetch: bool,
        poll: Poll,
        show_progress: bool | None,
    ) -> None:
        self._get_engine = engine
        self._title = title
        self._prefetch = prefetch
        self._poll = poll
        self._show_progress = show_progress
        self._signal = Signal()
        self._waiting: list[Signal] = []
        self._lock = threading.Lock()
        self._runtime = engine().runtime
        self.error: Exception | None = None
        self._looked = self._runtime.monotonic()
        known = engine().now()
        self._now = _Held.of(known, self._fetched(known, {}))

    @property
    def _engine(self) -> Engine:
        return self._get_engine()

    def _known(self, ticket: int | None = None) -> _Held:
        del ticket
        self._get_engine()  # says whether the handle was closed
        return self._now

    @property
    def age(self) -> float:
        """How many seconds ago this was known to be current."""
        return max(self._runtime.monotonic() - self._looked, 0.0)

    @property
    def seq(self) -> int:
        """The number of the newest commit in it."""
        return self._now.state.seq

    def wait_for(
        self, key: str, *, version: int | None = None, timeout: float | None = None
    ) -> int:
        """Wait until `key` is there, or has reached a version; return the version it has.

        Parameters
        ----------
        key : str
            The key.
        version : int, optional
            The least version to wait for (a deletion is one, too); without it, for the key.
        timeout : float, optional
            Seconds to wait at the most; by default as long as it takes.

        Raises
        ------
        TimeoutError
            It has not come in time.
        """
        check_key(key)
        if version is not None:
            version = check_version(version)
        timeout = check_timeout(timeout)
        deadline = None if timeout is None else self._runtime.monotonic() + timeout
        while True:
            news = Signal()
            self._waiting.append(news)
            try:
                state = self._known().state
                has = state.version(key)
                if has >= version if version is not None else key in state:
                    return has
                if self._signal.given:
                    msg = "this mirror was closed"
                    raise ClosedError(msg)
                left = None if deadline is None else deadline - self._runtime.monotonic()
                if left is not None and left <= 0:
                    wanted = "there" if version is None else f"at version {version}"
                    msg = f"key {key!r} was not {wanted} within {timeout:g} s; it is at {has}"
                    raise TimeoutError(msg)
                self._runtime.wait(news, 1.0 if left is None else min(left, 1.0))
            finally:
                self._waiting.remove(news)

    def close(self) -> None:
        """Follow no longer. What is known can still be read while the handle is open."""
        self._signal.give()
        self._wake()

    def __enter__(self) -> Self:
        """Return itself; it is closed at the end of the context."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        return f"{self._title}; Mirror, {self.age:.1f} s old; Num elements: {len(self._now.state)}"

    end = close

    # -- following --------------------------------------------------------------------------

    def orphan(self) -> None:
        """Follow no longer: this is a forked child, and its parent goes on."""
        self._lock = threading.Lock()
        self.error = ClosedError("this mirror was made before a fork; make one in the child")
        self.close()

    def follower(self) -> Callable[[], None]:
        """Return what follows until closed, or until nobody has the mirror any more."""
        mirror, runtime, signal, poll = weakref.ref(self), self._runtime, self._signal, self._poll
        weakref.finalize(self, signal.give).atexit = False

        def follow() -> None:
            pause = poll.least
            while not runtime.wait(signal, pause):
                here = mirror()
                if here is None:
                    return
                pause = poll.least if here.follow() else poll.after(pause)
                del here

        return follow

    def follow(self) -> bool:
        """Look once; tell whether there was anything new."""
        before = _revision(self._now)
        try:
            self._look()
        except ClosedError:
            self.close()
        except (RemoteDictError, OSError) as exc:
            if self.error is None:
                log.warning("a mirror shows what it has: %s", exc)
            self.error = exc
        return _revision(self._now) > before

    def _look(self) -> None:
        begun = self._runtime.monotonic()
        known = self._engine.now()
        if _revision(known) != _revision(self._now):
            self._take(_Held.of(known, self._fetched(known, self._now.data)))
        self._looked, self.error = begun, None

    def _take(self, held: _Held) -> None:
        """Show a new state, now that its values are here if they are to be."""
        with self._lock:
            # A reader who found a value gone has looked, too, and may have been quicker.
            if _revision(held) > _revision(self._now):
                self._now = held
        self._wake()

    def _fetched(self, known: Known, have: Mapping[bytes, Stored]) -> dict[bytes, Stored]:
        """Return the bytes of all values of a state, as far as they are still there."""
        if not self._prefetch:
            return {}
        state = known.state
        data: dict[bytes, Stored] = {}
        wanted: list[Location] = []
        for keys in state.blocks():
            for key, entry in entries(state, keys):
                kept = have.get(entry.generation)
                if kept is None:
                    wanted.append(entry.location(key))
                else:
                    data[entry.generation] = kept
        return data | self._engine.fetch_many(wanted)

    def _wake(self) -> None:
        for news in list(self._waiting):
            news.give()

    # -- reading ----------------------------------------------------------------------------

    def _values(self, keys: list[str], known: Known | None) -> dict[str, Any]:
        for _ in range(_ATTEMPTS):
            held = known or self._known()
            data = held.data if isinstance(held, _Held) else {}
            try:
                return self._engine.read_many(keys, held, lambda _: None, data)
            except SnapshotExpiredError:
                # Replaced since, and no longer kept: look now, not at the next time.
                if known is not None:
                    raise
                self._look()
        raise SnapshotExpiredError(keys[0])

    def _value(self, key: str) -> Any:
        return self._values([key], None)[key]

    def _renew(self) -> bool:
        self._look()
        return True

    def _pairs(self, wanted: Iterator[Locations], known: Known) -> Iterator[tuple[str, Any]]:
        if not self._prefetch:
            return super()._pairs(wanted, known)
        keys = (key for some in wanted for key in some.keys)
        return ((key, self._values([key], known)[key]) for key in keys)

    def __reduce__(self) -> Any:
        msg = "a mirror can't be pickled; pickle the dictionary, and make a mirror of it there"
        raise TypeError(msg)
