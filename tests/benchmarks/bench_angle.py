"""Angle-wise loss and gradient against the published formula: at least 4 x faster, at most 1/8 of the memory.

On one thread, as a training run has by default.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator

from tests.benchmarks.rows import CannotRunError, Row, fastest_seconds, peak_growth_bytes

NAMES = ("angle_speed", "angle_memory", "angle_error")
BATCH, STUDENT_DIM, TEACHER_DIM = 512, 128, 768
GIB = 2**30


def _available_bytes() -> int | None:
    if not hasattr(os, "sysconf") or "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _step(variant: str, batch: int) -> Callable[[], tuple[float, object]]:
    """Return loss and gradient of one variant on embeddings with an offset and zero-length pairs."""
    import torch

    from pipeline.losses.angle_wise import angle_wise
    from tests.losses import published

    torch.set_num_threads(1)
    loss = {"ours": angle_wise, "published": published.angle_wise}[variant]
    draw = torch.Generator().manual_seed(0)
    factors = torch.randn(batch, 24, generator=draw)
    noise = 0.3 * torch.randn(batch, TEACHER_DIM, generator=draw)
    teacher = factors @ torch.randn(24, TEACHER_DIM, generator=draw) + noise + 2.0
    student = factors @ torch.randn(24, STUDENT_DIM, generator=draw) + 1.0
    student += torch.randn(batch, STUDENT_DIM, generator=draw)
    student[1], teacher[1] = student[0], teacher[0]
    teacher[3] = teacher[2]
    student.requires_grad_()

    def step() -> tuple[float, object]:
        value = loss(student, teacher)
        (gradient,) = torch.autograd.grad(value, student)
        return value.item(), gradient

    return step


def prepare(variant: str, batch: str) -> Callable[[], object]:
    """Warm a fresh process up on a small batch and return the step to measure."""
    _step(variant, 8)()
    return _step(variant, int(batch))


def _error() -> float:
    """Return the larger relative error of value and gradient against the published formula in this run."""
    import torch

    (value, gradient), (want, want_gradient) = _step("ours", BATCH)(), _step("published", BATCH)()
    assert isinstance(gradient, torch.Tensor)
    assert isinstance(want_gradient, torch.Tensor)
    # Rows 0 and 1 coincide on both sides: there the published gradient is rounding noise / 1e-12.
    difference = (gradient - want_gradient)[2:].abs().max() / want_gradient[2:].abs().max()
    return max(abs(value - want) / abs(want), float(difference))


def rows(names: Collection[str]) -> Iterator[Row]:
    """Measure at batch 512, teacher 768-d, student 128-d, zero-length pairs among them."""
    available = _available_bytes()
    if available is not None and available < 4 * GIB:
        raise CannotRunError(f"the published formula needs 4 GiB, {available / GIB:.1f} GiB are free")
    if "angle_speed" in names:
        steps = {variant: _step(variant, BATCH) for variant in ("ours", "published")}
        seconds = fastest_seconds(steps, repeats=3)
        detail = f"published {seconds['published']:.2f} s, ours {seconds['ours']:.2f} s"
        yield Row.at_least("angle_speed", seconds["published"] / seconds["ours"], 4.0, detail=detail)
    if "angle_memory" in names:
        grown = {
            variant: peak_growth_bytes("tests.benchmarks.bench_angle:prepare", variant, str(BATCH))
            for variant in ("ours", "published")
        }
        detail = f"published {grown['published'] / 1e6:.0f} MB, ours {grown['ours'] / 1e6:.0f} MB"
        yield Row.at_most("angle_memory", grown["ours"] / grown["published"], 1 / 8, "x", detail)
    if "angle_error" in names:
        yield Row.at_most("angle_error", _error(), 1e-5, "of the published", "value and gradient")
