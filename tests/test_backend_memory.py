"""The store in memory keeps the contract of all stores."""

from __future__ import annotations

import multiprocessing
import sys

import pytest

from backend_contract import LEASE, BackendContract, Clock, ClockedLeaseContract, new_id
from remotedict.backend import PreconditionFailed
from remotedict.backend.memory import MemoryBackend


class TestMemoryBackend(ClockedLeaseContract, BackendContract):
    @pytest.fixture
    def clock(self):
        return Clock()

    @pytest.fixture
    def backend(self, clock):
        return MemoryBackend(clock)

    @pytest.fixture
    def wait(self, clock):
        return clock.wait

    def stored(self, backend):
        return {path: blob.data for path, blob in backend._blobs.items()}


def test_two_stores_share_nothing():
    one, two = MemoryBackend(), MemoryBackend()
    one.put("x", b"1")
    one.lease("x", LEASE, lease_id=new_id())
    two.put("x", b"2", if_absent=True)
    two.lease("x", LEASE, lease_id=new_id())
    assert one.get("x").data == b"1"


def test_the_bytes_are_a_copy():
    store, data = MemoryBackend(), bytearray(b"before")
    store.put("x", data)
    data[:] = b"after!"
    assert store.get("x").data == b"before"


def test_an_etag_is_never_used_twice():
    store = MemoryBackend()
    stale = store.put("x", b"same")
    store.put("x", b"same")
    with pytest.raises(PreconditionFailed):
        store.put("x", b"mine", if_match=stale)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_a_copy_and_waits_for_no_lock_of_its_parent():
    store = MemoryBackend()
    store.put("x", b"parent")
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def child():
        store.put("x", b"child")
        answers.put(store.get("x").data)

    process = context.Process(target=child)
    with store._lock:  # as another thread might hold it at that moment
        process.start()
    process.join(60)
    assert process.exitcode == 0
    assert answers.get() == b"child"
    assert store.get("x").data == b"parent"
