"""remotedict: a Python dictionary that lives in the cloud.

>>> import remotedict
>>> d = remotedict.open("memory://welcome")
>>> d["greeting"] = "hello"
>>> d["greeting"]
'hello'
"""

from __future__ import annotations

from remotedict.azure import AzureDictionary
from remotedict.dictionary import RemoteDict
from remotedict.engine.copying import CopyReport
from remotedict.engine.repair import RepairReport
from remotedict.engine.stats import Stats
from remotedict.engine.vacuum import VacuumReport
from remotedict.engine.verify import VerifyReport
from remotedict.errors import (
    AccessDeniedError,
    ClosedError,
    ConflictError,
    ContainerUnavailableError,
    CorruptBlobError,
    CredentialsError,
    DecryptionError,
    DestinationError,
    DictionaryChangedError,
    FormatVersionError,
    HistoryGapError,
    InvalidKeyError,
    InvalidNameError,
    ItemLockedError,
    ItemLockedException,
    KeyNotFoundError,
    LockLostError,
    LockNotHeldError,
    LockTimeoutError,
    MetadataError,
    MissingValueError,
    RemoteDictError,
    SelectionError,
    SignatureError,
    SnapshotExpiredError,
    StoreUnavailableError,
    UnknownCommitError,
    UnknownOutcomeError,
    UnpicklableValueError,
    UnreadableValueError,
    UnsafeValueError,
    ValueTooLargeError,
    VersionConflictError,
)
from remotedict.features.events import Event
from remotedict.features.locks import LockInfo
from remotedict.features.mirror import Mirror
from remotedict.features.snapshot import Snapshot
from remotedict.features.transaction import Transaction
from remotedict.features.watch import Subscription, Watch
from remotedict.local import LocalDictionary
from remotedict.memory import MemoryDictionary

# As in shutil.copy; not in __all__, as below.
from remotedict.moving import copy as copy

# As in gzip.open; not in __all__, so that a * import leaves the built-in one alone.
from remotedict.opening import open as open  # noqa: A004

__version__ = "0.1.0"

__all__ = [
    "AccessDeniedError",
    "AzureDictionary",
    "ClosedError",
    "ConflictError",
    "ContainerUnavailableError",
    "CopyReport",
    "CorruptBlobError",
    "CredentialsError",
    "DecryptionError",
    "DestinationError",
    "DictionaryChangedError",
    "Event",
    "FormatVersionError",
    "HistoryGapError",
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
    "MetadataError",
    "Mirror",
    "MissingValueError",
    "RemoteDict",
    "RemoteDictError",
    "RepairReport",
    "SelectionError",
    "SignatureError",
    "Snapshot",
    "SnapshotExpiredError",
    "Stats",
    "StoreUnavailableError",
    "Subscription",
    "Transaction",
    "UnknownCommitError",
    "UnknownOutcomeError",
    "UnpicklableValueError",
    "UnreadableValueError",
    "UnsafeValueError",
    "VacuumReport",
    "ValueTooLargeError",
    "VerifyReport",
    "VersionConflictError",
    "Watch",
]
