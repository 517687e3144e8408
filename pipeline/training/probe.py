"""A linear probe scored while training goes on: what the embeddings of held-out rows tell of a label column."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

from pipeline.config import TrainConfig
from pipeline.errors import TrainingError
from pipeline.training.controls import column_text
from pipeline.training.rows import ShardReader

FOLDS = 5
RIDGE = 1.0
# What rows of one recording share, by the store's column; the first that is there counts.
GROUP_COLUMNS = ("group", "clip_id", "key")


@dataclass(frozen=True)
class Probe:
    """The held-out rows that have a label.

    Attributes:
        places: which of the held-out rows they are.
        codes: their classes; folds: each one's fold, the same for all rows of a recording.
    """

    places: Int[np.ndarray, " rows"]
    codes: Int[np.ndarray, " rows"]
    folds: Int[np.ndarray, " rows"]

    def accuracy(self, embedding: Float[np.ndarray, "held_out dim"]) -> float:
        """Return the share of rows whose class a ridge classifier tells that was fitted on the other folds."""
        rows = embedding[self.places]
        hits = np.zeros(len(rows), dtype=bool)
        for fold in range(FOLDS):
            tested = self.folds == fold
            if not tested.any() or len(np.unique(self.codes[~tested])) < 2:
                continue
            scaler = StandardScaler().fit(rows[~tested])
            classifier = RidgeClassifier(alpha=RIDGE).fit(
                scaler.transform(rows[~tested]), self.codes[~tested]
            )
            hits[tested] = classifier.predict(scaler.transform(rows[tested])) == self.codes[tested]
        return float(hits.mean())


def read_probe(reader: ShardReader, index: Int[np.ndarray, " held_out"], config: TrainConfig) -> Probe | None:
    """Return the probe of ``train.probe_column`` over the held-out rows ``index``, None where none is asked for.

    Raises:
        ConfigError: no such column.
        TrainingError: fewer than two classes, or recordings, among the held-out rows.
    """
    if config.probe_column is None:
        return None
    texts = np.array(column_text(reader, config.probe_column, "train.probe_column"), dtype=object)[index]
    places = np.flatnonzero(texts != "")
    classes, codes = np.unique(texts[places].astype(str), return_inverse=True)
    frame = reader.rows.iloc[index[places]]
    column = next(name for name in GROUP_COLUMNS if name in frame.columns)
    names = frame[column].astype(str)
    if "dataset" in frame.columns:
        names = frame["dataset"].astype(str) + "/" + names
    groups, group_codes = np.unique(names.to_numpy(dtype=str), return_inverse=True)
    if len(classes) < 2 or len(groups) < 2:
        raise TrainingError(
            "train.probe_column has too little to tell apart among the validation rows",
            expected="two classes or more, of two recordings or more",
            got=f"{len(classes)} classes, {len(groups)} recordings in {len(places)} labelled rows",
            run="--set train.probe_column=COLUMN, or null",
        )
    return Probe(places, codes, _folds(codes, group_codes))


def _folds(codes: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Deal the groups out to folds, class by class, so that each fold has of every class; no draw."""
    first = np.unique(groups, return_index=True)[1]
    order = first[np.argsort(codes[first], kind="stable")]
    fold_of_group = np.empty(len(first), dtype=np.int64)
    fold_of_group[groups[order]] = np.arange(len(order)) % FOLDS
    folds: np.ndarray = fold_of_group[groups]
    return folds
