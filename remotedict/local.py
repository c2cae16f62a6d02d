"""Dictionaries in a local folder: no account, no server."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from remotedict.backend.local import LocalBackend
from remotedict.dictionary import RemoteDict
from remotedict.errors import InvalidNameError
from remotedict.pure.naming import refuse_secret
from remotedict.pure.secrecy import Hidden

if TYPE_CHECKING:
    from remotedict.engine.runtime import Runtime


class _LocalPlace:
    def __init__(self, root: str) -> None:
        self._root = root

    def backend(self, timeout: float, runtime: Runtime) -> LocalBackend:
        del timeout, runtime
        return LocalBackend(self._root)

    def describe(self) -> str:
        return f'Local folder. Path: "{self._root}"'

    def portable(self, *, credentials: bool) -> _LocalPlace:
        del credentials
        return self


class LocalDictionary(RemoteDict):
    """A dictionary in a local folder, shared by all processes that open it.

    Parameters
    ----------
    path : path-like
        The folder; made by the first write when it is missing, for this user alone.
    folder_name : str
        Which dictionary in it.
    **options
        See `RemoteDict`.

    Notes
    -----
    Every write is synced to disk before it returns. The folder should be on a local file system:
    a network one must have working file locks and clocks that agree.

    Examples
    --------
    >>> import tempfile
    >>> from remotedict import LocalDictionary
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with LocalDictionary(folder) as d:
    ...         d["foo"] = "bar"
    ...     with LocalDictionary(folder) as d:
    ...         d["foo"]
    'bar'
    """

    def __init__(
        self, path: str | os.PathLike[str], folder_name: str = "default", **options: Any
    ) -> None:
        options = Hidden(options)
        try:
            root = os.fspath(path)
        except TypeError:
            root = None
        refuse_secret(root)
        if not isinstance(root, str) or not root or "\0" in root:
            msg = f"a local dictionary needs the path of a folder, not {path!r}"
            raise InvalidNameError(msg)
        super().__init__(
            # Absolute, so that a later change of the working directory changes nothing.
            _LocalPlace(os.path.abspath(os.path.expanduser(root))),  # noqa: PTH100, PTH111
            folder_name,
            **options,
        )
