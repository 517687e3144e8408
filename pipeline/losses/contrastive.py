"""Contrastive losses: each row of the student's projection finds its own target among those of the batch.

CLIP, Radford et al., ICML 2021, and CLAP, Elizalde et al., ICASSP 2023, with a constant temperature; the other
kinds are those of S-SONDO (El Adlouni et al., ICASSP 2026): the decoupled form is that of Yeh et al., ECCV 2022.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.losses.direction import unit_rows
from pipeline.losses.inputs import working

ContrastiveKind = Literal["clap", "decoupled", "cluster_negatives", "cluster_aware"]
Masked = Literal["published", "excluded"]
CLUSTER_KINDS = ("cluster_negatives", "cluster_aware")

# Added to the denominators of the cluster kinds (S-SONDO).
DENOMINATOR_FLOOR = 1e-8


def contrastive(
    projected: Float[Tensor, "batch dim"],
    target: Float[Tensor, "batch dim"],
    kind: ContrastiveKind = "clap",
    temperature: float = 0.07,
    clusters: Int[Tensor, " batch"] | None = None,
    masked: Masked = "published",
) -> Float[Tensor, ""]:
    """Return the mean contrastive loss of the rows; with l_ij = cos(projected_i, target_j) / temperature:

    "clap": half of CE(l, diagonal) plus half of CE(l^T, diagonal).
    "decoupled": mean of logsumexp over j != i of l_ij, less l_ii: may be negative.
    "cluster_negatives": -log(e^l_ii / (e^l_ii + N_i + 1e-8)), N_i the sum of e^l_ij over other clusters' rows.
    "cluster_aware": half of -log(P_i / (P_i + N_i + 1e-8)) plus half of the same of l^T, P_i the sum of e^l_ij
    over the other rows of i's cluster; a row's own target is not among them.

    In the published cluster kinds a pair that does not belong to a sum still adds e^0 = 1 to it
    (``masked="published"``); "excluded" leaves it out, and a row without positives or without negatives is 0.
    No gradient flows into the target.

    Aligned: directions, and only as far as a row's target is told from the others'; the widths must be equal (a
    projector bridges them). Invariant to the length of each row and to one rotation of both sides. Computed in
    float32 or better, autocast or not, by log-sum-exp at any temperature; memory O(batch^2).

    Degenerate input, always finite:
        A zero row has cosine 0 with all and gets no gradient (published: 1e10 and more); rows shorter than 1e-3
        of the batch's root-mean-square norm get the gradient of a row of that norm. A batch of 1 has no
        negatives: 0 (published: -1e9 if decoupled); "cluster_aware" as published is log 2 then.

    Args:
        projected: the student's rows after the projector.
        target: the teacher's rows.
        kind: what attracts and what repels.
        temperature: constant, above 0.
        clusters: of each row, for the cluster kinds.
        masked: see above.

    Raises:
        ConfigError: unequal shapes, no row, a temperature that is not above 0, or clusters absent where needed.

    Example:
        >>> contrastive(projector(student(log_mel)), embedding, temperature=0.1)
    """
    if not temperature > 0:
        raise ConfigError("a contrastive loss divides by its temperature", expected="> 0", got=temperature)
    projected, target = working(projected, target, same_width=True)
    with torch.autocast(projected.device.type, enabled=False):
        logits = unit_rows(projected) @ unit_rows(target).T / temperature
        if len(logits) == 1 and kind != "cluster_aware":
            return 0.0 * logits.sum()
        if kind in CLUSTER_KINDS:
            return _of_clusters(logits, kind, clusters, masked).mean()
        if kind == "clap":
            own = torch.arange(len(logits), device=logits.device)
            return 0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own))
        diagonal = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        others = logits.masked_fill(diagonal, -torch.inf).logsumexp(dim=1)
        return (others - logits.diagonal()).mean()


def _of_clusters(
    logits: Tensor, kind: ContrastiveKind, clusters: Tensor | None, masked: Masked
) -> Float[Tensor, " batch"]:
    if clusters is None or clusters.shape != logits.shape[:1]:
        raise ConfigError(
            f"contrastive_kind {kind} needs the cluster of each row", expected=f"({len(logits)},)",
            got=None if clusters is None else tuple(clusters.shape),
        )  # fmt: skip
    clusters = clusters.to(logits.device)
    alike = clusters[:, None] == clusters[None, :]
    if kind == "cluster_negatives":
        own = logits.diagonal()
        return _log_denominator(own, _log_sum(logits, ~alike, masked)) - own
    positive = alike.clone().fill_diagonal_(False)
    halves = [_cluster_aware(one, positive, ~alike, masked) for one in (logits, logits.T)]
    return 0.5 * (halves[0] + halves[1])


def _cluster_aware(logits: Tensor, positive: Tensor, negative: Tensor, masked: Masked) -> Tensor:
    attracted, repelled = (_log_sum(logits, chosen, masked) for chosen in (positive, negative))
    loss = _log_denominator(attracted, repelled) - attracted
    if masked == "published":
        return loss
    return torch.where(positive.any(dim=1) & negative.any(dim=1), loss, torch.zeros_like(loss))


def _log_sum(logits: Tensor, chosen: Tensor, masked: Masked) -> Tensor:
    """Return the log of the sum of e^logits over the chosen pairs of each row."""
    if masked == "published":
        return (logits * chosen).logsumexp(dim=1)
    # A finite stand-in for log 0: the logsumexp of a row of nothing but -inf has no gradient.
    return logits.masked_fill(~chosen, torch.finfo(logits.dtype).min / 4).logsumexp(dim=1)


def _log_denominator(*logs: Tensor) -> Tensor:
    floor = torch.full_like(logs[0], DENOMINATOR_FLOOR).log()
    return torch.stack([*logs, floor]).logsumexp(dim=0)
