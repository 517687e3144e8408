"""Changes that mix the clips of a batch: Freq-MixStyle (their colours) and mixup (their sounds and labels)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

VARIANCE_OFFSET = 1e-6

# An objective as training calls it: embeddings, store rows and teacher rows to the loss and its terms.
Compare = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Mix:
    """Who was mixed with whom.

    Attributes:
        partners: each clip's partner, a permutation of the batch.
        share: what a clip keeps of itself, the same for the whole batch.
    """

    partners: Int64[Tensor, " batch"]
    share: float


def swap_frequency_statistics(
    log_mel: Float[Tensor, "batch channels mels frames"],
    partners: Int64[Tensor, " batch"],
    share: Float[Tensor, " batch"],
) -> Float[Tensor, "batch channels mels frames"]:
    """Return ``log_mel`` with each mel bin's mean and deviation moved towards another clip's.

    Mean and deviation (unbiased, over channels and frames) become ``share`` of the clip's own and
    ``1 - share`` of its partner's. No gradient flows through the statistics.
    """
    variance, mean = torch.var_mean(log_mel.detach(), dim=(1, 3), keepdim=True)
    deviation = torch.sqrt(variance + VARIANCE_OFFSET)
    own = share.view(-1, 1, 1, 1)
    mixed_mean = mean * own + mean[partners] * (1 - own)
    mixed_deviation = deviation * own + deviation[partners] * (1 - own)
    return (log_mel - mean) / deviation * mixed_deviation + mixed_mean


def freq_mixstyle(
    log_mel: Float[Tensor, "batch channels mels frames"],
    probability: float,
    alpha: float,
    generator: torch.Generator,
) -> Float[Tensor, "batch channels mels frames"]:
    """Return the batch with mixed frequency statistics, or, with ``1 - probability``, unchanged.

    Kim et al., "Domain Generalization with Relaxed Instance Frequency-wise Normalization", 2022; Schmid et al.,
    DCASE 2022. Exact on cached targets: the device's colour is changed, not what is heard.

    Args:
        log_mel: normalised log-mel.
        probability: of one draw for the whole batch.
        alpha: each clip keeps a share drawn from Beta(alpha, alpha) of its own statistics.
        generator: of all draws.
    """
    if probability == 0 or float(torch.rand((), generator=generator)) > probability:
        return log_mel
    share = beta(alpha, len(log_mel), generator).to(log_mel)
    partners = torch.randperm(len(log_mel), generator=generator).to(log_mel.device)
    return swap_frequency_statistics(log_mel, partners, share)


def mixup(
    batch: Float[Tensor, "batch ..."], partners: Int64[Tensor, " batch"], share: Float[Tensor, " batch"]
) -> Float[Tensor, "batch ..."]:
    """Return ``share`` of each entry and ``1 - share`` of its partner's (Zhang et al., ICLR 2018)."""
    own = share.to(batch).view(-1, *[1] * (batch.ndim - 1))
    return batch * own + batch[partners.to(batch.device)] * (1 - own)


def draw_mixup(
    batch: int, alpha: float, generator: torch.Generator
) -> tuple[Int64[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Return partners and shares of a batch; each clip keeps at least half, ``max(l, 1 - l)`` of Beta(alpha, alpha)."""
    share = beta(alpha, batch, generator)
    return torch.randperm(batch, generator=generator), torch.maximum(share, 1 - share)


def mixed_loss(
    compare: Compare,
    embedding: Float[Tensor, "batch dim"],
    index: Int[Tensor, " batch"],
    teacher: Float[Tensor, "batch teacher"],
    mix: Mix,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return the loss of mixed clips: ``share`` of the loss to their own targets, the rest of that to their partners'.

    Each target stays whole, so this holds for every objective: the relational ones see the geometry of the
    teacher's own embeddings twice and never that of sums that the teacher did not hear. For losses linear in
    the target (cross-entropy, a cosine to unit targets) it is the loss to the mixed target; labels are mixed
    with the same share, for ``index`` goes with ``teacher``.

    Args:
        compare: the objective; called twice.
        embedding: the student's, of the mixed clips.
        index: store rows of the clips' own targets.
        teacher: those rows of the teacher.
        mix: partners and share.
    """
    partners = mix.partners.to(index.device)
    own, own_terms = compare(embedding, index, teacher)
    other, other_terms = compare(embedding, index[partners], teacher[partners])
    terms = {name: mix.share * term + (1 - mix.share) * other_terms[name] for name, term in own_terms.items()}
    return mix.share * own + (1 - mix.share) * other, terms


def beta(alpha: float, count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
    """Return ``count`` draws of Beta(alpha, alpha) as float32; torch's own sampler takes no generator."""
    seed = int(torch.randint(0, 2**63 - 1, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, count)).float()
