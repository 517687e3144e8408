"""Clip vectors of a task in a store of the project's own format, shared by all evaluations.

One store a task and windowing, one row a clip, one embedding array a model, named by the model's digest: whatever
recipe or command evaluates the same model on the same clips reads it. ``ossicle store`` commands work on it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float32

from pipeline import config
from pipeline.evaluation.clips import TaskClips
from pipeline.evaluation.window_batch import UnusableClip, Windowing
from pipeline.store.commits import is_finished, read_commit
from pipeline.store.reader import StoreReader
from pipeline.store.schema import REJECTED, STORE_FILE, ArraySpec, StoreMeta, embedding_spec
from pipeline.store.writer import StoreWriter

CODE_VERSION = "clip_store/1"
FOLDER = "embeddings"
SHARD_ROWS, CHUNK_ROWS = 4_096, 256


class ClipStore:
    """The clip vectors of one task under one windowing.

    Args:
        root: folder of all such stores.
        clips: the task.
        windowing: how its clips are cut.
    """

    def __init__(self, root: Path, clips: TaskClips, windowing: Windowing) -> None:
        self._clips, self._windowing = clips, windowing
        self._work = config.digest(
            {
                "code": CODE_VERSION, "clips": clips.digest(), "seconds": windowing.seconds,
                "maximum": windowing.maximum,
            }
        )  # fmt: skip
        self._identity = {"clip_store": self._work}
        self.folder = root / f"{clips.task.name}-{self._work[:12]}"

    def read(self, digest: str) -> Float32[np.ndarray, "clips dim"] | None:
        """Return the vectors of the model with that digest, NaN for unusable clips; None where there are none yet.

        Raises:
            StoreError: the store is damaged: a file is not what its record says.
        """
        reader = self._reader()
        if reader is None:
            return None
        spec = next((one for one in reader.meta.arrays if one.digest == digest), None)
        if spec is None or not all(
            read_commit(reader.location, spec, shard) for shard in range(reader.meta.shards)
        ):
            return None
        parts = [reader.read_array(spec, shard) for shard in range(reader.meta.shards)]
        return np.asarray(np.concatenate(parts), dtype=np.float32)

    def unusable(self) -> list[UnusableClip]:
        """Return the clips that could not be decoded, as the store's rejects list them."""
        reader = self._reader()
        if reader is None:
            return []
        paths = list(self._clips.frame["path"])
        rejects = reader.rejects
        bad = set(reader.rows.loc[reader.rows["status"] == REJECTED, "row"])
        return [
            UnusableClip(int(row), paths[int(row)], str(reason))
            for row, reason in sorted(zip(rejects["row"], rejects["reason"], strict=True))
            if row in bad
        ]

    def write(
        self, vectors: dict[str, Float32[np.ndarray, "clips dim"]], unusable: list[UnusableClip]
    ) -> None:
        """Add the vectors of further models.

        Args:
            vectors: model digest to (clips, dim).
            unusable: the clips whose rows are NaN.

        Raises:
            StoreError: a vector of another clip is not finite.
        """
        arrays = tuple(_spec(digest, rows.shape[1]) for digest, rows in vectors.items())
        frame = self._clips.frame
        rows = pd.DataFrame(
            {
                "row": range(len(frame)), "key": frame["clip_id"].astype(str), "clip_id": frame["clip_id"].astype(str),
                "label": frame["label"].astype(str), "group": frame["group"].astype(str), "fold": frame["fold"],
            }
        )  # fmt: skip
        windowing = {"seconds": self._windowing.seconds, "maximum": self._windowing.maximum}
        meta = StoreMeta(
            name=self._clips.task.name, manifest_digest=self._clips.digest(), windowing=windowing,
            shard_rows=SHARD_ROWS, chunk_rows=CHUNK_ROWS, arrays=arrays,
        )  # fmt: skip
        with StoreWriter.create(self.folder, rows, meta) as writer:
            for shard in range(writer.meta.shards):
                start, stop = writer.meta.bounds(shard)
                rejects = [
                    {
                        "row": clip.row, "reason": clip.reason, "problem": clip.reason,
                        "path": str(frame["path"].iloc[clip.row]), "clip_id": str(frame["clip_id"].iloc[clip.row]),
                    }
                    for clip in unusable
                    if start <= clip.row < stop
                ]  # fmt: skip
                part = {spec.path: vectors[spec.digest][start:stop] for spec in arrays}
                writer.write_shard(shard, part, rejects)
            writer.finish([spec.digest for spec in arrays], config=self._identity, inputs={})

    def _reader(self) -> StoreReader | None:
        """Return a reader; None where there is no store, or one of which no array is whole."""
        if not (self.folder / STORE_FILE).is_file():
            return None
        if not is_finished(self.folder):
            # A writer that was killed took the marker with it; what it had finished before is still whole.
            with StoreWriter.open(self.folder) as writer:
                whole = [spec.digest for spec in writer.meta.arrays if not writer.pending([spec.digest])]
                if not whole:
                    return None
                writer.finish(whole, config=self._identity, inputs={})
        return StoreReader(self.folder)


def _spec(digest: str, dim: int) -> ArraySpec:
    return embedding_spec(f"model-{digest[:12]}", digest, dim)
