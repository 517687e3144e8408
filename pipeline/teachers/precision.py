"""Which number format a teacher runs in on this machine."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.config import TeacherConfig
from pipeline.processor import bfloat16_is_faster, device_of
from pipeline.teachers.base import Teacher

# A teacher in bfloat16 whose embeddings' cosine to float32's is below is not exact enough to be cached.
LEAST_COSINE = 0.999


def resolve(config: TeacherConfig) -> tuple[torch.device, torch.dtype]:
    """Return the device and dtype that ``config`` means here.

    Raises:
        ConfigError: a device that torch does not know or cannot reach.
    """
    device = device_of(config.device, "embed.teacher.device")
    if config.dtype == "auto":
        return device, torch.bfloat16 if bfloat16_is_faster(device) else torch.float32
    return device, torch.bfloat16 if config.dtype == "bfloat16" else torch.float32


def agreement(
    teacher: Teacher, exact: Teacher, waveforms: Float[Tensor, "batch samples"]
) -> dict[str, float]:
    """Return how far ``teacher``'s embeddings are from those of the same teacher in float32, on real windows.

    Args:
        teacher: as it runs, in bfloat16.
        exact: built from the same recipe with ``dtype = "float32"``.
        waveforms: at the teacher's rate; windows of the corpus itself, at least one.

    Returns:
        ``windows``; ``smallest_cosine`` and ``mean_cosine`` over them (``LEAST_COSINE`` is the floor);
        ``largest_difference`` of any value, relative to the largest float32 value.
    """
    ours = teacher.embed(waveforms)["embedding"].double()
    theirs = exact.embed(waveforms)["embedding"].double()
    cosine = torch.nn.functional.cosine_similarity(ours, theirs)
    scale = theirs.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return {
        "windows": float(len(waveforms)),
        "smallest_cosine": float(cosine.min()),
        "mean_cosine": float(cosine.mean()),
        "largest_difference": float((ours - theirs).abs().max() / scale),
    }
