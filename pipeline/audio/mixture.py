"""Internal mixes: which windows of which dataset are kept, by caps and by weights."""

from __future__ import annotations

import logging
import math

import numpy as np
import pandas as pd

from pipeline.config import ManifestConfig
from pipeline.errors import ConfigError, near_matches
from pipeline.manifest import draw_order

log = logging.getLogger(__name__)


def kept(windows: pd.DataFrame, manifest: ManifestConfig) -> np.ndarray:
    """Return which windows stay: bool (rows,).

    Caps come first: a dataset keeps at most that many windows. Weights then share out what is kept:
    ``total_windows`` of them or, without it, as many as give every dataset its share with no window twice. A
    dataset that cannot fill its share gives all it has, and the others share the rest by their weights.
    Windows are drawn by their content, so that adding a dataset changes the draw of no other.

    Args:
        windows: clean windows, with ``dataset`` and ``key``.
        manifest: caps, weights, total, seed of the draw.

    Raises:
        ConfigError: weights leave a dataset of the manifest out, name one that it does not hold, or leave nothing.
    """
    keep = np.ones(len(windows), dtype=bool)
    if windows.empty:
        return keep
    names = windows["dataset"].to_numpy()
    members = {str(name): np.flatnonzero(names == name) for name in sorted(set(names))}
    most = {name: len(places) for name, places in members.items()}
    for name, cap in manifest.caps.items():
        if name not in most:
            log.info("manifest.caps names %r, which the manifest does not hold", name)
            continue
        most[name] = min(most[name], cap)
    if manifest.weights:
        _check_weights(most, manifest.weights)
        most = shares(most, manifest.weights, manifest.total_windows)
    for name, count in most.items():
        places = members[name]
        if count < len(places):
            order = draw_order(windows["key"].iloc[places], manifest.seed)
            keep[places[order[count:]]] = False
    return keep


def shares(available: dict[str, int], weights: dict[str, float], total: int | None) -> dict[str, int]:
    """Return how many windows each dataset gives.

    Args:
        available: windows that each dataset has, caps applied.
        weights: relative share of each; 0 = none.
        total: windows wanted in all; None = the most that keeps every share exact to a window.

    Example:
        >>> shares({"audioset": 100, "own": 30}, {"audioset": 1, "own": 1}, None)
        {'audioset': 30, 'own': 30}
        >>> shares({"audioset": 100, "own": 30}, {"audioset": 1, "own": 1}, 80)
        {'audioset': 50, 'own': 30}
    """
    open_names = [name for name in available if weights[name] > 0 and available[name]]
    given = dict.fromkeys(available, 0)
    if total is None:
        per_weight = min((available[name] / weights[name] for name in open_names), default=0.0)
        return given | {name: math.floor(per_weight * weights[name] + 1e-9) for name in open_names}
    left = total
    while open_names and left > 0:
        weight = sum(weights[name] for name in open_names)
        full = [name for name in open_names if left * weights[name] / weight >= available[name]]
        if not full:
            exact = {name: left * weights[name] / weight for name in open_names}
            given |= {name: math.floor(share) for name, share in exact.items()}
            short = left - sum(given[name] for name in open_names)
            by_rest = sorted(open_names, key=lambda name: (given[name] - exact[name], name))
            for name in by_rest[:short]:
                given[name] += 1
            return given
        for name in full:
            given[name] = available[name]
            left -= available[name]
            log.info(
                "the dataset %r cannot fill its share; all of its %d windows are kept", name, given[name]
            )
        open_names = [name for name in open_names if name not in full]
    if left > 0:
        log.warning("manifest.total_windows asks for %d windows; there are %d", total, total - left)
    return given


def _check_weights(available: dict[str, int], weights: dict[str, float]) -> None:
    for name in weights:
        if name not in available:
            raise ConfigError(
                f"manifest.weights names {name!r}, which the manifest does not hold",
                expected=near_matches(name, available), got=name,
            )  # fmt: skip
    bare = [name for name in available if name not in weights]
    if bare:
        raise ConfigError(
            f"manifest.weights leaves out the dataset {bare[0]!r}", expected="a weight for each, 0 to leave one out",
            got=", ".join(sorted(weights)),
        )  # fmt: skip
    if not any(weights[name] > 0 and available[name] for name in available):
        raise ConfigError(
            "manifest.weights leaves no window", expected="a weight above 0 for a dataset with clips"
        )
