"""A store in a container of Azure Blob Storage."""

from __future__ import annotations

import contextlib
import logging
import re
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import requests
import xxhash
from azure.core import MatchConditions
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    IncompleteReadError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.core.pipeline.transport import RequestsTransport
from azure.storage.blob import BlobBlock, BlobClient, BlobLeaseClient, ContainerClient
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from remotedict.backend import (
    NOT_MODIFIED,
    PIECE_BYTES,
    BlobInfo,
    BlobNotFound,
    Data,
    Got,
    LeaseHeld,
    LeaseLost,
    Map,
    Meter,
    NotModified,
    PreconditionFailed,
    TransientError,
    Verb,
    pieces,
)
from remotedict.errors import (
    AccessDeniedError,
    ContainerUnavailableError,
    InvalidNameError,
    RemoteDictError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Credential = Any

_T = TypeVar("_T")

_CONNECTIONS = 64
_LEASE_MIN, _LEASE_MAX = 15, 60  # what the service grants, but for endless leases
CONNECT_TIMEOUT = 10.0
BLOCK_ATTEMPTS = 5


def _few_attempts(meter: Meter | None) -> Retrying:
    """Return attempts at what is a small part of a long upload, which would begin anew without."""
    return Retrying(
        retry=retry_if_exception_type(TransientError),
        before_sleep=lambda _: meter.retry() if meter else None,
        wait=wait_random_exponential(0.1, max=2),
        stop=stop_after_attempt(BLOCK_ATTEMPTS),
        reraise=True,
    )


class _WithoutSignatures(logging.Filter):
    """Takes the signature of a SAS out of the URLs that urllib3 logs for debugging."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                _SIGNATURE.sub(r"\1…", one) if isinstance(one, str) else one for one in record.args
            )
        return True


_SIGNATURE = re.compile(r"(?i)(\bsig=)[^&\s\"']+")
logging.getLogger("urllib3.connectionpool").addFilter(_WithoutSignatures())


class AzureBackend:
    """Blobs in a container, through azure-storage-blob.

    Parameters
    ----------
    account_url : str
        The URL of the account's blob service.
    container : str
        The container; made by the first write when it is missing.
    credential : object
        What `azure.storage.blob.ContainerClient` takes.
    timeout : float
        Seconds without a byte after which a request is given up.
    run : callable
        A parallel ``map`` for the blocks of large blobs.
    transport : object, optional
        An azure-core transport; by default a pooled one that honours the usual environment
        variables for proxies and certificate authorities.

    Notes
    -----
    The SDK's own retries are off: they would hide whether a compare-and-swap was applied.
    """

    def __init__(
        self,
        account_url: str,
        container: str,
        credential: Credential,
        *,
        timeout: float,
        run: Map,
        transport: Any = None,
    ) -> None:
        self._run = run
        self.meter: Meter | None = None
        try:
            self._client = ContainerClient(
                account_url,
                container,
                credential=credential,
                transport=transport or _transport(timeout),
                retry_total=0,
                max_single_get_size=4 * PIECE_BYTES,
                max_single_put_size=2 * PIECE_BYTES,
                logging_enable=False,
                raw_request_hook=self._sent,
                raw_response_hook=self._received,
            )
        except ValueError as exc:
            msg = f"container {container!r} can't be used: {exc}"
            raise InvalidNameError(msg) from exc

    def _sent(self, message: Any) -> None:
        if self.meter:
            request = message.http_request
            self.meter.request(_verb(request), up=int(request.headers.get("Content-Length", 0)))

    def _received(self, message: Any) -> None:
        if self.meter:
            answer = message.http_response
            length = answer.headers.get("Content-Length")
            if length is None and _verb(message.http_request) == "list":
                length = len(answer.body())  # it has no length beforehand
            self.meter.received(int(length or 0))

    def get(
        self,
        path: str,
        *,
        range: tuple[int, int] | None = None,  # noqa: A002
        if_none_match: str | None = None,
    ) -> Got | NotModified:
        """See `Backend.get`."""
        options: dict[str, Any] = {}
        if range is not None:
            options |= {"offset": range[0], "length": range[1]}
        if if_none_match is not None:
            options |= {"etag": if_none_match, "match_condition": MatchConditions.IfModified}
        try:
            with translating(path):
                download = self._client.download_blob(path, **options)
                data, etag = download.readall(), download.properties.etag
        except _StillThereError:
            return NOT_MODIFIED
        if range is not None and not data:  # where the service itself would answer 416
            raise BlobNotFound(path)
        return Got(data, etag)

    def put(
        self, path: str, data: Data, *, if_match: str | None = None, if_absent: bool = False
    ) -> str:
        """See `Backend.put`."""
        options: dict[str, Any] = {}
        if if_match == "":  # the SDK would take it for none at all
            raise PreconditionFailed(path)
        if if_match is not None:
            options = {"etag": if_match, "match_condition": MatchConditions.IfNotModified}
        elif if_absent:
            options = {"match_condition": MatchConditions.IfMissing}
        blocks = _blocks(data)
        first, second = next(blocks, b""), next(blocks, None)
        if second is None:
            return self._making_container(lambda: self._put_small(path, first, options))
        # One before the others: should the container be missing, it is made only once.
        staged = [self._making_container(lambda: self._stage(path, (0, first)))]
        rest = enumerate(chain([second], blocks), 1)
        staged += self._run(lambda block: self._stage(path, block), rest)
        with translating(path):
            done = self._client.get_blob_client(path).commit_block_list(
                [BlobBlock(block_id) for block_id in staged], **options
            )
        return str(done["etag"])

    def _put_small(self, path: str, data: bytes, options: dict[str, Any]) -> str:
        with translating(path):
            done = self._client.get_blob_client(path).upload_blob(
                data, overwrite=not options, max_concurrency=1, length=len(data), **options
            )
        return str(done["etag"])

    def _stage(self, path: str, block: tuple[int, bytes]) -> str:
        number, data = block
        # The content in the name: two writers of one path never commit each other's blocks, and
        # a block that is sent again is the same one.
        block_id = f"{number:08d}-{xxhash.xxh3_128_hexdigest(data)}"
        blob = self._client.get_blob_client(path)
        for attempt in _few_attempts(self.meter):
            with attempt, translating(path):
                blob.stage_block(block_id, data, length=len(data))
        return block_id

    def _making_container(self, act: Callable[[], _T]) -> _T:
        """Write a blob, making the container first if it turns out to be missing."""
        try:
            return act()
        except BlobNotFound:
            pass  # of a write: the container isn't there
        name = self._client.container_name
        try:
            with translating(name):
                self._client.create_container()
        except PreconditionFailed:
            pass  # somebody else has just made it
        except AccessDeniedError as exc:
            msg = (
                f"container {name!r} doesn't exist, and these credentials may not make it; make "
                "it, or use credentials that may"
            )
            raise AccessDeniedError(msg) from exc
        return act()

    def delete(self, paths: Iterable[str]) -> None:
        """See `Backend.delete`."""
        list(self._run(self._delete, paths))

    def _delete(self, path: str) -> None:
        with contextlib.suppress(BlobNotFound), translating(path):
            self._client.delete_blob(path)

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """See `Backend.list`."""
        with contextlib.suppress(BlobNotFound), translating(prefix):
            for blob in self._client.list_blobs(name_starts_with=prefix):
                yield BlobInfo(blob.name, blob.size, blob.last_modified.timestamp())

    def lease(self, path: str, seconds: float, *, lease_id: str, force: bool = False) -> AzureLease:
        """See `Backend.lease`."""
        granted = min(max(int(seconds + 0.999), _LEASE_MIN), _LEASE_MAX)
        client = BlobLeaseClient(self._client.get_blob_client(path), lease_id)
        if force:
            # 404: no blob; 409: no lease to break.
            with contextlib.suppress(BlobNotFound, LeaseLost), translating(path):
                client.break_lease(0)
        try:
            with translating(path, lease=LeaseHeld):
                client.acquire(granted)
        except BlobNotFound:
            with contextlib.suppress(PreconditionFailed):
                self.put(path, b"", if_absent=True)
            with translating(path, lease=LeaseHeld):
                client.acquire(granted)
        return AzureLease(self._client.get_blob_client(path), path, lease_id, granted)

    def close(self) -> None:
        """See `Backend.close`."""
        self._client.close()


class AzureLease:
    """See `Lease`."""

    def __init__(self, blob: BlobClient, path: str, lease_id: str, seconds: float) -> None:
        self._blob = blob
        self._path = path
        self.id = lease_id
        self.seconds = seconds

    def renew(self) -> None:
        """See `Lease.renew`."""
        with self._translated():
            self._client().renew()

    def release(self) -> None:
        """See `Lease.release`."""
        with self._translated():
            self._client().release()

    def _client(self) -> BlobLeaseClient:
        # A new one each time: it forgets its id when it releases.
        return BlobLeaseClient(self._blob, self.id)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            with translating(self._path, lease=LeaseLost):
                yield
        except (BlobNotFound, PreconditionFailed) as exc:
            raise LeaseLost(self._path) from exc


def _verb(request: Any) -> Verb:
    """Return which verb an HTTP request is of."""
    operation = parse_qs(urlsplit(request.url).query).get("comp")
    if operation == ["lease"]:
        return "lease"
    if request.method == "GET":
        return "list" if operation == ["list"] else "get"
    return "delete" if request.method == "DELETE" else "put"


def _transport(timeout: float) -> RequestsTransport:
    session = requests.Session()
    adapter = requests.adapters.HTTPAdapter(_CONNECTIONS, _CONNECTIONS)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return RequestsTransport(
        session=session, connection_timeout=min(timeout, CONNECT_TIMEOUT), read_timeout=timeout
    )


def _blocks(data: Data) -> Iterator[bytes]:
    """Yield the bytes in blocks of PIECE_BYTES; the last may be smaller."""
    waiting: list[memoryview] = []
    size = 0
    for piece in pieces(data):
        view = memoryview(piece).cast("B")
        while view:
            part = view[: PIECE_BYTES - size]
            view = view[len(part) :]
            waiting.append(part)
            size += len(part)
            if size == PIECE_BYTES:
                yield b"".join(waiting)
                waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)


class _StillThereError(Exception):
    """304: the blob has the etag that was given."""


@contextlib.contextmanager
def translating(path: str, lease: type[LeaseHeld | LeaseLost] = LeaseLost) -> Iterator[None]:
    """Turn the errors of the SDK into those of the protocol.

    The SDK's own are not chained: they may quote a URL, and in it a SAS.
    """
    translation: Exception
    try:
        yield
    except RemoteDictError:  # a nested verb's, which may be a ValueError as well
        raise
    except (ServiceRequestError, ServiceResponseError, IncompleteReadError) as exc:
        translation = TransientError(f"{path}: {type(exc).__name__}: {_scrubbed(exc.message)}")
    except HttpResponseError as exc:
        refused = isinstance(exc, ClientAuthenticationError)
        translation = translated(exc.status_code or 0, _code(exc), path, lease, refused=refused)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        # What the SDK raises for an answer that isn't the service's: a proxy's page, say.
        translation = TransientError(f"{path}: a strange answer ({type(exc).__name__})")
    else:
        return
    raise translation from None


def _scrubbed(text: str) -> str:
    return re.sub(r"(?i)\b(sig=)[^&\s'\")]+", r"\1…", str(text))


def translated(  # noqa: PLR0911 - one for each answer
    status: int,
    code: str,
    path: str,
    lease: type[LeaseHeld | LeaseLost] = LeaseLost,
    *,
    refused: bool = False,
) -> Exception:
    """Return what an answer means: an HTTP status, or 0 for none, and the service's own code.

    https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes lists the codes.
    """
    if (status == 409 and code.startswith("Lease")) or (status == 412 and lease is LeaseHeld):
        return lease(path)
    if code in {"BlobAlreadyExists", "ContainerAlreadyExists"}:
        return PreconditionFailed(path)
    if refused or (status in {401, 403} and code not in _CONTAINER):
        return AccessDeniedError(
            f"the store refused access to {path!r} ({code or status}): check the credential, "
            "what it may do, and whether it has expired"
        )
    if code in _CONTAINER:
        return ContainerUnavailableError(_CONTAINER[code])
    if code in _BAD_NAMES:
        return InvalidNameError(f"the service can't have a container or blob named so: {path!r}")
    if status in _ANSWERS and (status != 404 or code in _MISSING):
        return _ANSWERS[status](path)
    # A 404 without the service's own code is somebody else's: a proxy's, say.
    if status in {0, 404, 408, 429} or status >= 500 or code in _PASSING:
        return TransientError(f"{path}: the store answered {status} {code}")
    return RemoteDictError(f"the store refused the request for {path!r}: {status} {code}")


_ANSWERS = {
    304: _StillThereError,
    404: BlobNotFound,
    412: PreconditionFailed,
    416: BlobNotFound,  # no byte at that offset
}
_PASSING = {"BlobModifiedWhileReading", "InvalidBlockList"}
_MISSING = {"BlobNotFound", "ContainerNotFound", "ResourceNotFound"}
_BAD_NAMES = {"InvalidResourceName", "OutOfRangeInput", "InvalidUri"}
_CONTAINER = {
    "ContainerBeingDeleted": (
        "the container is being deleted, which takes the service half a minute or more; "
        "try again after that, or use another container"
    ),
    "ContainerDisabled": "the container is disabled; ask its administrator",
}


def _code(exc: HttpResponseError) -> str:
    """Return the service's error code: a str, or an enum that is one."""
    code = getattr(exc, "error_code", None) or ""
    return str(getattr(code, "value", code))
