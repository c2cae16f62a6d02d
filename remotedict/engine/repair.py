"""Repair: an index that is lost, or names what is damaged, is replaced by one made anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from remotedict.backend import BlobNotFound, PreconditionFailed
from remotedict.engine.blobs import Blobs
from remotedict.engine.cache import Cache
from remotedict.engine.commits import Commits
from remotedict.engine.reader import Reader
from remotedict.engine.rebuilding import UNSEEN, Rebuilding, Remains
from remotedict.engine.replacing import current, replace_index
from remotedict.engine.runtime import log
from remotedict.engine.survey import Survey
from remotedict.errors import (
    CorruptBlobError,
    DecryptionError,
    DictionaryChangedError,
    SignatureError,
    StoreUnavailableError,
)
from remotedict.pure import finding, naming
from remotedict.pure.records import Index, decode

if TYPE_CHECKING:
    from remotedict.backend import Got
    from remotedict.engine.core import Engine
    from remotedict.engine.rebuilding import Rebuilt
    from remotedict.engine.values import Progress
    from remotedict.pure.state import State

_ATTEMPTS = 10
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """What `repair` has found, and what it has done about it.

    Attributes
    ----------
    problem : str
        What is wrong with the index, or with what it names; empty if nothing is.
    rebuilt : bool
        Whether there is a new index now (with ``dry_run``: would be).
    dry_run : bool
        Whether nothing was written.
    commit : int
        The number of the newest commit.
    keys : int
        How many keys there are.
    restored : dict
        The keys that only their own values told of, each with the blob that has it.
    doubtful : dict
        The keys that are not what they were, as it seems: a lost commit seems to have set or
        deleted them, each with its number. A damaged blob said so, which may be wrong.
    lost : dict
        The keys whose values are gone or damaged, each with what is wrong.
    fallen_back : dict
        Those of them that have an older value again, each with the version that was.
    lost_commits : tuple
        What is known to be lost, as pairs of a first and a last number. A last one of None: all
        after that, if there were any.
    damaged : dict
        The blobs that aren't whole, each with what is wrong.
    unused : int
        How many values were found that no commit names: left over from writes that never came to
        their end, or named by a commit that is lost; of several of a key the newest was restored.
    foreign : int
        How many segments, checkpoints and values of other dictionaries lie in this folder.
    kept : str
        Where the bytes of the damaged index are kept; empty if there are none.
    notes : tuple of str
        What else to know.
    """

    problem: str = ""
    rebuilt: bool = False
    dry_run: bool = False
    commit: int = 0
    keys: int = 0
    restored: dict[str, str] = field(default_factory=dict)
    doubtful: dict[str, int] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    fallen_back: dict[str, int] = field(default_factory=dict)
    lost_commits: tuple[tuple[int, int | None], ...] = ()
    damaged: dict[str, str] = field(default_factory=dict)
    unused: int = 0
    foreign: int = 0
    kept: str = ""
    notes: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether nothing was wrong."""
        return not (self.problem or self.lost)

    def __repr__(self) -> str:
        """Return all of it that isn't nothing, for people, a line each."""
        would = "would be " if self.dry_run else ""
        lines = [f"problem: {self.problem}"] if self.problem else []
        lines += [f"the index {would or 'was '}rebuilt"] if self.rebuilt else []
        lines += [
            f"{title}: {_shown(found)}"
            for title, found in (
                (f"{would}restored from their values alone", self.restored),
                ("perhaps not what they were", self.doubtful),
                ("lost values", self.lost),
                (f"{would}set to an older version", self.fallen_back),
                ("lost commits", [_span(*span) for span in self.lost_commits]),
                ("damaged blobs", self.damaged),
            )
            if found
        ]
        lines += [f"values that nothing names: {self.unused}"] if self.unused else []
        lines += [f"blobs of other dictionaries: {self.foreign}"] if self.foreign else []
        lines += [f"the damaged index {would or 'is '}kept as {self.kept}"] if self.kept else []
        lines += self.notes
        head = f"{self.keys} keys as of commit {self.commit}"
        head += "" if lines else "; nothing is wrong"
        return "RepairReport: " + "\n  ".join([head, *lines])


def _seen(got: Got | None) -> tuple[str, bytes] | None:
    return (got.etag, bytes(got.data)) if got else None


def _shown(found: Mapping[str, object] | list[str]) -> str:
    listed = (
        [f"{key!r} ({why})" for key, why in found.items()] if isinstance(found, Mapping) else found
    )
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return "; ".join(listed[:_SHOWN]) + more


def _span(first: int, last: int | None) -> str:
    if last is None:
        return f"those after {first - 1}, if there were any"
    return f"{first} to {last}" if last > first else str(first)


class Repair:
    """Makes a new index for a dictionary, if it needs one. Deletes nothing.

    The new one has another incarnation, so that all who knew the old one notice; and it takes the
    place of just that index which was found damaged, or of none:

    1. Two repairs at once: one compare-and-swap wins. The other looks again, and finds it whole.
    2. A writer who needs none of what is damaged commits meanwhile: the etag has moved, and all
       begins again, with this commit.
    3. The reply is lost: while the etag is the old one, the same is put again. Once it has moved,
       the incarnation tells whose it is.
    4. The index is lost, made anew, used and lost again meanwhile: what was written on it is seen
       before the swap, and all begins again. (Only if it comes within that one request, it isn't.)
    5. An upload is under way: its writer knows the old incarnation, and can't commit it. One of
       this handle can: if the index was lost, and its horizon with it, the new one refuses it.

    Parameters
    ----------
    engine : Engine
        Of the dictionary.
    progress : callable
        Is told of each blob that is read.
    dry_run : bool
        Whether nothing is to be written.
    """

    def __init__(self, engine: Engine, progress: Progress, *, dry_run: bool) -> None:
        self._engine = engine
        self._backend = engine.backend
        self._layout = engine.layout
        self._progress = progress
        self._dry_run = dry_run
        self.unwritten: set[str] = set()  # references that the state names, after a dry run
        # What counts is what the store has, and not a cache.
        blobs = Blobs(engine.backend, engine.runtime, Cache(0))
        self._reader = Reader(blobs, engine.layout, engine.runtime, engine.keyring)

    def run(self) -> tuple[RepairReport, Index | None, State | None]:
        """Do it; return what there is to report, and the dictionary as it is then.

        Whether the values are there that it lists is not looked at.
        """
        with self._engine.upkeep.held_off():
            for _ in range(_ATTEMPTS):
                try:
                    return self._attempt()
                except PreconditionFailed as exc:
                    log.debug("the repair begins again: %s", exc)
        msg = f"others wrote the index {_ATTEMPTS} times in a row while it was looked at"
        raise StoreUnavailableError(msg)

    def _attempt(self) -> tuple[RepairReport, Index | None, State | None]:
        """Do it, unless the index becomes another one meanwhile: PreconditionFailed."""
        got = current(self._engine)
        index, state, problem = self._read(got)
        if index and state is not None:
            report = RepairReport(dry_run=self._dry_run, commit=index.seq, keys=len(state))
            return report, index, state
        # Not because of one answer that was cut short, nor because it has changed meanwhile.
        if _seen(current(self._engine)) != _seen(got):
            raise PreconditionFailed(self._layout.index)
        known = self._engine.index.known
        known_index = known.index if known else None
        if known_index and index and known_index.incarnation != index.incarnation:
            known_index = None
        owner = index or known_index
        survey = self._survey(owner.dictionary if owner else None, got, problem)
        if not survey.dictionary:
            return RepairReport(dry_run=self._dry_run, damaged=survey.damaged), None, None
        remains = Remains(
            survey,
            index,
            got.data if got and not index else b"",
            known_index,
            known.settled if known and known_index else None,
        )
        dry_run = self._dry_run
        rebuilding = Rebuilding(self._engine, self._reader, remains, dry_run=dry_run)
        rebuilt = rebuilding.run()
        self.unwritten = rebuilding.unwritten
        if got is None and not dry_run:
            self._check_unseen(rebuilt.index.seq - UNSEEN // 2)
        kept = self._replaced(got, rebuilt)
        policy_lost = rebuilt.index.history is None and not owner
        note = (
            "the history policy was in the index alone: it is 'all' now, so that nothing is "
            "dropped; set d.history_policy to what it was"
        )
        report = RepairReport(
            problem=problem,
            rebuilt=True,
            dry_run=dry_run,
            commit=rebuilt.state.seq,
            keys=len(rebuilt.state),
            restored=rebuilt.restored,
            doubtful=rebuilt.doubtful,
            lost_commits=tuple(rebuilt.lost),
            damaged=survey.damaged,
            unused=rebuilt.unused,
            foreign=survey.foreign,
            kept=kept,
            notes=(note,) if policy_lost else (),
        )
        return report, rebuilt.index, rebuilt.state

    # -- reading ----------------------------------------------------------------------------

    def _read(self, got: Got | None) -> tuple[Index | None, State | None, str]:
        """Return what the index blob says, and what it names; or else what is wrong with that."""
        path, index = self._layout.index, None
        if got is None:
            return None, None, f"blob {path!r} is gone"
        try:
            index, _ = decode(got.data, Index, path, self._engine.keyring)
            return index, self._load(index), ""
        except BlobNotFound as exc:
            return index, None, f"blob {str(exc)!r} is gone, which the index names"
        except (CorruptBlobError, DictionaryChangedError) as exc:
            if index is None and isinstance(exc, SignatureError | DecryptionError):
                raise  # it is whole, and the keys are others
            return index, None, str(exc)

    def _load(self, index: Index) -> State:
        """Return the state of an index, all that it names being whole."""
        state, _ = self._reader.load(index, {})
        commits = Commits(self._engine.index, self._reader, self._engine.runtime)
        for ref in commits.log(index):
            self._reader.segment(ref, index)
            self._progress(1)
        return state

    def _survey(self, dictionary: bytes | None, got: Got | None, problem: str) -> Survey:
        """Return what is there; CorruptBlobError if there is nothing but a damaged index."""
        survey = Survey(self._engine, dictionary, self._progress)
        if got and not survey.dictionary:  # all that there was may have been in the index
            path, keyring = self._layout.index, self._engine.keyring
            inline = finding.values(got.data, path, keyring)
            survey.dictionary = next((header.dictionary for _, _, header in inline), b"")
            if not survey.dictionary:
                reason = f"{problem}; and nothing is left that a new one could be made of"
                raise CorruptBlobError(path, reason)
        return survey

    # -- writing ----------------------------------------------------------------------------

    def _check_unseen(self, seq: int) -> None:
        """Raise PreconditionFailed if others have written on a new index since.

        It has come and gone, so that there is none, as before. But what was written on it has
        names beyond `seq`, which is beyond all commits that can have been made before that.
        """
        for prefix in self._layout.prefixes:
            for info in self._backend.list(prefix):
                reference = self._layout.reference(info.name)
                if reference and naming.born(reference) >= seq:
                    raise PreconditionFailed(info.name)

    def _replaced(self, got: Got | None, rebuilt: Rebuilt) -> str:
        """Put the new index in the place of the damaged one; return where that is kept."""
        index, kept = rebuilt.index, ""
        if got:
            unique = naming.unique(index.seq, self._engine.runtime.uuid())
            kept = self._layout.aside(unique)
        if self._dry_run:
            if _seen(current(self._engine)) != _seen(got):
                raise PreconditionFailed(self._layout.index)  # as the swap would
            return kept
        if got:
            self._backend.put(kept, got.data)
        old = got.etag if got else None
        etag = replace_index(self._engine, index, old, self._engine.keyring, fresh=True)
        self._engine.index.accept(index, etag, rebuilt.state, rebuilt.state)
        return kept
