"""A reader written from docs/format.md alone: it shares no line with remotedict.

It reads the whole dictionary in a local folder, slowly, and without mercy for anything odd.
"""

from __future__ import annotations

import itertools
import pickle
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import lz4.block
import msgspec
import numpy as np
import xxhash

if TYPE_CHECKING:
    from pathlib import Path

OWN = 0
GONE = 1
DEVICES = {
    *("con", "prn", "aux", "nul"),
    *(name + str(number) for name in ("com", "lpt") for number in range(10)),
}
PLACES = {
    "s": "Index/{}/segments/",
    "c": "Index/{}/checkpoints/",
    "l": "Index/{}/logs/",
    "p": "{}/.packs/",
    "v": "{}/",
}


class Content(NamedTuple):
    """All that is in a dictionary: `past` has the values of all versions that are listed."""

    values: dict[str, Any]
    versions: dict[str, int]
    metadata: dict[str, str]
    locks: dict[str, bytes]
    past: dict[str, dict[int, Any]]
    comments: list[tuple[int, str, str]]


class Item(NamedTuple):
    """What a key was from commit `seq` on: where its value is, or None for a deleted one."""

    version: int
    seq: int
    order: int = 0
    generation: bytes = b""
    place: Any = None
    metadata: str = ""
    written: int = 0


class Listing:
    """What is listed of all keys, the locks, and the rest that commits change."""

    def __init__(self) -> None:
        self.items: dict[str, list[Item]] = {}
        self.locks: dict[str, bytes] = {}
        self.floor = 0
        self.next_order = 0

    def live(self, seq: int | None = None) -> dict[str, Item]:
        """Return the keys that are there, or were as of a commit, in their order."""
        then = {
            key: [item for item in items if seq is None or item.seq <= seq]
            for key, items in self.items.items()
        }
        there = {key: its[-1] for key, its in then.items() if its and its[-1].place is not None}
        return dict(sorted(there.items(), key=lambda pair: pair[1].order))

    def comparable(self) -> dict[str, list[Item]]:
        """Return all items, without the numbers of the order, and places that may have changed."""
        return {
            key: [item._replace(order=0, place=item.place is not None) for item in items]
            for key, items in self.items.items()
            if items
        }

    def apply(self, commits: list[Any]) -> None:
        """Make changes, one after the other."""
        for commit_id, seq, _time, _author, _comment, changes in commits:
            for what, *rest in changes:
                if what == "lock":
                    self.locks[rest[0]] = commit_id
                elif what == "unlock":
                    assert self.locks.pop(rest[0]) == rest[1]
                elif what == "drop":
                    self.drop(*rest)
                elif what == "forget":
                    self.items[rest[0]] = []
                else:
                    self.change(seq, what, *rest)

    def change(self, seq: int, what: str, key: str, version: int, *rest: Any) -> None:
        """Set, delete or annotate one key."""
        items = self.items.setdefault(key, [])
        old = items[-1] if items else Item(0, 0)
        if what == "meta":
            assert version == old.version
            assert old.place is not None
            if old.seq == seq:
                items.pop()
            items.append(old._replace(seq=seq, metadata=rest[0]))
            return
        assert version == old.version + 1
        if what == "del":
            items.append(Item(version, seq, written=seq))
            return
        generation, born, place, _facts, _origin = rest
        if isinstance(place, int):
            place = own(key, born, generation, place)
        elif isinstance(place, list):
            place = tuple(place)
        order = old.order
        if old.place is None:
            order, self.next_order = self.next_order, self.next_order + 1
        items.append(Item(version, seq, order, generation, place, old.metadata, seq))

    def drop(self, before: int, versions: int) -> None:
        """Take old items off the list."""
        for items in self.items.values():
            then = [item for item in items if item.seq <= before]
            for item, newer in itertools.pairwise(then):
                if item.version > then[-1].version - versions:
                    break
                assert items.pop(0) is item
                self.floor = max(self.floor, newer.seq)


class Reader:
    """Reads the dictionary `folder` in the container `root`."""

    def __init__(self, root: Path, folder: str) -> None:
        self.root = root
        self.folder = folder
        self.listing = Listing()
        self.dictionary = b""
        self.commits: list[Any] = []

    def read(self) -> Content:
        """Return the content."""
        blob = (self.root / "Index" / self.folder / "index").read_bytes()
        index = frame(blob, 1)[0]
        self.dictionary, seq, base = index[0], index[4], index[9]
        checkpoint, log, segments, tail = index[10:]
        head, seen = b"", 0
        if checkpoint:
            head, seen = self.checkpoint(*checkpoint), checkpoint[1]
        if log:
            first, last = log[1:3]
            assert last == seen
            logged = self.log(*log)
            assert logged[-1][0] == head
            if first == 1:
                self.compare(logged)
            self.commits += logged
        after = []
        for ref in segments:
            commits, its_base = self.segment(*ref)
            assert its_base == head
            after += commits
            head = commits[-1][0]
        assert base == head
        after += tail
        assert [commit[1] for commit in after] == list(range(seen + 1, seq + 1))
        self.listing.apply(after)
        self.commits += after
        items = self.listing.items
        return Content(
            {key: self.value(item) for key, item in self.listing.live().items()},
            {key: its[-1].version for key, its in items.items() if its},
            {key: item.metadata for key, item in self.listing.live().items() if item.metadata},
            self.listing.locks,
            {
                key: {item.version: self.value(item) for item in its if item.place is not None}
                for key, its in items.items()
                if its
            },
            [(commit[1], commit[3], commit[4]) for commit in self.commits],
        )

    def as_of(self, seq: int) -> dict[str, Any]:
        """Return the content as of an earlier commit."""
        assert seq >= self.listing.floor
        return {key: self.value(item) for key, item in self.listing.live(seq).items()}

    def bytes_of(self, reference: str) -> bytes:
        """Return a blob that a record names."""
        kind, _, name = reference.partition(":")
        return (self.root / (PLACES[kind].format(self.folder) + name)).read_bytes()

    def log(self, reference: str, first: int, last: int, size: int) -> list[Any]:
        """Return the commits that a checkpoint covers."""
        blob = self.bytes_of(reference)
        assert len(blob) == size
        dictionary, _, segments = frame(blob, 4)[0]
        assert dictionary == self.dictionary
        commits = [commit for ref in segments for commit in self.segment(*ref)[0]]
        assert [commit[1] for commit in commits] == list(range(first, last + 1))
        return commits

    def compare(self, commits: list[Any]) -> None:
        """Compare the checkpoint with the commits from the first one on that it covers."""
        replayed, read = Listing(), self.listing
        replayed.apply(commits)
        assert replayed.comparable() == read.comparable()
        assert list(replayed.live()) == list(read.live())
        assert replayed.locks == read.locks
        assert replayed.floor == read.floor

    def checkpoint(self, reference: str, seq: int, size: int) -> bytes:
        """Begin with the state of a checkpoint; return the id of its commit."""
        blob = self.bytes_of(reference)
        assert len(blob) == size
        record, data = frame(blob, 3)
        dictionary, _, _, its_seq, _, floor, next_order, recent, locks, table = record
        rows, tombstones, past, stamps, blobs, kinds, texts, columns = table
        assert (dictionary, its_seq) == (self.dictionary, seq)
        c: dict[str, Any] = {}
        for name, dtype, coding, stored, length in columns:
            shrunk = stored != length
            raw = lz4.block.decompress(data[:stored], length) if shrunk else data[:stored]
            assert len(raw) == length
            count = past if name.startswith("past_") else rows
            if name in {"key_end", "hash", "hash_row", "version", "stamp"}:
                count = rows + tombstones
            elif name.startswith("stamp_"):
                count = stamps
            column = np.frombuffer(raw, dtype)
            if coding == 1:
                column = np.cumsum(column, dtype="<u8")
            elif coding == 2:
                column = int(column[0]) + int(column[1]) * np.arange(count, dtype="<u8")
            assert name == "key" or len(column) == count
            c[name] = column
            following = -(-stored // 8) * 8
            assert not any(data[stored:following])
            data = data[following:]
        assert not data
        since = c["stamp_seq"]
        assert (np.diff(since.astype(object)) > 0).all()
        assert (c["stamp_author"] < len(texts)).all()

        def item(which: str, n: int, key: str) -> Item:
            def of(name: str) -> Any:
                return c[which + name][n]

            version, its_seq = int(of("version")), int(since[of("stamp")])
            if (not which and n >= rows) or of("blob") == GONE:
                return Item(version, its_seq, written=its_seq)
            assert of("kind") < len(kinds)
            generation, length = of("generation").tobytes(), int(of("length"))
            place = (
                (blobs[of("blob") - 2], int(of("offset")), length) if of("blob") != OWN else None
            )
            place = place or own(key, int(of("born")), generation, length)
            return Item(
                version=version,
                seq=its_seq,
                order=int(of("order")),
                generation=generation,
                place=place,
                metadata=texts[of("metadata")],
                written=int(since[of("written")]),
            )

        text, start = c["key"].tobytes(), 0
        assert (np.diff(c["hash"].astype(object)) >= 0).all()
        assert (np.diff(c["past_of"].astype(object)) >= 0).all()
        for row, end in enumerate(map(int, c["key_end"])):
            raw, start = text[start:end], end
            [at] = np.flatnonzero(c["hash_row"] == row)
            assert c["hash"][at] == xxhash.xxh3_64_intdigest(raw) >> 32
            key = raw.decode()
            items = [item("past_", n, key) for n in np.flatnonzero(c["past_of"] == row)]
            items.append(item("", row, key))
            assert all(
                (a.seq, a.version) <= (b.seq, b.version) for a, b in itertools.pairwise(items)
            )
            # A version of 0 stands for a key that was forgotten.
            self.listing.items[key] = [] if not items[-1].version else items
        assert len(self.listing.items) == rows + tombstones
        assert [*self.listing.live()] == [*self.listing.items][:rows]
        assert all(it.order < next_order for its in self.listing.items.values() for it in its)
        self.listing.locks = {key: epoch for key, epoch, _holder in locks}
        self.listing.floor, self.listing.next_order = floor, next_order
        return recent[-1]

    def segment(self, reference: str, first: int, last: int, size: int) -> tuple[list[Any], bytes]:
        """Return the commits of a segment, with every place named, and the id before them."""
        blob = self.bytes_of(reference)
        assert len(blob) == size
        dictionary, _, _, base, _, commits = frame(blob, 2)[0]
        assert dictionary == self.dictionary
        assert [commit[1] for commit in commits] == list(range(first, last + 1))
        for commit in commits:
            for change in commit[5]:
                if change[0] == "set" and isinstance(change[5], list) and not change[5][0]:
                    change[5][0] = reference
        return commits, base

    def value(self, item: Item) -> Any:
        """Return the value of an item."""
        blob = item.place
        if not isinstance(blob, bytes):
            reference, offset, length = blob
            blob = self.bytes_of(reference)[offset : offset + length]
            assert len(blob) == length
        magic, version, codec, flags, seed = struct.unpack("<4sHBBQ", blob[:16])
        length, cut, dictionary, generation, size = struct.unpack("<II16s16sQ", blob[16:64])
        assert (magic, version) == (b"RDvl", 1)
        about, rest = blob[64 : 64 + length], blob[64 + length :]
        assert seed == xxhash.xxh3_64_intdigest(
            blob[16 : 64 + length], int.from_bytes(blob[:8], "little")
        )
        _key, _, _, more = msgspec.msgpack.decode(about)
        assert flags == (128 if more else 0)
        sizes = [size, *more]
        # The key is the one that it was first written under: a copy has another.
        assert (dictionary, generation) == (self.dictionary, item.generation)
        parts, chunks = [], []
        for size in sizes:
            part = b""
            while len(part) < size:
                size_now = min(cut, size - len(part))
                checksum, stored = struct.unpack("<QI", rest[:12])
                body, rest = rest[12 : 12 + stored], rest[12 + stored :]
                salt = (seed + len(chunks)) % 2**64
                assert xxhash.xxh3_64_intdigest(body, salt) == checksum
                assert stored <= size_now
                if stored < size_now:
                    body = lz4.block.decompress(body, uncompressed_size=size_now)
                assert len(body) == size_now
                part += body
                chunks.append(12 + stored)
            parts.append(bytearray(part))
        if len(chunks) > 1:
            length, checksum, magic = struct.unpack("<IQ4s", rest[-16:])
            assert (len(rest), magic) == (length + 16, b"RDvl")
            assert xxhash.xxh3_64_intdigest(rest[:length]) == checksum
            assert msgspec.msgpack.decode(rest[:length]) == chunks
        else:
            assert not rest
        if codec == 0:
            [part] = parts
            return bytes(part)
        assert codec == 1
        return pickle.loads(parts[0], buffers=parts[1:])


def own(key: str, born: int, generation: bytes, length: int) -> tuple[str, int, int]:
    """Return where a value with a blob of its own is."""
    raw = key.encode()
    plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
    escaped = "".join(chr(b) if b in plain else f"={b:02X}" for b in raw)
    if escaped.lower() in DEVICES:
        escaped = f"={raw[0]:02X}{escaped[1:]}"
    if len(escaped) > 120:
        escaped = escaped[:86] + "==" + xxhash.xxh3_128_hexdigest(raw)
    return f"v:{escaped}/{born:012}-{generation.hex()}", 0, length


def frame(blob: bytes, wanted: int) -> tuple[list[Any], bytes]:
    """Return the record and the data area of a frame."""
    magic, version, kind, _flags, length, data, checksum = struct.unpack("<4sHBBQQQ", blob[:32])
    assert (magic, version, kind, length) == (b"RDct", 1, wanted, len(blob) - 32)
    assert checksum == xxhash.xxh3_64_intdigest(blob[:24] + bytes(8) + blob[32:])
    return msgspec.msgpack.decode(blob[32 + data :]), blob[32 : 32 + data]
