"""Run many seeds: ``python -m simulation --seeds 1000000``, from the folder `tests`.

With ``--into FILE`` what was run is kept, and a run that was interrupted goes on where it stopped.
With ``--seed N`` one is run and its trace printed; ``--shrink`` makes it smaller first.
``--plants`` looks for a seed that finds each planted bug, and records it for the tests.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import remotedict
from simulation.plants import PLANTS, RECORDED, Plant, planted
from simulation.scenario import draw
from simulation.shrinking import shrunk
from simulation.world import Report, simulate

_CHUNK = 100
_LINES = 400
_THEMES = {
    "6": "locks",
    "7": "locks sections",
    "8": "locks",
    "9": "locks",
    "10": "sections locks",
    "13": "past bytes forgetting",
    "14": "forgetting growth bytes",
    "15": "forgetting bytes",
    "16": "restore",
    "a check that was sent before serves a caller who comes later": "overtaking",
    "the state is published that was learnt last, not the newest": "overtaking",
    "forget leaves bytes in what other keys share with the key": "forgetting",
    "an interrupted write is submitted all the same": "abandoned",
    "the writers' queue is leased for ever": "crowd",
    "a section whose lock another thread was told to have lost writes on": "losses",
    "a merge isn't judged by the horizon": "merges",
    "a copy has the newest index, not that of its blobs": "copies",
    "a checkpoint isn't signed": "signed",
    "of two repairs both win": "repair",
    "a repair keeps the incarnation that the handle knew": "repair",
    "a repair brings back only what segments tell of": "repair",
    "a repair doesn't ask what its handle knows": "repair",
    "a repair uses the numbers of lost commits again": "repair",
    "a repair believes what another one has left that came too late": "repair",
    "a repair believes what a killed one has made up for lost commits": "repair",
}
"""In which themes a plant, or one that drops a rule, is looked for first."""

_SECONDS = 1200
_MEMORY = 4 << 30

_DULL = re.compile(r" renew \S+  done$")


class Sum(NamedTuple):
    """What came of the seeds from `first` on.

    Attributes
    ----------
    version : str
        The commit of the engine, and of the simulation.
    seconds : float
        Of a processor.
    failed : dict
        By seed, what is wrong.
    """

    version: str
    first: int
    seeds: int = 0
    calls: int = 0
    requests: int = 0
    commits: int = 0
    seconds: float = 0.0
    failed: dict[str, str] = {}  # noqa: RUF012 - never changed

    @property
    def end(self) -> int:
        """The first seed that hasn't been run."""
        return self.first + self.seeds

    def grown(self, part: Sum) -> Sum:
        """Return the sum with what came of the next seeds."""
        counts = (mine + more for mine, more in zip(self[2:-1], part[2:-1], strict=True))
        return Sum(self.version, self.first, *counts, self.failed | part.failed)

    def __str__(self) -> str:
        return (
            f"seeds {self.first:,} to {self.end:,} ({self.version}): {self.calls:,} calls, "
            f"{self.requests:,} requests, {self.commits:,} commits; "
            f"{self.seeds / (self.seconds or 1):,.0f} seeds a second of a processor. "
            f"{len(self.failed)} failed"
        )


def run(first: int, count: int) -> Sum:
    """Run some seeds."""
    gc.collect()
    gc.freeze()
    gc.disable()  # `simulate` collects
    begun = time.process_time()
    calls = requests = commits = 0
    failed = {}
    for seed in range(first, first + count):
        report = simulate(draw(seed))
        calls += report.calls
        requests += report.requests
        commits += report.commits
        if report.violations:
            failed[str(seed)] = str(report.violations[0])
    seconds = time.process_time() - begun
    return Sum("", first, count, calls, requests, commits, seconds, failed)


def run_all(first: int, end: int, processes: int, into: Path | None) -> list[Sum]:
    """Run seeds in several processes; with a file, only those that it doesn't say were run."""
    done = [Sum(**one) for one in json.loads(into.read_text())] if into and into.exists() else []
    here = version()
    if done:
        first = done[-1].end
    total = done.pop() if done and done[-1].version == here else Sum(here, first)
    starts = range(first, end, _CHUNK)
    sizes = [min(_CHUNK, end - start) for start in starts]
    pool = ProcessPoolExecutor(processes)
    try:
        for part in pool.map(run, starts, sizes):
            total = total.grown(part)
            if into:
                new = into.with_suffix(".new")
                new.write_text(json.dumps([one._asdict() for one in [*done, total]], indent=1))
                new.replace(into)
            if sys.stderr.isatty():
                print(f"\r{total}", end="", file=sys.stderr)
    finally:
        pool.shutdown(cancel_futures=True)
    return [*done, total]


def version() -> str:
    """Return the commit that is checked out."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=RECORDED.parent, capture_output=True, check=False, text=True)
    return done.stdout.strip() or remotedict.__version__


def find(plant: Plant, seeds: int, recorded: int | None) -> tuple[int | None, str]:
    """Return a seed that finds a planted bug, and what it says: the recorded one if it still does.

    Else the first one, and of those whose theme it belongs to, if they are known.
    """
    themes = (_THEMES.get(plant.name) or _THEMES.get(plant.rule, "")).split()
    fitting = (seed for seed in range(seeds) if draw(seed).theme in themes)
    first = [] if recorded is None else [recorded]
    for seed in chain(first, fitting, range(seeds)):
        with planted(plant):
            report = simulate(draw(seed))
        if report.violations and not simulate(draw(seed)).violations:
            return seed, str(report.violations[0])
    return None, ""


def find_apart(plant: Plant, seeds: int) -> tuple[int | None, str]:
    """Do the same in a process of its own: some bugs take all memory, or never end."""
    command = [sys.executable, "-m", "simulation", "--plant", plant.name, "--seeds", str(seeds)]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=_SECONDS)
    except subprocess.SubprocessError as exc:
        return None, str(exc)
    seed, what = json.loads(done.stdout)
    return seed, what


def show(report: Report) -> None:
    """Print the end of a trace, and what is wrong."""
    lines = [line for line in report.trace if not _DULL.search(line)]
    if len(lines) > _LINES:
        print(f"… {len(lines) - _LINES} lines before …")
    for line in lines[-_LINES:]:
        print(line)
    for violation in report.violations:
        print(violation)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m simulation")
    parser.add_argument("--seeds", type=int, default=20_000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--into", type=Path, help="a file that keeps what was run")
    parser.add_argument("--seed", type=int, help="run this one alone, and print its trace")
    parser.add_argument("--shrink", action="store_true")
    parser.add_argument("--plants", action="store_true")
    parser.add_argument("--plant", help="look for this one alone")
    given = parser.parse_args()
    recorded = json.loads(RECORDED.read_text())
    if given.plant:
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        [plant] = [plant for plant in PLANTS if plant.name == given.plant]
        print(json.dumps(find(plant, given.seeds, recorded.get(plant.name))))
        return
    if given.plants:
        seeds = {}
        with ThreadPoolExecutor(given.processes) as pool:
            found = pool.map(find_apart, PLANTS, [given.seeds] * len(PLANTS))
            for plant, (seed, what) in zip(PLANTS, found, strict=True):
                print(f"{plant.name}: {seed} {what:.120}", flush=True)
                seeds[plant.name] = seed
        RECORDED.write_text(json.dumps(seeds, indent=2) + "\n")
        sys.exit(None in seeds.values())
    if given.seed is not None:
        scenario = draw(given.seed)
        if given.shrink:
            scenario = shrunk(scenario)
            print(scenario)
        report = simulate(scenario, trace=True)
        show(report)
        sys.exit(bool(report.violations))
    sums = run_all(given.first, given.first + given.seeds, given.processes, given.into)
    failed = {}
    for total in sums:
        print(total)
        failed |= {int(seed): what for seed, what in total.failed.items()}
    for seed, what in sorted(failed.items())[:20]:
        print(f"seed {seed}: {what}")
    if failed:
        seed = min(failed)
        scenario = shrunk(draw(seed))
        print(f"seed {seed}, shrunk to {scenario}")
        show(simulate(scenario, trace=True))
        sys.exit(1)


if __name__ == "__main__":
    main()
