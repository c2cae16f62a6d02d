"""Rewriting: the dictionary laid out anew, without any byte of a forgotten key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from remotedict.backend import BlobNotFound
from remotedict.engine.commits import first_kept
from remotedict.engine.reader import read_range
from remotedict.engine.runtime import log
from remotedict.engine.values import PACK_BYTES
from remotedict.errors import HistoryGapError, StoreUnavailableError
from remotedict.pure import naming, plan, references
from remotedict.pure.keyring import ENCRYPTED
from remotedict.pure.records import (
    CheckpointRef,
    Commit,
    Drop,
    Index,
    Log,
    LogRef,
    Range,
    SegmentRef,
    Set,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from remotedict.backend import BlobInfo, Buffer
    from remotedict.engine.core import Engine
    from remotedict.engine.index import Known
    from remotedict.engine.values import Progress
    from remotedict.pure.records import Change
    from remotedict.pure.state import State

    Places = Mapping[tuple[str, int], Range]

_ATTEMPTS = 10
_NOTHING = Drop(0, 1)


class Rewrite:
    """Takes every byte of a key out of the store, once its Forget is committed.

    Blobs never change: so what else lies in a blob with bytes of the key is copied elsewhere, the
    whole state goes into a new checkpoint that says where, and the commits into new segments
    without those of the key. One compare-and-swap puts all that in place, and raises the horizon,
    so that no upload that is under way can name an old blob any more; then these are deleted.
    Whoever follows the index sees that `moved` has changed, and loads the state anew.
    """

    def __init__(self, engine: Engine, key: str, forgotten: int, places: Collection[Range]) -> None:
        self._engine = engine
        self._backend = engine.backend
        self._layout = engine.layout
        self._uuid = engine.runtime.uuid
        self._keyring = engine.keyring
        self._key = key
        self._forgotten = forgotten  # the commit that did it
        self._places = set(places)  # where its values were: perhaps under the name of another key
        self._encrypted = self._keyring and self._keyring.flags & ENCRYPTED
        self._mark = msgspec.msgpack.encode(key)  # what all records and values name it by

    def run(self, progress: Progress) -> None:
        """Do it; `progress` is told how many blobs have been searched."""
        with self._engine.upkeep.held_off():
            self._run(progress)

    def _run(self, progress: Progress) -> None:
        for _ in range(_ATTEMPTS):
            known = self._engine.index.since(self._engine.index.ticket())
            index = known.index
            assert index is not None  # noqa: S101 - it has a commit
            try:
                self._places |= self._named(known)
                tainted = self._tainted(index, progress)
                laid_out = self._laid_out(known.state, index, tainted)
            except (BlobNotFound, HistoryGapError) as exc:  # the same, and quicker
                log.debug("laying out anew begins again: %s", exc)
                continue
            if self._engine.swap(
                lambda now: self._swapped(now, index, laid_out, tainted),  # noqa: B023
                alone=True,
            ):
                self._delete(index, laid_out, tainted)
                return
        msg = (
            f"other writers were quicker {_ATTEMPTS} times in a row. Key {self._key!r} is no "
            "longer listed, but its bytes are still in the store; forget it again"
        )
        raise StoreUnavailableError(msg)

    # -- what to rewrite --------------------------------------------------------------------

    def _tainted(self, index: Index, progress: Progress) -> set[str]:
        """Return the shared blobs in which the key is named.

        All are searched, and not only those that are known to hold it: what was dropped long ago
        may lie in any of them.
        """

        def search(reference: str, size: int) -> bool:
            progress(1)
            path = self._layout.path(reference)
            try:
                data = read_range(self._backend, self._engine.runtime, path, 0, size)
            except BlobNotFound:  # somebody else forgets something
                return False
            # What is encrypted shows nothing: then all of them are laid out anew.
            return bool(self._encrypted) or self._mark in bytes(data)

        shared = {
            f"{kind}:{_name(blob)}": blob.size
            for kind in "ps"
            for blob in self._older(f"{kind}:", index.seq)
        }
        # What upkeep has made since the newest commit is as new as that by its name.
        named = [*self._engine.commits.log(index), *index.segments]
        shared |= {ref.blob: ref.size for ref in named}
        tainted = {reference for reference, size in shared.items() if search(reference, size)}
        return tainted | {place.blob for place in self._places if place.blob in shared}

    def _named(self, known: Known) -> set[Range]:
        """Return where the commits that are kept say that values of the key were."""
        assert known.index is not None  # noqa: S101 - it has a commit
        return {
            change.place
            for commit in self._engine.commits.after(first_kept(known.index) - 1, known)
            if commit.seq < self._forgotten
            for change in commit.changes
            if isinstance(change, Set)
            and change.key == self._key
            and isinstance(change.place, Range)
        }

    def _older(self, prefix: str, horizon: int) -> list[BlobInfo]:
        """Return the blobs of a kind that no commit may name any more unless one does already."""
        blobs = self._backend.list(self._layout.path(prefix))
        return [blob for blob in blobs if naming.born(blob.name) < horizon]

    def _clean(self, commits: Sequence[Commit], places: Places) -> list[Commit]:
        """Return commits without what the key was before it was forgotten."""

        def clean(change: Change, commit: Commit) -> Change:
            if commit.seq >= self._forgotten or isinstance(change, Drop) or change.key != self._key:
                return _moved(change, places)
            return _NOTHING  # and not left out: an event is known by its place in the commit

        return [
            replace(commit, changes=[clean(change, commit) for change in commit.changes])
            for commit in commits
        ]

    # -- the new layout ---------------------------------------------------------------------

    def _laid_out(self, state: State, index: Index, tainted: Collection[str]) -> Index:
        """Write everything that is to be written; return the index that names it."""
        sealed: list[SegmentRef] = []
        settled = state.settled([])
        if index.tail:
            commits = self._clean(index.tail, {})
            last = plan.last_blob(index)
            segment = plan.seal(index, commits, index.base, last, self._uuid(), self._keyring)
            self._backend.put(self._layout.path(segment.ref.blob), segment.blob)
            sealed, settled = [segment.ref], state.settled(segment.commits)
        places = self._packed(references.ranges(settled, tainted), index)
        record, data = settled.moved(places).checkpoint(
            index.dictionary, index.incarnation, "", index.seq
        )
        blob = encode(record, data, self._keyring)
        checkpoint = CheckpointRef(self._fresh("c", index), index.seq, len(blob))
        self._backend.put(self._layout.path(checkpoint.blob), blob)

        old = [*self._engine.commits.log(index), *index.segments]
        segments = [self._rewritten(ref, index, tainted, places) for ref in old] + sealed
        blob = encode(Log(index.dictionary, index.incarnation, segments), (), self._keyring)
        log_ref = LogRef(self._fresh("l", index), segments[0].first, index.seq, len(blob))
        self._backend.put(self._layout.path(log_ref.blob), blob)
        return replace(
            index,
            horizon=index.seq,
            horizon_seq=index.seq,
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
        self, ref: SegmentRef, index: Index, tainted: Collection[str], places: Places
    ) -> SegmentRef:
        """Return a segment with the same commits, but those of the key."""
        if ref.blob not in tainted:
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
        self, now: Index, old: Index, new: Index, tainted: Collection[str]
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
            and change.place.blob in tainted
            for commit in later
            for change in commit.changes
        ):
            return None
        return replace(new, seq=now.seq, horizon_seq=now.seq, history=now.history, tail=later)

    # -- the end of the old one -------------------------------------------------------------

    def _delete(self, old: Index, new: Index, tainted: Collection[str]) -> None:
        horizon = new.horizon
        replaced = [ref.blob for ref in (old.checkpoint, old.log) if ref]
        doomed = [self._layout.path(reference) for reference in (*tainted, *replaced)]
        for kind in ("c:", "l:"):
            doomed += [blob.name for blob in self._older(kind, horizon)]
        own = {blob.name for blob in self._older(f"v:{naming.escape(self._key)}/", horizon)}
        own |= {
            self._layout.path(place.blob) for place in self._places if place.blob.startswith("v:")
        }
        # A blob of its own is named by its generation. Copies share the bytes, and keep them.
        state = self._engine.index.since(self._engine.index.ticket()).state
        used = references.generations(state, {_generation(path) for path in own})
        doomed += [path for path in own if _generation(path) not in used]
        self._backend.delete(doomed)


def _generation(path: str) -> bytes:
    return bytes.fromhex(path.rpartition("-")[2])


def _name(blob: BlobInfo) -> str:
    return blob.name.rpartition("/")[2]


def _moved(change: Change, places: Places) -> Change:
    if isinstance(change, Set) and isinstance(change.place, Range):
        moved = places.get((change.place.blob, change.place.offset))
        return replace(change, place=moved) if moved else change
    return change
