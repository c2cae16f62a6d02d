"""Inspection: whether the values are there that a state lists."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from remotedict.backend import PIECE_BYTES, BlobNotFound
from remotedict.engine.reader import stream
from remotedict.errors import CorruptBlobError, FormatVersionError
from remotedict.pure import finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from remotedict.engine.core import Engine
    from remotedict.engine.values import Progress
    from remotedict.pure.entry import Entry
    from remotedict.pure.state import State

_KEYS = 4096  # that are looked at as one


class Inspection:
    """Looks whether values are there, past all caches; with `deep` reads them.

    Parameters
    ----------
    engine : Engine
        Of the dictionary.
    dictionary : bytes
        Its id.
    deep : bool
        Whether to read and check all bytes; else only that the blobs are there, and long enough.
    """

    def __init__(self, engine: Engine, dictionary: bytes, *, deep: bool) -> None:
        self._backend = engine.backend
        self._layout = engine.layout
        self._runtime = engine.runtime
        self._keyring = engine.keyring
        self._dictionary = dictionary
        self._deep = deep
        self._sizes = {
            info.name: info.size
            for prefix in engine.layout.prefixes
            for info in engine.backend.list(prefix)
        }

    def run(self, state: State, progress: Progress) -> dict[str, str]:
        """Return the keys whose values aren't whole, each with what is wrong."""
        wrong: dict[str, str] = {}
        keys = iter(state)
        while block := list(islice(keys, _KEYS)):
            entries = zip(block, state.entries(block), strict=True)
            wrong |= self._wrong([(key, entry) for key, entry in entries if entry])
            progress(len(block))
        return wrong

    def is_whole(self, key: str, entry: Entry) -> bool:
        """Tell whether a value is there."""
        return not self._wrong([(key, entry)])

    def _wrong(self, items: Sequence[tuple[str, Entry]]) -> dict[str, str]:
        wrong = {key: why for key, entry in items if (why := self._missing(key, entry))}
        if self._deep:
            there = [(key, entry) for key, entry in items if key not in wrong]
            wrong |= self._damaged(there)
        return wrong

    def _missing(self, key: str, entry: Entry) -> str:
        blob = entry.blob(key)
        if blob is None:
            return ""
        path, where = self._layout.path(blob), entry.range(key)
        size = self._sizes.get(path)
        if size is None:
            return f"blob {path!r} is gone"
        # A blob of its own has nothing but the value.
        short = where.offset + where.length > size
        return f"blob {path!r} has only {size} bytes" if short else ""

    def _damaged(self, items: Sequence[tuple[str, Entry]]) -> Iterator[tuple[str, str]]:
        """Yield those of the keys whose bytes are damaged, each with what is wrong."""
        # What is itself read in parallel pieces must not wait in a thread for leaf work.
        small = [item for item in items if item[1].stored <= PIECE_BYTES]
        large = [item for item in items if item[1].stored > PIECE_BYTES]
        for (key, _), why in zip(small, self._runtime.map(self._read, small), strict=True):
            if why:
                yield key, why
        for item in large:
            if why := self._read(item):
                yield item[0], why

    def _read(self, item: tuple[str, Entry]) -> str:
        """Return what is wrong with the bytes of a value; read in pieces, and none is kept."""
        key, entry = item
        path = self._layout.index
        try:
            if isinstance(entry.place, bytes):
                header, length = finding.measure([entry.place], path, self._keyring)
            else:
                where = entry.range(key)
                path = self._layout.path(where.blob)
                arriving = stream(self._backend, self._runtime, path, where.offset, where.length, 4)
                header, length = finding.measure(arriving, path, self._keyring)
        except BlobNotFound:
            return f"blob {path!r} is gone"
        except (CorruptBlobError, FormatVersionError) as exc:
            return str(exc)
        ours = (header.dictionary, header.generation) == (self._dictionary, entry.generation)
        if not ours or length != entry.stored:
            return f"blob {path!r} has another value in its place, of key {header.about.key!r}"
        return ""
