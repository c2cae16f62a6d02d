"""A proxy on the loopback that adds a round-trip time, and counts requests and bytes.

It stands before an HTTP server and is a process of its own, so that its work and the client's
don't wait for each other's GIL ::

    with Proxy("127.0.0.1", azurite.port) as proxy:
        proxy.set(rtt=0.020)
        proxy.reset()
        ...  # requests to proxy.port
        print(proxy.counts())

Bytes are held back for half a round trip each way, and that is all: they are neither slowed down nor
put in a row, as on a line without limits. A new connection costs one round trip more, for its
handshake. With ``cold`` a connection also starts slowly, as TCP does when it is new or was idle:
10 segments in the first round trip, twice as many in each one after.

The controls and the counts go through the standard input and output of the proxy's process, a line of
JSON each; the process ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import json
import selectors
import subprocess
import sys
import threading
from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from framing import Stream, length

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType

INITIAL_WINDOW = 10 * 1460
"""Bytes in the first round trip of a TCP connection: 10 segments (RFC 6928)."""

IDLE_SECONDS = 0.2
"""A connection is idle after so long and a round trip: Linux's shortest retransmission time-out."""


# -- the side of those who use it -------------------------------------------------------------


@dataclass
class Counts:
    """What went through the proxy since `Proxy.reset`.

    Attributes
    ----------
    requests : int
        How many requests.
    up, down : int
        Bytes of the requests and of the answers, with their headers.
    connections : int
        How many new connections.
    open : int
        How many of the requests have no answer yet.
    answers : dict of str to int
        How many requests of each method and status, such as ``"GET 304"``.
    """

    requests: int = 0
    up: int = 0
    down: int = 0
    connections: int = 0
    open: int = 0
    answers: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: Counts) -> Counts:
        """Return the counts of both."""
        return Counts(
            self.requests + other.requests,
            self.up + other.up,
            self.down + other.down,
            self.connections + other.connections,
            self.open + other.open,
            dict(Counter(self.answers) + Counter(other.answers)),
        )


@dataclass
class Exchange:
    """A request and its answer: what, how many bytes, and when (in seconds of one clock).

    `start` is when the first byte of the request came, `end` when the last one of the answer went:
    at the server's side of the line, that is.
    """

    method: str
    target: str
    start: float
    status: int = 0
    up: int = 0
    down: int = 0
    end: float = 0.0


class Proxy:
    """A proxy before a server of this machine; it runs within a ``with`` statement.

    Parameters
    ----------
    host, port : str, int
        Where the server listens.

    Attributes
    ----------
    port : int
        Where the proxy listens, on 127.0.0.1.
    """

    def __init__(self, host: str, port: int) -> None:
        self._upstream = [host, str(port)]
        self.port = 0

    def __enter__(self) -> Self:
        """Start it."""
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), *self._upstream],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = self._answer()["port"]
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it."""
        self._process.communicate(timeout=10)

    def set(self, *, rtt: float = 0.0, cold: bool = False) -> None:
        """Set the round-trip time in seconds, and whether idle connections start slowly."""
        self._ask({"rtt": rtt, "cold": cold})

    def reset(self) -> None:
        """Begin to count anew."""
        self._ask({"reset": True})

    def counts(self) -> Counts:
        """Return what went through since `reset`."""
        return Counts(**self._ask({"read": "counts"}))

    def exchanges(self) -> list[Exchange]:
        """Return each request since `reset`, in the order of their first bytes."""
        return [Exchange(**each) for each in self._ask({"read": "exchanges"})]

    def _ask(self, command: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            msg = "the proxy has ended"
            raise RuntimeError(msg)
        return json.loads(line)


# -- HTTP framing -----------------------------------------------------------------------------

_TO_THE_END = 1 << 62


class _Framing:
    """The requests and answers of a connection, as they pass."""

    def __init__(self, log: Callable[[Exchange], None], clock: Callable[[], float]) -> None:
        self._log, self._clock = log, clock
        self._asked: deque[Exchange] = deque()  # without an answer yet
        self._newest = Exchange("", "", 0.0)
        self._interim = False
        self.up = Stream(self._request, self._sent, lambda: None)
        self.down = Stream(self._response, self._received, self._answered)

    def close(self) -> None:
        """Take the end of the connection: of answers of no stated length, and of all hope."""
        for each in self._asked:
            each.end = self._clock()
        self._asked.clear()

    def _request(self, head: bytes) -> int | None:
        method, target, _ = head.split(b" ", 2)
        self._newest = Exchange(method.decode(), target.decode(), self._clock())
        self._asked.append(self._newest)
        self._log(self._newest)
        return length(head, 0)

    def _sent(self, size: int) -> None:
        self._newest.up += size

    def _response(self, head: bytes) -> int | None:
        status = int(head.split(b" ", 2)[1])
        self._interim = status < 200
        if not self._asked:  # a server that closes an idle connection may say why
            self._asked.append(Exchange("", "", self._clock()))
        self._asked[0].status = status
        if self._interim or status in {204, 304} or self._asked[0].method == "HEAD":
            return 0
        return length(head, _TO_THE_END)

    def _received(self, size: int) -> None:
        self._asked[0].down += size

    def _answered(self) -> None:
        if not self._interim:  # else 100 Continue, and the answer is still to come
            self._asked.popleft().end = self._clock()


# -- the line ---------------------------------------------------------------------------------


@dataclass
class _Line:
    """What all connections share: how long the line is, and what went through it."""

    loop: asyncio.AbstractEventLoop
    rtt: float = 0.0
    cold: bool = False
    connections: int = 0
    exchanges: list[Exchange] = field(default_factory=list)

    def log(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)

    def obey(self, command: dict[str, Any]) -> Any:
        if "rtt" in command:
            self.rtt, self.cold = command["rtt"], command["cold"]
        elif "reset" in command:
            self.exchanges, self.connections = [], 0
        elif command["read"] == "exchanges":
            return [asdict(each) for each in self.exchanges]
        else:
            answers = Counter(f"{each.method} {each.status}" for each in self.exchanges)
            return asdict(
                Counts(
                    requests=len(self.exchanges),
                    up=sum(each.up for each in self.exchanges),
                    down=sum(each.down for each in self.exchanges),
                    connections=self.connections,
                    open=sum(not each.end for each in self.exchanges),
                    answers=dict(answers),
                )
            )
        return None


class _Window:
    """When the bytes of one direction may leave, if the connection starts slowly."""

    def __init__(self) -> None:
        self._size = self._left = 0
        self._round = self._last = float("-inf")

    def portions(self, data: bytes, now: float, rtt: float) -> Generator[tuple[float, bytes]]:
        """Yield the parts of `data`, each with the time at which it leaves."""
        if now - self._last > IDLE_SECONDS + rtt:
            self._size = self._left = INITIAL_WINDOW
            self._round = now
        elif now - self._round > rtt:
            self._grow(now)
        self._last = now
        while data:
            if not self._left:
                self._grow(max(now, self._round + rtt))
            part, data = data[: self._left], data[self._left :]
            self._left -= len(part)
            yield max(now, self._round), part

    def _grow(self, now: float) -> None:
        if not self._left:  # A window that isn't used doesn't grow.
            self._size *= 2
        self._left, self._round = self._size, now


class _Way:
    """One direction of a connection: hands on each piece half a round trip after it came."""

    def __init__(self, line: _Line, not_before: float = 0.0) -> None:
        self._line = line
        self._not_before = not_before
        self._window = _Window()
        self._waiting: deque[tuple[float, bytes | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._out: asyncio.Transport | None = None

    def open(self, out: asyncio.Transport) -> None:
        """Begin to hand on to `out`."""
        self._out = out
        self._deliver()

    def send(self, data: bytes | None) -> None:
        """Take a piece, or None for the end."""
        now = self._line.loop.time()
        if data is not None and self._line.cold:
            for when, part in self._window.portions(data, now, self._line.rtt):
                self._add(when + self._line.rtt / 2, part)
        else:
            self._add(now + self._line.rtt / 2, data)

    def _add(self, when: float, data: bytes | None) -> None:
        earliest = self._waiting[-1][0] if self._waiting else self._not_before
        when = max(when, earliest)
        self._waiting.append((when, data))
        if self._timer is None and self._out is not None:
            self._timer = self._line.loop.call_at(when, self._deliver)

    def _deliver(self) -> None:
        assert self._out is not None
        self._timer = None
        while self._waiting:
            when, data = self._waiting[0]
            if when > self._line.loop.time():
                self._timer = self._line.loop.call_at(when, self._deliver)
                return
            self._waiting.popleft()
            if data is None:
                self._out.close()
            else:
                self._out.write(data)


class _End(asyncio.Protocol):
    """One end of a connection: what comes in is counted, and goes out at the other."""

    def __init__(self, way: _Way, stream: Stream, framing: _Framing) -> None:
        self._way, self._stream, self._framing = way, stream, framing

    def data_received(self, data: bytes) -> None:
        self._stream.feed(data)
        self._way.send(data)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._framing.close()
        self._way.send(None)


class _Client(_End):
    """The client's end; it opens the server's."""

    def __init__(self, line: _Line, host: str, port: int) -> None:
        self._line, self._host, self._port = line, host, port
        framing = _Framing(line.log, line.loop.time)
        # The handshake: the client's first bytes come a round trip later than on an open one.
        way = _Way(line, not_before=line.loop.time() + 1.5 * line.rtt)
        super().__init__(way, framing.up, framing)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._line.connections += 1
        self._opening = self._line.loop.create_task(self._open(transport))

    async def _open(self, client: asyncio.Transport) -> None:
        back = _Way(self._line)
        back.open(client)
        try:
            server, _ = await self._line.loop.create_connection(
                lambda: _End(back, self._framing.down, self._framing), self._host, self._port
            )
        except OSError:
            client.abort()
        else:
            self._way.open(server)


async def _serve(host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    line = _Line(loop)
    server = await loop.create_server(
        lambda: _Client(line, host, port), "127.0.0.1", 0, backlog=1024
    )
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    stop = asyncio.Event()

    def obey(text: str) -> None:
        print(json.dumps(line.obey(json.loads(text))), flush=True)

    def listen() -> None:
        for text in sys.stdin:
            loop.call_soon_threadsafe(obey, text)
        loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=listen, daemon=True).start()
    await stop.wait()


def main(host: str, port: str) -> None:
    """Serve until the standard input ends."""
    # select() waits by the microsecond, epoll_wait() by the millisecond, which it rounds up.
    with asyncio.Runner(
        loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
    ) as runner:
        runner.run(_serve(host, int(port)))


if __name__ == "__main__":
    main(*sys.argv[1:])
