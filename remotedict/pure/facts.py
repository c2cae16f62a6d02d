"""Facts: what the index knows of a value without reading it."""

from __future__ import annotations

import sys
from typing import Any

from remotedict.pure.records import Facts

ATOMS = frozenset({type(None), bool, int, float, complex, str})
"""What any pickler writes alike: nothing is in it, and nothing can override it."""


def facts(value: Any, nbytes: int) -> Facts:
    """Return what is known of a value that takes so many bytes as it is written."""
    shape = dtype = None
    cls = type(value)
    if cls in ATOMS:
        return Facts(cls.__name__, nbytes, None, None)
    try:
        shape = getattr(value, "shape", None)
        dtype = getattr(value, "dtype", None)
        if not (isinstance(shape, tuple) and all(type(n) is int for n in shape)):
            shape = None
        dtype = None if dtype is None or isinstance(dtype, type(lambda: 0)) else str(dtype)[:60]
    except Exception:  # noqa: BLE001 - a foreign object's attributes may do anything
        shape = dtype = None
    return Facts(type_name(cls), nbytes, shape, dtype)


def type_name(cls: type) -> str:
    """Return what the facts call a class: the first part of its module, and its name."""
    package = _package(cls)
    return cls.__qualname__ if package in ("", "builtins") else f"{package}.{cls.__qualname__}"


def library(value: Any) -> str:
    """Return the library of a value's class, with its version; "" for what is built in."""
    if type(value) in ATOMS:
        return ""
    package = _package(type(value))
    # The module's own dict: a lazy module's __getattr__ may do anything.
    version = getattr(sys.modules.get(package), "__dict__", {}).get("__version__")
    return f"{package} {version}" if isinstance(version, str) else ""


def _package(cls: type) -> str:
    module = getattr(cls, "__module__", None)
    return module.partition(".")[0] if isinstance(module, str) else ""
