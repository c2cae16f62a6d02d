"""Sessions: where a dictionary is, and the live parts that serve it in this process."""

from __future__ import annotations

import atexit
import getpass
import os
import socket
import threading
import weakref
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from remotedict.engine.core import Engine, Tuning
from remotedict.engine.runtime import default_runtime
from remotedict.engine.stats import Meter
from remotedict.errors import ClosedError, CredentialsError
from remotedict.features.history import versions_kept
from remotedict.features.locks import Locks
from remotedict.pure.keyring import Keyring, Secret
from remotedict.pure.naming import Layout, refuse_secret

if TYPE_CHECKING:
    from collections.abc import Callable

    from remotedict.backend import Backend
    from remotedict.engine.runtime import Runtime


_EXIT_SECONDS = 5.0
_NUMBERS = (
    *("timeout", "max_staleness", "inline_bytes", "cache_bytes", "cache_dir_bytes"),
    "retention",
)
_KEYS = {
    "signing_key": "REMOTEDICT_SIGNING_KEY",
    "encryption_key": "REMOTEDICT_ENCRYPTION_KEY",
}
"""The options that hold secrets, and the variables of the environment that may have them."""


class Place(Protocol):
    """Where dictionaries live: a container, a local folder, a piece of memory.

    Copied to another process it must have left its secrets behind, unless told otherwise, and
    find others there.
    """

    def backend(self, timeout: float, runtime: Runtime) -> Backend:
        """Return a backend with connections of its own."""

    def describe(self) -> str:
        """Return what stands before the folder in a repr."""

    def portable(self, *, credentials: bool) -> Place:
        """Return what may be pickled: without secrets, unless `credentials`."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options that all dictionaries take; `RemoteDict` explains them."""

    author: str | None = None
    timeout: float = 60.0
    max_staleness: float = 0.0
    inline_bytes: int = 2048
    cache_bytes: int = 256 * 1024 * 1024
    cache_dir: str | os.PathLike[str] | None = None
    cache_dir_bytes: int = 4 * 1024 * 1024 * 1024
    retention: float = 3600.0
    history: str | int | None = None
    progress: bool | None = None
    pickle_credentials: bool = False
    signing_key: Any = field(default=None, repr=False)
    encryption_key: Any = field(default=None, repr=False)

    @classmethod
    def of(cls, given: dict[str, Any]) -> Options:
        """Return the options that were given; raise TypeError for one that there isn't."""
        names = [field.name for field in fields(cls)]
        if unknown := [name for name in given if name not in names]:
            msg = f"there is no option {unknown[0]}=; the options are {', '.join(names)}"
            raise TypeError(msg)
        return cls(**given)

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if not isinstance(self.author, str | None):
            msg = f"author= must be a str, not {type(self.author).__name__}"
            raise TypeError(msg)
        if self.history is not None:
            versions_kept(self.history)
        if self.cache_dir is not None:
            # Absolute, so that a later change of the working directory changes nothing.
            object.__setattr__(self, "cache_dir", absolute(self.cache_dir))
        for name in _KEYS:
            object.__setattr__(self, name, _secrets(getattr(self, name), name))
        for name in _NUMBERS:
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool):
                msg = f"{name}= must be a number, not {type(value).__name__}"
                raise TypeError(msg)
            if not value >= 0 or (name == "timeout" and value == 0):
                least = "more than 0" if name == "timeout" else "0 or more"
                msg = f"{name}= must be {least}, not {value!r}"
                raise ValueError(msg)

    def tuning(self) -> Tuning:
        """Return the options that the engine knows."""
        return Tuning(
            self.author if self.author is not None else default_author(),
            self.timeout,
            self.max_staleness,
            int(self.inline_bytes),
            int(self.cache_bytes),
            self._cache_dir(),
            int(self.cache_dir_bytes),
            self.retention,
            self._keyring(),
        )

    def _keyring(self) -> Keyring | None:
        keys = [[_found(secret) for secret in getattr(self, name)] for name in _KEYS]
        return Keyring(*keys) if any(keys) else None

    def _cache_dir(self) -> str | None:
        """Return the path if it is one here: a pickle may come from another system."""
        path = self.cache_dir
        return str(path) if path is not None and Path(path).is_absolute() else None


def _secrets(given: Any, name: str) -> tuple[Secret, ...]:
    """Return the keys that are given, or those of the environment."""
    if given is None:
        given = [key for key in os.environ.get(_KEYS[name], "").split(",") if key]
    if not isinstance(given, list | tuple):
        given = [given]
    return tuple(key if isinstance(key, Secret) else Secret(key, name) for key in given)


def _found(secret: Secret) -> Secret:
    """Return the key that was left behind by a pickle, found in the environment of this process."""
    if not secret.left_behind:
        return secret
    for found in _secrets(None, secret.purpose):
        if found.id == secret.id:
            return found
    msg = (
        f"this handle was pickled without its {secret.purpose}; set {_KEYS[secret.purpose]} here, "
        "or pass pickle_credentials=True where it is made"
    )
    raise CredentialsError(msg)


def absolute(path: str | os.PathLike[str]) -> str:
    """Return a path that is given as an option, from the root on, without following links."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    refuse_secret(text)
    if not isinstance(text, str):
        msg = f"cache_dir= must be the path of a folder, not {type(path).__name__}"
        raise TypeError(msg)
    if not text or "\0" in text:
        msg = f"cache_dir= must be the path of a folder, not {text!r}"
        raise ValueError(msg)
    return os.path.abspath(os.path.expanduser(text))  # noqa: PTH100, PTH111


def default_author() -> str:
    """Return ``user@host``."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container without a user database
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


class Parts(NamedTuple):
    """The live parts of a session."""

    engine: Engine
    locks: Locks


class Follower(Protocol):
    """What follows the dictionary in a thread of its own."""

    def follower(self) -> Callable[[], None]:
        """Return what follows, until told to end."""

    def end(self) -> None:
        """Make that return soon."""

    def orphan(self) -> None:
        """Know that nothing follows any more: this is a forked child."""


class Session:
    """Makes the parts when they are first needed; a forked child makes its own.

    A child must not touch its parent's sockets: it would read the other's answers. Nor does it
    hold its parent's locks.
    """

    def __init__(self, place: Place, folder: str, options: Options) -> None:
        self.place = place
        self.layout = Layout(folder)
        self.options = options
        self.meter = Meter()
        self._lock = threading.Lock()
        self._parts: Parts | None = None
        self._closed = False
        self._followers: list[weakref.ref[Follower]] = []
        _sessions.add(self)

    def parts(self) -> Parts:
        """Return the live parts."""
        parts = self._parts
        if parts and not self._closed:
            return parts
        with self._lock:
            if self._closed:
                msg = f"this handle of {self.title()} was closed; open a new one"
                raise ClosedError(msg)
            if self._parts is None:
                runtime = default_runtime()
                backend = self.place.backend(self.options.timeout, runtime)
                engine = Engine(backend, self.layout, self.options.tuning(), runtime, self.meter)
                locks = Locks(engine)
                runtime.start()
                # A handle that nobody has any more must not keep its locks.
                weakref.finalize(self, runtime.post, locks.close).atexit = False
                self._parts = Parts(engine, locks)
            return self._parts

    def engine(self) -> Engine:
        """Return what reads and writes."""
        return self.parts().engine

    def follow(self, follower: Follower) -> None:
        """Run what follows, until it ends or the session is closed."""
        self._followers = [ref for ref in self._followers if ref() is not None] + [
            weakref.ref(follower)
        ]
        self.engine().runtime.thread(follower.follower(), type(follower).__name__.lower())

    def end_followers(self) -> None:
        """Let all that follow end soon."""
        for ref in self._followers:
            if (follower := ref()) is not None:  # an empty mirror is false
                follower.end()

    def title(self) -> str:
        """Return where the dictionary is, for people."""
        return f'{self.place.describe()}; Folder: "{self.layout.folder}"'

    def close(self) -> None:
        """Unlock, finish the upkeep, and give up connections. Closing again does nothing."""
        self.end_followers()
        with self._lock:
            parts, self._parts, self._closed = self._parts, None, True
        if parts:
            parts.locks.close()
            parts.engine.close()

    def forget_parts(self) -> None:
        """Begin anew: this is a forked child."""
        self._lock = threading.Lock()
        self.meter = Meter()
        for ref in self._followers:
            if (follower := ref()) is not None:
                follower.orphan()
        self._followers = []
        if self._parts:
            self._parts.engine.orphan()
            self._parts.locks.orphan()
        self._parts = None

    def release_locks(self, timeout: float) -> None:
        """Unlock what this handle still holds, if the store answers in time."""
        if self._parts and not self._closed:
            self._parts.engine.backend.timeout = timeout
            self._parts.locks.close()

    def again(self) -> Session:
        """Return another session on the same dictionary, for this process."""
        return Session(self.place, self.layout.folder, self.options)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel without the parts, and without secrets."""
        options = self.options
        place = self.place.portable(credentials=options.pickle_credentials)
        keys = {name: [one.packed() for one in getattr(options, name)] for name in _KEYS}
        # The options themselves leave their keys behind.
        travelling = keys if options.pickle_credentials else {}
        return _session, (place, self.layout.folder, replace(options), travelling)


def _session(place: Place, folder: str, options: Options, keys: dict[str, Any]) -> Session:
    """Return a session that was pickled."""
    secrets: dict[str, Any] = {
        name: [Secret.unpacked(*key) for key in packed] for name, packed in keys.items()
    }
    return Session(place, folder, replace(options, **secrets))


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _after_fork() -> None:
    for session in list(_sessions):
        session.forget_parts()


@atexit.register
def _release_locks() -> None:
    """Spare others the wait for this process's leases to run out, if that is quickly done."""
    for session in list(_sessions):
        session.end_followers()
        session.release_locks(_EXIT_SECONDS)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
