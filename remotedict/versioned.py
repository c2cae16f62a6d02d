"""What a dictionary knows of its past, and what it tells of changes as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remotedict.features import history as past
from remotedict.features.mirror import Mirror
from remotedict.features.moment import resolve
from remotedict.features.reading import Readable
from remotedict.features.snapshot import Snapshot
from remotedict.features.timing import check_timeout
from remotedict.features.watch import Poll, Subscription, Watch
from remotedict.features.writing import changing
from remotedict.pure.naming import check_key

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    import pandas as pd

    from remotedict.engine.core import Engine
    from remotedict.engine.index import Known
    from remotedict.features.events import Event
    from remotedict.features.writing import Writer
    from remotedict.pure.entry import Entry
    from remotedict.session import Session

    Moment = int | str | datetime | Event | Snapshot

_POLL = (0.2, 5.0)


class Versioned(Readable):
    """A dictionary whose past can be read, and whose changes can be followed."""

    _session: Session
    _writer: Writer

    @property
    def _engine(self) -> Engine:
        return self._session.engine()

    def _known(self, ticket: int | None = None) -> Known:
        return self._engine.known() if ticket is None else self._engine.since(ticket)

    def _renew(self) -> bool:
        self._engine.now()
        return True

    # -- the past ---------------------------------------------------------------------------

    @property
    def history_policy(self) -> str | int:
        """Which versions of a key are kept: ``"none"`` (the newest), ``"all"``, or how many.

        It is stored with the dictionary, and all who write to it obey it. Assign to change it:
        from then on. Versions that the new policy doesn't keep go once `retention` is over.

        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> d.history_policy
        'none'
        >>> d.history_policy = "all"
        """
        return past.policy(self._known().index)

    @history_policy.setter
    def history_policy(self, policy: str | int) -> None:
        kept = past.versions_kept(policy)
        engine = self._engine
        engine.swap(lambda index: past.keeping(index, kept), ticket=engine.index.ticket())

    def history(self, key: str | None = None) -> pd.DataFrame:
        """Return who changed what, when and why, of a key or of all: newest first.

        Parameters
        ----------
        key : str, optional
            The key; it may have been deleted since.

        Returns
        -------
        DataFrame
            A row for each change, with columns key, kind (set, delete, metadata, lock, unlock,
            forget), version, author, comment, time, size (bytes in the store), commit (its id)
            and seq (its number).

        Notes
        -----
        It goes back as far as commits are kept: a day at the least, or to the beginning with
        history ``"all"``; and, for sets, deletions and metadata, as far as versions are kept.

        Examples
        --------
        >>> import remotedict
        >>> d = remotedict.MemoryDictionary(author="ann")
        >>> d["k"] = 1
        >>> del d["k"]
        >>> d.history("k")[["kind", "version", "author"]].values.tolist()
        [['delete', 2, 'ann'], ['set', 1, 'ann']]
        """
        if key is not None:
            check_key(key)
        return past.frame(self._engine, self._known(), key)

    def at(self, key: str, version: int) -> Any:
        """Return the value that `key` had as its version `version`.

        Raises
        ------
        KeyNotFoundError
            The key never had this version, or was deleted by it.
        SnapshotExpiredError
            It is no longer kept.

        Examples
        --------
        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> d["k"] = "old"
        >>> d["k"] = "new"
        >>> d.at("k", version=1)
        'old'
        """
        check_key(key)
        version = past.check_version(version)
        engine, known = self._engine, self._known()
        entry = self._version(known, key, version)
        return engine.read_entry(key, entry, known)

    def _version(self, known: Known, key: str, version: int) -> Entry:
        return past.version_of(key, version, known.state.listed(key), past.policy(known.index))

    def snapshot(self, at: Moment | None = None) -> Snapshot:
        """Return the whole dictionary as it was, or as it is now, as a read-only mapping.

        Parameters
        ----------
        at : int, str, datetime or Event, optional
            As of which commit: its number, its id, a time (or ISO text; without a zone it is
            local) for the newest commit up to then, or an event. By default the newest one.

        Raises
        ------
        UnknownCommitError
            There is no such commit, or none so early.
        SnapshotExpiredError
            Versions that were current then have been dropped: of a single key is enough.

        Examples
        --------
        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> d["k"] = 1
        >>> before = d.snapshot()
        >>> d.clear()
        >>> before["k"], len(d)
        (1, 0)
        """
        known = self._engine.now()
        seq = known.state.seq if at is None else self._seq(at, known)
        seen = known.as_of(past.as_of(known, seq))
        return Snapshot(
            self._session.engine,
            seen,
            self._session.title(),
            self._session.options.progress,
        )

    def _seq(self, at: Moment, known: Known) -> int:
        return at.seq if isinstance(at, Snapshot) else resolve(self._engine, known, at)

    def diff(self, a: Moment, b: Moment | None = None) -> pd.DataFrame:
        """Return which keys differ between two moments, and how.

        Parameters
        ----------
        a, b : int, str, datetime, Event or Snapshot
            As for `snapshot`; `b` is now by default.

        Returns
        -------
        DataFrame
            A row for each key that differs, with columns change (added, removed, changed,
            metadata), version_a, version_b, and the author who made it what it is in `b`.

        Examples
        --------
        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> d["k"] = 1
        >>> d["l"] = 2
        >>> d.diff(1)["change"].to_dict()
        {'l': 'added'}
        """
        known = self._engine.now()
        seqs = [known.state.seq if at is None else self._seq(at, known) for at in (a, b)]
        one, other = (past.as_of(known, seq) for seq in seqs)
        return past.difference(one, other)

    def revert(self, key: str, version: int) -> None:
        """Make the value that `key` had as an old version its newest one.

        This is a new version; the bytes stay where they are. Metadata stays as it is: that of a
        key that was deleted meanwhile is gone.

        Raises
        ------
        KeyNotFoundError
            The key never had this version, or was deleted by it.
        SnapshotExpiredError
            It is no longer kept.

        Examples
        --------
        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> d["k"] = "old"
        >>> d["k"] = "new"
        >>> d.revert("k", version=1)
        >>> d["k"], d.version("k")
        ('old', 3)
        """
        check_key(key)
        version = past.check_version(version)

        def decide(draft: Any) -> Any:
            known = self._engine.index.known
            return past.reverting(draft, key, version, past.policy(known.index if known else None))

        self._writer.make(changing(decide), early=True)

    # -- what comes -------------------------------------------------------------------------

    def watch(
        self,
        since: Moment | None = None,
        *,
        timeout: float | None = None,
        poll: tuple[float, float] = _POLL,
    ) -> Watch:
        """Return an iterator over all changes, in the order of the commits, as they come.

        Parameters
        ----------
        since : int, str, datetime, Event or Snapshot, optional
            After which commit: its number (0 for all), id or time; or after which event. By
            default after the newest one.
        timeout : float, optional
            Seconds after which it ends; 0 ends it with what has happened until now. By default
            it ends by ``stop()`` only.
        poll : tuple of float
            The least and the most seconds between two looks; they grow while nothing happens.

        Raises
        ------
        HistoryGapError
            Commits since then are no longer kept.
        UnknownCommitError
            There is no such commit.
        StoreUnavailableError
            While iterating: the time is up, and the store doesn't answer.

        Examples
        --------
        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> d["k"] = 1
        >>> del d["k"]
        >>> [(event.kind, event.key, event.version) for event in d.watch(since=0, timeout=0)]
        [('set', 'k', 1), ('delete', 'k', 2)]
        """
        if isinstance(since, Snapshot):
            since = since.seq
        seconds = check_timeout(timeout)
        return Watch(self._session.engine, since, timeout=seconds, poll=Poll.of(poll))

    def on_change(
        self,
        fn: Callable[[Event], Any],
        key: str = "*",
        *,
        since: Moment | None = None,
        poll: tuple[float, float] = _POLL,
    ) -> Subscription:
        """Call `fn` with each change of the keys that match, in a background thread.

        Parameters
        ----------
        fn : callable
            Is given an `Event`. What it raises is logged, and hurts nobody.
        key : str
            A key, or a shell pattern as for `glob`.
        since, poll
            As for `watch`.

        Returns
        -------
        Subscription
            Its ``stop()`` ends it; so does closing the dictionary.
        """
        if not callable(fn):
            msg = f"on_change() calls a function; {type(fn).__name__} isn't one"
            raise TypeError(msg)
        check_key(key)
        subscription = Subscription(self.watch(since, poll=poll), fn, key)
        self._session.follow(subscription)
        return subscription

    def mirror(self, *, prefetch: bool = False, poll: tuple[float, float] = _POLL) -> Mirror:
        """Return a read-only mapping that is kept current in the background.

        Reading it never asks the index, and on a lost connection it serves what it has.

        Parameters
        ----------
        prefetch : bool
            Whether it holds all values in memory (as stored), so that no read needs the network.
        poll : tuple of float
            The least and the most seconds between two looks; they grow while nothing happens.

        Examples
        --------
        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> with d.mirror(prefetch=True) as m:
        ...     d["k"] = 1
        ...     m.wait_for("k", timeout=10), m["k"]
        (1, 1)
        """
        mirror = Mirror(
            self._session.engine,
            self._session.title(),
            prefetch=prefetch,
            poll=Poll.of(poll),
            show_progress=self._session.options.progress,
        )
        self._session.follow(mirror)
        return mirror
