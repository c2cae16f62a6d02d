"""What the processes of `test_processes` do: a module of its own, so that "spawn" can import it."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from remotedict import (
    ItemLockedError,
    LocalDictionary,
    LockLostError,
    RemoteDictError,
    VersionConflictError,
)
from remotedict.azure import AzureDictionary

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from remotedict import RemoteDict


@dataclass(frozen=True)
class Where:
    """Where the dictionary of a test is: what its processes open."""

    kind: str
    place: str
    connection_string: str | None = None
    folder: str = "default"

    def open(self, **options: Any) -> RemoteDict:
        """Return a handle of this process's own."""
        if self.kind == "azure":
            return AzureDictionary(self.connection_string, self.place, self.folder, **options)
        return LocalDictionary(self.place, self.folder, **options)


# -- many writers, one dictionary -----------------------------------------------------------


def write_many(where: Where, barrier: Any, me: int, count: int) -> None:
    with where.open() as d:
        barrier.wait()
        for i in range(count):
            d[f"{me}-{i}"] = me, i


def write_pairs(where: Where, barrier: Any, stop: Any) -> None:
    with where.open() as d:
        barrier.wait()
        for n in itertools.count(1):
            d[["x", "y"]] = n, n
            if stop.is_set():
                return


def read_pairs(where: Where, barrier: Any, stop: Any, report: Connection) -> None:
    """Poll the pair until told to stop; report how many different ones were seen, and the torn."""
    with where.open() as d:
        barrier.wait()
        seen, torn, last = 0, [], 0
        while not stop.is_set():
            x, y = d[["x", "y"]]
            if x != y or x < last:
                torn.append((last, x, y))
            seen += x != last
            last = x
        report.send((seen, torn))


# -- a counter under a lock -----------------------------------------------------------------


def count_up(where: Where, barrier: Any, rounds: int, duration: float | None) -> None:
    with where.open() as d:
        barrier.wait()
        for _ in range(rounds):
            with d.lock("n", duration=duration):
                d["n"] += 1


def count_up_and_stick(
    where: Where, barrier: Any, rounds: int, duration: float | None, report: Connection
) -> None:
    """Count up, report each round, and get stuck in the critical section of the last one."""
    d = where.open()
    barrier.wait()
    for done in range(1, rounds + 1):
        with d.lock("n", duration=duration):
            n = d["n"]
            if done == rounds:
                # Half of a change that takes two writes: the other half never comes.
                d["n"] = n + 1
                report.send((done, n + 1))
                threading.Event().wait()
            d["n"] = n + 1
            report.send((done, n + 1))


# -- a writer that is killed ----------------------------------------------------------------


def change(rng: random.Random, token: Any) -> dict[str, Any]:
    """Return what to write in one commit: values large and small, alone and in pairs.

    Each value carries the token that tells which write it is from.
    """
    kind = rng.randrange(6)
    if kind == 0:
        return {"x": token, "y": token}
    if kind == 1:  # two values that share a pack
        filling = np.arange(2_000) + rng.randrange(1000)
        return {"p": (token, filling), "q": (token, filling)}
    if kind == 2:  # one that has a blob of its own
        return {f"large-{rng.randrange(4)}": (token, rng.randbytes(200_000))}
    if kind == 3:  # one that fills the index, so that it rolls over and its segments merge
        return {f"medium-{rng.randrange(20)}": (token, rng.randbytes(3_000))}
    return {f"small-{rng.randrange(40)}": token}


def token_of(value: Any) -> Any:
    """Return which write a value is from."""
    return value[0] if len(value) == 2 and isinstance(value[0], tuple) else value


def write_until_killed(where: Where, life: int, seed: int, report: Connection) -> None:
    """Say what will be written, write it, and say that it was: until the end."""
    rng = random.Random(seed)
    d = where.open()
    report.send(("ready", None, ()))
    for n in itertools.count():
        token = ("life", life, n)
        new = change(rng, token)
        report.send(("begun", token, tuple(new)))
        if len(new) == 1:
            [(key, value)] = new.items()
            d[key] = value
        else:
            d[list(new)] = list(new.values())
        report.send(("done", token, tuple(new)))


# -- a handle that is forked ----------------------------------------------------------------


def use_inherited(d: RemoteDict, me: int, report: Connection) -> None:
    """Read and write through the handle of the parent, which uses it at the same time."""
    for i in range(25):
        key, value = f"child-{me}-{i}", (me, i, "x" * 10 * i)
        d[key] = value
        assert d[key] == value
        large = np.full(5_000, me * 1000 + i)
        d[f"child-{me}-large"] = large
        assert (d[f"child-{me}-large"] == large).all()
        assert d["from before"] == "the fork"
    report.send(me)


def try_lock_of_parent(d: RemoteDict, report: Connection) -> None:
    """Report the errors that a child gets which takes its parent's lock for its own."""
    errors = []
    for act in (
        lambda: d.__setitem__("held", "by the child"),
        lambda: d.__delitem__("held"),
        lambda: d.unlock_item("held"),
        lambda: d.lock_item("held", wait=False),
    ):
        try:
            act()
        except RemoteDictError as exc:
            errors.append(type(exc).__name__)
        else:
            errors.append("none")
    d.close()
    report.send(errors)


def fork_inside_lock(where: Where, report: Connection) -> None:
    """Fork in a critical section; the child leaves it by an exception, the parent goes on."""
    d = where.open()
    try:
        with d.lock("k", duration=60):
            d["k"] = 1
            child = os.fork()
            if child == 0:
                raise SystemExit  # noqa: TRY301 - so that it unwinds
            ended = status_of(child)
            d["k"] = 2  # a lost lock would say so here
            report.send((ended, d.locks["k"].mine))
    except SystemExit:
        os._exit(0)


def status_of(child: int) -> str:
    """Return how a forked child ended, or that it hung and was killed."""
    for _ in range(200):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return f"ended with {status}"
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hung"


# -- a holder that is stopped ---------------------------------------------------------------


def hold_and_write(
    where: Where, duration: float, writes_on: bool, orders: Connection, report: Connection
) -> None:
    """Lock a key and write it until that fails, at once or when told; then report the failure."""
    d = where.open()
    d.lock_item("k", duration=duration)
    d["k"] = 0
    report.send("locked")
    if not writes_on:
        orders.recv()
    failure = None
    try:
        for n in itertools.count(1):
            d["k"] = n
    except LockLostError as exc:
        failure = type(exc).__name__
    try:
        d["k"] = "again"
    except ItemLockedError as exc:
        after = type(exc).__name__
    else:
        after = "written"
    report.send((failure, after))


# -- a writer that is interrupted -----------------------------------------------------------


def write_interrupted(where: Where, rounds: int, report: Connection) -> None:
    """Be interrupted in the middle of writes; report after each whether all went on as before."""
    d = where.open()
    d["n"] = 0
    final: dict[str, Any] = {}
    for round_ in range(rounds):
        wrong = ""
        counted = 0
        try:
            report.send("ready")
            for n in itertools.count():
                value = round_, n
                d["small"] = value
                d[["x", "y"]] = value, value
                d["large"] = np.full(50_000, n)
                with d.lock("n"):
                    d["n"] += 1
                    counted += 1
        except KeyboardInterrupt:
            pass
        # The very next operations: they come after whatever the interrupt left under way.
        final = {"small": (round_, "last"), "x": (round_, "last"), "y": (round_, "last")}
        d["small"] = final["small"]
        d[["x", "y"]] = final["x"], final["y"]
        d["large"] = np.full(50_000, -round_)
        if d[["small", "x", "y"]] != list(final.values()) or (d["large"] != -round_).any():
            wrong = f"read {d[['small', 'x', 'y']]} after writing {final}"
        with d.lock("n", timeout=60):
            d["n"] += 1
        report.send((wrong, counted, final))
    # Lives on, so that nothing is unlocked by its end.
    threading.Event().wait()


class Trap:
    """A backend that interrupts the main thread while it waits for the n-th request."""

    def __init__(self, backend: Any, n: int) -> None:
        self._backend = backend
        self._left = n
        self._lock = threading.Lock()

    @property
    def sprung(self) -> bool:
        return self._left <= 0

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._backend, name)

        def trapped(*args: Any, **options: Any) -> Any:
            with self._lock:
                self._left -= 1
                now = self._left == 0
            if now:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                time.sleep(0.1)  # the interrupt is through before the request is
            return verb(*args, **options)

        return trapped if callable(verb) and name != "close" else verb


def interrupt_each_request(where: Where, report: Connection) -> None:
    """Interrupt one operation after the other at each of its requests; report what is wrong."""
    acts = {
        "set": lambda d: d.__setitem__("small", "interrupted"),
        "set large": lambda d: d.__setitem__("large", random.randbytes(100_000)),
        "set pair": lambda d: d.__setitem__(["x", "y"], ["interrupted"] * 2),
        "get": lambda d: d["there"],
        "pop": lambda d: d.pop("small", None),
        "section": count_in_section,
        "lock item": lambda d: (d.lock_item("n"), d.unlock_item("n")),
    }
    wrong, rounds = [], 0
    for name, act in acts.items():
        for n in itertools.count(1):
            rounds += 1
            d, other = where.open(), where.open()
            d.update({"n": 0, "there": random.randbytes(100_000), "small": 0})
            trap = Trap(d._engine.backend.raw, n)
            d._engine.backend.raw = trap
            try:
                act(d)
                time.sleep(0.15)  # for what goes on beside it
            except KeyboardInterrupt:
                pass
            if not trap.sprung:
                break
            try:
                d["small"] = d["x"] = n
                assert d[["small", "x"]] == [n, n]
                if name == "lock item" and "n" in d.locks and d.locks["n"].mine:
                    d.unlock_item("n")  # the interrupt came when it was locked already
                for handle in (d, other):
                    with handle.lock("n", timeout=10):  # less than a lease that was left behind
                        before = handle["n"]
                        handle["n"] = before + 1
                time.sleep(0.15)
                assert before <= 2
                assert other[["n", "small", "x"]] == [before + 1, n, n]
                deadline = time.monotonic() + 10  # what was interrupted is undone beside it
                while other.locks and time.monotonic() < deadline:
                    time.sleep(0.05)
                assert other.locks == {}
            except (AssertionError, RemoteDictError) as exc:
                wrong.append(f"{name}, request {n}: {type(exc).__name__}: {exc}")
            d.close()
            other.close()
    report.send((rounds, wrong))


def count_in_section(d: RemoteDict) -> None:
    with d.lock("n"):
        d["n"] += 1


def delay_submission(where: Where, report: Connection) -> None:
    """Interrupt a write that is slow to get in line, and write again; report what there is then."""
    d = where.open()
    d["k"] = "before"
    committer = d._engine.committer
    submit = committer.submit

    def slowly(request: Any) -> None:
        committer.submit = submit
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.3)
        submit(request)

    committer.submit = slowly
    try:
        d["k"] = "interrupted"
        time.sleep(1)
    except KeyboardInterrupt:
        pass
    d["k"] = "later"
    time.sleep(0.6)
    report.send(d["k"])


def write_alarmed(where: Where, rounds: int, seed: int, report: Connection) -> None:
    """Interrupt oneself by a timer, again and again; report what is wrong in the end."""
    rng = random.Random(seed)
    d = where.open()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    interrupted = 0
    for round_ in range(rounds):
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 4e-3))
            d["k"] = round_, 0
            assert d["k"] == (round_, 0)
            time.sleep(1)
        except KeyboardInterrupt:
            interrupted += 1
        d["k"] = round_, 1
        assert d["k"] == (round_, 1)
    report.send(interrupted)


# -- versions, events, transactions ---------------------------------------------------------


def save_optimistically(
    where: Where, barrier: Any, me: int, rounds: int, report: Connection
) -> None:
    """Save one key on the condition that nobody else has; report the versions won, and the losses."""
    won: dict[int, Any] = {}
    lost: list[tuple[str, int, int | None, int]] = []
    with where.open() as d:
        barrier.wait()
        for n in range(rounds):
            version = d.version("k") + 1
            try:
                assert d.put("k", (me, n), version=version) == version
            except VersionConflictError as exc:
                lost.append((exc.key, exc.expected, exc.provided, version))
            else:
                won[version] = me, n
    report.send((won, lost))


def write_shared(where: Where, barrier: Any, me: int, count: int) -> None:
    """Write keys that others write as well."""
    with where.open(author=f"writer-{me}") as d:
        barrier.wait()
        for n in range(count):
            d[f"k{(n + me) % 25}"] = me, n


def write_some_bulks(where: Where, barrier: Any, me: int, stop: Any, report: Connection) -> None:
    """Write until told to stop; report how many changes that made."""
    with where.open() as d:
        barrier.wait()
        changes = 0
        for n in itertools.count():
            keys = [f"{me}-{i}" for i in range(n % 4 + 1)]
            d[keys] = [n] * len(keys)
            changes += len(keys)
            if stop.is_set():
                report.send(changes)
                return


def watch_all(where: Where, barrier: Any, count: int, report: Connection) -> None:
    """Report the first changes since now, and how many more there are after the writers' end."""
    with where.open() as d:
        w = d.watch(poll=(0.01, 0.1))
        barrier.wait()
        report.send(list(itertools.islice(w, count)))
        barrier.wait()
        report.send(list(d.watch(since=count, timeout=0)))


def watch_until_killed(where: Where, since: Any, report: Connection) -> None:
    """Report each change as it comes: what is in the pipe when the process dies stays there."""
    for event in where.open().watch(since, poll=(0.01, 0.05)):
        report.send(event)


def count_up_by_modify(where: Where, barrier: Any, rounds: int) -> None:
    with where.open() as d:
        barrier.wait()
        for _ in range(rounds):
            d.modify("n", lambda n: n + 1, default=0)


def move_money(where: Where, barrier: Any, accounts: list[str], seed: int, rounds: int) -> None:
    rng = random.Random(seed)

    def move(t: Any) -> None:
        source, target = rng.sample(accounts, 2)
        amount = rng.randint(1, min(t[source], 50)) if t[source] else 0
        t[source] -= amount
        t[target] += amount

    with where.open() as d:
        barrier.wait()
        for _ in range(rounds):
            d.run(move)


def audit(where: Where, barrier: Any, accounts: list[str], stop: Any, report: Connection) -> None:
    """Add up all accounts in every way until told to stop; report the sums, and the states seen."""
    sums, seen = set(), set()
    with where.open() as d, where.open().mirror(poll=(0.01, 0.05)) as m:
        barrier.wait()
        while not stop.is_set():
            snapshot = d.snapshot()
            seen.add(snapshot.seq)
            sums.add(sum(snapshot[accounts]))
            sums.add(sum(m[accounts]))
            with d.transaction() as t:
                sums.add(sum(t[accounts]))
    report.send((sums, len(seen)))
