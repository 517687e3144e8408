"""One update of the weights: augment, embed, compare the whole batch, reduce, guard, step, average."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.data.batch_augmentation import BatchAugmentation
from pipeline.data.mixing import Mix
from pipeline.training.bad_batch import BadBatch, BufferGuard
from pipeline.training.batch import Batch
from pipeline.training.batch_norm import statistics_kept
from pipeline.training.optimiser import gradient_norm, learning_rate, set_learning_rate, trained_parameters
from pipeline.training.precision import autocast
from pipeline.training.state import TrainingState

Augment = BatchAugmentation | Callable[[Tensor, torch.Generator], Tensor]
Compare = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Given:
    """A batch as this process sees it.

    Attributes:
        log_mel: float32, augmented: the rows that this process embeds.
        index: store rows of the whole batch, over all processes; ``teacher``: their embeddings.
        mix: partners within the whole batch where it was mixed up.
    """

    log_mel: Float[Tensor, "own mels frames"]
    index: Int[Tensor, " batch"]
    teacher: Float[Tensor, "batch teacher"]
    mix: Mix | None


def update(
    state: TrainingState, batch: Batch, augment: Augment, folder: Path, guard: BufferGuard | None = None
) -> dict[str, float] | None:
    """Make one update of the weights.

    Args:
        state: what is trained.
        batch: the whole batch, or this process's part under ``train.rank_rows = "span"``.
        augment: changes log-mels; their targets still hold, or it says how they are mixed.
        folder: where a batch of non-finite numbers is written.
        guard: keeps the buffers that such a batch would spoil, where it is to be skipped.

    Returns:
        ``loss``, each term and ``gradient_norm``; None where the batch was skipped.

    Raises:
        TrainingError: the loss or the gradient is not finite, once more than ``train.bad_batches`` times.
    """
    config = state.config
    set_learning_rate(state.optimiser, learning_rate(state.step, config))
    state.announce_step()
    given = _given(state, batch, augment)
    if guard is not None:
        guard.remember(state.model)
    state.optimiser.zero_grad(set_to_none=True)
    total, terms = _backward(state, given, _compare(state, augment, given.mix))
    student, objective = (trained_parameters(state.model[name]) for name in ("student", "objective"))
    state.group.sum_gradients(student, objective)
    state.scaler.unscale_(state.optimiser)
    norm = gradient_norm(student + objective, config.clip_norm)
    # One transfer from the device for all figures of the step.
    figures = {"loss": total, **terms, "gradient_norm": norm}
    numbers = torch.stack([figure.detach().float() for figure in figures.values()]).tolist()
    values = dict(zip(figures, numbers, strict=True))
    # A scaled float16 gradient may overflow by design: then the scaler skips the step and lowers its scale.
    overflow = not math.isfinite(values["gradient_norm"]) and not state.scaler.is_enabled()
    if not math.isfinite(values["loss"]) or overflow:
        what = "gradient" if math.isfinite(values["loss"]) else "loss"
        BadBatch(what, values, batch, given.log_mel).refuse(state, folder)
        if guard is not None:
            guard.restore(state.model)
        state.optimiser.zero_grad(set_to_none=True)
        return None
    state.scaler.step(state.optimiser)
    state.scaler.update()
    if state.average is not None:
        state.average.update(state.model, state.step)
    return values


def _given(state: TrainingState, batch: Batch, augment: Augment) -> Given:
    """Augment the batch; return this process's rows of it and the targets of all."""
    assert batch.spectrogram is not None
    assert batch.embedding is not None
    device, group = state.device, state.group
    log_mel = batch.spectrogram.to(device, torch.float32)
    index, teacher = batch.target_index.to(device), batch.embedding.to(device)
    spread = not group.is_alone and state.config.rank_rows == "span"
    mix: Mix | None = None
    if isinstance(augment, BatchAugmentation):
        made = augment(log_mel, state.step, group.rank.rank if spread else 0)
        log_mel, mix = made.log_mel, made.mix
    else:
        log_mel = augment(log_mel, state.generator)
    if spread:
        index, teacher = group.gather_values(index), group.gather_values(teacher)
        if mix is not None:
            first = group.part(len(index)).start
            mix = replace(mix, partners=group.gather_values(mix.partners + first))
    elif not group.is_alone:
        log_mel = log_mel[group.part(len(log_mel))]
    if mix is not None:
        mix = replace(mix, partners=mix.partners.to(device))
    return Given(log_mel, index, teacher, mix)


def _compare(state: TrainingState, augment: Augment, mix: Mix | None) -> Compare:
    if mix is None or not isinstance(augment, BatchAugmentation):
        return state.objective
    change = augment
    return lambda embedding, index, teacher: change.compare(state.objective, embedding, index, teacher, mix)


def _backward(state: TrainingState, given: Given, compare: Compare) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of the whole batch and the gradients of this process's rows."""
    micro = state.config.micro_batch_size or len(given.log_mel)
    rows = given.log_mel.unsqueeze(1)
    if len(rows) <= micro or state.config.frozen_backbone:
        with torch.set_grad_enabled(not state.config.frozen_backbone):
            own = torch.cat([_embed(state, part) for part in rows.split(micro)])
        total, terms = compare(state.group.gather(own), given.index, given.teacher)
        state.scaler.scale(total).backward()
        return total, terms
    return _backward_in_parts(state, rows.split(micro), given, compare)


def _backward_in_parts(
    state: TrainingState, parts: tuple[Tensor, ...], given: Given, compare: Compare
) -> tuple[Tensor, dict[str, Tensor]]:
    """Two passes over micro-batches (GradCache: Gao, Zhang, Han and Callan, RepL4NLP 2021).

    The first embeds all without keeping activations; the loss of the whole batch then gives each embedding's
    gradient, and the second pass carries it back a micro-batch at a time. Dropout draws the same masks twice, and
    batch norms note their statistics in the second pass alone.
    """
    draws, embedded = [], []
    with torch.no_grad(), statistics_kept(state.student):
        for part in parts:
            draws.append(_draws(state.device))
            embedded.append(_embed(state, part))
    own = torch.cat(embedded).requires_grad_()
    total, terms = compare(state.group.gather(own), given.index, given.teacher)
    state.scaler.scale(total).backward()
    assert own.grad is not None
    after = _draws(state.device)
    for part, drawn, gradient in zip(parts, draws, own.grad.split(len(parts[0])), strict=True):
        _draw_from(state.device, drawn)
        _embed(state, part).backward(gradient)
    _draw_from(state.device, after)
    return total, terms


def _embed(state: TrainingState, log_mel: Tensor) -> Tensor:
    with autocast(state.dtype, state.device):
        embedding: Tensor = state.forward(log_mel)
    return embedding.float()


def _draws(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the states of torch's global generators on the CPU and on ``device``."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _draw_from(device: torch.device, drawn: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(drawn[0])
    if drawn[1] is not None:
        torch.cuda.set_rng_state(drawn[1], device)
