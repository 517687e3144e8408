"""Every target, fusion, head and compression goes with every objective: finite values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import LossConfig, RelationsConfig, TargetsConfig
from pipeline.errors import ConfigError
from pipeline.training import targets
from pipeline.training.compression import Compression
from pipeline.training.objective import DistilObjective
from pipeline.training.relation_table import RelationTable
from pipeline.training.relations import Relations

BATCH, DIM, ROWS = 6, 4, 40
TERMS: dict[str, Any] = {
    "distance": 1.0, "angle": 1.0, "cosine": 1.0, "distance_correlation": 1.0, "similarity": 1.0, "kernel": 1.0,
    "feature": 1.0, "contrastive": 1.0, "anchor": 1.0, "neighbour": 1.0,
}  # fmt: skip
CODES = torch.arange(ROWS) % 3


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def label_loss(logits: Tensor, index: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, CODES[index])


@pytest.mark.parametrize("related", ["embedding", "projection"])
@pytest.mark.parametrize("fusion", ["concat", "heads"])
@pytest.mark.parametrize("compression", ["none", "linear", "mlp"])
def test_all_go_together(compression: str, fusion: str, related: str) -> None:
    rows, widths = draw(0, ROWS, 2 * DIM + 3), (DIM, DIM + 3)
    loss = LossConfig(**TERMS, relational_on=related)
    relations = RelationsConfig(queue_rows=10, anchors=3, neighbours=5)
    neighbours = torch.randint(0, ROWS, (ROWS, 5), generator=torch.Generator().manual_seed(1)).int()
    pairs = [(transform, "linear") for transform in ("none", "standardise", "pca", "whiten", "random")]
    for transform, head in [*pairs, ("whiten", "mlp"), ("random", "hint"), ("pca", "none")]:
        config = TargetsConfig(
            teachers=("a", "b"), fusion=fusion, transform=transform, components=DIM, whiten_power=0.3,
            shrinkage=0.1, head=head, head_hidden=8, compression=compression, compression_hidden=8,
        )  # fmt: skip
        fitted, _ = targets.fit([rows.numpy()], config, widths)
        parts = fitted.widths
        assert len(parts) == (2 if fusion == "heads" else 1)
        wide = Compression(config, parts, DIM, 3, label_loss) if compression != "none" else None
        table = RelationTable(neighbours, fitted(rows)[:3], (torch.arange(ROWS) % 3).int())
        beyond = Relations(loss, relations, DIM, fitted.output_dim, table)
        if head == "none" and wide is None and set(parts) != {DIM}:
            with pytest.raises(ConfigError, match="widths differ"):
                DistilObjective(DIM, fitted, loss, config, relations=beyond)
            continue
        made = DistilObjective(DIM, fitted, loss, config, compression=wide, relations=beyond).train()
        for step in range(2):
            index = torch.arange(BATCH) * 5 + step
            embedding = draw(step, BATCH, DIM).requires_grad_()
            total, terms = made(embedding, index, rows[index])
            total.backward()
            where = f"{transform}, {head}, step {step}"
            assert all(torch.isfinite(value) for value in terms.values()), where
            assert terms.keys() >= TERMS.keys(), where
            assert torch.isfinite(embedding.grad).all(), where
            assert embedding.grad.abs().sum() > 0, where
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in made.parameters())
