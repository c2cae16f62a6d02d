"""Where a campaign takes place."""

from __future__ import annotations

import atexit
import contextlib
import functools
import tempfile
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from azurite import Azurite
from campaigns.proxy import FaultProxy
from workers import Where

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = ("local", "azure")


@dataclass
class Site:
    """A kind of store, and how to get at it.

    Attributes
    ----------
    proxy : FaultProxy or None
        What all handles of `fresh` go through, on Azurite.
    """

    kind: str
    root: str
    connection_string: str | None = None
    proxy: FaultProxy | None = None

    def fresh(self) -> Where:
        """Return a place where no dictionary is yet."""
        name = f"t{uuid.uuid4().hex}"
        place = name if self.kind == "azure" else str(Path(self.root, name))
        return Where(self.kind, place, self.connection_string)

    def through_proxy(self, where: Where) -> Where:
        """Return the same place, by way of the proxy."""
        assert self.proxy
        assert self.connection_string
        port = self.connection_string.rpartition("127.0.0.1:")[2].partition("/")[0]
        way = self.connection_string.replace(f":{port}/", f":{self.proxy.port}/")
        return replace(where, connection_string=way)


@contextlib.contextmanager
def site(kind: str) -> Iterator[Site]:
    """Yield a site of a kind; all that is there goes at the end."""
    with tempfile.TemporaryDirectory(prefix="campaign-") as root, contextlib.ExitStack() as stack:
        if kind == "local":
            yield Site(kind, root)
            return
        azurite = _azurite()
        proxy = stack.enter_context(FaultProxy(azurite.port))
        yield Site(kind, root, azurite.connection_string, proxy)


@functools.cache
def _azurite() -> Azurite:
    azurite = Azurite()
    azurite.start()
    atexit.register(azurite.stop)
    return azurite
