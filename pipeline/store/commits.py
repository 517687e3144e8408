"""What is in a store, by its commit records and its marker: the only truth about what was written.

::

    commits/<digest12>/<shard>.json     array, shard, rows, keys, files (bytes, sha256), rejects
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import pandas

from pipeline import artifact
from pipeline.errors import MissingArtifactError, StoreError
from pipeline.store import tables
from pipeline.store.location import Location, Place, at
from pipeline.store.schema import COMMITS_FOLDER, OK, REJECTED, ArraySpec, StoreMeta

KEYS = {"array", "shard", "rows", "keys", "files", "rejects"}


def commit_name(spec: ArraySpec, shard: int) -> str:
    """Return the name of the commit record of ``shard``."""
    return f"{COMMITS_FOLDER}/{spec.digest[:12]}/{shard}.json"


def commit_path(folder: Path, spec: ArraySpec, shard: int) -> Path:
    """Return where the commit record of ``shard`` is in a local store."""
    return folder / commit_name(spec, shard)


def described_files(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Return what a commit record says of its files: name to size in bytes and SHA-256."""
    return {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }


def record_bytes(record: dict[str, Any]) -> bytes:
    """Return the content of a commit record."""
    return (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()


def read_commit(place: Place | Location, spec: ArraySpec, shard: int) -> dict[str, Any] | None:
    """Return the commit record of ``shard``, or None where there is none.

    Raises:
        StoreError: it is damaged.
    """
    location = at(place)
    try:
        content = location.read(commit_name(spec, shard))
    except FileNotFoundError:
        return None
    return parse_commit(content, location, spec, shard)


def read_commits(
    place: Place | Location, spec: ArraySpec, shards: Iterable[int]
) -> Iterator[dict[str, Any] | None]:
    """Yield the commit record of each shard, None where there is none; many requests at a time if remote."""
    location, wanted = at(place), list(shards)
    contents = location.read_many(commit_name(spec, shard) for shard in wanted)
    for shard, content in zip(wanted, contents, strict=True):
        yield None if content is None else parse_commit(content, location, spec, shard)


def parse_commit(content: bytes, location: Location, spec: ArraySpec, shard: int) -> dict[str, Any]:
    """Return the record that ``content`` is."""
    name = f"{location}/{commit_name(spec, shard)}"
    mend = f"ossicle store verify {location} --repair, then ossicle embed"
    try:
        record = json.loads(content.decode())
    except ValueError as error:
        raise StoreError(f"{name} is damaged: {error}", run=mend) from error
    if not isinstance(record, dict) or not set(record) >= KEYS:
        raise StoreError(f"{name} is no commit record", run=mend)
    return record


def read_marker(place: Place | Location, run: str | None = None) -> artifact.Artifact:
    """Return the finished artifact at ``place``.

    Raises:
        MissingArtifactError: it is not finished; ``run`` is the command that makes it.
    """
    location = at(place)
    try:
        content = location.read(artifact.MARKER)
    except FileNotFoundError:
        expected = f"{location}/{artifact.MARKER}"
        raise MissingArtifactError(
            f"no finished artifact in {location}", expected=expected, run=run
        ) from None
    return artifact.parse(Path(str(location)), content)


def is_finished(place: Place | Location, work: str | None = None) -> bool:
    """Whether a finished store is at ``place`` (of this digest, where one is given)."""
    try:
        found = read_marker(place)
    except (MissingArtifactError, ValueError, KeyError):
        return False
    return work is None or found.digest == work


def finished_arrays(place: Place | Location) -> list[str]:
    """Return the paths of the arrays that the store's marker calls complete; none without a marker."""
    location = at(place)
    return sorted(read_marker(location).summary.get("arrays", {})) if is_finished(location) else []


def derive_tables(
    place: Place | Location,
    meta: StoreMeta,
    specs: Iterable[ArraySpec],
    rows: pandas.DataFrame,
    earlier: pandas.DataFrame,
) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """Return clips with their status and the whole list of rejects, a pure function of plan and records.

    A row is rejected if any of the arrays ``specs`` lacks it.
    """
    records = [
        reject
        for spec in specs
        for record in read_commits(place, spec, range(meta.shards))
        for reject in (record or {"rejects": []})["rejects"]
    ]
    rejects = tables.merge_rejects(earlier, records)
    rejected = rows["row"].isin(rejects["row"])
    status = pandas.Series(numpy.where(rejected, REJECTED, OK), index=rows.index)
    return rows.assign(status=status), rejects
