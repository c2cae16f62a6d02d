"""Moving a dictionary from one store to another."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from remotedict.dictionary import RemoteDict
from remotedict.opening import open as open_

if TYPE_CHECKING:
    import os

    from remotedict.engine.copying import CopyReport

    Where = str | os.PathLike[str] | RemoteDict


def copy(source: Where, destination: Where) -> CopyReport:
    """Copy a dictionary, with its history, to another place; see `RemoteDict.export`.

    Parameters
    ----------
    source, destination : str, path or RemoteDict
        Where it is, and where to: what `open` takes, or a dictionary that is open.

    Returns
    -------
    CopyReport
        What was copied.

    Raises
    ------
    DestinationError
        There is something else at the destination.

    Examples
    --------
    >>> import remotedict
    >>> d = remotedict.open("memory://here")
    >>> d["k"] = 1
    >>> report = remotedict.copy("memory://here", "memory://there")
    >>> remotedict.open("memory://there")["k"]
    1
    """
    with ExitStack() as opened:
        one = source if isinstance(source, RemoteDict) else opened.enter_context(open_(source))
        return one.export(destination)
