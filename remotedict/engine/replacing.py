"""Replacing an index that was read, otherwise than by a commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remotedict.backend import NOT_MODIFIED, BlobNotFound, PreconditionFailed, TransientError
from remotedict.engine.turn import FIRST_PAUSE
from remotedict.errors import CorruptBlobError, StoreUnavailableError
from remotedict.pure.records import Index, decode, encode

if TYPE_CHECKING:
    from remotedict.backend import Got
    from remotedict.engine.core import Engine
    from remotedict.pure.keyring import Keyring


def current(engine: Engine) -> Got | None:
    """Return the index blob, None if there is none."""
    try:
        got = engine.backend.get(engine.layout.index)
    except BlobNotFound:
        return None
    assert got is not NOT_MODIFIED  # noqa: S101 - for the type checker
    return got


def replace_index(
    engine: Engine, index: Index, old: str | None, keyring: Keyring | None, *, fresh: bool
) -> str:
    """Put `index` where the one of the etag `old` is, or none; return its etag.

    Parameters
    ----------
    engine : Engine
        Where.
    index : Index
        What.
    old : str or None
        What it replaces.
    keyring : Keyring or None
        What it is signed and encrypted by.
    fresh : bool
        Whether nobody else can have written an index of its incarnation but on top of it: if that
        is there after a lost reply, it was mine. The etag is empty then: others may have gone on.

    Raises
    ------
    PreconditionFailed
        There is something else by now, or, unless it is `fresh`, this very index may be.
    """
    runtime, path, data = engine.runtime, engine.layout.index, encode(index, (), keyring)
    deadline, pause = runtime.monotonic() + engine.backend.timeout, FIRST_PAUSE
    failure: Exception
    while True:
        try:
            return engine.backend.raw.put(path, data, if_match=old, if_absent=old is None)
        except (PreconditionFailed, TransientError) as exc:
            failure = exc
        # Whatever the answer was, an earlier attempt of mine may have been applied.
        now = current(engine)
        if now and fresh and _incarnation(now, path, keyring) == index.incarnation:
            return ""
        if (now.etag if now else None) != old:
            raise PreconditionFailed(path)
        if runtime.monotonic() >= deadline:
            msg = f"the store didn't take the new index ({failure}); try again"
            raise StoreUnavailableError(msg) from failure
        runtime.sleep(runtime.jitter(pause))
        pause = min(pause * 2, 2.0)


def _incarnation(got: Got, path: str, keyring: Keyring | None) -> bytes:
    try:
        return decode(got.data, Index, path, keyring)[0].incarnation
    except CorruptBlobError:
        return b""
