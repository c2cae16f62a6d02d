"""Showing a dictionary in a notebook: its first keys with what is known of their values."""

from __future__ import annotations

from html import escape
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remotedict.pure.entry import Entry
    from remotedict.pure.state import State

_ROWS = 20
_HEADINGS = ("key", "type", "shape", "dtype", "size", "age", "version")


def html(title: str, state: State | None, now: float) -> str:
    """Return an HTML table. No value is read for it: the facts are in the index.

    Parameters
    ----------
    title : str
        Stands above it.
    state : State or None
        What to show.
    now : float
        Seconds since the epoch.
    """
    text = f"<div><strong>{escape(title)}</strong></div>"
    if state is None or not len(state):
        return text
    head = "".join(f"<th style='text-align:left'>{name}</th>" for name in _HEADINGS)
    rows = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{cell}</td>" for cell in cells) + "</tr>"
        for key in islice(state, _ROWS)
        if (entry := state.get(key))
        for cells in [_cells(key, entry, now)]
    )
    more = len(state) - _ROWS
    rest = f"<div>… and {more:,} more</div>" if more > 0 else ""
    return f"{text}<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{rest}"


def _cells(key: str, entry: Entry, now: float) -> list[str]:
    facts = entry.facts
    shape = " x ".join(map(str, facts.shape)) if facts.shape is not None else ""
    return [
        escape(key if len(key) <= 80 else key[:79] + "…"),
        escape(facts.type),
        shape,
        escape(facts.dtype or ""),
        size(facts.nbytes),
        age(now - entry.modified / 1e6),
        str(entry.version),
    ]


def size(nbytes: float) -> str:
    """Return a number of bytes for people.

    >>> size(2048)
    '2.0 KiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TiB"


def age(seconds: float) -> str:
    """Return a length of time for people.

    >>> age(7200)
    '2 h'
    """
    for limit, divisor, unit in ((100, 1, "s"), (6000, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{max(seconds, 0) / divisor:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"
