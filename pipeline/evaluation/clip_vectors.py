"""One vector a clip: the mean of its windows' embeddings; kept on disk so that no model hears a clip twice."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from pipeline import artifact, config
from pipeline.errors import AudioError
from pipeline.evaluation.clips import TaskClips
from pipeline.evaluation.embedders import Embedder
from pipeline.evaluation.window_batch import UnusableClip, Windowing, batches

CODE_VERSION = "clip_vectors/1"


@dataclass(frozen=True)
class ClipVectors:
    """What the models made of a task's clips.

    Attributes:
        embeddings: model key to (clips, dim); a clip that cannot be decoded is a row of NaN.
        unusable: those clips.
    """

    embeddings: dict[str, Float32[np.ndarray, "clips dim"]]
    unusable: list[UnusableClip]


def embed_clips(
    clips: TaskClips,
    embedders: Mapping[str, Embedder],
    windowing: Windowing,
    folder: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    others: Sequence[Path] = (),
) -> ClipVectors:
    """Return the clip vectors of every model; files in ``folder`` of the same digest are read, not made again.

    Each clip is decoded once for all models. One file a model: ``<task>.<model key>.npz`` with ``embedding``,
    ``clip_id``, ``label``, ``group``, ``fold``, ``unusable`` (reason or ""), ``digest``.

    Args:
        clips: the task.
        embedders: by key; keys become file names.
        windowing: how clips are cut.
        folder: where the files are.
        on_progress: called with clips done and clips in all.
        others: folders of earlier evaluations; a file of the same digest there, whatever its model key, is copied.

    Raises:
        AudioError: not one clip can be decoded.
    """
    frame = clips.frame
    names = {key: _name(clips, embedder, windowing) for key, embedder in embedders.items()}
    _adopt(clips, names, folder, others)
    found = {key: _read(folder / _file(clips, key), names[key]) for key in embedders}
    embeddings = {key: vectors for key, vectors in found.items() if vectors is not None}
    missing = {key: embedder for key, embedder in embedders.items() if key not in embeddings}
    unusable: list[UnusableClip] = []
    if missing:
        sums: dict[str, np.ndarray] = {}
        counts = np.zeros(len(frame))
        for batch in batches(list(frame["path"]), windowing, unusable):
            np.add.at(counts, batch.clip, 1)
            for key, embedder in missing.items():
                rows = embedder.embed(batch)
                if key not in sums:
                    sums[key] = np.zeros((len(frame), rows.shape[1]))
                np.add.at(sums[key], batch.clip, rows)
            on_progress(int(batch.clip.max()) + 1, len(frame))
        if not counts.any():
            raise AudioError(
                "no_clips", f"task {clips.task.name!r}: not one of {len(frame)} clips can be decoded",
                got=f"{unusable[0].path}: {unusable[0].reason}",
            )  # fmt: skip
        divisor = np.where(counts > 0, counts, np.nan)[:, None]
        for key, total in sums.items():
            embeddings[key] = (total / divisor).astype(np.float32)
            content = _packed(clips, embeddings[key], names[key], unusable)
            artifact.write_bytes(folder / _file(clips, key), content)
    else:
        unusable = _read_unusable(folder / _file(clips, next(iter(embedders))), list(frame["path"]))
    return ClipVectors({key: embeddings[key] for key in embedders}, unusable)


def _adopt(clips: TaskClips, names: Mapping[str, str], folder: Path, others: Sequence[Path]) -> None:
    wanted = {name: key for key, name in names.items() if _digest(folder / _file(clips, key)) != name}
    for other in others:
        for path in sorted(other.glob(f"{clips.task.name}.*.npz")) if wanted else ():
            key = wanted.pop(_digest(path) or "", None)
            if key is not None:
                artifact.write_bytes(folder / _file(clips, key), path.read_bytes())


def _name(clips: TaskClips, embedder: Embedder, windowing: Windowing) -> str:
    return config.digest(
        {
            "code": CODE_VERSION, "model": embedder.digest(), "clips": clips.digest(),
            "seconds": windowing.seconds, "maximum": windowing.maximum,
        }
    )  # fmt: skip


def _file(clips: TaskClips, key: str) -> str:
    return f"{clips.task.name}.{key}.npz"


def _packed(clips: TaskClips, embedding: np.ndarray, name: str, unusable: list[UnusableClip]) -> bytes:
    reasons = {clip.row: clip.reason for clip in unusable}
    arrays: dict[str, Any] = {c: clips.frame[c].to_numpy(dtype=str) for c in ("clip_id", "label", "group")}
    arrays["fold"] = clips.frame["fold"].to_numpy(dtype=np.int64)
    arrays["unusable"] = np.array([reasons.get(row, "") for row in range(len(clips.frame))])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, embedding=embedding, digest=np.array(name), **arrays)
    return buffer.getvalue()


def _read_unusable(path: Path, paths: list[str]) -> list[UnusableClip]:
    with np.load(path, allow_pickle=False) as stored:
        reasons = [str(reason) for reason in stored["unusable"]]
    return [UnusableClip(row, paths[row], reason) for row, reason in enumerate(reasons) if reason]


def _digest(path: Path) -> str | None:
    """Return the digest of what is in ``path``; None where it is absent or damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            return str(stored["digest"])
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _read(path: Path, name: str) -> np.ndarray | None:
    """Return the vectors in ``path`` if they are of digest ``name``; None where there are none such."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            return np.asarray(stored["embedding"]) if str(stored["digest"]) == name else None
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        # A damaged file is one that is not there: it is made anew and replaced.
        return None
