"""Plot what a write, a read and a reopen cost, against the number of keys and of writers.

After the tables ``nox -s bench`` runs this, too ::

    python benchmarks/curves.py [--keys 1000 10000 100000 1000000] [--writers 1 2 4 8 16]

The first are counted in a backend on a local folder, the second through the proxy, before the
emulator. Flat is what most of it ought to be. The plots go to ``docs/images``, and the numbers beside
the benchmark's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

from lab import Lab
from remotedict.backend import Got, pieces
from remotedict.backend.local import LocalBackend
from remotedict.dictionary import RemoteDict

mpl.use("agg")

from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lab import Process
    from remotedict.backend import Data, NotModified, Put

HERE = Path(__file__).parent
IMAGES = HERE.parent / "docs" / "images"
RTT = 0.020
EACH = 20
"""Single writes, or reads, in one measurement."""

CHUNK = 50_000
"""Keys that are set at once."""


@dataclass
class Cost:
    """Of one operation: requests, bytes both ways, and the median of seconds."""

    requests: float
    bytes: float
    seconds: float


Curves = dict[str, dict[int, Cost]]
"""By operation, and by what it is plotted against."""


# -- against keys -----------------------------------------------------------------------------


class _Counted(LocalBackend):
    """A local folder that counts as a service would."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._mutex = Lock()
        self.requests = self.bytes = 0

    def _count(self, size: int, requests: int = 1) -> None:
        with self._mutex:
            self.requests += requests
            self.bytes += size

    def get(self, path: str, **options: Any) -> Got | NotModified:
        found = super().get(path, **options)
        self._count(len(found.data) if isinstance(found, Got) else 0)
        return found

    def put(self, path: str, data: Data, **options: Any) -> Put:
        parts = [bytes(part) for part in pieces(data)]
        self._count(sum(map(len, parts)))
        return super().put(path, parts, **options)

    def delete(self, paths: Iterable[str]) -> None:
        paths = list(paths)
        self._count(0, len(paths))
        super().delete(paths)


class _Place:
    """Where the counted dictionary is; `store` is what counts for the newest handle."""

    def __init__(self, root: str) -> None:
        self._root = root
        self.store: _Counted

    def backend(self, timeout: float, runtime: Any) -> _Counted:
        del timeout, runtime
        self.store = _Counted(self._root)
        return self.store

    def describe(self) -> str:
        return self._root

    def portable(self, *, credentials: bool) -> _Place:
        del credentials
        return self


def against_keys(numbers: list[int]) -> Curves:
    """Return the costs of single operations at each number of keys."""
    curves: Curves = {"write": {}, "read": {}, "reopen": {}}
    with tempfile.TemporaryDirectory() as root:
        place, filled = _Place(root), 0
        for number in sorted(numbers):
            with RemoteDict(place, "bench", progress=False) as d:
                for start in range(filled, number, CHUNK):
                    d.update({_key(n): n for n in range(start, min(start + CHUNK, number))})
            filled = number
            reopened = [_reopened(place) for _ in range(5)]
            curves["reopen"][number] = Cost(
                *(statistics.median(values) for values in zip(*map(astuple, reopened), strict=True))
            )
            keys = [_key(n * number // EACH) for n in range(EACH)]
            curves["read"][number] = _each(place, keys, RemoteDict.__getitem__)
            curves["write"][number] = _each(place, keys, _write)
            print(number, {name: curve[number] for name, curve in curves.items()}, flush=True)
    return curves


def _key(number: int) -> str:
    return f"key-{number:07d}"


def _write(d: RemoteDict, key: str) -> None:
    d[key] = 0


def _reopened(place: _Place) -> Cost:
    began = time.perf_counter()
    with RemoteDict(place, "bench", progress=False) as d:
        assert _key(0) in d
        return Cost(place.store.requests, place.store.bytes, time.perf_counter() - began)


def _each(place: _Place, keys: list[str], act: Callable[[RemoteDict, str], Any]) -> Cost:
    """Return what each of some operations costs, with its share of the upkeep they cause."""
    seconds = []
    with RemoteDict(place, "bench", progress=False) as d:
        store = place.store
        requests, size = store.requests, store.bytes
        for key in keys:
            began = time.perf_counter()
            act(d, key)
            seconds.append(time.perf_counter() - began)
    # Closing it has waited for the upkeep.
    return Cost(
        (store.requests - requests) / len(keys),
        (store.bytes - size) / len(keys),
        statistics.median(seconds),
    )


# -- against writers --------------------------------------------------------------------------


def against_writers(numbers: list[int]) -> Curves:
    """Return what a commit costs while so many processes commit to one dictionary."""
    curves: Curves = {"write": {}}
    with Lab() as lab:
        container = lab.container("curves")
        writers = [lab.process("remotedict") for _ in range(max(numbers))]
        for writer in writers:
            writer.ask("open", container)
        lab.proxy.set(rtt=RTT)
        for number in sorted(numbers):
            sample = lab.measure(lambda number=number: _together(writers[:number]))
            each = sample.operations
            curves["write"][number] = Cost(
                sample.counts.requests / each,
                (sample.counts.up + sample.counts.down) / each,
                statistics.median(sample.seconds),
            )
            print(number, curves["write"][number], flush=True)
    return curves


def _together(writers: list[Process]) -> list[dict[str, Any]]:
    for at, writer in enumerate(writers):
        writer.send("commits", [f"key-{at}-{n}" for n in range(EACH)], 0.0)
    return [writer.receive() for writer in writers]


# -- plots ------------------------------------------------------------------------------------


def plot(curves: Curves, label: str, title: str, path: Path) -> None:
    """Draw requests, bytes and time, beside each other."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    shown = [("requests", 1.0, "requests"), ("bytes", 1.0, "bytes"), ("seconds", 1000.0, "ms")]
    for ax, (name, factor, unit) in zip(axes, shown, strict=True):
        for operation, costs in curves.items():
            values = [getattr(cost, name) * factor for cost in costs.values()]
            ax.plot(list(costs), values, marker="o", label=f"one {operation}")
        ax.set(xscale="log", xlabel=label, title=unit)
        ax.set_yscale("log" if name != "requests" else "linear")
        if name == "requests":
            ax.set_ylim(bottom=0)
        ax.set_xticks(list(costs), [f"{number:,}" for number in costs], minor=False)
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure and plot what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    add: Any = parser.add_argument
    add("--keys", type=int, nargs="*", default=[10**3, 10**4, 10**5, 10**6])
    add("--writers", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    options = parser.parse_args()
    found = {}
    if options.keys:
        found["keys"] = against_keys(options.keys)
        title = "What one operation costs, on a local folder"
        plot(found["keys"], "keys in the dictionary", title, IMAGES / "costs-by-keys.png")
    if options.writers:
        found["writers"] = against_writers(options.writers)
        title = f"What a commit costs, {RTT * 1000:.0f} ms from the store"
        label = "processes that commit at once"
        plot(found["writers"], label, title, IMAGES / "costs-by-writers.png")
    numbers = {
        name: {
            operation: {number: asdict(cost) for number, cost in costs.items()}
            for operation, costs in curves.items()
        }
        for name, curves in found.items()
    }
    path = HERE / "results" / "curves.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
