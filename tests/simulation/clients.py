"""Clients: the threads of virtual processes that use the dictionary, and record what they see."""

from __future__ import annotations

import io
import json
import random
from contextlib import suppress
from copy import copy
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent
from msgspec.structs import replace

from remotedict import RemoteDict
from remotedict.errors import CorruptBlobError, DictionaryChangedError, RemoteDictError
from remotedict.session import Parts, Session
from simulation import values
from simulation.calls import Call
from simulation.scenario import Step
from simulation.scheduler import Future, Killed, Process, Thread
from simulation.store import Elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from simulation.network import Network
    from simulation.runtime import SimRuntime
    from simulation.scenario import Client
    from simulation.world import World

FEATURE = "simulated"
_LETTERS = "ABCDEFG"
_PATIENCE = 5  # attempts to open the dictionary
_IDLE = 20.0  # seconds between the looks of those who follow, where nothing happens for long


class Place:
    """Where the dictionary of a virtual process is: behind its network."""

    def __init__(self, world: World, number: int, store: Elsewhere | None = None) -> None:
        self._world = world
        self._number = number
        self._store = store

    def backend(self, timeout: float, runtime: SimRuntime) -> Network:
        del timeout
        return self._world.network(runtime.owner, self._number, self._store)

    def describe(self) -> str:
        return "Simulated"

    def portable(self, *, credentials: bool) -> Place:
        del credentials
        return self


class Watched:
    """What follows the dictionary: a mirror, or a watch."""

    def __init__(self, user: _User, follower: Any) -> None:
        self.name = user.name
        self.client = user.client
        self.handle = user.client.handle
        self.process = user.client.process
        self.follower = follower

    def is_there(self) -> bool:
        """Tell whether it still follows."""
        mine = self.process.alive and self.client.handle == self.handle
        return mine and not self.follower._signal.given


class Watcher(Watched):
    """What one watch has handed out, from a commit on."""

    def __init__(self, user: _User, watch: Any) -> None:
        super().__init__(user, watch)
        self.since = watch._after
        self.events: list[Any] = []
        self.error: BaseException | None = None
        self.subscription: Any = None

    def is_there(self) -> bool:
        if self.subscription is not None:
            self.error = self.subscription.error
        return super().is_there() and self.error is None


class VirtualClient:
    """One client: a process, its handle, and its threads; killed, it may come back."""

    def __init__(self, world: World, number: int, drawn: Client) -> None:
        self.world = world
        self.number = number
        self.drawn = drawn
        self.place = number
        self.letter = _LETTERS[number]
        self.lives = 0
        self.process: Process
        self.d: RemoteDict | None = None
        self.rests: list[list[Step]] = [list(steps) for steps in drawn.threads]
        self.busy = 0
        self.main: Thread | None = None
        self.ends: list[Callable[[], None]] = []
        self.copies: dict[int, Elsewhere] = {}

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

    def fork(self, number: int) -> VirtualClient:
        """Begin a forked process, with a copy of the handle; it does the half of what is left."""
        assert self.d is not None
        child = VirtualClient(self.world, number, self.drawn)
        child.place = self.place
        rest = self.rests[0]
        child.rests = [rest[len(rest) // 2 :]]
        del rest[len(rest) // 2 :]
        child.lives = 1
        child.process = self.world.process(child.handle, self.drawn.skew, newer=self.drawn.newer)
        child.d = RemoteDict.__new__(RemoteDict)
        child.d._attach(_copied(self.d._session))
        child.d._session.forget_parts()
        self.world.handles.append(child.d)
        child._begin(0, child.rests[0], None)
        return child

    def _begin(self, n: int, rest: list[Step], opened: Future | None) -> None:
        thread = self._track(lambda: self._run(n, rest, opened))
        if n == 0:
            self.main = thread
            thread.interruptible = self.drawn.interruptible

    def _track(self, work: Callable[[], None]) -> Thread:
        """Begin a thread without which the client isn't done."""
        self.busy += 1
        process = self.process

        def run() -> None:
            try:
                work()
            finally:
                if self.main is thread:
                    self.main = None
                if process.alive:
                    self.busy -= 1
                    self.world.rest()

        thread = self.world.scheduler.begin(run, process, None)
        return thread

    def died(self) -> None:
        """Know that the process has been killed."""
        self.busy = 0

    def mend(self, seed: float) -> None:
        """Repair the dictionary, in a thread of its own."""
        if not self.process.alive or self.d is None or not self.busy:
            return
        me = _User(self, 9)
        step = Step(int(seed * 1e6), "repair", int(seed * 2**32))
        self._track(lambda: me.do(step))

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
                    self.d = RemoteDict(Place(self.world, self.place), "f", **self.drawn.options)
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
        world.witness.repairs.opened.setdefault(call.handle, call.begun)
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
        except (DictionaryChangedError, CorruptBlobError):
            if self.world.witness.repairs.damages and self.rng.random() < 0.5:
                self._anew()
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

    def values(self) -> None:
        with self.call("values", ()) as call:
            call.result = [values.shrink(value) for value in self.d.values()]

    def pairs_backwards(self) -> None:
        with self.call("pairs_backwards", ()) as call:
            call.result = [(k, values.shrink(v)) for k, v in reversed(self.d.items())]

    def has_pair(self) -> None:
        key, d = self.key(), self.d
        with self.call("get_default", (key,)) as call:
            found = d.get(key)
            call.result = found if found is None else values.shrink(found)
        if call.result is not None:
            self.nap()
            with self.call("has_pair", (key, call.result)) as call:
                call.result = (key, found) in d.items()

    def equal(self) -> None:
        d = self.d
        with self.call("copy", ()) as call:
            found = d.copy()
            call.result = [(key, values.shrink(value)) for key, value in found.items()]
        self.nap()
        with self.call("equal", dict(call.result)) as call:
            call.result = d == found

    def merged(self) -> None:
        key, token = self.key(), self.token()
        with self.call("merged", (key, token)) as call:
            found = self.d | {key: values.expand(token)}
            call.result = [(key, values.shrink(value)) for key, value in found.items()]

    def glob(self) -> None:
        pattern = self.rng.choice(("k[02]", "k*", "k1"))
        with self.call("glob", (pattern,)) as call:
            call.result = self.d.glob(pattern)

    def shown(self) -> None:
        with self.call("shown", ()) as call:
            call.result = list(self.d.index.index)

    def info(self) -> None:
        with self.call("info", ()) as call:
            rows = self.d.info().reset_index().to_dict("records")
            call.result = [
                (row["key"], row["version"], bool(row["metadata"]), row["type"] == "bytes")
                for row in rows
            ]

    def history(self) -> None:
        key = self.key()
        with self.call("history", (key,)) as call:
            rows = self.d.history(key)[["seq", "kind", "version"]].values.tolist()
            call.result = [(seq, kind) for seq, kind, _ in rows]

    def diff(self) -> None:
        """Compare what the handle knows with what is current."""
        since = self.known_seq()
        with self.call("diff", (since,)) as call:
            call.result = self.d.diff(since)["change"].to_dict()

    def get_file(self) -> None:
        """Read bytes as a file, at once or in small pieces."""
        key, into = self.key(), io.BytesIO()
        slow = self.rng.random() < 0.4
        with suppress(TypeError), self.call("get_file", (key,)) as call:
            if self.rng.random() < 0.5:
                self.d.get_file(key, into)
            else:
                with self.d.open(key) as file:
                    while data := file.read(700):
                        into.write(data)
                        if slow:
                            self.nap()
            call.result = values.shrink(into.getvalue())

    def known_seq(self) -> int:
        """Return a commit that the handle knows, perhaps not the newest."""
        known = self.d._engine.index.known
        newest = known.state.seq if known else 0
        return max(newest - self.rng.randint(0, 3), 1)

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
        witness = self.world.witness
        if self.rng.random() < 0.3:
            seq = self.known_seq()
            before = witness.forgotten_since(seq)
            with self.call("open", ("snapshot", seq)):
                snapshot = self.d.snapshot(seq)
            if before != witness.forgotten_since(seq):
                return  # whether it still has what was forgotten just now nobody can say
        else:
            before = set()
            with self.call("snapshot", ()) as call:
                snapshot = self.d.snapshot()
                call.result = snapshot.seq
        state = witness.by_seq(snapshot.seq)
        if witness.rewinds and (made := witness.numbers(bytes.fromhex(snapshot.commit))):
            state = witness.states[made[-1]]  # perhaps of a branch that has gone since
        known = self.d._engine.index.known
        if witness.repairs.damages and (
            witness.repairs.broken
            or (state and state.seq != snapshot.seq)  # among the commits that a repair has made
            or not (known and known.index and witness.index)
            or known.index.incarnation != witness.index.incarnation
        ):
            state = None
        if state and before:
            state = state.copy()
            for key in before:
                state.forget(key)
        for _ in range(self.rng.randint(1, 2)):
            self.nap()
            whole = self.rng.random() < 0.5
            with self.call("seen", state) as call:
                pairs = snapshot.copy().items() if whole else snapshot.items()
                call.result = [(k, values.shrink(v)) for k, v in pairs]

    # -- writes -----------------------------------------------------------------------------

    def set(self) -> None:
        key, token = self.key(), self.token()
        with self.call("set", [(key, token)]):
            self.d[key] = values.expand(token)

    def set_many(self) -> None:
        pairs = [(key, self.token()) for key in self.some_keys()]
        with self.call("set", pairs):
            self.d.update({key: values.expand(token) for key, token in pairs})

    def update(self) -> None:
        """Set many from a generator, which takes its time; it may name a key twice."""
        count = self.rng.randint(1, 2 * self.world.scenario.keys)
        pairs = [(self.key(), self.token()) for _ in range(count)]
        slow = self.rng.random() < 0.3

        def generated() -> Iterator[tuple[str, Any]]:
            for key, token in pairs:
                if slow:
                    self.nap()
                yield key, values.expand(token)

        last = dict(pairs)
        with self.call("set", list(last.items())):
            if self.rng.random() < 0.3:
                d = self.d
                d |= dict(generated())
            else:
                self.d.update(generated())

    def put_file(self) -> None:
        key = self.key()
        self._tokens += 1
        size = self.rng.choice(self.world.scenario.sizes)
        token = values.token(self.name, self._tokens, size, binary=True)
        with self.call("set", [(key, token)]):
            self.d.put_file(key, io.BytesIO(values.raw(token)))

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

    def run(self) -> None:
        """Run a transaction again and again until there is no conflict."""
        steps: list[tuple[str, Any, Any]] = []

        def fn(t: Any) -> None:
            steps.clear()
            self._steps(steps, t, reads=True)

        with self.call("transaction", steps):
            self.d.run(fn, timeout=20)

    def _several(self, context: Any, *, reads: bool) -> None:
        steps: list[tuple[str, Any, Any]] = []
        with self.call("transaction", steps), context as t:
            self._steps(steps, t if reads else self.d, reads=reads)

    def _steps(self, steps: list[tuple[str, Any, Any]], here: Any, *, reads: bool) -> None:
        rng = self.rng
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
        with self.call("forget", (key,)) as call:
            self.d.forget(key)
        self.world.witness.check_forgotten(key, call)

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

    def stopped(self) -> None:
        """Do the same in a process that stands still meanwhile, for longer than its leases last."""
        self.section(stop=self.rng.choice((3.0, 5.0, 10.0)))

    def section(self, *, stop: float = 0.0) -> None:
        """Read and write a key while it is locked, perhaps with another one."""
        rng, key = self.rng, self.key()
        keys = [key, other] if (other := self.key()) != key else [key]
        rng.shuffle(keys)
        # Who has the keys for ever isn't waited for without end.
        patience = () if "lock" in self.world.scenario.kinds else (None, None)
        wait, timeout = rng.random() < 0.8, rng.choice((1.0, 30.0, 60.0, *patience))
        duration = rng.choice((None, None, 2, 10))
        d, handle = self.d, self.client.handle  # another thread may open the dictionary anew
        section = d.lock(*keys, duration=duration, wait=wait, timeout=timeout)
        with self.call("lock", (keys, duration, wait, timeout)):
            section.__enter__()
        error: BaseException | None = None
        try:
            with self.call("get_default", (key,)) as read:
                read.handle = handle
                found = d.get(key)
                read.result = found if found is None else values.shrink(found)
            if stop:
                scheduler = self.world.scheduler
                self.client.process.paused_until = scheduler.now + stop
                scheduler.sleep(stop + rng.random() * 5)
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
                with self.call("leave", tuple(keys)) as call:
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

    def export(self) -> None:
        """Copy the dictionary to another store, or bring the copy there up to date, and read it."""
        client, world = self.client, self.world
        there = client.copies.setdefault(self.n, Elsewhere(world.scheduler, world.store.index))
        with self.call("export", ()) as call:
            copy = RemoteDict(Place(world, client.place, there), "f", **client.drawn.options)
            world.handles.append(copy)
            report = self.d.export(copy)
            pairs = [(key, values.shrink(value)) for key, value in copy.copy().items()]
            state = copy._engine.index.known.state
            facts = {key: (state.version(key), state.get(key).metadata) for key, _ in pairs}
            call.result = (report.commit, pairs, facts, report.missing)

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
        with self.call("open", ("watch", since)):
            watch = self.d.watch(since, poll=(0.2, _IDLE))
        watcher = Watcher(self, watch)
        self.world.watchers.append(watcher)
        slow = rng.random() < 0.3
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
        events: list[Any] = []
        with self.call("open", ("on_change",)):
            subscription = self.d.on_change(events.append, poll=(0.2, _IDLE))
        watcher = Watcher(self, subscription._watch)
        watcher.events, watcher.subscription = events, subscription
        self.world.watchers.append(watcher)
        self.client.ends.append(subscription.stop)

    def mirror(self) -> None:
        client, rng = self.client, self.rng
        with self.call("open", ("mirror",)):
            poll = rng.choice(((0.2, _IDLE), (0.05, _IDLE)))
            mirror = self.d.mirror(prefetch=rng.random() < 0.6, poll=poll)
        self.world.mirrors.append(Watched(self, mirror))
        newest = 0
        for _ in range(rng.choice((3, 3, 10))):
            if rng.random() < 0.7:
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

    def _anew(self) -> None:
        with suppress(RemoteDictError, KeyboardInterrupt):
            self.reopen()

    def repair(self) -> None:
        """Repair the dictionary, whether or not it needs that."""
        rng, known = self.rng, self.d._engine.index.known
        knows = (known.index.incarnation, known.index.seq) if known and known.index else (b"", 0)
        dry_run = rng.random() < 0.1
        with self.call("repair", (*knows, dry_run)) as call:
            call.result = self.d.repair(dry_run=dry_run, deep=rng.random() < 0.5)

    def sleep(self) -> None:
        self.world.scheduler.sleep(self.rng.random() * self.rng.choice((0.1, 5, 30)))


def _copied(session: Session) -> Session:
    """Return what a forked child has of a handle: what is its parent's stays as it is."""
    new = copy(session)
    new._followers = []  # they are not simulated in the child
    if parts := session._parts:
        engine, locks = copy(parts.engine), copy(parts.locks)
        engine.backend, locks._held = copy(engine.backend), copy(locks._held)
        new._parts = Parts(engine, locks)
    return new


def _text(fields: dict[str, Any]) -> str:
    return json.dumps(fields, separators=(",", ":")) if fields else ""
