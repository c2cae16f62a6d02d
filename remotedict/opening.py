"""Opening a dictionary by its URL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from remotedict.azure import AzureDictionary
from remotedict.dictionary import RemoteDict
from remotedict.errors import InvalidNameError
from remotedict.local import LocalDictionary
from remotedict.memory import MemoryDictionary
from remotedict.pure.naming import refuse_secret
from remotedict.pure.secrecy import Hidden

if TYPE_CHECKING:
    import os


def open(url: str | os.PathLike[str], **options: Any) -> RemoteDict:  # noqa: A001
    """Open the dictionary at `url`; an empty one if there is none yet.

    Parameters
    ----------
    url : str or path-like
        ``az://container/folder`` on Azure Blob Storage (with the credentials of
        `AzureDictionary`, which may be given as options), ``file:///path`` or a plain path for
        a local folder, ``memory://name``. The folder is ``default`` where none is named.
    **options
        See `RemoteDict`; and ``folder_name=`` for what the URL doesn't say.

    Raises
    ------
    InvalidNameError
        The URL is none of these.

    Examples
    --------
    >>> import remotedict
    >>> d = remotedict.open("memory://results")
    >>> d
    Memory. Name: "results"; Folder: "default"; Num elements: 0
    """
    options = Hidden(options)
    if not isinstance(url, str):
        return LocalDictionary(url, **options)
    refuse_secret(url)
    scheme, separator, rest = url.partition("://")
    if not separator:
        return LocalDictionary(url, **options)
    if scheme == "memory":
        return MemoryDictionary(rest or None, **options)
    if scheme == "file":
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            msg = f"{url!r} names another machine; a file URL has three slashes: file:///path"
            raise InvalidNameError(msg)
        return LocalDictionary(url2pathname(parts.path), **options)
    if scheme in ("az", "azure"):
        container, _, folder = rest.partition("/")
        if folder:
            options = Hidden({"folder_name": unquote(folder.rstrip("/"))} | options)
        return AzureDictionary(container_name=unquote(container), **options)
    msg = (
        f"{scheme + '://'!r} is not a place for dictionaries; use az://container/folder, "
        "file:///path, a plain path, or memory://name"
    )
    raise InvalidNameError(msg)


RemoteDict._opener = open  # noqa: SLF001 - what is below can't import it
