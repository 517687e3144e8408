"""EfficientAT's MobileNetV3 and DyMN, distilled from PaSST on AudioSet (Schmid et al., ICASSP 2023; TASLP 2024)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import TeacherConfig
from pipeline.frontends.preemphasis_mel import PreemphasisMel, PreemphasisMelConfig
from pipeline.students.dymn import DyMN
from pipeline.students.mobilenetv3 import MobileNetV3
from pipeline.teachers import options
from pipeline.teachers import weights as checkpoints
from pipeline.teachers.folding import fold_batch_norms, load_published
from pipeline.teachers.network import NetworkTeacher

CLASSES = 527
BLOCKS = 15
WINDOW_SECONDS = 10
# It is in no checkpoint: AudioSet's were trained down to 1, ImageNet's stay at 30.
AUDIOSET_TEMPERATURE = 1.0


@dataclass(frozen=True)
class EfficientAtConfig:
    """One published network.

    Attributes:
        width: multiplier of every channel count.
        dynamic: DyMN, else MobileNetV3.
    """

    name: str
    width: float
    dynamic: bool

    def network(self, classes: int) -> MobileNetV3 | DyMN:
        """Return the network at random initialisation."""
        if self.dynamic:
            return DyMN(width=self.width, num_classes=classes, temperature=AUDIOSET_TEMPERATURE)
        return MobileNetV3(width=self.width, num_classes=classes)


MN04_AS = EfficientAtConfig("efficientat_mn04_as", 0.4, dynamic=False)
MN10_AS = EfficientAtConfig("efficientat_mn10_as", 1.0, dynamic=False)
DYMN04_AS = EfficientAtConfig("efficientat_dymn04_as", 0.4, dynamic=True)
DYMN10_AS = EfficientAtConfig("efficientat_dymn10_as", 1.0, dynamic=True)


class EfficientAtTeacher(NetworkTeacher):
    """An EfficientAT network as stage 1 runs it: exact frontend, folded batch norms.

    The whole waveform goes through in one pass, whatever its length, as in the authors' inference; one too
    short for a frame is followed by silence. ``embedding`` is the mean of the last convolution's map over mel
    and time, ``frames`` its mean over mel (one step of 32 frames of 10 ms), ``layer.0`` to ``layer.14`` the
    inverted residuals' means. DyMN's kernels hang on a softmax of its own features, which bfloat16 moves too
    far (cosine 0.997 with the golden weights), so that dtype ``auto`` means float32 for it.
    """

    code_version = "efficientat/1"
    outputs = ("embedding", "logits", "frames", *(f"layer.{i}" for i in range(BLOCKS)))

    def __init__(
        self, network: EfficientAtConfig, loaded: checkpoints.Weights, config: TeacherConfig
    ) -> None:
        options.parse(options.NoOptions, network.name, config.options)
        if network.dynamic and config.dtype == "auto":
            config = config.model_copy(update={"dtype": "float32"})
        super().__init__(config, loaded.sha256)
        self.name, self.licence, self.citation = network.name, loaded.licence, loaded.citation
        mel = PreemphasisMelConfig()
        self.sample_rate_hz = mel.sample_rate_hz
        self.window_samples = WINDOW_SECONDS * mel.sample_rate_hz
        self.least_samples = mel.samples(1)
        self.frontend = PreemphasisMel(mel).to(self.device)
        bias = loaded.state.get("classifier.5.bias")
        net = network.network(CLASSES if bias is None else len(bias))
        load_published(net, loaded.state, self.name)
        self.embedding_dim = net.pooled_dim
        self.steps = _folded_steps(net)
        for step in self.steps:
            step.to(device=self.device, dtype=self.dtype)
        if not network.dynamic:
            self.steps.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.classifier = net.classifier[2:].to(self.device)  # type: ignore[index]

    def compute(
        self, waveforms: Float[Tensor, "batch samples"], outputs: frozenset[str]
    ) -> dict[str, Tensor]:
        """Return every asked output of one batch at 32 kHz."""
        padded = F.pad(waveforms, (0, max(0, self.least_samples - waveforms.shape[-1])))
        x = self.frontend(padded)[:, None].to(self.dtype)
        made = {}
        for index, step in enumerate(self.steps, start=-1):
            x = step(x)
            if f"layer.{index}" in outputs:
                made[f"layer.{index}"] = x.float().mean(dim=(2, 3))
        frames = x.float().mean(dim=2).transpose(1, 2)
        embedding = frames.mean(dim=1)
        return made | {"embedding": embedding, "logits": self.classifier(embedding), "frames": frames}


def _folded_steps(net: MobileNetV3 | DyMN) -> nn.ModuleList:
    """Return stem, inverted residuals and last convolution, batch norms folded."""
    fold_batch_norms(net)
    if isinstance(net, MobileNetV3):
        return nn.ModuleList(net.features)
    net.fold()
    return nn.ModuleList([net.in_c, *net.layers, net.out_c])


def _build(
    network: EfficientAtConfig,
    config: TeacherConfig,
    *,
    weights: Path | None = None,
    cache: Path | None = None,
) -> EfficientAtTeacher:
    config = config if weights is None else config.model_copy(update={"weights": weights})
    return EfficientAtTeacher(network, checkpoints.load(network.name, config, cache=cache), config)


build_mn04_as: Callable[..., EfficientAtTeacher] = partial(_build, MN04_AS)
build_mn10_as: Callable[..., EfficientAtTeacher] = partial(_build, MN10_AS)
build_dymn04_as: Callable[..., EfficientAtTeacher] = partial(_build, DYMN04_AS)
build_dymn10_as: Callable[..., EfficientAtTeacher] = partial(_build, DYMN10_AS)
