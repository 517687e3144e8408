"""Does a training step wait for its data? One thread, the recipe's student and the fastest, a store read from disk."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from tests.benchmarks.rows import Row, fastest_seconds

NAMES = ("data_wait", "data_wait_fastest")

ROWS, SHARD_ROWS, SHUFFLE_ROWS = 8_192, 512, 2_048
MELS, FRAMES, TEACHER_DIM = 64, 115, 512
BATCH, STEPS, MOST_SECONDS = 64, 300, 30.0
SLOW_SECONDS, FINALISTS = 0.25, 4


def rows(names: Collection[str]) -> Iterable[Row]:
    """Yield the share of training steps spent waiting for their batches: default student, and fastest of all.

    Nothing is cached between epochs (``cache_bytes=0``) and the shuffle buffer is small, so that shards are
    read all the while, as they are where a store is larger than memory. A run's one wait for its first
    batch is told apart. The fastest is the student whose step takes least on these log-mels.
    """
    import torch

    from pipeline import recipe as recipes

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        reader, recipe = _store(Path(folder) / "store")
        for name in names:
            of_student, note = recipe, recipe.student.name
            if name == "data_wait_fastest":
                chosen, counted = _fastest_student(recipe)
                of_student = recipes.change(recipe, {"student.name": chosen})
                note = f"{chosen}, fastest of {counted}"
            steps, first, waits, seconds = _train(reader, of_student, Path(folder))
            detail = (
                f"{note}: {steps} steps of {BATCH} x {MELS} x {FRAMES}: {1e3 * seconds / steps:.1f} ms a step, "
                f"{1e3 * waits / steps:.2f} ms of it waiting; first batch after {1e3 * first:.0f} ms"
            )
            yield Row.at_most(name, waits / seconds, 0.03, "share", detail)


def _fastest_student(recipe) -> tuple[str, int]:  # type: ignore[no-untyped-def]
    """Return the student whose forward and backward pass is shortest, and how many were timed."""
    import torch

    from pipeline import recipe as recipes
    from pipeline.errors import OssicleError
    from pipeline.students import build_student, students

    log_mel = torch.randn(BATCH, 1, MELS, FRAMES)
    steps: dict[str, Callable[[], object]] = {}
    once: dict[str, float] = {}
    for name in students.own_names():
        try:
            student = build_student(recipes.change(recipe, {"student.name": name}).student, MELS)
        except OssicleError:
            continue  # it hears other frontends alone
        student.train().to(memory_format=torch.channels_last)

        def step(student: torch.nn.Module = student) -> None:
            student(log_mel).sum().backward()

        # Slow ones are out after one small batch.
        started = time.perf_counter()
        student(log_mel[:4]).sum().backward()
        if time.perf_counter() - started < SLOW_SECONDS:
            steps[name] = step
            once[name] = fastest_seconds({name: step}, repeats=2)[name]
    shortest = sorted(once, key=once.__getitem__)[:FINALISTS]
    seconds = fastest_seconds({name: steps[name] for name in shortest}, repeats=7)
    return min(seconds, key=seconds.__getitem__), len(steps)


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
