"""Secrets in arguments: kept out of the tracebacks that show the locals of their frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


class Hidden(dict[str, Any]):
    """Arguments of which only the names show.

    >>> Hidden(signing_key="secret", timeout=5)
    <signing_key, timeout>
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{', '.join(self)}>"

    def __reduce__(self) -> Any:
        return Hidden, ()  # the frames of some debuggers travel


def quietly(fn: Callable[..., _T], *args: Any) -> _T:
    """Return ``fn(*args)``; what that raises comes without the frames that knew the arguments."""
    error: Exception
    try:
        return fn(*args)
    except Exception as exc:  # noqa: BLE001 - and raised below
        error = exc
    del fn, args
    error.__cause__ = error.__context__ = None
    raise error.with_traceback(None)
