"""How often each row shall be drawn: by cluster, by label, by dataset, by view; and no row too often.

Weights are float64, one a row, and sum to 1: a row's share of all draws.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64

from pipeline.errors import ConfigError, TrainingError, near_matches

LABEL_SEPARATOR = ";"  # as the manifest joins several labels of a clip
PUBLISHED_LABEL_OFFSET = 100.0
# Keys of a view's parameters that say that the view has the part.
VIEW_KEYS = {
    "background": "snr_db",
    "room": "room",
    "device": "device",
    "band": "low_pass_hz",
    "gain": "gain_db",
}


def cluster_weights(clusters: Int64[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
    """Return ``1 / rows of the row's cluster / number of clusters that have rows``.

    Every cluster is drawn equally often, as in S-SONDO (2026), where this is "Balanced Data Sampling".

    Args:
        clusters: cluster of each row that may be drawn; numbers need not be dense.

    Raises:
        TrainingError: a row has no cluster (a negative number), or there is no row.
    """
    if not len(clusters) or clusters.min() < 0:
        raise TrainingError(
            "a row has no cluster", expected="every row that may be drawn", got=int((clusters < 0).sum())
        )
    _, place, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    return 1.0 / sizes[place] / len(sizes)


def label_weights(
    labels: Sequence[Sequence[int]], offset: float = PUBLISHED_LABEL_OFFSET
) -> Float64[np.ndarray, " rows"]:
    """Return the sum over a row's labels of ``1 / (offset + rows with the label)``, normalised to sum 1.

    The weights of PANNs' and EfficientAT's class-balanced sampling (Kong et al., 2020; Schmid et al., 2023),
    where the numerator is 1000; it cancels.

    Args:
        labels: classes of each row, several or none.
        offset: added to every class's rows.

    Raises:
        TrainingError: no row has a label.
    """
    lengths = np.array([len(row) for row in labels])
    flat = np.array([label for row in labels for label in row], dtype=np.int64)
    if not len(flat):
        raise TrainingError(
            "no row has a label", run="set sampling.label_column, or sampling.balance = 'none'"
        )
    _, place, counts = np.unique(flat, return_inverse=True, return_counts=True)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    weights = np.bincount(owners, 1.0 / (offset + counts[place]), minlength=len(lengths))
    return np.asarray(weights / weights.sum())


def label_codes(values: pd.Series, one_label_for_none: bool = False) -> list[list[int]]:
    """Return each row's classes as numbers: its labels, joined by ``;``, each once, without surrounding spaces.

    ``one_label_for_none`` gives rows without a label a class of their own.
    """
    codes: dict[str, int] = {}
    found = []
    for value in values.fillna("").astype(str):
        names = dict.fromkeys(name.strip() for name in value.split(LABEL_SEPARATOR))
        chosen = [name for name in names if name] or ([""] if one_label_for_none else [])
        found.append([codes.setdefault(name, len(codes)) for name in chosen])
    return found


def with_shares(
    weights: Float64[np.ndarray, " rows"], groups: np.ndarray, shares: Mapping[str, float], what: str
) -> Float64[np.ndarray, " rows"]:
    """Return ``weights`` scaled within each group so that the groups have the given shares of the draws.

    Args:
        weights: relative; only those within a group are compared.
        groups: name of each row's group.
        shares: group to share, relative.
        what: of the groups, for messages (``dataset``, ``view``).

    Raises:
        ConfigError: a group without a share, or one with a share and without rows.
    """
    wanted = {name: share for name, share in shares.items() if share > 0}
    there = set(map(str, groups))
    for name in shares:
        if name not in there:
            raise ConfigError(
                f"sampling.{what}_weights names a {what} that no training row has: {name!r}",
                expected=near_matches(name, sorted(there)), got=name,
            )  # fmt: skip
    missing = sorted(there - set(shares))
    if missing:
        raise ConfigError(
            f"sampling.{what}_weights says nothing of {', '.join(missing)}",
            expected=f"a share for every {what}; 0 leaves it out", got=sorted(shares),
        )  # fmt: skip
    scaled = np.zeros(len(weights))
    for name, share in wanted.items():
        inside = groups == name
        total = weights[inside].sum()
        if total <= 0:
            raise TrainingError(f"every row of {what} {name!r} has the weight 0", run="change [sampling]")
        scaled[inside] = weights[inside] / total * share
    return np.asarray(scaled / scaled.sum())


def view_classes(rows: pd.DataFrame, views: Sequence[str]) -> np.ndarray:
    """Return which of ``views`` each row is; "" for none of them.

    ``augmented:device`` takes the augmented views that have a device; those that fit several such entries
    belong to the first in alphabetical order, and plain ``augmented`` takes those that fit none.
    """
    kinds = (
        rows["view"].astype(str).to_numpy(dtype=object)
        if "view" in rows
        else np.full(len(rows), "clean", object)
    )
    found = np.full(len(rows), "", dtype=object)
    parameters: list[dict[str, object]] | None = None
    for view in sorted(views, key=lambda name: (":" not in name, name)):
        kind, _, part = view.partition(":")
        fits = kinds == kind
        if part:
            if parameters is None:
                parameters = [json.loads(text) if text else {} for text in _parameters(rows)]
            fits &= np.array([_has(one, part) for one in parameters], dtype=bool)
        found[fits & (found == "")] = view
    return found


def _has(parameters: Mapping[str, object], part: str) -> bool:
    value = parameters.get(VIEW_KEYS[part])
    return value is not None and (part != "gain" or value != 0)


def _parameters(rows: pd.DataFrame) -> list[str]:
    if "view_parameters" not in rows:
        return [""] * len(rows)
    return [str(text) for text in rows["view_parameters"].fillna("")]


def capped(
    weights: Float64[np.ndarray, " rows"], rows: int, max_repeats: float
) -> Float64[np.ndarray, " rows"]:
    """Return ``weights`` of which none adds up to more than ``max_repeats`` expected draws in ``rows``.

    What is cut off goes to the other rows in proportion: the result is ``min(s * weight, limit)`` with the one
    scale ``s`` that makes it sum to 1.

    Raises:
        ConfigError: the rows that may be drawn cannot fill an epoch even at the limit.
    """
    limit = max_repeats / rows
    positive = int((weights > 0).sum())
    if positive * limit < 1 - 1e-12:
        raise ConfigError(
            "sampling.max_repeats leaves an epoch unfilled",
            expected=f"at least {rows / positive:.4g} repeats of {positive} rows for {rows} draws",
            got=max_repeats,
            run=f"raise sampling.max_repeats, or --set sampling.epoch_rows={int(positive * max_repeats)}",
        )
    order = np.argsort(-weights, kind="stable")
    heavy = weights[order]
    remaining = np.cumsum(heavy[::-1])[::-1]
    # With the k heaviest at the limit, the others' scale is (1 - k * limit) / remaining[k]; the k-th is cut
    # where that scale would lift it past the limit too.
    past = heavy * (1 - np.arange(len(heavy)) * limit) > limit * remaining
    cut = min(int(np.argmin(past)) if not past.all() else len(past), positive)
    scale = (1 - cut * limit) / remaining[cut] if cut < positive else 0.0
    result = np.empty(len(weights))
    result[order] = np.where(np.arange(len(weights)) < cut, limit, heavy * scale)
    return result
