"""PANNs CNN14, 32 kHz and 16 kHz (Kong et al., IEEE/ACM TASLP 2020, arXiv 1912.10211; 80.8 M parameters)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.config import TeacherConfig
from pipeline.errors import WeightsError
from pipeline.frontends.panns_frontend import AT_16_KHZ, AT_32_KHZ, MELS, PannsFrontend, PannsFrontendConfig
from pipeline.teachers import options
from pipeline.teachers import weights as checkpoints
from pipeline.teachers.folding import load_published, without_constants
from pipeline.teachers.network import NetworkTeacher

CHANNELS = (64, 128, 256, 512, 1024, 2048)
CLASSES = 527
WINDOW_SECONDS = 10
# Five 2x2 poolings: one step of the last map is 32 frames.
LEAST_FRAMES = 2 ** (len(CHANNELS) - 1)
CONSTANTS_TOLERANCE = 1e-4


class ConvBlock(nn.Module):
    """Twice conv3x3, batch norm, ReLU; then an average pool."""

    def __init__(self, inputs: int, outputs: int, pool: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(outputs)
        self.bn2: nn.Module = nn.BatchNorm2d(outputs)
        self.pool = pool

    def forward(self, x: Float[Tensor, "batch inputs time mel"]) -> Float[Tensor, "batch outputs time2 mel2"]:
        """Return the pooled feature map; a last odd row or column is dropped by the pooling."""
        x = F.relu_(self.bn1(self.conv1(x)))
        x = F.relu_(self.bn2(self.conv2(x)))
        return F.avg_pool2d(x, self.pool) if self.pool > 1 else x

    def fold(self) -> None:
        """Fold the batch norms into the convolutions: for inference, once, after loading."""
        for conv, norm in (("conv1", "bn1"), ("conv2", "bn2")):
            setattr(self, conv, fuse_conv_bn_eval(getattr(self, conv), getattr(self, norm)))
            setattr(self, norm, nn.Identity())


class Cnn14(nn.Module):
    """Six blocks of 64 to 2048 channels; mean over mel; maximum plus mean over time; two linear layers.

    State-dict names are the published ones without the frontend's constants.
    """

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(MELS)
        first, second, third, fourth, fifth, sixth = CHANNELS
        self.conv_block1 = ConvBlock(1, first, 2)
        self.conv_block2 = ConvBlock(first, second, 2)
        self.conv_block3 = ConvBlock(second, third, 2)
        self.conv_block4 = ConvBlock(third, fourth, 2)
        self.conv_block5 = ConvBlock(fourth, fifth, 2)
        self.conv_block6 = ConvBlock(fifth, sixth, 1)
        self.fc1 = nn.Linear(CHANNELS[-1], CHANNELS[-1])
        self.fc_audioset = nn.Linear(CHANNELS[-1], classes)

    def blocks(self) -> tuple[ConvBlock, ...]:
        """Return the six blocks in order."""
        early = (self.conv_block1, self.conv_block2, self.conv_block3)
        return (*early, self.conv_block4, self.conv_block5, self.conv_block6)

    def normalised(self, log_mel: Float[Tensor, "batch frames 64"]) -> Float[Tensor, "batch 1 frames 64"]:
        """Return the first block's input: every mel band batch-normalised."""
        out: Tensor = self.bn0(log_mel.transpose(1, 2)[..., None])
        return out.permute(0, 3, 2, 1)

    def maps(self, log_mel: Float[Tensor, "batch frames 64"]) -> list[Tensor]:
        """Return the output of every block, (batch, channels, time, mel) each; at least 32 frames."""
        x = self.normalised(log_mel).to(self.conv_block1.conv1.weight.dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        made = []
        for block in self.blocks():
            x = block(x)
            made.append(x)
        return made

    @staticmethod
    def pooled(frames: Float[Tensor, "batch time 2048"]) -> Float[Tensor, "batch 2048"]:
        """Return maximum plus mean over time."""
        return frames.amax(dim=1) + frames.mean(dim=1)

    def embedding(self, pooled: Float[Tensor, "batch 2048"]) -> Float[Tensor, "batch 2048"]:
        """Return the non-negative embedding."""
        return F.relu(self.fc1(pooled))


def unwrap(loaded: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state dict of a PANNs checkpoint, ``{"model": ..., "iteration": ..., "sampler": ...}``.

    Raises:
        WeightsError: no entry ``model``.
    """
    if not isinstance(loaded, dict) or not isinstance(loaded.get("model"), dict):
        got = checkpoints.outline(loaded)
        raise WeightsError("this is no PANNs checkpoint", expected="an entry 'model'", got=got)
    return loaded["model"], {}


class PannsTeacher(NetworkTeacher):
    """CNN14 as stage 1 runs it: exact frontend, folded batch norms, channels last.

    The whole waveform goes through in one pass, whatever its length, as in the authors' inference; one
    shorter than 32 frames is followed by silence. ``embedding`` is the ReLU of ``fc1``, ``frames`` the last
    block's map averaged over mel (one step of 32 hops), ``layer.0`` to ``layer.5`` the blocks' means.
    """

    code_version = "panns_cnn14/1"
    embedding_dim = CHANNELS[-1]
    outputs = ("embedding", "logits", "frames", *(f"layer.{i}" for i in range(len(CHANNELS))))

    def __init__(
        self,
        name: str,
        frontend: PannsFrontendConfig,
        loaded: checkpoints.Weights,
        config: TeacherConfig,
    ) -> None:
        options.parse(options.NoOptions, name, config.options)
        super().__init__(config, loaded.sha256)
        self.name, self.licence, self.citation = name, loaded.licence, loaded.citation
        self.sample_rate_hz = frontend.sample_rate_hz
        self.window_samples = WINDOW_SECONDS * frontend.sample_rate_hz
        self.least_samples = (LEAST_FRAMES - 1) * frontend.hop_length
        self.frontend = PannsFrontend(frontend)
        constants = self.frontend.published_constants()
        state = without_constants(loaded.state, constants, CONSTANTS_TOLERANCE, name)
        bias = state.get("fc_audioset.bias")
        # 80 million numbers need not be drawn only to be overwritten.
        with torch.device("meta"):
            net = Cnn14(CLASSES if bias is None else len(bias))
        net = net.to_empty(device="cpu")
        load_published(net, state, name)
        for block in net.blocks():
            block.fold()
        net = net.to(device=self.device, dtype=self.dtype)
        # Decibels reach -100: the first norm, and the small matrices behind the pooling, stay in float32.
        for exact in (net.bn0, net.fc1, net.fc_audioset):
            exact.float()
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.frontend = self.frontend.to(self.device)

    def compute(
        self, waveforms: Float[Tensor, "batch samples"], outputs: frozenset[str]
    ) -> dict[str, Tensor]:
        """Return every output of one batch at the teacher's sample rate."""
        padded = F.pad(waveforms, (0, max(0, self.least_samples - waveforms.shape[-1])))
        maps = self.net.maps(self.frontend(padded))
        frames = maps[-1].float().mean(dim=3).transpose(1, 2)
        embedding = self.net.embedding(self.net.pooled(frames))
        made = {"embedding": embedding, "logits": self.net.fc_audioset(embedding), "frames": frames}
        for index, one in enumerate(maps):
            if f"layer.{index}" in outputs:
                made[f"layer.{index}"] = one.float().mean(dim=(2, 3))
        return made


def build_cnn14(
    config: TeacherConfig, *, weights: Path | None = None, cache: Path | None = None
) -> PannsTeacher:
    """Return CNN14 at 32 kHz (AudioSet mAP 0.431), its checkpoint from ``weights`` or the cache."""
    return _build("panns_cnn14", AT_32_KHZ, config, weights, cache)


def build_cnn14_16k(
    config: TeacherConfig, *, weights: Path | None = None, cache: Path | None = None
) -> PannsTeacher:
    """Return CNN14 at 16 kHz (AudioSet mAP 0.438), its checkpoint from ``weights`` or the cache."""
    return _build("panns_cnn14_16k", AT_16_KHZ, config, weights, cache)


def _build(
    name: str, frontend: PannsFrontendConfig, config: TeacherConfig, weights: Path | None, cache: Path | None
) -> PannsTeacher:
    config = config if weights is None else config.model_copy(update={"weights": weights})
    return PannsTeacher(name, frontend, checkpoints.load(name, config, unwrap, cache), config)
