"""One file over HTTP(S): resumed where it stopped, of limited size, whole or not there."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from pipeline.errors import WeightsError

BLOCK_BYTES = 1 << 20
TIMEOUT_SECONDS = 30.0
TRIES = 4

# Called with the bytes that are there and the bytes in all (None: the server does not say).
Progress = Callable[[int, int | None], None]


class _OnlyHttp(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        # A checkpoint's host may pass us on; it may not send us to ftp: or to plain http after https.
        if urlsplit(newurl).scheme != "https" and urlsplit(req.full_url).scheme == "https":
            raise _failed(req.full_url, f"redirected to {newurl}", "https")
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise _failed(req.full_url, f"redirected to {newurl}", "http or https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def file_name(url: str) -> str:
    """Return the last part of ``url``'s path, as a file name.

    Raises:
        WeightsError: it has none.
    """
    name = Path(unquote(urlsplit(url).path)).name
    if not name or name.startswith("."):
        raise _failed(url, "no file name", "an address that ends in a file's name")
    return name


def download(url: str, target: Path, *, max_bytes: int, progress: Progress | None = None) -> Path:
    """Bring ``url`` to ``target`` and return it; an interrupted download goes on where it stopped.

    What has come so far is ``<target>.part``, beside it a JSON file that says of which version of the file.

    Args:
        url: http or https.
        target: the file; one that is there whole, from the same address, is not fetched again.
        max_bytes: a larger file is refused, before it is fetched where the server says its size.
        progress: told of every block.

    Raises:
        WeightsError: unreachable, refused by the server, too large, or cut short on every try.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise _failed(url, urlsplit(url).scheme or "no scheme", "an http(s) address or a file")
    note = target.with_name(target.name + ".part.json")
    if target.is_file() and _noted(note).get("url") == url:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    last: Exception | None = None
    for attempt in range(TRIES):
        if attempt:
            time.sleep(min(2.0**attempt, 8.0) * 0.25)
        try:
            if _attempt(url, target, note, max_bytes, progress):
                return target
            last = EOFError("the connection ended before the file did")
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise _failed(url, f"HTTP {error.code} {error.reason}", "the file") from error
            last = error
        except (OSError, HTTPException) as error:
            last = error
    raise _failed(url, f"{last} ({TRIES} tries)", "the file; the same command goes on where it stopped")


def _attempt(url: str, target: Path, note: Path, max_bytes: int, progress: Progress | None) -> bool:
    """Fetch what is missing; return whether the file is whole now."""
    part = target.with_name(target.name + ".part")
    noted = _noted(note)
    have = part.stat().st_size if part.is_file() and noted.get("url") == url else 0
    request = urllib.request.Request(url, headers={"User-Agent": "ossicle", "Accept-Encoding": "identity"})
    if have and noted.get("version"):
        request.add_header("Range", f"bytes={have}-")
        # Without this a server whose file changed in between would give the rest of another file.
        request.add_header("If-Range", str(noted["version"]))
    opener = urllib.request.build_opener(_OnlyHttp)
    try:
        response: HTTPResponse = opener.open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what is there is longer than the file: it is another one
            part.unlink()
            return False
        raise
    with response:
        resumed = response.status == 206 and _starts_at(response, have)
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else None
        if total is not None and total > max_bytes:
            raise _failed(url, f"{total} bytes", f"{max_bytes} bytes at most")
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if version is not None and version.startswith("W/"):
            version = response.headers.get("Last-Modified")  # a weak tag does not promise equal bytes
        note.write_text(json.dumps({"url": url, "version": version, "total": total}), encoding="utf-8")
        with part.open("ab" if resumed else "wb") as file:
            while block := response.read(BLOCK_BYTES):
                have += len(block)
                if have > max_bytes:
                    file.close()
                    part.unlink()
                    raise _failed(url, f"more than {have} bytes", f"{max_bytes} bytes at most")
                file.write(block)
                if progress is not None:
                    progress(have, total)
    if total is not None and have < total:
        return False
    part.replace(target)
    return True


def _starts_at(response: HTTPResponse, have: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {have}-")


def _noted(note: Path) -> dict[str, Any]:
    if not note.is_file():
        return {}
    try:
        value = json.loads(note.read_text(encoding="utf-8"))
    except ValueError:  # a note cut short by a crash: the part beside it cannot be trusted to be of this file
        return {}
    return value if isinstance(value, dict) else {}


def _failed(url: str, got: str, expected: str) -> WeightsError:
    return WeightsError(f"cannot fetch {url}", expected=expected, got=got)
