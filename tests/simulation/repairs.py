"""Repairs: an index that is lost or damaged, and what the one must have that takes its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from remotedict.pure import finding
from remotedict.pure.naming import born
from remotedict.pure.records import (
    Annotate,
    Commit,
    Delete,
    Drop,
    Log,
    Segment,
    Set,
    Unlock,
    decode,
)
from simulation.values import TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remotedict.pure.records import Index
    from simulation.calls import Call
    from simulation.witness import State, Witness


@dataclass
class Damage:
    """One time that the index was lost, or damaged, and what has become of it.

    Attributes
    ----------
    at : int
        The number of landings then: it counts as one itself.
    index : Index
        What was lost.
    data : bytes or None
        What is there instead.
    empty : bool
        Whether there was nothing else of the dictionary.
    until : int or None
        With which landing there was an index again.
    by : object
        The call that has repaired it; None if somebody began an empty dictionary.
    tick : int
        When that was, among all calls and returns.
    certain : int
        Up to which commit nothing may be lost.
    """

    at: int
    index: Index
    data: bytes | None
    empty: bool
    until: int | None = None
    by: Any = None
    tick: int = 0
    certain: int = 0


_REPAIRS = {"lost", "repaired"}
"""The comments of the commits that a repair makes: these count only if others built on them."""


class Spare(NamedTuple):
    """A whole value that says itself whose it is."""

    key: str
    generation: bytes
    token: str
    born: int
    time: float
    path: str


class Repairs:
    """Knows what is lost with an index, and sees what comes back."""

    def __init__(self, witness: Witness) -> None:
        self._witness = witness
        self.damages: list[Damage] = []
        self.expected = False
        self._made: Any = None  # the checkpoint that a repair has made
        self._kept = 0  # and up to which commit it was made of what is certain
        self.begun_anew = False  # of two dictionaries in one folder a repair may take either
        self.opened: dict[str, int] = {}  # by handle, after which landing it was first used
        self.revived: set[Any] = set()  # calls that were in doubt, or failed, and came back
        self._sealed: dict[bytes, tuple[Commit, str]] = {}  # by id: what is in any segment
        self._next: dict[bytes, set[bytes]] = {}  # by id: what comes after it in segments

    @property
    def broken(self) -> Damage | None:
        """What is wrong with the index now."""
        last = self.damages[-1] if self.damages else None
        return last if last and last.until is None else None

    def hidden(self, n: int) -> bool:
        """Tell whether nobody could see the state that a landing has left, for it was lost."""
        return any(d.at <= n and (d.until is None or n < d.until) for d in self.damages)

    def over(self, call: Call) -> list[Damage]:
        """Return what was wrong with the index at some time of a call."""
        ended = self._witness.now if call.ended is None else call.ended
        return [
            damage
            for damage in self.damages
            if damage.at <= ended and (damage.until is None or call.begun < damage.until)
        ]

    def sealed(self, path: str, data: bytes) -> None:
        """Look at a segment that somebody has written, whether it will be named or not."""
        reference = self._witness.layout.reference(path) or ""
        if self.expected and reference.startswith("s:"):
            segment, _ = decode(data, Segment, path, self._witness.keyring)
            before = segment.base
            for commit in segment.commits:
                if commit.comment not in _REPAIRS:
                    self._next.setdefault(before, set()).add(commit.id)
                before = commit.id
                self._sealed.setdefault(commit.id, (commit, reference))

    def damaged(self, data: bytes | None) -> None:
        """Take down that the index is lost; or damaged, and this is there instead."""
        witness = self._witness
        if broken := self.broken:
            broken.data = data
            return
        assert witness.index is not None
        witness.states.append(witness.state)
        witness.landings.append(None)
        witness.times.append(witness.clock())
        ours = any(witness.layout.reference(path) for path, _, _ in witness.store.blobs())
        self.damages.append(Damage(witness.now, witness.index, data, empty=not ours))

    def landed(self, index: Index, who: str) -> None:
        """See what has taken the place of a damaged index."""
        witness, damage = self._witness, self.broken
        assert damage is not None
        damage.by = witness.owner(index.incarnation)
        damage.tick = witness.tick()
        witness.branches.append(witness.commits)
        old, lost = damage.index, witness.state
        if index.dictionary != old.dictionary or not index.seq:
            # Who found nothing when there was nothing may not have been heard until now.
            early = damage.by is not None and not self.opened.get(damage.by.handle)
            damage.by, self.begun_anew = None, True
            if not (damage.empty or early) or index.seq:
                witness.fail("repair", f"{who} began another dictionary, though this one is there")
            new = type(lost)()
            witness.order, witness.commits = [], []
        else:
            new = self._repaired(index, damage, who)
        witness.states.append(new)
        witness.landings.append(None)
        witness.times.append(witness.clock())
        damage.until = witness.now

    # -- a repaired index -------------------------------------------------------------------

    def _repaired(self, index: Index, damage: Damage, who: str) -> State:
        witness, old, call = self._witness, damage.index, damage.by
        lost = witness.state
        if call is None or call.kind != "repair" or call.args[2]:
            witness.fail("repair", f"{who} put a new index otherwise than by a repair: {call}")
            return lost
        incarnations = {d.index.incarnation for d in self.damages}
        if index.incarnation in incarnations:
            witness.fail("repair", f"{call} kept an old incarnation")
        again = old.checkpoint == self._made and not old.segments
        if index.seq <= old.seq and not again:
            witness.fail("repair", f"{call} went on at {index.seq}, though {old.seq} was used")
        if index.horizon < old.horizon:
            witness.fail("repair", f"{call} took the horizon back")
        there = {data for _, data, _ in witness.store.blobs()}
        if damage.data is not None and damage.data not in there:
            witness.fail("repair", f"{call} didn't keep the damaged index")
        commits = self._commits(index)
        # Up to there nothing may be lost: what had left the tail, and what the handle knew.
        generations = {key: witness.generations[key, lost.versions[key]] for key in lost.items}
        certain = old.settled
        if again:
            # Nobody has built on it but in the index: another one's that came too late is as good.
            certain = self._kept
        elif old.segments:
            # Of two that raced, and on which nobody has built, nobody can tell which was made.
            ids = [b"", *(commit.id for commit in witness.commits)]
            ref = old.segments[-1]
            if ids[ref.last] not in self._next:
                raced = (n for n in range(ref.first, ref.last + 1) if self._raced(ids[n]))
                certain = next(raced, certain + 1) - 1
        if call.args[0] == old.incarnation:
            certain = max(certain, call.args[1])
        branch, before = witness.commits, lost
        common = 0
        for mine in branch:
            if commits.get(mine.seq, (mine, ""))[0].id != mine.id:
                break
            common = mine.seq
        common = min(common, max(commits, default=0))
        self._made, self._kept = index.checkpoint, min(common, certain)
        damage.certain = certain
        if common < certain:
            witness.fail("repair", f"{call} kept {common} commits of {certain}")
        kept = witness.by_seq(common) or before
        new = kept.copy()
        for seq in range(common + 1, index.seq + 1):
            if seq in commits:
                self._replay(new, *commits[seq])
        new.seq = index.seq
        if new.locks:
            witness.fail("repair", f"{call} left {new.locks}")
        witness.commits = [
            branch[n] if n < common else commits.get(n + 1, (_nothing(n + 1), ""))[0]
            for n in range(index.seq)
        ]
        witness.order = [commit.id for commit in witness.commits]
        gap = next((c.seq for c, _ in commits.values() if c.comment == "lost"), index.seq)
        self._check_values(new, lost, certain, gap - 1, generations, damage)
        for commit in branch[common:]:
            del witness.landed_ids[commit.id]  # it may be made again
        for commit_id in witness.order[common:]:
            witness.landed_ids[commit_id] = witness.now + 1
            self.revived.add(witness.owner(commit_id))
        return new

    def _raced(self, commit_id: bytes) -> bool:
        """Tell whether there are others in segments in the place of a commit."""
        return any(commit_id in others and len(others) > 1 for others in self._next.values())

    def _commits(self, index: Index) -> dict[int, tuple[Commit, str]]:
        """Return the commits in the log, each with its segment."""
        witness = self._witness
        commits: dict[int, tuple[Commit, str]] = {}
        if index.segments or index.tail or not index.log:
            witness.fail("repair", "the new index has more than a checkpoint and its log")
            return commits
        data = witness.store.blob(witness.layout.path(index.log.blob)) or b""
        for ref in decode(data, Log, index.log.blob, witness.keyring)[0].segments:
            data = witness.store.blob(witness.layout.path(ref.blob)) or b""
            for commit in decode(data, Segment, ref.blob, witness.keyring)[0].commits:
                if ref.first <= commit.seq <= ref.last:
                    commits[commit.seq] = commit, ref.blob
        return commits

    def _replay(self, state: State, commit: Commit, segment: str) -> None:
        """Do what a commit does that the repair has made, or taken for made."""
        for change in commit.changes:
            if isinstance(change, Set):
                token = self._witness.token(change, segment)
                self._witness.generations[change.key, change.version] = change.generation
                state.set(change.key, token)
                state.versions[change.key] = change.version
                state.past[change.key, change.version] = (token, commit.seq)
            elif isinstance(change, Delete):
                if change.key in state.items:
                    state.delete(change.key)
                state.versions[change.key] = change.version
                state.past[change.key, change.version] = (None, commit.seq)
            elif isinstance(change, Annotate):
                state.annotate(change.key, change.metadata)
            elif isinstance(change, Unlock):
                state.locks.pop(change.key, None)
            elif isinstance(change, Drop):
                state.drop(change)

    # -- what comes back --------------------------------------------------------------------

    def _check_values(
        self,
        new: State,
        lost: State,
        certain: int,
        chain: int,
        generations: dict[str, bytes],
        damage: Damage,
    ) -> None:
        """See that of each key there is what is known, or else what is left of lost commits."""
        witness = self._witness
        branch = witness.branches[-1]
        gone = branch[certain:]
        settled = {
            change.generation
            for commit in branch[:certain]
            for change in commit.changes
            if isinstance(change, Set)
        }
        spares = [one for one in self._spares() if one.generation not in settled]
        inline = list(self._inside(damage.data, "", 0.0))
        # What somebody was about to commit, and has left a segment of.
        wished = [
            (self._witness.token(change, ref) if isinstance(change, Set) else None, change.key)
            for commit, ref in self._sealed.values()
            if commit.seq > certain
            for change in commit.changes
            if isinstance(change, Set | Delete)
        ]
        states = [state for n in range(certain, len(branch) + 1) if (state := self._at(n, branch))]
        sealed = max(
            (
                time
                for path, _, time in witness.store.blobs()
                if (witness.layout.reference(path) or "")[:1] in {"s", "c"}
            ),
            default=0.0,
        )
        for key in sorted({*new.items, *lost.items}):
            has = new.items.get(key)
            mine = [one for one in (*spares, *inline) if one.key == key]
            wishes = [token for token, name in wished if name == key]
            may = {state.items.get(key) for state in states}
            may |= {one.token for one in mine} | {*wishes}
            if has not in may:
                witness.fail("repair", f"{key} is {has}, and not one of {may}")
            sets = [
                (commit.seq, change)
                for commit in gone
                for change in commit.changes
                if getattr(change, "key", None) == key
            ]
            if not (sets or mine or wishes):
                facts = [
                    (s.items.get(key), s.versions.get(key), s.metadata.get(key))
                    for s in (new, lost)
                ]
                if facts[0] != facts[1]:
                    witness.fail("repair", f"{key} is {facts[0]} instead of {facts[1]}")
            elif newest := next((s for s in mine if s.generation == generations.get(key)), None):
                # Of what is in a damaged index, or about to be made, the order is believed.
                ordered = newest.path and not damage.data and not wishes
                among = {s.token for s in mine if s[3:5] >= newest[3:5]} if ordered else set(may)
                fits = newest.born >= chain or newest.time >= sealed or not newest.path
                fits = fits and newest.time <= damage.by.called  # else it may have come too late
                if fits and (has not in among or has is None):
                    witness.fail("repair", f"{key} is {has}, but {newest.token} is there")

    def _at(self, seq: int, branch: list[Commit]) -> State | None:
        if seq == 0:
            return self._witness.states[0]
        return self._witness.states[self._witness.landed_ids[branch[seq - 1].id]]

    def _spares(self) -> Iterator[Spare]:
        """Yield all values in the store, by what they say of themselves."""
        for path, data, time in self._witness.store.blobs():
            reference = self._witness.layout.reference(path) or ""
            if reference[:1] in ("v", "p", "s"):
                yield from self._inside(data, path, time)

    def _inside(self, data: bytes | None, path: str, time: float) -> Iterator[Spare]:
        found = finding.values(data or b"", path, self._witness.keyring)
        for at, length, header in found:
            token = TOKEN.search(data or b"", at, at + length)
            if token:
                began = born(path) if path else 0
                yield Spare(
                    header.about.key, header.generation, token[0].decode(), began, time, path
                )


def _nothing(seq: int) -> Commit:
    """Return what stands for a commit that the log doesn't have any more."""
    return Commit(seq.to_bytes(16, "big"), seq, 0, "", "", [])
