"""Two handles on one dictionary behave as one dict: whatever is done, in whatever order."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from remotedict import (
    ConflictError,
    ItemLockedError,
    LockLostError,
    LockNotHeldError,
    VersionConflictError,
)
from remotedict.features import locks
from remotedict.pure import plan, state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from conftest import Shop
    from remotedict import RemoteDict

KEYS = ["a", "b", "ä/β", "CON", "e" * 150, "f"]
ABSENT = object()

# With inline_bytes=256: inline; a pack in a bulk write, else a blob of its own; a blob of its own.
SIZES = [0, 20, 600, 3000, 300_000]

handles = st.integers(0, 1)
keys = st.sampled_from(KEYS)
several = st.lists(keys, unique=True, max_size=len(KEYS))
values = st.one_of(
    st.integers(-5, 5),
    st.builds(
        lambda size, seed: random.Random(seed).randbytes(size),
        st.sampled_from(SIZES),
        st.integers(0, 2),
    ),
)
notes = st.dictionaries(st.sampled_from("xyz"), st.integers(0, 2), max_size=2)
# What a commit or transaction is made of: (verb, key, value or metadata); to renew a key is to
# delete and set it.
writes = st.lists(
    st.one_of(
        st.tuples(st.just("set"), keys, values),
        st.tuples(st.just("delete"), keys, st.none()),
        st.tuples(st.just("renew"), keys, values),
        st.tuples(st.just("note"), keys, notes),
    ),
    min_size=1,
    max_size=5,
)
Write = tuple[str, str, Any]


class TwoHandles(RuleBasedStateMachine):
    """The handles `h[0]` and `h[1]`, and `model`, the dict that both must equal at all times."""

    def __init__(self, open_: Callable[..., RemoteDict]) -> None:
        super().__init__()
        self.open = open_
        self.model: dict[str, Any] = {}
        self.versions = dict.fromkeys(KEYS, 0)
        self.metadata: dict[str, dict[str, Any]] = {}  # of those that have any
        self.old: dict[tuple[str, int], Any] = {}  # key and version: its value
        self.told: dict[str, list[tuple[str, int]]] = defaultdict(list)  # key: kinds, versions
        self.past: dict[int, tuple[dict[str, Any], dict[str, Any], dict[str, int]]] = {}
        self.locks: dict[str, int] = {}
        self.lost: tuple[set[str], set[str]] = (set(), set())

    @initialize(small=st.booleans())
    def begin(self, small: bool) -> None:
        # A cache that holds nothing makes every read find its bytes where the index says.
        self.options = [{"inline_bytes": 256}, {"inline_bytes": 256 * small, "cache_bytes": 0}]
        self.h = [self.open(**options) for options in self.options]

    def teardown(self) -> None:
        for handle in getattr(self, "h", ()):
            handle.close()

    # -- what a write may meet ----------------------------------------------------------------

    @contextmanager
    def touching(
        self, who: int, touched: Iterable[str], kinds: dict[str, list[str]] | None = None
    ) -> Iterator[None]:
        """Run a write of `touched`: refused whole if a lock is in its way, else it counts.

        `kinds` says what the history will tell of each key; by default whether it is there.
        """
        lost = [key for key in touched if key in self.lost[who]]
        barred = [key for key in touched if self.locks.get(key, who) != who]
        before = dict(self.model), dict(self.metadata)
        if lost or barred:
            with pytest.raises(LockLostError if lost else ItemLockedError) as refused:
                yield
            assert refused.value.item_name in [*lost, *barred]
            self.lost[who].discard(refused.value.item_name)
            assert list(self.h[who]) == list(before[0])
            self.model, self.metadata = before
        else:
            yield
            for key in touched:
                now = ["set" if key in self.model else "delete"]
                for kind in kinds[key] if kinds else now:
                    self.count(key, kind)

    def count(self, key: str, kind: str) -> None:
        if kind == "note":
            return
        self.versions[key] += 1
        self.told[key].append((kind, self.versions[key]))
        if kind == "delete":
            if key not in self.model:
                self.metadata.pop(key, None)
        else:
            self.old[key, self.versions[key]] = self.model[key]

    @rule(who=handles, key=keys, value=values)
    def set(self, who: int, key: str, value: Any) -> None:
        with self.touching(who, [key]):
            self.model[key] = value
            self.h[who][key] = value

    @rule(who=handles, chosen=several, data=st.data(), as_tuple=st.booleans())
    def set_several(self, who: int, chosen: list[str], data: st.DataObject, as_tuple: bool) -> None:
        new = data.draw(st.lists(values, min_size=len(chosen), max_size=len(chosen)))
        with self.touching(who, chosen):
            self.model.update(zip(chosen, new, strict=True))
            self.h[who][tuple(chosen) if as_tuple else chosen] = new

    @rule(who=handles, pairs=st.lists(st.tuples(keys, values), max_size=9))
    def update(self, who: int, pairs: list[tuple[str, Any]]) -> None:
        with self.touching(who, list(dict(pairs))):
            self.model.update(pairs)
            self.h[who].update(iter(pairs))

    @rule(who=handles, key=keys)
    def delete(self, who: int, key: str) -> None:
        self.delete_several(who, [key], key)

    @rule(who=handles, chosen=several)
    def delete_several(self, who: int, chosen: list[str], selector: Any = None) -> None:
        missing = [key for key in chosen if key not in self.model]
        if missing:
            with pytest.raises(KeyError) as refused:
                del self.h[who][selector or chosen]
            assert list(refused.value.keys) == missing
            return
        with self.touching(who, chosen):
            for key in chosen:
                del self.model[key]
            del self.h[who][selector or chosen]

    @rule(who=handles, key=keys)
    def pop(self, who: int, key: str) -> None:
        if key not in self.model:
            with pytest.raises(KeyError):
                self.h[who].pop(key)
            assert self.h[who].pop(key, ABSENT) is ABSENT
            return
        with self.touching(who, [key]):
            expected = self.model.pop(key)
            assert self.h[who].pop(key) == expected

    @rule(who=handles)
    def popitem(self, who: int) -> None:
        if not self.model:
            with pytest.raises(KeyError):
                self.h[who].popitem()
            return
        with self.touching(who, [next(reversed(self.model))]):
            expected = self.model.popitem()
            assert self.h[who].popitem() == expected

    @rule(who=handles, key=keys, value=values)
    def setdefault(self, who: int, key: str, value: Any) -> None:
        with self.touching(who, [] if key in self.model else [key]):
            expected = self.model.setdefault(key, value)
            assert self.h[who].setdefault(key, value) == expected

    @rule(who=handles)
    def clear(self, who: int) -> None:
        with self.touching(who, list(self.model)):
            self.model.clear()
            self.h[who].clear()

    # -- on conditions, with metadata, from old values ------------------------------------------

    @rule(
        who=handles,
        key=keys,
        value=values,
        fields=st.none() | notes,
        off=st.sampled_from([None, 0, 0, -1, 1]),
        if_absent=st.booleans(),
    )
    def put(
        self, who: int, key: str, value: Any, fields: Any, off: int | None, if_absent: bool
    ) -> None:
        comes = self.versions[key] + 1
        version = None if off is None else max(1, comes + off)
        options = {"version": version, "if_absent": if_absent, "metadata": fields}
        if version not in (None, comes) or (if_absent and key in self.model):
            with pytest.raises(VersionConflictError) as refused:
                self.h[who].put(key, value, **options)
            assert (refused.value.key, refused.value.expected) == (key, comes)
            return
        with self.touching(who, [key]):
            self.model[key] = value
            if fields is not None:
                self.metadata[key] = fields
            assert self.h[who].put(key, value, **options) == comes

    @rule(who=handles, key=keys, fields=notes, merge=st.booleans())
    def note(self, who: int, key: str, fields: dict[str, Any], merge: bool) -> None:
        if key not in self.model:
            with pytest.raises(KeyError):
                self.h[who].metadata[key] = fields
            return
        _, noted, kinds = self.after([("note" if merge else "notes", key, fields)])
        with self.touching(who, kinds, kinds):
            self.metadata = noted
            if merge:
                self.h[who].metadata[key].update(fields)
            else:
                self.h[who].metadata[key] = fields

    @rule(who=handles, source=keys, to=keys)
    def copy_item(self, who: int, source: str, to: str) -> None:
        if source not in self.model:
            with pytest.raises(KeyError):
                self.h[who].copy_item(source, to)
            return
        with self.touching(who, [to]):
            self.model[to] = self.model[source]
            self.metadata[to] = self.metadata.get(source, {})
            self.h[who].copy_item(source, to)

    @rule(who=handles, key=keys, data=st.data())
    def revert(self, who: int, key: str, data: st.DataObject) -> None:
        version = data.draw(st.integers(1, self.versions[key] + 1))
        if (key, version) not in self.old:  # not yet, or a deletion
            for act in (self.h[who].revert, self.h[who].at):
                with pytest.raises(KeyError):
                    act(key, version)
            return
        assert self.h[who].at(key, version) == self.old[key, version]
        with self.touching(who, [key]):
            self.model[key] = self.old[key, version]
            self.h[who].revert(key, version)

    # -- several writes as one ------------------------------------------------------------------

    def possible(self, wanted: list[Write]) -> list[Write]:
        """Return the writes without those of keys that won't be there."""
        there = {*self.model}
        kept: list[Write] = []
        for verb, key, new in wanted:
            if verb in {"delete", "renew"} and key in there:
                kept.append(("delete", key, None))
                there.remove(key)
            if verb in {"set", "renew"} or (verb == "note" and key in there):
                kept.append((verb.replace("renew", "set"), key, new))
            if verb in {"set", "renew"}:
                there.add(key)
        return kept

    def after(
        self, made: list[Write]
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, list[str]]]:
        """Return what one commit of these writes leaves: values, metadata, and its changes."""
        model, noted = dict(self.model), dict(self.metadata)
        kinds: dict[str, list[str]] = {}
        for verb, key, new in made:
            if verb == "set":
                model[key] = new
                kind = "set"
            elif verb == "delete":
                del model[key]
                noted.pop(key, None)
                kinds.pop(key, None)
                if key not in self.model:
                    continue
                kind = "delete"
            else:
                old = noted.get(key, {})
                noted[key] = old | new if verb == "note" else new
                if list(noted[key].items()) == list(old.items()):
                    continue
                kind = "note"
            if kind not in kinds.setdefault(key, []):
                kinds[key].append(kind)
        return model, noted, kinds

    @staticmethod
    def make(made: list[Write], d: RemoteDict, into: Any) -> None:
        """Make the writes: metadata by `d`, values by `d` or its transaction."""
        for verb, key, new in made:
            if verb == "set":
                into[key] = new
            elif verb == "delete":
                del into[key]
            else:
                d.metadata[key].update(new)

    @rule(who=handles, wanted=writes, fails=st.booleans())
    def commit(self, who: int, wanted: list[Write], fails: bool) -> None:
        made, d = self.possible(wanted), self.h[who]
        if any(verb == "note" and key not in self.model for verb, key, _ in made):
            return  # metadata[...] of the dictionary says what is there, not what will be
        if fails:
            with pytest.raises(ZeroDivisionError), d.commit():  # noqa: PT012
                self.make(made, d, d)
                raise ZeroDivisionError
            return
        model, noted, kinds = self.after(made)
        with self.touching(who, kinds, kinds):
            self.model, self.metadata = model, noted
            with d.commit(comment="several"):
                self.make(made, d, d)
                assert list(d) == list(self.past[max(self.past)][0])

    @rule(
        who=handles,
        read=several,
        scan=st.booleans(),
        wanted=writes,
        meanwhile=st.none() | st.tuples(keys, values),
    )
    def transaction(
        self, who: int, read: list[str], scan: bool, wanted: list[Write], meanwhile: Any
    ) -> None:
        made, d, versions = self.possible(wanted), self.h[who], dict(self.versions)
        if any(verb == "note" and key not in self.model for verb, key, _ in made):
            return
        expected = self.after(made)[0]
        stack = ExitStack()
        t = stack.enter_context(d.transaction())
        assert [t.get(key, ABSENT) for key in read] == [self.model.get(k, ABSENT) for k in read]
        if scan:
            assert list(t) == list(self.model)
        if meanwhile:
            self.set(1 - who, *meanwhile)
        self.make(made, d, t)
        assert [t.get(key, ABSENT) for key in read] == [expected.get(k, ABSENT) for k in read]
        if scan:
            assert list(t.items()) == list(expected.items())
        changed = {key for key in KEYS if self.versions[key] != versions[key]}
        if made and changed & ({*KEYS} if scan else {*read, *deleted_unseen(made)}):
            with pytest.raises(ConflictError) as refused:
                stack.close()
            assert {*refused.value.keys} == changed
            return
        model, noted, kinds = self.after(made)
        with self.touching(who, kinds, kinds):
            self.model, self.metadata = model, noted
            stack.close()

    # -- locks --------------------------------------------------------------------------------

    @rule(who=handles, key=keys)
    def lock(self, who: int, key: str) -> None:
        if key in self.lost[who]:
            self.lost[who].discard(key)
            with pytest.raises(LockLostError):
                self.h[who].lock_item(key, wait=False)
        elif self.locks.get(key, who) != who:
            with pytest.raises(ItemLockedError):
                self.h[who].lock_item(key, wait=False)
        else:
            self.h[who].lock_item(key, duration=-1, wait=False)
            self.locks[key] = who

    @precondition(lambda self: self.locks or any(self.lost))
    @rule(who=handles, data=st.data())
    def unlock(self, who: int, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted({*self.locks, *self.lost[0], *self.lost[1]})))
        if key in self.lost[who]:
            self.lost[who].discard(key)
            with pytest.raises(LockLostError):
                self.h[who].unlock_item(key)
        elif self.locks.get(key) == who:
            self.h[who].unlock_item(key)
            del self.locks[key]
        else:
            with pytest.raises(LockNotHeldError):
                self.h[who].unlock_item(key)

    @precondition(lambda self: self.locks)
    @rule(who=handles, data=st.data())
    def force(self, who: int, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.locks)))
        self.h[who].unlock_item(key, force=True)
        holder = self.locks.pop(key)
        if holder != who:
            self.lost[holder].add(key)

    # -- reading ------------------------------------------------------------------------------

    @rule(who=handles, key=keys)
    def get(self, who: int, key: str) -> None:
        assert self.h[who].get(key, ABSENT) == self.model.get(key, ABSENT)
        assert (key in self.h[who]) == (key in self.model)

    @rule(who=handles, chosen=st.lists(keys))
    def get_several(self, who: int, chosen: list[str]) -> None:
        missing = [key for key in dict.fromkeys(chosen) if key not in self.model]
        if missing:
            with pytest.raises(KeyError) as refused:
                self.h[who][chosen]
            assert list(refused.value.keys) == missing
        else:
            assert self.h[who][chosen] == [self.model[key] for key in chosen]

    @rule(who=handles)
    def reopen(self, who: int) -> None:
        self.h[who].close()
        self.locks = {key: holder for key, holder in self.locks.items() if holder != who}
        self.lost[who].clear()
        self.h[who] = self.open(**self.options[who])

    @rule(who=handles)
    def compare(self, who: int) -> None:
        self.equals(self.h[who])
        mine = {key: holder == who for key, holder in self.locks.items()}
        assert {key: info.mine for key, info in self.h[who].locks.items()} == mine

    @rule()
    def compare_a_fresh_handle(self) -> None:
        with self.open(cache_bytes=0) as fresh:
            self.equals(fresh)

    @rule(who=handles, key=keys)
    def tell(self, who: int, key: str) -> None:
        told = self.h[who].history(key)
        told = told[told["kind"].isin(["set", "delete"])]
        changes = zip(told["kind"], told["version"], strict=True)
        assert list(changes) == self.told[key][::-1]

    @rule(who=handles, data=st.data())
    def look_back(self, who: int, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(sorted(self.past)))
        if seq == 0:
            return
        model, noted, versions = self.past[seq]
        then = self.h[who].snapshot(at=seq)
        assert list(then) == list(model)
        assert list(then.items()) == list(model.items())
        assert list(reversed(then)) == list(reversed(model))
        assert {key: then.version(key) for key in KEYS} == versions
        assert then.info()["metadata"].to_dict() == {key: noted.get(key, {}) for key in model}

    @invariant()
    def both_list_the_same(self) -> None:
        for handle in getattr(self, "h", ()):
            assert list(handle) == list(self.model)
            seq = handle._engine.index.known.state.seq
            self.past[seq] = dict(self.model), dict(self.metadata), dict(self.versions)

    def equals(self, d: RemoteDict) -> None:
        assert len(d) == len(self.model)
        assert list(reversed(d)) == list(reversed(self.model))
        assert list(d.items()) == list(self.model.items())
        assert list(reversed(d.values())) == list(reversed(self.model.values()))
        copied = d.copy()
        assert (copied, list(copied)) == (self.model, list(self.model))
        assert d == self.model
        assert list(d.index.index) == list(self.model)
        known = d._engine.known().state
        assert {key: known.version(key) for key in KEYS} == self.versions
        fields = {key: self.metadata.get(key, {}) for key in self.model}
        assert d.info()["metadata"].to_dict() == fields
        assert d.query(x=1) == [key for key in self.model if fields[key].get("x") == 1]
        assert d.query(facts={"type": "int"}, y=lambda y: y > 0) == [
            key
            for key, value in self.model.items()
            if isinstance(value, int) and fields[key].get("y", 0) > 0
        ]
        assert d.glob("[a-e]*") == [key for key in self.model if key[0] in "abcde"]


def deleted_unseen(made: list[Write]) -> set[str]:
    """Return the keys that a transaction deletes without having set them: so it must read them."""
    written: set[str] = set()
    read: set[str] = set()
    for verb, key, _ in made:
        if verb == "delete" and key not in written:
            read.add(key)
        if verb != "note":
            written.add(key)
    return read


EXAMPLES = {"memory": 100, "local": 25, "azure": 8}  # Azurite takes milliseconds, memory none


def test_two_handles_are_one_dict(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    # What takes thousands of commits in earnest must happen within one run: rolls, merges,
    # checkpoints, rebases. And a living holder is believed to live at once.
    monkeypatch.setattr(plan, "INDEX_BYTES", 2000)
    monkeypatch.setattr(plan, "CHECKPOINT_MIN", 4000)
    monkeypatch.setattr(plan, "FAN", 2)
    monkeypatch.setattr(state, "_REBASE_MIN", 5)
    monkeypatch.setattr(locks, "_TAKEOVER_SECONDS", 0.0)
    runs = itertools.count()

    def machine() -> TwoHandles:
        folder = f"run{next(runs)}"
        return TwoHandles(lambda **options: shop.open(folder_name=folder, **options))

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES[shop.kind],
            stateful_step_count=40,
            # Shrinking takes minutes; a failure on memory, the first, is worth them.
            phases=list(Phase)[:-1] if shop.kind == "memory" else [Phase.reuse, Phase.generate],
            report_multiple_bugs=False,
        ),
    )
