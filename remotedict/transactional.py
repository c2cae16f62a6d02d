"""Several writes as one: commits, transactions, and what tries again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remotedict.engine.runtime import Signal
from remotedict.errors import ConflictError, VersionConflictError
from remotedict.features.timing import check_timeout
from remotedict.features.transaction import Transaction
from remotedict.pure.naming import check_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from remotedict.features.writing import Gather, Writer
    from remotedict.session import Session

_MISSING: Any = object()
_FIRST_PAUSE = 0.01
_LAST_PAUSE = 1.0


class Transactional:
    """A dictionary whose writes can be gathered, and made to depend on what was read."""

    _session: Session
    _writer: Writer

    def commit(self, comment: str = "", *, author: str | None = None) -> Gather:
        """Return a context in which all writes of this thread or task are one commit.

        They can be seen, also in this dictionary, once it ends; an exception drops them. So
        ``d["n"] += 1`` twice adds 1: use `transaction` to read what is written inside.

        Parameters
        ----------
        comment : str
            Why; for the history.
        author : str, optional
            Who, if not the `author` of this handle.

        Raises
        ------
        ConflictError
            At the end: what was popped, say, has been changed by somebody else.
        KeyNotFoundError, VersionConflictError
            At once, or at the end if somebody else came in between.

        Examples
        --------
        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> with d.commit(comment="first results", author="nightly-job"):
        ...     d["loss"] = 0.1
        ...     d["model"] = "tree"
        >>> d.history()[["key", "author", "comment"]].values.tolist()
        [['model', 'nightly-job', 'first results'], ['loss', 'nightly-job', 'first results']]
        """
        return self._writer.gather(*_signed(comment, author))

    def transaction(self, comment: str = "", *, author: str | None = None) -> Transaction:
        """Return a context that reads one state, and writes only if what it read still holds.

        Read from what the context gives: what is read from the dictionary itself isn't checked.
        Inside another `transaction` or `commit` of this thread or task it joins that one.

        Parameters
        ----------
        comment, author
            As for `commit`.

        Raises
        ------
        ConflictError
            At the end: a key that was read has changed. Nothing was written; `run` tries again.

        Examples
        --------
        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> d["from", "to"] = 10, 0
        >>> with d.transaction(comment="a transfer") as t:
        ...     t["from"] -= 3
        ...     t["to"] += 3
        >>> d[["from", "to"]]
        [7, 3]
        """
        gather = self._writer.gather(*_signed(comment, author))
        return Transaction(self._session.engine, self._writer, gather)

    def run(
        self,
        fn: Callable[[Transaction], Any],
        *,
        timeout: float | None = None,
        comment: str = "",
        author: str | None = None,
    ) -> Any:
        """Run `fn` in a transaction, again and again until there is no conflict.

        Parameters
        ----------
        fn : callable
            Is given the `Transaction`. It may be called several times.
        timeout : float, optional
            Seconds after which a conflict is raised after all; by default the handle's.
        comment, author
            As for `commit`.

        Returns
        -------
        object
            What `fn` returned.

        Examples
        --------
        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> d["a", "b"] = 1, 2
        >>> def swap(t):
        ...     t["a", "b"] = t["b"], t["a"]
        >>> d.run(swap)
        >>> d[["a", "b"]]
        [2, 1]
        """
        limit = check_timeout(timeout)
        runtime = self._session.engine().runtime
        deadline = runtime.monotonic() + (self._session.options.timeout if limit is None else limit)
        pause = _FIRST_PAUSE
        while True:
            transaction = self.transaction(comment=comment, author=author)
            try:
                with transaction as t:
                    return fn(t)
            except VersionConflictError:
                raise  # fn has named a version; it would do so again
            except ConflictError:
                if self._writer.gathering or runtime.monotonic() + pause > deadline:
                    raise
            runtime.wait(Signal(), runtime.jitter(pause))
            pause = min(pause * 2, _LAST_PAUSE)

    def modify(
        self,
        key: str,
        fn: Callable[[Any], Any],
        *,
        default: Any = _MISSING,
        timeout: float | None = None,
        comment: str = "",
        author: str | None = None,
    ) -> Any:
        """Set a key to what `fn` makes of its value; nobody's write in between is lost.

        Parameters
        ----------
        key : str
            The key.
        fn : callable
            Is given the value, and returns the new one (not None, as ``list.append`` does). It
            may be called several times.
        default : object, optional
            What it is given if the key isn't there.
        timeout, comment, author
            As for `run`.

        Returns
        -------
        object
            The new value.

        Examples
        --------
        >>> import remotedict
        >>> d = remotedict.MemoryDictionary()
        >>> d.modify("n", lambda n: n + 1, default=0)
        1
        """
        check_key(key)

        def change(t: Transaction) -> Any:
            old = t[key] if default is _MISSING else t.get(key, default)
            new = t[key] = fn(old)
            return new

        return self.run(change, timeout=timeout, comment=comment, author=author)


def _signed(comment: Any, author: Any) -> tuple[str, str | None]:
    """Return what a commit is signed with; raise TypeError if it can't be."""
    if not isinstance(comment, str):
        msg = f"comment= must be a str, not {type(comment).__name__}"
        raise TypeError(msg)
    if not isinstance(author, str | None):
        msg = f"author= must be a str, not {type(author).__name__}"
        raise TypeError(msg)
    return comment, author
