"""Embeddings of whole tracks and of each of their seconds, once for all tasks; kept on disk by content.

A model hears the track as one input and each second as another, both cut from the track at 44,100 Hz. The last second
of a track that ends early is followed by silence; a second that holds no more than half of its samples is not heard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float32

from pipeline.audio import clip_source, resampling
from pipeline.audio.windows import fit
from pipeline.errors import AudioError, ConfigError
from pipeline.evaluation.embedders import Embedder
from pipeline.evaluation.vector_store import WHOLE, Made, VectorStore
from pipeline.evaluation.window_batch import SAMPLE_RATE_HZ, UnusableClip, WindowBatch

CODE_VERSION = "track_vectors/2"
SHARD_TRACKS = 32
NO_SOUND = "no_sound"
HEARD_SHARE = 0.5


@dataclass(frozen=True)
class TrackVectors:
    """What the models made of the tracks.

    Attributes:
        tracks: model key to (tracks, dim).
        seconds: model key to (tracks x seconds, dim), the seconds of the first track first.
        heard: (tracks, seconds) whether the second has sound; where not, its embedding is NaN.
        unusable: tracks that cannot be decoded; their embeddings are NaN.
    """

    tracks: dict[str, Float32[np.ndarray, "tracks dim"]]
    seconds: dict[str, Float32[np.ndarray, "rows dim"]]
    heard: Bool[np.ndarray, "tracks seconds"]
    unusable: list[UnusableClip]


def embed_tracks(
    paths: Sequence[Path],
    digests: Sequence[str],
    seconds: int,
    embedders: Mapping[str, Embedder],
    folder: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> TrackVectors:
    """Return the embeddings of every track and second under every model; what a store in ``folder`` has is read.

    Each track is decoded once for all models that have not heard it. A shard of the store is 32 tracks, written when
    they are done, so that a killed evaluation goes on where it was, and any other that scores the same model on the
    same sound reads them.

    Args:
        paths: of the tracks.
        digests: of the tracks' bytes, in their order.
        seconds: of a track.
        embedders: by key.
        folder: of the stores that all evaluations share.
        on_progress: called with tracks done and tracks in all.

    Raises:
        AudioError: not one track can be decoded.
        ConfigError: a model cannot hear one second, or a whole track.
        StoreError: a store is damaged.
    """
    keys = {embedder.digest(): key for key, embedder in embedders.items()}
    parts = [WHOLE, *(str(second) for second in range(seconds))]
    cutting = {"code": CODE_VERSION, "seconds": seconds}
    store = VectorStore(folder, "tracks", digests, cutting, parts, SHARD_TRACKS)
    found = store.complete(
        [str(path) for path in paths], embedders, partial(_hear, seconds, keys), on_progress
    )
    unusable = found.unusable
    if len(unusable) == len(paths):
        raise AudioError(
            "no_tracks", f"not one of {len(paths)} tracks can be decoded",
            got=f"{unusable[0].path}: {unusable[0].reason}",
        )  # fmt: skip
    heard = np.array([[not reason for reason in of[1:]] for of in found.reasons])
    tracks = {key: vectors[:, 0] for key, vectors in found.vectors.items()}
    rows = {key: vectors[:, 1:].reshape(-1, vectors.shape[2]) for key, vectors in found.vectors.items()}
    return TrackVectors(tracks, rows, heard, unusable)


def cut(
    waveform: Float32[np.ndarray, " samples"], seconds: int
) -> tuple[
    Float32[np.ndarray, " whole"], Float32[np.ndarray, "seconds second"], Bool[np.ndarray, " seconds"]
]:
    """Return a track at 44,100 Hz as whole, as seconds, and which of them are heard; its end filled with silence."""
    whole = fit(waveform, seconds * SAMPLE_RATE_HZ)
    starts = np.arange(seconds) * SAMPLE_RATE_HZ
    heard = len(waveform) - starts > HEARD_SHARE * SAMPLE_RATE_HZ
    return whole, whole.reshape(seconds, SAMPLE_RATE_HZ), heard


def _hear(
    seconds: int,
    keys: Mapping[str, str],
    paths: Mapping[int, str],
    models: Mapping[str, Embedder],
    asked: Mapping[str, list[int]],
) -> Made:
    """Return whole and seconds of each asked track under each model that asks for it."""
    wanted = {digest: set(places) for digest, places in asked.items()}
    made = Made({digest: {} for digest in models}, {})
    for place in sorted(set().union(*wanted.values())):
        try:
            native, rate_hz = clip_source.read(paths[place])
        except AudioError as error:
            made.refused[place] = [error.reason] * (1 + seconds)
            continue
        whole, parts, heard = cut(resampling.resample(native, rate_hz, SAMPLE_RATE_HZ), seconds)
        if not heard.all():
            made.refused[place] = ["", *("" if one else NO_SOUND for one in heard)]
        track_batch = WindowBatch(torch.from_numpy(whole[None]), np.array([place]))
        second_batch = WindowBatch(torch.from_numpy(parts), np.full(seconds, place))
        for digest in (one for one in models if place in wanted[one]):
            track, second = (
                _heard(keys[digest], models[digest], batch) for batch in (track_batch, second_batch)
            )
            seconds_heard = np.where(heard[:, None], second, np.float32(np.nan))
            made.vectors[digest][place] = np.concatenate([track, seconds_heard])
    return made


def _heard(key: str, embedder: Embedder, batch: WindowBatch) -> np.ndarray:
    seconds = batch.waveforms.shape[1] / SAMPLE_RATE_HZ
    try:
        return embedder.embed(batch)
    except Exception as error:
        # torch raises RuntimeError where a network's shapes do not fit the length; ONNX Runtime's own exceptions
        # derive from Exception directly and are not public.
        if not (isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime")):
            raise
        raise ConfigError(
            f"{key} cannot hear {seconds:g} s at once", expected="a model of any input length",
            got=str(error).splitlines()[0],
        ) from error  # fmt: skip
