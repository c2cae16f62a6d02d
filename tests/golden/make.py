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
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import numpy as np

from remotedict import session
from remotedict.backend.local import LocalBackend
from remotedict.dictionary import RemoteDict
from remotedict.engine import values
from remotedict.engine.runtime import Runtime
from remotedict.features import holdings
from remotedict.pure import codec, plan, records

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).parent / f"v{records.FORMAT_VERSION}"

AUTHOR, HOST, PID = "alice@example", "example", 4321
BEGIN = 1_700_000_000.0
INLINE_BYTES = 400
# Limits that only writers know: smaller, so that a few kilobytes have all kinds of blobs. And one
# version of Python.
SMALL = {
    (plan, "INDEX_BYTES"): 2048,
    (plan, "CHECKPOINT_MIN"): 14 * 1024,
    (values, "INLINE_TOTAL_BYTES"): 1024,
    (codec, "PYTHON"): "3.11.7",
}


def noise(size: int, seed: int) -> bytes:
    """Return bytes that nothing can compress; the same ones for ever."""
    return random.Random(seed).randbytes(size)


def story() -> Iterator[tuple[str, Any]]:
    """Yield what is done: one commit a step."""
    yield "set", {"gone": 1, "again": 2, "first": "overwritten later, keeps its place"}
    yield "set", {"forgotten": "by all", "beside it": "in the same blob"}
    yield "delete", ["gone", "again"]
    yield "set", {f"pack {i:02}": {"number": i, "text": "x" * i} for i in range(20)}
    yield "set", {"forgotten": "twice"}
    yield "forget", "forgotten"
    yield "set", {"bytes": b"as they are", "no bytes": b""}
    yield "set", {"a/b": 1, "a": 2, "A": 3, "Größe 🦊": 5, "..": 6, "=2F%2F": 7}
    yield "set", {"con": noise(600, 4)}
    yield "set", {"raw chunk": noise(1500, 1)}
    yield "set", {"lz4 chunk": np.arange(1000).tobytes()}
    yield "set", {"out of band, raw": np.frombuffer(noise(2000, 2), np.uint8)}
    yield "set", {"out of band, lz4": np.arange(600, dtype="<i4").reshape(20, 30)}
    yield "set", {"long " * 100: noise(500, 3)}
    yield "lock", "locked in a checkpoint"
    yield "put", ("described", "first", {"by": "ann", "Größe": [1, 2.5, None, True]})
    yield "annotate", ("described", {"by": "bob"})
    yield "copy", ("described", "copy of an inline value")
    yield "copy", ("con", "copy of a value of its own")
    yield "copy", ("pack 03", "copy of a packed value")
    yield "put", ("described", "second", None)
    yield "set", {"con": noise(700, 5)}
    for i in range(190):
        yield "set", {f"single {i:03}": i}
        if i % 10 == 0:
            yield "set", {"first": f"the {i}th"}
        if i % 15 == 0:
            yield "delete", [f"single {i:03}"]
        if i % 25 == 0:
            yield "annotate", ("described", {"i": i})
        if i == 75:
            yield "drop", (60, 2)
        if i == 80:
            yield "revert", ("con", 1)
            yield "revert", ("described", 1)
    yield "set", {"again": "set again, at the end", "forgotten": "no more"}
    yield "set", {"chunks": np.zeros(200_000, "<f8")}
    yield "set", {"many bytes": b"\x01" * (codec.CHUNK_BYTES + 1)}
    yield "set", {"objects": [None, True, 3.5, "text", (1, 2), {"set"}]}
    yield "lock", "locked in a segment or the tail"
    yield "drop", (70, 1)
    yield "again", ("a", "deleted and set in one commit", {"last": True})
    yield "copy", ("a", "copy in the tail")
    yield "annotate", ("described", {})
    yield "set", {"ends": "inline, in the tail"}


class Was(NamedTuple):
    """What a key was since a commit."""

    seq: int
    version: int
    value: Any  # GONE for a deleted key
    metadata: dict[str, Any]


GONE = object()


class Model:
    """What the story leaves: all that is listed of each key, and the locks."""

    def __init__(self) -> None:
        self.seq = 0
        self.listed: dict[str, list[Was]] = {}
        self.locked: list[str] = []
        self.floor = 0
        self._order: dict[str, None] = {}
        self._orders: dict[int, list[str]] = {}
        for what, argument in story():
            self.seq += 1
            getattr(self, f"_{what}")(argument)
            self._orders[self.seq] = list(self._order)

    @property
    def content(self) -> dict[str, Any]:
        """The values in their order."""
        return self.as_of(self.seq)

    @property
    def metadata(self) -> dict[str, dict[str, Any]]:
        """The metadata of those keys that have some."""
        newest = {key: self.listed[key][-1].metadata for key in self._order}
        return {key: fields for key, fields in newest.items() if fields}

    @property
    def versions(self) -> dict[str, int]:
        """The version of each key, also of deleted ones."""
        return {key: items[-1].version for key, items in self.listed.items()}

    def as_of(self, seq: int) -> dict[str, Any]:
        """Return the values as of a commit; what was forgotten since was never there."""
        return {
            key: next(item.value for item in reversed(self.listed[key]) if item.seq <= seq)
            for key in self._orders[seq]
            if key in self.listed and self.listed[key][0].seq <= seq
        }

    def _change(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        items = self.listed.setdefault(key, [])
        old = items[-1] if items else Was(0, 0, GONE, {})
        fields = (old.metadata if old.value is not GONE else {}) if metadata is None else metadata
        if value is GONE:
            self._order.pop(key)
            fields = {}
        else:
            self._order.setdefault(key)
        items.append(Was(self.seq, old.version + 1, value, fields))

    def _set(self, values: dict[str, Any]) -> None:
        for key, value in values.items():
            self._change(key, value)

    def _delete(self, keys: list[str]) -> None:
        for key in keys:
            self._change(key, GONE)

    def _again(self, argument: tuple[str, Any, dict[str, Any]]) -> None:
        key, value, metadata = argument
        self._change(key, GONE)
        self._change(key, value, metadata)

    def _lock(self, key: str) -> None:
        self.locked.append(key)

    def _put(self, argument: tuple[str, Any, dict[str, Any] | None]) -> None:
        self._change(*argument)

    def _annotate(self, argument: tuple[str, dict[str, Any]]) -> None:
        key, metadata = argument
        newest = self.listed[key][-1]
        self.listed[key].append(newest._replace(seq=self.seq, metadata=metadata))

    def _copy(self, argument: tuple[str, str]) -> None:
        source, target = argument
        newest = self.listed[source][-1]
        self._change(target, newest.value, newest.metadata)

    def _revert(self, argument: tuple[str, int]) -> None:
        key, version = argument
        self._change(key, next(w.value for w in self.listed[key] if w.version == version))

    def _forget(self, key: str) -> None:
        self._order.pop(key)
        del self.listed[key]

    def _drop(self, argument: tuple[int, int]) -> None:
        before, versions = argument
        for items in self.listed.values():
            then = [item for item in items if item.seq <= before]
            while len(then) > 1 and items[0].version + versions <= then[-1].version:
                del items[0], then[0]
                self.floor = max(self.floor, items[0].seq)


def model() -> Model:
    """Return what the story leaves."""
    return Model()


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

    def process(self) -> tuple[str, int]:
        """Return the same one each time."""
        return HOST, PID


class Place:
    """The folder, with the clock of the runtime for the leases."""

    def backend(self, timeout: float, runtime: Fixed) -> LocalBackend:
        """Return the store."""
        del timeout
        return LocalBackend(FOLDER, clock=runtime.time)

    def describe(self) -> str:
        """Return a title."""
        return "Golden"


def tell(d: RemoteDict, what: str, argument: Any) -> None:
    """Do a step of the story."""
    if what == "set":
        with d.commit(comment=f"set {len(argument)}"):
            d.update(argument)
    elif what == "delete":
        del d[argument]
    elif what == "again":
        key, value, metadata = argument
        with d.commit(comment="anew", author="bob"):
            del d[key]
            d.put(key, value, metadata=metadata)
    elif what == "lock":
        d.lock_item(argument, duration=3600)
    elif what == "put":
        key, value, metadata = argument
        d.put(key, value, metadata=metadata)
    elif what == "annotate":
        key, metadata = argument
        d.metadata[key] = metadata
    elif what == "copy":
        d.copy_item(*argument)
    elif what == "revert":
        d.revert(*argument)
    elif what == "forget":
        d.forget(argument)
    else:
        drop = records.Drop(*argument)
        d.history_policy = drop.versions
        d._engine.commit(lambda _: [drop])
        d.history_policy = "all"


def main() -> None:
    """Write them anew."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    runtime = Fixed()
    with contextlib.ExitStack() as patched:
        for (module, name), limit in SMALL.items():
            patched.enter_context(mock.patch.object(module, name, limit))
        patched.enter_context(mock.patch.object(session, "default_runtime", return_value=runtime))
        # The leases end as if this process had been killed.
        patched.enter_context(mock.patch.object(holdings.Holdings, "_renew"))
        d = RemoteDict(Place(), "default", author=AUTHOR, inline_bytes=INLINE_BYTES)
        d.history_policy = "all"
        for what, argument in story():
            runtime.now += 60
            tell(d, what, argument)
            d._engine.upkeep.finish()
        d._session.parts().locks.orphan()
        d.close()
    for path in FOLDER.rglob("~*"):
        if path.name == "~lock" or path.name.startswith("~tmp-"):
            path.unlink()  # not of the format, and gone when nobody uses the folder


if __name__ == "__main__":
    main()
