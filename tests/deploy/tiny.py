"""A tiny trained-looking student and a tiny store for the export tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import torch
from torch import Tensor, nn

from pipeline.config import LogMelConfig
from pipeline.deploy.metadata import ExportMetadata
from pipeline.store import schema
from pipeline.store.reader import StoreReader
from pipeline.store.writer import StoreWriter

MELS, FRAMES, MEAN, STD, DIM = 16, 24, -5.0, 2.5, 6
FRONTEND = LogMelConfig(mels=MELS)


def noise_rows(mels: int = MELS, mean: float = MEAN, std: float = STD, seed: int = 0) -> np.ndarray:
    """Return 7 seeded rows (7, 1, mels, 24) float32 of the student's distribution."""
    drawn = np.random.default_rng(seed).standard_normal((7, 1, mels, FRAMES))
    return (mean + std * drawn).astype(np.float32)


class TinyStudent(nn.Module):
    """Normalisation, two convolutions with ReLU, mean over the map, a linear layer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.last = nn.Linear(12, DIM)

    def forward(self, log_mel: Tensor) -> Tensor:
        hidden = torch.relu(self.first((log_mel - MEAN) / STD))
        hidden = torch.relu(self.second(hidden))
        return self.last(hidden.mean(dim=(2, 3)))


class BakedLength(TinyStudent):
    """Crops odd maps in a Python branch, which the exporter bakes in for the length it traced."""

    def forward(self, log_mel: Tensor) -> Tensor:
        if log_mel.shape[3] % 2 == 1:
            log_mel = log_mel[..., :-5]
        return super().forward(log_mel)


class DataDependent(TinyStudent):
    """Chooses by the input's values, which no graph can."""

    def forward(self, log_mel: Tensor) -> Tensor:
        return super().forward(log_mel if float(log_mel.sum()) > 0 else -log_mel)


def metadata(**changes: object) -> ExportMetadata:
    known: dict[str, object] = {
        "frontend": FRONTEND, "mean": MEAN, "std": STD, "embedding_dim": DIM, "student": "tiny",
        "teacher": "aisfx", "teacher_licence": "CC-BY-4.0", "teacher_credit": "A. Author, 2024",
        "run": "tiny-seed0", "run_digest": "ab" * 32,
    }  # fmt: skip
    return ExportMetadata(**{**known, **changes})  # type: ignore[arg-type]


def log_mels(rows: int, seed: int = 0) -> np.ndarray:
    """Return (rows, MELS, FRAMES) float32 whose rows differ in level and in tilt, as sounds do."""
    rng = np.random.default_rng(seed)
    level = rng.uniform(-2.0, 2.0, (rows, 1, 1))
    tilt = rng.normal(0.0, 2.0, (rows, 1, 1)) * np.linspace(-1, 1, MELS)[None, :, None]
    return (MEAN + level + tilt + rng.normal(0.0, 1.0, (rows, MELS, FRAMES))).astype(np.float32)


def store(
    folder: Path, spectrograms: np.ndarray, splits: list[str], rejected: tuple[int, ...] = ()
) -> StoreReader:
    """Write a finished store of ``spectrograms`` in shards of 8 rows and open it."""
    rows = len(spectrograms)
    plan = pandas.DataFrame(
        {"row": range(rows), "key": [f"{row:016x}" for row in range(rows)], "split": splits}
    )
    spectrogram = schema.spectrogram_spec(FRONTEND, FRAMES)
    embedding = schema.embedding_spec("tiny", "ab" * 32, 4)
    meta = schema.StoreMeta(
        name="tiny",
        manifest_digest="0" * 64,
        shard_rows=8,
        chunk_rows=4,
        arrays=(spectrogram, embedding),
    )
    with StoreWriter.create(folder, plan, meta) as writer:
        for shard in writer.pending():
            first, end = writer.meta.bounds(shard)
            rejects = [
                {"row": row, "reason": "silent", "problem": "no sound"}
                for row in rejected
                if first <= row < end
            ]
            arrays = {
                spectrogram.path: spectrograms[first:end],
                embedding.path: np.ones((end - first, 4), np.float32),
            }
            writer.write_shard(shard, arrays, rejects)
        writer.finish(config={}, inputs={})
    return StoreReader(folder)
