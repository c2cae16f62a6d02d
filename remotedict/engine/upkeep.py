"""Upkeep: merges of segments and checkpoints, beside the commits."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from remotedict.engine.committer import Swap
from remotedict.engine.runtime import log
from remotedict.pure import naming, plan
from remotedict.pure.records import CheckpointRef, Index, encode

if TYPE_CHECKING:
    from concurrent.futures import Future

    from remotedict.engine.committer import Committer
    from remotedict.engine.index import IndexBlob, Known
    from remotedict.engine.patient import Patient
    from remotedict.engine.reader import Reader
    from remotedict.engine.runtime import Runtime
    from remotedict.pure.naming import Layout


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
        layout: Layout,
        runtime: Runtime,
    ) -> None:
        self._backend = backend
        self._index = index
        self._reader = reader
        self._committer = committer
        self._layout = layout
        self._runtime = runtime
        self._lock = threading.RLock()
        self._job: Future[None] | None = None

    def begin(self) -> None:
        """Do what is due, in the background."""
        with self._lock:
            if self._job is None:
                # Never in this thread, which is the committer's: the job waits for it.
                self._job = self._runtime.background(self._run)

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
        merged = plan.merge(known.index, refs, segments, self._runtime.uuid())
        self._backend.put(self._layout.path(merged.ref.blob), merged.blob)
        return self._swap(lambda index: plan.swap_merged(index, refs, merged.ref))

    def _checkpoint(self, known: Known, index: Index) -> bool:
        state = known.settled
        record, data = state.checkpoint(
            index.dictionary,
            index.incarnation,
            index.checkpoint.blob if index.checkpoint else "",
            index.horizon,
        )
        blob = encode(record, data)
        ref = CheckpointRef(
            f"c:{naming.unique(index.seq, self._runtime.uuid())}", state.seq, len(blob)
        )
        self._backend.put(self._layout.path(ref.blob), blob)
        return self._swap(lambda index: plan.swap_checkpoint(index, ref))

    def _swap(self, transform: object) -> bool:
        swap = Swap(transform)  # type: ignore[arg-type]
        self._committer.submit(swap)
        return swap.verdict.result()
