"""The framing of HTTP/1.1: where messages begin and end, for proxies."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

_LINE, _HEAD = b"\r\n", b"\r\n\r\n"


class Stream:
    """One direction of a connection: finds the messages in it, and keeps none of them.

    Parameters
    ----------
    began : callable
        Gets each head; returns how many bytes follow, or None if they come in chunks.
    took : callable
        Gets the size of each part of a message.
    ended : callable
        Called after the last part.
    """

    def __init__(
        self,
        began: Callable[[bytes], int | None],
        took: Callable[[int], None],
        ended: Callable[[], None],
    ) -> None:
        self._began, self._took, self._ended = began, took, ended
        self._kept = b""  # of a head, or of a line, that isn't complete
        self._messages = self._parse()
        self._wanted = next(self._messages)

    def feed(self, data: bytes) -> None:
        """Take the next bytes, cut anywhere."""
        at = 0
        while at < len(data):
            if isinstance(self._wanted, int):
                step = min(self._wanted, len(data) - at)
                self._took(step)
                self._wanted -= step
                at += step
                if not self._wanted:
                    self._wanted = self._messages.send(b"")
            else:
                rest = self._kept + data[at:]
                found = rest.find(self._wanted)
                if found < 0:
                    self._kept = rest
                    return
                cut = found + len(self._wanted)
                at += cut - len(self._kept)
                self._kept = b""
                self._wanted = self._messages.send(rest[:cut])

    def _parse(self) -> Generator[bytes | int, bytes, None]:
        """Yield what is wanted: so many bytes, or all up to a mark, which are then sent back."""
        while True:
            head = yield _HEAD
            length = self._began(head)
            self._took(len(head))
            if length is None:
                yield from self._chunks()
            elif length:
                yield length
            self._ended()

    def _chunks(self) -> Generator[bytes | int, bytes, None]:
        size = -1
        while size:
            line = yield _LINE
            self._took(len(line))
            size = int(line.partition(b";")[0], 16)
            if size:
                yield size + len(_LINE)
        while line != _LINE:  # the trailer
            line = yield _LINE
            self._took(len(line))


def length(head: bytes, otherwise: int) -> int | None:
    """Return how many bytes follow a head; None for chunks."""
    if re.search(rb"(?i)\r\ntransfer-encoding:[^\r]*chunked", head):
        return None
    found = re.search(rb"(?i)\r\ncontent-length:[ \t]*(\d+)", head)
    return int(found[1]) if found else otherwise
