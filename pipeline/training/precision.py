"""Which precision the student's forward and backward run in on a device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from pipeline.config import TrainConfig
from pipeline.processor import bfloat16_is_faster


def autocast_dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """Return the dtype that autocast uses, or None for plain float32."""
    if config.amp == "off" or (config.amp == "auto" and not bfloat16_is_faster(device)):
        return None
    return torch.float16 if config.amp == "float16" else torch.bfloat16


def autocast(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """Return the context of the student's forward pass."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
