"""Relayout: the whole dictionary laid out anew, without some of its blobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from remotedict.engine.reader import read_range
from remotedict.engine.values import PACK_BYTES
from remotedict.pure import naming, plan, references
from remotedict.pure.records import (
    CheckpointRef,
    Index,
    Log,
    LogRef,
    Range,
    SegmentRef,
    Set,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from remotedict.backend import Buffer
    from remotedict.engine.core import Engine
    from remotedict.engine.index import Known
    from remotedict.pure.records import Change, Commit
    from remotedict.pure.state import State

    Places = Mapping[tuple[str, int], Range]
    Clean = Callable[[Sequence[Commit], Places], list[Commit]]


class Relayout:
    """Empties blobs that hold several values, so that they can be deleted.

    Blobs never change: so what is listed in them is copied elsewhere, the whole state goes into a
    new checkpoint that says where, and a new log names the commits. One compare-and-swap puts all
    that in place. Whoever follows the index sees that `moved` has changed, and loads the state
    anew. The old blobs stay.

    Parameters
    ----------
    engine : Engine
        Of the dictionary.
    clean : callable, optional
        Given commits, and where values are now, returns them as they shall be from now on: what
        is in the tail, or in a segment that is to go. Then the horizon is raised to the newest commit as well, so
        that no upload that is under way brings back what they were.
    """

    def __init__(self, engine: Engine, clean: Clean | None = None) -> None:
        self._engine = engine
        self._backend = engine.backend
        self._layout = engine.layout
        self._uuid = engine.runtime.uuid
        self._keyring = engine.keyring
        self._raises = clean is not None
        self._clean = clean or _as_they_are

    def attempt(self, known: Known, without: Collection[str]) -> Index | None:
        """Do it on a state; return the new layout, None if other writers were quicker.

        Raises
        ------
        BlobNotFound
            Somebody else has done the same.
        """
        index = known.index
        assert index is not None  # noqa: S101 - it has a commit
        new = self._laid_out(known.state, index, without)
        done = self._engine.swap(lambda now: self._swapped(now, index, new, without), alone=True)
        return new if done else None

    def _laid_out(self, state: State, index: Index, without: Collection[str]) -> Index:
        """Write everything that is to be written; return the index that names it."""
        sealed: list[SegmentRef] = []
        settled = state.settled([])
        if index.tail:
            commits = self._clean(index.tail, {})
            last = plan.last_blob(index)
            segment = plan.seal(index, commits, index.base, last, self._uuid(), self._keyring)
            self._backend.put(self._layout.path(segment.ref.blob), segment.blob)
            sealed, settled = [segment.ref], state.settled(segment.commits)
        places = self._packed(references.ranges(settled, without), index)
        record, data = settled.moved(places).checkpoint(
            index.dictionary, index.incarnation, "", index.seq
        )
        blob = encode(record, data, self._keyring)
        checkpoint = CheckpointRef(self._fresh("c", index), index.seq, len(blob))
        self._backend.put(self._layout.path(checkpoint.blob), blob)

        old = [*self._engine.commits.log(index), *index.segments]
        segments = [self._rewritten(ref, index, without, places) for ref in old] + sealed
        blob = encode(Log(index.dictionary, index.incarnation, segments), (), self._keyring)
        log_ref = LogRef(self._fresh("l", index), segments[0].first, index.seq, len(blob))
        self._backend.put(self._layout.path(log_ref.blob), blob)
        return replace(
            index,
            horizon=index.seq if self._raises else index.horizon,
            moved=index.moved + 1,
            base=index.head,
            checkpoint=checkpoint,
            log=log_ref,
            segments=[],
            tail=[],
        )

    def _packed(self, ranges: Sequence[Range], index: Index) -> Places:
        """Copy values into new packs; return where each of them is now."""
        places: dict[tuple[str, int], Range] = {}
        pieces: list[Buffer] = []
        blob, at = self._fresh("p", index), 0
        for place in ranges:
            path = self._layout.path(place.blob)
            pieces.append(
                read_range(self._backend, self._engine.runtime, path, place.offset, place.length)
            )
            places[place.blob, place.offset] = Range(blob, at, place.length)
            at += place.length
            if at > PACK_BYTES:
                self._backend.put(self._layout.path(blob), pieces)
                pieces, blob, at = [], self._fresh("p", index), 0
        if pieces:
            self._backend.put(self._layout.path(blob), pieces)
        return places

    def _rewritten(
        self, ref: SegmentRef, index: Index, without: Collection[str], places: Places
    ) -> SegmentRef:
        """Return a segment with the same commits, cleaned, in place of one that is to go."""
        if ref.blob not in without:
            return ref
        segment = self._engine.index.reader.segment(ref, index)
        commits = self._clean(segment.commits, places)
        base, previous = segment.base, segment.previous
        new = plan.seal(index, commits, base, previous, self._uuid(), self._keyring)
        self._backend.put(self._layout.path(new.ref.blob), new.blob)
        return new.ref

    def _fresh(self, kind: str, index: Index) -> str:
        return f"{kind}:{naming.unique(index.seq, self._uuid())}"

    def _swapped(
        self, now: Index, old: Index, new: Index, without: Collection[str]
    ) -> Index | None:
        """Return the new layout with the commits made since; None if it is no longer of `now`.

        Nor if vacuum may have taken for garbage what was written for it.
        """
        if old.seq < now.horizon:
            return None
        kept = len(old.tail)
        later = now.tail[kept:]
        same = (now.checkpoint, now.log, now.segments, now.tail[:kept]) == (
            old.checkpoint,
            old.log,
            old.segments,
            old.tail,
        )
        if not same or any(
            isinstance(change, Set)
            and isinstance(change.place, Range)
            and change.place.blob in without
            for commit in later
            for change in commit.changes
        ):
            return None
        return replace(
            now,  # what else is in it may have changed as well: its features, say
            horizon=max(new.horizon, now.horizon),
            horizon_seq=now.seq if self._raises else now.horizon_seq,
            moved=new.moved,
            base=new.base,
            checkpoint=new.checkpoint,
            log=new.log,
            segments=new.segments,
            tail=later,
        )


def _as_they_are(commits: Sequence[Commit], places: Places) -> list[Commit]:
    return [
        replace(commit, changes=[moved(change, places) for change in commit.changes])
        for commit in commits
    ]


def moved(change: Change, places: Places) -> Change:
    """Return a change that names the value's new place."""
    if isinstance(change, Set) and isinstance(change.place, Range):
        place = places.get((change.place.blob, change.place.offset))
        return replace(change, place=place) if place else change
    return change
