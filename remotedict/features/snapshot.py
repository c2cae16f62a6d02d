"""Snapshots: the whole dictionary as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remotedict.features.history import as_of
from remotedict.features.reading import Readable

if TYPE_CHECKING:
    from collections.abc import Callable

    from remotedict.engine.core import Engine
    from remotedict.engine.index import Known


class Snapshot(Readable):
    """A dictionary as of one commit: a read-only mapping that never changes.

    What a key had then is read from the store when it is asked for; once it is no longer kept
    `SnapshotExpiredError` says so. Made by `RemoteDict.snapshot`. Thread-safe.

    Attributes
    ----------
    seq : int
        The number of the commit.
    commit : str
        The id of the commit; empty when it isn't known any more.
    """

    def __init__(
        self, engine: Callable[[], Engine], known: Known, title: str, show_progress: bool | None
    ) -> None:
        self._get_engine = engine
        self._seen = known
        self._title = title
        self._show_progress = show_progress
        self.seq = known.state.seq
        self.commit = known.state.head.hex()

    @property
    def _engine(self) -> Engine:
        return self._get_engine()

    def _known(self, ticket: int | None = None) -> Known:
        del ticket
        self._get_engine()  # says whether the handle was closed
        return self._seen

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle where it is and of which commit; its values stay in the store."""
        return _retaken, (self._get_engine, self.seq, self._title, self._show_progress)

    def __repr__(self) -> str:
        return (
            f"{self._title}; Snapshot of commit {self.seq}; Num elements: {len(self._seen.state)}"
        )


def _retaken(
    engine: Callable[[], Engine], seq: int, title: str, show_progress: bool | None
) -> Snapshot:
    known = engine().now()
    return Snapshot(engine, known.as_of(as_of(known, seq)), title, show_progress)
