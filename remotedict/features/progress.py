"""Progress: a bar for batches that take more than about a second."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_DELAY_SECONDS = 1.0


@contextmanager
def progress(total: int, what: str, wanted: bool | None) -> Iterator[Callable[[int], None]]:
    """Give what is to be told how many of `total` items are done.

    Parameters
    ----------
    total : int
        How many there are.
    what : str
        What is done with them.
    wanted : bool or None
        Whether to show a bar; None shows it when stderr is a terminal or a notebook.
    """
    if wanted is None:
        wanted = sys.stderr is not None and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    if not wanted or total <= 1:
        yield lambda _: None
        return
    with tqdm(total=total, desc=what, unit="key", delay=_DELAY_SECONDS, leave=False) as bar:
        yield bar.update
