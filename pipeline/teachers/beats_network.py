"""The network of BEATs (Chen et al., ICML 2023): WavLM's transformer on spectrogram patches, post-norm, DeepNorm.

Modules carry the published state-dict names. ``Beats.fold`` then turns them into what runs: fused projections,
the weight norm multiplied out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import WeightsError
from pipeline.frontends.beats_frontend import MELS
from pipeline.teachers.beats_attention import Attention, position_buckets
from pipeline.teachers.folding import load_published
from pipeline.teachers.position_convolution import PositionConvolution

# Tokens that go through a feed-forward part together on the CPU: more, and its hidden layer leaves the caches.
_CPU_TOKENS = 1 << 10
_TABLE = "encoder.layers.{}.self_attn.relative_attention_bias.weight"


class BeatsSizes(BaseModel):
    """The keys of a checkpoint's ``cfg`` that shape the network, with the authors' defaults; others are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    input_patch_size: int = Field(16, ge=1, le=MELS)
    embed_dim: int = Field(512, ge=1, le=1 << 14)
    conv_bias: bool = False
    encoder_layers: int = Field(12, ge=1, le=128)
    encoder_embed_dim: int = Field(768, ge=1, le=1 << 14)
    encoder_ffn_embed_dim: int = Field(3072, ge=1, le=1 << 16)
    encoder_attention_heads: int = Field(12, ge=1, le=256)
    activation_fn: str = "gelu"
    layer_norm_first: bool = False
    deep_norm: bool = False
    conv_pos: int = Field(128, ge=2, le=1 << 10)
    conv_pos_groups: int = Field(16, ge=1, le=1 << 10)
    relative_position_embedding: bool = False
    num_buckets: int = Field(320, ge=4, le=1 << 14)
    max_distance: int = Field(1280, ge=2, le=1 << 20)
    gru_rel_pos: bool = False
    finetuned_model: bool = False
    predictor_class: int = Field(527, ge=1, le=1 << 16)

    @property
    def bands(self) -> int:
        """Patches side by side in frequency."""
        return MELS // self.input_patch_size

    @property
    def alpha(self) -> float:
        """DeepNorm's factor on every residual (Wang et al., 2022)."""
        return math.pow(2.0 * self.encoder_layers, 0.25) if self.deep_norm else 1.0

    @classmethod
    def from_cfg(cls, cfg: Mapping[str, Any]) -> BeatsSizes:
        """Return the sizes that a checkpoint's ``cfg`` says.

        Raises:
            WeightsError: a value is impossible, or of a variant that no published BEATs file has.
        """
        try:
            sizes = cls.model_validate(dict(cfg))
        except ValidationError as error:
            first = error.errors()[0]
            raise WeightsError(
                f"the checkpoint's cfg.{'.'.join(map(str, first['loc']))} is impossible",
                expected=first["msg"], got=first.get("input"),
            ) from error  # fmt: skip
        wanted = {
            "activation_fn": "gelu",
            "layer_norm_first": False,
            "relative_position_embedding": True,
            "gru_rel_pos": True,
        }
        for key, value in wanted.items():
            if getattr(sizes, key) != value:
                raise WeightsError(
                    f"the checkpoint's cfg.{key} is of another network than BEATs",
                    expected=value,
                    got=getattr(sizes, key),
                )
        for whole, parts, what in (
            (sizes.encoder_embed_dim, sizes.encoder_attention_heads, "encoder_attention_heads"),
            (sizes.encoder_embed_dim, sizes.conv_pos_groups, "conv_pos_groups"),
            (MELS, sizes.input_patch_size, "input_patch_size"),
        ):
            if whole % parts:
                raise WeightsError(f"the checkpoint's cfg.{what} does not divide {whole}", got=parts)
        return sizes


def reduced_mask(padding: Bool[Tensor, "batch length"], count: int) -> Bool[Tensor, "batch count"]:
    """Return the padding mask of ``count`` later items: each is padded if all of its share of ``length`` is.

    As the authors do: the remainder of length / count is dropped at the end and shares are equal.
    """
    length = padding.shape[1]
    shares: Tensor = padding[:, : length - length % count].unflatten(1, (count, -1))
    return shares.all(dim=-1)


class Layer(nn.Module):
    """One post-norm block; DeepNorm multiplies both residuals by alpha."""

    def __init__(self, sizes: BeatsSizes, table: nn.Embedding) -> None:
        super().__init__()
        width, hidden = sizes.encoder_embed_dim, sizes.encoder_ffn_embed_dim
        self.alpha = sizes.alpha
        self.self_attn = Attention(width, sizes.encoder_attention_heads, table)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        bias: Float[Tensor, "heads distances"],
        padding: Bool[Tensor, "batch tokens"] | None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Return the block's output; see ``Attention`` for the arguments."""
        attended = self.self_attn(x, bias, padding)
        output = self.self_attn.out_proj
        # The product is added in place to what it would be added to: alpha x and the bias.
        total = torch.add(output.bias, x, alpha=self.alpha)
        total.flatten(0, 1).addmm_(attended.flatten(0, 1), output.weight.T)
        x = self.self_attn_layer_norm(total)
        total = torch.add(self.fc2.bias, x, alpha=self.alpha)
        rows = _CPU_TOKENS if x.device.type == "cpu" else x.shape[0] * x.shape[1]
        for part, heard in zip(total.flatten(0, 1).split(rows), x.flatten(0, 1).split(rows), strict=True):
            # The bias apart: with it, linear copies it to every row before it multiplies.
            hidden = F.linear(heard, self.fc1.weight).add_(self.fc1.bias)
            part.addmm_(torch.ops.aten.gelu_(hidden), self.fc2.weight.T)
        return self.final_layer_norm(total)  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Convolutional positions, layer norm, the blocks; one table of relative positions for all of them."""

    table: nn.Embedding

    def __init__(self, sizes: BeatsSizes) -> None:
        super().__init__()
        self.sizes = sizes
        convolution = PositionConvolution(sizes.encoder_embed_dim, sizes.conv_pos, sizes.conv_pos_groups)
        self.pos_conv = nn.Sequential(convolution)
        table = nn.Embedding(sizes.num_buckets, sizes.encoder_attention_heads)
        self.layers = nn.ModuleList(Layer(sizes, table) for _ in range(sizes.encoder_layers))
        self.layer_norm = nn.LayerNorm(sizes.encoder_embed_dim)

    def fold(self) -> None:
        """See ``Beats.fold``."""
        self.table = self.layers[0].self_attn.relative_attention_bias  # type: ignore[assignment, union-attr]
        for layer in self.layers:
            layer.self_attn.fold()  # type: ignore[operator, union-attr]

    def distance_bias(self, tokens: int) -> Float[Tensor, "heads distances"]:
        """Return the position bias of the distances ``tokens`` - 1 down to 1 - ``tokens``."""
        distance = torch.arange(tokens - 1, -tokens, -1, device=self.table.weight.device)
        buckets = position_buckets(distance, self.sizes.num_buckets, self.sizes.max_distance)
        return self.table(buckets).T.contiguous()  # type: ignore[no-any-return]

    def position_bias(self, tokens: int) -> Float[Tensor, "heads tokens tokens"]:
        """Return the whole table of (query, key) biases before the gates."""
        return self.distance_bias(tokens).unfold(1, tokens, 1).flip(2)

    def positioned(
        self, x: Float[Tensor, "batch tokens width"], padding: Bool[Tensor, "batch tokens"] | None
    ) -> Float[Tensor, "batch tokens width"]:
        """Return the first block's input: padded tokens zeroed, positions added, normalised."""
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0.0)
        return self.layer_norm(torch.ops.aten.gelu_(self.pos_conv(x)).add_(x))  # type: ignore[no-any-return]


class Encoded(NamedTuple):
    """What the network made of features.

    Attributes:
        tokens: (batch, time patches * bands, width), time-major.
        layers: (batch, width) a block asked for: the mean of its tokens.
        padding: (batch, tokens), or None without a mask.
    """

    tokens: Tensor
    layers: dict[int, Tensor]
    padding: Tensor | None


class Beats(nn.Module):
    """The published network under its published state-dict names, with the class head of a fine-tuned file.

    Args:
        sizes: as the checkpoint's ``cfg`` says.
    """

    predictor: nn.Linear | None

    def __init__(self, sizes: BeatsSizes) -> None:
        super().__init__()
        self.sizes, patch = sizes, sizes.input_patch_size
        self.patch_embedding = nn.Conv2d(1, sizes.embed_dim, patch, patch, bias=sizes.conv_bias)
        self.layer_norm = nn.LayerNorm(sizes.embed_dim)
        self.post_extract_proj: nn.Module = nn.Identity()
        if sizes.embed_dim != sizes.encoder_embed_dim:
            self.post_extract_proj = nn.Linear(sizes.embed_dim, sizes.encoder_embed_dim)
        self.encoder = Encoder(sizes)
        classes = sizes.predictor_class if sizes.finetuned_model else 0
        self.predictor = nn.Linear(sizes.encoder_embed_dim, classes) if classes else None

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], sizes: BeatsSizes) -> Beats:
        """Return the network with ``state`` loaded, not yet folded.

        Raises:
            WeightsError: names or shapes differ, or the copies of the shared position table do.
        """
        state = dict(state)
        first = state.get(_TABLE.format(0))
        for number in range(1, sizes.encoder_layers):
            if first is not None and not torch.equal(state.setdefault(_TABLE.format(number), first), first):
                raise WeightsError(
                    "the checkpoint's copies of the shared relative_attention_bias differ",
                    expected=f"block {number}'s equal to block 0's",
                )
        with torch.device("meta"):
            network = cls(sizes)
        load_published(network, state, "BEATs", assign=True)
        return network

    def fold(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Beats:
        """Turn the loaded network into what runs, on ``device`` in ``dtype``; once, before the first forward."""
        self.requires_grad_(False)
        self.encoder.fold()
        self.encoder.pos_conv[0].fold(torch.device(device), dtype)  # type: ignore[operator]
        return self.to(device=device, dtype=dtype)

    def patch_tokens(self, features: Float[Tensor, "batch frames 128"]) -> Float[Tensor, "batch tokens dim"]:
        """Return the normalised patch embedding, time-major; frames that fill no patch are left out."""
        size, weight = self.sizes.input_patch_size, self.patch_embedding.weight
        columns = features.shape[1] // size
        tiles = features[:, : columns * size].to(weight.dtype).unflatten(1, (columns, size))
        patches = tiles.unflatten(3, (self.sizes.bands, size)).transpose(2, 3).flatten(3).flatten(1, 2)
        return self.layer_norm(F.linear(patches, weight.flatten(1), self.patch_embedding.bias))  # type: ignore[no-any-return]

    def forward(
        self,
        features: Float[Tensor, "batch frames 128"],
        layers: Collection[int] = (),
        padding: Bool[Tensor, "batch samples"] | None = None,
    ) -> Encoded:
        """Return the encoded tokens of normalised filter-bank features of at least one patch.

        Args:
            features: of ``BeatsFrontend``.
            layers: blocks whose token means are wanted, 0 = the first.
            padding: of the waveform's samples, True = padded.
        """
        tokens = self.patch_tokens(features)
        if padding is not None:
            padding = reduced_mask(reduced_mask(padding, features.shape[1]), tokens.shape[1])
        x = self.encoder.positioned(self.post_extract_proj(tokens), padding)
        bias = self.encoder.distance_bias(x.shape[1])
        means = {}
        for number, layer in enumerate(self.encoder.layers):
            x = layer(x, bias, padding)
            if number in layers:
                means[number] = token_mean(x, padding)
        return Encoded(x, means, padding)

    def logits(self, pooled: Float[Tensor, "batch width"]) -> Float[Tensor, "batch classes"]:
        """Return the class head's logits; the mean of the tokens' logits is the logits of their mean."""
        if self.predictor is None:
            raise WeightsError("this BEATs has no class head", expected="a checkpoint fine-tuned on AudioSet")
        return self.predictor(pooled.to(self.predictor.weight.dtype))  # type: ignore[no-any-return]


def token_mean(
    tokens: Float[Tensor, "batch tokens width"], padding: Bool[Tensor, "batch tokens"] | None
) -> Float[Tensor, "batch width"]:
    """Return the float32 mean over the tokens that are not padded."""
    if padding is None:
        return tokens.mean(dim=1, dtype=torch.float32)
    kept = tokens.float().masked_fill(padding[..., None], 0.0).sum(dim=1)
    return kept / (~padding).sum(dim=1, keepdim=True)
