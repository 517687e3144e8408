"""Stopped or killed anywhere, a run ends with the same bits as one that was left alone."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import artifact
from pipeline.errors import DigestMismatchError, WeightsError
from pipeline.training import checkpoint
from pipeline.training.job import run_job
from pipeline.training.loop import Progress, TrainingStopped
from tests.training.small_store import StopAt, losses, run_text, small_job, small_recipe, weights, write_store

KILLS = 20 if "OSSICLE_SLOW" in os.environ else 6
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "average": {"train.ema_decay": 0.8, "targets.transform": "none"},
    "bfloat16": {"train.amp": "bfloat16"},
    "early stopping": {"train.early_stopping": 2, "train.learning_rate": 0.2, "train.validate_every": 3},
    "relational": {"loss.distance": 1.0, "loss.angle": 2.0, "loss.cosine": 1.0, "loss.feature": 0.0},
    "swa in micro-batches": {
        "train.swa_start_share": 0.3,
        "train.micro_batch_size": 5,
        "train.optimiser": "sgd",
        "train.schedule": "ramp_down",
        "loss.distance": 1.0,
        "train.bad_batches": 1,
    },
    "watched overlap": {
        "train.early_stopping": 2,
        "train.early_stopping_metric": "neighbour_overlap",
        "train.validate_every": 3,
        "train.probe_column": "label",
        "train.learning_rate_shares": {"objective.head": 3.0},
    },
    "labels": {"train.control": "labels", "train.batch_size": 8},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path, variant: str) -> None:
    recipe = small_recipe(**VARIANTS[variant])
    store = write_store(tmp_path / "store", recipe)
    whole = run_job(small_job(store, tmp_path / "whole", recipe))
    job = small_job(store, tmp_path / "parts", recipe)
    stopped_at = []
    for step in (1, 7, 8, 13):
        stop = StopAt(step)
        try:
            run_job(job, on_progress=stop.progress, should_stop=stop)
        except TrainingStopped as stopped:
            stopped_at.append(stopped.step)
    parts = run_job(job)
    assert stopped_at[:2] == [1, 7]
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert parts.summary == whole.summary
    assert parts.digest == whole.digest


def test_two_runs_are_equal_and_two_seeds_are_not(tmp_path: Path) -> None:
    recipe = small_recipe()
    store = write_store(tmp_path / "store", recipe)
    for name, seed in (("first", 0), ("second", 0), ("other", 1)):
        run_job(small_job(store, tmp_path / name, recipe, seed))
    assert weights(tmp_path / "first") == weights(tmp_path / "second")
    assert weights(tmp_path / "first") != weights(tmp_path / "other")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_random_moments_equals_uninterrupted(tmp_path: Path) -> None:
    """kill -9, 20 times over as many runs as that takes; each finished run equals the one never killed."""
    recipe = small_recipe(**{"train.steps": 30, "train.validate_every": 3, "train.ema_decay": 0.9})
    store = write_store(tmp_path / "store", recipe, rows=120)
    # The torch that a forkserver has imported once spares each killed process its seconds of start.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.small_store"])
    reference = context.Process(
        target=run_text, args=(small_job(store, tmp_path / "whole", recipe).to_json(),)
    )
    reference.start()
    reference.join()
    assert reference.exitcode == 0
    want = weights(tmp_path / "whole")
    draw, kills, resumed, finished = random.Random(0), 0, 0, 0
    while True:
        folder = tmp_path / f"killed-{finished}"
        job = small_job(store, folder, recipe)
        found = checkpoint.load(folder, job.work) if folder.exists() else None
        resumed += found is not None and found.step < recipe.train.steps
        process = context.Process(target=run_text, args=(job.to_json(),))
        process.start()
        if kills < KILLS:
            # After a drawn number of checkpoints and a little more: wall time would strike at the imports only.
            wait_for_checkpoints(process, folder / checkpoint.FILE, draw.randrange(4))
            process.join(draw.uniform(0.0, 0.03))
        else:
            process.join()
        if process.exitcode is None:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
            continue
        assert process.exitcode == 0
        assert artifact.is_finished(folder, job.work)
        assert weights(folder) == want
        assert losses(folder) == losses(tmp_path / "whole")
        if kills >= KILLS:
            break
        finished += 1
    assert resumed > 0


def wait_for_checkpoints(process: BaseProcess, path: Path, count: int) -> None:
    """Return after ``process`` has written ``path`` ``count`` times, or has ended."""

    def written() -> int:
        return path.stat().st_mtime_ns if path.exists() else 0

    last = written()
    while count and process.is_alive():
        if (now := written()) != last:
            last, count = now, count - 1
        time.sleep(0.001)


def test_a_checkpoint_of_other_work_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, checkpoint.Checkpoint("a" * 64, 3, {"model.weight": torch.ones(2)}, {"x": 0.1}))
    found = checkpoint.load(tmp_path, "a" * 64)
    assert found is not None
    assert (found.step, found.values) == (3, {"x": 0.1})
    with pytest.raises(DigestMismatchError, match="another run"):
        checkpoint.load(tmp_path, "b" * 64)
    path = tmp_path / checkpoint.FILE
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(WeightsError, match="damaged"):
        checkpoint.load(tmp_path, "a" * 64)
    save_file({"weight": torch.ones(1)}, path)
    with pytest.raises(WeightsError, match="format"):
        checkpoint.load(tmp_path, "a" * 64)
    assert checkpoint.load(tmp_path / "empty", "a" * 64) is None


def test_optimiser_state_keeps_the_parameters_memory_layout() -> None:
    def layer() -> torch.nn.Module:
        torch.manual_seed(0)
        made = torch.nn.Conv2d(4, 8, 3)
        return made.to(memory_format=torch.channels_last)

    first, second = layer(), layer()
    ours = [torch.optim.AdamW(model.parameters(), lr=0.1) for model in (first, second)]
    batch = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    first(batch).square().sum().backward()
    ours[0].step()
    tensors, values = checkpoint.pack_optimiser(ours[0])
    loaded = {k.removeprefix("optimiser."): v.clone().contiguous() for k, v in tensors.items()}
    checkpoint.unpack_optimiser(ours[1], loaded, values)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        for name, value in ours[0].state[a].items():
            assert torch.equal(ours[1].state[b][name], value)
            assert ours[1].state[b][name].stride() == value.stride()
    assert ours[1].param_groups[0]["lr"] == 0.1


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    recipe = small_recipe(**{"train.steps": 3})
    store = write_store(tmp_path / "store", recipe)
    job = small_job(store, tmp_path / "run", recipe)
    run_job(job)
    before = {p.name: p.stat().st_mtime_ns for p in job.folder.iterdir() if p.name != ".lock"}
    seen: list[Progress] = []
    run_job(job, on_progress=seen.append)
    assert not seen
    assert before == {p.name: p.stat().st_mtime_ns for p in job.folder.iterdir() if p.name != ".lock"}
    assert load_file(job.folder / "student.safetensors").keys()
