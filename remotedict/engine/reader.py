"""Reading the index side: segments and checkpoints, and the states that they add up to."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from msgspec.structs import replace

from remotedict.backend import NOT_MODIFIED, PIECE_BYTES
from remotedict.engine.runtime import IO_THREADS
from remotedict.errors import CorruptBlobError, DictionaryChangedError
from remotedict.pure.pieces import Pieces
from remotedict.pure.plan import lay_out, resolve
from remotedict.pure.records import (
    Checkpoint,
    CheckpointRef,
    Commit,
    Index,
    Log,
    LogRef,
    Segment,
    SegmentRef,
    check_contiguous,
    decode,
)
from remotedict.pure.state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from remotedict.backend import Buffer
    from remotedict.engine.blobs import Blobs
    from remotedict.engine.patient import Patient
    from remotedict.engine.runtime import Runtime
    from remotedict.pure.keyring import Keyring
    from remotedict.pure.naming import Layout

    _Sealed = TypeVar("_Sealed", Segment, Checkpoint, Log)


class Reader:
    """Reads what an index names. Thread-safe; it has no state of its own."""

    def __init__(
        self, blobs: Blobs, layout: Layout, runtime: Runtime, keyring: Keyring | None = None
    ) -> None:
        self.blobs = blobs
        self.keyring = keyring
        self._layout = layout
        self._runtime = runtime

    def segment(self, ref: SegmentRef, index: Index) -> Segment:
        """Return a segment that `index` names, with every place named in full."""
        path, record, _data = self.record(ref, Segment, index)
        check_contiguous(record.commits, ref.first, path)
        if len(record.commits) != ref.last - ref.first + 1:
            raise CorruptBlobError(path, "it doesn't hold the commits that the index says")
        return replace(record, commits=resolve(record.commits, ref.blob))

    def segments(self, refs: Iterable[SegmentRef], index: Index, known: dict[str, Segment]) -> None:
        """Add to `known` those of the segments that it lacks, read in parallel."""
        wanted = [ref for ref in refs if ref.blob not in known]
        # A large segment is itself read in parallel pieces: not in a thread for leaf work.
        futures = [
            self._runtime.spawn(lambda ref=ref: self.segment(ref, index))  # type: ignore[misc]
            for ref in wanted[1:]
        ]
        for ref in wanted[:1]:
            known[ref.blob] = self.segment(ref, index)
        for ref, future in zip(wanted[1:], futures, strict=True):
            known[ref.blob] = future.result()

    def load(self, index: Index, known: dict[str, Segment]) -> tuple[State, State]:
        """Return the state of `index`, read from its checkpoint on, and the settled one."""
        state = State.empty()
        if index.checkpoint:
            path, record, data = self.record(index.checkpoint, Checkpoint, index)
            state = State.from_checkpoint(record, data, path)
            if state.seq != index.checkpoint.seq:
                raise CorruptBlobError(path, f"it is of commit {state.seq}")
        self.segments(index.segments, index, known)
        for ref in index.segments:
            state = self._append(state, known[ref.blob].base, known[ref.blob].commits)
        settled = state
        return self._append(state, index.base, index.tail), settled

    def advance(
        self, state: State, settled: State, old: Index, new: Index, known: dict[str, Segment]
    ) -> tuple[State, State]:
        """Return the states of `new`, given those of `old`; `known` has the segments `wanted`."""
        if new.settled != old.settled:
            for ref in new.segments:
                if ref.last <= old.settled:
                    continue
                if segment := known.get(ref.blob):
                    base, commits = segment.base, segment.commits
                else:
                    base, commits = old.base, resolve(lay_out(old.tail)[0], ref.blob)
                state.relocate([commit for commit in commits if commit.seq <= state.seq])
                settled = state = self._append(state, base, commits)
        return self._append(state, new.base, new.tail), settled

    @staticmethod
    def wanted(old: Index, new: Index) -> list[SegmentRef] | None:
        """Return the segments needed to come from `old` to `new`; None if they don't reach back.

        They must do so not only for the commits that are new, but also for those that have left
        the tail: else nobody would say where their inline values have gone.
        """
        if new.moved != old.moved:
            return None  # what is known of places holds no longer
        left = [ref for ref in new.segments if ref.last > old.settled]
        first = left[0].first if left else new.settled + 1
        if first > old.settled + 1:
            return None
        if left and (left[0].first, left[0].last) == (old.settled + 1, old.seq):
            # It holds exactly the tail that is known. (It can't be a merge: the first segment
            # with any commit of that tail had all of it.)
            del left[0]
        return left

    def _append(self, state: State, base: bytes, commits: Iterable[Commit]) -> State:
        """Apply those of `commits` that are new; check that they follow what is known.

        `base` is the id of the commit before the first of them.
        """
        previous = base
        for commit in commits:
            if commit.seq == state.seq + 1:
                self._check_same(previous, state)
                state = state.apply(commit)
            previous = commit.id
        self._check_same(previous, state)
        return state

    def _check_same(self, commit_id: bytes, state: State) -> None:
        if commit_id != state.head:
            msg = (
                f"dictionary {self._layout.folder!r} has another commit {state.seq} than the one "
                "seen before: it went back in time. Open a new handle to accept that"
            )
            raise DictionaryChangedError(msg)

    def record(
        self, ref: SegmentRef | CheckpointRef | LogRef, cls: type[_Sealed], index: Index
    ) -> tuple[str, _Sealed, memoryview]:
        """Return the path of a blob that `index` names, its record, and its data area.

        Raises
        ------
        CorruptBlobError
            It can't be decoded, or belongs to another dictionary.
        """
        path = self._layout.path(ref.blob)
        with self.blobs.trusted(path):
            record, data = decode(self.blobs.read(path, 0, ref.size), cls, path, self.keyring)
            if record.dictionary != index.dictionary:
                raise CorruptBlobError(path, "it belongs to another dictionary")
        return path, record, data


def take_all(pieces: Iterator[Buffer]) -> None:
    """Take what arrives, and do nothing with it."""
    deque(pieces, maxlen=0)


def stream(
    backend: Patient,
    runtime: Runtime,
    path: str,
    offset: int,
    length: int,
    window: int = IO_THREADS,
) -> Iterator[Buffer]:
    """Yield a range of a blob in pieces, as they arrive; so many are on their way at once.

    Raises
    ------
    BlobNotFound
        There is no such blob.
    CorruptBlobError
        It is shorter than that, or an answer was cut short.
    """
    end = offset + length
    # None of them is made before its turn: a hostile length must cost no memory.
    spans = ((at, min(PIECE_BYTES, end - at)) for at in range(offset, end, PIECE_BYTES))

    def one(span: tuple[int, int]) -> Buffer:
        got = backend.get(path, range=span)
        assert got is not NOT_MODIFIED  # noqa: S101 - for the type checker
        if len(got.data) != span[1]:  # or the next piece would stand in the wrong place
            raise CorruptBlobError(path, f"it ends {span[1] - len(got.data)} bytes too early")
        return got.data

    # As many at once as there are threads: what is read further ahead only takes memory.
    return iter((partial(runtime.map, window=window) if length > PIECE_BYTES else map)(one, spans))


def read_range(backend: Patient, runtime: Runtime, path: str, offset: int, length: int) -> Buffer:
    """Return a range of a blob in one; see `read_pieces`."""
    data = read_pieces(backend, runtime, path, offset, length)
    return bytes(data) if isinstance(data, Pieces) else data


def read_pieces(
    backend: Patient,
    runtime: Runtime,
    path: str,
    offset: int,
    length: int,
    use: Callable[[Iterator[Buffer]], object] = take_all,
) -> Buffer | Pieces:
    """Return a range of a blob; a large one travels in parallel pieces.

    Parameters
    ----------
    backend, runtime
        What to ask, and what runs it.
    path, offset, length
        What to read.
    use : callable, optional
        Is given the pieces as they arrive, and takes them all.

    Raises
    ------
    BlobNotFound
        There is no such blob.
    CorruptBlobError
        It is shorter than that.
    """
    parts: list[Buffer] = []

    def arriving() -> Iterator[Buffer]:
        for part in stream(backend, runtime, path, offset, length):
            parts.append(part)
            yield part

    use(arriving())
    return parts[0] if len(parts) == 1 else Pieces(parts)
