"""What is left of a dictionary is found, put together, and what isn't is said."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

import remotedict
from faults import INDEX, after, lose_reply, lose_request
from remotedict import errors
from remotedict.pure.chain import BEGINNING, Base, Gap, Link, choose

if TYPE_CHECKING:
    from collections.abc import Callable

    from faults import World
    from remotedict import RemoteDict

# -- which chain ------------------------------------------------------------------------------


def link(name: str, first: int, ids: str, base: str = "", certain: int = 10**6) -> Link:
    """Return a link whose commits have ids of one letter."""
    return Link(
        f"s:{name}", first, base.encode(), tuple(i.encode() for i in ids), certain, time=first
    )


def names(chain: Any) -> list[Any]:
    return [
        (step.first, step.last) if isinstance(step, Gap) else (step.blob[2:], step.first, step.last)
        for step in chain.steps
    ]


def test_a_chain_goes_as_far_as_segments_follow_each_other():
    links = [link("a", 1, "abc"), link("b", 4, "de", "c"), link("c", 6, "f", "e")]
    assert names(choose([BEGINNING], links)) == [("a", 1, 3), ("b", 4, 5), ("c", 6, 6)]


def test_a_chain_begins_with_the_newest_checkpoint_that_leads_as_far():
    links = [link("a", 1, "abc"), link("b", 4, "de", "c")]
    chain = choose([BEGINNING, Base(3, b"c", "c:x")], links)
    assert chain.base.blob == "c:x"
    assert names(chain) == [("b", 4, 5)]
    assert [one.blob for one in chain.before] == ["s:a"]


def test_an_older_checkpoint_is_taken_where_the_newer_one_leads_nowhere():
    links = [link("a", 1, "abc"), link("b", 4, "de", "c")]
    chain = choose([BEGINNING, Base(4, b"x", "c:other")], links)
    assert names(chain) == [("a", 1, 3), ("b", 4, 5)]


def test_of_two_that_raced_the_one_counts_on_which_others_built():
    links = [
        link("a", 1, "ab"),
        link("lost", 3, "cxyz", "b", certain=3),
        link("won", 3, "cd", "b", certain=3),
        link("next", 5, "e", "d"),
    ]
    assert names(choose([BEGINNING], links)) == [("a", 1, 2), ("won", 3, 4), ("next", 5, 5)]


def test_where_nobody_built_on_what_two_were_about_to_make_neither_counts():
    links = [
        link("a", 1, "ab"),
        link("one", 3, "cx", "b", certain=3),
        link("other", 3, "cd", "b", certain=3),
    ]
    chain = choose([BEGINNING], links)
    assert chain.seq == 3  # which both knew to be made
    assert chain.rivals == {"s:one", "s:other"}


def test_what_one_was_about_to_make_counts_if_nothing_speaks_against_it():
    chain = choose([BEGINNING], [link("a", 1, "ab"), link("one", 3, "cd", "b", certain=3)])
    assert names(chain) == [("a", 1, 2), ("one", 3, 4)]


def test_a_gap_is_left_where_commits_are_missing():
    links = [link("a", 1, "ab"), link("c", 6, "fg", "e")]
    chain = choose([BEGINNING], links)
    assert names(chain) == [("a", 1, 2), (3, 5), ("c", 6, 7)]
    assert chain.gaps[0].head == b"e"


def test_the_originals_of_a_merge_stand_in_for_it_and_the_other_way_round():
    originals = [link("a", 1, "ab"), link("b", 3, "cd", "b"), link("c", 5, "e", "d")]
    merged = link("m", 1, "abcd")
    for links in ([merged, *originals], [merged, originals[0], originals[2]]):
        assert names(choose([BEGINNING], links)) == [("m", 1, 4), ("c", 5, 5)]
    assert len(choose([BEGINNING], originals).steps) == 3


@pytest.mark.parametrize("tail", ["gh", ""])
def test_a_chain_ends_with_the_tail_of_an_index_that_can_be_read(tail):
    end = Link("", 7, b"f", tuple(i.encode() for i in tail), 6 + len(tail))
    links = [link("a", 1, "ab"), link("i", 4, "d", "c"), link("beyond", 7, "xyz", "f"), end]
    chain = choose([BEGINNING, Base(9, b"z", "c:beyond")], links)
    ends = [(end.blob[2:], 7, 8)] if tail else []
    assert names(chain) == [("a", 1, 2), (3, 3), ("i", 4, 4), (5, 6), *ends]


def test_what_a_repair_has_left_counts_only_if_others_built_on_it():
    won, lost = Base(6, b"w", "c:won", certain=2), Base(9, b"l", "c:lost", certain=5)
    ab, fillers = link("a", 1, "ab"), link("g", 3, "---w", "b", certain=2)._replace(made_up=True)
    links = [ab, fillers]
    assert choose([BEGINNING, won], links).base == won
    built = choose([BEGINNING, won, lost], [*links, link("on", 7, "xy", "w", certain=6)])
    assert (built.base, names(built)) == (won, [("on", 7, 8)])
    assert [one.blob for one in built.before] == ["s:a", "s:g"]
    # One that has come no further than this leads nowhere.
    assert names(choose([BEGINNING], [*links, link("restored", 7, "v", "w", certain=2)])) == [
        ("a", 1, 2)
    ]


# -- whole dictionaries -----------------------------------------------------------------------


def noise(seed: str, size: int = 9000) -> bytes:
    """Return bytes that LZ4 can't shrink: too many to be inline."""
    return random.Random(seed).randbytes(size)


def full(open_: Callable[..., RemoteDict], **options: Any) -> RemoteDict:
    """Return a dictionary with values of all kinds: inline, in segments, packs and blobs."""
    d = open_(author="ann", **options)
    rng = random.Random(1)
    for n in range(120):
        d[f"k{n % 30}"] = rng.randbytes(300)
    d.update({f"p{n}": rng.randbytes(3000) for n in range(20)})
    d["own"] = rng.randbytes(9000)
    d["large"] = rng.randbytes(3_000_000)
    d.put("with", 1, metadata={"unit": "s"})
    return d


def blobs(world: World) -> dict[str, Any]:
    return world.store._blobs


def lose(world: World, what: str = INDEX) -> None:
    del blobs(world)[what]


def flip(world: World, what: str, at: int, bit: int = 1) -> None:
    data = bytearray(blobs(world)[what].data)
    data[at] ^= bit
    world.store.put(what, bytes(data))


def test_a_whole_dictionary_is_left_alone(world: World):
    d = full(world.open)
    before = dict(blobs(world))
    report = d.repair(deep=True)
    assert report.whole
    assert not report.rebuilt
    assert report.keys == len(d)
    assert "nothing is wrong" in repr(report)
    assert blobs(world) == before


def test_an_empty_dictionary_is_left_alone(world: World):
    d = world.open()
    assert d.repair().whole  # there is none yet
    d["k"] = 1
    del d["k"]
    report = world.open().repair()
    assert report.whole
    assert not report.rebuilt


def test_one_answer_that_is_cut_short_is_not_damage(world: World):
    d = world.open()
    d["k"] = 1

    def cut(act):
        got = act()
        return got._replace(data=got.data[:-10])

    world.of(d).at("get", INDEX, cut)
    report = d.repair()
    assert report.whole
    assert not report.rebuilt


def test_of_a_lost_index_all_comes_back_but_what_was_only_in_it(world: World):
    d = full(world.open, history="all")
    for n in range(200):
        d[f"k{n % 30}"] = noise(str(n), 300)
    d["own"] = noise("o")
    d["inline"] = b"the newest"
    want = dict(d.items())
    settled = d._engine.index.known.index.settled
    kept = d.snapshot(at=settled).copy()
    lose(world)
    e = world.open()
    report = e.repair()
    assert report.rebuilt
    assert "gone" in report.problem
    assert report.lost_commits == ((settled + 1, None),)
    got = dict(e.items())
    assert got == kept | {"own": want["own"]}
    assert set(report.restored) == {"own"}
    assert not report.lost
    assert e.metadata["with"] == {"unit": "s"}
    assert e.repair(deep=True).whole
    assert world.open().copy() == got
    with pytest.raises(errors.DictionaryChangedError):
        d["k1"]
    e["k1"] = "goes on"
    assert world.open()["k1"] == "goes on"


def test_who_still_has_the_dictionary_open_brings_all_of_it_back(world: World):
    d = full(world.open, history=3)
    d["inline"] = b"the newest"
    want, policy = dict(d.items()), d.history_policy
    lose(world)
    report = d.repair()
    assert report.rebuilt
    assert dict(d.items()) == want
    assert dict(world.open().items()) == want
    assert world.open().history_policy == policy
    assert not report.restored


def test_a_damaged_index_gives_what_it_has_and_is_kept(world: World):
    d = full(world.open)
    d["inline"] = b"the newest"
    want = dict(d.items())
    data = blobs(world)[INDEX].data
    flip(world, INDEX, 40)
    damaged = blobs(world)[INDEX].data
    e = world.open()
    with pytest.raises(errors.CorruptBlobError, match="Index/f/index"):
        e["inline"]
    report = e.repair()
    assert dict(e.items()) == want
    assert report.restored["inline"] == INDEX
    assert blobs(world)[report.kept].data == damaged != data


def test_a_dry_run_writes_nothing(world: World):
    full(world.open)
    lose(world)
    before = dict(blobs(world))
    e = world.open()
    report = e.repair(dry_run=True)
    assert report.rebuilt
    assert report.dry_run
    assert blobs(world) == before
    again = e.repair()
    assert (again.keys, again.restored, again.lost) == (report.keys, report.restored, report.lost)


def test_locks_end_with_the_old_incarnation(world: World):
    d = full(world.open)
    d.lock_item("k1", duration=60)
    lose(world, d._engine.layout.path(d._engine.index.known.index.segments[0].blob))
    e = world.open()
    e.repair()
    assert not e.locks
    assert not e._engine.index.known.state.locks
    e["k1"] = "free"
    with pytest.raises(errors.DictionaryChangedError):
        d["k1"] = "mine"


def test_a_checkpoint_that_is_lost_is_made_again(world: World, monkeypatch):
    monkeypatch.setattr("remotedict.pure.plan.CHECKPOINT_MIN", 30_000)
    d = full(world.open, history="all")
    for n in range(400):
        d[f"k{n % 30}"] = noise(str(n), 300)
    d._engine.upkeep.finish()
    want, history = dict(d.items()), d.history()[["key", "kind", "version"]].values.tolist()
    checkpoint = d._engine.index.known.index.checkpoint.blob
    lose(world, d._engine.layout.path(checkpoint))
    e = world.open()
    with pytest.raises(errors.CorruptBlobError, match="checkpoints"):
        e["k1"]
    report = e.repair()
    assert dict(e.items()) == want
    assert not report.lost_commits
    assert e.history()[["key", "kind", "version"]].values.tolist() == history
    assert e.history_policy == "all"


def test_a_segment_that_is_lost_takes_only_its_own_commits_along(world: World):
    d = full(world.open, history="all")
    d._engine.upkeep.finish()
    for n in range(130):
        d[f"k{n % 30}"] = noise(str(n), 300)
    d._engine.upkeep.finish()
    index = d._engine.index.known.index
    ref = index.segments[-2]
    before, want = d.snapshot(at=ref.first - 1).copy(), dict(d.items())
    changed = {
        c.key
        for s in index.segments[-1:]
        for c in d._engine.index.reader.segment(s, index).commits
        for c in c.changes
    }
    changed |= {change.key for commit in index.tail for change in commit.changes}
    lose(world, d._engine.layout.path(ref.blob))
    e = world.open()
    report = e.repair()
    assert report.lost_commits == ((ref.first, ref.last),)
    got = dict(e.items())
    assert {key: got.get(key) for key in changed} == {key: want.get(key) for key in changed}
    rest = {key: value for key, value in before.items() if key not in changed}
    assert {key: got[key] for key in rest} == rest
    with pytest.raises(errors.SnapshotExpiredError):
        e.snapshot(at=ref.first)


def test_what_came_after_a_gap_is_newer_than_what_is_found_for_it(world: World, monkeypatch):
    monkeypatch.setattr("remotedict.pure.plan.INDEX_BYTES", 1400)
    monkeypatch.setattr("remotedict.pure.plan.FAN", 1000)
    d = world.open(history="all")
    first = {f"k{n}": noise(f"1{n}") for n in range(8)}
    for key, value in first.items():
        d[key] = value
    second = {f"k{n}": noise(f"2{n}") for n in range(6)}
    for key, value in second.items():
        d[key] = value
    third = {f"k{n}": noise(f"3{n}") for n in range(4)}
    for key, value in third.items():
        d[key] = value
    segments = d._engine.index.known.index.segments
    lost = [ref for ref in segments if ref.last >= 9 and ref.first <= 14]
    assert lost
    assert lost[-1].last < 18
    for ref in lost:
        lose(world, d._engine.layout.path(ref.blob))
    e = world.open()
    report = e.repair()
    assert dict(e.items()) == first | second | third
    assert report.restored
    assert report.unused
    assert "k3" not in report.restored


def test_an_index_that_came_and_went_while_another_was_made_is_not_passed_over(world: World):
    """Seed 80748: lost, repaired by somebody else, written to, and lost once more."""
    slow, quick = world.open(), world.open()
    for n in range(50):
        slow[f"k{n}"] = noise(str(n), 300)
    assert len(quick) == 50
    lose(world)

    def meanwhile(act):
        quick.repair()
        newer = world.open()
        for n in range(50):
            newer[f"n{n}"] = noise(str(n), 300)
        lose(world)
        return act()

    world.of(slow).at("put", "", meanwhile)
    slow.repair()
    seen = world.open()
    assert {f"k{n}" for n in range(50)} <= {*seen}
    sealed = [key for key in seen if key.startswith("n")]
    assert len(sealed) > 10


def test_of_writers_who_raced_nobody_loses_what_was_acknowledged(world: World, monkeypatch):
    monkeypatch.setattr("remotedict.pure.plan.INDEX_BYTES", 1100)
    one, other = world.open(), world.open()
    want = {}
    for n in range(30):
        mine, theirs = noise(f"a{n}"), noise(f"b{n}")
        act = after(lambda: other.__setitem__(f"b{n}", theirs))  # noqa: B023 - called at once
        world.of(one).at("put", INDEX, act)
        one[f"a{n % 7}"] = mine
        want |= {f"a{n % 7}": mine, f"b{n}": theirs}
        blob = blobs(world)[INDEX]
        lose(world)
        again = world.open()
        report = again.repair(dry_run=True)
        assert not report.lost
        assert report.keys == len(want)
        world.store._blobs[INDEX] = blob
    for handle in (one, other):
        handle._engine.upkeep.finish()
    lose(world)
    again = world.open()
    again.repair()
    assert dict(again.items()) == want


def test_metadata_of_a_value_that_is_lost_are_left_out(world: World):
    d = full(world.open)
    for n in range(60):
        d[f"k{n % 30}"] = noise(str(n), 300)
    d["late"] = 1
    ref = None
    while not ref:
        d["k0"] = noise("x", 300)
        index = d._engine.index.known.index
        ref = next((s for s in index.segments if s.first > 143 and s.last < index.settled), None)
        if ref is None:
            d.metadata["late"] = {"n": index.seq}
    d.metadata["late"] = {"in": "the tail"}
    for one in index.segments:
        if one.last < index.settled:
            lose(world, d._engine.layout.path(one.blob))
    for path in [p for p in blobs(world) if "/segments/" in p]:
        if d._engine.layout.reference(path) != index.segments[-1].blob:
            lose(world, path)
    e = world.open()
    report = e.repair()
    assert report.lost_commits
    assert "late" not in e


def test_values_of_another_dictionary_are_left_alone(world: World):
    full(world.open)
    for path in list(blobs(world)):
        if path.startswith("Index/"):
            lose(world, path)
    data = blobs(world)
    other = remotedict.MemoryDictionary(folder_name="f", inline_bytes=0)
    other["own"] = b"foreign"
    foreign = {
        path: blob
        for path, blob in other._engine.backend.raw._backend._blobs.items()
        if path.startswith("f/")
    }
    world.store._blobs.update(foreign)
    e = world.open()
    report = e.repair()
    assert e["own"] != b"foreign"
    assert report.foreign == 1
    assert foreign.keys() <= data.keys()


def test_nothing_is_made_of_nothing(world: World):
    report = world.open().repair()
    assert (report.whole, report.keys, report.rebuilt) == (True, 0, False)
    assert blobs(world) == {}


# -- values -----------------------------------------------------------------------------------


def own_blob(world: World, key: str) -> str:
    return max(path for path in blobs(world) if path.startswith(f"f/{key}/"))


def test_keys_whose_values_are_gone_are_named(world: World):
    d = full(world.open)
    lose(world, own_blob(world, "large"))
    report = world.open().repair()
    assert list(report.lost) == ["large"]
    assert "gone" in report.lost["large"]
    assert not report.rebuilt
    assert "large" in d


def test_a_flipped_bit_in_a_value_is_found_by_a_deep_look(world: World):
    full(world.open)
    flip(world, own_blob(world, "large"), 2_000_000)
    e = world.open()
    assert not e.repair().lost
    report = e.repair(deep=True)
    assert list(report.lost) == ["large"]
    assert own_blob(world, "large") in report.lost["large"]


def test_a_key_falls_back_to_its_newest_older_value_that_is_whole(world: World):
    d = full(world.open, history="all")
    d["own"] = noise("2")
    whole = own_blob(world, "own")
    d["own"] = noise("3")
    damaged = own_blob(world, "own")
    d["own"] = noise("4")
    gone = own_blob(world, "own")
    assert len({whole, damaged, gone}) == 3
    flip(world, damaged, 4000)
    lose(world, gone)
    lose(world, own_blob(world, "large"))
    e = world.open()
    report = e.repair(deep=True, fall_back=True)
    assert set(report.lost) == {"own", "large"}
    assert report.fallen_back == {"own": 2}
    assert e["own"] == noise("2")
    assert e.version("own") == 5
    with pytest.raises(errors.MissingValueError):
        e["large"]
    del e["large"]
    assert e.repair(deep=True).whole


# -- races ------------------------------------------------------------------------------------


def test_two_repairs_at_once_make_one_index(world: World):
    d = full(world.open)
    want = dict(d.items())
    flip(world, INDEX, 50)
    one, other = world.open(), world.open()
    reports = []
    world.of(one).at("put", INDEX, after(lambda: reports.append(other.repair())))
    reports.append(one.repair())
    assert [report.rebuilt for report in reports] == [True, False]
    assert dict(other.items()) == dict(one.items()) == want
    incarnations = {h._engine.index.known.index.incarnation for h in (one, other, world.open())}
    assert len(incarnations) == 1


@pytest.mark.parametrize("knows", [True, False])
def test_what_a_repair_has_written_that_came_too_late_is_not_believed(world: World, knows):
    full(world.open)
    lose(world)
    one, other = world.open(), world.open()
    done = []

    def second(act: Callable[[], Any]) -> Any:
        # Another one has seen all that the first has written but for the index, and goes beyond.
        world.of(other).at("put", INDEX, after(lambda: done.append(act())))
        assert not other.repair().rebuilt
        return done[0]

    world.of(one).at("put", INDEX, second)
    assert one.repair().rebuilt
    for n in range(20):
        one.put(f"k{n % 4}", n, metadata={"n": n})
    del one["own"]
    if not knows:  # then they are in a segment
        one._engine.swap(replace, settle=True)
    want = {key: (one[key], dict(one.metadata[key])) for key in one}
    lose(world)
    e = one if knows else world.open()
    assert e.repair().rebuilt
    assert {key: (e[key], dict(e.metadata[key])) for key in e} == want


@pytest.mark.parametrize("which", ["/segments/", "/checkpoints/", "/logs/", INDEX])
def test_a_repair_that_was_killed_takes_nothing_from_the_next_one(world: World, which):
    full(world.open)
    d = world.open(inline_bytes=0)
    d["k0"] = d["new"] = "a blob of its own"
    world.clock.now += 10
    want = dict(d.items())
    lose(world)
    killed, e = world.open(), world.open()
    world.clock.now += 10
    backend = world.of(killed)
    original = backend._do

    def die(call: Any, act: Callable[[], Any]) -> Any:
        if call.verb == "put" and which in call.path:
            written.append(call.path)
            if which != "/segments/" or len(written) > 1:
                raise errors.AccessDeniedError("killed")
        return original(call, act)

    written: list[str] = []
    backend._do = die
    with pytest.raises(errors.AccessDeniedError):
        killed.repair()
    world.clock.now += 10
    assert e.repair().rebuilt
    assert {key: e[key] for key in ("k0", "new")} == {key: want[key] for key in ("k0", "new")}


def test_a_dry_run_takes_nothing_for_lost_that_it_would_write(world: World):
    d = full(world.open)
    d["inline"] = 1
    lose(world)
    for deep in (False, True):
        told = d.repair(dry_run=True, deep=deep)
        assert told.rebuilt
        assert told.lost == {}
    assert d.repair().lost == {}
    assert d["inline"] == 1


def test_a_dry_run_does_not_take_what_is_just_begun_for_lost(world: World):
    e = world.open()
    assert not e

    def created(act: Callable[[], Any]) -> Any:
        try:
            return act()
        finally:
            world.open(inline_bytes=0)["k"] = noise("k")

    world.of(e).at("get", INDEX, lambda act: act())
    world.of(e).at("get", INDEX, created)  # it looks twice before it believes that it is gone
    report = e.repair(dry_run=True)
    assert not report.rebuilt
    assert (report.commit, report.keys) == (1, 1)


def test_a_commit_that_is_made_meanwhile_is_not_lost(world: World, monkeypatch):
    monkeypatch.setattr("remotedict.pure.plan.CHECKPOINT_MIN", 30_000)
    d = full(world.open)
    d._engine.upkeep.finish()
    checkpoint = d._engine.index.known.index.checkpoint.blob
    lose(world, d._engine.layout.path(checkpoint))
    e = world.open()
    world.of(e).at("put", INDEX, after(lambda: d.__setitem__("meanwhile", 1)))
    report = e.repair()
    assert report.rebuilt
    assert e["meanwhile"] == 1
    assert not report.lost_commits


@pytest.mark.parametrize("step", [lose_reply, lose_request])
def test_a_lost_reply_makes_no_difference(world: World, step):
    d = full(world.open)
    want = dict(d.items())
    flip(world, INDEX, 50)
    e = world.open()
    world.of(e).at("put", INDEX, step)
    assert e.repair().rebuilt
    assert dict(e.items()) == want
    e["on"] = 1
    assert world.open()["on"] == 1


def test_after_a_lost_reply_somebody_may_have_gone_on_already(world: World):
    full(world.open)
    flip(world, INDEX, 50)
    e = world.open()

    def taken(act: Callable[[], Any]) -> Any:
        act()
        world.open()["on"] = 1
        return lose_request(act)

    world.of(e).at("put", INDEX, taken)
    assert e.repair().rebuilt
    assert e["on"] == 1
    e["on"] += 1
    assert world.open()["on"] == 2


def test_an_index_that_somebody_makes_meanwhile_is_not_overwritten(world: World):
    d = full(world.open)
    genuine = blobs(world)[INDEX]
    lose(world)
    e = world.open()
    world.of(e).at("put", INDEX, after(lambda: world.store.put(INDEX, genuine.data)))
    assert not e.repair().rebuilt
    assert dict(d.items()) == dict(e.items())


def test_an_upload_that_began_before_is_made_again(world: World):
    full(world.open)
    lose(world)
    e = world.open()
    e.repair()
    put = threading.Event()
    lose(world)
    world.of(e).at("put", "", lambda act: (act(), put.set(), e.repair())[0])
    e["own"] = noise("n")
    assert put.is_set()
    assert world.open()["own"] == noise("n")


def test_a_second_repair_goes_on_from_the_first(world: World):
    full(world.open)
    for n in range(3):
        lose(world)
        e = world.open()
        e.repair()
        for m in range(100):
            e[f"k{m % 30}"] = (n, m, noise("x", 300))
    want = dict(e.items())
    e.close()
    lose(world)
    e = world.open()
    report = e.repair()
    got = dict(e.items())
    assert got.keys() == want.keys()
    assert all(got[f"k{m}"][0] == 2 for m in range(30))
    assert all(got[key] == want[key] for key in want if not key.startswith("k"))
    assert not report.lost


# -- a lost index is noticed ------------------------------------------------------------------


@pytest.mark.parametrize("what", ["segments", "a value"])
def test_a_dictionary_whose_index_is_lost_is_not_taken_for_an_empty_one(world: World, what):
    d = world.open()
    if what == "segments":
        d.update({f"k{n}": noise(str(n), 300) for n in range(100)})
    else:
        d["own"] = noise("o")
    left = [path for path in blobs(world) if path != INDEX]
    lose(world)
    e = world.open()
    for act in (lambda: e["k"], lambda: len(e), lambda: e.__setitem__("new", 1)):
        with pytest.raises(errors.CorruptBlobError, match="is gone, though") as caught:
            act()
        assert caught.value.blob == INDEX
    assert sorted(blobs(world)) == sorted(left)
    e.repair()
    e["new"] = 1
    assert world.open()["new"] == 1


@pytest.mark.parametrize("write", [False, True])
def test_nor_is_one_that_came_after_the_handle_and_was_lost_since(world: World, write):
    e = world.open()
    assert len(e) == 0
    world.open()["own"] = noise("o")
    lose(world)
    world.clock.now += 61  # for that long its look at what there was will do
    with pytest.raises(errors.CorruptBlobError, match="is gone, though"):
        e.__setitem__("new", 1) if write else len(e)
    assert INDEX not in blobs(world)


def test_an_index_that_is_made_just_now_is_not_taken_for_lost(world: World):
    e = world.open()
    e._engine.index.known = None

    def made(act: Callable[[], Any]) -> Any:
        try:
            return act()
        finally:
            world.open()["own"] = noise("o")

    world.of(e).at("get", INDEX, made)
    assert list(e) == ["own"]


def test_who_may_not_list_blobs_begins_as_before(world: World, monkeypatch):
    def refused(prefix: str) -> Any:
        raise errors.AccessDeniedError(prefix)

    monkeypatch.setattr(world.store, "list", refused)
    d = world.open()
    d["k"] = 1
    assert world.open()["k"] == 1


# -- keys -------------------------------------------------------------------------------------

KEYS = {"signing_key": "s" * 32, "encryption_key": "e" * 32}


@pytest.mark.parametrize("names", [["signing_key"], ["encryption_key"], list(KEYS)])
def test_what_is_signed_or_encrypted_is_repaired_with_its_keys(world: World, names):
    keys = {name: KEYS[name] for name in names}
    d = full(world.open, history="all", **keys)
    d["own"] = noise("newest")
    known, want = d._engine.index.known, dict(d.items())
    kept = d.snapshot(at=known.index.settled).copy()
    kept |= {key: want[key] for key in d if not isinstance(known.state.get(key).place, bytes)}
    lose(world)
    for wrong in ({}, dict.fromkeys(names, "w" * 32)):
        with pytest.raises(errors.CorruptBlobError) as caught:
            world.open(**wrong).repair()
        assert isinstance(caught.value, errors.SignatureError | errors.DecryptionError)
    e = world.open(**keys)
    e.repair()
    assert dict(e.items()) == kept
    assert e["own"] == noise("newest")
    assert e.repair(deep=True).whole


def test_with_another_key_a_whole_index_is_not_replaced(world: World):
    full(world.open, **KEYS)
    before = dict(blobs(world))
    for wrong in ({}, dict.fromkeys(KEYS, "w" * 32)):
        try:
            e = world.open(**wrong)
        except errors.CorruptBlobError:
            continue
        with pytest.raises(errors.CorruptBlobError, match="key"):
            e.repair()
    assert blobs(world) == before


def test_what_was_all_in_a_damaged_index_comes_back_from_its_bytes(world: World):
    d = world.open()
    d["a"] = 1
    d["b"] = noise("b", 200)
    want = dict(d.items())
    flip(world, INDEX, 50)
    e = world.open()
    assert set(e.repair().restored) == {"a", "b"}
    assert dict(e.items()) == want
    world.store.put(INDEX, b"nothing at all")
    for path in list(blobs(world)):
        if path != INDEX:
            lose(world, path)
    with pytest.raises(errors.CorruptBlobError, match="nothing is left"):
        world.open().repair()


# -- what else looks after a dictionary -------------------------------------------------------


def test_a_vacuum_after_a_repair_takes_nothing_that_is_needed(world: World):
    d = full(world.open, history="all")
    for n in range(100):
        d[f"k{n % 30}"] = noise(str(n), 300)
    d["own"] = noise("newest")
    flip(world, INDEX, 60)
    e = world.open()
    report = e.repair()
    want = dict(e.items())
    assert want["own"] == noise("newest")
    assert e.verify(deep=True).ok
    e.vacuum(grace=0)
    again = world.open()
    assert dict(again.items()) == want
    assert again.verify(deep=True).ok
    assert report.kept in blobs(world)
    assert len(again.history()) > 100


def test_a_copy_is_verified_and_vacuumed_as_any_other(world: World):
    d = full(world.open)
    d["own"] = noise("newest")
    there = remotedict.MemoryDictionary(retention=0)
    d.export(there)
    assert there.verify(deep=True).ok
    want = dict(d.items())
    there["mine"] = 1
    there.vacuum(grace=0)
    assert dict(there.items()) == want | {"mine": 1}
    assert there.verify(deep=True).ok
