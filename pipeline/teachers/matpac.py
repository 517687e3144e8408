"""MATPAC (Quelennec et al., ICASSP 2025) and MATPAC++ (Quelennec et al., 2025): ViT-base, 86 M parameters."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Section, TeacherConfig
from pipeline.errors import WeightsError
from pipeline.frontends.m2d_frontend import MELS, fill_patches
from pipeline.frontends.matpac_frontend import CONFIG, SAMPLE_RATE_HZ, MatpacFrontend
from pipeline.teachers import weights as checkpoints
from pipeline.teachers.folding import load_published
from pipeline.teachers.options import parse
from pipeline.teachers.slices import SLICE_SECONDS, SlicedVitTeacher
from pipeline.teachers.vit import LAYER_NORM_EPSILON, ChunkedVit, Encoded, VitSizes, blocks_of

_FRONTEND = "log_mel."
_ENTRIES = re.compile(r"(cls_token|pos_embed)$|(patch_embed|student_encoder|log_mel|head_norm|head)\.")


class MatpacOptions(Section):
    """MATPAC's own keys."""

    checkpoint: str | None = Field(None, description="name of a published file in place of the teacher's own")
    inference: Literal["precise", "fast"] = Field(
        "precise", description="fill the last chunk to whole patches (as the paper), or to a whole chunk"
    )
    concat_freq: bool | None = Field(
        None,
        description="bands side by side (3840) or their mean (768); default side by side unless a head is there",
    )
    long_clips: Literal["slices", "chunks"] = Field(
        "slices",
        description="past 10 s: 10 s slices as S-SONDO, or the model's chunks throughout as its authors",
    )


class MatpacEncoder(nn.Module):
    """The blocks and the final layer norm."""

    def __init__(self, sizes: VitSizes) -> None:
        super().__init__()
        self.blocks = blocks_of(sizes)
        self.norm = nn.LayerNorm(sizes.dim, eps=LAYER_NORM_EPSILON)


class Matpac(ChunkedVit):
    """The published network under its published state-dict names, its frontend's constants among them.

    Args:
        sizes: of tokens and patches.
        chunk_frames: frames that the table of positions covers: 608, or 992 fine-tuned on AudioSet.
        classes: of the class head; 0 = none.
    """

    exact = (_FRONTEND, "head_norm.", "head.")
    head_norm: nn.BatchNorm1d | None
    head: nn.Linear | None

    def __init__(self, sizes: VitSizes, *, chunk_frames: int, classes: int = 0) -> None:
        super().__init__(sizes, mels=MELS, chunk_frames=chunk_frames)
        self.student_encoder = MatpacEncoder(sizes)
        # Real even where the rest is made on the meta device: a file may leave these constants out.
        with torch.device("cpu"):
            self.log_mel = MatpacFrontend()
        self.head_norm = nn.BatchNorm1d(sizes.dim, affine=False) if classes else None
        self.head = nn.Linear(sizes.dim, classes) if classes else None

    def trunk(self) -> tuple[nn.ModuleList, nn.LayerNorm]:
        """Return the blocks and the final layer norm."""
        return self.student_encoder.blocks, self.student_encoder.norm

    def filled(
        self, normalised: Float[Tensor, "batch 80 frames"], *, fast: bool = False
    ) -> Float[Tensor, "batch 80 frames2"]:
        """Return the spectrogram with zeros on the right, to whole patches or (``fast``) whole chunks."""
        if fast:
            return F.pad(normalised, (0, -normalised.shape[-1] % self.chunk_frames))
        return fill_patches(normalised, chunk_frames=self.chunk_frames, patch_frames=self.sizes.patch_frames)

    def logits(self, frames: Float[Tensor, "batch columns bands dim"]) -> Float[Tensor, "batch classes"]:
        """Return the class head's logits of the mean patch, before the softmax that the authors apply."""
        assert self.head is not None and self.head_norm is not None
        return self.head(self.head_norm(frames.mean(dim=(1, 2))))  # type: ignore[no-any-return]

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Matpac:
        """Return the network with ``state`` loaded; its sizes, chunk and head are read from it.

        The authors read them from the file's path instead; a path does not say what is inside.

        Raises:
            WeightsError: names or shapes are not MATPAC's; entries may be missing only from the frontend.
        """
        sizes = VitSizes.from_state(state, "MATPAC", "student_encoder.blocks")
        bands = MELS // sizes.patch_mels
        table = state.get("pos_embed")
        if table is None or table.ndim != 3 or (table.shape[1] - 1) % bands:
            raise WeightsError(
                "the checkpoint is not one of MATPAC",
                expected=f"pos_embed of 1 + a multiple of {bands} positions",
                got="none" if table is None else list(table.shape),
            )
        chunk = (table.shape[1] - 1) // bands * sizes.patch_frames
        classes = len(state["head.weight"]) if "head.weight" in state else 0
        with torch.device("meta"):
            network = cls(sizes, chunk_frames=chunk, classes=classes)
        full = {_FRONTEND + name: value for name, value in network.log_mel.state_dict().items()} | dict(state)
        if classes:
            full.setdefault("head_norm.num_batches_tracked", torch.tensor(0))
        load_published(network, full, "MATPAC", assign=True)
        return network


def unwrap_matpac(payload: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the entries of encoder, head and frontend of a flat file.

    Others (a teacher encoder, predictor, decoder) are left out, as the authors' loader does; unlike it, an
    entry that is missing afterwards is refused.

    Raises:
        WeightsError: the file holds no flat state dict.
    """
    if not isinstance(payload, Mapping):
        raise WeightsError(
            "the checkpoint is not one of MATPAC", expected="a flat state dict", got=type(payload).__name__
        )
    return {n: v for n, v in payload.items() if _ENTRIES.match(str(n)) and isinstance(v, Tensor)}, {}


class MatpacTeacher(SlicedVitTeacher):
    """MATPAC as its authors' package and S-SONDO hear clips.

    The log-mel is cut into chunks of the table's width (608 frames, 6.08 s; 992 fine-tuned), each with
    positions from the first. ``precise`` fills the last chunk with zeros to whole patches, ``fast`` to a whole
    chunk; the filling is part of the time mean, as in the published code. A clip longer than 10 s is first cut
    into 10 s slices, the last one filled with silence, and their vectors are averaged (S-SONDO keeps them
    apart: windows of 10 s give that); ``long_clips = "chunks"`` leaves the slices out, as the authors do. A
    shorter clip is heard as it is, below 25 ms followed by silence.

    ``embedding`` is the time mean of the bands side by side (3840), with a class head the mean of all patches
    (768); ``frames`` one such vector each 160 ms; ``layer.N`` the same of block N, the last one after the
    final norm. The authors' ``logits`` are in the order of the classes' machine identifiers (mid), and their
    class probabilities a softmax of them, although AudioSet is multi-label.
    """

    code_version = "matpac/1"
    sample_rate_hz = SAMPLE_RATE_HZ
    window_samples = round(SLICE_SECONDS * SAMPLE_RATE_HZ)

    def __init__(
        self, config: TeacherConfig, network: Matpac, options: MatpacOptions, sha256: str,
        *, licence: str, citation: str,
    ) -> None:  # fmt: skip
        self.side_by_side = network.head is None if options.concat_freq is None else options.concat_freq
        own = {
            "inference": options.inference,
            "concat_freq": self.side_by_side,
            "long_clips": options.long_clips,
        }
        super().__init__(config, sha256, own)
        self.name, self.licence, self.citation = config.name, licence, citation
        self.fast = options.inference == "fast"
        self.in_slices = options.long_clips == "slices"
        self.column_samples = CONFIG.hop_length * network.sizes.patch_frames
        network.cast(self.device, self.dtype)
        self.network = network
        self.embedding_dim = network.sizes.dim * (network.bands if self.side_by_side else 1)
        logits = ("logits",) if network.head is not None else ()
        layers = (f"layer.{n}" for n in range(network.sizes.depth))
        self.outputs = ("embedding", *logits, "frames", *layers)

    def encode(self, waveforms: Float[Tensor, "batch samples"], layers: Collection[int]) -> Encoded:
        """Return the patches of each waveform and the time means of ``layers``."""
        return self.network(self.network.filled(self.network.log_mel(waveforms), fast=self.fast), layers)  # type: ignore[no-any-return]

    def classify(self, patches: Float[Tensor, "batch columns bands dim"]) -> Float[Tensor, "batch classes"]:
        """Return the logits of the class head."""
        return self.network.logits(patches)


def build_matpac(
    config: TeacherConfig, *, weights: Path | None = None, cache: Path | None = None
) -> MatpacTeacher:
    """Return MATPAC or MATPAC++ with its published checkpoint.

    Args:
        config: name, options, device, dtype.
        weights: a file in place of ``config.weights``.
        cache: folder of downloads.

    Raises:
        WeightsError: the checkpoint is absent, not trusted or not MATPAC's.
    """
    options = parse(MatpacOptions, config.name, config.options)
    if weights is not None:
        config = config.model_copy(update={"weights": weights})
    loaded = checkpoints.load(options.checkpoint or config.name, config, unwrap_matpac, cache)
    return MatpacTeacher(
        config, Matpac.from_state(loaded.state), options, loaded.sha256,
        licence=loaded.licence, citation=loaded.citation,
    )  # fmt: skip
