"""A dictionary of a million keys in a local folder: ``python benchmarks/scale.py --keys 1000000``.

Each figure stands beside what it is measured against, in the same run and by turns with it; medians.
Prints a table, and with ``--json FILE`` writes the figures. Needs pyarrow.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

from remotedict import LocalDictionary
from remotedict.backend.local import LocalBackend
from remotedict.pure import records
from remotedict.pure.state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IDS = {"dictionary": b"d" * 16, "incarnation": b"i" * 16}


class Figure(NamedTuple):
    """One thing that was measured, and its goal."""

    what: str
    value: float
    unit: str
    against: float | None = None
    goal: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times the other's it is."""
        return self.value / self.against if self.against else None

    def row(self) -> str:
        """Return it as a line of a table."""
        against = "" if self.against is None else f"{self.against:,.4g}"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        return (
            f"| {self.what} | {self.value:,.4g} {self.unit} | {against} | {ratio} | {self.goal} |"
        )


def key(number: int) -> str:
    """Return the name of a key."""
    return f"run-{number:07d}/loss"


def seconds(work: Callable[[], Any]) -> float:
    """Return how long it takes."""
    gc.collect()
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def by_turns(repeats: int, *works: Callable[[], Any]) -> list[float]:
    """Return the median time of each of the works, done by turns."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for taken, work in zip(times, works, strict=True):
            taken.append(seconds(work))
    return [statistics.median(taken) for taken in times]


# -- the dictionary as a whole ----------------------------------------------------------------


def filled(where: Path, keys: int) -> Figure:
    """Make the dictionary, unless it is there; return what that took."""
    with LocalDictionary(where) as d:
        if len(d) == keys:
            return Figure("update() of all keys", float("nan"), "s")
        values = {key(n): n * 0.5 for n in range(keys)}
        taken = seconds(lambda: d.update(values))
        d._engine.upkeep.finish()  # noqa: SLF001
    return Figure("update() of all keys", taken, "s")


def opened(where: Path, parquet: Path, repeats: int) -> list[Figure]:
    """Compare with reading the same table of keys and paths from LZ4 Parquet."""
    with LocalDictionary(where) as d:
        series = d.index
    series.to_frame().to_parquet(parquet, compression="lz4")

    def first_in() -> None:
        with LocalDictionary(where) as d:
            assert key(0) in d

    mine, theirs = by_turns(repeats, first_in, lambda: pd.read_parquet(parquet))
    checkpoint = max((where / "Index/default/checkpoints").iterdir(), key=os.path.getmtime)
    return [
        Figure("open, and first `in`", mine, "s", theirs, "at most 1.5 times pd.read_parquet"),
        Figure(
            "checkpoint",
            checkpoint.stat().st_size / len(series),
            "bytes a key",
            parquet.stat().st_size / len(series),
        ),
    ]


def shown(where: Path, repeats: int) -> list[Figure]:
    """Compare `d.index`, built anew, with a Series of the same lists."""
    with LocalDictionary(where) as d:
        keys, paths = list(d), d.index.to_list()

        def mine() -> None:
            d._shown_index = None  # noqa: SLF001
            _ = d.index

        def theirs() -> None:
            index = pd.Index(keys, name="index", dtype="str")
            pd.Series(paths, index=index, name="name", dtype="str")

        took, reference = by_turns(repeats, mine, theirs)
    return [Figure("d.index", took, "s", reference, "at most 2 times a Series of the same lists")]


def iterated(where: Path, repeats: int) -> list[Figure]:
    """Return how fast keys, values and single reads of the index come."""
    with LocalDictionary(where) as d:
        count = len(d)

        def items() -> None:
            with LocalDictionary(where) as fresh:  # whose values are in packs, not in its memory
                for _ in fresh.items():
                    pass

        known = d._engine.known().state  # noqa: SLF001
        some = [key(n) for n in range(0, count, max(count // 20_000, 1))]
        all_items, all_keys, gets, entries = by_turns(
            repeats,
            items,
            lambda: list(d),
            lambda: [known.get(one) for one in some],
            lambda: known.entries(some),
        )
    return [
        Figure("d.items()", count / all_items, "a second", goal="at least 100,000"),
        Figure("list(d)", count / all_keys, "a second"),
        Figure("State.get", gets / len(some) * 1e6, "µs a key"),
        Figure("State.entries", entries / len(some) * 1e6, "µs a key"),
    ]


# -- memory: each number in a process of its own ------------------------------------------------

_MEMORY = """
import gc, sys
import pandas
from remotedict import LocalDictionary

def resident():
    gc.collect()
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))

with LocalDictionary(sys.argv[2]) as small:
    _ = "k" in small, small.index
before = resident()
d = LocalDictionary(sys.argv[1])
opened = resident() - before
_ = "k" in d
found = resident() - before
_ = d.index
print(opened, found, resident() - before)
"""


def weighed(where: Path, small: Path, keys: int) -> list[Figure]:
    """Return the growth of the resident memory of a fresh process (Linux)."""
    with LocalDictionary(small) as d:
        d["k"] = 1
    text = sum(len(key(n)) for n in range(keys)) / keys
    run = [sys.executable, "-c", _MEMORY, str(where), str(small)]
    grown = subprocess.run(run, capture_output=True, text=True, check=True)
    names = ("after open", "after the first `in`", "after d.index")
    return [
        Figure(
            f"memory {name}, beyond the keys' text",
            int(size) / keys - text,
            "bytes a key",
            goal="at most 250",
        )
        for name, size in zip(names, grown.stdout.split(), strict=True)
    ]


# -- what one more key costs ---------------------------------------------------------------------


class Counted(LocalBackend):
    """Counts requests, and the bytes that are put and got."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.seen: list[tuple[str, int]] = []

    def get(self, path: str, **options: Any) -> Any:
        """Get a blob, and note it."""
        got = super().get(path, **options)
        self.seen.append(("get", len(getattr(got, "data", b""))))
        return got

    def put(self, path: str, data: Any, **options: Any) -> Any:
        """Put a blob, and note it."""
        pieces = data if isinstance(data, bytes) else b"".join(data)
        self.seen.append(("put", len(pieces)))
        return super().put(path, pieces, **options)


def cost_of_one_more(where: Path) -> list[tuple[str, int]]:
    """Return the requests, with their bytes, of setting one new key."""
    with LocalDictionary(where) as d:
        d["warm"] = 0.5
        backend = d._engine.backend  # noqa: SLF001
        counted = Counted(str(where))
        backend.raw = counted
        d["one more"] = 0.5
        del d["warm"], d["one more"]
        return counted.seen[:2]


# -- the checkpoint's format ---------------------------------------------------------------------


class Format:
    """One way to store the columns of a checkpoint."""

    name = "checkpoint, to the first `in`"

    def __init__(self, state: State) -> None:
        self.state = state
        self.blob = b""

    def encode(self) -> None:
        """Make the blob."""
        self.blob = records.encode(*self.state.checkpoint(**IDS, previous="", horizon=0))

    def load(self) -> None:
        """Read it, as far as it must be for the first look-up."""
        assert key(0) in self.read()

    def read(self) -> State:
        """Return the state that the blob holds."""
        record, data = records.decode(self.blob, records.Checkpoint, "")
        return State.from_checkpoint(record, data, "")


class Whole(Format):
    """The checkpoint, with all of its columns unpacked."""

    name = "checkpoint, all columns"

    def load(self) -> None:
        """Read all of it."""
        list(self.read()._grown.base.columns.values())  # noqa: SLF001


class Arrow(Format):
    """The Arrow IPC file format."""

    name = "Arrow IPC, LZ4"

    def __init__(self, state: State) -> None:
        super().__init__(state)
        columns, keys = state._grown.base.columns, list(state)  # noqa: SLF001
        raw = columns["generation"][: len(keys)].tobytes()
        arrays = {
            name: columns[name][: len(keys)].astype("u8")
            for name in ("version", "order", "born", "blob", "offset", "length", "nbytes", "stamp")
        }
        generations = [raw[at : at + 16] for at in range(0, len(raw), 16)]
        self.table = pa.table({"key": keys, "generation": generations, **arrays})

    def encode(self) -> None:
        """Make the file."""
        out = pa.BufferOutputStream()
        pa.feather.write_feather(self.table, out, compression="lz4")
        self.blob = out.getvalue()

    def load(self) -> None:
        """Read all of it."""
        pa.feather.read_table(pa.BufferReader(self.blob))


class Parquet(Arrow):
    """Parquet, read by pandas."""

    name = "pandas Parquet, LZ4"

    def encode(self) -> None:
        """Make the file."""
        out = pa.BufferOutputStream()
        pq.write_table(self.table, out, compression="lz4")
        self.blob = out.getvalue()

    def load(self) -> None:
        """Read all of it."""
        pd.read_parquet(pa.BufferReader(self.blob))


class Msgpack(Arrow):
    """A list of rows in msgpack."""

    name = "msgspec msgpack"

    def __init__(self, state: State) -> None:
        super().__init__(state)
        columns = [self.table[name].to_pylist() for name in self.table.column_names]
        self.rows = list(zip(*columns, strict=True))

    def encode(self) -> None:
        """Make the bytes."""
        self.blob = msgspec.msgpack.encode(self.rows)

    def load(self) -> None:
        """Read all of it."""
        msgspec.msgpack.decode(self.blob)


def formats(where: Path, repeats: int) -> list[str]:
    """Return a table: a checkpoint beside Arrow IPC, msgpack and Parquet of the same columns."""
    with LocalDictionary(where) as d:
        state = d._engine.known().settled  # noqa: SLF001
    ways = [way(state) for way in (Format, Whole, Arrow, Msgpack, Parquet)]
    encoded = by_turns(repeats, *(way.encode for way in ways))
    loaded = by_turns(repeats, *(way.load for way in ways))
    lines = ["| format | bytes a key | encode, s | load, s |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {way.name} | {len(way.blob) / len(state):.1f} | {write:.3f} | {load:.3f} |"
        for way, write, load in zip(ways, encoded, loaded, strict=True)
    ]
    return lines


def measured(options: argparse.Namespace, where: Path, folder: Path) -> Iterator[Figure]:
    """Yield all figures."""
    yield filled(where, options.keys)
    yield from opened(where, folder / "table.parquet", options.repeats)
    yield from weighed(where, folder / "of-one", options.keys)
    yield from shown(where, options.repeats)
    yield from iterated(where, max(options.repeats // 3, 1))


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep the dictionary here, and use it again")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    where = folder / f"of-{options.keys}"
    print(f"remotedict at {options.keys:,} keys in a local folder\n")
    print("| what | | against | ratio | goal |\n| --- | --- | --- | --- | --- |")
    figures = []
    for figure in measured(options, where, folder):
        figures.append(figure)
        print(figure.row(), flush=True)
    filled(folder / "of-1000", 1000)
    few, many = cost_of_one_more(folder / "of-1000"), cost_of_one_more(where)
    print(f"\none more key, requests and bytes: {many}; of 1,000 keys: {few}\n", flush=True)
    table = formats(where, max(options.repeats // 2, 1))
    print("\n".join(table))
    if options.json:
        told = [{**figure._asdict(), "ratio": figure.ratio} for figure in figures]
        more = {"one more key": {"many": many, "few": few}, "formats": table}
        options.json.write_text(json.dumps({"keys": options.keys, "figures": told, **more}))


if __name__ == "__main__":
    main()
