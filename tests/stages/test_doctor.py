"""The doctor looks, says what it finds, and changes nothing."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.measure import arm_root, machine
from pipeline.processor import processor
from stages import doctor


def _plan(stage: str) -> machine.Finding:
    return next(plan for plan in doctor.stage_plans() if plan.what == stage)


def test_every_stage_has_a_plan() -> None:
    stages = ["fetch", "manifest", "embed", "distill", "export", "evaluate", "benchmark", "report"]
    assert [plan.what for plan in doctor.stage_plans()] == stages


def test_it_prints_versions_teachers_and_students() -> None:
    import torch

    stream = io.StringIO()
    doctor.run(console=Console(file=stream, width=200))
    printed = stream.getvalue()
    for text in (torch.__version__, "aisfx", "micronet_m0", "free disk", "C compiler"):
        assert text in printed


def test_without_apt_it_names_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(arm_root, "is_ready", lambda cache=None: False)
    assert not _plan("fetch").well
    assert "AUDIO=folder" in _plan("fetch").found
    assert "apt-get is not installed" in _plan("benchmark").found


def test_without_extras_each_stage_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "is_importable", lambda module: False)
    for stage, extra in (
        ("embed", "audio"),
        ("export", "deploy"),
        ("benchmark", "deploy"),
        ("report", "report"),
    ):
        assert f"ossicle[{extra}]" in _plan(stage).found
        assert not _plan(stage).well
    assert "ossicle[speed]" in _plan("distill").found


def test_processor_features_are_read_from_cpuinfo(tmp_path: Path) -> None:
    (tmp_path / "x86").write_text("processor : 0\nflags : fpu avx2 avx512_vnni amx_int8\n", encoding="utf-8")
    (tmp_path / "arm").write_text("processor : 0\nFeatures : fp asimd asimddp\n", encoding="utf-8")
    assert machine.processor_features(processor(tmp_path / "x86")[1]) == ["AVX2", "VNNI", "AMX"]
    assert machine.processor_features(processor(tmp_path / "arm")[1]) == ["NEON", "dot product"]


def test_free_disk_of_a_folder_not_made_yet(tmp_path: Path) -> None:
    assert machine.free_gb(tmp_path / "not" / "there") == pytest.approx(machine.free_gb(tmp_path), rel=0.05)
