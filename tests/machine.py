"""Commits made by the plan's rules in memory, clients that follow, and a model that replays them.

The clients are `IndexBlob`s, as the engine has them. The model is lists and dicts, and shares
nothing with the states but the records of the commits.
"""

from __future__ import annotations

import random
from concurrent.futures import Future
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from remotedict.backend import NOT_MODIFIED
from remotedict.engine.blobs import Blobs
from remotedict.engine.cache import Cache
from remotedict.engine.index import IndexBlob
from remotedict.engine.reader import Reader
from remotedict.pure import naming, plan, records
from remotedict.pure.draft import Draft, versioned
from remotedict.pure.entry import Entry, Stamp
from remotedict.pure.naming import Layout
from remotedict.pure.records import (
    Annotate,
    CheckpointRef,
    Commit,
    Delete,
    Drop,
    Facts,
    Forget,
    Holder,
    Lock,
    Log,
    LogRef,
    Range,
    Segment,
    Set,
    Unlock,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from remotedict.engine.index import Known
    from remotedict.pure.entry import Item
    from remotedict.pure.records import Change, Index
    from remotedict.pure.state import State

IDS = {"dictionary": b"d" * 16, "incarnation": b"i" * 16}
FACTS = Facts("bytes", 16)
KEYS = [f"k{n}" for n in range(40)]


class Seen(NamedTuple):
    """An item, in the terms of the model; a deletion has no generation."""

    version: int
    generation: bytes | None
    metadata: str
    stamp: Stamp
    written: Stamp


def seen(item: Item | None) -> Seen | None:
    """Return an item in the terms of the model; None for one that was never there."""
    if item is None or not item.version:
        return None
    if isinstance(item, Entry):
        return Seen(item.version, item.generation, item.metadata, item.stamp, item.written)
    return Seen(item.version, None, "", item.stamp, item.stamp)


def plain(item: Item, *, places: bool) -> Item:
    """Return an item without what may differ between clients: the number that its order has."""
    if not isinstance(item, Entry):
        return item
    return replace(item, order=0, place=item.place if places else b"")


class Model:
    """What is to be known after commits, by the words of their docstrings."""

    def __init__(self) -> None:
        self.commits: list[Commit] = []
        self.listed: dict[str, list[Seen]] = {}
        self.locks: dict[str, bytes] = {}
        self.floor = 0
        self.forgotten: dict[str, tuple[int, int]] = {}
        self._replayed: dict[int, tuple[list[str], dict[str, Seen]]] = {}

    def version(self, key: str) -> int:
        """Return the version of a key."""
        return self.listed[key][-1].version if self.listed.get(key) else 0

    def live(self, key: str) -> bool:
        """Tell whether a key is there."""
        return bool(self.listed.get(key)) and self.listed[key][-1].generation is not None

    def apply(self, commit: Commit) -> None:
        """Make a commit."""
        self.commits.append(commit)
        self._replayed.clear()
        for at, change in enumerate(commit.changes):
            if isinstance(change, Lock):
                self.locks[change.key] = commit.id
            elif isinstance(change, Unlock):
                assert self.locks.pop(change.key) == change.epoch
            elif isinstance(change, Drop):
                self._drop(change)
            elif isinstance(change, Forget):
                self.listed[change.key] = []
                self.forgotten[change.key] = (commit.seq, at)
            else:
                items = self.listed.setdefault(change.key, [])
                items[:] = changed(items, change, Stamp.of(commit))

    def _drop(self, drop: Drop) -> None:
        for items in self.listed.values():
            gone, back_then = dropped(items, drop)
            del items[:gone]
            self.floor = max(self.floor, back_then)

    def as_of(self, seq: int) -> tuple[list[str], dict[str, Seen]]:
        """Return the keys in their order, and what each key was, as of a commit.

        All commits are replayed; what was forgotten later was never there.
        """
        if seq not in self._replayed:
            self._replayed[seq] = self._replay(seq)
        return self._replayed[seq]

    def _replay(self, seq: int) -> tuple[list[str], dict[str, Seen]]:
        items: dict[str, list[Seen]] = {}
        order: dict[str, None] = {}
        for commit in self.commits[:seq]:
            for at, change in enumerate(commit.changes):
                if not isinstance(change, Set | Delete | Annotate):
                    continue
                key = change.key
                if (commit.seq, at) < self.forgotten.get(key, (0, 0)):
                    continue
                items[key] = changed(items.get(key, []), change, Stamp.of(commit))
                if isinstance(change, Delete):
                    order.pop(key, None)
                else:
                    order.setdefault(key)
        return list(order), {key: its[-1] for key, its in items.items()}


def changed(items: list[Seen], change: Set | Delete | Annotate, stamp: Stamp) -> list[Seen]:
    """Return the items of a key after a change."""
    old = items[-1] if items else None
    version = old.version if old else 0
    if isinstance(change, Annotate):
        assert old is not None
        assert change.version == version
        new = old._replace(metadata=change.metadata, stamp=stamp)
        # Metadata given beside the value are part of that version.
        return [*items[:-1], new] if old.stamp == stamp else [*items, new]
    assert change.version == version + 1
    if isinstance(change, Delete):
        return [*items, Seen(version + 1, None, "", stamp, stamp)]
    metadata = old.metadata if old else ""
    return [*items, Seen(version + 1, change.generation, metadata, stamp, stamp)]


def dropped(items: list[Seen], drop: Drop) -> tuple[int, int]:
    """Return how many of a key's items a Drop takes, and when the last of them was replaced."""
    current = max((n for n, i in enumerate(items) if i.stamp.seq <= drop.before), default=0)
    gone = 0
    while gone < current and items[gone].version <= items[current].version - drop.versions:
        gone += 1
    return gone, items[gone].stamp.seq if gone else 0


class Inline:
    """A runtime without threads, and a store of what was put: all that a client needs."""

    def __init__(self) -> None:
        self.layout = Layout("f")
        self.blobs: dict[str, bytes] = {}
        self.index = plan.genesis(**IDS)

    def future(self):
        """Return a future, as a runtime does."""
        return Future()

    def get(self, path: str, *, range=None, if_none_match=None):  # noqa: A002
        """Return a blob, as a backend does."""
        etag = f"{self.index.revision}"
        if path != self.layout.index:
            return SimpleNamespace(data=self.blobs[path][range[0] : sum(range)])
        if if_none_match == etag:
            return NOT_MODIFIED
        return SimpleNamespace(data=records.encode(self.index), etag=etag)

    def put(self, reference: str, blob: bytes) -> None:
        """Keep a blob."""
        assert self.layout.path(reference) not in self.blobs
        self.blobs[self.layout.path(reference)] = blob

    def spawn(self, work: Callable[[], object]) -> Future:
        """Do it at once."""
        future: Future = Future()
        future.set_result(work())
        return future

    def map(self, work, items):
        """Do them at once."""
        return map(work, items)

    def monotonic(self) -> float:
        """Return a time that nobody looks at."""
        return 0.0

    def client(self) -> IndexBlob:
        """Return a client that knows nothing yet."""
        reader = Reader(Blobs(self, self, Cache(0)), self.layout, self)
        return IndexBlob(self, reader, self.layout, self, lambda *_: None)


class Machine:
    """One writer, its upkeep, and the model of what it wrote."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.store = Inline()
        self.writer = self.store.client()
        self.writer.now()
        self.model = Model()
        self.logged: list[records.SegmentRef] = []

    @property
    def known(self) -> Known:
        """What the writer knows."""
        assert self.writer.known is not None
        return self.writer.known

    @property
    def state(self) -> State:
        """The newest state, as the writer knows it."""
        return self.known.state

    @property
    def index(self) -> Index:
        """The index."""
        return self.store.index

    def uuid(self) -> bytes:
        """Return some id."""
        return self.random.randbytes(16)

    # -- making up changes ------------------------------------------------------------------

    def commit(self, count: int) -> Draft:
        """Make so many commits in one compare-and-swap; return the draft of them."""
        draft, commits = Draft(self.state), []
        for _ in range(count):
            commit_id = self.uuid()
            changes = list(self._changes(draft))
            commits.append(self._made(commit_id, changes, draft))
        self.land(commits)
        return draft

    def make(self, *changes: Change) -> Commit:
        """Make one commit of these changes."""
        commit = self._made(self.uuid(), changes, Draft(self.state))
        self.land([commit])
        return commit

    def _made(self, commit_id: bytes, changes: Iterable[Change], draft: Draft) -> Commit:
        seq = len(self.model.commits) + 1
        numbered = versioned(list(changes), draft)
        author = self.random.choice(["ann", "bob", ""])
        commit = Commit(
            commit_id, seq, seq * 1000, author, self.random.choice(["", "why"]), numbered
        )
        self.model.apply(commit)
        draft.add(commit)
        return commit

    def _changes(self, draft: Draft) -> Iterable[Change]:
        rare = self.random.random()
        if rare < 0.04 and self.index.settled:
            # The engine names a settled commit only: all clients know what was there as of it.
            before = self.random.randrange(1, self.index.settled + 1)
            yield Drop(before, self.random.choice([1, 1, 2, 3]))
            return
        if rare < 0.08:
            yield Forget(self.random.choice(KEYS))
            return
        for key in self.random.sample(KEYS, self.random.choice([1, 1, 1, 5])):
            yield from self._change(key, draft)

    def _change(self, key: str, draft: Draft) -> Iterable[Change]:
        kind = self.random.random()
        live = self.model.live(key)
        if kind < 0.1:
            if key in self.model.locks:
                yield Unlock(key, self.model.locks[key])
            else:
                yield Lock(key, Holder("h", 1, "me", None))
            return
        if kind < 0.3 and live:
            yield Annotate(key, 0, self._metadata())
            return
        if kind < 0.45 and live:
            yield Delete(key, 0)
            if kind < 0.4:
                return
        yield self.set(key, draft)
        if self.random.random() < 0.2:
            yield Annotate(key, 0, self._metadata())

    def _metadata(self) -> str:
        return self.random.choice(["", '{"a":1}', f'{{"n":{self.random.randrange(99)}}}'])

    def set(self, key: str, draft: Draft) -> Set:
        """Return some value for a key: a new one, or one that is listed somewhere."""
        if self.random.random() < 0.2:
            origin = key if self.random.random() < 0.5 else self.random.choice(KEYS)
            entries = [item for item in draft.listed(origin) if isinstance(item, Entry)]
            if entries:
                return copied(key, origin, self.random.choice(entries))
        generation = self.uuid()
        pack = f"p:{self.index.seq // 10:012d}-{0:032x}"
        place = self.random.choice([generation, generation, Range(pack, 0, 9), 77])
        return Set(key, 0, generation, self.index.seq, place, FACTS, None)

    # -- making them --------------------------------------------------------------------------

    def land(self, commits: list[Commit]) -> None:
        """Put them in the index, by the plan."""
        index, segment = plan.extend(self.index, commits, self.uuid)
        if segment:
            self.store.put(segment.ref.blob, segment.blob)
        self.store.index = index
        self.writer.landed(self.known, index, f"{index.revision}", commits, segment, 0.0)

    def upkeep(self) -> None:
        """Merge, and make a checkpoint with its log, when they are due."""
        if refs := plan.due_merge(self.index):
            segments = [self.segment(ref) for ref in refs]
            merged = plan.merge(self.index, refs, segments, self.uuid())
            self.store.put(merged.ref.blob, merged.blob)
            self._swap(plan.swap_merged(self.index, refs, merged.ref))
        if plan.due_checkpoint(self.index):
            self.checkpoint()

    def checkpoint(self) -> None:
        """Make a checkpoint of what is settled."""
        record, data = self.known.settled.checkpoint(**IDS, previous="", horizon=0)
        blob = records.encode(record, data)
        ref = CheckpointRef(self._name("c"), record.seq, len(blob))
        self.store.put(ref.blob, blob)
        covered = self.index.segments
        self.logged = [*self.logged, *covered]
        blob = records.encode(Log(**IDS, segments=self.logged))
        log = LogRef(self._name("l"), self.logged[0].first, record.seq, len(blob))
        self.store.put(log.blob, blob)
        self._swap(plan.swap_checkpoint(self.index, ref, covered, log))

    def segment(self, ref: records.SegmentRef) -> Segment:
        """Return a segment."""
        return records.decode(self.store.blobs[self.store.layout.path(ref.blob)], Segment, "")[0]

    def _name(self, kind: str) -> str:
        return f"{kind}:{naming.unique(self.index.seq, self.uuid())}"

    def _swap(self, index: Index | None) -> None:
        assert index is not None
        self.store.index = index
        self.writer.landed(self.known, index, f"{index.revision}", [], None, 0.0)

    # -- what clients know --------------------------------------------------------------------

    def load(self) -> Known:
        """Return what a client knows that has never looked before."""
        return self.store.client().now()

    def value(self, item: Entry) -> bytes:
        """Return the bytes of an item, where they are inline or in a segment."""
        if isinstance(item.place, bytes):
            return item.place
        if isinstance(item.place, Range) and item.place.blob.startswith("s:"):
            blob = self.store.blobs[self.store.layout.path(item.place.blob)]
            return blob[item.place.offset : item.place.offset + item.place.length]
        return item.generation

    def check(self, state: State) -> None:
        """Check a state of the newest commit against the model: all that it lists, item by item."""
        model, seq = self.model, len(self.model.commits)
        order, _ = model.as_of(seq)
        assert (state.seq, state.head) == (seq, model.commits[-1].id)
        assert list(state) == order
        assert list(reversed(state)) == order[::-1]
        assert len(state) == len(order)
        assert {key: lock.epoch for key, lock in state.locks.items()} == model.locks
        assert state.floor == model.floor
        for key in KEYS:
            items = state.listed(key)
            assert list(map(seen, items)) == model.listed.get(key, []), key
            assert seen(state.item(key)) == (model.listed.get(key) or [None])[-1], key
            assert state.version(key) == model.version(key)
            assert (key in state) == model.live(key)
            for item in items:
                if isinstance(item, Entry):
                    assert self.value(item) == item.generation

    def check_view(self, state: State, seq: int) -> None:
        """Check the view as of an earlier commit against the replay."""
        order, items = self.model.as_of(seq)
        view = state.at(seq)
        assert list(view) == order
        assert list(reversed(view)) == order[::-1]
        assert len(view) == len(order)
        assert {key: seen(view.item(key)) for key in KEYS if view.version(key)} == items

    def check_draft(self, draft: Draft, keys: Iterable[str] = KEYS) -> None:
        """Check that a draft said what the state is now."""
        state = self.state
        assert list(draft) == list(state)
        assert list(reversed(draft)) == list(reversed(state))
        for key in keys:
            assert seen(draft.item(key)) == seen(state.item(key)), key
            assert list(map(seen, draft.listed(key))) == list(map(seen, state.listed(key))), key
            assert (draft.get(key) is None) == (state.get(key) is None)
            assert draft.version(key) == state.version(key)
            assert draft.lock(key) == state.lock(key)

    def check_places(self, known: Known) -> None:
        """Check that inline is only what is in the tail; a table can't have such values at all."""
        for state in (known.state, known.settled):
            for key, chain in state._grown.entries.of.items():
                for seq, item in chain:
                    if isinstance(item, Entry) and isinstance(item.place, bytes):
                        assert item.written.seq > known.index.settled, (key, seq)


def copied(key: str, origin: str, entry: Entry) -> Set:
    """Return the change that gives a key the bytes of an item of `origin`."""
    place = entry.place
    if isinstance(place, int) and key != origin:
        place = entry.range(origin)
    return Set(key, 0, entry.generation, entry.born, place, FACTS, origin)


def content(state: State, *, places: bool = True) -> list[object]:
    """Return all that a state tells, stamps and metadata too, but for how it came about."""
    return [
        state.seq,
        state.head,
        state.floor,
        list(state),
        list(reversed(state))[::-1] == list(state),
        len(state),
        {key: lock.epoch for key, lock in state.locks.items()},
        {
            key: [plain(item, places=places) for item in state.listed(key)]
            for key in sorted(state.known_keys())
            if state.listed(key)
        },
    ]
