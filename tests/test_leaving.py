"""What a handle leaves behind when it is dropped, or its process ends: no lock, no secret."""

from __future__ import annotations

import gc
import subprocess
import sys
import time

import pytest

import remotedict
from remotedict import CredentialsError, LocalDictionary, MemoryDictionary, RemoteDictError
from remotedict.azure import AzureDictionary

HANG = 60
SECRETS = [
    "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=c2VjcmV0;EndpointSuffix=b",
    "AccountKey=c2VjcmV0;AccountName=a",
    "https://a.blob.core.windows.net/c?sv=2020&sig=c2VjcmV0",
    "SharedAccessSignature=sv=2020&sig=c2VjcmV0",
]


def eventually(condition):
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def run_to_its_end(code, folder):
    """Run a script, which must end by itself and complain of nothing."""
    done = subprocess.run(
        [sys.executable, "-c", code, folder],
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_handle_that_nobody_has_any_more_gives_back_its_locks():
    other = MemoryDictionary("dropped")
    dropped = MemoryDictionary("dropped")
    dropped.lock_item(["a", "b"], duration=-1)
    assert list(other.locks) == ["a", "b"]
    del dropped
    gc.collect()
    eventually(lambda: not other.locks)
    other.lock_item("a", wait=False)
    other.close()


def test_a_process_that_ends_gives_back_its_locks(tmp_path):
    code = (
        "import sys, remotedict\n"
        "d = remotedict.open(sys.argv[1])\n"
        "d.lock_item('k', duration=-1)\n"
        "d['k'] = 1\n"
    )
    run_to_its_end(code, tmp_path)
    with LocalDictionary(tmp_path) as d:
        d.lock_item("k", wait=False)
        assert d["k"] == 1


def test_a_thread_that_writes_on_after_the_main_one_keeps_no_process_from_ending(tmp_path):
    code = (
        "import sys, threading, remotedict\n"
        "from remotedict.pure import plan\n"
        "plan.INDEX_BYTES = 1500\n"  # so that each few commits call for upkeep
        "d = remotedict.open(sys.argv[1])\n"
        "def write():\n"
        "    for n in range(200):\n"
        "        d[f'k{n}'] = n\n"
        "threading.Thread(target=write).start()\n"
    )
    run_to_its_end(code, tmp_path)
    with LocalDictionary(tmp_path) as d:
        assert d == {f"k{n}": n for n in range(200)}


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "opening",
    [
        lambda secret: AzureDictionary("walk", secret),
        lambda secret: AzureDictionary(None, "walk", secret),
        LocalDictionary,
        lambda secret: LocalDictionary("somewhere", secret),
        remotedict.open,
        lambda secret: remotedict.open(f"az://walk/{secret}"),
        lambda secret: remotedict.open(f"az://walk/f?{secret}"),
    ],
    ids=["container", "folder", "path", "local folder", "url", "url folder", "url query"],
)
def test_a_credential_given_as_a_name_is_refused_and_not_repeated(
    opening, secret, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CredentialsError) as caught:
        opening(secret)
    assert "c2VjcmV0" not in repr(caught.value)
    assert isinstance(caught.value, RemoteDictError)
    assert not list(tmp_path.iterdir())


def test_a_star_import_leaves_the_builtin_open_alone():
    names = {}
    exec("from remotedict import *", names)  # noqa: S102
    assert "open" not in names
    assert names["MemoryDictionary"] is MemoryDictionary


def test_a_lock_that_is_not_entered_says_how_it_is_meant():
    with MemoryDictionary() as d:
        assert "with d.lock" in repr(d.lock("k"))


def test_a_lock_for_ages_is_refused_and_one_in_the_store_breaks_no_list():
    with MemoryDictionary() as d:
        with pytest.raises(ValueError, match="a year"):
            d.lock_item("k", duration=1e12)
        d._parts.locks.acquire(["k"], duration=1e12, wait=True, timeout=None)
        assert d.locks["k"].until.year == 9999
