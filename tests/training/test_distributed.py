"""Two processes under torchrun, gloo between them, against one process with the same whole batches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.data.loader import Batch
from pipeline.errors import ConfigError, DigestMismatchError
from pipeline.ranks import Rank
from pipeline.recipe import Run
from pipeline.training import job as job_module
from pipeline.training.distributed import Group, device_of_rank, joined
from pipeline.training.job import Job, run_job
from pipeline.training.pool import PACKAGE_ROOT
from pipeline.training.state import TrainingState
from stages import locations
from tests.training.rank_process import BAD_STATUS, GONE_STATUS, train_together
from tests.training.small_store import losses, small_changes, small_job, small_recipe, weights, write_store

STEPS = 50
TOLERANCE = 1e-5
WAIT_SECONDS = 240
OFF = {"train.roll_frames": 0, "train.freq_mask_rows": 0, "train.time_mask_frames": 0}
# At the default rate Adam's first steps amplify rounding to 8e-6 over 50 steps, too close to the tolerance.
RUNS: dict[str, dict[str, Any]] = {
    "relational": {
        "loss.distance": 1.0, "loss.angle": 2.0, "loss.cosine": 1.0, "augment.freq_mixstyle_probability": 0.4,
        "train.steps": STEPS, "train.learning_rate": 1e-3,
    },
    "mixed": {"loss.distance": 1.0, "augment.mixup_alpha": 0.3, "train.ema_decay": 0.9},
    "frozen": {"loss.distance": 1.0, "train.batch_norm": "frozen", "train.micro_batch_size": 3},
    "span": {"loss.distance": 1.0, "train.rank_rows": "span", **OFF},
    "beyond": {
        "loss.cosine": 1.0, "loss.distance": 1.0, "loss.anchor": 1.0, "loss.neighbour": 1.0, "relations.anchors": 5,
        "relations.neighbours": 4, "relations.queue_rows": 40, "targets.compression": "linear",
        "targets.transform": "none", "targets.head": "none", "augment.mixup_alpha": 0.3,
        "train.learning_rate": 1e-3,
    },
    "labels": {"train.control": "labels", "train.steps": 6, "train.probe_column": "label"},
    # After the run that it starts from, which this recipe trains too: a second meeting of the processes.
    "tuned": {"train.control": "labels", "train.steps": 6, "train.start_from": "run:{artifacts}/run/labels-seed0-*"},
}  # fmt: skip


def _torchrun(*arguments: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=WAIT_SECONDS, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACKAGE_ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Job], str]:
    """The runs by two processes of the real command, and what it printed."""
    folder = tmp_path_factory.mktemp("ranks")
    changes = small_changes(**{"paths.artifacts": str(folder), "train.steps": 12, "train.validate_every": 6})
    lines = [f"{key} = {json.dumps(value)}" for key, value in changes.items()]
    for name, keys in RUNS.items():
        lines += [f"[runs.{name}.set]", *(f'"{key}" = {json.dumps(value)}' for key, value in keys.items())]
    path = folder / "ranks.toml"
    path.write_text("\n".join(lines).replace("{artifacts}", str(folder)))
    recipe = recipes.load(path)
    artifact.finish(
        locations.manifest_folder(recipe), kind="manifest", config=locations.manifest_config(recipe), inputs={},
        summary={"content": "0" * 64},
    )  # fmt: skip
    store = Path(str(locations.store_folder(recipe)))
    write_store(store, recipe)
    printed = _torchrun("-m", "stages.cli", "distill", str(path))
    jobs = {
        run.name: Job(
            run, store, locations.run_folder(run), locations.run_config(run), locations.run_inputs(run)
        )
        for run in recipes.expand(recipe)
    }
    return jobs, printed


def _alone(job: Job, folder: Path) -> Job:
    run_job(Job(Run(job.run.name, job.run.seed, job.run.recipe), job.store, folder, job.config, job.inputs))
    return Job(job.run, job.store, folder, job.config, job.inputs)


def _furthest(first: Path, second: Path) -> float:
    """Return the largest difference of any weight or running statistic of two runs."""
    worst = 0.0
    for name in ("student", "projector", "classifier", "compression"):
        name = f"{name}.safetensors"
        if not (first / name).is_file():
            continue
        ours, theirs = load_file(first / name), load_file(second / name)
        assert ours.keys() == theirs.keys()
        differences = [float((v.double() - theirs[k].double()).abs().max()) for k, v in ours.items()]
        worst = max(worst, *differences)
    return worst


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["relational", "mixed", "frozen", "beyond", "labels", "tuned"])
def test_two_processes_equal_one(trained: tuple[dict[str, Job], str], tmp_path: Path, name: str) -> None:
    """Pairs across processes, batch-norm statistics, augmentation, mixup, averages, micro-batches, memories."""
    job = trained[0][name]
    alone = _alone(job, tmp_path / "alone")
    assert _furthest(alone.folder, job.folder) < TOLERANCE
    for one, two in zip(losses(alone.folder), losses(job.folder), strict=True):
        assert one[1] == pytest.approx(two[1], abs=TOLERANCE)
    ours, theirs = (artifact.read(folder).summary for folder in (alone.folder, job.folder))
    assert (ours.pop("processes"), theirs.pop("processes")) == (1, 2)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        if key.startswith("validation_"):
            assert theirs[key] == pytest.approx(value, abs=TOLERANCE), key


class _BothRanks:
    """Whole batches made of the batches that two ranks get: what their loaders together give."""

    def __init__(self, *loaders: Any) -> None:
        self.loaders = loaders

    def __iter__(self) -> Iterator[Batch]:
        for parts in zip(*self.loaders, strict=True):
            yield Batch(
                *(torch.cat([getattr(p, k) for p in parts]) for k in ("index", "spectrogram", "embedding"))
            )

    def state_dict(self) -> dict[str, Any]:
        return {}


def test_processes_that_read_their_own_rows_equal_one_that_reads_both(
    trained: tuple[dict[str, Job], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, made = trained[0]["span"], job_module.loader_of

    class Ranked(Group):
        def wait(self) -> None:
            """The other rank is in this process."""

    def both(recipe: Any, reader: Any, rows: Any, group: Group) -> Any:
        return _BothRanks(*(made(recipe, reader, rows, Ranked(Rank(rank, 2))) for rank in (0, 1)))

    monkeypatch.setattr(job_module, "loader_of", both)
    alone = _alone(job, tmp_path / "alone")
    assert _furthest(alone.folder, job.folder) < TOLERANCE


def test_the_first_process_alone_speaks_and_writes(trained: tuple[dict[str, Job], str]) -> None:
    jobs, printed = trained
    # One meeting for the runs that start at random, one for the run that starts from another.
    assert printed.count("2 processes a run") == 2
    assert printed.count("relational-seed0 starts") == 1
    for job in jobs.values():
        records = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
        steps = [record["step"] for record in records if "loss" in record]
        assert steps == sorted(set(steps))
        assert not [path.name for path in job.folder.iterdir() if ".tmp" in path.name]


def test_any_process_killed_and_started_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    """kill -9 of either rank, between checkpoints: the other one says so and ends, and all start again."""
    recipe = small_recipe(**{
        "train.steps": 14, "train.validate_every": 4, "train.ema_decay": 0.8, "loss.distance": 1.0,
        "relations.queue_rows": 24, "train.rank_rows": "span",
    })  # fmt: skip
    store = write_store(tmp_path / "store", recipe)
    whole, parts = (small_job(store, tmp_path / name, recipe) for name in ("whole", "parts"))
    assert train_together(whole) == [0, 0]
    assert train_together(parts, killed=(1, 6)) == [GONE_STATUS, -signal.SIGKILL]
    # Each process has read rows of its own, which another number of processes could not go on with.
    with pytest.raises(DigestMismatchError, match="another number of processes"):
        run_job(parts)
    assert train_together(parts, killed=(0, 11)) == [-signal.SIGKILL, GONE_STATUS]
    assert train_together(parts) == [0, 0]
    assert weights(parts.folder) == weights(whole.folder)
    assert losses(parts.folder) == losses(whole.folder)


def test_all_processes_stop_at_a_bad_batch_and_the_first_writes_it_whole(tmp_path: Path) -> None:
    recipe = small_recipe(**{
        "train.learning_rate": 1e30, "train.warmup_steps": 0, "train.clip_norm": None, "train.rank_rows": "span",
    })  # fmt: skip
    job = small_job(write_store(tmp_path / "store", recipe), tmp_path / "run", recipe)
    assert train_together(job) == [BAD_STATUS, BAD_STATUS]
    (path,) = job.folder.glob("bad_batch_step*.safetensors")
    found = load_file(path)
    assert len(set(found["index"].tolist())) == recipe.train.batch_size == len(found["log_mel"])


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    """Every process reads whole batches by default, so that a checkpoint is any number's."""
    recipe = small_recipe(**{"train.steps": 8, "train.validate_every": 4, "loss.distance": 1.0})
    store = write_store(tmp_path / "store", recipe)
    alone, both = (small_job(store, tmp_path / name, recipe) for name in ("alone", "both"))
    assert train_together(both, killed=(1, 6)) == [GONE_STATUS, -signal.SIGKILL]
    run_job(both)
    run_job(alone)
    assert _furthest(alone.folder, both.folder) < TOLERANCE


def test_a_batch_that_does_not_divide_is_refused() -> None:
    recipe = small_recipe(**{"train.batch_size": 15})
    with pytest.raises(ConfigError, match="shared out") as raised:
        TrainingState(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), recipe.train, "", Group(Rank(0, 2)))
    assert raised.value.run == "--set train.batch_size=16"


def test_processes_that_cannot_meet_are_told_how_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match="where they meet") as raised, joined(Rank(0, 2), "cpu"):
        pass
    assert "torchrun" in str(raised.value.run)


def test_one_gpu_for_all_processes_is_refused() -> None:
    with pytest.raises(ConfigError, match="one GPU"):
        device_of_rank(Rank(1, 2, 1, 2), "cuda:0")
    with pytest.raises(ConfigError, match="has no GPU"):
        device_of_rank(Rank(99, 100, 99, 100), "cuda")
    assert device_of_rank(Rank(1, 2, 1, 2), "cpu") == torch.device("cpu")
