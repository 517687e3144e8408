"""``ossicle quantise`` over an export: tables, the JSON behind them, files of few bits, and what is reused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pipeline import artifact
from pipeline.config import ExportConfig, StudentConfig
from pipeline.deploy import int8_study
from pipeline.errors import MissingArtifactError
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.registry import build_student
from pipeline.students.saved import TeacherCredit, save_student
from stages import quantise
from tests.deploy import onnx_nets, tiny


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A finished export of a hand-made net, and a store of 48 rows beside it."""
    folder = tmp_path / "export" / "tiny-seed0-0123"
    torch.manual_seed(0)
    config = StudentConfig(width=0.25)
    student = NormalisedStudent(build_student(config, tiny.MELS), tiny.MEAN, tiny.STD).eval()
    save_student(folder, student, config, tiny.FRONTEND, TeacherCredit(name="tiny", licence="CC0-1.0"))
    onnx_nets.chain(folder / "student_fp32.onnx", dead=2_000.0)
    settings = ExportConfig(calibration_clips=16).counted()
    artifact.finish(
        folder,
        kind="export",
        config={"export": settings},
        inputs={"run": "ab" * 32},
        summary={"label": "tiny-seed0"},
    )
    tiny.store(tmp_path / "store", tiny.log_mels(48), ["train", "train", "validation"] * 16)
    return folder


def run(export: Path, parts: tuple[str, ...], store: Path) -> tuple[Path, str]:
    text = io.StringIO()
    folder = quantise.run(str(export), console=Console(file=text, width=220), parts=parts, store=str(store))
    return folder, text.getvalue()


def test_every_part_is_told_written_and_reused(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("plain", "rows by cluster, drawn", "equalised by activations, bias corrected")
    monkeypatch.setattr(int8_study, "METHODS", {name: int8_study.METHODS[name] for name in few})
    folder, printed = run(export, int8_study.PARTS, tmp_path / "store")
    found = json.loads((folder / "quantisation.json").read_text())
    assert folder.parent == tmp_path / "quantisation"
    assert found["sensitivity"]["layers"][0]["name"] == "third"
    assert {one["name"] for one in found["sensitivity"]["layers"]} >= {"first", "second", "third", "last"}
    assert "third" in found["sensitivity"]["plan"]["keep_float"]
    assert [one["method"] for one in found["methods"]] == list(few)
    assert [one["bits"] for one in found["sizes"]] == [8, 4]
    for one in found["sizes"]:
        assert (folder / f"student_w{one['bits']}.onnx").stat().st_size == one["file_bytes"]
    assert found["rows"]["held_out_split"] == "validation"
    assert all(word in printed for word in ("third", *few, "4 bits", "out of int8"))

    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again, printed_again = run(export, int8_study.PARTS, tmp_path / "store")
    assert again == folder
    assert printed_again == printed
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times


def test_parts_are_chosen_and_others_left_out(export: Path, tmp_path: Path) -> None:
    assert int8_study.chosen_parts(False, False, True) == ("sizes",)
    assert int8_study.chosen_parts(False, False, False) == int8_study.PARTS
    folder, printed = run(export, ("sizes",), tmp_path / "store")
    assert set(json.loads((folder / "quantisation.json").read_text())) == {
        "rows",
        "probe_score_fp32",
        "sizes",
    }
    assert "third" not in printed


def test_what_is_not_there_is_told(export: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match="no run is at"):
        quantise.run(str(tmp_path / "nowhere"), console=Console(), parts=("sizes",))
    with pytest.raises(MissingArtifactError, match="store"):
        quantise.run(str(export), console=Console(file=io.StringIO()), parts=("sizes",))
