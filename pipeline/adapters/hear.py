"""HEAR's common API (Turian et al., PMLR 176, 2022) for any student.

``python -m heareval.embeddings.runner pipeline.adapters.hear --model artifacts/run/NAME --tasks-dir tasks``.
``load_model`` takes a run folder, an export folder or an ONNX file; without one, the environment variable
``OSSICLE_STUDENT`` names it. The kit finds these three functions by name.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.adapters.student_windows import WINDOW_SECONDS, open_student
from pipeline.errors import ConfigError

SAMPLE_RATES_HZ = (16_000, 22_050, 44_100, 48_000)
HOP_MS = 50.0


class HearModel(nn.Module):
    """A student with HEAR's attributes.

    Attributes:
        sample_rate: Hz of the sound it takes, one of HEAR's; a student of another rate hears it resampled.
        scene_embedding_size, timestamp_embedding_size: width of its embeddings.
        hop_ms: between timestamps.
    """

    def __init__(self, reference: str | Path, window_seconds: float, hop_ms: float) -> None:
        super().__init__()
        self.student = open_student(reference, window_seconds, SAMPLE_RATES_HZ)
        self.sample_rate = self.student.sample_rate_hz
        self.scene_embedding_size = self.timestamp_embedding_size = self.student.embedding_dim
        self.hop_ms = hop_ms


def load_model(
    model_file_path: str | Path = "", *, window_seconds: float = WINDOW_SECONDS, hop_ms: float = HOP_MS
) -> HearModel:
    """Return the student at ``model_file_path``.

    Args:
        model_file_path: run folder, export folder or ONNX file; empty = ``OSSICLE_STUDENT``.
        window_seconds: of a window, where the file does not fix it.
        hop_ms: between timestamps; HEAR asks for 50 ms or less.

    Raises:
        ConfigError: no student is named, it hears above 48 kHz, or the hop is not above 0.
        MissingArtifactError: it is not there.
        WeightsError: it is damaged, or is no file of ours.
    """
    if hop_ms <= 0:
        raise ConfigError("a hop is longer than nothing", expected="> 0 ms", got=hop_ms)
    return HearModel(model_file_path, window_seconds, hop_ms)


def get_scene_embeddings(
    audio: Float[Tensor, "sounds samples"], model: HearModel
) -> Float[Tensor, "sounds dim"]:
    """Return one embedding a sound: the mean over windows spread evenly over it, as ``ossicle evaluate`` does."""
    return model.student.tiled(audio)


def get_timestamp_embeddings(
    audio: Float[Tensor, "sounds samples"], model: HearModel
) -> tuple[Float[Tensor, "sounds times dim"], Float[Tensor, "sounds times"]]:
    """Return embeddings of windows centred on timestamps, and the timestamps in milliseconds."""
    embedding, seconds = model.student.sliding(audio, model.hop_ms / 1_000)
    return embedding, (seconds * 1_000).to(torch.float64).expand(len(audio), -1)
