"""The window plan: every row that stage 1 embeds, a pure function of manifest, configuration and seeds.

Nothing is decoded here. Clean windows come from the clips; mixes and textures name the clean windows they
are made of and the seed of everything else, augmented views all that was drawn for them; so any worker can
make any row from the row and the files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.audio import augmented_plan, mixture, scene, textures
from pipeline.audio.augmented_plan import KEY_DIGITS, PARAMETERS
from pipeline.audio.impulse import Response
from pipeline.audio.pools import Pools
from pipeline.audio.windows import frame_count, window_starts
from pipeline.config import EmbedConfig, ManifestConfig, ViewsConfig, canonical_json
from pipeline.errors import ManifestError

SAMPLE_RATE_HZ = 44_100  # every row's waveform; teachers and frontends of other rates hear it resampled
CLEAN, MIX, TEXTURE, AUGMENTED = "clean", "mix", "texture", augmented_plan.VIEW
NO_SOURCE_LICENCE = "CC0-1.0"  # a texture without a clip is this program's own making
COLUMNS = (
    "row", "key", "view", "view_seed", "clip_id", "sources", "start_seconds", "duration_seconds",
    "dataset", "group", "label", "fold", "split", "licence", "kind",
)  # fmt: skip


def build(
    clips: pd.DataFrame,
    embed: EmbedConfig,
    manifest: ManifestConfig,
    others: pd.DataFrame | None = None,
    devices: Sequence[Response] = (),
) -> pd.DataFrame:
    """Return the rows to embed, shuffled by seed.

    A mix draws its windows from the clean ones of its own split and, where there are enough, of its own
    shard: then a worker decodes each window once. The shuffle makes a shard a random sample, so the draw
    stays as varied as the shard is large.

    Args:
        clips: a manifest's rows.
        embed: window length, seeds, views, rows a shard.
        manifest: windows a clip, caps a dataset, seed of their draw.
        others: rows of the manifest that backgrounds come from, where that is another one.
        devices: impulse responses that augmented views may be heard through.

    Returns:
        One row a window, ``COLUMNS``; ``row`` is 0 to n-1. ``sources`` is a JSON list of
        ``[clip_id, start_seconds]``; ``key`` a digest of content, window and view. Where there are augmented
        views, a further column ``view_parameters`` holds theirs as JSON and "" for every other row.

    Raises:
        ManifestError: no clip gives a window.
        ConfigError: the speech weight leaves nothing to mix, or the filters no background.
    """
    windows = _windows(clips, embed, manifest)
    capped = mixture.kept(windows, manifest)
    clean = windows[capped].reset_index(drop=True)
    if clean.empty:
        raise ManifestError(
            "no clip gives a window", run="look at the caps and at the manifest's rejects.parquet"
        )
    views = embed.views
    augmentations = (
        augmented_plan.counts(clean, embed) if views.augmented else np.zeros(len(clean), dtype=int)
    )
    total = len(clean) + views.mixes + views.textures + int(augmentations.sum())
    # slots[i] is the row that item i takes: clean windows, then mixes, textures, augmented views.
    slots = np.random.default_rng([embed.seed, 1]).permutation(total)
    shards = slots // embed.shard_rows
    pools = Pools(clean, shards[: len(clean)], views)
    rows: list[dict[Any, Any]] = clean.to_dict("records")
    for number, split in enumerate(_splits(clean, views.mixes)):
        rows.append(_mix_row(number, split, pools, int(shards[len(rows)]), embed))
    for number, split in enumerate(_splits(clean, views.textures)):
        rows.append(_texture_row(number, split, pools, int(shards[len(rows)]), embed))
    columns = list(COLUMNS)
    if total > len(rows):
        under = None if others is None else _windows(others, embed, manifest)
        mixed = views.background.probability > 0
        backgrounds = augmented_plan.background_windows(windows, capped, embed, under) if mixed else None
        sizes = {c: (int(n), int(r)) for c, n, r in clips[["clip_id", "frames", "sample_rate_hz"]].to_numpy()}
        for window, count in zip(rows[: len(clean)], augmentations, strict=True):
            for number in range(count):
                shard = int(shards[len(rows)])
                rows.append(augmented_plan.row(window, number, shard, sizes, backgrounds, devices, embed))
        columns.append(PARAMETERS)
    plan = pd.DataFrame(rows).assign(row=slots).sort_values("row", ignore_index=True)
    if PARAMETERS in columns:
        plan[PARAMETERS] = plan[PARAMETERS].fillna("")
    return plan.loc[:, columns].astype({"row": "int64", "view_seed": "int64", "fold": "int64"})


def content_key(view: str, sources: list[list[Any]], seed: int, embed: EmbedConfig) -> str:
    """Return the digest that names a row's sound: clip digests, starts, window and everything of its view."""
    content: dict[str, Any] = {"view": view, "sources": sources, "window_seconds": embed.window_seconds}
    if view != CLEAN:
        keys = {"snr_db", "level_dbfs", "eq_probability", "eq_gain_db"}
        content |= {"seed": seed, "ranges": embed.views.model_dump(mode="json", include=keys)}
        content["code"] = scene.VERSION if view == MIX else textures.VERSION
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:KEY_DIGITS]


def _windows(clips: pd.DataFrame, embed: EmbedConfig, manifest: ManifestConfig) -> pd.DataFrame:
    """Return every clean window of the clips, caps aside."""
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
    return pd.DataFrame(rows)


def _splits(clean: pd.DataFrame, count: int) -> list[str]:
    """Return a split for each of ``count`` views, in the proportion of the clean windows."""
    held = round(count * float((clean["split"] == "validation").mean()))
    return ["validation"] * held + ["train"] * (count - held)


def _seed(views: ViewsConfig, view: str, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{views.seed}/{view}/{number}".encode()).digest()[:7], "big")


def _mix_row(number: int, split: str, pools: Pools, shard: int, embed: EmbedConfig) -> dict[str, Any]:
    seed = _seed(embed.views, MIX, number)
    generator = np.random.default_rng([seed, 2])
    count = int(generator.choice(len(scene.COUNT_PROBABILITIES), p=scene.COUNT_PROBABILITIES)) + 1
    return _view_row(MIX, seed, split, pools.draw(generator, count, split, shard), embed)


def _texture_row(number: int, split: str, pools: Pools, shard: int, embed: EmbedConfig) -> dict[str, Any]:
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
