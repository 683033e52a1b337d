"""A proxy before an S3 server that fails a seeded share of the requests, as services and networks fail."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from urllib.parse import urlsplit

STALL_SECONDS = 2.0
# `lost`: it was done, and the answer is lost. `torn`: half of the answer. `stall`: it comes late.
FAULTS = ("500", "503", "reset", "lost", "stall", "torn")
# Not among those that are drawn: no answer at all, until the client gives up (jobs wait a minute); and what is final.
HANG, EXPIRED = "hang", "expired"
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "date", "server"}
_ERRORS = {"500": (500, "InternalError"), "503": (503, "SlowDown"), EXPIRED: (400, "ExpiredToken")}


class FaultyS3(ThreadingHTTPServer):
    """The proxy.

    Attributes:
        share: Of requests that fail; may be changed while it serves.
        sound_requests: That come before any that fails; may be changed too.
        delay_seconds: Before each request; may be changed too.
        injected: How often each fault met each kind of request.
        num_requests: In all.
        num_given_up: Requests without an answer that the client did not wait for any longer.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: str, share: float, seed: int, faults: Sequence[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.share = share
        self.sound_requests = 0
        self.delay_seconds = 0.0
        self.num_given_up = 0
        self.injected: Counter[tuple[str, str]] = Counter()
        self.num_requests = 0
        self.upstream = urlsplit(upstream).netloc
        self._draw = random.Random(seed)
        self._faults = cycle(self._draw.sample(faults, len(faults)))
        self._kinds: set[str] = set()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fault(self, kind: str) -> str | None:
        """What becomes of the next request; the first of its kind always fails, and every fault has its turn."""
        with self._lock:
            self.num_requests += 1
            if self.num_requests <= self.sound_requests:
                return None
            is_first = kind not in self._kinds
            self._kinds.add(kind)
            if self._draw.random() >= self.share and not (is_first and self.share):
                return None
            fault = next(self._faults)
            self.injected[kind, fault] += 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyS3

    def log_message(self, *_: object) -> None:
        """In silence."""

    def handle(self) -> None:
        """A client that has gone is no news."""
        try:
            super().handle()
        except OSError:
            self.close_connection = True

    def do(self) -> None:
        """Serve one request, or fail it."""
        assert "Transfer-Encoding" not in self.headers
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.fault(self._kind())
        if fault in _ERRORS:
            self._answer_error(*_ERRORS[fault])
            return
        if fault == "reset":
            self._reset()
            return
        if fault == HANG:
            self._hang()
            return
        time.sleep(self.server.delay_seconds + (STALL_SECONDS if fault == "stall" else 0.0))
        answer, content = self._forward(body)
        if fault == "lost" or (fault == "torn" and len(content) < 2):
            self._reset()
            return
        self._answer(answer, content, torn=fault == "torn")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do  # noqa: N815

    def _kind(self) -> str:
        if self.command == "GET" and "list-type" in self.path:
            return "LIST"
        if self.command == "PUT" and urlsplit(self.path).path.endswith("/_manifest.json"):
            return "COMMIT"
        return "DELETE" if self.command == "POST" and "delete" in self.path else self.command

    def _forward(self, body: bytes) -> tuple[HTTPResponse, bytes]:
        upstream = HTTPConnection(self.server.upstream, timeout=30)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
            headers["Host"] = self.server.upstream
            upstream.request(self.command, self.path, body or None, headers)
            answer = upstream.getresponse()
            return answer, answer.read()
        finally:
            upstream.close()

    def _answer(self, answer: HTTPResponse, content: bytes, *, torn: bool) -> None:
        self.send_response(answer.status)
        lengths = [value for name, value in answer.getheaders() if name.lower() == "content-length"]
        for name, value in answer.getheaders():
            if name.lower() not in {*_HOP_BY_HOP, "content-length"}:
                self.send_header(name, value)
        if answer.status != 204:
            self.send_header("Content-Length", lengths[0] if lengths else str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if torn else content)
        if torn:
            self.wfile.flush()
            self.close_connection = True

    def _answer_error(self, status: int, code: str) -> None:
        content = (
            f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        )
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _hang(self) -> None:
        self.connection.settimeout(60)
        if self.connection.recv(1) == b"":
            self.server.num_given_up += 1
        self.close_connection = True

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True


@contextmanager
def faulty_s3(upstream: str, share: float, seed: int, faults: Sequence[str] = FAULTS) -> Iterator[FaultyS3]:
    """Serve as long as the block runs."""
    server = FaultyS3(upstream, share, seed, faults)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
