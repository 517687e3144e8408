"""What ``[sampling]`` asks for, as draws over a store's rows."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.data import weights
from pipeline.data.clusters import clusters_of
from pipeline.data.draws import Draws
from pipeline.data_config import SamplingConfig
from pipeline.errors import ConfigError, TrainingError, near_matches
from pipeline.store.reader import StoreReader

log = logging.getLogger(__name__)

WARNED_REPEATS = 100.0


def draws_of(reader: StoreReader, mask: np.ndarray, config: SamplingConfig, root: Path) -> Draws | None:
    """Return how ``config`` draws the rows of ``mask``; None where each comes once an epoch.

    First the rows are balanced by label or cluster, then what each view and each dataset has of the draws is
    set to its share (a dataset's share last, so that it holds), then the cap cuts what would be drawn too
    often. Only rows of ``mask`` count: a cluster's size is that of its training rows.

    Args:
        reader: the store, its teacher chosen.
        mask: bool (store rows,), the rows that may be drawn: usable, of the training split.
        config: ``[sampling]``.
        root: folder of all artifacts, where clusters are kept.

    Raises:
        ConfigError: a column, dataset or view that the rows do not have; a cap that leaves an epoch unfilled.
        TrainingError: nothing is left to draw.
    """
    if not config.weighted:
        return None
    chosen = np.flatnonzero(mask)
    rows = reader.rows.iloc[chosen]
    kept = np.ones(len(chosen), dtype=bool)
    if config.view_weights:
        views = weights.view_classes(rows, tuple(config.view_weights))
        kept &= np.isin(views, [name for name, share in config.view_weights.items() if share > 0])
    if config.dataset_weights:
        datasets = (
            _column(reader, "dataset", "sampling.dataset_weights").iloc[chosen].astype(str).to_numpy(object)
        )
        zero = [name for name, share in config.dataset_weights.items() if share == 0]
        kept &= ~np.isin(datasets, zero)
    if config.balance == "labels":
        kept[kept] = _labelled(
            _column(reader, config.label_column, "sampling.label_column").iloc[chosen[kept]], config
        )
    if not kept.any():
        raise TrainingError(
            "[sampling] leaves no row to draw", expected="rows of the views, datasets and labels that it names",
            got=f"{len(chosen)} training rows", run="ossicle store inspect RECIPE, or change [sampling]",
        )  # fmt: skip
    drawn = np.zeros(len(chosen))
    drawn[kept] = _balanced(reader, chosen[kept], config, root)
    if config.view_weights:
        drawn[kept] = weights.with_shares(
            drawn[kept], views[kept], _present(config.view_weights, views, kept), "view"
        )
    if config.dataset_weights:
        shares = _present(config.dataset_weights, datasets, kept)
        drawn[kept] = weights.with_shares(drawn[kept], datasets[kept], shares, "dataset")
    epoch_rows = int(kept.sum()) if config.epoch_rows is None else config.epoch_rows
    if config.max_repeats is not None:
        drawn[kept] = weights.capped(drawn[kept], epoch_rows, config.max_repeats)
    elif drawn.max() * epoch_rows > WARNED_REPEATS:
        log.warning(
            "row %d is drawn about %.0f times an epoch of %d rows; sampling.max_repeats limits it",
            chosen[int(drawn.argmax())], drawn.max() * epoch_rows, epoch_rows,
        )  # fmt: skip
    whole = np.zeros(len(reader.rows))
    whole[chosen] = drawn
    return Draws(whole, epoch_rows, config.draws)


def _balanced(reader: StoreReader, chosen: np.ndarray, config: SamplingConfig, root: Path) -> np.ndarray:
    if config.balance == "clusters":
        return weights.cluster_weights(clusters_of(reader, config, root).assignment[chosen])
    if config.balance == "labels":
        values = _column(reader, config.label_column, "sampling.label_column").iloc[chosen]
        codes = weights.label_codes(values, config.unlabelled == "one_label")
        return weights.label_weights(codes, config.label_offset)
    return np.full(len(chosen), 1 / len(chosen))


def _labelled(values: pd.Series, config: SamplingConfig) -> np.ndarray:
    """Return which rows may be drawn, by their labels."""
    if config.unlabelled == "one_label":
        return np.ones(len(values), dtype=bool)
    labelled = np.array([bool(codes) for codes in weights.label_codes(values)], dtype=bool)
    if config.unlabelled == "refuse" and not labelled.all():
        raise ConfigError(
            f"sampling.balance = 'labels', and rows to be drawn have no {config.label_column}",
            expected="a label in every row",
            got=f"{int((~labelled).sum())} rows without one",
            run="--set sampling.unlabelled=leave_out, or one_label",
        )
    return labelled


def _column(reader: StoreReader, name: str, key: str) -> pd.Series:
    if name not in reader.rows.columns:
        raise ConfigError(
            f"{key} wants a column that the store does not have: {name!r}",
            expected=near_matches(name, reader.rows.columns), got=name,
        )  # fmt: skip
    return reader.rows[name]


def _present(shares: dict[str, float], groups: np.ndarray, kept: np.ndarray) -> dict[str, float]:
    """Return the shares above 0, and those of 0 whose rows are left out no more."""
    there = set(groups[kept])
    return {name: share for name, share in shares.items() if share > 0 or name in there}
