"""Bad input gets a typed error that says what to do, and the dictionary stays as it was."""

from __future__ import annotations

import pickle
import random
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pandas as pd
import pytest
import xxhash

import remotedict
from remotedict import LocalDictionary, MemoryDictionary, RemoteDictError, errors
from remotedict.backend import NOT_MODIFIED
from remotedict.pure import records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Shop
    from remotedict import RemoteDict

PLAIN = {"a": 1, "b": "two", "own": random.Random(0).randbytes(9000)}


def stored(d: RemoteDict) -> dict[str, tuple[bytes, str]]:
    """Return every blob with its bytes and its etag, past all caches."""
    backend = d._engine.backend.raw
    blobs = {}
    for info in backend.list(""):
        got = backend.get(info.name)
        assert got is not NOT_MODIFIED
        blobs[info.name] = got.data, got.etag
    return blobs


@contextmanager
def refused(
    d: RemoteDict, error: type[RemoteDictError], builtin: type[Exception], *says: str
) -> Iterator[pytest.ExceptionInfo[Any]]:
    """See that what is done within raises `error`, that it `says` this, and changes no blob."""
    before = stored(d)
    with pytest.raises(error) as caught:
        yield caught
    assert isinstance(caught.value, RemoteDictError)
    assert isinstance(caught.value, builtin)
    for words in says:
        assert words in str(caught.value)
    assert stored(d) == before


def said_by(error: BaseException, kind: type[Exception]) -> Any:
    """Return the error of this kind: this one, or the reason why a write's outcome is unknown.

    Whether it was applied can't be learnt from an index that can't be read: the store's "no" may
    be the answer to a request that was delivered twice.
    """
    if isinstance(error, errors.UnknownOutcomeError):
        assert error.__cause__ is not None
        return said_by(error.__cause__, kind)
    assert isinstance(error, kind)
    return error


@pytest.fixture
def full(d: RemoteDict) -> RemoteDict:
    """A dictionary on each backend with something in it."""
    for key, value in PLAIN.items():
        d[key] = value
    return d


@pytest.fixture
def m() -> Iterator[RemoteDict]:
    """A dictionary in memory with something in it."""
    with MemoryDictionary() as d:
        for key, value in PLAIN.items():
            d[key] = value
        yield d


# -- keys -------------------------------------------------------------------------------------


class Mute:
    """Something that can't even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError


BAD_KEYS = {
    "int": (5, "str, not int"),
    "none": (None, "str, not NoneType"),
    "bytes": (b"a", "str, not bytes"),
    "set": ({"a"}, "str, not set"),
    "dict": ({"a": 1}, "str, not dict"),
    "slice": (slice("a", "b"), "str, not slice"),
    "generator": ((key for key in "ab"), "str, not generator"),
    "frame": (pd.DataFrame({"a": ["a"]}), "str, not DataFrame"),
    "mute": (Mute(), "str, not Mute"),
    "empty": ("", "empty"),
    "surrogate": ("a\ud800b", "surrogate"),
    "list of int": (["a", 1], "str, not int"),
    "nested": ([["a", "b"]], "str, not list"),
    "empty among others": (("a", ""), "empty"),
    "array of int": (np.array([1, 2]), "str, not"),
    "array of bytes": (np.array([b"a"]), "str, not"),
    "index of int": (pd.Index([1, 2]), "str, not"),
    "multi-index": (pd.MultiIndex.from_tuples([("a", "b")]), "str, not tuple"),
    "2-d array": (np.array([["a", "b"]]), "1-d"),
    "0-d array": (np.array("a"), "1-d"),
}
ACTS: dict[str, Callable[[Any, Any], Any]] = {
    "get": lambda d, key: d[key],
    "set": lambda d, key: d.__setitem__(key, [1, 2]),
    "del": lambda d, key: d.__delitem__(key),
    "lock_item": lambda d, key: d.lock_item(key),
    "unlock_item": lambda d, key: d.unlock_item(key),
    "lock": lambda d, key: d.lock(key),
}
SINGLE: dict[str, Callable[[Any, Any], Any]] = {
    "get()": lambda d, key: d.get(key),
    "pop": lambda d, key: d.pop(key),
    "pop default": lambda d, key: d.pop(key, None),
    "setdefault": lambda d, key: d.setdefault(key, 1),
    "update": lambda d, key: d.update([("new", 1), (key, 1)]),
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
@pytest.mark.parametrize(("key", "says"), BAD_KEYS.values(), ids=BAD_KEYS)
def test_what_cannot_be_a_key_is_refused(
    m: RemoteDict, act: Callable[[Any, Any], Any], key: Any, says: str
) -> None:
    with refused(m, RemoteDictError, TypeError, says) as caught:
        act(m, key)
    assert isinstance(caught.value, errors.InvalidKeyError | errors.SelectionError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("act", SINGLE.values(), ids=SINGLE)
@pytest.mark.parametrize("key", [5, None, b"a", "", "\ud800", ("a", "b"), frozenset("a")])
def test_one_key_is_asked_for_where_one_is_meant(
    m: RemoteDict, act: Callable[[Any, Any], Any], key: Any
) -> None:
    with refused(m, errors.InvalidKeyError, TypeError, "key"):
        act(m, key)


def test_a_long_key_is_no_bad_one(full: RemoteDict) -> None:
    for key in ("k" * 100_000, "ä" * 20_000):
        full[key] = key
        assert full[key] == key
        del full[key]
    assert full == PLAIN


# -- several keys -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "xy",
        b"xy",
        {"a": 1, "b": 2},
        {1, 2},
        pd.DataFrame({"x": [1, 2]}),
        pd.Series([1, 2]),
        np.array([1, 2]),
        iter([1, 2]),
        range(2),
        5,
        None,
    ],
    ids=lambda value: type(value).__name__,
)
def test_several_keys_take_a_list_or_a_tuple_only(m: RemoteDict, value: Any) -> None:
    with refused(m, errors.SelectionError, TypeError, "list or a tuple", type(value).__name__):
        m["a", "b"] = value


@pytest.mark.parametrize("values", [[], [1], [1, 2, 3], ()])
def test_keys_and_values_must_be_as_many(full: RemoteDict, values: Any) -> None:
    with refused(full, errors.SelectionError, ValueError, "2 keys", f"{len(values)} values"):
        full["a", "new"] = values


def test_a_key_twice_is_refused_where_it_is_ambiguous(full: RemoteDict) -> None:
    with refused(full, errors.SelectionError, ValueError, "'a'", "once"):
        full["a", "b", "a"] = 1, 2, 3
    with refused(full, errors.SelectionError, ValueError, "'a'", "once"):
        del full["a", "b", "a"]


@pytest.mark.parametrize("act", ["get", "del"])
def test_all_missing_keys_of_a_batch_are_named(full: RemoteDict, act: str) -> None:
    with refused(full, errors.KeyNotFoundError, KeyError, "'x'", "'y'") as caught:
        ACTS[act](full, ["x", "a", "y"])
    assert caught.value.keys == ("x", "y")


@pytest.mark.parametrize("act", ["get", "del"])
def test_one_missing_key_is_named_too(full: RemoteDict, act: str) -> None:
    with refused(full, errors.KeyNotFoundError, KeyError, "'x'") as caught:
        ACTS[act](full, "x")
    assert caught.value.keys == ("x",)
    with refused(full, errors.KeyNotFoundError, KeyError, "'x'"):
        full.pop("x")


# -- values -----------------------------------------------------------------------------------


class Refusing:
    """Pickles by raising what it is told."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


def deep() -> list[Any]:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    return nested


@pytest.mark.parametrize(
    "make",
    [
        threading.Lock,
        lambda: (i for i in range(3)),
        lambda: Refusing(KeyError("x")),
        lambda: Refusing(RuntimeError("x")),
        lambda: {"deep": [threading.Lock()]},
        deep,
    ],
    ids=["lock", "generator", "KeyError", "RuntimeError", "nested", "deep"],
)
def test_a_value_that_cannot_be_pickled_is_named_by_its_key(m: RemoteDict, make: Any) -> None:
    value = make()
    with refused(m, errors.UnpicklableValueError, TypeError, "'the key'") as caught:
        m["the key"] = value
    assert caught.value.key == "the key"
    with refused(m, errors.UnpicklableValueError, TypeError, "'the key'"):
        m["a", "the key"] = 1, value
    with refused(m, errors.UnpicklableValueError, TypeError, "'the key'"):
        m.update({"a": 1, "the key": value, "z": 2})
    with refused(m, errors.UnpicklableValueError, TypeError, "'the key'"):
        m.setdefault("the key", value)


def missing_module() -> Any:
    raise ModuleNotFoundError(name="nowhere")


class Unloadable:
    """Pickles well, and can't be made again."""

    def __reduce__(self) -> Any:
        return missing_module, ()


def test_a_value_that_cannot_be_made_again_is_named_and_can_be_replaced(m: RemoteDict) -> None:
    m["the key"] = Unloadable()
    reads = [
        lambda: m["the key"],
        lambda: m.get("the key", 5),
        lambda: m["a", "the key"],
        lambda: m.pop("the key"),
        m.popitem,
        m.copy,
        lambda: list(m.values()),
    ]
    for read in reads:
        with refused(m, errors.UnreadableValueError, ValueError, "'the key'", "Python 3") as caught:
            read()
        assert caught.value.key == "the key"
    m["the key"] = "mended"
    assert m["the key"] == "mended"


# -- names and options ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder",
    ["Index", "INDEX", "index", "", "a/b", "a\\b", "..", "../x", "x..y", ".", "\ud800", 5, None],
)
def test_a_folder_that_cannot_be_is_refused(shop: Shop, folder: Any) -> None:
    with pytest.raises(errors.InvalidNameError, match=r"folder name") as caught:
        shop.open(folder_name=folder)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"timeout": 0}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"timeout": "5"}, TypeError),
        ({"timeout": float("nan")}, ValueError),
        ({"max_staleness": -1}, ValueError),
        ({"inline_bytes": -1}, ValueError),
        ({"inline_bytes": True}, TypeError),
        ({"cache_bytes": None}, TypeError),
        ({"author": 5}, TypeError),
        ({"unknown": 5}, TypeError),
    ],
    ids=str,
)
def test_an_option_that_makes_no_sense_is_refused(options: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        MemoryDictionary(**options)


@pytest.mark.parametrize(
    ("duration", "error"),
    [
        *((wrong, ValueError) for wrong in (0, 0.5, -2, float("nan"), float("inf"))),
        *((wrong, TypeError) for wrong in ("5", True, None, [5])),
    ],
)
def test_a_lock_has_a_duration_that_makes_sense(
    m: RemoteDict, duration: Any, error: type[Exception]
) -> None:
    before = stored(m)
    with pytest.raises(error, match="duration"):
        m.lock_item("a", duration=duration)
    if duration is not None:
        with pytest.raises(error, match="duration"):
            m.lock("a", duration=duration)
    assert stored(m) == before


@pytest.mark.parametrize(
    "url", ["s3://bucket/x", "", "memory://x/../Index", "az://", "file://host/x"]
)
def test_a_url_that_is_no_place_is_refused(url: str) -> None:
    with pytest.raises(errors.InvalidNameError):
        remotedict.open(url, folder_name="Index")


@pytest.mark.parametrize("path", ["", "a\0b", 5, None, b"/tmp", __file__])
def test_a_path_that_is_no_folder_is_refused(path: Any) -> None:
    with pytest.raises(errors.InvalidNameError):
        LocalDictionary(path)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that takes no folders")
def test_a_folder_that_cannot_be_made_is_said() -> None:
    d = LocalDictionary("/proc/nowhere")
    assert not d
    with pytest.raises(RemoteDictError, match="nowhere"):
        d["a"] = 1
    d.close()


# -- what is stored ---------------------------------------------------------------------------


def tampered(d: RemoteDict, path: str, data: bytes) -> None:
    d._engine.backend.raw.put(path, data)


def blob(d: RemoteDict, path: str) -> bytes:
    return bytes(stored(d)[path][0])


READS: list[Callable[[RemoteDict], Any]] = [
    lambda d: d["a"],
    len,
    list,
    lambda d: "a" in d,
    lambda d: d.copy(),
    lambda d: d.index,
    lambda d: d.get("z"),
]
WRITES: list[Callable[[RemoteDict], Any]] = [
    lambda d: d.__setitem__("a", 1),
    lambda d: d.update(x=1, y=2),
    lambda d: d.__delitem__("a"),
    lambda d: d.clear(),
    lambda d: d.pop("z", None),
    lambda d: d.lock_item("a"),
]


@pytest.mark.parametrize("garbage", ["empty", "text", "half", "tail", "flipped"])
def test_garbage_in_the_index_is_said_by_all_and_overwritten_by_none(
    shop: Shop, full: RemoteDict, garbage: str
) -> None:
    index = full._engine.layout.index
    good = blob(full, index)
    flipped = bytearray(good)
    flipped[-5] ^= 1
    bad = {
        "empty": b"",
        "text": b"<html>not found</html>" * 5,
        "half": good[: len(good) // 2],
        "tail": good + b"x",
        "flipped": bytes(flipped),
    }[garbage]
    tampered(full, index, bad)
    for act in READS:
        with refused(full, errors.CorruptBlobError, ValueError, index) as caught:
            act(full)
        assert caught.value.blob == index
    for act in WRITES:
        with refused(full, errors.RemoteDictError, Exception, index, "damaged") as caught:
            act(full)
        assert said_by(caught.value, errors.CorruptBlobError).blob == index
    anew = shop.open()  # to repair it, and for nothing else
    for act in [*READS, *WRITES]:
        with refused(anew, errors.RemoteDictError, Exception, index, "damaged") as caught:
            act(anew)
        assert said_by(caught.value, errors.CorruptBlobError).blob == index
    assert "CorruptBlobError" in repr(full)
    tampered(full, index, good)
    assert full == PLAIN


@pytest.mark.parametrize("newer", ["version", "feature"])
def test_an_index_of_a_newer_format_asks_for_an_upgrade(
    shop: Shop, full: RemoteDict, newer: str
) -> None:
    index = full._engine.layout.index
    good = blob(full, index)
    if newer == "version":
        bad = bytearray(good[:24]) + bytes(8) + good[32:]
        bad[4] += 1  # and a checksum that knows: else it would be damaged, and not newer
        bad[24:32] = xxhash.xxh3_64_intdigest(bytes(bad)).to_bytes(8, "little")
    else:
        record, _ = records.decode(good, records.Index, index)
        bad = records.encode(msgspec.structs.replace(record, features=["time-travel"]))
    tampered(full, index, bytes(bad))
    for act in READS:
        with refused(full, errors.FormatVersionError, ValueError, index, "Upgrade"):
            act(full)
    for act in WRITES:
        with refused(full, errors.RemoteDictError, Exception, index, "Upgrade") as caught:
            act(full)
        assert said_by(caught.value, errors.FormatVersionError)
    with pytest.raises(errors.FormatVersionError):
        shop.open()


def pieces_of(path: str, data: bytes) -> dict[str, bytes]:
    """Return `data`, damaged in each of its regions."""
    length = len(data)
    places = {"magic": 1, "version": 4, "header length": 8, "header checksum": 14}
    places |= {"header": 25, "chunk": length // 2, "end": length - 1}
    flipped = {name: bytearray(data) for name in places}
    for name, at in places.items():
        flipped[name][at] ^= 0x55
    damaged = {name: bytes(bad) for name, bad in flipped.items()}
    return damaged | {
        "empty": b"",
        "half": data[: length // 2],
        "one byte less": data[:-1],
        "zeros": bytes(length),
        "other": random.Random(path).randbytes(length),
    }


@pytest.mark.parametrize("size", [9000, 2_500_000], ids=["one chunk", "several chunks"])
def test_a_damaged_value_is_never_returned(shop: Shop, size: int) -> None:
    d = shop.open(cache_bytes=0)
    value = random.Random(size).randbytes(size)
    d["a"] = 1
    d["x"] = value
    path = d.index["x"]
    good = blob(d, path)
    for name, bad in pieces_of(path, good).items():
        tampered(d, path, bad)
        reads = [lambda: d["x"], lambda: d["a", "x"], d.copy, lambda: list(d.values())]
        for read in reads[: len(reads) if size < 10_000 else 1]:
            with pytest.raises(RemoteDictError, match="x") as caught:
                read()
            assert isinstance(caught.value, ValueError | LookupError), name
            assert caught.value.blob == path, name
        assert (len(d), d["a"], "x" in d) == (2, 1, True)
    tampered(d, path, good)
    assert d["x"] == value


def test_a_value_in_another_ones_place_is_noticed(m: RemoteDict) -> None:
    with MemoryDictionary(cache_bytes=0) as d:
        d["x"] = b"1" * 5_000_000
        d["y"] = b"2" * 5_000_000
        tampered(d, d.index["x"], blob(d, d.index["y"]))
        with pytest.raises(errors.CorruptBlobError, match="'y'"):
            d["x"]


def test_a_damaged_pack_harms_its_own_values_only(shop: Shop) -> None:
    d = shop.open(cache_bytes=0)
    d["alone"] = 1
    d.update({f"k{i}": random.Random(i).randbytes(6000) for i in range(3)})
    path = d.index["k1"]
    bad = bytearray(blob(d, path))
    bad[len(bad) // 2] ^= 1
    tampered(d, path, bytes(bad))
    assert d["k0"] == random.Random(0).randbytes(6000)
    assert d["k2"] == random.Random(2).randbytes(6000)
    for read in (lambda: d["k1"], d.copy):
        with pytest.raises(errors.CorruptBlobError) as caught:
            read()
        assert caught.value.blob == path
    d["k1"] = "mended"
    assert d["k1"] == "mended"


def test_a_value_deleted_by_another_hand_is_missing_not_a_key_error(shop: Shop) -> None:
    d = shop.open(cache_bytes=0)
    d["x"], d["a"] = random.Random(0).randbytes(9000), 1
    path = d.index["x"]
    d._engine.backend.raw.delete([path])
    reads = [lambda: d["x"], lambda: d["a", "x"], d.copy, lambda: list(d.items())]
    for read in [*reads, lambda: d.get("x"), lambda: d.pop("x")]:
        with refused(d, errors.MissingValueError, LookupError, "'x'", path) as caught:
            read()
        assert not isinstance(caught.value, KeyError)
        assert (caught.value.key, caught.value.blob) == ("x", path)
    del d["x"]
    assert d == {"a": 1}


def test_a_damaged_segment_is_said(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remotedict.pure.plan.INDEX_BYTES", 1500)
    d = shop.open()
    for i in range(12):
        d[f"k{i}"] = i
    d._engine.upkeep.finish()
    path = next(path for path in stored(d) if "/segments/" in path and path in set(d.index))
    good = blob(d, path)
    for bad in (b"", good[:-1], good[:40] + bytes([good[40] ^ 1]) + good[41:]):
        tampered(d, path, bad)
        with pytest.raises(errors.CorruptBlobError) as caught:
            len(shop.open())
        assert path in str(caught.value)
    tampered(d, path, good)
    assert shop.open().copy() == {f"k{i}": i for i in range(12)}


def test_a_deleted_dictionary_is_not_quietly_begun_anew(shop: Shop, full: RemoteDict) -> None:
    full._engine.backend.raw.delete([full._engine.layout.index])
    for act in [*READS, *WRITES]:
        with refused(full, errors.DictionaryChangedError, RuntimeError, "Open a new handle"):
            act(full)
    full._engine.backend.raw.delete(list(stored(full)))  # else it is lost, and not deleted
    with shop.open() as anew:
        assert not anew
        anew["a"] = 1
    with refused(full, errors.DictionaryChangedError, RuntimeError, "open a new handle"):
        full["a"] = 2


def test_an_index_restored_from_a_copy_is_not_quietly_followed(full: RemoteDict) -> None:
    index = full._engine.layout.index
    old = blob(full, index)
    full["later"] = 1
    tampered(full, index, old)
    for act in [*READS, *WRITES]:
        with refused(full, errors.DictionaryChangedError, RuntimeError, "open a new handle"):
            act(full)


# -- the errors themselves --------------------------------------------------------------------

MADE = [
    errors.AccessDeniedError("text"),
    errors.ClosedError("text"),
    errors.ContainerUnavailableError("text"),
    errors.CorruptBlobError("f/blob", "why"),
    errors.ConflictError(["a", "b"]),
    errors.CredentialsError("text"),
    errors.DecryptionError("f/blob", "why"),
    errors.DestinationError("text"),
    errors.DictionaryChangedError("text"),
    errors.FormatVersionError("f/blob", "why"),
    errors.HistoryGapError(3, 8),
    errors.InvalidKeyError("text"),
    errors.InvalidNameError("text"),
    errors.ItemLockedError("key", "me", 5.0, "note"),
    errors.KeyNotFoundError(["a", "b"]),
    errors.LockLostError("key"),
    errors.LockNotHeldError("key"),
    errors.LockTimeoutError("key", "me"),
    errors.MetadataError("text"),
    errors.MissingValueError("key", "f/blob"),
    errors.RemoteDictError("text"),
    errors.SelectionError("text"),
    errors.SignatureError("f/blob", "why"),
    errors.SnapshotExpiredError("key"),
    errors.StoreUnavailableError("text"),
    errors.UnknownCommitError(7, "why"),
    errors.UnknownOutcomeError("00ff", "why"),
    errors.UnpicklableValueError("key", "why"),
    errors.UnreadableValueError("key", "why"),
    errors.UnsafeValueError("key", "why"),
    errors.ValueTooLargeError("key", 2000, 1000),
    errors.VersionConflictError("key", 7, 3),
]


def test_no_error_class_is_left_out_here() -> None:
    assert {type(error).__name__ for error in MADE} == {*errors.__all__} - {"ItemLockedException"}
    assert errors.ItemLockedException is errors.ItemLockedError
    assert all(getattr(remotedict, name) is getattr(errors, name) for name in errors.__all__)


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_an_error_arrives_whole_in_another_process(error: Exception, protocol: int) -> None:
    back = pickle.loads(pickle.dumps(error, protocol))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert back.args == error.args
    assert vars(back) == vars(error)


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_an_error_says_something_readable(error: Exception) -> None:
    assert isinstance(error, RemoteDictError)
    assert str(error)
    assert not str(error).startswith(('"', "("))
    assert repr(error)
