"""Vela's estimates, read from what Vela writes; its MACs against a count by hand."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pipeline.deploy.runtimes.targets import ACCELERATORS, TARGETS, Target
from pipeline.deploy.runtimes.vela import compile_tflite
from pipeline.deploy.tflite.convert import convert
from pipeline.deploy.tflite.fixed_graph import in_int8
from pipeline.errors import OssicleError, UnknownNameError
from tests.deploy.tflite import graphs
from tests.deploy.tflite.operators import FLOAT, INTEGER

pytest.importorskip("ethosu.vela", reason="Vela is not installed: pip install 'ossicle[npu]'")


def written(name: str, folder: Path) -> Path:
    model = {**INTEGER, **FLOAT}[name]
    whole = in_int8(model, graphs.inputs(), mean=None, std=None)
    path = folder / "student_npu.tflite"
    path.write_bytes(convert(whole, ends="int8" if name in INTEGER else "float32").content)
    return path


def test_macs_of_a_convolution_are_those_of_a_hand_count(tmp_path: Path) -> None:
    path = written("conv", tmp_path)
    estimate = compile_tflite(path, tmp_path, Target("ethos-u55-128"))
    # 12 x 11 places, 8 channels out, 6 in, 3 x 3 taps.
    assert estimate.macs == 12 * 11 * 8 * 6 * 9
    assert estimate.cpu_operators == 0
    assert estimate.accelerator == "Ethos_U55_128" and estimate.clock_hz == 500e6
    assert estimate.kind == "estimate"
    assert estimate.milliseconds == pytest.approx(1000 * estimate.cycles / estimate.clock_hz, rel=0.01)
    # At most 128 a cycle, and the map and its padded copy do not fit into less than the map itself.
    assert estimate.cycles >= estimate.macs / 128
    assert estimate.sram_bytes >= 12 * 11 * (6 + 8)
    layers = list(csv.DictReader((tmp_path / "student_npu_ethos-u55-128.layers.csv").open()))
    assert [layer["Original Operator"] for layer in layers].count("Conv2D") == 1
    assert (tmp_path / "student_npu_ethos-u55-128.tflite").read_bytes()[4:8] == b"TFL3"


def test_floats_are_counted_where_they_run_on_the_processor(tmp_path: Path) -> None:
    estimate = compile_tflite(written("instance norm", tmp_path), tmp_path, Target("ethos-u65-256"))
    assert estimate.cpu_operators > 0
    assert estimate.accelerator == "Ethos_U65_256" and estimate.memory_mode == "Dedicated_Sram"


def test_a_system_that_vela_does_not_know_is_told(tmp_path: Path) -> None:
    target = Target("ethos-u55-128", memory_mode="Magnetic_Tape")
    with pytest.raises(OssicleError, match="Vela does not compile") as refused:
        compile_tflite(written("relu", tmp_path), tmp_path, target)
    assert "Magnetic_Tape" in str(refused.value)


def test_targets_are_known_by_name() -> None:
    with pytest.raises(UnknownNameError, match="no target is called 'ethos-u55-129'") as unknown:
        Target("ethos-u55-129")
    assert "ethos-u55-128" in str(unknown.value.expected)
    for name in TARGETS:
        target = Target(name)
        assert target.needs_executorch == name.startswith("executorch")
        assert (target.accelerator in ACCELERATORS) == (target.system is not None)
    assert Target("executorch-ethos-u65-256", system_config="Mine").system == ("Mine", "Dedicated_Sram")
