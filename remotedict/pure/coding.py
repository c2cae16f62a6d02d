"""Codecs: which objects may become bytes, and which bytes objects. Nothing else decides that."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from remotedict.errors import UnreadableValueError, UnsafeValueError, ValueTooLargeError
from remotedict.pure import safe
from remotedict.pure.codec import About, any_header

if TYPE_CHECKING:
    from collections.abc import Callable

    from remotedict.pure.codec import Unpacked

CODECS = ("pickle", "safe")
"""What the option `codec` may be; values of ``bytes`` need neither."""

_FRAMING = 64 * 1024  # bytes that a value takes beside what it holds, its key and its table


class Codec:
    """What one handle may write and read. Thread-safe.

    Parameters
    ----------
    name : str
        One of `CODECS`. To read, "safe" reads what is safe, and "pickle" both.
    max_bytes : int, optional
        How large a value may be, before compression.
    """

    def __init__(self, name: str, max_bytes: int | None = None) -> None:
        self.name = name
        self.max_bytes = max_bytes
        self._parts: Callable[[Any, str], list[memoryview]] = _safe_parts
        if name == "pickle":
            # Here, so that whoever has "safe" doesn't even import cloudpickle.
            from remotedict.pure.pickling import pickled

            self._parts = pickled

    def write(self, value: Any, key: str) -> tuple[str, list[memoryview]]:
        """Return how a value is stored, and the parts that it then has.

        Raises
        ------
        UnpicklableValueError
            It can't be pickled.
        UnsafeValueError
            It, or something in it, isn't safe.
        ValueTooLargeError
            It takes more than `max_bytes`.
        """
        if type(value) is bytes:
            name, parts = "bytes", [memoryview(value)]
        else:
            name, parts = self.name, self._parts(value, key)
        self.check_size(key, sum(map(len, parts)))
        return name, parts

    def read(self, unpacked: Unpacked, key: str) -> Any:
        """Return the object; it shares no memory with what was unpacked.

        What is pickled runs its own code, unless this is "safe".

        Raises
        ------
        UnreadableValueError
            It can't be made: a module is missing, say.
        UnsafeValueError
            It is pickled, and this is "safe".
        """
        codec, parts, about = unpacked
        if codec == "bytes":
            return parts[0]
        if codec == "pickle" and self.name != codec:
            msg = (
                f"the value of key {key!r} is pickled, and to read it could run code of whoever "
                "wrote it; nothing was run. If you trust all who can write to this dictionary, "
                "open it with codec='pickle' to read it"
            )
            raise UnsafeValueError(key, msg)
        try:
            if codec == "pickle":
                if len(parts) == 1:
                    return pickle.loads(parts[0])
                return pickle.loads(parts[0], buffers=parts[1:])
            return safe.read(parts)
        except Exception as exc:
            by = about if isinstance(about, About) else any_header(memoryview(about), "")[0].about
            written = f"Python {by.python}" + (f" and {by.library}" if by.library else "")
            reason = f"{type(exc).__name__}: {exc} (it was written with {written})"
            raise UnreadableValueError(key, reason) from exc

    def check_size(self, key: str, nbytes: int, stored: int = 0) -> None:
        """Raise ValueTooLargeError if a value takes, or claims to take, more than is allowed.

        `stored` is how many bytes it takes in the store: hardly more than it holds.
        """
        most = self.max_bytes
        if most is None:
            return
        if nbytes > most:
            raise ValueTooLargeError(key, nbytes, most)
        if stored > most + most // 16 + _FRAMING + 4 * len(key):
            raise ValueTooLargeError(key, stored, most)


def _safe_parts(value: Any, key: str) -> list[memoryview]:
    try:
        return safe.written(value)
    except safe.RefusedError as refused:
        msg = (
            f"the value for key {key!r} can't be stored with codec='safe': "
            f"value{refused.where} {refused.reason}"
        )
        raise UnsafeValueError(key, msg) from None
    except (RecursionError, RuntimeError, BufferError, OverflowError) as exc:
        msg = (
            f"the value for key {key!r} can't be stored with codec='safe': "
            f"{type(exc).__name__}: {exc}"
        )
        raise UnsafeValueError(key, msg) from exc
