"""Feature-wise loss: each row of the student's projection follows the same row of the target.

``kind="mse"`` after a bias-free linear map (a 1x1 convolution) is the hint loss of FitNets (Romero et al.,
ICLR 2015). ``kind="cosine"`` is the published choice of S-SONDO, ``"l1"`` and ``"mse"`` its alternatives
(El Adlouni et al., ICASSP 2026).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pipeline.losses.direction import unit_rows
from pipeline.losses.inputs import mean_over_rows, working

FeatureKind = Literal["cosine", "mse", "l1", "smooth_l1"]


def feature_wise(
    projected: Float[Tensor, "batch dim"],
    target: Float[Tensor, "batch dim"],
    kind: FeatureKind = "cosine",
    row_weight: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean difference of the rows.

    "cosine": mean over the batch of 1 - cos(projected_i, target_i). "mse", "l1", "smooth_l1" (beta 1): mean
    over all batch x dim entries. No gradient flows into the target.

    Aligned: the very coordinates of the target, so that the widths must be equal (a projector bridges
    them). "cosine" is invariant to the length of each row, the others to nothing. Computed in float32 or
    better, autocast or not.

    Degenerate input, always finite:
        With "cosine" a zero row of either side has cosine 0, loss 1 and no gradient (published: 1e16); rows
        shorter than 1e-3 of the batch's root-mean-square norm get the gradient of a row of that norm. The
        other kinds, batches of 1 or 2 and coinciding rows need no care.

    Args:
        projected: the student's rows after the projector.
        target: the teacher's rows.
        kind: how a row is compared with its target.
        row_weight: of each row in the mean (mixup).

    Raises:
        ConfigError: unequal shapes, or no row.

    Example:
        >>> feature_wise(projector(student(log_mel)), embedding, kind="cosine")
    """
    projected, target = working(projected, target, same_width=True)
    with torch.autocast(projected.device.type, enabled=False):
        if kind == "cosine":
            each = 1.0 - (unit_rows(projected) * unit_rows(target)).sum(dim=1)
        else:
            each = _ENTRYWISE[kind](projected, target, reduction="none").mean(dim=1)
        return mean_over_rows(each, row_weight)


_ENTRYWISE = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}
