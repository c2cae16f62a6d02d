"""Values: where they are put, and how they are found again."""

from __future__ import annotations

from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from remotedict.backend import PIECE_BYTES
from remotedict.engine.reader import take_all
from remotedict.errors import CorruptBlobError
from remotedict.pure import codec, naming
from remotedict.pure.location import Location, Locations
from remotedict.pure.records import Range, Set

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from remotedict.backend import Buffer
    from remotedict.engine.blobs import Blobs
    from remotedict.engine.cache import Cache
    from remotedict.engine.patient import Patient
    from remotedict.engine.runtime import Runtime
    from remotedict.engine.stats import Meter
    from remotedict.pure.codec import Encoded, Unpacked
    from remotedict.pure.coding import Codec
    from remotedict.pure.keyring import Keyring
    from remotedict.pure.naming import Layout
    from remotedict.pure.pieces import Stored

    Progress = Callable[[int], None]

INLINE_TOTAL_BYTES = 256 * 1024
"""A commit carries no more than this inline: it may have to be sent several times."""

PACKED_BYTES = 256 * 1024
"""In a bulk write, smaller values than this share packs."""

PACK_BYTES = 16 * 1024 * 1024
"""How large a pack may get."""

_GAP_BYTES = 64 * 1024  # two ranges of one pack that are closer than this are read as one


class _Span(NamedTuple):
    """Neighbours in a blob, which one request reads.

    `rows` says which of those wanted they are. Seen from `offset`, they have the bytes from
    `starts` to `ends`.
    """

    rows: list[int]
    blob: str
    offset: int
    starts: list[int]
    ends: list[int]
    generations: list[bytes]


class Values:
    """Places values and fetches them. Thread-safe."""

    def __init__(
        self,
        backend: Patient,
        layout: Layout,
        runtime: Runtime,
        *,
        blobs: Blobs,
        cache: Cache,
        meter: Meter,
        inline_bytes: int,
        by: Codec,
        keyring: Keyring | None = None,
    ) -> None:
        self._backend = backend
        self._layout = layout
        self._runtime = runtime
        self._blobs = blobs
        self._meter = meter
        self._inline_bytes = inline_bytes
        self._keyring = keyring
        self._codec = by
        # It knows no signatures: nothing that must have one may go that way.
        self._intact = codec.intact if keyring is None else lambda *_: None
        self.cache = cache

    def _at_once(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return self._runtime.call(lambda: list(self._runtime.work(fn, items)))

    # -- writing ----------------------------------------------------------------------------

    def encode(self, key: str, value: Any, dictionary: bytes) -> tuple[bytes, Encoded]:
        """Return a fresh generation and the value's bytes. Runs the value's own code.

        Those of a large value are made while they are uploaded.
        """
        generation = self._runtime.uuid()
        encoded = codec.encode(
            value,
            self._codec,
            key=key,
            dictionary=dictionary,
            generation=generation,
            run=self._runtime.work,
            keyring=self._keyring,
        )
        return generation, encoded

    def place(
        self,
        values: Sequence[tuple[str, bytes, Encoded]],
        seq: int,
        progress: Progress,
        *,
        inline: bool = True,
    ) -> list[Set]:
        """Upload what doesn't go inline; return the changes that will name everything.

        Parameters
        ----------
        values : sequence of (key, generation, encoded)
            What to place.
        seq : int
            The newest commit that is known now.
        progress : callable
            Is told how many values are done.
        inline : bool
            Whether any may go inline: not if there are more than these.
        """
        lengths = [encoded.length for _, _, encoded in values]
        tiny = [i for i, length in enumerate(lengths) if 0 <= length <= self._inline_bytes]
        if not inline or sum(lengths[i] for i in tiny) > INLINE_TOTAL_BYTES:
            tiny = []
        changes: dict[int, Set] = {}
        for i in tiny:
            key, generation, encoded = values[i]
            changes[i] = Set(key, 0, generation, seq, encoded.join(), encoded.facts, None)
        progress(len(tiny))
        small = [
            i
            for i, length in enumerate(lengths)
            if i not in changes and 0 <= length <= PACKED_BYTES and self._inline_bytes
        ]
        if len(small) > 1:
            changes |= self._pack(small, values, seq, progress)
        own = [i for i in range(len(values)) if i not in changes]
        changes |= self._upload(own, values, seq, progress)
        for i in {*small, *own}:
            _, generation, encoded = values[i]
            if encoded.facts.nbytes <= PACKED_BYTES:  # larger ones aren't worth the copy
                self.cache.add(generation, encoded.join())
        return [changes[i] for i in range(len(values))]

    def _upload(
        self,
        which: list[int],
        values: Sequence[tuple[str, bytes, Encoded]],
        seq: int,
        progress: Progress,
    ) -> dict[int, Set]:
        """Give each value a blob of its own."""

        def one(i: int) -> tuple[int, Set]:
            key, generation, encoded = values[i]
            blob = f"v:{naming.escape(key)}/{naming.unique(seq, generation)}"
            self._backend.put(self._layout.path(blob), encoded)
            return i, Set(key, 0, generation, seq, encoded.length, encoded.facts, None)

        # What the backend itself sends in parallel pieces must not wait in a thread for leaf
        # work, and is done one by one.
        small = [i for i in which if values[i][2].facts.nbytes <= PIECE_BYTES]
        large = [i for i in which if values[i][2].facts.nbytes > PIECE_BYTES]
        changes = {}
        for i, change in chain(self._runtime.map(one, small), map(one, large)):
            changes[i] = change
            progress(1)
        return changes

    def _pack(
        self,
        which: list[int],
        values: Sequence[tuple[str, bytes, Encoded]],
        seq: int,
        progress: Progress,
    ) -> dict[int, Set]:
        """Let many small values share blobs."""
        packs: list[tuple[str, list[Any]]] = []
        changes: dict[int, Set] = {}
        at = PACK_BYTES
        for i in which:
            key, generation, encoded = values[i]
            if at + encoded.length > PACK_BYTES:
                packs.append((f"p:{naming.unique(seq, self._runtime.uuid())}", []))
                at = 0
            blob, pieces = packs[-1]
            pieces.extend(encoded)
            place = Range(blob, at, encoded.length)
            changes[i] = Set(key, 0, generation, seq, place, encoded.facts, None)
            at += encoded.length
        for blob, pieces in packs:
            self._backend.put(self._layout.path(blob), pieces)
        progress(len(which))
        return changes

    # -- reading ----------------------------------------------------------------------------

    def at_hand(self, where: Location) -> Stored | None:
        """Return the value's bytes if no request is needed for them."""
        return self.cache.get(where.generation) if where.blob else cast("bytes", where.source)

    def fetch(
        self, where: Location, use: Callable[[Iterator[Buffer]], object] = take_all
    ) -> Stored:
        """Return the value's bytes; `use` is given them as they arrive, if they do, and takes all.

        Raises
        ------
        BlobNotFound
            The blob is gone: the value is no longer current, or somebody deleted it.
        ValueTooLargeError
            It is larger than this handle may read.
        """
        self._codec.check_size(where.key, where.nbytes, where.length)
        data = self.at_hand(where)
        if data is not None:
            self._meter.add(memory_hits=where.blob is not None)
            return data
        blob = cast("str", where.blob)
        span = _Span([0], blob, where.offset, [0], [where.length], [where.generation])
        return self._load(span, use)[0]

    def read(self, where: Location, dictionary: bytes) -> Unpacked:
        """Return a value, unpacked; a large one is unpacked while it arrives. See `fetch`."""
        unpacked = None

        def use(pieces: Iterator[Buffer]) -> None:
            nonlocal unpacked
            unpacked = self._unpack(where, pieces, where.length, dictionary)

        data = self.fetch(where, use)
        return unpacked or self._unpack(where, data, len(data), dictionary)

    def fetch_many(self, wanted: Locations, progress: Progress) -> list[Stored]:
        """Return the bytes of many values, in their order; neighbours in a blob are read as one."""
        if self._codec.max_bytes is not None:
            for where in wanted:
                self._codec.check_size(where.key, where.nbytes, where.length)
        found = self.cache.get_all(wanted.generations)
        self._meter.add(memory_hits=len(found) - found.count(None))
        if bytes in set(map(type, wanted.sources)):
            both = zip(wanted.sources, found, strict=True)
            found = [source if isinstance(source, bytes) else data for source, data in both]
        missing = [row for row, data in enumerate(found) if data is None]
        progress(len(found) - len(missing))
        spans = _spans(wanted, missing)
        small = [span for span in spans if span.ends[0] <= PIECE_BYTES]
        large = [span for span in spans if span.ends[0] > PIECE_BYTES]
        # What is itself read in parallel pieces must not wait in a thread for leaf work.
        one = self._load
        parts = chain(self._runtime.map(one, small), map(one, large))
        for span, datas in zip(chain(small, large), parts, strict=True):
            for row, data in zip(span.rows, datas, strict=True):
                found[row] = data
            progress(len(datas))
        return cast("list[Stored]", found)

    def _load(
        self, span: _Span, use: Callable[[Iterator[Buffer]], object] = take_all
    ) -> list[Stored]:
        """Return the bytes of neighbours in a blob; who wants them meanwhile shares them."""
        alone, length = len(span.rows) == 1, max(span.ends)
        path, source = self._path(span.blob), "memory_hits"
        parts: list[Stored] = []

        def cut(data: Stored) -> list[Stored]:
            if alone:
                return [data]
            whole = data if type(data) is bytes else bytes(data)
            return list(map(whole.__getitem__, map(slice, span.starts, span.ends)))

        def load() -> Stored:
            nonlocal source, parts
            if alone and (kept := self.cache.get(span.generations[0])) is not None:
                return kept  # by one who has just loaded it
            cleared = self.cache.cleared
            data, on_disk = self._blobs.load(path, span.offset, length, use)
            source = "disk_hits" if on_disk else "misses"
            parts = cut(data)
            if not on_disk or isinstance(parts[0], bytes):  # not a file that is mapped
                self.cache.add_all(zip(span.generations, parts, strict=True), cleared)
            return data

        data = self._blobs.flights.share(path, span.offset, length, load)
        self._meter.add(**{source: len(span.rows)})
        return parts or cut(data)

    def decode(self, where: Location, data: Stored, dictionary: bytes) -> Any:
        """Return the object. Runs code that the value brings along."""
        return next(self.decode_all(Locations.of([where]), [data], dictionary))[1]

    def decode_all(
        self, wanted: Locations, found: list[Stored], dictionary: bytes
    ) -> Iterator[tuple[str, Any]]:
        """Yield keys and objects, and take their bytes out of what was found."""
        read, intact = self._codec.read, self._intact
        found.reverse()
        for n, (key, generation, nbytes) in enumerate(
            zip(wanted.keys, wanted.generations, wanted.sizes, strict=True)
        ):
            data = found.pop()
            unpacked = type(data) is bytes and intact(data, dictionary, generation, nbytes)
            yield key, read(unpacked or self._unpack(wanted[n], data, len(data), dictionary), key)

    def _path(self, blob: str | None) -> str:
        return self._layout.path(blob) if blob else self._layout.index

    def _unpack(
        self,
        where: Location,
        data: Stored | Iterable[Buffer],
        length: int,
        dictionary: bytes,
    ) -> Unpacked:
        path = self._path(where.blob)
        try:
            with self._blobs.trusted(path):
                return codec.unpack(
                    data,
                    length,
                    dictionary=dictionary,
                    generation=where.generation,
                    path=path,
                    run=self._at_once,
                    keyring=self._keyring,
                    nbytes=where.nbytes,
                )
        except CorruptBlobError:
            self.cache.discard(where.generation)
            raise


def _spans(wanted: Locations, rows: list[int]) -> list[_Span]:
    """Return what reads some of those wanted, which must be in blobs."""
    blobs = [cast("str", wanted.sources[row]) for row in rows]
    numbers = {blob: number for number, blob in enumerate(dict.fromkeys(blobs))}
    of = np.array([numbers[blob] for blob in blobs], int)
    starts = np.array([wanted.offsets[row] for row in rows], np.int64)
    ends = starts + np.array([wanted.lengths[row] for row in rows], np.int64)
    order = np.lexsort((starts, of))
    of, starts, ends = of[order], starts[order], ends[order]
    apart = (of[1:] != of[:-1]) | (starts[1:] - ends[:-1] > _GAP_BYTES)
    spans = []
    for first, last in pairwise([0, *(np.flatnonzero(apart) + 1).tolist(), len(rows)]):
        begin = first
        while begin < last:
            offset = int(starts[begin])
            fitting = int(ends[begin:last].searchsorted(offset + PIECE_BYTES, "right"))
            piece = slice(begin, begin + max(fitting, 1))
            some = [rows[n] for n in order[piece].tolist()]
            generations = [wanted.generations[row] for row in some]
            begins, stops = ((edges[piece] - offset).tolist() for edges in (starts, ends))
            spans.append(_Span(some, blobs[order[begin]], offset, begins, stops, generations))
            begin = piece.stop
    return spans
