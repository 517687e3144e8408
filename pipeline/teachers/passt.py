"""PaSST: Efficient Training of Audio Transformers with Patchout (Koutini et al., Interspeech 2022; 86 M)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.checkpoints.table import known
from pipeline.config import Section, TeacherConfig
from pipeline.errors import ConfigError, WeightsError
from pipeline.frontends.passt_frontend import PASST, PasstFrontend
from pipeline.teachers import weights as checkpoints
from pipeline.teachers.folding import load_published
from pipeline.teachers.network import NetworkTeacher
from pipeline.teachers.options import parse
from pipeline.teachers.vit import LAYER_NORM_EPSILON, PatchEmbed, VitSizes, blocks_of, layers_of

STRIDE = 10
WINDOW_SECONDS, HOP_SECONDS = 10.0, 2.5
TIMESTAMP_WINDOW_SECONDS, TIMESTAMP_HOP_SECONDS = 0.16, 0.05


class PasstOptions(Section):
    """PaSST's own keys."""

    checkpoint: str | None = Field(None, description="name of a published file in place of the teacher's own")
    embedding: Literal["features", "logits_features"] = Field(
        "features", description="768 features, or 527 logits followed by them (HEAR's scene embedding, 1295)"
    )
    frames: Literal["patches", "timestamps"] = Field(
        "patches",
        description="mean of each time step's patches, or HEAR's 160 ms windows every 50 ms (a pass each)",
    )
    stride: int | None = Field(
        None,
        ge=1,
        le=16,
        description="between patches, in bands and frames; default the s10 of the file's name",
    )
    window_seconds: float = Field(
        WINDOW_SECONDS, gt=TIMESTAMP_WINDOW_SECONDS, description="longest clip heard in one pass"
    )
    hop_seconds: float = Field(HOP_SECONDS, gt=0, description="between the windows of longer clips")


class PasstHeard(NamedTuple):
    """What the network made of a batch of spectrograms.

    Attributes:
        features: (batch, dim), the mean of the normalised class and distillation tokens.
        logits: (batch, classes).
        patches: (batch, columns, dim), the normalised patches, mean over the bands.
        layers: (batch, dim) a layer, the mean of its patches; the two tokens are left out.
    """

    features: Tensor
    logits: Tensor
    patches: Tensor
    layers: dict[int, Tensor]


class Passt(nn.Module):
    """The published network under its published state-dict names.

    Position tables of time and frequency are apart; a shorter clip takes the first columns. In training,
    structured patchout drops random columns and bands; at inference nothing is dropped.

    Args:
        sizes: of tokens and patches.
        bands, columns: of the position tables.
        classes: of the head.
        stride: between patches.
        s_patchout_t, s_patchout_f: columns and bands dropped a training step.
    """

    def __init__(
        self, sizes: VitSizes, *, bands: int, columns: int, classes: int, stride: int,
        s_patchout_t: int = 0, s_patchout_f: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        dim = sizes.dim
        self.stride, self.s_patchout_t, self.s_patchout_f = stride, s_patchout_t, s_patchout_f
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.new_pos_embed = nn.Parameter(torch.zeros(1, 2, dim))
        self.freq_new_pos_embed = nn.Parameter(torch.zeros(1, dim, bands, 1))
        self.time_new_pos_embed = nn.Parameter(torch.zeros(1, dim, 1, columns))
        self.patch_embed = PatchEmbed(sizes, stride)
        self.blocks = blocks_of(sizes)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPSILON)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, classes))
        # Part of the published file; the published forward pass does not use it.
        self.head_dist = nn.Linear(dim, classes)

    def tokens(self, log_mel: Float[Tensor, "batch mels frames"]) -> tuple[Tensor, int]:
        """Return (batch, 2 + bands * columns, dim) tokens, frequency-major after cls and dist, and the bands.

        Raises:
            ConfigError: more columns than the table has positions.
        """
        patches = self.patch_embed(log_mel)
        columns, known = patches.shape[-1], self.time_new_pos_embed.shape[-1]
        if columns > known:
            raise ConfigError(
                "PaSST has no positions for a spectrogram this long",
                expected=f"at most {known} time patches",
                got=columns,
                run="lower embed.teacher.options.window_seconds",
            )
        patches = patches + self.time_new_pos_embed[..., :columns] + self.freq_new_pos_embed
        if self.training:
            patches = _patchout(_patchout(patches, 3, self.s_patchout_t), 2, self.s_patchout_f)
        first = torch.cat([self.cls_token, self.dist_token], dim=1) + self.new_pos_embed
        flat = patches.flatten(2).transpose(1, 2)
        return torch.cat([first.expand(len(flat), -1, -1), flat], dim=1), patches.shape[2]

    def forward(
        self, log_mel: Float[Tensor, "batch mels frames"], layers: Collection[int] = ()
    ) -> PasstHeard:
        """Return features, logits and patches of normalised log-mels.

        Args:
            log_mel: at most as long as the table of positions.
            layers: blocks whose patch means are wanted.
        """
        x, bands = self.tokens(log_mel)
        means = {}
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in layers:
                means[number] = x[:, 2:].float().mean(dim=1)
        x = self.norm(x)
        features = x[:, :2].float().mean(dim=1)
        patches = x[:, 2:].float().reshape(len(x), bands, -1, x.shape[-1]).mean(dim=1)
        return PasstHeard(features, self.head(features.to(x.dtype)).float(), patches, means)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], stride: int = STRIDE) -> Passt:
        """Return the network with ``state`` loaded; every size but the stride is read from it.

        Raises:
            WeightsError: names or shapes are not PaSST's, or the stride is another.
        """
        sizes = VitSizes.from_state(state, "PaSST")
        grid = ("freq_new_pos_embed", "time_new_pos_embed", "head.1.weight")
        if any(name not in state for name in grid):
            raise WeightsError(
                "the checkpoint is not one of PaSST",
                expected=", ".join(grid), got=", ".join(sorted(state)[:4]),
            )  # fmt: skip
        bands, columns = state[grid[0]].shape[2], state[grid[1]].shape[-1]
        if (PASST.mels - sizes.patch_mels) // stride + 1 != bands:
            raise WeightsError(
                f"the checkpoint has {bands} frequency patches, which a stride of {stride} does not give",
                run="set embed.teacher.options.stride to the s.. of the file's name",
            )
        with torch.device("meta"):
            network = cls(sizes, bands=bands, columns=columns, classes=len(state[grid[2]]), stride=stride)
        load_published(network, state, "PaSST", assign=True)
        return network


def _patchout(patches: Tensor, axis: int, dropped: int) -> Tensor:
    """Return the patches without ``dropped`` random places of ``axis``, in order."""
    if dropped <= 0:
        return patches
    kept = torch.randperm(patches.shape[axis], device=patches.device)[: max(1, patches.shape[axis] - dropped)]
    return patches.index_select(axis, kept.sort().values)


def unwrap_passt(payload: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the flat state of a published file: a ``model`` key unwrapped, the HEAR wrapper's ``net.`` cut.

    A patch convolution over several input channels (an ImageNet start) is summed over them, as the authors do.

    Raises:
        WeightsError: the file holds no state dict.
    """
    inner = payload.get("model", payload) if isinstance(payload, Mapping) else payload
    if not isinstance(inner, Mapping) or not inner or not all(isinstance(v, Tensor) for v in inner.values()):
        raise WeightsError(
            "the checkpoint is not one of PaSST", expected="a state dict", got=type(inner).__name__
        )
    state = {name.removeprefix("net."): value for name, value in inner.items() if name != "device_proxy"}
    patch = state.get("patch_embed.proj.weight")
    if patch is not None and patch.ndim == 4 and patch.shape[1] > 1:
        state["patch_embed.proj.weight"] = patch.sum(dim=1, keepdim=True)
    return state, {}


class PasstTeacher(NetworkTeacher):
    """PaSST as its authors' HEAR package hears clips.

    Up to ``window_seconds`` (10) a clip is one pass. A longer one is mirrored by half a window at both ends
    and heard in windows of that length every ``hop_seconds`` (2.5); embedding, logits and layers are their
    means, and each step of ``frames`` comes from the window whose middle is nearest. A clip shorter than one
    patch (0.15 s) is followed by silence.

    ``frames`` are 10 a second at stride 10 (step k starts at 0.1 k s); with ``frames = "timestamps"`` one
    HEAR embedding each 50 ms.
    """

    code_version = "passt/1"
    sample_rate_hz = PASST.sample_rate_hz

    def __init__(
        self, config: TeacherConfig, network: Passt, options: PasstOptions, sha256: str,
        *, licence: str, citation: str,
    ) -> None:  # fmt: skip
        super().__init__(
            config, sha256, {**options.model_dump(exclude={"checkpoint"}), "stride": network.stride}
        )
        self.name, self.licence, self.citation = config.name, licence, citation
        self.own, self.network = options, network.to(self.device, self.dtype)
        self.frontend = PasstFrontend(network.patch_embed.proj.kernel_size[1]).to(self.device)
        self.window_samples = round(options.window_seconds * self.sample_rate_hz)
        self.embedding_dim = network.norm.weight.numel()
        if options.embedding == "logits_features":
            self.embedding_dim += network.head_dist.out_features
        layers = (f"layer.{n}" for n in range(len(network.blocks)))
        self.outputs = ("embedding", "logits", "frames", *layers)

    def compute(
        self, waveforms: Float[Tensor, "batch samples"], outputs: frozenset[str]
    ) -> dict[str, Tensor]:
        """Return the outputs of waveforms at 32 kHz; see the class for how long clips are heard."""
        samples = max(waveforms.shape[-1], self.frontend.least_samples)
        waveforms = F.pad(waveforms, (0, samples - waveforms.shape[-1]))
        layers = layers_of(outputs)
        made: dict[str, Tensor] = {}
        if outputs != {"frames"} or self.own.frames == "patches":
            windows = waveforms[:, None]
            if samples > self.window_samples:
                windows = _mirrored_windows(
                    waveforms, self.window_samples, self._samples(self.own.hop_seconds)
                )
            heard = self._hear(windows.flatten(0, 1), layers, self.batch_size)
            made["logits"] = _unfolded(heard.logits, windows).mean(dim=1)
            made["embedding"] = _unfolded(self._embedding(heard), windows).mean(dim=1)
            made |= {f"layer.{n}": _unfolded(v, windows).mean(dim=1) for n, v in heard.layers.items()}
            if "frames" in outputs and self.own.frames == "patches":
                made["frames"] = self._stitched(_unfolded(heard.patches, windows), samples)
        if "frames" in outputs and self.own.frames == "timestamps":
            made["frames"] = self._timestamps(waveforms)
        return made

    def _samples(self, seconds: float) -> int:
        return round(seconds * self.sample_rate_hz)

    def _hear(self, windows: Tensor, layers: Collection[int], batch_size: int) -> PasstHeard:
        parts = [self.network(self.frontend(part), layers) for part in windows.split(batch_size)]
        return PasstHeard(
            torch.cat([part.features for part in parts]),
            torch.cat([part.logits for part in parts]),
            torch.cat([part.patches for part in parts]),
            {n: torch.cat([part.layers[n] for part in parts]) for n in layers},
        )

    def _embedding(self, heard: PasstHeard) -> Tensor:
        if self.own.embedding == "features":
            return heard.features
        return torch.cat([heard.logits, heard.features], dim=-1)

    def _timestamps(self, waveforms: Tensor) -> Tensor:
        size, hop = self._samples(TIMESTAMP_WINDOW_SECONDS), self._samples(TIMESTAMP_HOP_SECONDS)
        windows = _mirrored_windows(waveforms, size, hop)
        # A window of 160 ms is one column of patches, where one of 10 s has a hundred.
        many = self.batch_size * max(1, self.window_samples // size)
        heard = self._hear(windows.flatten(0, 1), (), many)
        return _unfolded(self._embedding(heard), windows)

    def _stitched(self, patches: Tensor, samples: int) -> Tensor:
        """Return (batch, steps, dim): the steps that one pass over the whole clip would have had."""
        if patches.shape[1] == 1:
            return patches[:, 0]
        stride, size = self.network.stride, self.network.patch_embed.proj.kernel_size[1]
        steps = (PASST.frames(samples) - size) // stride + 1
        window, column = stitch_plan(
            steps, patches.shape[1], patches.shape[2],
            window_frames=self.window_samples / PASST.hop_length,
            hop_frames=self._samples(self.own.hop_seconds) / PASST.hop_length,
            stride=stride, patch_frames=size,
        )  # fmt: skip
        return patches[:, window, column]


def _mirrored_windows(waveforms: Tensor, size: int, hop: int) -> Tensor:
    """Return (batch, windows, size): window k is centred at sample k * hop, the ends mirrored."""
    half = size // 2
    padded = F.pad(waveforms[:, None], (half, half), mode="reflect")[:, 0]
    return padded.unfold(-1, size, hop)


def _unfolded(values: Tensor, windows: Tensor) -> Tensor:
    """Return (batch, windows, ...) of values a window."""
    return values.reshape(*windows.shape[:2], *values.shape[1:])


def stitch_plan(
    steps: int, windows: int, columns: int, *,
    window_frames: float, hop_frames: float, stride: int, patch_frames: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return which window and which of its columns stands for each time step of a long clip.

    Args:
        steps: of the whole clip; step k covers frames ``k * stride .. k * stride + patch_frames``.
        windows: heard, window i being centred at frame ``i * hop_frames``.
        columns: of a window.

    Returns:
        Two (steps,) tensors: the window whose centre is nearest, and the column nearest in time.
    """
    start = torch.arange(steps, dtype=torch.float64) * stride
    window = ((start + patch_frames / 2) / hop_frames).round().clamp(0, windows - 1)
    column = ((start - window * hop_frames + window_frames / 2) / stride).round().clamp(0, columns - 1)
    return window.long(), column.long()


def build_passt(
    config: TeacherConfig, *, weights: Path | None = None, cache: Path | None = None
) -> PasstTeacher:
    """Return PaSST with its published checkpoint.

    Args:
        config: name, options, device, dtype.
        weights: a file in place of ``config.weights``.
        cache: folder of downloads.

    Raises:
        WeightsError: the checkpoint is absent, not trusted or not PaSST's.
    """
    options = parse(PasstOptions, config.name, config.options)
    if weights is not None:
        config = config.model_copy(update={"weights": weights})
    name = options.checkpoint or config.name
    loaded = checkpoints.load(name, config, unwrap_passt, cache)
    stride = options.stride or _stride_in(config.weights.name if config.weights else "", name)
    return PasstTeacher(
        config, Passt.from_state(loaded.state, stride), options, loaded.sha256,
        licence=loaded.licence, citation=loaded.citation,
    )  # fmt: skip


def _stride_in(file: str, name: str) -> int:
    """Return the stride that a published file's name tells (``passt-s-f128-p16-s10-...``), else PaSST's 10."""
    for text in (file, known(name).published_name):
        found = re.search(r"-s(\d+)-", text)
        if found:
            return int(found[1])
    return STRIDE
