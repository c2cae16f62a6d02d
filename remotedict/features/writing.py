"""Writing: operations, made one by one or gathered into one commit."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from msgspec.structs import replace

from remotedict.errors import ConflictError, RemoteDictError
from remotedict.features.progress import progress
from remotedict.pure.draft import Draft, versioned
from remotedict.pure.records import Annotate, Change, Commit, Delete, Set

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from remotedict.engine.core import Engine
    from remotedict.features.locks import Locks
    from remotedict.pure.codec import Encoded


class Changed(RemoteDictError):  # noqa: N818 - an answer to the operation's maker
    """The state isn't the one that an operation was made for."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


class Operation(NamedTuple):
    """One write: values to upload, and what to change then.

    `decide` is given the state that the commit would be made on, and the changes that set the
    values; it returns changes, or raises a RemoteDictError.
    """

    values: Sequence[tuple[str, bytes, Encoded]]
    decide: Callable[[Draft, list[Set]], Sequence[Change]]


def setting(
    values: Sequence[tuple[str, bytes, Encoded]], require: Callable[[Draft], None] | None = None
) -> Operation:
    """Return the operation that sets keys, if `require` doesn't raise."""

    def decide(draft: Draft, sets: list[Set]) -> list[Set]:
        if require:
            require(draft)
        return sets

    return Operation(values, decide)


def changing(decide: Callable[[Draft], Sequence[Change]]) -> Operation:
    """Return an operation that has no values."""
    return Operation((), lambda draft, _: decide(draft))


def _here() -> tuple[int, object]:
    """Return what tells this thread or task from all others."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        task = None
    return threading.get_ident(), task


class Gathering:
    """Operations that become one commit."""

    def __init__(self, comment: str, author: str | None) -> None:
        self.owner = _here()
        self.comment = comment
        self.author = author
        self.open = True
        self.cuts = 0
        self.commit: Commit | None = None
        self.operations: list[Operation] = []
        self.conditions: list[Callable[[Draft], None]] = []
        # What the operations so far would leave of the state that a transaction reads.
        self.view: Callable[[], Draft] | None = None

    def add(self, operation: Operation) -> None:
        """Take an operation; its values may change from here on."""
        for _, _, encoded in operation.values:
            encoded.keep()
        self.operations.append(operation)

    def cut(self, mark: int) -> None:
        """Drop the operations from number `mark` on."""
        del self.operations[mark:]
        self.cuts += 1

    def decide(self, draft: Draft, sets: list[Set]) -> list[Change]:
        """Return the changes of all operations, each on what those before would leave."""
        for condition in self.conditions:
            condition(draft)
        after, made, at = draft.copy(), [], 0
        for operation in self.operations:
            count = len(operation.values)
            mine = sets[at : at + count]
            at += count
            made += pretend(after, operation, mine)
        return [_rooted(change, made) for change in coalesced(made, draft)]


def _rooted(change: Change, made: Sequence[Change]) -> Change:
    """Return a change that names bytes by where they are listed before this commit.

    A copy of a copy is one of the first; one of bytes that were uploaded for this very commit
    has no origin.
    """
    if not isinstance(change, Set) or change.origin is None:
        return change
    first = next(c for c in made if isinstance(c, Set) and c.generation == change.generation)
    return replace(change, origin=first.origin)


def pretend(draft: Draft, operation: Operation, sets: list[Set]) -> list[Change]:
    """Make an operation on a draft, as if committed; return its changes."""
    changes = versioned(operation.decide(draft, sets), draft)
    draft.add(Commit(bytes(16), draft.state.seq + 1, 0, "", "", changes))
    draft.own.update(change.key for change in changes if isinstance(change, Set | Delete))
    return changes


def coalesced(changes: Iterable[Change], draft: Draft) -> list[Change]:
    """Return changes to the same effect, in which each key is set once at the most.

    What a key was in between nobody has seen: so it is no version. A key that was there, is
    deleted and set again goes to the end, as in a dict.
    """
    slots: dict[tuple[str, str], Change] = {}
    for change in changes:
        if isinstance(change, Set | Annotate):
            slots[change.key, type(change).__name__] = change
        elif isinstance(change, Delete):
            slots.pop((change.key, "Set"), None)
            slots.pop((change.key, "Annotate"), None)
            if draft.get(change.key):
                slots[change.key, "Delete"] = change
        else:
            msg = f"a {type(change).__name__} can't be part of a larger commit"
            raise RuntimeError(msg)  # noqa: TRY004
    # Metadata last: they are those of what was set in the same commit.
    return sorted(slots.values(), key=lambda change: isinstance(change, Annotate))


_active: ContextVar[dict[Writer, Gathering] | None] = ContextVar("remotedict", default=None)


class Writer:
    """Makes the operations of one handle. Thread-safe.

    Inside `gather`, in the same thread or task, they only come together.
    """

    def __init__(
        self, parts: Callable[[], tuple[Engine, Locks]], show_progress: bool | None
    ) -> None:
        self._parts = parts
        self._show_progress = show_progress

    @property
    def gathering(self) -> Gathering | None:
        """What gathers the writes of this thread or task now, if anything does."""
        found = (_active.get() or {}).get(self)
        # A task, or a thread, that was begun inside inherits the context, but is not part of it:
        # it may outlast it, and fail without it.
        return found if found and found.open and found.owner == _here() else None

    def gather(self, comment: str, author: str | None) -> Gather:
        """Return a context in which all operations become one commit."""
        return Gather(self, comment, author)

    def encode(self, items: Sequence[tuple[str, Any]]) -> list[tuple[str, bytes, Encoded]]:
        """Return values as bytes."""
        return self._parts()[0].encode(items)

    def stream(self, pairs: Iterable[tuple[str, Any]], total: int | None) -> None:
        """Set many keys at once, encoding and uploading them window by window.

        What fits into one window is an operation like any other.
        """
        engine, locks = self._parts()
        windows = engine.encoded(pairs)
        first, second = next(windows, []), next(windows, None)
        if second is None:
            if first:
                self.make(setting(list({one[0]: one for one in first}.values())))
            return

        def commit(sets: list[Set]) -> None:
            locks.commit(lambda _: sets)

        with progress(total, "writing", self._show_progress) as done:
            engine.write_windows(chain([first, second], windows), commit, done)

    def make(self, operation: Operation, *, early: bool = False) -> Commit | None:
        """Make an operation, or leave it to the gathering that is active.

        Parameters
        ----------
        operation : Operation
            What to do.
        early : bool
            Whether to tell now, and not only at the end of a gathering, what speaks against it.
        """
        gathering = self.gathering
        if gathering is None:
            return self.commit(operation, "", None)
        if early:
            if gathering.view:
                after = gathering.view()
            else:
                after = Draft(self._parts()[0].now().state)
                for one in gathering.operations:
                    pretend(after, one, placeholders(one))
            pretend(after, operation, placeholders(operation))
        gathering.add(operation)
        return None

    def commit(self, operation: Operation, comment: str, author: str | None) -> Commit | None:
        """Make an operation at once."""
        engine, locks = self._parts()

        def commit(sets: list[Set]) -> Commit | None:
            return locks.commit(
                lambda draft: operation.decide(draft, sets), comment=comment, author=author
            )

        if not operation.values:
            return commit([])
        with progress(len(operation.values), "writing", self._show_progress) as done:
            return engine.write(operation.values, commit, done)


class Gather:
    """The context of one commit, made at its end; an exception drops it."""

    def __init__(self, writer: Writer, comment: str, author: str | None) -> None:
        self._writer = writer
        self._comment = comment
        self._author = author
        self._outer: Gathering | None = None
        self.mark = 0
        self._gathering: Gathering | None = None

    @property
    def id(self) -> str | None:
        """The id of the commit, once it is made; None if there was nothing to do."""
        commit = self._gathering and self._gathering.commit
        return commit.id.hex() if commit else None

    @property
    def seq(self) -> int | None:
        """The number of the commit, once it is made."""
        commit = self._gathering and self._gathering.commit
        return commit.seq if commit else None

    def __enter__(self) -> Self:
        self.begin()
        return self

    def begin(self) -> Gathering:
        """Gather from here on: into the gathering that is active, if one is."""
        if self._gathering is not None:
            msg = "this commit was begun already; call d.commit() or d.transaction() anew"
            raise RuntimeError(msg)
        outer = self._writer.gathering
        if outer:
            outer.comment = outer.comment or self._comment
            outer.author = outer.author or self._author
            self.mark = len(outer.operations)
            self._gathering = self._outer = outer
        else:
            self._gathering = Gathering(self._comment, self._author)
            active = _active.get() or {}
            _active.set({**active, self._writer: self._gathering})
        return self._gathering

    @property
    def joined(self) -> bool:
        """Whether it is part of another one."""
        return self._outer is not None

    def __exit__(self, exc_type: object, exc: object, traceback: object) -> None:
        gathering = self._gathering
        assert gathering is not None  # noqa: S101 - for the type checker
        if self._outer:
            if exc_type is not None:
                gathering.cut(self.mark)
            return
        gathering.open = False
        active = dict(_active.get() or {})
        active.pop(self._writer, None)
        _active.set(active)
        if exc_type is None and gathering.operations:
            self._finish(gathering)

    def _finish(self, gathering: Gathering) -> None:
        values = [value for one in gathering.operations for value in one.values]
        try:
            gathering.commit = self._writer.commit(
                Operation(values, gathering.decide), gathering.comment, gathering.author
            )
        except Changed as changed:
            raise ConflictError([changed.key]) from None


def placeholders(operation: Operation) -> list[Set]:
    """Return changes as those that will set the values, but for the place."""
    return [
        Set(key, 0, generation, 0, b"", encoded.facts, None)
        for key, generation, encoded in operation.values
    ]
