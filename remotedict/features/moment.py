"""Moments: which commit a number, an id, a time or an event means."""

from __future__ import annotations

import operator
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from remotedict.errors import UnknownCommitError
from remotedict.features.events import Event

if TYPE_CHECKING:
    from remotedict.engine.core import Engine
    from remotedict.engine.index import Known


def resolve(engine: Engine, known: Known, at: Any, before_all: int | None = None) -> int:
    """Return the number of the commit that `at` means.

    Parameters
    ----------
    engine, known
        Where to look.
    at : int, str, datetime or Event
        Its number; its id; a time (also as ISO text; without a zone it is local), which means
        the newest commit up to then, by the writers' clocks; or an event.

    before_all : int, optional
        What 0, and a time before the first commit, mean; by default they are errors.

    Raises
    ------
    UnknownCommitError
        There is none, or none so early.
    """
    if isinstance(at, Event):
        at = at.commit
    number = integer(at)
    if number is not None:
        return _of_number(known, number, before_all)
    if not isinstance(at, str | datetime):
        kind = type(at).__name__
        msg = f"a moment is the number or id of a commit, a time or an event, not a {kind}"
        raise TypeError(msg)
    if isinstance(at, str) and re.fullmatch("[0-9a-fA-F]{32}", at):
        return _of_id(engine, known, bytes.fromhex(at))
    try:
        micros = int(pd.Timestamp(at).to_pydatetime().astimezone(UTC).timestamp() * 1e6)
    except (ValueError, OverflowError, OSError) as exc:
        reason = f"{at!r} is neither the id of a commit nor a time"
        raise UnknownCommitError(at, reason) from exc
    try:
        return _of_time(engine, known, at, micros)
    except UnknownCommitError:
        if before_all is None:
            raise
        return before_all


def _of_number(known: Known, number: int, before_all: int | None) -> int:
    if number == 0 and before_all is not None:
        return before_all
    newest = known.state.seq
    if not 1 <= number <= newest:
        reason = f"there is no commit {number}; "
        reason += f"there are 1 to {newest}" if newest else "nothing was ever written"
        raise UnknownCommitError(number, reason)
    return number


def _of_id(engine: Engine, known: Known, wanted: bytes) -> int:
    def search() -> int | None:
        for seq in range(known.state.seq, 0, -1):
            recent = known.state.commit_id(seq)
            if recent is None:
                break
            if recent == wanted:
                return seq
        for stamp in known.state.stamps():
            if stamp.id == wanted:
                return stamp.seq
        for commit in engine.commits.newest_first(known):
            if commit.id == wanted:
                return commit.seq
        return None

    seq = engine.runtime.call(search)
    if seq is None:
        reason = f"there is no commit {wanted.hex()}, or it is no longer kept"
        raise UnknownCommitError(wanted.hex(), reason)
    return seq


def _of_time(engine: Engine, known: Known, at: str | datetime, micros: int) -> int:
    def search() -> tuple[int | None, int]:
        first = known.state.seq + 1
        for commit in engine.commits.newest_first(known):
            if commit.time <= micros:
                return commit.seq, first
            first = commit.seq
        return None, first

    seq, first = engine.runtime.call(search)
    if seq is not None:
        return seq
    if first <= 1 or known.state.seq == 0:
        raise UnknownCommitError(at, f"there is no commit as early as {at}")
    raise UnknownCommitError(
        at,
        f"commits are kept from {first} on, and that one is later than {at}; history='all' keeps "
        "them all from then on",
    )


def integer(value: Any) -> int | None:
    """Return an int, be it numpy's, as an int; None for anything else."""
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
