"""Rebuilding: a new index from the segments, checkpoints and values that are left of an old one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from remotedict.engine.survey import Found
from remotedict.pure import finding, naming, plan
from remotedict.pure.chain import BEGINNING, Base, Chain, Gap, Link, choose
from remotedict.pure.draft import Draft, versioned
from remotedict.pure.entry import Entry
from remotedict.pure.records import (
    Annotate,
    CheckpointRef,
    Commit,
    Facts,
    Index,
    Log,
    LogRef,
    SegmentRef,
    Set,
    Unlock,
    encode,
    glean,
)
from remotedict.pure.references import generations
from remotedict.pure.state import State

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from remotedict.backend import Buffer
    from remotedict.engine.core import Engine
    from remotedict.engine.reader import Reader
    from remotedict.engine.survey import Survey
    from remotedict.pure.records import Change

_MEMORY = "~"  # what this process knows itself, where a reference would stand

UNSEEN = 1024
"""More commits than an index can hold: no number is used a second time."""

_FILLED = 4096  # a larger gap is where the log begins


@dataclass(frozen=True, slots=True)
class Remains:
    """What there is to rebuild from.

    `index` is the one in the store, if it can be read, and `damaged` are its bytes, if it can't.
    `known` is what this process has known of it before, and `settled` the state as of the newest
    commit that wasn't in its tail.
    """

    survey: Survey
    index: Index | None
    damaged: Buffer
    known: Index | None
    settled: State | None


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A new index, its state, and what is to be said about it.

    `lost` are ranges of commits; what comes after a range without an end is not known.
    `restored` has, by key, the path at which its value was found; `doubtful` the lost commit that
    seems to have changed a key otherwise; `unused` is how many values were found besides that
    nothing names.
    """

    index: Index
    state: State
    lost: list[tuple[int, int | None]]
    restored: dict[str, str]
    doubtful: dict[str, int]
    unused: int


class Rebuilding:
    """Makes a new index, and writes what it names; nothing if `dry_run`."""

    def __init__(self, engine: Engine, reader: Reader, remains: Remains, *, dry_run: bool) -> None:
        self._engine = engine
        self._reader = reader
        self._layout = engine.layout
        self._uuid = engine.runtime.uuid
        self._keyring = engine.keyring
        self._survey = remains.survey
        self._damaged = remains.damaged
        self._old = remains.index
        self._known = remains.known
        self._settled = remains.settled
        self._dry_run = dry_run
        self._links = {link.blob: link for link in self._survey.links}
        self._log: list[SegmentRef] = []
        self._index = plan.genesis(self._survey.dictionary, engine.runtime.uuid())
        self._certain = 0
        self.unwritten: set[str] = set()

    def run(self) -> Rebuilt:
        """Do it."""
        chain, state = self._chain()
        steps, lost = chain.steps, [(gap.first, gap.last) for gap in chain.gaps]
        open_end: list[tuple[int, int | None]] = []
        seq = chain.seq
        if self._old is None:  # there may have been more
            seen = [chain.seq, self._survey.seq, self._known.seq if self._known else 0]
            seq = max(*seen, *(link.last for link in self._survey.links)) + UNSEEN
            steps = [*steps, Gap(chain.seq + 1, seq, self._uuid(), chain.sealed)]
            open_end = [(chain.seq + 1, None)]
        old = self._old or self._known
        # Until the new index is there nothing beyond is certain: others may be quicker, and these
        # blobs are then left over. Nor may a vacuum that has begun before take them for garbage.
        horizons = (old.horizon if old else 0, self._survey.horizon)
        self._certain = max(chain.seq, *horizons)
        horizon = (old.horizon, old.horizon_seq) if self._old and old else (seq, seq)
        self._index = replace(
            self._index,
            features=[*old.features] if old else [],
            revision=old.revision + 1 if old else 1,
            seq=seq,
            horizon=max(horizon[0], self._survey.horizon),
            horizon_seq=max(horizon[1], self._survey.horizon),
            moved=old.moved + 1 if old else 0,
            history=old.history if old else None,
        )
        self._log = [_ref(link) for link in chain.before]
        state = self._followed(state, steps)
        gaps = [step for step in steps if isinstance(step, Gap)]
        found, unused = self._found(state, chain, gaps)
        doubtful = self._doubtful(state, found, gaps)
        state = self._restored(state, found)
        restored = {key: self._path(one) for key, one in found.items()}
        index = self._laid_out(state)
        return Rebuilt(index, state, [*lost, *open_end], restored, doubtful, unused)

    # -- the chain --------------------------------------------------------------------------

    def _chain(self) -> tuple[Chain, State]:
        """Return the newest chain, and the state that it begins with."""
        links, bases, states = [*self._survey.links], [BEGINNING], {"": State.empty()}
        if self._old:
            seq = self._old.settled
            ids = tuple(commit.id for commit in self._old.tail)
            links.append(Link("", seq + 1, self._old.base, ids, self._old.seq))
        known, settled = self._known, self._settled
        if known and settled is not None:
            if known.tail:
                links.append(Link.of(known.tail, known.base, certain=known.seq, blob=_MEMORY))
            if settled.seq:
                bases.append(Base(settled.seq, settled.head, _MEMORY))
                states[_MEMORY] = settled
        chain = choose(bases, links)
        for base, state in self._survey.bases():
            bases.append(base)
            states[base.blob] = state
            chain = choose(bases, links)
            if not chain.gaps and chain.base.is_certain:
                break
            # Only the one that is needed stays in memory.
            bases = [one for one in bases if one in (BEGINNING, chain.base)]
            states = {one.blob: states[one.blob] for one in bases}
        return chain, states[chain.base.blob]

    def _followed(self, state: State, steps: Sequence[Link | Gap]) -> State:
        """Return the state after these steps, and see that the log names them."""
        broken = False
        for step in steps:
            if isinstance(step, Gap):
                self._fill(step, state.head)
                state, broken = _resumed(state, step), True
                continue
            for commit in self._commits(step):
                state = state.apply(_fitting(commit, state) if broken else commit)
                if state.due_for_rebase():
                    state = state.rebased()
        return state

    def _commits(self, link: Link) -> list[Commit]:
        """Return the commits of a link; if it isn't a whole segment already, make it one."""
        known = {"": self._old, _MEMORY: self._known}
        if link.blob in known:
            index = known[link.blob]
            commits = index.tail if index else []
        else:
            ref = _ref(self._links[link.blob])
            commits = self._reader.segment(ref, self._index).commits
            if link == self._links[link.blob]:
                self._log.append(ref)
                return commits
        commits = [commit for commit in commits if link.first <= commit.seq <= link.last]
        return self._seal(commits, link.base)

    def _seal(self, commits: list[Commit], base: bytes) -> list[Commit]:
        """Write commits as a segment that the log names; return them as they are read there."""
        if not commits:
            return []
        previous = self._log[-1].blob if self._log else ""
        index = replace(self._index, seq=self._certain)
        segment = plan.seal(index, commits, base, previous, self._uuid(), self._keyring)
        self._put(segment.ref.blob, segment.blob)
        self._log.append(segment.ref)
        return segment.commits

    def _fill(self, gap: Gap, base: bytes) -> None:
        """Let the log go on over a gap, by commits that change nothing."""
        if gap.last - gap.first >= _FILLED:
            self._log.clear()
            return
        seqs = range(gap.first, gap.last + 1)
        ids = [*(self._uuid() for _ in seqs[1:]), gap.head]
        now = self._now()
        self._seal(
            [Commit(id_, seq, now, "", "lost", []) for id_, seq in zip(ids, seqs, strict=True)],
            base,
        )

    # -- values -----------------------------------------------------------------------------

    def _found(
        self, state: State, chain: Chain, gaps: Sequence[Gap]
    ) -> tuple[dict[str, Found], int]:
        """Return, by key, the values that lost commits may have named; and how many others.

        A value belongs to a commit after the one that its writer knew when it began to upload,
        and before the blob that tells of its commit. So one that nothing names can belong to a
        gap if it was begun in it, or taken by the store after what comes before the gap.
        """
        if not gaps:
            return {}, 0

        def fits(born: int, last: int, time: float, since: int = -1) -> bool:
            return any(
                since < gap.first
                and (
                    gap.first <= last <= gap.last
                    if last >= 0
                    else born < gap.last and (born >= gap.first - 1 or time >= gap.sealed)
                )
                for gap in gaps
            )

        links = [step for step in chain.steps if isinstance(step, Link)]
        used = {link.blob for link in links if link == self._links.get(link.blob)}

        def wanted(reference: str) -> bool:
            info, link = self._survey.blobs[reference], self._links.get(reference)
            if link:  # perhaps none of its commits was made, perhaps one was
                overlaps = any(link.first <= gap.last and gap.first <= link.last for gap in gaps)
                return overlaps and reference not in used
            # When a segment was written, its commits were made, or about to be.
            born = naming.born(reference)
            last = born if reference[0] == "s" else -1
            return fits(born, last, info.time)

        found = [*self._survey.values(wanted), *self._inline()]
        listed = generations(state, {one.header.generation for one in found})
        best: dict[str, Found] = {}
        spare: set[bytes] = set()
        hints = self._survey.hints
        for one in sorted(
            found,
            key=lambda one: (hints.get(one.header.generation, one.born + 1), one.time, one.offset),
        ):
            key, generation = one.header.about.key, one.header.generation
            if generation in listed:
                continue
            spare.add(generation)
            item = state.item(key)
            if fits(one.born, one.last, one.time, item.stamp.seq if item else 0):
                best.pop(key, None)
                best[key] = one  # in this order
        return best, len(spare - {one.header.generation for one in best.values()})

    def _doubtful(
        self, state: State, found: dict[str, Found], gaps: Sequence[Gap]
    ) -> dict[str, int]:
        """Return the keys that lost commits seem to have changed otherwise, and these."""
        doubtful: dict[str, int] = {}
        for key, (seq, generation) in self._survey.touched.items():
            item = state.item(key)
            becomes = found[key].header.generation if key in found else b""
            if not becomes and isinstance(item, Entry):
                becomes = item.generation
            lost = any(gap.first <= seq <= gap.last for gap in gaps)
            if lost and becomes != generation and (not item or item.stamp.seq < seq):
                doubtful[key] = seq
        return doubtful

    def _inline(self) -> Iterator[Found]:
        """Yield the values that are whole in the bytes of a damaged index: of its newest commits."""
        data, last = self._damaged, self._index.seq
        self._survey.hint(getattr(glean(data, Index), "tail", ()))
        for at, length, header in finding.values(data, self._layout.index, self._keyring):
            if header.dictionary == self._survey.dictionary:
                place = bytes(data[at : at + length])
                yield Found(last, last, 0.0, "", at, place, header)

    def _restored(self, state: State, found: dict[str, Found]) -> State:
        """Return the state with these values and without locks: no holder outlives a repair."""
        changes: list[Change] = [Unlock(key, lock.epoch) for key, lock in state.locks.items()]
        changes += [
            Set(key, 0, one.header.generation, one.born, one.place, _facts(one), None)
            for key, one in found.items()
        ]
        if not changes:
            return state
        seq = self._index.seq + 1
        self._index = replace(self._index, seq=seq)
        commit = Commit(
            self._uuid(),
            seq,
            self._now(),
            self._engine.tuning.author,
            "repaired",
            versioned(changes, Draft(state)),
        )
        for sealed in self._seal([commit], state.head):
            state = state.apply(sealed)
        return state

    def _path(self, found: Found) -> str:
        return self._layout.path(found.blob) if found.blob else self._layout.index

    # -- the new index ----------------------------------------------------------------------

    def _laid_out(self, state: State) -> Index:
        """Write checkpoint and log; return the index that names them."""
        index = self._index
        record, data = state.checkpoint(
            index.dictionary, index.incarnation, "", index.horizon, self._engine.runtime.map
        )
        blob = encode(record, data, self._keyring)
        checkpoint = CheckpointRef(self._fresh("c"), state.seq, len(blob))
        self._put(checkpoint.blob, blob)
        log_ref = None
        if self._log:
            blob = encode(Log(index.dictionary, index.incarnation, self._log), (), self._keyring)
            log_ref = LogRef(self._fresh("l"), self._log[0].first, state.seq, len(blob))
            self._put(log_ref.blob, blob)
        return replace(index, base=state.head, checkpoint=checkpoint, log=log_ref)

    def _fresh(self, kind: str) -> str:
        return f"{kind}:{naming.unique(self._certain, self._uuid())}"

    def _put(self, reference: str, data: bytes) -> None:
        if self._dry_run:
            self.unwritten.add(reference)
        else:
            self._engine.backend.put(self._layout.path(reference), data)

    def _now(self) -> int:
        return int(self._engine.runtime.time() * 1e6)


def _resumed(state: State, gap: Gap) -> State:
    """Return the same state as of the end of a gap; how it was before nobody can tell any more."""
    record, data = state.checkpoint(bytes(16), bytes(16), "", 0)
    record = replace(record, seq=gap.last, recent=[gap.head], floor=gap.last)
    return State.from_checkpoint(record, memoryview(b"".join(data)), "")


def _ref(link: Link) -> SegmentRef:
    return SegmentRef(link.blob, link.first, link.last, link.size)


def _facts(found: Found) -> Facts:
    """Return what a value tells of itself unread: of a pickle no more than its size."""
    header = found.header
    return Facts("bytes" if header.codec == "bytes" else "unknown", sum(header.parts))


def _fitting(commit: Commit, state: State) -> Commit:
    """Return a commit without metadata of values that are lost."""
    versions: dict[str, int] = {}
    changes: list[Change] = []
    for change in commit.changes:
        if isinstance(change, Set):
            versions[change.key] = change.version
        if isinstance(change, Annotate):
            entry = state.item(change.key)
            there = versions.get(change.key, entry.version if isinstance(entry, Entry) else -1)
            if change.version != there:
                continue
        changes.append(change)
    return replace(commit, changes=changes)
