"""The main thread is interrupted (KeyboardInterrupt) at random moments of random operations.

Afterwards the operation has had its effect, or none; the next one is right, and no lock stays.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import random
import signal
import time
from typing import TYPE_CHECKING, Any

from campaigns.sites import site
from crew import crew_of, received
from remotedict import KeyNotFoundError, LockNotHeldError

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from campaigns.report import Report
    from remotedict import RemoteDict
    from workers import Where

FULL, SMALL = 500, 25
KINDS = ("local", "azure")
LONGEST = {"local": 0.03, "azure": 0.06}  # seconds until an interrupt comes
HANG = 60.0
LARGE = 60_000


def run(kind: str, times: int, rng: random.Random, report: Report) -> None:
    """Interrupt `times` times."""
    with site(kind) as place, crew_of("forkserver") as crew:
        where = place.fresh()
        arguments = (where, times, LONGEST[kind], rng.randrange(2**32))
        process, told = crew.start_with_report(be_interrupted, *arguments)
        while (said := received(told)) is not None:
            what, text = said
            if what == "wrong":
                report.wrong(text)
            else:
                report.did(text)
        crew.join(process)
        with where.open() as d:
            report.check(d.locks == {}, f"locks stay behind: {d.locks}")


def be_interrupted(where: Where, times: int, longest: float, seed: int, report: Connection) -> None:
    """Do one thing after the other, and be interrupted by a timer; look after each."""
    rng = random.Random(seed)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    with where.open() as d, where.open(author="observer") as observer:
        d.update(dict.fromkeys(["a", "b", "next"], "first"))
        d.update({"n": 0, "large": value("first", LARGE)})
        interrupts, number = 0, 0
        while interrupts < times:
            number += 1
            name = rng.choice(sorted(ACTS))
            act, expect = ACTS[name]
            token = f"{name} {number}"
            before = observer.copy()
            faulthandler.dump_traceback_later(HANG, exit=True)
            interrupted = False
            result = None
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, longest))
                    result = act(d, token)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted = True
            interrupts += interrupted
            report.send(("did", "interrupts" if interrupted else "not in time"))
            try:
                _look(d, observer, before, expect(before, token), result, interrupted, token)
            except Exception as exc:  # noqa: BLE001 - it is told
                report.send(("wrong", f"{token}: {type(exc).__name__}: {exc}"))
            faulthandler.cancel_dump_traceback_later()
    report.send(None)


def value(token: str, size: int) -> str:
    """Return a value that says which operation made it."""
    return token + "." * size


def _look(
    d: RemoteDict,
    observer: RemoteDict,
    before: dict[str, Any],
    after: tuple[dict[str, Any], Any],
    result: Any,
    interrupted: bool,
    token: str,
) -> None:
    # The very next operations: they come after whatever the interrupt has left under way.
    key = "next"
    d[key] = token
    assert d[key] == token, f"read {d[key]!r} after writing {token!r}"
    there = d.copy()
    assert there[key] == token
    now = there | {key: before[key]}
    expected, returned = after
    if interrupted:
        assert now in (before, expected), f"{_short(now)} is there, not {_short(before)} or after"
    else:
        assert now == expected, f"{_short(now)} is there, not {_short(expected)}"
        assert result == returned, f"it returned {result!r:.100}, not {returned!r:.100}"
    # No lock stays but those of this handle that an interrupt left to it.
    for locked, info in d.locks.items():
        assert info.mine, f"{locked!r} is locked by {info}"
        with contextlib.suppress(LockNotHeldError):  # it is being given back in the background
            d.unlock_item(locked)
    for handle in (observer, d):
        with handle.lock("a", "b", timeout=10):  # less than a lease that was left behind
            pass
    assert observer.copy() == there
    time.sleep(0.002)
    assert observer.copy() == there, "something came late"


def _short(items: dict[str, Any]) -> dict[str, str]:
    return {key: f"{value!r:.40}" for key, value in items.items()}


# -- what is done, and what comes of it: the items, and the result ---------------------------


def _set(d: RemoteDict, token: str) -> None:
    d["a"] = token


def _set_large(d: RemoteDict, token: str) -> None:
    d["large"] = value(token, LARGE)


def _set_pair(d: RemoteDict, token: str) -> None:
    d["a", "b"] = token, value(token, 5_000)


def _section(d: RemoteDict, token: str) -> None:
    with d.lock("a"):
        d["a"] = token


def _lock(d: RemoteDict, token: str) -> None:
    del token
    d.lock_item(["a", "b"], wait=True)
    d.unlock_item(["a", "b"])


def _transaction(d: RemoteDict, token: str) -> None:
    with d.transaction() as t:
        t["b"] = t["a"]
        t["a"] = token


def _gather(d: RemoteDict, token: str) -> None:
    with d.commit(token):
        d["a"] = token
        d["large"] = value(token, LARGE)


def _update(d: RemoteDict, token: str) -> None:
    d.update((key, value(f"{token} {key}", 3_000)) for key in "pqrs")


def _pop(d: RemoteDict, token: str) -> Any:
    del token
    return d.pop("p", None)


def _put_file(d: RemoteDict, token: str) -> None:
    d.put_file("file", io.BytesIO(token.encode() * 5_000))


def _delete(d: RemoteDict, token: str) -> Any:
    del token
    try:
        del d["q", "r"]
    except KeyNotFoundError:
        return "missing"
    return None


def _without(items: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in items.items() if key not in keys}


ACTS: dict[str, tuple[Callable[[RemoteDict, str], Any], Callable[[dict[str, Any], str], Any]]] = {
    "get": (lambda d, _: d["a"], lambda b, _: (b, b["a"])),
    "get large": (lambda d, _: d["large"], lambda b, _: (b, b["large"])),
    "get many": (lambda d, _: d[["large", "b"]], lambda b, _: (b, [b["large"], b["b"]])),
    "items": (lambda d, _: dict(d.items()), lambda b, _: (b, b)),
    "len": (lambda d, _: len(d), lambda b, _: (b, len(b))),
    "set": (_set, lambda b, t: (b | {"a": t}, None)),
    "set large": (_set_large, lambda b, t: (b | {"large": value(t, LARGE)}, None)),
    "set pair": (_set_pair, lambda b, t: (b | {"a": t, "b": value(t, 5_000)}, None)),
    "section": (_section, lambda b, t: (b | {"a": t}, None)),
    "lock item": (_lock, lambda b, _: (b, None)),
    "transaction": (_transaction, lambda b, t: (b | {"b": b["a"], "a": t}, None)),
    "commit": (_gather, lambda b, t: (b | {"a": t, "large": value(t, LARGE)}, None)),
    "update": (_update, lambda b, t: (b | {k: value(f"{t} {k}", 3_000) for k in "pqrs"}, None)),
    "modify": (
        lambda d, _: d.modify("n", lambda n: n + 1),
        lambda b, _: (b | {"n": b["n"] + 1}, b["n"] + 1),
    ),
    "setdefault": (
        lambda d, t: d.setdefault("s", t),
        lambda b, t: (b | {"s": b.get("s", t)}, b.get("s", t)),
    ),
    "pop": (_pop, lambda b, _: (_without(b, "p"), b.get("p"))),
    "delete": (
        _delete,
        lambda b, _: (_without(b, "q", "r"), None) if {"q", "r"} <= b.keys() else (b, "missing"),
    ),
    "put file": (_put_file, lambda b, t: (b | {"file": t.encode() * 5_000}, None)),
    "copy item": (
        lambda d, _: d.copy_item("large", "b"),
        lambda b, _: (b | {"b": b["large"]}, None),
    ),
    "snapshot": (lambda d, _: dict(d.snapshot()), lambda b, _: (b, b)),
}
