"""What may go into a store: which plans, and which descriptions beside the one that is there."""

from __future__ import annotations

from typing import Any

import numpy
import pandas

from pipeline import artifact
from pipeline.errors import DigestMismatchError, StoreError
from pipeline.store.incoming import Incoming
from pipeline.store.location import Location
from pipeline.store.object_store import ObjectPrefix, RemoteIncoming
from pipeline.store.schema import (
    CLIPS_FILE,
    STORE_FILE,
    ArraySpec,
    StoreMeta,
    meta_bytes,
    parse_meta,
    read_meta,
    rows_digest,
)


def incoming_of(location: Location) -> Any:
    """Return what puts a writer's files in place there."""
    return RemoteIncoming(location) if isinstance(location, ObjectPrefix) else Incoming(location.folder)


def check_plan(rows: pandas.DataFrame) -> None:
    """Refuse a plan that no store can be made for."""
    if not {"row", "key"} <= set(rows.columns):
        raise StoreError("the plan lacks columns", expected="row and key at least", got=list(rows.columns))
    if len(rows) == 0:
        raise StoreError(
            "there is nothing to embed: the plan has no rows", run="ossicle manifest, with more audio"
        )
    if not numpy.array_equal(rows["row"].to_numpy(), numpy.arange(len(rows))):
        raise StoreError("the plan's rows are not 0, 1, 2, ... in order")


def check_rows(location: Location, meta: StoreMeta, rows: pandas.DataFrame) -> None:
    """Refuse a table of clips that is not the plan of ``meta``."""
    found = rows_digest(rows)
    if found != meta.rows_digest:
        raise DigestMismatchError(
            f"{location}/{CLIPS_FILE} is not the plan that this store was made for",
            expected=meta.rows_digest,
            got=found,
            run=f"ossicle store verify {location}",
        )


def describe(location: Location, incoming: Any, meta: StoreMeta) -> StoreMeta:
    """Write ``store.json`` with the arrays of ``meta`` added to those that are there, and return it."""

    def added(old: bytes | None) -> bytes:
        return meta_bytes(meta if old is None else merged(location, parse_meta(old, str(location)), meta))

    if isinstance(location, ObjectPrefix):
        location.replace(STORE_FILE, added)
    else:
        there = location.size(STORE_FILE) is not None
        incoming.write(STORE_FILE, added(location.read(STORE_FILE) if there else None))
    return read_meta(location)


def merged(location: Location, old: StoreMeta, new: StoreMeta) -> StoreMeta:
    """Return ``old`` with the arrays of ``new`` added; anything else that differs is an error."""
    for field, what in (("manifest_digest", "manifest"), ("rows_digest", "window plan")):
        if getattr(old, field) != getattr(new, field):
            raise DigestMismatchError(
                f"{location} holds the store of another {what}",
                expected=getattr(new, field),
                got=getattr(old, field),
                run="ossicle embed, with another name in the recipe or the folder moved away",
            )
    for field in ("shard_rows", "chunk_rows", "windowing"):
        if getattr(old, field) != getattr(new, field):
            raise StoreError(
                f"{location} was made with another {field}",
                expected=getattr(new, field),
                got=getattr(old, field),
                run=f"set {field} back in the recipe, or move the folder away",
            )
    arrays = list(old.arrays)
    for spec in new.arrays:
        same = [known for known in arrays if known.path == spec.path]
        if same and _form(same[0]) != _form(spec):
            raise StoreError(
                f"{spec.path} is already there in another form",
                expected=_form(spec),
                got=_form(same[0]),
                run="set the dtype back in the recipe, or move the folder away",
            )
        if not same:
            arrays.append(spec)
    if len(arrays) > len(old.arrays):
        location.remove(artifact.MARKER)
    return old.model_copy(update={"arrays": tuple(arrays), "asked": {**old.asked, **new.asked}})


def _form(spec: ArraySpec) -> str:
    return f"{spec.dtype} {spec.row_shape}, digest {spec.digest}"
