"""Verification finds what is missing or damaged, and nothing else."""

from __future__ import annotations

import random

import pytest

from faults import INDEX
from remotedict import AccessDeniedError
from remotedict.engine import verify
from remotedict.pure import plan, state
from test_vacuum import blobs, fill, lost_upload


@pytest.fixture
def small(monkeypatch):
    """Let few commits roll, merge, rebase and make checkpoints; and read in small pieces."""
    monkeypatch.setattr(plan, "INDEX_BYTES", 1500)
    monkeypatch.setattr(plan, "CHECKPOINT_MIN", 3000)
    monkeypatch.setattr(plan, "FAN", 2)
    monkeypatch.setattr(state, "_REBASE_MIN", 5)
    monkeypatch.setattr(verify, "PIECE_BYTES", 1000)
    monkeypatch.setattr(verify, "_PAGE", 7)
    monkeypatch.setattr(verify, "_WINDOW", 5)


def made(world, **options):
    d = world.open(cache_bytes=0, **options)
    values = fill(d, random.Random(4))
    d.metadata["k1"] = {"a": 1}
    d._engine.upkeep.finish()
    return d, values


@pytest.mark.parametrize("inline_bytes", [0, 300, 2048])
@pytest.mark.parametrize("history", ["none", "all"])
def test_what_is_whole_is_found_whole(world, small, inline_bytes, history):
    d, values = made(world, inline_bytes=inline_bytes, history=history)
    orphan = lost_upload(world, d, "k1")
    world.store.put("f/notes.txt", b"mine")
    for handle in (d, world.open()):
        for deep in (False, True):
            calls = len(world.of(handle).calls)
            report = handle.verify(deep=deep)
            assert report.ok, report
            assert {call.verb for call in world.of(handle).calls[calls:]} <= {"get"}
            assert report.findings == ()
            assert report.deep is deep
            assert report.keys == len(values)
            assert report.orphans.blobs >= 1
            assert report.strangers.blobs == 1
            lying = report.checked.blobs + report.orphans.blobs + report.strangers.blobs
            assert lying == len(blobs(d)) - 1  # the index
            assert "Verified" in repr(report)
    assert orphan in blobs(d)


def test_on_every_backend(shop):
    d = shop.open(history="all")
    d.update({f"n{n}": "x" * 300 for n in range(20)})
    d["large"] = random.Random(1).randbytes(20_000_000)
    d["k"] = b"x" * 5000
    d["k"] = "now"
    assert d.verify(deep=True).ok
    d._engine.backend.delete(
        [d._engine.layout.path(d._engine.known().state.get("large").blob("large"))]
    )
    for deep in (False, True):
        report = d.verify(deep=deep)
        assert [finding.keys for finding in report.findings] == [("large",)]
        assert "repair" in report.findings[0].advice


def listed_blobs(d):
    """Return all blobs that are needed: the keys that each is about, and a byte that matters."""
    known = d._engine.now()
    layout, index = d._engine.layout, known.index
    named = [*d._engine.commits.log(index), *index.segments, index.checkpoint, index.log]
    needed = {layout.path(ref.blob): (set(), None) for ref in named if ref}
    for key in known.state.known_keys():
        for item in known.state.listed(key):
            blob = getattr(item, "blob", lambda _: None)(key)
            if blob:
                where = item.range(key)
                keys, _ = needed.setdefault(
                    layout.path(blob), (set(), where.offset + where.length // 2)
                )
                keys.add(key)
    return needed


@pytest.mark.parametrize("inline_bytes", [0, 300])
@pytest.mark.parametrize("harm", ["delete", "truncate", "lengthen", "flip"])
def test_every_blob_that_is_missing_or_damaged_is_named_with_its_keys(
    world, small, inline_bytes, harm
):
    d, values = made(world, inline_bytes=inline_bytes, history="all")
    needed, rng = listed_blobs(d), random.Random(5)
    assert len(needed) > 10
    for path, (keys, middle) in needed.items():
        whole = world.store._blobs[path]
        data = bytearray(whole.data)
        at = rng.randrange(len(data)) if middle is None else middle
        if harm == "delete":
            del world.store._blobs[path]
        elif harm == "truncate":
            world.store._blobs[path] = whole._replace(data=bytes(data[:at]))
        elif harm == "lengthen":
            world.store._blobs[path] = whole._replace(data=bytes(data) + b"more")
        else:
            data[at] ^= 1 << rng.randrange(8)
            world.store._blobs[path] = whole._replace(data=bytes(data))
        for deep in (False, True):
            report = d.verify(deep=deep)
            # Of a pack, or a segment that is kept for its values alone, only these count.
            shared = middle is not None and path.startswith(("f/.packs/", "Index/"))
            if (harm == "flip" and not deep) or (harm == "lengthen" and shared):
                assert report.ok
                continue
            [finding] = report.findings
            assert (finding.blob, set(finding.keys)) == (path, keys), (harm, finding)
            assert path in repr(report)
            assert "repair" in finding.advice
            assert not report.ok
        world.store._blobs[path] = whole
    assert d.verify(deep=True).ok
    assert d.copy() == values


def test_a_value_in_the_place_of_another_is_found(world):
    d = world.open(inline_bytes=0, cache_bytes=0)
    d["k"], d["l"] = "mine", "your"
    store, index = world.store._blobs, d.index
    store[index["k"]], store[index["l"]] = store[index["l"]], store[index["k"]]
    assert d.verify().ok
    assert {f.keys for f in d.verify(deep=True).findings} == {("k",), ("l",)}


@pytest.mark.parametrize("how", ["gone", "damaged", "never seen"])
def test_an_index_that_is_lost_or_damaged_is_a_finding(world, how):
    d = world.open(inline_bytes=0)
    d["k"] = 1
    if how == "damaged":
        world.store.put(INDEX, b"oops")
    else:
        world.store.delete([INDEX])
    if how == "never seen":
        d = world.open()
    [finding] = d.verify().findings
    assert finding.blob == INDEX
    assert "repair" in finding.advice


def test_a_dictionary_that_was_never_written_is_whole(world):
    assert world.open().verify(deep=True).ok


def test_a_dictionary_that_is_made_meanwhile_is_whole(world):
    d, other = world.open(), world.open(inline_bytes=0)
    real = world.of(d).store.list

    def listing(prefix):
        other["k"] = 1
        return real(prefix)

    world.of(d).list = listing
    report = d.verify()
    assert report.ok
    assert report.keys == 1


def test_what_others_write_and_delete_meanwhile_is_no_false_alarm(world, small):
    d, other = (
        world.open(cache_bytes=0, inline_bytes=300),
        world.open(inline_bytes=300, retention=0),
    )
    fill(other, random.Random(6))
    original, rng = world.of(d)._do, random.Random(7)
    busy = []

    def do(call, act):
        if not busy:
            busy.append(1)
            n = rng.randrange(100)
            if n < 30:
                fill(other, rng, commits=2)
            elif n < 50:
                other.vacuum(grace=0)
            elif n < 55 and len(other):
                other.forget(rng.choice(list(other)))
            busy.clear()
        return original(call, act)

    world.of(d)._do = do
    real = world.of(d).store.list

    def listing(prefix):
        for row in real(prefix):
            if rng.random() < 0.1:
                other.vacuum(grace=0)
                fill(other, rng, commits=1)
            yield row

    world.of(d).list = listing
    for n in range(12):
        report = d.verify(deep=n % 2 == 0)
        assert report.ok, report


def test_what_is_signed_is_verified_with_its_key(world, small):
    d = world.open(inline_bytes=300, cache_bytes=0, signing_key="a" * 40)
    fill(d, random.Random(8))
    assert d.verify(deep=True).ok
    path = next(path for path in d.index if "/.packs/" in path)
    whole = world.store._blobs[path]
    world.store._blobs[path] = whole._replace(data=whole.data[:-1] + b"!")
    assert [finding.blob for finding in d.verify(deep=True).findings] == [path]


def test_without_permission_to_list_it_says_so(world):
    d = world.open()
    d["k"] = 1

    def refused(_):
        raise AccessDeniedError("this SAS lacks it")

    world.of(d).list = refused
    with pytest.raises(AccessDeniedError, match=r"can't be verified .*sp=rl"):
        d.verify()
