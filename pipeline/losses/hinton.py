"""Knowledge distillation on class logits: the student's softened class probabilities follow the teacher's.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015 (arXiv 1503.02531).

Two conventions of alpha are in use and are each other's mirror image. In torchdistill, CPJKU's DCASE baselines and
EfficientAT (their kd_lambda) alpha weighs the hard labels: alpha CE + (1 - alpha) KD. In EAsT, as in much of the
literature, it weighs the teacher: (1 - alpha) CE + alpha KD. Here the caller has to say which one is meant.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.losses.inputs import mean_over_rows, working
from pipeline.losses.labels import label_loss

AlphaWeighs = Literal["labels", "teacher"]
Reduction = Literal["batchmean", "mean"]
SAME_CLASSES = "distil from logits of the student's classes"


def soft_targets(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    temperature: float = 1.0,
    reduction: Reduction = "batchmean",
    row_weight: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)), averaged over the batch.

    "batchmean": the KL is summed over the classes. "mean": it is averaged over them too, the published choice of
    S-SONDO and of CPJKU's DCASE baselines, which is smaller by the number of classes. The factor T^2 keeps the
    gradient's size at any temperature. No gradient flows into the teacher.

    Aligned: the ratios of class probabilities. Invariant to a constant added to all logits of a row, of either
    side. Computed in float32 or better, autocast or not.

    Degenerate input, always finite: equal logits are a uniform distribution; a batch of 1 and one class (0) need
    no care.

    Args:
        student: the student's logits.
        teacher: the teacher's logits.
        temperature: T, above 0.
        reduction: over the classes.
        row_weight: of each row in the mean (mixup).

    Raises:
        ConfigError: unequal shapes, no row, or a temperature that is not above 0.

    Example:
        >>> soft_targets(head(embedding), logits, temperature=2.0)
    """
    if not temperature > 0:
        raise ConfigError("logits are divided by the temperature", expected="> 0", got=temperature)
    student, teacher = working(student, teacher, same_width=True, mend=SAME_CLASSES)
    with torch.autocast(student.device.type, enabled=False):
        got, want = ((one / temperature).log_softmax(dim=1) for one in (student, teacher))
        divergence = F.kl_div(got, want, reduction="none", log_target=True).sum(dim=1)
        if reduction == "mean":
            divergence = divergence / student.shape[1]
        return temperature**2 * mean_over_rows(divergence, row_weight)


def hinton(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"] | None,
    labels: Shaped[Tensor, "batch ..."] | None,
    *,
    alpha: float,
    alpha_weighs: AlphaWeighs,
    temperature: float = 1.0,
    reduction: Reduction = "batchmean",
    teacher_row_weight: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mixture of the labels' cross-entropy and ``soft_targets``.

    ``alpha_weighs="labels"``: alpha CE(student, labels) + (1 - alpha) KD; "teacher": (1 - alpha) CE + alpha KD.
    With all of alpha on the teacher the factor T^2 stays (torchdistill drops it there).

    Args:
        student: the student's logits; the cross-entropy takes them at temperature 1.
        teacher: the teacher's logits; None where its share is 0.
        labels: class codes; a negative one is no label and leaves its row to the teacher alone. None where their
            share is 0.
        alpha: 0 to 1.
        alpha_weighs: which part alpha is the share of; there is no default.
        temperature: T, of the teacher's part.
        reduction: over the classes, of the teacher's part.
        teacher_row_weight: of each row in the mean of the teacher's part.

    Raises:
        ConfigError: alpha outside 0 to 1, a part without its input, or as in ``soft_targets`` and ``label_loss``.

    Example:
        >>> hinton(head(embedding), logits, codes, alpha=0.1, alpha_weighs="labels", temperature=2.0)
    """
    if not 0.0 <= alpha <= 1.0 or alpha_weighs not in ("labels", "teacher"):
        raise ConfigError(
            "alpha is the share of the labels or of the teacher", expected="0 to 1, of 'labels' or 'teacher'",
            got=f"{alpha} of {alpha_weighs!r}",
        )  # fmt: skip
    share = alpha if alpha_weighs == "labels" else 1.0 - alpha
    if (share > 0 and labels is None) or (share < 1 and teacher is None):
        raise ConfigError(
            f"the labels have a share of {share:g} and the teacher the rest", expected="what has a share is given",
            got=", ".join(name for name, part in (("labels", labels), ("teacher", teacher)) if part is None) + ": None",
        )  # fmt: skip
    total = torch.zeros((), dtype=torch.float32, device=student.device)
    if labels is not None and share > 0:
        total = total + share * label_loss(student, labels)
    if teacher is not None and share < 1:
        soft = soft_targets(student, teacher, temperature, reduction, teacher_row_weight)
        total = total + (1.0 - share) * soft
    return total
