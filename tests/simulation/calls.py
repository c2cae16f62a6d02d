"""Calls: what clients do, as recorded, and what each kind of call means on plain dicts.

A model is given a state that it may change, and the call; it returns what the call must return
there, or raises `Refused` with the error that it must raise.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from remotedict.errors import KeyNotFoundError, SnapshotExpiredError, VersionConflictError
from simulation import values as values_

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulation.witness import State


class Call:
    """One call of a client.

    Attributes
    ----------
    begun, ended : int
        How many commits had landed when it was called, and when it returned.
    first, last : int
        When that was, among all calls and returns; `last` is 0 if it never returned.
    handle : str
        Who called: the handle that locks belong to.
    landed : list of int
        Which landings are of it.
    forces : bool
        Whether it may end the lock of a living holder.
    partial : bool
        Whether it may fail though it has written.
    given_up : set of str
        Of which keys its handle gave up the locks, though they stand.
    """

    __slots__ = (
        "args",
        "begun",
        "called",
        "ended",
        "error",
        "first",
        "forces",
        "given_up",
        "handle",
        "kind",
        "landed",
        "last",
        "name",
        "partial",
        "result",
        "returned",
        "stale",
        "thread",
    )

    def __init__(self, name: str, kind: str, args: Any, handle: str, thread: str) -> None:
        self.name = name
        self.kind = kind
        self.args = args
        self.handle = handle
        self.thread = thread
        self.begun = 0
        self.ended: int | None = None
        self.first, self.last = 0, 0
        self.called = 0.0
        self.returned = 0.0
        self.result: Any = None
        self.error: BaseException | None = None
        self.landed: list[int] = []
        self.forces = kind == "force"
        self.partial = kind in {"forget", "unlock", "force", "leave", "close", "vacuum"}
        self.stale = 0.0
        self.given_up: set[str] = set()

    def __repr__(self) -> str:
        return f"{self.name} {self.kind}{self.args!r}"


class Refused(Exception):  # noqa: N818
    """The call must raise that: a type, and what tells which."""

    def __init__(self, cls: type[BaseException], detail: Any = None) -> None:
        super().__init__(cls, detail)
        self.cls = cls
        self.detail = detail


class Impossible(Exception):  # noqa: N818
    """What the call has seen isn't so in this state."""


MODELS: dict[str, Callable[[State, Call], Any]] = {}


def model(fn: Callable[[State, Call], Any]) -> Callable[[State, Call], Any]:
    """Register the model of the kind of call that a function is named after."""
    MODELS[fn.__name__.rstrip("_")] = fn
    return fn


def _missing(state: State, keys: Any) -> None:
    missing = tuple(dict.fromkeys(key for key in keys if key not in state.items))
    if missing:
        raise Refused(KeyNotFoundError, missing)


# -- reads -----------------------------------------------------------------------------------


@model
def get(state: State, call: Call) -> Any:
    _missing(state, call.args)
    return state.items[call.args[0]]


@model
def get_default(state: State, call: Call) -> Any:
    return state.items.get(call.args[0])


@model
def get_many(state: State, call: Call) -> Any:
    _missing(state, call.args)
    return [state.items[key] for key in call.args]


@model
def contains(state: State, call: Call) -> Any:
    return call.args[0] in state.items


@model
def len_(state: State, call: Call) -> Any:
    return len(state.items)


@model
def keys(state: State, call: Call) -> Any:
    return list(state.items)


@model
def backwards(state: State, call: Call) -> Any:
    return list(reversed(state.items))


@model
def items(state: State, call: Call) -> Any:
    return list(state.items.items())


@model
def values(state: State, call: Call) -> Any:
    return list(state.items.values())


@model
def pairs_backwards(state: State, call: Call) -> Any:
    return list(reversed(state.items.items()))


@model
def has_pair(state: State, call: Call) -> Any:
    key, token = call.args
    return state.items.get(key) == token


@model
def equal(state: State, call: Call) -> Any:
    return state.items == call.args


@model
def merged(state: State, call: Call) -> Any:
    key, token = call.args
    return list((state.items | {key: token}).items())


@model
def glob(state: State, call: Call) -> Any:
    return [key for key in state.items if fnmatchcase(key, call.args[0])]


@model
def shown(state: State, call: Call) -> Any:
    return list(state.items)


@model
def info(state: State, call: Call) -> Any:
    return [
        (key, state.versions[key], bool(state.metadata.get(key)), values_.is_binary(token))
        for key, token in state.items.items()
    ]


@model
def get_file(state: State, call: Call) -> Any:
    _missing(state, call.args)
    token = state.items[call.args[0]]
    if not values_.is_binary(token):
        raise Refused(TypeError)
    return token


@model
def copy(state: State, call: Call) -> Any:
    return list(state.items.items())


@model
def version(state: State, call: Call) -> Any:
    return state.versions.get(call.args[0], 0)


@model
def metadata(state: State, call: Call) -> Any:
    _missing(state, call.args)
    return state.metadata.get(call.args[0], "")


@model
def query(state: State, call: Call) -> Any:
    return [
        k for k in state.items if json.loads(state.metadata.get(k) or "{}").get("n") == call.args[0]
    ]


@model
def at(state: State, call: Call) -> Any:
    key, number = call.args
    if number > state.versions.get(key, 0):
        raise Refused(KeyNotFoundError, (key,))
    if (key, number) not in state.past:
        raise Refused(SnapshotExpiredError)
    token, _ = state.past[key, number]
    if token is None:
        raise Refused(KeyNotFoundError, (key,))
    return token


@model
def snapshot(state: State, call: Call) -> Any:
    return state.seq


@model
def locks(state: State, call: Call) -> Any:
    return {
        key: holder == call.handle and (key not in call.given_up or call.result.get(key, False))
        for key, (_, holder) in state.locks.items()
    }


@model
def export(state: State, call: Call) -> Any:
    facts = {key: (state.versions[key], state.metadata.get(key, "")) for key in state.items}
    return state.seq, list(state.items.items()), facts, ()


# -- writes ----------------------------------------------------------------------------------


@model
def set_(state: State, call: Call) -> Any:
    for key, token in call.args:
        state.set(key, token)


@model
def put(state: State, call: Call) -> Any:
    key, token, version, if_absent, text = call.args
    comes = state.versions.get(key, 0) + 1
    if (version is not None and version != comes) or (if_absent and key in state.items):
        raise Refused(VersionConflictError, comes)
    state.set(key, token)
    if text is not None:
        state.annotate(key, text)
    return comes


@model
def delete(state: State, call: Call) -> Any:
    _missing(state, call.args)
    for key in call.args:
        state.delete(key)


@model
def pop(state: State, call: Call) -> Any:
    key, default = call.args
    if key not in state.items and default:
        return None
    _missing(state, [key])
    token = state.items[key]
    state.delete(key)
    return token


@model
def popitem(state: State, call: Call) -> Any:
    if not state.items:
        raise Refused(KeyNotFoundError, ())
    key, token = next(reversed(state.items.items()))
    state.delete(key)
    return (key, token)


@model
def setdefault(state: State, call: Call) -> Any:
    key, token = call.args
    if key not in state.items:
        state.set(key, token)
    return state.items[key]


@model
def clear(state: State, call: Call) -> Any:
    for key in list(state.items):
        state.delete(key)


@model
def annotate(state: State, call: Call) -> Any:
    key, text = call.args
    _missing(state, [key])
    state.annotate(key, text)


@model
def copy_item(state: State, call: Call) -> Any:
    source, target = call.args
    _missing(state, [source])
    state.set(target, state.items[source])
    text = state.metadata.get(source, "")
    if text != state.metadata.get(target, ""):
        state.annotate(target, text)


@model
def revert(state: State, call: Call) -> Any:
    token = at(state, call)
    state.set(call.args[0], token)


@model
def modify(state: State, call: Call) -> Any:
    key, token, default, seen = call.args
    if not default:
        _missing(state, [key])
    if seen[-1:] != [state.items.get(key)]:
        raise Impossible
    state.set(key, token)
    return token


@model
def transaction(state: State, call: Call) -> Any:
    for step, key, token in call.args:
        if step == "read":
            if state.items.get(key) != token:
                raise Impossible
        elif step == "scan":
            if list(state.items) != token:
                raise Impossible
        elif step == "set":
            state.set(key, token)
        else:
            _missing(state, [key])
            state.delete(key)


@model
def forget(state: State, call: Call) -> Any:
    if call.args[0] not in state.versions and isinstance(call.error, KeyNotFoundError):
        raise Refused(KeyNotFoundError, call.args)
    state.forget(call.args[0])


@model
def lock(state: State, call: Call) -> Any:
    """The witness has judged the commit; here only that it stands."""
    for key in call.args[0]:
        if state.locks.get(key, (b"", ""))[1] != call.handle:
            raise Impossible


@model
def unlock(state: State, call: Call) -> Any:
    for key in call.args:
        if state.locks.get(key, (b"", ""))[1] == call.handle:
            raise Impossible


@model
def force(state: State, call: Call) -> Any:
    """The witness has judged the commits."""


@model
def policy(state: State, call: Call) -> Any:
    """No commit, and nothing that users see of keys."""


@model
def upgrade(state: State, call: Call) -> Any:
    """No commit, and nothing that users see of keys."""


@model
def open_(state: State, call: Call) -> Any:
    """Nothing that users see of keys."""


@model
def close(state: State, call: Call) -> Any:
    """It may unlock what is locked."""
