"""Run many seeds: ``python -m simulation --seeds 1000000``, from the folder `tests`.

With ``--seed N`` one is run and its trace printed; ``--shrink`` makes it smaller first.
``--plants`` looks for a seed that finds each planted bug, and records it for the tests.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from typing import NamedTuple

from simulation.plants import PLANTS, RECORDED, planted
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
}
"""Where a plant that drops a rule is looked for first."""

_DULL = re.compile(r" renew \S+  done$")


class Sum(NamedTuple):
    """What came of some seeds."""

    seeds: int
    calls: int
    requests: int
    commits: int
    failed: dict[int, str]


def run(first: int, count: int) -> Sum:
    """Run some seeds."""
    gc.collect()
    gc.freeze()
    gc.disable()  # `simulate` collects now and then
    calls = requests = commits = 0
    failed = {}
    for seed in range(first, first + count):
        report = simulate(draw(seed))
        calls += report.calls
        requests += report.requests
        commits += report.commits
        if report.violations:
            failed[seed] = str(report.violations[0])
    return Sum(count, calls, requests, commits, failed)


def run_all(first: int, count: int, processes: int) -> Sum:
    """Run seeds in several processes."""
    total = Sum(0, 0, 0, 0, {})
    starts = range(first, first + count, _CHUNK)
    sizes = [min(_CHUNK, first + count - start) for start in starts]
    with ProcessPoolExecutor(processes) as pool:
        for part in pool.map(run, starts, sizes):
            total = Sum(
                total.seeds + part.seeds,
                total.calls + part.calls,
                total.requests + part.requests,
                total.commits + part.commits,
                total.failed | part.failed,
            )
            if sys.stderr.isatty():
                print(
                    f"\r{total.seeds:,} seeds, {len(total.failed)} failed", end="", file=sys.stderr
                )
    return total


def find(number: int, seeds: int, recorded: int | None) -> tuple[int | None, str]:
    """Return a seed that finds a planted bug, and what it says: the recorded one if it still does.

    Else the first one, and of those whose theme it belongs to, if they are known.
    """
    themes = _THEMES.get(PLANTS[number].rule, "").split()
    fitting = (seed for seed in range(seeds) if draw(seed).theme in themes)
    first = [] if recorded is None else [recorded]
    for seed in chain(first, fitting, range(seeds)):
        with planted(PLANTS[number]):
            report = simulate(draw(seed))
        if report.violations and not simulate(draw(seed)).violations:
            return seed, str(report.violations[0])
    return None, ""


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
    parser.add_argument("--seed", type=int, help="run this one alone, and print its trace")
    parser.add_argument("--shrink", action="store_true")
    parser.add_argument("--plants", action="store_true")
    given = parser.parse_args()
    if given.plants:
        numbers = range(len(PLANTS))
        with ProcessPoolExecutor(given.processes) as pool:
            recorded = json.loads(RECORDED.read_text())
            before = [recorded.get(plant.name) for plant in PLANTS]
            found = pool.map(find, numbers, [given.seeds] * len(numbers), before)
            seeds = {}
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
    begun = time.perf_counter()
    total = run_all(given.first, given.seeds, given.processes)
    took = time.perf_counter() - begun
    print(
        f"{total.seeds:,} seeds, {total.calls:,} calls, {total.requests:,} requests, "
        f"{total.commits:,} commits in {took:,.0f} s: {total.seeds / took:,.0f} seeds a second on "
        f"{given.processes} processes. {len(total.failed)} failed"
    )
    for seed, what in sorted(total.failed.items())[:20]:
        print(f"seed {seed}: {what}")
    if total.failed:
        seed = min(total.failed)
        scenario = shrunk(draw(seed))
        print(f"seed {seed}, shrunk to {scenario}")
        show(simulate(scenario, trace=True))
        sys.exit(1)


if __name__ == "__main__":
    main()
