"""Planted bugs: the engine with one rule dropped. The simulation must find each.

A plant replaces a piece of source text of a function, and says so if it isn't there any more.
"""

from __future__ import annotations
import __future__

import importlib
import inspect
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType


class Edit(NamedTuple):
    """In the function `where` (``module:name``), `old` becomes `new`."""

    where: str
    old: str
    new: str


class Plant(NamedTuple):
    """A bug.

    Attributes
    ----------
    rule : str
        Which rule of the design it drops, if one of those that have numbers.
    """

    name: str
    rule: str
    edits: tuple[Edit, ...]


RECORDED = Path(__file__).with_name("seeds.json")
"""For each plant a seed that finds it: ``python -m simulation --plants --seeds 10000``."""


def _plant(name: str, rule: str, *edits: tuple[str, str, str]) -> Plant:
    return Plant(name, rule, tuple(Edit(*edit) for edit in edits))


_COMMITTER = "engine.committer:"
_LOCKS = "features.locks:"

PLANTS = [
    _plant(
        "the If-Match is left out",
        "",
        (_COMMITTER + "Committer._swap", ", if_match=base.etag)", ")"),
    ),
    _plant(
        "the etag is checked, then the index is put",
        "",
        (
            _COMMITTER + "Committer._swap",
            "etag = self._backend.raw.put(self._layout.index, data, if_match=base.etag)",
            (
                "got = self._backend.raw.get(self._layout.index)\n"
                "                if got.etag != base.etag:\n"
                "                    raise PreconditionFailed(self._layout.index)\n"
                "                etag = self._backend.raw.put(self._layout.index, data)"
            ),
        ),
    ),
    _plant(
        "a commit is made before its upload",
        "",
        (
            "engine.values:Values._upload",
            "            self._backend.put(self._layout.path(blob), encoded)",
            (
                "            self._runtime.spawn(\n"
                "                lambda: self._backend.put(self._layout.path(blob), encoded)\n"
                "            )"
            ),
        ),
    ),
    _plant(
        "after a lost reply nobody looks for its commit",
        "1",
        (_COMMITTER + "Committer._verdict", "there == round_.commits[0].id", "False"),
    ),
    _plant(
        "a checkpoint carries no recent ids",
        "1",
        ("pure.state:State._recent", "return grown.ids[", "return [] and grown.ids["),
    ),
    _plant(
        "a 412 is taken for a loss, and not looked up",
        "1",
        (
            _COMMITTER + "Committer._swap",
            "refused = exc",
            "self._look(round_, doubt, exc)\n                return None",
        ),
    ),
    _plant(
        "a change gets a new id while its put is under way",
        "2",
        (
            _COMMITTER + "Committer._swap",
            "            if self._runtime.monotonic() >= deadline:",
            (
                "            if doubt:\n"
                "                return None\n"
                "            if self._runtime.monotonic() >= deadline:"
            ),
        ),
        (_COMMITTER + "_Round.__init__", "Commit(request.id,", "Commit(uuid(),"),
    ),
    _plant(
        "out of time, a commit is said to have failed",
        "2",
        (_COMMITTER + "_raise_if_in_doubt", "if doubt:", "if False:"),
    ),
    _plant(
        "a refusal is given on old news",
        "3",
        (_COMMITTER + "Committer._settle", "known.checked > round_.newest_ticket", "True"),
    ),
    _plant(
        "conditions are judged once, not on each new state",
        "4",
        (
            _COMMITTER + "_Round.__init__",
            "changes = versioned(request.decide(draft), draft)",
            (
                "made = request.__dict__.get('made')\n"
                "                made = request.decide(draft) if made is None else made\n"
                "                request.made = made\n"
                "                changes = versioned(made, draft)"
            ),
        ),
    ),
    _plant(
        "a bulk is read key by key",
        "4",
        (
            "engine.core:Engine.read_many",
            "        now = known or self.index.recent(self.tuning.max_staleness)",
            (
                "        if known is None:\n"
                "            return {key: self.read(key)[0] for key in keys}\n"
                "        now = known"
            ),
        ),
    ),
    _plant(
        "the requests of a round don't see each other",
        "4",
        (_COMMITTER + "_Round.__init__", "                draft.add(commit)\n", ""),
    ),
    _plant(
        "a value encoded anew takes its old name",
        "5",
        (
            "engine.values:Values.encode",
            "generation = self._runtime.uuid()",
            "generation = key.encode().ljust(16, b'-')",
        ),
    ),
    _plant(
        "a lock is committed whatever it is by now",
        "6",
        (
            _LOCKS + "Locks._commit_locks",
            "                    raise _Moved\n",
            "                    pass\n",
        ),
    ),
    _plant(
        "a lock is read after its lease was taken",
        "6",
        (
            _LOCKS + "Locks._try",
            "            ends = {key:",
            (
                "            state = engine.now().state\n"
                "            read = {key: state.lock(key) for key in keys}\n"
                "            ends = {key:"
            ),
        ),
    ),
    _plant(
        "a holder whose lock is gone writes on",
        "7",
        (
            _LOCKS + "Locks._judged",
            "if held and not held.pending:",
            "if held and lock and not held.pending:",
        ),
    ),
    _plant(
        "an unlock ends whatever epoch there is",
        "7",
        (_LOCKS + "Locks._unlock", "if lock and lock.epoch in one.epochs:", "if lock:"),
    ),
    _plant(
        "each acquisition uses the same lease id",
        "8",
        (_LOCKS + "Locks._lease", "lease_id = engine.runtime.lease_id()", "lease_id = '0' * 32"),
    ),
    _plant(
        "a write through a dead holder's lock leaves its epoch",
        "9",
        (_LOCKS + "Locks._judged", "ended.append(Unlock(key, lock.epoch))", "pass"),
    ),
    _plant(
        "the epoch is ignored",
        "7",
        (_LOCKS + "Locks._judged", "touched = [", "touched = [] and ["),
    ),
    _plant(
        "a lock in the way is taken for a dead holder's, unasked",
        "6",
        (
            _LOCKS + "Locks._commit",
            (
                "                        if lease := self._lease_of_dead(lock):\n"
                "                            leases.append(lease)\n"
                "                            dead[lock.key] = lock.epoch"
            ),
            "                        dead[lock.key] = lock.epoch",
        ),
    ),
    _plant(
        "the writer ignores the horizon",
        "11",
        (_COMMITTER + "_check_bytes", "if began < index.horizon:", "if False:"),
    ),
    _plant(
        "a copy names bytes that are no longer listed",
        "13",
        (_COMMITTER + "_check_bytes", "not _lists(draft, change)", "False"),
        (
            "dictionary:RemoteDict.copy_item",
            "            entry = draft.get(source)\n",
            "            entry = seen.get(source)\n",
        ),
        (
            "dictionary:RemoteDict.copy_item",
            "        check_key(target)\n",
            "        check_key(target)\n        seen = self._engine.known().state\n",
        ),
    ),
    _plant(
        "a new layout is swapped in whatever has become of the old one",
        "14",
        ("engine.relayout:Relayout._swapped", "if not same or any(", "if any("),
    ),
    _plant(
        "a checkpoint replaces a newer one",
        "14",
        (
            "pure.plan:swap_checkpoint",
            "if list(index.segments[: len(covered)]) != list(covered):",
            "if False:",
        ),
    ),
    _plant(
        "a merge replaces whatever is there",
        "14",
        (
            "pure.plan:swap_merged",
            "    if index.segments[at : at + len(refs)] != list(refs):\n        return None\n",
            "",
        ),
        ("pure.plan:swap_merged", "first not in blobs or ", ""),
        (
            "pure.plan:swap_merged",
            "at = blobs.index(first)",
            "at = blobs.index(first) if first in blobs else 0",
        ),
    ),
    _plant(
        "a value that has vanished is an error, and nobody looks again",
        "15",
        (
            "engine.core:Engine._newer",
            "        if now and now.location(where.key) == where:\n            raise self._missing(where) from exc",
            "        raise self._missing(where) from exc",
        ),
    ),
    _plant(
        "a snapshot whose value has vanished shows a newer one",
        "15",
        (
            "engine.core:Engine.read_many",
            "                if known:\n                    raise SnapshotExpiredError(gone.key) from None\n",
            "",
        ),
        (
            "engine.core:Engine.stream",
            "                raise SnapshotExpiredError(gone.key) from None",
            (
                "                window = Locations.of(e.location(k) for k, e in entries(gone.newer.state, window.keys))\n"
                "                raw = self._find_many(window, lambda _: None)"
            ),
        ),
    ),
    _plant(
        "an index that went back is followed",
        "16",
        ("engine.index:IndexBlob._ask", "self._check_identity(base, index)", "pass"),
        ("engine.index:IndexBlob._follow", "if unknown and old and", "if False and"),
        ("engine.index:IndexBlob._follow", "old.revision > index.revision", "False"),
        (
            "engine.index:IndexBlob._follow",
            "if known and old and old.revision == index.revision:",
            "if known and old and old.revision == index.revision and known.etag == etag:",
        ),
        (
            "engine.index:IndexBlob._follow",
            "wanted = self.reader.wanted(old, index) if old else None",
            "wanted = None",
        ),
        (
            "engine.index:IndexBlob._follow",
            "if known and not _continues(known.state, loaded[0]):",
            "if False:",
        ),
    ),
    _plant(
        "whether the index went back is judged by its number alone",
        "16",
        (
            "engine.index:IndexBlob._check_identity",
            "new.seq == old.seq and new.head != base.state.head",
            "False",
        ),
        ("engine.reader:Reader._check_same", "if commit_id != state.head:", "if False:"),
        ("engine.index:_continues", "return ", "return True or "),
    ),
    _plant(
        "a slow answer is judged by what is known by now",
        "16",
        (
            "engine.index:IndexBlob._ask",
            "self._check_identity(base, index)",
            "self._check_identity(self.known, index)",
        ),
    ),
    _plant(
        "values are cached by key",
        "",
        (
            "engine.values:Values.fetch",
            "data = self.at_hand(where)",
            "data = self.at_hand(where) or self.cache.get(where.key.encode())",
        ),
        (
            "engine.values:Values.fetch",
            "[where.generation]",
            "[where.key.encode()]",
        ),
        (
            "engine.values:_spans",
            "[wanted.generations[row] for row in some]",
            "[wanted.keys[row].encode() for row in some]",
        ),
    ),
    _plant(
        "a check that was sent before serves a caller who comes later",
        "",
        ("engine.index:IndexBlob._join", "self._under_way < _CHECKS", "self._under_way < 1"),
        (
            "engine.index:IndexBlob._own",
            "            return self._check()\n",
            (
                "            known = self._check()\n"
                "            waiting, self._waiting = self._waiting, None\n"
                "            if waiting:\n"
                "                waiting.set_result(known)\n"
                "            return known\n"
            ),
        ),
    ),
    _plant(
        "the state is published that was learnt last, not the newest",
        "",
        ("engine.index:IndexBlob._follow", "old.revision > index.revision", "False"),
        (
            "engine.index:IndexBlob._follow",
            "loaded = self.reader.load(index, segments)",
            "loaded = self.reader.load(index, segments)\n                known = self.known",
        ),
        (
            "engine.index:IndexBlob._follow",
            "wanted = self.reader.wanted(old, index) if old else None",
            "wanted = None",
        ),
        (
            "engine.index:IndexBlob._follow",
            "if known and not _continues(known.state, loaded[0]):",
            "if False:",
        ),
    ),
    _plant(
        "who follows doesn't learn where inline values went",
        "",
        ("pure.state:State.relocate", "for commit in commits:", "for commit in ():"),
    ),
    _plant(
        "a transaction doesn't judge what it has read",
        "4",
        ("features.transaction:_Reads.__call__", "if changed:", "if False:"),
    ),
    _plant(
        "a scan counts as reading nothing",
        "4",
        ("features.transaction:_Reads.__call__", "if self.all else set()", "if False else set()"),
    ),
    _plant(
        "a key is popped that isn't the one that was read",
        "4",
        (
            "dictionary:RemoteDict._delete_exactly",
            "now is None or now.generation != entry.generation",
            "now is None",
        ),
    ),
    _plant(
        "a forked child goes on with its parent's locks",
        "",
        (
            "session:Session.forget_parts",
            "            self._parts.locks.orphan()\n",
            "            held = self._parts.locks._held\n            self._heirloom = held\n",
        ),
        (
            "session:Session.parts",
            "                locks = Locks(engine)\n",
            "                locks = Locks(engine)\n                locks._held = self.__dict__.get('_heirloom', locks._held)\n",
        ),
    ),
    _plant(
        "a watch goes on at the newest segment",
        "",
        (
            "features.watch:Watch._commit",
            "self._commits = self._engine().commits.after(self._after, self._known)",
            (
                "begin = max(self._after, self._known.index.settled)\n"
                "                self._commits = self._engine().commits.after(begin, self._known)"
            ),
        ),
    ),
    _plant(
        "a drop takes a version too many",
        "13",
        (
            "pure.state:State.apply",
            "after = after.rebased(drop=change)",
            "after = after.rebased(drop=Drop(after.seq, 1))",
        ),
    ),
    _plant(
        "a client that doesn't know a feature writes on",
        "",
        (
            "pure.records:_check_index",
            "if unknown := sorted(set(index.features) - FEATURES):",
            "if unknown := []:",
        ),
    ),
    _plant(
        "what is known of places is kept though bytes have moved",
        "14",
        ("engine.reader:Reader.wanted", "if new.moved != old.moved:", "if False:"),
    ),
    _plant(
        "bytes are moved though a newer commit names the old ones",
        "14",
        ("engine.relayout:Relayout._swapped", "change.place.blob in without", "False"),
    ),
    _plant(
        "a watch hands a commit out again after a lost connection",
        "",
        ("features.watch:Watch.__next__", "                self._after = commit.seq\n", ""),
        ("features.watch:Watch.__next__", " if (e.seq, e.position) > self._done", ""),
        (
            "features.watch:Watch._commit",
            "            if self._known.state.seq > self._after:\n",
            (
                "            self._after = max(self._after, self._done[0])\n"
                "            if self._known.state.seq > self._after:\n"
            ),
        ),
        (
            "features.watch:Watch._commit",
            "self._commits, self._looked = iter(()), True",
            (
                "self._commits = self._engine().commits.after(self._after, self._known)\n"
                "            self._looked = True"
            ),
        ),
    ),
    _plant(
        "forget leaves bytes in what other keys share with the key",
        "",
        (
            "engine.rewrite:Rewrite._tainted",
            "return tainted | {place.blob for place in self._places if place.blob in shared}",
            "return set()",
        ),
    ),
    _plant(
        "an interrupted write is submitted all the same",
        "",
        ("engine.runtime:_Job.still_wanted", "if self._abandoned:", "if False:"),
    ),
    _plant(
        "a critical section takes its keys in the order in which they are named",
        "10",
        (
            "features.critical:CriticalSection.__init__",
            "sorted(set(keys))",
            "list(dict.fromkeys(keys))",
        ),
    ),
    _plant(
        "the writers' queue is leased for ever",
        "10",
        ("engine.turn:Turn._is_anothers", "self._queue, _QUEUE_SECONDS", "self._queue, 1e9"),
    ),
    _plant(
        "a section whose lock another thread was told to have lost writes on",
        "7",
        (
            "features.holdings:Holdings._lose",
            "if key not in self._sections:",
            "if True:",
        ),
    ),
]

PLANTS += [
    _plant(
        "a copy has the newest index, not that of its blobs",
        "",
        (
            "engine.copying:Copy._attempt",
            "        new = self._copied(known, index, old)\n",
            (
                "        known = self._source.index.now()\n"
                "        index = known.index\n"
                "        new = self._copied(known, index, old)\n"
            ),
        ),
    ),
    _plant(
        "a checkpoint isn't signed",
        "",
        (
            "engine.upkeep:Upkeep._checkpoint",
            "encode(record, data, self._reader.keyring)",
            "encode(record, data)",
        ),
    ),
]

_VACUUM = "engine.vacuum:Vacuum."
_GARBAGE = "engine.garbage:Garbage."

PLANTS += [
    _plant(
        "the horizon shrinks",
        "11",
        ("pure.plan:raise_horizon", "max(index.horizon, allowed)", "allowed // 2"),
    ),
    _plant(
        "vacuum takes what writers may still name",
        "11",
        (
            _GARBAGE + "_past",
            "naming.born(reference) < self.horizon",
            "naming.born(reference) <= self.horizon",
        ),
    ),
    _plant(
        "vacuum has no horizon",
        "11",
        (_GARBAGE + "_past", "return ", "return True or "),
    ),
    _plant(
        "a merge isn't judged by the horizon",
        "11",
        ("pure.plan:swap_merged", "naming.born(merged.blob) < index.horizon", "False"),
    ),
    _plant(
        "a checkpoint isn't judged by the horizon",
        "11",
        (
            "pure.plan:swap_checkpoint",
            "if min(naming.born(checkpoint.blob), naming.born(log.blob)) < index.horizon:",
            "if False:",
        ),
    ),
    _plant(
        "vacuum deletes before its horizon stands",
        "12",
        (
            _VACUUM + "_horizon_set",
            "stands = engine.swap(lambda index: plan.raise_horizon(index, old), alone=True)",
            (
                "now = engine.index.known\n"
                "            stands = dataclasses.replace(now, index=plan.raise_horizon(now.index, old))"
            ),
        ),
    ),
    _plant(
        "vacuum judges by an earlier state",
        "12",
        (
            _VACUUM + "_horizon_set",
            "return self._garbage(stands, dropped)",
            "return self._garbage(dataclasses.replace(stands, state=known.state), dropped)",
        ),
    ),
    _plant(
        "vacuum deletes what only the past needs",
        "13",
        (
            "pure.references:References.__init__",
            'parts = [own, _own(state.base, ""), _own(state.base, "past_")]',
            'parts = [own, _own(state.base, "")]',
        ),
        (
            "pure.references:_later",
            "[entry for _, entry in state.later()]",
            "[*dict(state.later()).values()]",
        ),
    ),
    _plant(
        "what is to be dropped is deleted before the drop stands",
        "13",
        (
            "engine.upkeep:Upkeep.drop",
            "        self._committer.submit(request)\n",
            (
                "        self._backend.delete(self._layout.paths(sorted(blobs)))\n"
                "        self._committer.submit(request)\n"
            ),
        ),
    ),
    _plant(
        "what was dropped is deleted though a copy has it",
        "13",
        (
            _GARBAGE + "judged",
            "not needed[reference] and self._past(reference)",
            "(not needed[reference] and self._past(reference) or reference in self._dropped)",
        ),
    ),
    _plant(
        "vacuum doesn't see the log",
        "12",
        (_VACUUM + "_garbage", "named = self._engine.commits.log(known.index)", "named = []"),
    ),
]
_REBUILDING = "engine.rebuilding:Rebuilding."

PLANTS += [
    _plant(
        "of two repairs both win",
        "",
        (
            "engine.repair:Repair._replaced",
            "old = got.etag if got else None",
            "old = now.etag if (now := current(self._engine)) else None",
        ),
    ),
    _plant(
        "a repair keeps the incarnation that the handle knew",
        "",
        (
            _REBUILDING + "__init__",
            "engine.runtime.uuid())",
            "remains.known.incarnation if remains.known else engine.runtime.uuid())",
        ),
    ),
    _plant(
        "a repair brings back only what segments tell of",
        "",
        (_REBUILDING + "_found", "if not gaps:", "if True:"),
    ),
    _plant(
        "a repair doesn't ask what its handle knows",
        "",
        (
            "engine.repair:Repair._attempt",
            "known_index = known.index if known else None",
            "known_index = None",
        ),
    ),
    _plant(
        "a repair uses the numbers of lost commits again",
        "",
        (_REBUILDING + "run", "+ UNSEEN", "+ 1"),
    ),
    _plant(
        "a repair believes what another one has left that came too late",
        "",
        ("pure.chain:_Ways.reach", "min(certain, node[0])", "node[0]"),
    ),
    _plant(
        "a repair believes what a killed one has made up for lost commits",
        "",
        ("pure.chain:Link.of", "not any(commit.changes for commit in commits)", "False"),
    ),
]
"""That vacuum judges by a state later than that of its horizon can't be found: what isn't needed then,
and lies below the horizon, wasn't to be named again before either.

Tried, and not found within 4,000 seeds: a forget that isn't judged by the horizon (`Relayout._swapped`:
mostly the layout has changed as well); a mirror that shows what it has learnt last (`Mirror._take`). It
takes a value that is gone before the mirror has fetched it, a reader who asks for it, and looks, and
the mirror's own look at the same time."""


@contextmanager
def planted(plant: Plant) -> Iterator[None]:
    """Let the engine have a bug."""
    undo: list[tuple[Any, str, Any]] = []
    sources: dict[str, str] = {}
    for edit in plant.edits:
        *_, function = _find(edit.where)
        source = sources.get(edit.where) or inspect.getsource(function)
        if edit.old not in source:
            msg = f"{plant.name!r}: {edit.where} no longer has {edit.old!r}"
            raise LookupError(msg)
        sources[edit.where] = source.replace(edit.old, edit.new, 1)
    for where, source in sources.items():
        module, owner, name, _ = _find(where)
        undo.append((owner, name, owner.__dict__[name]))
        setattr(owner, name, _compiled(source, module, name))
    try:
        yield
    finally:
        for owner, name, value in undo:
            setattr(owner, name, value)


def _find(where: str) -> tuple[ModuleType, Any, str, Any]:
    module_name, _, path = where.partition(":")
    module = importlib.import_module(f"remotedict.{module_name}")
    *owners, name = path.split(".")
    owner: Any = module
    for one in owners:
        owner = getattr(owner, one)
    function = getattr(owner, name)
    return module, owner, name, getattr(function, "__func__", function)


def _compiled(source: str, module: ModuleType, name: str) -> Any:
    """Return the function that the source defines, with the globals of its module."""
    if source[0].isspace():
        source = f"if True:\n{source}"
    flags = __future__.annotations.compiler_flag
    code = compile(source, f"<planted {name}>", "exec", flags=flags, dont_inherit=True)
    scope: dict[str, Any] = {}
    exec(code, vars(module), scope)  # noqa: S102
    return scope[name]
