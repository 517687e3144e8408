"""MULE, the unsupervised music model (McCallum et al., ISMIR 2022, arXiv 2210.03799; 62.3 M parameters)."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.config import TeacherConfig
from pipeline.errors import WeightsError
from pipeline.frontends import mule_frontend
from pipeline.frontends.mule_frontend import MuleFrontend
from pipeline.teachers import options
from pipeline.teachers import weights as checkpoints
from pipeline.teachers.folding import load_published, without_constants
from pipeline.teachers.network import NetworkTeacher
from pipeline.teachers.sf_nfnet import EMBEDDING_DIM, STAGE_BLOCKS, SfNfNetF0, means

# The converted file's float32 angles may round otherwise on another machine.
CONSTANTS_TOLERANCE = 1e-3
NETWORK_PREFIX = "backbone."


class MuleTeacher(NetworkTeacher):
    """MULE as stage 1 runs it: kernels standardised once, channels last, the slices of all clips in one batch.

    A clip gives a slice of 3 s every 2 s; ``embedding`` is their mean, ``frames`` the slices' own embeddings.
    A clip shorter than a slice is mirrored at its end (see ``MuleFrontend``). ``layer.0`` to ``layer.3`` are
    the stages' means over mel, time and slices, slow path first.
    """

    code_version = "mule/1"
    name = "mule"
    sample_rate_hz = mule_frontend.SAMPLE_RATE_HZ
    window_samples = mule_frontend.SLICE_FRAMES * mule_frontend.HOP_LENGTH
    embedding_dim = EMBEDDING_DIM
    outputs = ("embedding", "frames", *(f"layer.{i}" for i in range(len(STAGE_BLOCKS))))

    def __init__(self, loaded: checkpoints.Weights, config: TeacherConfig) -> None:
        options.parse(options.NoOptions, self.name, config.options)
        super().__init__(config, loaded.sha256)
        self.licence, self.citation = loaded.licence, loaded.citation
        self.frontend = MuleFrontend()
        constants = self.frontend.published_constants()
        state = without_constants(loaded.state, constants, CONSTANTS_TOLERANCE, self.name)
        # 62 million numbers need not be drawn only to be overwritten.
        with torch.device("meta"):
            net = SfNfNetF0()
        net = net.to_empty(device="cpu")
        load_published(net, _backbone(state), self.name)
        net.fold()
        net = net.to(device=self.device, dtype=self.dtype)
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.frontend = self.frontend.to(self.device)

    def compute(
        self, waveforms: Float[Tensor, "batch samples"], outputs: frozenset[str]
    ) -> dict[str, Tensor]:
        """Return ``embedding``, ``frames`` and the asked layers of waveforms at 16 kHz."""
        slices = self.frontend(waveforms)
        batch, count = slices.shape[:2]
        flat = slices.flatten(0, 1)[:, None].to(self.dtype)
        parts = [self._one_part(part, outputs) for part in flat.split(self.batch_size)]
        made = {
            name: torch.cat([part[name] for part in parts]).reshape(batch, count, -1) for name in parts[0]
        }
        frames = made.pop("frames")
        return {"embedding": frames.mean(dim=1), "frames": frames} | {
            name: value.mean(dim=1) for name, value in made.items()
        }

    def _one_part(self, slices: Tensor, outputs: frozenset[str]) -> dict[str, Tensor]:
        stages = self.net.stages(slices.contiguous(memory_format=torch.channels_last))
        slow, fast = stages[-1]
        made = {"frames": self.net.embedding(slow, fast)}
        for index, paths in enumerate(stages):
            if f"layer.{index}" in outputs:
                made[f"layer.{index}"] = means(*paths)
        return made


def _backbone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the network's entries without their prefix.

    Raises:
        WeightsError: an entry has another prefix.
    """
    other = [key for key in state if not key.startswith(NETWORK_PREFIX)]
    if other:
        raise WeightsError(
            "this is no MULE checkpoint",
            expected="entries under 'backbone.' and 'frontend.'",
            got=", ".join(other[:4]),
        )
    return {key.removeprefix(NETWORK_PREFIX): value for key, value in state.items()}


def build_mule(
    config: TeacherConfig, *, weights: Path | None = None, cache: Path | None = None
) -> MuleTeacher:
    """Return the teacher, its checkpoint from ``weights`` or the cache."""
    config = config if weights is None else config.model_copy(update={"weights": weights})
    return MuleTeacher(checkpoints.load("mule", config, cache=cache), config)
