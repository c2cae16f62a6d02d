"""Eight writers of one dictionary are killed (SIGKILL), one after the other, at random moments.

Afterwards each write that had returned is there, none is there in part, and the next one works.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import time
from typing import TYPE_CHECKING, Any

from campaigns.sites import site
from crew import crew_of
from workers import Where, change, token_of

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from campaigns.report import Report
    from crew import Crew
    from remotedict import RemoteDict

FULL, SMALL = 2000, 20
KINDS = ("local", "azure")
WRITERS = 8
REST = 0.1  # of a writer between two writes, at the most; seconds
MOMENTS = {"local": 0.03, "azure": 0.06}  # a kill comes within so many seconds of the last one


def run(kind: str, times: int, rng: random.Random, report: Report) -> None:
    """Kill `times` times."""
    # A child of a fork can't use obstore if its parent has: so this process doesn't fork on Azurite.
    with site(kind) as place, crew_of("forkserver" if kind == "azure" else "fork") as crew:
        where = place.fresh()
        with where.open() as d:
            writers = [Writer(number, where, crew, rng) for number in range(WRITERS)]
            for writer in writers:
                writer.begin()
            for _ in range(times):
                time.sleep(rng.uniform(0, MOMENTS[kind]))
                writer = rng.choice(writers)
                writer.kill(report)
                writer.check(d, report)
                writer.begin()
            for writer in writers:
                writer.kill(report)
            with where.open() as fresh:
                for handle in (d, fresh):
                    for writer in writers:
                        writer.check(handle, report)
                _check_count(fresh, writers, report)
                fresh["after"] = "all"
                report.check(d["after"] == "all", "a write after all kills isn't there")
        if kind == "local":
            report.did("torn temporary files", len([*_root(where).rglob("~tmp-*")]))


class Writer:
    """A place in the crew: one process after the other, and what is known of their writes."""

    def __init__(self, number: int, where: Where, crew: Crew, rng: random.Random) -> None:
        self._number = number
        self._where = where
        self._crew = crew
        self._rng = rng
        self._life = 0
        # For each key the tokens that its value may have: that of the last acknowledged write,
        # and those of later ones that were begun. None: it needn't be there.
        self._possible: dict[str, list[Any]] = {}
        self.counted = self.maybe_counted = 0

    def begin(self) -> None:
        """Start the next process."""
        self._life += 1
        arguments = (self._where, self._number, self._life, self._rng.randrange(2**32))
        self._process, self._report = self._crew.start_with_report(write, *arguments)

    def kill(self, report: Report) -> None:
        """Kill it, and hear what it had said until then."""
        self._crew.kill(self._process)
        lived = within = False
        with contextlib.suppress(EOFError), self._report:
            while True:
                what, token, keys = self._report.recv()
                lived = True
                within = what == "begun"
                report.did("acknowledged writes", what == "done")
                if keys == ("count",):
                    self.counted += what == "done"
                    self.maybe_counted += (what == "begun") - (what == "done")
                    continue
                for key in keys:
                    if what == "begun":
                        self._possible.setdefault(key, [None]).append(token)
                    else:
                        self._possible[key] = [token]
        report.did("kills")
        report.did("while it opened", not lived)
        report.did("within a write", within)

    def check(self, d: RemoteDict, report: Report) -> None:
        """See that this writer's keys have what they may have."""
        now = d.snapshot()
        keys = now.glob(f"{self._number}-*")
        values = dict(zip(keys, now[keys], strict=True))
        who = f"writer {self._number}, life {self._life}:"
        for key, tokens in self._possible.items():
            found = token_of(values[key]) if key in values else None
            report.check(found in tokens, f"{who} {key!r} has {found}, not one of {tokens}")
        strange = values.keys() - self._possible.keys()
        report.check(not strange, f"{who} nobody has written {strange}")
        for pair in ("xy", "pq"):
            left, right = (values.get(f"{self._number}-{key}") for key in pair)
            whole = (left is None) == (right is None) and (
                left is None or token_of(left) == token_of(right)
            )
            report.check(whole, f"{who} half of {pair}: {left!r:.80} and {right!r:.80}")


def _check_count(d: RemoteDict, writers: list[Writer], report: Report) -> None:
    least = sum(writer.counted for writer in writers)
    most = least + sum(writer.maybe_counted for writer in writers)
    count = d.get("count", 0)
    report.check(least <= count <= most, f"counted to {count}, not {least} to {most}")


def write(where: Where, number: int, life: int, seed: int, report: Connection) -> None:
    """Say what will be written, write it, and say that it was: until the end."""
    os.nice(10)  # who kills goes first
    rng = random.Random(seed)
    d = where.open()
    report.send(("ready", None, ()))
    for n in itertools.count():
        time.sleep(rng.uniform(0, REST))
        token = ("life", life, n)
        if rng.random() < 0.1:
            report.send(("begun", token, ("count",)))
            d.modify("count", lambda count: count + 1, default=0)
            report.send(("done", token, ("count",)))
            continue
        new = {f"{number}-{key}": value for key, value in change(rng, token).items()}
        report.send(("begun", token, tuple(new)))
        if n % 3:
            d[[*new]] = [*new.values()]
        else:
            d.update(new)
        report.send(("done", token, tuple(new)))


def _root(where: Where) -> Any:
    from pathlib import Path

    return Path(where.place)
