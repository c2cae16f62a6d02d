"""A dictionary is copied whole, from any store to any other, and again without copying twice."""

from __future__ import annotations

import random
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

import remotedict
from faults import INDEX, after, lose_reply, lose_request
from remotedict import LocalDictionary, MemoryDictionary, errors

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Shop
    from faults import World
    from remotedict import RemoteDict


def noise(seed: str, size: int = 9000) -> bytes:
    """Return bytes that LZ4 can't shrink: too many to be inline."""
    return random.Random(seed).randbytes(size)


def fill(d: RemoteDict) -> None:
    """Put in values of all kinds: inline, in segments, packs and blobs; old ones, too."""
    for n in range(120):
        d[f"k{n % 30}"] = noise(str(n), 300)
    d.update({f"p{n}": noise(str(n), 3000) for n in range(20)})
    d["own"] = noise("old")
    d["own"] = noise("new")
    d["large"] = noise("large", 20_000_000)
    d.put("with", 1, metadata={"unit": "s"})
    d.copy_item("own", "copied")
    del d["k3"]


def seen(d: RemoteDict) -> Any:
    """Return all that there is to see."""
    versions = {key: d.version(key) for key in d}
    return (
        list(d.items()),
        versions,
        d.history().drop(columns="time").values.tolist(),
        d.metadata["with"],
        d.at("own", 1),
        d.history_policy,
    )


@pytest.mark.parametrize("back", [False, True])
def test_a_copy_is_the_same_on_any_store(shop: Shop, tmp_path: Path, back):
    there = shop.open(folder_name="there")
    with LocalDictionary(tmp_path / "here", history="all", author="ann") as here:
        one, other = (there, here) if back else (here, there)
        if back:
            one.history_policy = "all"
        fill(one)
        if back:
            other = LocalDictionary(tmp_path / "back")
        report = one.export(other)
        assert seen(other) == seen(one)
        assert report.keys == len(one)
        assert report.skipped == 0
        assert not report.missing
        assert other.repair(deep=True).whole
        again = one.export(other)
        assert (again.blobs, again.nbytes, again.skipped) == (0, 0, report.blobs)
        other["goes"] = "on"
        assert "goes" not in one
        other.close()


def pair(world: World, **options: Any) -> tuple[RemoteDict, RemoteDict]:
    """Return a dictionary with something in it, and one in another store without."""
    d = world.open(history="all", **options)
    fill(d)
    return d, MemoryDictionary()


def stored(d: RemoteDict) -> dict[str, Any]:
    return d._engine.backend.raw._backend._blobs


def test_what_has_arrived_is_not_copied_again(world: World, monkeypatch):
    d, there = pair(world)
    want, put, count = seen(d), there._engine.backend.raw.put, 0

    def dying(path: str, data: Any, **conditions: Any) -> str:
        nonlocal count
        count += 1
        if count > 6:
            raise errors.AccessDeniedError(path)
        return put(path, data, **conditions)

    with monkeypatch.context() as patch:
        patch.setattr(there._engine.backend.raw, "put", dying)
        with pytest.raises(errors.AccessDeniedError):
            d.export(there)
    arrived = dict(stored(there))
    assert arrived
    assert not any(path.endswith("/index") for path in arrived)
    report = d.export(there)
    assert seen(there) == want
    assert report.skipped == len(arrived)
    assert all(stored(there)[path] is blob for path, blob in arrived.items())


def test_only_what_is_new_travels_and_those_who_follow_the_copy_go_on(world: World):
    d, there = pair(world)
    first = d.export(there)
    follower = there.__copy__()
    assert follower["own"] == d["own"]
    d["own"] = noise("newer")
    d["more"] = noise("more")
    second = d.export(there)
    assert second.blobs <= 4
    assert second.skipped >= first.blobs - 3
    assert second.commit == first.commit + 2
    assert seen(there) == seen(d)
    assert follower["own"] == noise("newer")


def test_a_copy_to_which_somebody_has_written_is_not_overwritten(world: World):
    d, there = pair(world)
    d.export(there)
    there["mine"] = 1
    d["more"] = 2
    before = dict(stored(there))
    with pytest.raises(errors.DestinationError, match="others have written") as caught:
        d.export(there)
    assert isinstance(caught.value, FileExistsError)
    assert stored(there) == before
    with pytest.raises(errors.DestinationError):
        there.export(d)


def test_another_dictionary_is_not_overwritten(world: World):
    d, there = pair(world)
    there["mine"] = 1
    with pytest.raises(errors.DestinationError, match="another dictionary"):
        d.export(there)
    assert dict(there.items()) == {"mine": 1}


def test_what_is_left_of_another_dictionary_is_not_buried(world: World):
    d, there = pair(world)
    there["mine"] = noise("mine")
    del stored(there)["Index/default/index"]
    with pytest.raises(errors.DestinationError, match="may be repaired"):
        d.export(MemoryDictionary.__copy__(there))
    assert not any(path.endswith("/index") for path in stored(there))


def test_one_answer_that_is_cut_short_does_not_make_a_copy_another_dictionary(
    world: World, monkeypatch
):
    """Seed 62218: what an interrupted copy has left is looked at before it is gone on with."""
    d, there = pair(world)
    d["own"] = noise("own")
    d.export(there)
    del stored(there)["Index/default/index"]
    there = MemoryDictionary.__copy__(there)

    store = there._engine.backend.raw._backend
    get = store.get

    def cut(path, *, range=None, if_none_match=None):  # noqa: A002 - it is called so
        got = get(path, range=range, if_none_match=if_none_match)
        return got._replace(data=got.data[:10]) if range else got

    with monkeypatch.context() as patched:
        patched.setattr(store, "get", cut)
        with pytest.raises(errors.CorruptBlobError, match="are missing"):
            d.export(there)
    d.export(there)
    assert there["own"] == d["own"]


def test_a_dictionary_is_not_copied_onto_itself(world: World):
    d, _ = pair(world)
    with pytest.raises(errors.DestinationError, match="itself"):
        d.export(world.open())


def test_there_must_be_something_to_copy(world: World):
    with pytest.raises(errors.DestinationError, match="no dictionary"):
        world.open().export(MemoryDictionary())


def test_locks_stay_behind(world: World):
    d, there = pair(world)
    d.lock_item("own", duration=60)
    report = d.export(there)
    assert not there.locks
    assert report.commit == d.history()["seq"].max()
    assert d.locks["own"].mine
    d["own"] = "by its holder"
    again = d.export(there)
    assert again.keys == len(d)
    assert there["own"] == "by its holder"
    d.unlock_item("own")
    d.export(there)
    there["own"] = "free"
    assert there["own"] == "free"
    with pytest.raises(errors.DestinationError):
        d.export(there)


def test_a_copy_is_of_one_moment_though_others_write(world: World):
    d, there = pair(world, retention=0)
    writer = world.open()
    writer["a", "b"] = [noise("a0"), noise("b0")]
    turns = iter(range(1, 4))

    def replaced() -> None:
        """Replace both in one commit, and take the old bytes away."""
        turn = next(turns)
        old = [blob for blob in world.store._blobs if blob.startswith(("f/a/", "f/b/"))]
        writer["a", "b"] = [noise(f"a{turn}"), noise(f"b{turn}")]
        for blob in old:
            del world.store._blobs[blob]

    for _ in range(3):
        world.of(d).at("get", "", after(replaced))
    writer.history_policy = "none"
    for key in ("own", "large"):
        d[key] = 0
    d.export(there)
    pairs = [[noise(f"a{n}"), noise(f"b{n}")] for n in range(4)]
    assert there[["a", "b"]] in pairs
    assert there.repair(deep=True).whole


def test_what_went_before_it_was_found_is_not_taken_for_lost(world: World, monkeypatch):
    d, there = pair(world, retention=0)
    writer, listing = world.open(), world.store.list
    d.history_policy = "none"

    def replaced(prefix: str) -> Any:
        monkeypatch.setattr(world.store, "list", listing)
        old = [path for path in world.store._blobs if path.startswith("f/own/")]
        writer["own", "copied"] = "newer", "newer"
        for path in old:
            del world.store._blobs[path]
        return listing(prefix)

    monkeypatch.setattr(world.store, "list", replaced)
    report = d.export(there)
    assert report.missing == ()
    assert there["own"] == "newer"


def test_values_that_are_gone_are_named_and_the_rest_is_copied(world: World):
    d, there = pair(world)
    path = max(path for path in world.store._blobs if path.startswith("f/large/"))
    del world.store._blobs[path]
    report = d.export(there)
    assert report.missing == ("large",)
    assert there["own"] == d["own"]
    with pytest.raises(errors.MissingValueError):
        there["large"]


def test_a_damaged_source_is_refused(world: World):
    d, there = pair(world)
    path = min(path for path in world.store._blobs if "/segments/" in path)
    for path in [path for path in world.store._blobs if "/segments/" in path]:
        del world.store._blobs[path]
    with pytest.raises(errors.CorruptBlobError):
        d.export(there)


@pytest.mark.parametrize("step", [lose_reply, lose_request])
@pytest.mark.parametrize("what", [INDEX, ""])
def test_lost_replies_make_no_difference(world: World, step, what):
    source = MemoryDictionary(history="all")
    fill(source)
    target = world.open()
    for _ in range(3):
        world.of(target).at("put", what, step)
    source.export(target)
    assert seen(target) == seen(source)


@pytest.mark.parametrize("step", [lose_reply, lose_request])
def test_nor_when_a_copy_is_brought_up_to_date(world: World, step):
    source = MemoryDictionary(history="all")
    fill(source)
    target = world.open()
    source.export(target)
    follower = world.open()
    source["own"] = noise("newer")
    world.of(target).at("put", INDEX, step)
    source.export(target)
    assert target["own"] == follower["own"] == noise("newer")
    assert seen(target) == seen(source)


def test_of_two_copies_at_once_both_are_whole(world: World):
    source = MemoryDictionary(history="all")
    fill(source)
    one, other = world.open(), world.open()
    world.of(one).at("put", INDEX, after(lambda: source.export(other)))
    source.export(one)
    assert seen(world.open()) == seen(source)


def test_what_is_begun_without_any_index_can_be_opened_no_more_than_repaired(world: World):
    d, there = pair(world)
    d.export(there)
    del stored(there)["Index/default/index"]
    again = there.__copy__()
    with pytest.raises(errors.CorruptBlobError, match="copy again"):
        again["own"]
    d.export(again)
    assert seen(again) == seen(d)


def test_places_are_given_as_urls(tmp_path: Path):
    with LocalDictionary(tmp_path / "here") as d:
        d["k"] = noise("k")
    report = remotedict.copy(tmp_path / "here", (tmp_path / "there").as_uri())
    assert report.blobs == 1
    with remotedict.open(tmp_path / "there") as there:
        assert there["k"] == noise("k")
        assert there.export("memory://moved-by-url", folder_name="f").keys == 1
    assert remotedict.open("memory://moved-by-url", folder_name="f")["k"] == noise("k")


def test_memory_is_bounded(tmp_path: Path):
    size = 300_000_000
    with LocalDictionary(tmp_path / "here") as d, LocalDictionary(tmp_path / "there") as there:
        with (tmp_path / "file").open("wb") as file:
            file.truncate(0)
            for n in range(size // 1_000_000):
                file.write(noise(str(n), 1_000_000))
        d.put_file("large", tmp_path / "file")
        (tmp_path / "file").unlink()
        tracemalloc.start()
        d.export(there)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < size / 2
        assert there.info().loc["large", "nbytes"] == size


def test_what_is_signed_and_encrypted_is_copied_as_it_is(tmp_path: Path):
    keys = {"signing_key": "s" * 32, "encryption_key": "e" * 32}
    with LocalDictionary(tmp_path / "here", history="all", **keys) as d:
        fill(d)
        d.lock_item("own")
        d.export(tmp_path / "there")
        want = seen(d)
        with pytest.raises(errors.CorruptBlobError):
            d.export(tmp_path / "elsewhere", signing_key="w" * 32)
        assert not (tmp_path / "elsewhere" / "Index").exists()
    with LocalDictionary(tmp_path / "there", **keys) as there:
        assert seen(there)[0] == want[0]
        assert not there.locks
        assert there.repair(deep=True).whole
