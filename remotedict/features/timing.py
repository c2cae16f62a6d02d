"""Times that users give."""

from __future__ import annotations

from typing import Any


def check_timeout(timeout: Any) -> float | None:
    """Return seconds that users gave, or None; raise TypeError or ValueError if they can't be."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        msg = f"timeout= must be a number of seconds, not {type(timeout).__name__}"
        raise TypeError(msg)
    if not timeout >= 0:
        msg = f"timeout= must not be {timeout}"
        raise ValueError(msg)
    return timeout
