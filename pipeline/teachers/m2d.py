"""M2D: Masked Modeling Duo (Niizumi et al., ICASSP 2023; IEEE/ACM TASLP 2024), ViT-base, 86 M parameters."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from pipeline.checkpoints.table import known
from pipeline.config import Section, TeacherConfig
from pipeline.errors import ConfigError, WeightsError
from pipeline.frontends.m2d_frontend import MELS, M2dFrontend, fill_patches
from pipeline.teachers import weights as checkpoints
from pipeline.teachers.folding import load_published
from pipeline.teachers.options import parse
from pipeline.teachers.slices import SLICE_SECONDS, SlicedVitTeacher
from pipeline.teachers.vit import LAYER_NORM_EPSILON, ChunkedVit, Encoded, VitSizes, blocks_of

NORM_STATS = (-7.1, 4.2)
_PREFIXES = ("module.ar.runtime.backbone.", "backbone.")
_HEAD = {
    "module.head.norm.running_mean": "head_norm.running_mean",
    "module.head.norm.running_var": "head_norm.running_var",
    "module.head.mlp.mlp.0.weight": "head.weight",
    "module.head.mlp.mlp.0.bias": "head.bias",
}
_ENTRIES = re.compile(r"(cls_token|pos_embed|norm_stats)$|(patch_embed|blocks|norm)\.")


class M2dOptions(Section):
    """M2D's own keys."""

    checkpoint: str | None = Field(None, description="name of a published file in place of the teacher's own")
    architecture: str | None = Field(
        None,
        description="80x608p16x16: bands x frames of a chunk, patch; default the name of the file's folder",
    )
    flat_features: bool = Field(
        False, description="the mean of all patches (768), not bands side by side (3840 for 5 bands)"
    )
    long_clips: Literal["slices", "chunks"] = Field(
        "slices",
        description="past 10 s: 10 s slices as S-SONDO, or the model's chunks throughout as its authors",
    )


@dataclass(frozen=True)
class Architecture:
    """What a published name says: ``80x608p16x16``, with ``p32k`` behind it for 32 kHz."""

    mels: int
    frames: int
    patch_mels: int
    patch_frames: int
    sample_rate_hz: int = 16_000

    @classmethod
    def find(cls, text: str) -> Architecture | None:
        """Return the architecture named somewhere in ``text``, or None."""
        found = re.search(r"(\d+)x(\d+)p(\d+)x(\d+)(p32k)?", text)
        if found is None:
            return None
        mels, frames, patch_mels, patch_frames = (int(number) for number in found.groups()[:4])
        return cls(mels, frames, patch_mels, patch_frames, 32_000 if found[5] else 16_000)


class M2d(ChunkedVit):
    """The published encoder under its published state-dict names, and a fine-tuned file's class head if any.

    Args:
        sizes: of tokens and patches.
        architecture: see there.
        head: (inputs, classes) of the class head, 0 inputs = none.
    """

    exact = ("norm_stats", "head_norm.", "head.")
    head_norm: nn.BatchNorm1d | None
    head: nn.Linear | None

    def __init__(self, sizes: VitSizes, architecture: Architecture, head: tuple[int, int] = (0, 0)) -> None:
        super().__init__(sizes, mels=architecture.mels, chunk_frames=architecture.frames)
        self.norm_stats = nn.Parameter(torch.tensor(NORM_STATS), requires_grad=False)
        self.blocks = blocks_of(sizes)
        self.norm = nn.LayerNorm(sizes.dim, eps=LAYER_NORM_EPSILON)
        inputs, classes = head
        self.head_norm = nn.BatchNorm1d(inputs, affine=False) if inputs else None
        self.head = nn.Linear(inputs, classes) if inputs else None

    def trunk(self) -> tuple[nn.ModuleList, nn.LayerNorm]:
        """Return the blocks and the final layer norm."""
        return self.blocks, self.norm

    def normalised(self, log_mel: Float[Tensor, "batch mels frames"]) -> Float[Tensor, "batch mels frames2"]:
        """Return (log-mel - mean) / deviation, zeros on its right up to whole patches."""
        mean, deviation = self.norm_stats
        return fill_patches(
            (log_mel - mean) / deviation,
            chunk_frames=self.chunk_frames, patch_frames=self.sizes.patch_frames,
        )  # fmt: skip

    def logits(self, frames: Float[Tensor, "batch columns bands dim"]) -> Float[Tensor, "batch classes"]:
        """Return the class head's logits of the time mean, flat or not as the head is wide."""
        assert self.head is not None and self.head_norm is not None
        pooled = frames.mean(dim=1)
        flat = self.head.in_features == self.sizes.dim
        return self.head(self.head_norm(pooled.mean(dim=1) if flat else pooled.flatten(1)))  # type: ignore[no-any-return]

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], architecture: Architecture) -> M2d:
        """Return the network with ``state`` loaded; files of 2022 have no ``norm_stats``: -7.1 and 4.2.

        Raises:
            WeightsError: names or shapes are not those of ``architecture``.
        """
        sizes = VitSizes.from_state(state, "M2D")
        found = f"patches of {sizes.patch_mels}x{sizes.patch_frames}"
        columns = architecture.frames // architecture.patch_frames
        positions = 1 + (architecture.mels // architecture.patch_mels) * columns
        table = state.get("pos_embed")
        if table is not None:
            found += f", {table.shape[1]} positions"
        expected = f"patches of {architecture.patch_mels}x{architecture.patch_frames}, {positions} positions"
        if found != expected:
            raise WeightsError(
                "the checkpoint is of another M2D architecture", expected=expected, got=found,
                run="set embed.teacher.options.architecture to the one in the name of the file's folder",
            )  # fmt: skip
        state = {"norm_stats": torch.tensor(NORM_STATS), **state}
        state["norm_stats"] = state["norm_stats"].float().flatten()
        classes, inputs = state["head.weight"].shape if "head.weight" in state else (0, 0)
        with torch.device("meta"):
            network = cls(sizes, architecture, (inputs, classes))
        if network.head_norm is not None:
            state.setdefault("head_norm.num_batches_tracked", torch.tensor(0))
        load_published(network, state, "M2D", assign=True)
        return network


def unwrap_m2d(payload: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the encoder's state from any published layout.

    Encoder-only files are flat; full ones hold it under ``model`` with decoder, predictor and target network
    beside it; runtime files prefix it with ``backbone.``, fine-tuned ones with ``module.ar.runtime.backbone.``
    and carry ``module.head``, which becomes ``head_norm`` and ``head``.

    Raises:
        WeightsError: none of these.
    """
    inner = payload.get("model", payload) if isinstance(payload, Mapping) else payload
    if not isinstance(inner, Mapping) or "model" in inner:
        raise WeightsError(
            "the checkpoint is not one of M2D", expected="a state dict", got=type(inner).__name__
        )
    state: dict[str, Tensor] = {}
    for name, value in inner.items():
        short = str(name)
        for prefix in _PREFIXES:
            short = short.removeprefix(prefix)
        short = _HEAD.get(short, short)
        kept = _ENTRIES.match(short) is not None or (short in _HEAD.values() and name in _HEAD)
        if kept and isinstance(value, Tensor):
            state[short] = value
        elif kept and short == "norm_stats":
            state[short] = torch.as_tensor(value, dtype=torch.float32)
    return state, {}


class M2dTeacher(SlicedVitTeacher):
    """M2D as its authors' portable runtime and S-SONDO hear clips.

    The log-mel is cut into chunks of the model's width (608 frames, 6.08 s; 200 frames, 2 s), each with
    positions from the first; the last chunk is filled with zeros to whole patches. A clip longer than 10 s is
    first cut into 10 s slices, the last one filled with silence, as S-SONDO does (``long_clips = "chunks"``
    leaves that out, as the authors do). A shorter clip is heard as it is, below 12.6 ms followed by silence.

    ``embedding`` is the time mean of the bands side by side (3840), ``frames`` one such vector a column of
    patches (160 or 40 ms; of a sliced clip those within it), ``layer.N`` the same of block N, the last one
    after the final norm, as S-SONDO taps them. ``logits`` where the file has a class head.
    """

    code_version = "m2d/1"

    def __init__(
        self, config: TeacherConfig, network: M2d, architecture: Architecture, options: M2dOptions,
        sha256: str, *, licence: str, citation: str,
    ) -> None:  # fmt: skip
        super().__init__(config, sha256, options.model_dump(include={"flat_features", "long_clips"}))
        self.name, self.licence, self.citation = config.name, licence, citation
        self.sample_rate_hz = architecture.sample_rate_hz
        self.side_by_side = not options.flat_features
        self.in_slices = options.long_clips == "slices"
        self.column_samples = self.sample_rate_hz // 100 * architecture.patch_frames
        network.cast(self.device, self.dtype)
        self.network = network
        self.frontend = M2dFrontend(self.sample_rate_hz).to(self.device)
        self.window_samples = round(SLICE_SECONDS * self.sample_rate_hz)
        self.embedding_dim = network.sizes.dim * (1 if options.flat_features else network.bands)
        logits = ("logits",) if network.head is not None else ()
        layers = (f"layer.{n}" for n in range(network.sizes.depth))
        self.outputs = ("embedding", *logits, "frames", *layers)

    def encode(self, waveforms: Float[Tensor, "batch samples"], layers: Collection[int]) -> Encoded:
        """Return the patches of each waveform and the time means of ``layers``."""
        return self.network(self.network.normalised(self.frontend(waveforms)), layers)  # type: ignore[no-any-return]

    def classify(self, patches: Float[Tensor, "batch columns bands dim"]) -> Float[Tensor, "batch classes"]:
        """Return the logits of a fine-tuned file's class head."""
        return self.network.logits(patches)


def build_m2d(config: TeacherConfig, *, weights: Path | None = None, cache: Path | None = None) -> M2dTeacher:
    """Return M2D; its architecture is the teacher's name's, the option's, or the name's of the file's folder.

    Args:
        config: name, options, device, dtype.
        weights: a file in place of ``config.weights``.
        cache: folder of downloads.

    Raises:
        WeightsError: the checkpoint is absent, not trusted or of another architecture.
        ConfigError: the architecture is named nowhere, or impossible.
    """
    options = parse(M2dOptions, config.name, config.options)
    if weights is not None:
        config = config.model_copy(update={"weights": weights})
    name = options.checkpoint or config.name
    architecture = _architecture(options, name, config.weights)
    loaded = checkpoints.load(name, config, unwrap_m2d, cache)
    return M2dTeacher(
        config, M2d.from_state(loaded.state, architecture), architecture, options, loaded.sha256,
        licence=loaded.licence, citation=loaded.citation,
    )  # fmt: skip


def _architecture(options: M2dOptions, name: str, weights: Path | None) -> Architecture:
    named = [options.architecture or ""]
    if weights is not None:
        named += [weights.parent.name, weights.name]
    entry = known(name)
    named += [entry.archive or "", entry.published_name, *entry.files]
    found = next((found for text in named if (found := Architecture.find(text)) is not None), None)
    if found is None or (options.architecture and Architecture.find(options.architecture) is None):
        raise ConfigError(
            "which M2D this is, is said nowhere",
            expected="80x608p16x16 or another in the name of the file's folder",
            got=options.architecture or ", ".join(text for text in named if text),
            run='set embed.teacher.options.architecture = "80x608p16x16"',
        )
    if found.mels != MELS or min(found.frames, found.patch_mels, found.patch_frames) < 1:
        raise ConfigError("no such M2D", expected=f"{MELS} bands", got=str(found))
    return found
