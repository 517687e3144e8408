"""int8 steps: statistics stay float, the past is 8 bits, the stream stays near float's; sound in, embeddings out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
from torch import nn

from pipeline.config import ExportConfig, LogMelConfig, StudentConfig
from pipeline.deploy import stream_graph
from pipeline.deploy.calibration import CalibrationRows
from pipeline.deploy.onnx_stream import Carried, OnnxStream
from pipeline.deploy.sound_stream import SoundStream
from pipeline.deploy.stream_bundle import write_streams
from pipeline.deploy.stream_export import timing_of
from pipeline.errors import ConfigError, MeasurementError
from pipeline.frontends.log_mel import LogMel
from pipeline.measure import streaming_cost
from pipeline.measure.complexity import count_macs
from pipeline.prototypes.bank import Features, PrototypeBank
from pipeline.prototypes.bank_stream import BankStream
from pipeline.prototypes.onnx_bank import write_bank
from pipeline.students import build_student
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.streaming import StreamingStep
from tests.deploy import tiny

FRONTEND = LogMelConfig(mels=tiny.MELS)


@pytest.fixture(scope="module")
def student() -> NormalisedStudent:
    torch.manual_seed(0)
    config = StudentConfig(name="cp_mobile_6k", width=0.5, causal=True)
    made = NormalisedStudent(build_student(config, tiny.MELS), tiny.MEAN, tiny.STD).train()
    with torch.no_grad():
        for layer in made.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0
        made(torch.from_numpy(tiny.log_mels(32)))
    return made.eval()


@pytest.fixture(scope="module")
def report(
    student: NormalisedStudent, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("export")
    rows = CalibrationRows(tiny.log_mels(40)[:, None], tiny.log_mels(24, seed=1)[:, None], "validation")
    found = write_streams(
        student, folder, rows=rows, inputs=[rows.held_out, rows.held_out[:1, :, :, :7]],
        settings=ExportConfig(int8_min_cosine=0.8), metadata=replace(tiny.metadata(), frontend=FRONTEND),
    )  # fmt: skip
    return folder, found


@pytest.fixture(scope="module")
def exported(report: tuple[Path, dict[str, Any]]) -> Path:
    return report[0] / "student_stream_fp32.onnx"


@pytest.fixture(scope="module")
def quantised(report: tuple[Path, dict[str, Any]]) -> dict[str, tuple[Path, dict[str, Any]]]:
    folder, found = report
    return {name: (folder / f"student_stream_{name}.onnx", one) for name, one in found["int8"].items()}


def test_the_folder_says_how_late_and_how_near(
    report: tuple[Path, dict[str, Any]], student: NormalisedStudent
) -> None:
    folder, found = report
    assert json.loads((folder / "student_stream.json").read_text(encoding="utf-8")) == json.loads(
        json.dumps(found)
    )
    assert found["parity"]["worst_relative"] <= found["parity"]["tolerance"]
    assert found["timing"]["algorithmic_ms"] == 32.0 and found["timing"]["longest_ms"] == 172.0
    assert found["state_bytes"] == OnnxStream(folder / "student_stream_fp32.onnx").state_bytes
    # Nothing of the whole clip is int8 in this folder: the streams are compared with float alone.
    assert found["int8"]["s8s8"]["cosine_to_whole"] is None


@pytest.mark.parametrize("precision", ["s8s8", "u8s8"])
def test_int8_follows_float_and_carries_a_past_of_8_bits(
    precision: str, quantised: dict[str, tuple[Path, dict[str, Any]]], exported: Path
) -> None:
    path, judged = quantised[precision]
    floats, small = OnnxStream(exported, batch=24), OnnxStream(path, batch=24)
    rows = tiny.log_mels(24, seed=1)
    floats.push(rows)
    small.push(rows)
    want, got = floats.finish().astype(np.float64), small.finish().astype(np.float64)
    a, b = got - want.mean(axis=0), want - want.mean(axis=0)
    centred = float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean())
    assert centred == pytest.approx(judged["centred_cosine"], abs=1e-6)
    assert centred >= 0.8
    pasts = [one for one in small.carried if one.name.endswith(".past")]
    others = [one for one in small.carried if not one.name.endswith(".past")]
    kind = "int8" if precision == "s8s8" else "uint8"
    assert {one.dtype for one in others} == {"float32"}
    assert sum(one.dtype == kind for one in pasts) >= len(pasts) - len(judged["kept_float"])
    assert small.state_bytes < 0.6 * floats.state_bytes
    for one in small.carried:
        output = next(o for o in small.session.get_outputs() if o.name == f"{one.name}.next")
        assert output.type == {"float32": "tensor(float)"}.get(one.dtype, f"tensor({one.dtype})")


def test_how_frames_are_portioned_does_not_change_an_int8_stream(
    quantised: dict[str, tuple[Path, dict[str, Any]]],
) -> None:
    path, _ = quantised["s8s8"]
    heard = np.concatenate([tiny.log_mels(1, seed=s) for s in range(4)], axis=2)
    at_once, in_parts = OnnxStream(path), OnnxStream(path)
    want = np.stack(at_once.push(heard))
    got = [e for part in np.array_split(heard, 17, axis=2) for e in in_parts.push(part)]
    np.testing.assert_array_equal(np.stack(got), want)
    # A stream that has forgotten nothing differs from a fresh one; reset makes it fresh.
    again = in_parts.push(heard[..., : in_parts.step_frames])
    assert np.abs(again[0] - want[0]).max() > 0
    in_parts.reset()
    np.testing.assert_array_equal(in_parts.push(heard[..., : in_parts.step_frames])[0], want[0])


def test_statistics_compute_in_float_and_convolutions_in_integers(
    quantised: dict[str, tuple[Path, dict[str, Any]]],
) -> None:
    path, judged = quantised["s8s8"]
    graph = onnx.load(str(path)).graph
    makers = {name: node for node in graph.node for name in node.output}
    small = [
        node for node in graph.node
        if node.op_type == "Conv" and makers.get(node.input[0], node).op_type == "DequantizeLinear"
    ]  # fmt: skip
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(small) == len(convolutions) - len(judged["kept_float"])
    for node in graph.node:
        if node.op_type == "MatMul":
            assert all(makers[name].op_type != "DequantizeLinear" for name in node.input if name in makers)
    # A mean moves by a ten-thousandth after ten thousand steps: the float statistic does, still.
    stream = OnnxStream(path)
    rows = tiny.log_mels(1, seed=3)
    for _ in range(40):
        stream.push(rows)
    before = {
        k: v.copy() for k, v in stream.feeds(rows[..., : stream.step_frames]).items() if k.endswith("mean")
    }
    stream.push(rows + 3.0)
    after = stream.feeds(rows[..., : stream.step_frames])
    assert any(np.abs(after[name] - value).max() > 0 for name, value in before.items())


def test_costs_of_a_block_are_torchs_and_the_int8_files_own(
    student: NormalisedStudent, exported: Path, quantised: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    step = StreamingStep(student, tiny.MELS)
    block = torch.zeros(1, 1, tiny.MELS, step.step_frames)
    cost = streaming_cost.step_cost(exported)
    assert cost.macs == count_macs(step, block, *step.initial(1)) and cost.int8_macs == 0
    assert cost.state_bytes == sum(value.nbytes for value in step.initial(1))
    assert cost.step_ms == step.step_frames * 20.0
    assert (cost.algorithmic_ms, cost.longest_ms) == (32.0, 32.0 + 7 * 20.0)
    small = streaming_cost.step_cost(quantised["s8s8"][0])
    assert small.macs == cost.macs and 0.5 * cost.macs < small.int8_macs <= cost.macs
    assert small.state_bytes == OnnxStream(quantised["s8s8"][0]).state_bytes
    row = streaming_cost.row_of(exported, runs=10, seconds=1.0)
    assert row["real_time_factor"] == row["p50_ms"] / 160.0 and row["ms_hop"] == row["p50_ms"] / 8
    assert row["kmacs_hop"] == cost.macs / 8 / 1e3


def test_the_streaming_table_holds_every_file_of_every_causal_export(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    exports = [("causal", "d1", exported.parent), ("plain", "d2", tmp_path / "plain")]
    assert streaming_cost.write_table(tmp_path, exports[1:], runs=5, seconds=0.2, recipe="r") is None
    written = streaming_cost.write_table(tmp_path, exports, runs=5, seconds=0.2, recipe="r")
    assert written is not None
    table = json.loads(written.read_text(encoding="utf-8"))
    assert (table["rows"][0]["model"], table["rows"][0]["precision"]) == ("causal", "fp32")
    assert {row["export_digest"] for row in table["rows"]} == {"d1"}
    keys = {column["key"] for column in table["columns"]}
    assert all(keys <= set(row) for row in table["rows"])


def test_the_file_says_how_late_it_is(student: NormalisedStudent, exported: Path) -> None:
    told = OnnxStream(exported).described["timing"]
    assert told == json.loads(json.dumps(timing_of(student, FRONTEND)))
    assert told["lookahead_frames"] == 0 and told["step_ms"] == 160.0 and told["window_ms"] == 32.0


def test_ten_minutes_of_sound_hop_by_hop_end_where_the_whole_sound_does(
    student: NormalisedStudent, exported: Path
) -> None:
    rng = np.random.default_rng(0)
    samples = 600 * FRONTEND.sample_rate_hz
    loudness = np.repeat(np.exp(rng.normal(-3.0, 1.0, samples // 8_000 + 1)), 8_000)[:samples]
    sound = (loudness * rng.standard_normal(samples)).astype(np.float32)[None]
    stream = SoundStream(exported)
    made: list[np.ndarray] = []
    # The first seconds hop by hop as a device hears them, the rest in longer portions, for time's sake.
    hops = range(0, 10 * FRONTEND.sample_rate_hz, FRONTEND.hop_length)
    for first in hops:
        made += stream.push(sound[:, first : first + FRONTEND.hop_length])
    for first in range(10 * FRONTEND.sample_rate_hz, samples, 77_777):
        made += stream.push(sound[:, first : first + 77_777])
    got = stream.finish()
    log_mel = LogMel(FRONTEND)(torch.from_numpy(sound))
    with torch.no_grad():
        want = student(log_mel).numpy()
        early = student(log_mel[..., :480]).numpy()
    scale = float(np.abs(want).max())
    assert len(made) == log_mel.shape[2] // 8
    assert np.abs(got - want).max() <= 1e-4 * scale
    assert np.abs(made[59] - early).max() <= 1e-4 * scale
    assert np.abs(early - want).max() > 1e-3 * scale


def test_wrong_files_are_one_clear_error(tmp_path: Path) -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["log_mel"], ["embedding"])], "plain",
        [onnx.helper.make_tensor_value_info("log_mel", onnx.TensorProto.FLOAT, [1, 1, 4, 8])],
        [onnx.helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, [1, 1, 4, 8])],
    )  # fmt: skip
    path = tmp_path / "plain.onnx"
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), str(path))
    with pytest.raises(ConfigError, match="no step of a stream"):
        OnnxStream(path)
    with pytest.raises(MeasurementError, match="no step of a stream"):
        streaming_cost.step_cost(path)
    with pytest.raises(MeasurementError, match=r"timing plain\.onnx failed"):
        streaming_cost.time_here(path, runs=5, seconds=0.2)


def test_a_carried_tensor_is_written_and_read_back() -> None:
    for one in (
        Carried("a.past", (-1, 2, 3), 0.0),
        Carried("b.steps", (-1, 1), -np.inf),
        Carried("c", (1,), 5.0, "int8"),
    ):
        again = Carried.of_json(json.loads(json.dumps(one.as_json())))
        assert again == one
        assert (again.first(4) == one.initial).all() and again.first(4).dtype == one.dtype


def test_what_is_infinite_before_the_first_step_is_never_quantised() -> None:
    # A maximum's past is minus infinity: a range that 8 bits cannot hold.
    maker = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node("Concat", ["m.steps", "x"], ["joined"], name="join", axis=3),
        onnx.helper.make_node("Relu", ["x"], ["y"], name="relu"),
    ]
    graph = onnx.helper.make_graph(
        nodes, "g",
        [maker("x", 1, [1, 1, 1, 4]), maker("m.steps", 1, [1, 1, 1, 2])],
        [maker("y", 1, [1, 1, 1, 4]), maker("joined", 1, [1, 1, 1, 6])],
    )  # fmt: skip
    lows = {"x": 0.0, "y": 0.0, "m.steps": -np.inf, "joined": -np.inf}
    ranges = TensorsData(
        CalibrationMethod.MinMax, {name: (np.float32(low), np.float32(1.0)) for name, low in lows.items()}
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    assert stream_graph.integer_nodes(model, ranges, all_ops=True) == ["relu"]


@pytest.mark.parametrize("precision", ["fp32", "s8s8"])
def test_a_class_is_learnt_while_the_stream_is_heard(
    precision: str, report: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    step = report[0] / f"student_stream_{precision}.onnx"
    kinds = [
        tiny.log_mels(8, seed=s) + 4.0 * np.sin(s + np.arange(tiny.MELS))[None, :, None] for s in (1, 2, 3)
    ]
    dim = OnnxStream(step).session.get_outputs()[0].shape[1]
    features = Features("cosine", np.zeros(dim, np.float32), np.ones(dim, np.float32))
    bank = PrototypeBank.empty("cosine", 3, dim)
    path = tmp_path / "bank.onnx"
    write_bank(step, path, features=features, bank=bank, classes=["a", "b", ""], int8=precision != "fp32")
    plain, learning = OnnxStream(step), BankStream(path)
    for slot, kind in enumerate(kinds):
        for clip in kind[:5]:
            learning.reset()
            plain.reset()
            learning.teaching = slot
            want = plain.push(clip[None])
            np.testing.assert_allclose(learning.push(clip[None]), want, atol=1e-5)
            bank = bank.enrolled(features(np.concatenate(want)), np.full(len(want), slot))
    learning.teaching = -1
    learnt = learning.bank["prototypes"].astype(np.float32)
    if precision != "fp32":
        learnt = learnt * learning.bank["scales"][:, None]
    np.testing.assert_array_equal(learning.bank["counts"], bank.counts)
    # Fifteen blocks a class: in 8 bits as many roundings, each of half a step at most, the earlier ones weighing less.
    allowed = 1e-4 if precision == "fp32" else 4.0 * float(np.abs(bank.prototypes).max()) / 127.0
    assert np.abs(learnt - bank.prototypes).max() <= allowed
    for clip in (clip for kind in kinds for clip in kind[5:]):
        learning.reset()
        plain.reset()
        learning.push(clip[None])
        x = features(np.concatenate(plain.push(clip[None])))
        assert len(learning.decisions) == len(x) == 3
        confidence = np.concatenate([decision.confidence for decision in learning.decisions])
        if precision == "fp32":
            classes = np.concatenate([decision.classes for decision in learning.decisions])
            np.testing.assert_array_equal(classes, bank.predict(x))
            np.testing.assert_allclose(confidence, bank.scores(x).max(axis=1), atol=1e-4)
        else:
            np.testing.assert_allclose(confidence, bank.scores(x).max(axis=1), atol=0.02)
    with pytest.raises(ConfigError, match="no bank of prototypes"):
        BankStream(step)
