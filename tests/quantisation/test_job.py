"""Fine-tuning through rounding on a small run: what it mends, that it goes on where it was killed, what it refuses."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.deploy import int8
from pipeline.deploy import metadata as metadata_props
from pipeline.deploy.calibration import rows_for
from pipeline.deploy.fidelity import embed_rows
from pipeline.deploy.metadata import ExportMetadata
from pipeline.deploy.parity import centred_cosine
from pipeline.errors import ConfigError
from pipeline.quantisation import start
from pipeline.quantisation.job import QatJob, augment_config, run_qat, train_config
from pipeline.store.reader import StoreReader
from pipeline.students.saved import read_description
from pipeline.training.loop import TrainingStopped
from pipeline.training.metrics import read_metrics
from tests.quantisation.small_run import SmallRun, killed_at, stretch, trained_run

STEPS = 10


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """A run whose calibrated int8 file is bad: channels of one tensor differ a hundredfold."""
    run = trained_run(tmp_path_factory.mktemp("small"))
    stretch(run.folder, ("backbone.features.1", "backbone.features.4.weight"), 100.0)
    return run


@pytest.fixture(scope="module")
def whole(small: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[QatJob, artifact.Artifact]:
    """The job, done without a break."""
    job = small.job(tmp_path_factory.mktemp("whole"), **{"qat.steps": STEPS})
    return job, run_qat(job)


def integers(path: Path) -> dict[str, bytes]:
    return {t.name: numpy_helper.to_array(t).tobytes() for t in onnx.load(str(path)).graph.initializer}


def started(whole: Path, folder: Path) -> Path:
    """Give ``folder`` the exported and calibrated graphs of ``whole``, which take most of a short training's time."""
    folder.mkdir()
    for name in (start.FLOAT, start.PREPARED, start.INT8):
        shutil.copyfile(whole / name, folder / name)
    return folder


def test_training_mends_what_calibration_spoils(small: SmallRun, tmp_path: Path) -> None:
    """With the float32 student as its only target, the way back to it gets shorter, in the file too."""
    changes = {
        "qat.steps": 60, "qat.validate_every": 20, "qat.teacher_weight": 0, "qat.learning_rate": 2e-3,
        "qat.augment": "none", "export.per_channel": False, "export.bias_correction": False,
    }  # fmt: skip
    done = run_qat(small.job(tmp_path / "qat", **changes))
    before, after = done.summary["before"], done.summary["after"]
    assert before["centred_cosine"] < 0.99
    assert 1 - after["centred_cosine"] < 0.5 * (1 - before["centred_cosine"])
    losses = [
        line["validation_float_distance"]
        for line in read_metrics(tmp_path / "qat")
        if "validation_loss" in line
    ]
    assert losses[-1] < losses[0]
    assert done.summary["improved"]
    assert not done.summary["followed_teacher"]


def test_it_follows_the_teacher_and_says_what_came_of_it(whole: tuple[QatJob, artifact.Artifact]) -> None:
    job, done = whole
    assert done.kind == "qat"
    assert done.summary["followed_teacher"]
    assert done.summary["steps"] == STEPS
    assert set(done.summary["teacher_neighbour_overlap"]) == {"float", "before", "after"}
    assert done.summary["agreement"] > 0.999
    lines = read_metrics(job.folder)
    assert any({"feature", "float_distance", "loss"} <= set(line) for line in lines)
    assert {"validation_feature", "validation_float_distance", "effective_rank"} <= set(lines[-1])
    told = metadata_props.read(job.folder / "student_u8s8.onnx")
    assert (told["precision"], told["int8_method"], told["calibration"]) == ("u8s8", "qat", "trained")
    assert told["run_digest"] == job.inputs["run"]
    trained, calibrated = (integers(job.folder / name) for name in ("student_s8s8.onnx", start.INT8))
    scales = [name for name in trained if name.endswith("_scale")]
    assert len(scales) > 5
    assert all(trained[name] != calibrated[name] for name in scales)
    kernels = [name for name in trained if name.endswith("weight_quantized")]
    assert any(trained[name] != calibrated[name] for name in kernels)


def test_it_starts_at_what_calibration_alone_would_ship(
    small: SmallRun, whole: tuple[QatJob, artifact.Artifact], tmp_path: Path
) -> None:
    """Biases corrected: what training gains is told from there."""
    job, _ = whole
    settings = job.run.recipe.export
    rows = rows_for(
        StoreReader(small.store, frontend=job.inputs["frontend"], teacher=job.inputs["teacher"]), settings
    )
    begun = embed_rows(job.folder / start.INT8, rows.held_out)
    cosines = {}
    for corrected in (True, False):
        config = settings.model_copy(update={"int8_min_cosine": 0.0, "bias_correction": corrected})
        metadata = ExportMetadata(read_description(small.folder).frontend)
        int8.quantise(job.folder / start.FLOAT, tmp_path, rows=rows, config=config, metadata=metadata)
        cosines[corrected] = centred_cosine(begun, embed_rows(tmp_path / "student_s8s8.onnx", rows.held_out))
    # Not one: steps are made portable when a file is shipped.
    assert cosines[True] > 0.99
    assert cosines[True] > cosines[False] + 0.01


def test_it_starts_at_the_heads_that_the_run_trained(
    whole: tuple[QatJob, artifact.Artifact], small: SmallRun
) -> None:
    """The first batches' loss is near the run's last ones; a head at random would be far from it."""
    first = next(line for line in read_metrics(whole[0].folder) if "feature" in line)
    last = artifact.read(small.folder).summary["validation_feature"]
    assert first["feature"] < 1.25 * last


@pytest.mark.exhaustive
def test_killed_and_started_again_it_ends_with_the_same_file(
    whole: tuple[QatJob, artifact.Artifact], small: SmallRun, tmp_path: Path
) -> None:
    """kill -9 after update 6, the checkpoint being that of update 4."""
    job = small.job(started(whole[0].folder, tmp_path / "killed"), **{"qat.steps": STEPS})
    process = multiprocessing.get_context("spawn").Process(target=killed_at, args=(job.to_json(), 6))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not artifact.is_finished(job.folder)
    steps: list[int] = []
    run_qat(job, on_progress=lambda progress: steps.append(progress.step))
    assert steps[0] == 5
    for name in ("student_s8s8.onnx", "student_u8s8.onnx"):
        assert integers(job.folder / name) == integers(whole[0].folder / name)


def test_asked_to_stop_it_writes_a_checkpoint_and_a_finished_one_is_reused(
    whole: tuple[QatJob, artifact.Artifact], small: SmallRun, tmp_path: Path
) -> None:
    job = small.job(started(whole[0].folder, tmp_path / "stopped"), **{"qat.steps": STEPS})
    with pytest.raises(TrainingStopped) as stopped:
        run_qat(job, should_stop=lambda: True)
    assert stopped.value.step == 1
    assert (job.folder / "checkpoint.safetensors").is_file()
    again = run_qat(whole[0], on_progress=lambda progress: pytest.fail("trained twice"))
    assert again.provenance == whole[1].provenance


def test_a_run_of_labels_alone_follows_its_float_self_or_is_refused(small: SmallRun, tmp_path: Path) -> None:
    changes = {"train.control": "labels", "qat.steps": 1, "qat.student_weight": 0}
    with pytest.raises(ConfigError, match="nothing is followed"):
        run_qat(small.job(tmp_path / "labels", **changes))
    with pytest.raises(ConfigError, match="both 0"):
        small.job(tmp_path, **{"qat.teacher_weight": 0, "qat.student_weight": 0})


def test_the_loop_is_the_runs_own_but_for_what_qat_says(small: SmallRun) -> None:
    recipe = recipes.change(
        small.recipe, {"train.amp": "bfloat16", "train.ema_decay": 0.9, "qat.batch_size": 24}
    )
    found = train_config(recipe)
    assert (found.amp, found.compile, found.ema_decay, found.batch_size) == ("off", "off", 0.0, 24)
    assert (found.freq_mask_rows, found.steps) == (recipe.train.freq_mask_rows, recipe.qat.steps)
    changed = {"qat.augment": "none", "augment.gain_db": 3, "augment.view_target": "clean"}
    quiet = recipes.change(recipe, changed)
    assert augment_config(quiet).counted() == {"view_target": "clean"}
    still = train_config(quiet)
    assert (still.freq_mask_rows, still.time_mask_frames, still.roll_frames) == (0, 0, 0)


def test_the_jobs_text_is_the_whole_job(small: SmallRun, tmp_path: Path) -> None:
    job = small.job(tmp_path, **{"qat.seed": 3})
    again = QatJob.from_json(job.to_json())
    assert again == job
    assert again.work == job.work != small.job(tmp_path, **{"qat.seed": 4}).work
