"""Linearizability of each key by itself, by what clients were told alone.

This asks no witness: only calls, returns and values count. Each call on a key must fit in at one
moment between its call and its return (J. Wing and C. Gong, "Testing and Verifying Concurrent
Objects", 1993; with the memory of G. Lowe's "Testing for linearizability", 2017).
"""

from __future__ import annotations

from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from remotedict.errors import KeyNotFoundError, UnknownOutcomeError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from simulation.calls import Call

_ANY = "any"
_NODES = 20_000


class Event(NamedTuple):
    """What a call says of one key.

    Attributes
    ----------
    first, last : float
        When it was called, and when it returned.
    before : str or None
        The value that was there; None for no key, `_ANY` for whatever.
    after : str or None
        The value that it set; `_ANY` for the same.
    sure : bool
        Whether it happened; else it may have happened at any time since, or not.
    """

    first: float
    last: float
    before: str | None
    after: str | None
    sure: bool


def check(history: Iterable[Call], keys: Iterable[str]) -> list[str]:
    """Return the keys whose history isn't linearizable; not those that are too hard."""
    wrong = []
    calls = list(history)
    for key in keys:
        with suppress(TooHardError):
            if not linearizable(events_of(calls, key)):
                wrong.append(key)
    return wrong


def events_of(calls: Iterable[Call], key: str) -> list[Event]:
    """Return what calls say of a key; nothing if that can't be told without asking others."""
    events: list[Event] = []
    for call in calls:
        said = _said(call, key)
        if said is None:
            return []
        events += said
    return events


class TooHardError(Exception):
    """There are more orders than are looked at."""


def linearizable(events: list[Event], nodes: int = _NODES) -> bool:
    """Tell whether there is an order of the events that explains them.

    Raises
    ------
    TooHardError
        More than `nodes` states would have to be looked at.
    """
    events = sorted(events)
    everything = sum(1 << n for n, event in enumerate(events) if event.sure)
    seen: set[tuple[int, str | None]] = set()
    stack: list[tuple[int, str | None]] = [(0, None)]
    while stack:
        done, state = stack.pop()
        if done & everything == everything:
            return True
        if (done, state) in seen:
            continue
        seen.add((done, state))
        if len(seen) > nodes:
            raise TooHardError
        deadline = min(
            event.last for n, event in enumerate(events) if event.sure and not done >> n & 1
        )
        for n, event in enumerate(events):
            if event.first > deadline:
                break
            if not done >> n & 1 and event.before in (_ANY, state):
                after = state if event.after == _ANY else event.after
                stack.append((done | 1 << n, after))
    return False


def _said(call: Call, key: str) -> list[Event] | None:
    """Return what a call says of a key; None if that can't be told without asking others."""
    kind, args, result, error = call.kind, call.args, call.result, call.error
    unknown = not call.last or isinstance(error, UnknownOutcomeError | KeyboardInterrupt)
    if kind in {"copy_item", "revert"} and args[0 if kind == "revert" else 1] == key:
        return None
    if call.stale and kind in {"get_default", "contains", "items", "copy", "get", "get_many"}:
        return []

    def event(before: str | None, after: str | None) -> list[Event]:
        if unknown:
            return [Event(call.first, inf, before, after, sure=False)]
        return [Event(call.first, call.last, before, after, sure=True)]

    if unknown and kind not in {"set", "inside", "delete", "clear", "put", "forget", "transaction"}:
        return [] if kind in {"get", "len", "keys"} else _hazy(call, key)
    if error is not None and not unknown:
        if isinstance(error, KeyNotFoundError) and kind in {"get", "pop", "delete", "annotate"}:
            return event(None, _ANY) if list(error.keys) == [key] and len(args) <= 2 else []
        return None if kind == "forget" and args == (key,) else []
    if kind in {"get", "get_default"} and args == (key,):
        return event(result, _ANY)
    if kind == "get_many" and key in args:
        return event(result[args.index(key)], _ANY)
    if kind == "contains" and args == (key,) and not result:
        return event(None, _ANY)
    if kind in {"items", "copy"}:
        return event(dict(result).get(key), _ANY)
    if kind == "set":
        tokens = [token for name, token in args if name == key]
        return event(_ANY, tokens[-1]) if tokens else []
    if kind == "inside" and args[0] == key:
        return event(_ANY, args[1])
    if kind in {"delete", "forget"} and key in args:
        return event(_ANY, None)
    if kind == "clear":
        return event(_ANY, None)
    if kind == "pop" and args[0] == key:
        return event(result, None)
    if kind == "popitem" and result[0] == key:
        return event(result[1], None)
    if kind == "setdefault" and args[0] == key:
        return event(None, args[1]) if result == args[1] else event(result, _ANY)
    if kind == "put" and args[0] == key:
        return event(None if args[3] else _ANY, args[1])
    if kind == "modify" and args[0] == key:
        return event(args[3][-1], args[1])
    if kind == "transaction":
        return _of_transaction(call, key, event)
    return []


def _hazy(call: Call, key: str) -> list[Event] | None:
    """Return nothing for what doesn't touch a key; else nobody knows."""
    kind = call.kind
    if kind in {"pop", "modify", "setdefault"}:
        return [] if call.args[0] != key else None
    return None if kind == "popitem" else []


def _of_transaction(call: Call, key: str, event: object) -> list[Event]:
    before, after, touched = _ANY, _ANY, False
    for step, name, token in call.args:
        if name != key:
            continue
        if step == "read" and after == _ANY and not touched:
            before = token
        elif step == "set":
            after, touched = token, True
        elif step == "delete":
            after, touched = None, True
    if before == _ANY and after == _ANY:
        return []
    return event(before, after)  # type: ignore[operator]
