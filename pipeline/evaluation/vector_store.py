"""Embeddings of sounds in stores of the project's own format, named by content: model, sound, and how it is cut.

One store a set of sounds and way of cutting them, one array a model, a row for each part of each sound that is embedded
(a clip whole; a track whole and each of its seconds). What another store of the same cutting has of the same model and
sound is copied and never computed again, so that tasks that share clips share their vectors. Shards are committed one
by one: a killed evaluation goes on where it was. ``ossicle store`` commands work on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32

from pipeline import config
from pipeline.evaluation.embedders import Embedder
from pipeline.evaluation.window_batch import UnusableClip
from pipeline.store.commits import is_finished, read_commit
from pipeline.store.reader import StoreReader
from pipeline.store.schema import STORE_FILE, ArraySpec, StoreMeta, embedding_spec, read_meta
from pipeline.store.writer import StoreWriter

FOLDER = "embeddings"
WHOLE = "whole"
Vectors = Float32[np.ndarray, "sounds parts dim"]
FileVectors = Float32[np.ndarray, "files parts dim"]


@dataclass
class Made:
    """What models made of some sounds.

    Attributes:
        vectors: model digest to {sound's place: (parts, dim)}.
        refused: sound's place to the reason of each of its parts, "" of those that were heard; of sounds of which
            all parts were heard nothing.
    """

    vectors: dict[str, dict[int, np.ndarray]]
    refused: dict[int, list[str]]


# Given a file of each sound by its place, the embedders by digest, and for each of these the places of the sounds that
# it is asked for, in order.
Hear = Callable[[Mapping[int, str], Mapping[str, Embedder], Mapping[str, list[int]]], Made]


@dataclass(frozen=True)
class Completed:
    """What models made of files, in the order of the files.

    Attributes:
        vectors: model key to (files, parts, dim), NaN where a part was not heard; empty where nothing was.
        reasons: of each file why each part was not heard, "" of those that were.
        unusable: the files of which not even the first part was heard.
    """

    vectors: dict[str, FileVectors]
    reasons: list[list[str]]
    unusable: list[UnusableClip]


class VectorStore:
    """The vectors of a set of sounds.

    Args:
        root: folder of all such stores.
        unit: what a sound is: ``clips``, ``tracks``.
        sounds: content digests of files; one that is there twice is one sound.
        cutting: what else the vectors depend on: code, windows.
        parts: names of what is embedded of each sound.
        shard_sounds: sounds a shard, which is what a killed run loses at most.

    Attributes:
        sounds: in the order of the rows: sorted, whatever the order they were given in.
    """

    def __init__(
        self,
        root: Path,
        unit: str,
        sounds: Sequence[str],
        cutting: Mapping[str, Any],
        parts: Sequence[str] = (WHOLE,),
        shard_sounds: int = 256,
    ) -> None:
        self.sounds = sorted(set(sounds))
        place_of = {sound: place for place, sound in enumerate(self.sounds)}
        self._places = [place_of[sound] for sound in sounds]
        self._unit, self._parts, self._root = unit, list(parts), root
        self._shard_sounds = shard_sounds
        self._cutting = {**cutting, "unit": unit, "parts": len(self._parts), "shard_sounds": shard_sounds}
        self._work = config.digest({"cutting": self._cutting, "sounds": self.sounds})
        self.folder = root / f"{unit}-{self._work[:12]}"

    def read(self, digest: str) -> Vectors | None:
        """Return the vectors of the model with that digest, NaN where a part was not heard; None where there are none.

        Raises:
            StoreError: the store is damaged: a file is not what its record says.
        """
        reader = self._reader()
        found = None if reader is None else _array(reader, digest)
        return None if found is None else found.reshape(len(self.sounds), len(self._parts), -1)

    def refused(self) -> dict[int, list[str]]:
        """Return sound's place to the reason of each of its parts that cannot be heard, "" of the others."""
        reader = self._reader()
        if reader is None:
            return {}
        found: dict[int, list[str]] = {}
        for row, reason in zip(reader.rejects["row"], reader.rejects["reason"], strict=True):
            sound, part = divmod(int(row), len(self._parts))
            found.setdefault(sound, [""] * len(self._parts))[part] = str(reason)
        return found

    def complete(
        self,
        paths: Sequence[str],
        embedders: Mapping[str, Embedder],
        hear: Hear,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Completed:
        """Return the vectors of all models; those that no store has are made, written and kept.

        Args:
            paths: of the files, in the order in which their digests were given; of equal ones the first is heard.
            embedders: by key.
            hear: makes vectors.
            on_progress: called with sounds done and sounds in all.

        Raises:
            StoreError: the store is damaged, or a model's vector is not finite.
        """
        by_digest = {embedder.digest(): embedder for embedder in embedders.values()}
        found = {digest: self.read(digest) for digest in by_digest}
        missing = {digest: by_digest[digest] for digest, vectors in found.items() if vectors is None}
        refused: dict[int, list[str]] = {}
        if missing:
            path_of = dict(zip(reversed(self._places), reversed(paths), strict=True))
            refused = self._make(missing, partial(hear, path_of), on_progress)
            found |= {digest: self.read(digest) for digest in missing}
        known = {digest: vectors for digest, vectors in found.items() if vectors is not None}
        if known:
            refused = self.refused()
        all_heard = [""] * len(self._parts)
        reasons = [refused.get(place, all_heard) for place in self._places]
        unusable = [UnusableClip(row, paths[row], of[0]) for row, of in enumerate(reasons) if of[0]]
        if not known:
            return Completed({}, reasons, unusable)
        of_files = {key: known[embedder.digest()][self._places] for key, embedder in embedders.items()}
        return Completed(of_files, reasons, unusable)

    def _make(
        self,
        missing: Mapping[str, Embedder],
        hear: Callable[[Mapping[str, Embedder], Mapping[str, list[int]]], Made],
        on_progress: Callable[[int, int], None],
    ) -> dict[int, list[str]]:
        """Write what is missing; return what was refused on the way."""
        refused: dict[int, list[str]] = {}
        borrowed = {digest: self._borrowed(digest) for digest in missing}
        begun = read_meta(self.folder).arrays if (self.folder / STORE_FILE).is_file() else ()
        specs = {spec.digest: spec for spec in begun if spec.digest in missing}
        for digest, theirs in borrowed.items():
            dim = next((vectors.shape[1] for vectors, _ in theirs.values()), None)
            if dim is not None:
                specs[digest] = _spec(digest, dim)
        waiting: list[tuple[int, Made]] = []
        for shard, start in enumerate(range(0, len(self.sounds), self._shard_sounds)):
            stop = min(start + self._shard_sounds, len(self.sounds))
            lacking = {digest: one for digest, one in missing.items() if not self._has(digest, shard)}
            asked = {
                digest: [place for place in range(start, stop) if self.sounds[place] not in borrowed[digest]]
                for digest in lacking
            }
            made = hear(lacking, asked) if any(asked.values()) else Made({}, {})
            refused |= made.refused
            for digest in lacking:
                here = made.vectors.setdefault(digest, {})
                for place in range(start, stop):
                    if (known := borrowed[digest].get(self.sounds[place])) is not None:
                        here[place] = known[0]
                        if any(known[1]):
                            made.refused[place] = known[1]
                if digest not in specs and here:
                    specs[digest] = _spec(digest, next(iter(here.values())).shape[1])
            waiting.append((shard, made))
            # A model's width is known once it has heard something; until then a shard of silence waits.
            if all(digest in specs for digest in missing):
                self._write(specs, waiting)
                waiting = []
            on_progress(stop, len(self.sounds))
        if specs:
            self._write(specs, waiting)
            with StoreWriter.open(self.folder) as writer:
                writer.finish(list(specs), config=self._identity(), inputs={})
        return refused

    def _write(self, specs: Mapping[str, ArraySpec], waiting: Sequence[tuple[int, Made]]) -> None:
        width = len(self._parts)
        keys = [sound if width == 1 else f"{sound}:{part}" for sound in self.sounds for part in self._parts]
        rows = pd.DataFrame(
            {
                "row": range(len(keys)), "key": keys,
                "sound": np.repeat(self.sounds, width), "part": self._parts * len(self.sounds),
            }
        )  # fmt: skip
        meta = StoreMeta(
            name=self._unit, manifest_digest=self._work, windowing=self._cutting, shard_rows=self._shard_sounds * width,
            chunk_rows=self._chunk_rows(), arrays=tuple(specs.values()),
        )  # fmt: skip
        with StoreWriter.create(self.folder, rows, meta) as writer:
            for shard, made in waiting:
                start, stop = (row // width for row in writer.meta.bounds(shard))
                rejects = [
                    {
                        "row": place * width + part, "reason": reason, "problem": reason, "path": "",
                        "clip_id": self.sounds[place],
                    }
                    for place, reasons in made.refused.items()
                    for part, reason in enumerate(reasons)
                    if reason
                ]  # fmt: skip
                for digest, heard in made.vectors.items():
                    if digest not in specs:
                        continue
                    spec = specs[digest]
                    values = np.full((stop - start, width, *spec.row_shape), np.nan, dtype=np.float32)
                    for place, vectors in heard.items():
                        values[place - start] = vectors
                    writer.write_shard(shard, {spec.path: values.reshape(-1, *spec.row_shape)}, rejects)

    def _chunk_rows(self) -> int:
        # Of a track its whole row set; of clips a quarter of a shard.
        width = len(self._parts)
        return width if width > 1 else max(self._shard_sounds // 4, 1)

    def _has(self, digest: str, shard: int) -> bool:
        """Whether an earlier run that was killed has finished this shard."""
        if not (self.folder / STORE_FILE).is_file():
            return False
        spec = next((one for one in read_meta(self.folder).arrays if one.digest == digest), None)
        return spec is not None and read_commit(self.folder, spec, shard) is not None

    def _borrowed(self, digest: str) -> dict[str, tuple[np.ndarray, list[str]]]:
        """Return sound to its vectors and reasons, of those that other stores of the same cutting have of the model."""
        wanted, width = set(self.sounds), len(self._parts)
        found: dict[str, tuple[np.ndarray, list[str]]] = {}
        for folder in sorted(self._root.glob(f"{self._unit}-*")):
            if folder == self.folder or not wanted or not is_finished(folder):
                continue
            reader = StoreReader(folder)
            if reader.meta.windowing != self._cutting:
                continue
            theirs = reader.rows["sound"].tolist()[::width]
            places = [place for place, sound in enumerate(theirs) if sound in wanted]
            vectors = _array(reader, digest) if places else None
            if vectors is None:
                continue
            reasons = dict(zip(reader.rejects["row"], reader.rejects["reason"], strict=True))
            for place in places:
                rows = range(place * width, (place + 1) * width)
                found[theirs[place]] = (
                    vectors[rows.start : rows.stop],
                    [str(reasons.get(r, "")) for r in rows],
                )
            wanted -= set(found)
        return found

    def _identity(self) -> dict[str, Any]:
        return {"vector_store": self._work}

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
                writer.finish(whole, config=self._identity(), inputs={})
        return StoreReader(self.folder)


def _array(reader: StoreReader, digest: str) -> np.ndarray | None:
    """Return all rows of the array of ``digest``; None where the store lacks it or some of it."""
    spec = next((one for one in reader.meta.arrays if one.digest == digest), None)
    shards = range(reader.meta.shards)
    if spec is None or not all(read_commit(reader.location, spec, shard) for shard in shards):
        return None
    return np.concatenate([reader.read_array(spec, shard) for shard in shards]).astype(np.float32)


def _spec(digest: str, dim: int) -> ArraySpec:
    return embedding_spec(f"model-{digest[:12]}", digest, dim)
