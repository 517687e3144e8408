"""The confusion matrix as numbers and as a picture, and what several networks give together."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from pipeline import artifact

log = logging.getLogger(__name__)

JSON_FILE = "confusion.json"
PICTURE_FILE = "confusion.png"


def confusion_matrix(
    truth: Int64[np.ndarray, " rows"], guess: Int64[np.ndarray, " rows"], classes: int
) -> Int64[np.ndarray, "classes classes"]:
    """Return counts: row = the clip's class, column = the answer."""
    counts: np.ndarray = np.bincount(truth * classes + guess, minlength=classes**2)
    return counts.reshape(classes, classes)


def write_confusion(
    folder: Path, matrix: Int64[np.ndarray, "classes classes"], classes: Sequence[str], title: str
) -> None:
    """Write ``confusion.json`` (counts, recall by class, accuracy) and, where matplotlib is there, a picture."""
    artifact.write_json(folder / JSON_FILE, described(matrix, classes))
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        log.warning("%s is not drawn: pip install 'ossicle[report]'", folder / PICTURE_FILE)
        return
    side = 2.5 + 0.35 * len(classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    places = range(len(classes))
    axes.set_xticks(places, classes, rotation=90)
    axes.set_yticks(places, classes)
    axes.set_xlabel("answer")
    axes.set_ylabel("class")
    axes.set_title(f"{title}: {np.trace(matrix)} of {matrix.sum()} right")
    for row in places:
        for column in places:
            if matrix[row, column]:
                colour = "white" if share[row, column] > 0.5 else "black"
                axes.text(
                    column, row, str(matrix[row, column]), ha="center", va="center", color=colour, fontsize=8
                )
    with artifact.replacing(folder / PICTURE_FILE) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def described(matrix: Int64[np.ndarray, "classes classes"], classes: Sequence[str]) -> dict[str, Any]:
    """Return classes, counts (row = class, column = answer), recall of each class, and accuracy."""
    totals = matrix.sum(axis=1)
    recall = {
        name: float(matrix[place, place] / totals[place]) if totals[place] else None
        for place, name in enumerate(classes)
    }
    return {
        "classes": list(classes),
        "counts": matrix.tolist(),
        "recall": recall,
        "accuracy": float(np.trace(matrix) / max(int(matrix.sum()), 1)),
    }


def ensemble(
    logits: Sequence[np.ndarray], truth: Int64[np.ndarray, " rows"]
) -> tuple[float, Int64[np.ndarray, "classes classes"]]:
    """Return accuracy and confusion matrix of the members' averaged logits on the same clips."""
    mean = np.mean(np.stack(logits).astype(np.float64), axis=0)
    guess = mean.argmax(axis=1)
    return float((guess == truth).mean()), confusion_matrix(truth, guess, mean.shape[1])
