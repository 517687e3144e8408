"""Distance- and cosine-wise losses of a batch beside remembered rows, without the pairs among what is remembered.

Those pairs get no gradient: of (B + M)^2 entries only B (B + M) are needed, so that a memory may be large. Each
entry between a row of the batch and a remembered one stands for two of the whole matrix, (i, m) and (m, i), and
carries twice the gradient; values are plain means over the B (B + M) entries. For the cosine-wise loss the
gradient is then that of the whole matrix, as ``Memory.extended`` scales it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pipeline.losses.cosine_wise import CosineKind
from pipeline.losses.direction import unit_rows
from pipeline.losses.inputs import working
from pipeline.losses.memory import Memory
from pipeline.losses.pairwise import COINCIDENT_SHARE


def cosine_beside(
    student: Float[Tensor, "batch student_dim"],
    teacher: Float[Tensor, "batch teacher_dim"],
    memory: Memory,
    kind: CosineKind = "mse",
) -> Float[Tensor, ""]:
    """Return ``cosine_wise`` over the rows of the batch against those of batch and memory.

    Raises:
        ConfigError: as ``cosine_wise``; other widths than the remembered ones.
    """
    memory.require_widths(student, teacher)
    student, teacher = working(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        matrices = []
        for rows, past in ((student, memory.rows), (teacher, memory.targets)):
            unit, remembered = unit_rows(rows), unit_rows(past.detach().to(rows.dtype))
            matrices.append(torch.cat([unit @ unit.T, _twice(unit) @ remembered.T], dim=1))
        got, want = matrices
        if kind == "mse":
            return F.mse_loss(got, want)
        return F.smooth_l1_loss(got, want) if kind == "smooth_l1" else F.l1_loss(got, want)


def distance_beside(
    student: Float[Tensor, "batch student_dim"], teacher: Float[Tensor, "batch teacher_dim"], memory: Memory
) -> Float[Tensor, ""]:
    """Return ``distance_wise`` over the rows of the batch against those of batch and memory.

    Distances are over the mean of the B (B + M) - B entries that are not a row's to itself.

    Raises:
        ConfigError: as ``distance_wise``; other widths than the remembered ones.
    """
    memory.require_widths(student, teacher)
    student, teacher = working(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        with torch.no_grad():
            target = _relative_distances(teacher, memory.targets)
        return F.smooth_l1_loss(_relative_distances(student, memory.rows), target).to(student.dtype)


def _twice(rows: Tensor) -> Tensor:
    """Return ``rows`` with twice the gradient."""
    return rows.detach() + 2.0 * (rows - rows.detach())


def _relative_distances(rows: Tensor, remembered: Tensor) -> Tensor:
    wide, past = rows.double(), remembered.detach().double()
    norms, past_norms = wide.detach().square().sum(dim=1), past.square().sum(dim=1)
    # As in ``differences``: centred and in float64, for a Gram matrix loses half of its digits between near rows.
    whole = torch.cat([wide.detach(), past])
    centre = whole.mean(dim=0)
    scale = (whole - centre).square().sum(dim=1).mean().sqrt()
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    wide, past = (wide - centre) / scale, (past - centre) / scale
    noise_of = torch.cat([norms, past_norms])
    noise = COINCIDENT_SHARE**2 * (norms[:, None] + noise_of[None, :] + noise_of.mean()) / scale**2
    squared = torch.cat([_squares(wide, wide), _squares(_twice(wide), past)], dim=1)
    apart = ~(squared.detach() <= noise)
    apart.diagonal().fill_(False)
    lengths = torch.where(apart, squared, torch.ones_like(squared)).sqrt() * apart
    others = torch.ones_like(lengths).fill_diagonal_(0.0)
    lengths = lengths + COINCIDENT_SHARE * (others - apart.double())
    mean = lengths.sum() / others.sum().clamp(min=1.0)
    return lengths / mean.clamp(min=torch.finfo(torch.float64).tiny)


def _squares(rows: Tensor, others: Tensor) -> Tensor:
    own, theirs = rows.square().sum(dim=1), others.square().sum(dim=1)
    return own[:, None] + theirs[None, :] - 2.0 * rows @ others.T
