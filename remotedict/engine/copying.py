"""Copying: a whole dictionary, history included, from one store to another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import xxhash
from msgspec.structs import replace

from remotedict.backend import NOT_MODIFIED, PIECE_BYTES, BlobNotFound, PreconditionFailed
from remotedict.engine.garbage import BATCH, owner
from remotedict.engine.inspection import Inspection
from remotedict.engine.reader import stream
from remotedict.engine.replacing import current, replace_index
from remotedict.engine.runtime import log
from remotedict.errors import (
    CorruptBlobError,
    DestinationError,
    HistoryGapError,
    StoreUnavailableError,
)
from remotedict.pure import plan
from remotedict.pure.records import Commit, Index, Unlock, decode, encode
from remotedict.pure.references import References

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remotedict.backend import BlobInfo, Buffer
    from remotedict.engine.core import Engine
    from remotedict.engine.index import Known
    from remotedict.engine.values import Progress

_ATTEMPTS = 10
_SMALL = 256 * 1024  # so many of such blobs are on their way at once: 16 MiB
_WINDOW = 8  # of larger ones, and of pieces: 64 MiB
_SAMPLE = 16  # blobs that are asked whose they are


@dataclass(frozen=True, kw_only=True)
class CopyReport:
    """What `copy` and `export` have done.

    Attributes
    ----------
    commit : int
        The number of the newest commit that the copy has.
    keys : int
        How many keys it has.
    blobs, nbytes : int
        How many blobs were copied, and how many bytes they have together.
    skipped : int
        How many blobs were there already.
    missing : tuple of str
        Keys whose values are gone at the source. The copy has them as the source has.
    """

    commit: int
    keys: int
    blobs: int
    nbytes: int
    skipped: int
    missing: tuple[str, ...] = ()


class Copy:
    """Copies what one state of a dictionary needs, blob by blob, and its index last.

    All blobs but the index never change, and no name is used twice: so what is there already
    needn't be copied again, whoever put it there.

    1. Others write to the source: one state of it is copied, and what came later is not. If bytes
       of that state go meanwhile, all goes on with a newer one.
    2. Others write to the destination, or copy to it: its index is replaced by compare-and-swap.
    3. It is interrupted: there is no index, or the old one, and what was copied is found again.
    4. Somebody vacuums the destination, which may take what isn't named yet: a vacuum begins with
       a new horizon, so the compare-and-swap is lost, and a destination whose horizon isn't that
       of the source is refused.

    Parameters
    ----------
    source, target : Engine
        Where from, and where to.
    progress : callable
        Is told how many bytes are there.
    """

    def __init__(self, source: Engine, target: Engine, progress: Progress) -> None:
        self._source = source
        self._target = target
        self._runtime = source.runtime
        self._progress = progress
        self._blobs = self._nbytes = self._skipped = 0

    def run(self) -> CopyReport:
        """Do it."""
        for _ in range(_ATTEMPTS):
            try:
                report = self._attempt()
            except (BlobNotFound, PreconditionFailed) as exc:
                log.debug("the copy goes on with a newer state: %s", exc)
                continue
            if report:
                return report
        msg = (
            f"the source or the destination changed {_ATTEMPTS} times in a row while it was copied; "
            "copy again: what has arrived is not copied again"
        )
        raise StoreUnavailableError(msg)

    def _attempt(self) -> CopyReport | None:
        known = self._source.index.since(self._source.index.ticket())
        index = known.index
        if index is None:
            msg = f"there is no dictionary {self._source.layout.folder!r} to be copied"
            raise DestinationError(msg)
        keyring, path = self._source.keyring, self._target.layout.index
        decode(encode(index, (), keyring), Index, path, self._target.keyring)  # can it be read?
        etag, old = self._destination(known, index)
        references = References(known.state, index, self._source.commits.log(index))
        there = {
            reference: info.size
            for info in _listing(self._target)
            if (reference := self._target.layout.reference(info.name))
        }
        if old is None:
            self._check_leftovers(index, there)
        wanted = self._transfer(references, there)
        if absent := [blob for blob in references.named if blob not in wanted]:
            self._check_moved_on(known)
            path = self._source.layout.path(absent[0])
            raise CorruptBlobError(path, "the index names it, but it isn't there")
        inspection = Inspection(self._source, index.dictionary, deep=False)
        missing = inspection.run(known.state, lambda _: None)
        if missing:
            self._check_moved_on(known)
        new = self._copied(known, index, old)
        etag = replace_index(self._target, new, etag, keyring, fresh=new.incarnation != _of(old))
        target = self._target.index
        target.accept(new, etag, *target.reader.load(new, {}))
        return CopyReport(
            commit=index.seq,
            keys=len(known.state),
            blobs=self._blobs,
            nbytes=self._nbytes,
            skipped=self._skipped,
            missing=tuple(missing),
        )

    def _check_moved_on(self, known: Known) -> None:
        """Begin again if what is missing may be so because the source has a newer state."""
        if self._source.index.since(self._source.index.ticket()).etag != known.etag:
            raise PreconditionFailed(self._source.layout.index)

    # -- where to ---------------------------------------------------------------------------

    def _destination(self, known: Known, index: Index) -> tuple[str | None, Index | None]:
        """Return the etag of the destination's index, and what it says; None if it has none.

        Raises
        ------
        DestinationError
            It isn't an older copy of this dictionary, nor empty.
        """
        path = self._target.layout.index
        got = current(self._target)
        if got is None:
            return None, None
        old, _ = decode(got.data, Index, path, self._target.keyring)
        if old.seq == 0 and old.dictionary != index.dictionary:
            return got.etag, None  # it was opened, and nothing else
        if old.dictionary != index.dictionary:
            raise self._refused("is another dictionary: copy to an empty place, or delete it first")
        if old.incarnation == index.incarnation:
            raise self._refused("is the source itself, or was copied by other means")
        if old.horizon > index.horizon or not self._is_older(old, known):
            raise self._refused(
                "is a copy of the same dictionary to which others have written since, or which is "
                "newer than the source; copy to an empty place"
            )
        return got.etag, old

    def _is_older(self, old: Index, known: Known) -> bool:
        """Tell whether an index is one that the source had once, or a copy of that."""
        seq, head = old.seq, old.head
        if old.tail and head == _unlocking(old.tail[-2].id if old.tail[1:] else old.base):
            seq, head = seq - 1, old.tail[-2].id if old.tail[1:] else old.base
        if seq > known.state.seq:
            return False
        if seq == 0:
            return True
        if there := known.state.commit_id(seq):
            return there == head
        try:
            return next(self._source.commits.after(seq - 1, known, seq)).id == head
        except HistoryGapError:
            return any(stamp.id == head for stamp in known.state.stamps())

    def _check_leftovers(self, index: Index, there: dict[str, int]) -> None:
        """Refuse a place in which something else lies than an unfinished copy."""
        for reference in islice(there, _SAMPLE):
            path, size = self._target.layout.path(reference), there[reference]
            if not size:
                continue
            whose = owner(self._target.backend, path, reference, size, self._source.keyring)
            if whose != index.dictionary:
                raise self._refused(
                    f"has blobs of another dictionary, such as {path!r}, though no index: that may "
                    "be repaired. Copy to an empty place, or delete them first"
                )

    def _refused(self, why: str) -> DestinationError:
        return DestinationError(f"the destination, {self._target.layout.folder!r}, {why}")

    # -- what -------------------------------------------------------------------------------

    def _transfer(self, references: References, there: dict[str, int]) -> set[str]:
        """Copy what is needed and isn't there; return what is now."""
        arrived: set[str] = set()
        listing = iter(_listing(self._source))
        while batch := list(islice(listing, BATCH)):
            ours = [(self._source.layout.reference(info.name), info) for info in batch]
            named = [(reference, info) for reference, info in ours if reference]
            needed = references.needed([reference for reference, _ in named])
            wanted = [one for one, need in zip(named, needed, strict=True) if need]
            new = [(ref, info) for ref, info in wanted if there.get(ref) != info.size]
            self._skipped += len(wanted) - len(new)
            self._progress(sum(info.size for _, info in wanted) - sum(i.size for _, i in new))
            for size, window, low in ((_SMALL, 64, -1), (PIECE_BYTES, _WINDOW, _SMALL)):
                some = [one for one in new if low < one[1].size <= size]
                self._count(self._runtime.map(self._one, some, window=window))
            self._count(map(self._large, [one for one in new if one[1].size > PIECE_BYTES]))
            arrived.update(reference for reference, _ in wanted)
        return arrived

    def _count(self, sizes: Iterable[int]) -> None:
        for size in sizes:
            self._blobs += 1
            self._nbytes += size
            self._progress(size)

    def _one(self, wanted: tuple[str, BlobInfo]) -> int:
        """Copy a blob in a thread for leaf work; return its size."""
        reference, info = wanted
        got = self._source.backend.get(info.name)
        assert got is not NOT_MODIFIED  # noqa: S101 - for the type checker
        if len(got.data) != info.size:
            raise BlobNotFound(info.name)  # it isn't what was listed
        self._target.backend.put(self._target.layout.path(reference), got.data)
        return info.size

    def _large(self, wanted: tuple[str, BlobInfo]) -> int:
        """Copy a blob in pieces."""
        reference, info = wanted
        self._target.backend.put(self._target.layout.path(reference), _Pieces(self._source, info))
        return info.size

    def _copied(self, known: Known, index: Index, old: Index | None) -> Index:
        """Return the index of the copy: without locks, whose leases are the source's.

        A newer state of a copy that nobody has changed is what those who follow it expect: it
        keeps its incarnation. One with a commit that the source hasn't does not.
        """
        runtime = self._target.runtime
        unchanged = old is not None and (known.state.commit_id(old.seq) or old.head) == old.head
        incarnation = old.incarnation if old and unchanged else runtime.uuid()
        revision = max(index.revision, old.revision if old else 0) + 1
        index = replace(index, incarnation=incarnation)
        if known.state.locks:
            unlocked = [Unlock(key, lock.epoch) for key, lock in known.state.locks.items()]
            commit = Commit(
                _unlocking(index.head),
                index.seq + 1,
                int(runtime.time() * 1e6),
                self._target.tuning.author,
                "copied",
                list(unlocked),
            )
            index, segment = plan.extend(index, [commit], runtime.uuid, self._source.keyring)
            if segment:
                path = self._target.layout.path(segment.ref.blob)
                self._target.backend.put(path, segment.blob)
        return replace(index, revision=revision)


class _Pieces(Iterable["Buffer"]):
    """The bytes of a large blob, as they arrive; anew each time they are sent."""

    def __init__(self, source: Engine, info: BlobInfo) -> None:
        self._arriving = partial(
            stream, source.backend, source.runtime, info.name, 0, info.size, _WINDOW
        )
        self._info = info

    def __iter__(self) -> Iterator[Buffer]:
        left = self._info.size
        for piece in self._arriving():
            left -= len(piece)
            yield piece
        if left:
            raise BlobNotFound(self._info.name)  # it isn't what was listed


def _listing(engine: Engine) -> Iterator[BlobInfo]:
    for prefix in engine.layout.prefixes:
        yield from engine.backend.list(prefix)


def _of(index: Index | None) -> bytes:
    return index.incarnation if index else b""


def _unlocking(head: bytes) -> bytes:
    """Return the id of the commit that takes the locks off a copy: the next copy knows it by it."""
    return xxhash.xxh3_128_digest(head + b"unlocked in a copy")
