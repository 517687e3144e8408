"""Answers of the probes of tasks with splits, kept on disk by content: no probe is fitted twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from pipeline import config
from pipeline.evaluation import metrics, npz_cache
from pipeline.evaluation.probes import LINEAR
from pipeline.evaluation.split_probes import Answer, SplitProbes
from pipeline.evaluation.split_task import SplitTask
from pipeline.probe_config import ProbeGridConfig

CODE_VERSION = "split_answers/1"


class SplitAnswers:
    """The answers of one embedding on one set of rows: read where ``cache`` has them, else fitted and written there.

    Args:
        embedding: (rows, dim) frozen, of the task's rows.
        task: its rows, split and groups; those of other tasks that are asked must be the same.
        grid: strengths and folds.
        seed: of the folds.
        cache: folder of earlier answers, one file each: ``<cache>/<digest>.npz``; None = none.
    """

    def __init__(
        self,
        embedding: Float[np.ndarray, "rows dim"],
        task: SplitTask,
        grid: ProbeGridConfig,
        seed: int,
        cache: Path | None = None,
    ) -> None:
        self._fit: Callable[[], SplitProbes] = lambda: SplitProbes(
            embedding, task.held_out, task.groups, grid, seed, task.validation
        )
        self._probes: SplitProbes | None = None
        self._grid, self._cache = grid, cache
        self._rows: dict[str, Any] = {}
        if cache is not None:
            self._rows = {
                "code": CODE_VERSION, "embedding": _digest(embedding), "held_out": _digest(task.held_out),
                "groups": _digest(task.groups), "seed": seed, "folds": grid.folds,
                "validation": None if task.validation is None else _digest(task.validation),
            }  # fmt: skip

    def answer(self, probe: str, task: SplitTask) -> Answer:
        """Return the answers to the test rows; errors are those of :class:`SplitProbes`."""
        if self._cache is None:
            return self._fitted(probe, task)
        strengths: Any = self._grid.neighbours
        if probe == LINEAR:
            of_values = metrics.find(task.metric).kind == "values"
            strengths = self._grid.ridge_alpha if of_values else self._grid.logistic_c
        asked = {"probe": probe, "metric": task.metric, "truth": _digest(task.truth), "strengths": strengths}
        digest = config.digest({**self._rows, **asked})
        return npz_cache.read_or_make(self._cache, digest, lambda: self._fitted(probe, task), _pack, _unpack)

    def _fitted(self, probe: str, task: SplitTask) -> Answer:
        if self._probes is None:
            self._probes = self._fit()
        return self._probes.answer(probe, task.truth[~task.held_out], task.metric)


def _digest(values: np.ndarray) -> str:
    rows = np.ascontiguousarray(values)
    content = rows.tobytes() if rows.dtype.kind != "O" else "\0".join(map(str, rows.tolist())).encode()
    return hashlib.sha256(f"{rows.dtype.str} {rows.shape} ".encode() + content).hexdigest()


def _pack(answer: Answer) -> dict[str, Any]:
    arrays: dict[str, Any] = {
        "prediction": answer.prediction, "strength": answer.strength, "at_edge": answer.at_edge,
        "development_score": answer.development_score,
    }  # fmt: skip
    if answer.probabilities is not None and answer.classes is not None:
        arrays |= {"probabilities": answer.probabilities, "classes": answer.classes}
    return arrays


def _unpack(stored: Mapping[str, np.ndarray]) -> Answer:
    shares = (stored["probabilities"], stored["classes"]) if "classes" in stored else (None, None)
    return Answer(
        stored["prediction"], float(stored["strength"]), float(stored["development_score"]),
        bool(stored["at_edge"]), *shares,
    )  # fmt: skip
