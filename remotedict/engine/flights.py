"""Reads under way, shared by all who want the same bytes (single flight)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from remotedict.backend import PIECE_BYTES, BlobNotFound
from remotedict.errors import CorruptBlobError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from remotedict.pure.pieces import Stored


class _Flight(NamedTuple):
    offset: int
    end: int
    landed: Future[Stored]

    def carries(self, offset: int, end: int) -> bool:
        """Tell whether to wait for it rather than to ask for a range of the same blob.

        Whoever wants a small range may be a leaf thread, and a large flight waits for those.
        """
        small = self.end - self.offset <= PIECE_BYTES
        return self.offset <= offset and end <= self.end and (small or end - offset > PIECE_BYTES)


class Flights:
    """What is being read of blobs that never change. Thread-safe."""

    def __init__(self, future: Callable[[], Future[Stored]]) -> None:
        self._future = future
        self._under_way: dict[str, list[_Flight]] = {}
        self._lock = threading.Lock()

    def share(self, path: str, offset: int, length: int, fetch: Callable[[], Stored]) -> Stored:
        """Return a range of a blob: what `fetch` returns, or a part of what another one fetches.

        What is wrong with the blob is wrong for all who want it. Any other failure is that of
        the one who fetches (whose time has run out, say): the others then try for themselves.
        """
        end = offset + length
        with self._lock:
            flights = self._under_way.setdefault(path, [])
            flight = next((one for one in flights if one.carries(offset, end)), None)
            if joined := flight is not None:
                assert flight is not None  # noqa: S101 - for the type checker
            else:
                flight = _Flight(offset, end, self._future())
                flights.append(flight)
        if not joined:
            return self._lead(path, flight, fetch)
        failure = flight.landed.exception()
        try:
            if failure is None:
                return flight.landed.result()[offset - flight.offset : end - flight.offset]
            if isinstance(failure, BlobNotFound | CorruptBlobError):
                raise failure
        finally:
            del failure, flight  # an error must not keep alive the frame that it went through
        return fetch()

    def _lead(self, path: str, flight: _Flight, fetch: Callable[[], Stored]) -> Stored:
        try:
            data = fetch()
        except BaseException as exc:
            self._end(path, flight)
            flight.landed.set_exception(exc)
            raise
        else:
            self._end(path, flight)
            flight.landed.set_result(data)
            return data
        finally:
            del flight

    def _end(self, path: str, flight: _Flight) -> None:
        with self._lock:
            flights = self._under_way[path]
            flights.remove(flight)
            if not flights:
                del self._under_way[path]
