"""Measure remotedict against its peers: what ``nox -s bench`` runs.

In an environment that has them all ::

    python benchmarks/bench.py [--rtt 20] [--only get get-500] [--peers remotedict obstore]

Prints a table and leaves a JSON file in ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab import Lab, Sample
from peers import PEERS
from tables import RESULTS, Results, publish, text, write
from works import WORKS, Work

if TYPE_CHECKING:
    from collections.abc import Iterator


def measure(lab: Lab, options: argparse.Namespace) -> Iterator[Results]:
    """Do all works, peers taking turns; yield all samples after each work."""
    samples: Results = {}
    for name in options.only:
        peers = [p for p in options.peers if p in lab.peers and p in (WORKS[name].peers or PEERS)]
        if not peers:
            continue
        with contextlib.ExitStack() as stack:
            works: dict[str, Work] = {}
            for peer in peers:
                works[peer] = WORKS[name](lab, peer, options.many)
                stack.callback(works[peer].close)
                works[peer].prepare()
            for rtt in options.rtt:
                found = samples.setdefault(f"{rtt:g}", {})[name] = {p: Sample() for p in peers}
                lab.proxy.set(rtt=rtt / 1000, cold=options.cold)
                for turn in range(min(options.repeat, WORKS[name].most_visits)):
                    for at in range(len(peers)):
                        peer = peers[(at + turn) % len(peers)]
                        found[peer] += works[peer].visit()
                lab.proxy.set()
                print(text({f"{rtt:g}": {name: found}}), flush=True)
        yield samples


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    add: Any = parser.add_argument
    add("--rtt", type=float, nargs="+", default=[20, 0, 80], help="milliseconds")
    add("--only", nargs="+", choices=WORKS, default=list(WORKS), metavar="WORK", help=str([*WORKS]))
    add("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    add("--repeat", type=int, default=7, help="visits to each peer")
    add("--many", type=int, default=10, help="small operations timed in a visit")
    add("--quick", action="store_true", help="20 ms, few repetitions")
    add("--cold", action="store_true", help="idle connections start slowly")
    add("--old", help="Python of the environment with remotedict 0.0.2")
    add("--profile", type=Path, help="folder for profiles of the workers")
    add("--json", type=Path, help="where the results go")
    add("--publish", type=Path, help="measure nothing: put these results into the documentation")
    options = parser.parse_args()
    if options.publish:
        publish(options.publish)
        return
    if options.quick:
        options.rtt, options.repeat, options.many = [20], 2, 5
    if options.profile:
        options.profile.mkdir(parents=True, exist_ok=True)
    began = time.strftime("%Y-%m-%dT%H:%M:%S")
    path = options.json or RESULTS / f"{began.replace(':', '')}.json"
    with Lab(options.old, options.profile) as lab:
        for samples in measure(lab, options):
            write(path, began, samples)
    print(text(samples))
    print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
