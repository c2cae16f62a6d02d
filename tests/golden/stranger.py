"""A reader written from docs/format.md alone: it shares no line with remotedict.

It reads the whole dictionary in a local folder, slowly, and without mercy for anything odd.
"""

from __future__ import annotations

import pickle
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import lz4.frame
import msgspec
import numpy as np
import xxhash

if TYPE_CHECKING:
    from pathlib import Path

OWN = 4_294_967_295
DEVICES = {
    *("con", "prn", "aux", "nul"),
    *(name + str(number) for name in ("com", "lpt") for number in range(10)),
}
PLACES = {"s": "Index/{}/segments/", "c": "Index/{}/checkpoints/", "p": "{}/.packs/", "v": "{}/"}


class Content(NamedTuple):
    """All that is in a dictionary."""

    values: dict[str, Any]
    versions: dict[str, int]
    locks: dict[str, bytes]


class Row(NamedTuple):
    """What is known of a key: where its value is, or None for a deleted one."""

    version: int
    generation: bytes = b""
    place: Any = None


class Reader:
    """Reads the dictionary `folder` in the container `root`."""

    def __init__(self, root: Path, folder: str) -> None:
        self.root = root
        self.folder = folder
        self.rows: dict[str, Row] = {}
        self.locks: dict[str, bytes] = {}
        self.dictionary = b""

    def read(self) -> Content:
        """Return the content."""
        blob = (self.root / "Index" / self.folder / "index").read_bytes()
        index = frame(blob, 1)[0]
        self.dictionary, seq, checkpoint, segments, tail = *index[:1], index[4], *index[8:]
        seen = head = None
        if checkpoint:
            seen, head = self.checkpoint(*checkpoint)
        for reference, first, last, size in segments:
            commits, base = self.segment(reference, size)
            assert [commit[1] for commit in commits] == list(range(first, last + 1))
            assert head is None or base == head
            self.apply(commits)
            seen, head = last, commits[-1][0]
        assert head is None or index[7] == head
        assert [commit[1] for commit in tail] == list(range((seen or 0) + 1, seq + 1))
        self.apply(tail)
        live = {key: row for key, row in self.rows.items() if row.place is not None}
        return Content(
            {key: self.value(key, row) for key, row in live.items()},
            {key: row.version for key, row in self.rows.items()},
            self.locks,
        )

    def bytes_of(self, reference: str) -> bytes:
        """Return a blob that a record names."""
        kind, _, name = reference.partition(":")
        return (self.root / (PLACES[kind].format(self.folder) + name)).read_bytes()

    def checkpoint(self, reference: str, seq: int, size: int) -> tuple[int, bytes]:
        """Begin with the state of a checkpoint."""
        blob = self.bytes_of(reference)
        assert len(blob) == size
        record, data = frame(blob, 3)
        dictionary, _, _, its_seq, _, recent, rows, tombstones = record[:8]
        blobs, _kinds, _authors, locks, _retired, columns = record[8:]
        assert (dictionary, its_seq) == (self.dictionary, seq)
        c: dict[str, Any] = {}
        for name, dtype, stored, length in columns:
            raw = lz4.frame.decompress(data[:stored])
            assert len(raw) == length
            c[name], data = np.frombuffer(raw, dtype), data[stored:]
        assert not data
        text, start = c["key"].tobytes(), 0
        assert (np.diff(c["hash"].astype(object)) >= 0).all()
        for row, end in enumerate(map(int, c["key_end"])):
            raw, start = text[start:end], end
            [at] = np.flatnonzero(c["hash_row"] == row)
            assert c["hash"][at] == xxhash.xxh3_64_intdigest(raw)
            version, place, generation = int(c["version"][row]), None, b""
            if row < rows:
                generation, length = c["generation"][row].tobytes(), int(c["length"][row])
                if c["blob"][row] == OWN:
                    place = own(raw.decode(), int(c["born"][row]), generation, length)
                else:
                    place = (blobs[c["blob"][row]], int(c["offset"][row]), length)
            self.rows[raw.decode()] = Row(version, generation, place)
        assert len(self.rows) == rows + tombstones
        for key, epoch, _holder in locks:
            self.locks[key] = epoch
        return seq, recent[-1]

    def segment(self, reference: str, size: int) -> tuple[list[Any], bytes]:
        """Return the commits of a segment, with every place named, and the id before them."""
        blob = self.bytes_of(reference)
        assert len(blob) == size
        dictionary, _, _, base, _, commits = frame(blob, 2)[0]
        assert dictionary == self.dictionary
        for commit in commits:
            for change in commit[5]:
                if change[0] == "set" and isinstance(change[4], list) and not change[4][0]:
                    change[4][0] = reference
        return commits, base

    def apply(self, commits: list[Any]) -> None:
        """Make changes, one after the other."""
        for commit_id, _seq, _time, _author, _comment, changes in commits:
            for what, key, *rest in changes:
                if what == "lock":
                    self.locks[key] = commit_id
                elif what == "unlock":
                    assert self.locks.pop(key) == rest[0]
                else:
                    self.change(what, key, *rest)

    def change(self, what: str, key: str, *rest: Any) -> None:
        """Set or delete one key."""
        old = self.rows.get(key, Row(0))
        if what == "del" or old.place is None:
            self.rows.pop(key, None)  # to the end of the order
        if what == "del":
            self.rows[key] = Row(old.version + 1)
            return
        generation, born, place, _facts = rest
        if isinstance(place, int):
            place = own(key, born, generation, place)
        self.rows[key] = Row(old.version + 1, generation, place)

    def value(self, key: str, row: Row) -> Any:
        """Return the value of a key."""
        blob = row.place
        if not isinstance(blob, bytes):
            reference, offset, length = blob
            blob = self.bytes_of(reference)[offset : offset + length]
            assert len(blob) == length
        magic, version, flags, length, checksum = struct.unpack("<4sHHIQ", blob[:20])
        assert (magic, version) == (b"RDvl", 1)
        header, rest = blob[20 : 20 + length], blob[20 + length :]
        assert xxhash.xxh3_64_intdigest(blob[:12] + bytes(8) + header) == checksum
        codec, dictionary, its_key, generation, _, _, cut, sizes = msgspec.msgpack.decode(header)
        assert (dictionary, its_key, generation) == (self.dictionary, key, row.generation)
        parts, chunks = [], []
        for size in sizes:
            part = b""
            while len(part) < size:
                begin = rest[:9] + bytes(8)
                kind, raw, stored, checksum = struct.unpack("<BIIQ", rest[:17])
                body, rest = rest[17 : 17 + stored], rest[17 + stored :]
                seed = (int.from_bytes(generation[:8], "little") + len(chunks)) % 2**64
                assert xxhash.xxh3_64_intdigest(begin + body, seed) == checksum
                chunk = lz4.frame.decompress(body) if kind == 1 else body
                assert kind in (0, 1)
                assert len(chunk) == raw == min(cut, size - len(part))
                part += chunk
                chunks.append(17 + stored)
            parts.append(bytearray(part))
        assert flags == (len(chunks) > 1)
        if flags:
            length, checksum, magic = struct.unpack("<IQ4s", rest[-16:])
            assert (len(rest), magic) == (length + 16, b"RDvl")
            assert xxhash.xxh3_64_intdigest(rest[:length]) == checksum
            assert msgspec.msgpack.decode(rest[:length]) == chunks
        else:
            assert not rest
        if codec == "bytes":
            [part] = parts
            return bytes(part)
        assert codec == "pickle"
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
