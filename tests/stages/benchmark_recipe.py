"""A recipe whose exports are small graphs made on the spot, for the tests of the benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.config import LogMelConfig, Recipe, StudentConfig
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.registry import build_student
from pipeline.students.saved import save_student
from stages import locations
from tests.measure import graphs


def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Two students and a control; both students are exported."""
    made = Recipe.model_validate(
        {
            "name": "toy",
            "headline": "big",
            "paths": {"artifacts": tmp_path / "artifacts"},
            "embed": {"teacher": {"name": "tiny"}},
            "benchmark": {"latency_runs": 10, "latency_seconds": 0.5, "arm_cpus": ["cortex-a76"]},
            "runs": {
                "small": {"set": {"student.width": 0.25}, "seeds": [1, 2]},
                "big": {"set": {"student.width": 0.5}, "seeds": [1]},
                "untaught": {"set": {"train.control": "random"}, "seeds": [1]},
            },
        }
    )
    folders = {run.label: tmp_path / "artifacts/export" / run.label for run in recipes.expand(made)}
    for run in recipes.expand(made):
        if run.seed == 1 and run.recipe.train.control == "none":
            _export(folders[run.label], run.recipe.student)
    monkeypatch.setattr(locations, "export_folder", lambda run: folders[run.label])
    return made


def _export(folder: Path, config: StudentConfig) -> None:
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    frontend = LogMelConfig()
    student = NormalisedStudent(build_student(config, frontend.mels), -4.0, 3.0)
    save_student(folder, student, config, frontend)
    graphs.save_two_convolutions(folder / "student_fp32.onnx")
    graphs.save_int8(folder / "student_fp32.onnx", folder / "student_s8s8.onnx")
    graphs.save_int8(folder / "student_fp32.onnx", folder / "student_u8s8.onnx", signed=False)
    _save_frontend(folder / "frontend.onnx")
    reasons = {"s8s8": ["neighbour overlap 0.900 < 0.97", "file_bytes: 1.10 x float32's"]}
    measured = {"centred_cosine": 0.995, "neighbour_overlap": 0.9, "probe_drop": None}
    artifact.write_json(folder / "parity.json", {"student_s8s8": measured, "shipping": {"reasons": reasons}})
    artifact.finish(folder, kind="export", config={"width": config.width}, inputs={})


def _save_frontend(path: Path) -> None:
    node = helper.make_node("Unsqueeze", ["waveform", "axis"], ["rows"])
    conv = helper.make_node("Conv", ["rows", "dft"], ["log_mel"], strides=[320])
    weights: dict[str, Any] = {
        "axis": np.array([1], np.int64),
        "dft": np.random.default_rng(0).standard_normal((10, 1, 512)).astype(np.float32),
    }
    graphs.save(path, [node, conv], ("waveform", ["n", "s"]), ("log_mel", ["n", 10, "t"]), weights)
