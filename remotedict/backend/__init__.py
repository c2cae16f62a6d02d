"""The backend protocol: five verbs that a store must have, and what they may answer."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable

Buffer = bytes | bytearray | memoryview
Data = Buffer | Sequence[Buffer] | Iterable[Buffer]

PIECE_BYTES = 8 * 1024 * 1024
"""The most that one request should carry: more is split into pieces that travel in parallel."""


class BackendError(Exception):
    """The root of the answers that a caller of a verb must expect."""


class BlobNotFound(BackendError):  # noqa: N818 - an answer, not a fault
    """There is no such blob."""


class PreconditionFailed(BackendError):  # noqa: N818
    """The blob is not in the state that the precondition asks for."""


class LeaseHeld(BackendError):  # noqa: N818
    """Somebody else holds the lease."""


class LeaseLost(BackendError):  # noqa: N818
    """The lease is no longer the caller's."""


class TransientError(BackendError):
    """No usable answer came: the request may have been carried out, or not."""


class _NotModified(enum.Enum):
    NOT_MODIFIED = "not modified"


NOT_MODIFIED: Final = _NotModified.NOT_MODIFIED
NotModified = Literal[_NotModified.NOT_MODIFIED]


class Got(NamedTuple):
    """The answer to `get`; a ranged one may have no etag."""

    data: Buffer
    etag: str


class BlobInfo(NamedTuple):
    """One row of `list`; `time` is when the store took the blob, in seconds since the epoch."""

    name: str
    size: int
    time: float


class Lease(Protocol):
    """A lease that was acquired. `seconds` is how long the store lets it live unrenewed."""

    @property
    def id(self) -> str:
        """What the store knows the lease by."""

    @property
    def seconds(self) -> float:
        """For how long it was granted, and each renewal grants it anew."""

    def renew(self) -> None:
        """Start its time anew. Raises LeaseLost."""

    def release(self) -> None:
        """Give it up. Raises LeaseLost when it is somebody else's by now."""


class Map(Protocol):
    """What applies a function to many items in parallel, and yields results in their order."""

    def __call__(self, fn: Callable[[Any], Any], items: Iterable[Any], /) -> Iterable[Any]:
        """Yield the results in the order of the items."""


Verb = Literal["get", "put", "delete", "list", "lease"]


class Meter(Protocol):
    """What counts requests. Thread-safe."""

    def request(self, verb: Verb, *, up: int = 0, down: int = 0) -> None:
        """Count one that is sent now, the bytes of its body, and those of the answer's if known."""

    def received(self, down: int) -> None:
        """Count the bytes of an answer's body."""

    def retry(self) -> None:
        """Count one that got no usable answer, and that the verb sends again by itself."""


@runtime_checkable
class Metered(Protocol):
    """A backend of one handle that tells of its requests, since a verb may take several of them.

    What has no `meter` is taken to send one request for each call of a verb.
    """

    meter: Meter | None


class Backend(Protocol):
    """A store of blobs. Paths use ``/``; every verb is thread-safe.

    Besides the answers named here any verb may raise `TransientError`, or an error of
    `remotedict.errors` that trying again wouldn't mend (no permission, say).
    """

    def get(
        self,
        path: str,
        *,
        range: tuple[int, int] | None = None,  # noqa: A002 - the name of the header
        if_none_match: str | None = None,
    ) -> Got | NotModified:
        """Return a blob's bytes and etag.

        Parameters
        ----------
        path : str
            The blob.
        range : tuple of int, optional
            Offset and length (at least 1) of the bytes wanted; all of them by default. The etag
            of a ranged answer may be empty.
        if_none_match : str, optional
            NOT_MODIFIED is returned while this is the blob's etag. Not together with `range`:
            only immutable blobs are read in part.

        Raises
        ------
        BlobNotFound
            There is no such blob, or no byte at the offset.
        """

    def put(
        self, path: str, data: Data, *, if_match: str | None = None, if_absent: bool = False
    ) -> str:
        """Write a blob, whole or not at all, and return its etag.

        Parameters
        ----------
        path : str
            The blob.
        data : bytes-like, or iterable of bytes-like
            The bytes. What can be iterated only once can't be sent again.
        if_match : str, optional
            Only while this is the blob's etag.
        if_absent : bool
            Only while there is no such blob.

        Raises
        ------
        PreconditionFailed
            `if_match` or `if_absent` doesn't hold.
        """

    def delete(self, paths: Iterable[str]) -> None:
        """Delete blobs; those that aren't there are deleted already."""

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Yield the blobs whose path begins with `prefix`, in the order of their paths."""

    def lease(self, path: str, seconds: float, *, lease_id: str, force: bool = False) -> Lease:
        """Acquire the lease of a blob, which is made (empty) when it is missing.

        Asking again with the same `lease_id` is the same acquisition: so a lost reply can be
        asked for anew. `force` takes it from whoever holds it.

        Raises
        ------
        LeaseHeld
            Somebody else holds it.
        """

    def close(self) -> None:
        """Give up connections."""


def pieces(data: Data) -> Iterator[Buffer]:
    """Yield the buffers of what `put` was given."""
    if isinstance(data, bytes | bytearray | memoryview):
        yield data
    else:
        yield from data
