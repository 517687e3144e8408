"""Probes of tasks with several labels a clip, some of which nobody gave: one logistic regression a tag, k-NN shares.

A tag without a label on a clip (NaN) is neither yes nor no: the clip takes no part in learning that tag. A tag whose
labels are all equal is answered with their value, which ranks nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from pipeline.errors import OssicleError

_MAX_ITERATIONS = 2_000


def one_vs_rest(
    train: Float[np.ndarray, "train dim"],
    truth: Float[np.ndarray, "train tags"],
    rows: Float[np.ndarray, "rows dim"],
    strengths: Sequence[float],
) -> Float[np.ndarray, "strengths rows tags"]:
    """Return each tag's probability by its own logistic regression, for every C.

    Args:
        train: features.
        truth: 1, 0, or NaN where the tag was not labelled.
        rows: features to answer.
        strengths: C; each fit starts from the last.

    Raises:
        OssicleError: a regression does not converge.
    """
    answers = np.zeros((len(strengths), len(rows), truth.shape[1]))
    for tag in range(truth.shape[1]):
        known = ~np.isnan(truth[:, tag])
        labels = truth[known, tag]
        if len(np.unique(labels)) < 2:
            answers[:, :, tag] = labels[0] if len(labels) else 0.0
            continue
        model = LogisticRegression(warm_start=True, max_iter=_MAX_ITERATIONS)
        for place, strength in enumerate(strengths):
            model.set_params(C=strength)
            with warnings.catch_warnings():
                warnings.simplefilter("error", ConvergenceWarning)
                try:
                    model.fit(train[known], labels)
                except ConvergenceWarning as warning:
                    raise OssicleError(
                        f"logistic regression of tag {tag} did not converge with C = {strength:g}",
                        got=str(warning).splitlines()[0],
                        run="--set evaluate.grid.logistic_c=[0.0001,0.001,0.01]",
                    ) from warning
            answers[place, :, tag] = model.predict_proba(rows)[:, 1]
    return answers


def tag_vote(
    truth: Float[np.ndarray, "train tags"], neighbours: Int[np.ndarray, "rows k"], counts: Sequence[int]
) -> Float[np.ndarray, "strengths rows tags"]:
    """Return the share of the first ``counts`` neighbours that have each tag, of those that are labelled.

    Where none of them is labelled, the share among all rows.
    """
    known = ~np.isnan(truth)
    positive = np.where(known, truth, 0.0)
    labelled = known.sum(axis=0)
    share = np.divide(positive.sum(axis=0), labelled, out=np.zeros(truth.shape[1]), where=labelled > 0)
    answers = np.empty((len(counts), len(neighbours), truth.shape[1]))
    for place, count in enumerate(counts):
        nearest = neighbours[:, :count]
        # Row by row of neighbours: all at once would hold rows x k x tags.
        votes, voters = np.zeros(answers.shape[1:]), np.zeros(answers.shape[1:])
        for column in nearest.T:
            votes += positive[column]
            voters += known[column]
        answers[place] = np.where(voters > 0, votes / np.maximum(voters, 1), share)
    return answers
