"""The world: the store, the clients and what befalls them, from one scenario."""

from __future__ import annotations

import gc
import random
import traceback
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from greenlet import getcurrent

import remotedict.session
from remotedict import RemoteDict
from remotedict.engine import core, garbage, reader, relayout, turn, upkeep, values
from remotedict.engine.index import IndexBlob, Known
from remotedict.engine.runtime import AbandonedError
from remotedict.errors import RemoteDictError
from remotedict.features import files, locks
from remotedict.pure import codec, plan, records, state
from remotedict.pure.naming import Layout
from remotedict.pure.records import HEADER_BYTES
from remotedict.session import Options
from simulation import checks
from simulation.calls import Call
from simulation.clients import FEATURE, Place, VirtualClient, Watched, Watcher
from simulation.network import Network, Weather
from simulation.runtime import SimRuntime
from simulation.scheduler import Process, Raise, Scheduler, Stuck, Thread
from simulation.store import Store
from simulation.witness import Violation, Witness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from remotedict.features.mirror import Mirror
    from simulation.scenario import Blow, Scenario
    from simulation.store import Elsewhere
    from simulation.witness import State

_STEPS = 60_000
_CLIENTS = 7
_SHORT = 5.0
_PATIENCE = 1000  # times that it is seen whether all followers have come to the end
_CALM = Weather(0.001, 0.0, 0.0, ())


class Report(NamedTuple):
    """What came of one scenario."""

    violations: list[Violation]
    trace: list[str]
    calls: int
    requests: int
    commits: int


class Say:
    """The trace: one line for each thing that happens; off, it costs nothing."""

    def __init__(self, scheduler: Scheduler, *, on: bool) -> None:
        self._scheduler = scheduler
        self.on = on
        self.lines: list[str] = []

    def __call__(self, who: str, *what: Any) -> None:
        if self.on:
            time = self._scheduler.now - 1_000_000
            self.lines.append(f"{time:11.6f} {who:5} {' '.join(map(str, what))}")


class World:
    """One store, one clock, and the clients of one dictionary."""

    def __init__(self, scenario: Scenario, *, trace: bool) -> None:
        self.scenario = scenario
        seed = scenario.seed
        self.scheduler = Scheduler(random.Random(seed * 8 + 1), _STEPS)
        self.say = Say(self.scheduler, on=trace)
        self.owners: dict[bytes, Any] = {}
        layout = Layout("f")
        signing = scenario.clients[0].options.get("signing_key") if scenario.clients else None
        self.keys = {"signing_key": signing}
        keyring = Options.of(self.keys).tuning().keyring
        self.witness = Witness(layout, self.owners, lambda: self.scheduler.now, keyring)
        self.witness.tick = self.tick
        self.witness.repairs.expected = any(blow.kind == "damage" for blow in scenario.blows)
        self.store = Store(self.scheduler, layout.index, self.witness)
        self.history: list[Call] = []
        self._ticks = 0
        self.watchers: list[Watcher] = []
        self.mirrors: list[Watched] = []
        self.handles: list[RemoteDict] = []
        self.learnt: list[tuple[float, str, bytes]] = []  # when, which client, and which commit
        self._rng = random.Random(seed * 8 + 2)
        self._ids = random.Random(seed * 8 + 3)
        self._networks: list[Network] = []
        self._intact: bytes | None = None  # the index before it was damaged
        self.runtimes: dict[Process, SimRuntime] = {}
        self.processes: list[Process] = []
        self.clients = [VirtualClient(self, n, drawn) for n, drawn in enumerate(scenario.clients)]

        weathers = [client.weather for client in scenario.clients]
        self.rough = any(weather.rate for weather in weathers) or bool(scenario.blows)
        self._faults = {fault for w in weathers if w.rate for fault in w.faults}

    def tick(self) -> int:
        """Return a number that only grows."""
        self._ticks += 1
        return self._ticks

    def rest(self) -> None:
        """Know that a client has nothing to do any more; the last one ends the run."""
        if not any(client.busy for client in self.clients):
            self.scheduler.stop()

    def faulty(self, fault: str) -> bool:
        """Tell whether a fault may have befallen somebody."""
        return fault in self._faults

    # -- what clients are made of -----------------------------------------------------------

    def process(self, name: str, skew: float, *, newer: bool = False) -> Process:
        """Return a new process."""
        process = Process(name)
        process.skew, process.newer = skew, newer
        if newer:
            self.witness.newer.add(name[0])
        self.processes.append(process)
        self.runtimes[process] = SimRuntime(self.scheduler, process, self._ids, self.owners)
        return process

    def network(self, process: Process, number: int, store: Elsewhere | None = None) -> Network:
        """Return the way of a process to the store, or to another one."""
        weather = self.scenario.clients[number].weather if number >= 0 else _CALM
        to = store or self.store
        network = Network(self.scheduler, process, to, weather, self._rng, self.say)
        self._networks.append(network)
        return network

    def runtime(self) -> SimRuntime:
        """Return the runtime of the process that runs now."""
        return self.runtimes[getcurrent().process]

    def listening(self, publish: Callable[..., Known]) -> Callable[..., Known]:
        """Return what also takes down when which client has learnt of a commit."""

        def listened(index: IndexBlob, known: Known, began: float) -> Known:
            known = publish(index, known, began)
            client = getcurrent().process.name[0]
            self.learnt.append((self.scheduler.now, client, known.state.head))
            return known

        return listened

    # -- what befalls them ------------------------------------------------------------------

    def strike(self, blow: Blow) -> None:
        """Let something happen to a client."""
        client = self.clients[blow.client % len(self.clients)]
        process = client.process
        if blow.kind == "rewind":
            self._rewind()
            return
        if blow.kind == "damage":
            self._damage(blow)
            return
        if blow.kind == "retag":
            if self.witness.index and not self.witness.repairs.broken:
                self.store.copy_index()
                self.say("", "the index is copied")
            return
        if not process.alive or not client.busy:
            return
        self.say(client.handle, blow.kind, blow.seconds)
        if blow.kind == "pause":
            process.paused_until = self.scheduler.now + blow.seconds
        elif blow.kind == "kill":
            self._kill(client)
            self.scheduler.at(self.scheduler.now + blow.seconds, client.start)
            client.busy = 1  # it will be back
        elif blow.kind == "fork":
            if client.d is not None and len(self.clients) < _CLIENTS:
                self.clients.append(client.fork(len(self.clients)))
                if blow.seconds > _SHORT:
                    self._kill(client)
        elif blow.kind == "interrupt":
            main = client.main
            if main and main.op is not None:
                self.scheduler.wake(main, main.turn, Raise(KeyboardInterrupt()))

    def _kill(self, client: VirtualClient) -> None:
        self.scheduler.kill(client.process)
        client.died()

    def _rewind(self) -> None:
        versions = self.witness.versions_of_index
        if len(versions) < 2:
            return
        back = self._rng.randint(1, min(4, len(versions) - 1))
        self.say("", "the index is brought back by", back)
        del versions[-back:]
        self.store.rewind(versions[-1])

    def _damage(self, blow: Blow) -> None:
        """Take the index away, or damage its bytes; and let somebody repair it some time later."""
        whole, rng = self.store.blob(self.store.index), self._rng
        if self.witness.index is None or self.witness.repairs.begun_anew:
            return
        if not self.witness.repairs.broken:
            self._intact = whole
        data = None
        if whole and (how := rng.random()) < 0.5:
            data = whole[: rng.randrange(len(whole))]
            if how < 0.25 and len(whole) > HEADER_BYTES:
                at = rng.randrange(HEADER_BYTES, len(whole))
                data = whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]
        if data == self._intact:  # it is harmed again, at the same bit
            data = None
        self.say("", "the index is lost" if data is None else f"the index is damaged: {len(data)}")
        self.store.damage(data)
        for number in (blow.client, blow.client + 1)[: rng.choice((1, 2))]:
            client = self.clients[number % len(self.clients)]
            self.scheduler.at(self.scheduler.now + blow.seconds, partial(client.mend, rng.random()))

    # -- the run ----------------------------------------------------------------------------

    def run(self) -> Report:
        """Run to the end, and check what happened."""
        scheduler = self.scheduler
        for client in self.clients:
            client.start()
        for blow in self.scenario.blows:
            scheduler.at(scheduler.now + blow.time, lambda blow=blow: self.strike(blow))
        try:
            scheduler.run()
            if any(client.busy for client in self.clients):
                self.witness.fail("stuck", "everybody waits, and nothing will happen")
            self._settle()
            self._last_look()
        except Stuck as stuck:
            self.witness.fail("stuck", str(stuck))
        except (Exception, AbandonedError) as exc:  # noqa: BLE001
            where = "".join(traceback.format_exception(exc)[-3:])
            self.witness.fail("crash", f"{exc!r} {where}")
        checks.check(self)
        return Report(
            self.witness.violations,
            self.say.lines,
            len(self.history),
            sum(network.requests for network in self._networks),
            self.witness.now,
        )

    def _settle(self) -> None:
        """Let what is under way arrive, and the followers see it."""
        for network in self._networks:
            network.calm = True
        scheduler = self.scheduler
        for _ in range(_PATIENCE):
            self._pass(5.0)
            if not any(checks.behind(self, one) for one in [*self.watchers, *self.mirrors]):
                break
        else:
            self.witness.fail("behind", "a watch or a mirror doesn't come to the end")
        self._look_into_mirrors()
        for client in self.clients:
            for stop in client.ends:
                scheduler.at(scheduler.now, stop)
        self._pass(1.0)
        for process in self.processes:
            scheduler.kill(process)
        scheduler.run()

    def _look_into_mirrors(self) -> None:
        """See that the mirrors show the end, as far as they are still there."""
        for mirror in self.mirrors:
            if mirror.is_there() and not self.witness.broke:
                look = partial(self._look_into, mirror.follower, self.witness.state)
                self.scheduler.begin(look, mirror.process, None)
        self._pass(2.0)

    def _look_into(self, mirror: Mirror, state: State) -> None:
        try:
            shown = checks.everything(mirror)
        except RemoteDictError as exc:
            self.witness.fail("mirror", f"it raised {exc!r} at the end")
            return
        if mirror.seq == state.seq and shown != list(state.items.items()):
            self.witness.fail("mirror", f"it showed {shown} at the end, not {state.items}")

    def _pass(self, seconds: float) -> None:
        self.scheduler.at(self.scheduler.now + seconds, self.scheduler.stop)
        self.scheduler.run()

    def _last_look(self) -> None:
        """Read everything, as one who comes later does."""
        process = self.process("Z/1", 0.0, newer=True)
        repairs = self.witness.repairs

        def repair(d: RemoteDict) -> None:
            call = Call("Z0.1", "repair", (b"", 0, False), "Z/1", "Z0")
            getcurrent().op = call
            call.begun, call.first = self.witness.now, self.tick()
            call.called = self.scheduler.now
            try:
                call.result = d.repair()
            except RemoteDictError as exc:
                call.error = exc
            call.ended, call.last = self.witness.now, self.tick()
            self.history.append(call)

        def look() -> None:
            if repairs.damages:
                d = RemoteDict(Place(self, -1), "f", author="Z", **self.keys)
                self.handles.append(d)
                repair(d)
                repair(d)
                if repairs.broken:
                    self.scheduler.stop()
                    return
            call = Call("Z0.0", "copy", (), "Z/1", "Z0")
            call.begun = self.witness.now
            try:
                d = RemoteDict(Place(self, -1), "f", author="Z", **self.keys)
                self.handles.append(d)
                call.result = checks.everything(d)
                checks.compare(self, d)
            except RemoteDictError as exc:
                call.error = exc
            call.ended = self.witness.now
            self.history.append(call)
            self.scheduler.stop()

        self.scheduler.begin(look, process, None)
        self.scheduler.run()

    def close(self) -> None:
        """End all processes."""
        self.scheduler.over = True
        for process in self.processes:
            self.scheduler.kill(process)
        for d in self.handles:
            d._session._closed = True  # nothing is to be done at the end of the interpreter
        # The finalizers of the sessions lead to the world, and the world must not lead to them.
        for call in self.history:
            call.error = None
        self.handles.clear()
        self.clients.clear()
        self.watchers.clear()
        self.mirrors.clear()


class _Features:
    """The features that are known: newer clients know one more."""

    def __rsub__(self, features: set[str]) -> set[str]:
        thread = getcurrent()
        newer = not isinstance(thread, Thread) or thread.process.newer
        return features - {FEATURE} if newer else features


@contextmanager
def tuned(tuning: dict[str, Any], world: World) -> Iterator[None]:
    """Let the engine work with other constants, and in this world."""
    where = {
        "INDEX_BYTES": [plan],
        "FAN": [plan],
        "CHECKPOINT_MIN": [plan],
        "LOG_SECONDS": [upkeep],
        "BATCH": [garbage],
        "PIECE_BYTES": [reader, values],
        "PACK_BYTES": [values, core, relayout],
        "CHUNK_BYTES": [codec],
        "_SMALL": [files],
        "_UPLOAD_ITEMS": [core],
        "_WINDOW_ITEMS": [core],
        "LEASE_SECONDS": [locks],
        "RECENT_IDS": [state],
        "_PATIENT_LOSSES": [turn],
    }
    before = []
    for name, value in tuning.items():
        for module in where.get(name, ()):
            before.append((module, name, getattr(module, name)))
            setattr(module, name, value)
    before.append((records, "FEATURES", records.FEATURES))
    records.FEATURES = _Features()
    if any(blow.kind in {"rewind", "damage"} for blow in world.scenario.blows):
        before.append((IndexBlob, "_publish", IndexBlob._publish))
        IndexBlob._publish = world.listening(IndexBlob._publish)  # type: ignore[method-assign]
    session = remotedict.session
    before.append((session, "default_runtime", session.default_runtime))
    session.default_runtime = world.runtime
    try:
        yield
    finally:
        for module, name, value in reversed(before):
            setattr(module, name, value)


_runs = count(1)


def simulate(scenario: Scenario, *, trace: bool = False) -> Report:
    """Run a scenario; the same one gives the same report."""
    collects = gc.isenabled()
    gc.disable()  # finalizers run when nobody expects it
    try:
        world = World(scenario, trace=trace)
        with tuned(scenario.tuning, world):
            try:
                return world.run()
            finally:
                world.close()
    finally:
        # Soon, while it is in the processor's cache.
        gc.collect(0 if next(_runs) % 50 else 2)
        if collects:
            gc.enable()
