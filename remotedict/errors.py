"""The errors of remotedict, grouped by what a handler would do.

::

    RemoteDictError
    ├── the call was wrong: mend the call
    │   ├── InvalidKeyError          (TypeError, ValueError)
    │   ├── InvalidNameError         (ValueError)       folder, container or URL
    │   ├── SelectionError           (TypeError, ValueError)   keys and values unlike
    │   ├── KeyNotFoundError         (KeyError)         .keys
    │   ├── UnpicklableValueError    (TypeError)        .key
    │   ├── ValueTooLargeError       (ValueError)       .key .nbytes .limit
    │   ├── MetadataError            (TypeError, ValueError)   not JSON
    │   ├── UnknownCommitError       (LookupError)      .commit
    │   ├── CredentialsError         (ValueError)
    │   ├── DestinationError         (FileExistsError)
    │   ├── ClosedError              (ValueError)
    │   └── LockNotHeldError         (RuntimeError)     .item_name
    ├── somebody else was there: wait, or decide
    │   ├── ConflictError            (RuntimeError)     .keys
    │   │   └── VersionConflictError                    .key .expected .provided
    │   ├── ItemLockedError          (PermissionError)  .item_name .holder .seconds_left
    │   │   └── LockTimeoutError     (TimeoutError)
    │   └── LockLostError            (PermissionError)  .item_name
    ├── the store did not answer: try again later
    │   ├── StoreUnavailableError    (ConnectionError, TimeoutError)
    │   │   └── UnknownOutcomeError                     .commit_id
    │   ├── ContainerUnavailableError (ConnectionError)
    │   └── AccessDeniedError        (PermissionError)
    └── what is stored is not what it should be: look at the store
        ├── UnreadableValueError     (ValueError)       .key
        ├── UnsafeValueError         (TypeError, ValueError)   .key
        ├── CorruptBlobError         (ValueError)       .blob
        │   ├── SignatureError
        │   └── DecryptionError
        ├── FormatVersionError       (ValueError)       .blob
        ├── MissingValueError        (LookupError)      .key .blob
        ├── SnapshotExpiredError     (LookupError)      .key
        ├── HistoryGapError          (LookupError)      .since .first
        └── DictionaryChangedError   (RuntimeError)

No message ever carries a credential.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "AccessDeniedError",
    "ClosedError",
    "ConflictError",
    "ContainerUnavailableError",
    "CorruptBlobError",
    "CredentialsError",
    "DecryptionError",
    "DestinationError",
    "DictionaryChangedError",
    "FormatVersionError",
    "HistoryGapError",
    "InvalidKeyError",
    "InvalidNameError",
    "ItemLockedError",
    "ItemLockedException",
    "KeyNotFoundError",
    "LockLostError",
    "LockNotHeldError",
    "LockTimeoutError",
    "MetadataError",
    "MissingValueError",
    "RemoteDictError",
    "SelectionError",
    "SignatureError",
    "SnapshotExpiredError",
    "StoreUnavailableError",
    "UnknownCommitError",
    "UnknownOutcomeError",
    "UnpicklableValueError",
    "UnreadableValueError",
    "UnsafeValueError",
    "ValueTooLargeError",
    "VersionConflictError",
]


class RemoteDictError(Exception):
    """The root of every error that remotedict raises on purpose."""

    def __str__(self) -> str:
        # KeyError would print the repr of its message.
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[object, ...]:
        # The constructors take more than the message: rebuild from state, so that an error
        # raised in a worker process arrives whole in its parent.
        return (_rebuild, (type(self), self.args, dict(self.__dict__)))


def _rebuild(
    cls: type[RemoteDictError], args: tuple[object, ...], state: dict[str, object]
) -> RemoteDictError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidKeyError(RemoteDictError, TypeError, ValueError):
    """A key is not a ``str``, is empty, or can't be encoded as UTF-8."""


class InvalidNameError(RemoteDictError, ValueError):
    """A folder name, container name, path or URL is not one that remotedict can use."""


class SelectionError(RemoteDictError, TypeError, ValueError):
    """Several keys were selected in a way, or given values, that don't fit together."""


class KeyNotFoundError(RemoteDictError, KeyError):
    """Keys are not in the dictionary.

    Attributes
    ----------
    keys : tuple of str
        *All* of the missing keys, in the order in which they were asked for.
    """

    def __init__(self, keys: Iterable[str], message: str | None = None) -> None:
        self.keys = tuple(keys)
        super().__init__(message or ", ".join(map(repr, self.keys)))


class UnpicklableValueError(RemoteDictError, TypeError):
    """A value can't be turned into bytes.

    Attributes
    ----------
    key : str
        The key that the value was meant for.
    """

    def __init__(self, key: str, reason: str) -> None:
        self.key = key
        super().__init__(f"the value for key {key!r} can't be stored: {reason}")


class ValueTooLargeError(RemoteDictError, ValueError):
    """A value takes more bytes than ``max_value_bytes=`` allows, to be written or to be read.

    Nothing was written, nor fetched.

    Attributes
    ----------
    key : str
        The key.
    nbytes : int
        How many it takes, or claims to take, before compression.
    limit : int
        How many are allowed.
    """

    def __init__(self, key: str, nbytes: int, limit: int) -> None:
        self.key = key
        self.nbytes = nbytes
        self.limit = limit
        super().__init__(
            f"the value of key {key!r} takes {nbytes:,} bytes, and max_value_bytes= of this handle "
            f"allows {limit:,}; open the dictionary with a greater one if that is as it should be"
        )


class MetadataError(RemoteDictError, TypeError, ValueError):
    """Metadata is not a dict that JSON can hold, or is too large."""


class UnknownCommitError(RemoteDictError, LookupError):
    """There is no such commit: of that id, that number, or that early.

    Attributes
    ----------
    commit : object
        What was asked for.
    """

    def __init__(self, commit: object, reason: str) -> None:
        self.commit = commit
        super().__init__(reason)


class CredentialsError(RemoteDictError, ValueError):
    """Credentials are missing, malformed, or contradict each other."""


class DestinationError(RemoteDictError, FileExistsError):
    """A dictionary can't be copied to where it should: there is something else. Nothing was changed."""


class ClosedError(RemoteDictError, ValueError):
    """The handle was closed."""


class LockNotHeldError(RemoteDictError, RuntimeError):
    """A handle was asked to unlock a key that it didn't lock.

    Attributes
    ----------
    item_name : str
        The key.
    """

    def __init__(self, item_name: str) -> None:
        self.item_name = item_name
        super().__init__(
            f"this handle holds no lock on key {item_name!r}; to end another's lock use "
            "unlock_item(key, force=True)"
        )


class ConflictError(RemoteDictError, RuntimeError):
    """What a write was based on has changed meanwhile. Nothing was written.

    Attributes
    ----------
    keys : tuple of str
        Keys that have changed.
    """

    def __init__(self, keys: Iterable[str], message: str | None = None) -> None:
        self.keys = tuple(keys)
        super().__init__(
            message
            or f"{', '.join(map(repr, self.keys))} changed since it was read; nothing was written. "
            "Read it anew and try again, or let d.run(fn) do so"
        )


class VersionConflictError(ConflictError):
    """A key's version is not the one that a write was meant for.

    Attributes
    ----------
    key : str
        The key.
    expected : int
        The version that a write of it must provide now.
    provided : int or None
        The version that was provided; None for ``if_absent=True``.
    """

    def __init__(self, key: str, expected: int, provided: int | None) -> None:
        self.key = key
        self.expected = expected
        self.provided = provided
        reason = (
            f"key {key!r} is there already, as version {expected - 1}"
            if provided is None
            else f"version {provided} of key {key!r} was provided, but {expected} comes next"
        )
        super().__init__([key], f"{reason}; nothing was written. Read it anew and decide")


OTHER_THREAD = "another thread of this handle"
_OTHER_THREAD = "its critical section has to end first: wait for that, or wait longer"


class ItemLockedError(RemoteDictError, PermissionError):
    """Somebody else holds the lock of a key.

    Attributes
    ----------
    item_name : str
        The (first) locked key.
    holder : str
        Who holds it: author, host and process id, or ``"unknown"``.
    seconds_left : float or None
        An estimate of how long the lock still lasts; None when it is renewed until released.
    """

    def __init__(
        self, item_name: str, holder: str, seconds_left: float | None = None, note: str = ""
    ) -> None:
        self.item_name = item_name
        self.holder = holder
        self.seconds_left = seconds_left
        left = "held until released" if seconds_left is None else f"about {seconds_left:.0f} s left"
        advice = _OTHER_THREAD if holder == OTHER_THREAD else self._advice
        super().__init__(f"key {item_name!r} is locked by {holder} ({left}){note}; {advice}")

    _advice = (
        "wait for it with lock_item(key, wait=True), or end the holder's lock with "
        "unlock_item(key, force=True). That of a holder that died ends by itself within seconds"
    )


ItemLockedException = ItemLockedError


class LockTimeoutError(ItemLockedError, TimeoutError):
    """A lock could not be had within ``timeout=``."""

    _advice = (
        "wait longer, or end the holder's lock with unlock_item(key, force=True). That of a "
        "holder that died ends by itself within seconds"
    )


class LockLostError(RemoteDictError, PermissionError):
    """A lock that this handle held was superseded by somebody else.

    It is raised once, by the holder's next write of the key or by its unlock; the handle then
    forgets the lock. Within ``with d.lock(...)`` it is raised until the section has ended.

    Attributes
    ----------
    item_name : str
        The key whose lock was lost.
    """

    def __init__(self, item_name: str) -> None:
        self.item_name = item_name
        super().__init__(
            f"the lock on key {item_name!r} was lost: it ran out or was forced, and somebody "
            "else has superseded it. Nothing was written; lock the key again and read it anew"
        )


class StoreUnavailableError(RemoteDictError, ConnectionError, TimeoutError):
    """The store gave no usable answer within the deadline. Nothing was changed."""


class UnknownOutcomeError(StoreUnavailableError):
    """A write was sent, and it could not be learnt whether it was applied.

    Or the store gave no answer at the end of a critical section, in which there may have been
    writes: these were applied, unless they raised.

    Attributes
    ----------
    commit_id : str or None
        The id of the commit in doubt: it is in the history if, and only if, it was applied. None
        for what is no commit, such as a change of `history_policy`.
    """

    def __init__(self, commit_id: str | None, reason: str, doubt: str = "") -> None:
        self.commit_id = commit_id
        if doubt:
            told = f"{doubt} ({reason})"
        elif commit_id:
            told = f"whether commit {commit_id} was applied ({reason}); read the keys to find out before writing them again"
        else:
            told = f"whether the change was applied ({reason}); it may be made again"
        super().__init__(f"it is unknown {told}")


class ContainerUnavailableError(RemoteDictError, ConnectionError):
    """The container can't be used now: it is being deleted, or can't be made."""


class AccessDeniedError(RemoteDictError, PermissionError):
    """The store refused the credentials, or what they may do."""


class UnreadableValueError(RemoteDictError, ValueError):
    """A value's bytes are whole, but can't be turned into an object here.

    A module that it needs is missing, say, or has another version than its writer's.

    Attributes
    ----------
    key : str
        The key.
    """

    def __init__(self, key: str, reason: str) -> None:
        self.key = key
        super().__init__(f"the value of key {key!r} can't be rebuilt here: {reason}")


class UnsafeValueError(RemoteDictError, TypeError, ValueError):
    """A value isn't one of those that ``codec="safe"`` writes and reads.

    Attributes
    ----------
    key : str
        The key.
    """

    def __init__(self, key: str, message: str) -> None:
        self.key = key
        super().__init__(message)


class CorruptBlobError(RemoteDictError, ValueError):
    """A blob's bytes fail their magic, checksum or decoding.

    Attributes
    ----------
    blob : str
        The path of the blob in its container.
    reason : str
        What is wrong with it.
    """

    def __init__(self, blob: str, reason: str) -> None:
        self.blob = blob
        self.reason = reason
        super().__init__(f"blob {blob!r} {self._what}: {reason}")

    _what = "is damaged or not of remotedict"


class SignatureError(CorruptBlobError):
    """A blob isn't signed as ``signing_key=`` demands, or is, and no key was given."""

    _what = "can't be trusted"


class DecryptionError(CorruptBlobError):
    """A blob isn't encrypted as ``encryption_key=`` demands, or is, and no key was given."""

    _what = "can't be decrypted"


class FormatVersionError(RemoteDictError, ValueError):
    """A blob was written by a newer remotedict.

    Attributes
    ----------
    blob : str
        The path of the blob in its container.
    reason : str
        What is newer.
    """

    def __init__(self, blob: str, reason: str) -> None:
        self.blob = blob
        self.reason = reason
        super().__init__(f"blob {blob!r} needs a newer remotedict: {reason}. Upgrade remotedict")


class MissingValueError(RemoteDictError, LookupError):
    """The index lists a key whose bytes are not in the store: somebody deleted the blob.

    Attributes
    ----------
    key : str
        The key.
    blob : str
        The path at which its bytes should be.
    """

    def __init__(self, key: str, blob: str) -> None:
        self.key = key
        self.blob = blob
        super().__init__(
            f"the value of key {key!r} is listed but blob {blob!r} is gone: it was deleted by "
            "something other than remotedict. Set the key anew, or delete it"
        )


class SnapshotExpiredError(RemoteDictError, LookupError):
    """A past state, or an old version, is no longer kept.

    Attributes
    ----------
    key : str or None
        The key whose value, as of that state, is gone; None when it is all of an old state.
    """

    def __init__(self, key: str | None, message: str | None = None) -> None:
        self.key = key
        super().__init__(
            message
            or f"the value that key {key!r} had when this iteration or snapshot began was "
            "replaced since, and is no longer kept. Begin anew to read the current values"
        )


class HistoryGapError(RemoteDictError, LookupError):
    """Commits are no longer kept from there on.

    Attributes
    ----------
    since : int
        The commit after which they were asked for.
    first : int
        The oldest one that is kept.
    """

    def __init__(self, since: int, first: int) -> None:
        self.since = since
        self.first = first
        super().__init__(
            f"the commits after {since} were asked for, but only those from {first} on are kept. "
            f"Read the dictionary as it is now, and go on after commit {first - 1}; to keep all "
            "commits open it with history='all'"
        )


class DictionaryChangedError(RemoteDictError, RuntimeError):
    """The dictionary is not the one that this handle has been following.

    It went back in time (a restored backup, a fail-over), was deleted, or was made anew. The
    handle never follows such a change silently; open a new handle to accept it.
    """
