"""Small ONNX graphs whose costs can be worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

MELS, FRAMES = 64, 115
SHAPE = (1, 1, MELS, FRAMES)
CHANNELS = 24
# After the stride of 2: (64 + 2 - 3) // 2 + 1 rows and (115 + 2 - 3) // 2 + 1 columns.
ROWS, COLUMNS = 32, 58
FIRST_MACS = CHANNELS * ROWS * COLUMNS * 3 * 3
SECOND_MACS = CHANNELS * ROWS * COLUMNS * CHANNELS * 3 * 3
MACS = FIRST_MACS + SECOND_MACS


def value(seed: int = 0) -> np.ndarray:
    """Return an input of the graph."""
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def save_two_convolutions(path: Path) -> Path:
    """Write conv 1->24 stride 2, ReLU, conv 24->24, global mean, flatten."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((CHANNELS, 1, 3, 3)).astype(np.float32)
    second = (rng.standard_normal((CHANNELS, CHANNELS, 3, 3)) / 15).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["log_mel", "first"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["embedding"]),
    ]
    return save(
        path,
        nodes,
        ("log_mel", ["batch", 1, MELS, "time"]),
        ("embedding", ["batch", CHANNELS]),
        {"first": first, "second": second},
    )


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    source: tuple[str, list[int | str]],
    result: tuple[str, list[int | str]],
    weights: dict[str, np.ndarray],
) -> Path:
    """Write a float32 graph of one input and one output."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(source[0], TensorProto.FLOAT, source[1])],
        [helper.make_tensor_value_info(result[0], TensorProto.FLOAT, result[1])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


class _Calibration(CalibrationDataReader):
    def __init__(self) -> None:
        self._rows: Iterator[dict[str, np.ndarray]] = iter([{"log_mel": value(k)} for k in range(4)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rows, None)


def save_int8(source: Path, path: Path, *, signed: bool = True, ops: list[str] | None = None) -> Path:
    """Quantise ``source`` to QDQ int8 with signed or unsigned activations."""
    quantize_static(
        str(source),
        str(path),
        _Calibration(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=ops,
    )
    return path
