"""A local S3 server (moto's), and a proxy in front of it that fails requests as a bad network does."""

from __future__ import annotations

import http.client
import os
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock

BUCKET = "ossicle-test"


class FaultyProxy(ThreadingHTTPServer):
    """Passes requests on to ``upstream``; every ``every``-th of them meets the next fault of ``faults``.

    ``500``: the server's answer is 500 and the request is not passed on. ``lost``: it is passed on, and the
    connection dropped instead of the answer. ``slow``: no answer for ``slow_seconds``. ``cut``: half the body.
    """

    daemon_threads = True

    def __init__(self, upstream: tuple[str, int], faults: tuple[str, ...] = (), every: int = 3) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.faults, self.every = upstream, faults, every
        self.slow_seconds = 3.0
        self.requests: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self._count = 0
        self._lock = threading.Lock()

    def fault(self, method: str) -> str:
        """Return what happens to the next request."""
        with self._lock:
            self.requests[method] += 1
            self._count += 1
            if not self.faults or self._count % self.every:
                return ""
            name = self.faults[self._count // self.every % len(self.faults)]
            self.injected[name] += 1
            return name

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up waiting is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.fault(self.command)
        if fault == "500":
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        upstream = http.client.HTTPConnection(*self.server.upstream, timeout=30)
        upstream.request(self.command, self.path, body or None, dict(self.headers))
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        if fault == "slow":
            time.sleep(self.server.slow_seconds)
        if fault == "lost":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "server", "date"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
        if fault == "cut":
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


for _method in ("GET", "PUT", "POST", "HEAD", "DELETE"):
    setattr(_Handler, f"do_{_method}", _Handler._pass_on)


@contextmanager
def running(timeout_seconds: float = 1.5) -> Iterator[FaultyProxy]:
    """Serve S3 on this machine through a proxy, its address and credentials in the environment."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    proxy = FaultyProxy(server.get_host_and_port())
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{proxy.server_address[1]}"
    environment = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "OSSICLE_S3_TIMEOUT_SECONDS": str(timeout_seconds),
    }
    try:
        with mock.patch.dict(os.environ, environment):
            urllib.request.urlopen(urllib.request.Request(f"{address}/{BUCKET}", method="PUT"))
            yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.stop()


def objects(prefix: str) -> dict[str, bytes]:
    """Return every object below ``prefix`` that does not depend on a store's history: not the marker's time."""
    from pipeline.store.object_store import ObjectPrefix

    location = ObjectPrefix(f"s3://{BUCKET}/{prefix}")
    return {name: location.read(name) for name in sorted(location.listing("")) if name != "artifact.json"}
