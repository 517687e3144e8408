"""Peak memory of every loss over embeddings at batch 1,024, teacher 768-d; and what sampling triplets saves.

Gradient included, each loss in a process of its own, on one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from tests.benchmarks.rows import Row, fastest_seconds, peak_growth_bytes

LOSSES: dict[str, dict[str, object]] = {
    "distance": {},
    "angle": {},
    "angle_sampled": {"angle_triplets": 1_000_000},
    "cosine": {},
    "distance_correlation": {},
    "similarity": {},
    "kernel": {"kernel_unbiased": True},
    "kernel_rbf": {"kernel_kind": "rbf"},
    "contrastive": {},
    "contrastive_clusters": {"contrastive_kind": "cluster_aware"},
    "feature": {},
}
NAMES = (*(f"memory_{name}" for name in LOSSES), "sampled_triplets_speed")
BATCH, STUDENT_DIM, TEACHER_DIM = 1_024, 128, 768
GOAL_GB = 1.5


def _step(name: str, batch: int) -> Callable[[], object]:
    """Return value and gradient of one loss, by the class that training calls."""
    import torch

    from pipeline.config import LossConfig
    from pipeline.losses.weighted import WeightedLoss

    torch.set_num_threads(1)
    options = LOSSES[name]
    term = next(
        t for t in ("distance_correlation", *LOSSES) if name.startswith(t) and t in LossConfig.model_fields
    )
    loss = WeightedLoss(LossConfig.model_validate({"feature": 0.0, term: 1.0, **options}))
    draw = torch.Generator().manual_seed(0)
    factors = torch.randn(batch, 24, generator=draw)
    teacher = factors @ torch.randn(24, TEACHER_DIM, generator=draw) + 1.0
    student = factors @ torch.randn(24, STUDENT_DIM, generator=draw)
    student = (student + torch.randn(batch, STUDENT_DIM, generator=draw)).requires_grad_()
    projection = (
        torch.randn(batch, TEACHER_DIM, generator=draw).requires_grad_() if loss.needs_projection else None
    )
    clusters = torch.arange(batch) % 50

    def step() -> object:
        total, _ = loss(student, projection, teacher, clusters=clusters)
        return torch.autograd.grad(total, student if projection is None else projection)

    return step


def prepare(name: str, batch: str) -> Callable[[], object]:
    """Warm a fresh process up on a small batch and return the step to measure."""
    _step(name, 16)()
    return _step(name, int(batch))


def rows(names: Collection[str]) -> Iterator[Row]:
    """Measure at batch 1,024, teacher 768-d, student 128-d."""
    for name in LOSSES:
        if f"memory_{name}" in names:
            grown = peak_growth_bytes("tests.benchmarks.bench_losses:prepare", name, str(BATCH))
            yield Row.at_most(f"memory_{name}", grown / 1e9, GOAL_GB, "GB")
    if "sampled_triplets_speed" in names:
        steps = {name: _step(name, BATCH) for name in ("angle", "angle_sampled")}
        seconds = fastest_seconds(steps, repeats=1)
        detail = f"all 1.07e9 triplets {seconds['angle']:.2f} s, 1e6 of them {seconds['angle_sampled']:.2f} s"
        yield Row.at_least(
            "sampled_triplets_speed", seconds["angle"] / seconds["angle_sampled"], 8.0, detail=detail
        )
