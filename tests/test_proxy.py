"""The benchmarks' proxy: it counts exactly, delays at least, and changes nothing."""

from __future__ import annotations

import http.client
import http.server
import random
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from proxy import INITIAL_WINDOW, Proxy

BODY = random.Random(1).randbytes(3_000_000)


class Handler(http.server.BaseHTTPRequestHandler):
    """Stores bodies by path, and answers in all the ways that HTTP/1.1 has."""

    protocol_version = "HTTP/1.1"
    stored: dict[str, bytes] = {}  # noqa: RUF012 - what a server keeps

    def do_PUT(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline() != b"\r\n":
                pass
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self.stored[self.path] = body
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        if self.path in {"/204", "/304"}:
            self.send_response(int(self.path[1:]))
            self.end_headers()
            return
        body = self.stored.get(self.path.partition("?")[0], b"")
        self.send_response(200)
        if "chunks" in self.path:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(0, len(body), 100_000):
                part = body[at : at + 100_000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.write(b"0\r\nX-Trailer: 1\r\n\r\n")
        elif "close" in self.path:
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", "12345")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture
def proxy(server):
    with Proxy("127.0.0.1", server) as proxy:
        yield proxy


@pytest.fixture
def connection(proxy):
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=60)
    yield connection
    connection.close()


def ask(connection, method, path, body=None, **headers):
    connection.request(method, path, body, headers, encode_chunked=True)
    return connection.getresponse().read()


def raw(proxy, request, heads=1, body=b""):
    """Send pieces of bytes; return the answers, which have so many heads, and the last a body."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=60) as connection:
        for piece in request:
            connection.sendall(piece)
            time.sleep(0.02)
        answer = b""
        while answer.count(b"\r\n\r\n") < heads or not answer.endswith(body):
            received = connection.recv(65536)
            assert received
            answer += received
        return answer


def test_bodies_of_all_framings_come_through_unchanged_and_are_counted(proxy, connection):
    ask(connection, "PUT", "/a", BODY)
    pieces = iter([BODY[:5], BODY[5:70_000], BODY[70_000:]])
    ask(connection, "PUT", "/b", pieces, **{"Transfer-Encoding": "chunked"})
    assert Handler.stored["/a"] == Handler.stored["/b"] == BODY
    for path in ("/a", "/b?chunks", "/a?close"):
        assert ask(connection, "GET", path) == BODY
    for path in ("/304", "/204"):
        assert ask(connection, "GET", path) == b""
    assert ask(connection, "HEAD", "/a") == b""
    counts = proxy.counts()
    assert (counts.requests, counts.open, counts.connections) == (8, 0, 2)
    answers = {"PUT 201": 2, "GET 200": 3, "GET 304": 1, "GET 204": 1, "HEAD 200": 1}
    assert counts.answers == answers
    assert [each.target for each in proxy.exchanges()] == [
        *("/a", "/b", "/a", "/b?chunks", "/a?close", "/304", "/204", "/a")
    ]


def test_every_byte_is_counted_once(proxy):
    request = b"PUT /x HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"
    Handler.stored["/x"] = b"hello"
    answer = raw(proxy, [request, b"GET /x HTTP/1.1\r\n\r\n"], 2, b"hello")
    first, second = proxy.exchanges()
    assert (first.up, second.up) == (len(request), len(b"GET /x HTTP/1.1\r\n\r\n"))
    assert first.down + second.down == len(answer)
    assert first.down == answer.index(b"\r\n\r\n") + 4
    counts = proxy.counts()
    assert (counts.up, counts.down) == (first.up + second.up, len(answer))


def test_a_head_may_come_byte_by_byte(proxy):
    request = b"GET /304 HTTP/1.1\r\n\r\n"
    raw(proxy, [request[at : at + 1] for at in range(len(request))])
    assert [(each.up, each.status) for each in proxy.exchanges()] == [(len(request), 304)]


def test_an_interim_answer_is_part_of_the_request_that_it_answers(proxy):
    head = b"PUT /y HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    answer = raw(proxy, [head, b"hello"], 2)
    assert answer.startswith(b"HTTP/1.1 100 ")
    assert [(each.status, each.down) for each in proxy.exchanges()] == [(201, len(answer))]


def test_reset_begins_anew(proxy, connection):
    ask(connection, "GET", "/304")
    proxy.reset()
    assert (proxy.counts().requests, proxy.counts().up, proxy.counts().connections) == (0, 0, 0)
    ask(connection, "GET", "/304")
    assert proxy.counts().requests == 1


def test_a_request_takes_a_round_trip_and_the_first_one_two(proxy, connection):
    proxy.set(rtt=0.1)
    for trips in (2, 1, 1):
        began = time.monotonic()
        ask(connection, "GET", "/304")
        assert time.monotonic() - began >= trips * 0.1


def test_requests_of_several_connections_wait_together(proxy):
    proxy.set(rtt=1.0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: raw(proxy, [b"GET /304 HTTP/1.1\r\n\r\n"]), range(8)))
    exchanges = proxy.exchanges()
    assert max(each.start for each in exchanges) < min(each.end for each in exchanges)


def test_a_cold_connection_needs_a_round_trip_for_each_doubling(proxy, connection):
    Handler.stored["/z"] = BODY[: 5 * INITIAL_WINDOW]
    ask(connection, "GET", "/z")
    proxy.set(rtt=0.3, cold=True)
    time.sleep(0.6)  # It is idle, so its window is closed again.
    began = time.monotonic()
    assert ask(connection, "GET", "/z") == Handler.stored["/z"]
    # 1 and 2 windows go in the first two round trips, and the rest in the third.
    assert time.monotonic() - began >= 3 * 0.3


def test_a_server_that_has_gone_closes_the_connection():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with Proxy("127.0.0.1", port) as proxy, pytest.raises((OSError, http.client.HTTPException)):
        ask(http.client.HTTPConnection("127.0.0.1", proxy.port), "GET", "/")
