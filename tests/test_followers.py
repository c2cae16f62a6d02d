"""Clients that look at an index now and then come to the same state as one that reads it anew."""

from __future__ import annotations

import random

import pytest

from faults import lose_reply, lose_request
from remotedict.pure import plan


@pytest.fixture(params=[(900, 1500, 3), (1500, 6000, 30), (3000, 20_000, 100)], ids=str)
def limits(request, monkeypatch):
    """Limits at which a few commits roll, merge, make checkpoints and are rebased."""
    index_bytes, checkpoint_min, rebase_min = request.param
    monkeypatch.setattr(plan, "INDEX_BYTES", index_bytes)
    monkeypatch.setattr(plan, "CHECKPOINT_MIN", checkpoint_min)
    monkeypatch.setattr("remotedict.pure.state._REBASE_MIN", rebase_min)


def facts(known):
    """Return all that a client knows, in terms that don't depend on how it came to know it."""
    return [
        (
            state.head,
            [(key, state.get(key).version, state.get(key).generation) for key in state],
            list(reversed(state))[::-1] == list(state),
            len(state),
            {key: lock.epoch for key, lock in state.locks.items()},
            state.retired,
            {blob: n for blob, n in state._grown.uses.items(state.seq) if n},
        )
        for state in (known.state, known.settled)
    ]


def write(client, rng, model, versions):
    """Change something through `client`, and in the model."""
    key = f"k{rng.randrange(25)}"
    kind = rng.random()
    if kind < 0.1:
        many = {f"k{n}": rng.randbytes(rng.randrange(400)) for n in rng.sample(range(25), 5)}
        client.update(many)
        model.update(many)
        for other in many:
            versions[other] = versions.get(other, 0) + 1
        return
    if kind < 0.25 and model:
        key = rng.choice(list(model))
        del client[key]
        del model[key]
    elif kind < 0.3 and model:
        key, value = client.popitem()
        assert (key, value) == model.popitem()
    else:
        model[key] = client[key] = rng.randbytes(rng.choice([5, 100, 600, 6000]))
    versions[key] = versions.get(key, 0) + 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("faults", [False, True], ids=["calm", "lost"])
def test_however_rarely_a_client_looks_it_sees_what_a_new_one_sees(seed, faults, limits, world):
    rng = random.Random(seed)
    inline_bytes = rng.choice([2048, 200, 0])
    clients = [world.open(inline_bytes=inline_bytes) for _ in range(4)]
    model, versions = {}, {}

    for step in range(300):
        client = rng.choice(clients)
        if faults and rng.random() < 0.2:
            world.of(client).at("put", "", rng.choice([lose_reply, lose_request]))
        write(client, rng, model, versions)
        if rng.random() < 0.3:
            client._engine.upkeep.finish()
        if rng.random() < 0.1:
            assert list(rng.choice(clients)) == list(model)
        if step % 60 == 59:
            for client in clients:
                world.of(client).steps.clear()
                client._engine.upkeep.finish()
            fresh = world.open(inline_bytes=inline_bytes, cache_bytes=0)
            assert fresh.copy() == model
            assert list(fresh) == list(model)
            state = fresh._engine.index.known.state
            assert {key: state.version(key) for key in versions} == versions
            for client in clients:
                assert facts(client._engine.now()) == facts(fresh._engine.now())
                assert client[list(model)] == list(model.values())
