"""Commits: many writers of one process, one compare-and-swap."""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING

from msgspec.structs import replace

from remotedict.backend import BackendError, PreconditionFailed, TransientError
from remotedict.engine.runtime import log
from remotedict.engine.turn import FIRST_PAUSE, Turn
from remotedict.errors import (
    DictionaryChangedError,
    HistoryGapError,
    RemoteDictError,
    SnapshotExpiredError,
    StoreUnavailableError,
    UnknownOutcomeError,
)
from remotedict.pure import plan
from remotedict.pure.draft import Draft, versioned
from remotedict.pure.entry import Entry
from remotedict.pure.naming import born
from remotedict.pure.records import Change, Commit, Drop, Index, Range, Set, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from remotedict.engine.commits import Commits
    from remotedict.engine.index import IndexBlob, Known
    from remotedict.engine.patient import Patient
    from remotedict.engine.runtime import Runtime
    from remotedict.pure.keyring import Keyring
    from remotedict.pure.naming import Layout
    from remotedict.pure.plan import NewSegment

    Decide = Callable[[Draft], Sequence[Change]]
    Transform = Callable[[Index], Index | None]


class UploadExpired(RemoteDictError):  # noqa: N818 - an answer to the caller, who uploads anew
    """The horizon has passed an upload: vacuum may have deleted it before the commit."""


class DropRefused(RemoteDictError):  # noqa: N818 - an answer to the upkeep, which begins anew
    """More history is kept by now than when a drop was begun."""


class Request:
    """One writer's wish: what to change, decided anew on each new state.

    Parameters
    ----------
    decide : callable
        Given the state that the commit would be made on, returns the changes (none: there is
        nothing to do) or raises a RemoteDictError: a refusal.
    """

    verdict: Future[Commit | None]

    def __init__(
        self,
        decide: Decide,
        *,
        commit_id: bytes,
        author: str,
        comment: str,
        ticket: int,
        deadline: float,
    ) -> None:
        self.decide = decide
        self.id = commit_id
        self.author = author
        self.comment = comment
        self.ticket = ticket
        self.deadline = deadline


class Swap:
    """A wish of the upkeep: the same state, laid out otherwise. None: no longer possible.

    One that moves bytes, or the horizon, goes alone: nobody may be judged on the state that was
    there before it, and land with it. One that settles moves the tail into a segment. That it isn't
    possible counts only on a state that was asked for after its `ticket` was drawn, if it has one.

    Attributes
    ----------
    verdict : Future
        The index that stands, and the state, which it left as it was; None if nothing was swapped.
    """

    verdict: Future[Known | None]

    def __init__(
        self, transform: Transform, *, alone: bool = False, settle: bool = False, ticket: int = -1
    ) -> None:
        self.ticket = ticket
        self.transform = transform
        self.alone = alone
        self.settle = settle


class Committer:
    """Makes commits, and nothing but commits, on the index blob. Thread-safe.

    The requests that wait at one moment are judged one after the other, each on the state that
    the one before would leave, and go out in one compare-and-swap. If it is lost, all are judged
    again on the new state. So each has its own conditions and its own verdict.
    """

    def __init__(
        self,
        backend: Patient,
        index: IndexBlob,
        commits: Commits,
        layout: Layout,
        runtime: Runtime,
        on_commit: Callable[[bool], None],
    ) -> None:
        self._backend = backend
        self._index = index
        self._commits = commits
        self._layout = layout
        self._runtime = runtime
        self._keyring = index.reader.keyring
        self._on_commit = on_commit
        self._turn = Turn(backend, runtime, layout.commit_queue)
        self._lock = threading.RLock()
        self._queue: list[Request | Swap] = []
        self._working = False
        self._rivals = False  # whether other writers were met of late

    def submit(self, request: Request | Swap) -> None:
        """Get in line; the request's `verdict` will have the answer, once somebody works."""
        request.verdict = self._runtime.future()
        with self._lock:
            self._queue.append(request)

    def begin(self) -> None:
        """Let another thread work, unless one does."""
        if self._take_turn():
            self._runtime.spawn(self._drain)

    def work(self) -> None:
        """Make the commits that wait now, in this thread, unless another one works."""
        if not self._take_turn():
            return
        with self._lock:
            batch = self._next([])
        try:
            self._settle_all(batch)
        finally:
            with self._lock:
                self._working = bool(self._queue)
                left = self._working
            if left:  # the caller has waited long enough
                self._runtime.spawn(self._drain)

    def _take_turn(self) -> bool:
        with self._lock:
            turn = not self._working
            self._working = True
            return turn

    def create(self) -> Known:
        """Return what is known, having made an empty dictionary if there is none."""
        deadline = self._runtime.monotonic() + self._backend.timeout
        pause, refused = FIRST_PAUSE, False
        while True:
            known = self._index.known
            if known is None or self._index.vague:
                known = self._index.now()
            if known.index is not None:
                return known
            if refused and self._runtime.monotonic() >= deadline:
                msg = "the store kept refusing to make the index blob"
                raise StoreUnavailableError(msg)
            genesis = plan.genesis(self._runtime.uuid(), self._runtime.uuid())
            data = encode(genesis, (), self._keyring)
            try:
                self._backend.raw.put(self._layout.index, data, if_absent=True)
            except (PreconditionFailed, TransientError) as exc:
                # Somebody else was quicker, or an earlier attempt of mine may have got through.
                refused = True
                log.debug("creating the index: %s", exc)
                self._runtime.sleep(self._runtime.jitter(pause))
                pause = min(pause * 2, 2.0)
            self._index.now()

    def _drain(self) -> None:
        batch: list[Request | Swap] = []
        while True:
            with self._lock:
                batch = self._next([])
                if not batch:
                    self._working = False
                    return
            self._settle_all(batch)

    def _settle_all(self, batch: list[Request | Swap]) -> None:
        try:
            self._settle(batch)
        except BaseException as exc:  # noqa: BLE001 - whoever waits must hear of it
            for request in batch:
                if not request.verdict.done():
                    request.verdict.set_exception(_own(exc, request))

    def _next(self, batch: list[Request | Swap]) -> list[Request | Swap]:
        """Take from the queue what may go out together with `batch`."""
        alone = [isinstance(one, Swap) and one.alone for one in (*batch, *self._queue)]
        if any(alone):
            count = 1 if alone[0] else alone.index(True)
            count = max(count - len(batch), 0)
        else:
            count = len(self._queue)
        taken, self._queue = self._queue[:count], self._queue[count:]
        return taken

    def _settle(self, batch: list[Request | Swap]) -> None:
        """Give every request of `batch` its verdict; those that come meanwhile may join."""
        turn = self._turn
        try:
            turn.begin()
            while batch:
                known = self.create() if turn.losses else self._newest()
                round_ = _Round(known, batch, self._now(), self._runtime.uuid, self._keyring)
                if round_.idle:
                    if known.checked > round_.newest_ticket:
                        round_.conclude()
                        return
                    # A refusal, and "nothing to do", count only on a state that was asked for
                    # after the call had begun.
                    self._index.since(round_.newest_ticket)
                    continue
                began = self._runtime.monotonic()
                etag = self._swap(round_)
                if etag is not None and round_.moves:
                    # It has to be read again, as by everybody else.
                    try:
                        self._index.since(self._index.ticket())
                    finally:
                        round_.conclude(etag)
                    return
                if etag is not None:
                    try:
                        self._index.landed(
                            known, round_.index, etag, round_.commits, round_.segment, began
                        )
                    finally:
                        round_.conclude(etag)  # it stands, whatever became of the rest
                    self._on_commit(round_.segment is not None)
                    return
                log.debug("commit %d was taken by another writer", known.state.seq + 1)
                self._rivals = True
                self._expire(batch, turn.losses)
                with self._lock:
                    batch += self._next(batch)
        finally:
            turn.end()

    def _newest(self) -> Known:
        """Return the state to begin with: what is known, or, among other writers, a newer one.

        What was known a moment ago is then likely to be old, and a lost attempt takes longer
        than a look.
        """
        known = self.create()
        if self._rivals and self._index.age > 2 * self._index.round_trip:
            newest = self._index.now()
            self._rivals = newest.state.seq > known.state.seq
            return newest
        return known

    def _now(self) -> int:
        return int(self._runtime.time() * 1e6)

    def _expire(self, batch: list[Request | Swap], losses: int) -> None:
        now = self._runtime.monotonic()
        for request in [*batch]:
            if isinstance(request, Request) and request.deadline < now:
                msg = (
                    f"other writers were quicker {losses} times in a row until the deadline; "
                    "nothing was written. Write less often, or several keys at once"
                )
                request.verdict.set_exception(StoreUnavailableError(msg))
                batch.remove(request)

    # -- the compare-and-swap ---------------------------------------------------------------

    def _swap(self, round_: _Round) -> str | None:
        """Put the new index; return its etag, or None if another writer was quicker.

        A reply may be lost, and a request may arrive late. So whatever goes wrong, look: while
        the etag is the old one the put may still be under way, and putting *the same* again
        can't apply twice. Once it has moved, my commit, if it was applied, is the one after the
        base: mine there, done; another's there, it never will be.
        """
        if round_.segment:
            self._backend.put(self._layout.path(round_.segment.ref.blob), round_.segment.blob)
        base, data = round_.known, encode(round_.index, (), self._keyring)
        deadline = self._runtime.monotonic() + self._backend.timeout
        doubt: TransientError | None = None
        refused: PreconditionFailed | None = None
        pause = FIRST_PAUSE
        while True:
            sent = self._runtime.monotonic()
            try:
                etag = self._backend.raw.put(self._layout.index, data, if_match=base.etag)
            except PreconditionFailed as exc:
                refused = exc
                # First the pause, then the look: so the next attempt begins with what is new.
                self._turn.lost(self._runtime.monotonic() - sent)
            except TransientError as exc:
                doubt = exc
                log.debug("a commit got no answer: %s", exc)
            except Exception as exc:
                # It is refused now; an earlier one may still be under way.
                _raise_if_in_doubt(round_, doubt, exc)
                raise
            else:
                return etag
            now, there = self._look(round_, doubt, refused)
            if now.etag != base.etag:
                return self._verdict(round_, now, there, doubt)
            if self._runtime.monotonic() >= deadline:
                _raise_if_in_doubt(round_, doubt, doubt)
                msg = "the store kept refusing a commit that nothing stood against"
                raise StoreUnavailableError(msg)
            self._runtime.sleep(self._runtime.jitter(pause))
            pause = min(pause * 2, 2.0)

    def _look(
        self, round_: _Round, doubt: TransientError | None, refused: PreconditionFailed | None
    ) -> tuple[Known, bytes | None]:
        """Return the state now, and the id of the commit that is there where mine would be."""
        try:
            now = self._index.since(self._index.ticket())
            return now, self._there(round_.known.state.seq + 1, now)
        except RemoteDictError as exc:
            # A request may be delivered twice, and the 412 be the answer to the second time.
            # (That the dictionary has changed says enough.)
            unclear = None if isinstance(exc, DictionaryChangedError) else refused
            _raise_if_in_doubt(round_, doubt or unclear, exc)
            raise

    def _there(self, seq: int, now: Known) -> bytes | None:
        if now.state.seq < seq:
            return None
        if recent := now.state.commit_id(seq):
            return recent
        try:
            return next(self._commits.after(seq - 1, now, seq)).id
        except HistoryGapError:
            return None

    @staticmethod
    def _verdict(
        round_: _Round, now: Known, there: bytes | None, doubt: TransientError | None
    ) -> str | None:
        if not round_.commits or now.state.seq == round_.known.state.seq:
            return None
        if there == round_.commits[0].id:
            return now.etag
        if there is None and doubt:
            raise _InDoubtError(round_.ids, "too many commits were made since to look it up")
        return None


class _Round:
    """One attempt: the requests of a batch, judged on one state.

    Attributes
    ----------
    idle : bool
        There is nothing to put: all were refused, or found nothing to do.
    """

    def __init__(
        self,
        known: Known,
        batch: list[Request | Swap],
        now: int,
        uuid: Callable[[], bytes],
        keyring: Keyring | None,
    ) -> None:
        assert known.index is not None  # noqa: S101 - for the type checker
        self.known = known
        self.commits: list[Commit] = []
        self._batch = batch
        self._commits: dict[int, Commit] = {}
        self._refusals: dict[int, Exception] = {}
        self._swapped: set[int] = set()
        index = known.index
        draft = Draft(known.state)
        for request in batch:
            if isinstance(request, Swap):
                swapped = request.transform(index)
                if swapped:
                    index = swapped
                    self._swapped.add(id(request))
                continue
            try:
                changes = versioned(request.decide(draft), draft)
                _check_bytes(changes, index, draft)
                _check_drops(changes, index)
            except Exception as exc:  # noqa: BLE001 - one's mistake must not fail the others
                self._refusals[id(request)] = exc
                continue
            if changes:
                seq = known.state.seq + len(self.commits) + 1
                commit = Commit(request.id, seq, now, request.author, request.comment, changes)
                draft.add(commit)
                self.commits.append(commit)
                self._commits[id(request)] = commit
        self.segment: NewSegment | None = None
        settle = any(isinstance(request, Swap) and request.settle for request in batch)
        if self.commits or settle:
            index, self.segment = plan.extend(index, self.commits, uuid, keyring, settle=settle)
        self.idle = index is known.index
        self.index = replace(index, revision=known.index.revision + 1)

    @property
    def moves(self) -> bool:
        """Whether it moves bytes: then nothing that is known of places holds any more."""
        return self.known.index is not None and self.index.moved != self.known.index.moved

    @property
    def ids(self) -> set[bytes]:
        """The ids of the commits."""
        return {commit.id for commit in self.commits}

    @property
    def newest_ticket(self) -> int:
        """The ticket that a check must exceed for refusals to be final."""
        return max((one.ticket for one in self._batch), default=-1)

    def conclude(self, etag: str = "") -> None:
        """Tell each request what came of it: the round stands."""
        stands = dataclasses.replace(self.known, etag=etag, index=self.index)
        for request in self._batch:
            if isinstance(request, Swap):
                request.verdict.set_result(stands if id(request) in self._swapped else None)
            elif refusal := self._refusals.get(id(request)):
                request.verdict.set_exception(refusal)
            else:
                request.verdict.set_result(self._commits.get(id(request)))


def _check_bytes(changes: Sequence[Change], index: Index, draft: Draft) -> None:
    """Refuse to name bytes that vacuum may have deleted.

    Uploads that began below the horizon, by the same comparison as vacuum's own; and bytes that
    were there already, for a copy or a revert, but are no longer listed.
    """
    fresh = {c.generation for c in changes if isinstance(c, Set) and c.origin is None}
    for change in changes:
        if not isinstance(change, Set) or isinstance(change.place, bytes):
            continue
        if change.origin is not None:
            if change.generation not in fresh and not _lists(draft, change):
                raise SnapshotExpiredError(change.origin)
        else:
            shared = isinstance(change.place, Range)
            began = born(change.place.blob) if isinstance(change.place, Range) else change.born
            if began < index.horizon:
                what = "a pack" if shared else f"the value of {change.key!r}"
                msg = f"{what} was uploaded below the horizon {index.horizon}"
                raise UploadExpired(msg)


def _check_drops(changes: Sequence[Change], index: Index) -> None:
    """Refuse to drop what is to be kept by now."""
    for change in changes:
        if isinstance(change, Drop) and (index.history is None or change.versions < index.history):
            msg = "more history is kept now than when the drop was begun"
            raise DropRefused(msg)


def _lists(draft: Draft, change: Set) -> bool:
    assert change.origin is not None  # noqa: S101 - for the type checker
    return any(
        isinstance(item, Entry) and item.generation == change.generation
        for item in draft.listed(change.origin)
    )


class _InDoubtError(Exception):
    """Whether the commits with these ids were applied can't be learnt."""

    def __init__(self, ids: set[bytes], reason: str) -> None:
        super().__init__(reason)
        self.ids = ids


def _raise_if_in_doubt(round_: _Round, doubt: BackendError | None, exc: Exception | None) -> None:
    """Whatever ends a round, it may have been applied if a put of it has had no answer."""
    if doubt:
        raise _InDoubtError(round_.ids, str(exc or doubt)) from exc


def _own(exc: BaseException, request: Request | Swap) -> BaseException:
    """Return what a failed round means for one of its requests."""
    if not isinstance(exc, _InDoubtError):
        return exc
    if isinstance(request, Swap) or request.id in exc.ids:
        commit_id = None if isinstance(request, Swap) else request.id.hex()
        unknown = UnknownOutcomeError(commit_id, str(exc))
        unknown.__cause__ = exc.__cause__
        return unknown
    if isinstance(exc.__cause__, RemoteDictError):
        return exc.__cause__  # it was no part of what was sent
    return StoreUnavailableError(f"the store gave no usable answer; nothing was written ({exc})")
