"""A store that misbehaves on demand, and a clock that a test owns."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remotedict import RemoteDict
from remotedict.backend import TransientError, pieces
from remotedict.backend.memory import MemoryBackend
from remotedict.engine.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable

INDEX = "Index/f/index"


class FakeClock:
    """Time that passes only when somebody sleeps, or the test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class FakeRuntime(Runtime):
    """The real threads, the test's clock; a sleep takes no time but on that clock."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock

    def monotonic(self) -> float:
        return self.clock()

    def time(self) -> float:
        return self.clock()

    def sleep(self, seconds: float) -> None:
        self.clock.now += seconds

    def wait(self, signal, seconds: float) -> bool:
        if threading.current_thread().name == "remotedict-renewer":
            return signal.wait(seconds)  # it follows the clock, and doesn't drive it
        if not signal.wait(0.001):
            self.clock.now += seconds
        return signal.given

    def jitter(self, seconds: float) -> float:
        return seconds / 2


@dataclass
class Call:
    """One request to the store."""

    verb: str
    path: str
    args: dict[str, Any]
    data: bytes = b""


@dataclass
class FaultyBackend:
    """A backend that records all requests and lets a test step in.

    `steps` are tried on each request in turn; one that matches is used up and stands in for the
    request: it is given a function that carries the request out.
    """

    store: MemoryBackend
    calls: list[Call] = field(default_factory=list)
    steps: list[tuple[str, str, Callable[[Callable[[], Any]], Any]]] = field(default_factory=list)
    guard: threading.Lock = field(default_factory=threading.Lock)

    def at(self, verb: str, path: str, step: Callable[[Callable[[], Any]], Any]) -> None:
        """Let `step` stand in for the next `verb` request whose path ends with `path`."""
        self.steps.append((verb, path, step))

    def sent(self, verb: str, path: str = "") -> list[Call]:
        """Return the requests of one kind so far."""
        return [c for c in self.calls if c.verb == verb and c.path.endswith(path)]

    def _do(self, call: Call, act: Callable[[], Any]) -> Any:
        with self.guard:
            self.calls.append(call)
            for step in self.steps:
                if step[0] == call.verb and call.path.endswith(step[1]):
                    self.steps.remove(step)
                    break
            else:
                step = None
        return step[2](act) if step else act()

    def get(self, path, *, range=None, if_none_match=None):  # noqa: A002
        args = {"range": range, "if_none_match": if_none_match}
        return self._do(Call("get", path, args), lambda: self.store.get(path, **args))

    def put(self, path, data, *, if_match=None, if_absent=False):
        args, whole = {"if_match": if_match, "if_absent": if_absent}, b"".join(pieces(data))
        return self._do(Call("put", path, args, whole), lambda: self.store.put(path, whole, **args))

    def delete(self, paths):
        self.store.delete(paths)

    def list(self, prefix):
        return self.store.list(prefix)

    def lease(self, path, seconds, *, lease_id, force=False):
        args = {"lease_id": lease_id, "force": force}
        call = Call("lease", path, args | {"seconds": seconds})
        return self._do(call, lambda: self.store.lease(path, seconds, **args))

    def close(self):
        pass


def lose_request(act: Callable[[], Any]) -> Any:
    """Never carry it out, and never answer."""
    raise TransientError("the request was lost")


def lose_reply(act: Callable[[], Any]) -> Any:
    """Carry it out, but never answer."""
    act()
    raise TransientError("the reply was lost")


def send_twice(act: Callable[[], Any]) -> Any:
    """Deliver it twice; the second answer is the one that arrives."""
    act()
    return act()


def after(act_first: Callable[[], Any]) -> Callable[[Callable[[], Any]], Any]:
    """Let something happen just before the request is carried out."""

    def step(act: Callable[[], Any]) -> Any:
        act_first()
        return act()

    return step


class World:
    """One store, one clock, and clients of it that can each be disturbed on their own."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryBackend(self.clock)
        self.runtime = FakeRuntime(self.clock)
        self.backends: dict[int, FaultyBackend] = {}

    def open(self, **options: Any) -> RemoteDict:
        """Return a new client."""
        backend = FaultyBackend(self.store)
        made = RemoteDict(_Place(backend), "f", **options)
        self.backends[id(made)] = backend
        return made

    def of(self, client: RemoteDict) -> FaultyBackend:
        """Return what disturbs a client."""
        return self.backends[id(client)]


@dataclass
class _Place:
    made: FaultyBackend

    def backend(self, timeout: float, runtime: Runtime) -> FaultyBackend:
        del timeout, runtime
        return self.made

    def describe(self) -> str:
        return "Faulty"

    def portable(self, *, credentials: bool) -> _Place:
        del credentials
        return self
