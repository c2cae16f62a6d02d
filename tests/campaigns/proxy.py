"""A proxy before Azurite that mistreats the requests that it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
import threading
from typing import TYPE_CHECKING, NamedTuple, Self

from framing import length

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_LATE = 0.2  # seconds


class Fault(enum.Enum):
    """What may befall a request."""

    LOSE_REQUEST = "the request is lost, and the connection reset"
    LOSE_REPLY = "it is carried out, but the connection reset before the answer"
    CUT_REPLY = "it is carried out, and the answer ends in the middle"
    LATE_REQUEST = "the connection is reset, and the request carried out some time later"
    LATE_REPLY = "the answer takes its time"
    SILENCE = "it is carried out, and never answered, on a connection that stays open"
    TWICE = "it is delivered twice, and the second answer arrives"
    BAD_GATEWAY = "it is carried out, and somebody on the way answers 502"
    BUSY = "it is refused: 503"


class Request(NamedTuple):
    """What a rule is asked about."""

    number: int
    """From 1, since the rule was set."""
    method: str
    target: str


class FaultProxy:
    """A proxy before a server of this machine; it runs within a ``with`` statement.

    It takes a message as a whole before it hands it on.

    Parameters
    ----------
    port : int
        Where the server listens, on 127.0.0.1.

    Attributes
    ----------
    port : int
        Where the proxy listens.
    """

    def __init__(self, port: int) -> None:
        self._upstream = port
        self.port = 0
        self._guard = threading.Lock()
        self._rule: Callable[[Request], Fault | None] | None = None
        self._seen = 0
        self._struck: list[tuple[Request, Fault]] = []
        self._serving: set[asyncio.Task[None] | None] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        """Start it."""
        self._thread.start()
        serving = asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        self._server = asyncio.run_coroutine_threadsafe(serving, self._loop).result()
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it."""

        async def stop() -> None:
            self._server.close()
            while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0.01)  # until the connections are closed

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def obey(self, rule: Callable[[Request], Fault | None] | None = None) -> None:
        """Ask `rule` about each request from now on, and count them anew. None: harm nobody."""
        with self._guard:
            self._rule, self._seen, self._struck = rule, 0, []

    @property
    def seen(self) -> int:
        """How many requests there were since then."""
        return self._seen

    @property
    def struck(self) -> list[tuple[Request, Fault]]:
        """Which of them were harmed, and how."""
        with self._guard:
            return [*self._struck]

    def _judge(self, head: bytes) -> Fault | None:
        method, target, _ = head.decode("latin-1").split(" ", 2)
        with self._guard:
            self._seen += 1
            request = Request(self._seen, method, target)
            fault = self._rule(request) if self._rule else None
            if fault:
                self._struck.append((request, fault))
            return fault

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Else nobody but what it waits for knows the task, and it may be collected as garbage.
        self._serving.add(task := asyncio.current_task())
        try:
            server = await asyncio.open_connection("127.0.0.1", self._upstream)
            with contextlib.closing(server[1]):
                while await self._exchange(reader, writer, *server):
                    pass
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass  # somebody has hung up, or it is all over
        finally:
            writer.transport.abort()
            self._serving.remove(task)

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answers: asyncio.StreamReader,
        server: asyncio.StreamWriter,
    ) -> bool:
        """Pass on one request and its answer; tell whether the connection is still of use."""
        head, request = await _message(reader, 0)
        fault = self._judge(head)
        if fault is Fault.LATE_REQUEST:
            _reset(writer)
            await asyncio.sleep(_LATE)
        if fault is Fault.LOSE_REQUEST:
            _reset(writer)
            return False
        if fault is Fault.BUSY:
            writer.write(_refusal(503, "ServerBusy"))
            return True
        server.write(request)
        empty = head.startswith(b"HEAD ")
        answer = await _answer(answers, empty)
        if fault is Fault.TWICE:
            server.write(request)
            answer = await _answer(answers, empty)
        if fault in {Fault.LOSE_REPLY, Fault.LATE_REQUEST}:
            _reset(writer)
            return False
        if fault is Fault.CUT_REPLY:
            writer.write(answer[: len(answer) * 2 // 3])
            await writer.drain()
            writer.write_eof()
            await reader.read()  # until the client has seen it
            return False
        if fault is Fault.SILENCE:
            await reader.read()  # until the client gives up
            return False
        if fault is Fault.LATE_REPLY:
            await asyncio.sleep(_LATE)
        writer.write(_refusal(502, "") if fault is Fault.BAD_GATEWAY else answer)
        await writer.drain()
        return True


async def _answer(reader: asyncio.StreamReader, empty: bool) -> bytes:
    while True:
        head, answer = await _message(reader, 0, empty)
        if not head.startswith(b"HTTP/1.1 1"):  # else: 100 Continue, and the answer is to come
            return answer


async def _message(
    reader: asyncio.StreamReader, otherwise: int, empty: bool = False
) -> tuple[bytes, bytes]:
    """Return the head of a message, and the message."""
    head = await reader.readuntil(b"\r\n\r\n")
    if empty or head.startswith((b"HTTP/1.1 204", b"HTTP/1.1 304")):
        return head, head
    size = length(head, otherwise)
    if size is not None:
        return head, head + await reader.readexactly(size)
    parts = [head]
    while (line := await reader.readuntil(b"\r\n")) != b"0\r\n":
        parts += [line, await reader.readexactly(int(line.partition(b";")[0], 16) + 2)]
    parts += [line, await reader.readuntil(b"\r\n")]
    return head, b"".join(parts)


def _refusal(status: int, code: str) -> bytes:
    body = f"<Error><Code>{code}</Code></Error>" if code else "<html>Bad Gateway</html>"
    kind = f"x-ms-error-code: {code}\r\nContent-Type: application/xml" if code else "Via: nobody"
    return f"HTTP/1.1 {status} No\r\n{kind}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection by RST, as a broken line does, and not by FIN."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
