"""What views are made of besides their own clip: the windows that a mix or a background may be drawn from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from pipeline.config import ViewsConfig
from pipeline.errors import ConfigError
from pipeline.manifest import SPLITS
from pipeline.view_config import ClipFilter

LOCAL_POOL = 32  # a shard with fewer clean windows of a split draws its mixes from all of that split
SHARD_BACKGROUNDS = 64  # a shard's backgrounds come from so many windows, that a worker decodes each once
NEAR_TRIES = 32


class Pools:
    """Which clean windows a view may be made of, by split and shard, with their drawing weights."""

    def __init__(self, clean: pd.DataFrame, shards: np.ndarray, views: ViewsConfig) -> None:
        self.clean = clean.to_dict("records")
        weights = np.where(clean["kind"] == "speech", views.speech_weight, 1.0)
        split = clean["split"].to_numpy()
        usable = weights > 0
        self._weights = weights
        self._of_split = {name: np.flatnonzero((split == name) & usable) for name in SPLITS}
        self._local: dict[tuple[str, int], np.ndarray] = {}
        for shard in np.unique(shards):
            for name in SPLITS:
                found = np.flatnonzero((split == name) & usable & (shards == shard))
                if len(found) >= LOCAL_POOL:
                    self._local[name, int(shard)] = found

    def draw(
        self, generator: np.random.Generator, count: int, split: str, shard: int
    ) -> list[dict[Any, Any]]:
        """Return ``count`` different windows of a split, fewer where there are no more.

        Raises:
            ConfigError: the speech weight leaves nothing to draw.
        """
        pool = self._local.get((split, shard), self._of_split[split])
        if not len(pool):
            raise ConfigError(
                f"embed.views.speech_weight = 0 leaves nothing to mix: every {split} clip is speech",
                expected="a weight above 0, or clips of another kind",
                got="0",
            )
        weights = self._weights[pool]
        chosen = generator.choice(pool, min(count, len(pool)), replace=False, p=weights / weights.sum())
        return [self.clean[index] for index in chosen]


def matches(windows: pd.DataFrame, clips: ClipFilter) -> np.ndarray:
    """Return which windows pass the filter: bool (rows,)."""
    kept = np.ones(len(windows), dtype=bool)
    for column, wanted in (("dataset", clips.datasets), ("kind", clips.kinds), ("label", clips.labels)):
        if wanted:
            kept &= windows[column].isin(wanted).to_numpy()
    return kept


class Backgrounds:
    """The windows that may lie under another: of its split, of another recording, of no other fold of its dataset.

    Args:
        windows: rows with ``clip_id``, ``start_seconds``, ``dataset``, ``group``, ``split``, ``fold``,
            ``licence``.
        seed: of the windows that each shard draws from.
    """

    def __init__(self, windows: pd.DataFrame, seed: int) -> None:
        self._windows = windows.to_dict("records")
        split = windows["split"].to_numpy()
        self._of_split = {name: np.flatnonzero(split == name) for name in SPLITS}
        self._seed = seed
        self._near: dict[tuple[str, int], np.ndarray] = {}

    def draw(self, generator: np.random.Generator, clip: dict[Any, Any], shard: int) -> dict[Any, Any]:
        """Return the background of a view of ``clip`` in ``shard``.

        Raises:
            ConfigError: no window may be its background.
        """
        near = self._shard(str(clip["split"]), shard)
        for _ in range(NEAR_TRIES if len(near) else 0):
            found = self._windows[int(near[int(generator.integers(len(near)))])]
            if _may_lie_under(found, clip):
                return found
        whole = [i for i in self._of_split[str(clip["split"])] if _may_lie_under(self._windows[i], clip)]
        if not whole:
            raise ConfigError(
                f"embed.views.background leaves no background for {clip['split']} clip {clip['clip_id']}",
                expected=f"a {clip['split']} clip of another group"
                + (f" in fold {clip['fold']}, or of another dataset" if clip["fold"] >= 0 else ""),
                got=f"{len(self._of_split[str(clip['split'])])} {clip['split']} windows that the filter keeps",
                run="widen embed.views.background.clips, or narrow embed.views.foreground",
            )
        return self._windows[whole[int(generator.integers(len(whole)))]]

    def _shard(self, split: str, shard: int) -> np.ndarray:
        key = (split, shard)
        if key not in self._near:
            pool = self._of_split[split]
            generator = np.random.default_rng([self._seed, SPLITS.index(split), shard])
            self._near[key] = generator.choice(pool, min(SHARD_BACKGROUNDS, len(pool)), replace=False)
        return self._near[key]


def _may_lie_under(background: dict[Any, Any], clip: dict[Any, Any]) -> bool:
    if background["dataset"] != clip["dataset"]:
        return True
    return bool(background["group"] != clip["group"] and background["fold"] == clip["fold"])
