"""Handles: shared by threads, forked, pickled, closed, shown, and never talkative."""

from __future__ import annotations

import copy
import faulthandler
import io
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from azurite import ACCOUNT_KEY
from remotedict import (
    ClosedError,
    ItemLockedError,
    LocalDictionary,
    LockNotHeldError,
    MemoryDictionary,
    RemoteDictError,
    StoreUnavailableError,
    dictionary,
)
from remotedict.azure import ENVIRONMENT_VARIABLE, AzureDictionary
from remotedict.errors import CredentialsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from azurite import Azurite
    from conftest import Shop
    from remotedict import RemoteDict

HANG = 60

forks = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork"
)


@pytest.fixture
def m() -> Iterator[RemoteDict]:
    """A dictionary in memory, where the backend doesn't matter."""
    with MemoryDictionary() as d:
        yield d


@pytest.fixture
def azure(azurite: Azurite) -> Iterator[RemoteDict]:
    """A dictionary on Azurite."""
    with AzureDictionary(azurite.connection_string, f"t{uuid.uuid4().hex}") as d:
        yield d


def requests(d: RemoteDict, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by the path of every blob that this handle gets."""
    seen: list[str] = []
    backend = d._engine.backend
    get = backend.get

    def noting(path: str, **options: Any) -> Any:
        seen.append(path)
        return get(path, **options)

    monkeypatch.setattr(backend, "get", noting)
    return seen


# -- closing ----------------------------------------------------------------------------------

USES: list[Callable[[RemoteDict], Any]] = [
    lambda d: d["a"],
    lambda d: d["a", "b"],
    lambda d: d.get("a"),
    lambda d: "a" in d,
    len,
    list,
    lambda d: list(reversed(d)),
    lambda d: list(d.keys()),
    lambda d: list(d.items()),
    lambda d: d.copy(),
    lambda d: d == {},
    lambda d: d | {},
    lambda d: d.index,
    lambda d: d.locks,
    lambda d: d.__setitem__("a", 1),
    lambda d: d.update(a=1),
    lambda d: d.__delitem__("a"),
    lambda d: d.pop("a"),
    lambda d: d.popitem(),
    lambda d: d.setdefault("a", 1),
    lambda d: d.clear(),
    lambda d: d.lock_item("a"),
    lambda d: d.unlock_item("a"),
    lambda d: d.lock("a").__enter__(),
]


def test_a_closed_handle_says_so_whatever_it_is_asked(d: RemoteDict) -> None:
    d["a"] = 1
    d.close()
    d.close()
    for use in USES:
        with pytest.raises(ClosedError, match="open a new one"):
            use(d)
    assert 5 not in d
    assert "ClosedError" in repr(d)
    assert "ClosedError" in d._repr_html_()
    assert d._ipython_key_completions_() == []


def test_other_handles_go_on_and_have_its_locks(shop: Shop) -> None:
    with shop.open() as one:
        one["a"] = 1
        one.lock_item("a", duration=-1)
    other = shop.open()
    other["a"] = 2
    assert not other.locks
    with pytest.raises(ClosedError):
        one["a"]


def test_what_is_closed_while_it_is_read_ends_with_a_typed_error(shop: Shop) -> None:
    d = shop.open()
    d.update({f"k{i}": "x" * 9000 for i in range(600)})
    iterator, section = iter(d.items()), d.lock("a")
    next(iterator)
    d.close()
    with pytest.raises(RemoteDictError):
        section.__enter__()
    with suppress(RemoteDictError):
        assert len(list(iterator)) == 599


def test_a_section_whose_handle_is_closed_inside_ends(m: RemoteDict) -> None:
    with m.lock("a"):
        m.close()


# -- forking ----------------------------------------------------------------------------------


def in_child(act: Callable[[], Any]) -> None:
    """Do `act` in a forked child; what fails there fails here."""
    readable, writable = os.pipe()
    with warnings.catch_warnings():
        # A fork of a process with threads is what users do, and what is tested here.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.register(signal.SIGALRM, file=writable, all_threads=True, chain=True)
        signal.alarm(HANG // 2)
        try:
            act()
        except BaseException:  # noqa: BLE001 - the parent shows it
            os.write(writable, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as end:
        said = end.read()
    status = os.waitpid(child, 0)[1]
    assert not said, said
    assert status == 0, "the child hung" if status == signal.SIGALRM else f"status {status}"


@forks
def test_parent_and_child_both_go_on(d: RemoteDict) -> None:
    d.update(a=1, own="x" * 9000)

    def child() -> None:
        assert d["a"] == 1
        assert d["own"] == "x" * 9000
        d["child"] = os.getpid()
        assert d["a", "child"] == [1, os.getpid()]

    in_child(child)
    assert d["a"] == 1
    d["parent"] = 2
    if not isinstance(d, MemoryDictionary):  # a child has a copy of the memory
        assert list(d) == ["a", "own", "child", "parent"]
    else:
        assert list(d) == ["a", "own", "parent"]


@forks
def test_a_child_does_not_hold_its_parents_locks(d: RemoteDict) -> None:
    d["n"] = 0
    d.lock_item("n", duration=-1)

    def child() -> None:
        assert not d.locks["n"].mine
        with pytest.raises(LockNotHeldError):
            d.unlock_item("n")
        with pytest.raises(ItemLockedError):
            d["n"] = 1
        d.close()

    in_child(child)
    assert d.locks["n"].mine
    d["n"] = 2
    d.unlock_item("n")


@forks
def test_a_child_leaves_its_parents_critical_section_alone(d: RemoteDict) -> None:
    d["n"] = 0
    section = d.lock("n")
    section.__enter__()
    in_child(lambda: section.__exit__(None, None, None))
    assert d.locks["n"].mine
    d["n"] = 1
    section.__exit__(None, None, None)
    assert not d.locks


@forks
def test_a_child_goes_on_with_what_its_parent_had_begun(d: RemoteDict) -> None:
    model = {f"k{i:03}": i for i in range(600)}
    d.update(model)
    items, keys, section = iter(d.items()), iter(d), d.lock("k000")
    next(items)

    def child() -> None:
        assert list(keys) == list(model)
        with section:
            d["k000"] = 5
        with suppress(RemoteDictError):  # it may say that it is the parent's
            assert [*items] == [*model.items()][1:]

    in_child(child)
    assert [*items] == [*model.items()][1:]


@forks
def test_a_fork_in_the_midst_of_other_threads_work_is_harmless(d: RemoteDict) -> None:
    stop = threading.Event()

    def hammer(number: int) -> None:
        i = 0
        while not stop.is_set():
            d[f"t{number}"] = i
            assert d[f"t{number}"] == i
            i += 1
            stop.wait(0.01)  # else a child's one write waits its turn for long

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(5):
            in_child(lambda number=number: d.update({f"c{number}": number, "pid": os.getpid()}))
    finally:
        stop.set()
        for thread in threads:
            thread.join(HANG)
    if not isinstance(d, MemoryDictionary):
        assert {f"c{number}" for number in range(5)} <= d.keys()


# -- pickling ---------------------------------------------------------------------------------

READ = "import pickle, sys; d = pickle.load(sys.stdin.buffer); print(d['n'])"


def elsewhere(
    code: str, stdin: bytes = b"", *args: str, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run `code` in a process of its own, which knows of no account but that of `environment`."""
    known = {key: value for key, value in os.environ.items() if key != ENVIRONMENT_VARIABLE}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *args],
        input=stdin,
        capture_output=True,
        env=known | environment,
        timeout=HANG,
        check=False,
    )


def test_a_pickle_is_a_handle_on_the_same_dictionary(d: RemoteDict, monkeypatch, azurite) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, azurite.connection_string)
    d["n"] = 1
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pickle.loads(pickle.dumps(d, protocol)) as other:
            assert type(other) is type(d)
            other["n"] += 1
    assert d["n"] == 2 + pickle.HIGHEST_PROTOCOL
    assert repr(other).split(";")[0] == repr(d).split(";")[0]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda d: copy.deepcopy([d])[0]])
def test_a_duplicate_is_another_handle_that_needs_nothing(
    d: RemoteDict, monkeypatch: pytest.MonkeyPatch, duplicate: Callable[[Any], Any]
) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    d.lock_item("n")
    with duplicate(d) as other:
        with pytest.raises(ItemLockedError):
            other["n"] = 1
        other["m"] = 1
    assert d == {"m": 1}


def test_options_travel_but_locks_do_not() -> None:
    with MemoryDictionary("options", author="me", inline_bytes=0) as d:
        d.lock_item("a")
        with pickle.loads(pickle.dumps(d)) as other:
            assert other._session.options == d._session.options
            assert not other.locks["a"].mine
            assert other.locks["a"].author == "me"


def test_a_pickle_has_no_secrets(azure: RemoteDict) -> None:
    key = ACCOUNT_KEY.encode()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for thing in (azure, azure.keys(), azure._session, [azure]):
            assert key not in pickle.dumps(thing, protocol)
            assert b"AccountKey" not in pickle.dumps(thing, protocol)
    for shown in (azure, azure._session.place, azure._session.options, azure._session):
        assert ACCOUNT_KEY not in repr(shown)
    assert ACCOUNT_KEY not in azure._repr_html_()


def test_a_pickle_reopens_in_a_worker_from_the_environment(
    azure: RemoteDict, azurite: Azurite
) -> None:
    azure["n"] = 42
    worker = elsewhere(
        READ, pickle.dumps(azure), **{ENVIRONMENT_VARIABLE: azurite.connection_string}
    )
    assert worker.stdout.strip() == b"42", worker.stderr.decode()


def test_a_spawned_process_takes_a_handle_as_an_argument(
    azure: RemoteDict, azurite: Azurite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, azurite.connection_string)
    process = multiprocessing.get_context("spawn").Process(target=azure.update, args=({"n": 1},))
    process.start()
    process.join(HANG)
    assert process.exitcode == 0
    assert azure["n"] == 1


def test_without_credentials_a_worker_hears_what_is_missing(azure: RemoteDict) -> None:
    azure["n"] = 42
    worker = elsewhere(READ, pickle.dumps(azure))
    for words in (b"CredentialsError", ENVIRONMENT_VARIABLE.encode(), b"pickle_credentials=True"):
        assert words in worker.stderr
    other = (
        "DefaultEndpointsProtocol=https;AccountName=other;AccountKey=c2VjcmV0;"
        "EndpointSuffix=core.windows.net"
    )
    worker = elsewhere(READ, pickle.dumps(azure), **{ENVIRONMENT_VARIABLE: other})
    for words in (b"CredentialsError", b"https://other.blob.core.windows.net", b"127.0.0.1"):
        assert words in worker.stderr
    assert b"c2VjcmV0" not in worker.stderr


def test_a_handle_without_credentials_still_has_a_repr(
    azure: RemoteDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    other = pickle.loads(pickle.dumps(azure))
    assert "CredentialsError" in repr(other)
    assert "CredentialsError" in other._repr_html_()
    with pytest.raises(CredentialsError, match=ENVIRONMENT_VARIABLE):
        len(other)
    other.close()


def test_credentials_travel_when_asked_to(azurite: Azurite) -> None:
    with AzureDictionary(
        azurite.connection_string, f"t{uuid.uuid4().hex}", pickle_credentials=True
    ) as d:
        d["n"] = 42
        assert ACCOUNT_KEY.encode() in pickle.dumps(d)
        worker = elsewhere(READ, pickle.dumps(d))
    assert worker.stdout.strip() == b"42", worker.stderr.decode()


def test_a_stored_function_that_mentions_the_dictionary_does_not_publish_its_key(
    azure: RemoteDict, azurite: Azurite
) -> None:
    script = """
import os, sys, cloudpickle
from remotedict.azure import AzureDictionary
d = AzureDictionary(container_name=sys.argv[1])
d["n"] = 42
d["f"] = function = lambda: d["n"] + 1
sys.stdout.buffer.write(cloudpickle.dumps(function))
"""
    environment = {ENVIRONMENT_VARIABLE: azurite.connection_string}
    worker = elsewhere(script, b"", azure._session.place.container, **environment)
    assert worker.stdout, worker.stderr.decode()
    assert ACCOUNT_KEY.encode() not in worker.stdout
    for info in azure._engine.backend.list(""):
        assert ACCOUNT_KEY.encode() not in bytes(azure._engine.backend.get(info.name).data)
    reader = elsewhere(
        "import pickle, sys; print(pickle.load(sys.stdin.buffer)['f']())",
        pickle.dumps(azure),
        **environment,
    )
    assert reader.stdout.strip() == b"43", reader.stderr.decode()


def test_a_memory_dictionary_in_another_process_says_where_it_lives(m: RemoteDict) -> None:
    m["n"] = 1
    worker = elsewhere(READ, pickle.dumps(m))
    assert b"lives in the process that made it" in worker.stderr
    assert b"StoreUnavailableError" in worker.stderr


def test_a_local_dictionary_travels_whatever_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with LocalDictionary("data") as d:
        d["n"] = 42
        monkeypatch.chdir("/")
        assert d["n"] == 42
        assert elsewhere(READ, pickle.dumps(d)).stdout.strip() == b"42"


# -- showing ----------------------------------------------------------------------------------


@pytest.fixture
def silent(azurite: Azurite) -> Iterator[RemoteDict]:
    """A handle whose server takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        d = AzureDictionary(azurite.connection_string, f"t{uuid.uuid4().hex}")
        place = d._session.place
        d._session.place = replace(place, account_url=f"http://127.0.0.1:{port}/nobody")
        d._session.forget_parts()
        yield d
    d.close()


def test_a_repr_does_not_wait_for_a_server_that_never_answers(silent: RemoteDict) -> None:
    assert dictionary._REPR_SECONDS <= 2
    assert silent._engine.backend.timeout >= HANG / 2

    def show(how: Callable[[RemoteDict], str]) -> None:
        begun = time.monotonic()
        assert "unknown" in how(silent)
        assert time.monotonic() - begun < HANG / 4  # as the machine may be busy

    show(repr)
    show(lambda d: d._repr_html_())
    with ThreadPoolExecutor(1) as pool:
        pool.submit(show, repr).result(HANG)


def test_a_repr_shows_what_was_last_seen_when_the_store_is_gone(
    d: RemoteDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    d["a"] = 1

    def gone(*_: Any, **__: Any) -> Any:
        raise StoreUnavailableError("no network")

    monkeypatch.setattr(d._engine.backend.raw, "get", gone)
    assert "Num elements: 1" in repr(d)
    assert "doesn't answer" in repr(d)
    assert "<td" in d._repr_html_()
    assert d._ipython_key_completions_() == ["a"]
    with pytest.raises(StoreUnavailableError):
        d["a"]


def test_a_repr_never_raises(m: RemoteDict, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(m._engine.backend.raw, "get", broken)
    for shown in (repr(m), m._repr_html_()):
        assert "Memory" in shown


def test_a_notebook_shows_facts_without_reading_a_value(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.open().update(
        arr=np.zeros((100, 30, 2)),
        df=pd.DataFrame({"a": range(5000), "b": 1.5}),
        text="x" * 9000,
        n=42,
    )
    d = shop.open(cache_bytes=0, inline_bytes=0)
    d["n"] = 43
    seen = requests(d, monkeypatch)
    shown = d._repr_html_()
    assert len(seen) == 1
    assert seen[0] == d._engine.layout.index
    for words in ("arr", "ndarray", "100 x 30 x 2", "float64", "47.0 KiB", "DataFrame"):
        assert words in shown
    for words in ("5000 x 2", "str", "int", "0 s", "<td style='text-align:left'>2</td>"):
        assert words in shown
    assert "Num elements: 4" in shown


def test_a_notebook_shows_a_few_keys_and_counts_the_rest(m: RemoteDict) -> None:
    m.update({f"key{i:05}": i for i in range(1500)})
    shown = m._repr_html_()
    assert shown.count("<tr>") == 21
    assert "1,480 more" in shown
    assert "1,500" in shown


def test_what_a_notebook_shows_is_escaped() -> None:
    evil = "<script>alert('&\"')</script>"
    Evil = type(evil, (), {})  # noqa: N806 - a class
    Evil.__module__ = "builtins"
    Evil.shape, Evil.dtype = (1, 2), evil
    with MemoryDictionary(evil, folder_name="a'b&c") as d:
        d[evil] = 1
        d["evil"] = pd.Series([1]).rename(evil)
        d["type"] = Evil()
        shown = d._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    assert "a'b&c" not in shown


def test_keys_are_completed(m: RemoteDict) -> None:
    m.update({f"k{i}": i for i in range(3)})
    assert m._ipython_key_completions_() == ["k0", "k1", "k2"]


# -- progress and logging ---------------------------------------------------------------------


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("progress", "terminal", "long", "shows"),
    [
        (True, False, True, True),
        (True, False, False, False),
        (False, True, True, False),
        (None, True, True, True),
        (None, True, False, False),
        (None, False, True, False),
    ],
)
def test_a_bar_is_shown_for_long_batches_only(
    monkeypatch: pytest.MonkeyPatch, progress: bool | None, terminal: bool, long: bool, shows: bool
) -> None:
    stderr = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    if long:  # a second is over at once
        monkeypatch.setattr("remotedict.features.progress._DELAY_SECONDS", 0)
    with MemoryDictionary(progress=progress, inline_bytes=0) as d:
        d.update({str(i): i for i in range(20)})
        d.copy()
        assert d[["1", "2"]] == [1, 2]
    assert ("writing" in stderr.getvalue()) == shows
    assert ("reading" in stderr.getvalue()) == shows


@pytest.mark.parametrize("progress", [True, None, False])
def test_one_key_never_shows_a_bar(monkeypatch: pytest.MonkeyPatch, progress: bool | None) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("remotedict.features.progress._DELAY_SECONDS", 0)
    with MemoryDictionary(progress=progress) as d:
        d["a"] = 1
        assert d["a"] == 1
        assert sys.stderr.getvalue() == ""


FORCE = """
import logging
{setup}
from remotedict import MemoryDictionary
d, other = MemoryDictionary("x"), MemoryDictionary("x")
d.lock_item("a")
other.unlock_item("a", force=True)
d.close()
"""


def test_nothing_is_logged_unless_asked_for() -> None:
    quiet = elsewhere(FORCE.format(setup=""))
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, b"", b"")
    asked = elsewhere(FORCE.format(setup="logging.basicConfig()"))
    assert b"WARNING:remotedict:forced the lock" in asked.stderr


def test_a_conflict_is_logged_for_those_who_debug(
    m: RemoteDict, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with copy.copy(m) as other, caplog.at_level(logging.DEBUG, "remotedict"):
        m["a"] = 1
        assert other["a"] == 1
        m["a"] = 2  # `other` doesn't know of this commit
        other["a"] = 3
    assert "another writer" in caplog.text
    assert {record.name for record in caplog.records} == {"remotedict"}


# -- staleness --------------------------------------------------------------------------------


def test_max_staleness_spares_requests_but_never_hides_ones_own_writes(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shop.open()
    other.update(a=1, b=2)
    d = shop.open(max_staleness=1000)
    assert d["a"] == 1
    seen = requests(d, monkeypatch)
    other["a"] = 5
    assert (d["a"], d.get("z"), len(d), "b" in d, list(d)) == (1, None, 2, True, ["a", "b"])
    assert d.copy() == {"a": 1, "b": 2}
    assert d[["a", "b"]] == [1, 2]
    assert seen == []
    d["c"] = 3
    assert (d["c"], d["a"], list(d)) == (3, 5, ["a", "b", "c"])


def test_by_default_what_was_written_before_is_seen(shop: Shop) -> None:
    one, other = shop.open(), shop.open()
    for i in range(5):
        one["a"] = i
        assert (other["a"], other[["a"]], len(other)) == (i, [i], 1)
        del one["a"]
        assert "a" not in other


def test_staleness_ends() -> None:
    with MemoryDictionary("ends") as one:
        one["a"] = 1
        with MemoryDictionary("ends", max_staleness=1000) as other:
            one["a"] = 2
            assert other["a"] == 1
            other._engine.index.checked_at -= 1000
            assert other["a"] == 2
