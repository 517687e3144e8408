"""The benchmark stage on a recipe whose exports are small graphs made on the spot."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.config import LogMelConfig, Recipe, StudentConfig
from pipeline.errors import MeasurementError, MissingArtifactError, MissingDependencyError
from pipeline.measure import arm, arm_root
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.registry import build_student
from pipeline.students.saved import save_student
from stages import benchmark, locations
from tests.measure import graphs


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
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
    artifact.finish(folder, kind="export", config={"width": config.width}, inputs={})


def _save_frontend(path: Path) -> None:
    import numpy as np
    from onnx import helper

    node = helper.make_node("Unsqueeze", ["waveform", "axis"], ["rows"])
    conv = helper.make_node("Conv", ["rows", "dft"], ["log_mel"], strides=[320])
    weights: dict[str, Any] = {
        "axis": np.array([1], np.int64),
        "dft": np.random.default_rng(0).standard_normal((10, 1, 512)).astype(np.float32),
    }
    graphs.save(path, [node, conv], ("waveform", ["n", "s"]), ("log_mel", ["n", 10, "t"]), weights)


def _run(recipe: Recipe, **options: Any) -> tuple[dict[str, Any], str]:
    stream = io.StringIO()
    folder = benchmark.run(recipe, console=Console(file=stream, width=200), **options)
    return json.loads((folder / "benchmark.json").read_text(encoding="utf-8")), stream.getvalue()


def _without_arm(recipe: Recipe) -> Recipe:
    return recipes.change(recipe, {"benchmark.arm": False})


def test_every_precision_has_a_row_beside_teacher_and_frontend(recipe: Recipe) -> None:
    record, printed = _run(_without_arm(recipe))
    students = [(r["model"], r["precision"], r["headline"]) for r in record["rows"] if r["kind"] == "student"]
    assert students == [(m, p, m == "big") for m in ("big", "small") for p in ("fp32", "s8s8", "u8s8")]
    assert [r["kind"] for r in record["rows"] if r["kind"] != "student"] == ["frontend", "teacher"]
    for row in record["rows"]:
        assert 0 < row["x86"]["p10_ms"] <= row["x86"]["p50_ms"] <= row["x86"]["p95_ms"]
        assert row["flops"] == 2 * row["macs"]
        assert "arm" in row["not_measured"]
    rows = {(r["model"], r["precision"]): r for r in record["rows"]}
    assert rows["big", "s8s8"]["int8_mac_share"] == 1.0
    assert rows["big", "fp32"]["executed_macs"] == graphs.MACS
    samples = round(recipe.embed.window_seconds * 16_000)
    assert rows["log-mel frontend", "fp32"]["macs"] == 10 * 512 * ((samples - 512) // 320 + 1)
    parameters = sum(p.numel() for p in build_student(StudentConfig(width=0.5), 64).parameters())
    assert rows["big", "fp32"]["parameters"] == parameters
    assert "benchmark.arm is false" in printed


def test_a_second_run_reuses_and_a_changed_setting_does_not(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = _run(_without_arm(recipe))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(benchmark, "_measure", refuse)
    again, printed = _run(_without_arm(recipe))
    assert again == first
    assert "reused" in printed
    with pytest.raises(AssertionError, match="measured again"):
        _run(recipes.change(_without_arm(recipe), {"benchmark.latency_runs": 11}))


def test_where_arm_cannot_be_emulated_the_rows_say_why(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(cache: Path | None = None) -> None:
        raise MissingDependencyError("cannot build the aarch64 root", got="apt-get is not installed")

    monkeypatch.setattr(arm_root, "prepare", refuse)
    monkeypatch.setattr(arm_root, "is_ready", lambda cache=None: False)
    monkeypatch.setattr(arm_root, "missing", lambda: "apt-get is not installed")
    record, printed = _run(recipe)
    for row in record["rows"]:
        assert "arm" not in row
        if row["precision"] in ("fp32", "s8s8") and row["kind"] == "student":
            assert "apt-get is not installed" in row["not_measured"]["arm"]
    assert "not measured: cannot build the aarch64 root: apt-get is not installed" in printed
    assert "reused" in _run(recipe)[1]
    # Once apt is there, the counts are worth another try.
    monkeypatch.setattr(arm_root, "missing", lambda: None)
    assert "reused" not in _run(recipe)[1]


def test_counts_and_failures_of_arm_stand_in_their_rows(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = {"equal": True, "max_abs_difference": 0.0, "cosine": 1.0, "believable": True}

    def count(model: Path, value: object, cpu: str, *, cache: Path | None) -> arm.ArmCount:
        if model.name == "frontend.onnx":
            raise MeasurementError("the emulated cortex-a76 did not finish", got="stopped")
        many = 4_000_000 if "s8s8" in model.name else 1_000_000
        return arm.ArmCount(cpu, many, 1, 0, 2, 3, 0, 0.0, 5, comparison)

    monkeypatch.setattr(arm, "count", count)
    monkeypatch.setattr(arm_root, "prepare", lambda cache=None: arm_root.ArmRoot(Path(), {"host": ["qemu"]}))
    monkeypatch.setattr(arm_root, "is_ready", lambda cache=None: True)
    record, printed = _run(recipe)
    rows = {(r["model"], r["precision"]): r for r in record["rows"]}
    assert rows["small", "s8s8"]["arm"]["cortex-a76"]["instructions"] == 4_000_000
    assert "u8s8" in rows["small", "u8s8"]["not_measured"]["arm"]
    assert "did not finish" in rows["log-mel frontend", "fp32"]["not_measured"]["arm cortex-a76"]
    assert "small on cortex-a76: int8 executes 4.00 x the instructions of float32: ship float32" in printed
    assert record["arm"]["packages"] == {"host": ["qemu"]}


def test_real_counts_where_qemu_can_be_had(recipe: Recipe) -> None:
    try:
        arm_root.prepare()
    except (MissingDependencyError, MeasurementError) as error:
        pytest.skip(f"no emulated ARM here: {error.problem}: {error.got}")
    record, printed = _run(recipes.change(recipe, {"runs": {"big": recipe.runs["big"].model_dump()}}))
    for row in record["rows"]:
        if row["kind"] == "student" and row["precision"] == "s8s8":
            assert row["arm"]["cortex-a76"]["comparison"]["equal"]
            assert row["arm"]["cortex-a76"]["instructions"] > graphs.MACS / 16
    assert "bit-equal" in printed


def test_a_board_gets_a_file_of_its_own(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_board(host: str, models: dict[str, Any], **_: object) -> dict[str, Any]:
        return {"host": host, "models": {name: {"p50_ms": 1.25} for name in models}}

    monkeypatch.setattr(benchmark.remote, "time_on_board", on_board)
    plain = _without_arm(recipe)
    _run(plain)
    _, printed = _run(plain, host="pi@board")
    assert "reused" in printed
    assert "1.25" in printed
    record = json.loads(
        (locations.benchmark_folder(plain) / "board-pi-board.json").read_text(encoding="utf-8")
    )
    fp32 = locations.export_folder(recipes.expand(recipe)[0]) / "student_fp32.onnx"
    assert record["models"]["small fp32"]["file_sha256"] == artifact.file_digest(fp32)


def test_nothing_exported_names_the_command(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(locations, "export_folder", lambda run: tmp_path / "absent")
    with pytest.raises(MissingArtifactError) as caught:
        _run(recipe)
    assert "ossicle export toy" in str(caught.value)
