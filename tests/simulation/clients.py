"""Clients: the threads of virtual processes that use the dictionary, and record what they see."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent
from msgspec.structs import replace

from remotedict import RemoteDict
from remotedict.errors import RemoteDictError
from simulation import values
from simulation.calls import Call
from simulation.scheduler import Future, Killed, Process, Thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulation.network import Network
    from simulation.runtime import SimRuntime
    from simulation.scenario import Client, Step
    from simulation.world import World

FEATURE = "simulated"
_LETTERS = "ABCDEFG"
_PATIENCE = 5  # attempts to open the dictionary


class Place:
    """Where the dictionary of a virtual process is: behind its network."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._number = number

    def backend(self, timeout: float, runtime: SimRuntime) -> Network:
        del timeout
        return self._world.network(runtime.owner, self._number)

    def describe(self) -> str:
        return "Simulated"

    def portable(self, *, credentials: bool) -> Place:
        del credentials
        return self


class Watcher:
    """What one watch has handed out."""

    def __init__(self, name: str, handle: str, since: int | None) -> None:
        self.name = name
        self.handle = handle
        self.since = since
        self.events: list[Any] = []
        self.process: Process | None = None
        self.slow = False
        self.error: BaseException | None = None


class VirtualClient:
    """One client: a process, its handle, and its threads; killed, it may come back."""

    def __init__(self, world: World, number: int, drawn: Client) -> None:
        self.world = world
        self.number = number
        self.drawn = drawn
        self.letter = _LETTERS[number]
        self.lives = 0
        self.process: Process
        self.d: RemoteDict | None = None
        self.rests: list[list[Step]] = [list(steps) for steps in drawn.threads]
        self.busy = 0
        self.main: Thread | None = None
        self.ends: list[Callable[[], None]] = []

    @property
    def handle(self) -> str:
        return f"{self.letter}/{self.lives}"

    def start(self) -> None:
        """Begin a process, which opens the dictionary and goes on with what is to be done."""
        world = self.world
        self.lives += 1
        self.process = world.process(self.handle, self.drawn.skew, newer=self.drawn.newer)
        self.d, self.ends, self.busy = None, [], 0
        opened = Future(world.scheduler)
        for n, rest in enumerate(self.rests):
            if rest or n == 0:
                self._begin(n, rest, opened)

    def go_on(self) -> None:
        """Begin a forked process, with the handle of its parent."""
        self.lives += 1
        self.process = self.world.process(self.handle, self.drawn.skew, newer=self.drawn.newer)
        self.ends = []
        self._begin(0, self.rests[0], None)

    def _begin(self, n: int, rest: list[Step], opened: Future | None) -> None:
        self.busy += 1
        process = self.process

        def run() -> None:
            try:
                self._run(n, rest, opened)
            finally:
                if process.alive:
                    self.busy -= 1
                    self.world.rest()

        thread = self.world.scheduler.begin(run, process, None)
        if n == 0:
            self.main = thread
            thread.interruptible = self.drawn.interruptible

    def died(self) -> None:
        """Know that the process has been killed."""
        self.busy = 0

    # -- a thread ---------------------------------------------------------------------------

    def _run(self, n: int, rest: list[Step], opened: Future | None) -> None:
        me = _User(self, n)
        if opened is not None:
            if n == 0:
                self._open(me)
                opened.set_result(None)
            else:
                opened.result()
        while rest and self.d is not None:
            step = rest.pop(0)
            if self.drawn.pause:
                self._nap(me.rng.random() * self.drawn.pause)
            me.do(step)

    def _nap(self, seconds: float) -> None:
        with suppress(KeyboardInterrupt):
            self.world.scheduler.sleep(seconds)

    def _open(self, me: _User) -> None:
        for _ in range(_PATIENCE):
            try:
                with me.call("open", ()):
                    self.d = RemoteDict(Place(self.world, self.number), "f", **self.drawn.options)
                    self.world.handles.append(self.d)
            except (RemoteDictError, KeyboardInterrupt):
                continue
            return


class _Recorded:
    """The context of a call, in which the thread works for it."""

    __slots__ = ("_call", "_world")

    def __init__(self, world: World, call: Call) -> None:
        self._world = world
        self._call = call

    def __enter__(self) -> Call:
        call, world = self._call, self._world
        getcurrent().op = call
        call.begun = world.witness.now
        call.called = world.scheduler.now
        call.first = world.tick()
        world.history.append(call)
        if world.say.on:
            world.say(call.handle, "calls", call)
        return call

    def __exit__(
        self, cls: type[BaseException] | None, exc: BaseException | None, tb: object
    ) -> None:
        thread = getcurrent()
        thread.op = None
        if isinstance(exc, Killed) or not thread.process.alive:
            return
        call, world = self._call, self._world
        call.last = world.tick()
        call.ended = world.witness.now
        call.returned = world.scheduler.now
        call.error = exc
        if world.say.on:
            what = repr(call.result) if exc is None else f"{type(exc).__name__}: {exc}"
            world.say(call.handle, "returns from", call, what)


class _User:
    """One thread of a client: makes the calls that its steps ask for."""

    def __init__(self, client: VirtualClient, n: int) -> None:
        self.client = client
        self.world = client.world
        self.n = n
        self.rng = random.Random(client.world.scenario.seed * 8 + n)
        self.name = ""
        self._made = 0

    @property
    def d(self) -> RemoteDict:
        assert self.client.d is not None
        return self.client.d

    def call(self, kind: str, args: Any) -> _Recorded:
        """Return the context of one recorded call."""
        client = self.client
        self._made += 1
        call = Call(self.name, kind, args, client.handle, f"{client.letter}{self.n}")
        call.stale = client.drawn.options["max_staleness"]
        return _Recorded(self.world, call)

    def do(self, step: Step) -> None:
        """Make the calls of one step."""
        self.rng = random.Random(step.seed)
        self.name = f"{self.client.letter}{self.n}.{step.number}"
        self._made = 0
        self._tokens = 0
        try:
            getattr(self, step.kind, getattr(self, f"{step.kind}_", None))()
        except (RemoteDictError, KeyboardInterrupt, TimeoutError):
            pass
        finally:
            thread = getcurrent()
            thread.op = None

    def key(self) -> str:
        return f"k{self.rng.randrange(self.world.scenario.keys)}"

    def some_keys(self) -> list[str]:
        count = self.world.scenario.keys
        return [f"k{n}" for n in self.rng.sample(range(count), self.rng.randint(1, count))]

    def token(self) -> str:
        self._tokens += 1
        return values.token(self.name, self._tokens, self.rng.choice(self.world.scenario.sizes))

    def nap(self) -> None:
        """Take a moment between two calls, or a long one."""
        choice = self.rng.random()
        if choice < 0.5:
            self.world.scheduler.sleep(self.rng.random() * (0.05 if choice < 0.4 else 20.0))

    # -- reads ------------------------------------------------------------------------------

    def get(self) -> None:
        key = self.key()
        with self.call("get", (key,)) as call:
            call.result = values.shrink(self.d[key])

    def get_default(self) -> None:
        key = self.key()
        with self.call("get_default", (key,)) as call:
            found = self.d.get(key)
            call.result = found if found is None else values.shrink(found)

    def get_many(self) -> None:
        keys = self.some_keys()
        with self.call("get_many", tuple(keys)) as call:
            call.result = [values.shrink(value) for value in self.d[keys]]

    def contains(self) -> None:
        key = self.key()
        with self.call("contains", (key,)) as call:
            call.result = key in self.d

    def len(self) -> None:
        with self.call("len", ()) as call:
            call.result = len(self.d)

    def keys(self) -> None:
        with self.call("keys", ()) as call:
            call.result = list(self.d)

    def backwards(self) -> None:
        with self.call("backwards", ()) as call:
            call.result = list(reversed(self.d))

    def items(self) -> None:
        slow = self.rng.random() < 0.3
        with self.call("items", ()) as call:
            seen = []
            for key, value in self.d.items():
                seen.append((key, values.shrink(value)))
                if slow:
                    self.nap()
            call.result = seen

    def copy(self) -> None:
        with self.call("copy", ()) as call:
            call.result = [(key, values.shrink(v)) for key, v in self.d.copy().items()]

    def version(self) -> None:
        key = self.key()
        with self.call("version", (key,)) as call:
            call.result = self.d.version(key)

    def metadata(self) -> None:
        key = self.key()
        with self.call("metadata", (key,)) as call:
            call.result = _text(dict(self.d.metadata[key]))

    def query(self) -> None:
        number = self.rng.randrange(3)
        with self.call("query", (number,)) as call:
            call.result = self.d.query(n=number)

    def at(self) -> None:
        key, number = self.key(), self.rng.randint(1, 6)
        with self.call("at", (key, number)) as call:
            call.result = values.shrink(self.d.at(key, number))

    def locks(self) -> None:
        with self.call("locks", ()) as call:
            call.result = {key: lock.mine for key, lock in self.d.locks.items()}

    def snapshot(self) -> None:
        """Take one, and look into it later."""
        with self.call("snapshot", ()) as call:
            snapshot = self.d.snapshot()
            call.result = snapshot.seq
        state = self.world.witness.by_seq(snapshot.seq)
        for _ in range(self.rng.randint(1, 2)):
            self.nap()
            with self.call("seen", state) as call:
                call.result = [(k, values.shrink(v)) for k, v in snapshot.items()]

    # -- writes -----------------------------------------------------------------------------

    def set(self) -> None:
        key, token = self.key(), self.token()
        with self.call("set", [(key, token)]):
            self.d[key] = values.expand(token)

    def set_many(self) -> None:
        pairs = [(key, self.token()) for key in self.some_keys()]
        with self.call("set", pairs):
            self.d.update({key: values.expand(token) for key, token in pairs})

    def put(self) -> None:
        key, token, d = self.key(), self.token(), self.d
        how = self.rng.random()
        version, if_absent, meta = None, False, None
        if how < 0.4:
            known = d._engine.index.known
            version = (known.state.version(key) if known else 0) + self.rng.choice((1, 1, 1, 2))
        elif how < 0.7:
            if_absent = True
        if self.rng.random() < 0.4:
            meta = {"n": self.rng.randrange(3)} if self.rng.random() < 0.8 else {}
        text = None if meta is None else _text(meta)
        with self.call("put", (key, token, version, if_absent, text)) as call:
            call.result = d.put(
                key, values.expand(token), version=version, if_absent=if_absent, metadata=meta
            )

    def delete(self) -> None:
        key = self.key()
        with self.call("delete", (key,)):
            del self.d[key]

    def delete_many(self) -> None:
        keys = self.some_keys()
        with self.call("delete", tuple(keys)):
            del self.d[keys]

    def pop(self) -> None:
        key, default = self.key(), self.rng.random() < 0.5
        with self.call("pop", (key, default)) as call:
            found = self.d.pop(key, None) if default else self.d.pop(key)
            call.result = found if found is None else values.shrink(found)

    def popitem(self) -> None:
        with self.call("popitem", ()) as call:
            key, value = self.d.popitem()
            call.result = (key, values.shrink(value))

    def setdefault(self) -> None:
        key, token = self.key(), self.token()
        with self.call("setdefault", (key, token)) as call:
            call.result = values.shrink(self.d.setdefault(key, values.expand(token)))

    def clear(self) -> None:
        with self.call("clear", ()):
            self.d.clear()

    def annotate(self) -> None:
        key, meta = self.key(), {"n": self.rng.randrange(3)}
        with self.call("annotate", (key, _text(meta))):
            self.d.metadata[key] = meta

    def copy_item(self) -> None:
        source, target = self.key(), self.key()
        with self.call("copy_item", (source, target)):
            self.d.copy_item(source, target)

    def revert(self) -> None:
        key = self.key()
        known = self.d._engine.index.known
        newest = known.state.version(key) if known else 0
        number = max(newest - self.rng.randint(0, 2), 1)
        with self.call("revert", (key, number)):
            self.d.revert(key, number)

    def modify(self) -> None:
        key, token, default = self.key(), self.token(), self.rng.random() < 0.7
        seen: list[str | None] = []

        def change(value: Any) -> str:
            seen.append(None if value is None else values.shrink(value))
            return values.expand(token)

        with self.call("modify", (key, token, default, seen)) as call:
            more = {"default": None} if default else {}
            call.result = values.shrink(self.d.modify(key, change, timeout=20, **more))

    def transaction(self) -> None:
        self._several(self.d.transaction(), reads=True)

    def commit(self) -> None:
        self._several(self.d.commit(), reads=False)

    def _several(self, context: Any, *, reads: bool) -> None:
        steps: list[tuple[str, Any, Any]] = []
        rng = self.rng
        with self.call("transaction", steps), context as t:
            here: Any = t if reads else self.d
            written: set[str] = set()
            for _ in range(rng.randint(1, 4)):
                key, how = self.key(), rng.random()
                if reads and how < 0.4:
                    found = here.get(key)
                    steps.append(("read", key, found if found is None else values.shrink(found)))
                elif reads and how < 0.5:
                    found = list(here)
                    steps.append(("scan", None, found))
                elif how < 0.85 or (not reads and key not in written):
                    token = self.token()
                    here[key] = values.expand(token)
                    steps.append(("set", key, token))
                    written.add(key)
                elif not reads or key in here:
                    del here[key]
                    steps.append(("delete", key, None))
                    written.discard(key)
                if rng.random() < 0.3:
                    self.nap()

    def forget(self) -> None:
        key = self.key()
        with self.call("forget", (key,)):
            self.d.forget(key)

    # -- locks ------------------------------------------------------------------------------

    def lock(self) -> None:
        keys = self.some_keys()
        rng = self.rng
        duration = rng.choice((1, 3, 20, -1))
        wait, timeout = rng.random() < 0.6, rng.choice((0, 1.0, 30.0))
        with self.call("lock", (keys, duration, wait, timeout)):
            self.d.lock_item(keys, duration=duration, wait=wait, timeout=timeout)

    def unlock(self) -> None:
        mine = list(self.d._parts.locks._held._held)
        keys = self.some_keys() if not mine or self.rng.random() < 0.2 else mine
        with self.call("unlock", tuple(keys)):
            self.d.unlock_item(keys)

    def force(self) -> None:
        keys = self.some_keys()
        with self.call("force", tuple(keys)):
            self.d.unlock_item(keys, force=True)

    def section(self) -> None:
        """Read and write a key while it is locked."""
        rng, key = self.rng, self.key()
        wait, timeout = rng.random() < 0.8, rng.choice((1.0, 30.0, 60.0))
        duration = rng.choice((None, None, 2, 10))
        d, handle = self.d, self.client.handle  # another thread may open the dictionary anew
        section = d.lock(key, duration=duration, wait=wait, timeout=timeout)
        with self.call("lock", ([key], duration, wait, timeout)):
            section.__enter__()
        error: BaseException | None = None
        try:
            with self.call("get_default", (key,)) as read:
                read.handle = handle
                found = d.get(key)
                read.result = found if found is None else values.shrink(found)
            self.nap()
            token = self.token()
            with self.call("inside", (key, token, read.result, read.begun)) as call:
                call.handle = handle
                d[key] = values.expand(token)
        except BaseException as exc:
            error = exc
            raise
        finally:
            if getcurrent().process.alive:
                with self.call("leave", (key,)) as call:
                    call.handle = handle
                    cls = type(error) if error else None
                    section.__exit__(cls, error, None)

    # -- the rest ---------------------------------------------------------------------------

    def policy(self) -> None:
        policy = self.rng.choice(("none", "all", 2, 3))
        with self.call("policy", (policy,)):
            self.d.history_policy = policy

    def vacuum(self) -> None:
        if self.rng.random() < 0.2:
            with self.call("verify", ()) as call:
                call.result = self.d.verify(deep=self.rng.random() < 0.5).findings
            return
        grace, dry_run = self.rng.choice((0, 0, 0, 0.5, 5.0)), self.rng.random() < 0.1
        with self.call("vacuum", (grace, dry_run)) as call:
            call.result = self.d.vacuum(grace=grace, dry_run=dry_run).blobs

    def upgrade(self) -> None:
        """Use the dictionary in a way that older clients don't know."""
        if self.client.drawn.newer:
            with self.call("upgrade", ()):
                self.d._engine.swap(
                    lambda index: None if index.features else replace(index, features=[FEATURE])
                )

    def watch(self) -> None:
        """Follow the changes in a thread of its own, at times slowly."""
        rng = random.Random(self.rng.random())
        since = rng.choice((None, 0, None, 1))
        watcher = Watcher(self.name, self.client.handle, since)
        with self.call("open", ("watch", since)):
            watch = self.d.watch(since, poll=(0.2, 3.0))
            watcher.since = watch._after
        self.world.watchers.append(watcher)
        watcher.process = self.client.process
        slow = watcher.slow = rng.random() < 0.3
        scheduler = self.world.scheduler

        def follow() -> None:
            try:
                for event in watch:
                    watcher.events.append(event)
                    if slow:
                        scheduler.sleep(rng.random() * 5)
            except RemoteDictError as exc:
                watcher.error = exc

        self.client.ends.append(watch.stop)
        scheduler.begin(follow, self.client.process, None)

    def on_change(self) -> None:
        watcher = Watcher(self.name, self.client.handle, None)
        with self.call("open", ("on_change",)):
            subscription = self.d.on_change(watcher.events.append, poll=(0.2, 3.0))
            watcher.since = None
        self.world.watchers.append(watcher)
        self.client.ends.append(subscription.stop)

    def mirror(self) -> None:
        client, rng = self.client, self.rng
        with self.call("open", ("mirror",)):
            mirror = self.d.mirror(prefetch=rng.random() < 0.5, poll=(0.2, 3.0))
        newest = 0
        for _ in range(3):
            self.nap()
            key = self.key()
            with self.call("mirrored", [key, mirror.seq, None, newest]) as call:
                call.result = values.shrink(mirror[key])
                call.args[2] = mirror.seq
            newest = mirror.seq
        if rng.random() < 0.3:
            with self.call("open", ("wait_for",)):
                mirror.wait_for(self.key(), timeout=rng.random() * 5)
        if rng.random() < 0.5:
            mirror.close()
        else:
            client.ends.append(mirror.close)

    def reopen(self) -> None:
        """Close the handle, and go on with a new one; other threads of it do so, too."""
        client = self.client
        old = self.d
        with self.call("close", ()):
            old.close()
        client.lives += 1
        client.process.name = client.handle
        client._open(self)

    def sleep(self) -> None:
        self.world.scheduler.sleep(self.rng.random() * self.rng.choice((0.1, 5, 30)))


def _text(fields: dict[str, Any]) -> str:
    return json.dumps(fields, separators=(",", ":")) if fields else ""
