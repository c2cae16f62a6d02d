"""What one read can't be faster than: two bare requests at once, beside one, and beside ``d[k]``.

The check of the index and the value travel together; before an emulator that does one thing at a time
that takes longer than one request, whoever sends them ::

    python benchmarks/floor.py --rtt 20
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from remotedict import AzureDictionary

sys.path[:0] = [str(Path(__file__).parent.parent / "tests")]

from azurite import ACCOUNT_KEY, ACCOUNT_NAME, Azurite  # noqa: E402 - of the tests
from proxy import Proxy  # noqa: E402 - its folder is that of this script

if TYPE_CHECKING:
    from collections.abc import Callable

KEYS = 1000
TURNS, TIMES = 20, 20


def works(account: str) -> dict[str, Callable[[int], object]]:
    """Return what is timed, given a number that is another one each time."""
    options = {"container_name": "floor", "folder_name": "f", "cache_bytes": 0}
    with AzureDictionary(account, **options) as writer:
        writer.update({f"k{n}": {"run": n, "note": "x" * 40} for n in range(KEYS)})
    d = AzureDictionary(account, **options)
    bare = d._engine.backend.raw  # noqa: SLF001
    index = d._engine.layout.index  # noqa: SLF001
    etag = bare.get(index).etag
    where = next(iter(d._engine.known().state.locations()))  # noqa: SLF001
    path = d._engine.layout.path(where.sources[0])  # noqa: SLF001
    ranges = list(zip(where.offsets, where.lengths, strict=True))
    pool = ThreadPoolExecutor(1)

    def one(n: int) -> object:
        return bare.get(path, range=ranges[n % len(ranges)])

    def two(n: int) -> object:
        check = pool.submit(bare.get, index, if_none_match=etag)
        return one(n), check.result()

    return {"one request": one, "two at once": two, "d[k]": lambda n: d[f"k{n % KEYS}"]}


def main() -> None:
    """Measure by turns, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rtt", type=float, default=20.0, help="milliseconds")
    arguments = parser.parse_args()
    with Azurite() as azurite, Proxy("127.0.0.1", azurite.port) as proxy:
        endpoint = f"BlobEndpoint=http://127.0.0.1:{proxy.port}/{ACCOUNT_NAME}"
        timed = works(f"AccountName={ACCOUNT_NAME};AccountKey={ACCOUNT_KEY};{endpoint}")
        proxy.set(rtt=arguments.rtt / 1000)
        taken: dict[str, list[float]] = {name: [] for name in timed}
        for turn in range(TURNS + 1):
            for name, work in timed.items():
                for n in range(TIMES):
                    begun = time.perf_counter()
                    work(turn * TIMES + n)
                    if turn:  # the first opens connections
                        taken[name].append(time.perf_counter() - begun)
    one = statistics.median(taken["one request"])
    for name, times in taken.items():
        median = statistics.median(times)
        print(f"{name:12} {median * 1000:6.1f} ms, {median / one:.2f} times one request")


if __name__ == "__main__":
    main()
