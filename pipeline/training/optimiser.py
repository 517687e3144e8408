"""AdamW without decay on norms and biases, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import AdamW

from pipeline.config import TrainConfig


def build_optimiser(model: nn.Module, config: TrainConfig) -> AdamW:
    """Return AdamW (Loshchilov and Hutter, 2019) with weight decay on matrices and kernels alone."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return AdamW([g for g in groups if g["params"]], lr=config.learning_rate)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the rate of update ``step`` (0-based): linear warm-up, then cosine to the final share.

    The first cosine update has the full rate, the last update of the run the final share.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    last = max(config.steps - config.warmup_steps - 1, 1)
    progress = min((step - config.warmup_steps) / last, 1.0)
    share = config.final_learning_rate_share
    return config.learning_rate * (share + (1 - share) * 0.5 * (1 + math.cos(math.pi * progress)))
