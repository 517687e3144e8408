"""Teacher tags: each class's probability for itself, as an audio tagger with several tags a clip gives them.

"bce" is the distillation loss of EfficientAT (Schmid, Koutini and Widmer, ICASSP 2023), "binary_kl" that of EAsT
(Ding and Lerch, ISMIR 2023).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.losses.hinton import SAME_CLASSES
from pipeline.losses.inputs import mean_over_rows, working

TagsKind = Literal["bce", "binary_kl"]


def teacher_tags(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    kind: TagsKind = "bce",
    temperature: float = 1.0,
    row_weight: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean over batch and classes of a class's binary loss against the teacher's probability.

    "bce": BCE(sigmoid(student), sigmoid(teacher / T)): T softens the teacher alone, and the least value is the
    teacher's entropy, not 0. "binary_kl": T^2 KL(sigmoid(teacher / T) || sigmoid(student / T)) of the two outcomes
    of each class: both are softened, and the least value is 0. No gradient flows into the teacher.

    Aligned: every class's probability for itself; not invariant to anything. Linear in the teacher's probability,
    so that "bce" mixed over two targets is that of their mixture. Computed in float32 or better, autocast or not.

    Degenerate input, always finite: infinite certainty is none of sigmoid's values, and the logarithms are taken
    of logits; a batch of 1 needs no care.

    Args:
        student: the student's logits.
        teacher: the teacher's logits.
        kind: which loss.
        temperature: T, above 0.
        row_weight: of each row in the mean (mixup).

    Raises:
        ConfigError: unequal shapes, no row, or a temperature that is not above 0.

    Example:
        >>> teacher_tags(head(embedding), logits, "binary_kl", temperature=2.0)
    """
    if not temperature > 0:
        raise ConfigError("logits are divided by the temperature", expected="> 0", got=temperature)
    student, teacher = working(student, teacher, same_width=True, mend=SAME_CLASSES)
    with torch.autocast(student.device.type, enabled=False):
        probability = (teacher / temperature).sigmoid()
        if kind == "bce":
            each = F.binary_cross_entropy_with_logits(student, probability, reduction="none")
            return mean_over_rows(each.mean(dim=1), row_weight)
        crossed, own = (
            F.binary_cross_entropy_with_logits(logits / temperature, probability, reduction="none")
            for logits in (student, teacher)
        )
        return temperature**2 * mean_over_rows((crossed - own).mean(dim=1), row_weight)
