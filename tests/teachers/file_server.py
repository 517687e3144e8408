"""A local HTTP server of one file that can resume, break off, fail and lie about sizes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """What the server gives, and what it was asked.

    Attributes:
        content: of the file.
        cut_after: bytes after which the connection ends, once for each entry.
        statuses: answered in place of the file, once for each entry.
        redirect: Location of the answer to ``/moved/...``.
        with_length: whether Content-Length is sent.
        ranges: the Range header of each request.
    """

    content: bytes
    etag: str = '"one"'
    cut_after: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    redirect: str = ""
    with_length: bool = True
    ranges: list[str | None] = field(default_factory=list)


@contextmanager
def serving(served: Served) -> Iterator[str]:
    """Serve on a free local port; gives the base address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.ranges.append(self.headers.get("Range"))
            if served.statuses:
                self.send_error(served.statuses.pop(0))
                return
            if self.path.startswith("/moved"):
                self.send_response(302)
                self.send_header("Location", served.redirect)
                self.end_headers()
                return
            start, wanted = 0, self.headers.get("Range")
            if wanted and self.headers.get("If-Range") == served.etag:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(served.content) > 0:
                self.send_error(416)
                return
            body = served.content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(served.content) - 1}/{len(served.content)}"
                )
            self.send_header("ETag", served.etag)
            if served.with_length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: served.cut_after.pop(0)] if served.cut_after else body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
