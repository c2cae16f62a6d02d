"""What keeps a dictionary in order: taking garbage out, and looking whether all is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remotedict.engine.vacuum import Vacuum
from remotedict.features.progress import progress
from remotedict.features.timing import check_seconds

if TYPE_CHECKING:
    from remotedict.engine.core import Engine
    from remotedict.engine.vacuum import VacuumReport
    from remotedict.session import Session


class Maintained:
    """A dictionary that can be looked after."""

    _session: Session

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
        session = self._session
        engine: Engine = session.engine()
        with progress(None, "vacuuming", session.options.progress, unit="blob") as done:
            return engine.runtime.call(lambda: Vacuum(engine, seconds, dry_run=dry_run).run(done))
