"""Write the golden files of the current format version: ``python tests/golden/make.py``.

They are a small dictionary in a local folder, with everything that the format knows. They were
written once, when the version was new, and are never written again: see ``test_golden.py``. Ids,
times, host and author are fixed, so that the same libraries write the same bytes.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from remotedict import session
from remotedict.backend.local import LocalBackend
from remotedict.dictionary import RemoteDict
from remotedict.engine import values
from remotedict.engine.runtime import Runtime
from remotedict.features import locks
from remotedict.pure import codec, plan, records

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).parent / f"v{records.FORMAT_VERSION}"

AUTHOR, HOST, PID = "alice@example", "example", 4321
BEGIN = 1_700_000_000.0
INLINE_BYTES = 400
# Limits that only writers know: smaller, so that a few kilobytes have all kinds of blobs.
SMALL = {
    (plan, "INDEX_BYTES"): 2048,
    (plan, "CHECKPOINT_MIN"): 14 * 1024,
    (values, "INLINE_TOTAL_BYTES"): 1024,
}


def noise(size: int, seed: int) -> bytes:
    """Return bytes that nothing can compress; the same ones for ever."""
    return random.Random(seed).randbytes(size)


def story() -> Iterator[tuple[str, Any]]:
    """Yield what is done: one commit a step."""
    yield "set", {"gone": 1, "again": 2, "first": "overwritten later, keeps its place"}
    yield "delete", ["gone", "again"]
    yield "set", {f"pack {i:02}": {"number": i, "text": "x" * i} for i in range(20)}
    yield "set", {"bytes": b"as they are", "no bytes": b""}
    yield "set", {"a/b": 1, "a": 2, "A": 3, "Größe 🦊": 5, "..": 6, "=2F%2F": 7}
    yield "set", {"con": noise(600, 4)}
    yield "set", {"raw chunk": noise(1500, 1)}
    yield "set", {"lz4 chunk": np.arange(1000).tobytes()}
    yield "set", {"out of band, raw": np.frombuffer(noise(2000, 2), np.uint8)}
    yield "set", {"out of band, lz4": np.arange(600, dtype="<i4").reshape(20, 30)}
    yield "set", {"long " * 100: noise(500, 3)}
    yield "lock", "locked in a checkpoint"
    for i in range(190):
        yield "set", {f"single {i:03}": i}
        if i % 10 == 0:
            yield "set", {"first": f"the {i}th"}
        if i % 15 == 0:
            yield "delete", [f"single {i:03}"]
    yield "set", {"again": "set again, at the end"}
    yield "set", {"chunks": np.zeros(200_000, "<f8")}
    yield "set", {"many bytes": b"\x01" * (codec.CHUNK_BYTES + 1)}
    yield "set", {"objects": [None, True, 3.5, "text", (1, 2), {"set"}]}
    yield "lock", "locked in a segment or the tail"
    yield "set", {"ends": "inline, in the tail"}


def model() -> tuple[dict[str, Any], dict[str, int], list[str]]:
    """Return what the story leaves: the values in their order, all versions, and the locks."""
    content: dict[str, Any] = {}
    versions: dict[str, int] = {}
    locked = []
    for what, argument in story():
        if what == "lock":
            locked.append(argument)
            continue
        for key in argument:
            versions[key] = versions.get(key, 0) + 1
            if what == "set":
                content[key] = argument[key]
            else:
                del content[key]
    return content, versions, locked


class Fixed(Runtime):
    """Ids that count, and a clock that stands still between the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.now = BEGIN
        self._ids = itertools.count(1)

    def time(self) -> float:
        """Return the time of this step."""
        return self.now

    def uuid(self) -> bytes:
        """Return the next id."""
        return next(self._ids).to_bytes(16, "big")


class Place:
    """The folder, with the clock of the runtime for the leases."""

    def backend(self, timeout: float, runtime: Fixed) -> LocalBackend:
        """Return the store."""
        del timeout
        return LocalBackend(FOLDER, clock=runtime.time)

    def describe(self) -> str:
        """Return a title."""
        return "Golden"


def main() -> None:
    """Write them anew."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    runtime = Fixed()
    with contextlib.ExitStack() as patched:
        for (module, name), limit in SMALL.items():
            patched.enter_context(mock.patch.object(module, name, limit))
        for target, name, value in (
            (session, "default_runtime", runtime),
            (codec, "python_version", "3.11.7"),
            (locks.socket, "gethostname", HOST),
            (locks.os, "getpid", PID),
        ):
            patched.enter_context(mock.patch.object(target, name, return_value=value))
        # The leases end with this process, as if it had been killed.
        patched.enter_context(mock.patch.object(locks.Locks, "_start_renewing"))
        d = RemoteDict(Place(), "default", author=AUTHOR, inline_bytes=INLINE_BYTES)
        for what, argument in story():
            runtime.now += 60
            if what == "set":
                d.update(argument)
            elif what == "delete":
                del d[argument]
            else:
                d.lock_item(argument, duration=3600)
            d._engine.upkeep.finish()
    for path in FOLDER.rglob("~*"):
        if path.name == "~lock" or path.name.startswith("~tmp-"):
            path.unlink()  # not of the format, and gone when nobody uses the folder


if __name__ == "__main__":
    main()
