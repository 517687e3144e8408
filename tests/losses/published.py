"""The losses written as their papers' formulas read: slow, hungry, and with loops where the paper has sums."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def all_cosines(rows: Tensor) -> Tensor:
    """Return cos(e_j - e_i, e_k - e_i) at [i, j, k] by normalised differences and a batched product."""
    differences = rows.unsqueeze(0) - rows.unsqueeze(1)
    directions = F.normalize(differences, p=2.0, dim=2)
    return torch.bmm(directions, directions.transpose(1, 2))


def angle_wise(student: Tensor, teacher: Tensor) -> Tensor:
    """Return RKD-A: smooth L1 over all B^3 cosines, the degenerate triples included."""
    with torch.no_grad():
        target = all_cosines(teacher)
    return F.smooth_l1_loss(all_cosines(student), target)


def distances(rows: Tensor) -> Tensor:
    """Return |e_i - e_j| (at least 1e-6, diagonal 0) by direct differences, over the mean of those > 0."""
    squared = (rows.unsqueeze(0) - rows.unsqueeze(1)).square().sum(dim=2)
    apart = 1.0 - torch.eye(len(rows), dtype=rows.dtype)
    lengths = squared.clamp(min=1e-12).sqrt() * apart
    return lengths / lengths[lengths > 0].mean()


def distance_wise(student: Tensor, teacher: Tensor) -> Tensor:
    """Return RKD-D: smooth L1 over all B^2 distances, each matrix divided by its mean."""
    with torch.no_grad():
        target = distances(teacher)
    return F.smooth_l1_loss(distances(student), target)


def distance_correlation(student: Tensor, teacher: Tensor, floor: float = 1e-9) -> Tensor:
    """Return EAsT's 1 - dCor^2: direct differences, doubly centred entry by entry."""

    def centred(rows: Tensor) -> Tensor:
        lengths = ((rows.unsqueeze(0) - rows.unsqueeze(1)).square().sum(dim=2) + 1e-12).sqrt()
        batch = len(rows)
        out = torch.empty_like(lengths)
        for i in range(batch):
            for j in range(batch):
                out[i, j] = lengths[i, j] - lengths[i].mean() - lengths[:, j].mean() + lengths.mean()
        return out

    a, b = centred(student), centred(teacher.detach())
    return 1 - (a * b).mean() / ((a * a).mean() * (b * b).mean() + floor).sqrt()


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Return Tung and Mori's equations 1 to 4."""
    batch = len(student)
    grams = [rows @ rows.T for rows in (student, teacher.detach())]
    ours, theirs = (torch.stack([row / row.norm() for row in gram]) for gram in grams)
    return torch.linalg.matrix_norm(ours - theirs).square() / batch**2


def hsic(k: Tensor, ell: Tensor) -> Tensor:
    """Return the biased estimator tr(K H L H) / (n - 1)^2 (Gretton et al., 2005)."""
    n = len(k)
    h = torch.eye(n, dtype=k.dtype) - torch.ones(n, n, dtype=k.dtype) / n
    return torch.trace(k @ h @ ell @ h) / (n - 1) ** 2


def unbiased_hsic(k: Tensor, ell: Tensor) -> Tensor:
    """Return equation 5 of Song et al. (2012)."""
    n, one = len(k), torch.ones(len(k), dtype=k.dtype)
    k, ell = (matrix - torch.diag(matrix.diagonal()) for matrix in (k, ell))
    sums = (one @ k @ one) * (one @ ell @ one) / ((n - 1) * (n - 2))
    return (torch.trace(k @ ell) + sums - 2 / (n - 2) * (one @ k @ ell @ one)) / (n * (n - 3))


def kernel_alignment(
    student: Tensor, teacher: Tensor, kernel: str = "linear", bandwidth: float = 1.0, unbiased: bool = False
) -> Tensor:
    """Return 1 - CKA by the estimators above."""

    def matrix(rows: Tensor) -> Tensor:
        if kernel == "linear":
            return rows @ rows.T
        squared = (rows.unsqueeze(0) - rows.unsqueeze(1)).square().sum(dim=2)
        apart = ~torch.eye(len(rows), dtype=torch.bool)
        median = squared[apart].sqrt().median()
        return torch.exp(-squared / (2 * (bandwidth * median) ** 2))

    estimate = unbiased_hsic if unbiased else hsic
    k, ell = matrix(student), matrix(teacher.detach())
    return 1 - estimate(k, ell) / (estimate(k, k) * estimate(ell, ell)).sqrt()


def contrastive(
    student: Tensor,
    teacher: Tensor,
    kind: str,
    temperature: float,
    clusters: Tensor,
    masked: str = "published",
) -> Tensor:
    """Return the contrastive losses as sums of exponentials, row by row."""
    ours, theirs = (F.normalize(rows, dim=1) for rows in (student, teacher.detach()))
    logits = ours @ theirs.T / temperature
    batch = len(logits)

    def total(row: Tensor, chosen: list[int]) -> Tensor:
        out = torch.stack([row[j].exp() for j in chosen]).sum() if chosen else row.new_zeros(())
        return out + (batch - len(chosen) if masked == "published" else 0.0)

    losses = []
    for matrix in (logits, logits.T):
        for i, row in enumerate(matrix):
            others = [j for j in range(batch) if j != i]
            negative = [j for j in others if clusters[j] != clusters[i]]
            positive = [j for j in others if clusters[j] == clusters[i]]
            if kind == "clap":
                losses.append(-(row[i].exp() / row.exp().sum()).log())
            elif kind == "decoupled":
                losses.append(row[others].exp().sum().log() - row[i])
            elif kind == "cluster_negatives":
                losses.append(-(row[i].exp() / (row[i].exp() + total(row, negative) + 1e-8)).log())
            elif masked == "excluded" and not (positive and negative):
                losses.append(row.sum() * 0.0)
            else:
                attracted = total(row, positive)
                losses.append(-(attracted / (attracted + total(row, negative) + 1e-8)).log())
    both = torch.stack(losses)
    return (both if kind in ("clap", "cluster_aware") else both[:batch]).mean()


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return Hinton's T^2 KL by its definition, the sum of p (log p - log q)."""
    p, q = ((one / temperature).exp() for one in (teacher.detach(), student))
    p, q = p / p.sum(dim=1, keepdim=True), q / q.sum(dim=1, keepdim=True)
    return temperature**2 * (p * (p.log() - q.log())).sum(dim=1).mean()


def binary_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 times the KL of each class's two outcomes, averaged over classes and rows."""
    p, q = (1 / (1 + (-one / temperature).exp()) for one in (teacher.detach(), student))
    return temperature**2 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()


def binary_cross_entropy(student: Tensor, target: Tensor) -> Tensor:
    """Return the mean of -y log s - (1 - y) log (1 - s)."""
    s = 1 / (1 + (-student).exp())
    return -(target * s.log() + (1 - target) * (1 - s).log()).mean()
