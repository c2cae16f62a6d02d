"""The network: each verb is a request that travels, and much can befall it on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from greenlet import getcurrent

from remotedict.backend import (
    NOT_MODIFIED,
    BackendError,
    Got,
    LeaseHeld,
    PreconditionFailed,
    TransientError,
    pieces,
)
from remotedict.errors import AccessDeniedError
from simulation.scheduler import Killed, Raise

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Iterator

    from simulation.scheduler import Process, Scheduler
    from simulation.store import Elsewhere, Store

FAULTS = (
    "lose request",
    "lose reply",
    "late",
    "twice",
    "refuse",
    "truncate",
    "false 412",
    "false 409",
    "deny",
)
_STRIKES = {"truncate": ("get",), "false 412": ("put",), "false 409": ("lease",)}


_HEARD = ("", "truncate")


class Weather(NamedTuple):
    """What the network is like.

    Attributes
    ----------
    latency : float
        Seconds that a request takes on its way, at the most; and its reply as well.
    spikes : float
        How likely it takes a hundred times as long.
    rate : float
        How likely a fault befalls a request.
    faults : tuple of str
        Which of `FAULTS`.
    """

    latency: float
    spikes: float
    rate: float
    faults: tuple[str, ...]


class Network:
    """Carries the requests of one process to the store.

    `say` is told of each request, and of what became of it, for the trace.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        process: Process,
        store: Store | Elsewhere,
        weather: Weather,
        rng: random.Random,
        say: Callable[..., None],
    ) -> None:
        self._scheduler = scheduler
        self._process = process
        self._store = store
        self._weather = weather
        self._random = rng.random
        self._say = say
        self.requests = 0
        self.calm = False

    # -- the verbs --------------------------------------------------------------------------

    def get(
        self,
        path: str,
        *,
        range: tuple[int, int] | None = None,  # noqa: A002
        if_none_match: str | None = None,
    ) -> Any:
        store = self._store
        return self._request(
            "get", path, lambda: store.get(path, range=range, if_none_match=if_none_match)
        )

    def put(
        self, path: str, data: Any, *, if_match: str | None = None, if_absent: bool = False
    ) -> str:
        store, whole = self._store, b"".join(pieces(data))
        who = self._process.name
        made: list[str] = []

        def act() -> str:
            # What was made, and then lost, would be made again by a request that is delivered
            # twice: the old index comes back, as from a backup. No protocol could tell.
            if if_absent and made:
                raise PreconditionFailed(path)
            etag = store.put(path, whole, if_match=if_match, if_absent=if_absent, who=who)
            made.append(etag)
            return etag

        return self._request("put", path, act)

    def delete(self, paths: Iterable[str]) -> None:
        paths, store = sorted(paths), self._store
        self._request("delete", " ".join(paths), lambda: store.delete(paths))

    def list(self, prefix: str) -> Iterator[Any]:
        store = self._store
        return iter(self._request("list", prefix, lambda: list(store.list(prefix))))

    def lease(self, path: str, seconds: float, *, lease_id: str, force: bool = False) -> _SimLease:
        store = self._store
        lease = self._request(
            "lease", path, lambda: store.lease(path, seconds, lease_id=lease_id, force=force)
        )
        return _SimLease(self, lease, path)

    def close(self) -> None:
        """Do nothing: what is under way arrives all the same."""

    # -- a request --------------------------------------------------------------------------

    def _request(self, verb: str, path: str, act: Callable[[], Any]) -> Any:
        if not self._process.alive:
            raise Killed
        scheduler, random, weather = self._scheduler, self._random, self._weather
        thread = getcurrent()
        turn = thread.turn
        self.requests += 1
        number = self.requests
        there = random() * weather.latency
        back = random() * weather.latency
        if random() < weather.spikes and not self.calm:
            if random() < 0.5:
                there *= 100
            else:
                back *= 100
        fault = ""
        if not self.calm and random() < weather.rate:
            fault = weather.faults[int(random() * len(weather.faults))]
            if verb not in _STRIKES.get(fault, (verb,)):
                fault = ""

        def arrive() -> None:
            answer = self._carry_out(verb, path, act, number, fault)
            if fault == "truncate" and type(answer) is Got and answer.data:
                answer = Got(answer.data[: int(random() * len(answer.data))], answer.etag)
            scheduler.wake(thread, turn, answer, back)

        def arrive_unheard() -> None:
            self._carry_out(verb, path, act, number, "unheard")

        now = scheduler.now
        if fault in _HEARD:
            scheduler.at(now + there, arrive)
        elif fault == "twice":
            first = now + there
            second = first + random() * weather.latency * (100 if random() < 0.3 else 2)
            if random() < 0.5:
                scheduler.at(first, arrive)
                scheduler.at(second, arrive_unheard)
            else:  # the second answer is the one that comes
                scheduler.at(first, arrive_unheard)
                scheduler.at(second, arrive)
        else:
            seconds = (0.05, 0.5, 5.0, 30.0)[int(random() * 4)]
            error: Exception = TransientError(f"{fault} ({number})")
            if fault == "lose reply":
                scheduler.at(now + there, arrive_unheard)
            elif fault == "late":
                scheduler.at(now + seconds * (1 + 2 * random()), arrive_unheard)
            elif fault != "lose request":
                seconds = there + back
            if fault == "false 412" and path == self._store.index:
                error = PreconditionFailed(path)
            elif fault == "false 409":
                error = LeaseHeld(path)
            elif fault == "deny":
                error = AccessDeniedError(f"denied ({number})")
            self._say(self._process.name, number, verb, path, fault)
            scheduler.wake(thread, turn, Raise(error), seconds)
        return scheduler.wait()

    def _carry_out(
        self, verb: str, path: str, act: Callable[[], Any], number: int, note: str
    ) -> Any:
        try:
            answer = act()
        except BackendError as exc:
            self._say(self._process.name, number, verb, path, note, type(exc).__name__)
            return Raise(exc)
        if self._say.on:
            if answer is NOT_MODIFIED:
                shown = "304"
            elif isinstance(answer, Got):
                shown = f"{len(answer.data)} bytes {answer.etag}"
            elif isinstance(answer, str):
                shown = answer
            else:
                shown = "done"
            self._say(self._process.name, number, verb, path, note, shown)
        return answer


class _SimLease:
    """See `Lease`: its verbs travel, too."""

    def __init__(self, network: Network, lease: Any, path: str) -> None:
        self._network = network
        self._lease = lease
        self._path = path
        self.id = lease.id
        self.seconds = lease.seconds

    def renew(self) -> None:
        self._network._request("renew", self._path, self._lease.renew)

    def release(self) -> None:
        self._network._request("release", self._path, self._lease.release)
