"""A store in a container of Azure Blob Storage, its bytes by way of obstore."""

from __future__ import annotations

import os
import re
import sys
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential

from remotedict.backend import (
    NOT_MODIFIED,
    PIECE_BYTES,
    BlobNotFound,
    Buffer,
    Data,
    Got,
    NotModified,
    PreconditionFailed,
    TransientError,
    pieces,
)
from remotedict.backend.azure import (
    BLOCK_ATTEMPTS,
    CONNECT_TIMEOUT,
    AzureBackend,
    translated,
    translating,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obstore.store import AzureStore, ClientConfig

_SMALL = 256 * 1024  # what is larger isn't copied into bytes
_LARGE = 2 * PIECE_BYTES  # what is larger goes up in blocks
_BLOCKS = 16  # under way at once
_BULK_SECONDS = 900.0  # for a block, of many that share a slow line

_SCOPE = "https://storage.azure.com/.default"
_RENEWED = timedelta(minutes=5)

_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_KIND = re.compile(r"kind: (\w+)")

_forked = False


def usable() -> bool:
    """Tell whether obstore can be used in this process.

    A child that was forked from a process that has used it hangs in it: its threads are gone.
    """
    if _forked or _bundle() == "":
        return False
    try:
        import obstore  # noqa: F401
    except ImportError:
        return False
    return True


def _bundle() -> str | None:
    """Return the file of further certificate authorities; "" for a folder of them."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if found := os.environ.get(name):
            return found if Path(found).is_file() else ""
    return None


class ObstoreBackend(AzureBackend):
    """Like `AzureBackend`, but blobs are read and written by obstore, at an eighth of the CPU time.

    Leases, listings, deletions and the container itself stay with the SDK, and so do writes that
    obstore can't do: large ones with a precondition.
    """

    def __init__(self, *args: Any, timeout: float, **options: Any) -> None:
        super().__init__(*args, timeout=timeout, **options)
        query = urlsplit(self._client.primary_endpoint).query
        self._credential = _Credential(self._client.credential, query)
        self._store = self._connect(timeout, retries=0)
        # Only for blobs that nobody names yet: a block may well be sent twice.
        self._bulk = self._connect(max(timeout, _BULK_SECONDS), retries=BLOCK_ATTEMPTS - 1)
        self._container_seen = False  # until then a large write may have to make it first

    def _connect(self, timeout: float, retries: int) -> AzureStore:
        from obstore.store import AzureStore

        client = self._client
        https = client.primary_endpoint.startswith("https:")
        options: ClientConfig = {
            "allow_http": not https,
            "connect_timeout": f"{min(timeout, CONNECT_TIMEOUT)}s",
            "read_timeout": f"{timeout}s",
            "timeout": f"{max(timeout, _BULK_SECONDS)}s",
        }
        if bundle := _bundle():
            options["root_certificate"] = Path(bundle).read_bytes()
        parts = urlsplit(client.primary_endpoint)
        # All that the environment might say otherwise is said here.
        return AzureStore(
            client.container_name,
            account_name=client.account_name,
            endpoint=parts._replace(query="", path=parts.path.rpartition("/")[0]).geturl(),
            credential_provider=self._credential,
            use_emulator=False,
            use_fabric_endpoint=False,
            skip_signature=False,
            client_options=options,
            retry_config={"max_retries": retries},
        )

    def get(
        self,
        path: str,
        *,
        range: tuple[int, int] | None = None,  # noqa: A002
        if_none_match: str | None = None,
    ) -> Got | NotModified:
        """See `Backend.get`."""
        import obstore
        from obstore.exceptions import NotModifiedError

        options: Any = {}
        if range is not None:
            options["range"] = (range[0], range[0] + range[1])
        if if_none_match is not None:
            options["if_none_match"] = if_none_match
        if self.meter:
            self.meter.request("get")
        try:
            got = obstore.get(self._store, path, options=options)
            body = got.bytes()
            data = body.to_bytes() if len(body) < _SMALL else memoryview(body)
        except NotModifiedError:
            return NOT_MODIFIED
        except Exception as exc:  # noqa: BLE001 - its errors have many bases
            answer = self._meaning(exc, path)
        else:
            if range is not None and not data:  # where the service itself would answer 416
                raise BlobNotFound(path)
            self._container_seen = True
            if self.meter:
                self.meter.received(len(data))
            return Got(data, got.meta["e_tag"] or "")
        if isinstance(answer, _StrangeAnswerError):  # perhaps the SDK does
            return super().get(path, range=range, if_none_match=if_none_match)
        raise answer

    def put(
        self, path: str, data: Data, *, if_match: str | None = None, if_absent: bool = False
    ) -> str:
        """See `Backend.put`."""
        if if_match == "":  # it would be taken for none at all
            raise PreconditionFailed(path)
        first, rest = _first(data)
        if rest is None:
            data = b"".join(first) if len(first) != 1 else first[0]
            mode: Any = "create" if if_absent else {"e_tag": if_match} if if_match else "overwrite"
            return self._making_container(lambda: self._put(path, data, mode))
        if if_match is not None or if_absent or not self._container_seen:
            return super().put(path, chain(first, rest), if_match=if_match, if_absent=if_absent)
        return self._put_blocks(path, chain(first, rest))

    def _put(self, path: str, data: Buffer, mode: Any) -> str:
        import obstore

        if self.meter:
            self.meter.request("put", up=len(data))
        try:
            done = obstore.put(self._store, path, data, mode=mode, use_multipart=False)
        except Exception as exc:  # noqa: BLE001 - its errors have many bases
            answer = self._meaning(exc, path)
        else:
            self._container_seen = True
            return _etag(done)
        raise answer

    def _put_blocks(self, path: str, data: Iterator[Buffer]) -> str:
        import obstore

        source = _Source(data)
        try:
            done = obstore.put(
                self._bulk,
                path,
                iter(source),
                use_multipart=True,
                chunk_size=PIECE_BYTES,
                max_concurrency=_BLOCKS,
            )
        except Exception as exc:  # noqa: BLE001 - its errors have many bases
            answer = source.error or self._meaning(exc, path)
        else:
            return _etag(done)
        finally:
            self._count(source.size)
        raise answer

    def _count(self, size: int) -> None:
        """Count the requests of an upload in blocks; those that were sent again aren't known."""
        if self.meter:
            for at in range(0, size, PIECE_BYTES):
                self.meter.request("put", up=min(PIECE_BYTES, size - at))
            self.meter.request("put")  # of the list of blocks

    def _meaning(self, exc: Exception, path: str) -> Exception:
        """Return what an error of obstore means.

        It isn't chained, nor repeated: it quotes URLs, and in them a SAS.
        """
        from obstore.exceptions import UnauthenticatedError

        text = str(exc)
        if status := _STATUS.search(text):
            code = _CODE.search(text)
            return translated(int(status[1]), code[1] if code else "", path)
        if "StartTooLarge" in text:
            return BlobNotFound(path)
        if isinstance(exc, UnauthenticatedError):  # of the credential, before any request
            return self._credential.failure(path)
        if kind := _KIND.search(text):
            return TransientError(f"{path}: no answer ({kind[1]})")
        return _StrangeAnswerError(f"{path}: a strange answer ({type(exc).__name__})")


class _StrangeAnswerError(TransientError):
    """There was an answer, but obstore doesn't understand it."""


class _Source:
    """The pieces of a blob, and their size so far; `error` is what came instead of one."""

    def __init__(self, data: Iterator[Buffer]) -> None:
        self._data = data
        self.size = 0
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[Buffer]:
        try:
            for piece in self._data:
                if len(piece):
                    self.size += len(piece)
                    yield piece
        except Exception as exc:
            self.error = exc
            raise


def _first(data: Data) -> tuple[list[Buffer], Iterator[Buffer] | None]:
    """Return all of `data` if it is small; else as much as shows that it isn't, and the rest."""
    first: list[Buffer] = []
    size = 0
    rest = (memoryview(piece).cast("B") for piece in pieces(data))
    for piece in rest:
        first.append(piece)
        size += len(piece)
        if size > _LARGE:
            return first, rest
    return first, None


class _Credential:
    """Gives obstore what the SDK's client was given."""

    def __init__(self, credential: Any, query: str) -> None:
        self._credential = credential
        self._query = query  # where the SDK keeps a SAS that is a str
        self._error: Exception | None = None

    def __call__(self) -> Any:
        """Return a credential, and until when it may be used."""
        credential = self._credential
        soon = datetime.now(UTC) + _RENEWED  # an object's key or SAS may be updated
        if hasattr(credential, "account_key"):
            return {"access_key": credential.account_key, "expires_at": None}
        if isinstance(credential, AzureNamedKeyCredential):
            return {"access_key": credential.named_key.key, "expires_at": soon}
        if isinstance(credential, AzureSasCredential):
            return {"sas_token": credential.signature.lstrip("?"), "expires_at": soon}
        if hasattr(credential, "get_token"):
            return self._token()
        return {"sas_token": self._query, "expires_at": None}

    def _token(self) -> Any:
        try:
            token = self._credential.get_token(_SCOPE)
        except Exception as exc:
            self._error = exc
            raise
        until = datetime.fromtimestamp(token.expires_on, UTC)
        return {"token": token.token, "expires_at": until}

    def failure(self, path: str) -> Exception:
        """Return what it means that no credential was to be had."""
        try:
            with translating(path):
                if self._error:
                    raise self._error  # noqa: TRY301 - to be translated
        except Exception as exc:  # noqa: BLE001 - of azure-identity, or of its libraries
            return exc
        return translated(401, "", path)


def _etag(answer: Any) -> str:
    return str(answer["e_tag"])


def _after_fork() -> None:
    global _forked  # noqa: PLW0603 - a fact of the process
    _forked = "obstore" in sys.modules


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
