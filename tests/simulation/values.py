"""Values: each is unique, and says which operation made it."""

from __future__ import annotations

import random
import re

TOKEN = re.compile(rb"<[A-Z]\d+\.\d+\.\d+\+\d+>")
_NOISE = random.Random(0).randbytes(4096).hex()


def token(op: str, number: int, size: int) -> str:
    """Return the token of the `number`-th value of an operation."""
    return f"<{op}.{number}+{size}>"


def expand(name: str) -> str:
    """Return the value that a token stands for: itself, and noise that LZ4 can't shrink."""
    size = int(name[name.index("+") + 1 : -1])
    return name + _NOISE[:size] if size else name


def shrink(value: object) -> str:
    """Return the token of a value; something else if it is none, or isn't whole."""
    if isinstance(value, str) and value.startswith("<"):
        name = value[: value.index(">") + 1]
        if expand(name) == value:
            return name
    return f"not a value: {value!r:.60}"
