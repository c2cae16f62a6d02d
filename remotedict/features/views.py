"""Views: what ``keys()``, ``values()`` and ``items()`` return. They are live, as a dict's are."""

from __future__ import annotations

from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    ValuesView,
)
from collections.abc import Set as AbstractSet
from typing import Any

from remotedict.errors import InvalidKeyError, KeyNotFoundError

Stream = Callable[[bool], Iterator[tuple[str, Any]]]


class Keys(KeysView[str]):
    """The keys. The set operations work on one state, and so cost one request at most."""

    _mapping: Mapping[str, Any]

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._mapping)  # type: ignore[arg-type]

    def __and__(self, other: Iterable[Any]) -> set[str]:
        return set(self) & set(other)

    __rand__ = __and__  # type: ignore[assignment]

    def __or__(self, other: Iterable[Any]) -> set[Any]:
        return set(self) | set(other)

    __ror__ = __or__

    def __sub__(self, other: Iterable[Any]) -> set[str]:
        return set(self) - set(other)

    def __rsub__(self, other: Iterable[Any]) -> set[Any]:
        return set(other) - set(self)

    def __xor__(self, other: Iterable[Any]) -> set[Any]:
        return set(self) ^ set(other)

    __rxor__ = __xor__

    def __eq__(self, other: object) -> bool:
        return set(self) == set(other) if isinstance(other, AbstractSet) else NotImplemented

    def __le__(self, other: AbstractSet[Any]) -> bool:
        return set(self) <= set(other)

    def __lt__(self, other: AbstractSet[Any]) -> bool:
        return set(self) < set(other)

    def __ge__(self, other: AbstractSet[Any]) -> bool:
        return set(self) >= set(other)

    def __gt__(self, other: AbstractSet[Any]) -> bool:
        return set(self) > set(other)

    def isdisjoint(self, other: Iterable[Any]) -> bool:
        """Tell whether the two have no key in common."""
        return set(self).isdisjoint(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Keys({list(self)!r})"


class Values(ValuesView[Any]):
    """The values, fetched ahead in parallel, within a window, as the iteration goes on.

    Parameters
    ----------
    mapping : Mapping
        Whose values they are.
    stream : callable
        Given whether to go backwards, returns an iterator over the pairs of key and value.
    """

    _mapping: Mapping[str, Any]

    def __init__(self, mapping: Mapping[str, Any], stream: Stream) -> None:
        super().__init__(mapping)
        self._stream = stream

    def __iter__(self) -> Iterator[Any]:
        return (value for _, value in self._stream(False))

    def __reversed__(self) -> Iterator[Any]:
        return (value for _, value in self._stream(True))

    def __contains__(self, value: object) -> bool:
        return any(one is value or one == value for one in self)

    def __repr__(self) -> str:
        return f"<values of {self._mapping!r}>"


class Items(ItemsView[str, Any]):
    """The pairs of key and value, fetched ahead as `Values` are."""

    _mapping: Mapping[str, Any]

    def __init__(self, mapping: Mapping[str, Any], stream: Stream) -> None:
        super().__init__(mapping)
        self._stream = stream

    def __contains__(self, item: object) -> bool:
        if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)):
            return False
        try:
            value = self._mapping[item[0]]
        except (KeyNotFoundError, InvalidKeyError):
            return False
        return bool(value is item[1] or value == item[1])

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return self._stream(False)

    def __reversed__(self) -> Iterator[tuple[str, Any]]:
        return self._stream(True)

    def __repr__(self) -> str:
        return f"<items of {self._mapping!r}>"
