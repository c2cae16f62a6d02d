"""What many threads of one process may do at the same moment."""

from __future__ import annotations

import subprocess
import sys

import pytest

from remotedict.pure.records import Commit, Facts, Set
from remotedict.pure.state import State

FIRST_READS = """
import threading
from remotedict.pure import plan
from remotedict.pure.records import Index, decode, encode

blob = encode(plan.genesis(bytes(16), bytes(16)))
barrier = threading.Barrier(8)

def read():
    barrier.wait()
    decode(blob, Index, "x")

threads = [threading.Thread(target=read) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize("run", range(4))
def test_the_first_reads_of_a_process_may_come_from_many_threads(run):
    # msgspec prepares a type when it is first decoded, and crashed the interpreter in every
    # second run when two threads did so at once.
    done = subprocess.run(
        [sys.executable, "-c", FIRST_READS], capture_output=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")


def commit(seq, *keys):
    facts = Facts("int", 1)
    changes = [Set(key, 1, bytes([seq]) * 16, 0, b"x", facts, None) for key in keys]
    return Commit(bytes([seq]) * 16, seq, 0, "", "", changes)


def test_a_walk_back_while_keys_are_being_added_does_not_lose_them_for_later(monkeypatch):
    before = State.empty().apply(commit(1, "a", "b"))
    change = State._change

    def changing(state, one, *args):
        added = change(state, one, *args)
        if one.key == "d":  # another thread, in the midst of the commit
            assert list(reversed(before)) == ["b", "a"]
        return added

    monkeypatch.setattr(State, "_change", changing)
    after = before.apply(commit(2, "c", "d", "e"))
    assert list(after) == ["a", "b", "c", "d", "e"]
    assert list(reversed(after)) == ["e", "d", "c", "b", "a"]
    assert list(reversed(before)) == ["b", "a"]
