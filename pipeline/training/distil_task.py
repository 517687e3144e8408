"""The objective of a distillation, built from a recipe and a store: targets, head, compression, relations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Int
from torch import Tensor

from pipeline.config import Recipe
from pipeline.data.clusters import clusters_of
from pipeline.data_config import SamplingConfig
from pipeline.losses.labels import label_loss
from pipeline.processor import device_of
from pipeline.store.reader import StoreReader
from pipeline.training import targets
from pipeline.training.compression import Compression, LabelLoss
from pipeline.training.controls import UNLABELLED, label_table
from pipeline.training.objective import DistilObjective
from pipeline.training.relation_table import RelationTable, relation_table
from pipeline.training.relations import Relations
from pipeline.training.rows import pieces
from pipeline.training.targets import TargetTransform
from pipeline.training.validation import STRUCTURE_ROWS, HeldOut

TARGETS_FILE = "targets.safetensors"


def distil_objective(
    recipe: Recipe,
    reader: StoreReader,
    training: np.ndarray,
    embedding_dim: int,
    held_out: HeldOut,
    folder: Path,
) -> tuple[DistilObjective, dict[str, Any]]:
    """Return the objective of ``recipe``, and what its parts say for the run's marker.

    Statistics, anchors and neighbours come from the training rows alone.

    Args:
        recipe: targets, loss, relations and the labels' column.
        reader: the store, with its arrays chosen.
        training: mask ``(store rows,)`` of the rows that may be learnt from.
        embedding_dim: width of the student's embedding.
        held_out: rows to measure the targets on.
        folder: gets ``targets.safetensors``.

    Raises:
        ConfigError: keys that do not fit each other or the store.
        TrainingError: no rows, or no labels for a compression.
    """
    sample = held_out.embedding[:STRUCTURE_ROWS] if held_out.is_validation else held_out.embedding[:0]
    transform, fidelity = targets.fit_and_save(
        pieces(reader, training, "embedding"), sample, recipe.targets, folder / TARGETS_FILE, reader.widths
    )
    summary: dict[str, Any] = {"targets": fidelity}
    compression = None
    if recipe.targets.compression != "none":
        compression, summary["compression"] = _compression(recipe, reader, training, embedding_dim, transform)
    table = _relation_table(recipe, reader, training, transform)
    if table is not None:
        summary["relations"] = table.digest
    relations = Relations(recipe.loss, recipe.relations, embedding_dim, transform.output_dim, table)
    objective = DistilObjective(
        embedding_dim, transform, recipe.loss, recipe.targets, compression=compression, relations=relations,
        clusters=_clusters(recipe, reader), seed=recipe.train.seed,
    )  # fmt: skip
    return objective, summary


def _clusters(recipe: Recipe, reader: StoreReader) -> Int[np.ndarray, " rows"] | None:
    """Return the cluster of every store row, where the contrastive loss asks."""
    if not recipe.loss.needs_clusters:
        return None
    asked = SamplingConfig(clusters=recipe.loss.contrastive_clusters)
    return clusters_of(reader, asked, recipe.paths.artifacts).assignment


def _compression(
    recipe: Recipe, reader: StoreReader, training: np.ndarray, embedding_dim: int, transform: TargetTransform
) -> tuple[Compression, dict[str, Any]]:
    table = label_table(reader, recipe.train)
    codes = torch.from_numpy(np.array(table.codes))
    codes[~torch.from_numpy(table.labelled)] = UNLABELLED
    loss = _label_loss(codes, several=table.has_several)
    output_dim = recipe.targets.compression_dim or embedding_dim
    made = Compression(recipe.targets, transform.widths, output_dim, len(table.classes), loss)
    return made, {"classes": len(table.classes), "labelled_rows": int((table.labelled & training).sum())}


def _label_loss(codes: Tensor, *, several: bool) -> LabelLoss:
    def loss(logits: Tensor, index: Tensor) -> Tensor:
        return label_loss(logits, codes[index.cpu()].to(logits.device), "bce" if several else "cross_entropy")

    return loss


def _relation_table(
    recipe: Recipe, reader: StoreReader, training: np.ndarray, transform: TargetTransform
) -> RelationTable | None:
    wanted = {term: recipe.loss.uses(term) for term in ("anchor", "neighbour")}
    if not any(wanted.values()):
        return None
    of_target = recipe.relations.space == "target"
    inputs = {"store": reader.digest, "teacher": reader.embedding.digest}
    if of_target:
        inputs["targets"] = hashlib.sha256(safetensors.torch.save(dict(transform.state_dict()))).hexdigest()

    def rows() -> Iterator[np.ndarray]:
        for piece in pieces(reader, training, "embedding"):
            stored = torch.from_numpy(np.array(piece, dtype=np.float32))
            yield transform(stored).numpy() if of_target else stored.numpy()

    return relation_table(
        recipe.paths.artifacts, rows, training, recipe.relations, inputs, anchors=wanted["anchor"],
        neighbours=wanted["neighbour"], device=device_of(recipe.train.device, "train.device"),
    )  # fmt: skip
