"""Patience: try again what a store didn't answer, until a deadline."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type

from remotedict.backend import TransientError
from remotedict.engine.runtime import log
from remotedict.errors import ClosedError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from remotedict.backend import Backend, BlobInfo, Data, Got, Lease, NotModified
    from remotedict.engine.runtime import Runtime

_T = TypeVar("_T")
_FIRST_PAUSE = 0.05
_PAGE = 5000


class Patient:
    """A backend whose verbs wait out transient failures, for at most `timeout` seconds each.

    Only for what may safely be done twice. A compare-and-swap may not: its caller has to look
    whether it was applied, and uses `raw`.

    Attributes
    ----------
    raw : Backend
        The backend itself.
    timeout : float
        Seconds without an answer after which StoreUnavailableError is raised.
    """

    def __init__(self, raw: Backend, runtime: Runtime, timeout: float) -> None:
        self.raw = raw
        self.timeout = timeout
        self._runtime = runtime
        self._closed = False

    def close(self) -> None:
        """Give up connections; what is under way is not tried again."""
        self._closed = True
        self.raw.close()

    def get(
        self,
        path: str,
        *,
        range: tuple[int, int] | None = None,  # noqa: A002
        if_none_match: str | None = None,
    ) -> Got | NotModified:
        """See `Backend.get`."""
        return self._patiently(lambda: self.raw.get(path, range=range, if_none_match=if_none_match))

    def put(self, path: str, data: Data) -> str:
        """See `Backend.put`; `path` is a fresh name, so doing it twice changes nothing."""
        return self._patiently(lambda: self.raw.put(path, data))

    def delete(self, paths: Iterable[str]) -> None:
        """See `Backend.delete`."""
        paths = list(paths)
        self._patiently(lambda: self.raw.delete(paths))

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """See `Backend.list`; few of them are in memory at once."""
        rows, last = self.raw.list(prefix), ""

        def page() -> list[BlobInfo]:
            nonlocal rows
            try:
                return list(islice(rows, _PAGE))
            except TransientError:  # begin again, and go on behind what was handed out
                rows = (row for row in self.raw.list(prefix) if row.name > last)
                raise

        while found := self._patiently(page):
            last = found[-1].name
            yield from found

    def lease(self, path: str, seconds: float, *, lease_id: str, force: bool = False) -> Lease:
        """See `Backend.lease`."""
        return self._patiently(
            lambda: self.raw.lease(path, seconds, lease_id=lease_id, force=force)
        )

    def _patiently(self, act: Callable[[], _T]) -> _T:
        deadline = self._runtime.monotonic() + self.timeout
        try:
            return act()
        except TransientError as failure:
            return self._again(act, failure, deadline)

    def _again(self, act: Callable[[], _T], failure: TransientError, deadline: float) -> _T:
        """Go on after a first attempt that failed."""
        failures = [failure]

        def attempt() -> _T:
            if failures:
                raise failures.pop()
            return act()

        def too_late(state: RetryCallState) -> bool:
            del state
            return self._closed or self._runtime.monotonic() >= deadline

        def pause(state: RetryCallState) -> float:
            return self._runtime.jitter(min(_FIRST_PAUSE * 2 ** (state.attempt_number - 1), 2.0))

        def say(state: RetryCallState) -> None:
            log.debug("attempt %d failed: %s", state.attempt_number, _failure(state))

        def give_up(state: RetryCallState) -> Any:
            failure = _failure(state)
            if self._closed:
                msg = "the handle was closed before the store had answered"
                raise ClosedError(msg) from failure
            msg = f"no usable answer from the store within {self.timeout:g} s ({failure})"
            raise StoreUnavailableError(msg) from failure

        attempts = Retrying(
            retry=retry_if_exception_type(TransientError),
            wait=pause,
            stop=too_late,
            before_sleep=say,
            sleep=self._runtime.sleep,
            retry_error_callback=give_up,
        )
        return attempts(attempt)


def _failure(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None
