"""One calibration of a float graph, and the Q/DQ files written from it."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from jaxtyping import Float
from onnxruntime.quantization import CalibrationMethod, QuantType, create_calibrator, quant_pre_process
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from pipeline.config import ExportConfig
from pipeline.deploy.calibration import BATCH_ROWS, LogMelBatches
from pipeline.deploy.equalisation import equalise
from pipeline.deploy.graph_islands import islands
from pipeline.deploy.layers import ALL_OPS, CONV_MATMUL
from pipeline.deploy.onnx_export import quiet_exporter

Precision = Literal["s8s8", "u8s8"]
Ops = Literal["all", "conv_matmul"]
# ONNX Runtime's entropy search at its default 128 bins returns MinMax's ranges; more bins make it a search.
CALIBRATORS: dict[str, tuple[CalibrationMethod, dict[str, Any]]] = {
    "minmax": (CalibrationMethod.MinMax, {}),
    "percentile": (CalibrationMethod.Percentile, {"percentile": 99.99, "symmetric": False}),
    "entropy": (CalibrationMethod.Entropy, {"num_bins": 2048, "num_quantized_bins": 128}),
}
# ONNX Runtime folds them into the layer that they follow.
FUSED_ACTIVATIONS = ("Relu", "Clip")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibrated:
    """The pre-processed float graph and the range of each of its tensors."""

    model: Path
    ranges: TensorsData
    symbolic_shapes: bool
    per_channel: bool


def calibrate(
    fp32: Path, work: Path, log_mels: Float[np.ndarray, "rows 1 mels frames"], config: ExportConfig
) -> Calibrated:
    """Pre-process ``fp32`` into ``work``, equalise it if asked, and find each tensor's range over ``log_mels``."""
    prepared = work / "prepared.onnx"
    symbolic = _symbolic_shapes_work(fp32)
    with quiet_exporter():
        quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=not symbolic)
    _name_nodes(prepared)
    if config.equalisation != "none":
        equalise(prepared, by=config.equalisation, log_mels=log_mels)
    method, options = CALIBRATORS[config.calibration]
    # The histogram calibrators print their progress.
    with contextlib.redirect_stdout(io.StringIO()):
        calibrator = create_calibrator(
            prepared,
            list(ALL_OPS),
            augmented_model_path=str(work / "augmented.onnx"),
            calibrate_method=method,
            extra_options=options,
        )
        for first in range(0, len(log_mels), BATCH_ROWS):
            # One reader a batch: the calibrators hold every activation of a reader at once.
            calibrator.collect_data(LogMelBatches(log_mels[first : first + BATCH_ROWS]))
        ranges = calibrator.compute_data()
    return Calibrated(prepared, _behind_activations(prepared, ranges), symbolic, config.per_channel)


def _behind_activations(path: Path, ranges: TensorsData) -> TensorsData:
    """Return the ranges with that of a ReLU's or Clip's only input as narrow as its output's.

    ONNX Runtime's quantiser does so where it quantises the activation; where only products are quantised, a layer
    would spend half of its integers on what the ReLU behind it throws away.
    """
    graph, found = onnx.load(str(path)).graph, dict(ranges.data)
    readers = Counter(name for node in graph.node for name in node.input)
    kept = {one.name for one in graph.output}
    for node in graph.node:
        given, made = node.input[0] if node.input else "", node.output[0]
        alone = readers[given] == 1 and given not in kept
        if node.op_type in FUSED_ACTIVATIONS and alone and given in found and made in found:
            found[given] = found[made]
    return TensorsData(ranges.calibration_method, found)


def write_quantised(
    calibrated: Calibrated,
    path: Path,
    precision: Precision,
    ops: Ops,
    keep_float: Sequence[str] = (),
    only: Sequence[str] = (),
    int16: Sequence[str] = (),
) -> None:
    """Write one Q/DQ file.

    Args:
        calibrated: graph and ranges.
        path: the file to write.
        precision: signed or unsigned activations; weights are signed.
        ops: which operator types are quantised.
        keep_float: names of nodes left in float, a ReLU or Clip right behind them with them.
        only: names of the only nodes quantised; empty = all of ``ops``.
        int16: names of nodes whose inputs and outputs are 16-bit, symmetric; their weights are int8. Opset 20 has
            no such type: every Q/DQ of the file is then ONNX Runtime's own operator.
    """
    activation = QuantType.QInt8 if precision == "s8s8" else QuantType.QUInt8
    operators = ALL_OPS if ops == "all" else CONV_MATMUL
    with quiet_exporter():
        model = load_model_with_shape_infer(calibrated.model)
        keep_float, int16 = (_with_activations(model.graph, names) for names in (keep_float, int16))
        keep_float += [name for name in islands(model.graph) if name not in keep_float]
        overrides = _sixteen_bit(model.graph, operators, keep_float, int16, activation) if int16 else {}
        quantizer = QDQQuantizer(
            model,
            calibrated.per_channel,
            False,
            QuantType.QInt8,
            activation,
            # The quantiser writes into what it is given.
            TensorsData(calibrated.ranges.calibration_method, dict(calibrated.ranges.data)),
            list(only),
            list(keep_float),
            list(operators),
            {"TensorQuantOverrides": overrides} if overrides else {},
        )
        quantizer.quantize_model()
        quantizer.model.save_model_to_file(str(path), False)


def _with_activations(graph: onnx.GraphProto, names: Sequence[str]) -> list[str]:
    """Return ``names`` and the activations right behind them: in int8 those would round what they are spared."""
    found = set(names)
    outputs = {name for node in graph.node if node.name in found for name in node.output}
    behind = [n.name for n in graph.node if n.op_type in FUSED_ACTIVATIONS and n.input[0] in outputs]
    return [*names, *(name for name in behind if name not in found)]


def _sixteen_bit(
    graph: onnx.GraphProto,
    operators: Sequence[str],
    keep_float: Sequence[str],
    int16: Sequence[str],
    activation: QuantType,
) -> dict[str, list[dict[str, Any]]]:
    """Return the 16-bit tensors: what the named nodes give, and what they take.

    A tensor that an 8-bit node gives stays 8-bit and is converted for them; what they give is converted for the
    8-bit nodes that take it. Nodes in float take it in 16 bits.
    """
    wide = set(int16)
    narrow = {n.name for n in graph.node if n.op_type in operators} - wide - set(keep_float)
    producer = {name: node for node in graph.node for name in node.output}
    consumers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, set()).add(node.name)
    constants = {i.name for i in graph.initializer}
    chosen = [node for node in graph.node if node.name in wide]
    tensors = [name for node in chosen for name in (*node.input, *node.output) if name not in constants]
    sixteen = {"quant_type": QuantType.QInt16, "symmetric": True}
    found: dict[str, list[dict[str, Any]]] = {}
    for name in dict.fromkeys(filter(None, tensors)):
        source = producer.get(name)
        takers = consumers.get(name, set())
        if source is not None and source.name in narrow:
            convert = {**sixteen, "recv_nodes": takers & wide}
            found[name] = [{"quant_type": activation, "convert": convert}]
        elif takers & narrow:
            convert = {"quant_type": activation, "recv_nodes": takers & narrow}
            found[name] = [{**sixteen, "convert": convert}]
        else:
            found[name] = [dict(sixteen)]
    return found


def _name_nodes(path: Path) -> None:
    """Give the nodes that pre-processing left without one a name: layers are chosen by it."""
    model = onnx.load(str(path))
    for number, node in enumerate(model.graph.node):
        if not node.name:
            node.name = f"{node.op_type}_unnamed_{number}"
    onnx.save(model, str(path))


def _symbolic_shapes_work(path: Path) -> bool:
    model = onnx.load(str(path))
    try:
        # Where it gives up, it leaves its graph in the current folder.
        with quiet_exporter(), tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
            SymbolicShapeInference.infer_shapes(model)
    except Exception as error:
        # An optional pass that raises bare Exception (MobileViT's unfold) or TypeError (reductions of opset
        # 18 and up) on good graphs; the exporter's own shapes stand in for it.
        log.info("%s: symbolic shape inference skipped: %s", path.name, error)
        return False
    return True
