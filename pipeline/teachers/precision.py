"""Which number format a teacher runs in on this machine."""

from __future__ import annotations

import torch

from pipeline.config import TeacherConfig
from pipeline.errors import ConfigError
from pipeline.processor import bfloat16_is_faster


def resolve(config: TeacherConfig) -> tuple[torch.device, torch.dtype]:
    """Return the device and dtype that ``config`` means here.

    Raises:
        ConfigError: a device that torch does not know or cannot reach.
    """
    try:
        device = torch.device(config.device)
    except RuntimeError as error:
        raise ConfigError(
            "teacher.device is no device", expected="cpu, cuda or cuda:N", got=config.device
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(
            "teacher.device is not supported", expected="cpu, cuda or cuda:N", got=config.device
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"teacher.device {config.device} is not there", got=f"{torch.cuda.device_count()} CUDA devices",
            run="--set embed.teacher.device=cpu",
        )  # fmt: skip
    if config.dtype == "auto":
        return device, torch.bfloat16 if bfloat16_is_faster(device) else torch.float32
    return device, torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
