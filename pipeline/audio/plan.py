"""The window plan: every row that stage 1 embeds, a pure function of manifest, configuration and seeds.

Nothing is decoded here. Clean windows come from the clips; mixes and textures name the clean windows they
are made of and the seed of everything else, so any worker can make any row from the row and the files.
"""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any

import numpy as np
import pandas as pd

from pipeline.audio import scene, textures
from pipeline.audio.windows import frame_count, window_starts
from pipeline.config import EmbedConfig, ManifestConfig, ViewsConfig, canonical_json
from pipeline.errors import ConfigError, ManifestError
from pipeline.manifest import SPLITS, draw_order

log = logging.getLogger(__name__)

SAMPLE_RATE_HZ = 44_100  # every row's waveform; teachers and frontends of other rates hear it resampled
CLEAN, MIX, TEXTURE = "clean", "mix", "texture"
LOCAL_POOL = 32  # a shard with fewer clean windows of a split draws its mixes from all of that split
NO_SOURCE_LICENCE = "CC0-1.0"  # a texture without a clip is this program's own making
KEY_DIGITS = 32
COLUMNS = (
    "row", "key", "view", "view_seed", "clip_id", "sources", "start_seconds", "duration_seconds",
    "dataset", "group", "label", "fold", "split", "licence", "kind",
)  # fmt: skip


def build(clips: pd.DataFrame, embed: EmbedConfig, manifest: ManifestConfig) -> pd.DataFrame:
    """Return the rows to embed, shuffled by seed.

    A mix draws its windows from the clean ones of its own split and, where there are enough, of its own
    shard: then a worker decodes each window once. The shuffle makes a shard a random sample, so the draw
    stays as varied as the shard is large.

    Args:
        clips: a manifest's rows.
        embed: window length, seeds, views, rows a shard.
        manifest: windows a clip, caps a dataset, seed of their draw.

    Returns:
        One row a window, ``COLUMNS``; ``row`` is 0 to n-1. ``sources`` is a JSON list of
        ``[clip_id, start_seconds]``; ``key`` a digest of content, window and view.

    Raises:
        ManifestError: no clip gives a window.
        ConfigError: mixes were asked for and the speech weight leaves nothing to draw.
    """
    clean = _clean_rows(clips, embed, manifest)
    if clean.empty:
        raise ManifestError(
            "no clip gives a window", run="look at the caps and at the manifest's rejects.parquet"
        )
    views = embed.views
    total = len(clean) + views.mixes + views.textures
    # slots[i] is the row that item i (clean windows, then mixes, then textures) takes.
    slots = np.random.default_rng([embed.seed, 1]).permutation(total)
    pools = _Pools(clean, slots[: len(clean)] // embed.shard_rows, views)
    rows: list[dict[Any, Any]] = clean.to_dict("records")
    for number, split in enumerate(_splits(clean, views.mixes)):
        shard = int(slots[len(clean) + number]) // embed.shard_rows
        rows.append(_mix_row(number, split, pools, shard, embed))
    for number, split in enumerate(_splits(clean, views.textures)):
        shard = int(slots[len(clean) + views.mixes + number]) // embed.shard_rows
        rows.append(_texture_row(number, split, pools, shard, embed))
    plan = pd.DataFrame(rows).assign(row=slots).sort_values("row", ignore_index=True)
    return plan.loc[:, list(COLUMNS)].astype({"row": "int64", "view_seed": "int64", "fold": "int64"})


def content_key(view: str, sources: list[list[Any]], seed: int, embed: EmbedConfig) -> str:
    """Return the digest that names a row's sound: clip digests, starts, window and everything of its view."""
    content: dict[str, Any] = {"view": view, "sources": sources, "window_seconds": embed.window_seconds}
    if view != CLEAN:
        keys = {"snr_db", "level_dbfs", "eq_probability", "eq_gain_db"}
        content |= {"seed": seed, "ranges": embed.views.model_dump(mode="json", include=keys)}
        content["code"] = scene.VERSION if view == MIX else textures.VERSION
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:KEY_DIGITS]


class _Pools:
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


def _clean_rows(clips: pd.DataFrame, embed: EmbedConfig, manifest: ManifestConfig) -> pd.DataFrame:
    rows = []
    for clip in clips.sort_values("clip_id").to_dict("records"):
        rate, frames = clip["sample_rate_hz"], clip["frames"]
        window_frames = frame_count(embed.window_seconds, rate)
        seed = (embed.seed, int(clip["clip_id"], 16))
        for start in window_starts(frames, window_frames, manifest.max_windows_per_clip, seed):
            sources = [[clip["clip_id"], start / rate]]
            rows.append(
                {
                    "key": content_key(CLEAN, sources, 0, embed),
                    "view": CLEAN,
                    "view_seed": 0,
                    "clip_id": clip["clip_id"],
                    "sources": json.dumps(sources),
                    "start_seconds": start / rate,
                    "duration_seconds": min(frames - start, window_frames) / rate,
                    **{name: clip[name] for name in ("dataset", "group", "label", "fold", "split")},
                    **{name: clip[name] for name in ("licence", "kind")},
                }
            )
    clean = pd.DataFrame(rows)
    if clean.empty:
        return clean
    keep = np.ones(len(clean), dtype=bool)
    for dataset, cap in manifest.caps.items():
        members = np.flatnonzero(clean["dataset"] == dataset)
        if not len(members):
            log.info("manifest.caps names %r, which the manifest does not hold", dataset)
        order = draw_order(clean["key"].iloc[members], manifest.seed)
        keep[members[order[cap:]]] = False
    return clean[keep].reset_index(drop=True)


def _splits(clean: pd.DataFrame, count: int) -> list[str]:
    """Return a split for each of ``count`` views, in the proportion of the clean windows."""
    held = round(count * float((clean["split"] == "validation").mean()))
    return ["validation"] * held + ["train"] * (count - held)


def _seed(views: ViewsConfig, view: str, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{views.seed}/{view}/{number}".encode()).digest()[:7], "big")


def _mix_row(number: int, split: str, pools: _Pools, shard: int, embed: EmbedConfig) -> dict[str, Any]:
    seed = _seed(embed.views, MIX, number)
    generator = np.random.default_rng([seed, 2])
    count = int(generator.choice(len(scene.COUNT_PROBABILITIES), p=scene.COUNT_PROBABILITIES)) + 1
    return _view_row(MIX, seed, split, pools.draw(generator, count, split, shard), embed)


def _texture_row(number: int, split: str, pools: _Pools, shard: int, embed: EmbedConfig) -> dict[str, Any]:
    seed = _seed(embed.views, TEXTURE, number)
    generator = np.random.default_rng([seed, 2])
    over = generator.random() < textures.CLEAN_PROBABILITY
    return _view_row(TEXTURE, seed, split, pools.draw(generator, 1, split, shard) if over else [], embed)


def _view_row(
    view: str, seed: int, split: str, windows: list[dict[Any, Any]], embed: EmbedConfig
) -> dict[str, Any]:
    sources = [[w["clip_id"], w["start_seconds"]] for w in windows]
    return {
        "key": content_key(view, sources, seed, embed),
        "view": view,
        "view_seed": seed,
        "clip_id": windows[0]["clip_id"] if windows else "",
        "sources": json.dumps(sources),
        "start_seconds": windows[0]["start_seconds"] if windows else 0.0,
        "duration_seconds": embed.window_seconds,
        "dataset": view,
        "group": " + ".join(sorted({w["group"] for w in windows})) or f"{view}-{seed:014x}",
        "label": "",
        "fold": -1,
        "split": split,
        "licence": " + ".join(sorted({w["licence"] for w in windows})) or NO_SOURCE_LICENCE,
        "kind": view,
    }
