"""A dictionary that can be repaired, and moved elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from remotedict.engine.copying import Copy
from remotedict.engine.inspection import Inspection
from remotedict.engine.repair import Repair
from remotedict.features.history import again
from remotedict.features.progress import progress
from remotedict.features.writing import changing
from remotedict.maintained import Maintained
from remotedict.pure.entry import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from collections.abc import Set as AbstractSet

    from remotedict.engine.copying import CopyReport
    from remotedict.engine.core import Engine
    from remotedict.engine.repair import RepairReport
    from remotedict.engine.values import Progress
    from remotedict.features.writing import Writer
    from remotedict.pure.draft import Draft
    from remotedict.pure.records import Change
    from remotedict.pure.state import State
    from remotedict.session import Session


class Mendable(Maintained):
    """A dictionary that can be repaired, and moved elsewhere."""

    _session: Session
    _writer: Writer

    _opener: ClassVar[Callable[..., Any]]
    """What opens a dictionary by its URL."""

    @property
    def _engine(self) -> Engine:
        return self._session.engine()

    def repair(
        self, *, dry_run: bool = False, deep: bool = False, fall_back: bool = False
    ) -> RepairReport:
        """Rebuild the index if it is lost or damaged, or names what is; say what is lost.

        It is made from the segments and checkpoints that are whole and, for what these don't
        tell, from the values, which say themselves whose they are. Nothing is deleted; a damaged
        index is kept under another name. Nothing is written if the index is whole, and all that
        it needs.

        Parameters
        ----------
        dry_run : bool
            Whether to report only.
        deep : bool
            Whether to read all values and check every byte. By default it is only looked whether
            they are there, and long enough.
        fall_back : bool
            Whether a key whose value is gone or damaged becomes again what it was before, if an
            older value is listed and whole: this is a new version. By default such a key stays as
            it is, and reading it raises; set it anew, `revert` or delete it.

        Returns
        -------
        RepairReport
            What was wrong, what was done, and what is lost.

        Raises
        ------
        FormatVersionError
            A newer remotedict has written to it: that one can repair it.
        RuntimeError
            Inside `commit` or `transaction`.

        Notes
        -----
        A rebuilt dictionary has another incarnation: all other handles raise
        DictionaryChangedError, and are to be opened anew. Locks end, those of this handle, too.
        A write that was never acknowledged may come back, and so may a key whose deletion is lost.

        Examples
        --------
        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> d["k"] = 1
        >>> d.repair()
        RepairReport: 1 keys as of commit 1; nothing is wrong
        """
        if self._writer.gathering:
            msg = (
                "repair() can't be part of a commit: call it outside of commit() and transaction()"
            )
            raise RuntimeError(msg)
        engine = self._engine
        engine.check_open()
        with progress(None, "looking", self._session.options.progress, "blob") as done:
            repair = Repair(engine, done, dry_run=dry_run)
            report, index, state = engine.runtime.call(repair.run)
        if index is None or state is None:
            return report
        with progress(len(state), "looking", self._session.options.progress) as done:
            lost, older = engine.runtime.call(
                lambda: _inspected(
                    engine, index.dictionary, state, done, deep=deep, there=repair.unwritten
                )
            )
        if fall_back and older and not dry_run:
            self._fall_back(state, older)
        return replace(
            report,
            lost=lost,
            fallen_back={key: entry.version for key, entry in older.items()} if fall_back else {},
        )

    def export(self, destination: Any, **options: Any) -> CopyReport:
        """Copy the whole dictionary, with its history, to another place.

        What is there already is not copied again: call it once more after an interruption, or to
        bring a copy up to date that nobody has written to.

        Parameters
        ----------
        destination : str, path or RemoteDict
            Where to, as `remotedict.open` takes it, or a dictionary that is open. It must be
            empty, or an older or unfinished copy of this one.
        **options
            To open it with; see `RemoteDict`. Keys are those of this dictionary: bytes are copied
            as they are.

        Returns
        -------
        CopyReport
            What was copied.

        Raises
        ------
        DestinationError
            There is something else at the destination.

        Notes
        -----
        The copy is the state of one moment, also if others write meanwhile. Memory is bounded:
        large values are read and written in pieces. Locks are not copied.

        Examples
        --------
        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> d["k"] = 1
        >>> copied = d.export("memory://exported")
        >>> copied.keys, remotedict.open("memory://exported")["k"]
        (1, 1)
        """
        if isinstance(destination, Mendable):
            return self._copied_to(destination)
        chosen = self._session.options
        keys = {"signing_key": chosen.signing_key, "encryption_key": chosen.encryption_key}
        options = {name: key for name, key in keys.items() if key is not None} | options
        with type(self)._opener(destination, **options) as there:  # noqa: SLF001 - its own
            return self._copied_to(there)

    def _copied_to(self, there: Mendable) -> CopyReport:
        source, target = self._engine, there._engine
        source.check_open()
        target.check_open()
        with progress(None, "copying", self._session.options.progress, "B") as done:
            return source.runtime.call(Copy(source, target, done).run)

    def _fall_back(self, state: State, older: Mapping[str, Entry]) -> None:
        """Give keys their older values, unless somebody has set them meanwhile."""

        def decide(draft: Draft) -> list[Change]:
            return [
                again(key, key, entry)
                for key, entry in older.items()
                if (now := draft.get(key)) and now.generation == _generation(state, key)
            ]

        self._writer.make(changing(decide))


def _generation(state: State, key: str) -> bytes | None:
    entry = state.get(key)
    return entry.generation if entry else None


def _inspected(
    engine: Engine,
    dictionary: bytes,
    state: State,
    done: Progress,
    *,
    deep: bool,
    there: AbstractSet[str],
) -> tuple[dict[str, str], dict[str, Entry]]:
    """Return the keys whose values aren't whole, and what of older ones is.

    What is taken to be `there` isn't looked at.
    """
    inspection = Inspection(engine, dictionary, deep=deep)
    lost = {
        key: why
        for key, why in inspection.run(state, done).items()
        if (entry := state.get(key)) is None or entry.blob(key) not in there
    }
    older: dict[str, Entry] = {}
    for key in lost:
        for item in reversed(state.listed(key)[:-1]):
            if (
                isinstance(item, Entry)
                and item.generation != _generation(state, key)
                and inspection.is_whole(key, item)
            ):
                older[key] = item
                break
    return lost, older
