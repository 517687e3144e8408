"""Log-mels of a finished store for int8: training rows set the ranges, held-out rows judge the result."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64
from onnxruntime.quantization import CalibrationDataReader

from pipeline.config import ExportConfig
from pipeline.deploy.calibration_draw import ClusterDraw, drawn_rows
from pipeline.deploy.onnx_export import INPUT
from pipeline.errors import StoreError
from pipeline.store.reader import StoreReader
from pipeline.store.schema import OK

BATCH_ROWS = 16
# Fewer rows than these tell no layer from another; then the held-out rows choose too.
LEAST_CHOICE_ROWS = 32


@dataclass(frozen=True)
class LabelledRows:
    """Rows with classes, for the probe: log-mels (rows, 1, mels, frames), class and group of each.

    Attributes:
        log_mels: float32 inputs.
        labels: class names, none empty.
        groups: clips that folds must not split.
    """

    log_mels: Float[np.ndarray, "rows 1 mels frames"]
    labels: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True)
class CalibrationRows:
    """Inputs for quantisation, float32 (rows, 1, mels, frames); no part shares a row with another.

    Attributes:
        calibration: training rows that set the activation ranges.
        held_out: rows that did not; int8 is compared with float on them.
        held_out_split: the split that ``held_out`` came from.
        choice: further training rows on which layers and methods are chosen; None = ``held_out`` does it too.
        labelled: training rows with classes, for the probe; None where the store has too few.
        draw: how ``calibration`` was drawn, in words.
    """

    calibration: Float[np.ndarray, "rows 1 mels frames"]
    held_out: Float[np.ndarray, "rows 1 mels frames"]
    held_out_split: str
    choice: Float[np.ndarray, "rows 1 mels frames"] | None = None
    labelled: LabelledRows | None = None
    draw: str = "first of the store"

    @property
    def choosing(self) -> Float[np.ndarray, "rows 1 mels frames"]:
        """Return the rows that decide between quantised files."""
        return self.held_out if self.choice is None else self.choice


def rows_for(reader: StoreReader, config: ExportConfig) -> CalibrationRows:
    """Return the rows that the recipe's ``export`` section asks for; by cluster, the reader's teacher is chosen.

    Raises:
        StoreError: too few usable rows, or several teachers and none chosen.
    """
    draw = None
    if config.calibration_draw != "stored":
        nearest = config.calibration_draw == "cluster_nearest"
        draw = ClusterDraw(config.calibration_clusters, nearest, config.calibration_seed)
    clips = config.calibration_clips
    return read_rows(reader, calibration=clips, draw=draw, label_column=config.probe_column)


def read_rows(
    reader: StoreReader,
    *,
    calibration: int,
    held_out: int = 256,
    choice: int = 256,
    draw: ClusterDraw | None = None,
    label_column: str | None = None,
    labelled: int = 256,
) -> CalibrationRows:
    """Take rows of the store, in its order (a store's rows are already shuffled), for every use.

    Held-out rows are of the validation split; where that has fewer than two usable rows, they are the
    training rows that follow those used for calibration.

    Args:
        reader: the store; with ``draw``, its teacher array chosen.
        calibration: training rows that set the ranges.
        held_out, choice, labelled: rows of the other uses, at most.
        draw: draw the calibration rows by cluster; None = the first.
        label_column: whose classes are probed; None, or a column that is not there = no probe.

    Raises:
        StoreError: the store has too few usable training rows.
    """
    training, validation = _usable(reader, "train"), _usable(reader, "validation")
    compared, split = validation[:held_out], "validation"
    if len(validation) < 2:
        # Two rows at least are kept back, so that a tiny store still has something to judge by.
        calibration, split = min(calibration, len(training) - 2), "train"
    if calibration < 1 or not len(training) or len(training) + len(validation) < 3:
        raise StoreError(
            "too few usable rows to compare exported files on, and to calibrate int8",
            expected="at least 1 training row and 2 held-out rows",
            got=f"{len(training)} training and {len(validation)} validation rows",
            run="ossicle embed with more audio",
        )
    calibrating = training[:calibration] if draw is None else drawn_rows(reader, training, calibration, draw)
    others = np.setdiff1d(training, calibrating, assume_unique=True)
    if split == "train":
        compared, others = others[:held_out], others[held_out:]
    choosing, others = others[:choice], others[choice:]
    if len(choosing) < LEAST_CHOICE_ROWS:
        choosing = choosing[:0]
    probed = _labelled(reader, others, label_column)[:labelled]
    found = _read(reader, np.concatenate([calibrating, compared, choosing, probed]))
    ends = np.cumsum([len(calibrating), len(compared), len(choosing)])
    parts = np.split(found, ends)
    words = "first of the store"
    if draw is not None:
        words = f"{'nearest to' if draw.nearest else 'drawn from'} {draw.clusters} clusters, seed {draw.seed}"
    return CalibrationRows(
        parts[0],
        parts[1],
        split,
        choice=parts[2] if len(choosing) else None,
        labelled=_with_classes(reader, probed, parts[3], label_column),
        draw=words,
    )


def _usable(reader: StoreReader, split: str) -> Int64[np.ndarray, " rows"]:
    wanted = (reader.rows["split"] == split) & (reader.rows["status"] == OK)
    return np.flatnonzero(wanted.to_numpy())


def _labelled(reader: StoreReader, rows: np.ndarray, column: str | None) -> Int64[np.ndarray, " rows"]:
    if column is None or column not in reader.rows.columns:
        return rows[:0]
    values = reader.rows[column].iloc[rows]
    return rows[(values.notna() & (values.astype(str) != "")).to_numpy()]


def _with_classes(
    reader: StoreReader, rows: np.ndarray, log_mels: np.ndarray, column: str | None
) -> LabelledRows | None:
    if not len(rows):
        return None
    table = reader.rows.iloc[rows]
    groups = table["clip_id"] if "clip_id" in table.columns else table["key"]
    return LabelledRows(log_mels, table[column].astype(str).to_numpy(str), groups.astype(str).to_numpy(str))


def _read(reader: StoreReader, rows: np.ndarray) -> Float[np.ndarray, "rows 1 mels frames"]:
    """Return the log-mels of ``rows`` in their order, each shard read once."""
    found = np.empty((len(rows), 1, *reader.spectrogram.row_shape), dtype=np.float32)
    for shard in range(reader.meta.shards):
        start, stop = reader.meta.bounds(shard)
        inside = np.flatnonzero((rows >= start) & (rows < stop))
        if len(inside):
            spectrograms = reader.read_shard(shard, arrays=("spectrogram",))["spectrogram"]
            found[inside, 0] = spectrograms[rows[inside] - start]
    return found


class LogMelBatches(CalibrationDataReader):
    """ONNX Runtime's view of the calibration rows: one batch a call, then None."""

    def __init__(
        self, log_mels: Float[np.ndarray, "rows 1 mels frames"], batch_rows: int = BATCH_ROWS
    ) -> None:
        self._log_mels, self._batch_rows = log_mels, batch_rows
        self.rewind()

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch as the graph's inputs, or None after the last."""
        if self._next >= len(self._log_mels):
            return None
        batch = self._log_mels[self._next : self._next + self._batch_rows]
        self._next += self._batch_rows
        return {INPUT: batch}

    def rewind(self) -> None:
        """Start again from the first row."""
        self._next = 0
