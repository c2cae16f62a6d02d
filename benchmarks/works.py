"""What is measured: one class for each row of the table.

A work is prepared once for each peer, over a line without delay. Each visit then first does the same
work untimed, so that connections are open, and then timed. Who reads is another process than who
writes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar

from lab import OLD, Sample

if TYPE_CHECKING:
    from lab import Lab, Process


@dataclass(frozen=True)
class Goal:
    """What is wanted of remotedict.

    Attributes
    ----------
    requests : int, optional
        No more requests than these, in the median visit: now and then there is upkeep beside.
    ratio : float, optional
        No more than so many times the time of `against`.
    against : str, optional
        A peer; the best of all by default.
    seconds, round_trips : float, optional
        No more than this.
    """

    requests: int | None = None
    ratio: float | None = None
    against: str | None = None
    seconds: float | None = None
    round_trips: float | None = None


BLOB_PEERS = ("obstore", "sdk", "adlfs", "minimalkv")
"""They list whatever blobs are in a container."""


class Work:
    """A row of the table, for one peer.

    Parameters
    ----------
    lab : Lab
        Where.
    peer : str
        Whose.
    many : int
        How many operations a visit times, if they are small.
    """

    title: ClassVar[str]
    goal: ClassVar[Goal]
    peers: ClassVar[tuple[str, ...]] = ()  # all
    most_visits: ClassVar[int] = 100

    def __init__(self, lab: Lab, peer: str, many: int) -> None:
        self.lab, self.peer, self.many = lab, peer, many
        self._numbers = count()
        self.container = lab.container(f"{peer}-{type(self).__name__}")

    @cached_property
    def writer(self) -> Process:
        """The process that writes."""
        return self._open()

    @cached_property
    def reader(self) -> Process:
        """The process that reads."""
        return self._open()

    def _open(self) -> Process:
        process = self.lab.process(self.peer)
        process.ask("open", self.container)
        return process

    def close(self) -> None:
        """End the processes."""
        for name in ("writer", "reader"):
            if name in vars(self):
                vars(self).pop(name).close()

    def fresh(self, number: int) -> list[str]:
        """Return keys that weren't used before."""
        return [f"key-{next(self._numbers):06d}" for _ in range(number)]

    def measure(self, process: Process, *call: Any) -> Sample:
        """Time a call, after the same kind of call untimed (which the caller has done)."""
        return self.lab.measure(lambda: [process.ask(*call)])

    def prepare(self) -> None:
        """Make what the visits need: as a rule an index of 1,000 keys, where there is one."""
        keys = self.fresh(1000)
        if self.peer not in BLOB_PEERS:
            self.writer.ask("insert", keys)

    def visit(self) -> Sample:
        """Do the work."""
        raise NotImplementedError


class SetNew(Work):
    title = "set a new small value"
    goal = Goal(requests=1, ratio=1.1, against="obstore")

    def visit(self) -> Sample:
        self.writer.ask("set", self.fresh(1))
        return self.measure(self.writer, "set", self.fresh(self.many))


class Overwrite(Work):
    title = "overwrite it"
    goal = SetNew.goal

    def visit(self) -> Sample:
        self.writer.ask("set", ["key-000000"])
        return self.measure(self.writer, "set", ["key-000000"] * self.many)


class Get(Work):
    title = "get a small value"
    goal = Goal(ratio=1.1, against="obstore")

    def prepare(self) -> None:
        self.keys = self.fresh(1000)
        if self.peer in BLOB_PEERS:
            self.container = self.lab.blobs(1000)
        else:
            self.writer.ask("set_many", self.keys)
        self.reader.ask("keys", 1000)

    def visit(self) -> Sample:
        keys = [self.keys.pop() for _ in range(self.many + 1)]
        self.reader.ask("get", keys[:1])
        return self.measure(self.reader, "get", keys[1:])


class GetAgain(Get):
    title = "get it again, unchanged"
    goal = Goal(requests=1, ratio=1.1, against="obstore")

    def visit(self) -> Sample:
        self.reader.ask("get", self.keys[:1])
        return self.measure(self.reader, "get", self.keys[:1] * self.many)


class GetNews(Work):
    title = "get it, just overwritten elsewhere"
    goal = Goal(ratio=1.1, against="obstore")

    def visit(self) -> Sample:
        sample, key = Sample(), "key-000000"
        for version in range(self.many + 1):
            self.writer.ask("set", [key], version)
            one = self.measure(self.reader, "get", [key], version)
            if version:
                sample += one
        return sample


class Set500(Work):
    title = "set 500 small values at once"
    goal = Goal(requests=3, ratio=1 / 10)
    number = 500

    def visit(self) -> Sample:
        self.writer.ask("set_many", self.fresh(self.number))
        return self.measure(self.writer, "set_many", self.fresh(self.number))


class Get500(Work):
    title = "get 500 at once"
    goal = Goal(requests=3, ratio=1 / 5)
    synced = True

    def prepare(self) -> None:
        self.total = 0

    def visit(self) -> Sample:
        for _ in ("untimed", "timed"):
            keys = self.fresh(500)
            self.writer.ask("set_many", keys)
            self.total += 500
            if self.synced:
                self.reader.ask("keys", self.total)
            sample = self.measure(self.reader, "get_many", keys)
        return sample


class Get500News(Get500):
    title = "get 500 at once, just set elsewhere"
    synced = False


class List1000(Work):
    title = "list the keys, of 1,000"
    goal = Goal(requests=1)
    number = 1000

    def prepare(self) -> None:
        if self.peer in BLOB_PEERS:
            self.container = self.lab.blobs(self.number)
        else:
            self.writer.ask("insert", self.fresh(self.number))

    def visit(self) -> Sample:
        self.reader.ask("keys", self.number)
        return self.measure(self.reader, "keys", self.number)


class List20000(List1000):
    title = "list the keys, of 20,000"
    number = 20_000


class SetArray(Work):
    title = "set a 64 MiB array of noise"
    goal = Goal(ratio=1.15, against="obstore")
    kind = "noise"

    def prepare(self) -> None:
        """Nothing: the first visit stores the array."""

    def visit(self) -> Sample:
        self.writer.ask("set_array", "array", self.kind)
        return self.measure(self.writer, "set_array", "array", self.kind)


class GetArray(SetArray):
    title = "get it"

    def visit(self) -> Sample:
        for _ in ("untimed", "timed"):
            self.writer.ask("set_array", "array", self.kind)
            self.reader.ask("keys", 1)
            sample = self.measure(self.reader, "get_array", "array", self.kind)
        return sample


class GetArrayAgain(SetArray):
    title = "get it again, unchanged"
    goal = Goal(requests=1, ratio=1 / 4)

    def prepare(self) -> None:
        self.writer.ask("set_array", "array", self.kind)

    def visit(self) -> Sample:
        self.reader.ask("get_array", "array", self.kind)
        return self.measure(self.reader, "get_array", "array", self.kind)


class SetWhole(SetArray):
    title = "set a 64 MiB array of whole numbers"
    kind = "whole"


class GetWhole(GetArray):
    title = "get it"
    kind = "whole"


class GetWholeAgain(GetArrayAgain):
    title = "get it again, unchanged"
    kind = "whole"


class Commits(Work):
    title = "8 processes × 30 single commits"
    goal = Goal(seconds=7)
    peers = ("remotedict", OLD)
    processes, each, gap = 8, 30, 0.0
    most_visits = 3  # Each takes minutes, with 0.0.2.

    def prepare(self) -> None:
        self.writers = [self._open() for _ in range(self.processes)]
        self.written = 0

    def visit(self) -> Sample:
        keys = [self.fresh(self.each) for _ in self.writers]
        sample = self.lab.measure(lambda: self._together(keys))
        self.written += sample.operations
        self.reader.ask("keys", self.written)  # Nothing is lost.
        return self.reported(sample)

    def _together(self, keys: list[list[str]]) -> list[dict[str, Any]]:
        began = time.perf_counter()
        for writer, mine in zip(self.writers, keys, strict=True):
            writer.send("commits", mine, self.gap)
        answers = [writer.receive() for writer in self.writers]
        self.wall = time.perf_counter() - began
        return answers

    def reported(self, sample: Sample) -> Sample:
        """Return the sample with the time that is reported."""
        return replace(sample, seconds=[self.wall])

    def close(self) -> None:
        for writer in self.writers:
            writer.close()
        super().close()


class CommitsApart(Commits):
    title = "one of these, 200 ms after the last"
    goal = Goal(round_trips=3)
    gap = 0.2

    def reported(self, sample: Sample) -> Sample:
        return sample


WORKS: dict[str, type[Work]] = {
    "set-new": SetNew,
    "overwrite": Overwrite,
    "get": Get,
    "get-again": GetAgain,
    "get-news": GetNews,
    "set-500": Set500,
    "get-500": Get500,
    "get-500-news": Get500News,
    "list-1000": List1000,
    "list-20000": List20000,
    "set-array": SetArray,
    "get-array": GetArray,
    "get-array-again": GetArrayAgain,
    "set-whole": SetWhole,
    "get-whole": GetWhole,
    "get-whole-again": GetWholeAgain,
    "commits": Commits,
    "commits-apart": CommitsApart,
}
