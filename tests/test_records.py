"""Records: each byte of their frames and each bound of their fields."""

from __future__ import annotations

import gc
import itertools
import struct

import msgspec
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from remotedict import CorruptBlobError, DecryptionError, FormatVersionError, SignatureError
from remotedict.pure import plan, records
from remotedict.pure.keyring import Keyring, Secret
from remotedict.pure.records import (
    Annotate,
    Checkpoint,
    CheckpointRef,
    Column,
    Commit,
    Delete,
    Drop,
    Facts,
    Forget,
    Holder,
    Index,
    Lock,
    LockEntry,
    Log,
    LogRef,
    Range,
    Segment,
    SegmentRef,
    Set,
    TableRecord,
    Unlock,
)

DICTIONARY, INCARNATION = b"d" * 16, b"i" * 16
PACK, SEGMENT = f"p:000000000000-{'a' * 32}", f"s:000000000001-{'b' * 32}"
CHECKPOINT, LOG = f"c:000000000007-{'c' * 32}", f"l:000000000007-{'1' * 32}"
FACTS = Facts("str", 6)
HOLDER = Holder("host", 1, "me", None)
SIGN, OTHER = Secret("s" * 32, "signing_key"), Secret("o" * 32, "signing_key")
CRYPT = Secret(b"e" * 32, "encryption_key")
RINGS = {
    "plain": None,
    "signed": Keyring([SIGN]),
    "encrypted": Keyring([], [CRYPT]),
    "both": Keyring([SIGN], [CRYPT]),
}
CLOSED = [name for name, ring in RINGS.items() if ring]

CHANGES = [
    Set("k", 1, b"g" * 16, 0, b"inline", FACTS, None),
    Set("l", 2, b"h" * 16, 0, Range(PACK, 3, 4), Facts("a", 6, (1, 2), "f8"), "k"),
    Set("m", 3, b"i" * 16, 5, 77, Facts("int", 6), None),
    Annotate("m", 3, '{"a":1}'),
    Delete("x", 4),
    Forget("y"),
    Lock("k", Holder("host", 1, "me", 99)),
    Unlock("k", b"e" * 16),
    Drop(0, 1),
]
COMMIT = Commit(b"c" * 16, 1, -5, "me", "why", CHANGES)
INDEX = replace(plan.genesis(DICTIONARY, INCARNATION), seq=1, tail=[COMMIT])
TABLE = TableRecord(
    rows=1,
    tombstones=2,
    past=3,
    stamps=4,
    blobs=[PACK, ""],
    kinds=[("int", None, None), ("array", (2, 3), "f8")],
    texts=["", "me"],
    columns=[Column("key", "u1", 0, 5, 6)],
)
WHOLE = {
    Index: INDEX,
    Segment: Segment(DICTIONARY, INCARNATION, CHECKPOINT, b"b" * 16, 3, [COMMIT]),
    Checkpoint: Checkpoint(
        dictionary=DICTIONARY,
        incarnation=INCARNATION,
        previous="",
        seq=7,
        horizon=3,
        floor=2,
        next_order=9,
        recent=[b"r" * 16],
        locks=[LockEntry("k", b"e" * 16, HOLDER)],
        table=TABLE,
    ),
    Log: Log(DICTIONARY, INCARNATION, [SegmentRef(SEGMENT, 1, 2, 3)]),
}
OF_EACH_KIND = pytest.mark.parametrize("cls", WHOLE, ids=lambda cls: cls.__name__)


def array(record):
    """Return what a reader finds who knows msgpack and nothing else."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(record))


def forge(payload, kind=records.INDEX, version=1, flags=0, data_length=0):
    """Return a frame whose checksum is right, around any payload."""
    fields = (b"RDct", version, kind, flags, len(payload), data_length)
    checksum = xxhash.xxh3_64_intdigest(struct.pack("<4sHBBQQQ", *fields, 0) + payload)
    return struct.pack("<4sHBBQQQ", *fields, checksum) + payload


def read_as(index):
    """Encode and decode an index."""
    return records.decode(records.encode(index), Index, "p")[0]


# -- fields ---------------------------------------------------------------------------------


def test_a_record_is_the_array_of_its_fields_in_their_order():
    facts = ["str", 6, None, None]
    assert [array(change) for change in CHANGES] == [
        ["set", "k", 1, b"g" * 16, 0, b"inline", facts, None],
        ["set", "l", 2, b"h" * 16, 0, [PACK, 3, 4], ["a", 6, [1, 2], "f8"], "k"],
        ["set", "m", 3, b"i" * 16, 5, 77, ["int", 6, None, None], None],
        ["meta", "m", 3, '{"a":1}'],
        ["del", "x", 4],
        ["forget", "y"],
        ["lock", "k", ["host", 1, "me", 99]],
        ["unlock", "k", b"e" * 16],
        ["drop", 0, 1],
    ]
    commit = [b"c" * 16, 1, -5, "me", "why", list(map(array, CHANGES))]
    assert array(COMMIT) == commit
    index = replace(
        INDEX,
        features=["f"],
        revision=2,
        seq=3,
        horizon=4,
        horizon_seq=5,
        moved=6,
        history=7,
        base=b"b",
        checkpoint=CheckpointRef(CHECKPOINT, 7, 8),
        log=LogRef(LOG, 1, 7, 9),
        segments=[SegmentRef(SEGMENT, 8, 9, 10)],
    )
    assert array(index) == [
        *[DICTIONARY, INCARNATION, ["f"], 2, 3, 4, 5, 6, 7, b"b"],
        *[[CHECKPOINT, 7, 8], [LOG, 1, 7, 9], [[SEGMENT, 8, 9, 10]], [commit]],
    ]
    assert array(WHOLE[Segment]) == [*[DICTIONARY, INCARNATION, CHECKPOINT, b"b" * 16, 3, [commit]]]
    assert array(WHOLE[Log]) == [DICTIONARY, INCARNATION, [[SEGMENT, 1, 2, 3]]]
    kinds = [["int", None, None], ["array", [2, 3], "f8"]]
    table = [1, 2, 3, 4, [PACK, ""], kinds, ["", "me"], [["key", "u1", 0, 5, 6]]]
    locks = [["k", b"e" * 16, ["host", 1, "me", None]]]
    assert array(WHOLE[Checkpoint]) == [
        *[DICTIONARY, INCARNATION, "", 7, 3, 2, 9, [b"r" * 16], locks, table]
    ]


@OF_EACH_KIND
@pytest.mark.parametrize("ring", RINGS.values(), ids=RINGS)
def test_a_record_read_back_is_the_same(cls, ring):
    record = WHOLE[cls]
    blob = records.encode(record, [b"some ", b"data"], ring)
    assert records.decode(blob, cls, "p", ring) == (record, b"some data")
    assert records.decode(records.encode(record, keyring=ring), cls, "p", ring) == (record, b"")


def test_a_record_never_changes_and_is_nothing_to_the_garbage_collector():
    for record in [*WHOLE.values(), *CHANGES, COMMIT, FACTS, HOLDER]:
        assert not gc.is_tracked(record)
        field = record.__struct_fields__[0]
        with pytest.raises(AttributeError):
            setattr(record, field, getattr(record, field))


def test_size_is_what_a_record_takes_in_a_frame():
    blob = records.encode(INDEX, [b"data"])
    assert records.size(INDEX) == len(blob) - len(b"data") - 32


def test_a_record_with_a_field_more_or_less_is_refused():
    for fields in (array(INDEX)[:-1], [*array(INDEX), None]):
        with pytest.raises(CorruptBlobError, match="can't be decoded"):
            records.decode(forge(msgspec.msgpack.encode(fields)), Index, "p")


def in_commit(change):
    return replace(INDEX, tail=[replace(COMMIT, changes=[change])])


def a_set(**fields):
    return in_commit(replace(CHANGES[0], **fields))


def a_ref(reference):
    return a_set(place=Range(reference, 0, 0))


@pytest.mark.parametrize(
    "index",
    [
        a_set(version=0, born=0, place=b""),
        a_set(version=2**62 - 1, place=Range("", 2**62 - 1, 2**62 - 1)),
        a_set(place=0),
        a_set(place=Range("", 0, 0)),
        a_set(facts=Facts("str", 0, (), "f8"), origin="k"),
        a_ref(f"s:{'0' * 12}-{'0' * 32}"),
        a_ref(f"v:a=20b_-Z9/{'0' * 20}-{'f' * 32}"),
        in_commit(Lock("k", Holder("h", -1, "", -1))),
        in_commit(Drop(0, 1)),
        replace(INDEX, history=1),
        replace(INDEX, history=None, base=b"anything"),
        replace(INDEX, revision=0, horizon=0, horizon_seq=0, moved=0),
    ],
)
def test_a_field_may_go_to_its_bounds(index):
    assert read_as(index) == index


@pytest.mark.parametrize(
    "index",
    [
        *(a_set(**{name: -1}) for name in ("version", "born", "place")),
        *(a_set(**{name: 2**62}) for name in ("version", "born", "place")),
        *(a_set(place=Range("", *place)) for place in [(-1, 0), (0, -1)]),
        a_set(facts=Facts("str", -1)),
        *(a_set(generation=bytes(size)) for size in (0, 15, 17)),
        in_commit(Unlock("k", bytes(15))),
        in_commit(Drop(-1, 1)),
        in_commit(Drop(0, 0)),
        in_commit(LockEntry("k", bytes(16), HOLDER)),
        replace(INDEX, dictionary=bytes(15)),
        replace(INDEX, incarnation=bytes(17)),
        replace(INDEX, history=0),
        *(replace(INDEX, **{f: -1}) for f in ("revision", "horizon", "horizon_seq", "moved")),
        replace(INDEX, tail=[replace(COMMIT, id=bytes(15))]),
        a_ref(f"{PACK}\n"),
        a_ref(f"x{PACK}"),
        a_ref(f"{PACK}x"),
        a_ref(f"../{PACK}"),
    ],
)
def test_a_field_beyond_its_bounds_is_refused(index):
    with pytest.raises(CorruptBlobError, match="can't be decoded"):
        read_as(index)


@pytest.mark.parametrize(
    "reference", ["s:../../x", "v:../x", "x:000000000001-" + "0" * 32, "/etc/passwd", "s:1-a"]
)
def test_a_reference_that_could_lead_elsewhere_is_refused(reference):
    with pytest.raises(CorruptBlobError):
        read_as(replace(INDEX, checkpoint=CheckpointRef(reference, 0, 1)))


# -- frames ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "kind"), [(Index, 1), (Segment, 2), (Checkpoint, 3), (Log, 4)], ids=str
)
def test_a_frame_is_a_header_the_data_and_the_record(cls, kind):
    payload = b"data" + msgspec.msgpack.encode(WHOLE[cls])
    blob = records.encode(WHOLE[cls], [b"da", b"ta"])
    assert blob == forge(payload, kind, data_length=4)
    assert records.HEADER_BYTES == 32 == len(blob) - len(payload)


@OF_EACH_KIND
@pytest.mark.parametrize("name", CLOSED)
def test_what_is_closed_is_bound_to_its_header(cls, name):
    """The values in a segment are closed each for itself; all other data with the record."""
    ring, data = RINGS[name], [b"one", b"another"]
    blob = records.encode(WHOLE[cls], data, ring)
    kind = [*WHOLE].index(cls) + 1
    inside = msgspec.msgpack.encode(WHOLE[cls])
    outside = b"".join(data)
    if cls is not Segment:
        inside, outside = outside + inside, b""
    length = len(outside) + len(inside) + ring.overhead
    context = struct.pack("<4sHBBQQQ", b"RDct", 1, kind, ring.flags, length, 10, 0)
    payload = outside + bytes(ring.close(inside, context))
    assert blob == forge(payload, kind, flags=ring.flags, data_length=10)


@pytest.mark.parametrize("ring", RINGS.values(), ids=RINGS)
def test_any_flipped_bit_of_a_record_is_noticed_and_names_the_blob(ring):
    blob = records.encode(INDEX, [b"some data"], ring)
    for at, bit in itertools.product(range(len(blob)), range(8)):
        broken = bytearray(blob)
        broken[at] ^= 1 << bit
        with pytest.raises((CorruptBlobError, FormatVersionError)) as caught:
            records.decode(bytes(broken), Index, "the/blob", ring)
        assert caught.value.blob == "the/blob"


def test_any_truncation_of_a_record_is_noticed():
    blob = records.encode(INDEX)
    for end in range(len(blob)):
        with pytest.raises(CorruptBlobError):
            records.decode(blob[:end], Index, "p")


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        (b"", "it has only 0 bytes"),
        (bytes(31), "it has only 31 bytes"),
        (b"Rdct" + bytes(28), "it begins with b'Rdct'"),
        (forge(b"record")[:-1], "it should hold 6 bytes but holds 5"),
        (forge(b"record") + b"x", "it should hold 6 bytes but holds 7"),
        (forge(b"record", data_length=7), "it should hold 6 bytes but holds 6"),
        (forge(b"recorD")[:-1] + b"d", "its checksum is wrong"),
        (forge(b"record", kind=records.LOG), r"it is not a index \(kind 4\)"),
        (forge(b"record", data_length=6), "its record can't be decoded: .*truncated"),
    ],
)
def test_what_is_no_index_is_refused_with_the_reason(blob, reason):
    with pytest.raises(CorruptBlobError, match=reason) as caught:
        records.decode(blob, Index, "the/blob")
    assert caught.value.blob == "the/blob"


def test_a_header_alone_is_a_frame_of_nothing():
    with pytest.raises(CorruptBlobError, match="can't be decoded"):
        records.decode(forge(b""), Index, "p")


@given(st.binary(max_size=200))
def test_garbage_with_a_right_checksum_gives_only_typed_errors(payload):
    for kind, cls in enumerate(WHOLE, 1):
        with pytest.raises(CorruptBlobError):
            records.decode(forge(payload, kind), cls, "p")


def with_instead(fields, other):
    """Yield msgpack of arrays in which something else is in the place of one item, or behind all."""
    mark = "something else"
    for changed in marked(fields, mark):
        yield msgspec.msgpack.encode(changed).replace(msgspec.msgpack.encode(mark), other)


def marked(fields, mark):
    yield mark
    if isinstance(fields, list):
        yield [*fields, mark]
        for n, field in enumerate(fields):
            for changed in marked(field, mark):
                yield [*fields[:n], changed, *fields[n + 1 :]]


@OF_EACH_KIND
@pytest.mark.parametrize(
    "other",
    [b"\xa1\xff", b"\x91" * 5000, b"\x81\xa1a" * 5000],
    ids=["no text", "arrays without end", "maps without end"],
)
def test_what_does_not_belong_there_is_refused_wherever_it_is(cls, other):
    record = WHOLE[cls]
    if cls is Index:
        record = replace(an_index(), features=["f"])
    for payload in with_instead(array(record), other):
        blob = forge(payload, kind=[*WHOLE].index(cls) + 1)
        with pytest.raises(CorruptBlobError, match="its record can't be decoded"):
            records.decode(blob, cls, "p")
        assert records.glean(blob, cls) is None


def test_a_newer_format_is_said_to_be_newer():
    with pytest.raises(FormatVersionError, match="newer remotedict") as caught:
        records.decode(forge(b"new", version=2), Index, "the/blob")
    assert "its format version is 2, not 1" in str(caught.value)
    assert caught.value.blob == "the/blob"


def test_a_version_that_alone_is_damaged_is_no_newer_format():
    blob = bytearray(records.encode(INDEX))
    blob[4] = 2
    with pytest.raises(CorruptBlobError, match="format version is damaged: all else is of this"):
        records.decode(bytes(blob), Index, "p")


@pytest.mark.parametrize("name", CLOSED)
def test_what_is_closed_needs_its_keys(name):
    blob, ring = records.encode(INDEX, keyring=RINGS[name]), RINGS[name]
    for other in {*RINGS.values(), Keyring([OTHER])} - {ring}:
        with pytest.raises((SignatureError, DecryptionError)):
            records.decode(blob, Index, "p", other)


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("more", [0, 1])
def test_a_closed_frame_that_says_to_have_more_data_than_it_has_is_refused(name, more):
    ring, content = RINGS[name], b"just data"
    data_length = len(content) + more
    fields = (b"RDct", 1, 1, ring.flags, len(content) + ring.overhead, data_length, 0)
    closed = bytes(ring.close(content, struct.pack("<4sHBBQQQ", *fields)))
    blob = forge(closed, flags=ring.flags, data_length=data_length)
    with pytest.raises(CorruptBlobError, match="less than it says" if more else "truncated"):
        records.decode(blob, Index, "the/blob", ring)


# -- looking into what may be damaged, or anybody's -----------------------------------------


class Blob:
    """A blob that is read in parts."""

    def __init__(self, content):
        self.content = content
        self.read = []

    def __call__(self, offset, size):
        self.read.append((offset, size))
        return self.content[offset : offset + size]

    def owner(self, ring=None):
        return records.dictionary_of(self, len(self.content), ring)


@OF_EACH_KIND
def test_whose_a_frame_is_is_told_by_a_few_of_its_bytes(cls):
    blob = Blob(records.encode(WHOLE[cls], [b"data"]))
    assert blob.owner() == DICTIONARY
    assert blob.read == [(0, 32), (36, 19)]


@OF_EACH_KIND
@pytest.mark.parametrize("name", CLOSED)
def test_whose_a_closed_frame_is_is_told_by_all_of_it(cls, name):
    blob = Blob(records.encode(WHOLE[cls], [b"data"], RINGS[name]))
    assert blob.owner(RINGS[name]) == DICTIONARY
    assert blob.read == [(0, 32), (0, len(blob.content))]
    assert blob.owner() is None
    assert Blob(blob.content[:-1]).owner(RINGS[name]) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"RDct",
        b"RDct" + bytes(27),
        b"RDcT" + records.encode(INDEX)[4:],
        forge(b"\x9e\xc4\x11" + DICTIONARY),
        forge(b"\x9e"),
        forge(b"record", kind=9, flags=1),
    ],
)
@pytest.mark.parametrize("ring", [RINGS["plain"], RINGS["signed"]])
def test_what_is_no_frame_is_nobodys(content, ring):
    assert Blob(content).owner(ring) is None


def test_a_record_is_gleaned_from_a_damaged_blob():
    for ring in RINGS:
        for record in WHOLE.values():
            blob = bytearray(records.encode(record, [b"data"]))
            blob[0] ^= 1
            blob[24] ^= 1
            assert records.glean(bytes(blob), type(record)) == record, ring


@pytest.mark.parametrize(
    "payload",
    [b"", b"garbage", b"\x91" * 100_000],
    ids=["nothing", "garbage", "nesting"],
)
def test_where_nothing_can_be_gleaned_there_is_none(payload):
    blob = forge(payload)
    assert records.glean(blob, Log) is None
    assert records.glean(blob[:31], Log) is None
    assert records.glean(forge(payload, data_length=1 << 63), Log) is None


# -- what an index must be ------------------------------------------------------------------


def commits(first, last):
    return [replace(COMMIT, id=bytes([seq]) * 16, seq=seq) for seq in range(first, last + 1)]


def an_index(*, log=(1, 7), segments=((8, 8), (9, 11)), tail=(12, 13), seq=13):
    """Return an index whose checkpoint is of commit 7."""
    return replace(
        INDEX,
        seq=seq,
        base=b"base",
        checkpoint=CheckpointRef(CHECKPOINT, 7, 1),
        log=log and LogRef(LOG, *log, 1),
        segments=[SegmentRef(SEGMENT, first, last, 1) for first, last in segments],
        tail=commits(*tail),
    )


@pytest.mark.parametrize(
    "index",
    [
        an_index(),
        an_index(log=(7, 7)),
        an_index(log=None),
        an_index(segments=[], tail=(8, 9), seq=9),
        an_index(tail=(12, 11), seq=11),
        replace(an_index(segments=[(1, 3)], tail=(4, 4), seq=4), checkpoint=None, log=None),
        replace(INDEX, seq=0, tail=[]),
    ],
)
def test_an_index_whose_seqs_follow_each_other_is_taken(index):
    assert read_as(index) == index


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (an_index(log=(0, 7)), "its log doesn't lead to commit 7"),
        (an_index(log=(1, 6)), "its log doesn't lead to commit 7"),
        (an_index(log=(1, 8)), "its log doesn't lead to commit 7"),
        (an_index(log=(8, 7)), "its log doesn't lead to commit 7"),
        (replace(INDEX, log=LogRef(LOG, 1, 1, 1)), "its log doesn't lead to commit 0"),
        (replace(INDEX, log=LogRef(LOG, 0, 0, 1)), "its log doesn't lead to commit 0"),
        (an_index(segments=[(7, 11)]), f"segment {SEGMENT} doesn't follow commit 7"),
        (an_index(segments=[(9, 11)]), f"segment {SEGMENT} doesn't follow commit 7"),
        (an_index(segments=[(8, 7)]), f"segment {SEGMENT} doesn't follow commit 7"),
        (an_index(segments=[(8, 8), (8, 11)]), f"segment {SEGMENT} doesn't follow commit 8"),
        (an_index(segments=[(8, 8), (10, 11)]), f"segment {SEGMENT} doesn't follow commit 8"),
        (an_index(tail=(11, 12)), "commit 11 stands where 12 should"),
        (an_index(tail=(13, 13)), "commit 13 stands where 12 should"),
        (an_index(seq=14), "its tail ends at 14, not where its seq says"),
        (an_index(seq=12), "its tail ends at 12, not where its seq says"),
        (replace(INDEX, seq=2), "its tail ends at 2, not where its seq says"),
        (replace(INDEX, seq=0), "its tail ends at 0, not where its seq says"),
        (replace(INDEX, tail=commits(0, 0), seq=0), "commit 0 stands where 1 should"),
    ],
)
def test_an_index_whose_seqs_do_not_follow_each_other_is_refused(index, reason):
    with pytest.raises(CorruptBlobError, match=reason):
        read_as(index)


def test_commits_that_count_up_are_contiguous():
    records.check_contiguous(commits(3, 5), 3, "p")
    records.check_contiguous([], 3, "p")
    with pytest.raises(CorruptBlobError, match="commit 5 stands where 4 should") as caught:
        records.check_contiguous([*commits(3, 3), *commits(5, 5)], 3, "the/blob")
    assert caught.value.blob == "the/blob"


def test_required_features_that_are_unknown_are_said():
    with pytest.raises(FormatVersionError, match="it requires flight, telepathy"):
        read_as(replace(INDEX, features=["telepathy", "flight", "flight"]))


def test_the_head_of_an_index_is_its_newest_commit():
    assert an_index().head == bytes([13]) * 16
    assert an_index().settled == 11
    assert an_index(tail=(12, 11)).head == b"base"
    assert replace(INDEX, seq=0, tail=[]).head == b""
