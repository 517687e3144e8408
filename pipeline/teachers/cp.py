"""CP-ResNet, CP-Mobile and the DCASE 2024 baseline as teachers; their networks are students too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import LogMelConfig, TeacherConfig
from pipeline.errors import WeightsError
from pipeline.frontends.log_mel import LogMel
from pipeline.frontends.preemphasis_mel import PreemphasisMel, PreemphasisMelConfig
from pipeline.students.cp_mobile import (
    CP_MOBILE_6K,
    CP_MOBILE_12K,
    CP_MOBILE_30K,
    CP_MOBILE_128K,
    CpMobile,
    CpMobileBlock,
    CpMobileConfig,
)
from pipeline.students.cp_resnet import (
    CP_RESNET_128K,
    CP_RESNET_EAST,
    CpResNet,
    CpResNetConfig,
    ResidualBlock,
)
from pipeline.students.dcase24 import DCASE24_BASELINE
from pipeline.teachers import options
from pipeline.teachers import weights as checkpoints
from pipeline.teachers.folding import fold_batch_norms, load_published
from pipeline.teachers.network import NetworkTeacher

SAMPLE_RATE_HZ = 32_000
_TAU = PreemphasisMelConfig(n_fft=4_096, window_length=3_072, hop_length=500, mels=256, max_hz=15_500.0)
_TAU_RESNET = PreemphasisMelConfig(
    n_fft=4_096, window_length=3_072, hop_length=750, mels=256, max_hz=15_500.0
)
_EAST = PreemphasisMelConfig(max_hz=16_000.0, shift=3.7, scale=3.1)
_DCASE24 = LogMelConfig(
    sample_rate_hz=SAMPLE_RATE_HZ, n_fft=4_096, window_length=3_072, hop_length=500, window="hann_periodic",
    center=True, pad_mode="reflect", power=2.0, mels=256, min_hz=0.0, max_hz=16_000.0, mel_scale="htk",
    mel_norm="none", log="ln", log_offset=1e-5,
)  # fmt: skip
# Names that a Lightning checkpoint adds: the network's own prefix, and constants of the mel transform.
NETWORK_PREFIX = "model."
FRONTEND_PREFIX = "mel."


@dataclass(frozen=True)
class Member:
    """One published network with the frontend and window that it was trained with."""

    config: CpMobileConfig | CpResNetConfig
    frontend_config: PreemphasisMelConfig | LogMelConfig
    window_seconds: float = 1.0
    sample_rate_hz: int = SAMPLE_RATE_HZ

    def network(self, classes: int) -> CpMobile | CpResNet:
        """Return the network with its published classifier, at random initialisation."""
        if isinstance(self.config, CpMobileConfig):
            return CpMobile(self.config, num_classes=classes)
        return CpResNet(self.config, num_classes=classes)

    def frontend(self) -> PreemphasisMel | LogMel:
        """Return the frontend, (batch, samples) to (batch, mels, frames)."""
        if isinstance(self.frontend_config, LogMelConfig):
            return LogMel(self.frontend_config)
        return PreemphasisMel(self.frontend_config)


FAMILY = {
    "cp_resnet": Member(CP_RESNET_128K, _TAU_RESNET),
    "cp_resnet_east": Member(CP_RESNET_EAST, _EAST, window_seconds=10.0),
    "cp_mobile_6k": Member(CP_MOBILE_6K, _TAU),
    "cp_mobile_12k": Member(CP_MOBILE_12K, _TAU),
    "cp_mobile_30k": Member(CP_MOBILE_30K, _TAU),
    "cp_mobile_128k": Member(CP_MOBILE_128K, _TAU),
    "dcase24_baseline": Member(DCASE24_BASELINE, _DCASE24),
}


def unwrap(loaded: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the network's entries of a Lightning checkpoint, or of a plain state dict.

    A Lightning checkpoint names the network's entries ``model.*`` and may hold the mel transform's constants
    under ``mel.*``; the optimiser's state and everything else is left out.

    Raises:
        WeightsError: neither of the two.
    """
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not state:
        raise WeightsError(
            "this is no checkpoint of the CP family",
            expected="a state dict, or a Lightning checkpoint's 'state_dict'",
            got=type(loaded).__name__ if state is None else type(state).__name__,
        )
    kept = {k: v for k, v in state.items() if not k.startswith(FRONTEND_PREFIX)}
    if kept and all(key.startswith(NETWORK_PREFIX) for key in kept):
        kept = {key.removeprefix(NETWORK_PREFIX): value for key, value in kept.items()}
    strange = [key for key, value in kept.items() if not isinstance(value, Tensor)]
    if strange or not kept:
        raise WeightsError(
            "this is no checkpoint of the CP family", expected="tensors by name", got=strange[:4] or "none"
        )
    return kept, {}


class CpTeacher(NetworkTeacher):
    """One of the family as stage 1 runs it: exact frontend, folded batch norms, channels last.

    The authors hear clips of 1 s (EAsT: 10 s). The networks are fully convolutional with a mean at the end,
    so a longer waveform goes through whole; one too short for the frontend's mirrored ends is followed by
    silence. ``embedding`` is the mean of the last block's maps (the authors' code has none), ``frames`` their
    mean over mel, ``layer.N`` the mean of block N's maps.
    """

    code_version = "cp/1"

    def __init__(self, name: str, loaded: checkpoints.Weights, config: TeacherConfig) -> None:
        options.parse(options.NoOptions, name, config.options)
        super().__init__(config, loaded.sha256)
        member = FAMILY[name]
        self.name, self.licence, self.citation = name, loaded.licence, loaded.citation
        self.sample_rate_hz = member.sample_rate_hz
        self.window_samples = round(member.window_seconds * member.sample_rate_hz)
        self.least_samples = member.frontend_config.n_fft // 2 + 2
        bias = loaded.state.get("feed_forward.1.bias", loaded.state.get("feed_forward.bias"))
        net = member.network(10 if bias is None else len(bias))
        load_published(net, loaded.state, name)
        _fold(net)
        self.embedding_dim = net.pooled_dim
        self.net = net.to(device=self.device, dtype=self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.frontend = member.frontend().to(self.device)
        self.blocks = [m for m in net.modules() if isinstance(m, CpMobileBlock | ResidualBlock)]
        self.outputs = ("embedding", "logits", "frames", *(f"layer.{i}" for i in range(len(self.blocks))))

    def compute(
        self, waveforms: Float[Tensor, "batch samples"], outputs: frozenset[str]
    ) -> dict[str, Tensor]:
        """Return every output of one batch at the teacher's sample rate."""
        padded = F.pad(waveforms, (0, max(0, self.least_samples - waveforms.shape[-1])))
        log_mel = self.frontend(padded)[:, None].to(self.dtype)
        made: dict[str, Tensor] = {}
        handles = [
            block.register_forward_hook(_keep_mean(made, f"layer.{index}"))
            for index, block in enumerate(self.blocks)
            if f"layer.{index}" in outputs
        ]
        try:
            maps = self.net.maps(log_mel.contiguous(memory_format=torch.channels_last))
        finally:
            for handle in handles:
                handle.remove()
        made["frames"] = maps.float().mean(dim=2).transpose(1, 2)
        made["embedding"] = made["frames"].mean(dim=1)
        if "logits" in outputs:
            made["logits"] = self.net.logits(maps)
        return made


def _keep_mean(made: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def keep(module: nn.Module, inputs: Any, maps: Tensor) -> None:
        made[name] = maps.float().mean(dim=(2, 3))

    return keep


def _fold(net: CpMobile | CpResNet) -> None:
    for module in net.modules():
        if isinstance(module, ResidualBlock):
            module.fold()
    fold_batch_norms(net)


def _build(name: str) -> Callable[..., CpTeacher]:
    def build(config: TeacherConfig, *, weights: Path | None = None, cache: Path | None = None) -> CpTeacher:
        given = config if weights is None else config.model_copy(update={"weights": weights})
        return CpTeacher(name, checkpoints.load(name, given, unwrap, cache), config)

    build.__doc__ = f"Return {name}, its checkpoint from ``weights`` or the cache."
    return build


build_cp_resnet = _build("cp_resnet")
build_cp_resnet_east = _build("cp_resnet_east")
build_cp_mobile_6k = _build("cp_mobile_6k")
build_cp_mobile_12k = _build("cp_mobile_12k")
build_cp_mobile_30k = _build("cp_mobile_30k")
build_cp_mobile_128k = _build("cp_mobile_128k")
build_dcase24_baseline = _build("dcase24_baseline")
