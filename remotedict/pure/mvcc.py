"""Versions side by side: what keys were since which commit (multi-version concurrency control)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

_V = TypeVar("_V")


class Chains(Generic[_V]):
    """Values by key and seq; only ever appended to, in the order of the seqs."""

    def __init__(self) -> None:
        self.of: dict[str, list[tuple[int, _V]]] = {}

    def at(self, seq: int, key: str, default: Any = None) -> _V | Any:
        """Return the newest value of a key that isn't newer than `seq`."""
        for since, value in reversed(self.of.get(key, ())):
            if since <= seq:
                return value
        return default

    def add(self, seq: int, key: str, value: _V) -> None:
        """Append a value."""
        self.of.setdefault(key, []).append((seq, value))

    def items(self, seq: int) -> Iterator[tuple[str, _V]]:
        """Yield all keys with their values as of `seq`."""
        # list(): another thread may append a newer chain meanwhile; this view doesn't want it.
        for key in list(self.of):
            value = self.at(seq, key)
            if value is not None:
                yield key, value
