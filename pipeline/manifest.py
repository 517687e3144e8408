"""Manifests: one row a clip, whatever it came from; read, validated, split without leakage."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import artifact
from pipeline.errors import ManifestError

log = logging.getLogger(__name__)

COLUMNS: dict[str, str] = {
    "clip_id": "str",  # first 16 hex of the SHA-256 of rate and decoded mono float32
    "root": "str",  # key into roots.json
    "path": "str",  # relative to that root
    "source": "str",  # package or folder it came from
    "dataset": "str",
    "group": "str",  # recording, kit or voice: never on both sides of a split
    "split": "str",  # train or validation
    "fold": "int64",  # the dataset's own fold, or -1
    "label": "str",  # the dataset's own label, or ""; several are joined by ";"
    "kind": "str",  # speech, music, drums, effects, ambience, other
    "licence": "str",
    "credit": "str",
    "sample_rate_hz": "int64",
    "channels": "int64",
    "frames": "int64",
    "duration_seconds": "float64",
}
KINDS = ("speech", "music", "drums", "effects", "ambience", "other")
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Manifest:
    """A validated manifest.

    Attributes:
        frame: one row a clip, ``COLUMNS``, sorted by dataset, path.
        roots: root key to folder; files are at ``roots[row.root] / row.path``.
        digest: SHA-256 of the rows (not of the roots: moving the audio changes nothing).
        folder: the artifact's folder.
    """

    frame: pd.DataFrame
    roots: dict[str, Path]
    digest: str
    folder: Path


def content_digest(frame: pd.DataFrame) -> str:
    """Return the SHA-256 of the rows in canonical order."""
    ordered = frame.loc[:, list(COLUMNS)].sort_values(["clip_id", "dataset", "path"], kind="stable")
    return hashlib.sha256(ordered.to_csv(index=False, lineterminator="\n").encode()).hexdigest()


def read(folder: Path) -> Manifest:
    """Return the finished manifest in ``folder``.

    Raises:
        MissingArtifactError: no finished manifest there.
        ManifestError: a column is missing, a value impossible, or a group leaks between splits.
    """
    folder = Path(folder)
    record = artifact.read(folder, run="make manifest")
    frame = pd.read_parquet(folder / "clips.parquet")
    roots = {k: Path(v) for k, v in json.loads((folder / "roots.json").read_text(encoding="utf-8")).items()}
    validate(frame, roots)
    found = content_digest(frame)
    if found != record.summary["content"]:
        raise ManifestError(
            f"{folder}/clips.parquet was changed after it was made",
            expected=record.summary["content"][:12],
            got=found[:12],
            run="make manifest",
        )
    return Manifest(frame, roots, found, folder)


def validate(frame: pd.DataFrame, roots: dict[str, Path]) -> None:
    """Raise ManifestError unless ``frame`` is a manifest that no rule of the project refuses."""
    missing = [c for c in COLUMNS if c not in frame.columns]
    if missing:
        raise ManifestError(
            "manifest lacks columns", expected=", ".join(COLUMNS), got=f"no {', '.join(missing)}"
        )
    if frame.empty:
        raise ManifestError("the manifest holds no clip", run="look at rejects.parquet beside it")
    repeated = frame["clip_id"][frame["clip_id"].duplicated()]
    if len(repeated):
        raise ManifestError(f"{len(repeated)} clips appear twice", got=str(repeated.iloc[0]))
    for column, allowed in (("kind", KINDS), ("split", SPLITS), ("root", tuple(roots))):
        strange = sorted(set(frame[column]) - set(allowed))
        if strange:
            raise ManifestError(f"unknown {column}", expected=", ".join(allowed), got=", ".join(strange[:5]))
    if (frame["licence"].str.len() == 0).any():
        bare = frame.loc[frame["licence"].str.len() == 0, "path"].iloc[0]
        raise ManifestError("a clip has no licence", got=bare, expected="a licence, or 'unknown'")
    for path in frame["path"]:
        if path.startswith("/") or ".." in Path(path).parts:
            raise ManifestError("a path leaves its root", expected="a path below the root", got=path)
    refuse_leakage(frame)


def refuse_leakage(frame: pd.DataFrame) -> None:
    """Raise ManifestError if a group has clips in more than one split."""
    splits = frame.groupby(["dataset", "group"], sort=True)["split"].nunique()
    leaking = splits[splits > 1]
    if len(leaking):
        raise ManifestError(
            f"{len(leaking)} groups are on both sides of the split",
            got=str(leaking.index[0]),
            run="make manifest",
        )


def settle_splits(
    frame: pd.DataFrame, validation_share: float, seed: int, shares: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """Return ``frame`` with every split decided: the source's own where it gives one, else drawn by group.

    A drawn clip whose group has clips with a split of their own goes with them. Where a dataset's own splits
    cut a group, they stand, and the group is renamed on each side.

    Args:
        frame: rows with ``dataset``, ``group`` and ``split`` (train, validation or "" = draw).
        validation_share: share of each dataset's drawn clips wanted in validation.
        seed: of the draw.
        shares: dataset to its own ``validation_share``.
    """
    frame = frame.copy()
    keys = ["dataset", "group"]
    given = frame[frame["split"] != ""]
    own = given.drop_duplicates(keys).set_index(keys)["split"]
    if len(own):
        places = pd.MultiIndex.from_frame(frame[keys])
        frame["split"] = frame["split"].where(frame["split"] != "", own.reindex(places).fillna("").to_numpy())
    drawn = frame.index[frame["split"] == ""]
    frame.loc[drawn, "split"] = assign_splits(frame.loc[drawn], validation_share, seed, shares)
    cut = frame.groupby(keys)["split"].transform("nunique") > 1
    if cut.any():
        names = ", ".join(sorted(set(frame.loc[cut, "dataset"])))
        log.warning("%d clips: the splits of %s themselves cut groups", int(cut.sum()), names)
        frame.loc[cut, "group"] += " (" + frame.loc[cut, "split"] + ")"
    return frame


def assign_splits(
    frame: pd.DataFrame, validation_share: float, seed: int, shares: Mapping[str, float] | None = None
) -> pd.Series:
    """Return ``train`` or ``validation`` a row; whole groups move, dataset by dataset.

    A dataset of a single group stays in training: holding it out whole would leave none to learn from.
    Groups are drawn in an order that depends on ``seed`` and their names alone, so adding a dataset
    moves no clip of another.

    Args:
        frame: rows with ``dataset`` and ``group``.
        validation_share: share of each dataset's clips wanted in validation; the draw stops before passing it.
        seed: of the draw.
        shares: dataset to a share of its own.
    """
    split = pd.Series("train", index=frame.index, dtype="str")
    for dataset, rows in frame.groupby("dataset", sort=True):
        sizes = rows.groupby("group", sort=True).size()
        if len(sizes) < 2:
            continue
        order = sorted(sizes.index, key=lambda g: hashlib.sha256(f"{seed}/{dataset}/{g}".encode()).digest())
        wanted, held = (shares or {}).get(str(dataset), validation_share) * len(rows), set()
        taken = 0
        for group in order:
            if taken + sizes[group] <= wanted:
                held.add(group)
                taken += int(sizes[group])
        split[rows.index[rows["group"].isin(held)]] = "validation"
    return split


def draw_order(keys: pd.Series, seed: int) -> np.ndarray:
    """Return positions that order ``keys`` pseudo-randomly, by their content and ``seed`` alone."""
    ranks = [hashlib.sha256(f"{seed}/{key}".encode()).digest() for key in keys]
    return np.array(sorted(range(len(ranks)), key=ranks.__getitem__), dtype=np.int64)
