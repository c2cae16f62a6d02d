"""The records on the store, and their frame: strictly decoded, never pickled.

Every blob of the index side is one *frame*: 32 bytes of header, a data area, and one msgpack
record. docs/format.md says every byte.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Annotated, TypeVar, cast

import msgspec
import xxhash

from remotedict.errors import CorruptBlobError, FormatVersionError, RemoteDictError
from remotedict.pure.keyring import check_flags
from remotedict.pure.naming import REFERENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from remotedict.pure.keyring import Keyring
    from remotedict.pure.lz4 import Buffer

FORMAT_VERSION = 1
FEATURES: frozenset[str] = frozenset()
"""The features that this version can read; an index may require others of newer ones."""

_HEADER = struct.Struct("<4sHBBQQQ")
HEADER_BYTES = _HEADER.size
_MAGIC = b"RDct"
INDEX, SEGMENT, CHECKPOINT, LOG = 1, 2, 3, 4


class Record(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True, gc=False):
    """The base of all records: a msgpack array of the fields in their order.

    They are trees, and a commit may have a million: the garbage collector need not visit them.
    """


Id = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
COUNT_MAX = (1 << 62) - 1
"""The largest number that counts anything: two of them add up to what still fits into 64 bits."""
Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]
Reference = Annotated[str, msgspec.Meta(pattern=rf"^({REFERENCE})?\Z")]
"""What names an immutable blob, see `naming.Layout`; "" is none, or the blob one stands in."""


class Range(Record, frozen=True):
    """`length` bytes at `offset` of a blob; a blob of ``""`` is the one this record is in."""

    blob: Reference
    offset: Count
    length: Count


Place = bytes | Range | Count
"""Where a value's bytes are: inline; a range of a blob; or the length of a blob of its own."""


class Facts(Record, frozen=True):
    """What is known of a value without reading it."""

    type: str
    nbytes: Count
    shape: tuple[int, ...] | None = None
    dtype: str | None = None


class Set(Record, frozen=True, tag="set"):
    """The key now has this generation, as its version `version`.

    `born` is the newest commit that its writer knew when the upload began. Bytes that were in the
    store already, for a copy or a revert, come from a generation listed under the key `origin`.
    """

    key: str
    version: Count
    generation: Id
    born: Count
    place: Place
    facts: Facts
    origin: str | None


class Delete(Record, frozen=True, tag="del"):
    """The key is gone; that, too, is a version."""

    key: str
    version: Count


class Annotate(Record, frozen=True, tag="meta"):
    """The key's metadata is this JSON object; "" for none. Value and version stay."""

    key: str
    version: Count
    metadata: str


class Forget(Record, frozen=True, tag="forget"):
    """The key was never there: all its versions are off the list, and it begins anew."""

    key: str


class Drop(Record, frozen=True, tag="drop"):
    """Old versions are off the list.

    For each key all items older than the one that was current as of commit `before`, but for the
    last `versions` versions up to that one.
    """

    before: Count
    versions: Annotated[int, msgspec.Meta(ge=1)]


class Holder(Record, frozen=True):
    """Who took a lock, for people to read; `until` is in microseconds of UTC, or None."""

    host: str
    pid: int
    author: str
    until: int | None


class Lock(Record, frozen=True, tag="lock"):
    """The key is locked; the id of the commit is the epoch."""

    key: str
    holder: Holder


class Unlock(Record, frozen=True, tag="unlock"):
    """The lock of this epoch ends: released by its holder, or superseded."""

    key: str
    epoch: Id


Change = Set | Delete | Annotate | Forget | Lock | Unlock | Drop


class Commit(Record, frozen=True):
    """Changes that happen at once; `time` is in microseconds of UTC and for people only."""

    id: Id
    seq: Count
    time: int
    author: str
    comment: str
    changes: list[Change]


class SegmentRef(Record, frozen=True):
    """A segment as the index names it: commits `first` to `last`."""

    blob: Reference
    first: Count
    last: Count
    size: Count


class CheckpointRef(Record, frozen=True):
    """A checkpoint as the index names it: the whole state as of commit `seq`."""

    blob: Reference
    seq: Count
    size: Count


class LogRef(Record, frozen=True):
    """A log as the index names it: commits `first` to `last`, which the checkpoint covers."""

    blob: Reference
    first: Count
    last: Count
    size: Count


class Index(Record, frozen=True):
    """The one mutable record.

    `revision` counts its writes, also those that add no commit. `base` is the id of the commit
    before the first one of `tail` (empty before the first commit of all). `history` is how many
    versions of a key are kept: 1 for the newest alone, None for all. `moved` counts how often
    listed bytes were moved: a reader that knows another number loads the state anew.
    """

    dictionary: Id
    incarnation: Id
    features: list[str]
    revision: Count
    seq: Count
    horizon: Count
    horizon_seq: Count
    moved: Count
    history: Annotated[int, msgspec.Meta(ge=1)] | None
    base: bytes
    checkpoint: CheckpointRef | None
    log: LogRef | None
    segments: list[SegmentRef]
    tail: list[Commit]

    @property
    def head(self) -> bytes:
        """The id of the newest commit."""
        return self.tail[-1].id if self.tail else self.base

    @property
    def settled(self) -> int:
        """The newest commit that isn't in the tail."""
        return self.seq - len(self.tail)


class Segment(Record, frozen=True):
    """Commits that left the index; `base` is the id of the commit before its first.

    `previous` is the segment (or checkpoint) that stood before it when it was written, "" for
    none. Merges and checkpoints may have taken its place since; `first` and `last` of what is
    there tell how the pieces fit.
    """

    dictionary: Id
    incarnation: Id
    previous: Reference
    base: bytes
    horizon: Count
    commits: list[Commit]


class Log(Record, frozen=True):
    """Where the commits are that a checkpoint covers, as far as they are kept."""

    dictionary: Id
    incarnation: Id
    segments: list[SegmentRef]


class Column(Record, frozen=True):
    """One column of a checkpoint, as `packing` says; as it is where LZ4 can't make it smaller."""

    name: str
    dtype: str
    coding: Count
    stored: Count
    size: Count


class TableRecord(Record, frozen=True):
    """The columns of a checkpoint, and the lists whose items they number."""

    rows: Count
    tombstones: Count
    past: Count
    stamps: Count
    blobs: list[Reference]
    kinds: list[tuple[str, tuple[int, ...] | None, str | None]]
    texts: list[str]
    columns: list[Column]


class LockEntry(Record, frozen=True):
    """A lock in a checkpoint."""

    key: str
    epoch: Id
    holder: Holder


class Checkpoint(Record, frozen=True):
    """The whole state as of commit `seq`, with all past items that are listed, as columns.

    `recent` are the ids of the newest commits up to `seq`, oldest first. `floor` is the oldest
    commit as of which nothing was taken off the list. `next_order` is what the next new key's
    place in the iteration will be.
    """

    dictionary: Id
    incarnation: Id
    previous: Reference
    seq: Count
    horizon: Count
    floor: Count
    next_order: Count
    recent: list[Id]
    locks: list[LockEntry]
    table: TableRecord


_BEFORE_ID = b"\xc4\x10"  # in msgpack, behind a byte that says how many fields there are
_T = TypeVar("_T", bound=Record)
_KINDS: dict[type[Record], int] = {
    Index: INDEX,
    Segment: SEGMENT,
    Checkpoint: CHECKPOINT,
    Log: LOG,
}
_encoder = msgspec.msgpack.Encoder()
# Made here, in one thread: msgspec prepares a type when it is first decoded, and two threads that
# do so at once crash the interpreter (seen with 0.22.0: 36 times in 60 runs).
_decoders = {cls: msgspec.msgpack.Decoder(cls) for cls in _KINDS}


def size(record: msgspec.Struct) -> int:
    """Return how many bytes `record` takes, without its frame."""
    return len(_encoder.encode(record))


def encode(record: Record, data: Sequence[bytes] = (), keyring: Keyring | None = None) -> bytes:
    """Return the blob that holds `record`, and `data` in its data area."""
    kind = _KINDS[type(record)]
    payload: Sequence[Buffer] = [*data, _encoder.encode(record)]
    data_length = sum(map(len, data))
    flags = 0
    if keyring:
        flags = keyring.flags
        # In a segment's data area are values, each closed for itself: who wants one of them
        # reads only that.
        outside = len(data) if kind == SEGMENT else 0
        closed = b"".join(payload[outside:])
        length = sum(map(len, payload)) + keyring.overhead
        context = _HEADER.pack(_MAGIC, FORMAT_VERSION, kind, flags, length, data_length, 0)
        payload = [*payload[:outside], keyring.close(closed, context)]
    body = b"".join(payload)
    fields = (_MAGIC, FORMAT_VERSION, kind, flags, len(body), data_length)
    return _HEADER.pack(*fields, _checksum(fields, body)) + body


def dictionary_of(
    read: Callable[[int, int], bytes], size: int, keyring: Keyring | None
) -> bytes | None:
    """Return the id of the dictionary that a blob belongs to; None if it isn't such a frame.

    Parameters
    ----------
    read : callable
        Returns so many bytes of the blob from an offset on.
    size : int
        How many it has.
    keyring : Keyring, optional
        What opens it: what is signed or encrypted is read as a whole, all else in part.
    """
    head = read(0, HEADER_BYTES)
    if len(head) < HEADER_BYTES or not head.startswith(_MAGIC):
        return None
    _, _, kind, flags, _, data_length, _ = _HEADER.unpack(head)
    if flags:
        [cls] = [cls for cls, number in _KINDS.items() if number == kind] or [Log]
        whole = read(0, size)
        try:
            record, _ = decode(whole, cls, "", keyring)
        except RemoteDictError:
            return None
        return cast("Log", record).dictionary
    begin = read(HEADER_BYTES + data_length, 1 + len(_BEFORE_ID) + 16)
    return begin[-16:] if begin[1:].startswith(_BEFORE_ID) else None


def decode(
    blob: Buffer, cls: type[_T], path: str, keyring: Keyring | None = None
) -> tuple[_T, memoryview]:
    """Return the record of kind `cls` in the bytes of the blob at `path`, and its data area.

    Raises
    ------
    CorruptBlobError
        The bytes fail their magic, length, checksum, signature or decoding.
    FormatVersionError
        A newer remotedict wrote them.
    """
    if len(blob) < HEADER_BYTES:
        raise CorruptBlobError(path, f"it has only {len(blob)} bytes")
    *fields, checksum = _HEADER.unpack_from(blob)
    magic, version, kind, flags, length, data_length = fields
    if magic != _MAGIC:
        raise CorruptBlobError(path, f"it begins with {magic!r}")
    if version > FORMAT_VERSION:
        raise _of_version(version, blob, path)
    if length != len(blob) - HEADER_BYTES or data_length > length:
        have = len(blob) - HEADER_BYTES
        raise CorruptBlobError(path, f"it should hold {length} bytes but holds {have}")
    view = memoryview(blob)[HEADER_BYTES:]
    if checksum != _checksum(tuple(fields), view):
        raise CorruptBlobError(path, "its checksum is wrong")
    if kind != _KINDS[cls]:
        raise CorruptBlobError(path, f"it is not a {cls.__name__.lower()} (kind {kind})")
    check_flags(flags, keyring, path)
    data = view[:data_length]
    if keyring is None:
        view = view[data_length:]
    else:
        outside = data_length if kind == SEGMENT else 0
        opened = keyring.open(view[outside:], _HEADER.pack(*fields, 0), path)
        data, view = _parted(data, memoryview(opened), data_length - outside, path)
    try:
        record = cast("_T", _decoders[cls].decode(view))
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise CorruptBlobError(path, f"its record can't be decoded: {exc}") from exc
    if isinstance(record, Index):
        _check_index(record, path)
    return record, data


def _of_version(version: int, blob: Buffer, path: str) -> RemoteDictError:
    """Return what to say of a frame that says to be of a newer format."""
    magic, _, *fields, checksum = _HEADER.unpack_from(blob)
    mine = (magic, FORMAT_VERSION, *fields)
    if checksum == _checksum(mine, memoryview(blob)[HEADER_BYTES:]):
        return CorruptBlobError(path, "its format version is damaged: all else is of this one")
    return FormatVersionError(path, f"its format version is {version}, not {FORMAT_VERSION}")


def _parted(
    outside: memoryview, opened: memoryview, inside: int, path: str
) -> tuple[memoryview, memoryview]:
    """Return the data area, which may have been closed with the record, and the record."""
    if inside > len(opened):
        raise CorruptBlobError(path, "it holds less than it says")
    return (opened[:inside] if inside else outside), opened[inside:]


def glean(blob: Buffer, cls: type[_T]) -> _T | None:
    """Return the record that a damaged blob seems to have; None if there seems to be none.

    Nothing in it is to be believed, unless something else says so as well.
    """
    if len(blob) < HEADER_BYTES:
        return None
    data_length = _HEADER.unpack_from(blob)[5]
    try:
        return cast("_T", _decoders[cls].decode(memoryview(blob)[HEADER_BYTES + data_length :]))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _checksum(fields: tuple[object, ...], payload: bytes | memoryview) -> int:
    digest = xxhash.xxh3_64(_HEADER.pack(*fields, 0))
    digest.update(payload)
    return digest.intdigest()


def _check_index(index: Index, path: str) -> None:
    if unknown := sorted(set(index.features) - FEATURES):
        raise FormatVersionError(path, f"it requires {', '.join(unknown)}")
    seqs = [index.checkpoint.seq] if index.checkpoint else [0]
    if index.log and (index.log.last != seqs[0] or not 0 < index.log.first <= index.log.last):
        raise CorruptBlobError(path, f"its log doesn't lead to commit {seqs[0]}")
    for ref in index.segments:
        if ref.first != seqs[-1] + 1 or ref.last < ref.first:
            raise CorruptBlobError(path, f"segment {ref.blob} doesn't follow commit {seqs[-1]}")
        seqs.append(ref.last)
    check_contiguous(index.tail, seqs[-1] + 1, path)
    if index.settled != seqs[-1]:
        raise CorruptBlobError(path, f"its tail ends at {index.seq}, not where its seq says")


def check_contiguous(commits: Sequence[Commit], first: int, path: str) -> None:
    """Raise CorruptBlobError unless the seqs of `commits` count up from `first`."""
    for expected, commit in enumerate(commits, first):
        if commit.seq != expected:
            raise CorruptBlobError(path, f"commit {commit.seq} stands where {expected} should")
