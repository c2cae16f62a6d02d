"""Clients that look at an index now and then come to the same state as one that reads it anew."""

from __future__ import annotations

import random

import pytest

from faults import lose_reply, lose_request
from machine import content
from remotedict.pure import plan
from remotedict.pure.entry import Entry
from remotedict.pure.records import Drop, Forget

NAMES = [f"k{n}" for n in range(25)]


@pytest.fixture(params=[(900, 1500, 3), (1500, 6000, 30), (3000, 20_000, 100)], ids=str)
def limits(request, monkeypatch):
    """Limits at which a few commits roll, merge, make checkpoints and are rebased."""
    index_bytes, checkpoint_min, rebase_min = request.param
    monkeypatch.setattr(plan, "INDEX_BYTES", index_bytes)
    monkeypatch.setattr(plan, "CHECKPOINT_MIN", checkpoint_min)
    monkeypatch.setattr("remotedict.pure.state._REBASE_MIN", rebase_min)


class Story:
    """What is done through some clients, one after the other, and what it should come to."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.values = {}  # in the order of the keys
        self.versions = {}
        self.metadata = {}
        self.old = {}  # (key, version): value
        self.then = []  # (seq, values, metadata) as of each commit

    def write(self, client):
        """Change something through `client`, and in the model."""
        ways = {
            self.single: 47,
            self.several: 10,
            self.delete: 10,
            self.pop: 5,
            self.annotate: 8,
            self.put: 5,
            self.copy: 5,
            self.revert: 5,
            self.forget: 2,
            self.drop: 3,
        }
        [way] = self.random.choices([*ways], [*ways.values()])
        if not self.values:
            way = self.single
        way(client)
        known = client._engine.index.known
        self.then.append((known.state.seq, dict(self.values), dict(self.metadata)))

    def single(self, client):
        key = self.random.choice(NAMES)
        value = client[key] = self.random.randbytes(self.random.choice([5, 100, 600, 6000]))
        self._set(key, value)

    def several(self, client):
        rng = self.random
        many = {name: rng.randbytes(rng.randrange(400)) for name in rng.sample(NAMES, 5)}
        client.update(many)
        for name, value in many.items():
            self._set(name, value)

    def delete(self, client):
        live = self.random.choice([*self.values])
        del client[live]
        self._delete(live)

    def pop(self, client):
        key, value = client.popitem()
        assert (key, value) == list(self.values.items())[-1]
        self._delete(key)

    def annotate(self, client):
        live = self.random.choice([*self.values])
        client.metadata[live] = self.metadata[live] = {"note": self.random.randrange(1000)}

    def put(self, client):
        key = self.random.choice(NAMES)
        value = self.random.randbytes(300)
        client.put(key, value, version=self.versions.get(key, 0) + 1, metadata={"put": 1})
        self._set(key, value)
        self.metadata[key] = {"put": 1}

    def copy(self, client):
        key, live = self.random.choice(NAMES), self.random.choice([*self.values])
        client.copy_item(live, key)
        self._set(key, self.values[live])
        self.metadata[key] = self.metadata[live]

    def revert(self, client):
        live = self.random.choice([*self.values])
        listed = client._engine.now().state.listed(live)
        version = self.random.choice([i.version for i in listed if isinstance(i, Entry)])
        client.revert(live, version)
        self._set(live, self.old[live, version])

    def forget(self, client):
        key = self.random.choice(NAMES)
        client._engine.commit(lambda _: [Forget(key)])
        for values, metadata in [(self.values, self.metadata), *(then[1:] for then in self.then)]:
            values.pop(key, None)
            metadata.pop(key, None)
        self.versions.pop(key, None)
        self.old = {which: value for which, value in self.old.items() if which[0] != key}

    def drop(self, client):
        if settled := client._engine.now().settled.seq:
            drop = Drop(self.random.randrange(settled) + 1, self.random.choice([1, 2, 3]))
            client._engine.commit(lambda _: [drop])

    def _set(self, key, value):
        self.values[key] = value
        self.metadata.setdefault(key, {})
        self.versions[key] = self.versions.get(key, 0) + 1
        self.old[key, self.versions[key]] = value

    def _delete(self, key):
        del self.values[key], self.metadata[key]
        self.versions[key] += 1

    def check(self, client):
        """Check all that is to be seen through `client`: now, as of some commits, and of each key."""
        assert list(client) == list(self.values)
        assert list(reversed(client)) == list(self.values)[::-1]
        assert client.copy() == self.values
        assert {key: dict(client.metadata[key]) for key in self.values} == self.metadata
        state = client._engine.now().state
        assert {key: state.version(key) for key in self.versions} == self.versions
        for key in NAMES:
            for item in state.listed(key):
                if isinstance(item, Entry):
                    assert client.at(key, item.version) == self.old[key, item.version]
        whole = [then for then in self.then if then[0] >= state.floor]
        for seq, values, metadata in self.random.sample(whole, min(len(whole), 6)):
            then = client.snapshot(at=seq)
            assert list(then) == list(values)
            assert then.copy() == values
            assert {key: dict(then.metadata[key]) for key in values} == metadata


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("faults", [False, True], ids=["calm", "lost"])
def test_however_rarely_a_client_looks_it_sees_what_a_new_one_sees(seed, faults, limits, world):
    story = Story(seed)
    rng = story.random
    inline_bytes = rng.choice([2048, 200, 0])
    clients = [world.open(inline_bytes=inline_bytes) for _ in range(4)]

    for step in range(300):
        client = rng.choice(clients)
        if faults and rng.random() < 0.2:
            world.of(client).at("put", "", rng.choice([lose_reply, lose_request]))
        story.write(client)
        if rng.random() < 0.3:
            client._engine.upkeep.finish()
        if rng.random() < 0.1:
            assert list(rng.choice(clients)) == list(story.values)
        if step % 60 == 59:
            for client in clients:
                world.of(client).steps.clear()
                client._engine.upkeep.finish()
            fresh = world.open(inline_bytes=inline_bytes, cache_bytes=0)
            story.check(fresh)
            mine = fresh._engine.now()
            for client in clients:
                known = client._engine.now()
                assert content(known.state) == content(mine.state)
                assert content(known.settled) == content(mine.settled)
                assert client[list(story.values)] == list(story.values.values())
            story.check(rng.choice(clients))
