"""The memory cache: how much it keeps, what goes first, and what it must not keep."""

from __future__ import annotations

import pytest

from remotedict.engine.cache import Cache


def kept(cache, names):
    return "".join(name for name in names if name.encode() in cache._bytes)


def filled(names, limit=80, size=10):
    cache = Cache(limit)
    for name in names:
        cache.add(name.encode(), bytes(size))
    return cache


def test_what_was_used_longest_ago_goes_first():
    cache = filled("abcdefgh")  # full
    assert kept(cache, "abcdefgh") == "abcdefgh"
    assert cache.get_all([b"a", b"x", b"c"]) == [bytes(10), None, bytes(10)]
    cache.add(b"i", bytes(10))
    # An eighth is made free at once: else each of many would have to look for its room.
    assert kept(cache, "abcdefghi") == "acefghi"
    assert cache._size == 70


def test_nothing_is_dropped_before_it_must_be():
    assert kept(filled("abcdefgh"), "abcdefgh") == "abcdefgh"
    assert kept(filled("abcdefghi"), "abcdefghi") == "cdefghi"


@pytest.mark.parametrize(("limit", "size"), [(80, 41), (0, 1)])
def test_what_is_too_large_for_it_moves_nothing_out(limit, size):
    cache = filled("ab", limit)
    before = dict(cache._bytes)
    cache.add(b"large", bytes(size))
    assert cache._bytes == before
    assert cache._size == sum(map(len, before.values()))


def test_the_same_is_counted_once():
    cache = filled("aab")
    assert cache._size == 20
    cache.discard(b"a")
    cache.discard(b"a")
    assert (kept(cache, "ab"), cache._size) == ("b", 10)


def test_what_was_loaded_before_all_was_forgotten_is_not_kept():
    cache = filled("ab")
    cleared = cache.cleared
    cache.clear()
    assert (cache._bytes, cache._size) == ({}, 0)
    cache.add_all([(b"c", bytes(10))], cleared)
    assert cache._bytes == {}
    cache.add_all([(b"c", bytes(10))], cache.cleared)
    assert kept(cache, "abc") == "c"


def test_many_come_and_go_in_order():
    """With all but the newest dropped one by one, a dict would take quadratic time."""
    cache = Cache(80_000)
    names = [n.to_bytes(4, "big") for n in range(100_000)]
    for start in range(0, len(names), 1000):
        cache.add_all([(name, bytes(10)) for name in names[start : start + 1000]], 0)
    left = list(cache._bytes)
    assert left == names[-len(left) :]
    assert 70_000 <= cache._size == 10 * len(left) <= 80_000
