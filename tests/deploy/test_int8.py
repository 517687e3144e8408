"""Quantised files: what their numbers are made of, and that training rows alone made them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from pipeline.config import ExportConfig
from pipeline.deploy import int8
from pipeline.deploy import metadata as metadata_props
from pipeline.deploy.calibration import LogMelBatches, read_rows
from pipeline.deploy.layers import CONV_MATMUL
from pipeline.deploy.parity import centred_cosine, check_runs, log_mel_inputs
from pipeline.errors import ParityError, StoreError
from tests.deploy import tiny

ROWS = 48


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> int8.CalibrationRows:
    spectrograms = tiny.log_mels(ROWS)
    splits = ["validation" if row % 4 == 0 else "train" for row in range(ROWS)]
    reader = tiny.store(tmp_path_factory.mktemp("rows") / "store", spectrograms, splits)
    return read_rows(reader, calibration=ROWS)


@pytest.fixture(scope="module")
def quantised(
    fp32: Path, rows: int8.CalibrationRows, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[int8.Quantised]]:
    folder = tmp_path_factory.mktemp("int8")
    found = int8.quantise(fp32, folder, rows=rows, config=ExportConfig(), metadata=tiny.metadata())
    return folder, found


def initializers(path: Path) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(str(path)).graph.initializer}


def quantise_node(path: Path, source: str) -> tuple[float, int, np.dtype]:
    """Return scale, zero point and its type of the QuantizeLinear that reads tensor ``source``."""
    found = initializers(path)
    node = next(
        n for n in onnx.load(str(path)).graph.node if n.op_type == "QuantizeLinear" and n.input[0] == source
    )
    zero = found[node.input[2]]
    return float(found[node.input[1]]), int(zero), zero.dtype


def test_weights_are_int8_with_one_scale_a_channel(quantised: tuple[Path, list[int8.Quantised]]) -> None:
    found = initializers(quantised[0] / "student_s8s8.onnx")
    kernels = {tuple(v.shape): v.dtype for v in found.values() if v.ndim == 4}
    assert kernels == {(8, 1, 3, 3): np.int8, (12, 8, 3, 3): np.int8}
    scales = {len(v) for v in found.values() if v.dtype == np.float32 and v.ndim == 1}
    assert {8, 12} <= scales


@pytest.mark.parametrize(("precision", "dtype"), [("s8s8", np.int8), ("u8s8", np.uint8)])
def test_activations_have_the_type_that_the_name_says(
    quantised: tuple[Path, list[int8.Quantised]], precision: str, dtype: type
) -> None:
    graph = onnx.load(str(quantised[0] / f"student_{precision}.onnx")).graph
    found = {i.name: i.data_type for i in graph.initializer}
    types = {found[n.input[2]] for n in graph.node if n.op_type == "QuantizeLinear"}
    assert types == {TensorProto.INT8 if dtype == np.int8 else TensorProto.UINT8}


def test_the_input_range_is_that_of_the_training_rows(tmp_path: Path, fp32: Path) -> None:
    spectrograms = tiny.log_mels(16, seed=1)
    spectrograms[0::2, 0, 0] += 500.0
    splits = ["validation" if row % 2 == 0 else "train" for row in range(16)]
    rows = read_rows(tiny.store(tmp_path / "store", spectrograms, splits), calibration=100)
    assert len(rows.calibration) == len(rows.held_out) == 8
    int8.quantise(
        fp32, tmp_path, rows=rows, config=ExportConfig(int8_min_cosine=-1), metadata=tiny.metadata()
    )
    seen = (spectrograms[1::2].astype(np.float16).astype(np.float32) - tiny.MEAN) / tiny.STD
    low, high = min(float(seen.min()), 0.0), max(float(seen.max()), 0.0)
    path = tmp_path / "student_s8s8.onnx"
    conv = next(n for n in onnx.load(str(path)).graph.node if n.op_type == "Conv")
    dequantise = next(n for n in onnx.load(str(path)).graph.node if conv.input[0] in n.output)
    quantise = next(n for n in onnx.load(str(path)).graph.node if dequantise.input[0] in n.output)
    scale, zero, _ = quantise_node(path, quantise.input[0])
    assert scale == pytest.approx((high - low) / 255, rel=1e-5)
    assert zero == pytest.approx(-128 - low / scale, abs=0.51)


def test_metadata_survives_and_names_the_precision(quantised: tuple[Path, list[int8.Quantised]]) -> None:
    for precision in ("s8s8", "u8s8"):
        found = metadata_props.read(quantised[0] / f"student_{precision}.onnx")
        assert found["precision"] == precision
        assert found["normalisation"] == {"mean": tiny.MEAN, "std": tiny.STD}
        assert found["teacher_licence"] == "CC-BY-4.0"
        assert found["calibration"] == "minmax, 36 training rows"
        assert json.loads(found["kept_float"]) == []


def test_reported_cosine_is_that_of_the_files(
    fp32: Path, rows: int8.CalibrationRows, quantised: tuple[Path, list[int8.Quantised]]
) -> None:
    folder, found = quantised
    want = int8.embed_rows(fp32, rows.held_out)
    for report in found:
        got = int8.embed_rows(folder / f"student_{report.precision}.onnx", rows.held_out)
        assert report.centred_cosine == pytest.approx(slow_centred_cosine(got, want), abs=1e-6)
        assert report.compared_rows == 12
        assert report.compared_split == "validation"
        assert 0.99 <= report.centred_cosine < 1.0
        assert report.target_met


def slow_centred_cosine(got: np.ndarray, want: np.ndarray) -> float:
    mean = [math.fsum(column) / len(want) for column in want.T.tolist()]
    total = 0.0
    for g, w in zip(got.tolist(), want.tolist(), strict=True):
        a = [x - m for x, m in zip(g, mean, strict=True)]
        b = [x - m for x, m in zip(w, mean, strict=True)]
        dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
        total += dot / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))
    return total / len(want)


def test_centred_cosine_sees_what_the_plain_one_hides() -> None:
    rng = np.random.default_rng(0)
    want = 100.0 + rng.standard_normal((200, 8))
    got = 100.0 + rng.standard_normal((200, 8))
    plain = (got * want).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)
    assert plain.mean() > 0.999
    assert abs(centred_cosine(got, want)) < 0.2
    assert centred_cosine(want, want) == pytest.approx(1.0)
    with pytest.raises(ParityError):
        centred_cosine(want[:1], want[:1])


def test_both_files_run_at_other_lengths_and_batches(quantised: tuple[Path, list[int8.Quantised]]) -> None:
    inputs = log_mel_inputs(tiny.noise_rows())
    for precision in ("s8s8", "u8s8"):
        check_runs(quantised[0] / f"student_{precision}.onnx", inputs, embedding_dim=tiny.DIM)


def test_layers_are_left_in_float_until_the_cosine_is_reached(
    tmp_path: Path, fp32: Path, rows: int8.CalibrationRows, quantised: tuple[Path, list[int8.Quantised]]
) -> None:
    wanted = ExportConfig(int8_min_cosine=1.0)
    report = int8.quantise(fp32, tmp_path, rows=rows, config=wanted, metadata=tiny.metadata())[0]
    assert not report.target_met
    assert report.centred_cosine > quantised[1][0].centred_cosine
    graph = onnx.load(str(tmp_path / "student_s8s8.onnx")).graph
    dequantised = {o for n in graph.node if n.op_type == "DequantizeLinear" for o in n.output}
    fed = {n.name: set(n.input[:2]) <= dequantised for n in graph.node if n.op_type in CONV_MATMUL}
    in_float = [name for name, is_int8 in fed.items() if not is_int8]
    assert in_float == [name for name in report.kept_float if name in fed]
    assert len(in_float) == 1, "half of three layers"
    assert report.macs_share < 1
    assert json.loads(metadata_props.read(tmp_path / "student_s8s8.onnx")["kept_float"]) == list(
        report.kept_float
    )


def test_calibrations_differ_where_an_outlier_is(tmp_path: Path, fp32: Path) -> None:
    # One value in 61,440: the percentile cuts 0.005 % on each side, three values.
    spectrograms = tiny.log_mels(176, seed=2)
    spectrograms[5, 3, 3] = 60.0
    reader = tiny.store(tmp_path / "store", spectrograms, ["train"] * 160 + ["validation"] * 16)
    rows = read_rows(reader, calibration=160)
    scales = {}
    for calibration in ("minmax", "percentile", "entropy"):
        config = ExportConfig(calibration=calibration, int8_min_cosine=-1)
        folder = tmp_path / calibration
        int8.quantise(fp32, folder, rows=rows, config=config, metadata=tiny.metadata())
        graph = onnx.load(str(folder / "student_s8s8.onnx")).graph
        first = next(n.input[0] for n in graph.node if n.op_type == "QuantizeLinear")
        scales[calibration] = quantise_node(folder / "student_s8s8.onnx", first)[0]
    assert scales["percentile"] < 0.7 * scales["minmax"]
    assert scales["entropy"] < scales["minmax"]


def test_rejected_rows_are_never_used(tmp_path: Path) -> None:
    spectrograms = tiny.log_mels(20)
    splits = ["train"] * 12 + ["validation"] * 8
    reader = tiny.store(tmp_path / "store", spectrograms, splits, rejected=(0, 3, 13))
    rows = read_rows(reader, calibration=100)
    assert np.isfinite(rows.calibration).all()
    assert np.isfinite(rows.held_out).all()
    kept = spectrograms.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(rows.calibration[:, 0], np.delete(kept[:12], [0, 3], axis=0))
    np.testing.assert_array_equal(rows.held_out[:, 0], np.delete(kept[12:], [1], axis=0))


def test_without_validation_rows_other_training_rows_judge(tmp_path: Path) -> None:
    spectrograms = tiny.log_mels(20)
    reader = tiny.store(tmp_path / "store", spectrograms, ["train"] * 20)
    rows = read_rows(reader, calibration=100)
    assert rows.held_out_split == "train"
    assert len(rows.calibration) == 18
    assert not {row.tobytes() for row in rows.calibration} & {row.tobytes() for row in rows.held_out}


def test_a_store_too_small_to_judge_by_is_refused(tmp_path: Path) -> None:
    reader = tiny.store(tmp_path / "store", tiny.log_mels(2), ["train", "train"])
    with pytest.raises(StoreError, match="too few usable rows"):
        read_rows(reader, calibration=4)


def test_batches_are_the_rows_in_order() -> None:
    rows = tiny.log_mels(10)[:, None]
    reader = LogMelBatches(rows, batch_rows=4)
    for _ in range(2):
        batches = []
        while (batch := reader.get_next()) is not None:
            batches.append(batch["log_mel"])
        assert [len(b) for b in batches] == [4, 4, 2]
        np.testing.assert_array_equal(np.concatenate(batches), rows)
        reader.rewind()
