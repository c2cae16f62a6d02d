"""Holders of locks are stopped (SIGSTOP) past their leases, superseded, and let go on (SIGCONT).

Nothing that a holder wrote before it learnt of that may land after the takeover.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from campaigns.sites import site
from crew import HANG, crew_of, received
from remotedict import ItemLockedError, LockLostError
from remotedict.features import locks

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from campaigns.report import Report
    from remotedict import RemoteDict
    from workers import Where

FULL, SMALL = 200, 6
KINDS = ("local", "azure")
SMALL_KINDS = ("local",)  # on Azure a lease lasts 15 s
HOLDERS = 4
KEYS = {"local": 5, "azure": 12}  # of each holder
LEASE = {"local": 1.0, "azure": 15.0}
TOLD = 30.0
"""In so many seconds a holder that goes on must have been told of each of its losses."""


def run(kind: str, times: int, rng: random.Random, report: Report) -> None:
    """Take `times` locks over."""
    locks.LEASE_SECONDS = LEASE[kind]
    with site(kind) as place, crew_of("forkserver") as crew, contextlib.ExitStack() as pipes:
        where = place.fresh()
        d = pipes.enter_context(where.open(author="taker"))
        holders = []
        for number in range(HOLDERS):
            orders, ours = crew.context.Pipe(duplex=False)
            process, said = crew.start_with_report(
                hold, where, number, KEYS[kind], LEASE[kind], orders
            )
            pipes.enter_context(orders)
            holders.append((process.pid, said, pipes.enter_context(ours)))
        while report.counts["takeovers"] < times:
            _take_all_over(d, where, kind, holders, rng, report)
        for _, _, orders in holders:
            orders.send("end")


def _take_all_over(
    d: RemoteDict, where: Where, kind: str, holders: list[Any], rng: random.Random, report: Report
) -> None:
    taken: dict[str, int] = {}
    keys: list[str] = []
    stopped: list[int] = []
    try:
        for pid, said, orders in holders:
            orders.send("lock")
            keys += received(said)
            time.sleep(rng.uniform(0, 0.05))  # the random moment
            _stop(pid, where, kind, report)
            stopped.append(pid)
        for key in rng.sample(keys, len(keys)):
            _take_over(d, key, rng.random() < 0.5, report)
            taken[key] = d.version(key)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    for _, said, orders in holders:
        if not said.poll(TOLD):
            orders.send("enough")
        told = received(said)
        report.did("told of the loss", sum(error == "LockLostError" for error in told.values()))
        report.check(
            set(told.values()) == {"LockLostError"}, f"a holder whose locks were lost saw {told}"
        )
    for key in keys:
        report.did("takeovers")
        now = (d.version(key), d[key])
        report.check(now == (taken[key], "taken"), f"{key!r} is {now} after it was taken over")
        if lock := d.locks.get(key):
            report.check(lock.mine, f"the taker's lock on {key!r} is another's")
            d.unlock_item(key, force=not lock.mine)


def _take_over(d: RemoteDict, key: str, by_lock: bool, report: Report) -> None:
    """Take a lock over: by a lock of one's own, or by a write alone."""
    deadline = time.monotonic() + HANG
    if by_lock:
        d.lock_item(key, -1, timeout=HANG)
        report.did("by a lock")
    while True:
        try:
            d[key] = "taken"
        except ItemLockedError:
            assert time.monotonic() < deadline, f"{key!r} stays locked"
            time.sleep(0.1)
        else:
            return


def _stop(pid: int, where: Where, kind: str, report: Report) -> None:
    """Stop a process; in a local folder not while it has a file lock, for which all would wait."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.01)  # a signal isn't delivered at once
        if kind != "local" or all(map(_is_free, Path(where.place).rglob("~lock"))):
            return
        report.did("stopped under a file lock, and let go on")
        os.kill(pid, signal.SIGCONT)
        time.sleep(random.uniform(0.01, 0.1))  # it needs some time to leave it


def _is_free(file: Path) -> bool:
    try:
        with filelock.FileLock(file, timeout=0.2, poll_interval=0.01):  # the others may have it
            return True
    except filelock.Timeout:
        return False


def hold(
    where: Where, number: int, count: int, lease: float, orders: Connection, report: Connection
) -> None:
    """Lock keys when told, and write them again and again until all are lost; say how."""
    locks.LEASE_SECONDS = lease
    keys = [f"{number}-{n}" for n in range(count)]
    d = where.open(author=f"holder {number}")
    while (order := orders.recv()) != "end":
        if order != "lock":
            continue  # it was told of all in that moment
        for key in keys:
            d.lock_item(key, -1)
        report.send(keys)
        told: dict[str, str] = {}
        n = 0
        while len(told) < count and not orders.poll():
            n += 1
            for key in keys:
                if key not in told:
                    try:
                        d[key] = number, n
                    except LockLostError as exc:
                        told[key] = type(exc).__name__
                    except Exception as exc:  # noqa: BLE001 - it is told
                        told[key] = repr(exc)
        report.send(dict.fromkeys(keys, "nothing") | told)
