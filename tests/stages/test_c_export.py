"""``ossicle c`` over one exported run: what is written, what it says of itself, what is reused and refused."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import artifact
from pipeline.config import StudentConfig
from pipeline.deploy.c import build
from pipeline.errors import MissingArtifactError, OssicleError
from pipeline.measure import arm_root, c_toolchain
from pipeline.students.saved import TeacherCredit, save_student
from stages import c_export
from tests.deploy import c_networks, tiny

LABEL = "distilled-seed0"
ROWS = 24


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random student's finished run, with its store and its int8 file beside it."""
    root = tmp_path_factory.mktemp("artifacts")
    splits = ["train", "train", "validation"] * (ROWS // 3)
    tiny.store(root / "store" / "windows-tiny", tiny.log_mels(ROWS), splits)
    store = artifact.read(root / "store" / "windows-tiny")
    student = c_networks.family("cnn4", width=0.25)
    run, export = root / "run" / LABEL, root / "export" / LABEL
    config = StudentConfig(name="cnn4", width=0.25)
    for folder in (run, export):
        save_student(folder, student, config, tiny.FRONTEND, TeacherCredit(name="aisfx", licence="CC-BY-4.0"))
    done = artifact.finish(run, kind="run", config={}, inputs={"store": store.digest})
    c_networks.quantised(student, export, dim=student.embedding_dim)
    artifact.finish(export, kind="export", config={}, inputs={"run": done.digest}, summary={"label": LABEL})
    return run


def written(run_folder: Path, **options: object) -> tuple[Path, str]:
    text = io.StringIO()
    folder = c_export.run(str(run_folder), console=Console(file=text, width=200), **options)  # type: ignore[arg-type]
    return folder, text.getvalue()


def test_headers_stand_alone_and_their_figures_are_said(run_folder: Path) -> None:
    folder, printed = written(run_folder)
    assert {path.name for path in folder.iterdir()} == {
        "ossicle_student.h", "ossicle_int8.h", "ossicle_frontend.h", "ossicle_log_mel.h", "ossicle_golden.h",
        "embed.c", "check.c", "c.json", "artifact.json",
    }  # fmt: skip
    record = json.loads((folder / "c.json").read_text(encoding="utf-8"))
    assert record["student"]["max_frames"] == tiny.FRAMES
    header = (folder / "ossicle_student.h").read_text(encoding="utf-8")
    assert f"#define OSSICLE_ARENA_BYTES {record['student']['arena_bytes']}\n" in header
    assert f"{record['student']['weight_bytes']:,}" in printed
    if build.compiler() is None:
        assert record["to_onnx_int8"] is None and "no C compiler" in printed
        return
    assert record["to_onnx_int8"]["rows"] == ROWS // 3
    assert record["to_onnx_int8"]["greatest_steps"] <= 1.001
    assert record["to_onnx_int8"]["centred_cosine"] >= 0.999


def test_what_is_there_is_reused_and_other_settings_stand_beside_it(run_folder: Path) -> None:
    folder, _ = written(run_folder)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again, printed = written(run_folder)
    assert again == folder and times == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert "weights, bytes of flash" in printed
    longer, _ = written(run_folder, max_frames=60)
    assert longer != folder
    assert "#define OSSICLE_MAX_FRAMES 60\n" in (longer / "ossicle_student.h").read_text(encoding="utf-8")


def test_instructions_are_counted_on_emulated_processors(run_folder: Path) -> None:
    if not (c_toolchain.is_ready("aarch64") and arm_root.is_ready()):
        pytest.skip("no aarch64 cross compiler and emulator unpacked: ossicle c RUN --arm fetches them")
    folder, printed = written(run_folder, arm=True)
    record = json.loads((folder / "c.json").read_text(encoding="utf-8"))
    by_cpu = {entry["cpu"]: entry for entry in record["arm"]}
    assert set(by_cpu) == set(c_export.CPUS)
    assert by_cpu["cortex-a76"]["dot"] > 0 == by_cpu["cortex-a72"]["dot"]
    assert by_cpu["cortex-a76"]["instructions"] < by_cpu["cortex-a72"]["instructions"]
    assert f"{by_cpu['cortex-a76']['instructions']:,}" in printed


def test_a_run_without_int8_or_in_float_is_refused(run_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    shutil.copytree(run_folder.parent.parent, root)
    shutil.rmtree(root / "c", ignore_errors=True)
    export = root / "export" / LABEL
    shutil.copy(export / "student_fp32.onnx", export / "student_s8s8.onnx")
    with pytest.raises(OssicleError, match="has no C form"):
        written(root / "run" / LABEL)
    assert not list((root / "c").glob("*/artifact.json"))
    (export / "student_s8s8.onnx").unlink()
    with pytest.raises(MissingArtifactError, match="no int8 file"):
        written(root / "run" / LABEL)
