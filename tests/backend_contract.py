"""What every backend must do: a suite to inherit.

A subclass gives the fixtures `backend`, an empty store, and `wait`, which lets time pass for it.
What the store holds is compared with a plain dict, or looked up by `stored`, which bypasses the
code under test.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remotedict.backend import (
    NOT_MODIFIED,
    PIECE_BYTES,
    BlobNotFound,
    LeaseHeld,
    LeaseLost,
    PreconditionFailed,
    TransientError,
)

GUARD = 60.0  # seconds after which something hangs
LEASE = 15.0  # seconds; what every store grants
THREADS = 16

UNIQUE = "000000000001-0123456789abcdef0123456789abcdef"
NAMES = [
    "Index/runs/index",
    "Index/runs/locks/.commit",
    "Index/runs/locks/0123456789abcdef0123456789abcdef",
    f"Index/runs/segments/{UNIQUE}",
    f"runs/.packs/{UNIQUE}",
    f"runs/run=201=2Floss/{UNIQUE}",
    f"runs/=00/{UNIQUE}",
    f"runs/{'k' * 86}=={'a' * 32}/{UNIQUE}",
    f"{'long' * 50}/{'k' * 120}/{UNIQUE}",
    f"Läufe 日本 😀/k/{UNIQUE}",
    f"a folder, (with) 'signs' & more + @ = ; [so] on/k/{UNIQUE}",
]


class Clock:
    """The time of this machine, until it is stopped, but for what a test adds to it."""

    def __init__(self):
        self.ahead = 0.0
        self.stopped = None

    def __call__(self):
        return (self.stopped or time.time()) + self.ahead

    def stop(self):
        self.stopped = time.time()

    def wait(self, seconds):
        self.ahead += seconds


def new_id():
    return str(uuid.uuid4())


def together(*acts):
    """Begin all acts at the same moment; return their results, or raise what one has raised."""
    start = threading.Barrier(len(acts))

    def run(act):
        start.wait(GUARD)
        return act()

    with ThreadPoolExecutor(len(acts)) as pool:
        futures = [pool.submit(run, act) for act in acts]
        return [future.result(GUARD) for future in futures]


def done(act, refusal=PreconditionFailed):
    """Tell whether an act that may be refused was carried out."""
    try:
        act()
    except refusal:
        return False
    return True


def joined(data):
    whole = isinstance(data, bytes | bytearray | memoryview)
    return b"".join(bytes(part) for part in ([data] if whole else data))


class BackendContract:
    """Inherit, and give the fixtures `backend` and `wait`, and the method `stored`."""

    examples: ClassVar[int] = 60
    rounds: ClassVar[int] = 15

    @pytest.fixture
    def backend(self):
        raise NotImplementedError

    @pytest.fixture
    def wait(self):
        raise NotImplementedError

    def stored(self, backend):
        """Return name -> bytes of all blobs, by other means than the backend's verbs."""
        raise NotImplementedError

    # -- put and get ------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "data",
        [
            b"bytes",
            bytearray(b"bytearray"),
            memoryview(b"memoryview")[3:7],
            memoryview(bytearray(range(16))).cast("I"),
            [b"a ", bytearray(b"list "), memoryview(b"of parts")],
            (b"a tuple", b"", b" of parts"),
            b"",
            [],
            [b"", b""],
        ],
        ids=lambda data: f"{type(data).__name__}-{len(data)}",
    )
    def test_what_was_put_is_got(self, backend, data):
        put = backend.put("x/blob", data)
        got = backend.get("x/blob")
        assert got == (joined(data), put)
        assert isinstance(got.data, bytes | memoryview)
        assert self.stored(backend) == {"x/blob": joined(data)}

    @pytest.mark.parametrize("parts", [[], [b""], [b"a", bytearray(b"b"), memoryview(b"c")]])
    def test_an_iterator_can_be_put(self, backend, parts):
        put = backend.put("x/blob", iter(parts))
        assert backend.get("x/blob") == (joined(parts), put)

    @pytest.mark.parametrize("size", [PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1])
    def test_a_blob_of_about_one_piece_is_whole(self, backend, size):
        data = random.Random(size).randbytes(size)
        backend.put("x/blob", data)
        assert backend.get("x/blob").data == data
        assert [blob.size for blob in backend.list("")] == [size]

    @pytest.mark.parametrize("form", [bytes, lambda data: [data], lambda data: iter(_cut(data))])
    def test_a_blob_of_many_pieces_is_whole(self, backend, form):
        data = random.Random(1).randbytes(4 * PIECE_BYTES + 12_345)
        put = backend.put("x/blob", form(data))
        assert backend.get("x/blob") == (data, put)
        start = 2 * PIECE_BYTES - 7
        ranged = backend.get("x/blob", range=(start, PIECE_BYTES + 20))
        assert ranged.data == data[start : start + PIECE_BYTES + 20]

    @pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
    def test_every_name_of_the_layout_can_be_used(self, backend, name):
        etag = backend.put(name, b"first", if_absent=True)
        etag = backend.put(name, b"second", if_match=etag)
        assert backend.get(name, if_none_match=etag) is NOT_MODIFIED
        assert backend.get(name).data == b"second"
        assert [blob.name for blob in backend.list(name[:-3])] == [name]
        lease = backend.lease(name, LEASE, lease_id=new_id())
        lease.renew()
        lease.release()
        assert self.stored(backend) == {name: b"second"}
        backend.delete([name])
        assert self.stored(backend) == {}

    def test_an_overwrite_leaves_nothing_of_what_was_there(self, backend):
        backend.put("x", b"something long")
        backend.put("x", b"short")
        assert self.stored(backend) == {"x": b"short"}

    def test_names_that_differ_in_case_only_are_told_apart_by_what_follows(self, backend):
        # As the layout's names do: case-insensitive file systems would mix up bare keys.
        backend.put("f/KEY/000000000001-aa", b"upper")
        backend.put("f/key/000000000001-bb", b"lower")
        assert backend.get("f/KEY/000000000001-aa").data == b"upper"
        assert backend.get("f/key/000000000001-bb").data == b"lower"

    def test_a_missing_blob_is_not_found(self, backend):
        for _ in range(2):
            with pytest.raises(BlobNotFound):
                backend.get("f/missing")
            with pytest.raises(BlobNotFound):
                backend.get("f/missing", range=(0, 1))
            with pytest.raises(BlobNotFound):
                backend.get("f/missing", if_none_match=backend.put("f/other", b"x"))

    @pytest.mark.parametrize(
        ("offset", "length"), [(0, 1), (0, 10), (3, 4), (9, 1), (0, 100), (5, 100)]
    )
    def test_a_range_is_what_a_slice_is(self, backend, offset, length):
        backend.put("x", b"0123456789")
        got = backend.get("x", range=(offset, length))
        assert got.data == b"0123456789"[offset : offset + length]

    @pytest.mark.parametrize(("size", "offset"), [(10, 10), (10, 11), (10, 10**6), (0, 0), (0, 5)])
    def test_a_range_past_the_end_is_not_found(self, backend, size, offset):
        backend.put("x", b"x" * size)
        with pytest.raises(BlobNotFound):
            backend.get("x", range=(offset, 1))

    @pytest.mark.parametrize("data", [b"data", b""])
    def test_only_news_is_downloaded(self, backend, data):
        old = backend.put("x", b"before")
        new = backend.put("x", data)
        assert backend.get("x", if_none_match=new) is NOT_MODIFIED
        assert backend.get("x", if_none_match=old) == (data, new)

    def test_the_etag_changes_with_the_bytes_and_only_then(self, backend):
        etags = [backend.put("x", b"%d" % n) for n in range(10)]
        assert len(set(etags)) == 10
        assert all(etags)
        backend.put("y", b"another blob")
        list(backend.list(""))
        assert {backend.get("x").etag for _ in range(3)} == {etags[-1]}

    def test_times_are_those_of_now(self, backend):
        before = time.time()
        backend.put("x", b"data")
        (listed,) = backend.list("x")
        assert before - 2 <= listed.time <= time.time() + 2  # some stores count whole seconds

    def test_times_never_go_back(self, backend):
        for n in range(20):
            backend.put(f"x{n:02}", b"")
        times = [blob.time for blob in backend.list("x")]
        assert len(times) == 20
        assert times == sorted(times)

    # -- preconditions ----------------------------------------------------------------------

    def test_a_matching_etag_overwrites(self, backend):
        etag = backend.put("x", b"0")
        for n in range(1, 5):
            etag = backend.put("x", b"%d" % n, if_match=etag)
        assert backend.get("x") == (b"4", etag)

    def test_a_stale_etag_never_overwrites(self, backend):
        stale = backend.put("x", b"old")
        current = backend.put("x", b"current")
        with pytest.raises(PreconditionFailed):
            backend.put("x", b"mine", if_match=stale)
        assert backend.get("x") == (b"current", current)

    def test_an_empty_etag_matches_nothing(self, backend):
        # A ranged get may give one.
        backend.put("x", b"current")
        for name in ("x", "missing"):
            with pytest.raises(PreconditionFailed):
                backend.put(name, b"mine", if_match="")
        assert self.stored(backend) == {"x": b"current"}

    def test_an_etag_never_matches_a_missing_blob(self, backend):
        etag = backend.put("x", b"data")
        backend.delete(["x"])
        with pytest.raises(PreconditionFailed):
            backend.put("x", b"data", if_match=etag)
        assert self.stored(backend) == {}

    def test_if_absent_writes_only_what_is_not_there(self, backend):
        backend.put("x", b"", if_absent=True)  # an empty blob is there, too
        with pytest.raises(PreconditionFailed):
            backend.put("x", b"second", if_absent=True)
        assert self.stored(backend) == {"x": b""}
        backend.delete(["x"])
        backend.put("x", b"third", if_absent=True)
        assert self.stored(backend) == {"x": b"third"}

    def test_preconditions_hold_for_large_blobs_too(self, backend):
        large = [bytes(PIECE_BYTES), b"end"]
        stale = backend.put("x", b"old", if_absent=True)
        current = backend.put("x", large, if_match=stale)
        for condition in ({"if_match": stale}, {"if_absent": True}):
            with pytest.raises(PreconditionFailed):
                backend.put("x", [bytes(PIECE_BYTES), b"mine"], **condition)
        assert backend.get("x") == (joined(large), current)

    def test_exactly_one_compare_and_swap_wins_each_round(self, backend):
        etag = backend.put("x", b"start")
        for _ in range(self.rounds):
            mine = [uuid.uuid4().bytes for _ in range(THREADS)]
            acts = [
                lambda data=data, etag=etag: done(lambda: backend.put("x", data, if_match=etag))
                for data in mine
            ]
            won = together(*acts)
            assert won.count(True) == 1
            data, etag = backend.get("x")
            assert data == mine[won.index(True)]

    def test_exactly_one_creates(self, backend):
        for round_ in range(self.rounds):
            name = f"f{round_}/x"
            acts = [
                lambda n=n, name=name: done(lambda: backend.put(name, b"%d" % n, if_absent=True))
                for n in range(THREADS)
            ]
            won = together(*acts)
            assert won.count(True) == 1
            assert backend.get(name).data == b"%d" % won.index(True)

    def test_a_counter_under_compare_and_swap_loses_nothing(self, backend):
        backend.put("x", b"0")

        def add():
            for _ in range(10):
                swapped = False
                while not swapped:
                    data, etag = backend.get("x")
                    more = b"%d" % (int(data) + 1)
                    swapped = done(lambda: backend.put("x", more, if_match=etag))  # noqa: B023

        together(*[add] * 4)
        assert backend.get("x").data == b"40"

    # -- whole or not at all ----------------------------------------------------------------

    @pytest.mark.parametrize("before", [0, 1, 3 * PIECE_BYTES])
    def test_data_that_fails_on_its_way_changes_nothing(self, backend, before):
        class WentWrongError(Exception):
            pass

        def data():
            yield bytes(before)
            raise WentWrongError

        backend.put("f/x", b"current")
        for name in ("f/x", "f/new"):
            with pytest.raises(WentWrongError):
                backend.put(name, data())
        assert self.stored(backend) == {"f/x": b"current"}
        assert [blob.name for blob in backend.list("")] == ["f/x"]

    def test_readers_never_see_a_torn_blob(self, backend):
        size, ended = 200_000, threading.Event()
        backend.put("x", bytes(size))

        def write():
            try:
                for n in range(1, 40):
                    backend.put("x", bytes([n]) * size)
            finally:
                ended.set()

        def read():
            seen = 0
            while not ended.is_set():
                data = bytes(backend.get("x").data)
                assert len(data) == size
                assert data == data[:1] * size
                assert data[0] >= seen
                seen = data[0]

        together(write, read, read)

    def test_two_large_writes_at_once_never_mix(self, backend):
        mine, theirs = ([fill * PIECE_BYTES] * 2 + [fill] for fill in (b"m", b"t"))

        def interrupted():
            yield from mine[:2]
            backend.put("x", theirs)
            yield mine[2]

        done(lambda: backend.put("x", interrupted()), TransientError)
        assert backend.get("x").data in (joined(mine), joined(theirs))

    # -- delete and list --------------------------------------------------------------------

    def test_delete_deletes_all_it_is_given_and_nothing_else(self, backend):
        names = [f"f/k{n}/x" for n in range(20)]
        for name in [*names, "f/k1/y", "f/k99", "other"]:
            backend.put(name, b"data")
        backend.delete(name for name in [*names, "f/k1/x", "missing", "f/k1/missing"])
        assert set(self.stored(backend)) == {"f/k1/y", "f/k99", "other"}
        backend.delete([])
        backend.delete(names)
        assert set(self.stored(backend)) == {"f/k1/y", "f/k99", "other"}

    def test_delete_in_an_empty_store_does_nothing(self, backend):
        backend.delete(["f/missing", "missing"])
        assert list(backend.list("")) == []

    def test_what_was_deleted_can_be_put_again(self, backend):
        for n in range(3):
            backend.put("f/k/x", b"%d" % n, if_absent=True)
            assert backend.get("f/k/x").data == b"%d" % n
            backend.delete(["f/k/x"])
            with pytest.raises(BlobNotFound):
                backend.get("f/k/x")

    def test_deleting_a_neighbour_never_hurts_a_put(self, backend):
        def churn(name):
            for _ in range(self.rounds * 4):
                backend.put(name, b"data")
                assert backend.get(name).data == b"data"
                backend.delete([name])

        together(*[lambda n=n: churn(f"f/k/{n}") for n in range(4)])
        assert self.stored(backend) == {}

    def test_list_has_the_blobs_of_a_prefix_in_order(self, backend):
        names = ["f/b/2", "f/b/10", "f-1/x", "f/a/1", "f/b=2F/1", "f/.packs/1", "g", "f0"]
        for size, name in enumerate(names):
            backend.put(name, bytes(size))
        sizes = dict(zip(names, range(len(names)), strict=True))
        for prefix in ("", "f", "f/", "f/b", "f/b/", "f/b/1", "f/b/10", "f/b/100", "g", "none/x"):
            wanted = sorted(name for name in names if name.startswith(prefix))
            listed = list(backend.list(prefix))
            assert [blob.name for blob in listed] == wanted
            assert [blob.size for blob in listed] == [sizes[name] for name in wanted]

    def test_an_empty_store_lists_nothing(self, backend):
        assert list(backend.list("")) == []
        assert list(backend.list("f/none/")) == []

    def test_list_shows_blobs_and_nothing_else(self, backend):
        etag = backend.put("f/x", b"1")
        backend.put("f/x", b"2", if_match=etag)
        lease = backend.lease("f/lock", LEASE, lease_id=new_id())
        lease.renew()
        backend.lease("f/x", LEASE, lease_id=new_id()).release()
        assert [(blob.name, blob.size) for blob in backend.list("")] == [("f/lock", 0), ("f/x", 1)]

    def test_a_list_taken_amid_writes_has_all_that_stays(self, backend):
        stay = [f"f/stay{n}/x" for n in range(10)]
        for name in stay:
            backend.put(name, b"")
        ended = threading.Event()

        def churn():
            try:
                for n in range(self.rounds * 4):
                    backend.put(f"f/go{n % 3}/x", b"")
                    backend.delete([f"f/go{n % 3}/x"])
            finally:
                ended.set()

        def look():
            while not ended.is_set():
                assert set(stay) <= {blob.name for blob in backend.list("f/")}

        together(churn, look)

    # -- leases -----------------------------------------------------------------------------

    def test_a_lease_makes_a_missing_blob(self, backend):
        mine = new_id()
        lease = backend.lease("f/lock", LEASE, lease_id=mine)
        assert lease.id == mine
        assert lease.seconds >= LEASE
        assert self.stored(backend) == {"f/lock": b""}
        assert backend.get("f/lock").data == b""

    def test_a_lease_leaves_the_bytes_of_a_blob_alone(self, backend):
        backend.put("f/x", b"data")
        backend.lease("f/x", LEASE, lease_id=new_id()).release()
        backend.lease("f/x", LEASE, lease_id=new_id(), force=True).release()
        assert backend.get("f/x").data == b"data"

    def test_a_held_lease_is_refused(self, backend):
        lease = backend.lease("lock", LEASE, lease_id=new_id())
        for _ in range(2):
            with pytest.raises(LeaseHeld):
                backend.lease("lock", LEASE, lease_id=new_id())
            lease.renew()
        backend.lease("another", LEASE, lease_id=new_id())

    def test_a_lost_reply_can_be_asked_for_again_with_the_same_id(self, backend):
        mine = new_id()
        backend.lease("lock", LEASE, lease_id=mine)  # the reply to this got lost
        lease = backend.lease("lock", LEASE, lease_id=mine)
        with pytest.raises(LeaseHeld):
            backend.lease("lock", LEASE, lease_id=new_id())
        lease.renew()
        lease.release()  # once: it was one acquisition
        backend.lease("lock", LEASE, lease_id=new_id())

    def test_after_a_release_another_may_take_it(self, backend):
        for _ in range(3):
            backend.lease("lock", LEASE, lease_id=new_id()).release()

    def test_a_released_lease_is_lost(self, backend):
        lease = backend.lease("lock", LEASE, lease_id=new_id())
        lease.release()
        for act in (lease.renew, lease.release, lease.renew):
            with pytest.raises(LeaseLost):
                act()

    def test_one_who_lost_a_lease_does_not_disturb_its_holder(self, backend):
        old = backend.lease("lock", LEASE, lease_id=new_id())
        old.release()
        holder = backend.lease("lock", LEASE, lease_id=new_id())
        for act in (old.renew, old.release):
            with pytest.raises(LeaseLost):
                act()
        with pytest.raises(LeaseHeld):
            backend.lease("lock", LEASE, lease_id=old.id)
        holder.renew()
        holder.release()

    def test_force_takes_over(self, backend):
        old = backend.lease("lock", LEASE, lease_id=new_id())
        new = backend.lease("lock", LEASE, lease_id=new_id(), force=True)
        for act in (old.renew, old.release):
            with pytest.raises(LeaseLost):
                act()
        with pytest.raises(LeaseHeld):
            backend.lease("lock", LEASE, lease_id=new_id())
        new.renew()
        new.release()

    def test_force_works_where_nobody_holds_it_too(self, backend):
        backend.lease("lock", LEASE, lease_id=new_id(), force=True).release()
        backend.lease("lock", LEASE, lease_id=new_id(), force=True).release()
        mine = new_id()
        backend.lease("lock", LEASE, lease_id=mine, force=True)
        backend.lease("lock", LEASE, lease_id=mine, force=True).release()

    def test_the_lease_of_a_deleted_blob_is_not_in_the_way_of_a_new_one(self, backend):
        backend.lease("lock", LEASE, lease_id=new_id()).release()
        backend.delete(["lock"])
        assert list(backend.list("")) == []
        backend.lease("lock", LEASE, lease_id=new_id()).release()

    def test_exactly_one_gets_a_lease(self, backend):
        for round_ in range(self.rounds):
            acts = [
                lambda name=f"f{round_}/lock": done(
                    lambda: backend.lease(name, LEASE, lease_id=new_id()), LeaseHeld
                )
            ] * THREADS
            assert together(*acts).count(True) == 1

    def test_a_lease_lives_as_long_as_it_is_renewed_and_then_runs_out(self, backend, wait):
        kept, left, unheld = (
            backend.lease(name, LEASE, lease_id=new_id()) for name in ("kept", "left", "unheld")
        )
        wait(LEASE / 2)
        kept.renew()
        for lease in (kept, left):
            with pytest.raises(LeaseHeld):
                backend.lease("kept" if lease is kept else "left", LEASE, lease_id=new_id())
        wait(LEASE / 2 + 1)
        with pytest.raises(LeaseHeld):
            backend.lease("kept", LEASE, lease_id=new_id())
        holder = backend.lease("left", LEASE, lease_id=new_id())
        for act in (left.renew, left.release):
            with pytest.raises(LeaseLost):
                act()
        holder.renew()
        backend.lease("unheld", LEASE, lease_id=unheld.id).release()

    # -- in general -------------------------------------------------------------------------

    def test_closing_twice_does_no_harm(self, backend):
        backend.put("x", b"data")
        backend.close()
        backend.close()

    def test_any_history_is_that_of_a_dict(self, backend):
        @settings(max_examples=self.examples)
        @given(st.lists(_operations, min_size=1, max_size=25))
        def check(operations):
            root = f"r{uuid.uuid4().hex}/"
            model = _Model(backend, root)
            for verb, *arguments in operations:
                getattr(model, verb)(*arguments)
            model.compare("")
            stored = self.stored(backend).items()
            mine = {name.removeprefix(root): data for name, data in stored if root in name}
            assert mine == {name: data for name, (data, _) in model.blobs.items()}
            backend.delete([root + name for name in model.blobs])

        check()


class ClockedLeaseContract:
    """What is tested of leases where time can be made: inherit beside `BackendContract`."""

    @pytest.mark.parametrize("seconds", [1, 2.5, 15, 60])
    def test_a_lease_lasts_for_what_it_says(self, backend, clock, wait, seconds):
        clock.stop()
        lease = backend.lease("lock", seconds, lease_id=new_id())
        wait(lease.seconds - 0.5)
        with pytest.raises(LeaseHeld):
            backend.lease("lock", seconds, lease_id=new_id())
        wait(1)
        backend.lease("lock", seconds, lease_id=new_id())

    def test_each_renewal_grants_the_same_time_anew(self, backend, clock, wait):
        clock.stop()
        lease = backend.lease("lock", LEASE, lease_id=new_id())
        for _ in range(5):
            wait(LEASE - 1)
            lease.renew()
        wait(LEASE - 1)
        with pytest.raises(LeaseHeld):
            backend.lease("lock", LEASE, lease_id=new_id())
        wait(2)
        backend.lease("lock", LEASE, lease_id=new_id())

    def test_asking_again_with_the_same_id_renews(self, backend, clock, wait):
        clock.stop()
        mine = new_id()
        backend.lease("lock", LEASE, lease_id=mine)
        wait(LEASE - 1)
        backend.lease("lock", LEASE, lease_id=mine)
        wait(LEASE - 1)
        with pytest.raises(LeaseHeld):
            backend.lease("lock", LEASE, lease_id=new_id())


def _cut(data):
    """Yield the data in parts of unlike sizes, which don't meet the borders of pieces."""
    at, sizes = 0, random.Random(2)
    while at < len(data):
        size = sizes.choice([1, 1000, 300_000, PIECE_BYTES + 1])
        yield data[at : at + size]
        at += size


class _Model:
    """A dict of what was put below `root`; every verb is compared with it at once."""

    def __init__(self, backend, root):
        self.backend = backend
        self.root = root
        self.blobs = {}
        self.etags = ['"0x123"']

    def put(self, name, data, condition):
        _, current = self.blobs.get(name, (None, None))
        stale = next(etag for etag in self.etags if etag != current)
        options, allowed = {
            "none": ({}, True),
            "current": ({"if_match": current or stale}, current is not None),
            "stale": ({"if_match": stale}, False),
            "absent": ({"if_absent": True}, current is None),
        }[condition]
        if not allowed:
            with pytest.raises(PreconditionFailed):
                self.backend.put(self.root + name, data, **options)
            return
        etag = self.backend.put(self.root + name, data, **options)
        self.blobs[name] = data, etag
        self.etags.append(etag)

    def get(self, name):
        if name in self.blobs:
            data, etag = self.blobs[name]
            assert self.backend.get(self.root + name) == (data, etag)
            assert self.backend.get(self.root + name, if_none_match=etag) is NOT_MODIFIED
            other = next(e for e in self.etags if e != etag)
            assert self.backend.get(self.root + name, if_none_match=other).data == data
        else:
            with pytest.raises(BlobNotFound):
                self.backend.get(self.root + name)

    def get_range(self, name, offset, length):
        data, _ = self.blobs.get(name, (b"", None))
        wanted = data[offset : offset + length]
        if wanted:
            assert self.backend.get(self.root + name, range=(offset, length)).data == wanted
        else:
            with pytest.raises(BlobNotFound):
                self.backend.get(self.root + name, range=(offset, length))

    def delete(self, names):
        self.backend.delete([self.root + name for name in names])
        for name in names:
            self.blobs.pop(name, None)

    def compare(self, prefix):
        listed = [
            (blob.name.removeprefix(self.root), blob.size)
            for blob in self.backend.list(self.root + prefix)
        ]
        wanted = sorted(name for name in self.blobs if name.startswith(prefix))
        assert listed == [(name, len(self.blobs[name][0])) for name in wanted]


_names = st.sampled_from(["index", "a/1", "a/2", "a=2F/1", ".packs/1", "ab/c/1"])
_operations = st.one_of(
    st.tuples(
        st.just("put"),
        _names,
        st.binary(max_size=20),
        st.sampled_from(["none", "current", "stale", "absent"]),
    ),
    st.tuples(st.just("get"), _names),
    st.tuples(st.just("get_range"), _names, st.integers(0, 20), st.integers(1, 20)),
    st.tuples(st.just("delete"), st.lists(_names, max_size=3)),
    st.tuples(st.just("compare"), st.sampled_from(["", "a", "a/", "a=", ".packs/", "x"])),
)
