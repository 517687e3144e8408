"""The vision transformer on spectrogram patches that PaSST, M2D and MATPAC share (Gong et al., AST, 2021).

Pre-norm blocks as in Dosovitskiy et al., ICLR 2021, under the names of the published files: fused ``qkv``,
exact GELU, layer norms with an epsilon of 1e-6.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import WeightsError

LAYER_NORM_EPSILON = 1e-6
_HEAD_DIM = 64


@dataclass(frozen=True)
class VitSizes:
    """Sizes that can be read from a state dict.

    Attributes:
        dim: width of a token; attention heads are 64 wide.
        depth: blocks; hidden: width inside a block's MLP.
        patch_mels, patch_frames: the patch's size.
    """

    dim: int = 768
    depth: int = 12
    hidden: int = 3_072
    patch_mels: int = 16
    patch_frames: int = 16

    @property
    def heads(self) -> int:
        """Attention heads."""
        return max(1, self.dim // _HEAD_DIM)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], name: str, blocks: str = "blocks") -> VitSizes:
        """Return the sizes of the transformer in ``state``, whose blocks are called ``<blocks>.N``.

        Raises:
            WeightsError: the entries that tell the sizes are not there.
        """
        patch = state.get("patch_embed.proj.weight")
        hidden = state.get(f"{blocks}.0.mlp.fc1.weight")
        if patch is None or patch.ndim != 4 or hidden is None or hidden.ndim != 2:
            raise WeightsError(
                f"the checkpoint is not one of {name}",
                expected=f"patch_embed.proj.weight and {blocks}.0.mlp.fc1.weight among its entries",
                got=", ".join(sorted(state)[:4]) or "no entries",
            )
        numbers = {key.split(".")[blocks.count(".") + 1] for key in state if key.startswith(f"{blocks}.")}
        dim, _, mels, frames = patch.shape
        return cls(dim=dim, depth=len(numbers), hidden=len(hidden), patch_mels=mels, patch_frames=frames)


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Return the attended tokens."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).reshape(batch, tokens, dim))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Return the transformed tokens."""
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to its input."""

    def __init__(self, sizes: VitSizes) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.dim, eps=LAYER_NORM_EPSILON)
        self.attn = Attention(sizes.dim, sizes.heads)
        self.norm2 = nn.LayerNorm(sizes.dim, eps=LAYER_NORM_EPSILON)
        self.mlp = Mlp(sizes.dim, sizes.hidden)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Return the block's output."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """One convolution from spectrogram to patches, ``stride`` apart both ways (default: side by side)."""

    def __init__(self, sizes: VitSizes, stride: int | None = None) -> None:
        super().__init__()
        patch = (sizes.patch_mels, sizes.patch_frames)
        self.proj = nn.Conv2d(1, sizes.dim, patch, stride or patch)

    def forward(
        self, spectrogram: Float[Tensor, "batch mels frames"]
    ) -> Float[Tensor, "batch dim bands columns"]:
        """Return the patches; frames that do not fill a last patch are left out."""
        return self.proj(spectrogram[:, None].to(self.proj.weight.dtype))  # type: ignore[no-any-return]


def blocks_of(sizes: VitSizes) -> nn.ModuleList:
    """Return the transformer's blocks."""
    return nn.ModuleList(Block(sizes) for _ in range(sizes.depth))


def layers_of(outputs: Iterable[str]) -> frozenset[int]:
    """Return N of every ``layer.N`` among a teacher's asked outputs."""
    return frozenset(int(name.removeprefix("layer.")) for name in outputs if name.startswith("layer."))


class Encoded(NamedTuple):
    """What the transformer made of a spectrogram.

    Attributes:
        patches: (batch, columns, bands, dim), the normalised output, one column a time step.
        layers: (batch, bands, dim) a layer, the time mean of its output; the last one's is normalised too.
    """

    patches: Tensor
    layers: dict[int, Tensor]


class ChunkedVit(nn.Module, ABC):
    """A transformer with one table of positions, over a spectrogram cut into chunks of the table's width.

    Each chunk's positions start at the first column; a shorter one takes the table's first columns. All
    whole chunks go through the blocks as one batch, the last short one as another.

    Args:
        sizes: of tokens and patches.
        mels: of the spectrogram.
        chunk_frames: of a chunk; only whole patches of it are seen.
    """

    # Entries that stay float32 whatever the blocks' number format.
    exact: ClassVar[tuple[str, ...]] = ()

    def __init__(self, sizes: VitSizes, *, mels: int, chunk_frames: int) -> None:
        super().__init__()
        self.sizes, self.chunk_frames = sizes, chunk_frames
        self.bands, self.columns = mels // sizes.patch_mels, chunk_frames // sizes.patch_frames
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.bands * self.columns, sizes.dim))
        self.patch_embed = PatchEmbed(sizes)

    @abstractmethod
    def trunk(self) -> tuple[nn.ModuleList, nn.LayerNorm]:
        """Return the blocks and the final layer norm."""

    def cast(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move everything to ``device`` and all but ``exact`` to ``dtype``."""
        for name, tensor in chain(self.named_parameters(), self.named_buffers()):
            plain = tensor.is_floating_point() and not name.startswith(self.exact)
            tensor.data = tensor.data.to(device, dtype if plain else tensor.dtype)

    def tokens(self, chunk: Float[Tensor, "batch mels frames"]) -> Float[Tensor, "batch tokens dim"]:
        """Return what the first block sees: cls, then patches frequency-major, with their positions."""
        patches = self.patch_embed(chunk).flatten(2).transpose(1, 2)
        batch, count, dim = patches.shape
        table = self.pos_embed[:, 1:].reshape(1, self.bands, self.columns, dim)
        positions = table[:, :, : count // self.bands].reshape(1, count, dim)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1)
        return torch.cat([first, patches + positions], dim=1)

    def forward(
        self, spectrogram: Float[Tensor, "batch mels frames"], layers: Collection[int] = ()
    ) -> Encoded:
        """Return the encoded chunks joined in time.

        Args:
            spectrogram: normalised.
            layers: blocks whose time means are wanted, 0 = the first.
        """
        batch, chunk = len(spectrogram), self.chunk_frames
        whole = spectrogram.shape[-1] // chunk
        rest = spectrogram[..., whole * chunk :]
        made = []
        if whole:
            folded = spectrogram[..., : whole * chunk].unflatten(-1, (whole, chunk)).transpose(1, 2)
            made.append(self._chunks(folded.flatten(0, 1), layers, batch))
        if rest.shape[-1]:
            made.append(self._chunks(rest, layers, batch))
        patches = torch.cat([part.patches for part in made], dim=1)
        share = [part.patches.shape[1] / patches.shape[1] for part in made]
        return Encoded(
            patches,
            {
                n: torch.stack([s * part.layers[n] for s, part in zip(share, made, strict=True)]).sum(dim=0)
                for n in layers
            },
        )

    def _chunks(self, chunks: Tensor, layers: Collection[int], batch: int) -> Encoded:
        """Return the encoded (batch * n, mels, frames) chunks, the n chunks of a row joined."""
        blocks, norm = self.trunk()
        x = self.tokens(chunks)
        means = {}
        for number, block in enumerate(blocks):
            x = block(x)
            if number in layers and number < len(blocks) - 1:
                means[number] = self._grid(x, batch).float().mean(dim=1)
        patches = self._grid(norm(x), batch).float()
        if len(blocks) - 1 in layers:
            means[len(blocks) - 1] = patches.mean(dim=1)
        return Encoded(patches, means)

    def _grid(self, x: Tensor, batch: int) -> Tensor:
        """Return (batch, columns, bands, dim) of tokens, the cls token left out."""
        grid: Tensor = x[:, 1:].unflatten(1, (self.bands, -1)).transpose(1, 2)
        joined: Tensor = grid.reshape(batch, -1, self.bands, self.sizes.dim)
        return joined
