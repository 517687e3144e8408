"""BEATs' attention (Chen et al., ICML 2023): a position bias that each query gates, as in WavLM.

The bias depends on key minus query alone, so with the keys in reverse order it is a view of 2 T - 1 numbers a
head; no (T, T) table is kept, whatever the length.
"""

from __future__ import annotations

import itertools
import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

# Memory of one block of scores or gated biases: one head's should stay in the second-level cache of a core, all
# heads' in the third-level one, a device's only must fit.
_HEAD_BYTES = 1 << 20
_CPU_BYTES = 16 << 20
_DEVICE_BYTES = 1 << 30


def position_buckets(distance: Int[Tensor, " n"], buckets: int, furthest: int) -> Int[Tensor, " n"]:
    """Return the bucket of each key-minus-query distance (Raffel et al., T5, JMLR 2020, bidirectional).

    Half of the buckets a direction; half of those exact, the rest logarithmic up to ``furthest``.
    """
    half, exact = buckets // 2, buckets // 4
    far = distance.abs()
    steps = torch.log(far.clamp(min=1).float() / exact) / math.log(furthest / exact) * (half - exact)
    logarithmic = (exact + steps.to(torch.long)).clamp(max=half - 1)
    return torch.where(distance > 0, half, 0) + torch.where(far < exact, far, logarithmic)


class Attention(nn.Module):
    """Multi-head self-attention whose position bias is gated by each query (GRU-style, Chi et al., XLM-E, 2022)."""

    grep_a: Tensor
    fused: nn.Linear
    query_bias: nn.Parameter

    def __init__(self, width: int, heads: int, table: nn.Embedding) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = width // self.heads
        self.relative_attention_bias = table
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.grep_linear = nn.Linear(self.head_width, 8)
        self.grep_a = nn.Parameter(torch.ones(1, self.heads, 1, 1))

    def fold(self) -> None:
        """Fuse queries, the gates' two logits a head, keys and values into one projection.

        A gate's logit is the sum of four outputs of ``grep_linear`` of the query, which is linear in the input.
        Only queries and gates keep a bias: the keys' adds the same to all scores of a query, which softmax
        cancels, and the values' passes through the weights, which sum to 1, into the output's bias.
        """
        gate = self.grep_linear.weight.double().unflatten(0, (2, 4)).sum(dim=1)
        offset = self.grep_linear.bias.double().unflatten(0, (2, 4)).sum(dim=1)
        heads = (self.heads, self.head_width)
        gates = torch.einsum("gc,hci->hgi", gate, self.q_proj.weight.double().unflatten(0, heads))
        offsets = self.q_proj.bias.double().unflatten(0, heads) @ gate.T + offset
        parts = (self.q_proj.weight, gates.flatten(0, 1).float(), self.k_proj.weight, self.v_proj.weight)
        weight = torch.cat(parts)
        self.fused = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.fused.load_state_dict({"weight": weight}, assign=True)
        bias = torch.cat([self.q_proj.bias, offsets.flatten().float()])
        self.query_bias = nn.Parameter(bias, requires_grad=False)
        passed = self.out_proj.weight.double() @ self.v_proj.bias.double()
        self.out_proj.bias = nn.Parameter((self.out_proj.bias + passed).float(), requires_grad=False)
        for name in ("q_proj", "k_proj", "v_proj", "grep_linear", "relative_attention_bias"):
            delattr(self, name)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        bias: Float[Tensor, "heads distances"],
        padding: Bool[Tensor, "batch tokens"] | None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Return what the heads attend to, before the output's projection.

        Args:
            x: the block's input.
            bias: position bias of the distances T - 1 down to 1 - T.
            padding: keys that are not attended.
        """
        tokens, width = x.shape[1:]
        fused = self.fused(x)
        gates = width + 2 * self.heads
        biased = fused[..., :gates].add_(self.query_bias)
        query = biased[..., :width].unflatten(-1, (self.heads, self.head_width)).transpose(1, 2)
        reverse = fused[..., gates:].flip(1).unflatten(-1, (2, self.heads, self.head_width))
        key, value = reverse.permute(2, 0, 3, 1, 4).unbind(0)
        a, b = biased[..., width:].sigmoid().unflatten(-1, (self.heads, 2)).permute(3, 0, 2, 1).unbind(0)
        gate = (a * (b * self.grep_a[..., 0] - 1.0) + 2.0)[..., None]
        distances = bias.unfold(1, tokens, 1)
        hidden = None if padding is None else padding.flip(1)[:, None, None]
        attend = self._head_by_head if heads_apart(x) else self._all_heads
        return attend(query, key, value, gate, distances, hidden, torch.empty_like(x))

    def _head_by_head(
        self,
        query: Tensor, key: Tensor, value: Tensor, gate: Tensor, distances: Tensor, hidden: Tensor | None,
        attended: Tensor,
    ) -> Tensor:  # fmt: skip
        """Fill ``attended``; the product is added to the bias in place: a fifth faster than the fused kernel."""
        batch, heads, tokens, width = query.shape
        rows = min(tokens, max(8, _HEAD_BYTES // (tokens * query.element_size())))
        scratch = query.new_empty(rows, tokens)
        for clip, head in itertools.product(range(batch), range(heads)):
            for row in range(0, tokens, rows):
                part = slice(row, row + rows)
                scores = scratch[: min(rows, tokens - row)]
                torch.mul(distances[head, part], gate[clip, head, part], out=scores)
                if hidden is not None:
                    scores.masked_fill_(hidden[clip, 0], -math.inf)
                torch.addmm(
                    scores, query[clip, head, part], key[clip, head].T, alpha=1 / math.sqrt(width), out=scores
                )
                made = attended[clip, part, head * width : (head + 1) * width]
                torch.mm(torch.softmax(scores, dim=-1), value[clip, head], out=made)
        return attended

    def _all_heads(
        self,
        query: Tensor, key: Tensor, value: Tensor, gate: Tensor, distances: Tensor, hidden: Tensor | None,
        attended: Tensor,
    ) -> Tensor:  # fmt: skip
        """Fill ``attended`` by the fused kernel of the device, a block of clips or of queries at a time."""
        batch, heads, tokens, _ = query.shape
        clips, rows = _block(batch, heads, tokens, query)
        mask = query.new_empty(clips, heads, rows, tokens)
        for clip in range(0, batch, clips):
            here = slice(clip, clip + clips)
            for row in range(0, tokens, rows):
                part = slice(row, row + rows)
                gated = mask[: min(clips, batch - clip), :, : min(rows, tokens - row)]
                torch.mul(distances[:, part], gate[here, :, part], out=gated)
                if hidden is not None:
                    gated.masked_fill_(hidden[here], -math.inf)
                made = F.scaled_dot_product_attention(
                    query[here, :, part], key[here], value[here], attn_mask=gated
                )
                attended[here, part] = made.transpose(1, 2).flatten(2)
        return attended


def heads_apart(x: Tensor) -> bool:
    """Whether attention takes one head at a time: float32 on the CPU."""
    return x.device.type == "cpu" and x.dtype == torch.float32


def _block(batch: int, heads: int, tokens: int, like: Tensor) -> tuple[int, int]:
    """Return the clips and the queries of each that one block of gated biases holds."""
    budget = _CPU_BYTES if like.device.type == "cpu" else _DEVICE_BYTES
    row_bytes = heads * tokens * like.element_size()
    clips = min(batch, budget // (row_bytes * tokens))
    if clips:
        return clips, tokens
    return 1, min(tokens, max(8, budget // row_bytes // 8 * 8))
