"""Selections: what may stand between the brackets of ``d[...]``, and right of them."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import pandas as pd

from remotedict.errors import InvalidKeyError, SelectionError
from remotedict.pure.naming import check_key


def select(selector: Any) -> tuple[list[str], bool]:
    """Return the keys that `selector` names, and whether it names several (or none, or one).

    Lists, tuples, ``pd.Index``, ``pd.Series`` and 1-d arrays of ``str`` select several keys;
    anything else must itself be a key.
    """
    if isinstance(selector, np.ndarray) and selector.ndim != 1:
        msg = f"keys are selected by a 1-d array, not by one of {selector.ndim} dimensions"
        raise SelectionError(msg)
    if isinstance(selector, list | tuple | pd.Index | pd.Series | np.ndarray):
        return [check_key(key) for key in selector], True
    if isinstance(selector, AbstractSet):
        kind = type(selector).__name__
        msg = f"a key must be a str, not {kind}; select several keys by a list: d[list(keys)]"
        raise InvalidKeyError(msg)
    return [check_key(selector)], False


def no_repeats(keys: list[str], doing: str) -> None:
    """Raise SelectionError if a key is there twice."""
    if len(set(keys)) < len(keys):
        twice = sorted({key for key in keys if keys.count(key) > 1})
        msg = f"key {twice[0]!r} is there more than once; {doing} each key once"
        raise SelectionError(msg)


def pair(keys: list[str], values: Any) -> list[tuple[str, Any]]:
    """Return keys with their values for an assignment of several."""
    if not isinstance(values, list | tuple):
        msg = (
            f"several keys are assigned from a list or a tuple, not from {type(values).__name__}; "
            "to store one value under each key repeat it: d[keys] = [value] * len(keys)"
        )
        raise SelectionError(msg)
    if len(keys) != len(values):
        msg = f"{len(keys)} keys can't take {len(values)} values; nothing was written"
        raise SelectionError(msg)
    no_repeats(keys, "assign")
    return list(zip(keys, values, strict=True))
