"""Progress: a bar for batches that take more than about a second."""

from __future__ import annotations

import importlib
import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tqdm import TqdmWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_DELAY_SECONDS = 1.0


def _tqdm() -> Any:
    """Return what shows a bar here: in a notebook without widgets it is one of text, as well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)
        return importlib.import_module("tqdm.auto").tqdm


@contextmanager
def progress(
    total: int | None, what: str, wanted: bool | None, unit: str = "key"
) -> Iterator[Callable[[int], None]]:
    """Give what is to be told how many of `total` items are done.

    Parameters
    ----------
    total : int or None
        How many there are, if that is known.
    what : str
        What is done with them.
    wanted : bool or None
        Whether to show a bar; None shows it when stderr is a terminal or a notebook.
    unit : str
        What is counted; "B" for bytes.
    """
    if wanted is None:
        wanted = sys.stderr is not None and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    if not wanted or (total is not None and total <= 1):
        yield lambda _: None
        return
    tqdm = _tqdm()
    scale = {"unit_scale": True, "unit_divisor": 1024} if unit == "B" else {}
    with tqdm(total=total, desc=what, unit=unit, delay=_DELAY_SECONDS, leave=False, **scale) as bar:
        yield bar.update
