"""Checks: what was seen, against what landed.

The order of the commits is the witness: each call must have its effect, or its view, at one point
of it between its call and its return.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remotedict.errors import (
    AccessDeniedError,
    ClosedError,
    ConflictError,
    CorruptBlobError,
    DestinationError,
    DictionaryChangedError,
    FormatVersionError,
    HistoryGapError,
    ItemLockedError,
    KeyNotFoundError,
    LockLostError,
    LockNotHeldError,
    SnapshotExpiredError,
    StoreUnavailableError,
    UnknownCommitError,
    UnknownOutcomeError,
    VersionConflictError,
)
from remotedict.features.events import Event, events
from remotedict.pure.records import Unlock
from simulation import linear, values
from simulation.calls import MODELS, Call, Impossible, Refused
from simulation.clients import Watcher

if TYPE_CHECKING:
    from remotedict import RemoteDict
    from remotedict.features.mirror import Mirror
    from remotedict.pure.records import Commit
    from simulation.clients import Watched
    from simulation.witness import State, Witness
    from simulation.world import World

_READS = {
    "get",
    "get_default",
    "get_many",
    "contains",
    "len",
    "keys",
    "backwards",
    "items",
    "copy",
    "version",
    "metadata",
    "query",
    "values",
    "pairs_backwards",
    "has_pair",
    "equal",
    "merged",
    "glob",
    "shown",
    "info",
    "get_file",
    "at",
    "snapshot",
    "locks",
    "export",
}
_OTHER = {
    "open",
    "upgrade",
    "close",
    "policy",
    "seen",
    "mirrored",
    "force",
    "leave",
    "vacuum",
    "verify",
}
_LOCKS = {"lock", "unlock"}
_SLOW = {"items", "get_file", "equal", "has_pair", "export"}  # in pauses, or many requests
_QUICK = (_READS - _SLOW) | {
    "put",
    "delete",
    "pop",
    "popitem",
    "setdefault",
    "clear",
    "annotate",
    "copy_item",
    "revert",
    "policy",
    "unlock",
}
_UNKNOWN = (UnknownOutcomeError, KeyboardInterrupt)


def check(world: World) -> None:
    """Check the whole history."""
    witness = world.witness
    for call in world.history:
        _check_call(world, witness, call)
    if not witness.rewinds:
        history = _since_repair(world)
        names = [f"k{n}" for n in range(world.scenario.keys)]
        for key in linear.check(history, names):
            witness.fail("linear", f"the calls on {key} have no order that explains them")
    else:
        _check_rewinds(world)
    for watcher in world.watchers:
        _check_watcher(world, watcher)
    _check_interrupts(world)
    if witness.repairs.damages:
        _check_repairs(world)


def _check_call(world: World, witness: Witness, call: Call) -> None:
    undone = call.kind == "lock" and isinstance(call.error, KeyboardInterrupt)
    spans = bool(witness.repairs.over(call))
    if len(call.landed) > 1 and not (call.partial or undone or witness.rewinds or spans):
        witness.fail("twice", f"{call} landed {len(call.landed)} times")
    for n in call.landed:
        if n <= call.begun:
            witness.fail("time", f"{call} landed before it was called")
    if call.ended is None:  # killed
        if not spans:
            _check_effect(witness, call, world.history, known=False)
        return
    _check_time(world, call)
    error = call.error
    if error is None:
        if call.called > witness.upgraded_at and not (
            witness.rewinds or _knows(witness, call) or _saw_damage(world, call)
        ):
            witness.fail("format", f"{call} used a format that it doesn't know")
        _check_success(world, witness, call)
        return
    if isinstance(error, _UNKNOWN):
        explained = world.rough or witness.upgraded
        if call.kind == "leave" and error.__cause__:
            explained = explained or _justified(world, witness, call, error.__cause__)
        if isinstance(error, UnknownOutcomeError) and not explained:
            witness.fail("error", f"{call} doesn't know its outcome: {error}")
        if not spans:
            _check_effect(witness, call, world.history, known=False)
        return
    if isinstance(error, DictionaryChangedError) and _went_back(witness, call):
        return
    if call.kind == "lock" and isinstance(error, ClosedError):
        return
    landed = [n for n in call.landed if not (call.kind == "lock" and _unlocks(witness, n))]
    if landed and not call.partial and not witness.rewinds and not spans:
        witness.fail("acknowledged", f"{call} raised {error!r}, but has landed")
    if not _justified(world, witness, call, error):
        witness.fail("error", f"{call} raised {type(error).__name__}: {error}")


def _unlocks(witness: Witness, n: int) -> bool:
    """Tell whether all that landed was the end of locks: those that a section left that was cut off."""
    landing = witness.landings[n]
    return bool(landing) and all(isinstance(one, Unlock) for one in landing.commit.changes)


def _went_back(witness: Witness, call: Call) -> bool:
    """Tell whether the index had been brought back, or lost, before a call returned."""
    ended = call.ended or 0
    lost = call.kind != "repair" and any(damage.at <= ended for damage in witness.repairs.damages)
    return lost or any(n <= ended for n in witness.rewinds)


def _check_time(world: World, call: Call) -> None:
    """See that nothing takes minutes where nobody is slow, and nothing goes wrong."""
    took = call.returned - call.called
    if took <= 30 or world.rough or call.kind not in _QUICK:
        return
    weathers = [client.weather for client in world.scenario.clients]
    latency = max(weather.latency for weather in weathers)
    if took > 30 + 100 * latency and not any(weather.spikes for weather in weathers):
        world.witness.fail("slow", f"{call} took {took:.0f} s")


def _knows(witness: Witness, call: Call) -> bool:
    """Tell whether a call needn't, or may, know the newest format."""
    newer = call.handle[0] in witness.newer
    mirror = call.kind == "mirrored" or call.args == ("wait_for",)  # shows what it has
    return newer or mirror or bool(call.stale) or call.kind in {"seen", "close", "leave"}


def _saw_damage(world: World, call: Call) -> bool:
    """Tell whether a call does what it can with an index of which it may have seen a part alone."""
    return (call.kind, call.args) in {("open", ()), ("verify", ())} and world.faulty("truncate")


def _check_success(world: World, witness: Witness, call: Call) -> None:
    if call.kind == "seen":
        if call.args is None and witness.broke:
            return  # the index went back just then
        if call.result != list(call.args.items.items()):
            witness.fail("snapshot", f"{call.name} saw {call.result} of {call.args.items}")
        return
    if call.kind == "mirrored":
        _check_mirrored(witness, call)
        return
    if call.kind == "repair":
        _check_repair(witness, call)
        return
    if call.kind == "verify" and call.result and not world.faulty("truncate"):
        witness.fail("verify", f"{call} found {call.result}")
    if call.kind in _OTHER:
        return
    if call.kind in {"history", "diff"}:
        if not witness.rewinds:
            _check_past(world, witness, call)
        return
    if call.landed:
        for n in call.landed:
            if n > (call.ended or 0):
                witness.fail("acknowledged", f"{call} landed only after it had returned")
        if not witness.repairs.over(call):
            _check_effect(witness, call, world.history, known=True)
        return
    if call in witness.repairs.revived:
        return
    states = _current(world, witness, call)
    if call.kind == "locks":
        call.given_up = _given_up(world, call)
    if not any(_fits(state, call) for state in states):
        kind = "read" if call.kind in _READS else "lost"
        seen = [list(state.items.items()) for state in states]
        witness.fail(kind, f"{call} returned {call.result!r}; there was {seen}")


def _current(world: World, witness: Witness, call: Call) -> list[State]:
    """Return the states that a call, if nothing of it has landed, may show."""
    begun = call.begun
    if call.stale and not call.landed:
        begun = _earlier(witness, call)
    possible = [*range(begun, (call.ended or 0) + 1), *_overtaken(world, call)]
    states = [witness.states[n] for n in possible if not witness.repairs.hidden(n)]
    # Nothing is left that tells of a dictionary; or nothing was there when the handle looked first.
    late = not witness.repairs.opened.get(call.handle)
    if any(damage.empty or late for damage in witness.repairs.over(call)):
        states.append(witness.states[0])
    return states


def _earlier(witness: Witness, call: Call) -> int:
    """Return how many commits had landed when a stale read may have been current."""
    return max(
        (n for n, at in enumerate(witness.times) if at <= call.called - call.stale), default=0
    )


def _overtaken(world: World, call: Call) -> list[int]:
    """Return which states from before a rewind a call may show: what its handle learnt meanwhile.

    An answer that was sent before the rewind may arrive after one that was sent later. Both
    requests were under way at once: so, for all that the handle can know, nothing went back, and
    the one was carried out after the other (see rule 16).
    """
    witness = world.witness
    repaired = [damage.until or damage.at for damage in witness.repairs.damages]
    return [
        n
        for time, client, head in world.learnt
        if client == call.handle[0] and call.called <= time <= call.returned
        for n in witness.numbers(head)
        if any(n < at <= (call.ended or 0) for at in [*witness.rewinds, *repaired])
    ]


def _check_past(world: World, witness: Witness, call: Call) -> None:
    """See that what is said of commits is so, as of a moment of the call."""
    forgotten = {c.args[0] for c in world.history if c.kind == "forget"}
    right = _history if call.kind == "history" else _diff
    if not any(right(witness, state, call, forgotten) for state in _current(world, witness, call)):
        witness.fail("read", f"{call} returned {call.result}")


def _history(witness: Witness, state: State, call: Call, forgotten: set[str]) -> bool:
    """Tell whether changes of a key are those that there were, newest first.

    Old ones may be kept no longer; what the newest value is from is known as long as it is there.
    """
    (key,) = call.args
    happened = [
        (event.seq, event.kind)
        for commit in witness.commits[: state.seq]
        for event in events(commit)
        if event.key == key
    ][::-1]
    if key in forgotten:
        return set(call.result) <= set(happened)
    newest = next((one for one in happened if one[1] in {"set", "delete"}), None)
    rest = iter(happened)
    in_order = all(one in rest for one in call.result)
    return in_order and (newest is None or newest in call.result)


def _diff(witness: Witness, state: State, call: Call, forgotten: set[str]) -> bool:
    """Tell whether keys differ between two states as is said."""
    one = witness.by_seq(call.args[0]) or witness.states[0]
    expected = {}
    for key in {*one.items, *state.items} - forgotten:
        if key not in one.items or key not in state.items:
            expected[key] = "removed" if key in one.items else "added"
        elif one.versions[key] != state.versions[key]:
            expected[key] = "changed"
        elif one.metadata.get(key) != state.metadata.get(key):
            expected[key] = "metadata"
    return {k: v for k, v in call.result.items() if k not in forgotten} == expected


def _given_up(world: World, call: Call) -> set[str]:
    """Return the keys whose locks the caller's handle takes for its own no more, though they stand.

    It failed to unlock them: whoever meets such a lock may end it.
    """
    keys: set[str] = set()
    for other in world.history:
        if other.handle == call.handle and other.called <= call.returned:
            named = other.args[0] if other.kind == "lock" else other.args
            if other.kind in {"lock", "unlock", "leave"} and other.error:
                keys |= {*named}
            elif other.kind == "lock" and other.returned <= call.called:
                keys -= {*named}
    return keys


def _fits(state: State, call: Call) -> bool:
    """Tell whether the call may return what it has, and change nothing, in a state."""
    after = state.copy()
    try:
        result = MODELS[call.kind](after, call)
    except (Refused, Impossible):
        return False
    return result == call.result and after.same(state) and _versions(after, state, call)


def _versions(after: State, state: State, call: Call) -> bool:
    """Tell whether no version was made (a write of what was there already makes one)."""
    return call.kind in _READS or call.kind == "transaction" or after.versions == state.versions


def _check_effect(witness: Witness, call: Call, history: list[Call], *, known: bool) -> None:
    """See that each landing of a call did what the call is to do, and returned what it found."""
    if call.kind not in MODELS:
        if call.kind == "inside":
            _check_inside(witness, call, history)
        return
    for n in call.landed:
        before, after = witness.states[n - 1], witness.states[n]
        landing = witness.landings[n]
        if call.kind == "lock" and landing and isinstance(landing.commit.changes[-1], Unlock):
            continue  # it was interrupted, and gave the lock up again
        expected = before.copy()
        try:
            result = MODELS[call.kind](after if call.kind in _LOCKS else expected, call)
        except Refused as refused:
            witness.fail("effect", f"{call} landed where it must raise {refused}")
            continue
        except Impossible:
            # Else it was done anew, an index from before having come back.
            if n == call.landed[-1]:
                witness.fail("effect", f"{call} landed on {before.items}, which it hadn't seen")
            continue
        if not expected.same(after):
            witness.fail(
                "effect", f"{call} made {after.items} of {before.items}, not {expected.items}"
            )
        if known and n == call.landed[-1] and result != call.result:
            witness.fail("effect", f"{call} returned {call.result!r}, not {result!r}")


def _check_inside(witness: Witness, call: Call, history: list[Call]) -> None:
    """See that nobody changed a key between a read under its lock, and the write after that."""
    key, token, seen, begun = call.args
    if any(
        other.handle == call.handle
        and other.kind in {"unlock", "force"}
        and key in other.args
        and not isinstance(other.error, LockLostError)
        for other in history
        if other.begun <= (call.ended or len(witness.states)) and (other.ended or begun) >= begun
    ):
        return  # another thread of the handle has given the lock up
    for n in call.landed:
        before, after = witness.states[n - 1], witness.states[n]
        if before.items.get(key) != seen and not _own(witness, call, n):
            witness.fail("lock", f"{call} wrote on {before.items.get(key)}, having read {seen}")
        if after.items.get(key) != token:
            witness.fail("effect", f"{call} didn't set {key}")


def _own(witness: Witness, call: Call, n: int) -> bool:
    """Tell whether the last to write a key before a landing was the handle that holds its lock.

    Its other threads may; but not in a section of their own. (They may have done so just before the
    read: that it was no older than the handle allows is looked at by itself.)
    """
    key = call.args[0]
    for landing in reversed(witness.landings[1:n]):
        if landing and any(getattr(c, "key", "") == key for c in landing.commit.changes):
            if landing.op is None or landing.op.handle != call.handle:
                return False
            if landing.op.kind not in {"lock", "unlock"}:
                return landing.op.kind != "inside"
    return False


def _check_mirrored(witness: Witness, call: Call) -> None:
    key, first, last, newest = call.args
    if not newest <= first <= last:
        witness.fail("mirror", f"{call} went back from {newest} to {first} and {last}")
    if witness.broke:
        return
    states = [witness.by_seq(seq) for seq in range(first, last + 1)]
    if not any(state and state.items.get(key) == call.result for state in states):
        witness.fail("mirror", f"{call} showed {call.result}")


# -- errors ----------------------------------------------------------------------------------


def _justified(world: World, witness: Witness, call: Call, error: BaseException) -> bool:
    """Tell whether something between call and return was a reason for an error."""
    states = _current(world, witness, call)
    if isinstance(error, AccessDeniedError):
        return world.faulty("deny")
    if isinstance(error, ClosedError):
        return any(c.kind == "close" and c.handle[0] == call.handle[0] for c in world.history)
    if isinstance(error, CorruptBlobError):
        return world.faulty("truncate") or _damaged(witness, call)
    if isinstance(error, DictionaryChangedError):
        return _went_back(witness, call)
    if isinstance(error, StoreUnavailableError):
        if "removed as garbage" in str(error):
            return bool(witness.index and witness.index.horizon)  # vacuum also goes on by itself
        busy = "other writers were quicker" in str(error) or "while it was copied" in str(error)
        return world.rough or busy
    if call.kind == "mirrored" and isinstance(error, KeyNotFoundError):
        return True
    if isinstance(error, VersionConflictError | KeyNotFoundError | TypeError):
        return any(_refuses(state, call, error) for state in states)
    if isinstance(error, ConflictError):
        return _conflicts(world, call, error)
    if isinstance(error, LockLostError):
        return bool(witness.repairs.over(call)) or any(
            state.locks.get(error.item_name, (b"", ""))[1] != call.handle for state in states
        )
    if isinstance(error, DestinationError):
        # The copy knows more; or there is nothing to be copied yet.
        return bool(witness.rewinds) or not states[0].seq
    if isinstance(error, LockNotHeldError):
        return call.kind in {"unlock", "leave"}
    if isinstance(error, ItemLockedError):
        if call.kind in {"lock", "unlock"}:
            return True
        return any(error.item_name in state.locks for state in states)
    if isinstance(error, FormatVersionError):
        return witness.was_upgraded
    if isinstance(error, SnapshotExpiredError) and call.kind in {"at", "revert"}:
        forgets = any(c.kind == "forget" for c in world.history)
        return forgets or any(_refuses(state, call, error) for state in states)
    if isinstance(error, HistoryGapError) and world.scenario.tuning["LOG_SECONDS"] < 3600:
        return True
    if isinstance(error, SnapshotExpiredError | HistoryGapError):
        forgets = any(c.kind == "forget" for c in world.history)
        return bool(witness.drops or witness.repairs.damages) or forgets
    if isinstance(error, TimeoutError):
        return call.args == ("wait_for",)
    if isinstance(error, UnknownCommitError):
        nothing = any(not state.seq for state in (states if witness.rewinds else states[:1]))
        return call.kind in {"open", "diff"} and (nothing or bool(witness.repairs.damages))
    return False


def _refuses(state: State, call: Call, error: BaseException) -> bool:
    if call.kind not in MODELS:
        return False
    if call.kind == "transaction":
        return isinstance(error, KeyNotFoundError)
    try:
        MODELS[call.kind](state.copy(), call)
    except Refused as refused:
        if not isinstance(error, refused.cls):
            return False
        if isinstance(error, KeyNotFoundError):
            return error.keys == refused.detail
        return not isinstance(error, VersionConflictError) or error.expected == refused.detail
    except Impossible:
        pass
    return False


def _conflicts(world: World, call: Call, error: ConflictError) -> bool:
    """Tell whether a commit between call and return touched what is said to have changed."""
    for landing in world.witness.landings[call.begun + 1 : (call.ended or 0) + 1]:
        if landing is None:
            return True
        if any(getattr(change, "key", None) in error.keys for change in landing.commit.changes):
            return True
    # Or its bytes have gone.
    return any(call.kind == "forget" for call in world.history)


# -- followers -------------------------------------------------------------------------------


def behind(world: World, one: Watched) -> bool:
    """Tell whether a watch or a mirror that is still there lacks something."""
    witness = world.witness
    if not one.is_there() or witness.broke:
        return False
    if not isinstance(one, Watcher):
        outdated = witness.was_upgraded and isinstance(one.follower.error, FormatVersionError)
        return one.follower.seq != witness.state.seq and not outdated
    return len(_seen(world, one)) < len(_expected(world, one, witness.commits))


def _check_watcher(world: World, watcher: Watcher) -> None:
    """See that a watcher was told each change once, in order, and none that there wasn't."""
    witness, error = world.witness, watcher.error
    if (
        error is not None
        and not isinstance(
            error,
            HistoryGapError
            | ClosedError
            | StoreUnavailableError
            | AccessDeniedError
            | FormatVersionError,
        )
        and not (
            isinstance(error, CorruptBlobError)
            and (world.faulty("truncate") or witness.repairs.damages)
        )
        and not (isinstance(error, DictionaryChangedError) and witness.broke)
    ):
        witness.fail("watch", f"{watcher.name} ended with {error!r}")
    seen = _seen(world, watcher)
    branches = [*witness.branches, witness.commits]
    if not any(seen == _expected(world, watcher, commits)[: len(seen)] for commits in branches):
        expected = _expected(world, watcher, witness.commits)
        witness.fail("watch", f"{watcher.name} saw {seen}, not {expected}")


def _seen(world: World, watcher: Watcher) -> list[tuple[str, int, str, str]]:
    return _told(world, watcher.events)


def _expected(
    world: World, watcher: Watcher, commits: list[Commit]
) -> list[tuple[str, int, str, str]]:
    return _told(world, [event for one in commits[watcher.since :] for event in events(one)])


def _told(world: World, told: list[Event]) -> list[tuple[str, int, str, str]]:
    """Return what tells events apart, but for those of keys that are forgotten."""
    forgotten = {call.args[0] for call in world.history if call.kind == "forget"}
    return [
        (event.commit, event.position, event.kind, event.key)
        for event in told
        if event.key not in forgotten
    ]


def _check_rewinds(world: World) -> None:
    """See that no handle that knew more followed an index that was brought back.

    One that looks only when there are more new commits than states keep ids of can't know.
    """
    witness = world.witness
    at = witness.rewinds[0]
    kept = witness.states[at].seq
    late = kept + world.scenario.tuning["RECENT_IDS"]
    beyond = {n for n in range(1, at) if witness.states[n].seq > kept}
    knew: set[str] = set()
    for call in world.history:
        if call.begun < at:
            known = call.error is None and call.ended is not None and call.ended < at
            if known and beyond & {*call.landed}:
                knew.add(call.handle)
        elif call.handle not in knew or call.error is not None or not call.landed:
            continue
        elif witness.states[call.landed[0] - 1].seq <= late:
            witness.fail("rewind", f"{call} followed an index that had gone back")


def _damaged(witness: Witness, call: Call) -> bool:
    """Tell whether the index was damaged at some time of a call."""
    mine = witness.repairs.over(call)
    # A repair must do with what is left, if there is anything.
    return any(damage.empty for damage in mine) if call.kind == "repair" else bool(mine)


def _check_repair(witness: Witness, call: Call) -> None:
    """See that a repair has done what it says, and only what was needed."""
    report, ended = call.result, call.ended or 0
    mine = [damage for damage in witness.repairs.damages if damage.by is call]
    whole = [n for n in range(call.begun, ended + 1) if not witness.repairs.hidden(n)]
    said = (report.commit, report.keys)
    if report.lost:
        witness.fail("repair", f"{call} takes {report.lost} for lost")
    if report.rebuilt and not report.dry_run:
        if len(mine) != 1:
            witness.fail("repair", f"{call} says that it was the one: {report}")
            return
        state = witness.states[mine[0].until or 0]
        if said != (state.seq, len(state.items)):
            witness.fail("repair", f"{call} says {said}, but there are {state} {state.items}")
        if not {*report.restored} <= {*state.items}:
            witness.fail("repair", f"{call} says that it restored {report.restored}")
        certain = mine[0].certain
        if any(first <= certain for first, _ in report.lost_commits):
            witness.fail("repair", f"{call} lost {report.lost_commits} of {certain}")
    elif mine:
        witness.fail("repair", f"{call} says {report}, but has repaired it")
    elif report.rebuilt:
        if not witness.repairs.over(call):
            witness.fail("repair", f"{call} would repair what is whole")
    elif report.problem or not (
        any(said == (witness.states[n].seq, len(witness.states[n].items)) for n in whole)
        or any(damage.empty for damage in witness.repairs.damages)
    ):
        witness.fail("repair", f"{call} found nothing to do: {report}")


def _check_repairs(world: World) -> None:
    """See that nobody who knew the old index went on with the new one, but who repaired it."""
    witness = world.witness
    damages = witness.repairs.damages
    for n, damage in enumerate(damages):
        knew: set[str] = set()
        repaired = {later.by.handle for later in damages[n:] if later.by is not None}
        for call in world.history:
            if call.error is not None or call.ended is None:
                continue
            if call.ended < damage.at:
                known = call.landed or (call.kind in _READS and call.result)
                knew |= {call.handle} if known and call.kind != "seen" else set()
            elif call.handle in repaired:
                continue
            elif damage.until is not None and call.begun >= damage.until and call.handle in knew:
                asks = call.landed or (call.kind in _READS and not call.stale)
                if asks:
                    witness.fail("repair", f"{call} went on with a repaired index")


def _since_repair(world: World) -> list[Call]:
    """Return the calls since the index was repaired last, as if what there was were set then."""
    witness = world.witness
    if not witness.repairs.damages:
        return world.history
    last = witness.repairs.damages[-1]
    if last.until is None:
        return []
    pairs = list(witness.states[last.until].items.items())
    begin = Call("", "set", pairs, "", "")
    begin.first = begin.last = last.tick
    since = last.until
    later = [c for c in world.history if c.begun >= since or any(n > since for n in c.landed)]
    return [begin, *later]


def _check_interrupts(world: World) -> None:
    """See that an interrupted write didn't overtake what its thread did next."""
    struck: dict[tuple[str, str], list[Call]] = {}
    for call in world.history:
        earlier = struck.setdefault((call.thread, call.handle), [])
        for before in earlier if call.landed else ():
            if max(before.landed) > min(call.landed):
                world.witness.fail("interrupt", f"{before} landed after {call}")
        # A lock is given up again by another thread; and nobody sees what vacuum has dropped.
        kept = call.kind not in {"lock", "vacuum"}
        if call.landed and kept and isinstance(call.error, KeyboardInterrupt):
            earlier.append(call)


# -- the end ---------------------------------------------------------------------------------


def everything(d: RemoteDict | Mirror) -> list[tuple[str, str]]:
    """Return all pairs."""
    return [(key, values.shrink(value)) for key, value in d.copy().items()]


def compare(world: World, d: RemoteDict) -> None:
    """Compare what a newcomer knows with what the witness knows."""
    witness = world.witness
    state, known = witness.state, d._engine.now().state
    facts = {
        "seq": (known.seq, state.seq),
        "keys": (list(known), list(state.items)),
        "versions": (
            {key: known.version(key) for key in state.versions},
            state.versions,
        ),
        "metadata": (
            {key: text for key in known if (text := known.get(key).metadata)},
            state.metadata,
        ),
        "locks": (
            {key: lock.epoch for key, lock in known.locks.items()},
            {key: epoch for key, (epoch, _) in state.locks.items()},
        ),
    }
    for name, (has, expected) in facts.items():
        if has != expected:
            witness.fail("end", f"{name} are {has}, not {expected}")
