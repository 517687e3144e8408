"""A small store that a student can learn from, written with the real writer, and jobs on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.recipe import Run
from pipeline.store.schema import StoreMeta, embedding_spec, frontend_digest, spectrogram_spec
from pipeline.store.writer import StoreWriter
from pipeline.training.job import Job, run_job
from pipeline.training.loop import Progress

FRAMES, TEACHER_DIM, LATENT = 20, 12, 6
TEACHER_DIGEST = "ab" * 32
CLASSES = ("bell", "knock", "rain")


def small_changes(**changes: Any) -> dict[str, Any]:
    """Return the dotted keys of ``small_recipe``."""
    base = {
        "name": "small", "embed.frontend.mels": 16, "embed.shard_rows": 32, "embed.chunk_rows": 16,
        "embed.teacher.name": "linear", "student.width": 0.25, "targets.components": 8,
        "train.steps": 24, "train.batch_size": 16, "train.warmup_steps": 4, "train.validate_every": 7,
        "train.shuffle_rows": 64, "train.freq_mask_rows": 3, "train.time_mask_frames": 4,
        "train.roll_frames": 3, "train.amp": "off",
    }  # fmt: skip
    return {**base, **changes}


def small_recipe(**changes: Any) -> Recipe:
    """Return a recipe whose runs take about a second on ``write_store``'s store."""
    return recipes.change(Recipe(), small_changes(**changes))


def write_store(
    folder: Path, recipe: Recipe, rows: int = 200, seed: int = 3, validation: bool = True
) -> Path:
    """Write a store: a hidden vector a row makes both its log-mel and its embedding; one row is rejected."""
    generator = np.random.default_rng(seed)
    frontend, embed = recipe.embed.frontend, recipe.embed
    code = generator.integers(0, len(CLASSES), rows)
    centres = generator.standard_normal((len(CLASSES), LATENT)) * 2
    latent = centres[code] + generator.standard_normal((rows, LATENT))
    patterns = generator.standard_normal((LATENT, frontend.mels, FRAMES))
    log_mel = np.einsum("nl,lmf->nmf", latent, patterns) + generator.standard_normal((rows, 1, 1)) - 6.0
    teacher = latent @ generator.standard_normal((LATENT, TEACHER_DIM))
    teacher += 0.3 * generator.standard_normal((rows, TEACHER_DIM))
    table = pd.DataFrame({
        "row": np.arange(rows), "key": [f"{i:064x}" for i in range(rows)],
        "split": ["validation" if validation and i % 5 == 0 else "train" for i in range(rows)],
        "label": [CLASSES[c] if i % 3 else "" for i, c in enumerate(code)],
    })  # fmt: skip
    spectrogram = spectrogram_spec(frontend, FRAMES, embed.spectrogram_dtype)
    embedding = embedding_spec(
        recipe.embed.teacher.name, TEACHER_DIGEST, TEACHER_DIM, embed.embedding_dtype, licence="CC0-1.0"
    )
    meta = StoreMeta(
        name=recipe.name, manifest_digest="0" * 64, shard_rows=embed.shard_rows, chunk_rows=embed.chunk_rows,
        arrays=(spectrogram, embedding),
    )  # fmt: skip
    with StoreWriter.create(folder, table, meta) as writer:
        for shard in writer.pending():
            start, stop = writer.meta.bounds(shard)
            rejects = [{"row": 11, "reason": "decode", "problem": "truncated"}] if start <= 11 < stop else []
            arrays = {spectrogram.path: log_mel[start:stop], embedding.path: teacher[start:stop]}
            writer.write_shard(shard, arrays, rejects)
        writer.finish(config={}, inputs={})
    return folder


def small_job(store: Path, folder: Path, recipe: Recipe, seed: int = 0) -> Job:
    """Return a job on ``store``; its identity is its recipe's."""
    run = Run("small", seed, recipes.change(recipe, {"train.seed": seed}))
    return Job(run, store, folder, run.recipe.model_dump(mode="json"), _inputs(store, run.recipe))


def _inputs(store: Path, recipe: Recipe) -> dict[str, str]:
    digests = {"frontend": frontend_digest(recipe.embed.frontend), "teacher": TEACHER_DIGEST}
    return {"store": artifact.read(store).digest, **digests}


def run_text(job: str) -> None:
    """Train a job given as JSON, on one thread; what a process that is going to be killed runs."""
    torch.set_num_threads(1)
    run_job(Job.from_json(job))


def weights(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every tensor of the run's student and head."""
    return {
        f"{file.name}:{name}": value.numpy().tobytes()
        for file in sorted(folder.glob("*.safetensors"))
        if file.name != "checkpoint.safetensors"
        for name, value in load_file(file).items()
    }


def losses(folder: Path) -> list[tuple[int, float]]:
    """Return step and loss of every line of metrics that has one."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


class StopAt:
    """Asks a run to stop after ``step``: ``progress`` hears where it is, a call answers."""

    def __init__(self, step: int) -> None:
        self.wanted, self.now = step, 0

    def progress(self, progress: Progress) -> None:
        self.now = progress.step

    def __call__(self) -> bool:
        return self.now == self.wanted
