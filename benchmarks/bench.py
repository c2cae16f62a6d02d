"""Measure remotedict against its peers: what ``nox -s bench`` runs.

In an environment that has them all ::

    python benchmarks/bench.py [--rtt 20] [--only get get-500] [--peers remotedict obstore]

Prints a table and leaves a JSON file in ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from lab import Lab, Sample
from peers import PEERS
from tables import Results, environment, text
from works import WORKS, Work

RESULTS = Path(__file__).parent / "results"


def measure(lab: Lab, options: argparse.Namespace) -> Results:
    """Do all works, peers taking turns, and return the samples."""
    samples: Results = {}
    for name in options.only:
        peers = [peer for peer in options.peers if peer in (WORKS[name].peers or lab.peers)]
        if not peers:
            continue
        lab.proxy.set()
        with contextlib.ExitStack() as stack:
            works: dict[str, Work] = {}
            for peer in peers:
                works[peer] = WORKS[name](lab, peer, options.many)
                stack.callback(works[peer].close)
                works[peer].prepare()
            for rtt in options.rtt:
                found = samples.setdefault(f"{rtt:g}", {})[name] = {p: Sample() for p in peers}
                for turn in range(options.repeat):
                    for at in range(len(peers)):
                        peer = peers[(at + turn) % len(peers)]
                        lab.proxy.set(rtt=rtt / 1000, cold=options.cold)
                        found[peer] += works[peer].visit()
                print(text({f"{rtt:g}": {name: found}}), flush=True)
                lab.proxy.set()
    return samples


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
    options = parser.parse_args()
    if options.quick:
        options.rtt, options.repeat, options.many = [20], 2, 5
    if options.profile:
        options.profile.mkdir(parents=True, exist_ok=True)
    began = time.strftime("%Y-%m-%dT%H:%M:%S")
    with Lab(options.old, options.profile) as lab:
        samples = measure(lab, options)
    print(text(samples))
    path = options.json or RESULTS / f"{began.replace(':', '')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {
        rtt: {
            work: {peer: sample.to_json() for peer, sample in by_peer.items()}
            for work, by_peer in by_work.items()
        }
        for rtt, by_work in samples.items()
    }
    report = {"began": began, "environment": environment(), "samples": found}
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
