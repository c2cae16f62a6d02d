"""The engine of one dictionary: its parts put together, and how keys are read and written."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from remotedict.backend import BlobNotFound
from remotedict.engine.blobs import Blobs
from remotedict.engine.cache import Cache
from remotedict.engine.commits import Commits
from remotedict.engine.committer import Committer, Request, Swap, UploadExpired
from remotedict.engine.counted import Counted
from remotedict.engine.disk import DiskCache
from remotedict.engine.index import IndexBlob, Known
from remotedict.engine.patient import Patient
from remotedict.engine.reader import Reader
from remotedict.engine.upkeep import Upkeep
from remotedict.engine.values import PACK_BYTES, Values
from remotedict.errors import (
    ClosedError,
    CorruptBlobError,
    KeyNotFoundError,
    MissingValueError,
    SnapshotExpiredError,
    StoreUnavailableError,
    ValueTooLargeError,
)
from remotedict.pure.coding import Codec
from remotedict.pure.location import Locations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from remotedict.backend import Backend
    from remotedict.engine.committer import Decide, Transform
    from remotedict.engine.runtime import Runtime
    from remotedict.engine.stats import Meter
    from remotedict.engine.values import Progress
    from remotedict.pure.codec import Encoded, Unpacked
    from remotedict.pure.entry import Entry
    from remotedict.pure.keyring import Keyring
    from remotedict.pure.location import Location
    from remotedict.pure.naming import Layout
    from remotedict.pure.pieces import Stored
    from remotedict.pure.records import Commit, Set
    from remotedict.pure.state import State

_T = TypeVar("_T")
_ATTEMPTS = 10
_WINDOW_ITEMS = 4096
_WINDOW_REQUESTS = 256  # so many values that have a blob each
_UPLOAD_ITEMS = 10_000
_WINDOW_BYTES = 64 * 1024 * 1024


class Tuning(NamedTuple):
    """What users may choose of the engine; `RemoteDict` explains each."""

    author: str
    timeout: float
    max_staleness: float
    inline_bytes: int
    cache_bytes: int
    cache_dir: str | None
    cache_dir_bytes: int
    retention: float
    keyring: Keyring | None = None
    codec: str = "pickle"
    max_value_bytes: int | None = None


class Engine:
    """Reads and writes the keys of one dictionary. Thread-safe, but not across a fork."""

    def __init__(
        self, backend: Backend, layout: Layout, tuning: Tuning, runtime: Runtime, meter: Meter
    ) -> None:
        self.layout = layout
        self.tuning = tuning
        self.runtime = runtime
        self.keyring = tuning.keyring
        self.codec = Codec(tuning.codec, tuning.max_value_bytes)
        self.backend = Patient(Counted(backend, meter), runtime, tuning.timeout)
        cache, disk = Cache(tuning.cache_bytes), None
        if tuning.cache_dir is not None:
            disk = DiskCache(tuning.cache_dir, tuning.cache_dir_bytes, runtime.time)
        blobs = Blobs(self.backend, runtime, cache, disk)
        self.values = Values(
            self.backend,
            layout,
            runtime,
            blobs=blobs,
            cache=cache,
            meter=meter,
            inline_bytes=tuning.inline_bytes,
            keyring=tuning.keyring,
            by=self.codec,
        )
        reader = Reader(blobs, layout, runtime, tuning.keyring)
        self.index = IndexBlob(self.backend, reader, layout, runtime, cache.add)
        self.commits = Commits(self.index, reader, runtime)
        self.committer = Committer(
            self.backend, self.index, self.commits, layout, runtime, self._committed
        )
        self.upkeep = Upkeep(
            self.backend,
            self.index,
            reader,
            self.committer,
            self.commits,
            layout,
            runtime,
            tuning.retention,
        )
        self._closed = self._orphaned = False

    def close(self) -> None:
        """End the upkeep that was begun, and give up connections."""
        if not self._closed:
            self._closed = True
            self.runtime.call(self._finish)

    def _finish(self) -> None:
        self.upkeep.finish()
        self.backend.close()

    def orphan(self) -> None:
        """Never send anything again: this is a forked child, and the sockets are its parent's."""
        self._orphaned = True
        self.backend.raw = cast("Backend", _Orphan())

    def _committed(self, rolled: bool) -> None:
        if rolled and not self._closed:
            self.upkeep.begin()

    def check_open(self) -> None:
        """Raise ClosedError after `close`, and in a forked child."""
        if self._orphaned:
            raise _orphaned()
        if self._closed:
            msg = f"this handle of dictionary {self.layout.folder!r} was closed; open a new one"
            raise ClosedError(msg)

    # -- reading ----------------------------------------------------------------------------

    def now(self, timeout: float | None = None) -> Known:
        """Return the state now; raise TimeoutError if that takes longer than `timeout`."""
        self.check_open()
        return self.runtime.call(self.index.now, timeout=timeout)

    def known(self) -> Known:
        """Return the state now, or as of at most `max_staleness` ago."""
        return self.index.recent(self.tuning.max_staleness) or self.now()

    def since(self, ticket: int) -> Known:
        """Return the state at some time after `ticket` was drawn (or `max_staleness` earlier)."""
        known = self.index.known
        return known if known and known.checked > ticket else self.known()

    def read(
        self, key: str, *, confirmed: bool = False, known: Known | None = None
    ) -> tuple[Any, Entry]:
        """Return the value of `key`, and its entry.

        As of now; if not `confirmed`, perhaps as of `max_staleness` ago; or as of `known`, while
        that value is kept.

        Raises
        ------
        KeyNotFoundError
            The key isn't there.
        """
        self.check_open()
        if known is None and not confirmed:
            known = self.index.recent(self.tuning.max_staleness)
        unpacked, entry = self.runtime.call(lambda: self._find(key, known))
        return self.codec.read(unpacked, key), entry

    def _find(self, key: str, known: Known | None) -> tuple[Unpacked, Entry]:
        """Return a value, unpacked, and its entry."""
        ahead: Mapping[bytes, Unpacked] = {}
        if known is None:
            known, ahead = self._now_with([key], self._read_one)
        for _ in range(_ATTEMPTS):
            entry = entries(known.state, [key])[0][1]
            where = entry.location(key)
            try:
                return ahead.get(entry.generation) or self._read(where, known), entry
            except BlobNotFound as exc:
                # Another writer has replaced it, and its bytes have gone since.
                known = self._newer(where, exc)
        raise self._missing(where)

    def _now_with(
        self, keys: Sequence[str], fetch: Callable[[list[Location], Known], list[_T]]
    ) -> tuple[Known, Mapping[bytes, _T]]:
        """Return the state now, and what was fetched meanwhile, by generation.

        The check of the index and the fetch of the locations known so far go out together. What
        the check brings news of is yet to be fetched.
        """
        before = self.index.known
        if before is None:
            return self.index.now(), {}
        guesses = [
            where
            for key in keys
            if (entry := before.state.get(key))
            and self.values.at_hand(where := entry.location(key)) is None
        ]
        if not guesses:
            return self.index.now(), {}
        ahead = self.runtime.spawn(partial(fetch, guesses, before))
        known = self.index.now()
        current = (known.state.get(where.key) for where in guesses)
        if not {entry.generation for entry in current if entry} & {
            where.generation for where in guesses
        }:
            return known, {}  # none of it is wanted any more
        try:
            raw = ahead.result()
        except (BlobNotFound, CorruptBlobError, ValueTooLargeError):
            # Of one that isn't current; or it comes again.
            return known, {}
        return known, {where.generation: got for where, got in zip(guesses, raw, strict=True)}

    def read_many(
        self,
        keys: Sequence[str],
        known: Known | None,
        progress: Progress,
        at_hand: Mapping[bytes, Stored] | None = None,
    ) -> dict[str, Any]:
        """Return the values of `keys` by key, all as of one moment: that of `known`, or now.

        `at_hand` may have the bytes of generations, so that they need not be fetched.

        Raises
        ------
        KeyNotFoundError
            Naming all of those that aren't there.
        SnapshotExpiredError
            A value of `known` is no longer kept.
        """
        keys = list(dict.fromkeys(keys))
        now = known or self.index.recent(self.tuning.max_staleness)
        if now is None:
            self.check_open()
            now, at_hand = self.runtime.call(lambda: self._now_with(keys, self._fetch_all))
        for _ in range(_ATTEMPTS):
            wanted = Locations.of(entry.location(key) for key, entry in entries(now.state, keys))
            try:
                raw = self._at_hand(wanted, at_hand or {}, progress)
            except _Gone as gone:
                if known:
                    raise SnapshotExpiredError(gone.key) from None
                now = gone.newer
            else:
                if not wanted:
                    return {}
                assert now.index is not None  # noqa: S101 - it has entries
                return dict(self.values.decode_all(wanted, raw, now.index.dictionary))
        raise self._missing(wanted[0])

    def _at_hand(
        self, wanted: Locations, at_hand: Mapping[bytes, Stored], progress: Progress
    ) -> list[Stored]:
        """Return the bytes of values, fetching those that aren't at hand."""
        raw = [at_hand.get(generation) for generation in wanted.generations]
        if rows := [row for row, data in enumerate(raw) if data is None]:
            find = partial(self._find_many, wanted.taken(rows), progress)
            for row, data in zip(rows, self.runtime.call(find), strict=True):
                raw[row] = data
        return cast("list[Stored]", raw)

    def fetch_many(self, wanted: Sequence[Location]) -> dict[bytes, Stored]:
        """Return the bytes of values by generation; those gone, or too large, are left out."""
        while wanted:
            some = Locations.of(wanted)
            try:
                found = self.runtime.call(partial(self._find_many, some, lambda _: None))
            except (_Gone, ValueTooLargeError) as exc:
                wanted = [where for where in wanted if where.key != exc.key]
            else:
                return dict(zip(some.generations, found, strict=True))
        return {}

    def read_entry(self, key: str, entry: Entry, known: Known) -> Any:
        """Return the value of an entry, be it current or not; SnapshotExpiredError if it's gone."""
        try:
            unpacked = self.runtime.call(partial(self._read, entry.location(key), known))
        except BlobNotFound:
            raise SnapshotExpiredError(key) from None
        return self.codec.read(unpacked, key)

    def stream(self, wanted: Iterator[Locations], known: Known) -> Iterator[tuple[str, Any]]:
        """Yield keys with their values as of `known`, fetched ahead within a window."""
        windows = _windows(wanted)
        ahead = self._begin(windows)
        while ahead:
            (window, future), ahead = ahead, self._begin(windows)
            self.check_open()
            try:
                raw = self.runtime.call(future.result)
            except _Gone as gone:
                raise SnapshotExpiredError(gone.key) from None
            assert known.index is not None  # noqa: S101 - it has entries
            yield from self.values.decode_all(window, raw, known.index.dictionary)

    def _begin(self, windows: Iterator[Locations]) -> tuple[Locations, Future[list[Stored]]] | None:
        """Begin to fetch the next window."""
        window = next(windows, None)
        if window is None:
            return None
        fetch = partial(self._find_many, window, lambda _: None)
        return window, self.runtime.call(lambda: self.runtime.spawn(fetch))

    def _find_many(self, wanted: Locations, progress: Progress) -> list[Stored]:
        try:
            return self.values.fetch_many(wanted, progress)
        except BlobNotFound as exc:
            where = self._whose(wanted, str(exc))
            raise _Gone(where.key, self._newer(where, exc)) from exc

    def _fetch_all(self, wanted: list[Location], _: Known) -> list[Stored]:
        return self.values.fetch_many(Locations.of(wanted), lambda _: None)

    def _read_one(self, wanted: list[Location], known: Known) -> list[Unpacked]:
        return [self._read(where, known) for where in wanted]

    def _read(self, where: Location, known: Known) -> Unpacked:
        assert known.index is not None  # noqa: S101 - it has an entry
        return self.values.read(where, known.index.dictionary)

    def _newer(self, where: Location, exc: BlobNotFound) -> Known:
        """Return a newer state, in which the key's value is another one: this one's bytes are gone."""
        known = self.index.since(self.index.ticket())
        now = known.state.get(where.key)
        if now and now.location(where.key) == where:
            raise self._missing(where) from exc
        return known

    def _missing(self, where: Location) -> MissingValueError:
        return MissingValueError(where.key, self.layout.path(where.blob or ""))

    def _whose(self, wanted: Sequence[Location], path: str) -> Location:
        """Return whose bytes should be in the blob at `path`."""
        paths = self.layout.paths(where.blob or "" for where in wanted)
        return wanted[paths.index(path) if path in paths else 0]

    # -- writing ----------------------------------------------------------------------------

    def commit(
        self,
        decide: Decide,
        *,
        comment: str = "",
        author: str | None = None,
        commit_id: bytes | None = None,
    ) -> Commit | None:
        """Make one commit of what `decide` returns; None if that is nothing.

        `decide` is called in another thread, with each state that the commit might be made on,
        and must neither wait nor have effects.
        """
        self.check_open()
        request = Request(
            decide,
            commit_id=commit_id or self.runtime.uuid(),
            author=self.tuning.author if author is None else author,
            comment=comment,
            ticket=self.index.ticket(),
            deadline=self.runtime.monotonic() + self.tuning.timeout,
        )

        def made() -> Commit | None:
            with self.runtime.still_wanted():
                self.committer.submit(request)
            self.committer.work()
            return request.verdict.result()

        return self.runtime.call(made)

    def created(self) -> Known:
        """Return what is known, having made an empty dictionary if there is none."""
        self.check_open()
        known = self.index.known
        if known is None or known.index is None:
            known = self.runtime.call(self.committer.create)
        return known

    def encode(self, items: Sequence[tuple[str, Any]]) -> list[tuple[str, bytes, Encoded]]:
        """Return keys with fresh generations and their bytes. Runs the values' own code."""
        index = self.created().index
        assert index is not None  # noqa: S101 - it was created
        return [(key, *self.values.encode(key, value, index.dictionary)) for key, value in items]

    def write(
        self,
        encoded: Sequence[tuple[str, bytes, Encoded]],
        commit: Callable[[list[Set]], _T],
        progress: Progress,
    ) -> _T:
        """Upload values, then call `commit` with the changes that name them.

        If the upload took so long that vacuum may have passed it, they are uploaded again, under
        names that are new since they carry a newer commit.
        """
        while True:
            seq = self.created().state.seq
            changes = self.runtime.call(
                lambda: self.values.place(encoded, seq, progress)  # noqa: B023 - called at once
            )
            try:
                return commit(changes)
            except UploadExpired:
                # The refusal came from a newer state, unless it was ours to learn of it.
                self.now()

    def encoded(
        self, pairs: Iterable[tuple[str, Any]]
    ) -> Iterator[list[tuple[str, bytes, Encoded]]]:
        """Do the same for many, and yield them in windows of bounded size."""
        index = self.created().index
        assert index is not None  # noqa: S101 - it was created
        window: list[tuple[str, bytes, Encoded]] = []
        size = 0
        for key, value in pairs:
            window.append((key, *self.values.encode(key, value, index.dictionary)))
            size += window[-1][2].facts.nbytes  # how long a large one is isn't known yet
            if size >= PACK_BYTES or len(window) == _UPLOAD_ITEMS:
                yield window
                window, size = [], 0
        if window:
            yield window

    def write_windows(
        self,
        windows: Iterable[list[tuple[str, bytes, Encoded]]],
        commit: Callable[[list[Set]], _T],
        progress: Progress,
    ) -> _T:
        """Upload each window while the next one is encoded, then `commit` all of them."""
        seq = self.created().state.seq
        sets: dict[str, Set] = {}
        uploads: deque[Future[list[Set]]] = deque()

        def settle() -> None:
            sets.update({one.key: one for one in self.runtime.call(uploads.popleft().result)})

        for window in windows:
            place = partial(self.values.place, window, seq, progress, inline=False)
            uploads.append(self.runtime.call(partial(self.runtime.spawn, place)))
            if len(uploads) > 1:
                settle()
        while uploads:
            settle()
        try:
            return commit(list(sets.values()))
        except UploadExpired as exc:
            msg = (
                "the update took so long that what was uploaded first may have been removed "
                "as garbage; nothing was set. Update in several parts"
            )
            raise StoreUnavailableError(msg) from exc

    def swap(
        self, transform: Transform, *, alone: bool = False, settle: bool = False, ticket: int = -1
    ) -> Known | None:
        """Change the index otherwise than by a commit; return what stands, None if nothing was done.

        See `Swap`.
        """
        self.created()
        swap = Swap(transform, alone=alone, settle=settle, ticket=ticket)

        def made() -> Known | None:
            with self.runtime.still_wanted():
                self.committer.submit(swap)
            self.committer.work()
            return swap.verdict.result()

        return self.runtime.call(made)


class _Gone(Exception):  # noqa: N818 - an answer to this module
    """The bytes of a key's entry aren't there; `newer` is a state in which it has another one."""

    def __init__(self, key: str, newer: Known) -> None:
        super().__init__(key)
        self.key = key
        self.newer = newer


class _Orphan:
    """Stands where a parent's backend was."""

    def __getattr__(self, verb: str) -> Any:
        raise _orphaned()


def _orphaned() -> ClosedError:
    return ClosedError(
        "this iteration, or lock, was begun before a fork, and belongs to the parent process; "
        "begin it anew in the child"
    )


def entries(state: State, keys: Sequence[str]) -> list[tuple[str, Entry]]:
    """Return the keys with their entries; raise KeyNotFoundError for all that are missing."""
    found = list(zip(keys, state.entries(keys), strict=True))
    missing = [key for key, entry in found if entry is None]
    if missing:
        raise KeyNotFoundError(dict.fromkeys(missing))
    return cast("list[tuple[str, Entry]]", found)


def _windows(blocks: Iterator[Locations]) -> Iterator[Locations]:
    """Yield what to fetch at once: little at first, so that the first value is there soon."""
    least = min(_WINDOW_REQUESTS, _WINDOW_ITEMS)
    some: list[Locations] = []
    for block in blocks:
        some.append(block)
        if sum(map(len, some)) >= least:
            yield from _limited(Locations.joined(some))
            some = []
            least = min(2 * least, _WINDOW_ITEMS)
    if some:
        yield from _limited(Locations.joined(some))


def _limited(block: Locations) -> Iterator[Locations]:
    """Yield it, in parts if it is too large: in values, in bytes or in blobs."""
    if (
        len(block) <= _WINDOW_ITEMS
        and len(set(block.sources)) <= _WINDOW_REQUESTS
        and sum(block.lengths) <= _WINDOW_BYTES
    ):
        yield block
        return
    start, size, sources = 0, 0, set[str | bytes]()
    for at, (source, length) in enumerate(zip(block.sources, block.lengths, strict=True)):
        size += length
        sources.add(source)
        if at > start and (
            at - start == _WINDOW_ITEMS or size > _WINDOW_BYTES or len(sources) > _WINDOW_REQUESTS
        ):
            yield block[start:at]
            start, size, sources = at, length, {source}
    yield block[start:]
