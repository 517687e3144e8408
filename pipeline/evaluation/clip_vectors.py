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
from pipeline.evaluation.clip_store import ClipStore
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
    folder: Path | None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    others: Sequence[Path] = (),
    shared: Path | None = None,
) -> ClipVectors:
    """Return the clip vectors of every model; what ``folder`` or ``shared`` has of the same digest is not made again.

    Each clip is decoded once for all models. In ``folder`` one file a model: ``<task>.<model key>.npz`` with
    ``embedding``, ``clip_id``, ``label``, ``group``, ``fold``, ``unusable`` (reason or ""), ``digest``. In ``shared``
    one :class:`~pipeline.evaluation.clip_store.ClipStore` a task, read and added to by every evaluation.

    Args:
        clips: the task.
        embedders: by key; keys become file names.
        windowing: how clips are cut.
        folder: where the files are; None = in ``shared`` alone.
        on_progress: called with clips done and clips in all.
        others: folders of earlier evaluations; a file of the same digest there, whatever its model key, is copied.
        shared: folder of the stores that all evaluations share; None = none.

    Raises:
        AudioError: not one clip can be decoded.
    """
    frame = clips.frame
    names = {key: _name(clips, embedder, windowing) for key, embedder in embedders.items()}
    store = ClipStore(shared, clips, windowing) if shared is not None else None
    embeddings, stored = _found(clips, embedders, names, folder, others, store)
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
        embeddings |= {key: (total / divisor).astype(np.float32) for key, total in sums.items()}
    else:
        unusable = _known_unusable(clips, names, folder, others, store, stored)
    if folder is not None:
        for key, name in names.items():
            if _digest(folder / _file(clips, key)) != name:
                content = _packed(clips, embeddings[key], name, unusable)
                artifact.write_bytes(folder / _file(clips, key), content)
    fresh = {embedders[key].digest(): embeddings[key] for key in embedders if key not in stored}
    if store is not None and fresh:
        store.write(fresh, unusable)
    return ClipVectors({key: embeddings[key] for key in embedders}, unusable)


def _found(
    clips: TaskClips,
    embedders: Mapping[str, Embedder],
    names: Mapping[str, str],
    folder: Path | None,
    others: Sequence[Path],
    store: ClipStore | None,
) -> tuple[dict[str, np.ndarray], set[str]]:
    """Return what is known already, and the keys of it that the store has."""
    if folder is not None:
        _adopt(clips, names, folder, others)
    embeddings, stored = {}, set()
    for key, embedder in embedders.items():
        vectors = store.read(embedder.digest()) if store is not None else None
        if vectors is not None:
            stored.add(key)
        elif folder is not None:
            vectors = _read(folder / _file(clips, key), names[key])
        elif (path := _elsewhere(clips, names[key], others)) is not None:
            vectors = _read(path, names[key])
        if vectors is not None:
            embeddings[key] = vectors
    return embeddings, stored


def _elsewhere(clips: TaskClips, name: str, others: Sequence[Path]) -> Path | None:
    """Return the file of digest ``name`` in the folders of earlier evaluations."""
    paths = (path for other in others for path in sorted(other.glob(f"{clips.task.name}.*.npz")))
    return next((path for path in paths if _digest(path) == name), None)


def _known_unusable(
    clips: TaskClips,
    names: Mapping[str, str],
    folder: Path | None,
    others: Sequence[Path],
    store: ClipStore | None,
    stored: set[str],
) -> list[UnusableClip]:
    """Return what could not be decoded when the vectors were made: the same for every model."""
    if store is not None and stored:
        return store.unusable()
    key = next(iter(names))
    path = folder / _file(clips, key) if folder is not None else _elsewhere(clips, names[key], others)
    return _read_unusable(path, list(clips.frame["path"])) if path is not None else []


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
