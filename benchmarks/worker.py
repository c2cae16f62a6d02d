"""A process that works for the benchmark, with one peer: its interpreter is that peer's own.

It reads lines of JSON, ``[method, arguments]``, and answers each with a line, the result of that
method of `Worker`. Times are taken here, so that what they cost to ask for isn't in them.

With ``--profile FILE`` what is timed is also profiled, and the profile is left in the file.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import sys
import time
from functools import partial
from typing import Any

import numpy as np

from peers import PEERS, Account

ARRAY_BYTES = 64 * 1024 * 1024


class Worker:
    """A peer, and the clock beside it.

    Each method returns the seconds that each operation took, and the seconds of CPU of all; what
    was read is compared with what was written, outside the time.
    """

    def __init__(self, peer: str, account: Account, profile: cProfile.Profile | None) -> None:
        self._make, self._account, self._profile = PEERS[peer], account, profile
        self._arrays: dict[str, np.ndarray] = {}
        self._peer: Any = None

    def open(self, container: str) -> Any:
        """Open a container."""
        return self._timed([partial(self._open, container)])[0]

    def set(self, keys: list[str], version: int = 0) -> Any:
        """Set small values, one after the other."""
        items = [(key, small(key, version)) for key in keys]
        return self._timed([partial(self._peer.set, *item) for item in items])[0]

    def get(self, keys: list[str], version: int = 0) -> Any:
        """Get small values, one after the other."""
        times, values = self._timed([partial(self._peer.get, key) for key in keys])
        assert values == [small(key, version) for key in keys]
        return times

    def set_many(self, keys: list[str]) -> Any:
        """Set small values at once."""
        items = {key: small(key, 0) for key in keys}
        return self._timed([partial(self._peer.set_many, items)])[0]

    def get_many(self, keys: list[str]) -> Any:
        """Get small values at once."""
        times, values = self._timed([partial(self._peer.get_many, keys)])
        assert list(values[0]) == [small(key, 0) for key in keys]
        return times

    def insert(self, keys: list[str]) -> Any:
        """Make keys, perhaps without values."""
        insert = getattr(self._peer, "insert", None) or (
            lambda keys: self._peer.set_many(dict.fromkeys(keys, 0))
        )
        return self._timed([partial(insert, keys)])[0]

    def keys(self, number: int) -> Any:
        """List the keys."""
        times, keys = self._timed([self._peer.keys])
        assert len(keys[0]) == number, (len(keys[0]), number)
        return times

    def set_array(self, key: str, kind: str) -> Any:
        """Set an array of 64 MiB."""
        array = self._array(kind)
        return self._timed([partial(self._peer.set, key, array)])[0]

    def get_array(self, key: str, kind: str) -> Any:
        """Get an array of 64 MiB."""
        times, arrays = self._timed([partial(self._peer.get, key)])
        assert np.array_equal(arrays[0], self._array(kind))
        return times

    def commits(self, keys: list[str], gap: float) -> Any:
        """Set small values, one after the other, with a pause after each."""
        seconds, cpu = [], 0.0
        for key in keys:
            times = self.set([key])
            seconds += times["seconds"]
            cpu += times["cpu"]
            time.sleep(gap)
        return {"seconds": seconds, "cpu": cpu}

    def _open(self, container: str) -> None:
        self._peer = self._make(self._account, container)

    def _array(self, kind: str) -> np.ndarray:
        if kind not in self._arrays:
            self._arrays[kind] = array(kind)
        return self._arrays[kind]

    def _timed(self, operations: list[Any]) -> tuple[dict[str, Any], list[Any]]:
        seconds, results = [], []
        cpu = time.process_time()
        if self._profile:
            self._profile.enable()
        for operation in operations:
            began = time.perf_counter()
            results.append(operation())
            seconds.append(time.perf_counter() - began)
        if self._profile:
            self._profile.disable()
        return {"seconds": seconds, "cpu": time.process_time() - cpu}, results


def small(key: str, version: int) -> dict[str, Any]:
    """Return the small value of a key: a dict that pickles to about 120 bytes."""
    return {"key": key, "version": version, "text": f"{key} is {version} " * 3}


def array(kind: str) -> np.ndarray:
    """Return 64 MiB of float64: noise, which nothing can compress, or whole numbers."""
    random = np.random.default_rng(1)
    size = ARRAY_BYTES // 8
    return random.standard_normal(size) if kind == "noise" else random.integers(0, 99, size) * 1.0


def main() -> None:
    """Work until the standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("account", nargs=3)
    parser.add_argument("--profile")
    options = parser.parse_args()
    profile = cProfile.Profile() if options.profile else None
    worker = Worker(options.peer, Account(*options.account), profile)
    for line in sys.stdin:
        method, arguments = json.loads(line)
        print(json.dumps(getattr(worker, method)(*arguments)), flush=True)
    if profile:
        profile.dump_stats(options.profile)


if __name__ == "__main__":
    main()
