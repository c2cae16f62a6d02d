"""Eight processes do all that one can do, on Azurite, by way of a proxy that harms some requests.

What each call did and returned is checked against the order of the commits, as the simulation
checks it (strict serializability), and for each key by calls and returns alone (Wing and Gong).
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import random
import time
from collections import defaultdict
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from campaigns.proxy import Fault
from campaigns.sites import site
from crew import HANG, crew_of, received
from remotedict import (
    ConflictError,
    ItemLockedError,
    KeyNotFoundError,
    RemoteDictError,
    StoreUnavailableError,
    UnknownOutcomeError,
    VersionConflictError,
)
from remotedict.pure.records import Annotate, Delete, Drop, Lock, Set, Unlock
from simulation import linear, values
from simulation.calls import MODELS, Call, Impossible, Refused
from simulation.checks import _fits, _refuses
from simulation.clients import _User
from simulation.witness import State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from campaigns.report import Report
    from remotedict import RemoteDict
    from remotedict.pure.records import Commit
    from workers import Where

FULL, SMALL = 50_000, 400
KINDS = ("azure",)
PROCESSES = 8
_OF_ALL = {"items", "copy", "clear", "popitem"}  # what concerns all keys
KEYS, EPOCH = 6, 40  # so many keys are in use; after so many calls of each process, others
TIMEOUT = 10.0
RATE, SILENT = 0.03, 0.0002  # of the requests that are harmed
NODES = 500_000  # of a search for an order of the calls on one key
STEPS = {
    **dict.fromkeys(["get", "get_default", "set", "set_many", "put", "modify"], 8),
    **dict.fromkeys(["get_many", "transaction", "delete", "pop", "setdefault", "inside"], 5),
    **dict.fromkeys(["contains", "len", "keys", "items", "copy", "commit", "annotate"], 3),
    **dict.fromkeys(["backwards", "version", "metadata", "query", "popitem"], 2),
    **dict.fromkeys(["delete_many", "copy_item", "clear"], 1),
}


def run(_: str, times: int, rng: random.Random, report: Report) -> None:
    """Let all together make `times` calls."""
    with site("azure") as azure, crew_of("forkserver") as crew:
        where = azure.fresh()
        assert azure.proxy
        with where.open(history="all") as d:
            azure.proxy.obey(lambda _: _draw(rng))
            barrier = crew.context.Barrier(PROCESSES)
            arguments = (azure.through_proxy(where), times // PROCESSES, barrier)
            tellers = [
                crew.start_with_report(live, *arguments, me, rng.randrange(2**32))
                for me in range(PROCESSES)
            ]
            calls = _received([told for _, told in tellers])
            crew.join(*(process for process, _ in tellers))
            report.did("requests", azure.proxy.seen)
            report.did("of them harmed", len(azure.proxy.struck))
            commits = list(d._engine.commits.after(0, d._engine.now()))
            check(calls, commits, report)
            there = [(key, values.shrink(value)) for key, value in d.copy().items()]
            report.check(
                there == list(_last(calls, commits).items()), "the end isn't the last state"
            )


def _draw(rng: random.Random) -> Fault | None:
    if rng.random() < SILENT:
        return Fault.SILENCE
    return rng.choice([f for f in Fault if f is not Fault.SILENCE]) if rng.random() < RATE else None


def _received(tellers: list[Connection]) -> list[Call]:
    """Return the calls of all processes, those of one after those of the other."""
    told: dict[Connection, list[Call]] = {one: [] for one in tellers}
    left = set(tellers)
    while left:
        for one in wait(left, HANG) or left:
            call = received(one)
            if call is None:
                left.remove(one)
            else:
                told[one].append(call)
    return [call for calls in told.values() for call in calls]


# -- the processes ---------------------------------------------------------------------------


def live(where: Where, count: int, barrier: Any, me: int, seed: int, told: Connection) -> None:
    """Make random calls, and tell of each."""
    with where.open(author=f"process {me}", timeout=TIMEOUT) as d:
        user = User(d, me, seed)
        barrier.wait()
        for number in range(count):
            user.step(number)
            for call in user.history:
                told.send(call)
            user.history.clear()
    told.send(None)


class User(_User):
    """Makes the calls of the simulation's users, in real time."""

    def __init__(self, d: RemoteDict, me: int, seed: int) -> None:
        self._d = d
        self._me = me
        self.rng = random.Random(seed)
        self.name = ""
        self.history: list[Call] = []
        self._ids: list[bytes] = []
        self._number = self._tokens = 0
        submit = d._engine.committer.submit

        def noting(request: Any) -> None:
            if hasattr(request, "id"):
                self._ids.append(request.id)
            submit(request)

        d._engine.committer.submit = noting

    @property
    def d(self) -> RemoteDict:
        return self._d

    def step(self, number: int) -> None:
        """Make one call."""
        self._number, self._tokens = number, 0
        self.name = f"P{self._me}.{number}"
        [kind] = self.rng.choices([*STEPS], [*STEPS.values()])
        with contextlib.suppress(RemoteDictError, TimeoutError):  # it is in the history
            getattr(self, kind)()

    @contextlib.contextmanager
    def call(self, kind: str, args: Any) -> Iterator[Call]:
        """Record a call."""
        call = Call(self.name, kind, args, f"p{self._me}", f"p{self._me}")
        self._ids = []
        self.history.append(call)
        call.first = time.monotonic_ns()
        try:
            yield call
        except BaseException as exc:
            call.error = exc
            raise
        finally:
            call.last = time.monotonic_ns()
            call.landed = self._ids  # what was wished for; `check` sees what became of it

    def key(self) -> str:
        """Return one of the keys of this moment."""
        return f"k{self._number // EPOCH}-{self.rng.randrange(KEYS)}"

    def some_keys(self) -> list[str]:
        """Return several of them."""
        count = self.rng.randint(1, KEYS)
        return [f"k{self._number // EPOCH}-{n}" for n in self.rng.sample(range(KEYS), count)]

    def token(self) -> str:
        """Return what a value is known by."""
        self._tokens += 1
        return values.token(self.name, self._tokens, self.rng.choice([0, 0, 300, 3_000, 8_000]))

    def nap(self) -> None:
        """Take no moment off."""

    def copy_item(self) -> None:
        """Copy a value to a key that only copies have: a call doesn't say which value it was."""
        source = self.key()
        target = f"{source}-copy"
        with self.call("copy_item", (source, target)):
            self.d.copy_item(source, target)

    def inside(self) -> None:
        """Read and write in a critical section."""
        key, token = self.key(), self.token()
        args: list[Any] = [key, token, None]
        with self.call("inside", args), self.d.lock(key):
            found = self.d.get(key)
            args[2] = found if found is None else values.shrink(found)
            self.d[key] = values.expand(token)


# -- the checks ------------------------------------------------------------------------------


def check(calls: list[Call], commits: list[Commit], report: Report) -> None:
    """Check a history."""
    Witness(calls, commits, report).check()
    _check_keys(calls, report)


class Witness:
    """Replays the commits in their order, and finds a place in it for each call."""

    def __init__(self, calls: list[Call], commits: list[Commit], report: Report) -> None:
        self._calls = sorted(calls, key=lambda call: call.first)
        self._commits = commits
        self._report = report
        self._states = [State()]
        owners = {commit_id: call for call in calls for commit_id in call.landed}
        self._owners = [owners.get(commit.id) for commit in commits]
        for call in calls:
            call.landed = []
        # When the newest of the calls of the commits up to each was begun: none of them is seen
        # by a call that had returned by then.
        begun = [call.first if call else 0 for call in self._owners]
        self._begun = [0, *itertools.accumulate(begun, max)]

    def check(self) -> None:
        """Do it."""
        report = self._report
        report.did("calls", len(self._calls))
        report.did("commits", len(self._commits))
        for n, commit in enumerate(self._commits, 1):
            report.check(commit.seq == n, f"commit {commit.seq} is number {n}")
            self._replay(n, commit, self._owners[n - 1])
        newest = 0
        returned = sorted(self._calls, key=lambda call: call.last)
        at = 0
        places: dict[int, int] = {}
        for call in self._calls:
            while returned[at].last < call.first:
                newest = max(newest, places[id(returned[at])])
                at += 1
            places[id(call)] = self._place(call, newest)

    def _replay(self, n: int, commit: Commit, call: Call | None) -> None:
        """Make a commit's state of the one before, as its call's words say; compare the two."""
        before = self._states[-1]
        state = before.copy()
        self._states.append(state)
        state.seq = n
        wrong = self._report.wrong
        if call is None:
            if not all(isinstance(change, Drop) for change in commit.changes):
                wrong(f"commit {n} is nobody's: {commit.changes!r:.300}")
            return
        self._judge_locks(state, commit, call)
        if all(isinstance(change, Lock | Unlock) for change in commit.changes):
            return
        call.landed.append(n)
        if len(call.landed) > 1:
            wrong(f"{call} was applied again, as {call.landed}")
        try:
            result = self._model(state, call)
        except (Refused, Impossible) as exc:
            wrong(f"{call} landed where it couldn't: {exc!r}, on {before.items}")
            return
        if call.error is None and call.kind != "inside" and result != call.result:
            wrong(f"{call} returned {call.result!r:.200}, not {result!r:.200}")
        self._compare(before, state, commit, call)

    def _judge_locks(self, state: State, commit: Commit, call: Call) -> None:
        for change in commit.changes:
            held = state.locks.get(getattr(change, "key", ""))
            if held and held[1] != call.handle:
                self._report.wrong(f"{call} made {change!r:.100}, but {held[1]} has the lock")
            if isinstance(change, Lock):
                state.locks[change.key] = (commit.id, call.handle)
            elif isinstance(change, Unlock):
                state.locks.pop(change.key, None)

    def _compare(self, before: State, state: State, commit: Commit, call: Call) -> None:
        """Compare what a commit says that it changes with what the call's words say."""
        changes = {c.key: c for c in commit.changes if isinstance(c, Set | Delete)}
        # What is set and deleted in one commit, and wasn't there before, is no change.
        due = {
            key: n
            for key, n in state.versions.items()
            if n != before.versions.get(key, 0) and (key in before.items or key in state.items)
        }
        check = self._report.check
        state.versions = before.versions.copy()
        for change in commit.changes:  # of one key a deletion, and then a value, perhaps
            if isinstance(change, Set | Delete):
                comes = state.versions.get(change.key, 0) + 1
                check(change.version == comes, f"{call} made {change!r:.200}, not version {comes}")
                state.versions[change.key] = comes
        check(changes.keys() == due.keys(), f"{call} changed {[*changes]}, not {[*due]}")
        for key, change in changes.items():
            gone = isinstance(change, Delete)
            check(gone == (key not in state.items), f"{call} made {change!r:.200}")
        for change in commit.changes:
            if isinstance(change, Annotate):
                there = state.metadata.get(change.key, "")
                check(change.metadata == there, f"{call} made {change}, not {there}")

    @staticmethod
    def _model(state: State, call: Call) -> Any:
        if call.kind != "inside":
            return MODELS[call.kind](state, call)
        key, token, seen = call.args
        if state.items.get(key) != seen:
            raise Impossible
        state.set(key, token)
        return None

    def _place(self, call: Call, least: int) -> int:
        """Return the first state, not before `least`, that explains a call; complain if none does."""
        most = bisect.bisect_left(self._begun, call.last) - 1
        error = call.error
        self._report.did(type(error).__name__ if error else "returned")
        if call.landed:
            [place, *_] = call.landed
            in_time = least < place <= most
            self._report.check(in_time, f"{call} is commit {place}, not {least + 1} to {most}")
            failed = error is not None and not isinstance(error, UnknownOutcomeError)
            self._report.check(not failed, f"{call} raised {error!r}, but landed as {place}")
            return place
        if isinstance(error, StoreUnavailableError):  # of which UnknownOutcomeError is one
            print(f"note: {call} raised {error!r}")
            return least
        states = range(least, most + 1)
        for n in states:
            if self._explains(n, least, call):
                return n
        self._report.wrong(
            f"{call} {'returned' if error is None else 'raised'} {error or call.result!r:.300}; "
            f"there was {[list(self._states[n].items.items()) for n in states]!r:.600}"
        )
        return least

    def _explains(self, n: int, least: int, call: Call) -> bool:
        error, state = call.error, self._states[n]
        if error is None:
            return call.kind in MODELS and _fits(state, call)
        if isinstance(error, ItemLockedError):
            return state.locks.get(error.item_name, (b"", call.handle))[1] != call.handle
        if isinstance(error, KeyNotFoundError | VersionConflictError):
            return _refuses(state, call, error)
        if isinstance(error, ConflictError):
            changed = {
                getattr(c, "key", "") for m in range(least, n) for c in self._commits[m].changes
            }
            return bool(changed & {*error.keys})
        return False


def _last(calls: list[Call], commits: list[Commit]) -> dict[str, str]:
    """Return the items of the last state."""
    by_landing = {n: call for call in calls for n in call.landed}
    state = State()
    for n in range(1, len(commits) + 1):
        if n in by_landing:
            with contextlib.suppress(Refused, Impossible):  # which was said before
                Witness._model(state, by_landing[n])
    return state.items


def _check_keys(calls: list[Call], report: Report) -> None:
    """Check the calls on each key, by what they were told alone."""
    of_all = [call for call in calls if call.kind in _OF_ALL]
    by_key: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if call.kind not in _OF_ALL:
            for key in _keys(call):
                by_key[key].append(call)
    for key, own in by_key.items():
        first, last = min(call.first for call in own), max(call.last for call in own)
        others = [call for call in of_all if call.first < last and call.last > first]
        events = linear.events_of(sorted([*own, *others], key=lambda call: call.first), key)
        try:
            right = linear.linearizable(events, NODES)
        except linear.TooHardError:
            report.did("keys whose history is too hard")
            continue
        report.did("linearizable keys" if events else "keys that can't be judged alone")
        told = "".join(f"\n  {event}" for event in sorted(events)) if not right else ""
        report.check(right, f"the calls on {key} have no order that explains them:{told}")


def _keys(call: Call) -> set[str]:
    """Return the keys that a call names."""
    if call.kind == "transaction":
        return {key for _, key, _ in call.args if key}
    if call.kind == "set":
        return {key for key, _ in call.args}
    if call.kind in {"get_many", "delete", "copy_item"}:
        return {*call.args}
    return {call.args[0]} if call.args and isinstance(call.args[0], str) else set()
