"""Values: each is unique, and says which operation made it."""

from __future__ import annotations

import random
import re

TOKEN = re.compile(rb"<[A-Z]\d+\.\d+\.\d+\+\d+b?>")
_NOISE = random.Random(0).randbytes(4096).hex()


def token(op: str, number: int, size: int, *, binary: bool = False) -> str:
    """Return the token of the `number`-th value of an operation; "b" is for ``bytes``."""
    return f"<{op}.{number}+{size}{'b' if binary else ''}>"


def is_binary(name: str) -> bool:
    """Tell whether a token stands for ``bytes``."""
    return name.endswith("b>")


def expand(name: str) -> str | bytes:
    """Return the value that a token stands for: itself, and noise that LZ4 can't shrink."""
    return raw(name) if is_binary(name) else _text(name)


def raw(name: str) -> bytes:
    """Return what must be found among the bytes of the value."""
    return _text(name).encode()


def _text(name: str) -> str:
    size = int(name[name.index("+") + 1 : -1].rstrip("b"))
    return name + _NOISE[:size] if size else name


def shrink(value: object) -> str:
    """Return the token of a value; something else if it is none, or isn't whole."""
    text = value.decode() if isinstance(value, bytes) else value
    if isinstance(text, str) and text.startswith("<"):
        name = text[: text.index(">") + 1]
        if expand(name) == value:
            return name
    return f"not a value: {value!r:.60}"
