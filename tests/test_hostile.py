"""Whoever can write to the store can't take memory, or reach outside, with what he writes."""

from __future__ import annotations

import dataclasses
import io
import tracemalloc
from typing import TYPE_CHECKING, Any

import lz4.block
import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from remotedict import LocalDictionary, MemoryDictionary, errors
from remotedict.backend import NOT_MODIFIED
from remotedict.pure import chunks, codec, naming, records

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Shop
    from remotedict import RemoteDict

LIMIT = 100_000
MIB = 1024 * 1024

# -- values that are too large ------------------------------------------------------------------

LARGE = {
    "bytes": bytes(LIMIT + 1),
    "array": np.zeros(LIMIT),
    "text": "x" * LIMIT,
    "list": [0] * LIMIT,
}
WRITES: dict[str, Callable[[RemoteDict, Any], Any]] = {
    "set": lambda d, value: d.__setitem__("large", value),
    "several": lambda d, value: d.__setitem__(["a", "large"], [1, value]),
    "update": lambda d, value: d.update(a=1, large=value),
    "put": lambda d, value: d.put("large", value),
    "setdefault": lambda d, value: d.setdefault("large", value),
    "modify": lambda d, value: d.modify("small", lambda _: value),
}


@pytest.mark.parametrize("codec_name", ["pickle", "safe"])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("value", LARGE.values(), ids=LARGE)
def test_a_value_that_is_too_large_is_not_written(write: Any, value: Any, codec_name: str) -> None:
    with MemoryDictionary(max_value_bytes=LIMIT, codec=codec_name) as d:
        d["small"] = bytes(LIMIT)
        before = {info.name for info in d._engine.backend.raw.list("")}
        with pytest.raises(errors.ValueTooLargeError, match="max_value_bytes") as caught:
            write(d, value)
        assert caught.value.nbytes > caught.value.limit == LIMIT
        assert {info.name for info in d._engine.backend.raw.list("")} == before
        assert list(d) == ["small"]


def test_a_file_that_is_too_large_is_not_uploaded() -> None:
    with MemoryDictionary(max_value_bytes=2 * MIB) as d:
        d.put_file("small", io.BytesIO(bytes(2 * MIB)))
        with pytest.raises(errors.ValueTooLargeError):
            d.put_file("large", io.BytesIO(bytes(2 * MIB + 1)))
        assert list(d) == ["small"]


READS: dict[str, Callable[[RemoteDict], Any]] = {
    "get": lambda d: d["large"],
    "several": lambda d: d[["small", "large"]],
    "pop": lambda d: d.pop("large"),
    "values": lambda d: list(d.values()),
    "snapshot": lambda d: d.snapshot()["large"],
    "mirror": lambda d: d.mirror()["large"],
    "prefetched": lambda d: d.mirror(prefetch=True)["large"],
    "past": lambda d: d.at("large", 1),
    "open": lambda d: d.open("large"),
    "get_file": lambda d: d.get_file("large", io.BytesIO()),
    "modify": lambda d: d.modify("large", lambda value: value),
}


@pytest.mark.parametrize("inline", [2048, 0])
@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_value_that_is_too_large_is_not_fetched(tmp_path: Path, read: Any, inline: int) -> None:
    with LocalDictionary(tmp_path, inline_bytes=inline) as d:
        d["small"] = bytes(10)
        d["large"] = np.random.default_rng(0).bytes(LIMIT + 1)
    with LocalDictionary(tmp_path, max_value_bytes=LIMIT) as d:
        before = d.stats.bytes_down
        with pytest.raises(errors.ValueTooLargeError, match="'large'"):
            read(d)
        assert d.stats.bytes_down - before < LIMIT
        assert d["small"] == bytes(10)
        assert d.mirror(prefetch=True)["small"] == bytes(10)


def test_a_value_that_takes_more_than_it_holds_is_not_fetched(tmp_path: Path) -> None:
    with LocalDictionary(tmp_path, inline_bytes=0) as d:
        d["k"] = b"x"
        entry = d._engine.now().state.get("k")
    lying = msgspec.structs.replace(entry, place=10 * MIB)
    with (
        LocalDictionary(tmp_path, max_value_bytes=LIMIT) as d,
        pytest.raises(errors.ValueTooLargeError),
    ):
        d._engine.values.fetch(lying.location("k"))


def test_a_large_value_that_was_replaced_meanwhile_is_no_error(tmp_path: Path) -> None:
    with LocalDictionary(tmp_path) as other, LocalDictionary(tmp_path, max_value_bytes=LIMIT) as d:
        other["k"], other["l"] = np.random.default_rng(0).bytes(2 * LIMIT), 1
        assert len(d) == 2
        other["k"] = b"small"
        assert d["k"] == b"small"
        assert d[["k", "l"]] == [b"small", 1]


@pytest.mark.parametrize("value", [-1, "1", True, float("nan")])
def test_the_limit_is_a_number(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="max_value_bytes"):
        MemoryDictionary(max_value_bytes=value)


# -- bombs --------------------------------------------------------------------------------------

MINE = {"dictionary": b"d" * 16, "generation": b"g" * 16}


def bomb(claims: int, body: bytes, chunk: int = (1 << 32) - 1, kind: int = 0) -> bytes:
    """Return a value, right in all its checksums, that claims to hold so many bytes."""
    about = msgspec.msgpack.encode(codec.About("k", "3", "", []))
    fields = (len(about), chunk, *MINE.values(), claims)
    unchecked = codec._START.pack(chunks.MAGIC, 1, kind, 0, 0, *fields) + about
    checksum = codec.digest(unchecked[codec._CHECKED :], codec._seed(unchecked))
    head = codec._START.pack(chunks.MAGIC, 1, kind, 0, checksum, *fields) + about
    return head + chunks.HEADER.pack(codec.digest(body, checksum), len(body)) + body


ZEROS = lz4.block.compress(bytes(100 * MIB), store_size=False)


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize(
    ("claims", "body"),
    [
        (1 << 60, b"x" * 100),
        (1 << 62, ZEROS),
        (4 << 30, b"x" * 100),
        (300 * MIB, b"\x00" * MIB),
        (100 * MIB + 1, ZEROS),
        (100 * MIB - 1, ZEROS),
    ],
)
def test_a_claim_takes_no_more_memory_than_could_be_true(
    claims: int, body: bytes, kind: int
) -> None:
    blob = bomb(claims, body, kind=kind)
    tracemalloc.start()
    try:
        for nbytes in (claims, LIMIT):
            assert codec.intact(blob, *MINE.values(), nbytes) is None
            with pytest.raises(errors.CorruptBlobError):
                codec.unpack(blob, len(blob), **MINE, path="p", nbytes=nbytes)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * 255 * len(body) + MIB


def test_a_claim_of_more_than_two_gigabytes_is_looked_at_closer() -> None:
    claims = (1 << 31) + 5
    blob = bomb(claims, bytes(claims // 255 + 1))
    assert codec.intact(blob, *MINE.values(), claims) is None


def test_a_value_holds_what_the_index_says(tmp_path: Path) -> None:
    """An honest bomb of 400 KB: 100 MiB of zeros, which the index says are a few bytes."""
    blob = bomb(100 * MIB, ZEROS)
    assert len(blob) < 500_000
    tracemalloc.start()
    try:
        with pytest.raises(errors.CorruptBlobError, match="more than the index says"):
            codec.unpack(blob, len(blob), **MINE, path="p", nbytes=10)
        assert codec.intact(blob, *MINE.values(), 10) is None
        assert tracemalloc.get_traced_memory()[1] < 2 * MIB
    finally:
        tracemalloc.stop()
    assert codec.unpack(blob, len(blob), **MINE, path="p")[1] == [bytes(100 * MIB)]


FAR, LONG = records.COUNT_MAX - 616, 1 << 60
PLACES = {
    "long": lambda place: replace(place, length=LONG),
    "far": lambda place: replace(place, offset=FAR),
    "far and long": lambda place: replace(place, offset=FAR, length=FAR),
}
LOOKS: dict[str, Callable[[RemoteDict], Any]] = {
    "one": lambda d: d["k2"],
    "several": lambda d: d[["k1", "k2"]],
    "all": lambda d: list(d.items()),
    "backwards": lambda d: list(reversed(d.items())),
    "as a file": lambda d: d.open("k2").read(),
}


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_place_that_no_blob_has_is_an_error_at_once(
    shop: Shop, place: Any, settled: bool
) -> None:
    """However large it is said to be: only what is there takes memory, and time."""
    d = shop.open(inline_bytes=1)
    d.update({f"k{n}": b"%d" % n * 1000 for n in range(5)})
    backend, path = d._engine.backend.raw, d._engine.layout.index
    index, _ = records.decode(backend.get(path).data, records.Index, path)

    def claimed(change: Any) -> Any:
        return replace(change, place=place(change.place)) if change.key == "k2" else change

    [commit] = index.tail
    forged = replace(commit, changes=[claimed(change) for change in commit.changes])
    got = backend.get(path)
    backend.put(path, records.encode(replace(index, tail=[forged]), ()), if_match=got.etag)
    for look in LOOKS.values():
        reader = shop.open()
        if settled:  # in columns
            known = reader._engine.now()
            reader._engine.index.known = dataclasses.replace(known, state=known.state.rebased())
        tracemalloc.start()
        with pytest.raises((errors.CorruptBlobError, errors.MissingValueError)):
            look(reader)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8 * MIB
    assert shop.open()["k1"] == b"1" * 1000
    [finding] = shop.open().verify().findings
    assert "k2" in finding.keys


def test_metadata_of_another_form_are_an_error(tmp_path: Path) -> None:
    """A record may hold any text as metadata."""
    deep = "[" * 30_000 + "]" * 30_000
    for text in (f'{{"a": {deep}}}', "[1]", "{", "nonsense", '{"a": 1e999999}' * 2):
        with LocalDictionary(tmp_path / str(len(text))) as d:
            d["k"] = 1
            change = records.Annotate("k", 1, text)
            d._engine.commit(lambda _, change=change: [change])
            for read in (lambda d: dict(d.metadata["k"]), lambda d: d.query(a=1)):
                with pytest.raises(errors.RemoteDictError):
                    read(d)


def test_metadata_that_are_too_deep_are_not_written() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    with MemoryDictionary() as d:
        d["k"] = 1
        with pytest.raises(errors.MetadataError):
            d.metadata["k"] = {"a": deep}


def test_the_codec_of_an_unknown_number_is_a_newer_one() -> None:
    with pytest.raises(errors.FormatVersionError):
        codec.unpack(bomb(1, b"x", kind=3), 200, **MINE, path="p")


# -- paths --------------------------------------------------------------------------------------

KEYS = [
    *("..", ".", "../x", "../../etc/passwd", "/etc/passwd", "..\\x", "C:\\x", "a/../../b"),
    *("~lock", "~tmp-1", ".packs", "Index", "index", "con", "nul.txt", "%2e%2e%2f", "a\0b"),
    *("\u202e", "ü/ü", "x" * 5000, " ", "a\nb", "=2E=2E", "v:../x", "\uff0e\uff0e/"),
]


def test_no_key_leads_out_of_its_folder(shop: Shop) -> None:
    d = shop.open(inline_bytes=0)
    for n, key in enumerate(KEYS):
        d[key] = n
        with d.lock(key):
            pass
    assert {key: d[key] for key in KEYS} == {key: n for n, key in enumerate(KEYS)}
    for info in d._engine.backend.raw.list(""):
        assert info.name.startswith(("default/", "Index/default/"))
        assert not {"..", ".", ""} & {*info.name.split("/")}
        got = d._engine.backend.raw.get(info.name)
        assert got is not NOT_MODIFIED
    assert all(path.startswith("default/") for path in d.index)


REFERENCES = [
    *("v:../x/000000000001-" + "0" * 32, "v:a/../000000000001-" + "0" * 32, "p:../x", "x:y"),
    *("v:a/000000000001-" + "0" * 32 + "\n", "/etc/passwd", "p:..", "s:000000000001-" + "g" * 32),
    *("v:a\\b/000000000001-" + "0" * 32, "v:/000000000001-" + "0" * 32, "v:a.b/1-" + "0" * 32),
    *("s:00000000000\u0661-" + "0" * 32, "s:" + "1" * 5000 + "-" + "0" * 32, "V:a/b", "v", ":"),
]


@pytest.mark.parametrize("reference", REFERENCES)
def test_no_reference_leads_out_of_its_folder(reference: str) -> None:
    raw = msgspec.msgpack.encode([reference, 0, 1])
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(raw, type=records.Range)
    good = f"v:{naming.escape('../x')}/{naming.unique(1, bytes(16))}"
    assert msgspec.msgpack.decode(msgspec.msgpack.encode([good, 0, 1]), type=records.Range)
