"""A store's files as the objects below ``s3://bucket/prefix``, by obstore (the extra ``s3``).

Credentials, region and endpoint come from the usual ``AWS_*`` variables. A request that fails for the
server's or the network's sake (5xx, dropped connection, time-out) is sent again with growing pauses: every
request here may be repeated, since an object's content is a function of its name.
``OSSICLE_S3_TIMEOUT_SECONDS`` bounds one request (default 120).
"""

from __future__ import annotations

import importlib
import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import MissingDependencyError, StoreError

log = logging.getLogger(__name__)

TIMEOUT_VARIABLE = "OSSICLE_S3_TIMEOUT_SECONDS"
TIMEOUT_SECONDS = 120.0
ATTEMPTS = 8
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 10.0
PARALLEL_REQUESTS = 16
MULTIPART_BYTES = 64 << 20

Result = TypeVar("Result")


class ObjectPrefix:
    """The objects below ``s3://bucket/prefix``; safe to use from several threads.

    Raises:
        MissingDependencyError: obstore is not installed.
        StoreError: the URL names no bucket.
    """

    remote = True

    def __init__(self, url: str) -> None:
        bucket = url.removeprefix("s3://").split("/")[0]
        if not url.startswith("s3://") or not bucket:
            raise StoreError("no object store there", expected="s3://bucket/prefix", got=url)
        self.url = url.rstrip("/")
        try:
            self._obstore: Any = importlib.import_module("obstore")
            stores: Any = importlib.import_module("obstore.store")
        except ImportError as error:
            raise MissingDependencyError(
                "a store on s3:// needs obstore", run="pip install 'ossicle[s3]'"
            ) from error
        self._errors: Any = importlib.import_module("obstore.exceptions")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
        seconds = float(os.environ.get(TIMEOUT_VARIABLE, TIMEOUT_SECONDS))
        self._store = stores.from_url(
            self.url,
            # Repeating is done here, where a PUT is known to be safe to repeat.
            retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=seconds)},
            client_options={
                "timeout": f"{seconds:g}s",
                "connect_timeout": f"{min(seconds, 10):g}s",
                "allow_http": endpoint.startswith("http://"),
            },
            **({"endpoint": endpoint} if endpoint else {}),
        )

    def __str__(self) -> str:
        return self.url

    @property
    def folder(self) -> Path:
        """No object store is a folder."""
        raise StoreError("this needs a local store", expected="a folder", got=self.url)

    def read(self, name: str) -> bytes:
        """Return an object's content."""
        return bytes(self._patiently(name, lambda: self._obstore.get(self._store, name).bytes()))

    def read_many(self, names: Iterable[str]) -> Iterator[bytes | None]:
        """Yield each object's content in order, several requests at a time."""

        def one(name: str) -> bytes | None:
            try:
                return self.read(name)
            except FileNotFoundError:
                return None

        with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
            yield from pool.map(one, names)

    def size(self, name: str) -> int | None:
        """Return an object's size in bytes, None without it."""
        try:
            return int(self._patiently(name, lambda: self._obstore.head(self._store, name))["size"])
        except FileNotFoundError:
            return None

    def listing(self, prefix: str) -> dict[str, int]:
        """Return name to size in bytes of every object below ``prefix``."""

        def pages() -> dict[str, int]:
            found = self._obstore.list(self._store, prefix or None)
            return {str(entry["path"]): int(entry["size"]) for page in found for entry in page}

        return self._patiently(prefix, pages)

    def write(self, name: str, content: bytes) -> None:
        """PUT an object."""
        large = len(content) > MULTIPART_BYTES
        self._patiently(name, lambda: self._obstore.put(self._store, name, content, use_multipart=large))

    def replace(self, name: str, change: Callable[[bytes | None], bytes]) -> None:
        """Write ``change(content)`` unless another process did meanwhile; then ``change`` sees what it wrote."""
        for attempt in range(ATTEMPTS):
            try:
                found = self._patiently(name, lambda: self._obstore.get(self._store, name))
                old, mode = bytes(found.bytes()), _only_if(found.meta)
            except FileNotFoundError:
                old, mode = None, "create"
            new = change(old)
            if new == old:
                return
            put = partial(self._obstore.put, self._store, name, new, mode=mode, use_multipart=False)
            try:
                self._patiently(name, put)
            except (self._errors.AlreadyExistsError, self._errors.PreconditionError):
                _pause(attempt)
                continue
            return
        raise StoreError(f"{self.url}/{name} changes all the time", run="the same command again")

    def remove(self, name: str) -> None:
        """Delete an object, if it is there."""
        try:
            self._patiently(name, lambda: self._obstore.delete(self._store, name))
        except FileNotFoundError:
            return

    def _patiently(self, name: str, request: Callable[[], Result]) -> Result:
        for attempt in range(ATTEMPTS):
            try:
                return request()
            except FileNotFoundError:
                raise
            except (self._errors.AlreadyExistsError, self._errors.PreconditionError):
                raise
            except (self._errors.PermissionDeniedError, self._errors.UnauthenticatedError) as error:
                raise StoreError(
                    f"{self.url} is not open to these credentials: {_first_line(error)}",
                    run="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
                ) from error
            except self._errors.BaseError as error:
                if attempt + 1 == ATTEMPTS:
                    raise StoreError(
                        f"{self.url}/{name}: {ATTEMPTS} requests failed: {_first_line(error)}",
                        run="look at the network and the endpoint, then the same command again: it goes on",
                    ) from error
                log.warning("%s/%s: request failed, sent again: %s", self.url, name, _first_line(error))
                _pause(attempt)
        raise AssertionError("the last attempt returns or raises")


class RemoteIncoming:
    """How a writer puts files in an object store: as ``Incoming`` does, without names to rename or locks.

    A PUT is whole or absent, and two writers of one shard put the same bytes.
    """

    def __init__(self, location: ObjectPrefix) -> None:
        self.location = location

    def close(self) -> None:
        """Nothing is held."""

    def write(self, name: str, content: bytes) -> None:
        """PUT ``content``."""
        self.location.write(name, content)

    def adopt(self, folder: str, files: dict[str, bytes]) -> None:
        """PUT the files of a new folder; any of them may be there already, with this content."""
        for name, content in files.items():
            self.location.write(f"{folder}/{name}", content)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold nothing: whoever commits the same shard writes the same bytes."""
        yield


def _only_if(meta: dict[str, Any]) -> Any:
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None}


def _pause(attempt: int) -> None:
    longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**attempt)
    time.sleep(longest * random.uniform(0.5, 1))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
