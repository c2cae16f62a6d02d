"""A backend that counts what is asked of the one below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from remotedict.backend import NOT_MODIFIED, Metered, PreconditionFailed, TransientError, pieces

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from remotedict.backend import (
        Backend,
        BlobInfo,
        Buffer,
        Data,
        Got,
        Lease,
        NotModified,
        Verb,
    )
    from remotedict.engine.stats import Meter


class _Answered:
    """The context of a request: one that gets no usable answer is counted."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, cls: type[BaseException] | None, exc: BaseException | None, tb: object
    ) -> None:
        if isinstance(exc, TransientError):
            self._meter.retry()


class Counted:
    """A backend whose verbs are counted, each as one request unless it is `Metered` itself."""

    def __init__(self, backend: Backend, meter: Meter) -> None:
        self._backend = backend
        self._meter = meter
        self._answered = _Answered(meter)
        self._knows_better = isinstance(backend, Metered)
        if self._knows_better:
            cast("Metered", backend).meter = meter

    def _sent(self, verb: Verb, *, up: int = 0) -> None:
        if not self._knows_better:
            self._meter.request(verb, up=up)

    def _received(self, down: int) -> None:
        if not self._knows_better:
            self._meter.received(down)

    def get(
        self,
        path: str,
        *,
        range: tuple[int, int] | None = None,  # noqa: A002
        if_none_match: str | None = None,
    ) -> Got | NotModified:
        """See `Backend.get`."""
        self._sent("get")
        with self._answered:
            got = self._backend.get(path, range=range, if_none_match=if_none_match)
        if got is NOT_MODIFIED:
            self._meter.add(not_modified=1)
        else:
            self._received(len(got.data))
        return got

    def put(
        self, path: str, data: Data, *, if_match: str | None = None, if_absent: bool = False
    ) -> str:
        """See `Backend.put`."""
        if not self._knows_better:
            self._sent("put")
            data = self._measured(data)
        try:
            with self._answered:
                return self._backend.put(path, data, if_match=if_match, if_absent=if_absent)
        except PreconditionFailed:
            self._meter.add(conflicts=1)
            raise

    def _measured(self, data: Data) -> Data:
        """Return the data, counted at once if they can be sent again, else as they are sent."""
        if isinstance(data, bytes | bytearray | memoryview | Sequence):
            self._meter.add(bytes_up=sum(memoryview(piece).nbytes for piece in pieces(data)))
            return data

        def counted() -> Iterator[Buffer]:
            for piece in pieces(data):
                self._meter.add(bytes_up=memoryview(piece).nbytes)
                yield piece

        return counted()

    def delete(self, paths: Iterable[str]) -> None:
        """See `Backend.delete`."""
        paths = list(paths)
        for _ in paths:
            self._sent("delete")
        with self._answered:
            self._backend.delete(paths)

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """See `Backend.list`."""
        self._sent("list")
        with self._answered:
            yield from self._backend.list(prefix)

    def lease(self, path: str, seconds: float, *, lease_id: str, force: bool = False) -> Lease:
        """See `Backend.lease`."""
        self._sent("lease")
        with self._answered:
            lease = self._backend.lease(path, seconds, lease_id=lease_id, force=force)
        return lease if self._knows_better else _CountedLease(lease, self._meter)

    def close(self) -> None:
        """See `Backend.close`."""
        self._backend.close()


class _CountedLease:
    """See `Lease`."""

    def __init__(self, lease: Lease, meter: Meter) -> None:
        self._lease = lease
        self._meter = meter
        self.id = lease.id
        self.seconds = lease.seconds

    def renew(self) -> None:
        """See `Lease.renew`."""
        self._meter.request("lease")
        self._lease.renew()

    def release(self) -> None:
        """See `Lease.release`."""
        self._meter.request("lease")
        self._lease.release()
