"""Plans augmented views: which clean windows have them, and everything that is drawn for each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.audio import augmented
from pipeline.audio.impulse import Response
from pipeline.audio.pools import Backgrounds, matches
from pipeline.audio.windows import frame_count
from pipeline.config import EmbedConfig, canonical_json, digest

VIEW = "augmented"
PARAMETERS = "view_parameters"
KEY_DIGITS = 32
SEED_DIGITS = 13  # of a digest in hex: 52 bits, exact in a parquet column read as float


def counts(clean: pd.DataFrame, embed: EmbedConfig) -> np.ndarray:
    """Return how many augmented views each clean window has: int (rows,), by its key and the seed alone.

    A share of a view is given to that share of the windows.
    """
    views = embed.views
    whole, share = int(views.augmented), views.augmented % 1.0
    drawn = np.array([_seed(views.seed, key, "count") / 16**SEED_DIGITS < share for key in clean["key"]])
    return np.where(matches(clean, views.foreground), whole + drawn, 0)


def background_windows(
    windows: pd.DataFrame, capped: np.ndarray, embed: EmbedConfig, others: pd.DataFrame | None
) -> Backgrounds:
    """Return what may lie under the clips.

    Args:
        windows: every window of the manifest.
        capped: bool (rows,), which of them ``manifest.caps`` keeps. A dataset that the background's filter
            names is not capped there, so that a cap of 0 makes a dataset background alone.
        embed: the background's filter and seeds.
        others: windows of another manifest, drawn from in place of this one's. A recording that this
            manifest has in another split is left out.
    """
    config = embed.views.background
    if others is None:
        named = windows["dataset"].isin(config.clips.datasets).to_numpy()
        usable = windows[matches(windows, config.clips) & (capped | named)]
    else:
        usable = others[matches(others, config.clips) & ~_of_another_split(others, windows)]
    return Backgrounds(usable, embed.views.seed)


def row(
    window: dict[Any, Any],
    number: int,
    shard: int,
    clips: dict[str, tuple[int, int]],
    backgrounds: Backgrounds | None,
    devices: Sequence[Response],
    embed: EmbedConfig,
) -> dict[str, Any]:
    """Return one row of the plan: view ``number`` of a clean window.

    Args:
        window: the clean row.
        number: 0 for its first view.
        shard: that the row falls into.
        clips: ``clip_id`` to (frames, sample rate in Hz).
        backgrounds: what may lie under it; None where no view has one.
        devices: impulse responses to choose from.
        embed: views and window.

    Raises:
        ConfigError: no window may be its background.
    """
    views = embed.views
    seed = _seed(views.seed, window["key"], number)
    generator = np.random.default_rng([seed, 3])
    frames, rate = clips[window["clip_id"]]
    length = frame_count(embed.window_seconds, rate)
    cropped = generator.random() < views.crop_probability
    offset = int(generator.integers(max(frames - length, 0) + 1))
    start = offset if cropped else frame_count(window["start_seconds"], rate)
    parameters = augmented.draw(generator, window["split"], views, devices)
    parts = [window]
    sources: list[list[Any]] = [[window["clip_id"], start / rate]]
    if parameters.snr_db is not None and backgrounds is not None:
        under = backgrounds.draw(generator, window, shard)
        parts.append(under)
        sources.append([under["clip_id"], under["start_seconds"]])
    drawn = parameters.model_dump(mode="json", exclude_none=True)
    content = {"view": VIEW, "sources": sources, "window_seconds": embed.window_seconds, "seed": seed}
    return {
        **window,
        "key": digest({**content, "parameters": drawn, "code": augmented.VERSION})[:KEY_DIGITS],
        "view": VIEW,
        "view_seed": seed,
        "sources": json.dumps(sources),
        "start_seconds": start / rate,
        "duration_seconds": min(frames - start, length) / rate,
        "licence": " + ".join(sorted({part["licence"] for part in parts})),
        PARAMETERS: canonical_json(drawn),
    }


def _seed(seed: int, key: str, number: int | str) -> int:
    return int(digest([VIEW, seed, key, number])[:SEED_DIGITS], 16)


def _of_another_split(others: pd.DataFrame, windows: pd.DataFrame) -> np.ndarray:
    split_of = dict(zip(windows["clip_id"], windows["split"], strict=True))
    split_of |= dict(
        zip(zip(windows["dataset"], windows["group"], strict=True), windows["split"], strict=True)
    )
    return np.array(
        [
            split_of.get(clip, split) != split or split_of.get((dataset, group), split) != split
            for clip, dataset, group, split in zip(
                others["clip_id"], others["dataset"], others["group"], others["split"], strict=True
            )
        ],
        dtype=bool,
    )
