"""Changes that mix the clips of a batch: Freq-MixStyle (their colours) and mixup (their sounds and labels)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

VARIANCE_OFFSET = 1e-6


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


def beta(alpha: float, count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
    """Return ``count`` draws of Beta(alpha, alpha) as float32; torch's own sampler takes no generator."""
    seed = int(torch.randint(0, 2**63 - 1, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, count)).float()
