"""Vacuum: takes out of the store what nothing needs any more."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from remotedict.backend import BlobNotFound
from remotedict.engine.garbage import Garbage, references_of, seqs_of_age
from remotedict.engine.relayout import Relayout
from remotedict.engine.runtime import log
from remotedict.errors import AccessDeniedError, HistoryGapError, StoreUnavailableError
from remotedict.pure import naming, plan
from remotedict.pure.naming import Layout
from remotedict.pure.records import Drop

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from remotedict.backend import BlobInfo
    from remotedict.engine.core import Engine
    from remotedict.engine.index import Known
    from remotedict.engine.values import Progress
    from remotedict.pure.records import Index

_ATTEMPTS = 10
_SPARSE = 3  # a blob is mostly dead if it is more than so many times as large as what lives in it


class Tally(NamedTuple):
    """So many blobs, of so many bytes together."""

    blobs: int = 0
    nbytes: int = 0

    def __str__(self) -> str:
        return f"{self.blobs:,} ({_size(self.nbytes)})"

    def plus(self, nbytes: int) -> Tally:
        """Return the tally with one more blob."""
        return Tally(self.blobs + 1, self.nbytes + nbytes)


@dataclass(frozen=True, repr=False)
class VacuumReport:
    """What a vacuum has done, or, as a dry run, what it would do.

    Attributes
    ----------
    deleted, kept : mapping of str to Tally
        How many blobs, and bytes, of each kind: values, packs, segments, checkpoints, logs; what
        is kept is needed, or younger than the horizon.
    repacked : Tally
        Packs, and segments kept for their values alone, that are mostly dead: what lives in them
        was packed anew. They go with a later vacuum: somebody may be reading them.
    strangers : Tally
        What lies there and isn't this dictionary's: it is never touched.
    horizon : int
        What began to be uploaded before this commit, and isn't named, was garbage.
    dry_run : bool
        Whether nothing was changed.
    """

    deleted: Mapping[str, Tally]
    kept: Mapping[str, Tally]
    repacked: Tally
    strangers: Tally
    horizon: int
    dry_run: bool

    @property
    def blobs(self) -> int:
        """How many blobs were deleted."""
        return sum(tally.blobs for tally in self.deleted.values())

    @property
    def nbytes(self) -> int:
        """How many bytes these had."""
        return sum(tally.nbytes for tally in self.deleted.values())

    def __repr__(self) -> str:
        done = "would delete" if self.dry_run else "deleted"
        parts = [f"{kind}: {tally}" for kind, tally in self.deleted.items()]
        kept = Tally(
            sum(tally.blobs for tally in self.kept.values()),
            sum(tally.nbytes for tally in self.kept.values()),
        )
        text = f"Vacuum {done} {Tally(self.blobs, self.nbytes)} blobs"
        text += f" [{', '.join(parts)}]" if parts else ""
        text += f"; kept {kept}"
        if self.repacked.blobs:
            text += f"; packed anew what lives in {self.repacked}"
        if self.strangers.blobs:
            text += f"; not touched, as not of this dictionary: {self.strangers}"
        return f"{text}; horizon {self.horizon}"


class Vacuum:
    """One pass over all blobs of a dictionary.

    1. What was replaced longer ago than `retention` is taken off the list, by a commit.
    2. A horizon is committed, alone: a commit that is `grace` old by the store's times.
    3. Once that is known to stand, what its very state doesn't need is deleted, if its name
       carries a seq below the horizon.

    Whoever dies in between leaves only garbage; two at once delete the same garbage.
    """

    def __init__(self, engine: Engine, grace: float, *, dry_run: bool) -> None:
        self._engine = engine
        self._backend = engine.backend
        self._layout = engine.layout
        self._grace = grace
        self._dry_run = dry_run

    def run(self, progress: Progress) -> VacuumReport:
        """Do it; `progress` is told how many blobs have been looked at."""
        known = self._engine.index.since(self._engine.index.ticket())
        if known.index is None:
            return VacuumReport({}, {}, Tally(), Tally(), 0, self._dry_run)
        try:
            garbage = self._foreseen() if self._dry_run else self._horizon_set()
            return self._swept(garbage, progress)
        except AccessDeniedError as exc:
            msg = (
                f"dictionary {self._layout.folder!r} can't be vacuumed with these credentials: "
                "vacuum lists, reads, writes and deletes blobs (a SAS needs sp=rwdl; a dry run "
                f"sp=rl). What was deleted so far was garbage, and nothing is lost ({exc})"
            )
            raise AccessDeniedError(msg) from exc

    # -- before anything is deleted ---------------------------------------------------------

    def _horizon_set(self) -> Garbage:
        """Commit a horizon; return what tells the garbage by its state."""
        engine = self._engine
        # With this the store tells what time it is; and only what is settled may be dropped.
        engine.swap(replace, settle=True)
        known = engine.index.since(engine.index.ticket())
        assert known.index is not None  # noqa: S101 - it was swapped
        times = [b.time for b in self._backend.list(self._layout.index)]
        old, retained = self._seqs_of_age(times[0], known.index)
        dropped = engine.upkeep.drop(retained, known)
        for _ in range(_ATTEMPTS):
            stands = engine.swap(lambda index: plan.raise_horizon(index, old), alone=True)
            try:
                if stands is not None:
                    return self._garbage(stands, dropped)
            except BlobNotFound as exc:  # the log: somebody else has written a new one
                log.debug("the horizon is committed again: %s", exc)
        msg = f"other writers were quicker {_ATTEMPTS} times in a row; nothing was deleted"
        raise StoreUnavailableError(msg)

    def _garbage(self, known: Known, dropped: Collection[str]) -> Garbage:
        assert known.index is not None  # noqa: S101 - for the type checker
        named = self._engine.commits.log(known.index)
        engine = self._engine
        return Garbage(
            self._backend,
            self._layout,
            engine.runtime,
            known,
            named,
            keyring=engine.keyring,
            dropped=dropped,
        )

    def _foreseen(self) -> Garbage:
        """Return the same, as it would be."""
        for _ in range(_ATTEMPTS):
            known = self._engine.index.since(self._engine.index.ticket())
            assert known.index is not None  # noqa: S101 - it was there before
            try:
                return self._as_of(known, known.index)
            except BlobNotFound as exc:  # the log: somebody else has written a new one
                log.debug("the dry run begins again: %s", exc)
        msg = f"other writers were quicker {_ATTEMPTS} times in a row"
        raise StoreUnavailableError(msg)

    def _as_of(self, known: Known, index: Index) -> Garbage:
        # This decides nothing: this machine's clock will do.
        old, retained = self._seqs_of_age(self._engine.runtime.time(), index)
        segment = f"s:{naming.unique(index.seq, self._engine.runtime.uuid())}"
        tail = plan.resolve(plan.lay_out(index.tail)[0], segment)
        state, dropped = known.state.settled(tail), set[str]()
        if index.history is not None:
            drop = Drop(min(retained, state.seq), index.history)
            dropped = references_of(state.dropping(drop))
            state = state.rebased(drop=drop)
        raised = plan.raise_horizon(index, old)
        return self._garbage(dataclasses.replace(known, index=raised, state=state), dropped)

    def _seqs_of_age(self, now: float, index: Index) -> list[int]:
        ages = (self._grace, self._engine.tuning.retention)
        seqs = seqs_of_age(self._listing(), self._layout, now, *ages)
        return [seq if age else index.seq for seq, age in zip(seqs, ages, strict=True)]

    # -- the sweep --------------------------------------------------------------------------

    def _listing(self) -> Iterator[BlobInfo]:
        # Values last: there may be millions of them.
        for kind in ("s:", "c:", "l:", "v:"):  # packs are below the folder of the values
            yield from self._backend.list(self._layout.path(kind))

    def _swept(self, garbage: Garbage, progress: Progress) -> VacuumReport:
        deleted: defaultdict[str, Tally] = defaultdict(Tally)
        kept: defaultdict[str, Tally] = defaultdict(Tally)
        strangers, sparse = Tally(), dict[str, int]()
        for batch in garbage.judged(self._listing()):
            doomed = [judged.blob for judged in batch if judged.garbage]
            gone = garbage.own(doomed) if self._dry_run else garbage.delete(doomed)
            for blob, reference, is_garbage in batch:
                if reference is None or (is_garbage and blob.name not in gone):
                    strangers = strangers.plus(blob.size)
                else:
                    tallies = deleted if is_garbage else kept
                    kind = Layout.kinds[reference[0]]
                    tallies[kind] = tallies[kind].plus(blob.size)
                    if not is_garbage and garbage.references.live(reference) * _SPARSE < blob.size:
                        sparse[reference] = blob.size
            progress(len(batch))
        repacked = self._repacked(garbage, sparse)
        return VacuumReport(
            dict(deleted), dict(kept), repacked, strangers, garbage.horizon, self._dry_run
        )

    def _repacked(self, garbage: Garbage, sparse: Mapping[str, int]) -> Tally:
        """Pack anew what lives in blobs, given with their sizes, that are mostly dead."""
        tally = Tally(len(sparse), sum(sparse.values()))
        dead = tally.nbytes - sum(map(garbage.references.live, sparse))
        # A new checkpoint is written, and everybody reads it.
        if dead <= garbage.checkpoint_size:
            return Tally()
        if self._dry_run:
            return tally
        engine = self._engine
        with engine.upkeep.held_off():
            for _ in range(_ATTEMPTS):
                known = engine.index.since(engine.index.ticket())
                try:
                    if Relayout(engine).attempt(known, sparse):
                        return tally
                except (BlobNotFound, HistoryGapError) as exc:
                    log.debug("packing anew begins again: %s", exc)
        return Tally()  # another time


def _size(nbytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"
