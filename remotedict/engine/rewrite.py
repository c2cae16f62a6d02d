"""Rewriting: the dictionary laid out anew, without any byte of a forgotten key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from remotedict.backend import BlobNotFound
from remotedict.engine.commits import first_kept
from remotedict.engine.reader import read_range
from remotedict.engine.relayout import Relayout, moved
from remotedict.engine.runtime import log
from remotedict.errors import HistoryGapError, StoreUnavailableError
from remotedict.pure import naming, references
from remotedict.pure.keyring import ENCRYPTED
from remotedict.pure.records import (
    Commit,
    Drop,
    Index,
    Range,
    Set,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from remotedict.backend import BlobInfo
    from remotedict.engine.core import Engine
    from remotedict.engine.index import Known
    from remotedict.engine.values import Progress
    from remotedict.pure.records import Change

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
                laid_out = Relayout(self._engine, self._clean).attempt(known, tainted)
            except (BlobNotFound, HistoryGapError) as exc:  # the same, and quicker
                log.debug("laying out anew begins again: %s", exc)
                continue
            if laid_out:
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
                return moved(change, places)
            return _NOTHING  # and not left out: an event is known by its place in the commit

        return [
            replace(commit, changes=[clean(change, commit) for change in commit.changes])
            for commit in commits
        ]

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
