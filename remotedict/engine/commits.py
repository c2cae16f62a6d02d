"""The commits themselves, as far as they are kept: in the log, the segments and the tail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remotedict.backend import BlobNotFound
from remotedict.errors import CorruptBlobError, HistoryGapError
from remotedict.pure.records import Log

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remotedict.engine.index import IndexBlob, Known
    from remotedict.engine.reader import Reader
    from remotedict.engine.runtime import Runtime
    from remotedict.pure.records import Commit, Index, SegmentRef

_AT_ONCE = 8
_ATTEMPTS = 10


def first_kept(index: Index) -> int:
    """Return the oldest commit that is kept; one beyond the newest if none is."""
    if index.log:
        return index.log.first
    return index.checkpoint.seq + 1 if index.checkpoint else 1


class Commits:
    """Reads commits in their order. Thread-safe."""

    def __init__(self, index: IndexBlob, reader: Reader, runtime: Runtime) -> None:
        self._index = index
        self._reader = reader
        self._runtime = runtime
        self._log: tuple[str, list[SegmentRef]] = ("", [])

    def log(self, index: Index) -> list[SegmentRef]:
        """Return the segments that hold the commits before the checkpoint, oldest first."""
        if index.log is None:
            return []
        blob, segments = self._log
        if blob != index.log.blob:
            path, record, _data = self._reader.record(index.log, Log, index)
            segments, expected = record.segments, index.log.first
            for ref in segments:
                if ref.first != expected:
                    raise CorruptBlobError(path, f"segment {ref.blob} isn't at commit {expected}")
                expected = ref.last + 1
            if expected != index.log.last + 1:
                raise CorruptBlobError(path, f"it ends before commit {index.log.last}")
            self._log = (index.log.blob, segments)
        return segments

    def after(self, seq: int, known: Known, last: int | None = None) -> Iterator[Commit]:
        """Yield the commits from `seq + 1` to `last`, or to those of `known`, in their order.

        Raises
        ------
        HistoryGapError
            They are no longer kept from there on.
        """
        end = known.state.seq if last is None else last
        attempts = 0
        while attempts < _ATTEMPTS:
            attempts += 1
            try:
                for commit in self._between(seq, end, known):
                    seq, attempts = commit.seq, 0
                    yield commit
            except BlobNotFound as exc:
                # A segment was merged away, or a log replaced, and deleted since.
                missing = exc
                known = self._index.since(self._index.ticket())
            else:
                return
        raise CorruptBlobError(str(missing), "the index names it, but it isn't there")

    def _between(self, seq: int, end: int, known: Known) -> Iterator[Commit]:
        index = known.index
        if index is None or seq >= end:
            return
        if seq + 1 < first_kept(index):
            raise HistoryGapError(seq, first_kept(index))
        refs = [*index.segments]
        if index.log and seq < index.log.last:
            refs = [*self.log(index), *refs]
        refs = [ref for ref in refs if ref.last > seq and ref.first <= end]
        for at in range(0, len(refs), _AT_ONCE):
            futures = [
                self._runtime.spawn(lambda ref=ref: self._reader.segment(ref, index))  # type: ignore[misc]
                for ref in refs[at : at + _AT_ONCE]
            ]
            for future in futures:
                yield from _within(seq, end, future.result().commits)
        yield from _within(seq, end, index.tail)

    def newest_first(self, known: Known) -> Iterator[Commit]:
        """Yield the commits that are kept, from the newest back."""
        if known.index is None:
            return
        yield from reversed(known.index.tail)
        for ref in reversed([*self.log(known.index), *known.index.segments]):
            yield from reversed(list(self.after(ref.first - 1, known, ref.last)))


def _within(seq: int, end: int, commits: list[Commit]) -> Iterator[Commit]:
    return (commit for commit in commits if seq < commit.seq <= end)
