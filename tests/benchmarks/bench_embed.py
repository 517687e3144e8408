"""Stage 1 against its teacher alone: how much decoding, rendering, log-mels and writing cost beside the forward."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import TeacherConfig
from pipeline.embedding.worker import Message
from pipeline.teachers.base import Teacher
from tests.benchmarks.rows import Row

if TYPE_CHECKING:
    import pandas as pd

NAMES = ("embed_rate", "embed_rate_with_views")
GOALS = {"embed_rate": 0.9, "embed_rate_with_views": 0.8}
# Clips, mixes and textures: clean windows alone, and the demo recipe's proportions.
CORPORA = {"embed_rate": (960, 0, 0), "embed_rate_with_views": (440, 464, 140)}
REPEATS = 4
BATCH = 16
SHARD_ROWS = 128
SUFFIXES = (".wav", ".ogg")
WARM = "aisfx_warm"


@dataclass(frozen=True)
class Speed:
    """Windows a second of all processes together, and CPU time a window in ms."""

    per_second: float
    cpu_ms: float


def rows(names: Collection[str]) -> Iterable[Row]:
    """Yield embed's rate over the rate of the teacher's bare forward: same processes, one thread each.

    Processor-bound processes cannot be faster than their CPU times say; a busy machine can make them seem so.
    The value is therefore the smaller of two ratios, of wall times and of CPU times a window; each is the median
    over runs, each against the mean of the forward's runs before and after it, for a host's speed drifts by more
    than the difference.
    """
    config = TeacherConfig(name=WARM, batch_size=BATCH)
    kind = "aisfx" if weights_are_cached() else "aisfx with random weights"
    register_warm()
    for name in names:
        files, mixes, textures = CORPORA[name]
        with tempfile.TemporaryDirectory() as scratch:
            clips = synthetic_clips(Path(scratch) / "audio", files)
            views = {"embed__views__mixes": mixes, "embed__views__textures": textures}
            measured = corpus(Path(scratch), config, clips, shard_rows=SHARD_ROWS, **views)
            value, detail = against_bare(config, *measured, REPEATS)
        yield Row.at_least(name, value, GOALS[name], detail=f"{detail}; {kind}")


def against_bare(
    config: TeacherConfig, run: Callable[[int], Speed], workers: int, count: int, repeats: int
) -> tuple[float, str]:
    """Return embed's rate over the bare forward's, and how it was found; arguments as of :func:`corpus`."""
    bare, embed = [bare_rate(config, workers, count // 2)], []
    for repeat in range(repeats):
        embed.append(run(repeat))
        bare.append(bare_rate(config, workers, count // 2))
    around = [
        Speed((a.per_second + b.per_second) / 2, (a.cpu_ms + b.cpu_ms) / 2)
        for a, b in itertools.pairwise(bare)
    ]
    wall = statistics.median(e.per_second / b.per_second for e, b in zip(embed, around, strict=True))
    cpu = statistics.median(b.cpu_ms / e.cpu_ms for e, b in zip(embed, around, strict=True))
    ours, theirs = (statistics.median(s.per_second for s in kind_of) for kind_of in (embed, bare))
    our_ms, their_ms = (statistics.median(s.cpu_ms for s in kind_of) for kind_of in (embed, bare))
    detail = (
        f"{ours:.3g} of {theirs:.3g} windows/s ({wall:.3f} x) by {workers} processes, {count} windows; "
        f"CPU {our_ms:.1f} and {their_ms:.1f} ms a window ({cpu:.3f} x); {repeats} runs"
    )
    return min(wall, cpu), detail


def register_warm() -> None:
    """Let a recipe name teachers as they are after their first batch, for which oneDNN builds its kernels."""
    from pipeline.teachers.registry import teachers
    from tests.benchmarks import bench_beats

    for name, build in ((WARM, warm_aisfx), (bench_beats.WARM, bench_beats.warm_beats)):
        if name not in teachers.names():
            teachers.register(name)(build)


def warm_aisfx(config: TeacherConfig, **_: object) -> Teacher:
    """Return aisfx, warm; its weights are random where the real ones are not cached: the work is the same."""
    import torch

    from pipeline.teachers.aisfx import Aisfx, AisfxTeacher, build_aisfx

    torch.manual_seed(0)
    teacher = build_aisfx(config) if weights_are_cached() else AisfxTeacher(Aisfx().state_dict(), config)
    torch.set_num_threads(1)
    teacher.embed(torch.zeros(config.batch_size, teacher.window_samples))
    return teacher


def weights_are_cached() -> bool:
    """Whether the teacher's real weights are there."""
    from pipeline.teachers import weights

    return (weights.teacher_folder("aisfx") / (weights.CHECKPOINTS["aisfx"].archive or "")).is_file()


def embed_worker(work: object, pipe: Connection) -> None:
    """Run an embed worker that knows the warm teacher too."""
    from pipeline.embedding import worker

    register_warm()
    worker.main(work, TimedPipe(pipe))  # type: ignore[arg-type]


class TimedPipe:
    """A worker's pipe that also sends, after each message, the CPU time since its first batch."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.started = pipe, None

    def send(self, message: Message) -> None:
        """Send ``message`` with the CPU time in its ``trace``, which only failures use."""
        if message.kind in ("rows", "done"):
            self.started = self.started or time.process_time()
            message = dataclasses.replace(
                message, trace=f"{os.getpid()} {time.process_time() - self.started}"
            )
        self.pipe.send(message)

    def recv(self) -> object:
        """Receive from the pool."""
        return self.pipe.recv()


def bare_worker(config: TeacherConfig, count: int, pipe: Connection) -> None:
    """Embed ``count`` decoded windows, batch after batch, when told to; say when done."""
    import torch

    from pipeline.teachers.registry import build_teacher

    torch.set_num_threads(1)
    register_warm()
    teacher = build_teacher(config)
    batch, noise = config.batch_size, torch.Generator().manual_seed(0)
    windows = 0.1 * torch.randn(batch, teacher.window_samples, generator=noise)
    pipe.send("ready")
    pipe.recv()
    started = time.process_time()
    for _ in range(-(-count // batch)):
        teacher.embed(windows)
    pipe.send(time.process_time() - started)


def bare_rate(config: TeacherConfig, workers: int, count: int) -> Speed:
    """Return the speed of ``workers`` processes that do nothing but the teacher's forward."""
    from pipeline.embedding.pool import worker_environment

    context = multiprocessing.get_context("spawn")
    each = -(-count // workers)
    pipes = []
    with worker_environment():
        for _ in range(workers):
            ours, theirs = context.Pipe()
            context.Process(target=bare_worker, args=(config, each, theirs), daemon=True).start()
            theirs.close()
            pipes.append(ours)
    for pipe in pipes:
        pipe.recv()
    start = time.perf_counter()
    for pipe in pipes:
        pipe.send("go")
    cpu_seconds = sum(pipe.recv() for pipe in pipes)
    windows = workers * -(-each // config.batch_size) * config.batch_size
    return Speed(windows / (time.perf_counter() - start), 1e3 * cpu_seconds / windows)


def synthetic_clips(folder: Path, files: int) -> pd.DataFrame:
    """Write sounds of up to 6 s, half WAV and half OGG, and return their manifest rows, each sound once."""
    import pandas as pd

    from pipeline.audio import synthesis

    written = [synthesis.write_clips(folder, files // 2, seed, suffix=s) for seed, s in enumerate(SUFFIXES)]
    return pd.concat(written).drop_duplicates("clip_id", ignore_index=True)


def corpus(
    folder: Path, config: TeacherConfig, clips: pd.DataFrame, *, shard_rows: int, **changes: object
) -> tuple[Callable[[int], Speed], int, int]:
    """Write the manifest of ``clips`` below ``folder``/audio; ``changes`` are of the recipe.

    Returns:
        What embeds it (and gives windows/s), the processes and the windows.
    """
    from pipeline.audio import plan
    from pipeline.config import ManifestConfig
    from pipeline.embedding import pool
    from tests.stages.embed_corpus import finish_manifest, small_recipe

    sizes = {"embed__shard_rows": shard_rows, "embed__chunk_rows": config.batch_size}
    recipe = small_recipe(folder, embed__teacher=config.model_dump(), **sizes, **changes)
    workers = pool.worker_count(0, 2, config.device)
    count = len(plan.build(clips, recipe.embed, ManifestConfig()))
    # Whole shards, as many for each process: a last small one would leave the others idle.
    while count > shard_rows * workers and count % (shard_rows * workers):
        clips = clips.head(len(clips) - 1)
        count = len(plan.build(clips, recipe.embed, ManifestConfig()))
    finish_manifest(recipe, clips, folder / "audio")
    return functools.partial(embed_rate, recipe, folder, workers), workers, count


def embed_rate(recipe: object, folder: Path, workers: int, repeat: int) -> Speed:
    """Return the speed from the moment every worker has its first batch behind it to the last commit."""
    from pipeline import recipe as recipes
    from pipeline.config import Recipe
    from pipeline.embedding import pool
    from stages import embed, locations
    from tests.stages.embed_corpus import finish_manifest

    assert isinstance(recipe, Recipe)
    import pandas as pd

    clips = pd.read_parquet(locations.manifest_folder(recipe) / "clips.parquet")
    fresh = recipes.change(recipe, {"paths.artifacts": folder / f"artifacts{repeat}"})
    finish_manifest(fresh, clips, folder / "audio")
    counted, everything, started, ended = 0, 0, 0.0, 0.0
    cpu_seconds: dict[str, float] = {}

    def listen(message: Message) -> None:
        nonlocal counted, everything, started, ended
        ended = time.perf_counter()
        if not message.trace:
            return
        process, spent = message.trace.split()
        if process in cpu_seconds:
            everything += message.rows
        cpu_seconds[process] = float(spent)
        if started:
            counted += message.rows
        elif len(cpu_seconds) == workers:
            started = ended

    planned, _ = embed.planned_arrays(fresh)
    with embed.created_store(fresh, [spec for specs in planned for spec in specs]) as writer:
        digests = tuple(spec.digest for spec in writer.meta.arrays)
        work = embed.embed_work(fresh, writer, planned)
        real, pool.worker.main = pool.worker.main, embed_worker
        try:
            pool.embed_shards(work, writer.pending(digests), workers, listen)
        finally:
            pool.worker.main = real
    return Speed(counted / (ended - started), 1e3 * sum(cpu_seconds.values()) / everything)
