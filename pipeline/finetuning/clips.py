"""The labelled clips of a manifest: who is trained on, who is held out, and their sound, decoded once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Int64

from pipeline.artifact import replacing
from pipeline.audio import clip_source, resampling
from pipeline.audio.ingest import LABEL_COLUMNS
from pipeline.audio.windows import fit, frame_count
from pipeline.config import FinetuneConfig, digest
from pipeline.errors import ConfigError, ManifestError, TrainingError, near_matches
from pipeline.manifest import Manifest

log = logging.getLogger(__name__)

LABELS_FILE = "labels.parquet"
SEPARATOR = ";"


@dataclass(frozen=True)
class LabelledClips:
    """Clips with one label each, in the manifest's order.

    Attributes:
        frame: the manifest's rows, and the columns of its datasets' own labels.
        classes: sorted class names; a class's place is its code.
        codes: class of every clip.
    """

    frame: pd.DataFrame
    classes: list[str]
    codes: Int64[np.ndarray, " clips"]

    def held_out(self, fold: int | None) -> Bool[np.ndarray, " clips"]:
        """Return which clips are scored: those of ``fold``, or of split validation where it is None.

        Raises:
            TrainingError: none is, all are, or training lacks a class.
        """
        column, value = ("split", "validation") if fold is None else ("fold", fold)
        mask: np.ndarray = (self.frame[column] == value).to_numpy(dtype=bool)
        if not mask.any() or mask.all():
            there = sorted(set(self.frame[column].tolist()))
            raise TrainingError(
                f"{column} {value} holds {'every clip' if mask.all() else 'no clip'}",
                expected=f"some of {len(mask)} clips held out; {column} has {there[:12]}",
                got=value,
                run="--set finetune.held_out_folds=[...], or manifest.validation_share",
            )
        absent = sorted(set(range(len(self.classes))) - set(self.codes[~mask].tolist()))
        if absent:
            names = ", ".join(self.classes[code] for code in absent[:6])
            raise TrainingError(f"no training clip of class {names}", expected="every class among them")
        return mask

    def reached_by(self, only: dict[str, tuple[str, ...]]) -> Bool[np.ndarray, " clips"]:
        """Return which clips have one of the listed values in each listed column.

        Raises:
            ConfigError: no such column.
        """
        mask = np.ones(len(self.frame), dtype=bool)
        for column, values in only.items():
            _require_column(self.frame, column, "finetune.dir_only")
            mask &= self.frame[column].astype(str).isin(values).to_numpy(dtype=bool)
        return mask


def labelled(manifest: Manifest, column: str) -> LabelledClips:
    """Return the clips of ``manifest`` that have a label in ``column``.

    Args:
        column: of ``clips.parquet``, or one of ``labels.parquet``, the datasets' own.

    Raises:
        ConfigError: no such column.
        ManifestError: a clip has several labels, or there are fewer than two classes.
    """
    frame = manifest.frame
    path = manifest.folder / LABELS_FILE
    if path.is_file():
        clip, name, value = LABEL_COLUMNS
        long = pd.read_parquet(path).drop_duplicates([clip, name])
        wide = long.pivot(index=clip, columns=name, values=value)
        frame = frame.join(wide[[c for c in wide.columns if c not in frame.columns]], on="clip_id")
    _require_column(frame, column, "finetune.label_column")
    labels = frame[column].fillna("").astype(str)
    frame, labels = frame[labels != ""].reset_index(drop=True), labels[labels != ""].reset_index(drop=True)
    several = labels[labels.str.contains(SEPARATOR, regex=False)]
    if len(several):
        raise ManifestError(
            f"{len(several)} clips have several labels in column {column!r}",
            expected="one class a clip",
            got=str(several.iloc[0]),
            run="--set finetune.label_column=COLUMN",
        )
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise ManifestError(
            f"column {column!r} holds fewer than two classes",
            expected="a manifest with labels",
            got=classes or "no label",
            run="--set finetune.label_column=COLUMN, or [[manifest.inputs]] with labels",
        )
    code = {name: place for place, name in enumerate(classes)}
    return LabelledClips(frame, classes, labels.map(code).to_numpy(dtype=np.int64, copy=True))


def _require_column(frame: pd.DataFrame, column: str, key: str) -> None:
    if column not in frame.columns:
        raise ConfigError(
            f"{key} names no column of the manifest: {column!r}",
            expected=near_matches(column, map(str, frame.columns)),
            got=column,
        )


def clip_samples(
    config: FinetuneConfig, frame: pd.DataFrame, rate_hz: int, window_samples: int | None
) -> int:
    """Return the samples that every clip is cut or padded to.

    Args:
        config: ``clip_seconds`` comes first.
        window_samples: the teacher's window; None (a student) takes the longest clip.
    """
    if config.clip_seconds is not None:
        return frame_count(config.clip_seconds, rate_hz)
    if window_samples is not None:
        return window_samples
    return frame_count(float(frame["duration_seconds"].max()), rate_hz)


def waveforms(
    manifest: Manifest,
    clips: LabelledClips,
    rate_hz: int,
    samples: int,
    cache: Path,
    *,
    workers: int = 2,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Float32[np.ndarray, "clips samples"]:
    """Return every clip from its start, resampled, cut or followed by zeros; a read-only map of a cached file.

    Args:
        cache: folder of the array; its file is named by what it holds.

    Raises:
        AudioError: a clip cannot be decoded any more.
    """
    rows = clips.frame[["clip_id", "root", "path"]]
    work = digest({"clips": rows["clip_id"].tolist(), "rate_hz": rate_hz, "samples": samples, "code": 1})
    path = cache / f"waveforms-{work[:12]}.npy"
    if not path.is_file():
        places = [manifest.roots[root] / name for root, name in zip(rows["root"], rows["path"], strict=True)]
        with replacing(path) as temporary:
            array = np.lib.format.open_memmap(
                temporary, mode="w+", dtype=np.float32, shape=(len(rows), samples)
            )
            with ThreadPoolExecutor(max(1, workers)) as threads:
                decoded = threads.map(lambda place: _decoded(place, rate_hz, samples), places)
                for index, waveform in enumerate(decoded):
                    array[index] = waveform
                    on_progress(index + 1, len(rows))
            array.flush()
            del array
    mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped


def _decoded(path: Path, rate_hz: int, samples: int) -> Float32[np.ndarray, " samples"]:
    native, native_hz = clip_source.read(path)
    return fit(resampling.resample(native, native_hz, rate_hz), samples)
