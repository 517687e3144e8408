"""``ossicle sweep`` on a small store; trained in this process, but for the test that kills it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.errors import ConfigError, OssicleError
from pipeline.training.metrics import read_metrics
from stages import distill, sweep, trial_jobs
from tests.search.in_process import small_study, train_here

pytest.importorskip("optuna")
RATES = {"train.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}}


def swept(recipe: Recipe, **options: Any) -> tuple[Path, pd.DataFrame, str]:
    console = Console(file=io.StringIO(), width=200)
    folder = sweep.run(recipe, console=console, **options)
    return folder, pd.read_parquet(folder / "trials.parquet"), console.file.getvalue()  # type: ignore[attr-defined]


def test_a_sweep_finds_the_best_of_its_runs_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train_here(monkeypatch)
    recipe = small_study(tmp_path, **{"sweep.pruner": "none"})
    folder, frame, said = swept(recipe, dimensions=RATES, trials=3)
    assert list(frame["outcome"]) == ["done"] * 3
    runs = tmp_path / "artifacts" / "run"
    for _, row in frame.iterrows():
        summary = artifact.read(runs / row["folder"]).summary
        assert row["neighbour_overlap"] == summary["validation_neighbour_overlap"]
        assert summary["steps"] == row["steps"] == 12
        config = artifact.read(runs / row["folder"]).config
        assert config["train"]["learning_rate"] == row["train.learning_rate"]
    best = frame.loc[frame["neighbour_overlap"].idxmax()]

    # The best recipe is that run: distilling it trains nothing.
    ready = recipes.load(folder / "best.toml")
    assert ready.train.learning_rate == best["train.learning_rate"]
    assert trial_jobs.job_of(ready).folder.name == best["folder"]
    assert distill.run(ready, console=Console(file=io.StringIO())).name == best["folder"]
    assert len(trained) == 3
    assert best["folder"] in said

    # More trials of the same study: the first three stay as they are.
    again, longer, _ = swept(recipe, dimensions=RATES, trials=5)
    assert again == folder
    assert len(trained) == 5
    pd.testing.assert_frame_equal(longer.head(3), frame, check_dtype=False)


def test_equal_runs_are_trained_once_whatever_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train_here(monkeypatch)
    recipe = small_study(tmp_path, **{"sweep.sampler": "grid", "sweep.pruner": "none"})
    choices = {"train.weight_decay": {"choices": [0.0, 0.1]}}
    _, frame, _ = swept(recipe, dimensions=choices)
    assert sorted(frame["train.weight_decay"]) == [0.0, 0.1]
    assert len(trained) == 2
    # Another study over the same values, and one value more.
    _, other, _ = swept(recipe, dimensions={"train.weight_decay": {"choices": [0.0, 0.1, 0.2]}})
    assert len(other) == 3
    assert len(trained) == 3
    # A draw that comes twice in one study is one run, too: 6 draws of 3 values.
    random = recipes.change(recipe, {"sweep.sampler": "random"})
    _, drawn, _ = swept(random, dimensions={"train.weight_decay": {"choices": [0.0, 0.1, 0.2]}}, trials=8)
    assert len(trained) == 3
    assert len(drawn) == 8
    assert drawn["reused_from"].notna().sum() >= 5


def test_hopeless_runs_are_stopped_at_a_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_here(monkeypatch)
    recipe = small_study(tmp_path, **{"sweep.startup_trials": 2, "train.control": "none"})
    recipe = recipes.change(recipe, {"sweep.sampler": "grid"})
    # A rate of 1e-7 learns nothing; whenever two good ones are done, it is below the median at its first validation.
    choices = {"train.learning_rate": {"choices": [1e-7, 3e-3, 4e-3, 5e-3, 6e-3, 2e-7, 3e-7]}}
    _, frame, _ = swept(recipe, dimensions=choices)
    pruned = frame[frame["outcome"] == "pruned"]
    assert len(pruned) >= 1
    for _, row in pruned.iterrows():
        folder = tmp_path / "artifacts" / "run" / row["folder"]
        assert not artifact.is_finished(folder)
        assert row["steps"] < 12
        validated = [line["step"] for line in read_metrics(folder) if "validation_neighbour_overlap" in line]
        assert validated[-1] == row["steps"]


def test_what_is_impossible_stops_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = train_here(monkeypatch)
    recipe = small_study(tmp_path)
    for dimensions, words in (
        ({"train.learning_rat": {"low": 0.1, "high": 1}}, "did you mean train.learning_rate"),
        ({"student.name": {"choices": ["cnn4", "cnn5"]}}, "did you mean cnn4"),
        ({"embed.frontend.mels": {"choices": [16, 40]}}, "no spectrogram array"),
        ({"targets.teachers": {"choices": [["linear"], ["nobody"]]}}, "nobody"),
        ({}, "nothing varies"),
    ):
        with pytest.raises(OssicleError) as caught:
            swept(recipe, dimensions=dimensions)
        assert words in str(caught.value)
    losses = recipes.change(recipe, {"selection.metric": "validation_loss"})
    with pytest.raises(ConfigError, match="cannot be compared"):
        swept(losses, dimensions={"loss.angle": {"low": 0, "high": 4}})
    with pytest.raises(ConfigError, match="has no run"):
        swept(recipe, dimensions=RATES, only="distiled")
    assert not trained
    assert not (tmp_path / "artifacts" / "sweep").exists()


def test_draws_that_cannot_be_are_refused_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_here(monkeypatch)
    recipe = small_study(tmp_path, **{"sweep.sampler": "grid", "sweep.pruner": "none"})
    weights = {"loss.feature": {"choices": [0.0, 1.0]}, "loss.cosine": {"choices": [0.0, 1.0]}}
    _, frame, _ = swept(recipe, dimensions=weights)
    assert sorted(frame["outcome"]) == ["done", "done", "done", "refused"]
    refused = frame[frame["outcome"] == "refused"].iloc[0]
    assert (refused["loss.feature"], refused["loss.cosine"]) == (0.0, 0.0)
    assert refused["reason"]


@pytest.mark.exhaustive
def test_a_killed_sweep_goes_on_with_the_trial_it_was_at(tmp_path: Path) -> None:
    steps = 200
    small_study(tmp_path, **{"train.steps": steps, "train.validate_every": 10, "sweep.pruner": "none"})
    command = [
        sys.executable, "-m", "stages.cli", "sweep", str(tmp_path / "small.toml"), "--trials", "1",
        "--set", "train.learning_rate={low=1e-3, high=1e-2}",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    runs = tmp_path / "artifacts" / "run"
    deadline = time.monotonic() + 240
    while not list(runs.glob("*/checkpoint.safetensors")):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    (folder,) = runs.iterdir()
    assert not artifact.is_finished(folder)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # The same run, finished from its checkpoint: no other folder, and one queue more.
    assert [path.name for path in runs.iterdir()] == [folder.name]
    assert artifact.is_finished(folder)
    frame = pd.read_parquet(Path(done.stdout.strip()) / "trials.parquet")
    assert list(frame["outcome"]) == ["lost", "done"]
    assert frame["requeued_from"][1] == 0
    assert frame["train.learning_rate"][0] == frame["train.learning_rate"][1]
    assert "Traceback" not in done.stderr


def test_a_recipe_of_its_own_section_needs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_here(monkeypatch)
    space = {"student.width": {"choices": [0.25, 0.5]}}
    recipe = small_study(
        tmp_path, **{"sweep.space": space, "sweep.trials": 2, "sweep.sampler": "grid", "sweep.pruner": "none"}
    )
    folder, frame, _ = swept(recipe)
    assert sorted(frame["student.width"]) == [0.25, 0.5]
    assert json.loads((folder / "space.json").read_text())["dimensions"][0]["key"] == "student.width"
    assert frame["neighbour_overlap"].notna().all()
