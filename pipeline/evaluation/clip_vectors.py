"""One vector a clip: the mean of its windows' embeddings; kept on disk so that no model hears a sound twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float32

from pipeline.errors import AudioError
from pipeline.evaluation import audio_digests
from pipeline.evaluation.clips import TaskClips
from pipeline.evaluation.embedders import Embedder
from pipeline.evaluation.vector_store import Made, VectorStore
from pipeline.evaluation.window_batch import UnusableClip, WindowBatch, Windowing, batches

CODE_VERSION = "clip_vectors/2"


@dataclass(frozen=True)
class ClipVectors:
    """What the models made of a task's clips.

    Attributes:
        embeddings: model key to (clips, dim); a clip that cannot be decoded is a row of NaN.
        unusable: those clips.
    """

    embeddings: dict[str, Float32[np.ndarray, "clips dim"]]
    unusable: list[UnusableClip]

    @property
    def heard(self) -> Bool[np.ndarray, " clips"]:
        """Which clips could be decoded."""
        heard = np.ones(len(next(iter(self.embeddings.values()))), dtype=bool)
        heard[[clip.row for clip in self.unusable]] = False
        return heard

    @property
    def of_heard(self) -> dict[str, Float32[np.ndarray, "heard dim"]]:
        """The embeddings of those clips alone."""
        heard = self.heard
        return {key: embedding[heard] for key, embedding in self.embeddings.items()}


def embed_clips(
    clips: TaskClips,
    embedders: Mapping[str, Embedder],
    windowing: Windowing,
    folder: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ClipVectors:
    """Return the clip vectors of every model; what a store in ``folder`` has is not made again.

    Vectors are named by the sound's content, the windowing and the model's digest, so that another task, recipe or
    command that scores the same model on the same sound reads them. Each clip is decoded once for all models that
    have not heard it.

    Args:
        clips: the task.
        embedders: by key.
        windowing: how clips are cut.
        folder: of the stores that all evaluations share.
        on_progress: called with clips done and clips in all.

    Raises:
        AudioError: not one clip can be decoded.
        StoreError: a store is damaged.
    """
    paths = list(clips.frame["path"])
    names = audio_digests.digests(paths, folder)
    cutting = {"code": CODE_VERSION, "seconds": windowing.seconds, "maximum": windowing.maximum}
    store = VectorStore(folder, "clips", names, cutting)
    found = store.complete(paths, embedders, partial(_hear, windowing), on_progress)
    unusable = found.unusable
    if len(unusable) == len(paths):
        raise AudioError(
            "no_clips", f"task {clips.task.name!r}: not one of {len(paths)} clips can be decoded",
            got=f"{unusable[0].path}: {unusable[0].reason}",
        )  # fmt: skip
    return ClipVectors({key: vectors[:, 0] for key, vectors in found.vectors.items()}, unusable)


def _hear(
    windowing: Windowing,
    paths: Mapping[int, str],
    models: Mapping[str, Embedder],
    asked: Mapping[str, list[int]],
) -> Made:
    """Return the mean over windows of each asked sound under each model that asks for it."""
    wanted = {digest: set(places) for digest, places in asked.items()}
    places = sorted(set().union(*wanted.values()))
    sums: dict[str, dict[int, np.ndarray]] = {digest: {} for digest in models}
    counts: dict[int, int] = {}
    unusable: list[UnusableClip] = []
    for batch in batches([paths[place] for place in places], windowing, unusable):
        of_window = np.array([places[row] for row in batch.clip])
        for place, count in zip(*np.unique(of_window, return_counts=True), strict=True):
            counts[int(place)] = int(count)
        for digest, model in models.items():
            inside = np.array([place in wanted[digest] for place in of_window])
            if not inside.any():
                continue
            part = (
                batch
                if inside.all()
                else WindowBatch(batch.waveforms[torch.from_numpy(inside)], batch.clip[inside])
            )
            rows = model.embed(part).astype(np.float64)
            for place in np.unique(of_window[inside]).tolist():
                sums[digest][place] = rows[of_window[inside] == place].sum(axis=0)
    vectors = {
        digest: {place: (total / counts[place]).astype(np.float32)[None] for place, total in of.items()}
        for digest, of in sums.items()
    }
    return Made(vectors, {places[clip.row]: [clip.reason] for clip in unusable})
