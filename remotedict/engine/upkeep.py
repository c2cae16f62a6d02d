"""Upkeep: merges of segments, checkpoints, and the end of old versions, beside the commits."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from itertools import islice, takewhile
from typing import TYPE_CHECKING, NamedTuple

from remotedict.backend import BlobInfo
from remotedict.engine.committer import DropRefused, Request, Swap
from remotedict.engine.garbage import Garbage, references_of, seqs_of_age
from remotedict.engine.runtime import log
from remotedict.errors import AccessDeniedError
from remotedict.pure import naming, plan
from remotedict.pure.records import CheckpointRef, Drop, Index, Log, LogRef, encode

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from concurrent.futures import Future

    from remotedict.engine.commits import Commits
    from remotedict.engine.committer import Committer, Transform
    from remotedict.engine.index import IndexBlob, Known
    from remotedict.engine.patient import Patient
    from remotedict.engine.reader import Reader
    from remotedict.engine.runtime import Runtime
    from remotedict.pure.draft import Draft
    from remotedict.pure.naming import Layout
    from remotedict.pure.records import SegmentRef

LOG_SECONDS = 86_400.0
"""How long commits are kept that a checkpoint covers, unless all history is; and uploads that no
commit has named."""

STEP = 1000
"""How many blobs of a kind are looked at beside a checkpoint."""


class Upkeep:
    """Keeps the number of blobs that a reopen reads logarithmic. One job at a time a process.

    A job writes new blobs and then asks for a swap of their names in the index. One that fails,
    or that another process does as well, leaves only garbage.
    """

    def __init__(
        self,
        backend: Patient,
        index: IndexBlob,
        reader: Reader,
        committer: Committer,
        commits: Commits,
        layout: Layout,
        runtime: Runtime,
        retention: float,
    ) -> None:
        self._backend = backend
        self._index = index
        self._reader = reader
        self._committer = committer
        self._commits = commits
        self._retention = retention
        self._layout = layout
        self._runtime = runtime
        self._lock = threading.RLock()
        self._job: Future[None] | None = None
        self._held_off = 0

    def begin(self) -> None:
        """Do what is due, in the background."""
        with self._lock:
            if self._job is None and not self._held_off:
                # Never in this thread, which is the committer's: the job waits for it.
                self._job = self._runtime.background(self._run)

    @contextmanager
    def held_off(self) -> Iterator[None]:
        """Begin nothing in this context; what was begun has ended."""
        with self._lock:
            self._held_off += 1
        try:
            self.finish()
            yield
        finally:
            with self._lock:
                self._held_off -= 1

    def finish(self) -> None:
        """Wait for what was begun."""
        with self._lock:
            job = self._job
        if job:
            job.result()

    def _run(self) -> None:
        try:
            while self._one_job():
                pass
        except Exception as exc:  # noqa: BLE001 - what can't be done now is done after a later commit
            log.info("upkeep was put off: %s", exc)
        finally:
            with self._lock:
                self._job = None

    def _one_job(self) -> bool:
        """Do one job; tell whether another look is worth it."""
        known = self._index.known
        if known is None or known.index is None:
            return False
        if plan.due_checkpoint(known.index):
            return self._checkpoint(known, known.index)
        refs = plan.due_merge(known.index)
        if not refs:
            return False
        segments = [self._reader.segment(ref, known.index) for ref in refs]
        keyring = self._reader.keyring
        merged = plan.merge(known.index, refs, segments, self._runtime.uuid(), keyring)
        path = self._layout.path(merged.ref.blob)
        self._backend.put(path, merged.blob)
        done = bool(self._swap(lambda index: plan.swap_merged(index, refs, merged.ref)))
        if done and plan.due_drop(known.settled.past, len(known.settled)):
            self._tidy(self._ages(path), known)
        return done

    def _checkpoint(self, known: Known, index: Index) -> bool:
        state = known.settled
        record, data = state.checkpoint(
            index.dictionary,
            index.incarnation,
            index.checkpoint.blob if index.checkpoint else "",
            index.horizon,
            self._runtime.map,
        )
        blob = encode(record, data, self._reader.keyring)
        checkpoint = CheckpointRef(self._name("c", index), state.seq, len(blob))
        path = self._layout.path(checkpoint.blob)
        self._backend.put(path, blob)
        ages = self._ages(path)
        covered = index.segments
        log = self._log(index, [*self._commits.log(index), *covered], ages.old)

        def swapped(now: Index) -> Index | None:
            if now.history != index.history:
                return None  # the log is of another policy
            return plan.swap_checkpoint(now, checkpoint, covered, log)

        done = bool(self._swap(swapped))
        if done:
            self._tidy(ages, known)
        return done

    def _log(self, index: Index, segments: list[SegmentRef], old: int) -> LogRef:
        """Write where the commits are that the checkpoint covers; the newest segment stays."""
        if index.history is not None:
            segments = [ref for ref in segments[:-1] if ref.last > old] + segments[-1:]
        blob = encode(Log(index.dictionary, index.incarnation, segments), (), self._reader.keyring)
        first, last = segments[0].first, segments[-1].last
        ref = LogRef(self._name("l", index), first, last, len(blob))
        self._backend.put(self._layout.path(ref.blob), blob)
        return ref

    def _ages(self, newest: str) -> _Ages:
        """Return which commits are old by the store's times; now is when it took `newest`."""
        try:
            now = max((blob.time for blob in self._backend.list(newest)), default=0.0)
            segments = self._backend.list(self._layout.path("s:"))
            return _Ages(*seqs_of_age(segments, self._layout, now, LOG_SECONDS, self._retention))
        except AccessDeniedError as exc:  # then all is kept, until somebody else comes who may
            log.info("old versions aren't dropped: %s", exc)
            return _Ages(0, 0)

    def drop(self, before: int, known: Known) -> set[str]:
        """Take off the list what was replaced before that commit, as far as it isn't to be kept.

        What isn't dropped now is dropped beside a later checkpoint. Returns the blobs that hold
        what was dropped.
        """
        index, settled = known.index, known.settled
        if index is None or index.history is None:
            return set()
        # What is settled is so for every reader: all of them can drop it at the same commit.
        drop = Drop(min(before, settled.seq), index.history)
        if not settled.droppable(drop):
            return set()
        blobs = references_of(settled.dropping(drop))

        def decide(draft: Draft) -> list[Drop]:
            del draft
            return [drop]

        request = Request(
            decide,
            commit_id=self._runtime.uuid(),
            author="",
            comment="",
            ticket=-1,
            deadline=self._runtime.monotonic() + self._backend.timeout,
        )
        self._committer.submit(request)
        self._committer.work()
        try:
            request.verdict.result()
        except DropRefused:
            return set()
        return blobs

    def _tidy(self, ages: _Ages, known: Known) -> None:
        """Let go of some of what is old, in a few requests: the rest another time.

        The horizon is committed on its own, see `Garbage`; that may hold up other commits of this
        process for one round trip.
        """
        dropped = self.drop(ages.retained, known)
        if known.index is None or (not dropped and ages.old <= known.index.horizon):
            return
        stands = self._swap(lambda index: plan.raise_horizon(index, ages.old), alone=True)
        if stands is None or stands.index is None:
            return
        log = self._commits.log(stands.index)
        garbage = Garbage(
            self._backend,
            self._layout,
            self._runtime,
            stands,
            log,
            keyring=self._reader.keyring,
            dropped=dropped,
        )
        for blobs in self._some(stands, dropped):
            for batch in garbage.judged(islice(blobs, STEP)):
                garbage.delete([judged.blob for judged in batch if judged.garbage])

    def _some(self, known: Known, dropped: Collection[str]) -> Iterator[Iterable[BlobInfo]]:
        """Yield the blobs that were dropped, and of each kind some from where chance begins."""
        yield (BlobInfo(self._layout.path(blob), 1, 0.0) for blob in sorted(dropped))

        def part(name: str) -> str:
            return name[: int(self._runtime.jitter(len(name) + 1))]

        def below(blob: BlobInfo) -> bool:
            reference = self._layout.reference(blob.name)
            return reference is None or naming.born(reference) < horizon

        horizon = known.index.horizon if known.index else 0
        for kind in "cslp":  # whose names are in the order of their seqs
            seq = part(naming.unique(int(self._runtime.jitter(horizon)), b""))
            yield takewhile(below, self._backend.list(self._layout.path(f"{kind}:{seq}")))
        base = known.state.base
        keys = base.rows + base.tombstones
        key = base.key(int(self._runtime.jitter(keys)) % keys) if keys else ""
        yield self._backend.list(self._layout.path(f"v:{part(naming.escape(key))}"))

    def _name(self, kind: str, index: Index) -> str:
        return f"{kind}:{naming.unique(index.seq, self._runtime.uuid())}"

    def _swap(self, transform: Transform, *, alone: bool = False) -> Known | None:
        swap = Swap(transform, alone=alone)
        self._committer.submit(swap)
        self._committer.work()
        return swap.verdict.result()


class _Ages(NamedTuple):
    """The newest commit that is a day old, and the newest whose past is retained no longer."""

    old: int
    retained: int
