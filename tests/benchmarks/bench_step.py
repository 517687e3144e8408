"""Does a training step wait for its data? One thread, the trial's student, a store read from disk."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from tests.benchmarks.rows import Row

NAMES = ("data_wait",)

ROWS, SHARD_ROWS, SHUFFLE_ROWS = 8_192, 512, 2_048
MELS, FRAMES, TEACHER_DIM = 64, 115, 512
BATCH, STEPS, MOST_SECONDS = 64, 300, 45.0


def rows(names: Collection[str]) -> Iterable[Row]:
    """Yield ``data_wait``: the share of training steps spent waiting for their batches.

    Nothing is cached between epochs (``cache_bytes=0``) and the shuffle buffer is small, so that shards are
    decoded all the while, as they are where a store is larger than memory. A run's one wait for its first
    batch is told apart.
    """
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        reader, recipe = _store(Path(folder) / "store")
        steps, first, waits, seconds = _train(reader, recipe, Path(folder))
    detail = (
        f"{steps} steps of {BATCH} x {MELS} x {FRAMES}: {1e3 * seconds / steps:.1f} ms a step, "
        f"{1e3 * waits / steps:.2f} ms of it waiting; first batch after {1e3 * first:.0f} ms"
    )
    yield Row.at_most("data_wait", waits / seconds, 0.03, "share", detail)


def _store(folder: Path):  # type: ignore[no-untyped-def]
    import numpy as np
    import pandas as pd

    from pipeline import recipe as recipes
    from pipeline.config import Recipe
    from pipeline.store.reader import StoreReader
    from pipeline.store.schema import StoreMeta, embedding_spec, spectrogram_spec
    from pipeline.store.writer import StoreWriter

    recipe = recipes.change(Recipe(), {"train.batch_size": BATCH, "train.steps": 2 * STEPS})
    table = pd.DataFrame(
        {"row": np.arange(ROWS), "key": [f"{i:064x}" for i in range(ROWS)], "split": "train"}
    )
    arrays = (
        spectrogram_spec(recipe.embed.frontend, FRAMES),
        embedding_spec("noise", "cd" * 32, TEACHER_DIM),
    )
    generator = np.random.default_rng(0)
    meta = StoreMeta(name="bench", manifest_digest="0" * 64, shard_rows=SHARD_ROWS, arrays=arrays)
    with StoreWriter.create(folder, table, meta) as writer:
        for shard in writer.pending():
            noise = generator.standard_normal((SHARD_ROWS, MELS, FRAMES), dtype=np.float32) * 4 - 8
            teacher = generator.standard_normal((SHARD_ROWS, TEACHER_DIM), dtype=np.float32)
            writer.write_shard(shard, {arrays[0].path: noise, arrays[1].path: teacher}, [])
        writer.finish(config={}, inputs={})
    return StoreReader(folder), recipe


def _train(reader, recipe, folder: Path) -> tuple[int, float, float, float]:  # type: ignore[no-untyped-def]
    from pipeline.data.loader import ShardLoader
    from pipeline.students import build_student
    from pipeline.students.normalised import NormalisedStudent
    from pipeline.training import targets
    from pipeline.training.job import augmentation
    from pipeline.training.loop import update
    from pipeline.training.objective import DistilObjective
    from pipeline.training.state import TrainingState

    config = recipe.train
    student = NormalisedStudent(build_student(recipe.student, MELS), -8.0, 4.0)
    transform, _ = targets.fit([reader.read_shard(0, ("embedding",))["embedding"]], recipe.targets)
    objective = DistilObjective(student.embedding_dim, transform, recipe.loss)
    state = TrainingState(student, objective, config, "")
    state.model.train()
    loader = ShardLoader(reader, BATCH, config.seed, SHUFFLE_ROWS, cache_bytes=0)
    augment = augmentation(recipe, -8.0, 4.0)
    # Warm-up on batches of another loader: the measured one has to make its first batch itself.
    for batch, _ in zip(ShardLoader(reader, BATCH), range(5), strict=False):
        update(state, batch, augment, folder)
    steps, waits, seconds = 0, 0.0, 0.0
    started = time.perf_counter()
    batches = iter(loader)
    batch = next(batches)
    first = time.perf_counter() - started
    update(state, batch, augment, folder)
    while steps < STEPS and seconds < MOST_SECONDS:
        started = time.perf_counter()
        batch = next(batches)
        waits += time.perf_counter() - started
        update(state, batch, augment, folder)
        seconds += time.perf_counter() - started
        steps += 1
    batches.close()  # type: ignore[attr-defined]
    return steps, first, waits, seconds
