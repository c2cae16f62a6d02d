"""A survey of a store: what of a dictionary is there and whole, whatever its index says."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from remotedict.backend import PIECE_BYTES, BlobNotFound
from remotedict.engine.reader import read_range, stream
from remotedict.errors import (
    CorruptBlobError,
    DecryptionError,
    FormatVersionError,
    SignatureError,
)
from remotedict.pure import codec, finding, naming
from remotedict.pure.chain import Base, Link
from remotedict.pure.records import (
    Checkpoint,
    Delete,
    Log,
    Range,
    Segment,
    Set,
    check_contiguous,
    decode,
    glean,
)
from remotedict.pure.state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from remotedict.backend import BlobInfo
    from remotedict.engine.core import Engine
    from remotedict.engine.values import Progress
    from remotedict.pure.codec import ValueHeader
    from remotedict.pure.records import Commit, Place

    _Sealed = TypeVar("_Sealed", Segment, Checkpoint, Log)

_T = TypeVar("_T")
_AT_ONCE = 8  # shared blobs that are in memory
_SAMPLE = 64  # values that are asked whose they are, if nothing else tells


class Found(NamedTuple):
    """A value that says itself whose it is.

    `born` is the commit that its writer knew when it began to upload. `last` is, of what was inline
    in a segment, the commit that names it, or is likely to; else -1.
    """

    born: int
    last: int
    time: float
    blob: str
    offset: int
    place: Place
    header: ValueHeader


class Survey:
    """Reads what there is, from the store itself and past all caches.

    Parameters
    ----------
    engine : Engine
        Of the dictionary.
    dictionary : bytes, optional
        Its id, if that is known. Else it is the one that most segments have, or else the newest
        checkpoint, or else most of the newest values; empty if there is none of them.
    progress : callable
        Is told of each blob that is read.

    Attributes
    ----------
    blobs : dict
        All blobs whose names are ours, by reference.
    links : list of Link
        The segments that are whole.
    damaged : dict
        What is wrong with a blob, by path.
    foreign : int
        How many segments, checkpoints and values are of another dictionary.
    horizon : int
        The greatest that any of them tells of.
    hints : dict
        By generation, the commit that seems to have named it, by what damaged segments seem to
        say. They are believed about the order of values that are whole.
    touched : dict
        By key, the newest commit that seems to have changed it, by the same, with the generation
        that it seems to have since (none for a deleted key). This can only be reported.
    """

    def __init__(self, engine: Engine, dictionary: bytes | None, progress: Progress) -> None:
        self._backend = engine.backend
        self._layout = engine.layout
        self._runtime = engine.runtime
        self._keyring = engine.keyring
        self._untrusted: CorruptBlobError | None = None
        self._progress = progress
        self.damaged: dict[str, str] = {}
        self.foreign = 0
        self.hints: dict[bytes, int] = {}
        self.touched: dict[str, tuple[int, bytes]] = {}
        self.blobs: dict[str, BlobInfo] = {}
        for prefix in engine.layout.prefixes:
            for info in engine.backend.list(prefix):
                if reference := engine.layout.reference(info.name):
                    self.blobs[reference] = info
        segments = list(self._several(self._link, self._of("s")))
        owners = Counter(owner for owner, _, _ in segments)
        self.dictionary = dictionary or self._owner(owners)
        if self._untrusted and not dictionary and not owners:
            raise self._untrusted  # with another key nothing is to be trusted, and all is lost
        self.foreign += sum(n for owner, n in owners.items() if owner != self.dictionary)
        mine = [(link, horizon) for owner, link, horizon in segments if owner == self.dictionary]
        self.links = [link for link, _ in mine]
        self.horizon = max([horizon for _, horizon in mine], default=0)

    @property
    def seq(self) -> int:
        """The newest commit that any name tells of."""
        return max(map(naming.born, self.blobs), default=0)

    def size(self, path: str) -> int:
        """Return how many bytes the blob at `path` has; 0 if there is none of ours."""
        info = self.blobs.get(self._layout.reference(path) or "")
        return info.size if info else 0

    # -- the index side ---------------------------------------------------------------------

    def bases(self) -> Iterator[tuple[Base, State]]:
        """Yield the checkpoints that are whole, the newest first, and their states."""
        for reference in reversed(self._of("c")):
            self._progress(1)
            record = self._record(reference, Checkpoint)
            if record is None:
                continue
            checkpoint, data = record
            if checkpoint.dictionary != self.dictionary:
                self.foreign += 1
                continue
            self.horizon = max(self.horizon, checkpoint.horizon)
            path = self._layout.path(reference)
            state = State.from_checkpoint(checkpoint, data, path)
            time = self.blobs[reference].time
            certain = naming.born(reference)
            yield Base(checkpoint.seq, state.head, reference, time, certain), state

    def _link(self, reference: str) -> list[tuple[bytes, Link, int]]:
        """Return whose a segment is, what it links, and its horizon; nothing if it isn't whole."""
        record = self._record(reference, Segment)
        if record is None:
            return []
        segment, info = record[0], self.blobs[reference]
        link = Link.of(
            segment.commits,
            segment.base,
            certain=naming.born(reference),
            blob=reference,
            size=info.size,
            time=info.time,
        )
        return [(segment.dictionary, link, segment.horizon)]

    def _record(self, reference: str, cls: type[_Sealed]) -> tuple[_Sealed, memoryview] | None:
        """Return what is in a blob; None, and what is wrong, if that isn't whole."""
        info = self.blobs[reference]
        try:
            data = read_range(self._backend, self._runtime, info.name, 0, info.size)
            record, area = decode(data, cls, info.name, self._keyring)
            if isinstance(record, Segment):
                _check_commits(record, info.name)
        except BlobNotFound:  # deleted since
            return None
        except CorruptBlobError as exc:
            self.damaged[info.name] = exc.reason
            if isinstance(exc, SignatureError | DecryptionError):
                self._untrusted = exc
            return None
        return record, area

    def _owner(self, owners: Counter[bytes]) -> bytes:
        """Return the id of the dictionary that all this is of, by what it says itself."""
        if not owners:
            for reference in reversed(self._of("c")):
                record = self._record(reference, Checkpoint)
                if record:
                    return record[0].dictionary
            newest = [*self._of("v"), *self._of("p")][-_SAMPLE:]
            owners = Counter(self._runtime.map(self._claimed, newest))
            del owners[b""]
        return owners.most_common(1)[0][0] if owners else b""

    def _claimed(self, reference: str) -> bytes:
        """Return whose a value says that it is."""
        info = self.blobs[reference]
        try:
            size = min(info.size, codec.START_BYTES)
            head = stream(self._backend, self._runtime, info.name, 0, size)
            return codec.dictionary_of(b"".join(head)) or b""
        except (BlobNotFound, CorruptBlobError):
            return b""

    # -- values -----------------------------------------------------------------------------

    def values(self, wanted: Callable[[str], bool]) -> Iterator[Found]:
        """Yield the whole values in those packs, segments and blobs of their own that are wanted."""
        for kind in "ps":
            yield from self._several(self._shared, [ref for ref in self._of(kind) if wanted(ref)])
        own = [ref for ref in self._of("v") if wanted(ref)]
        # What is itself read in parallel pieces must not wait in a thread for leaf work.
        small = [ref for ref in own if self.blobs[ref].size <= PIECE_BYTES]
        large = [ref for ref in own if self.blobs[ref].size > PIECE_BYTES]
        for one in self._runtime.map(self._own, small):
            yield from one
        for reference in large:
            yield from self._own(reference)

    def _shared(self, reference: str) -> list[Found]:
        info = self.blobs[reference]
        try:
            data = read_range(self._backend, self._runtime, info.name, 0, info.size)
        except (BlobNotFound, CorruptBlobError):  # deleted, or cut, since it was listed
            return []
        born, named = naming.born(reference), reference[0] == "s"
        if named:
            self.hint(getattr(glean(data, Segment), "commits", ()))
        return [
            Found(
                born,
                self.hints.get(head.generation, born) if named else -1,
                info.time,
                reference,
                at,
                Range(reference, at, length),
                head,
            )
            for at, length, head in finding.values(data, info.name, self._keyring)
            if self._is_mine(head)
        ]

    def hint(self, commits: Iterable[Commit]) -> None:
        """Learn what can be learnt from commits that can't be believed."""
        for commit in commits:
            for change in commit.changes:
                if isinstance(change, Set):
                    self.hints[change.generation] = commit.seq
                if isinstance(change, Set | Delete):
                    generation = change.generation if isinstance(change, Set) else b""
                    before = self.touched.get(change.key, (0, b""))
                    self.touched[change.key] = max(before, (commit.seq, generation))

    def _own(self, reference: str) -> list[Found]:
        """Return the value in a blob of its own, if it is whole and in its place."""
        info, born = self.blobs[reference], naming.born(reference)
        self._progress(1)
        try:
            arriving = stream(self._backend, self._runtime, info.name, 0, info.size, 4)
            header, length = finding.measure(arriving, info.name, self._keyring)
        except BlobNotFound:
            return []
        except (CorruptBlobError, FormatVersionError) as exc:
            self.damaged[info.name] = exc.reason
            return []
        if not self._is_mine(header):
            return []
        if (
            reference
            != f"v:{naming.escape(header.about.key)}/{naming.unique(born, header.generation)}"
            or length != info.size
        ):
            self.damaged[info.name] = (
                f"it has a value of key {header.about.key!r} under another name"
            )
            return []
        return [Found(born, -1, info.time, reference, 0, length, header)]

    def _is_mine(self, header: ValueHeader) -> bool:
        mine = header.dictionary == self.dictionary
        self.foreign += not mine
        return mine

    # -- reading ----------------------------------------------------------------------------

    def _of(self, kind: str) -> list[str]:
        """Return the blobs of a kind, the oldest first."""
        named = [reference for reference in self.blobs if reference[0] == kind]
        return sorted(named, key=lambda ref: (naming.born(ref), self.blobs[ref].time))

    def _several(self, fn: Callable[[str], list[_T]], references: Sequence[str]) -> Iterator[_T]:
        """Apply what reads a blob, perhaps in parallel pieces, to a few at a time."""
        for at in range(0, len(references), _AT_ONCE):
            futures = [
                self._runtime.spawn(partial(fn, reference))
                for reference in references[at : at + _AT_ONCE]
            ]
            for future in futures:
                self._progress(1)
                yield from future.result()


def _check_commits(segment: Segment, path: str) -> None:
    if not segment.commits:
        raise CorruptBlobError(path, "it has no commits")
    check_contiguous(segment.commits, segment.commits[0].seq, path)
