"""A process forks again and again while its threads use its open handles.

Child and parent both go on with them, each reads what it should, and the child ends.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from campaigns.sites import site
from crew import HANG, crew_of, received

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from campaigns.report import Report
    from remotedict import RemoteDict
    from workers import Where

FULL, SMALL = 500, 6
KINDS = ("local", "azure")
SIZES = {f"k{n}": n * n * 700 for n in range(12)}  # from inline to 85 kB
THREADS = 4
REST = 0.01  # of a thread between two rounds, at the most; seconds


def run(kind: str, times: int, rng: random.Random, report: Report) -> None:
    """Fork `times` times."""
    with site(kind) as place, crew_of("forkserver") as crew:
        where = place.fresh()
        process, told = crew.start_with_report(work_and_fork, where, times, rng.randrange(2**32))
        while (said := received(told)) is not None:
            what, text = said
            if what == "wrong":
                report.wrong(text)
            else:
                report.did(text, what)
        crew.join(process)
        with where.open() as d:
            report.check(d.locks == {}, f"locks stay behind: {d.locks}")
            last = {key: value[1] for key, value in d.items() if key.startswith("child")}
            report.check(set(last.values()) == {"last"}, f"not the last of each child: {last}")


def body(key: str) -> Any:
    """Return what is stored under a key that nobody changes."""
    return key, key * (SIZES[key] // len(key))


def work_and_fork(where: Where, times: int, seed: int, report: Connection) -> None:
    """Use two handles in several threads, and fork."""
    faulthandler.enable()
    rng = random.Random(seed)
    handles = [where.open(cache_bytes=0), where.open()]
    handles[0].update({key: body(key) for key in SIZES})
    users = [User(handles[me % 2], me, seed) for me in range(THREADS)]
    for user in users:
        user.start()
    for n in range(times):
        time.sleep(rng.uniform(0, 0.01))  # the random moment
        before = sum(user.count for user in users)
        # By the main thread, and by one that isn't.
        found = fork(handles, n) if n % 2 else _in_thread(fork, handles, n)
        report.send((1, "forks"))
        report.send((sum(user.count for user in users) - before, "operations meanwhile"))
        if found:
            report.send(("wrong", f"child {n}: {found}"))
    for user in users:
        user.stop.set()
    for user in users:
        user.join(HANG)
        if user.wrong or user.is_alive():
            report.send(("wrong", f"a thread of the parent: {user.wrong or 'it hangs'}"))
    for handle in handles:
        handle.close()
    report.send(None)


def _in_thread(act: Callable[..., Any], *args: Any) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(act, *args).result()


class User(threading.Thread):
    """A thread of the parent; `wrong` is what ended it."""

    def __init__(self, d: RemoteDict, me: int, seed: int) -> None:
        super().__init__(daemon=True)
        self._d, self._me, self._rng = d, me, random.Random(seed + me)
        self.stop = threading.Event()
        self.count = 0
        self.wrong = ""

    def run(self) -> None:
        """Work until told to stop."""
        try:
            while not self.stop.is_set():
                use_once(self._d, f"thread-{self._me}", self.count, self._rng)
                self.count += 1
                time.sleep(self._rng.uniform(0, REST))
        except BaseException:  # noqa: BLE001 - it is told
            self.wrong = traceback.format_exc()


def use_once(d: RemoteDict, own: str, n: int, rng: random.Random) -> None:
    """Read what nobody changes; now and then write what nobody else does."""
    for key in rng.sample(sorted(SIZES), 3):
        found = d[key]
        assert found == body(key), f"{key!r} has {found!r:.100}"
    if n % 4 == 0:
        value = own, n, "x" * rng.choice([10, 5_000])
        d[own] = value
        assert d[own] == value
    if n % 16 == 0:
        with d.lock(f"{own}-lock"):
            d[f"{own}-lock"] = own, n


def live(handles: list[RemoteDict], n: int) -> None:
    """Use what the parent has opened."""
    rng = random.Random(n)
    own = f"child-{n % 7}"
    for d in handles:
        use_once(d, own, n, rng)
        use_once(d, own, 1, rng)
    for key in (own, f"{own}-lock"):
        handles[n % 2][key] = own, "last"
        assert d[key] == (own, "last")


def fork(handles: list[RemoteDict], n: int) -> str:
    """Let a forked child live; return what went wrong."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            live(handles, n)
        except BaseException:  # noqa: BLE001 - it is told
            os.write(theirs, traceback.format_exc()[-3000:].encode())
            os._exit(1)
        os._exit(0)
    os.close(theirs)
    deadline = time.monotonic() + HANG / 2
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGABRT)  # it prints where all its threads are
            os.waitpid(child, 0)
            os.close(ours)
            return "hangs: see stderr"
        time.sleep(0.002)
    with os.fdopen(ours, "rb") as pipe:
        said = pipe.read().decode()
    return said or ("" if ended[1] == 0 else f"ended with {ended[1]}")
