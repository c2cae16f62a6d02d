"""Dictionaries in this process's memory: for tests and for trying things out."""

from __future__ import annotations

import uuid
import weakref
from typing import TYPE_CHECKING, Any

from remotedict.backend.memory import MemoryBackend
from remotedict.dictionary import RemoteDict
from remotedict.errors import InvalidNameError, StoreUnavailableError
from remotedict.pure.secrecy import Hidden

if TYPE_CHECKING:
    from remotedict.engine.runtime import Runtime

_named: dict[str, MemoryBackend] = {}
_all: weakref.WeakValueDictionary[str, MemoryBackend] = weakref.WeakValueDictionary()


class _MemoryPlace:
    def __init__(self, name: str | None) -> None:
        self._shown = name
        self._name = name or f"unnamed-{uuid.uuid4().hex}"
        store = _all.setdefault(self._name, MemoryBackend())
        if name:
            _named[name] = store
        self._store: MemoryBackend | None = store

    def backend(self, timeout: float, runtime: Runtime) -> MemoryBackend:
        del timeout, runtime
        store = self._store or _all.get(self._name)
        if store is None:
            msg = (
                "a MemoryDictionary lives in the process that made it; share one between "
                "processes with LocalDictionary or AzureDictionary"
            )
            raise StoreUnavailableError(msg)
        self._store = store
        return store

    def describe(self) -> str:
        return f'Memory. Name: "{self._shown}"' if self._shown else "Memory"

    def portable(self, *, credentials: bool) -> _MemoryPlace:
        del credentials
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None}


class MemoryDictionary(RemoteDict):
    """A dictionary in memory; it ends with the process.

    Parameters
    ----------
    name : str, optional
        Dictionaries of one name are the same, for as long as the process lives; without a name
        it is a new one.
    folder_name : str
        Which dictionary under that name.
    **options
        See `RemoteDict`.

    Examples
    --------
    >>> from remotedict import MemoryDictionary
    >>> d = MemoryDictionary()
    >>> d["foo"] = "bar"
    >>> d
    Memory; Folder: "default"; Num elements: 1
    """

    def __init__(
        self, name: str | None = None, folder_name: str = "default", **options: Any
    ) -> None:
        options = Hidden(options)
        if name is not None and not (isinstance(name, str) and name):
            msg = f"the name of a MemoryDictionary must be a non-empty str, not {name!r}"
            raise InvalidNameError(msg)
        super().__init__(_MemoryPlace(name), folder_name, **options)
