"""Keyrings: what signs and encrypts everything that goes to the store, and checks what comes back.

One primitive, for records, the headers of values, and their chunks alike: `Keyring.close` and
`Keyring.open`, bound to a *context* that says what the bytes are for. docs/format.md says every
byte.
"""

from __future__ import annotations

import hmac
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from remotedict.errors import CredentialsError, DecryptionError, SignatureError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remotedict.pure.lz4 import Buffer

SIGNED, ENCRYPTED = 1, 2
"""Flags, of records and of values: how they are closed."""

KEY_MIN = 16
"""A key of fewer bytes could be guessed."""

_ID, _MAC, _SALT, _TAG = 8, 32, 16, 16
_NONCE = bytes(12)  # of a key that is used once


class Secret:
    """A key. It shows itself nowhere, and is pickled without what it is.

    Parameters
    ----------
    key : str or bytes
        At least 16 bytes.
    purpose : str
        What it is for: the same key used for two purposes makes two.
    """

    __slots__ = ("_key", "id", "purpose")

    def __init__(self, key: Any, purpose: str) -> None:
        raw = key.encode() if isinstance(key, str) else key
        if not isinstance(raw, bytes | bytearray):
            msg = f"{purpose}= must be a str or bytes, or a list of them, not {type(key).__name__}"
            raise TypeError(msg)
        if len(raw) < KEY_MIN:
            msg = (
                f"{purpose}= must have at least {KEY_MIN} bytes, best random ones: "
                "secrets.token_hex(32) makes one"
            )
            raise CredentialsError(msg)
        self.purpose = purpose
        self._key: bytes | None = hmac.digest(
            bytes(raw), b"remotedict " + purpose.encode(), "sha256"
        )
        self.id = self.mac(b"id")[:_ID]

    def mac(self, *parts: Buffer) -> bytes:
        """Return the HMAC-SHA256 of all parts; what they are must tell where each ends."""
        assert self._key is not None, "left behind"  # noqa: S101
        code = hmac.new(self._key, digestmod=sha256)
        for part in parts:
            code.update(part)
        return code.digest()

    @property
    def left_behind(self) -> bool:
        """Whether this is only the id of a key: it came with a pickle."""
        return self._key is None

    def packed(self) -> tuple[str, bytes, bytes | None]:
        """Return all of it, to travel with a pickle on its user's wish."""
        return self.purpose, self.id, self._key

    @classmethod
    def unpacked(cls, purpose: str, key_id: bytes, key: bytes | None) -> Secret:
        """Return what was packed, or only its id."""
        self = cls.__new__(cls)
        self.purpose, self.id, self._key = purpose, key_id, key
        return self

    def __repr__(self) -> str:
        return f"<{self.purpose} {self.id.hex()}>"

    def __reduce__(self) -> Any:
        return Secret.unpacked, (self.purpose, self.id, None)


class Keyring:
    """Keys to sign and to encrypt with. Immutable; thread-safe.

    Parameters
    ----------
    signing, encryption : sequence of Secret
        The first of each is used, all are accepted; none to do without.

    Attributes
    ----------
    flags : int
        `SIGNED` and `ENCRYPTED`, as far as it does so.
    overhead : int
        How many bytes `close` adds.
    """

    def __init__(self, signing: Sequence[Secret] = (), encryption: Sequence[Secret] = ()) -> None:
        self._signing = {secret.id: secret for secret in signing}
        self._encryption = {secret.id: secret for secret in encryption}
        self.flags = bool(signing) * SIGNED | bool(encryption) * ENCRYPTED
        self.overhead = bool(signing) * (_ID + _MAC) + bool(encryption) * (_ID + _SALT + _TAG)
        if encryption:
            _ = self._aes  # is it installed? now, rather than in the midst of something

    def __repr__(self) -> str:
        return f"<{len(self._signing)} signing and {len(self._encryption)} encryption keys>"

    def close(self, data: Buffer, context: bytes) -> Buffer:
        """Return `data` encrypted and signed, as far as there are keys.

        The same data in the same context is closed to the same bytes: so what is sent again is
        the same.
        """
        bound = len(context).to_bytes(4, "little") + context
        for secret in [*self._encryption.values()][:1]:
            # Made of what it is for and what it encrypts: no two messages share a key.
            salt = secret.mac(b"salt", bound, data)[:_SALT]
            data = secret.id + salt + self._cipher(secret, salt, bound).encrypt(_NONCE, data, None)
        for secret in [*self._signing.values()][:1]:
            data = b"".join([secret.id, data, secret.mac(b"sign", bound, data)])
        return data

    def open(self, data: Buffer, context: bytes, path: str) -> Buffer:
        """Return what was closed.

        Raises
        ------
        SignatureError
            It wasn't signed so, for this context, with any of the keys.
        DecryptionError
            It wasn't encrypted so.
        """
        view = memoryview(data)
        bound = len(context).to_bytes(4, "little") + context
        if self._signing:
            secret = self._signing.get(bytes(view[:_ID]))
            if secret is None:
                raise SignatureError(path, f"it is signed with another key, {_shown(view)}")
            view, mac = view[_ID:-_MAC], view[-_MAC:]
            if not hmac.compare_digest(secret.mac(b"sign", bound, view), mac):
                raise SignatureError(path, "its signature isn't right: somebody changed it")
        if self._encryption:
            secret = self._encryption.get(bytes(view[:_ID]))
            if secret is None:
                raise DecryptionError(path, f"it is encrypted with another key, {_shown(view)}")
            salt, view = bytes(view[_ID : _ID + _SALT]), view[_ID + _SALT :]
            try:
                opened: bytes = self._cipher(secret, salt, bound).decrypt(_NONCE, view, None)
            except Exception as exc:  # InvalidTag, or too short a text
                reason = "it can't be decrypted: somebody changed it"
                raise DecryptionError(path, reason) from exc
            return opened
        return view

    def _cipher(self, secret: Secret, salt: bytes, bound: bytes) -> Any:
        return self._aes(secret.mac(b"encrypt", salt, bound))

    @cached_property
    def _aes(self) -> Any:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as exc:
            msg = "encryption_key= needs the package cryptography: pip install remotedict[crypto]"
            raise ImportError(msg) from exc
        return AESGCM


def _shown(view: memoryview) -> str:
    return f"of id {bytes(view[:_ID]).hex()}"


def check_flags(flags: int, keyring: Keyring | None, path: str) -> None:
    """Raise an error unless what has these flags is closed as the keyring closes it."""
    have = keyring.flags if keyring else 0
    if flags & SIGNED and not have & SIGNED:
        raise SignatureError(path, "it is signed; give signing_key=, so that this can be checked")
    if have & SIGNED and not flags & SIGNED:
        raise SignatureError(path, "it isn't signed, and signing_key= demands that it is")
    if flags & ENCRYPTED and not have & ENCRYPTED:
        raise DecryptionError(path, "it is encrypted; give encryption_key=")
    if have & ENCRYPTED and not flags & ENCRYPTED:
        raise DecryptionError(path, "it isn't encrypted, and encryption_key= demands that it is")
