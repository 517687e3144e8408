"""From ``[[manifest.inputs]]`` to candidates: every input listed, its paths confined, its official splits applied."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pipeline.audio import audioset, sources, tables
from pipeline.audio.datasets import published
from pipeline.audio.entries import Confinement, Entry, Listing
from pipeline.audio.sources import Candidate
from pipeline.errors import ConfigError, ManifestError, near_matches
from pipeline.input_config import (
    MODEL_OF_KIND,
    AudioSetInput,
    Content,
    DatasetInput,
    FolderInput,
    Input,
    PackInput,
    SplitUse,
    TableInput,
)

log = logging.getLogger(__name__)

HELD_OUT = ("held_out", "its official split is left out; the recipe's splits can use it")
KINDS = get_args(Content)
# What a candidate's ``source`` may be where its files are the user's own; "folder" is fetch.audio_folder too.
INPUT_KINDS = frozenset(MODEL_OF_KIND)
TABLE_SPLITS: dict[str, SplitUse] = {"train": "train", "validation": "validation", "test": "omit"}
TABLE_COLUMNS = ("path", "label", "group", "split", "fold", "kind", "licence", "credit", "dataset")


@dataclass
class Collected:
    """What all inputs hold.

    Attributes:
        roots: root key to folder.
        candidates: files to look at.
        rejects: rows of ``rejects.parquet`` that were decided without opening a file: missing or held out.
        validation_shares: dataset to its share of drawn groups held out, where an input gives one.
    """

    roots: dict[str, Path] = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)
    rejects: list[dict[str, str]] = field(default_factory=list)
    validation_shares: dict[str, float] = field(default_factory=dict)


def collect(inputs: Sequence[Input]) -> Collected:
    """Return the candidates of ``inputs``, in order.

    Raises:
        ManifestError: an input is not there, is not of its kind, or names a path outside its root.
        Hdf5Error: a pack is damaged or refused.
        ConfigError: ``splits`` names a split that the input does not have.
    """
    found = Collected()
    for source in inputs:
        _add(found, source)
    return found


def _add(found: Collected, source: Input) -> None:
    listing = _listing(source)
    dataset = source.dataset or listing.dataset
    root = _root_key(found.roots, dataset)
    found.roots[root] = listing.root
    confinement = Confinement(listing.root, follow_links=_follows(source), where=f"{source.kind} {dataset}")
    uses = {**listing.splits, **source.splits}
    seen: set[str] = set()
    count = 0
    for count, entry in enumerate(listing.entries, 1):
        name = entry.dataset or dataset
        if source.validation_share is not None:
            found.validation_shares[name] = source.validation_share
        seen.add(entry.split)
        use: SplitUse = uses.get(entry.split, "draw")
        reason, problem = (entry.reason, entry.problem) if entry.reason else ("", "")
        if not reason and use == "omit":
            reason, problem = HELD_OUT
        if reason:
            row = {"root": root, "path": entry.path, "dataset": name, "reason": reason, "problem": problem}
            found.rejects.append(row)
            continue
        path = confinement.relative(entry.path, count)
        found.candidates.append(_candidate(entry, path, root, source.kind, name, use))
    if not count:
        raise ManifestError(
            f"{source.kind}: no clip was found", expected="an unpacked dataset", got=listing.root
        )
    unknown = sorted(set(source.splits) - seen)
    if unknown:
        raise ConfigError(
            f"manifest.inputs: {dataset} has no split {unknown[0]!r}",
            expected=near_matches(unknown[0], seen - {""}) if seen - {""} else "no splits: it publishes none",
            got=unknown[0],
        )


def _candidate(entry: Entry, path: str, root: str, kind: str, dataset: str, use: SplitUse) -> Candidate:
    return Candidate(
        root, path, kind, dataset, entry.group or path, entry.label, entry.kind, entry.licence, entry.credit,
        split=use if use in ("train", "validation") else "", fold=entry.fold, columns=entry.columns,
    )  # fmt: skip


def _listing(source: Input) -> Listing:
    readers: Mapping[type, Callable[[Any], Listing]] = {
        FolderInput: _folder,
        TableInput: _table,
        AudioSetInput: audioset.segment_listing,
        PackInput: audioset.pack_listing,
        DatasetInput: published.listing,
    }
    return readers[type(source)](source)


def _follows(source: Input) -> bool:
    # The names in a folder are the user's own; only tables and archives name paths of their makers' choosing.
    return source.follow_links or isinstance(source, FolderInput | AudioSetInput | PackInput)


def _root_key(roots: Mapping[str, Path], dataset: str) -> str:
    number, key = 1, dataset
    while key in roots:
        number += 1
        key = f"{dataset}-{number}"
    return key


def _folder(source: FolderInput) -> Listing:
    if not source.root.is_dir():
        raise ManifestError(
            "manifest.inputs: a folder is not there", expected="a folder of sound", got=source.root
        )
    listed = [
        Entry(c.path, c.label, c.group, kind=source.content, licence=source.licence, credit=source.credit)
        for c in sources.folder_candidates("", source.root)
    ]
    return Listing(source.root, sources.slug(source.root.resolve().name), listed)


def _table(source: TableInput) -> Listing:
    root = source.root or source.path.parent
    return Listing(root, sources.slug(source.path.stem), _table_entries(source), TABLE_SPLITS)


def _table_entries(source: TableInput) -> Iterator[Entry]:
    wanted = ["path", *(name for name in (source.label, source.group) if name not in TABLE_COLUMNS)]
    if source.kind == "csv":
        rows = tables.numbered_csv_rows(source.path, wanted, delimiter=source.delimiter)
    else:
        rows = tables.parquet_rows(source.path, wanted)
    kept = {*TABLE_COLUMNS, source.label, source.group}
    for number, row in rows:
        place = f"{source.path}, {'line' if source.kind == 'csv' else 'row'} {number}"
        kind = row.get("kind") or source.content
        if kind not in KINDS:
            raise ManifestError(f"{place}: unknown kind", expected=", ".join(KINDS), got=kind)
        fold = row.get("fold") or "-1"
        try:
            fold_number = int(float(fold)) if float(fold).is_integer() else int(fold)
        except (ValueError, OverflowError) as error:
            raise ManifestError(f"{place}: a fold is no whole number", got=fold) from error
        yield Entry(
            row["path"], label=row.get(source.label, ""), group=row.get(source.group, ""),
            split=row.get("split", ""), fold=fold_number, kind=kind, dataset=row.get("dataset", ""),
            licence=row.get("licence") or source.licence, credit=row.get("credit") or source.credit,
            columns=tuple((name, value) for name, value in row.items() if name not in kept),
        )  # fmt: skip
