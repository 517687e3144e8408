"""``ossicle qat`` and what ``ossicle export`` makes of it: missing, trained by a process, reused, shipped."""

from __future__ import annotations

import io
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper
from rich.console import Console

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.errors import ConfigError, MissingArtifactError
from pipeline.training.job import Job, run_job
from stages import export, locations, qat
from tests.training.small_store import small_recipe, write_store


def planted(folder: Path) -> Recipe:
    """Return a recipe whose manifest, store and one trained run are there; a control is not trained."""
    recipe = small_recipe(**{
        "paths.artifacts": folder, "jobs": 1, "runs": {"taught": {}, "floor": {"set": {"train.control": "random"}}},
        "train.steps": 8, "qat.steps": 3, "qat.warmup_steps": 1, "export.calibration_clips": 32,
        "export.int8_method": "qat",
    })  # fmt: skip
    artifact.finish(
        locations.manifest_folder(recipe), kind="manifest", config=locations.manifest_config(recipe), inputs={},
        summary={"content": "0" * 64},
    )  # fmt: skip
    write_store(locations.store_folder(recipe), recipe)
    return recipe


def console() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=220), text


def integers(path: Path) -> dict[str, bytes]:
    return {t.name: numpy_helper.to_array(t).tobytes() for t in onnx.load(str(path)).graph.initializer}


def test_trained_files_reach_the_export(tmp_path: Path) -> None:
    recipe = planted(tmp_path)
    run = recipes.expand(recipe)[0]
    with pytest.raises(MissingArtifactError, match="no trained run") as missing:
        qat.run(recipe, console=console()[0])
    assert "distill" in str(missing.value.run)
    with pytest.raises(ConfigError, match="tought"):
        qat.run(recipe, console=console()[0], only=("tought",))
    run_job(
        Job(
            run, locations.store_folder(recipe), locations.run_folder(run), locations.run_config(run),
            locations.run_inputs(run),
        )
    )  # fmt: skip
    with pytest.raises(MissingArtifactError) as untrained:
        export.run(recipe, console=console()[0])
    assert "ossicle qat" in str(untrained.value.run)

    out, text = console()
    folder = qat.run(recipe, console=out)
    assert folder == locations.qat_folder(run)
    done = artifact.read(folder)
    assert done.kind == "qat"
    assert done.inputs["run"] == artifact.read(locations.run_folder(run)).digest
    assert f"{done.summary['after']['centred_cosine']:.4f}" in text.getvalue()
    out, text = console()
    qat.run(recipe, console=out)
    assert "taught-seed0 is finished, reused" in text.getvalue()
    assert artifact.read(folder).provenance == done.provenance

    shipped = export.run(recipe, console=console()[0])
    assert artifact.read(shipped).inputs["qat"] == done.digest
    for name in ("student_s8s8.onnx", "student_u8s8.onnx"):
        assert integers(shipped / name) == integers(folder / name)
    calibrated = recipes.change(recipe, {"export.int8_method": "ptq"})
    assert locations.export_folder(recipes.expand(calibrated)[0]) != shipped


def test_later_keys_leave_the_names_of_older_exports(tmp_path: Path) -> None:
    recipe = small_recipe(**{"paths.artifacts": tmp_path})
    assert "int8_method" not in recipe.export.counted()
    assert recipes.change(recipe, {"export.int8_method": "qat"}).export.counted()["int8_method"] == "qat"
