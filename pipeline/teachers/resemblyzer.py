"""Resemblyzer's voice encoder (GE2E: Wan et al., ICASSP 2018, arXiv 1710.10467; 1.42 M parameters)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import TeacherConfig
from pipeline.errors import ConfigError, WeightsError
from pipeline.frontends import resemblyzer_frontend
from pipeline.frontends.resemblyzer_frontend import ResemblyzerFrontend
from pipeline.teachers import options
from pipeline.teachers import weights as checkpoints
from pipeline.teachers.folding import load_published
from pipeline.teachers.network import NetworkTeacher

EMBEDDING_DIM = 256
LAYERS = 3
# Parameters of the training's loss, saved beside the encoder's.
NOT_THE_ENCODERS = ("similarity_weight", "similarity_bias")


class VoiceEncoder(nn.Module):
    """Three LSTM layers; the last hidden state through a linear layer and ReLU, to unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(resemblyzer_frontend.MELS, EMBEDDING_DIM, LAYERS, batch_first=True)
        self.linear = nn.Linear(EMBEDDING_DIM, EMBEDDING_DIM)

    def forward(self, mel: Float[Tensor, "batch frames 40"]) -> Float[Tensor, "batch 256"]:
        """Return the non-negative embedding of unit length; zeros where ReLU lets nothing through."""
        _, (hidden, _) = self.lstm(mel)
        return F.normalize(F.relu(self.linear(hidden[-1])))


class ResemblyzerTeacher(NetworkTeacher):
    """The voice encoder as stage 1 runs it: the partials of all clips in one batch.

    The level is raised to -30 dBFS where it is below; a partial of 1.6 s every 0.77 s (see
    ``ResemblyzerFrontend``); ``frames`` are the partials' embeddings, ``embedding`` their mean at unit length.
    The authors' trimming of pauses by voice activity is left out: a window is what it is. Float32 alone: a
    recurrence of 160 steps adds up rounding.

    Raises:
        ConfigError: another number format was asked for.
    """

    code_version = "resemblyzer/1"
    name = "resemblyzer"
    sample_rate_hz = resemblyzer_frontend.SAMPLE_RATE_HZ
    window_samples = resemblyzer_frontend.PARTIAL_FRAMES * resemblyzer_frontend.HOP_LENGTH
    embedding_dim = EMBEDDING_DIM
    outputs = ("embedding", "frames")

    def __init__(self, loaded: checkpoints.Weights, config: TeacherConfig) -> None:
        options.parse(options.NoOptions, self.name, config.options)
        if config.dtype == "bfloat16":
            raise ConfigError(
                "teacher 'resemblyzer' runs in float32", expected="float32 or auto", got="bfloat16"
            )
        super().__init__(config.model_copy(update={"dtype": "float32"}), loaded.sha256)
        self.licence, self.citation = loaded.licence, loaded.citation
        self.frontend = ResemblyzerFrontend().to(self.device)
        net = VoiceEncoder()
        load_published(net, loaded.state, self.name)
        self.net = net.to(self.device)

    def compute(
        self, waveforms: Float[Tensor, "batch samples"], outputs: frozenset[str]
    ) -> dict[str, Tensor]:
        """Return ``embedding`` (batch, 256) and ``frames`` (batch, partials, 256) of waveforms at 16 kHz."""
        partials = self.frontend(waveforms)
        flat = partials.flatten(0, 1)
        embedded = torch.cat([self.net(part) for part in flat.split(self.batch_size)])
        frames = embedded.reshape(*partials.shape[:2], self.embedding_dim)
        return {"embedding": F.normalize(frames.mean(dim=1)), "frames": frames}


def unwrap(loaded: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the encoder's state dict of ``{"step": ..., "model_state": ..., "optimizer_state": ...}``.

    Raises:
        WeightsError: no entry ``model_state``.
    """
    if not isinstance(loaded, dict) or not isinstance(loaded.get("model_state"), dict):
        got = checkpoints.outline(loaded)
        raise WeightsError("this is no Resemblyzer checkpoint", expected="an entry 'model_state'", got=got)
    state: dict[str, Tensor] = loaded["model_state"]
    return {key: value for key, value in state.items() if key not in NOT_THE_ENCODERS}, {}


def build_resemblyzer(
    config: TeacherConfig, *, weights: Path | None = None, cache: Path | None = None
) -> ResemblyzerTeacher:
    """Return the teacher, its checkpoint from ``weights`` or the cache."""
    config = config if weights is None else config.model_copy(update={"weights": weights})
    return ResemblyzerTeacher(checkpoints.load("resemblyzer", config, unwrap, cache), config)
