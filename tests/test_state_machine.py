"""Two handles on one dictionary behave as one dict: whatever is done, in whatever order."""

from __future__ import annotations

import itertools
import random
from contextlib import contextmanager
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

from remotedict import ItemLockedError, LockLostError, LockNotHeldError
from remotedict.features import locks
from remotedict.pure import plan, state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

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


class TwoHandles(RuleBasedStateMachine):
    """The handles `h[0]` and `h[1]`, and `model`, the dict that both must equal at all times."""

    def __init__(self, open_: Callable[..., RemoteDict]) -> None:
        super().__init__()
        self.open = open_
        self.model: dict[str, Any] = {}
        self.versions = dict.fromkeys(KEYS, 0)
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
    def touching(self, who: int, touched: Sequence[str]) -> Iterator[None]:
        """Run a write of `touched`: refused whole if a lock is in its way, else it counts."""
        lost = next((key for key in touched if key in self.lost[who]), None)
        barred = [key for key in touched if self.locks.get(key, who) != who]
        before = dict(self.model)
        if lost or barred:
            with pytest.raises(LockLostError if lost else ItemLockedError) as refused:
                yield
            assert refused.value.item_name == lost or refused.value.item_name in barred
            self.lost[who].discard(refused.value.item_name)
            assert list(self.h[who]) == list(before)
            self.model = before
        else:
            yield
            for key in touched:
                self.versions[key] += 1

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

    @invariant()
    def both_list_the_same(self) -> None:
        for handle in getattr(self, "h", ()):
            assert list(handle) == list(self.model)

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
