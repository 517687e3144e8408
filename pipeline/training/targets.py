"""What the teacher's cached embeddings become before a loss sees them.

``standardise`` takes each dimension's mean and deviation out. ``pca`` also projects on the leading principal
components; ``whiten`` divides each by the root of its eigenvalue (or a lower power of it, or of a shrunk one),
so that a few strong directions do not drown the rest; ``random`` takes random directions instead. Statistics
come from training rows only, in float64, one shard at a time.

Several teachers side by side are transformed each by itself, so that a wide or a loud one does not drown the
others; then each part is multiplied by the root of its weight (their mean is 1), which makes a squared
distance the weighted sum of the parts'. With ``fusion = "heads"`` the parts stay apart: each is a target by
itself, and the weights are those of their losses.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.artifact import write_bytes
from pipeline.config import TargetsConfig
from pipeline.errors import MissingArtifactError, TrainingError, WeightsError
from pipeline.neighbours import neighbour_overlap
from pipeline.training import projections
from pipeline.training.projections import Moments, Projection

log = logging.getLogger(__name__)

PROJECTIONS = ("pca", "whiten", "random")


class TargetTransform(nn.Module):
    """``((x - mean) / scale) @ matrix``; the identity for ``none``, no matrix for ``standardise``.

    Args:
        kind: ``none``, ``standardise``, ``pca``, ``whiten`` or ``random``.
        mean: ``(dim,)``; scale: ``(dim,)``; matrix: ``(dim, components)``, identity-sized where unused.
        back: ``(components, dim)``, from targets back to standardised embeddings; empty unless projected.
        widths: of the targets that are followed each by itself; default one, of the whole row.
    """

    mean: Tensor
    scale: Tensor
    matrix: Tensor
    back: Tensor

    def __init__(
        self,
        kind: str,
        mean: Tensor,
        scale: Tensor,
        matrix: Tensor,
        back: Tensor,
        widths: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.kind = kind
        for name, value in (("mean", mean), ("scale", scale), ("matrix", matrix), ("back", back)):
            self.register_buffer(name, value.float().contiguous())
        self.widths = tuple(widths) or (self.output_dim,)

    @property
    def input_dim(self) -> int:
        """Width of the teacher's embedding."""
        return len(self.mean)

    @property
    def output_dim(self) -> int:
        """Width of the target."""
        return self.matrix.shape[1] if self.kind in PROJECTIONS else self.input_dim

    def forward(self, embedding: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch target"]:
        """Return the float32 targets of teacher embeddings."""
        if self.kind == "none":
            return embedding.float()
        standard = (embedding.float() - self.mean) / self.scale
        return standard @ self.matrix if self.kind in PROJECTIONS else standard

    def standardised(self, embedding: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Return the standardised embeddings, whatever the kind (``none`` leaves them)."""
        return embedding.float() if self.kind == "none" else (embedding.float() - self.mean) / self.scale

    def reconstructed(self, target: Float[Tensor, "batch target"]) -> Float[Tensor, "batch dim"]:
        """Return the standardised embeddings that ``target`` still determines."""
        return target @ self.back if self.kind in PROJECTIONS else target

    def save(self, path: Path, fidelity: dict[str, float]) -> None:
        """Write ``targets.safetensors``; kind, widths and fidelity go into its header."""
        header = {
            "transform": self.kind, "widths": json.dumps(self.widths), "fidelity": json.dumps(fidelity)
        }  # fmt: skip
        write_bytes(path, safetensors.torch.save(dict(self.state_dict()), metadata=header))


def load(path: Path) -> TargetTransform:
    """Return the transform saved at ``path``.

    Raises:
        MissingArtifactError: no such file.
        WeightsError: the file holds something else.
    """
    if not path.is_file():
        raise MissingArtifactError(f"no target transform at {path}", run="ossicle distill RECIPE")
    with safetensors.safe_open(str(path), framework="pt") as file:
        header = file.metadata() or {}
        kind = header.get("transform")
        names = set(file.keys())
        if kind is None or names != {"mean", "scale", "matrix", "back"}:
            raise WeightsError(
                f"{path} is no target transform", expected="mean, scale, matrix, back", got=names
            )
        mean, scale, matrix, back = (file.get_tensor(n) for n in ("mean", "scale", "matrix", "back"))
        return TargetTransform(kind, mean, scale, matrix, back, json.loads(header.get("widths", "[]")))


def fit(
    pieces: Iterable[np.ndarray], config: TargetsConfig, widths: Sequence[int] = ()
) -> tuple[TargetTransform, dict[str, float]]:
    """Return the transform of ``config`` fitted on training rows, and how much of their variance it keeps.

    Args:
        pieces: arrays ``(rows, dim)`` of finite embeddings, one a shard.
        config: kind, components, the teachers' weights and the floor added to each deviation.
        widths: of the teachers that lie side by side in a row; default one.

    Raises:
        TrainingError: no rows at all.
        ConfigError: more components asked for than the rows of a lone teacher span.
    """
    moments: Moments | None = None
    for piece in pieces:
        moments = moments or Moments(piece.shape[1])
        moments.add(piece)
    if moments is None or not moments.rows:
        raise TrainingError("no training rows to fit the targets on", run="ossicle store inspect RECIPE")
    dimension = len(moments.mean)
    widths = tuple(widths) or (dimension,)
    shares = _shares(config, len(widths))
    apart = widths if config.fusion == "heads" else ()
    summary: dict[str, float] = {"rows": moments.rows, "teacher_dim": dimension, "target_dim": dimension}
    covariance = moments.covariance
    deviation = np.sqrt(np.clip(np.diag(covariance), 0, None))
    scale = deviation + config.std_floor
    scale[scale == 0] = 1.0  # a constant dimension is 0 after its mean is taken out, whatever divides it
    mean, eye = torch.from_numpy(moments.mean), torch.eye(0)
    weighted = torch.from_numpy(np.repeat(1 / np.sqrt(shares), widths))
    if config.transform == "none":
        # Weights alone are a scale about zero.
        kind = "none" if len(set(shares)) == 1 else "standardise"
        return TargetTransform(kind, torch.zeros(dimension), weighted, eye, eye, apart), summary
    if config.transform == "standardise":
        scaled = torch.from_numpy(scale) * weighted
        return TargetTransform("standardise", mean, scaled, eye, eye, apart), summary
    parts: list[Projection] = []
    begin, lone = 0, len(widths) == 1
    for number, (width, share) in enumerate(zip(widths, shares, strict=True)):
        part = slice(begin, begin + width)
        correlation = covariance[part, part] / np.outer(scale[part], scale[part])
        if config.transform == "random":
            made = projections.random(correlation, config, part=number, lone=lone, share=share)
        else:
            made = projections.principal(correlation, config, moments.rows, lone=lone, share=share)
        parts.append(made)
        begin += width
    matrix = scipy.linalg.block_diag(*(one.matrix for one in parts))
    back = scipy.linalg.block_diag(*(one.back for one in parts))
    summary |= {
        "target_dim": matrix.shape[1],
        "variance_kept": sum(one.kept for one in parts) / sum(one.total for one in parts),
    }
    if config.transform != "random":
        summary["largest_eigenvalue"] = max(float(one.eigenvalues[0]) for one in parts)
        summary["smallest_eigenvalue"] = min(float(one.eigenvalues[-1]) for one in parts)
    return TargetTransform(
        config.transform, mean, torch.from_numpy(scale), torch.from_numpy(matrix), torch.from_numpy(back),
        tuple(one.matrix.shape[1] for one in parts) if apart else (),
    ), summary  # fmt: skip


def _shares(config: TargetsConfig, parts: int) -> np.ndarray:
    """Return each part's weight in squared distances; their mean is 1.

    A mean over teachers has used the weights already; with a head each they are the losses'.
    """
    if parts == 1 or config.fusion == "heads":
        return np.ones(parts)
    weights = np.array(config.teacher_weights or [1.0] * parts)
    return np.asarray(weights / weights.mean())


@torch.no_grad()
def fidelity(transform: TargetTransform, held_out: Float[Tensor, "rows dim"]) -> dict[str, float]:
    """Return what the targets keep of rows that were not fitted on.

    ``held_out_cosine`` is the mean cosine of standardised embeddings to what the targets determine of
    them; ``held_out_neighbour_overlap`` is the share of nearest neighbours (cosine) that the raw
    embeddings and the targets agree on.
    """
    if len(held_out) < 3:
        return {}
    target = transform(held_out)
    cosine = torch.cosine_similarity(
        transform.standardised(held_out).double(), transform.reconstructed(target).double(), dim=1
    )
    return {
        "held_out_rows": len(held_out),
        "held_out_cosine": float(cosine.mean()),
        "held_out_neighbour_overlap": neighbour_overlap(held_out, target),
    }


def fit_and_save(
    pieces: Iterable[np.ndarray],
    held_out: Tensor,
    config: TargetsConfig,
    path: Path,
    widths: Sequence[int] = (),
) -> tuple[TargetTransform, dict[str, Any]]:
    """Fit on ``pieces``, measure on ``held_out``, save, log the figures and return both."""
    transform, summary = fit(pieces, config, widths)
    summary |= fidelity(transform, held_out)
    transform.save(path, summary)
    log.info("targets %s: %s", config.transform, ", ".join(f"{k} {v:.4g}" for k, v in summary.items()))
    return transform, summary
