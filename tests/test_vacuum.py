"""Vacuum deletes what nothing needs, and nothing that anybody needs or may come to need."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from faults import INDEX, after, lose_reply, lose_request
from remotedict import (
    AccessDeniedError,
    SnapshotExpiredError,
    StoreUnavailableError,
)
from remotedict.backend import TransientError
from remotedict.engine import garbage, patient, upkeep
from remotedict.pure import plan, state
from remotedict.pure.naming import unique
from remotedict.pure.records import Index, Log, decode, encode

DAY = 86_400.0


@pytest.fixture
def small(monkeypatch):
    """Let few commits roll, merge, rebase and make checkpoints."""
    monkeypatch.setattr(plan, "INDEX_BYTES", 1500)
    monkeypatch.setattr(plan, "CHECKPOINT_MIN", 3000)
    monkeypatch.setattr(plan, "FAN", 2)
    monkeypatch.setattr(state, "_REBASE_MIN", 5)


@pytest.fixture
def by_hand(monkeypatch):
    """Let nothing be tidied up beside checkpoints."""
    monkeypatch.setattr(upkeep.Upkeep, "_tidy", lambda *_: None)


def blobs(d):
    """Return the sizes of all blobs of a dictionary, by path."""
    backend, folder = d._engine.backend, d._engine.layout.folder
    return {b.name: b.size for p in (f"Index/{folder}/", f"{folder}/") for b in backend.list(p)}


def index_of(world):
    return decode(world.store.get(INDEX).data, Index, INDEX)[0]


def fill(d, rng, commits=40):
    """Write in every kind of place, and over it; return what there is in the end."""
    made = {}
    for n in range(commits):
        key = f"k{rng.randrange(7)}"
        made[key] = d[key] = rng.randbytes(rng.choice([5, 400, 3000]))
        if n % 9 == 0:
            many = {
                f"p{i}": rng.randbytes(rng.choice([900, 2000])) for i in range(rng.randrange(2, 6))
            }
            d.update(many)
            made |= many
        if n % 11 == 5:
            d.copy_item(key, "copy")
            made["copy"] = made[key]
        if n % 13 == 7 and key in made:
            del d[key], made[key]
    return made


@pytest.mark.parametrize("inline_bytes", [0, 300, 2048])
def test_what_is_needed_stays_and_the_rest_goes(world, small, by_hand, inline_bytes):
    d = world.open(inline_bytes=inline_bytes, cache_bytes=0, retention=0)
    made = fill(d, random.Random(inline_bytes))
    d._engine.upkeep.finish()
    before = blobs(d)
    for _ in range(3):
        world.clock.now += 2 * DAY
        report = d.vacuum()
        for handle in (d, world.open(cache_bytes=0)):
            assert handle.copy() == made
    left = blobs(d)
    assert sum(left.values()) < sum(before.values())
    assert report.strangers.blobs == 0
    assert sum(tally.blobs for tally in report.kept.values()) == len(left) - 1  # the index
    needed = set(d.index.to_list())
    assert needed <= {*left, INDEX}
    own = [p for p in left if not p.startswith(("Index/", "f/.packs/"))]
    assert set(own) <= needed


def test_on_every_backend(shop):
    d, other = shop.open(inline_bytes=0, retention=0), shop.open(cache_bytes=0)
    d.update({f"n{n}": n for n in range(9)})
    for n in range(5):
        d["k"] = n
    then = other.snapshot()
    del d["n3"]
    d["k"] = 5
    lying = len(blobs(d))
    told = d.vacuum(grace=0, dry_run=True)
    assert len(blobs(d)) == lying
    report = d.vacuum(grace=0)
    assert (report.dry_run, told.dry_run) == (False, True)
    assert report.deleted["values"] == told.deleted["values"]
    assert report.deleted["values"].blobs == 6
    assert "deleted" in repr(report)
    assert "would delete" in repr(told)
    assert len(blobs(d)) == lying + 1 - report.blobs  # and the segment, for what was in the tail
    for handle in (d, other, shop.open()):
        assert handle.copy() == {**{f"n{n}": n for n in range(9) if n != 3}, "k": 5}
    with pytest.raises(SnapshotExpiredError):
        then["k"]


def test_what_is_younger_than_its_grace_stays(world, by_hand):
    d = world.open(inline_bytes=0, retention=1e9)
    d["k"] = 1
    orphan = lost_upload(world, d, "k")
    d["l"] = 1
    world.clock.now += 0.9 * DAY
    d["m"] = 1
    assert d.vacuum().blobs == 0
    world.clock.now += 0.2 * DAY
    assert d.vacuum().blobs == 0  # no commit behind it is known to be a day old
    world.clock.now += DAY
    assert d.vacuum().blobs == 1
    assert orphan not in blobs(d)
    assert d.copy() == {"k": 1, "l": 1, "m": 1}


def lost_upload(world, d, key):
    """Leave the upload of a writer who died before the commit; return its path."""
    before = set(blobs(d))
    died = world.open(inline_bytes=0, timeout=1)
    died.get(key)

    def die(_):
        raise AccessDeniedError("killed")

    world.of(died).at("put", INDEX, die)
    with pytest.raises(AccessDeniedError):
        died[key] = "lost"
    [path] = {path for path in set(blobs(d)) - before if path.startswith(f"f/{key}/")}
    return path


def test_only_the_times_of_the_store_count(world, by_hand):
    d = world.open(inline_bytes=0, retention=0)
    d["m"] = 1
    orphan = lost_upload(world, d, "k")
    d["k"] = 1
    d["l"] = 1
    real = world.runtime.time
    world.runtime.time = lambda: real() + 1000 * DAY  # a clock that is years ahead
    assert d.vacuum().blobs == 0
    world.clock.now += 2 * DAY
    world.runtime.time = lambda: real() - 5 * DAY  # and one that is behind
    assert d.vacuum().blobs >= 1
    assert orphan not in blobs(d)


def test_a_dry_run_writes_nothing(world, by_hand):
    d = world.open(inline_bytes=0, retention=0)
    for n in range(5):
        d["k"] = n
    world.clock.now += 2 * DAY
    before, calls = world.store._blobs.copy(), len(world.of(d).calls)
    told = d.vacuum(dry_run=True)
    assert world.store._blobs == before
    assert {call.verb for call in world.of(d).calls[calls:]} == {"get"}
    assert told.blobs == d.vacuum().blobs == 4


def test_a_dry_run_whose_log_is_replaced_and_deleted_meanwhile_looks_again(world, small, by_hand):
    d, other = world.open(retention=0), world.open(retention=0)
    made = fill(other, random.Random(3))
    other._engine.upkeep.finish()
    old = other._engine.layout.path(index_of(world).log.blob)

    def replaced():
        while index_of(world).log.blob.rpartition(":")[2] in old:
            made["more"] = other["more"] = len(world.of(other).calls)
            other._engine.upkeep.finish()
        other.vacuum(grace=0)
        assert old not in blobs(other)

    world.of(d).at("get", old, after(replaced))
    told = d.vacuum(grace=0, dry_run=True)
    assert not world.of(d).steps
    assert len(world.of(d).sent("get", old)) == 1  # then the new one is read
    assert told.horizon == d._engine.now().state.seq
    assert told.blobs == other.vacuum(grace=0).blobs
    assert world.open(cache_bytes=0).copy() == made


# Rule 11: the horizon only grows; the writer judges with it all that it names.


def test_the_horizon_only_grows_and_never_passes_the_commit_of_the_one_before(world, by_hand):
    a, b = world.open(), world.open()
    seen = []
    for n in range(12):
        (a, b)[n % 2][f"k{n}"] = n
        if n == 6:
            a.forget("k0")
        before = index_of(world)
        (b, a)[n % 2].vacuum(grace=0 if n % 3 else DAY)
        index = index_of(world)
        seen.append(index.horizon)
        assert before.horizon <= index.horizon <= (before.horizon_seq or index.seq) <= index.seq
        assert index.horizon_seq == index.seq
    assert seen[-1] > seen[2]


def test_an_upload_that_vacuum_has_passed_is_done_again_and_outlives_the_next(world, by_hand):
    slow, other = world.open(inline_bytes=0), world.open(inline_bytes=0)
    other["k"] = 1
    slow["l"] = 1
    ends = []

    def vacuumed():
        other["k"] = len(ends)
        ends.append(other.vacuum(grace=0).deleted.get("values"))

    for _ in range(2):
        world.of(slow).at("put", INDEX, after(vacuumed))
    slow["l"] = "slowly"
    assert [tally is not None and tally.blobs for tally in ends] == [1, False]
    for handle in (slow, other, world.open(cache_bytes=0)):
        assert handle["l"] == "slowly"
    uploads = [call for call in world.of(slow).sent("put") if call.path.startswith("f/l/")]
    assert len(uploads) == 3  # the first value, the lost upload, and once more
    # The lost one has the same generation, and yet another name.
    assert uploads[1].path[-32:] == uploads[2].path[-32:]
    assert [path for path in blobs(other) if path.startswith("f/l/")] == [
        uploads[0].path,
        uploads[2].path,
    ]


@pytest.mark.parametrize("what", ["/segments/", "/checkpoints/", "/logs/"])
def test_what_upkeep_has_written_below_the_horizon_is_not_named(
    world, small, monkeypatch, by_hand, what
):
    d, other = world.open(retention=0), world.open()
    original, done = world.of(d)._do, []
    swaps = []
    monkeypatch.setattr(
        upkeep.Upkeep,
        "_swap",
        lambda self, transform, real=upkeep.Upkeep._swap: (
            swaps.append(real(self, transform)) or swaps[-1]
        ),
    )

    def do(call, act):
        result = original(call, act)
        in_upkeep = d._engine.upkeep._job is not None and not call.args["if_match"]
        if call.verb == "put" and what in call.path and in_upkeep and not done:
            # Written, and not named yet: a moment later it is garbage.
            done.append(call.path)
            for n in range(3):
                other[f"o{n}"] = n
            for _ in range(3):
                other.vacuum(grace=0)
                other["o"] = n
            assert call.path not in blobs(other)
        return result

    world.of(d)._do = lambda call, act: (
        do(call, act) if "if_match" in call.args else original(call, act)
    )
    for n in range(200):
        d[f"k{n % 5}"] = "x" * 40
        d._engine.upkeep.finish()
        if done:
            break
    assert done
    assert None in swaps
    for handle in (d, other, world.open()):
        assert handle["k0"] == "x" * 40
    d.vacuum(grace=0)
    assert world.open().copy() == d.copy()


def disturbed(world, d, act_first):
    """Let something happen once all is written that a forget needs, and nothing is named yet."""
    original, packs = world.of(d)._do, []

    def do(call, act):
        if call.verb == "put" and "/.packs/" in call.path:
            packs.append(call.path)
        if call.verb == "put" and "/logs/" in call.path and len(packs) == 1:
            act_first()
        return original(call, act)

    world.of(d)._do = do
    return packs


def forgetting(world):
    noise = random.Random(1).randbytes(3000)
    d, other = world.open(cache_bytes=0), world.open()
    d.update({"secret": noise[::-1], "x": noise})  # one pack
    d["l"] = 0
    assert other["l"] == 0
    return d, other, {"x": noise, "l": 1}


def tidy(other, old):
    """Set a horizon, and let the tail be: so the layout stays as it is."""
    other._engine.upkeep._tidy(upkeep._Ages(old, 0), other._engine.now())


def test_a_forget_whose_new_blobs_vacuum_has_passed_begins_anew(world):
    d, other, expected = forgetting(world)

    def passed():
        other["l"] = 1
        tidy(other, other._engine.known().state.seq)
        assert packs[0] not in blobs(other)

    packs = disturbed(world, d, passed)
    d.forget("secret")
    assert len(packs) == 2
    for handle in (d, other, world.open(cache_bytes=0)):
        assert handle.copy() == expected


def test_a_forget_that_began_before_doesnt_take_a_horizon_back(world):
    d, other, expected = forgetting(world)
    horizons = []

    def raised():
        began = other._engine.now().state.seq
        other["l"] = 1
        tidy(other, began)
        horizons.append((index_of(world).horizon, index_of(world).horizon_seq))

    packs = disturbed(world, d, raised)
    d.forget("secret")
    assert len(packs) == 1
    index = index_of(world)
    assert horizons == [(3, 4)]
    assert (index.horizon, index.horizon_seq) >= horizons[0]
    assert index.horizon_seq >= horizons[0][1]
    assert world.open().copy() == expected


# Rule 12: deleted is only after the horizon stands, by the state of that very commit.


def deletions(world, client):
    """Return what a client deletes from now on, each with the horizon that stood then."""
    seen, backend = [], world.of(client)
    real = backend.store.delete

    def delete(paths):
        seen.extend((path, index_of(world).horizon) for path in paths)
        real(paths)

    backend.delete = delete
    return seen


@pytest.mark.parametrize("fault", [lose_request, lose_reply])
@pytest.mark.parametrize("which", range(3))
def test_nothing_is_deleted_before_the_horizon_stands(world, by_hand, fault, which):
    d, other = world.open(inline_bytes=0, retention=0), world.open(cache_bytes=0)
    for n in range(5):
        d["k"] = n
    assert other["k"] == 4
    seen = deletions(world, d)
    for _ in range(which):
        world.of(d).at("put", INDEX, lambda act: act())
    world.of(d).at("put", INDEX, fault)
    d.vacuum(grace=0)
    assert len(seen) == 4
    assert {horizon for _, horizon in seen} == {index_of(world).horizon}
    assert (d["k"], other["k"], world.open()["k"]) == (4, 4, 4)


def test_without_a_horizon_nothing_is_deleted(world, by_hand):
    d = world.open(inline_bytes=0, retention=0, timeout=5)
    for n in range(5):
        d["k"] = n
    seen = deletions(world, d)
    world.of(d).at("put", INDEX, lambda act: act())  # the tail
    world.of(d).at("put", INDEX, lambda act: act())  # the drop
    for _ in range(100):
        world.of(d).at("put", INDEX, lose_request)
    with pytest.raises(StoreUnavailableError):
        d.vacuum(grace=0)
    assert seen == []
    world.of(d).steps.clear()
    d.vacuum(grace=0)
    assert seen  # what was left undone is done by the next


def test_what_is_named_just_before_the_horizon_stands_is_kept(world, by_hand):
    d, other = world.open(inline_bytes=0, retention=0), world.open(inline_bytes=0)
    d["k"] = 1
    d["l"] = 1
    assert other["l"] == 1
    held = []

    def commit_first(act):
        # An upload from long ago gets its commit in between: the horizon must be judged anew.
        held.append(other.__setitem__("late", "value"))
        return act()

    world.of(d).at("put", INDEX, lambda act: act())
    world.of(d).at("put", INDEX, commit_first)
    d.vacuum(grace=0)
    assert held
    for handle in (d, other, world.open(cache_bytes=0)):
        assert handle.copy() == {"k": 1, "l": 1, "late": "value"}


def test_a_vacuum_that_was_killed_leaves_only_garbage(world, by_hand):
    d, other = world.open(inline_bytes=0, retention=0), world.open()
    for n in range(5):
        d["k"] = n
    killed = SimpleNamespace(done=False)

    def delete(_):
        killed.done = True
        raise AccessDeniedError("killed")

    world.of(d).delete = delete
    with pytest.raises(AccessDeniedError):
        d.vacuum(grace=0)
    assert killed.done
    assert other["k"] == 4
    other["l"] = 1
    other.vacuum(grace=0)
    report = other.vacuum(grace=0)
    assert [p for p in blobs(other) if p.startswith("f/k/")] == [other.index["k"]]
    assert report.strangers.blobs == 0


def test_two_may_vacuum_at_once(world, small, by_hand):
    a, b = world.open(inline_bytes=300, retention=0), world.open(retention=0, cache_bytes=0)
    made = fill(a, random.Random(5))
    a._engine.upkeep.finish()
    seen, real = [], world.of(a).store.delete

    def delete(paths):
        if not seen:
            seen.append(b.vacuum(grace=0))
        real(paths)

    world.of(a).delete = delete
    assert a.vacuum(grace=0).strangers.blobs == 0
    assert seen
    for handle in (a, b, world.open()):
        assert handle.copy() == made


# Rule 13: what is listed keeps its bytes; what isn't can't be named again.


def test_a_copy_of_what_is_dropped_meanwhile_is_refused_or_has_its_bytes(world, by_hand):
    a, b = world.open(inline_bytes=0, retention=0), world.open(inline_bytes=0, cache_bytes=0)
    a["k"] = "old"
    a["k"] = "new"
    assert b.at("k", 1) == "old"
    # Just before the revert lands the old version is dropped, and its bytes are deleted.
    world.of(b).at("put", INDEX, after(lambda: a.vacuum(grace=0)))
    with pytest.raises(SnapshotExpiredError):
        b.revert("k", 1)
    assert a.version("k") == 2
    a["k"] = "newest"
    world.of(b).at("put", INDEX, lambda act: [act(), a.vacuum(grace=0)][0])
    b.revert("k", 2)  # it lands first
    for handle in (a, b, world.open()):
        assert handle["k"] == "new"


def test_what_retention_keeps_stays_whatever_the_grace(world, by_hand):
    d = world.open(inline_bytes=0, retention=3600)
    for n in range(1, 4):
        d["k"] = n
    then = d.snapshot()
    d["k"] = 4
    d.vacuum(grace=0)
    assert then["k"] == d.at("k", 3) == 3
    assert d.at("k", 1) == 1
    all_kept = world.open(history="all")
    world.clock.now += 2 * DAY
    d["l"] = 1
    d.vacuum(grace=0)
    assert [all_kept.at("k", n) for n in range(1, 5)] == [1, 2, 3, 4]


def test_who_reads_what_is_gone_is_told_so(world, by_hand):
    d, reader = world.open(inline_bytes=0, retention=0), world.open(cache_bytes=0)
    for n in range(600):  # more than is fetched ahead
        d[f"k{n}"] = n if n < 3 else 0
    then, pairs = reader.snapshot(), iter(reader.items())
    assert next(pairs) == ("k0", 0)
    d.update({f"k{n}": "new" for n in range(600)})
    d.vacuum(grace=0)
    with pytest.raises(SnapshotExpiredError):
        list(pairs)
    with pytest.raises(SnapshotExpiredError):
        then.copy()
    assert set(reader.copy().values()) == {"new"}


# What lives in a mostly dead pack is packed anew (rule 14).


def sparse(world, **options):
    """Return two clients of a dictionary of which one pack is mostly dead, and what it holds."""
    rng = random.Random(1)
    d, other = world.open(retention=0, cache_bytes=0, **options), world.open(cache_bytes=0)
    values = {f"k{n}": rng.randbytes(3000) for n in range(12)}
    d.update(values)
    [pack] = {path for path in d.index if "/.packs/" in path}
    for n in range(10):
        d[f"k{n}"] = values[f"k{n}"] = n
    assert other.copy() == values
    return d, other, values, pack


@pytest.mark.parametrize("keys", [{}, {"encryption_key": "b" * 40}])
def test_what_lives_in_a_mostly_dead_pack_is_packed_anew(world, by_hand, keys):
    if keys:
        pytest.importorskip("cryptography")
    rng = random.Random(1)
    d, reader = world.open(retention=0, **keys), world.open(cache_bytes=0, **keys)
    values = {f"k{n}": rng.randbytes(3000) for n in range(12)}
    d.update(values)
    [pack] = {path for path in d.index if "/.packs/" in path}
    for n in range(10):
        d[f"k{n}"] = values[f"k{n}"] = n
    then = reader.snapshot()
    assert d.vacuum(grace=0, dry_run=True).repacked.blobs == 1
    report = d.vacuum(grace=0)
    assert report.repacked.blobs == 1
    assert report.repacked.nbytes == blobs(d)[pack]  # it is there still, for who reads it now
    assert "packed anew" in repr(report)
    assert d._engine.now().index.horizon == report.horizon  # moving alone raises none
    assert then.copy() == values
    for handle in (d, reader, world.open(**keys)):
        assert handle.copy() == values
    d["more"] = values["more"] = 1
    d.vacuum(grace=0)
    report = d.vacuum(grace=0)
    assert pack not in blobs(d)
    assert report.repacked.blobs == 0
    for handle in (d, reader, world.open(**keys)):
        assert handle.copy() == values
    with pytest.raises(SnapshotExpiredError):
        then["k11"]
    assert d.verify(deep=True).ok


def test_what_is_copied_or_written_while_it_is_packed_anew_has_its_bytes(world, by_hand):
    d, other, values, pack = sparse(world)
    original, packs = world.of(d)._do, []

    def do(call, act):
        if call.verb == "put" and "/.packs/" in call.path:
            packs.append(call.path)
        if call.verb == "put" and "/logs/" in call.path and len(packs) == 1:
            other.copy_item("k11", "copy")
            other["k10"] = values["k10"] = "other"
            values["copy"] = values["k11"]
        return original(call, act)

    world.of(d)._do = do
    assert d.vacuum(grace=0).repacked.blobs == 1
    assert len(packs) == 2
    for _ in range(3):
        other["l"] = values["l"] = 1
        other.vacuum(grace=0)
    assert pack not in blobs(d)
    for handle in (d, other, world.open()):
        assert handle.copy() == values


@pytest.mark.parametrize("fault", [lose_request, lose_reply])
def test_a_lost_reply_moves_nothing_twice(world, by_hand, fault):
    d, other, values, _ = sparse(world)
    for _ in range(3):
        world.of(d).at("put", INDEX, lambda act: act())
    world.of(d).at("put", INDEX, fault)
    d.vacuum(grace=0)
    for handle in (d, other, world.open()):
        assert handle.copy() == values
        handle["k1"] = values["k1"] = values["k1"] + 1
    for _ in range(3):
        d.vacuum(grace=0)
    assert world.open().copy() == values
    assert d.verify(deep=True).ok


# What isn't ours.


def test_what_is_not_ours_is_never_touched(world, by_hand):
    d = world.open(inline_bytes=0, retention=0)
    other = encode(Log(bytes(16), bytes(16), []))
    strange = {
        "f/notes.txt": b"RDvl",
        "f/k/notes.txt": b"RDvl",
        f"f/k/{unique(0, bytes(16))}": b"a name like ours",
        f"f/k/{unique(0, bytes(15) + b'1')}": b"",
        f"f/k/deeper/{unique(0, bytes(16))}": b"RDvl" + bytes(100),
        f"f/.packs/{unique(0, bytes(16))}": b"RDvl" + bytes(100),
        f"Index/f/segments/{unique(0, bytes(16))}": other,
        f"Index/f/logs/{unique(0, bytes(16))}": other,
        f"Index/f/{unique(0, bytes(16))}": other,
        "Index/f/locks/0123456789abcdef0123456789abcdef": b"",
        f"g/k/{unique(0, bytes(16))}": b"RDvl" + bytes(100),
    }
    for path, data in strange.items():
        world.store.put(path, data)
    for n in range(4):
        d["k"] = n
    with d.lock("k"):
        pass
    before = set(world.store._blobs)
    world.clock.now += 2 * DAY
    assert d.vacuum(dry_run=True).strangers.blobs == 8
    report = d.vacuum()
    assert report.blobs == 3
    assert report.strangers.blobs == 8  # the locks, and other folders, aren't even listed
    assert "not touched" in repr(report)
    assert {path: bytes(world.store.get(path).data) for path in strange} == strange
    gone = before - set(world.store._blobs)
    assert all(path.startswith("f/k/") for path in gone)


def test_a_dictionary_that_was_lost_can_still_be_repaired(world, small, by_hand):
    old = world.open(inline_bytes=0)
    fill(old, random.Random(1))
    old._engine.upkeep.finish()
    before = {path for path in blobs(old) if path != INDEX}
    world.store.delete([INDEX])
    left = {path: world.store._blobs.pop(path) for path in before}
    d = world.open(inline_bytes=0, retention=0)  # by one who doesn't see what is left
    world.store._blobs.update(left)
    for n in range(200):  # its numbers are soon beyond those of the old one
        d["k"] = n
        d._engine.upkeep.finish()
    world.clock.now += 2 * DAY
    d.vacuum()
    d.vacuum(grace=0)
    assert before <= set(blobs(d))


@pytest.mark.parametrize("keys", [{"signing_key": "a" * 40}, {"encryption_key": "b" * 40}])
def test_what_is_signed_or_encrypted_is_vacuumed_as_well(world, small, by_hand, keys):
    if "encryption_key" in keys:
        pytest.importorskip("cryptography")
    d = world.open(inline_bytes=300, retention=0, **keys)
    made = fill(d, random.Random(3))
    d._engine.upkeep.finish()
    deleted = set()
    for _ in range(2):
        world.clock.now += 2 * DAY
        report = d.vacuum()
        deleted |= {*report.deleted}
        assert report.strangers.blobs == 0
        assert world.open(cache_bytes=0, **keys).copy() == made
        d["more"] = made["more"] = "x" * 500
        d["more"] = made["more"] = "y" * 500
    assert deleted >= {"values", "segments", "checkpoints"}


# In batches, page by page.


def test_a_long_listing_is_taken_page_by_page_and_goes_on_after_a_failure(
    world, monkeypatch, by_hand
):
    monkeypatch.setattr(patient, "_PAGE", 7)
    monkeypatch.setattr(garbage, "BATCH", 5)
    d = world.open(inline_bytes=0, retention=0)
    for n in range(60):
        d[f"k{n % 30}"] = n
    made, failures = d.copy(), [10, 20, 5, 40, 59, 30]
    real = world.of(d).store.list

    def listing(prefix):
        fails = failures.pop() if failures and prefix == "f/" else 1000
        for n, row in enumerate(real(prefix)):
            if n == fails:
                raise TransientError("the connection is lost")
            yield row

    world.of(d).list = listing
    report = d.vacuum(grace=0)
    assert not failures
    assert report.deleted["values"].blobs == 30
    assert report.kept["values"].blobs == 30
    assert d.copy() == world.open().copy() == made


@pytest.mark.parametrize("verb", ["list", "delete"])
def test_without_the_permission_it_says_what_it_needs(world, by_hand, verb):
    d = world.open(inline_bytes=0, retention=0)
    for n in range(4):
        d["k"] = n

    def refused(*_):
        raise AccessDeniedError("this SAS lacks it")

    setattr(world.of(d), verb, refused)
    with pytest.raises(AccessDeniedError, match=r"'f' can't be vacuumed .*sp=rwdl") as caught:
        d.vacuum(grace=0)
    assert isinstance(caught.value, PermissionError)
    assert "this SAS lacks it" in str(caught.value)
    assert d["k"] == world.open()["k"] == 3


@pytest.mark.parametrize(
    ("grace", "error"), [(-1, ValueError), (float("nan"), ValueError), ("1", TypeError)]
)
def test_a_grace_is_a_number_of_seconds(world, grace, error):
    with pytest.raises(error, match="grace="):
        world.open().vacuum(grace=grace)


def test_nothing_is_there_to_be_deleted(world):
    d = world.open()
    assert d.vacuum().blobs == 0
    assert INDEX not in world.store._blobs  # it was never written, and isn't now


# By itself.


def test_beside_checkpoints_garbage_goes_by_itself(world, small, monkeypatch):
    monkeypatch.setattr(upkeep, "LOG_SECONDS", 50.0)
    d, idle = world.open(inline_bytes=0, retention=5), world.open(cache_bytes=0)
    d.update({f"p{n}": n for n in range(5)})
    orphan = lost_upload(world, d, "k")
    rng = random.Random(1)
    world.runtime.jitter = lambda seconds: rng.random() * seconds
    sizes = []
    for n in range(400):
        d["k"] = n
        world.clock.now += 1
        d._engine.upkeep.finish()
        sizes.append(len(blobs(d)))
    assert max(sizes) < 200  # it doesn't grow with what was written
    assert min(sizes[200:]) < 40
    assert orphan not in blobs(d)
    expected = {**{f"p{n}": n for n in range(5)}, "k": 399}
    for handle in (d, idle, world.open()):
        assert handle.copy() == expected


def test_a_step_is_bounded(world, small, monkeypatch):
    monkeypatch.setattr(upkeep, "STEP", 10)
    monkeypatch.setattr(upkeep, "LOG_SECONDS", 0.0)
    d = world.open(inline_bytes=0, retention=0)
    counts, real = [], world.of(d).store.delete

    def delete(paths):
        paths = list(paths)
        counts.append(len(paths))
        real(paths)

    world.of(d).delete = delete
    for n in range(300):
        d[f"k{n % 40}"] = n
        d._engine.upkeep.finish()
    assert 0 < max(counts) <= 10


def test_a_client_that_may_not_delete_writes_on(world, small, monkeypatch):
    monkeypatch.setattr(upkeep, "LOG_SECONDS", 0.0)
    d = world.open(inline_bytes=0, retention=0)
    refusals = []

    def refused(*_):
        refusals.append(1)
        raise AccessDeniedError("this SAS lacks it")

    world.of(d).delete = refused
    for n in range(150):
        d[f"k{n % 9}"] = n
        d._engine.upkeep.finish()
    assert refusals
    assert index_of(world).checkpoint is not None
    assert world.open().copy() == d.copy()
