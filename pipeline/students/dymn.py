"""DyMN: MobileNetV3 with dynamic convolutions, Dy-ReLU and coordinate attention.

Schmid, Koutini, Widmer, "Dynamic Convolutional Neural Networks as Efficient Pre-Trained Audio Models", IEEE/ACM
TASLP 2024 (arXiv 2310.15648). Published names and numerics: a checkpoint of the authors loads as it is, given
``num_classes`` and its temperature (1 for AudioSet's, 30 for ImageNet's and S-SONDO's); it is in no checkpoint.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Section, StudentConfig
from pipeline.students.base import Student
from pipeline.students.mobilenetv3 import (
    LAST_EXPANSION,
    ROWS,
    STEM_CHANNELS,
    Row,
    batch_norm,
    channels_at,
    conv_norm,
    initialise,
    pooled_classifier,
)
from pipeline.students.options import parse, takes

KERNELS = 4
CONTEXT_RATIO = 4
LEAST_CONTEXT, MOST_CONTEXT = 32, 128
# Where the published training starts its temperature, and where S-SONDO leaves it.
INITIAL_TEMPERATURE = 30.0
ANNEALING_SHARE = 29 / 200


class DynamicConv(nn.Module):
    """A convolution whose kernel is a mixture of four, drawn for every clip from its context vector.

    The mixture is a softmax over ``temperature`` (Chen et al., CVPR 2020). The four kernels are stored flat,
    ``(1, 1, 4, outputs * inputs / groups * kernel^2)``.

    Args:
        groups: 1 (with ``kernel`` 1), or ``inputs`` = ``outputs``: depthwise.
    """

    temperature: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        context: int,
        kernel: int,
        stride: int,
        groups: int,
        temperature: float,
    ) -> None:
        super().__init__()
        self.shape = (outputs, inputs // groups, kernel, kernel)
        self.stride, self.groups = stride, groups
        # A tensor, so that a compiled network follows its schedule; of no published file, so not in the state dict.
        self.register_buffer("temperature", torch.tensor(float(temperature)), persistent=False)
        kernels = torch.empty(KERNELS, *self.shape)
        for one in kernels:
            nn.init.kaiming_normal_(one, mode="fan_out")
        self.weight = nn.Parameter(kernels.reshape(1, 1, KERNELS, -1))
        self.residuals = nn.Sequential(nn.Linear(context, KERNELS))
        self.bias: Tensor | None = None

    def forward(
        self, x: Float[Tensor, "batch inputs mels frames"], context: Float[Tensor, "batch context"]
    ) -> Tensor:
        """Return ``(batch, outputs, ceil(mels / stride), ceil(frames / stride))``."""
        outputs, inputs, kernel, _ = self.shape
        mixture = torch.softmax(self.residuals(context) / self.temperature, dim=-1)
        weight = mixture @ self.weight[0, 0]
        batch, mels, frames = x.shape[0], x.shape[2], x.shape[3]
        if self.groups == 1:
            # One matrix a clip: four times as fast on a CPU as a convolution of batch groups.
            matrices = weight.reshape(batch, outputs, inputs)
            flat = x.flatten(2)
            if self.bias is None:
                return torch.bmm(matrices, flat).reshape(batch, outputs, mels, frames)
            out = torch.baddbmm(self.bias[None, :, None], matrices, flat)
            return out.reshape(batch, outputs, mels, frames)
        if torch.compiler.is_exporting():
            return self._mixed_maps(x, mixture)
        bias = None if self.bias is None else self.bias.repeat(batch)
        out = F.conv2d(
            x.reshape(1, batch * outputs, mels, frames),
            weight.reshape(batch * outputs, inputs, kernel, kernel),
            bias, self.stride, kernel // 2, groups=batch * outputs,
        )  # fmt: skip
        return out.reshape(batch, outputs, out.shape[2], out.shape[3])

    def _mixed_maps(
        self, x: Float[Tensor, "batch inputs mels frames"], mixture: Float[Tensor, "batch kernels"]
    ) -> Tensor:
        """Return the same by mixing the maps of all four kernels: an ONNX file's groups cannot follow the batch."""
        outputs, inputs, kernel, _ = self.shape
        kernels = self.weight.reshape(KERNELS, outputs, inputs, kernel, kernel).transpose(0, 1)
        maps = F.conv2d(x, kernels.flatten(0, 1), None, self.stride, kernel // 2, groups=self.groups)
        maps = maps.reshape(x.shape[0], outputs, KERNELS, maps.shape[2], maps.shape[3])
        out: Tensor = (maps * mixture[:, None, :, None, None]).sum(dim=2)
        return out if self.bias is None else out + self.bias[:, None, None]

    @torch.no_grad()
    def fold(self, norm: nn.BatchNorm2d) -> None:
        """Fold the batch norm that follows into all four kernels: for inference, once, after loading."""
        scale, shift = norm_scale_and_shift(norm)
        outputs = self.shape[0]
        self.weight.copy_(
            (self.weight.reshape(KERNELS, outputs, -1) * scale[:, None]).reshape(self.weight.shape)
        )
        del self.bias
        self.register_buffer("bias", shift)


class DynamicRelu(nn.Module):
    """Maximum of two lines a channel, their slopes and offsets from the context (Chen et al., ECCV 2020, Dy-ReLU-B)."""

    lambdas: Tensor
    init_v: Tensor

    def __init__(self, channels: int, context: int) -> None:
        super().__init__()
        self.channels = channels
        self.coef_net = nn.Sequential(nn.Linear(context, 4 * channels))
        self.register_buffer("lambdas", torch.tensor([1.0, 1.0, 0.5, 0.5]))
        self.register_buffer("init_v", torch.tensor([1.0, 0.0, 0.0, 0.0]))

    def forward(
        self, x: Float[Tensor, "batch channels mels frames"], context: Float[Tensor, "batch context"]
    ) -> Tensor:
        """Return max(a1 x + b1, a2 x + b2)."""
        theta = 2.0 * torch.sigmoid(self.coef_net(context)) - 1.0
        lines = theta.reshape(-1, self.channels, 1, 1, 4) * self.lambdas + self.init_v
        slope, second_slope, offset, second_offset = lines.unbind(dim=-1)
        return torch.maximum(torch.addcmul(offset, x, slope), torch.addcmul(second_offset, x, second_slope))


class CoordinateAttention(nn.Module):
    """Gates over (channel, mel) and over (channel, time) (Hou et al., CVPR 2021)."""

    def forward(
        self,
        x: Float[Tensor, "batch channels mels frames"],
        over_mel: Float[Tensor, "batch channels mels 1"],
        over_time: Float[Tensor, "batch channels 1 frames"],
    ) -> Tensor:
        """Return ``x`` times the sigmoids of both."""
        return x * torch.sigmoid(over_mel) * torch.sigmoid(over_time)


class ContextGenerator(nn.Module):
    """A block's input, averaged over time and over mel, to its context vector and the two attention sequences."""

    def __init__(self, inputs: int, context: int, hidden: int, stride: int) -> None:
        super().__init__()
        self.joint_conv = nn.Conv2d(inputs, context, 1, bias=False)
        self.joint_norm: nn.Module = batch_norm(context)
        self.conv_f = nn.Conv2d(context, hidden, 1)
        self.conv_t = nn.Conv2d(context, hidden, 1)
        self.stride = stride

    def forward(self, x: Float[Tensor, "batch inputs mels frames"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return context (batch, context, 1, 1), (batch, hidden, mels2, 1) and (batch, hidden, 1, frames2)."""
        mels = x.shape[2]
        over_mel, over_time = x.mean(dim=3, keepdim=True), x.mean(dim=2, keepdim=True).transpose(2, 3)
        joint = torch.cat([over_mel, over_time], dim=2)
        joint = F.hardswish(self.joint_norm(self.joint_conv(joint)))
        context = joint.mean(dim=2, keepdim=True)
        over_mel, over_time = joint[:, :, :mels], joint[:, :, mels:]
        if self.stride > 1:
            pool, step, edge = (3, 1), (self.stride, 1), (1, 0)
            over_mel, over_time = (F.avg_pool2d(s, pool, step, edge) for s in (over_mel, over_time))
        return context, self.conv_f(over_mel), self.conv_t(over_time.transpose(2, 3))


class DynamicInvertedResidual(nn.Module):
    """The inverted residual of MobileNetV3 with every part but the norms drawn from the clip's context."""

    def __init__(
        self, inputs: int, hidden: int, outputs: int, context: int, row: Row, temperature: float
    ) -> None:
        super().__init__()
        self.residual = row.stride == 1 and inputs == outputs
        self.exp_conv: DynamicConv | None = None
        if hidden != inputs:
            self.exp_conv = DynamicConv(inputs, hidden, context, 1, 1, 1, temperature)
            self.exp_norm: nn.Module = batch_norm(hidden)
        self.exp_act: nn.Module = nn.Hardswish(inplace=True) if row.hard_swish else nn.ReLU(inplace=True)
        self.depth_conv = DynamicConv(hidden, hidden, context, row.kernel, row.stride, hidden, temperature)
        self.depth_norm: nn.Module = batch_norm(hidden)
        self.depth_act = DynamicRelu(hidden, context)
        self.ca = CoordinateAttention()
        self.proj_conv = DynamicConv(hidden, outputs, context, 1, 1, 1, temperature)
        self.proj_norm: nn.Module = batch_norm(outputs)
        self.context_gen = ContextGenerator(inputs, context, hidden, row.stride)

    def forward(self, x: Float[Tensor, "batch inputs mels frames"]) -> Tensor:
        """Return ``(batch, outputs, ceil(mels / stride), ceil(frames / stride))``."""
        generated, over_mel, over_time = self.context_gen(x)
        context = generated.flatten(1)
        hidden = x
        if self.exp_conv is not None:
            hidden = self.exp_act(self.exp_norm(self.exp_conv(hidden, context)))
        hidden = self.depth_act(self.depth_norm(self.depth_conv(hidden, context)), context)
        hidden = self.ca(hidden, over_mel, over_time)
        out: Tensor = self.proj_norm(self.proj_conv(hidden, context))
        return out + x if self.residual else out

    def fold(self) -> None:
        """Fold every batch norm into the dynamic convolution before it: for inference, once, after loading."""
        for part in ("exp", "depth", "proj"):
            convolution = getattr(self, f"{part}_conv")
            if convolution is not None:
                convolution.fold(getattr(self, f"{part}_norm"))
                setattr(self, f"{part}_norm", nn.Identity())


def norm_scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return what the batch norm does in evaluation, ``x * scale + shift``."""
    assert norm.running_var is not None and norm.running_mean is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


class DyMN(Student):
    """DyMN with all blocks dynamic; the mean over mel and time of its last map is the embedding.

    At ``width`` 1 it has 8,643,312 parameters and 960 features; 0.4 gives 1,493,768 and 384.

    Args:
        width: multiplies every channel count, rounded to a multiple of 8 (of 4 below width 0.1).
        embedding_dim: width of the embedding; default six times the last block's channels.
        in_channels: input channels, 1 for log-mel.
        num_classes: 0 gives the embedding; more adds the published classifier on the last map.
        temperature: of every softmax over kernels; :meth:`set_temperature` changes it.
        rows: the blocks, published those of MobileNetV3-large.

    Input ``(batch, in_channels, mels, frames)``, any size from 1 x 1.
    """

    not_causal = "its kernels are mixed for the whole clip at once, from the clip's mean"

    def __init__(
        self,
        *,
        width: float = 1.0,
        embedding_dim: int | None = None,
        in_channels: int = 1,
        num_classes: int = 0,
        temperature: float = INITIAL_TEMPERATURE,
        rows: tuple[Row, ...] = ROWS,
    ) -> None:
        rounded = channels_at(width)
        channels = rounded(STEM_CHANNELS * width)
        last = LAST_EXPANSION * rounded(rows[-1].channels * width)
        super().__init__(last, embedding_dim)
        self.layers = nn.ModuleList()
        least, most = rounded(LEAST_CONTEXT * width), rounded(MOST_CONTEXT * width)
        inputs = channels
        for row in rows:
            hidden, outputs = rounded(row.hidden * width), rounded(row.channels * width)
            context = min(max(rounded(hidden // CONTEXT_RATIO), least), most)
            self.layers.append(DynamicInvertedResidual(inputs, hidden, outputs, context, row, temperature))
            inputs = outputs
        self.in_c = conv_norm(in_channels, channels, 3, 2, 1, nn.Hardswish)
        self.out_c = conv_norm(inputs, last, 1, 1, 1, nn.Hardswish)
        self.classifier = pooled_classifier(last, width, num_classes) if num_classes else None
        initialise(self)

    def feature_map(self, log_mel: Float[Tensor, "batch channels mels frames"]) -> Tensor:
        """Return the last convolution's map (batch, features, ceil(mels / 32), ceil(frames / 32))."""
        x = self.in_c(log_mel)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.out_c(x)
        return out

    def forward(self, log_mel: Float[Tensor, "batch channels mels frames"]) -> Float[Tensor, "batch dim"]:
        """Return the embedding, or the logits where there is a classifier."""
        feature_map = self.feature_map(log_mel)
        if self.classifier is not None:
            logits: Tensor = self.classifier(feature_map)
            return logits.float()
        embedding: Tensor = self.embedding(feature_map.mean(dim=(2, 3)))
        return embedding.float()

    def fold(self) -> None:
        """Fold the batch norms into the dynamic convolutions before them: for inference, once, after loading."""
        for module in self.modules():
            if isinstance(module, DynamicInvertedResidual):
                module.fold()

    def set_temperature(self, temperature: float) -> None:
        """Set the temperature of every softmax over kernels; training lowers it from 30 to 1."""
        for module in self.modules():
            if isinstance(module, DynamicConv):
                module.temperature.fill_(temperature)


def temperature_at(epoch: float, first: float = INITIAL_TEMPERATURE) -> float:
    """Return the published schedule: down by 1 an epoch at first, by 0.05 towards the end, never below 1."""
    return max(first - epoch, 1.0 + 0.05 * (first - 1.0) - 0.05 * epoch, 1.0)


class DymnOptions(Section):
    """``[student.options]`` of DyMN."""

    temperature: float = Field(
        INITIAL_TEMPERATURE,
        ge=1,
        description="of the softmax over kernels at the first step; 1 for weights trained on AudioSet",
    )
    temperature_schedule: Literal["annealed", "constant"] = Field(
        "annealed", description="annealed = EfficientAT's, down to 1; constant = S-SONDO's"
    )
    annealing_share: float = Field(
        ANNEALING_SHARE,
        gt=0,
        le=1,
        description="share of the steps after which it is 1; published 29 of 200 epochs",
    )


class ScheduledDyMN(DyMN):
    """DyMN whose temperature is a function of the share of training that is done, and part of the state dict.

    The entry ``temperature`` is beside the published ones: what is saved and exported is what was last trained with.
    """

    temperature: Tensor

    def __init__(self, options: DymnOptions, *, width: float, embedding_dim: int | None) -> None:
        super().__init__(width=width, embedding_dim=embedding_dim, temperature=options.temperature)
        self.options = options
        self.register_buffer("temperature", torch.tensor(float(options.temperature)))
        self.register_load_state_dict_post_hook(_take_stored_temperature)

    def at_step(self, step: int, steps: int) -> None:
        """Set the temperature of update ``step`` of ``steps``: a pure function, so that a run resumes equal."""
        share = step / max(steps - 1, 1)
        options = self.options
        if options.temperature_schedule == "annealed":
            epoch = share / options.annealing_share * (options.temperature - 1.0)
            self.set_temperature(temperature_at(epoch, options.temperature))
        else:
            self.set_temperature(options.temperature)

    def set_temperature(self, temperature: float) -> None:
        """Set the temperature of every softmax over kernels and the one that is stored."""
        super().set_temperature(temperature)
        self.temperature.fill_(temperature)


def _take_stored_temperature(module: nn.Module, incompatible: object) -> None:
    assert isinstance(module, ScheduledDyMN)
    module.set_temperature(float(module.temperature))


@takes(DymnOptions)
def build_dymn04(config: StudentConfig, mels: int) -> ScheduledDyMN:
    """Return EfficientAT's dymn04 without classifier (1.49M parameters at width 1); any number of mels."""
    options = parse(DymnOptions, config)
    return ScheduledDyMN(options, width=0.4 * config.width, embedding_dim=config.embedding_dim)


@takes(DymnOptions)
def build_dymn10(config: StudentConfig, mels: int) -> ScheduledDyMN:
    """Return EfficientAT's dymn10, S-SONDO's DyMN, without classifier (8.64M parameters); any number of mels."""
    return ScheduledDyMN(parse(DymnOptions, config), width=config.width, embedding_dim=config.embedding_dim)
