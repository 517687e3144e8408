"""What a step of training costs beyond the student's forward and backward pass and the optimiser's update."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from tests.benchmarks.rows import Row

NAMES = ("step_overhead",)

STUDENTS = ("cnn4", "micronet_m0", "cp_mobile_128k")
MELS, FRAMES, TEACHER_DIM, BATCH = 64, 115, 512, 64
REPEATS = 30


def rows(names: Collection[str]) -> Iterable[Row]:
    """Yield ``step_overhead``: a whole step over the bare one, of the student where that is largest.

    A whole step augments, normalises, computes the recipe's loss and its terms, guards, clips and logs; the
    bare one has the same student, projector, loss and fused AdamW in a plain PyTorch loop on a float32 batch.
    """
    import torch

    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for student in STUDENTS:
            found[student] = _overhead(_variants(student, Path(folder)))
    detail = ", ".join(
        f"{student} {ratio:.3f} x {1e3 * bare:.1f} ms" for student, (ratio, bare) in found.items()
    )
    worst = max(ratio for ratio, _ in found.values())
    yield Row.at_most("step_overhead", worst, 1.10, "x", f"batch {BATCH} x {MELS} x {FRAMES}: {detail}")


def _overhead(variants: dict[str, Callable[[], object]]) -> tuple[float, float]:
    """Return the median ratio of a step's processor time to that of the bare one beside it, and its median seconds.

    Processor time, for a busy machine takes wall time from either at random.
    """
    pairs = []
    for _ in range(REPEATS + 1):
        pair = {}
        for name, function in variants.items():
            started = time.process_time()
            function()
            pair[name] = time.process_time() - started
        pairs.append(pair)
    # The first pair pays for what is made once.
    return (
        statistics.median(pair["step"] / pair["bare"] for pair in pairs[1:]),
        statistics.median(pair["bare"] for pair in pairs[1:]),
    )


def _variants(student_name: str, folder: Path) -> dict[str, Callable[[], object]]:
    import torch
    from torch.nn import functional as F

    from pipeline import recipe as recipes
    from pipeline.config import Recipe
    from pipeline.data.loader import Batch
    from pipeline.students import build_student
    from pipeline.students.normalised import NormalisedStudent
    from pipeline.training import targets
    from pipeline.training.job import augmentation
    from pipeline.training.objective import DistilObjective
    from pipeline.training.state import TrainingState
    from pipeline.training.step import update

    recipe = recipes.change(Recipe(), {"student.name": student_name, "train.amp": "off"})
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(4 * BATCH, TEACHER_DIM, generator=generator)
    transform, _ = targets.fit([teacher.numpy()], recipe.targets)
    log_mel = (torch.randn(BATCH, MELS, FRAMES, generator=generator) * 4 - 8).half()

    def made() -> NormalisedStudent:
        torch.manual_seed(0)
        return NormalisedStudent(build_student(recipe.student, MELS), -8.0, 4.0)

    whole = made()
    objective = DistilObjective(whole.embedding_dim, transform, recipe.loss)
    state = TrainingState(whole, objective, recipe.train, "")
    state.prepare()
    augment = augmentation(recipe, -8.0, 4.0)
    batch = Batch(torch.arange(BATCH), log_mel, teacher[:BATCH])

    bare = made().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    head = torch.nn.Linear(bare.embedding_dim, transform.output_dim)
    optimiser = torch.optim.AdamW([*bare.parameters(), *head.parameters()], lr=1e-3, fused=True)
    rows_given, target = log_mel.float(), transform(teacher[:BATCH])

    def plain() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss = 1 - F.cosine_similarity(head(bare(rows_given)), target).mean()
        loss.backward()
        optimiser.step()

    return {"step": lambda: update(state, batch, augment, folder), "bare": plain}
