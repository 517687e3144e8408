"""Validation: the loss and its terms, neighbour overlap with the teacher, a probe's score, the effective rank."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float16, Int
from torch import Tensor, nn

from pipeline.config import TrainConfig
from pipeline.neighbours import neighbour_overlap
from pipeline.training.collapse import effective_rank
from pipeline.training.objective import Objective
from pipeline.training.precision import autocast
from pipeline.training.probe import Probe, read_probe
from pipeline.training.rows import ShardReader, first_rows, usable

log = logging.getLogger(__name__)

LOSS_ROWS = 4_096
STRUCTURE_ROWS = 1_024


@dataclass(frozen=True)
class HeldOut:
    """Rows to validate on, in memory.

    ``is_validation`` is False where the store has no validation rows: then training rows stand in, and
    only the effective rank is read from them.
    """

    index: Int[Tensor, " rows"]
    spectrogram: Float16[Tensor, "rows mels frames"]
    embedding: Float[Tensor, "rows dim"]
    is_validation: bool
    probe: Probe | None = None


def read_held_out(reader: ShardReader, config: TrainConfig | None = None) -> HeldOut:
    """Return the first ``LOSS_ROWS`` validation rows of the store, with the probe that ``config`` asks for.

    Raises:
        ConfigError, TrainingError: the probe's column is not there, or tells nothing apart.
    """
    mask = usable(reader, "validation")
    if mask.any():
        index, spectrogram, embedding = first_rows(reader, mask, LOSS_ROWS)
        probe = read_probe(reader, index.numpy(), config) if config is not None else None
        return HeldOut(index, spectrogram, embedding, is_validation=True, probe=probe)
    log.warning("the store has no validation rows: no validation loss (manifest.validation_share is 0?)")
    return HeldOut(*first_rows(reader, usable(reader, "train"), STRUCTURE_ROWS), is_validation=False)


@torch.no_grad()
def embed_rows(
    student: nn.Module,
    spectrogram: Float16[Tensor, "rows mels frames"],
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Float[Tensor, "rows dim"]:
    """Return the student's float32 embeddings on ``device``; the student is in evaluation mode meanwhile."""
    training = student.training
    student.eval()
    embedded = []
    for part in spectrogram.split(batch_size):
        with autocast(dtype, device):
            embedded.append(student(part.to(device, torch.float32).unsqueeze(1)).float())
    student.train(training)
    return torch.cat(embedded)


@torch.no_grad()
def validate(
    student: nn.Module,
    objective: Objective | None,
    held_out: HeldOut,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> dict[str, float]:
    """Return ``validation_loss`` and each term, ``validation_neighbour_overlap`` and ``effective_rank``.

    Losses are means over rows in batches of ``batch_size`` in store order, so that relational terms always
    see the same batches. Without an objective (the random control) there is no loss. With a probe also
    ``validation_probe_accuracy``.
    """
    embedding = embed_rows(student, held_out.spectrogram, batch_size, device, dtype)
    figures: dict[str, float] = {"effective_rank": effective_rank(embedding[:STRUCTURE_ROWS])}
    if not held_out.is_validation:
        return figures
    figures["validation_neighbour_overlap"] = neighbour_overlap(
        embedding[:STRUCTURE_ROWS], held_out.embedding[:STRUCTURE_ROWS].to(device)
    )
    if held_out.probe is not None:
        figures["validation_probe_accuracy"] = held_out.probe.accuracy(embedding.cpu().numpy())
    if objective is None:
        return figures
    index = held_out.index.to(device)
    chosen = objective.usable(index)
    rows, sums = int(chosen.sum()), dict[str, float]()
    parts = zip(
        embedding[chosen].split(batch_size),
        index[chosen].split(batch_size),
        held_out.embedding.to(device)[chosen].split(batch_size),
        strict=True,
    )
    for part, part_index, teacher in parts:
        if not len(part):
            continue
        total, terms = objective(part, part_index, teacher)
        for name, value in {"loss": total, **terms}.items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(part) / rows
    return figures | {f"validation_{name}": value for name, value in sums.items()}
