"""Each operation's 1st, 2nd, … nth request meets each fault, by way of obstore and of the SDK.

One request alone is harmed: so the operation must succeed, and have its effect once. Then the
request and all that come after it: so the operation must fail with an error of ours; one that
says that nothing was written must be right, and only one whose fate can't be known may say so.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from tenacity import retry, retry_if_exception_type, stop_after_attempt

from campaigns.operations import OPERATIONS, prepare, public_names, seen
from campaigns.proxy import Fault
from campaigns.report import short
from campaigns.sites import site
from remotedict import RemoteDictError, StoreUnavailableError, UnknownOutcomeError

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from campaigns.operations import Operation
    from campaigns.proxy import FaultProxy, Request
    from campaigns.report import Report
    from campaigns.sites import Site
    from remotedict import RemoteDict
    from workers import Where

FULL, SMALL = 1000, 1
KINDS = ("azure",)
PATIENCE = 0.7  # of the handles that get no answer any more; seconds

ALONE = [*Fault]
FOR_GOOD = [Fault.LOSE_REQUEST, Fault.LOSE_REPLY]


def run(_: str, times: int, rng: random.Random, report: Report) -> None:
    """Do it: `times` times for each operation and each way, of what might be harmed at random.

    If that is once, the ways take turns.
    """
    missing = public_names() ^ {operation.name for operation in OPERATIONS}
    report.check(not missing, f"campaigns/operations.py should name, or not: {sorted(missing)}")
    with site("azure") as azure:
        container = azure.fresh()
        ways = [Trial(azure, container, report, sdk=sdk) for sdk in (False, True)]
        for number, operation in enumerate(OPERATIONS):
            for trial in ways if times > 1 else [ways[number % 2]]:
                _harm(trial, operation, times, rng, report)


def _harm(
    trial: Trial, operation: Operation, times: int, rng: random.Random, report: Report
) -> None:
    count = trial.undisturbed(operation)
    report.did("operations")
    report.did("requests of them", count)
    faults = [(n, fault, False) for n in range(1, count + 1) for fault in ALONE]
    faults += [(n, fault, True) for n in range(1, count + 1) for fault in FOR_GOOD]
    for n, fault, for_good in sorted(rng.sample(faults, min(times, len(faults))), key=str):
        trial.harmed(operation, n, fault, for_good=for_good)


@retry(retry=retry_if_exception_type(StoreUnavailableError), stop=stop_after_attempt(5))
def _open(where: Where, timeout: float) -> RemoteDict:
    """Open a handle; nothing is harmed yet, but the machine may be slower than its patience."""
    return where.open(timeout=timeout)


class Trial:
    """Runs an operation on a dictionary of its own, by way of the proxy, and looks what is there."""

    def __init__(self, azure: Site, container: Where, report: Report, *, sdk: bool) -> None:
        assert azure.proxy
        self._proxy: FaultProxy = azure.proxy
        self._azure = azure
        self._container = container
        self._report = report
        self._sdk = sdk
        self._number = 0
        self._before: Any = None
        self._after: Any = None
        self._result: Any = None

    @contextlib.contextmanager
    def _handles(self, timeout: float = 20.0) -> Iterator[tuple[RemoteDict, RemoteDict]]:
        """Yield an observer, and a handle by way of the proxy, on a dictionary made anew."""
        self._number += 1
        where = replace(
            self._container, folder=f"{'sdk' if self._sdk else 'obstore'}{self._number}"
        )
        self._proxy.obey()
        way = patch("remotedict.azure.usable", return_value=False)
        with where.open(author="observer") as observer, contextlib.ExitStack() as stack:
            prepare(observer)
            if self._sdk:
                stack.enter_context(way)
            handle = _open(self._azure.through_proxy(where), timeout)
            try:
                yield observer, handle
            finally:
                self._proxy.obey()
                handle.close()

    def undisturbed(self, operation: Operation) -> int:
        """Return how many requests an operation makes; keep what it does."""
        with self._handles() as (observer, handle):
            self._before = seen(observer)
            self._proxy.obey()
            self._result = operation.act(handle)
            count = self._proxy.seen
            self._after = seen(observer)
            return count

    def harmed(self, operation: Operation, n: int, fault: Fault, *, for_good: bool) -> None:
        """Harm the nth request of an operation, and perhaps all after it; judge what comes of it."""

        def rule(request: Request) -> Fault | None:
            strikes = request.number >= n if for_good else request.number == n
            return fault if strikes else None

        patience = PATIENCE if for_good or fault is Fault.SILENCE else 20.0
        result, error = None, None
        with self._handles(patience) as (observer, handle):
            self._proxy.obey(rule)
            try:
                result = operation.act(handle)
            except Exception as exc:  # noqa: BLE001 - it is judged below
                error = exc
            if not self._proxy.struck:
                return  # it made fewer requests this time
            self._proxy.obey()
            then = seen(observer)
        where = f"{operation.name}, request {n}{' and on' if for_good else ''}: {fault.name}"
        where += f" ({'SDK' if self._sdk else 'obstore'})"
        self._report.did("trials")
        self._report.did(type(error).__name__ if error else "succeeded")
        if for_good or (error and fault is Fault.SILENCE and isinstance(error, TimeoutError)):
            self._judge_failure(operation, where, result, error, then)
        else:
            self._report.check(error is None, f"{where} raised {error!r}")
            self._report.check(
                error is not None or (result, then) == (self._result, self._after),
                f"{where} returned {short(result)}, and left behind {self._unlike(then)}",
            )

    def _judge_failure(
        self, operation: Operation, where: str, result: Any, error: Exception | None, then: Any
    ) -> None:
        if error is None:
            # What it does beside its answer may be lost: a lock that isn't given back, say.
            right = operation.name in _QUIET or (result, then) == (self._result, self._after)
            self._report.check(
                right, f"{where} returned {short(result)}, and left behind {self._unlike(then)}"
            )
        elif not isinstance(error, RemoteDictError):
            self._report.wrong(f"{where} raised {error!r}")
        elif operation.commits > 1:
            # It stopped somewhere on its way: each of its commits stands, or doesn't.
            pass
        elif isinstance(error, UnknownOutcomeError):
            right = then in (self._before, self._after)
            self._report.check(right, f"{where} left behind {self._unlike(then)}")
        else:
            right = then == self._before and isinstance(error, StoreUnavailableError)
            self._report.check(
                right, f"{where} raised {error!r}, and left behind {self._unlike(then)}"
            )

    def _unlike(self, then: Any) -> str:
        """Return what is neither as before nor as after the operation."""
        pairs = zip(then, self._before, self._after, strict=True)
        return "; ".join(
            f"{short(there)} (not {short(before)})"
            for there, before, after in pairs
            if there not in (before, after) or before != after
        )


_QUIET = {"__repr__", "_repr_html_", "_ipython_key_completions_", "on_change", "mirror", "close"}
