"""Which number format a teacher runs in on this machine."""

from __future__ import annotations

import torch

from pipeline.config import TeacherConfig
from pipeline.processor import bfloat16_is_faster, device_of


def resolve(config: TeacherConfig) -> tuple[torch.device, torch.dtype]:
    """Return the device and dtype that ``config`` means here.

    Raises:
        ConfigError: a device that torch does not know or cannot reach.
    """
    device = device_of(config.device, "embed.teacher.device")
    if config.dtype == "auto":
        return device, torch.bfloat16 if bfloat16_is_faster(device) else torch.float32
    return device, torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
