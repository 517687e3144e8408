"""An exported ONNX file at one input shape, its shape arithmetic folded; and wholly in int8, where float is missing."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from jaxtyping import Float
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

from pipeline.deploy.onnx_export import quiet_exporter
from pipeline.deploy.tflite.convert import HANDLERS

# Operators whose integers TFLite has no kernel for: between DEQUANTIZE and QUANTIZE they compute in float.
FLOAT_ONLY = {
    "Sqrt", "Exp", "Abs", "Neg", "Log", "Gelu", "Reciprocal", "Pow", "Div", "InstanceNormalization",
    "LayerNormalization", "Expand", "ReduceL2",
}  # fmt: skip
STEPS = 255
LEAST = -128


def at_shape(path: Path, frames: int) -> onnx.ModelProto:
    """Return the graph of ``path`` for one clip of ``frames`` frames, constants folded, Q/DQ pairs as they were.

    Args:
        path: an exported student, (batch, 1, mels, time) or (batch, mels, time), batch and time dynamic.
        frames: of the log-mel.
    """
    model = onnx.load(str(path))
    dims = model.graph.input[0].type.tensor_type.shape.dim
    for dim, size in ((dims[0], 1), (dims[len(dims) - 1], frames)):
        dim.ClearField("dim_param")
        dim.dim_value = size
    del model.graph.value_info[:]
    for output in model.graph.output:
        first = output.type.tensor_type.shape.dim[0]
        first.ClearField("dim_param")
        first.dim_value = 1
    with tempfile.TemporaryDirectory(prefix="ossicle-shape-") as scratch:
        target = Path(scratch) / "fixed.onnx"
        options = onnxruntime.SessionOptions()
        # The first level folds constants and leaves the pairs around each node; the next would fuse them.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        fixed = onnx.load(str(target))
    fixed.metadata_props.extend(p for p in model.metadata_props if p not in fixed.metadata_props)
    _join_hard_swish(fixed.graph)
    return fixed


def _join_hard_swish(graph: onnx.GraphProto) -> None:
    """Write x * HardSigmoid(x), which ONNX Runtime makes of HardSwish, as HardSwish again: one table on NPUs."""
    gates = {n.output[0]: n for n in graph.node if n.op_type == "HardSigmoid"}
    readers = Counter(name for n in graph.node for name in n.input)
    for product in [n for n in graph.node if n.op_type == "Mul"]:
        for gate_name, x in (tuple(product.input), tuple(reversed(product.input))):
            gate = gates.get(gate_name)
            if gate is None or gate.input[0] != x or readers[gate_name] != 1:
                continue
            given = {a.name: onnx.helper.get_attribute_value(a) for a in gate.attribute}
            if abs(given.get("alpha", 0.2) - 1 / 6) > 1e-6 or given.get("beta", 0.5) != 0.5:
                continue
            joined = onnx.helper.make_node("HardSwish", [x], list(product.output), name=product.name)
            product.CopyFrom(joined)
            graph.node.remove(gate)
            break


def in_int8(
    fixed: onnx.ModelProto,
    log_mels: Float[np.ndarray, "rows 1 mels frames"],
    *,
    mean: float | None,
    std: float | None,
) -> onnx.ModelProto:
    """Return a float graph of one shape with every node in int8 that TFLite has in int8, input and output included.

    Activations are asymmetric, weights symmetric and per output channel, ranges the least and greatest of
    ``log_mels``. The input's integers and those of the normalised input are made the same ones (their steps divide the
    mean), so that normalisation costs no precision.

    Args:
        fixed: what :func:`at_shape` gives of a float file.
        log_mels: calibration rows of its shape.
        mean: subtracted from the log-mel inside the graph; None where the student normalises by itself.
        std: divides it after that.
    """
    operators = sorted({n.op_type for n in fixed.graph.node} & (HANDLERS.keys() - FLOAT_ONLY) | {"Div"})
    constants = {initializer.name for initializer in fixed.graph.initializer}
    divided = [n.name for n in fixed.graph.node if n.op_type == "Div" and n.input[1] not in constants]
    with tempfile.TemporaryDirectory(prefix="ossicle-int8-") as scratch, quiet_exporter():
        source = Path(scratch) / "float.onnx"
        onnx.save(fixed, str(source))
        with contextlib.redirect_stdout(io.StringIO()):
            calibrator = create_calibrator(
                source,
                operators,
                augmented_model_path=str(Path(scratch) / "augmented.onnx"),
                calibrate_method=CalibrationMethod.MinMax,
            )
            calibrator.collect_data(_OneByOne(fixed.graph.input[0].name, log_mels))
            ranges = calibrator.compute_data()
        extra: dict[str, Any] = {}
        overrides = _input_steps(fixed, log_mels, mean, std)
        if overrides:
            extra["TensorQuantOverrides"] = overrides
        quantizer = QDQQuantizer(
            load_model_with_shape_infer(source),
            True,
            False,
            QuantType.QInt8,
            QuantType.QInt8,
            ranges,
            [],
            divided,
            operators,
            extra,
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        made: onnx.ModelProto = quantizer.model.model
    return made


class _OneByOne(CalibrationDataReader):
    """ONNX Runtime's view of the calibration rows: the graph's batch is one."""

    def __init__(self, name: str, rows: np.ndarray) -> None:
        self._rest = iter([{name: row[None]} for row in rows])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next row as the graph's input, or None after the last."""
        return next(self._rest, None)


def _input_steps(
    fixed: onnx.ModelProto, log_mels: np.ndarray, mean: float | None, std: float | None
) -> dict[str, list[dict[str, Any]]]:
    """Return the integers of the input, and of it less its mean, and of that through the deviation: the same ones.

    Both 0 and the mean have to be one of the input's steps, the first as int8 wants it, the second because it is
    what a normalised 0 comes from.
    """
    nodes = fixed.graph.node
    if (
        mean is None
        or std is None
        or len(nodes) < 2
        or [nodes[0].op_type, nodes[1].op_type] != ["Sub", "Div"]
    ):
        return {}
    low = min(float(log_mels.min()), mean, 0.0)
    high = max(float(log_mels.max()), mean, 0.0)
    step = (high - low) / STEPS
    number = int(abs(mean) / step)
    if number:
        step = abs(mean) / number
    zero = int(np.clip(round(LEAST - low / step), LEAST, LEAST + STEPS))
    of_mean = zero + round(mean / step)
    if not LEAST <= of_mean <= LEAST + STEPS:
        of_mean = int(np.clip(of_mean, LEAST, LEAST + STEPS))
        zero = of_mean - round(mean / step)
    tensors = (
        (nodes[0].input[0], step, zero), (nodes[0].output[0], step, of_mean),
        (nodes[1].output[0], step / std, of_mean),
    )  # fmt: skip
    return {
        name: [
            {
                "quant_type": QuantType.QInt8,
                "scale": np.asarray(scale, np.float32),
                "zero_point": np.asarray(point, np.int8),
            }
        ]
        for name, scale, point in tensors
    }
