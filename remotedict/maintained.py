"""What keeps a dictionary in order: taking garbage out, and looking whether all is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remotedict.engine.rewrite import Rewrite
from remotedict.engine.vacuum import Vacuum
from remotedict.engine.verify import Verification
from remotedict.errors import KeyNotFoundError
from remotedict.features.progress import progress
from remotedict.features.timing import check_seconds
from remotedict.pure.entry import Entry
from remotedict.pure.naming import check_key
from remotedict.pure.records import Change, Forget, Range

if TYPE_CHECKING:
    from remotedict.engine.core import Engine
    from remotedict.engine.vacuum import VacuumReport
    from remotedict.engine.verify import VerifyReport
    from remotedict.features.writing import Writer
    from remotedict.pure.draft import Draft
    from remotedict.session import Parts, Session


class Maintained:
    """A dictionary that can be looked after, and of which keys can be removed for good."""

    _session: Session
    _writer: Writer

    @property
    def _engine(self) -> Engine:
        return self._session.engine()

    @property
    def _parts(self) -> Parts:
        return self._session.parts()

    def forget(self, key: str) -> None:
        """Remove a key with all its history and bytes, for good; its versions begin anew.

        Every other write keeps what was there for a while, and for ever with a history. This is
        for those who must not keep it. It reads all small values and commits of the dictionary,
        and writes anew what lies in one blob with the key's: it takes its time. Copies made by
        `copy_item` are keys of their own, and stay. Who forgot the key and when stays known. So
        does what other processes have in memory or in their `cache_dir`, until they look again,
        and what the store itself keeps: backups, say, or blobs that it deletes softly. And what
        another process was just laying out anew, to find that it comes too late, is garbage that
        nothing names, and stays as long as other garbage.

        Raises
        ------
        KeyNotFoundError
            The key was never set.
        RuntimeError
            Inside `commit` or `transaction`.

        Examples
        --------
        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> d["name"] = "Ann"
        >>> d.forget("name")
        >>> d.version("name"), d.history("name")["kind"].tolist()
        (0, ['forget'])
        """
        check_key(key)
        if self._writer.gathering:
            msg = "forget() is a commit of its own: call it outside of commit() and transaction()"
            raise RuntimeError(msg)

        def decide(draft: Draft) -> list[Change]:
            item = draft.item(key)
            if item is None:
                raise KeyNotFoundError([key])
            places.clear()
            places.extend(
                one.range(key)
                for one in draft.listed(key)
                if isinstance(one, Entry) and not isinstance(one.place, bytes)
            )
            if item.version:
                return [Forget(key)]
            before.append(item.stamp.seq)
            return []

        engine, before, places = self._engine, list[int](), list[Range]()
        commit = self._parts.locks.commit(decide)
        seq = commit.seq if commit else before[-1]  # again: not all may have been done then
        with progress(1, "searching", self._session.options.progress) as done:
            engine.runtime.call(lambda: Rewrite(engine, key, seq, places).run(done))

    def vacuum(self, *, grace: float = 86_400.0, dry_run: bool = False) -> VacuumReport:
        """Delete what nothing needs any more; return what was deleted.

        Replaced values whose `retention` is over, uploads whose writer died, segments and
        checkpoints that others have taken the place of. It happens by itself, in small steps,
        beside checkpoints; this does it at once, and to the end. It may be interrupted, and run
        while others read and write.

        Parameters
        ----------
        grace : float
            Seconds for which anything stays at the least since its upload began, by the store's
            own times; a day by default. Uploads that take longer may have to begin anew. What was
            uploaded since the vacuum before this one stays as well, whatever the grace.
        dry_run : bool
            Whether to change nothing, and only say what would be deleted now.

        Returns
        -------
        VacuumReport
            What was deleted and what was kept, by kind.

        Raises
        ------
        AccessDeniedError
            These credentials may not list or delete blobs.

        Examples
        --------
        >>> import remotedict
        >>> d = remotedict.MemoryDictionary(inline_bytes=0, retention=0)
        >>> for n in range(3):
        ...     d["k"] = n
        >>> report = d.vacuum(grace=0)
        >>> report.deleted["values"].blobs, d["k"]
        (2, 2)
        """
        seconds = check_seconds("grace", grace)
        engine = self._engine
        with progress(None, "vacuuming", self._session.options.progress, unit="blob") as done:
            return engine.runtime.call(lambda: Vacuum(engine, seconds, dry_run=dry_run).run(done))

    def verify(self, *, deep: bool = False) -> VerifyReport:
        """Look whether all that the dictionary names is there, and whole; return what isn't.

        It raises nothing for what is damaged, and changes nothing. Others may write meanwhile.

        Parameters
        ----------
        deep : bool
            Whether to read everything, past versions as well, and check every checksum. By default
            only that the blobs are there, and have the right size: that takes a listing.

        Returns
        -------
        VerifyReport
            `ok`, and `findings`: which blob is missing or damaged, and which keys that is about.

        Raises
        ------
        AccessDeniedError
            These credentials may not list blobs.
        FormatVersionError
            A newer remotedict wrote the index: that is no damage.

        Examples
        --------
        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> d["k"] = "value"
        >>> d.verify(deep=True).ok
        True
        """
        engine = self._engine
        with progress(None, "verifying", self._session.options.progress, unit="blob") as done:
            return engine.runtime.call(lambda: Verification(engine, deep=deep).run(done))
