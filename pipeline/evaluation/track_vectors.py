"""Embeddings of whole tracks and of each of their seconds, once for all tasks; kept on disk by content.

A model hears the track as one input and each second as another, both cut from the track at 44,100 Hz. The last second
of a track that ends early is followed by silence; a second that holds no more than half of its samples is not heard.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float32

from pipeline import artifact, config
from pipeline.audio import clip_source, resampling
from pipeline.audio.windows import fit
from pipeline.errors import AudioError, ConfigError
from pipeline.evaluation.embedders import Embedder
from pipeline.evaluation.window_batch import SAMPLE_RATE_HZ, UnusableClip, WindowBatch

CODE_VERSION = "track_vectors/1"
CHUNK_TRACKS = 32
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


@dataclass(frozen=True)
class _Chunk:
    """Some tracks under one model."""

    track: np.ndarray
    second: np.ndarray
    heard: np.ndarray
    reason: list[str]


def embed_tracks(
    paths: Sequence[Path],
    digests: Sequence[str],
    seconds: int,
    embedders: Mapping[str, Embedder],
    folder: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> TrackVectors:
    """Return the embeddings of every track and second under every model.

    Each track is decoded once for all models. Files: ``<folder>/<model digest>/<tracks' digest>.npz``, one for 32
    tracks, written when they are done, so that a killed evaluation goes on where it was, and any other that scores
    the same model on the same sound reads them.

    Args:
        paths: of the tracks.
        digests: of the tracks' bytes, in their order.
        seconds: of a track.
        embedders: by key.
        folder: where the files are.
        on_progress: called with tracks done and tracks in all.

    Raises:
        AudioError: not one track can be decoded.
        ConfigError: a model cannot hear one second, or a whole track.
    """
    chunks: dict[str, list[_Chunk]] = {key: [] for key in embedders}
    for start in range(0, len(paths), CHUNK_TRACKS):
        part = list(paths[start : start + CHUNK_TRACKS])
        name = config.digest(
            {"code": CODE_VERSION, "seconds": seconds, "audio": list(digests[start : start + len(part)])}
        )
        files = {key: folder / one.digest()[:16] / f"{name[:16]}.npz" for key, one in embedders.items()}
        found = {key: chunk for key, path in files.items() if (chunk := _read(path)) is not None}
        missing = {key: one for key, one in embedders.items() if key not in found}
        if missing:
            found |= _embed(part, seconds, missing)
            for key in missing:
                artifact.write_bytes(files[key], _packed(found[key]))
        for key, chunk in found.items():
            chunks[key].append(chunk)
        on_progress(start + len(part), len(paths))
    first = next(iter(chunks.values()))
    reasons = [reason for chunk in first for reason in chunk.reason]
    unusable = [UnusableClip(row, str(paths[row]), reason) for row, reason in enumerate(reasons) if reason]
    if len(unusable) == len(paths):
        raise AudioError(
            "no_tracks", f"not one of {len(paths)} tracks can be decoded",
            got=f"{unusable[0].path}: {unusable[0].reason}",
        )  # fmt: skip
    tracks = {key: _joined([chunk.track for chunk in parts]) for key, parts in chunks.items()}
    rows = {key: _joined([chunk.second for chunk in parts]) for key, parts in chunks.items()}
    flat = {key: matrix.reshape(-1, matrix.shape[-1]) for key, matrix in rows.items()}
    return TrackVectors(tracks, flat, np.concatenate([chunk.heard for chunk in first]), unusable)


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


def _embed(paths: Sequence[Path], seconds: int, embedders: Mapping[str, Embedder]) -> dict[str, _Chunk]:
    made: dict[str, tuple[dict[int, np.ndarray], dict[int, np.ndarray]]] = {
        key: ({}, {}) for key in embedders
    }
    heard = np.zeros((len(paths), seconds), dtype=bool)
    reasons = [""] * len(paths)
    for row, path in enumerate(paths):
        try:
            native, rate_hz = clip_source.read(path)
        except AudioError as error:
            reasons[row] = error.reason
            continue
        whole, parts, heard[row] = cut(resampling.resample(native, rate_hz, SAMPLE_RATE_HZ), seconds)
        track_batch = WindowBatch(torch.from_numpy(whole[None]), np.array([row]))
        second_batch = WindowBatch(torch.from_numpy(parts), np.full(seconds, row))
        for key, embedder in embedders.items():
            made[key][0][row] = _heard(key, embedder, track_batch)[0]
            made[key][1][row] = _heard(key, embedder, second_batch)
    found = {}
    for key, (tracks, rows) in made.items():
        dim = next((vector.shape[0] for vector in tracks.values()), 0)
        track = np.full((len(paths), dim), np.nan, dtype=np.float32)
        second = np.full((len(paths), seconds, dim), np.nan, dtype=np.float32)
        for row in tracks:
            track[row], second[row][heard[row]] = tracks[row], rows[row][heard[row]]
        found[key] = _Chunk(track, second, heard, reasons)
    return found


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


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Return the parts in one; a part of tracks that could not be decoded has no width yet."""
    dim = max(part.shape[-1] for part in parts)
    filled = [
        part if part.shape[-1] == dim else np.full((*part.shape[:-1], dim), np.nan, dtype=np.float32)
        for part in parts
    ]
    return np.concatenate(filled)


def _packed(chunk: _Chunk) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, track=chunk.track, second=chunk.second, heard=chunk.heard, reason=np.array(chunk.reason)
    )
    return buffer.getvalue()


def _read(path: Path) -> _Chunk | None:
    """Return what is in ``path``; None where it is absent or damaged, and then made anew."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            reasons = [str(reason) for reason in stored["reason"]]
            return _Chunk(stored["track"], stored["second"], stored["heard"], reasons)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
