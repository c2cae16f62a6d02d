"""Values: where they are put, and how they are found again."""

from __future__ import annotations

from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from remotedict.backend import PIECE_BYTES
from remotedict.engine.reader import take_all
from remotedict.errors import CorruptBlobError
from remotedict.pure import codec, naming
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
    from remotedict.pure.entry import Entry
    from remotedict.pure.keyring import Keyring
    from remotedict.pure.naming import Layout
    from remotedict.pure.pieces import Stored

    Progress = Callable[[int], None]
    _Wanted = tuple[str, int, int, str, Entry]  # blob, offset, length; whose

INLINE_TOTAL_BYTES = 256 * 1024
"""A commit carries no more than this inline: it may have to be sent several times."""

PACKED_BYTES = 256 * 1024
"""In a bulk write, smaller values than this share packs."""

PACK_BYTES = 16 * 1024 * 1024
"""How large a pack may get."""

_GAP_BYTES = 64 * 1024  # two ranges of one pack that are closer than this are read as one


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
        keyring: Keyring | None = None,
    ) -> None:
        self._backend = backend
        self._layout = layout
        self._runtime = runtime
        self._blobs = blobs
        self._meter = meter
        self._inline_bytes = inline_bytes
        self._keyring = keyring
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

    def at_hand(self, entry: Entry) -> Stored | None:
        """Return the value's bytes if no request is needed for them."""
        if isinstance(entry.place, bytes):
            return entry.place
        return self.cache.get(entry.generation)

    def fetch(
        self, key: str, entry: Entry, use: Callable[[Iterator[Buffer]], object] = take_all
    ) -> Stored:
        """Return the value's bytes; `use` is given them as they arrive, if they do, and takes all.

        Raises
        ------
        BlobNotFound
            The blob is gone: the entry is no longer current, or somebody deleted it.
        """
        data = self.at_hand(entry)
        if data is not None:
            self._meter.add(memory_hits=not isinstance(entry.place, bytes))
            return data
        return self._load([_wanted(key, entry)], use)[0]

    def read(self, key: str, entry: Entry, dictionary: bytes) -> Unpacked:
        """Return a value, unpacked; a large one is unpacked while it arrives. See `fetch`."""
        unpacked = None

        def use(pieces: Iterator[Buffer]) -> None:
            nonlocal unpacked
            unpacked = self._unpack(key, entry, pieces, entry.stored, dictionary)

        data = self.fetch(key, entry, use)
        return unpacked or self._unpack(key, entry, data, len(data), dictionary)

    def fetch_many(
        self, items: Sequence[tuple[str, Entry]], progress: Progress
    ) -> dict[str, Stored]:
        """Return the bytes of many values by key; neighbours in one blob are read as one."""
        found: dict[str, Stored] = {}
        wanted: list[_Wanted] = []
        hits = 0
        kept = self.cache.get_all([entry.generation for _, entry in items])
        for (key, entry), data in zip(items, kept, strict=True):
            place = entry.place
            if type(place) is Range and data is None:
                wanted.append((place.blob, place.offset, place.length, key, entry))
            elif type(place) is bytes:
                found[key] = place
            elif data is not None:
                found[key] = data
                hits += 1
            else:
                wanted.append(_wanted(key, entry))
        self._meter.add(memory_hits=hits)
        progress(len(found))

        def one(span: list[_Wanted]) -> dict[str, Stored]:
            read = self._load(span)
            return {key: data for (_, _, _, key, _), data in zip(span, read, strict=True)}

        spans = _spans(wanted)
        small = [span for span in spans if span[0][2] <= PIECE_BYTES]
        large = [span for span in spans if span[0][2] > PIECE_BYTES]
        for done in chain(self._runtime.map(one, small), map(one, large)):
            found |= done
            progress(len(done))
        return found

    def _load(
        self, span: list[_Wanted], use: Callable[[Iterator[Buffer]], object] = take_all
    ) -> list[Stored]:
        """Return the bytes of neighbours in a blob; who wants them meanwhile shares them."""
        blob, start = span[0][:2]
        length = max(offset + size for _, offset, size, _, _ in span) - start
        path, source = self._layout.path(blob), "memory_hits"
        parts: list[Stored] = []

        def cut(data: Stored) -> list[Stored]:
            if len(span) == 1:
                return [data]
            return [bytes(data[at - start : at - start + size]) for _, at, size, _, _ in span]

        def load() -> Stored:
            nonlocal source, parts
            if len(span) == 1 and (kept := self.cache.get(span[0][4].generation)) is not None:
                return kept  # by one who has just loaded it
            cleared = self.cache.cleared
            data, on_disk = self._blobs.load(path, start, length, use)
            source = "disk_hits" if on_disk else "misses"
            parts = cut(data)
            self.cache.add_all(
                (
                    (entry.generation, part)
                    for (_, _, _, _, entry), part in zip(span, parts, strict=True)
                    if not on_disk or isinstance(part, bytes)  # and not a file that is mapped
                ),
                cleared,
            )
            return data

        data = self._blobs.flights.share(path, start, length, load)
        self._meter.add(**{source: len(span)})
        return parts or cut(data)

    def decode(self, key: str, entry: Entry, data: Stored, dictionary: bytes) -> Any:
        """Return the object. Runs code that the value brings along."""
        unpacked = type(data) is bytes and self._intact(data, dictionary, entry.generation)
        return codec.load(unpacked or self._unpack(key, entry, data, len(data), dictionary), key)

    def decode_all(
        self, items: Iterable[tuple[str, Entry]], found: dict[str, Stored], dictionary: bytes
    ) -> Iterator[tuple[str, Any]]:
        """Yield the objects, and take their bytes out of what was found."""
        load, intact = codec.load, self._intact
        for key, entry in items:
            data = found.pop(key)
            unpacked = type(data) is bytes and intact(data, dictionary, entry.generation)
            yield (
                key,
                load(unpacked, key) if unpacked else self.decode(key, entry, data, dictionary),
            )

    def _unpack(
        self,
        key: str,
        entry: Entry,
        data: Stored | Iterable[Buffer],
        length: int,
        dictionary: bytes,
    ) -> Unpacked:
        blob = entry.blob(key)
        path = self._layout.path(blob) if blob else self._layout.index
        try:
            with self._blobs.trusted(path):
                return codec.unpack(
                    data,
                    length,
                    dictionary=dictionary,
                    generation=entry.generation,
                    path=path,
                    run=self._at_once,
                    keyring=self._keyring,
                )
        except CorruptBlobError:
            self.cache.discard(entry.generation)
            raise


def _wanted(key: str, entry: Entry) -> _Wanted:
    where = entry.range(key)
    return where.blob, where.offset, where.length, key, entry


def _spans(wanted: list[_Wanted]) -> list[list[_Wanted]]:
    """Return neighbours together: each list is read by one request."""
    wanted.sort(key=itemgetter(0, 1))
    spans: list[list[_Wanted]] = []
    blob, start, end = "", 0, 0
    for item in wanted:
        at = item[1]
        stop = at + item[2]
        if item[0] == blob and at - end <= _GAP_BYTES and stop - start <= PIECE_BYTES:
            spans[-1].append(item)
            end = max(end, stop)
        else:
            spans.append([item])
            blob, start, end = item[0], at, stop
    return spans
