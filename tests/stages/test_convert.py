"""``ossicle convert`` over one exported run: what is written, what it says of itself, what is reused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from pipeline import artifact
from pipeline.config import ExportConfig, StudentConfig
from pipeline.deploy.bundle import Job, export_run
from pipeline.deploy.parity import centred_cosine
from pipeline.deploy.runtimes.environment import EXECUTORCH, is_ready
from pipeline.deploy.sessions import open_session, run_session
from pipeline.errors import MissingArtifactError, ParityError, UnknownNameError
from pipeline.measure.arm_root import default_cache
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.registry import build_student
from pipeline.students.saved import TeacherCredit, save_student
from stages import convert
from tests.deploy import tiny
from tests.deploy.tflite import graphs

LABEL = "distilled-seed0"
ROWS = 48


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random student's finished run, with its store and its export beside it."""
    root = tmp_path_factory.mktemp("artifacts")
    tiny.store(
        root / "store" / "windows-tiny", tiny.log_mels(ROWS), ["train", "train", "validation"] * (ROWS // 3)
    )
    store = artifact.read(root / "store" / "windows-tiny")
    folder = root / "run" / LABEL
    torch.manual_seed(0)
    config = StudentConfig(width=0.25)
    student = NormalisedStudent(build_student(config, tiny.MELS), tiny.MEAN, tiny.STD)
    save_student(
        folder, student.eval(), config, tiny.FRONTEND, TeacherCredit(name="aisfx", licence="CC-BY-4.0")
    )
    run = artifact.finish(folder, kind="run", config={}, inputs={"store": store.digest})
    settings = ExportConfig(calibration_clips=16, int8_min_cosine=-1.0)
    export_run(
        Job(
            label=LABEL,
            run_folder=folder,
            store_folder=store.folder,
            folder=root / "export" / LABEL,
            settings=settings,
            config={"export": settings.counted(), "code": 1},
            inputs={"run": run.digest},
        )
    )
    return folder


def converted(run_folder: Path, *to: str, **options: int) -> tuple[Path, str]:
    text = io.StringIO()
    folder = convert.run(str(run_folder), console=Console(file=text, width=220), to=to, **options)
    return folder, text.getvalue()


def held_out() -> np.ndarray:
    return tiny.log_mels(ROWS)[2::3][:, None].astype(np.float16).astype(np.float32)


def test_litert_files_compute_what_the_onnx_files_do(run_folder: Path) -> None:
    folder, printed = converted(run_folder, "litert")
    assert {p.name for p in folder.iterdir()} == {
        "student_fp32.tflite", "student_int8.tflite", "runtime.json", "artifact.json",
    }  # fmt: skip
    export = run_folder.parent.parent / "export" / LABEL
    for name, source in (("student_fp32", "student_fp32"), ("student_int8", "student_s8s8")):
        got = graphs.run_tflite((folder / f"{name}.tflite").read_bytes(), held_out(), reference=False)
        session = open_session(export / f"{source}.onnx")
        want = np.concatenate([run_session(session, row[None]) for row in held_out()])
        assert centred_cosine(got.astype(np.float32), want) > (0.999999 if name == "student_fp32" else 0.999)
    record = json.loads((folder / "runtime.json").read_text())
    assert record["frames"] == tiny.FRAMES and record["compared_rows"] == len(held_out())
    by_name = {entry["precision"]: entry for entry in record["files"]}
    assert by_name["int8"]["to_onnx_int8"]["greatest_steps"] <= 2
    assert by_name["int8"]["bytes"] < by_name["fp32"]["bytes"] / 2
    assert by_name["fp32"]["to_fp32"]["neighbour_overlap"] == 1.0
    assert "student_int8.tflite" in printed and "steps" in printed


def test_an_npu_s_file_is_compiled_and_its_cost_called_an_estimate(run_folder: Path) -> None:
    pytest.importorskip("ethosu.vela", reason="Vela is not installed: pip install 'ossicle[npu]'")
    folder, printed = converted(run_folder, "ethos-u55-128")
    assert "estimates" in printed
    entry = json.loads((folder / "runtime.json").read_text())["files"][0]
    assert entry["float_nodes"] == [] and entry["estimate"]["cpu_operators"] == 0
    assert entry["estimate"]["kind"] == "estimate"
    assert (folder / "student_npu_ethos-u55-128.tflite").is_file()
    got = graphs.run_tflite((folder / "student_npu.tflite").read_bytes(), held_out(), reference=True)
    session = open_session(run_folder.parent.parent / "export" / LABEL / "student_fp32.onnx")
    want = np.concatenate([run_session(session, row[None]) for row in held_out()])
    assert entry["to_fp32"]["centred_cosine"] == pytest.approx(centred_cosine(got.astype(np.float32), want))

    times = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    again, _ = converted(run_folder, "ethos-u55-128")
    assert again == folder and times == {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    other, _ = converted(run_folder, "ethos-u55-128", held_out_clips=8)
    assert other != folder


def test_a_file_that_computes_something_else_is_refused(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.deploy.tflite import windows

    real = windows.zero_of
    # Convolutions padded with another number than 0.
    monkeypatch.setattr(windows, "zero_of", lambda value: real(value) + 40)
    with pytest.raises(ParityError, match=r"student_fp32\.tflite differs"):
        converted(run_folder, "litert", held_out_clips=9)


def test_wrong_names_and_unexported_runs_are_told(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="no target is called 'litret'"):
        converted(run_folder, "litret")
    with pytest.raises(MissingArtifactError, match="no run is at"):
        converted(tmp_path / "nowhere", "litert")


@pytest.mark.skipif(
    not is_ready(EXECUTORCH, default_cache()), reason="ExecuTorch's environment is not built: make runtimes"
)
@pytest.mark.slow
@pytest.mark.parametrize("target", ["executorch", "executorch-ethos-u55-128"])
def test_executorch_s_programs_are_close_to_the_float_file(run_folder: Path, target: str) -> None:
    folder, _ = converted(run_folder, target)
    record = json.loads((folder / "runtime.json").read_text())
    by_name = {entry["precision"]: entry for entry in record["files"]}
    assert by_name.keys() == ({"fp32", "int8"} if target == "executorch" else {"int8"})
    assert by_name["int8"]["to_fp32"]["centred_cosine"] > 0.98
    assert (folder / "student_int8.pte").read_bytes()[4:8].startswith(b"ET")
    assert ("estimate" in by_name["int8"]) == (target != "executorch")
