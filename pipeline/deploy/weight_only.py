"""Weight-only files: weights in 8 or 4 bits, activations in float32. They save flash, not time.

ONNX Runtime computes their convolutions in float32; an 8-bit MatMul it fuses into ``MatMulNBits``, which rounds its
input to 8 bits too unless ``session.qdq_matmulnbits_accuracy_level`` is 1.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from jaxtyping import Float, Float32, Int8
from onnx import TensorProto, helper, numpy_helper, version_converter

from pipeline import artifact
from pipeline.deploy import metadata as metadata_props
from pipeline.deploy.bias_correction import correct_file
from pipeline.deploy.fidelity import Fidelity, Judge
from pipeline.deploy.layers import CONV_MATMUL
from pipeline.deploy.metadata import ExportMetadata

Bits = Literal[8, 4]
# Smaller tensors cost more in scales and nodes than they save.
LEAST_WEIGHTS = 64
# Weights that share a scale in 4 bits: half a byte each and one float32 for 32 of them, 5 bits a weight.
BLOCK = 32
INT4_OPSET = 21
CLIPS = np.linspace(0.5, 1.0, 26)


@dataclass(frozen=True)
class WeightOnly:
    """One weight-only file: a figure of size.

    Attributes:
        bits: of each quantised weight.
        file_bytes: size of the file; ``fp32_bytes``: of the float file.
        quantised_weights, float_weights: constants in ``bits`` bits, and those left in float32.
        fidelity: against the float file.
    """

    bits: Bits
    file_bytes: int
    fp32_bytes: int
    quantised_weights: int
    float_weights: int
    fidelity: Fidelity

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "figure": "size"}


def write_weight_only(
    fp32: Path,
    path: Path,
    bits: Bits,
    *,
    judge: Judge,
    metadata: ExportMetadata,
    log_mels: Float[np.ndarray, "rows 1 mels frames"] | None = None,
) -> WeightOnly:
    """Write ``fp32`` with its convolutions' and products' constant weights in ``bits`` bits; judge it.

    8 bits: one scale an output channel. 4 bits: one scale for 32 weights of an output channel (all of it where it
    has no more), clipped where that lowers the squared error. Symmetric. ``DequantizeLinear`` gives the float
    weights when the file is loaded; 4-bit types need opset 21, to which the graph is raised. With ``log_mels``
    (training rows) the layers' mean errors on them are taken off their biases.

    Raises:
        ParityError: the written file does not run.
    """
    model = onnx.load(str(fp32))
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if bits == 4 and opset < INT4_OPSET:
        model = version_converter.convert_version(model, INT4_OPSET)
    model.ir_version = max(model.ir_version, 10)
    quantised = _replace_weights(model.graph, bits)
    total = sum(
        math.prod(i.dims) for i in onnx.load(str(fp32)).graph.initializer if i.data_type == TensorProto.FLOAT
    )
    with artifact.replacing(path) as temporary:
        onnx.save(model, str(temporary))
        if log_mels is not None:
            correct_file(fp32, temporary, log_mels)
        metadata_props.embed(temporary, replace(metadata, precision=f"w{bits}").properties())
    return WeightOnly(
        bits, path.stat().st_size, fp32.stat().st_size, quantised, total - quantised, judge.fidelity(path)
    )


def _replace_weights(graph: onnx.GraphProto, bits: Bits) -> int:
    constants = {i.name: i for i in graph.initializer}
    done: dict[str, str] = {}
    added: list[onnx.NodeProto] = []
    number = 0
    for node in graph.node:
        if node.op_type not in CONV_MATMUL:
            continue
        for position, name in enumerate(node.input[:2]):
            tensor = constants.get(name)
            if (
                tensor is None
                or tensor.data_type != TensorProto.FLOAT
                or math.prod(tensor.dims) < LEAST_WEIGHTS
            ):
                continue
            if name not in done:
                weights = numpy_helper.to_array(tensor)
                new, nodes = _dequantised(name, weights, _output_axis(node, position, weights.ndim), bits)
                graph.initializer.extend(new)
                graph.initializer.remove(tensor)
                added += nodes
                done[name] = nodes[-1].output[0]
                number += weights.size
            node.input[position] = done[name]
    for place, made in enumerate(added):
        graph.node.insert(place, made)
    return number


def _output_axis(node: onnx.NodeProto, position: int, dims: int) -> int:
    """Return which axis of a layer's weights counts its outputs."""
    if node.op_type in ("Conv", "ConvTranspose"):
        return 0 if node.op_type == "Conv" else 1
    transposed = any(a.name == ("transA", "transB")[position] and a.i for a in node.attribute)
    is_last = (position == 1) != transposed
    return max(dims - (1 if is_last else 2), 0)


def _dequantised(
    name: str, weights: np.ndarray, axis: int, bits: Bits
) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto]]:
    """Return constants and nodes that give ``weights`` back from ``bits`` bits; the last node's output is them."""
    moved = np.moveaxis(weights, axis, 0)
    flat = np.ascontiguousarray(moved.reshape(len(moved), -1))
    blocked = bits == 4 and flat.shape[1] > BLOCK
    codes, scales = quantise_blocks(flat, bits, BLOCK if blocked else flat.shape[1])
    output = f"{name}_dequantised"
    if not blocked:
        codes = np.moveaxis(codes.reshape(moved.shape), 0, axis)
        made = [
            _tensor(codes, bits, f"{name}_codes"),
            numpy_helper.from_array(scales[:, 0], f"{name}_scales"),
        ]
        inputs = [constant.name for constant in made]
        return made, [helper.make_node("DequantizeLinear", inputs, [output], output, axis=axis)]
    shape = numpy_helper.from_array(np.array(moved.shape, np.int64), f"{output}_shape")
    made = [_tensor(codes, bits, f"{name}_codes"), numpy_helper.from_array(scales, f"{name}_scales")]
    inputs = [constant.name for constant in made]
    blocks = f"{output}_blocks"
    nodes = [
        helper.make_node("DequantizeLinear", inputs, [blocks], blocks, axis=1, block_size=BLOCK),
        helper.make_node("Reshape", [blocks, shape.name], [output], output),
    ]
    if axis:
        order = [*range(1, axis + 1), 0, *range(axis + 1, weights.ndim)]
        back = f"{output}_in_order"
        nodes.append(helper.make_node("Transpose", [output], [back], back, perm=order))
    return [*made, shape], nodes


def _tensor(codes: Int8[np.ndarray, "..."], bits: Bits, name: str) -> onnx.TensorProto:
    """Return the codes as ONNX stores them: a byte each, or two to a byte, the first in the low half."""
    if bits == 8:
        return numpy_helper.from_array(np.ascontiguousarray(codes), name)
    flat = codes.reshape(-1)
    halves = (np.append(flat, 0) if len(flat) % 2 else flat).astype(np.uint8) & 0xF
    packed = halves[0::2] | halves[1::2] << 4
    return helper.make_tensor(name, TensorProto.INT4, codes.shape, packed.tobytes(), raw=True)


def quantise_blocks(
    weights: Float[np.ndarray, "rows columns"], bits: Bits, block: int
) -> tuple[Int8[np.ndarray, "rows columns"], Float32[np.ndarray, "rows blocks"]]:
    """Return symmetric codes in [-(2^(bits-1) - 1), 2^(bits-1) - 1] and one scale a block of each row.

    In 4 bits each block takes, of 26 scales between half its largest weight's and that, the one with the
    least squared error.
    """
    rows, columns = weights.shape
    blocks = -(-columns // block)
    padded = np.zeros((rows, blocks * block), dtype=np.float64)
    padded[:, :columns] = weights
    parts = padded.reshape(rows, blocks, block)
    most = 2 ** (bits - 1) - 1
    largest = np.abs(parts).max(axis=2)
    best = np.where(largest > 0, largest, most).astype(np.float32) / most
    if bits == 4:
        error = np.full(best.shape, np.inf)
        whole = best.astype(np.float64)
        for clip in CLIPS:
            scale = (whole * clip).astype(np.float32)
            rebuilt = np.clip(np.rint(parts / scale[..., None]), -most, most) * scale[..., None]
            here = np.square(rebuilt - parts).sum(axis=2)
            best = np.where(here < error, scale, best)
            error = np.minimum(error, here)
    codes = np.clip(np.rint(parts / best[..., None]), -most, most).astype(np.int8)
    return codes.reshape(rows, -1)[:, :columns], best.astype(np.float32)
