"""What a mirror asks of the store, and what it does when a value is there no more."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from faults import INDEX
from following import Pauses, closing, requests
from remotedict import KeyNotFoundError, SnapshotExpiredError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from faults import World
    from remotedict import RemoteDict

READS: dict[str, Callable[[Any], Any]] = {
    "a value": lambda m: {"a": m["a"], "b": m["b"]},
    "get": lambda m: {"a": m.get("a"), "b": m.get("b")},
    "several": lambda m: dict(zip("ab", m[["a", "b"]], strict=True)),
    "copy": lambda m: m.copy(),
    "dict": dict,
    "items": lambda m: dict(m.items()),
    "values": lambda m: dict(zip(m, m.values(), strict=True)),
    "reversed": lambda m: dict(reversed(m.items())),
    "or": lambda m: m | {},
}


@pytest.fixture
def world(world: World) -> Iterator[World]:
    with closing(world):
        yield world


@pytest.fixture
def pauses(world: World, monkeypatch: pytest.MonkeyPatch) -> Pauses:
    pauses = Pauses(world)
    monkeypatch.setattr(world.runtime, "wait", pauses.wait)
    return pauses


# -- what it asks of the store --------------------------------------------------------------


def test_reading_the_index_of_a_mirror_asks_for_nothing(world: World, pauses: Pauses) -> None:
    d = world.open(inline_bytes=0, cache_bytes=0)
    d.update({f"k{n}": n for n in range(20)})
    d.put("k3", 3, metadata={"a": 1})
    m = d.mirror()

    def read() -> None:
        assert len(m) == len(list(m)) == len(m.keys()) == len(m.items()) == 20
        assert "k3" in m
        assert "no" not in m
        assert m.get("no") is None
        assert next(iter(m)) == "k0"
        assert next(reversed(m)) == "k19"
        assert m.version("k3") == 2
        assert m.metadata["k3"] == {"a": 1}
        assert len(m.metadata) == 20
        assert m.query(a=1) == ["k3"]
        assert len(m.glob("k1*")) == 11
        assert len(m.info()) == 20
        assert m.wait_for("k3", version=2) == 2
        assert m.age == 0
        assert m != {"k3": 1}
        assert "20" in repr(m)
        with pytest.raises(KeyNotFoundError):
            m["no"]

    assert requests(world, d, read) == []


def test_a_prefetching_mirror_asks_for_no_value_either(world: World, pauses: Pauses) -> None:
    d, other = world.open(inline_bytes=0, cache_bytes=0), world.open(inline_bytes=0)
    other.update({f"k{n}": bytes(n) for n in range(20)})
    m = d.mirror(prefetch=True)
    expected = {f"k{n}": bytes(n) for n in range(20)}

    def read() -> None:
        for key, value in expected.items():
            assert m[key] == m.get(key) == value
        assert m[list(expected)] == list(expected.values())
        assert m.copy() == dict(m) == dict(m.items()) == m | {} == expected
        assert list(m.values()) == list(expected.values())
        assert list(reversed(m.values())) == list(expected.values())[::-1]
        assert m == expected
        assert expected == m
        assert bytes(8) in m.values()
        assert ("k8", bytes(8)) in m.items()

    assert requests(world, d, read) == []
    other["k7"] = expected["k7"] = b"seven"
    gets = requests(world, d, pauses.end)
    assert [call.verb for call in gets] == ["get", "get"]  # the index, and the one value
    assert requests(world, d, read) == []


def test_an_iteration_of_a_prefetching_mirror_goes_on_while_it_advances(
    world: World, pauses: Pauses
) -> None:
    d, other = world.open(inline_bytes=0, cache_bytes=0), world.open(inline_bytes=0)
    other.update({f"k{n}": n for n in range(5)})
    m = d.mirror(prefetch=True)
    items, values = iter(m.items()), iter(m.values())
    assert (next(items), next(values)) == (("k0", 0), 0)
    old = [blob.name for blob in world.store.list("f/")]
    other.update({f"k{n}": -n for n in range(5)})
    world.store.delete(old)
    pauses.end()
    assert m["k1"] == -1
    rest: list[Any] = []
    assert requests(world, d, lambda: rest.extend([*items, *values])) == []
    assert rest == [*((f"k{n}", n) for n in range(1, 5)), 1, 2, 3, 4]


def test_a_value_is_one_request_and_then_cached(world: World, pauses: Pauses) -> None:
    d = world.open()
    with world.open(inline_bytes=0) as other:
        other.update({f"k{n}": n for n in range(3)})
        other["large"] = b"x" * 300_000
    m = d.mirror()
    for _ in range(2):
        gets = requests(world, d, lambda: m["large"])
        assert [(call.verb, call.path.split("/")[1]) for call in gets] == [("get", "large")] * (
            1 - _
        )
    assert len(requests(world, d, lambda: m[["k0", "k1", "large"]])) == 2
    assert len(requests(world, d, m.copy)) == 1
    assert requests(world, d, m.copy) == []
    assert world.of(d).sent("get", INDEX) == world.of(d).sent("get", INDEX)[:2]


def test_a_prefetching_mirror_holds_nothing_that_is_not_there(world: World, pauses: Pauses) -> None:
    d, other = world.open(cache_bytes=0), world.open(inline_bytes=0)
    m = d.mirror(prefetch=True)

    def held() -> int:
        return sum(map(len, m._now.data.values()))

    for n in range(20):
        other["k"] = random.Random(n).randbytes(1000)
        other[f"k{n}"] = random.Random(n).randbytes(1000)
        if n >= 2:
            del other[f"k{n - 2}"]
        pauses.end()
    assert sorted(m) == ["k", "k18", "k19"]
    assert 3000 < held() < 4000
    other.clear()
    pauses.end()
    assert held() == 0


def test_an_idle_mirror_looks_ever_more_rarely(world: World, pauses: Pauses) -> None:
    d, other = world.open(), world.open()
    m = d.mirror(poll=(1.0, 3.0))
    calls = requests(world, d, lambda: [pauses.end() for _ in range(5)])
    assert pauses.asked == [1.0, 1.5, 2.25, 3.0, 3.0, 3.0]
    other["k"] = 1
    calls += requests(world, d, lambda: [pauses.end() for _ in range(3)])
    assert pauses.asked[6:] == [1.0, 1.5, 2.25]
    assert m["k"] == 1
    assert [(call.verb, call.path) for call in calls] == [("get", INDEX)] * 8


# -- values that are gone -------------------------------------------------------------------


def lagging(world: World) -> tuple[RemoteDict, list[str]]:
    """Return a dictionary, and the paths of the values that it has replaced."""
    d, other = world.open(inline_bytes=0, cache_bytes=0), world.open(inline_bytes=0)
    other["a"] = 1
    other["b"] = 1
    return d, [blob.name for blob in world.store.list("f/a/")]


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("prefetch", [False, True], ids=["lazy", "prefetched"])
def test_a_value_that_is_gone_makes_a_mirror_look(
    how: str, prefetch: bool, world: World, pauses: Pauses
) -> None:
    d, old = lagging(world)
    m = d.mirror(prefetch=prefetch)
    world.open(inline_bytes=0)["a"] = 2
    world.store.delete(old)
    assert READS[how](m) == {"a": 1 if prefetch else 2, "b": 1}
    assert m.seq == (2 if prefetch else 3)


@pytest.mark.parametrize("equal", [lambda m, there: m == there, lambda m, there: there == m])
def test_a_value_that_is_gone_makes_a_mirror_look_to_compare_it(
    equal: Callable[[Any, Any], bool], world: World, pauses: Pauses
) -> None:
    d, old = lagging(world)
    m = d.mirror()
    other = world.open(inline_bytes=0)
    other["a"] = 2
    world.store.delete(old)
    assert equal(m, {"a": 2, "b": 1})
    assert equal(m, other)


def test_an_iteration_that_meets_a_gone_value_late_can_be_begun_anew(
    world: World, pauses: Pauses
) -> None:
    d, other = world.open(inline_bytes=0, cache_bytes=0), world.open(inline_bytes=0)
    other.update({f"k{n}": n for n in range(600)})  # more than are fetched at once
    m = d.mirror()
    old = [blob.name for n in range(500, 600) for blob in world.store.list(f"f/k{n}/")]
    other.update({f"k{n}": -n for n in range(500, 600)})
    world.store.delete(old)
    with pytest.raises(SnapshotExpiredError):
        list(m.values())
    assert sum(m.values()) == sum(range(500)) - sum(range(500, 600))


def test_a_value_that_is_gone_with_its_key_is_not_there(world: World, pauses: Pauses) -> None:
    d, old = lagging(world)
    m = d.mirror()
    del world.open()["a"]
    world.store.delete(old)
    assert "a" in m
    with pytest.raises(KeyNotFoundError):
        m["a"]
    assert "a" not in m
    assert m.copy() == {"b": 1}


@pytest.mark.parametrize("how", sorted(set(READS) - {"a value", "get", "several"}))
def test_a_value_that_a_snapshot_has_no_more_is_said_to_be_gone(how: str, world: World) -> None:
    d, old = lagging(world)
    snapshot = d.snapshot()
    world.open(inline_bytes=0)["a"] = 2
    assert READS[how](snapshot) == {"a": 1, "b": 1}
    world.store.delete(old)
    with pytest.raises(SnapshotExpiredError) as gone:
        READS[how](snapshot)
    assert gone.value.key == "a"
    assert snapshot["b"] == 1
