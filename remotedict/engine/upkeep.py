"""Upkeep: merges of segments, checkpoints, and the end of old versions, beside the commits."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from remotedict.engine.committer import Request, Swap
from remotedict.engine.runtime import log
from remotedict.errors import AccessDeniedError
from remotedict.pure import naming, plan
from remotedict.pure.records import CheckpointRef, Drop, Index, Log, LogRef, encode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from remotedict.engine.commits import Commits
    from remotedict.engine.committer import Committer
    from remotedict.engine.index import IndexBlob, Known
    from remotedict.engine.patient import Patient
    from remotedict.engine.reader import Reader
    from remotedict.engine.runtime import Runtime
    from remotedict.pure.draft import Draft
    from remotedict.pure.naming import Layout
    from remotedict.pure.records import SegmentRef

LOG_SECONDS = 86_400.0
"""How long commits are kept that a checkpoint covers, unless all history is."""


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
        done = self._swap(lambda index: plan.swap_merged(index, refs, merged.ref))
        if done and plan.due_drop(known.settled.past, len(known.settled)):
            ages = _Ages(self._backend, self._layout.path("s:"), path)
            self._drop(ages.newest_before(self._retention), known.index)
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
        ages = _Ages(self._backend, self._layout.path("s:"), path)
        covered = index.segments
        log = self._log(index, [*self._commits.log(index), *covered], ages)

        def swapped(now: Index) -> Index | None:
            if now.history != index.history:
                return None  # the log is of another policy
            return plan.swap_checkpoint(now, checkpoint, covered, log)

        done = self._swap(swapped)
        if done:
            self._drop(ages.newest_before(self._retention), index)
        return done

    def _log(self, index: Index, segments: list[SegmentRef], ages: _Ages) -> LogRef:
        """Write where the commits are that the checkpoint covers; the newest segment stays."""
        if index.history is not None:
            old = ages.newest_before(LOG_SECONDS)
            segments = [ref for ref in segments[:-1] if ref.last > old] + segments[-1:]
        blob = encode(Log(index.dictionary, index.incarnation, segments), (), self._reader.keyring)
        first, last = segments[0].first, segments[-1].last
        ref = LogRef(self._name("l", index), first, last, len(blob))
        self._backend.put(self._layout.path(ref.blob), blob)
        return ref

    def _drop(self, before: int, index: Index) -> None:
        """Take off the list what was replaced longer ago than it is retained.

        Nobody waits for this, and what isn't done now is done beside a later checkpoint.
        """
        known = self._index.known
        if index.history is None or known is None:
            return
        # What is settled is so for every reader: all of them can drop it at the same commit.
        drop = Drop(min(before, known.settled.seq), index.history)
        if not known.settled.droppable(drop):
            return

        def decide(draft: Draft) -> list[Drop]:
            del draft
            return [drop]

        now = self._runtime.monotonic()
        self._committer.submit(
            Request(
                decide,
                commit_id=self._runtime.uuid(),
                author="",
                comment="",
                ticket=-1,
                deadline=now + self._backend.timeout,
            )
        )
        self._committer.begin()

    def _name(self, kind: str, index: Index) -> str:
        return f"{kind}:{naming.unique(index.seq, self._runtime.uuid())}"

    def _swap(self, transform: object) -> bool:
        swap = Swap(transform)  # type: ignore[arg-type]
        self._committer.submit(swap)
        self._committer.work()
        return swap.verdict.result()


class _Ages:
    """Which commits are how old, by the store's own times: now is when it took blob `newest`.

    A name carries a commit that its writer knew: whatever that commit replaced, it was replaced
    before the blob was written.
    """

    def __init__(self, backend: Patient, prefix: str, newest: str) -> None:
        self._now = 0.0
        self._seen: list[tuple[float, int]] = []
        try:
            self._now = max(blob.time for blob in backend.list(newest))
            self._seen += ((blob.time, naming.born(blob.name)) for blob in backend.list(prefix))
        except AccessDeniedError as exc:  # then all is kept, until somebody else comes who may
            log.info("old versions aren't dropped: %s", exc)

    def newest_before(self, seconds: float) -> int:
        """Return the newest commit that is known to be so many seconds old; 0 for none."""
        limit = self._now - seconds
        return max((seq for time, seq in self._seen if time < limit), default=0)
