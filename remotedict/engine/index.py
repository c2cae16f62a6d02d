"""The index blob as this process knows it: checked, followed and published."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from remotedict.backend import NOT_MODIFIED, BlobNotFound
from remotedict.engine.runtime import log
from remotedict.errors import AccessDeniedError, CorruptBlobError, DictionaryChangedError
from remotedict.pure.records import Commit, Index, Segment, Set, decode, encode
from remotedict.pure.state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future

    from remotedict.engine.patient import Patient
    from remotedict.engine.reader import Reader
    from remotedict.engine.runtime import Runtime
    from remotedict.pure.naming import Layout
    from remotedict.pure.plan import NewSegment

_ATTEMPTS = 10
_CHECKS = 8  # under way at once, of one process
_LOOK_SECONDS = (
    60.0  # for so long a look at what else is left of a dictionary without index will do
)


@dataclass(frozen=True, slots=True)
class Known:
    """One state of the index blob, and what it means.

    `index` is None, and `etag` empty, while the dictionary has never been written. `settled` is
    the state as of the newest commit that isn't in the tail: what a checkpoint may hold.
    `checked` is the number of the newest check that found this state (or an older one) current.
    """

    etag: str
    index: Index | None
    state: State
    settled: State
    checked: int

    def as_of(self, state: State) -> Known:
        """Return the same with another state of the same dictionary."""
        return replace(self, state=state)

    def checked_by(self, number: int) -> Known:
        """Return the same, found current by a check as well."""
        if number <= self.checked:
            return self
        return Known(self.etag, self.index, self.state, self.settled, number)


class _Look(NamedTuple):
    """One request for the index: its number, what was known when it was sent, and when that was."""

    number: int
    base: Known | None
    began: float


class IndexBlob:
    """Follows the index blob of one dictionary. Thread-safe.

    New states are published by one reference swap. Requests are sent without holding a lock.
    """

    def __init__(
        self,
        backend: Patient,
        reader: Reader,
        layout: Layout,
        runtime: Runtime,
        on_relocate: Callable[[bytes, bytes], None],
    ) -> None:
        self._backend = backend
        self.reader = reader
        self._layout = layout
        self._runtime = runtime
        self._on_relocate = on_relocate
        # Re-entrant: without threads (at the end of the interpreter) a check runs where it is begun.
        self._lock = threading.RLock()
        self._begun = 0
        self._under_way = 0
        self._waiting: Future[Known] | None = None
        self._changed = ""  # how it is another dictionary than before: for this handle it stays so
        self.known: Known | None = None
        self.checked_at = self._looked_at = -float("inf")
        self.round_trip = 0.0  # seconds that the last check took

    @property
    def age(self) -> float:
        """For how many seconds what is known may have been out of date."""
        return self._runtime.monotonic() - self.checked_at

    def ticket(self) -> int:
        """Return a number that only the checks begun after this call exceed."""
        with self._lock:
            return self._begun

    def now(self) -> Known:
        """Ask whether what is known is current, and return the newest state.

        An answer only tells what was current after the request was sent: so a caller can share
        only a request that is yet to be sent. Nobody waits for one to share, unless many are
        under way.
        """
        joined = self._join()
        return joined.result() if joined else self._own()

    def since(self, ticket: int) -> Known:
        """Return a state that was current at some time after `ticket` was drawn."""
        known = self.known
        if known and known.checked > ticket:
            return known
        return self.now()

    def recent(self, max_staleness: float) -> Known | None:
        """Return what is known if it was current at most `max_staleness` seconds ago."""
        if self.known and self.age < max_staleness:
            return self.known
        return None

    def _join(self) -> Future[Known] | None:
        """Return the check to wait for; None if the caller is to make one of its own."""
        with self._lock:
            if self._under_way < _CHECKS:
                self._under_way += 1
                return None
            if self._waiting is None:
                self._waiting = self._runtime.future()
            return self._waiting

    def _own(self) -> Known:
        try:
            return self._check()
        finally:
            self._hand_on()

    def _hand_on(self) -> None:
        """Let the check begin that waits for one to end."""
        with self._lock:
            waiting, self._waiting = self._waiting, None
            self._under_way -= waiting is None
        if waiting:
            self._runtime.spawn(partial(self._shared, waiting))

    def _shared(self, waiting: Future[Known]) -> None:
        try:
            waiting.set_result(self._check())
        except BaseException as exc:  # noqa: BLE001 - all who share it must hear of it
            waiting.set_exception(exc)
        finally:
            self._hand_on()

    def _check(self) -> Known:
        with self._lock:
            self._begun += 1
            look = _Look(self._begun, self.known, self._runtime.monotonic())
        if self._changed:
            raise DictionaryChangedError(self._changed)
        known = self._ask(look)
        self.round_trip = self._runtime.monotonic() - look.began
        return known

    def _ask(self, look: _Look) -> Known:
        path, base, left = self._layout.index, look.base, ""
        for _ in range(_ATTEMPTS):
            try:
                got = self._backend.get(path, if_none_match=base.etag or None if base else None)
            except BlobNotFound:
                if left:
                    raise self._lost(left) from None
                # It is written first, and never deleted. So if there is anything else, it is
                # lost; unless somebody has made it after my request: look once more.
                if (self.known and not self.vague) or not (left := self._left()):
                    return self._absent(look)
                continue
            if got is NOT_MODIFIED:
                return self._confirm(look)
            index, _data = decode(got.data, Index, path, self.reader.keyring)
            self._check_identity(base, index)
            self.reader.blobs.turn_to(index)
            try:
                return self._follow(index, got.etag, look)
            except BlobNotFound as exc:
                # A segment was merged away, or a checkpoint replaced, and deleted since: the
                # index has moved on as well.
                missing = exc
                log.debug("the index moved on while it was read (%s is gone)", exc)
        reason = "the index names it, but it isn't there"
        raise CorruptBlobError(str(missing), reason) from missing

    @property
    def vague(self) -> bool:
        """Whether there was no index, and long ago not anything else: by now one may have been lost."""
        known, since = self.known, self._runtime.monotonic() - self._looked_at
        return known is not None and known.index is None and since > _LOOK_SECONDS

    def _left(self) -> str:
        """Return the path of a blob of ours; empty if there is none, or this may not be asked."""
        self._looked_at = self._runtime.monotonic()
        try:
            paths = (info.name for one in self._layout.prefixes for info in self._backend.list(one))
            return next(filter(self._layout.reference, paths), "")
        except AccessDeniedError as exc:
            log.debug("whether an index was lost isn't known: %s", exc)
            return ""

    def _lost(self, left: str) -> CorruptBlobError:
        reason = (
            f"it is gone, though blobs of the dictionary are there, such as {left!r}. If a copy to "
            "here was interrupted, copy again; else d.repair() makes a new index of what is left. "
            "To begin an empty dictionary take another folder, or delete these blobs first"
        )
        return CorruptBlobError(self._layout.index, reason)

    def _absent(self, look: _Look) -> Known:
        if look.base and look.base.index:
            msg = (
                f"the index blob {self._layout.index!r} is gone: the dictionary was deleted, or its "
                "index was lost. Open a new handle to begin an empty one, when nothing of it is left; "
                "or d.repair() it with this handle, which still knows it"
            )
            raise DictionaryChangedError(msg)
        with self._lock:
            if self.known is None:
                self.known = Known("", None, State.empty(), State.empty(), look.number)
            overtaken = self.known.index is not None
        return self._confirm(look, overtaken=overtaken)

    def _confirm(self, look: _Look, *, overtaken: bool = False) -> Known:
        # What is known may be newer than what was asked about, never older.
        with self._lock:
            if not overtaken:
                self.checked_at = max(self.checked_at, look.began)
            assert self.known is not None  # noqa: S101 - for the type checker
            self.known = self.known.checked_by(look.number)
            return self.known

    def _check_identity(self, base: Known | None, new: Index) -> None:
        # Against what was known when the request was sent: a slow answer may well be older than
        # what another thread has learnt meanwhile.
        old = base.index if base else None
        if base is None or old is None:
            return
        if new.dictionary != old.dictionary:
            raise self._went_back("was deleted and made anew")
        if new.incarnation != old.incarnation:
            raise self._went_back("was restored from a copy")
        if new.revision < old.revision or new.seq < old.seq:
            raise self._went_back(f"went back from commit {old.seq} to {new.seq}")
        if new.seq == old.seq and new.head != base.state.head:
            raise self._went_back(f"has another commit {new.seq}")

    def _went_back(self, what: str) -> DictionaryChangedError:
        # Later on, when there are many more commits, nothing might tell it any more.
        self._changed = (
            f"dictionary {self._layout.folder!r} {what} since this handle last looked; open a "
            "new handle to accept that"
        )
        return DictionaryChangedError(self._changed)

    def _follow(self, index: Index, etag: str, look: _Look) -> Known:
        """Publish `index` and its state, unless something newer is known already."""
        segments: dict[str, Segment] = {}
        unknown = look.base is None or look.base.index is None  # so its identity was not checked
        while True:
            known = self.known
            old = known.index if known else None
            if unknown and old and old.dictionary != index.dictionary:
                raise self._went_back("was deleted and made anew")
            if known and old and old.revision > index.revision:
                # For all that can be known a commit of mine was carried out between. If not, the
                # index went back, which the next request will tell: nothing may lean on this one.
                return self._confirm(look, overtaken=True)
            if known and old and old.revision == index.revision:
                if known.etag != etag:
                    self._take_etag(known, old, index, etag)
                return self._confirm(look)
            wanted = self.reader.wanted(old, index) if old else None
            if known and old and wanted is not None:
                self.reader.segments(wanted, index, segments)
            else:
                loaded = self.reader.load(index, segments)
                if known and not _continues(known.state, loaded[0]):
                    raise self._went_back(f"has another commit {known.state.seq}")
            with self._lock:
                if self.known is not known:
                    continue  # another thread has changed what these steps build on
                if known and old and wanted is not None:
                    self._keep_inline(old.tail, index)
                    loaded = self.reader.advance(known.state, known.settled, old, index, segments)
                return self._publish(Known(etag, index, *loaded, look.number), look.began)

    def _take_etag(self, known: Known, old: Index, index: Index, etag: str) -> None:
        """Go on under another etag of the same index: somebody has copied it, or set its tier."""
        if encode(old) != encode(index):
            raise self._went_back(f"has another revision {index.revision}")
        with self._lock:
            if self.known is known:
                self.known = replace(known, etag=etag)

    def landed(
        self,
        base: Known,
        index: Index,
        etag: str,
        new: list[Commit],
        segment: NewSegment | None,
        began: float,
    ) -> None:
        """Publish a compare-and-swap on `base` that this process has made itself, begun then."""
        with self._lock:
            if self.known is not base and self.known and self.known.etag != base.etag:
                return  # a check was quicker
            state, settled = base.state, base.settled
            if segment:
                self._keep_inline(base.index.tail if base.index else [], index)
                state.relocate([c for c in segment.commits if c.seq <= state.seq])
                moved = {commit.seq: commit for commit in segment.commits}
                new = [moved.get(commit.seq, commit) for commit in new]
                settled = state
            for commit in new:
                state = state.apply(commit)
                if segment and commit.seq == index.settled:
                    settled = state
            self._publish(Known(etag, index, state, settled, base.checked), began)

    def accept(self, index: Index, etag: str, state: State, settled: State) -> None:
        """Go on with what this process has put in the place of another index."""
        self.reader.blobs.turn_to(index)
        with self._lock:
            self._changed = ""
            self.known = Known(etag, index, state, settled, self._begun)

    def _publish(self, known: Known, began: float) -> Known:
        """Make `known` what is known, by a request begun then; the lock is held."""
        if known.state.due_for_rebase():
            known = replace(known, state=known.state.rebased())
        if self.known:
            known = known.checked_by(self.known.checked)
        self.known = known
        self.checked_at = max(self.checked_at, began)
        return known

    def _keep_inline(self, tail: Iterable[Commit], index: Index) -> None:
        """Offer the inline values that have left the tail to the cache."""
        for commit in tail:
            if commit.seq > index.settled:
                return
            for change in commit.changes:
                if isinstance(change, Set) and isinstance(change.place, bytes):
                    self._on_relocate(change.generation, change.place)


def _continues(old: State, new: State) -> bool:
    """Tell whether `new` comes after `old`, as far as the ids that it knows can tell."""
    return new.commit_id(old.seq) in (None, old.head)
