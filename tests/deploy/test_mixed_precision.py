"""The sweep names the layer that int8 ruins; mixed precision keeps just that one, and never more than allowed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from pipeline.config import ExportConfig
from pipeline.deploy.calibration import CalibrationRows
from pipeline.deploy.fidelity import Fidelity, Judge, embed_rows
from pipeline.deploy.int8 import plan_precision
from pipeline.deploy.int8_graph import Calibrated, calibrate, write_quantised
from pipeline.deploy.layers import Layer, float_outputs, layers
from pipeline.deploy.mixed_precision import Budget, choose, int8_macs_share
from pipeline.deploy.sensitivity import sweep
from tests.deploy import onnx_nets

ROWS = 64


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Calibrated, np.ndarray]:
    """A chain whose third layer int8 ruins, and no other."""
    folder = tmp_path_factory.mktemp("net")
    inputs = onnx_nets.rows(ROWS)
    fp32 = onnx_nets.chain(folder / "fp32.onnx", dead=2_000.0)
    return fp32, calibrate(fp32, folder, inputs, ExportConfig()), inputs


def test_layers_have_the_counts_of_pencil_and_paper(net: tuple[Path, Calibrated, np.ndarray]) -> None:
    _, calibrated, inputs = net
    found = {layer.name: layer for layer in layers(calibrated.model, inputs[:1])}
    positions = onnx_nets.MELS * onnx_nets.FRAMES
    assert {n: (one.macs, one.parameters) for n, one in found.items() if one.macs} == {
        "first": (8 * 9 * positions, 72),
        "second": (8 * 9 * positions, 72),
        "third": (12 * 8 * positions, 96),
        "last": (6 * 12, 72),
    }
    assert found["third"].elements == 12 * positions
    assert found["all Relu"].nodes == ("relu_1", "relu_2")
    assert found["all Relu"].elements == 16 * positions


def test_the_sweep_names_the_layer_that_int8_ruins(
    net: tuple[Path, Calibrated, np.ndarray], tmp_path: Path
) -> None:
    fp32, calibrated, inputs = net
    judge = Judge(fp32, inputs)
    known = layers(calibrated.model, inputs[:1])
    swept = sweep(calibrated, known, judge, tmp_path, ops="conv_matmul", spared=True)
    assert next(one.layer.name for one in swept) == "third"
    by_name = {one.layer.name: one for one in swept}
    assert set(by_name) == {"first", "second", "third", "last"}
    assert by_name["third"].alone.centred_cosine < 0.9
    assert all(by_name[name].alone.centred_cosine > 0.99 for name in ("first", "second", "last"))
    # Sparing the culprit mends the file; sparing an innocent layer does not.
    spared = {name: one.spared.centred_cosine for name, one in by_name.items() if one.spared is not None}
    assert spared["third"] > 0.99
    assert all(spared[name] < 0.9 for name in ("first", "second", "last"))


def test_mixed_precision_keeps_just_that_layer(
    net: tuple[Path, Calibrated, np.ndarray], tmp_path: Path
) -> None:
    fp32, calibrated, inputs = net
    rows = CalibrationRows(inputs, inputs, "train")
    config = ExportConfig(int8_min_cosine=0.98, int8_ops="conv_matmul")
    plan = plan_precision(calibrated, tmp_path, rows, fp32, config)
    assert plan.keep_float == ("third",)
    assert plan.macs_share == pytest.approx(1 - 96 / (72 + 72 + 96 + 72 / 96), abs=1e-3)
    assert plan == plan_precision(calibrated, tmp_path, rows, fp32, config)


def test_sixteen_bits_mend_what_eight_ruin(tmp_path: Path) -> None:
    """One channel of an activation is 2,000 times the others."""
    inputs = onnx_nets.rows(ROWS)
    fp32 = onnx_nets.chain(tmp_path / "fp32.onnx", outlier=2_000.0)
    calibrated = calibrate(fp32, tmp_path, inputs, ExportConfig())
    judge, path = Judge(fp32, inputs), tmp_path / "file.onnx"
    found = {}
    for name, wide in {"eight": (), "sixteen": ("first", "second")}.items():
        write_quantised(calibrated, path, "s8s8", "conv_matmul", int16=wide)
        found[name] = judge.fidelity(path).centred_cosine
    assert found["eight"] < 0.9
    assert found["sixteen"] > 0.99
    model = onnx.load(str(path))
    types = {i.name: i.data_type for i in model.graph.initializer}
    wide_types = {
        node.input[0]: types[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"
    }
    assert wide_types["a"] == onnx.TensorProto.INT16 or wide_types["a.relu"] == onnx.TensorProto.INT16
    weights = onnx_nets.weights(path)
    assert {v.dtype for n, v in weights.items() if n.endswith("weight_quantized")} == {np.dtype(np.int8)}


def test_int8_is_what_numpy_makes_of_the_same_integers(
    net: tuple[Path, Calibrated, np.ndarray], tmp_path: Path
) -> None:
    """The first layer's Q/DQ by hand: ranges from the rows, a scale a channel, an int32 bias, rounding to even."""
    fp32, calibrated, inputs = net
    path = tmp_path / "first.onnx"
    write_quantised(calibrated, path, "s8s8", "conv_matmul", only=("first",))
    float_net = onnx_nets.weights(fp32)
    low, high = min(float(inputs.min()), 0.0), max(float(inputs.max()), 0.0)
    scale = np.float32((high - low) / 255)
    zero = np.rint(-128 - low / scale)
    codes = np.clip(np.rint(inputs / scale) + zero, -128, 127)
    kernel = float_net["first.weight"]
    kernel_scale = (np.abs(kernel).max(axis=(1, 2, 3)) / 127).astype(np.float32)
    kernel_codes = np.rint(kernel / kernel_scale[:, None, None, None])
    bias_codes = np.rint(float_net["first.bias"] / (scale * kernel_scale))
    padded = np.pad((codes - zero)[:, 0], ((0, 0), (1, 1), (1, 1)))
    sums = np.stack(
        [
            sum(
                kernel_codes[c, 0, i, j] * padded[:, i : i + onnx_nets.MELS, j : j + onnx_nets.FRAMES]
                for i in range(3)
                for j in range(3)
            )
            + bias_codes[c]
            for c in range(8)
        ],
        axis=1,
    )
    exact = sums * (scale * kernel_scale)[None, :, None, None]
    got = float_outputs(path, inputs, ("a",))["a"]
    np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-4 * np.abs(exact).max())


def layer(name: str, macs: int) -> Layer:
    return Layer(name, "Conv", (name,), macs, 0)


def test_the_choice_is_greedy_by_loss_per_operation_within_the_budget() -> None:
    known = [layer("a", 100), layer("b", 10), layer("c", 1_000), layer("d", 5), layer("e", 1)]
    losses = {"a": 0.05, "b": 0.04, "c": 0.3, "d": 0.0, "e": 0.00001}
    judged: list[tuple[str, ...]] = []

    def score(kept: tuple[Layer, ...]) -> Fidelity:
        judged.append(tuple(sorted(one.name for one in kept)))
        lost = sum(losses.values()) - sum(losses[one.name] for one in kept)
        return Fidelity(1 - lost, 1 - lost / 2)

    def kept(budget: Budget) -> list[str]:
        judged.clear()
        return [one.name for one in choose(known, lambda: losses, score, budget).kept]

    assert kept(Budget(min_cosine=0.5)) == []
    assert judged == [()], "nothing is swept where nothing is missing"
    # b stands first (0.004 an operation), then a (0.0005), c (0.0003), e; d costs nothing and stays int8.
    assert kept(Budget(min_cosine=0.64, min_macs_share=0.0)) == ["b"]
    assert kept(Budget(min_cosine=0.69, min_macs_share=0.0)) == ["b", "a"]
    # c alone would do: what was taken before it goes back.
    assert kept(Budget(min_cosine=0.9, min_macs_share=0.0)) == ["c"]
    # No more than 20 % of the MACs may go: c never fits, and the nearest to the limit is taken.
    assert set(kept(Budget(min_cosine=0.9, min_macs_share=0.8))) == {"a", "b", "e"}
    assert kept(Budget(min_cosine=0.0, max_overlap_loss=0.18, min_macs_share=0.0)) == ["b"]
    again = [kept(Budget(min_cosine=0.9, min_macs_share=0.0)) for _ in range(2)]
    assert again[0] == again[1]


def test_shares_are_of_macs() -> None:
    known = [layer("a", 30), layer("b", 70)]
    assert int8_macs_share(known, [known[0]]) == pytest.approx(0.7)
    assert int8_macs_share([], []) == 1.0


def test_a_quantised_layer_runs_on_integers_and_a_sixteen_bit_one_in_float(
    net: tuple[Path, Calibrated, np.ndarray], tmp_path: Path
) -> None:
    """What docs/int8.md says of ONNX Runtime's CPU provider."""
    _, calibrated, inputs = net

    def executed(wide: tuple[str, ...]) -> list[str]:
        path, optimised = tmp_path / "file.onnx", tmp_path / "optimised.onnx"
        write_quantised(calibrated, path, "u8s8", "conv_matmul", int16=wide)
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(optimised)
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        assert np.isfinite(embed_rows(path, inputs[:4])).all()
        return [node.op_type for node in onnx.load(str(optimised)).graph.node]

    assert executed(()).count("QLinearConv") == 3
    wide = executed(("first", "second", "third"))
    assert wide.count("QLinearConv") == 0
    assert wide.count("Conv") + wide.count("FusedConv") == 3
