"""`d.stats` counts every request that is really sent, and what became of it."""

from __future__ import annotations

import copy
import pickle
import random
import threading
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest
from azure.core.exceptions import ServiceRequestError

from faults import after, lose_reply, lose_request
from remotedict import MemoryDictionary, Stats
from remotedict.backend import TransientError
from test_requests import Shop

if TYPE_CHECKING:
    from azurite import Azurite
    from test_requests import Counted, Request

LARGE = random.Random(0).randbytes(5000)


def verb(request: Request) -> str:
    if "comp=lease" in request.query:
        return "lease"
    if request.method == "GET":
        return "list" if "comp=list" in request.query else "get"
    return "delete" if request.method == "DELETE" else "put"


@pytest.fixture
def c(azurite: Azurite):
    shop = Shop(azurite)
    yield shop.open()
    shop.close()


def test_on_azure_it_counts_what_is_on_the_wire(c: Counted) -> None:
    def use() -> None:
        c.d.update({f"k{i}": i for i in range(10)})
        for n in range(300):  # the upkeep, too
            c.d["n"] = n
        c.d["blocks"] = random.Random(1).randbytes(40 * 1024 * 1024)
        assert len(c.d["blocks"]) == 40 * 1024 * 1024
        with c.d.lock("k1"):
            c.d["k1"] = 2
        assert c.d.get("missing") is None
        c.d.forget("k2")

    before = c.d.stats
    requests = c.cost(use)
    stats = c.d.stats - before
    assert stats.requests == len(requests)
    counts = Counter(verb(request) for request in requests)
    assert counts == {
        "get": stats.gets,
        "put": stats.puts,
        "delete": stats.deletes,
        "list": stats.lists,
        "lease": stats.leases,
    }
    assert min(counts.values()) > 0
    assert stats.bytes_up == sum(request.bytes_out for request in requests)
    listed = sum(request.bytes_in for request in requests if verb(request) == "list")
    answers = sum(request.bytes_in for request in requests) - listed
    assert answers < stats.bytes_down < answers + 1000 * stats.lists * 100
    assert stats.not_modified == sum(request.status == 304 for request in requests)
    assert (stats.conflicts, stats.retries) == (0, 0)
    assert c.d.stats.requests == len(c.transport.requests)  # those of opening it, too


def test_a_large_upload_is_a_request_for_each_block_also_when_one_is_sent_again(
    c: Counted,
) -> None:
    c.d["first"] = 0
    send, failed = c.transport.send, []

    def flaky(request, **options):
        if "comp=block&" in request.url and not failed:
            failed.append(request)
            raise ServiceRequestError("lost")
        return send(request, **options)

    c.transport.send = flaky
    before = c.d.stats
    c.d["blocks"] = random.Random(1).randbytes(40 * 1024 * 1024)
    stats = c.d.stats - before
    # Blocks of 8 MiB and a little one, one of them twice, their list, the index.
    assert (stats.puts, stats.retries, stats.gets) == (6 + 1 + 1 + 1, 1, 0)
    assert 48 * 1024 * 1024 < stats.bytes_up < 49 * 1024 * 1024


def test_values_are_hits_or_misses(world) -> None:
    d, other = world.open(), world.open()
    d.update({f"k{i}": LARGE for i in range(10)})  # one pack
    d["inline"] = 1
    before = other.stats
    assert other[["k1", "k2", "inline"]] == [LARGE, LARGE, 1]
    assert other["k1"] == LARGE
    stats = other.stats - before
    assert (stats.misses, stats.memory_hits, stats.disk_hits) == (2, 1, 0)
    assert (stats.gets, stats.not_modified) == (1 + 1 + 1, 1)


def test_what_was_just_written_is_a_hit_unless_it_is_large(world) -> None:
    d = world.open(inline_bytes=0)
    d["small"], d["large"] = LARGE, random.Random(0).randbytes(300_000)
    before = d.stats
    assert d["small"] == LARGE
    assert len(d["large"]) == 300_000
    stats = d.stats - before
    assert (stats.memory_hits, stats.misses, stats.gets) == (1, 1, 3)


def test_values_that_are_inline_are_neither(world) -> None:
    d = world.open()
    d.update(a=1, b=2)
    before = d.stats
    assert [d["a"], *d[["a", "b"]]] == [1, 1, 2]
    assert d.stats - before == Stats(gets=2, not_modified=2)


def test_a_lost_race_is_a_conflict(world) -> None:
    a, b = world.open(), world.open()
    a["x"] = 0
    assert b["x"] == 0
    a["x"] = 1
    before = b.stats
    b["y"] = 1
    stats = b.stats - before
    assert (stats.conflicts, stats.puts, stats.gets, stats.retries) == (1, 2, 1, 0)


@pytest.mark.parametrize("fault", [lose_request, lose_reply])
def test_a_request_without_an_answer_is_sent_and_counted_again(world, fault) -> None:
    d = world.open()
    d["x"] = 0
    before = d.stats
    world.of(d).at("get", "/index", fault)
    world.of(d).at("put", "/index", fault)
    d["x"] = d["x"] + 1
    stats = d.stats - before
    sent = world.of(d)
    assert stats.retries == 2
    assert stats.gets + before.gets == len(sent.sent("get"))
    assert stats.puts + before.puts == len(sent.sent("put"))


def test_a_race_that_is_lost_in_doubt_is_no_more_than_one_conflict(world) -> None:
    a, b = world.open(), world.open()
    a["x"] = 0

    def beaten(act):
        a["x"] = 1
        act()

    before = b.stats
    world.of(b).at("put", "/index", beaten)
    b["x"] = 2
    assert (b.stats - before).conflicts == 1
    assert a["x"] == 2


def test_bytes_that_are_made_as_they_are_sent_are_counted_each_time(world, tmp_path) -> None:
    d = world.open()
    d["x"] = 0
    file = tmp_path / "file"
    file.write_bytes(random.Random(0).randbytes(3 << 20))
    before = d.stats
    d.put_file("f", file)
    once = (d.stats - before).bytes_up
    assert 3 << 20 < once < (3 << 20) + 5000

    def broken(act):
        act()
        raise TransientError

    before = d.stats
    world.of(d).at("put", "", broken)
    d.put_file("f", file)
    assert (d.stats - before).bytes_up > 2 * (3 << 20)


def test_deletes_and_lists_are_counted(world) -> None:
    d = world.open(inline_bytes=0)
    d["x"] = 1
    before = d.stats
    d.forget("x")
    stats = d.stats - before
    assert stats.deletes >= 1
    assert stats.lists >= 1


def test_leases_are_counted_to_their_release(world) -> None:
    d = world.open()
    d["x"] = 1
    d.lock_item("x")
    d.unlock_item("x")
    before = d.stats
    d.lock_item("x")
    d.unlock_item("x")
    assert (d.stats - before).leases == 2


def test_mirrors_and_watches_count_with_their_handle(world) -> None:
    a, b = world.open(inline_bytes=0), world.open()
    a["x"] = LARGE
    before = b.stats
    with b.mirror(poll=(1e6, 1e6)) as mirror:
        assert mirror["x"] == LARGE
        assert (b.stats - before).misses == 1
    a["x"] = 1
    before, watch = b.stats, b.watch(since=1, timeout=0)
    assert [event.key for event in watch] == ["x"]
    assert (b.stats - before).gets > 0


def test_each_handle_has_its_own_and_begins_with_nothing() -> None:
    d = MemoryDictionary("counted", inline_bytes=0)
    d.update(a=1, b=2)
    opened = MemoryDictionary("counted").stats
    assert (opened.gets, opened.puts) == (1, 0)
    assert copy.copy(d).stats == Stats()
    assert pickle.loads(pickle.dumps(d)).stats == Stats()
    assert d.stats.puts > 0
    d.close()
    assert d.stats.puts > 0


def test_threads_count_together(world) -> None:
    d = world.open(max_staleness=0)
    d["x"] = 1
    before, calls = d.stats, len(world.of(d).calls)
    threads = [threading.Thread(target=lambda: [d.get("x") for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (d.stats - before).requests == len(world.of(d).calls) - calls > 0


def test_it_is_a_record() -> None:
    one, two = Stats(gets=3, bytes_down=10), Stats(gets=5, puts=1, bytes_down=12)
    assert two - one == Stats(gets=2, puts=1, bytes_down=2)
    assert two.requests == 6
    assert repr(two - one) == "Stats(requests=3, gets=2, puts=1, bytes_down=2)"
    assert repr(one - one) == "Stats(requests=0)"
    assert eval(repr(Stats()).replace("requests=0", "")) == Stats()  # noqa: S307
    assert asdict(one)["gets"] == 3
    assert len({one, two, Stats(gets=3, bytes_down=10)}) == 2
    with pytest.raises(AttributeError):
        one.gets = 4  # type: ignore[misc]
    with pytest.raises(TypeError):
        one - 1  # type: ignore[operator]


def test_a_request_is_counted_when_it_is_sent(world) -> None:
    d = world.open()
    d["x"] = 1
    before, seen = d.stats, []
    world.of(d).at("get", "/index", after(lambda: seen.append(d.stats - before)))
    assert d["x"] == 1
    assert seen == [Stats(gets=1)]
