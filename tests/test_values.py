"""Where values are put, and how they are found again: inline, in packs, in blobs of their own."""

from __future__ import annotations

import random
import threading

import pytest

from faults import after
from remotedict import CorruptBlobError, ValueTooLargeError
from remotedict.engine import values

RANDOM = random.Random(0)


def noise(size):
    """Return what LZ4 can't make smaller."""
    return RANDOM.randbytes(size)


def entry(client, key):
    return client._engine.known().state.get(key)


def kinds(client):
    """Return where the bytes of each value are."""
    state = client._engine.known().state
    return {key: type(entry.place).__name__ for key, entry in state.items()}


def paths(backend, verb="get"):
    """Return the blobs of values that were asked for since the calls were cleared."""
    return [call.path for call in backend.sent(verb) if not call.path.startswith("Index/")]


def fresh(world, **options):
    """Return a client that has looked at the index, but at no value."""
    client = world.open(**options)
    len(client)
    world.of(client).calls.clear()
    return client


# -- where they are put ---------------------------------------------------------------------


def test_small_values_go_inline_others_to_a_blob_of_their_own(world):
    a = world.open()
    a["small"], a["large"] = noise(100), noise(20_000)
    assert kinds(a) == {"small": "bytes", "large": "int"}
    assert len(paths(world.of(a), "put")) == 1


def test_small_values_that_are_too_many_for_a_commit_share_a_pack(world):
    a = world.open(inline_bytes=4096)
    few = {f"k{n}": noise(3900) for n in range(60)}
    a.update(few)
    assert {entry(a, key).place.blob[:2] for key in few} == {"s:"}  # inline, in a segment
    assert paths(world.of(a), "put") == []
    many = {f"m{n}": noise(3900) for n in range(70)}
    a.update(many)
    places = [entry(a, key).place for key in many]
    assert {place.blob[:2] for place in places} == {"p:"}
    assert len({place.blob for place in places}) == len(paths(world.of(a), "put")) == 1
    assert [place.offset for place in places] == [
        sum(other.length for other in places[:n]) for n in range(70)
    ]
    assert world.open()[list(many)] == list(many.values())


def test_a_pack_that_is_full_is_followed_by_another(world, monkeypatch):
    monkeypatch.setattr(values, "PACK_BYTES", 50_000)
    a = world.open()
    a.update({f"k{n}": noise(20_000) for n in range(5)})
    places = [entry(a, f"k{n}").place for n in range(5)]
    blobs = [place.blob for place in places]
    assert blobs[0] == blobs[1] != blobs[2] == blobs[3] != blobs[4]
    assert [place.offset for place in places[::2]] == [0, 0, 0]
    assert max(place.offset + place.length for place in places) <= 50_000


def test_each_value_is_a_file_of_its_own_if_one_wants_it_so(world):
    a = world.open(inline_bytes=0)
    a.update({f"k{n}": n for n in range(3)})
    assert set(kinds(a).values()) == {"int"}
    assert len(paths(world.of(a), "put")) == 3


def test_a_bulk_of_all_kinds_is_told_by_its_progress(world):
    a = world.open()
    engine, told = a._engine, []
    sizes = [100, 20_000, 300_000, 30_000, 9_000_000]
    encoded = [
        (f"k{n}", *engine.values.encode(f"k{n}", noise(size), bytes(16)))
        for n, size in enumerate(sizes)
    ]
    changes = engine.values.place(encoded, 0, told.append)
    assert [type(change.place).__name__ for change in changes] == [
        "bytes",
        "Range",
        "int",
        "Range",
        "int",
    ]
    assert [change.key for change in changes] == [f"k{n}" for n in range(5)]
    assert (told, sum(told)) == ([1, 2, 1, 1], 5)
    # What was written is at hand, unless it would take a copy of much.
    kept = [engine.values.cache.get(change.generation) is not None for change in changes]
    assert kept == [False, True, False, True, False]
    changes = engine.values.place(encoded[:2], 0, told.append, inline=False)
    assert [type(change.place).__name__ for change in changes] == ["Range", "Range"]


# -- how they are found ---------------------------------------------------------------------


def test_neighbours_in_a_pack_are_read_by_one_request(world, monkeypatch):
    monkeypatch.setattr(values, "_GAP_BYTES", 1000)
    a = world.open()
    data = {f"k{n}": noise(20_000) for n in range(8)}
    a.update(data)
    for keys, requests in [
        (["k0", "k1", "k2"], 1),
        (["k3", "k5"], 2),
        (["k7", "k6"], 1),
        (list(data), 1),
    ]:
        b = fresh(world)
        assert b[keys] == [data[key] for key in keys]
        assert len(paths(world.of(b))) == requests


def test_a_file_of_the_disk_cache_that_is_mapped_is_not_in_memory_as_well(world, tmp_path):
    world.open()["k"] = noise(2_000_000)
    for kept in (True, False):  # the second one finds it on disk
        reader = world.open(cache_dir=tmp_path)
        assert len(reader["k"]) == 2_000_000
        assert bool(reader._engine.values.cache._bytes) is kept


def test_what_is_at_hand_is_not_asked_for(world):
    a = world.open()
    data = {
        "inline": noise(10),
        "large": noise(300_000),
        **{f"p{n}": noise(20_000) for n in range(3)},
    }
    a.update(data)
    b = fresh(world)
    assert b["p1"] == data["p1"]
    assert b["large"] == data["large"]
    world.of(b).calls.clear()
    assert b[list(data)] == list(data.values())
    assert len(paths(world.of(b))) == 1  # p0 and p2, with p1 between them
    world.of(b).calls.clear()
    assert b[list(data)] == list(data.values())
    assert b["p1"] == data["p1"]
    assert b["inline"] == data["inline"]
    assert paths(world.of(b)) == []
    assert b.stats.memory_hits


def test_a_value_in_many_pieces_is_unpacked_while_it_arrives(world):
    a = world.open()
    data = noise(20_000_000)
    a["k"] = data
    b = fresh(world)
    assert b["k"] == data
    assert len(paths(world.of(b))) > 1
    assert b[["k"]] == [data]


def test_who_comes_while_a_value_is_loaded_shares_it(world):
    a = world.open()
    a["k"] = data = noise(300_000)
    b = fresh(world)
    seen = []

    def other(act):
        answer = act()
        thread.start()
        thread.join(0.2)  # it waits for this very answer
        return answer

    thread = threading.Thread(target=lambda: seen.append(b["k"]))
    path = b._engine.layout.path(entry(a, "k").blob("k"))
    world.of(b).at("get", path, other)
    assert b["k"] == data
    thread.join(30)
    assert seen == [data]
    assert len(paths(world.of(b))) == 1


def test_who_comes_just_after_a_value_was_loaded_takes_it_from_memory(world, monkeypatch):
    a = world.open()
    a["k"] = data = noise(300_000)
    b = fresh(world)
    share = b._engine.values._blobs.flights.share

    def later(*args):
        monkeypatch.undo()
        assert b["k"] == data  # by another, who was quicker
        return share(*args)

    monkeypatch.setattr(b._engine.values._blobs.flights, "share", later)
    assert b["k"] == data
    assert len(paths(world.of(b))) == 1


def test_values_too_large_for_a_handle_are_refused_one_by_one_and_in_bulk(world):
    a = world.open()
    a.update(small=noise(10), large=noise(300_000))
    b = fresh(world, max_value_bytes=1000)
    assert b["small"] == a["small"]
    assert b[["small"]] == [a["small"]]
    for read in (lambda: b["large"], lambda: b[["small", "large"]], lambda: list(b.items())):
        with pytest.raises(ValueTooLargeError, match="large"):
            read()
    assert paths(world.of(b)) == []


def test_damaged_bytes_are_named_and_not_kept(world):
    a = world.open()
    a["k"] = data = noise(300_000)
    path = a._engine.layout.path(entry(a, "k").blob("k"))
    whole = world.store.get(path).data
    world.store.put(path, whole[:-1] + bytes([whole[-1] ^ 1]))
    b = fresh(world)
    for read in (lambda: b["k"], lambda: b[["k"]]):
        with pytest.raises(CorruptBlobError) as caught:
            read()
        assert caught.value.blob == path
    world.store.put(path, whole)
    assert b["k"] == data


def test_damaged_inline_bytes_are_said_to_be_in_the_index(world):
    a = world.open()
    a["k"] = 1
    found = entry(a, "k")
    with pytest.raises(CorruptBlobError) as caught:
        a._engine.values.decode(found.location("k"), found.place[:-1], bytes(16))
    assert caught.value.blob == a._engine.layout.index


def test_signed_values_are_read_in_bulk(world):
    a = world.open(signing_key="s" * 32)
    data = {"inline": noise(10), "large": noise(300_000), "p": noise(20_000), "q": noise(20_000)}
    a.update(data)
    b = fresh(world, signing_key="s" * 32)
    assert b[list(data)] == list(data.values())
    assert dict(b.items()) == data


def test_a_value_that_was_replaced_while_it_was_read_is_read_anew(world):
    a = world.open()
    a["k"] = noise(300_000)
    b = fresh(world)
    path = a._engine.layout.path(entry(a, "k").blob("k"))

    def replaced():
        a["k"] = "new"
        world.store.delete([path])

    world.of(b).at("get", path, after(replaced))
    assert b["k"] == "new"
