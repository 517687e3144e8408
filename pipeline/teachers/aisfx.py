"""The aisfx teacher: X-Sequential-CE, Ma and Lerch, ISMIR 2022 (4.7 M parameters, 1.93 GMAC a block)."""

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
from pipeline.frontends import aisfx_frontend
from pipeline.frontends.aisfx_frontend import AisfxFrontend
from pipeline.teachers import weights as checkpoints
from pipeline.teachers.network import NetworkTeacher

EMBEDDING_DIM = 512
_HEAD_WIDTHS = (256, 128)


class ConvBlock(nn.Module):
    """Twice conv3x3, batch norm, ReLU; then a square max pool."""

    def __init__(self, inputs: int, outputs: int, pool: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs, eps=1e-5)
        self.bn2 = nn.BatchNorm2d(outputs, eps=1e-5)
        self.pool = pool

    def forward(self, x: Float[Tensor, "batch inputs time mel"]) -> Float[Tensor, "batch outputs time2 mel2"]:
        """Return the pooled feature map."""
        x = F.relu_(self.bn1(self.conv1(x)))
        x = F.relu_(self.bn2(self.conv2(x)))
        return F.max_pool2d(x, self.pool) if self.pool > 1 else x

    def fuse(self) -> None:
        """Fold the batch norms into the convolutions: for inference, once, after loading."""
        for conv, norm in (("conv1", "bn1"), ("conv2", "bn2")):
            setattr(self, conv, fuse_conv_bn_eval(getattr(self, conv), getattr(self, norm)))
            setattr(self, norm, nn.Identity())


class EmbeddingNet(nn.Module):
    """Four blocks of 64 to 512 channels; mean over mel, then maximum over time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_block1 = ConvBlock(1, 64, 2)
        self.conv_block2 = ConvBlock(64, 128, 2)
        self.conv_block3 = ConvBlock(128, 256, 2)
        self.conv_block4 = ConvBlock(256, EMBEDDING_DIM, 1)

    def forward(self, blocks: Float[Tensor, "batch 100 96"]) -> Float[Tensor, "batch 512"]:
        """Return the non-negative embedding of each block of scaled log-mel."""
        x = blocks[:, None].contiguous(memory_format=torch.channels_last)
        for block in (self.conv_block1, self.conv_block2, self.conv_block3, self.conv_block4):
            x = block(x)
        return x.float().mean(dim=3).amax(dim=2)


class Aisfx(nn.Module):
    """The published network under its published state-dict names, with or without its classification heads.

    Args:
        head_classes: classes of each head (``fc.0``, ``fc.1``, ...); empty = embedding only.
    """

    def __init__(self, head_classes: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.embedding_net = EmbeddingNet()
        first, second = _HEAD_WIDTHS
        self.fc = nn.ModuleList(
            nn.Sequential(
                nn.Linear(EMBEDDING_DIM, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(),
                nn.Linear(second, classes),
            )
            for classes in head_classes
        )  # fmt: skip

    def forward(
        self, blocks: Float[Tensor, "batch 100 96"]
    ) -> tuple[Float[Tensor, "batch 512"], list[Tensor]]:
        """Return the embedding and one (batch, classes) tensor of logits a head."""
        embedding = self.embedding_net(blocks)
        return embedding, [head(embedding) for head in self.fc]

    @classmethod
    def from_state(cls, state: dict[str, Tensor], *, heads: bool = False) -> Aisfx:
        """Return the network with ``state`` loaded; its heads' class counts are read from it.

        Raises:
            WeightsError: names or shapes differ from the network's.
        """
        last = sorted(k for k in state if k.startswith("fc.") and k.endswith(".4.bias"))
        network = cls(tuple(len(state[f"fc.{i}.4.bias"]) for i in range(len(last))) if heads else ())
        kept = state if heads else {k: v for k, v in state.items() if k.startswith("embedding_net.")}
        try:
            network.load_state_dict(kept)
        except RuntimeError as error:
            raise WeightsError(f"the checkpoint does not fit aisfx: {error}") from error
        return network.eval()


class AisfxTeacher(NetworkTeacher):
    """aisfx as stage 1 runs it: exact frontend, fused batch norms, channels last, bfloat16 where faster.

    A waveform longer than one window gives the mean of its blocks (100 frames, hop 50), a shorter one is
    followed by silence; ``frames`` are the blocks' own embeddings.
    """

    code_version = "aisfx/1"
    name = "aisfx"
    sample_rate_hz = aisfx_frontend.SAMPLE_RATE_HZ
    # 100 frames exactly: the frontend pads 1,024 zeros on the left, so 99 hops of samples give 100 frames.
    window_samples = (aisfx_frontend.BLOCK_FRAMES - 1) * aisfx_frontend.HOP_LENGTH
    embedding_dim = EMBEDDING_DIM
    outputs = ("embedding", "frames")
    licence = checkpoints.CHECKPOINTS["aisfx"].licence
    citation = checkpoints.CHECKPOINTS["aisfx"].citation

    def __init__(self, state: dict[str, Tensor], config: TeacherConfig, sha256: str | None = None) -> None:
        super().__init__(
            config,
            sha256 or checkpoints.CHECKPOINTS["aisfx"].sha256 or "",
            {"block_hop_frames": aisfx_frontend.BLOCK_HOP_FRAMES},
        )
        net = Aisfx.from_state(state).embedding_net
        for block in (net.conv_block1, net.conv_block2, net.conv_block3, net.conv_block4):
            block.fuse()
        self.frontend = AisfxFrontend().to(self.device)
        net = net.to(device=self.device, dtype=self.dtype)
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def compute(
        self, waveforms: Float[Tensor, "batch samples"], outputs: frozenset[str]
    ) -> dict[str, Tensor]:
        """Return ``embedding`` (batch, 512) and ``frames`` (batch, blocks, 512) of waveforms at 44.1 kHz."""
        blocks = self.frontend(waveforms)
        flat = blocks.flatten(0, 1).to(self.dtype)
        embedded = torch.cat([self.net(part) for part in flat.split(self.batch_size)])
        frames = embedded.reshape(*blocks.shape[:2], self.embedding_dim)
        return {"embedding": frames.mean(dim=1), "frames": frames}


def unwrap(payload: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return state dict and heads of the published tuple ``(state_dict, heads)``.

    Raises:
        WeightsError: the file holds something else.
    """
    if isinstance(payload, tuple) and len(payload) == 2:
        state, _ = checkpoints.plain(payload[0])
        return state, {"heads": payload[1]}
    return checkpoints.plain(payload)


def build_aisfx(
    config: TeacherConfig, *, weights: Path | None = None, cache: Path | None = None
) -> AisfxTeacher:
    """Return the teacher with its checkpoint loaded from ``weights`` or the cache."""
    config = config if weights is None else config.model_copy(update={"weights": weights})
    loaded = checkpoints.load("aisfx", config, unwrap, cache)
    return AisfxTeacher(loaded.state, config, loaded.sha256)
