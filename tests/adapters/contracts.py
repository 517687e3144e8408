"""What the kits' own validators ask, written out from hearvalidator 2021.0.2 and xares 0.1.3 (both Apache-2.0).

The validators themselves import TensorFlow and loguru, and their packages pin numpy and torch; ``test_kits`` runs them
too where they are installed.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

HEAR_RATES_HZ = (16_000, 22_050, 44_100, 48_000)


def noise(sounds: int, seconds: float, rate_hz: int) -> Tensor:
    return torch.rand(sounds, int(seconds * rate_hz)) * 2 - 1


def check_hear(module: ModuleType, path: str) -> None:
    """Assert what HEAR's validator does: 16 sounds of 2 s for timestamps, 8 of 3.74 s for scenes."""
    model: Any = module.load_model(path)
    rate_hz: int = model.sample_rate
    assert rate_hz in HEAR_RATES_HZ
    assert isinstance(model.scene_embedding_size, int) and isinstance(model.timestamp_embedding_size, int)
    embeddings, timestamps = module.get_timestamp_embeddings(noise(16, 2.0, rate_hz), model)
    assert embeddings.dtype == torch.float32 and embeddings.shape[0] == 16
    assert embeddings.shape[:2] == timestamps.shape
    assert embeddings.shape[2] == model.timestamp_embedding_size
    steps = torch.diff(timestamps)
    assert steps.mean() <= 50 and (steps - steps.mean()).abs().max() < 1e-3
    scenes = module.get_scene_embeddings(noise(8, 3.74, rate_hz), model)
    assert scenes.dtype == torch.float32 and scenes.shape == (8, model.scene_embedding_size)
    assert isinstance(model, nn.Module)


def check_xares(encoder: Any) -> None:
    """Assert what X-ARES's checker does, with its 50,000 samples."""
    assert type(encoder).__name__.endswith("Encoder")
    assert encoder.sampling_rate and encoder.output_dim and encoder.hop_size_in_ms
    encoded = encoder(torch.randn(2, 50_000))
    assert encoded.ndim == 3 and encoded.shape[0] == 2 and encoded.shape[2] == encoder.output_dim
    expected = 50_000 / encoder.sampling_rate * 1_000 / encoder.hop_size_in_ms
    assert abs(encoded.shape[1] - expected) <= 1
    assert isinstance(encoder, nn.Module)
