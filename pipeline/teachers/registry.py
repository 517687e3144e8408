"""Teachers by name."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import TeacherConfig
from pipeline.registry import Registry
from pipeline.teachers.base import Teacher

teachers: Registry[Teacher] = Registry(
    "teacher",
    {
        "aisfx": "pipeline.teachers.aisfx:build_aisfx",
        "tiny": "pipeline.teachers.synthetic:build_tiny",
    },
)


def build_teacher(config: TeacherConfig, weights: Path | None = None, cache: Path | None = None) -> Teacher:
    """Return the teacher that ``config`` names, its weights verified and loaded.

    Args:
        config: name, weights, options, outputs, dtype, device and batch size.
        weights: a checkpoint (or the wheel that holds it) in place of the cached one.
        cache: folder of downloads; default ``$XDG_CACHE_HOME/ossicle``.

    Raises:
        UnknownNameError: no such teacher.
        WeightsError: the checkpoint is absent or of another SHA-256.
        ConfigError: the device or dtype is not to be had here.
    """
    if weights is not None:
        config = config.model_copy(update={"weights": weights})
    return teachers.build(config.name, config, weights=config.weights, cache=cache)
