"""Dictionaries on Azure Blob Storage."""

from __future__ import annotations

import base64
import importlib
import os
import re
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential
from azure.storage.blob import BlobServiceClient

from remotedict.backend.azure import AzureBackend
from remotedict.backend.obstore import ObstoreBackend, usable
from remotedict.dictionary import RemoteDict
from remotedict.engine.runtime import IO_THREADS
from remotedict.errors import CredentialsError
from remotedict.pure.naming import check_container
from remotedict.pure.secrecy import Hidden, quietly

if TYPE_CHECKING:
    from remotedict.engine.runtime import Runtime

ENVIRONMENT_VARIABLE = "AZURE_STORAGE_CONNECTION_STRING"

_HOST = re.compile(r"[\w.\-]+(:\d+)?|\[[0-9a-fA-F:]+\](:\d+)?")


@dataclass(frozen=True)
class _AzurePlace:
    """A container, and how to get into it.

    `credential` is left out of reprs and pickles; `identity` says that it was a token
    credential, which another process can make for itself.
    """

    account_url: str
    container: str
    credential: Any = field(repr=False)
    identity: bool = False
    travels: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the credential behind, unless it `travels`."""
        credential = self.credential if self.travels else None
        state = (self.account_url, self.container, credential, self.identity, self.travels)
        return _AzurePlace, state

    def backend(self, timeout: float, runtime: Runtime) -> AzureBackend:
        kind = ObstoreBackend if usable() else AzureBackend

        def connected() -> AzureBackend:
            return kind(
                self.account_url,
                self.container,
                self.credential if self.credential is not None else self._found_here(),
                timeout=timeout,
                # Its items are blocks of 8 MiB: no more of them than are under way at once.
                run=partial(runtime.map, window=IO_THREADS),
            )

        return quietly(connected)

    def describe(self) -> str:
        return f'Azure Blob Storage. Container: "{self.container}"'

    def portable(self, *, credentials: bool) -> _AzurePlace:
        return replace(self, travels=credentials)

    def _found_here(self) -> Any:
        """Return a credential of this process for a handle that came without one."""
        connection_string = os.environ.get(ENVIRONMENT_VARIABLE)
        if connection_string:
            url, credential = parse(connection_string)
            if url.rstrip("/") == self.account_url.rstrip("/"):
                return credential
            if not self.identity:
                msg = (
                    f"{ENVIRONMENT_VARIABLE} is for {url}, but this handle was pickled for "
                    f"{self.account_url}"
                )
                raise CredentialsError(msg)
        if self.identity:
            try:
                identity = importlib.import_module("azure.identity")
            except ImportError as exc:
                msg = (
                    "this handle was pickled without its credential, and azure-identity isn't "
                    "here to make one: pip install remotedict[identity]"
                )
                raise CredentialsError(msg) from exc
            return identity.DefaultAzureCredential()
        msg = (
            "this handle was pickled without its credentials; set "
            f"{ENVIRONMENT_VARIABLE} in this process, or open the dictionary with "
            "pickle_credentials=True if whoever reads the pickle may have them"
        )
        raise CredentialsError(msg)


class AzureDictionary(RemoteDict):
    """A dictionary in a container of Azure Blob Storage.

    Parameters
    ----------
    connection_string : str, optional
        Of the storage account, with a key or a SAS. By default what the environment variable
        ``AZURE_STORAGE_CONNECTION_STRING`` holds, unless `account_url` is given.
    container_name : str
        The container; made by the first write when it is missing.
    folder_name : str
        Which dictionary in it.
    account_url : str, optional
        Instead of a connection string: ``https://<account>.blob.core.windows.net``.
    credential : object, optional
        For `account_url`: an account key, a SAS token, or a credential of azure-identity
        (``pip install remotedict[identity]``).
    **options
        See `RemoteDict`.

    Raises
    ------
    CredentialsError
        Credentials are missing or malformed.
    InvalidNameError
        The container or folder can't be named so.
    AccessDeniedError
        The account refuses the credentials.

    Notes
    -----
    Proxies and certificate authorities are taken from the usual environment variables
    (``HTTPS_PROXY``, ``REQUESTS_CA_BUNDLE``).

    Examples
    --------
    ::

        d = AzureDictionary(CONNECTION_STRING, container_name="mycontainer", folder_name="myfolder")
        d["foo"] = "bar"
    """

    def __init__(
        self,
        connection_string: str | None = None,
        container_name: str | None = None,
        folder_name: str = "default",
        *,
        account_url: str | None = None,
        credential: Any = None,
        **options: Any,
    ) -> None:
        given = Hidden(secrets=(connection_string, account_url, credential))
        options = Hidden(options)
        del connection_string, account_url, credential
        place = quietly(_place, quietly(check_container, container_name), *given["secrets"])
        super().__init__(place, folder_name, **options)


def _place(
    container: str, connection_string: str | None, account_url: str | None, credential: Any
) -> _AzurePlace:
    if connection_string is not None and account_url is not None:
        msg = "give a connection string or account_url=, not both"
        raise CredentialsError(msg)
    if account_url is None:
        if credential is not None:
            msg = "credential= goes with account_url=; a connection string has its own"
            raise CredentialsError(msg)
        if connection_string is None:
            connection_string = _from_environment()
        account_url, credential = parse(connection_string)
    else:
        account_url, credential = _checked(account_url, credential)
    identity = hasattr(credential, "get_token")
    return _AzurePlace(account_url, container, credential, identity=identity)


def parse(connection_string: str) -> tuple[str, Any]:
    """Return the URL of the blob service and the credential in a connection string.

    Raises
    ------
    CredentialsError
        It is malformed. The message doesn't repeat it: it holds a secret.
    """
    try:
        client = _client(connection_string)
    except Exception:  # noqa: BLE001 - the SDK's errors here are of many kinds, and may quote it
        client = None
    if client is None:  # outside the handler: the SDK's error must not be chained
        msg = (
            "the connection string can't be used: it should look like "
            "DefaultEndpointsProtocol=https;AccountName=…;AccountKey=…;"
            "EndpointSuffix=core.windows.net (the portal shows it under Access keys)"
        )
        raise CredentialsError(msg)
    with client:
        # The SDK keeps a SAS in the URL, and wraps a key in an object of its own.
        credential = getattr(client, "credential", None)
        key = getattr(credential, "account_key", None)
        try:
            _checked(str(client.url), key if isinstance(key, str) else credential)
        except CredentialsError:
            msg = (
                "the connection string has no usable AccountKey= or SharedAccessSignature=, or "
                "names no usable endpoint"
            )
            raise CredentialsError(msg) from None
        return _without_query(str(client.url)), credential or _sas_of(str(client.url))


def _client(connection_string: str) -> BlobServiceClient:
    protocol = re.search(r"(?i)DefaultEndpointsProtocol=([^;]*)", connection_string)
    if protocol and protocol[1].lower() not in ("http", "https"):
        raise ValueError
    return BlobServiceClient.from_connection_string(connection_string)


def _checked(account_url: Any, credential: Any) -> tuple[str, Any]:
    """Return the URL without a SAS, and the credential, which may be that SAS."""
    parts = urlsplit(account_url) if isinstance(account_url, str) else urlsplit("")
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(parts.netloc):
        msg = (
            "the URL of the account can't be used: it should look like "
            "https://<account>.blob.core.windows.net"
        )
        raise CredentialsError(msg)
    credential = credential if credential is not None else parts.query or None
    if hasattr(credential, "get_token"):
        if parts.scheme != "https":
            msg = "a credential of azure-identity is only sent over https, and the URL has http"
            raise CredentialsError(msg)
    elif isinstance(credential, str):
        if "sig=" not in credential and not _is_key(credential):
            msg = "credential= is neither an account key (base64) nor a SAS (with sig=…)"
            raise CredentialsError(msg)
    elif not isinstance(credential, AzureSasCredential | AzureNamedKeyCredential):
        msg = (
            "there is no credential for the account: give an account key, a SAS, or an object "
            f"of azure-identity as credential=, not {type(credential).__name__}"
        )
        raise CredentialsError(msg)
    return _without_query(account_url), credential


def _is_key(text: str) -> bool:
    try:
        return bool(base64.b64decode(text, validate=True))
    except ValueError:
        return False


def _sas_of(url: str) -> str | None:
    return urlsplit(url).query or None


def _without_query(url: str) -> str:
    return url.partition("?")[0]


def _from_environment() -> str:
    found = os.environ.get(ENVIRONMENT_VARIABLE)
    if not found:
        msg = (
            "no credentials: give a connection string, or account_url= with credential=, or set "
            f"the environment variable {ENVIRONMENT_VARIABLE}"
        )
        raise CredentialsError(msg)
    return found
