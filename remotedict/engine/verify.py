"""Verification: whether all that a dictionary names is there, and whole."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from remotedict.backend import NOT_MODIFIED, PIECE_BYTES, BlobNotFound
from remotedict.engine.blobs import Blobs
from remotedict.engine.cache import Cache
from remotedict.engine.reader import Reader
from remotedict.engine.vacuum import Tally
from remotedict.errors import (
    AccessDeniedError,
    CorruptBlobError,
    DictionaryChangedError,
    FormatVersionError,
    RemoteDictError,
)
from remotedict.pure.checking import check_value
from remotedict.pure.columns import SCHEMA
from remotedict.pure.records import Checkpoint, Log, Range
from remotedict.pure.references import References, Roll, listed
from remotedict.pure.table import decode as decode_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from remotedict.backend import BlobInfo, Buffer
    from remotedict.engine.core import Engine
    from remotedict.engine.index import Known
    from remotedict.engine.values import Progress
    from remotedict.pure.entry import Entry
    from remotedict.pure.records import Index, SegmentRef

_ATTEMPTS = 10
_PAGE = 1000
_WINDOW = 4096  # values that are looked at as one
_AHEAD = 4  # pieces of a large value
_SHOWN = 10
_DAMAGED = (CorruptBlobError, FormatVersionError)
_OF_VALUES = (
    "d.repair() says what it can bring back, such as an older version; a backup of the blob, or "
    "one that the store deleted softly, can be put in its place; or set the key anew"
)
_OF_INDEX = "d.repair() makes a new index of the segments, checkpoints and values that are whole"


class Finding(NamedTuple):
    """One blob that is missing or damaged.

    Attributes
    ----------
    blob : str
        Its path.
    problem : str
        What is wrong with it.
    keys : tuple of str
        The keys of which it has values, be they past ones; none for a part of the index.
    advice : str
        What can be done.
    """

    blob: str
    problem: str
    keys: tuple[str, ...]
    advice: str

    def __str__(self) -> str:
        keys = ", ".join(map(repr, self.keys[:_SHOWN])) + (", …" if len(self.keys) > _SHOWN else "")
        return f"{self.blob}: {self.problem}" + (f" (of {keys})" if keys else "")


@dataclass(frozen=True, repr=False)
class VerifyReport:
    """What a verification has found.

    Attributes
    ----------
    findings : tuple of Finding
        What is wrong; empty if nothing is.
    seq : int
        The commit as of which it was looked at.
    keys : int
        How many keys there are.
    checked : Tally
        Blobs that are needed.
    orphans : Tally
        Blobs that nothing needs: uploads under way, and what vacuum will delete. No error.
    strangers : Tally
        What lies there under names that aren't ours. No error.
    deep : bool
        Whether all bytes were read.
    """

    findings: tuple[Finding, ...]
    seq: int
    keys: int
    checked: Tally
    orphans: Tally
    strangers: Tally
    deep: bool

    @property
    def ok(self) -> bool:
        """Whether everything is there, and, as far as it was read, whole."""
        return not self.findings

    def __repr__(self) -> str:
        how = "read and checked" if self.deep else "there, and of the right size"
        lines = [
            f"Verified {self.keys:,} keys as of commit {self.seq}: {self.checked} blobs {how}"
            if self.ok
            else f"{len(self.findings)} of {self.checked.blobs:,} blobs are missing or damaged, "
            f"as of commit {self.seq}:"
        ]
        lines += [f"  {finding}" for finding in self.findings[:_SHOWN]]
        if len(self.findings) > _SHOWN:
            lines.append(f"  … and {len(self.findings) - _SHOWN} more in .findings")
        lines += dict.fromkeys(f"  {finding.advice}" for finding in self.findings)
        if self.orphans.blobs:
            lines.append(f"  {self.orphans} blobs are needed no more; d.vacuum() deletes them")
        return "\n".join(lines)


class Verification:
    """Looks at everything that one state names, past all caches, beside those who write.

    What is found wrong is judged again by a newer state: if that doesn't need the blob any more,
    it was deleted rightly. If it does, it was needed all the time, for what is off the list is
    never listed again.
    """

    def __init__(self, engine: Engine, *, deep: bool) -> None:
        self._engine = engine
        self._backend = engine.backend
        self._layout = engine.layout
        self._deep = deep
        blobs = Blobs(engine.backend, engine.runtime, Cache(0))
        self._reader = Reader(blobs, engine.layout, engine.runtime, engine.keyring)
        self._suspects: dict[str, str] = {}  # by reference; "" is the index

    def run(self, progress: Progress) -> VerifyReport:
        """Do it; `progress` is told how many blobs have been looked at."""
        try:
            return self._run(progress)
        except AccessDeniedError as exc:
            msg = (
                f"dictionary {self._layout.folder!r} can't be verified with these credentials: "
                f"verify lists and reads blobs (a SAS needs sp=rl) ({exc})"
            )
            raise AccessDeniedError(msg) from exc

    def _run(self, progress: Progress) -> VerifyReport:
        try:
            known, log = self._loaded()
        except (CorruptBlobError, DictionaryChangedError) as exc:
            return self._broken(exc)
        if known.index is None:
            return self._without_index(progress)
        references = References(known.state, known.index, log)
        tallies = self._list(Roll(references), known, progress)
        if self._deep:
            self._read_index(known.index, log)
            self._read_values(known, progress)
        try:
            findings = self._judged_anew() if self._suspects else []
        except (CorruptBlobError, DictionaryChangedError) as exc:
            return self._broken(exc)
        return VerifyReport(
            tuple(findings), known.state.seq, len(known.state), *tallies, self._deep
        )

    def _broken(self, exc: RemoteDictError) -> VerifyReport:
        """Return what there is to say if the index can't be read."""
        blob = exc.blob if isinstance(exc, CorruptBlobError) else self._layout.index
        finding = Finding(blob, _reason(exc), (), _OF_INDEX)
        return VerifyReport((finding,), 0, 0, Tally(1), Tally(), Tally(), self._deep)

    def _without_index(self, progress: Progress) -> VerifyReport:
        """Return what there is to say of a dictionary that was never written, or so it seems."""
        orphans = Tally()
        for blob in self._listing():
            if self._layout.reference(blob.name):
                orphans = orphans.plus(blob.size)
        if self._engine.index.now().index is not None:  # it was made just now
            return self._run(progress)
        problem = "it isn't there, though there are blobs that it must have named"
        finding = Finding(self._layout.index, problem, (), _OF_INDEX)
        findings = (finding,) if orphans.blobs else ()
        return VerifyReport(findings, 0, 0, Tally(), orphans, Tally(), self._deep)

    def _loaded(self) -> tuple[Known, Sequence[SegmentRef]]:
        """Return the state now, and the segments that its log names."""
        for _ in range(_ATTEMPTS):
            known = self._engine.index.since(self._engine.index.ticket())
            try:
                return known, self._engine.commits.log(known.index) if known.index else ()
            except BlobNotFound as exc:  # a newer one has taken its place, or it is missing
                missing = exc
        raise CorruptBlobError(str(missing), "the index names it, but it isn't there")

    # -- what is there ----------------------------------------------------------------------

    def _listing(self) -> Iterator[BlobInfo]:
        for kind in "sclv":  # packs are below the folder of the values
            yield from self._backend.list(self._layout.path(f"{kind}:"))

    def _list(self, roll: Roll, known: Known, progress: Progress) -> tuple[Tally, Tally, Tally]:
        """Compare the listing with what is needed; count what is, and what isn't."""
        checked, orphans, strangers = Tally(), Tally(), Tally()
        rows = self._listing()
        while page := list(islice(rows, _PAGE)):
            ours = []
            for blob in page:
                if reference := self._layout.reference(blob.name):
                    ours.append((reference, blob.size))
                else:
                    strangers = strangers.plus(blob.size)
            for (reference, size), problem in zip(ours, roll.see(ours), strict=True):
                if problem is None:
                    orphans = orphans.plus(size)
                    continue
                checked = checked.plus(size)
                if problem:
                    self._suspects[reference] = problem
            progress(len(page))
        for reference in roll.missing(known.state):
            self._suspects[reference] = "it isn't there"
            checked = checked.plus(0)
        return checked, orphans, strangers

    # -- what it holds ----------------------------------------------------------------------

    def _read_index(self, index: Index, log: Sequence[SegmentRef]) -> None:
        for ref in (*log, *index.segments):
            self._try(ref.blob, lambda ref=ref: self._reader.segment(ref, index))  # type: ignore[misc]
        if named := index.log:
            self._try(named.blob, lambda: self._reader.record(named, Log, index))
        if index.checkpoint:
            self._try(index.checkpoint.blob, lambda: self._read_checkpoint(index))

    def _read_checkpoint(self, index: Index) -> None:
        assert index.checkpoint is not None  # noqa: S101 - for the type checker
        path, record, data = self._reader.record(index.checkpoint, Checkpoint, index)
        table = decode_table(record.table, data, path)
        for name in SCHEMA:
            _ = table.columns[name]  # each is unpacked, and checked, when it is first needed

    def _read_values(self, known: Known, progress: Progress) -> None:
        """Read all values, also past ones; neighbours in one blob as one."""
        assert known.index is not None  # noqa: S101 - for the type checker
        dictionary, keyring = known.index.dictionary, self._engine.keyring
        values = listed(known.state)

        def check(entry: Entry, data: Iterable[Buffer], path: str) -> None:
            check_value(
                data,
                dictionary=dictionary,
                generation=entry.generation,
                path=path,
                keyring=keyring,
            )

        while window := list(islice(values, _WINDOW)):
            for entry in (entry for _, entry in window if isinstance(entry.place, bytes)):
                data = entry.place
                assert isinstance(data, bytes)  # noqa: S101 - for the type checker
                self._try("", lambda e=entry, d=data: check(e, [d], self._layout.index))  # type: ignore[misc]
            places = {}
            for key, entry in window:
                if not isinstance(entry.place, bytes):
                    where = entry.range(key)
                    places[where.blob, where.offset] = (where, entry)
            spans = _spans([places[at] for at in sorted(places)])

            def read(span: list[tuple[Range, Entry]]) -> None:
                self._read_span(span, check)

            small = [span for span in spans if span[0][0].length <= PIECE_BYTES]
            for _ in self._engine.runtime.map(read, small):
                pass
            for span in spans:
                if span[0][0].length > PIECE_BYTES:
                    read(span)
            progress(0)

    def _read_span(
        self,
        span: list[tuple[Range, Entry]],
        check: Callable[[Entry, Iterable[Buffer], str], None],
    ) -> None:
        """Read neighbouring values as one; a large one alone, in pieces that nobody keeps."""
        first, last = span[0][0], span[-1][0]
        path = self._layout.path(first.blob)
        if len(span) == 1:
            self._try(first.blob, lambda: check(span[0][1], self._pieces(first), path))
            return

        def read() -> None:
            whole = Range(first.blob, first.offset, last.offset + last.length - first.offset)
            data = memoryview(b"".join(self._pieces(whole)))
            for where, entry in span:
                at = where.offset - first.offset
                check(entry, [data[at : at + where.length]], path)

        self._try(first.blob, read)

    def _pieces(self, where: Range) -> Iterator[Buffer]:
        path, end = self._layout.path(where.blob), where.offset + where.length

        def one(at: int) -> Buffer:
            got = self._backend.get(path, range=(at, min(PIECE_BYTES, end - at)))
            assert got is not NOT_MODIFIED  # noqa: S101 - for the type checker
            return got.data

        starts = range(where.offset, end, PIECE_BYTES)
        if len(starts) == 1:
            return map(one, starts)
        return self._engine.runtime.map(one, starts, window=_AHEAD)

    def _try(self, reference: str, read: Callable[[], object]) -> None:
        """Take down what is wrong with a blob, if reading it says so."""
        try:
            read()
        except BlobNotFound:
            self._suspects.setdefault(reference, "it isn't there, or ends too early")
        except _DAMAGED as exc:
            self._suspects.setdefault(reference, _reason(exc))

    # -- what it means ----------------------------------------------------------------------

    def _judged_anew(self) -> list[Finding]:
        """Return what is wrong with those blobs that are still needed."""
        known, log = self._loaded()
        assert known.index is not None  # noqa: S101 - it has been there before
        references = References(known.state, known.index, log)
        blobs = sorted(filter(None, self._suspects))
        needed = dict(zip(blobs, references.needed(blobs), strict=True))
        keys: dict[str, dict[str, None]] = {blob: {} for blob in blobs if needed[blob]}
        if "" in self._suspects:
            keys[""] = {}
        for key, entry in listed(known.state):
            blob = entry.blob(key) or ""
            if blob in keys:
                keys[blob][key] = None
        return [
            Finding(
                self._layout.path(blob) if blob else self._layout.index,
                self._suspects[blob],
                tuple(names),
                _OF_INDEX if blob in references.named or not blob else _OF_VALUES,
            )
            for blob, names in keys.items()
        ]


def _reason(exc: RemoteDictError) -> str:
    """Return what an error says beside the name of its blob."""
    blob = exc.blob if isinstance(exc, _DAMAGED) else ""
    return str(exc).removeprefix(f"blob {blob!r} is damaged or not of remotedict: ")


def _spans(values: Iterable[tuple[Range, Entry]]) -> list[list[tuple[Range, Entry]]]:
    """Group values, in the order of their places, by what may be read as one."""
    spans: list[list[tuple[Range, Entry]]] = []
    for where, entry in values:
        begin = spans[-1][0][0] if spans else None
        if (
            begin is not None
            and begin.blob == where.blob
            and where.offset + where.length - begin.offset <= PIECE_BYTES
        ):
            spans[-1].append((where, entry))
        else:
            spans.append([(where, entry)])
    return spans
