"""Scores of embeddings on a task, and what they say beside the teacher and the floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float32

from pipeline.config import EvaluateConfig
from pipeline.evaluation import bootstrap, probe_answers, probes, significance
from pipeline.evaluation.clips import TaskClips
from pipeline.evaluation.probes import ProbeAnswers

TEACHER, STUDENT, INT8, RANDOM, LABELS, LOG_MEL = "teacher", "student", "int8", "random", "labels", "log_mel"
REFERENCE = "reference"


@dataclass(frozen=True)
class Model:
    """Which model a score is of.

    Attributes:
        key: unique, fit for a file name: ``cnn4-seed1``, ``cnn4-seed1-int8``, ``teacher-aisfx``.
        role: ``teacher``, ``student``, ``int8``, ``random``, ``labels``, ``log_mel``, ``reference`` (another teacher).
        name: the run's name, without its seed: ``cnn4``, ``aisfx``, ``mean_std``.
        seed: of the run; None where there is none.
        floor: key of the network whose random initialisations are its floor; equal for student and floor.
        source: digest of the run or file it comes from.
    """

    key: str
    role: str
    name: str
    seed: int | None = None
    floor: str = ""
    source: str = ""

    @property
    def label(self) -> str:
        """The run's label as training called it."""
        return self.name if self.seed is None else f"{self.name}-seed{self.seed}"


@dataclass(frozen=True)
class Score:
    """One model, one task, one probe. ``score`` is the mean over ``folds``; ``low`` and ``high`` its 95 % interval.

    Of a task with a development split: the C, alpha or k chosen there (``strength``), its score there, and whether it
    is the grid's first or last.
    """

    model: str
    role: str
    name: str
    run: str
    seed: int | None
    floor: str
    task: str
    probe: str
    score: float
    low: float
    high: float
    folds: list[float]
    strength: float | None = None
    development_score: float | None = None
    at_edge: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the row of ``scores.json``."""
        return asdict(self)


@dataclass(frozen=True)
class Answers:
    """Which clips of a task each model classified rightly.

    Attributes:
        task: its name; ``metric``: how it is scored.
        labels, groups, folds: of the clips that every model could hear.
        correct: (model key, probe) to (clips,), in their order.
        outcomes: the answers themselves, with their probabilities, by the same keys.
        heard: of all of the task's clips, which they are.
    """

    task: str
    metric: str
    labels: np.ndarray
    groups: np.ndarray
    folds: np.ndarray
    correct: dict[tuple[str, str], Bool[np.ndarray, " clips"]]
    outcomes: dict[tuple[str, str], ProbeAnswers] = field(default_factory=dict)
    heard: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))

    def table(self) -> pd.DataFrame:
        """Return a row a heard clip: ``row`` (of the task's clips), ``group``, ``truth``, ``<model key>.<probe>``."""
        columns = {"row": np.flatnonzero(self.heard), "group": self.groups, "truth": self.labels}
        columns |= {f"{key}.{probe}": found.predicted for (key, probe), found in self.outcomes.items()}
        return pd.DataFrame(columns)


def answer_task(
    clips: TaskClips,
    embeddings: Mapping[str, Float32[np.ndarray, "clips dim"]],
    settings: EvaluateConfig,
    cache: Path | None = None,
) -> Answers:
    """Return the answers of every model under every probe; clips that no model could hear are left out of all.

    Args:
        clips: a labelled task.
        embeddings: clip vectors by model key.
        settings: of the probes.
        cache: folder of earlier answers, see :mod:`~pipeline.evaluation.probe_answers`; None = none.
    """
    heard = np.ones(len(clips.frame), dtype=bool)
    for vectors in embeddings.values():
        heard &= ~np.isnan(vectors).all(axis=1)
    frame = clips.frame[heard]
    labels, groups = frame["label"].to_numpy(dtype=str), frame["group"].to_numpy(dtype=str)
    folds = frame["fold"].to_numpy(dtype=np.int64)
    probe_settings = probes.ProbeSettings(settings.neighbours, settings.logistic_c)
    outcomes = {
        (key, probe): probe_answers.answers(probe, vectors[heard], labels, folds, probe_settings, cache)
        for key, vectors in embeddings.items()
        for probe in probes.PROBES
    }
    correct = {place: found.predicted == labels for place, found in outcomes.items()}
    return Answers(clips.task.name, clips.task.metric, labels, groups, folds, correct, outcomes, heard)


def score_task(
    clips: TaskClips,
    models: Mapping[str, Model],
    embeddings: Mapping[str, Float32[np.ndarray, "clips dim"]],
    settings: EvaluateConfig,
) -> list[Score]:
    """Return the scores of every model under every probe; see :func:`answer_task`.

    Args:
        clips: a labelled task.
        models: by key.
        embeddings: clip vectors by the same keys.
        settings: probes, resamples and seed.
    """
    given = {key: embeddings[key] for key in models}
    return score_answers(answer_task(clips, given, settings), models, settings)


def score_answers(answers: Answers, models: Mapping[str, Model], settings: EvaluateConfig) -> list[Score]:
    """Return score and 95 % interval of every model and probe."""
    drawn = draws(answers, settings)
    rows = []
    for (key, probe), correct in answers.correct.items():
        model = models[key]
        per_fold = probes.score(correct, answers.labels, answers.folds, answers.metric)
        low, high = bootstrap.bounds(drawn[key, probe]) if drawn else (float("nan"), float("nan"))
        rows.append(
            Score(
                key, model.role, model.name, model.label, model.seed, model.floor, answers.task, probe,
                float(np.mean(per_fold)), low, high, per_fold,
            )
        )  # fmt: skip
    return rows


def draws(
    answers: Answers, settings: EvaluateConfig
) -> dict[tuple[str, str], Float[np.ndarray, " resamples"]]:
    """Return the score of every (model key, probe) in each draw of recordings, the same draws for all; {} of none.

    Args:
        answers: of the models.
        settings: resamples and seed.
    """
    if not settings.bootstrap:
        return {}
    each = bootstrap.draws_of_each(
        list(answers.correct.values()), answers.labels, answers.groups, answers.folds,
        metric=answers.metric, resamples=settings.bootstrap, seed=settings.seed,
    )  # fmt: skip
    return dict(zip(answers.correct, each, strict=True))


@dataclass(frozen=True)
class Difference:
    """Score of ``model`` less that of ``reference`` on the same clips, and its paired 95 % interval.

    ``p_value``: of the same draws, two-sided, before any correction for how many differences are looked at.
    """

    task: str
    probe: str
    model: str
    reference: str
    difference: float
    low: float
    high: float
    p_value: float | None = None

    @property
    def decided(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def differences(answers: Answers, settings: EvaluateConfig) -> list[Difference]:
    """Return the difference of every two models under every probe, the later less the earlier.

    What makes a recording hard makes it hard for both models; drawn together it cancels, so that the interval is that
    of their difference and not of two scores (paired percentile bootstrap).
    """
    keys = list(dict.fromkeys(key for key, _ in answers.correct))
    labels, folds, metric = answers.labels, answers.folds, answers.metric
    drawn = draws(answers, settings)
    found = []
    for probe in probes.PROBES:
        values = {
            key: float(np.mean(probes.score(answers.correct[key, probe], labels, folds, metric)))
            for key in keys
        }
        for first, reference in enumerate(keys):
            for model in keys[first + 1 :]:
                low = high = p_value = float("nan")
                if drawn:
                    apart = drawn[model, probe] - drawn[reference, probe]
                    low, high = bootstrap.bounds(apart)
                    p_value = significance.p_value(apart)
                difference = values[model] - values[reference]
                found.append(
                    Difference(answers.task, probe, model, reference, difference, low, high, p_value)
                )
    return found


def summarise(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Return one row a model name, role, task and probe: mean and spread over seeds, retention and share of the gap.

    ``retention`` = student / teacher. ``share`` = (student - floor) / (teacher - floor): the part of the gap
    between a random initialisation of the same network and its teacher that the student recovers; the floor is
    the mean over all random seeds, the student one seed at a time, then mean and sample standard deviation
    over seeds. None where there is no teacher or no floor, or where the teacher is not above the floor.
    """
    grouped: dict[tuple[str, str, str, str], list[Score]] = {}
    for row in scores:
        grouped.setdefault((row.task, row.probe, row.role, row.name), []).append(row)
    summary = []
    for (task, probe, role, name), rows in grouped.items():
        values = [row.score for row in rows]
        teacher = _mean(s.score for s in scores if (s.task, s.probe, s.role) == (task, probe, TEACHER))
        floor = _mean(
            s.score
            for s in scores
            if (s.task, s.probe, s.role, s.floor) == (task, probe, RANDOM, rows[0].floor) and rows[0].floor
        )
        compared = role in (STUDENT, INT8, LABELS)
        # A correlation or R2 may be below 0, and a share of that says nothing.
        retentions = [v / teacher for v in values] if compared and teacher is not None and teacher > 0 else []
        shares: list[float] = []
        if compared and teacher is not None and floor is not None and teacher > floor:
            shares = [(v - floor) / (teacher - floor) for v in values]
        summary.append(
            {
                "task": task, "probe": probe, "role": role, "name": name, "seeds": len(values),
                "mean": float(np.mean(values)), "spread": _spread(values),
                "low": float(np.mean([row.low for row in rows])), "high": float(np.mean([row.high for row in rows])),
                "teacher": teacher, "floor": floor,
                "retention": _mean(retentions), "retention_spread": _spread(retentions),
                "share": _mean(shares), "share_spread": _spread(shares),
            }
        )  # fmt: skip
    return summary


def _mean(values: Any) -> float | None:
    found = list(values)
    return float(np.mean(found)) if found else None


def _spread(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation; None for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
