"""What operations cost: requests and bytes on Azurite, counted below the SDK."""

from __future__ import annotations

import random
import threading
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from azure.core.pipeline.transport import RequestsTransport

from remotedict.azure import parse
from remotedict.backend.azure import AzureBackend
from remotedict.dictionary import RemoteDict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from azurite import Azurite
    from remotedict.engine.runtime import Runtime

MANY = 20_000
HANG = 30.0  # seconds after which requests that should meet do not
LARGE = random.Random(0).randbytes(50_000)


class Request(NamedTuple):
    """One request: when it was sent and answered (places in one order), and what it carried."""

    method: str
    path: str
    status: int
    sent: int
    answered: int
    bytes_out: int
    bytes_in: int
    query: str

    @property
    def is_index(self) -> bool:
        return self.path.endswith("/index")


class CountingTransport(RequestsTransport):
    """Notes every request that reaches the wire."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []
        self._moment = 0
        self._lock = threading.Lock()
        self._gate: threading.Barrier | None = None

    def hold_answers(self, parties: int) -> None:
        """Let no answer through until so many requests wait for one."""
        self._gate = threading.Barrier(parties, timeout=HANG) if parties else None

    def send(self, request: Any, **options: Any) -> Any:
        with self._lock:
            self._moment += 1
            sent = self._moment
        response = super().send(request, **options)
        if self._gate:
            self._gate.wait()
        with self._lock:
            self._moment += 1
            self.requests.append(
                Request(
                    request.method,
                    request.url.partition("?")[0],
                    response.status_code,
                    sent,
                    self._moment,
                    int(request.headers.get("Content-Length", 0)),
                    int(response.headers.get("Content-Length", 0)),
                    request.url.partition("?")[2],
                )
            )
        return response


class CountedPlace:
    """An `_AzurePlace` whose requests are counted."""

    def __init__(self, azurite: Azurite, container: str) -> None:
        self._url, self._credential = parse(azurite.connection_string)
        self._container = container
        self.transport = CountingTransport()

    def backend(self, timeout: float, runtime: Runtime) -> AzureBackend:
        return AzureBackend(
            self._url,
            self._container,
            self._credential,
            timeout=timeout,
            run=runtime.map,
            transport=self.transport,
        )

    def describe(self) -> str:
        return "Counted"

    def portable(self, *, credentials: bool) -> CountedPlace:
        raise NotImplementedError


class Counted:
    """A handle, and what its operations cost."""

    def __init__(self, place: CountedPlace, **options: Any) -> None:
        self.transport = place.transport
        self.d = RemoteDict(place, "default", **options)

    def settle(self) -> None:
        """Wait until what runs beside the commits is done."""
        self.d._engine.upkeep.finish()

    def cost(self, act: Callable[[], Any]) -> list[Request]:
        """Return the requests that `act` made, and those of the upkeep that it began."""
        self.settle()
        before = len(self.transport.requests)
        act()
        self.settle()
        return self.transport.requests[before:]

    def count(self, act: Callable[[], Any]) -> int:
        return len(self.cost(act))


class Shop:
    """Opens counted handles on one dictionary."""

    def __init__(self, azurite: Azurite) -> None:
        self.azurite = azurite
        self.container = f"t{uuid.uuid4().hex}"
        self._opened: list[Counted] = []

    def open(self, **options: Any) -> Counted:
        counted = Counted(CountedPlace(self.azurite, self.container), **options)
        self._opened.append(counted)
        return counted

    def opening(self, **options: Any) -> tuple[Counted, list[Request]]:
        """Return a new handle, and the requests that opening it and reading the keys took."""
        counted = self.open(**options)
        list(counted.d)
        return counted, counted.transport.requests[:]

    def close(self) -> None:
        for counted in self._opened:
            counted.d.close()


@pytest.fixture
def shop(azurite: Azurite) -> Iterator[Shop]:
    shop = Shop(azurite)
    yield shop
    shop.close()


@pytest.fixture
def c(shop: Shop) -> Counted:
    """A handle on a dictionary of ten keys, ready for use."""
    c = shop.open()
    c.d.update({f"k{i}": i for i in range(10)})
    return c


def size(requests: list[Request]) -> int:
    return sum(request.bytes_out + request.bytes_in for request in requests)


def at_once(requests: list[Request]) -> bool:
    """Tell whether all of the requests were sent before the first answer."""
    return max(r.sent for r in requests) < min(r.answered for r in requests)


# -- one key --------------------------------------------------------------------------------


def test_a_small_value_is_set_by_one_request(c: Counted) -> None:
    [put] = c.cost(lambda: c.d.__setitem__("new", 1))
    assert put.method == "PUT"
    assert put.is_index
    assert c.count(lambda: c.d.__setitem__("new", 2)) == 1


def test_a_large_value_is_set_by_two_requests_the_value_first(c: Counted) -> None:
    value, index = c.cost(lambda: c.d.__setitem__("new", LARGE))
    assert not value.is_index
    assert index.is_index
    assert value.answered < index.sent


def test_a_value_that_is_inline_or_cached_is_read_by_one_304(shop: Shop, c: Counted) -> None:
    [check] = c.cost(lambda: c.d["k1"])
    assert (check.method, check.status) == ("GET", 304)
    c.d["large"] = LARGE
    other = shop.open()
    assert other.count(lambda: other.d["large"]) == 2
    [check] = other.cost(lambda: other.d["large"])
    assert (check.method, check.status) == ("GET", 304)


def test_a_value_that_is_neither_is_fetched_together_with_the_check(shop: Shop, c: Counted) -> None:
    c.d["large"] = LARGE
    other = shop.open(cache_bytes=0)
    other.transport.hold_answers(2)  # neither waits for the other's answer
    requests = other.cost(lambda: other.d["large"])
    other.transport.hold_answers(0)
    assert sorted((r.is_index, r.status) for r in requests) == [(False, 206), (True, 304)]
    assert at_once(requests)
    [check] = other.cost(lambda: other.d["k1"])  # inline: a cache isn't needed
    assert check.status == 304


def test_a_value_that_another_has_replaced_is_fetched_after_the_check(
    shop: Shop, c: Counted
) -> None:
    c.d["large"] = LARGE
    other = shop.open()
    assert other.d["large"] == LARGE
    c.d["large"] = LARGE[::-1]
    check, fetch = other.cost(lambda: other.d["large"])
    assert check.is_index
    assert not fetch.is_index
    assert check.answered < fetch.sent
    assert other.d["large"] == LARGE[::-1]


def test_a_missing_key_is_found_missing_by_one_request(c: Counted) -> None:
    assert c.count(lambda: c.d.get("missing")) == 1


def test_deleting_a_key_takes_one_request(c: Counted) -> None:
    assert c.count(lambda: c.d.__delitem__("k1")) == 1


# -- the keys -------------------------------------------------------------------------------

LOOKS: dict[str, Callable[[RemoteDict], Any]] = {
    "list": list,
    "reversed": lambda d: list(reversed(d)),
    "len": len,
    "in": lambda d: "k1" in d,
    "not in": lambda d: "missing" in d,
    "index": lambda d: d.index,
    "keys": lambda d: set(d.keys()),
    "keys and": lambda d: d.keys() & {"k1"},
    "bool": bool,
    "repr": repr,
    "html": lambda d: d._repr_html_(),
    "locks": lambda d: d.locks,
    "completions": lambda d: d._ipython_key_completions_(),
    "== by keys": lambda d: d == {},
}
ASK_ALWAYS = {"repr", "html", "completions"}  # what people see is what is there


@pytest.mark.parametrize("name", LOOKS)
def test_looking_at_the_keys_takes_one_request_at_the_most(c: Counted, name: str) -> None:
    requests = c.cost(lambda: LOOKS[name](c.d))
    assert [(r.method, r.status) for r in requests] == [("GET", 304)]


@pytest.mark.parametrize("name", [name for name in LOOKS if name not in ASK_ALWAYS])
def test_with_max_staleness_looking_takes_none(shop: Shop, c: Counted, name: str) -> None:
    hot = shop.open(max_staleness=3600)
    assert hot.cost(lambda: LOOKS[name](hot.d)) == []


def test_with_max_staleness_reading_takes_at_most_the_download(shop: Shop, c: Counted) -> None:
    c.d["large"] = LARGE
    hot = shop.open(max_staleness=3600)
    assert hot.count(lambda: hot.d["k1"]) == 0
    assert hot.count(lambda: hot.d["large"]) == 1
    assert hot.count(lambda: hot.d["large"]) == 0


# -- many keys ------------------------------------------------------------------------------


def test_many_small_values_are_set_and_read_by_a_few_requests(shop: Shop) -> None:
    c = shop.open()
    c.d["first"] = 0
    keys = [f"s{i}" for i in range(500)]
    values = [("value", i) for i in range(500)]
    written = c.cost(lambda: c.d.__setitem__(keys, values))
    assert len(written) <= 3

    other = shop.open()
    found: list[Any] = []
    read = other.cost(lambda: found.extend(other.d[keys]))
    assert found == values
    assert len(read) <= 3
    again = other.count(lambda: other.d[keys])
    assert again == 1
    print(f"500 small values: set {len(written)}, get {len(read)}, again {again}")  # noqa: T201


def test_many_inline_values_are_set_by_one_request_or_two(c: Counted) -> None:
    new = {f"s{i}": i for i in range(20)}
    assert c.count(lambda: c.d.update(new)) <= 2  # the second when the index has to roll
    assert c.count(lambda: c.d[list(new)]) == 1


def test_iterating_over_values_and_items_takes_no_more_than_a_bulk_read(c: Counted) -> None:
    assert c.count(lambda: [value for value in c.d.values()]) == 1  # noqa: C416 - list() asks len
    assert c.count(lambda: [item for item in c.d.items()]) == 1  # noqa: C416
    assert c.count(c.d.copy) == 1
    assert c.count(lambda: c.d == {f"k{i}": i for i in range(10)}) == 1


# -- the other verbs of a dict --------------------------------------------------------------


def test_the_verbs_that_change_cost_a_look_and_a_commit_at_the_most(c: Counted) -> None:
    costs = {
        "pop": c.count(lambda: c.d.pop("k1")),
        "pop missing": c.count(lambda: c.d.pop("k1", None)),
        "popitem": c.count(c.d.popitem),
        "setdefault there": c.count(lambda: c.d.setdefault("k2", 0)),
        "setdefault new": c.count(lambda: c.d.setdefault("new", 0)),
        "update": c.count(lambda: c.d.update(a=1, b=2)),
        "|=": c.count(lambda: c.d.__ior__({"a": 3})),
        "clear": c.count(c.d.clear),
        "clear empty": c.count(c.d.clear),
    }
    print(costs)  # noqa: T201
    assert costs == {
        "pop": 2,
        "pop missing": 1,
        "popitem": 2,
        "setdefault there": 1,
        "setdefault new": 2,
        "update": 1,
        "|=": 1,
        "clear": 1,
        "clear empty": 1,
    }


def test_a_lock_costs_a_look_a_lease_and_a_commit(c: Counted) -> None:
    c.d.lock_item("k1")  # makes the lock's blob, once and for all
    c.d.unlock_item("k1")
    costs = {
        "lock": c.count(lambda: c.d.lock_item("k1")),
        "write under it": c.count(lambda: c.d.__setitem__("k1", 1)),
        "extend": c.count(lambda: c.d.lock_item("k1", duration=30)),
        "unlock": c.count(lambda: c.d.unlock_item("k1")),
    }
    print(costs)  # noqa: T201
    assert costs == {"lock": 3, "write under it": 1, "extend": 3, "unlock": 2}


# -- what grows, and what doesn't -----------------------------------------------------------


def costs_of(c: Counted, new: str, there: str) -> dict[str, tuple[int, int]]:
    """Return the requests and bytes of single operations."""
    c.d._engine.committer._turn._run = 0  # else one of them may be the one that lines up
    measured = {}
    for name, act in {
        "set": lambda: c.d.__setitem__(new, 1),
        "set again": lambda: c.d.__setitem__(new, 2),
        "get": lambda: c.d[there],
        "in": lambda: there in c.d,
        "list": lambda: list(c.d),
        "len": lambda: len(c.d),
        "index": lambda: c.d.index,
        "lock": lambda: c.d.lock_item(new),
        "unlock": lambda: c.d.unlock_item(new),
        "pop": lambda: c.d.pop(new),
    }.items():
        requests = c.cost(act)
        measured[name] = len(requests), size(requests)
    return measured


def until_just_rolled(c: Counted) -> None:
    """Write until the tail has become a segment: the index is at its smallest then."""
    for i in range(1000):
        segments = c.d._engine.index.known.index.segments
        c.d["filling"] = i
        c.settle()
        if c.d._engine.index.known.index.segments != segments:
            return
    pytest.fail("the index never rolled over")


def fill_in_chunks(d: RemoteDict) -> None:
    for at in range(0, MANY, 1000):
        d.update({f"key {i}": i for i in range(at, at + 1000)})


def fill_one_by_one(d: RemoteDict) -> None:
    for i in range(3000):
        d[f"key {i}"] = i
    d.update({f"key {i}": i for i in range(3000, MANY)})


@pytest.mark.parametrize("fill", [fill_in_chunks, fill_one_by_one])
def test_nothing_costs_more_with_many_keys(
    azurite: Azurite, fill: Callable[[RemoteDict], None]
) -> None:
    few, many = Shop(azurite), Shop(azurite)
    try:
        small = few.open()
        small.d.update({f"key {i}": i for i in range(10)})
        until_just_rolled(small)
        large = many.open()
        fill(large.d)
        until_just_rolled(large)
        assert len(large.d) == MANY + 1
        assert large.d["key 3"] == small.d["key 3"] == 3

        at_few = costs_of(small, "new", "key 3")
        at_many = costs_of(large, "new", "key 3")
        print("at 10 keys:", at_few)  # noqa: T201
        print(f"at {MANY} keys:", at_many)  # noqa: T201
        for name, (requests, nbytes) in at_few.items():
            assert at_many[name][0] == requests, name
            # The index names a few segments more; that is all, and the most that it may be.
            assert at_many[name][1] <= nbytes + 2048, name

        fresh, opening = many.opening()
        print(f"a reopen at {MANY} keys: {len(opening)} requests, {size(opening):,} bytes")  # noqa: T201
        assert len(opening) <= 12
        assert len(fresh.d) == MANY + 1
        assert fresh.count(lambda: fresh.d["key 17"]) == 2
        assert fresh.d["key 19999"] == 19999
    finally:
        few.close()
        many.close()


def test_rolls_merges_and_checkpoints_are_a_small_share_of_the_commits(shop: Shop) -> None:
    c = shop.open()
    c.d["first"] = 0
    count = 2000
    openings = []

    def write() -> None:
        for i in range(count):
            c.d[f"key {i}"] = i
            if i % 100 == 99:
                c.settle()
                openings.append(len(shop.opening()[1]))

    requests = c.cost(write)
    commits = [r for r in requests if r.method == "PUT" and r.is_index and r.status == 201]
    assert len(commits) >= count
    extra = len(requests) - count
    index_bytes = size([r for r in requests if r.is_index])
    extra_bytes = size([r for r in requests if not r.is_index])
    refused = sum(r.status == 412 for r in requests)
    print(  # noqa: T201
        f"{count} sets: {extra} extra requests ({extra / count:.1%}), {refused} refused; "
        f"index {index_bytes / count:,.0f} bytes a set, beside it {extra_bytes / count:,.0f}"
    )
    assert extra <= 0.05 * count
    assert refused == 0
    # A set sends the index, half full on average; all that is beside it is a share of that.
    assert index_bytes <= count * 13 * 1024
    assert extra_bytes <= 0.25 * index_bytes
    assert max(r.bytes_out for r in requests if r.is_index) <= 13 * 1024

    print(f"reopens on the way: {openings} requests")  # noqa: T201
    assert max(openings) <= 12


def test_the_value_of_an_array_goes_over_the_wire_once(c: Counted) -> None:
    array = np.random.default_rng(0).integers(0, 2**62, 1_000_000)
    requests = c.cost(lambda: c.d.__setitem__("array", array))
    assert array.nbytes < size(requests) < 1.05 * array.nbytes
