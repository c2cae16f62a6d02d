"""Metadata: a JSON dict for each key, kept in the index beside the value."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from remotedict.errors import CorruptBlobError, KeyNotFoundError, MetadataError
from remotedict.features.writing import changing
from remotedict.pure.naming import check_key
from remotedict.pure.records import Annotate

if TYPE_CHECKING:
    from remotedict.engine.index import Known
    from remotedict.features.writing import Writer
    from remotedict.pure.draft import Draft

METADATA_BYTES = 64 * 1024
"""How large the metadata of one key may be: all clients load that of all keys."""

METADATA_DEPTH = 64
"""How deep it may be nested: who reads it may have little of the stack left."""


def encoded(fields: Any) -> str:
    """Return a dict as JSON; "" for an empty one.

    Raises
    ------
    MetadataError
        It isn't a dict that JSON can hold without change, or is too large.
    """
    if not isinstance(fields, Mapping):
        msg = f"metadata must be a dict, not {type(fields).__name__}"
        raise MetadataError(msg)
    plain = _plain(fields, 0)
    try:
        text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
        text.encode()
    except ValueError as exc:  # a lone surrogate, or a number of thousands of digits
        msg = f"metadata must be JSON in UTF-8: {exc}"
        raise MetadataError(msg) from exc
    if len(text.encode()) > METADATA_BYTES:
        msg = (
            f"metadata of {len(text.encode())} bytes is too large; {METADATA_BYTES} are allowed, "
            "since every client loads it with the index. Store it as a value"
        )
        raise MetadataError(msg)
    return text if fields else ""


def _plain(value: Any, depth: int) -> Any:
    """Return what JSON gives back for `value`; raise MetadataError if that isn't the same."""
    if depth > METADATA_DEPTH:
        msg = f"metadata may be nested {METADATA_DEPTH} levels deep, and not more"
        raise MetadataError(msg)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        if bad := [key for key in value if not isinstance(key, str)]:
            msg = f"metadata must be JSON: its keys must be str, not {type(bad[0]).__name__}"
            raise MetadataError(msg)
        return {str.__str__(key): _plain(one, depth + 1) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one, depth + 1) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        msg = f"metadata must be JSON, which has no {value}"
        raise MetadataError(msg)
    if value is None or isinstance(value, bool):
        return value
    # Of a subclass (an Enum, say) what it is, and not how it is shown.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    msg = (
        "metadata must be JSON (None, bool, int, float, str, list, dict with str keys); "
        f"it can't hold a {type(value).__name__}"
    )
    raise MetadataError(msg)


def parsed(text: str) -> dict[str, Any]:
    """Return the dict that `encoded` made text of."""
    try:
        fields = json.loads(text) if text else {}
    except (ValueError, RecursionError) as exc:
        raise CorruptBlobError("Index", f"metadata isn't JSON: {exc}") from exc
    if not isinstance(fields, dict):
        raise CorruptBlobError("Index", "metadata isn't a JSON object")
    return fields


class Metadata(Mapping[str, Any]):
    """The metadata of all keys of a dictionary. Live: each use looks at the newest state.

    ``metadata["k"] = {...}`` replaces that of a key, ``metadata["k"].update(...)`` merges into
    it, ``del metadata["k"]`` empties it. The value stays, with its bytes and its version.

    Parameters
    ----------
    known : callable
        Returns the state to read.
    """

    def __init__(self, known: Callable[[], Known]) -> None:
        self._known = known

    def __getitem__(self, key: str) -> Fields:
        """Return the metadata of a key: empty if it has none."""
        fields = Fields(check_key(key), self._known)
        fields.read()
        return fields

    def __iter__(self) -> Iterator[str]:
        """Iterate over all keys of the dictionary."""
        return iter(self._known().state)

    def __len__(self) -> int:
        return len(self._known().state)

    def copy(self) -> dict[str, dict[str, Any]]:
        """Return a plain dict of the metadata of all keys, as of one moment."""
        state = self._known().state
        return {key: parsed(entry.metadata) for key in state if (entry := state.get(key))}

    def __repr__(self) -> str:
        return f"<metadata of {len(self)} keys>"


class WritableMetadata(Metadata, MutableMapping[str, Any]):
    """The metadata of a dictionary that can be written. See `Metadata`."""

    def __init__(self, known: Callable[[], Known], writer: Writer) -> None:
        super().__init__(known)
        self._writer = writer

    def __getitem__(self, key: str) -> WritableFields:
        """Return the metadata of a key: empty if it has none."""
        fields = WritableFields(check_key(key), self._known, self._writer)
        fields.read()
        return fields

    def __setitem__(self, key: str, fields: Mapping[str, Any]) -> None:
        """Replace the metadata of a key, which must be there."""
        if isinstance(fields, WritableFields) and fields.of(key, self._writer):
            return  # d.metadata[key] |= {...} has been done by now
        text = encoded(fields.read() if isinstance(fields, Fields) else fields)
        annotate(self._writer, check_key(key), lambda _: text)

    def __delitem__(self, key: str) -> None:
        """Empty the metadata of a key, which must be there."""
        annotate(self._writer, check_key(key), lambda _: "")

    def clear(self) -> None:
        """Empty the metadata of all keys, in one commit."""
        self._writer.make(
            changing(
                lambda draft: [
                    Annotate(key, 0, "")
                    for key in draft
                    if (entry := draft.get(key)) and entry.metadata
                ]
            )
        )


class Fields(Mapping[str, Any]):
    """The metadata of one key. Live: each use looks at the newest state."""

    __slots__ = ("_key", "_known")

    def __init__(self, key: str, known: Callable[[], Known]) -> None:
        self._key = key
        self._known = known

    def read(self) -> dict[str, Any]:
        """Return the fields as they are now; raise KeyNotFoundError if the key isn't there."""
        entry = self._known().state.get(self._key)
        if entry is None:
            raise KeyNotFoundError([self._key])
        return parsed(entry.metadata)

    def copy(self) -> dict[str, Any]:
        """Return a plain dict of them, as of one moment."""
        return self.read()

    def __getitem__(self, name: str) -> Any:
        return self.read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.read())

    def __len__(self) -> int:
        return len(self.read())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Fields):
            other = other.read()
        return self.read() == other if isinstance(other, Mapping) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self.read())


class WritableFields(Fields, MutableMapping[str, Any]):
    """The metadata of one key, to be changed as a dict is; each change is a commit."""

    __slots__ = ("_writer",)

    def __init__(self, key: str, known: Callable[[], Known], writer: Writer) -> None:
        super().__init__(key, known)
        self._writer = writer

    def of(self, key: str, writer: Writer) -> bool:
        """Tell whether these are the fields of `key`."""
        return self._key == key and self._writer is writer

    def __setitem__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def __delitem__(self, name: str) -> None:
        def without(fields: dict[str, Any]) -> dict[str, Any]:
            del fields[name]
            return fields

        self._change(without)

    def update(self, other: Any = (), /, **more: Any) -> None:
        """Set several fields in one commit; those that aren't named stay."""
        new = parsed(encoded(dict(other, **more)))  # as it is now, and sound
        self._change(lambda fields: fields | new)

    def __ior__(self, other: Any) -> Self:
        """Set several fields in one commit."""
        self.update(other)
        return self

    def popitem(self) -> tuple[str, Any]:
        """Remove the last field; return it with its value."""
        fields = self.read()
        if not fields:
            msg = "popitem(): there are no fields"
            raise KeyError(msg)
        name = next(reversed(fields))
        return name, self.pop(name)

    def clear(self) -> None:
        """Remove all fields, in one commit."""
        self._change(lambda _: {})

    def _change(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        annotate(self._writer, self._key, lambda old: encoded(change(parsed(old))))


def annotate(writer: Writer, key: str, change: Callable[[str], str]) -> None:
    """Change the metadata of a key; `change` is given the text that is there."""

    def decide(draft: Draft) -> list[Annotate]:
        entry = draft.get(key)
        if entry is None:
            raise KeyNotFoundError([key])
        text = change(entry.metadata)
        return [] if text == entry.metadata else [Annotate(key, 0, text)]

    writer.make(changing(decide), early=True)
