"""``ossicle distill`` on a small store: several processes, reuse, failure of one, Ctrl-C and going on."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.errors import ConfigError, MissingArtifactError, TrainingError
from pipeline.store.schema import read_meta
from pipeline.training import pool
from pipeline.training.metrics import read_metrics
from stages import distill, locations
from tests.training.small_store import small_recipe, weights, write_store

WAIT_SECONDS = 240.0
RUNS = {
    "taught": {"seeds": [0, 1]},
    "floor": {"set": {"train.control": "random"}},
}


def _recipe(folder: Path, runs: dict[str, Any] = RUNS, **changes: Any) -> Recipe:
    """Return a recipe whose manifest and store are there."""
    recipe = small_recipe(**{"paths.artifacts": folder, "jobs": 2, "runs": runs, **changes})
    artifact.finish(
        locations.manifest_folder(recipe), kind="manifest", config=locations.manifest_config(recipe), inputs={},
        summary={"content": "0" * 64},
    )  # fmt: skip
    if not locations.store_folder(recipe).exists():
        write_store(locations.store_folder(recipe), recipe)
    return recipe


def _console() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=200), text


def _wait_for(condition: Any) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_every_run_is_trained_once_then_reused(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path)
    console, text = _console()
    assert distill.run(recipe, console=console) == tmp_path / "run"
    folders = {run.label: locations.run_folder(run) for run in recipes.expand(recipe)}
    assert set(folders) == {"taught-seed0", "taught-seed1", "floor-seed0"}
    for label, folder in folders.items():
        assert artifact.is_finished(folder)
        assert label in text.getvalue()
    assert weights(folders["taught-seed0"]) != weights(folders["taught-seed1"])
    done = artifact.read(folders["taught-seed0"])
    assert done.inputs["teacher"] == read_meta(locations.store_folder(recipe)).arrays[1].digest
    assert f"{done.summary['validation_loss']:.4f}" in text.getvalue()
    before = {label: artifact.read(folder).provenance for label, folder in folders.items()}
    console, text = _console()
    distill.run(recipe, console=console)
    assert text.getvalue().count("is finished, reused") == 3
    assert before == {label: artifact.read(folder).provenance for label, folder in folders.items()}


def test_only_trains_those_and_refuses_unknown_names(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path)
    console, _ = _console()
    folder = distill.run(recipe, console=console, only=("floor",))
    assert folder.name.startswith("floor-seed0-")
    assert [p.name for p in (tmp_path / "run").iterdir()] == [folder.name]
    with pytest.raises(ConfigError, match="tought") as raised:
        distill.run(recipe, console=console, only=("tought",))
    assert "taught" in str(raised.value.expected)


def test_without_a_store_it_says_what_makes_one(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path)
    shutil.rmtree(locations.store_folder(recipe))
    with pytest.raises(MissingArtifactError) as raised:
        distill.run(recipe, console=_console()[0])
    assert "embed" in str(raised.value.run)


def test_a_failed_run_leaves_the_others_alone(tmp_path: Path) -> None:
    runs = {"broken": {"set": {"targets.components": 99}}, "floor": RUNS["floor"]}
    recipe = _recipe(tmp_path, runs)
    console, text = _console()
    with pytest.raises(TrainingError, match="1 of 2 runs failed") as raised:
        distill.run(recipe, console=console)
    assert "99" in str(raised.value.got)
    assert "broken-seed0 failed" in text.getvalue()
    broken, floor = (locations.run_folder(run) for run in recipes.expand(recipe))
    assert artifact.is_finished(floor)
    assert not artifact.is_finished(broken)


@pytest.mark.exhaustive
def test_a_run_that_is_killed_is_reported_and_goes_on_next_time(tmp_path: Path) -> None:
    """The process of one run gets kill -9; the next distill ends with the weights of a run left alone."""
    one = {"one": {}}
    changes = {"train.steps": 400, "train.validate_every": 5}
    reference = _recipe(tmp_path / "reference", one, **changes)
    whole = distill.run(reference, console=_console()[0])
    recipe = _recipe(tmp_path / "killed", one, **changes)
    folder = locations.run_folder(recipes.expand(recipe)[0])
    killed: list[int] = []

    def kill() -> None:
        _wait_for((folder / "checkpoint.safetensors").exists)
        killed.extend(_children_in(folder))
        for process in killed:
            os.kill(process, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(TrainingError) as raised:
        distill.run(recipe, console=_console()[0])
    thread.join()
    assert len(killed) == 1
    assert "signal 9" in str(raised.value.got)
    distill.run(recipe, console=_console()[0])
    assert weights(folder) == weights(whole)


def test_an_interrupt_writes_checkpoints_and_says_how_to_go_on(tmp_path: Path) -> None:
    """SIGINT to a distill process of its own: exit by KeyboardInterrupt, no child left, a checkpoint there."""
    recipe = _recipe(tmp_path, {"one": {}}, **{"train.steps": 100_000, "train.validate_every": 100_000})
    folder = locations.run_folder(recipes.expand(recipe)[0])
    # A background job's children start with SIGINT ignored; this one stands for a command at a terminal.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "import sys; from rich.console import Console; from pipeline.config import Recipe; from stages import distill; "
        "distill.run(Recipe.model_validate_json(sys.stdin.read()), console=Console(stderr=True, width=200))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(pool.PACKAGE_ROOT)},
    )  # fmt: skip
    assert process.stdin is not None
    try:
        process.stdin.write(recipe.model_dump_json())
        process.stdin.close()
        process.stdin = None
        _wait_for(lambda: bool(read_metrics(folder)))
        process.send_signal(signal.SIGINT)
        _, text = process.communicate(timeout=WAIT_SECONDS)
    finally:
        process.kill()
    assert process.returncode != 0
    assert "checkpoint written" in text
    assert "to go on: ossicle distill" in text
    assert (folder / "checkpoint.safetensors").is_file()
    assert not _children_in(folder)


def test_a_run_whose_parent_is_killed_stops_with_a_checkpoint(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, {"one": {}}, **{"train.steps": 100_000, "train.validate_every": 100_000})
    job = distill.jobs_of(recipe)[0]
    job.folder.mkdir(parents=True)
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "pipeline.training.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=log, text=True, env={**os.environ, "PYTHONPATH": str(pool.PACKAGE_ROOT)},
        )  # fmt: skip
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        worker.stdin.write(job.to_json() + "\n")
        worker.stdin.close()
        assert '"progress"' in worker.stdout.readline()
        worker.stdout.close()
        worker.wait(timeout=WAIT_SECONDS)
    finally:
        worker.kill()
    assert (job.folder / "checkpoint.safetensors").is_file()


def _children_in(folder: Path) -> list[int]:
    """Return the processes that have the run's log open: its worker."""
    log = folder / pool.LOG_FILE
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and any(f.readlink() == log for f in (process / "fd").iterdir()):
                found.append(int(process.name))
        except OSError:
            continue
    return [process for process in found if process != os.getpid()]
