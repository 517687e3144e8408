"""Is a teacher in bfloat16 exact enough to be cached? Measured on the corpus's own windows, before any work."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import pandas
import torch

from pipeline.audio import resampling
from pipeline.audio.plan import SAMPLE_RATE_HZ
from pipeline.audio.render import Renderer
from pipeline.audio.windows import fit, frame_count
from pipeline.config import EmbedConfig, TeacherConfig
from pipeline.errors import ConfigError
from pipeline.store.schema import ArraySpec
from pipeline.teachers import precision
from pipeline.teachers.registry import build_teacher

WINDOWS = 16
KEY = "float32_agreement"


def with_agreement(
    specs: Iterable[ArraySpec],
    embed: EmbedConfig,
    rows: pandas.DataFrame,
    renderer: Renderer,
    known: Collection[str],
    cache: Path | None,
) -> list[ArraySpec]:
    """Return ``specs``; those of a teacher in bfloat16 say in ``config`` how far it is from float32.

    Args:
        specs: the arrays that a recipe asks for.
        embed: stage 1's configuration.
        rows: the plan; its first windows that can be rendered are heard.
        renderer: of the plan.
        known: digests of arrays that the store has already; their teachers are not measured again.
        cache: folder of downloads.

    Raises:
        ConfigError: some window's cosine is below ``precision.LEAST_COSINE``.
    """
    found = list(specs)
    if all(spec.digest in known or not spec.teacher_digest for spec in found):
        return found
    for config in embed.all_teachers:
        if precision.resolve(config)[1] != torch.bfloat16:
            continue
        teacher = build_teacher(config, cache=cache)
        digest, dtype = teacher.digest(), getattr(teacher, "dtype", torch.float32)
        made = [spec for spec in found if spec.teacher_digest == digest and spec.digest not in known]
        if not made or dtype != torch.bfloat16:
            continue
        exact = build_teacher(config.model_copy(update={"dtype": "float32"}), cache=cache)
        waves = _windows(rows, renderer, teacher.sample_rate_hz, embed.window_seconds)
        if not len(waves):
            continue
        agreement = precision.agreement(teacher, exact, torch.from_numpy(waves))
        _refuse_inexact(config, teacher.name, agreement["smallest_cosine"])
        for position, spec in enumerate(found):
            if spec in made:
                found[position] = spec.model_copy(update={"config": {**spec.config, KEY: agreement}})
    return found


def _refuse_inexact(config: TeacherConfig, name: str, cosine: float) -> None:
    if cosine < precision.LEAST_COSINE:
        raise ConfigError(
            f"teacher {name} is not exact enough in bfloat16",
            expected=f"a cosine to float32 of at least {precision.LEAST_COSINE} on every window",
            got=f"{cosine:.5f} (embed.teacher.dtype = {config.dtype})",
            run="--set embed.teacher.dtype=float32",
        )


def _windows(rows: pandas.DataFrame, renderer: Renderer, rate_hz: int, seconds: float) -> np.ndarray:
    """Return the first windows of the plan that can be rendered, (at most WINDOWS, samples) at ``rate_hz``."""
    samples = frame_count(seconds, rate_hz)
    waves: list[np.ndarray] = []
    for row in rows.iloc[: 4 * WINDOWS].to_dict("records"):
        wave, _ = renderer.attempt({str(key): value for key, value in row.items()})
        if wave is not None:
            waves.append(fit(resampling.resample(wave, SAMPLE_RATE_HZ, rate_hz), samples))
        if len(waves) == WINDOWS:
            break
    return np.stack(waves).astype(np.float32) if waves else np.zeros((0, samples), dtype=np.float32)
