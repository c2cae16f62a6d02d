"""How often the bytes of a value are copied on their way: ``python benchmarks/copies.py``.

Every place in which remotedict itself moves the bytes of a value is counted, per byte of the value;
and the most memory that is taken at once beyond the value. What a client library does with the
blocks that it is given, and to make those that it returns, is its own.
"""

from __future__ import annotations

import argparse
import tracemalloc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from remotedict.backend import Got, pieces
from remotedict.backend.memory import MemoryBackend
from remotedict.dictionary import RemoteDict
from remotedict.pure import chunks, codec, lz4
from remotedict.pure.pieces import Pieces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remotedict.backend import Data
    from remotedict.engine.runtime import Runtime

MIB = 1 << 20


class Moves:
    """What was counted, in bytes.

    Attributes
    ----------
    copied : int
        Moved as they are.
    packed, unpacked : int
        Before and after LZ4, which writes them where they belong.
    joined : int
        Moved to lie together: what came in two pieces.
    peak : int
        The most memory that was taken at once.
    """

    def __init__(self) -> None:
        self.copied = self.packed = self.unpacked = self.joined = self.peak = 0


@contextmanager
def counted() -> Iterator[Moves]:
    """Count what is moved meanwhile, in all threads."""
    moves = Moves()
    copy, take = chunks.copy, codec.Source.take
    pack, unpack = lz4.deflate_into, lz4.inflate_into

    def counting_copy(source: Any, target: Any) -> None:
        moves.copied += len(source)
        copy(source, target)

    def counting_pack(data: Any, out: Any) -> int:
        moves.packed += len(data)
        return pack(data, out)

    def counting_unpack(block: Any, out: Any) -> None:
        moves.unpacked += len(out)
        unpack(block, out)

    def counting_take(source: Any, size: int) -> memoryview:
        found = take(source, size)
        # What is part of a piece is a view of it; what was joined fills a buffer of its own.
        moves.joined += size if len(found.obj) == size else 0
        return found

    with (
        mock.patch.object(chunks, "copy", counting_copy),
        mock.patch.object(lz4, "deflate_into", counting_pack),
        mock.patch.object(lz4, "inflate_into", counting_unpack),
        mock.patch.object(codec.Source, "take", counting_take),
    ):
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            yield moves
            moves.peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()


class Wire(MemoryBackend):
    """A store that copies nothing: large blobs are kept in the blocks that they came in.

    Attributes
    ----------
    keeps : bool
        Whether large blobs are kept at all. Else their blocks are gone as soon as the next comes.
    """

    keeps = True

    def __init__(self) -> None:
        super().__init__()
        self._large: dict[str, Pieces] = {}

    def put(self, path: str, data: Data, **conditions: Any) -> str:
        """See `Backend.put`."""
        if "/index" in path or isinstance(data, bytes):
            return super().put(path, data, **conditions)
        blocks = []
        for block in pieces(data):
            blocks.append(block)
            if not self.keeps:
                del blocks[:-1]
        self._large[path] = Pieces(blocks)
        return "large"

    def get(self, path: str, *, range: Any = None, if_none_match: Any = None) -> Any:  # noqa: A002
        """See `Backend.get`."""
        if path not in self._large:
            return super().get(path, range=range, if_none_match=if_none_match)
        found = self._large[path][range[0] : range[0] + range[1]]
        return Got(bytes(found) if isinstance(found, Pieces) else found, "large")

    def refit(self, size: int) -> None:
        """Keep large blobs in blocks of another size, as they will be asked for."""
        for path, blocks in self._large.items():
            whole = bytes(blocks)
            cuts = [whole[at : at + size] for at in range(0, len(whole), size)]
            self._large[path] = Pieces(cuts)


class _Place:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def backend(self, timeout: float, runtime: Runtime) -> Wire:
        del timeout, runtime
        return self._wire

    def describe(self) -> str:
        return "memory"


def opened(wire: Wire, **options: Any) -> RemoteDict:
    """Return a dictionary on such a store."""
    return RemoteDict(_Place(wire), "copies", **options)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=64, help="size of the values")
    size = parser.parse_args().mib * MIB
    noise = np.random.default_rng(0).bytes(size)
    values = {
        "array, random": np.frombuffer(noise, "<u8"),
        "array, rounded": np.random.default_rng(0).standard_normal(size // 8).round(2),
        "bytes, random": noise,
    }
    print("| value | | copied | packed | unpacked | joined | memory |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, value in values.items():
        wire = Wire()
        d = opened(wire)
        d["warm"] = np.zeros(2 * MIB)
        wire.keeps = False
        with counted() as moves:
            d["k"] = value
        _print(name, "set", moves, size)
        wire.keeps = True
        d["k"] = value
        wire.refit(8 * MIB)
        for what in ("get", "get again"):
            with counted() as moves:
                read = d["k"]
            _print(name, what, moves, size)
            del read
        d.close()


def _print(name: str, what: str, moves: Moves, size: int) -> None:
    counts = (moves.copied, moves.packed, moves.unpacked, moves.joined, moves.peak)
    print(f"| {name} | {what} | " + " | ".join(f"{n / size:.3f}" for n in counts) + " |")


if __name__ == "__main__":
    main()
