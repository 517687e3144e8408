"""Small ONNX graphs, and the two interpreters that are compared on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from onnx import TensorProto, helper, numpy_helper

from pipeline.deploy.tflite.convert import Converted

SHAPE = (1, 6, 12, 11)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def node(op: str, inputs: Sequence[str], output: str | Sequence[str], **attributes: Any) -> onnx.NodeProto:
    outputs = [output] if isinstance(output, str) else list(output)
    return helper.make_node(op, list(inputs), outputs, name=f"{op}_{outputs[0]}", **attributes)


def graph(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, np.ndarray] | None = None,
    shape: Sequence[int] = SHAPE,
    opset: int = 20,
) -> onnx.ModelProto:
    """Return a checked model from ``input`` (``shape``) to ``y``, whose nodes read ``x``.

    ``x`` is the input times one, the same integers: ONNX Runtime quantises what only moves numbers where its operand
    is another operator's result.
    """
    constants = {"one": np.float32(1), **(constants or {})}
    made = helper.make_graph(
        [node("Mul", ["input", "one"], "x"), *nodes],
        "test",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model)
    return model


def inputs(shape: Sequence[int] = SHAPE, rows: int = 12, seed: int = 1) -> np.ndarray:
    """Return (rows, *shape[1:]) float32 around 0.3 with a spread of 2."""
    return (0.3 + 2 * rng(seed).standard_normal((rows, *shape[1:]))).astype(np.float32)


def run_onnx(model: onnx.ModelProto, rows: np.ndarray) -> np.ndarray:
    """Return ONNX Runtime's results, one row an inference, each node computed for itself."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.concatenate([session.run(None, {"input": row[None]})[0] for row in rows])


def run_tflite(content: bytes, rows: np.ndarray, *, reference: bool) -> np.ndarray:
    """Return LiteRT's results in real numbers, by its reference kernels or by XNNPACK."""
    kernels = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    interpreter = Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=kernels)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    found = []
    for row in rows:
        given = row[None]
        if source["dtype"] is np.int8:
            scale, zero = source["quantization"]
            given = np.clip(np.rint(given / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(source["index"], given)
        interpreter.invoke()
        got = interpreter.get_tensor(target["index"]).astype(np.float64)
        if target["dtype"] is np.int8:
            scale, zero = target["quantization"]
            got = (got - zero) * scale
        found.append(got)
    return np.concatenate(found)


def steps_apart(
    converted: Converted, model: onnx.ModelProto, rows: np.ndarray, *, reference: bool
) -> np.ndarray:
    """Return how many steps of the output LiteRT and ONNX Runtime differ by, an integer an element."""
    assert converted.output is not None
    want, got = run_onnx(model, rows), run_tflite(converted.content, rows, reference=reference)
    assert got.shape == want.shape
    return np.rint(np.abs(got - want) / converted.output.scale[0]).astype(int)


def write(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, str(path))
    return path
