"""The exported file: its names, its metadata, its numbers against torch, and the gate that refuses a bad one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from pipeline.config import LogMelConfig
from pipeline.deploy import metadata as metadata_props
from pipeline.deploy.onnx_export import EXPORT_BATCH, EXPORT_FRAMES, export_student
from pipeline.deploy.parity import BATCHES_AND_FRAMES, check_parity, check_runs, log_mel_inputs
from pipeline.errors import OssicleError, ParityError
from tests.deploy import tiny


def dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_axes_are_named_and_only_the_fixed_ones_are_fixed(fp32: Path) -> None:
    graph = onnx.load(str(fp32)).graph
    assert [i.name for i in graph.input] == ["log_mel"]
    assert [o.name for o in graph.output] == ["embedding"]
    assert dims(graph.input[0]) == ["batch", 1, tiny.MELS, "time"]
    assert dims(graph.output[0]) == ["batch", tiny.DIM]


def test_opset_is_the_one_asked_for(tmp_path: Path, student: tiny.TinyStudent, fp32: Path) -> None:
    export_student(student, tmp_path / "s.onnx", metadata=tiny.metadata(), opset=18)
    opsets = [
        next(o.version for o in onnx.load(str(p)).opset_import if o.domain == "")
        for p in (tmp_path / "s.onnx", fp32)
    ]
    assert opsets == [18, 20]


def test_metadata_carries_what_a_device_and_a_licence_need(fp32: Path) -> None:
    raw = {p.key: p.value for p in onnx.load(str(fp32)).metadata_props}
    assert LogMelConfig.model_validate(json.loads(raw["ossicle.frontend"])) == tiny.FRONTEND
    assert json.loads(raw["ossicle.normalisation"]) == {"mean": tiny.MEAN, "std": tiny.STD}
    assert raw["ossicle.embedding_dim"] == str(tiny.DIM)
    assert raw["ossicle.teacher_licence"] == "CC-BY-4.0"
    assert raw["ossicle.teacher_credit"] == "A. Author, 2024"
    assert raw["ossicle.run_digest"] == "ab" * 32
    assert raw["ossicle.precision"] == "fp32"
    assert raw["ossicle.version"]
    decoded = metadata_props.read(fp32)
    assert decoded["frontend"]["mels"] == tiny.MELS
    assert decoded["embedding_dim"] == tiny.DIM


def test_a_foreign_file_is_refused_with_the_command_that_makes_a_good_one(tmp_path: Path, fp32: Path) -> None:
    model = onnx.load(str(fp32))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "foreign.onnx"))
    with pytest.raises(OssicleError, match="no ossicle metadata") as caught:
        metadata_props.read(tmp_path / "foreign.onnx")
    assert caught.value.run == "ossicle export"


def test_no_path_of_this_machine_is_in_the_file(fp32: Path) -> None:
    content = fp32.read_bytes()
    for path in (Path.cwd(), Path(torch.__file__).parent, Path(tiny.__file__).parent):
        assert str(path).encode() not in content


def test_the_gate_uses_shapes_that_the_export_never_saw() -> None:
    assert (EXPORT_BATCH, EXPORT_FRAMES) not in BATCHES_AND_FRAMES
    assert EXPORT_FRAMES not in {frames for _, frames in BATCHES_AND_FRAMES}
    assert len({frames for _, frames in BATCHES_AND_FRAMES}) >= 6
    assert len({batch for batch, _ in BATCHES_AND_FRAMES}) >= 2


def test_the_gates_inputs_are_stored_rows_joined_in_time() -> None:
    rows = tiny.noise_rows()
    columns = {column.tobytes() for row in rows[:, 0] for column in row.T}
    made = log_mel_inputs(rows)
    assert [array.shape for array in made] == [(b, 1, tiny.MELS, t) for b, t in BATCHES_AND_FRAMES]
    assert all(column.tobytes() in columns for array in made for row in array[:, 0] for column in row.T)
    joined = np.concatenate([row[0] for row in rows], axis=1)
    np.testing.assert_array_equal(made[0][0, 0], joined[:, :64])
    assert not np.array_equal(made[3][0], made[3][1])


def test_parity_reports_the_difference_at_every_shape(student: tiny.TinyStudent, fp32: Path) -> None:
    inputs = log_mel_inputs(tiny.noise_rows())
    parity = check_parity(student, fp32, inputs, tolerance=1e-4)
    assert [s.shape for s in parity.shapes] == [(b, 1, tiny.MELS, t) for b, t in BATCHES_AND_FRAMES]
    # 1e-6 is what float32 sums in another order give; 0 everywhere would mean that nothing was compared.
    assert 0 < parity.worst < 1e-5
    largest = [float(student(torch.from_numpy(i)).detach().abs().max()) for i in inputs]
    assert [s.max_abs_output for s in parity.shapes] == pytest.approx(largest)


def test_a_changed_weight_is_refused_with_numbers(
    tmp_path: Path, student: tiny.TinyStudent, fp32: Path
) -> None:
    model = onnx.load(str(fp32))
    bias = next(i for i in model.graph.initializer if list(i.dims) == [tiny.DIM])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.01), bias.name))
    onnx.save(model, str(tmp_path / "changed.onnx"))
    with pytest.raises(ParityError, match="differs from torch") as caught:
        check_parity(student, tmp_path / "changed.onnx", log_mel_inputs(tiny.noise_rows()), tolerance=1e-4)
    assert "1.000e-02" in str(caught.value.got)


def test_a_baked_length_is_refused(tmp_path: Path) -> None:
    baked = tiny.BakedLength().eval()
    inputs = log_mel_inputs(tiny.noise_rows())

    def export_and_compare() -> None:
        # Some versions of the exporter refuse the branch themselves; both are a refusal with a reason.
        export_student(baked, tmp_path / "baked.onnx", metadata=tiny.metadata())
        check_parity(baked, tmp_path / "baked.onnx", inputs, tolerance=1e-4)

    with pytest.raises(OssicleError) as caught:
        export_and_compare()
    assert caught.value.expected is not None
    assert caught.value.got is not None


def test_a_file_of_another_width_is_refused(fp32: Path) -> None:
    with pytest.raises(ParityError, match="another output shape"):
        check_runs(fp32, log_mel_inputs(tiny.noise_rows()), embedding_dim=tiny.DIM + 1)


def test_an_input_it_cannot_take_is_a_parity_error(fp32: Path) -> None:
    with pytest.raises(ParityError, match="does not run"):
        check_runs(fp32, log_mel_inputs(tiny.noise_rows(tiny.MELS + 1)), embedding_dim=tiny.DIM)


def test_a_refused_network_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(OssicleError, match="refused DataDependent"):
        export_student(tiny.DataDependent().eval(), tmp_path / "s.onnx", metadata=tiny.metadata())
    assert list(tmp_path.iterdir()) == []


def test_an_operator_set_that_cannot_be_written_is_refused(tmp_path: Path, student: tiny.TinyStudent) -> None:
    with pytest.raises(OssicleError, match="operator set"):
        export_student(student, tmp_path / "s.onnx", metadata=tiny.metadata(), opset=3)
    assert list(tmp_path.iterdir()) == []
