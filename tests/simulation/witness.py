"""The witness: the order of the commits, as they land in the store, and what each one made.

It replays each commit on plain dicts, and shares nothing with the engine but the records.
"""

from __future__ import annotations

import re
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from remotedict.errors import RemoteDictError
from remotedict.pure.naming import Layout, born, escape, unique
from remotedict.pure.records import (
    Annotate,
    Commit,
    Delete,
    Drop,
    Forget,
    Index,
    Lock,
    Log,
    Range,
    Segment,
    Set,
    Unlock,
    decode,
)
from simulation.repairs import Repairs
from simulation.vacuum import Keeper
from simulation.values import TOKEN, raw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from remotedict.pure.keyring import Keyring
    from simulation.store import Store

_LEASE_MAX = 60.0  # what Azure grants, but for ever
_GENERATION = re.compile("-([0-9a-f]{32})$")


class Violation(NamedTuple):
    """A promise that was broken."""

    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


class State:
    """What the dictionary is after a landing.

    Attributes
    ----------
    items : dict
        The token of each key's value, in the order of insertion.
    versions, metadata, locks : dict
        By key; a lock is its epoch and the handle that took it.
    past : dict
        By key and version, the token of what it was (None for a deletion), and since which
        commit; as far as versions are kept.
    """

    __slots__ = ("items", "locks", "metadata", "past", "seq", "versions")

    def __init__(self) -> None:
        self.seq = 0
        self.items: dict[str, str] = {}
        self.versions: dict[str, int] = {}
        self.metadata: dict[str, str] = {}
        self.locks: dict[str, tuple[bytes, str]] = {}
        self.past: dict[tuple[str, int], tuple[str | None, int]] = {}

    def __repr__(self) -> str:
        return f"<state {self.seq}>"

    def copy(self) -> State:
        new = State.__new__(State)
        new.seq = self.seq
        new.items = self.items.copy()
        new.versions = self.versions.copy()
        new.metadata = self.metadata.copy()
        new.locks = self.locks.copy()
        new.past = self.past.copy()
        return new

    def same(self, other: State) -> bool:
        """Tell whether users see the same keys, values and metadata, in the same order."""
        return (
            self.items == other.items
            and self.metadata == other.metadata
            and list(self.items) == list(other.items)
        )

    # What operations do, by the words of their docstrings.

    def set(self, key: str, token: str) -> None:
        self.items[key] = token
        self.versions[key] = self.versions.get(key, 0) + 1

    def delete(self, key: str) -> None:
        del self.items[key]
        self.metadata.pop(key, None)
        self.versions[key] += 1

    def annotate(self, key: str, text: str) -> None:
        self.metadata[key] = text
        if not text:
            del self.metadata[key]

    def forget(self, key: str) -> None:
        self.items.pop(key, None)
        self.metadata.pop(key, None)
        self.versions.pop(key, None)
        for name, version in list(self.past):
            if name == key:
                del self.past[name, version]

    def drop(self, change: Drop) -> None:
        """Keep of each key what was current as of a commit, and the versions before that."""
        current: dict[str, int] = {}
        for (key, version), (_, since) in self.past.items():
            if since <= change.before:
                current[key] = max(current.get(key, 0), version)
        for key, version in list(self.past):
            if version <= current.get(key, 0) - change.versions:
                del self.past[key, version]


class Landing(NamedTuple):
    """One commit that has landed."""

    commit: Commit
    op: Any  # the operation that it is of; None for the upkeep
    who: str  # the process whose request it was


class Witness:
    """Sees what lands.

    Attributes
    ----------
    states : list of State
        After each landing; the first is of the empty dictionary.
    landings : list of Landing or None
        What led from one state to the next; None where the index was brought back.
    order : list of bytes
        The ids of the commits that the index has now.
    """

    def __init__(
        self,
        layout: Layout,
        owners: dict[bytes, Any],
        clock: Callable[[], float],
        keyring: Keyring | None = None,
    ) -> None:
        self.keyring = keyring
        self.store: Store
        self.violations: list[Violation] = []
        self.states = [State()]
        self.landings: list[Landing | None] = [None]
        self.order: list[bytes] = []
        self.commits: list[Commit] = []
        self.index: Index | None = None
        self.was_upgraded = False  # also if it has been brought back since
        self.upgraded_at = inf
        self._tokens: dict[str, list[tuple[int, str]]] = {}  # by key: after which landing, which
        self.versions_of_index: list[bytes] = []
        self.landed_ids: dict[bytes, int] = {}
        self.rewinds: list[int] = []
        self.branches: list[list[Commit]] = []  # what was current before each of them
        self.times = [0.0]
        self.clock = clock
        self.drops = 0
        self.layout = self._layout = layout
        self.keeper = Keeper(self)
        self.repairs = Repairs(self)
        self.tick: Callable[[], int]
        self._owners = owners
        self.newer: set[str] = {"Z"}
        # Path and range, or the bytes themselves, by key, version and generation: a copy's may be
        # elsewhere, and versions of a forgotten key begin anew.
        self._where: dict[tuple[str, int, bytes], Any] = {}
        self.generations: dict[tuple[str, int], bytes] = {}  # the newest ones
        self.places: set[str] = set()  # the blobs in which values are, or were, once named
        self._lease_of: dict[tuple[Any, str], str] = {}
        self._epoch_lease: dict[tuple[bytes, str], str] = {}

    @property
    def now(self) -> int:
        """The number of landings so far."""
        return len(self.states) - 1

    @property
    def broke(self) -> bool:
        """Whether the index was brought back, or damaged, at any time."""
        return bool(self.rewinds or self.repairs.damages)

    @property
    def state(self) -> State:
        return self.states[-1]

    def fail(self, kind: str, what: str) -> None:
        """Take down that a promise was broken."""
        self.violations.append(Violation(kind, what))

    # -- what lands -------------------------------------------------------------------------

    def landed(self, data: bytes, who: str) -> None:
        """Look at a new version of the index blob."""
        try:
            self._landed(data, who)
        except RemoteDictError as exc:
            self.fail("order", f"{who} put an index that can't be read: {exc}")

    def _landed(self, data: bytes, who: str) -> None:
        index, _ = decode(data, Index, self._layout.index, self.keyring)
        old, self.index = self.index, index
        if self.repairs.broken:
            self.repairs.landed(index, who)
            self.keeper.named(index, who)
            return
        if self.upgraded and not self.was_upgraded:
            self.was_upgraded, self.upgraded_at = True, self.clock()
        if old and old.features and who[:1] not in self.newer:
            self.fail("format", f"{who} wrote on an index whose format it doesn't know")
        self.versions_of_index.append(data)
        if old is None:
            self.order, self.commits = [], []
        else:
            if (index.dictionary, index.incarnation) != (old.dictionary, old.incarnation):
                self.fail("order", f"{who} put the index of another dictionary")
            if index.revision != old.revision + 1:
                self.fail("order", f"{who} put revision {index.revision} on {old.revision}")
            if index.horizon < old.horizon or index.horizon_seq < old.horizon_seq:
                self.fail("horizon", f"{who} put horizon {index.horizon} on {old.horizon}")
            if index.moved < old.moved:
                self.fail("order", f"{who} lowered what counts the moves")
        if index.seq < len(self.order):
            self.fail("order", f"{who} put seq {index.seq} on {len(self.order)}")
            return
        fresh: list[Commit] = []
        if index.settled > len(self.order) or old is None or index.segments != old.segments:
            for ref in index.segments:
                fresh += self._segment(ref, old, who)
        fresh += [c for c in index.tail if c.seq > len(self.order) + len(fresh)]
        self._check_names(index, who)
        self.keeper.landed(index, old, who)
        known = {c.seq: c.id for c in index.tail}
        for seq, commit_id in known.items():
            if seq <= len(self.order) and self.order[seq - 1] != commit_id:
                self.fail("order", f"{who} changed commit {seq}, which had landed")
        for commit in fresh:
            self._commit(commit, index, who)
        if index.seq != len(self.order):
            self.fail("order", f"{who} put seq {index.seq}, but {len(self.order)} commits")

    def _segment(self, ref: Any, old: Index | None, who: str) -> list[Commit]:
        """Look at a segment that the index names; return the commits in it that are new."""
        if old and ref in old.segments:
            return []
        data = self.store.blob(self._layout.path(ref.blob))
        if data is None:
            self.fail("missing", f"{who} named {ref.blob}, which isn't there")
            return []
        segment, _ = decode(data, Segment, ref.blob, self.keyring)
        for commit in segment.commits:
            if commit.seq <= len(self.order) and self.order[commit.seq - 1] != commit.id:
                self.fail("order", f"{who} changed commit {commit.seq} in {ref.blob}")
            for change in commit.changes:
                if isinstance(change, Set) and isinstance(change.place, Range):
                    place = change.place
                    blob = place.blob or ref.blob
                    self.place(_of(change), blob, place.offset, place.length)
        return [c for c in segment.commits if c.seq > len(self.order)]

    def _check_names(self, index: Index, who: str) -> None:
        """See that everything that the index names is there."""
        refs = [ref.blob for ref in index.segments]
        refs += [ref.blob for ref in (index.checkpoint, index.log) if ref]
        for blob in refs:
            if self.store.blob(self._layout.path(blob)) is None:
                self.fail("missing", f"{who} put an index that names {blob}, which isn't there")

    def place(self, which: tuple[str, int, bytes], blob: str, offset: int, length: int) -> None:
        """Take down where the bytes of a key's version and generation are."""
        path = self._layout.path(blob)
        self._where[which] = (path, offset, length)
        self.places.add(path)

    def _commit(self, commit: Commit, index: Index, who: str) -> None:
        """Replay one commit that has landed."""
        op = self._owners.get(commit.id)
        state = self.state.copy()
        state.seq += 1
        if commit.seq != state.seq:
            self.fail("order", f"{who} put commit {commit.seq} after {state.seq - 1}")
        if commit.id in self.landed_ids:
            self.fail("twice", f"commit {commit.id.hex()} of {op} landed twice")
        name = op.handle if op else f"upkeep of {who}"
        seen: set[tuple[str, type]] = set()
        ended: set[str] = set()
        for change in commit.changes:
            if isinstance(change, Unlock):
                ended.add(change.key)
                self._unlock(state, change, op, name)
            elif isinstance(change, Lock):
                held = state.locks.get(change.key)
                if held and held[1] != name:
                    self.fail("lock", f"{name} locked {change.key} over {held[1]}")
                state.locks[change.key] = (commit.id, name)
                path = self._layout.lock(change.key)
                lease = self._lease_of.get((op, path)) or self._lease_of.get((name, path))
                if lease is None:
                    self.fail("lock", f"{name} locked {change.key} without a lease")
                else:
                    self._epoch_lease[commit.id, change.key] = lease
            elif isinstance(change, Drop):
                self.drops += 1
                state.drop(change)
            else:
                if (change.key, type(change)) in seen:
                    self.fail("order", f"commit {commit.seq} changes {change.key} twice")
                seen.add((change.key, type(change)))
                self._change(state, change, commit, index, name)
        self.order.append(commit.id)
        self.commits.append(commit)
        self.landed_ids[commit.id] = len(self.states)
        if op is not None:
            op.landed.append(len(self.states))
        self.states.append(state)
        self.landings.append(Landing(commit, op, who))
        self.times.append(self.clock())

    def _unlock(self, state: State, change: Unlock, op: Any, name: str) -> None:
        held = state.locks.pop(change.key, None)
        if held is None or held[0] != change.epoch:
            self.fail("lock", f"{name} ended an epoch of {change.key} that isn't there")
            return
        if held[1] != name and not (op and op.forces):
            lease = self._epoch_lease.get((change.epoch, change.key))
            if lease is not None and lease not in self.store.lost:
                self.fail("lock", f"{name} ended the lock of {held[1]}, who lives")

    def _change(
        self,
        state: State,
        change: Set | Delete | Annotate | Forget,
        commit: Commit,
        index: Index,
        name: str,
    ) -> None:
        key = change.key
        held = state.locks.get(key)
        if held and held[1] != name:
            self.fail("lock", f"{name} changed {key}, which {held[1]} has locked")
        if isinstance(change, Forget):
            state.forget(key)
            return
        if isinstance(change, Annotate):
            if key not in state.items:
                self.fail("effect", f"{name} gave metadata to {key}, which isn't there")
                return
            state.annotate(key, change.metadata)
            return
        if change.version != state.versions.get(key, 0) + 1:
            self.fail("version", f"{name} made version {change.version} of {key}")
        if isinstance(change, Delete):
            if key not in state.items:
                self.fail("effect", f"{name} deleted {key}, which isn't there")
                return
            state.delete(key)
            state.past[key, state.versions[key]] = (None, commit.seq)
            return
        token = self._token(change, index, name)
        self._tokens.setdefault(key, []).append((len(self.states), token))
        state.set(key, token)
        state.past[key, state.versions[key]] = (token, commit.seq)

    def _token(self, change: Set, index: Index, name: str) -> str:
        """Return which value a change sets, from its bytes: they must be there."""
        key, place = change.key, change.place
        self.generations[key, change.version] = change.generation
        if isinstance(place, bytes):
            self._where[_of(change)] = place
        elif isinstance(place, int):
            blob = f"v:{escape(key)}/{unique(change.born, change.generation)}"
            self.place(_of(change), blob, 0, place)
        elif place.blob:
            self.place(_of(change), place.blob, place.offset, place.length)
        if change.origin is None and not isinstance(place, bytes):
            began = change.born if isinstance(place, int) else born(place.blob or "s:0-0")
            if began < index.horizon and (isinstance(place, int) or place.blob[:1] == "p"):
                self.fail("horizon", f"{name} named a value of {change.key} below the horizon")
        token = self._read(change)
        if token is None:
            self.fail("missing", f"{name} set {key}, but its bytes aren't there")
            return "?"
        return token

    def token(self, change: Set, segment: str) -> str:
        """Return which value a change sets that is in a segment, whoever has named it."""
        place = change.place
        if isinstance(place, int):
            blob = f"v:{escape(change.key)}/{unique(change.born, change.generation)}"
            self.place(_of(change), blob, 0, place)
        elif isinstance(place, Range):
            self.place(_of(change), place.blob or segment, place.offset, place.length)
        return self._read(change) or "?"

    def owner(self, made: bytes) -> Any:
        """Return the operation that drew an id."""
        return self._owners.get(made)

    def _read(self, change: Set) -> str | None:
        """Return the token in the bytes that a change sets, None if they aren't there."""
        where = self._where.get(_of(change))
        if isinstance(where, tuple):
            path, offset, length = where
            data = self.store.blob(path)
            if data is None or len(data) < offset + length:
                return None
            data = data[offset : offset + length]
        else:
            data = where
        if data is None or change.generation not in data:
            return None
        found = TOKEN.search(data)
        # Its beginning and its end: the chunks between them have heads of their own.
        if found is None or raw(found[0].decode())[-8:] not in data[found.start() :]:
            return None
        return found[0].decode()

    # -- what else happens ------------------------------------------------------------------

    def deleted(self, paths: Iterable[str]) -> None:
        """See that nothing is deleted that is needed."""
        self.keeper.deleted(paths)

    def needed(self) -> dict[str, str]:
        """Return in which blobs values are that are listed, also past ones, and which."""
        state = self.state
        listed = [(key, state.versions[key]) for key in state.items]
        listed += [version for version, (token, _) in state.past.items() if token]
        places = [
            (key, n, self._where.get((key, n, self.generations[key, n]))) for key, n in listed
        ]
        return {w[0]: f"{key} {n}" for key, n, w in places if isinstance(w, tuple)}

    def check_forgotten(self, key: str, call: Any) -> None:
        """See that no blob has any bytes of what a key was before it was forgotten.

        Copies are keys of their own. And what a writer, or its upkeep, was laying out anew just
        then is garbage if it comes too late to be named.
        """
        forgets = [
            n
            for n, landing in enumerate(self.landings)
            if landing
            and any(isinstance(c, Forget) and c.key == key for c in landing.commit.changes)
        ]
        earlier = [n for n in forgets if n <= call.begun]
        forgot = max(sorted({*call.landed} & {*forgets}) or earlier or forgets[:1])
        mine = self._tokens.get(key, ())
        kept = {token for k, told in self._tokens.items() if k != key for _, token in told}
        gone = (
            {token for n, token in mine if n < forgot} - kept - {t for n, t in mine if n > forgot}
        )
        named = self._named()
        for path, data, time in self.store.blobs() if gone else ():
            if time <= self.times[forgot] or path in named:
                for name in TOKEN.findall(data):
                    if name.decode() in gone:
                        self.fail("forget", f"{path} has {name.decode()} of {key}, forgotten")

    def _named(self) -> set[str]:
        """Return the paths of what the index names, and its log."""
        index = self.index
        refs = [*index.segments, index.checkpoint, index.log] if index else []
        blobs = {ref.blob for ref in refs if ref}
        if index and index.log:
            data = self.store.blob(self._layout.path(index.log.blob))
            log, _ = decode(data, Log, "", self.keyring)
            blobs |= {ref.blob for ref in log.segments}
        return {self._layout.index} | {self._layout.path(blob) for blob in blobs}

    def waits(self, path: str, seconds: float) -> None:
        """See that no lease outlives its holder for long."""
        if not 0 < seconds <= _LEASE_MAX:
            self.fail("lease", f"{path} was leased for {seconds} seconds")

    def leased(self, path: str, lease_id: str) -> None:
        """Take down who was granted a lease."""
        op = self._owners.get(bytes.fromhex(lease_id.replace("-", "")))
        if op is not None:
            self._lease_of[op, path] = self._lease_of[op.handle, path] = lease_id

    def rewound(self, data: bytes) -> None:
        """Take down that the index was brought back."""
        self.index, _ = decode(data, Index, self._layout.index, self.keyring)
        seq = self.index.seq
        self.branches.append(self.commits.copy())
        for commit_id in self.order[seq:]:
            del self.landed_ids[commit_id]  # it may be made again
        del self.order[seq:]
        del self.commits[seq:]
        at = max(n for n, state in enumerate(self.states) if state.seq == seq and self._on(n))
        self.states.append(self.states[at])
        self.landings.append(None)
        self.times.append(self.clock())
        self.rewinds.append(self.now)

    def _on(self, n: int) -> bool:
        """Tell whether a landing is on the branch that the index has now."""
        landing = self.landings[n]
        seq = self.states[n].seq
        return seq == 0 or bool(
            landing and seq <= len(self.order) and self.order[seq - 1] == landing.commit.id
        )

    @property
    def upgraded(self) -> bool:
        """Whether the index asks for a feature that older clients don't know."""
        return bool(self.index and self.index.features)

    def numbers(self, commit_id: bytes) -> list[int]:
        """Return after which landings a commit was the newest: several, if it was made again."""
        return [
            n
            for n, landing in enumerate(self.landings)
            if landing and landing.commit.id == commit_id
        ]

    def forgotten_since(self, seq: int) -> set[str]:
        """Return the keys that were forgotten after a commit."""
        changes = (change for commit in self.commits[seq:] for change in commit.changes)
        return {change.key for change in changes if isinstance(change, Forget)}

    def by_seq(self, seq: int) -> State | None:
        """Return the state as of a commit of the branch that there is now."""
        if seq == 0:
            return self.states[0]
        if seq > len(self.order):
            return None
        return self.states[self.landed_ids[self.order[seq - 1]]]


def _of(change: Set) -> tuple[str, int, bytes]:
    return change.key, change.version, change.generation
