"""Every kind of model that ``ossicle compare`` takes, beside the smallest student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from pipeline import artifact
from pipeline.audio.resampling import resample
from pipeline.config import LogMelConfig, Recipe, StudentConfig
from pipeline.evaluation.window_batch import SAMPLE_RATE_HZ, Windowing, clip_windows
from pipeline.frontends.log_mel import LogMel
from pipeline.measure.complexity import parameter_count
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.registry import build_student
from pipeline.students.saved import save_student
from stages import compare
from tests.compare.side_by_side import FRONTEND, WINDOW_SECONDS, call, literal_overlap
from tests.evaluation import stored

PATCH = 10


def embeddings(folder: Path, model: dict[str, Any], clips: Path) -> tuple[np.ndarray, list[str]]:
    names = sorted(line.split(",")[0] for line in clips.read_text().splitlines()[1:])
    paths = [clips.parent / name for name in names]
    return stored.vectors(folder.parents[1] / "embeddings", model["digest"], paths), names


def test_a_teacher_is_what_the_others_keep(recipe: Recipe, ours: str, clips: Path) -> None:
    folder, record, printed = call(recipe, [ours, "teacher:tiny"], manifest=clips)
    student, teacher = (model["key"] for model in record["models"])
    assert record["models"][1]["role"] == "teacher"
    scores = {(row["model"], row["probe"]): row for row in record["scores"]}
    for probe in ("knn", "linear"):
        best = scores[teacher, probe]
        assert best["retention"] is None
        assert scores[student, probe]["retention"] == pytest.approx(
            scores[student, probe]["score"] / best["score"]
        )
    assert "kept of the teacher's" in printed
    (row,) = record["structure"]
    spaces = [embeddings(folder, model, clips)[0].astype(np.float64) for model in record["models"]]
    assert row["neighbour_overlap"] == pytest.approx(literal_overlap(*spaces))
    cost = record["costs"][teacher]
    assert cost["x86"]["p50_ms"] > 0
    assert "KB, int8 and ARM not measured" in printed


def test_a_run_that_is_not_exported_has_scores_and_no_cost(
    recipe: Recipe, ours: str, clips: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "artifacts" / "run" / "small-seed0-1234"
    torch.manual_seed(0)
    config = StudentConfig(width=0.25)
    student = NormalisedStudent(build_student(config, FRONTEND.mels), -4.0, 3.0).eval()
    save_student(folder, student, config, FRONTEND)
    artifact.finish(folder, kind="run", config={}, inputs={})
    _, record, printed = call(recipe, [ours, str(folder)], manifest=clips)
    key = record["models"][1]["key"]
    assert {row["model"] for row in record["scores"]} == {model["key"] for model in record["models"]}
    assert record["models"][1]["dim"] == student.embedding_dim
    assert record["costs"][key]["not_measured"] == {"cost": "the run is not exported: ossicle export RECIPE"}
    assert "not exported" in printed
    assert parameter_count(student) > 0


def patch_model(path: Path) -> Path:
    """Write a file that hears patches of PATCH frames of 16 mels and gives their mean over time, twice."""
    nodes = [
        helper.make_node("ReduceMean", ["patch", "one"], ["mean"], keepdims=0),
        helper.make_node("Add", ["mean", "mean"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "patches",
        [helper.make_tensor_value_info("patch", TensorProto.FLOAT, ["batch", PATCH, 16])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor("one", TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


def test_a_file_that_hears_patches_of_its_own_log_mel(
    recipe: Recipe, ours: str, clips: Path, tmp_path: Path
) -> None:
    mel = LogMelConfig(
        sample_rate_hz=22_050, n_fft=1_024, window_length=1_024, hop_length=441, mels=16, center=False
    )
    table = tmp_path / "models.toml"
    lines = [
        f"{key} = {str(value).lower() if isinstance(value, bool) else value!r}"
        for key, value in mel.model_dump().items()
    ]
    table.write_text(
        f'["patches.onnx"]\nsample_rate_hz = 22050\ninput = "log_mel"\npatch_frames = {PATCH}\n'
        '["patches.onnx".log_mel]\n' + "\n".join(lines)
    )
    model = patch_model(tmp_path / "patches.onnx")
    folder, record, printed = call(
        recipe, [ours, str(model)], [], manifest=clips, contract=table, everywhere=()
    )
    key = record["models"][1]["key"]
    samples = round(WINDOW_SECONDS * mel.sample_rate_hz)
    patches = mel.frames(samples) // PATCH
    assert patches == 2
    assert record["costs"][key]["passes"] == patches
    assert f"a window takes {patches} passes of [1, {PATCH}, 16]" in printed
    got, names = embeddings(folder, record["models"][1], clips)
    windows = clip_windows(
        clips.parent / names[0], Windowing(WINDOW_SECONDS, recipe.evaluate.max_windows_per_clip)
    )
    want = []
    for window in windows:
        sound = resample(window, SAMPLE_RATE_HZ, mel.sample_rate_hz)
        level = LogMel(mel)(torch.from_numpy(sound)[None])[0].numpy()
        want.append(2 * level[:, : patches * PATCH].mean(axis=1))
    np.testing.assert_allclose(got[0], np.mean(want, axis=0), rtol=1e-5, atol=1e-5)
    assert (folder / compare.PAGE).is_file()
