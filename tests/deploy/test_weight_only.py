"""Weight-only files: what is in them, and that ONNX Runtime reads what numpy wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from pipeline.deploy.fidelity import Judge, embed_rows
from pipeline.deploy.weight_only import BLOCK, quantise_blocks, write_weight_only
from tests.deploy import onnx_nets, tiny


def big(path: Path) -> Path:
    """Write a net whose layers have every form of weights: dense, depthwise, Gemm both ways, MatMul."""
    rng = np.random.default_rng(2)
    constants = {
        "dense.weight": rng.normal(0, 0.3, (24, 1, 5, 5)), "dense.bias": rng.normal(0, 0.1, 24),
        "depthwise.weight": rng.normal(0, 0.3, (24, 1, 3, 3)), "depthwise.bias": rng.normal(0, 0.1, 24),
        "wide.weight": rng.normal(0, 0.1, (48, 24, 3, 3)), "wide.bias": rng.normal(0, 0.1, 48),
        "as_is": rng.normal(0, 0.1, (48, 40)), "turned": rng.normal(0, 0.1, (40, 40)),
        "matrix": rng.normal(0, 0.1, (40, 16)), "small": rng.normal(0, 0.3, (16, 2)),
    }  # fmt: skip
    nodes = [
        onnx_nets.conv("dense", "log_mel", "a", pads=2),
        helper.make_node("Relu", ["a"], ["a.relu"]),
        onnx_nets.conv("depthwise", "a.relu", "b", groups=24),
        onnx_nets.conv("wide", "b", "c"),
        helper.make_node("GlobalAveragePool", ["c"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "as_is"], ["d"]),
        helper.make_node("Gemm", ["d", "turned"], ["e"], transB=1),
        helper.make_node("MatMul", ["e", "matrix"], ["f"]),
        helper.make_node("MatMul", ["f", "small"], ["embedding"]),
    ]
    return onnx_nets.save(path, nodes, {n: v.astype(np.float32) for n, v in constants.items()}, 2)


def in_float(path: Path, inputs: np.ndarray) -> np.ndarray:
    """Run a file without the 8-bit inputs that ONNX Runtime's fused product would take."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(["embedding"], {"log_mel": inputs})[0]
    return found


AXES = {"dense.weight": 0, "depthwise.weight": 0, "wide.weight": 0, "as_is": 1, "turned": 0, "matrix": 1}


def rounded(weights: np.ndarray, axis: int, bits: int) -> np.ndarray:
    """Round by loops: a scale a channel in 8 bits, of 32 weights in 4, the best of 26 clips of each."""
    most = 2 ** (bits - 1) - 1
    out = np.empty(weights.shape)
    for channel in range(weights.shape[axis]):
        index: list[object] = [slice(None)] * weights.ndim
        index[axis] = channel
        flat = weights[tuple(index)].astype(np.float64).reshape(-1)
        made = np.empty_like(flat)
        step = BLOCK if bits == 4 else len(flat)
        for first in range(0, len(flat), step):
            part = flat[first : first + step]
            candidates = []
            for clip in np.linspace(0.5, 1.0, 26) if bits == 4 else [1.0]:
                scale = np.abs(part).max() / most * clip
                back = np.clip(np.rint(part / scale), -most, most) * scale
                candidates.append((float(((back - part) ** 2).sum()), back))
            made[first : first + step] = min(candidates, key=lambda c: c[0])[1]
        out[tuple(index)] = made.reshape(weights[tuple(index)].shape)
    return out


@pytest.mark.parametrize("bits", [8, 4])
def test_the_file_computes_with_the_rounded_weights(tmp_path: Path, bits: int) -> None:
    fp32, inputs = big(tmp_path / "fp32.onnx"), onnx_nets.rows(12)
    path = tmp_path / "small.onnx"
    judge = Judge(fp32, inputs)
    report = write_weight_only(fp32, path, bits, judge=judge, metadata=tiny.metadata())  # type: ignore[arg-type]
    constants = onnx_nets.weights(fp32)
    by_hand = {n: rounded(v, AXES[n], bits) if n in AXES else v for n, v in constants.items()}
    model = onnx.load(str(fp32))
    want = onnx_nets.save(
        tmp_path / "hand.onnx",
        list(model.graph.node),
        {n: v.astype(np.float32) for n, v in by_hand.items()},
        2,
    )
    np.testing.assert_allclose(in_float(path, inputs), embed_rows(want, inputs), rtol=2e-4, atol=2e-5)

    types = {i.name: i.data_type for i in onnx.load(str(path)).graph.initializer}
    expected = TensorProto.INT8 if bits == 8 else TensorProto.INT4
    assert {n for n, t in types.items() if t == expected} == {f"{name}_codes" for name in AXES}
    assert report.quantised_weights == sum(constants[name].size for name in AXES)
    assert report.quantised_weights + report.float_weights == sum(v.size for v in constants.values())
    assert report.file_bytes == path.stat().st_size
    assert report.as_json()["figure"] == "size"
    assert report.fidelity == judge.fidelity(path)
    assert 0.5 < report.fidelity.centred_cosine < 1.0


def test_four_bits_take_about_five_eighths_of_a_byte(tmp_path: Path) -> None:
    fp32 = big(tmp_path / "fp32.onnx")
    judge = Judge(fp32, onnx_nets.rows(4))
    sizes = {
        bits: write_weight_only(fp32, tmp_path / "w.onnx", bits, judge=judge, metadata=tiny.metadata())
        for bits in (8, 4)
    }
    saved = sizes[8].file_bytes - sizes[4].file_bytes
    # 3/8 of a byte a weight: one byte and four a channel, against half a byte and four for 32 weights.
    assert saved == pytest.approx(0.375 * sizes[8].quantised_weights, rel=0.25)
    assert sizes[4].fidelity.centred_cosine < sizes[8].fidelity.centred_cosine


def test_codes_are_symmetric_and_constant_rows_survive() -> None:
    weights = np.array([[0.0, 0.0, 0.0], [1.0, -1.0, 0.5], [-3.0, 3.0, 3.0]])
    codes, scales = quantise_blocks(weights, 8, 3)
    np.testing.assert_array_equal(codes, [[0, 0, 0], [127, -127, 64], [-127, 127, 127]])
    np.testing.assert_allclose(codes * scales, weights, atol=1 / 254)
