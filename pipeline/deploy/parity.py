"""The parity gate: torch against ONNX Runtime, at lengths and batches that the export never saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.deploy.sessions import open_session, run_session
from pipeline.errors import ParityError

BATCHES_AND_FRAMES = ((1, 64), (1, 96), (1, 100), (3, 128), (1, 251), (3, 256), (1, 333), (2, 1000))
BATCHES_AND_SAMPLES = ((1, 8_000), (1, 12_345), (3, 16_000), (1, 36_778), (2, 160_001))


@dataclass(frozen=True)
class ShapeParity:
    """One shape: the largest absolute difference and the largest absolute output of torch."""

    shape: tuple[int, ...]
    max_abs_difference: float
    max_abs_output: float

    @property
    def relative(self) -> float:
        """Return the difference as a share of the largest output."""
        return self.max_abs_difference / max(self.max_abs_output, float(np.finfo(np.float32).tiny))


@dataclass(frozen=True)
class Parity:
    """Every shape that was compared, and the gate they passed."""

    shapes: tuple[ShapeParity, ...]
    tolerance: float

    @property
    def worst(self) -> float:
        """Return the largest difference as a share of the largest output at that shape."""
        return max(s.relative for s in self.shapes)

    def as_json(self) -> dict[str, Any]:
        """Return plain values for ``parity.json``."""
        shapes = [{**asdict(s), "shape": list(s.shape), "relative": s.relative} for s in self.shapes]
        return {"tolerance": self.tolerance, "worst_relative": self.worst, "shapes": shapes}


def log_mel_inputs(
    rows: Float[np.ndarray, "rows 1 mels frames"], shapes: Sequence[tuple[int, int]] = BATCHES_AND_FRAMES
) -> list[Float[np.ndarray, "batch 1 mels time"]]:
    """Return real log-mels at each (batch, frames) of ``shapes``: stored rows joined in time, each cut elsewhere.

    Noise would not do: on sound that no microphone gives, a trained MicroNet turns float32's own rounding into
    a tenth of its output, and the two runtimes differ by what torch differs from itself in float64.
    """
    joined = np.concatenate(list(rows[:, 0].astype(np.float32)), axis=1)
    made, start = [], 0
    for batch, frames in shapes:
        parts = []
        for _ in range(batch):
            parts.append(joined[:, np.arange(start, start + frames) % joined.shape[1]])
            start += frames
        made.append(np.stack(parts)[:, None])
    return made


def waveform_inputs(
    shapes: Sequence[tuple[int, int]] = BATCHES_AND_SAMPLES, seed: int = 0
) -> list[Float[np.ndarray, "batch samples"]]:
    """Return seeded noise at -20 dBFS, one array for each (batch, samples)."""
    generator = np.random.default_rng(seed)
    return [(0.1 * generator.standard_normal(shape)).astype(np.float32) for shape in shapes]


def check_parity(
    reference: Callable[[Tensor], Tensor],
    path: Path,
    inputs: Sequence[np.ndarray],
    *,
    tolerance: float,
    output: int = 0,
) -> Parity:
    """Compare torch with the exported file on ``inputs``.

    Args:
        reference: the module that was exported, in evaluation mode.
        path: the ONNX file; float32.
        inputs: arrays of shapes that the export did not see.
        tolerance: largest difference allowed, as a share of the largest output at that shape.
        output: which output of the file, from 0.

    Raises:
        ParityError: a shape does not run, gives another shape, is not finite, or differs by more.
    """
    session = open_session(path)
    found = []
    for array in inputs:
        with torch.no_grad():
            want = reference(torch.from_numpy(array)).numpy()
        got = run_session(session, array, output)
        if got.shape != want.shape:
            raise ParityError(f"{path.name}: another output shape", expected=want.shape, got=got.shape)
        _refuse_non_finite(path, array, got)
        row = ShapeParity(
            tuple(array.shape),
            float(np.abs(got - want).max(initial=0.0)),
            float(np.abs(want).max(initial=0.0)),
        )
        if row.relative > tolerance:
            raise ParityError(
                f"{path.name} differs from torch at input {row.shape}",
                expected=f"at most {tolerance:.1e} of the largest output {row.max_abs_output:.4g}",
                got=f"{row.max_abs_difference:.3e} ({row.relative:.1e})",
                run="ossicle export after mending the network; parity_atol is the gate's setting",
            )
        found.append(row)
    return Parity(tuple(found), tolerance)


def check_runs(path: Path, inputs: Sequence[np.ndarray], *, embedding_dim: int) -> None:
    """Load and run a quantised file at ``inputs``; its accuracy is judged on real rows, not here.

    Raises:
        ParityError: a shape does not run, or gives a wrong shape or a non-finite value.
    """
    session = open_session(path)
    for array in inputs:
        got = run_session(session, array)
        if got.shape != (array.shape[0], embedding_dim):
            raise ParityError(
                f"{path.name}: another output shape", expected=(array.shape[0], embedding_dim), got=got.shape
            )
        _refuse_non_finite(path, array, got)


def centred_cosine(got: Float[np.ndarray, "rows dim"], want: Float[np.ndarray, "rows dim"]) -> float:
    """Return the mean cosine between rows after the mean row of ``want`` is subtracted from both.

    Embeddings share a large common direction; the plain cosine hides a ruined model behind it. A
    shift common to all rows of ``got`` counts as an error. Rows equal to the mean in both count as 1,
    in one only as 0.

    Raises:
        ParityError: fewer than two rows, or the shapes differ.
    """
    if got.shape != want.shape or len(want) < 2:
        raise ParityError(
            "centred cosine wants two equal shapes of two rows or more", got=(got.shape, want.shape)
        )
    mean = want.mean(axis=0, dtype=np.float64)
    a, b = got.astype(np.float64) - mean, want.astype(np.float64) - mean
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    product = norms[0] * norms[1]
    both_zero = (norms[0] == 0) & (norms[1] == 0)
    cosines = np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.where(product > 0, product, 1.0))
    return float(cosines.mean())


def _refuse_non_finite(path: Path, array: np.ndarray, got: np.ndarray) -> None:
    bad = int(np.size(got) - np.isfinite(got).sum())
    if bad:
        raise ParityError(
            f"{path.name} gives non-finite values at input {tuple(array.shape)}",
            expected="finite numbers",
            got=f"{bad} of {got.size} NaN or Inf",
        )
