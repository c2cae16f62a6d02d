"""Times that users give."""

from __future__ import annotations

from typing import Any


def check_timeout(timeout: Any) -> float | None:
    """Return seconds that users gave, or None; raise TypeError or ValueError if they can't be."""
    return None if timeout is None else check_seconds("timeout", timeout)


def check_seconds(name: str, seconds: Any) -> float:
    """Return seconds that users gave as `name`; raise TypeError or ValueError if they can't be."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        msg = f"{name}= must be a number of seconds, not {type(seconds).__name__}"
        raise TypeError(msg)
    if not seconds >= 0:
        msg = f"{name}= must not be {seconds}"
        raise ValueError(msg)
    return seconds
