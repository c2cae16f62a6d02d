"""Why the index is as large as it is, and what is small enough to go into it.

Small values are set one after the other, each after a pause in which the connection goes cold, and
read by somebody else; through a proxy that starts connections slowly, as TCP does ::

    python benchmarks/limits.py [--rtt 80]

The first table varies the size of the index, the second what goes into it. What is measured of a
set is the mean: one that has to move commits into a segment costs a request more.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from remotedict.azure import AzureDictionary
from remotedict.pure import plan

sys.path[:0] = [str(Path(__file__).parent.parent / "tests")]

from azurite import ACCOUNT_KEY, ACCOUNT_NAME, Azurite  # noqa: E402 - of the tests
from proxy import Proxy  # noqa: E402 - its folder is that of this script

IDLE = 0.3  # seconds after which a connection is cold


class Cost(NamedTuple):
    """What one set costs, and one read of it by somebody else."""

    set_ms: float
    get_ms: float
    requests: float
    up: float


def measure(proxy: Proxy, rtt: float, sets: int, stored: int, inline_bytes: int) -> Cost:
    """Return the costs of values of so many stored bytes."""
    account = (
        f"AccountName={ACCOUNT_NAME};AccountKey={ACCOUNT_KEY};"
        f"BlobEndpoint=http://127.0.0.1:{proxy.port}/{ACCOUNT_NAME}"
    )
    options = {"container_name": "limits", "inline_bytes": inline_bytes}
    folder = f"f{time.monotonic_ns()}"
    noise = np.random.default_rng(0)
    with (
        AzureDictionary(account, folder_name=folder, **options) as writer,
        AzureDictionary(account, folder_name=folder, **options) as reader,
    ):
        proxy.set(rtt=0.0)
        for n in range(20):
            writer[f"begin-{n}"] = noise.bytes(stored)
        assert reader["begin-0"]
        proxy.set(rtt=rtt, cold=True)
        set_ms, get_ms, requests, up = [], [], 0, 0
        for n in range(sets):
            value = noise.bytes(stored)
            time.sleep(IDLE)
            proxy.reset()
            began = time.perf_counter()
            writer[f"key-{n}"] = value
            set_ms.append(1e3 * (time.perf_counter() - began))
            counts = proxy.counts()
            requests, up = requests + counts.requests, up + counts.up
            time.sleep(IDLE)
            began = time.perf_counter()
            assert reader[f"key-{n}"] == value
            get_ms.append(1e3 * (time.perf_counter() - began))
        return Cost(statistics.fmean(set_ms), statistics.fmean(get_ms), requests / sets, up / sets)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rtt", type=float, default=80, help="milliseconds")
    parser.add_argument("--sets", type=int, default=100)
    arguments = parser.parse_args()
    rtt = arguments.rtt / 1e3
    head = "set ms | get ms | requests a set | bytes up a set |"
    usual = plan.INDEX_BYTES
    with Azurite() as azurite, Proxy("127.0.0.1", azurite.port) as proxy:
        print(f"| index KiB | {head}\n| ---: " + "| ---: " * 4 + "|")
        for kib in (6, 9, 12, 13, 14, 16, 24, 48):
            plan.INDEX_BYTES = kib * 1024
            cost = measure(proxy, rtt, arguments.sets, 300, 2048)
            print(f"| {kib} | {row(cost)}", flush=True)
        plan.INDEX_BYTES = usual
        print(f"\n| stored bytes | goes | {head}\n| ---: | --- " + "| ---: " * 4 + "|")
        for stored in (256, 1024, 2048, 3072, 4096, 6144):
            for inline in (True, False):
                cost = measure(proxy, rtt, arguments.sets // 2, stored, 1_000_000 * inline)
                where = "inline" if inline else "own blob"
                print(f"| {stored:,} | {where} | {row(cost)}", flush=True)


def row(cost: Cost) -> str:
    """Return the cells of a cost."""
    return f"{cost.set_ms:.0f} | {cost.get_ms:.0f} | {cost.requests:.2f} | {cost.up:,.0f} |"


if __name__ == "__main__":
    main()
