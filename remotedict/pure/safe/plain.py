"""Safe values of Python itself: containers, numbers, times, paths."""

from __future__ import annotations

import datetime as dt
import decimal
import pathlib
import re
import uuid
import zoneinfo
from typing import TYPE_CHECKING, Any

from remotedict.pure.facts import type_name
from remotedict.pure.safe import tags
from remotedict.pure.safe.tree import Reader, RefusedError, Writer, checked, within

if TYPE_CHECKING:
    from collections.abc import Callable

_ZONE = re.compile(r"[A-Za-z0-9_+\-]+(/[A-Za-z0-9_+\-]+){0,3}")
_PATHS: dict[str, type[pathlib.PurePath]] = {
    cls.__name__: cls
    for cls in (
        pathlib.PurePosixPath,
        pathlib.PureWindowsPath,
        pathlib.PosixPath,
        pathlib.WindowsPath,
    )
}

# -- writing ------------------------------------------------------------------------------------


def _sequence(tag: int) -> Callable[[Writer, Any], list[Any]]:
    return lambda writer, value: [tag, writer.nodes([*value])]


def _elements(tag: int) -> Callable[[Writer, Any], list[Any]]:
    return lambda writer, value: [tag, writer.nodes([*value], " (an element of the set)")]


def _dict(writer: Writer, value: dict[Any, Any]) -> list[Any]:
    keys = [*value]
    with within(" (a key of the dict)"):
        key_nodes = writer.nodes(keys, "")
    nodes = []
    items = [*value.values()]
    if writer.all_as_is(items):
        nodes = items
    else:
        for key, item in zip(keys, items, strict=True):
            with within("[{!r:.60}]", key):
                nodes.append(writer.node(item))
    return [tags.DICT, key_nodes, nodes]


def _int(_: Writer, value: int) -> list[Any]:
    return [tags.INT, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)]


def _text(_: Writer, value: str) -> list[Any]:
    return [tags.TEXT, value.encode("utf-8", "surrogatepass")]


def _bytes(tag: int) -> Callable[[Writer, Any], list[Any]]:
    return lambda writer, value: [tag, writer.buffer(memoryview(value))]


def _zone(writer: Writer, zone: dt.tzinfo | None) -> Any:
    """Return the node of what may be the zone of a time."""
    if zone is not None and type(zone) not in (dt.timezone, zoneinfo.ZoneInfo):
        msg = f"has a time zone of type {type_name(type(zone))}; use zoneinfo.ZoneInfo or datetime.timezone"
        raise RefusedError(msg)
    return writer.node(zone)


def _time(writer: Writer, value: dt.time) -> list[Any]:
    clock = [value.hour, value.minute, value.second, value.microsecond, value.fold]
    return [tags.TIME, clock, _zone(writer, value.tzinfo)]


def _datetime(writer: Writer, value: dt.datetime) -> list[Any]:
    clock = [value.hour, value.minute, value.second, value.microsecond, value.fold]
    return [tags.DATETIME, value.toordinal(), clock, _zone(writer, value.tzinfo)]


def _timezone(_: Writer, value: dt.timezone) -> list[Any]:
    name, offset = value.tzname(None), value.utcoffset(None)
    plain = dt.timezone(offset).tzname(None) == name
    return [tags.TIMEZONE, *_delta(offset), None if plain else name]


def _delta(value: dt.timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _zoneinfo(_: Writer, value: zoneinfo.ZoneInfo) -> list[Any]:
    if value.key is None or not _ZONE.fullmatch(value.key):
        msg = "is a time zone without a name, made from a file"
        raise RefusedError(msg)
    return [tags.ZONE, value.key]


def _path(_: Writer, value: pathlib.PurePath) -> list[Any]:
    return [tags.PATH, type(value).__name__, str(value)]


_WRITERS: dict[type, Callable[[Writer, Any], list[Any]]] = {
    list: _sequence(tags.LIST),
    tuple: _sequence(tags.TUPLE),
    dict: _dict,
    set: _elements(tags.SET),
    frozenset: _elements(tags.FROZENSET),
    int: _int,
    str: _text,
    complex: lambda _, value: [tags.COMPLEX, value.real, value.imag],
    bytes: _bytes(tags.BYTES),
    bytearray: _bytes(tags.BYTEARRAY),
    range: lambda writer, value: [
        tags.RANGE,
        writer.nodes([value.start, value.stop, value.step]),
    ],
    dt.date: lambda _, value: [tags.DATE, value.toordinal()],
    dt.time: _time,
    dt.datetime: _datetime,
    dt.timedelta: lambda _, value: [tags.TIMEDELTA, *_delta(value)],
    dt.timezone: _timezone,
    zoneinfo.ZoneInfo: _zoneinfo,
    decimal.Decimal: lambda _, value: [tags.DECIMAL, str(value)],
    uuid.UUID: lambda _, value: [tags.UUID, value.bytes, value.is_safe.value],
}
Writer.writers |= _WRITERS | dict.fromkeys(_PATHS.values(), _path)


# -- reading ------------------------------------------------------------------------------------


def _read_dict(reader: Reader, keys: Any, values: Any) -> dict[Any, Any]:
    made = dict(zip(reader.values(keys), reader.values(values), strict=True))
    if len(made) != len(keys):
        msg = "a dict has a key twice"
        raise ValueError(msg)
    return made


def _read_set(cls: type) -> Callable[[Reader, Any], Any]:
    def read(reader: Reader, nodes: Any) -> Any:
        made = cls(reader.values(nodes))
        if len(made) != len(nodes):
            msg = "a set has an element twice"
            raise ValueError(msg)
        return made

    return read


def _read_zone(reader: Reader, node: Any) -> dt.tzinfo | None:
    zone = reader.value(node)
    checked(zone, type(None), dt.timezone, zoneinfo.ZoneInfo)
    return zone  # type: ignore[no-any-return]


def _clock(fields: Any) -> tuple[tuple[int, int, int, int], int]:
    *clock, fold = checked(fields, list)
    hour, minute, second, microsecond = (checked(number, int) for number in clock)
    return (hour, minute, second, microsecond), checked(fold, int)


def _read_time(reader: Reader, clock: Any, zone: Any) -> dt.time:
    numbers, fold = _clock(clock)
    return dt.time(*numbers, tzinfo=_read_zone(reader, zone), fold=fold)


def _read_datetime(reader: Reader, day: Any, clock: Any, zone: Any) -> dt.datetime:
    date = dt.date.fromordinal(checked(day, int))
    return dt.datetime.combine(date, _read_time(reader, clock, zone))


def _read_delta(_: Reader, days: Any, seconds: Any, microseconds: Any) -> dt.timedelta:
    return dt.timedelta(*(checked(number, int) for number in (days, seconds, microseconds)))


def _read_timezone(reader: Reader, *fields: Any) -> dt.timezone:
    *offset, name = fields
    delta = _read_delta(reader, *offset)
    return dt.timezone(delta) if name is None else dt.timezone(delta, checked(name, str))


def zone_of(key: Any) -> zoneinfo.ZoneInfo:
    """Return the time zone of a name; raise ValueError for what can't be one."""
    if not _ZONE.fullmatch(checked(key, str)):
        msg = f"{key!r:.60} is not the name of a time zone"
        raise ValueError(msg)
    return zoneinfo.ZoneInfo(key)


def _read_uuid(_: Reader, raw: Any, known_safe: Any) -> uuid.UUID:
    safety = uuid.SafeUUID(checked(known_safe, int, type(None)))
    return uuid.UUID(bytes=checked(raw, bytes), is_safe=safety)


def _read_range(reader: Reader, bounds: Any) -> range:
    start, stop, step = (checked(number, int) for number in reader.values(bounds))
    return range(start, stop, step)


Reader.readers |= {
    tags.LIST: Reader.values,
    tags.TUPLE: lambda reader, nodes: tuple(reader.values(nodes)),
    tags.DICT: _read_dict,
    tags.SET: _read_set(set),
    tags.FROZENSET: _read_set(frozenset),
    tags.INT: lambda _, raw: int.from_bytes(checked(raw, bytes), "little", signed=True),
    tags.TEXT: lambda _, raw: str(checked(raw, bytes), "utf-8", "surrogatepass"),
    tags.COMPLEX: lambda _, real, imag: complex(checked(real, float), checked(imag, float)),
    tags.BYTES: lambda reader, node: bytes(reader.buffer(node)),
    tags.BYTEARRAY: lambda reader, node: bytearray(reader.buffer(node)),
    tags.RANGE: _read_range,
    tags.DATE: lambda _, day: dt.date.fromordinal(checked(day, int)),
    tags.TIME: _read_time,
    tags.DATETIME: _read_datetime,
    tags.TIMEDELTA: _read_delta,
    tags.TIMEZONE: _read_timezone,
    tags.ZONE: lambda _, key: zone_of(key),
    tags.DECIMAL: lambda _, text: decimal.Decimal(checked(text, str)),
    tags.UUID: _read_uuid,
    tags.PATH: lambda _, kind, text: _PATHS[checked(kind, str)](checked(text, str)),
}
