"""What is signed can't be changed unnoticed, and what is encrypted can't be read."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from remotedict import (
    CorruptBlobError,
    CredentialsError,
    DecryptionError,
    FormatVersionError,
    LocalDictionary,
    MemoryDictionary,
    SignatureError,
)
from remotedict.pure import codec, lz4, plan, records, state
from remotedict.pure.coding import Codec
from remotedict.pure.keyring import Keyring, Secret

SIGNING, OTHER, ENCRYPTION = "s" * 32, "o" * 32, b"e" * 32
BOTH = {"signing_key": SIGNING, "encryption_key": ENCRYPTION}
KEYS = [{"signing_key": SIGNING}, {"encryption_key": ENCRYPTION}, BOTH]
NAMES = ["signed", "encrypted", "both"]
WAYS = pytest.mark.parametrize("keys", KEYS, ids=NAMES)
CANARY = "Zaphod-Beeblebrox"


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(plan, "INDEX_BYTES", 3000)
    monkeypatch.setattr(plan, "CHECKPOINT_MIN", 6000)
    monkeypatch.setattr(plan, "FAN", 2)
    monkeypatch.setattr(state, "_REBASE_MIN", 5)


def filled(d):
    """Write values of every kind to every place; return what should be there."""
    rng = random.Random(1)
    model = {f"n{n}": rng.randbytes(rng.choice([0, 5, 90, 700])) for n in range(40)}
    for key, value in model.items():
        d[key] = value
    bulk = {f"packed-{n}": {"text": CANARY * 50, "n": n} for n in range(30)}
    bulk |= {"array": np.arange(300_000.0), "bytes": rng.randbytes(2_500_000)}
    d.update(bulk)
    d.put("described", 1, metadata={"owner": CANARY})
    d.copy_item("packed-1", "copy")
    with d.commit(comment=CANARY, author=CANARY):
        d["packed-1"] = "another"
    return {**model, **bulk, "described": 1, "copy": bulk["packed-1"], "packed-1": "another"}


def same(d, model):
    assert list(d) == list(model)
    read = d.copy()
    assert all(np.array_equal(read[key], model[key]) for key in model)


def blobs(world):
    return {b.name: bytes(world.store.get(b.name).data) for b in world.store.list("") if b.size}


@WAYS
def test_it_is_a_dictionary_like_any_other(shop, small, keys):
    del small
    d = shop.open(**keys)
    d.history_policy = "all"
    model = filled(d)
    d.put_file("file", io.BytesIO(b"line\n" * 600_000))
    model["file"] = b"line\n" * 600_000
    same(d, model)
    other = shop.open(**keys, cache_bytes=0)
    same(other, model)
    assert dict(other.items()).keys() == model.keys()
    with other.open("file") as file:
        file.seek(2_000_000)
        assert file.read(5) == b"line\n"
    assert CANARY in set(other.history("packed-1")["comment"])
    other.revert("packed-1", 1)
    model["packed-1"] = model["packed-2"] | {"n": 1}
    other.forget("packed-3")
    del model["packed-3"]
    same(d, model)
    same(shop.open(**keys, cache_bytes=0), model)


def test_what_is_encrypted_shows_only_names_and_sizes(world, small):
    del small
    d = world.open(encryption_key=ENCRYPTION)
    d.history_policy = "all"
    model = filled(d)
    d.lock_item("described")
    stored = b"".join(blobs(world).values())
    for plain in (CANARY, "described", "float64", "packed-17"):
        assert plain.encode() not in stored
    for block in (model["bytes"][:64], model["array"].tobytes()[8000:8064]):
        assert block not in stored


@WAYS
def test_what_has_no_key_is_refused_whole(world, keys):
    d = world.open(**keys)
    d["k"] = 1
    wrong = dict.fromkeys(keys, OTHER)
    for given_keys in ({}, wrong):
        with pytest.raises((SignatureError, DecryptionError), match="Index/f/index"):
            world.open(**given_keys).copy()
    assert d["k"] == 1


@WAYS
def test_what_is_not_signed_or_encrypted_is_refused_with_a_key(world, keys):
    plain = world.open()
    plain["k"] = 1
    with pytest.raises((SignatureError, DecryptionError), match="demands"):
        len(world.open(**keys))
    assert plain["k"] == 1


def test_keys_are_rotated(world):
    old = world.open(signing_key=SIGNING)
    old["before"] = 1
    both = world.open(signing_key=[OTHER, SIGNING])
    assert both["before"] == 1
    both["after"] = 2
    with pytest.raises(SignatureError, match="another key"):
        old["before"]
    for key in both:
        both[key] = both.pop(key)
    assert both.copy() == {"before": 1, "after": 2}


# -- an attacker who may write to the store -------------------------------------------------------


def forged(data, at, byte=None):
    """Return a blob with another byte, and with all checksums as they should be then."""
    changed = bytearray(data)
    changed[at] = changed[at] ^ 1 if byte is None else byte
    if data[:4] == b"RDct":
        fields = struct.unpack_from("<4sHBBQQ", changed)
        struct.pack_into("<Q", changed, 24, records._checksum(fields, bytes(changed[32:])))
        at = 32
        end = at + struct.unpack_from("<Q", data, 16)[0]  # a segment's values
    else:
        at, end = 0, len(changed)
    while at < end and changed[at : at + 4] == b"RDvl":
        at = mended(changed, at)
    if data[:4] == b"RDct":
        fields = struct.unpack_from("<4sHBBQQ", changed)
        struct.pack_into("<Q", changed, 24, records._checksum(fields, bytes(changed[32:])))
    return bytes(changed)


def mended(value, start):
    """Write the right checksums into a value of one chunk or more; return where it ends."""
    length, chunk, _, _, size = struct.unpack_from("<II16s16sQ", value, start + 16)
    head = start + codec.START_BYTES + length
    seed = int.from_bytes(value[start : start + 8], "little")
    checksum = xxhash.xxh3_64_intdigest(value[start + 16 : head], seed)
    struct.pack_into("<Q", value, start + 8, checksum)
    count = -(-size // chunk) if chunk else 0
    at = head
    for number in range(min(count, 50)):
        if at + 12 > len(value):
            return len(value)
        stored = struct.unpack_from("<I", value, at + 8)[0]
        body = value[at + 12 : at + 12 + stored]
        struct.pack_into(
            "<Q", value, at, xxhash.xxh3_64_intdigest(body, (checksum + number) % 2**64)
        )
        at += 12 + stored
    return at if count < 2 else len(value)


@WAYS
def test_no_byte_of_any_blob_can_be_changed(world, small, keys):
    del small
    d = world.open(**keys, cache_bytes=0)
    d.history_policy = "all"
    model = filled(d)
    d._engine.upkeep.finish()
    assert {name.split("/")[2] for name in blobs(world) if name.startswith("Index")} >= {
        *("index", "segments", "checkpoints", "logs")
    }
    rng, found, damaged = random.Random(2), 0, []
    for path, data in blobs(world).items():
        places = {*range(0, min(len(data), 200), 7), *rng.sample(range(len(data)), 10)}
        for at in places:
            if (broken := forged(data, at)) == data:
                continue  # it was a checksum
            world.store.put(path, broken)
            try:
                reader = world.open(**keys, cache_bytes=0)
                same(reader, model)
                assert len(reader.history("packed-1")) == 2
            except (SignatureError, DecryptionError) as exc:
                found += exc.blob == path
            except (CorruptBlobError, FormatVersionError) as exc:
                damaged.append(exc.blob == path)
        world.store.put(path, data)
    assert found > 200
    assert all(damaged)
    same(world.open(**keys, cache_bytes=0), model)


@WAYS
def test_what_was_changed_is_neither_unpacked_nor_decoded(world, keys):
    d = world.open(**keys, cache_bytes=0, inline_bytes=0)
    d["k"] = ["text"] * 100_000
    path = d.index["k"]
    data = blobs(world)[path]
    world.store.put(path, forged(data, len(data) // 2))
    with (
        mock.patch.object(lz4, "inflate_into", side_effect=AssertionError),
        mock.patch.object(lz4, "inflate", side_effect=AssertionError),
        mock.patch.object(lz4, "inflate_small", side_effect=AssertionError),
        mock.patch.object(pickle, "loads", side_effect=AssertionError),
        pytest.raises((SignatureError, DecryptionError)),
    ):
        d["k"]


class Bomb:
    """What an attacker would like to be unpickled."""

    def __init__(self, size):
        self.text = random.Random(3).randbytes(size).hex()

    def __reduce__(self):
        return (os.putenv, ("REMOTEDICT_TEST_BOMB", self.text))


@pytest.mark.parametrize("attackers", [{}, {"signing_key": OTHER}])
def test_a_strangers_pickle_is_never_run(world, attackers):
    d = world.open(signing_key=SIGNING, inline_bytes=0, cache_bytes=0)
    d["k"] = random.Random(4).randbytes(500).hex()
    path = d.index["k"]
    was = blobs(world)[path]
    header, _ = codec.any_header(memoryview(was), path, d._engine.keyring)
    names = {"key": "k", "dictionary": header.dictionary, "generation": header.generation}
    keyring = Keyring([Secret(OTHER, "signing_key")]) if attackers else None
    by = Codec("pickle")
    bombs = (codec.encode(Bomb(n), by, **names, keyring=keyring).join() for n in range(300, 700))
    evil = next(bomb for bomb in bombs if len(bomb) >= len(was))
    world.store.put(path, evil[: len(was)])
    with mock.patch.object(os, "putenv") as went_off:
        for read in (lambda: d["k"], lambda: d[["k"]], lambda: dict(d.items())):
            with pytest.raises(SignatureError, match="sign"):
                read()
        went_off.assert_not_called()


@WAYS
def test_values_of_the_same_key_cannot_be_exchanged(world, keys):
    d = world.open(**keys, cache_bytes=0, inline_bytes=0)
    d["a"], d["b"] = bytes(3_000_000), bytes(3_000_000)
    paths = d.index["a"], d.index["b"]
    first, second = (blobs(world)[path] for path in paths)
    # As it is; with the other's start, and right checksums; with two chunks exchanged.
    chunk = codec.START_BYTES + struct.unpack_from("<I", first, 16)[0]
    length = 12 + struct.unpack_from("<I", first, chunk + 8)[0]
    exchanged = bytearray(first)
    exchanged[chunk : chunk + length], exchanged[chunk + length : chunk + 2 * length] = (
        first[chunk + length : chunk + 2 * length],
        first[chunk : chunk + length],
    )
    for evil in (second, forged(first[:64] + second[64:], 8, 0), forged(exchanged, 8, 0)):
        world.store.put(paths[0], evil)
        with pytest.raises(CorruptBlobError, match="f/a/"):
            d["a"]
    world.store.put(paths[0], first)
    assert d["a"] == bytes(3_000_000)


def test_blobs_of_another_dictionary_with_the_same_key_are_refused(world, small):
    del small
    d = world.open(signing_key=SIGNING, cache_bytes=0)
    filled(d)
    other = MemoryDictionary(signing_key=SIGNING)
    filled(other)
    theirs = {
        blob.name.replace("default", "f"): other._engine.backend.get(blob.name).data
        for blob in other._engine.backend.list("Index/default/segments")
    }
    mine = [path for path in blobs(world) if "/segments/" in path]
    for path, data in zip(mine, theirs.values(), strict=False):
        world.store.put(path, data)
    with pytest.raises(CorruptBlobError, match=r"another dictionary|too early|damaged"):
        world.open(signing_key=SIGNING, cache_bytes=0).copy()


# -- the keys themselves --------------------------------------------------------------------------


def ring(**keys):
    return Keyring(
        [Secret(key, "signing_key") for key in keys.get("signing", [])],
        [Secret(key, "encryption_key") for key in keys.get("encryption", [])],
    )


RINGS = [
    ring(signing=[SIGNING]),
    ring(encryption=[ENCRYPTION]),
    ring(signing=[SIGNING], encryption=[ENCRYPTION]),
]


@pytest.mark.parametrize("keyring", RINGS, ids=NAMES)
@given(data=st.binary(max_size=200), context=st.binary(max_size=40))
def test_what_is_closed_is_opened_in_its_context_alone(keyring, data, context):
    closed = bytes(keyring.close(data, context))
    assert len(closed) == len(data) + keyring.overhead
    assert closed == bytes(keyring.close(data, context))
    assert bytes(keyring.open(closed, context, "p")) == data
    for other in (context + b"x", context[:-1] if context else b"y"):
        with pytest.raises((SignatureError, DecryptionError)):
            keyring.open(closed, other, "p")


@pytest.mark.parametrize("keyring", RINGS, ids=NAMES)
@given(data=st.binary(max_size=60), junk=st.binary(max_size=200), at=st.integers(min_value=0))
def test_anything_else_is_refused(keyring, data, junk, at):
    closed = bytearray(keyring.close(data, b"context"))
    closed[at % len(closed)] ^= 1 + at % 255
    for evil in (bytes(closed), bytes(closed[: at % len(closed)]), junk):
        with pytest.raises((SignatureError, DecryptionError)):
            keyring.open(evil, b"context", "p")


def test_a_boundary_cannot_be_shifted_between_context_and_data():
    keyring = RINGS[0]
    closed = bytes(keyring.close(b"data", b"context"))
    shifted = closed[:8] + b"t" + closed[8:]
    with pytest.raises(SignatureError):
        keyring.open(shifted, b"contex", "p")


def test_a_key_for_one_purpose_is_none_for_another():
    assert Secret(SIGNING, "signing_key").id != Secret(SIGNING, "encryption_key").id


@pytest.mark.parametrize("name", ["signing_key", "encryption_key"])
@pytest.mark.parametrize(
    ("key", "error"),
    [("short", CredentialsError), (b"", CredentialsError), (7, TypeError), ([7], TypeError)],
)
def test_what_is_no_key_is_refused(name, key, error):
    with pytest.raises(error, match=name):
        MemoryDictionary(**{name: key})


def test_keys_come_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("REMOTEDICT_SIGNING_KEY", f"{SIGNING},{OTHER}")
    d = LocalDictionary(tmp_path)
    d["k"] = 1
    monkeypatch.delenv("REMOTEDICT_SIGNING_KEY")
    with pytest.raises(SignatureError, match="signing_key="):
        LocalDictionary(tmp_path)["k"]
    assert LocalDictionary(tmp_path, signing_key=SIGNING)["k"] == 1
    monkeypatch.setenv("REMOTEDICT_SIGNING_KEY", OTHER)
    plain = LocalDictionary(tmp_path / "plain", signing_key=())
    plain["k"] = 2
    monkeypatch.delenv("REMOTEDICT_SIGNING_KEY")
    assert LocalDictionary(tmp_path / "plain")["k"] == 2


def test_a_pickle_leaves_the_keys_behind(monkeypatch, tmp_path):
    d = LocalDictionary(tmp_path, **BOTH)
    d["k"] = 1
    pickled = pickle.dumps(d)
    for key in (SIGNING.encode(), ENCRYPTION, *(s._key for s in d._session.options.signing_key)):
        assert key not in pickled
    with pytest.raises(CredentialsError, match="REMOTEDICT_SIGNING_KEY"):
        pickle.loads(pickled)["k"]
    monkeypatch.setenv("REMOTEDICT_SIGNING_KEY", f"{OTHER},{SIGNING}")
    monkeypatch.setenv("REMOTEDICT_ENCRYPTION_KEY", ENCRYPTION.decode())
    assert pickle.loads(pickled)["k"] == 1
    monkeypatch.delenv("REMOTEDICT_SIGNING_KEY")
    monkeypatch.delenv("REMOTEDICT_ENCRYPTION_KEY")
    travelling = pickle.dumps(LocalDictionary(tmp_path, **BOTH, pickle_credentials=True))
    assert pickle.loads(travelling)["k"] == 1


def test_keys_show_nowhere():
    d = MemoryDictionary(**BOTH)
    shown = [repr(d), repr(d._session.options), repr(d._engine.tuning), repr(d._engine.keyring)]
    shown += [repr(secret) for secret in d._session.options.signing_key]
    for text in shown:
        assert SIGNING not in text
        assert ENCRYPTION.decode() not in text


def test_encryption_says_what_is_missing():
    code = (
        "import sys, remotedict\n"
        "sys.modules['cryptography.hazmat.primitives.ciphers.aead'] = None\n"
        "try: remotedict.MemoryDictionary(encryption_key='k' * 32)\n"
        "except ImportError as exc: print(exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install remotedict[crypto]" in done.stdout
