"""What is made of a store's training rows once: nearest neighbours and anchors of the teacher's space.

An artifact of its own (``relations``), named by the rows, their targets and these settings, so that every run of
a recipe finds what the first one made. It costs 4 bytes a neighbour and clip, and 4 for the nearest anchor.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float, Int32
from threadpoolctl import threadpool_limits
from torch import Tensor

from pipeline import artifact
from pipeline.config import RelationsConfig
from pipeline.errors import ConfigError, TrainingError
from pipeline.training.neighbour_search import nearest

log = logging.getLogger(__name__)

FILE, LOCK_FILE, ROWS_FILE = "relations.safetensors", ".lock", "rows.npy"
# k-means sees so many rows, drawn; every row is then assigned.
FIT_ROWS = 100_000
ASSIGN_ROWS = 16_384


@dataclass(frozen=True)
class RelationTable:
    """Relations of a store's rows; ``-1`` for rows that are not trained on, and where nothing was asked for.

    Attributes:
        neighbours: store rows of each row's nearest ones, nearest first; width 0 if none were asked for.
        anchors: where they are in the teacher's space; none if none were asked for.
        anchor_of: the anchor that a row stands for: its nearest centre, or itself.
        digest: of the artifact that holds them.
    """

    neighbours: Int32[Tensor, "rows neighbours"]
    anchors: Float[Tensor, "anchors dim"]
    anchor_of: Int32[Tensor, " rows"]
    digest: str = ""

    def __deepcopy__(self, memo: dict[int, Any]) -> RelationTable:
        """Return itself: a copy of the model, for its weights' average, needs none of a table that never changes."""
        return self


def relation_table(
    root: Path,
    pieces: Callable[[], Iterator[np.ndarray]],
    mask: np.ndarray,
    config: RelationsConfig,
    inputs: dict[str, str],
    *,
    anchors: bool,
    neighbours: bool,
    device: torch.device | None = None,
) -> RelationTable:
    """Return the table of these rows from ``root``, made first if it is not there.

    Args:
        root: folder of all artifacts.
        pieces: gives the training rows of the space, ``(n, dim)`` each, in store order.
        mask: which store rows they are.
        config: ``[relations]``.
        inputs: digests of the store and of what made the rows of it.
        anchors, neighbours: what is wanted.
        device: where an exact search multiplies.

    Raises:
        TrainingError: no rows.
        ConfigError: fewer rows than anchors or neighbours.
    """
    wanted: dict[str, Any] = {"space": config.space, "code": 1}
    if anchors:
        wanted |= {"anchors": config.anchors, "anchor_kind": config.anchor_kind, "seed": config.seed}
    if neighbours:
        wanted |= {"neighbours": config.neighbours, "neighbour_search": config.neighbour_search}
    inputs = {**inputs, "rows": hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()}
    work = artifact.identity("relations", wanted, inputs)
    folder = artifact.folder_for(root, "relations", config.space, work)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if not artifact.is_finished(folder, work):
            rows = _mapped(folder, pieces, int(mask.sum()))
            made = _make(rows, mask, config, folder, anchors=anchors, neighbours=neighbours, device=device)
            artifact.write_bytes(folder / FILE, safetensors.torch.save(made))
            artifact.finish(
                folder, kind="relations", config=wanted, inputs=inputs,
                summary={"rows": len(rows), "dim": rows.shape[1]},
            )  # fmt: skip
            del rows
            for scratch in (folder / ROWS_FILE, *folder.glob("neighbours-*.npy")):
                scratch.unlink(missing_ok=True)
        tensors = safetensors.torch.load((folder / FILE).read_bytes())
    return RelationTable(tensors["neighbours"], tensors["anchors"], tensors["anchor_of"], work)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder; several runs want the same table, the first makes it."""
    handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _mapped(folder: Path, pieces: Callable[[], Iterator[np.ndarray]], count: int) -> np.ndarray:
    """Return the rows from a memory-mapped file, written whole first."""
    path = folder / ROWS_FILE
    if not path.is_file():
        with artifact.replacing(path) as temporary:
            written, rows = 0, None
            for piece in pieces():
                if rows is None:
                    shape = (count, piece.shape[1])
                    rows = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
                rows[written : written + len(piece)] = piece
                written += len(piece)
            if rows is None or written != count:
                raise TrainingError(
                    "the rows to relate are not those that were counted", expected=count, got=written,
                    run="ossicle store verify",
                )  # fmt: skip
            rows.flush()
            del rows
    mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped


def _make(
    rows: np.ndarray,
    mask: np.ndarray,
    config: RelationsConfig,
    folder: Path,
    *,
    anchors: bool,
    neighbours: bool,
    device: torch.device | None,
) -> dict[str, Tensor]:
    of_store = np.flatnonzero(mask).astype(np.int32)
    table = np.full((len(mask), config.neighbours if neighbours else 0), -1, dtype=np.int32)
    if neighbours:
        log.info("nearest neighbours of %d rows", len(rows))
        places = nearest(rows, config.neighbours, folder, search=config.neighbour_search, device=device)
        # An approximate search that found too few says -1, which stays -1.
        table[of_store] = np.where(places >= 0, of_store[places], -1)
    anchor_of = np.full(len(mask), -1, dtype=np.int32)
    points = np.zeros((0, rows.shape[1]), dtype=np.float32)
    if anchors:
        points, nearest_anchor = _anchors(rows, config)
        anchor_of[of_store] = nearest_anchor
    return {
        "neighbours": torch.from_numpy(table),
        "anchors": torch.from_numpy(points),
        "anchor_of": torch.from_numpy(anchor_of),
    }


def _anchors(rows: np.ndarray, config: RelationsConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the anchors ``(anchors, dim)`` and which one each row stands for (-1 = none)."""
    if config.anchors > len(rows):
        raise ConfigError(
            f"relations.anchors = {config.anchors}, but there are {len(rows)} training rows",
            expected=f"at most {len(rows)}", got=config.anchors, run=f"--set relations.anchors={len(rows)}",
        )  # fmt: skip
    draw = np.random.default_rng(config.seed)
    if config.anchor_kind == "rows":
        chosen = np.sort(draw.choice(len(rows), config.anchors, replace=False))
        stands_for = np.full(len(rows), -1, dtype=np.int32)
        stands_for[chosen] = np.arange(config.anchors)
        return np.array(rows[chosen], dtype=np.float32), stands_for
    from sklearn.cluster import MiniBatchKMeans

    seen = np.arange(len(rows))
    if len(rows) > FIT_ROWS:
        seen = np.sort(draw.choice(len(rows), FIT_ROWS, replace=False))
    with threadpool_limits(1):  # sums over several threads would differ from machine to machine
        means = MiniBatchKMeans(config.anchors, batch_size=4_096, n_init=3, random_state=config.seed).fit(
            np.array(rows[seen], dtype=np.float32)
        )
        assigned = [
            means.predict(np.array(rows[start : start + ASSIGN_ROWS], dtype=np.float32))
            for start in range(0, len(rows), ASSIGN_ROWS)
        ]
    return means.cluster_centers_.astype(np.float32), np.concatenate(assigned).astype(np.int32)
