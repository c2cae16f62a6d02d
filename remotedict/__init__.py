"""remotedict: a Python dictionary that lives in the cloud.

>>> import remotedict
>>> d = remotedict.open("memory://welcome")
>>> d["greeting"] = "hello"
>>> d["greeting"]
'hello'
"""

from __future__ import annotations

from remotedict.dictionary import RemoteDict
from remotedict.errors import (
    AccessDeniedError,
    ClosedError,
    ContainerUnavailableError,
    CorruptBlobError,
    CredentialsError,
    DictionaryChangedError,
    FormatVersionError,
    InvalidKeyError,
    InvalidNameError,
    ItemLockedError,
    ItemLockedException,
    KeyNotFoundError,
    LockLostError,
    LockNotHeldError,
    LockTimeoutError,
    MissingValueError,
    RemoteDictError,
    SelectionError,
    SnapshotExpiredError,
    StoreUnavailableError,
    UnknownOutcomeError,
    UnpicklableValueError,
    UnreadableValueError,
)
from remotedict.features.locks import LockInfo
from remotedict.local import LocalDictionary
from remotedict.memory import MemoryDictionary

# As in gzip.open; not in __all__, so that a * import leaves the built-in one alone.
from remotedict.opening import open as open  # noqa: A004

__version__ = "0.1.0"

__all__ = [
    "AccessDeniedError",
    "ClosedError",
    "ContainerUnavailableError",
    "CorruptBlobError",
    "CredentialsError",
    "DictionaryChangedError",
    "FormatVersionError",
    "InvalidKeyError",
    "InvalidNameError",
    "ItemLockedError",
    "ItemLockedException",
    "KeyNotFoundError",
    "LocalDictionary",
    "LockInfo",
    "LockLostError",
    "LockNotHeldError",
    "LockTimeoutError",
    "MemoryDictionary",
    "MissingValueError",
    "RemoteDict",
    "RemoteDictError",
    "SelectionError",
    "SnapshotExpiredError",
    "StoreUnavailableError",
    "UnknownOutcomeError",
    "UnpicklableValueError",
    "UnreadableValueError",
]
