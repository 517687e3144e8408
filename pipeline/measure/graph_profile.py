"""What ONNX Runtime really executes: its optimised graph, node by node, with shapes and types as profiled."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from pipeline.errors import MeasurementError

_BITS = {
    "float": 32, "float16": 16, "bfloat16": 16, "double": 64, "int8": 8, "uint8": 8, "bool": 8, "int4": 4, "uint4": 4,
    "int16": 16, "uint16": 16, "int32": 32, "uint32": 32, "int64": 64, "uint64": 64,
}  # fmt: skip
# Which inputs of the quantised operators are numbers of the network, the others being scales and zero points.
_DATA_INPUTS = {
    "QLinearConv": (3, 8), "QLinearMatMul": (0, 3), "QGemm": (3, 6), "QLinearAdd": (0, 3), "QLinearMul": (0, 3),
    "ConvInteger": (0, 1), "MatMulInteger": (0, 1), "MatMulIntegerToFloat": (0, 1, 6),
    "DynamicQuantizeMatMul": (1, 4), "QuantizeLinear": (0,), "DequantizeLinear": (0,), "QLinearConcat": (),
    "QLinearSigmoid": (), "QLinearSoftmax": (), "QLinearLeakyRelu": (), "QLinearGlobalAveragePool": (),
    "QLinearAveragePool": (), "QLinearReduceMean": (), "QLinearWhere": (),
}  # fmt: skip
_FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.BFLOAT16,
)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a profiled node: ``dtype`` as ONNX Runtime calls it, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of the elements.

        Raises:
            MeasurementError: a type whose size is not known here (strings).
        """
        if self.dtype not in _BITS:
            raise MeasurementError(
                "a tensor has a type whose size is not known", expected=sorted(_BITS), got=self.dtype
            )
        return -(-self.elements * _BITS[self.dtype] // 8)


@dataclass(frozen=True)
class ExecutedNode:
    """One node of the optimised graph in the order it ran.

    Attributes:
        op: operator type, e.g. ``FusedConv`` or ``QLinearConv``.
        inputs, outputs: tensor names of the optimised graph.
        attributes: the node's attributes.
        input_info: inputs that held data at run time, constants that were packed away left out.
        output_info: outputs, in order.
        constants: shapes of the constant inputs, by name.
        name: as the exporter, the quantiser or a fusion called it.
        parameters: weights and biases among the constants; scales and zero points are none.
        microseconds: time in each profiled run, on this machine.
        place: of the node in the file of the optimised graph, whose order need not be the one it ran in.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    input_info: tuple[TensorInfo, ...]
    output_info: tuple[TensorInfo, ...]
    constants: dict[str, tuple[int, ...]]
    name: str = ""
    parameters: int = 0
    microseconds: tuple[float, ...] = ()
    place: int = 0


@dataclass(frozen=True)
class ExecutedGraph:
    """The nodes that ran, and the names and sizes of the graph's own inputs and outputs."""

    nodes: tuple[ExecutedNode, ...]
    inputs: dict[str, TensorInfo]
    outputs: tuple[str, ...]


def executed_graph(
    model: Path, value: np.ndarray, *, int8_everywhere: bool = True, runs: int = 1
) -> ExecutedGraph:
    """Run ``model`` on ``value`` and return what ran.

    Args:
        model: an ONNX file with one input.
        value: its input.
        int8_everywhere: run signed 8-bit nodes in int8 on x86 as ARM does; False = as x86 does by itself.
        runs: profiled runs; each node has its time in every one.

    The graph is optimised at ONNX Runtime's "extended" level: fusions are done, but layouts stay as exported,
    so that shapes can be read. Nodes are then named one by one and run as they are.
    """
    with tempfile.TemporaryDirectory(prefix="ossicle-profile-") as scratch:
        optimised = Path(scratch) / "optimised.onnx"
        graph, names = write_optimised(model, optimised, int8_everywhere=int8_everywhere)
        events = _profile(optimised, value, int8_everywhere, Path(scratch), runs)
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    by_name = {node.name: node for node in graph.graph.node}
    first: dict[str, dict[str, Any]] = {}
    times: dict[str, list[float]] = {}
    for event in events:
        key = event["name"].removesuffix("_kernel_time")
        first.setdefault(key, event)
        times.setdefault(key, []).append(float(event["dur"]))
    counted: set[str] = set()
    places = {key: place for place, key in enumerate(names)}
    nodes = tuple(
        replace(
            _node(by_name[key], names[key], event["args"], constants, counted, tuple(times[key])),
            place=places[key],
        )
        for key, event in first.items()
    )
    dtype = {np.dtype("float32"): "float"}.get(value.dtype, value.dtype.name)
    own = [entry.name for entry in graph.graph.input if entry.name not in constants]
    return ExecutedGraph(
        nodes,
        {own[0]: TensorInfo(dtype, tuple(value.shape))},
        tuple(entry.name for entry in graph.graph.output),
    )


def write_optimised(
    model: Path, path: Path, *, int8_everywhere: bool = True
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Write ``model`` as ONNX Runtime's "extended" level leaves it, its nodes renamed ``node0``, ``node1``, ...

    Returns:
        The written graph, and each node's name before.
    """
    options = _options(onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, int8_everywhere)
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(str(path))
    names: dict[str, str] = {}
    for index, node in enumerate(graph.graph.node):
        names[f"node{index}"] = node.name
        node.name = f"node{index}"
    onnx.save(graph, str(path))
    return graph, names


def _options(level: Any, int8_everywhere: bool) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if int8_everywhere:
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    return options


def _profile(
    model: Path, value: np.ndarray, int8_everywhere: bool, folder: Path, runs: int
) -> list[dict[str, Any]]:
    options = _options(onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, int8_everywhere)
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    for _ in range(runs):
        session.run(None, {session.get_inputs()[0].name: value})
    written = Path(session.end_profiling())
    events = json.loads(written.read_text(encoding="utf-8"))
    ran = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    if not ran:
        raise MeasurementError(
            f"ONNX Runtime's profile of {model.name} holds no node", got=f"{len(events)} events"
        )
    return ran


def _node(
    node: Any,
    name: str,
    arguments: dict[str, Any],
    constants: dict[str, onnx.TensorProto],
    counted: set[str],
    microseconds: tuple[float, ...],
) -> ExecutedNode:
    parameters = 0
    for position, key in enumerate(node.input):
        if key in constants and key not in counted and _is_parameter(node.op_type, position, constants[key]):
            counted.add(key)  # a tensor that two nodes share is the first one's
            parameters += math.prod(constants[key].dims)
    return ExecutedNode(
        op=node.op_type,
        inputs=tuple(node.input),
        outputs=tuple(name for name in node.output if name),
        attributes={a.name: onnx.helper.get_attribute_value(a) for a in node.attribute},
        input_info=_infos(arguments["input_type_shape"]),
        output_info=_infos(arguments["output_type_shape"]),
        constants={key: tuple(constants[key].dims) for key in node.input if key in constants},
        name=name,
        parameters=parameters,
        microseconds=microseconds,
    )


def _is_parameter(op: str, position: int, tensor: onnx.TensorProto) -> bool:
    if op in _DATA_INPUTS:
        return position in _DATA_INPUTS[op]
    return tensor.data_type in _FLOATS


def _infos(entries: list[dict[str, list[int]]]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(dtype, tuple(shape)) for entry in entries for dtype, shape in entry.items())
