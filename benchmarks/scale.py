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

from remotedict import LocalDictionary
from remotedict.backend.local import LocalBackend
from remotedict.pure import records
from remotedict.pure.state import State

if TYPE_CHECKING:
    from collections.abc import Callable

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
            assert key(0) in d  # noqa: S101

    mine, theirs = by_turns(repeats, first_in, lambda: pd.read_parquet(parquet))
    checkpoint = max((where / "Index/default/checkpoints").iterdir(), key=os.path.getmtime)
    return [
        Figure("open, and first `in`", mine, "s", theirs, "≤ 1.5 × pd.read_parquet"),
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

        figures = [
            Figure("d.index", *_rounded(by_turns(repeats, mine, theirs)), "≤ 2 × a Series of lists")
        ]
    return figures


def _rounded(times: list[float]) -> tuple[float, str, float]:
    mine, theirs = times
    return mine, "s", theirs


def iterated(where: Path, repeats: int) -> list[Figure]:
    """Return how fast keys, values and single reads of the index come."""
    with LocalDictionary(where) as d:
        count = len(d)

        def items() -> None:
            for _ in d.items():
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
        Figure("d.items()", count / all_items, "a second", goal="≥ 100,000"),
        Figure("list(d)", count / all_keys, "a second"),
        Figure("State.get", gets / len(some) * 1e6, "µs a key"),
        Figure("State.entries", entries / len(some) * 1e6, "µs a key"),
    ]


# -- memory: each number in a process of its own ------------------------------------------------

_MEMORY = """
import os, sys, gc
from remotedict import LocalDictionary
import pandas, numpy, remotedict.pure.state
import pandas.core.arrays.string_arrow
def resident():
    gc.collect()
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
pandas.Series(["a"], index=pandas.Index(["b"], dtype="str"), dtype="str")
with LocalDictionary(sys.argv[2]) as small:
    "k" in small, small.index
    before = resident()
    d = LocalDictionary(sys.argv[1])
    text = sum(len(k.encode()) for block in d._engine.known().state.blocks() for k in block)
    print(text)
    del d
d = None
gc.collect()
"""
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
    grown = subprocess.run(run, capture_output=True, text=True, check=True)  # noqa: S603
    names = ("after open", "after the first `in`", "after d.index")
    return [
        Figure(
            f"memory {name}, beyond the keys' text",
            int(size) / keys - text,
            "bytes a key",
            goal="≤ 250",
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
        got = super().get(path, **options)
        self.seen.append(("get", len(getattr(got, "data", b""))))
        return got

    def put(self, path: str, data: Any, **options: Any) -> Any:
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


def formats(where: Path, repeats: int) -> list[str]:
    """Return a table: a checkpoint beside Arrow IPC, msgpack and Parquet of the same columns."""
    with LocalDictionary(where) as d:
        known = d._engine.known()  # noqa: SLF001
        state: State = known.settled
        columns = dict(state._grown.base.columns)  # noqa: SLF001
        keys = list(state)
    live = len(keys)
    fields = ("version", "order", "born", "blob", "offset", "length", "nbytes", "stamp")
    frame = pd.DataFrame({name: columns[name][:live].astype("u8") for name in fields})
    generations = columns["generation"][:live].tobytes()
    frame.insert(0, "key", pd.Series(keys, dtype="str"))
    frame["generation"] = pd.arrays.ArrowExtensionArray(
        pa.array([generations[at : at + 16] for at in range(0, len(generations), 16)])
    )
    table = pa.Table.from_pandas(frame)
    rows = [msgspec.convert(row, tuple) for row in frame.itertuples(index=False, name=None)]
    rows = [[*row[:-1], bytes(row[-1])] for row in rows]
    folder = Path(tempfile.mkdtemp(dir=where.parent))
    packed: dict[str, bytes] = {}

    def checkpoint() -> None:
        record, data = state.checkpoint(**IDS, previous="", horizon=0)
        packed["checkpoint"] = records.encode(record, data)

    def load_checkpoint() -> None:
        record, data = records.decode(packed["checkpoint"], records.Checkpoint, "")
        assert key(0) in State.from_checkpoint(record, data, "")  # noqa: S101

    def load_whole_checkpoint() -> None:
        record, data = records.decode(packed["checkpoint"], records.Checkpoint, "")
        read = State.from_checkpoint(record, data, "")
        list(read._grown.base.columns.values())  # noqa: SLF001

    def ipc(load: bool) -> None:
        if load:
            pa.feather.read_table(folder / "ipc")
        else:
            pa.feather.write_feather(table, folder / "ipc", compression="lz4")

    def parquet(load: bool) -> None:
        if load:
            pd.read_parquet(folder / "parquet")
        else:
            frame.to_parquet(folder / "parquet", compression="lz4")

    def msgpack(load: bool) -> None:
        if load:
            msgspec.msgpack.decode((folder / "msgpack").read_bytes())
        else:
            (folder / "msgpack").write_bytes(msgspec.msgpack.encode(rows))

    writes = [checkpoint, lambda: ipc(False), lambda: msgpack(False), lambda: parquet(False)]
    encoded = by_turns(repeats, *writes)
    loaded = by_turns(
        repeats, load_checkpoint, lambda: ipc(True), lambda: msgpack(True), lambda: parquet(True)
    )
    [whole] = by_turns(repeats, load_whole_checkpoint)
    sizes = [len(packed["checkpoint"])]
    sizes += [(folder / name).stat().st_size for name in ("ipc", "msgpack", "parquet")]
    names = ("checkpoint, to the first `in`", "Arrow IPC, LZ4", "msgspec msgpack", "Parquet, LZ4")
    lines = ["| format | bytes a key | encode, s | load, s |", "| --- | --- | --- | --- |"]
    for name, size, write, load in zip(names, sizes, encoded, loaded, strict=True):
        lines.append(f"| {name} | {size / live:.1f} | {write:.3f} | {load:.3f} |")
    lines.append(f"| checkpoint, all columns | {sizes[0] / live:.1f} | | {whole:.3f} |")
    return lines


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
    figures = [filled(where, options.keys)]
    figures += opened(where, folder / "table.parquet", options.repeats)
    figures += weighed(where, folder / "of-one", options.keys)
    figures += shown(where, options.repeats)
    figures += iterated(where, max(options.repeats // 2, 1))
    filled(folder / "of-1000", 1000)
    few, many = cost_of_one_more(folder / "of-1000"), cost_of_one_more(where)
    print(f"remotedict at {options.keys:,} keys in a local folder\n")
    print("| what | | against | ratio | goal |\n| --- | --- | --- | --- | --- |")
    for figure in figures:
        print(figure.row())
    print(f"\none more key, requests and bytes: {many}; of 1,000 keys: {few}\n")
    table = formats(where, max(options.repeats // 2, 1))
    print("\n".join(table))
    if options.json:
        told = [{**figure._asdict(), "ratio": figure.ratio} for figure in figures]
        more = {"one more key": {"many": many, "few": few}, "formats": table}
        options.json.write_text(json.dumps({"keys": options.keys, "figures": told, **more}))


if __name__ == "__main__":
    main()
