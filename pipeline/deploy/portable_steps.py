"""Steps of int8 tensors with which every processor computes the same: no ties, and sums that are exact.

What ONNX Runtime computes in float32 between two int8 tensors it computes on ARM in another order than on x86:

- ``QLinearMul`` and ``QLinearAdd`` multiply and add in one rounding on ARM, in two on x86. Where two integers lead to
  within that error of a half, one rounds up and the other down. An output step larger by some ten-thousandths has no
  such pair of integers. (Of a MobileViT's 64 products one made all of what ARM and x86 differed by: eight elements
  of 6,144, which each attention layer behind it multiplied; docs/int8.md.)
- means and sums are taken in different parts. A step of few mantissa bits makes each term and each partial sum a
  float32 number, and the order does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Float
from onnx import numpy_helper
from onnxruntime.quantization.calibrate import TensorData, TensorsData

from pipeline.deploy.int8_graph import Calibrated, Ops, write_quantised

ROUNDED_IN_FLOAT, SUMMED = ("Mul", "Add"), ("ReduceMean", "ReduceSum")
# Of the magnitudes that are added: float32's error of the three operations of a kernel, in any order.
RELATIVE_ERROR = 2.0**-23
FINEST_CHANGE, MOST_CHANGES = 2.0**-14, 1024
# With integers of 8 bits, 1,024 of the largest are summed in float32's 24 bits; fewer where every step of six bits has
# ties, but the values that are averaged are mostly far from the largest.
SUMMED_MANTISSA_BITS = range(6, 12)
WIDEST = 1.06
# Scale initializers of ONNX Runtime's quantiser: the tensor's name and this.
STEP_SUFFIX = "_scale"
ROUNDS = 4
# A range becomes a step by float32 arithmetic, and misses the one aimed at by so much.
LAST_BITS = 1e-6


@dataclass(frozen=True)
class Levels:
    """The integers of one tensor: the name of its step's initializer, its zero point (whose type is the range)."""

    step: str
    zero: np.ndarray

    @property
    def integers(self) -> Float[np.ndarray, " levels"]:
        """Return all of them, the zero point taken off."""
        limits = np.iinfo(self.zero.dtype)
        return np.arange(int(limits.min), int(limits.max) + 1, dtype=np.float64) - float(self.zero)


@dataclass(frozen=True)
class FloatLayer:
    """An 8-bit product or sum of two tensors (``Mul``, ``Add``)."""

    kind: str
    inputs: tuple[Levels, Levels]
    output: Levels


def made_portable(
    calibrated: Calibrated,
    work: Path,
    ops: Ops,
    keep_float: Sequence[str] = (),
    *,
    int16: Sequence[str] = (),
) -> Calibrated:
    """Return the calibration with some ranges a little wider, so that its steps are portable but for their last bits.

    ``settle`` gives a file written from it those.

    Args:
        calibrated: graph and ranges; neither is changed.
        work: folder of the file that is tried.
        ops, keep_float, int16: as for ``write_quantised``.
    """
    trial = work / "portable.onnx"
    for _ in range(ROUNDS):
        write_quantised(calibrated, trial, "s8s8", ops, keep_float, int16=int16)
        model = onnx.load(str(trial))
        before = {tensor.name: tensor for tensor in model.graph.initializer}
        factors = {
            name.removesuffix(STEP_SUFFIX): wanted / float(numpy_helper.to_array(before[name]).item())
            for name, wanted in portable_steps(model).items()
        }
        if all(abs(factor - 1) <= LAST_BITS for factor in factors.values()):
            break
        calibrated = replace(calibrated, ranges=_widened(calibrated.ranges, factors))
    return calibrated


def settle(model: onnx.ModelProto) -> None:
    """Give the Q/DQ graph its portable steps, in place.

    Biases keep their own steps: the graph is one whose steps were portable but for their last bits.
    """
    wanted = portable_steps(model)
    for tensor in model.graph.initializer:
        if tensor.name in wanted:
            old = numpy_helper.to_array(tensor)
            new = np.full(old.shape, wanted[tensor.name], dtype=old.dtype)
            tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))


def settle_file(path: Path) -> None:
    """``settle`` the file at ``path`` in place."""
    model = onnx.load(str(path))
    settle(model)
    onnx.save(model, str(path))


def _widened(ranges: TensorsData, factors: dict[str, float]) -> TensorsData:
    widened = {}
    for name, found in ranges.data.items():
        low, high = (np.asarray(end) for end in found.range_value)
        factor = factors.get(name, 1.0)
        widened[name] = TensorData(
            lowest=(low * factor).astype(low.dtype), highest=(high * factor).astype(high.dtype)
        )
    return TensorsData(ranges.calibration_method, widened)


def portable_steps(model: onnx.ModelProto) -> dict[str, float]:
    """Return the steps with which every processor computes the same, of those that must change.

    Args:
        model: a Q/DQ graph. Tensors of 16 bits and with a step a channel are passed over.

    Returns:
        Name of the step's initializer to the step: larger by 0.006 to 6 %, or by float32's last bits.
    """
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    layers = {layer.output.step: layer for layer in _float_layers(model.graph, stored, made_by)}
    summed = _summed_steps(model.graph, stored, made_by)
    found: dict[str, float] = {}

    def now(name: str) -> float:
        return found.get(name, float(stored[name].item()))

    # In the graph's order: what a layer takes is settled before what it gives.
    for name in [*layers, *(step for step in summed if step not in layers)]:
        layer, step = layers.get(name), now(name)
        candidates = list(_candidates(step, name in summed))
        inputs = [] if layer is None else [now(one.step) for one in layer.inputs]
        # Where none is without ties, a sum is exact all the same, or the step stays.
        best = next(
            (one for one in candidates if layer is None or not has_ties(layer, inputs, one)), candidates[0]
        )
        if best != step:
            found[name] = best
    return found


def _candidates(step: float, summed: bool) -> Iterator[float]:
    """Yield steps from ``step`` on, as float32 has them; for sums, those of few mantissa bits, the fewest first."""
    if not summed:
        yield from (float(np.float32(step * (1 + change * FINEST_CHANGE))) for change in range(MOST_CHANGES))
        return
    for bits in SUMMED_MANTISSA_BITS:
        unit = 2.0 ** (math.frexp(step)[1] - bits)
        first, last = math.ceil(step / unit * (1 - LAST_BITS)), math.floor(step / unit * WIDEST)
        yield from (number * unit for number in range(first, max(first, last) + 1))


def has_ties(layer: FloatLayer, input_steps: Sequence[float], step: float) -> bool:
    """Whether two integers lead to within float32's error of a half, inside the output's range.

    Args:
        layer: the product or sum.
        input_steps: of its inputs; step: of its output.
    """
    first, second = (
        one / step * levels.integers for one, levels in zip(input_steps, layer.inputs, strict=True)
    )
    zero = layer.output.zero
    if layer.kind == "Mul":
        value = np.multiply.outer(first, second) * step
        magnitude = np.abs(value)
    else:
        value = np.add.outer(first, second)
        # The kernel takes the zero points off the sum, not off each integer.
        magnitude = np.add.outer(
            *(
                ratio * (np.abs(levels.integers + float(levels.zero)) + abs(float(levels.zero)))
                for ratio, levels in zip((one / step for one in input_steps), layer.inputs, strict=True)
            )
        )
    value = value + float(zero)
    limits = np.iinfo(zero.dtype)
    inside = (value > float(limits.min)) & (value < float(limits.max))
    distance = np.abs(value - np.floor(value) - 0.5)
    return bool((inside & (distance <= RELATIVE_ERROR * (magnitude + abs(float(zero)) + 1.0))).any())


def _float_layers(
    graph: onnx.GraphProto, stored: dict[str, np.ndarray], made_by: dict[str, onnx.NodeProto]
) -> Iterator[FloatLayer]:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in graph.node:
        after = readers.get(node.output[0], [])
        if node.op_type not in ROUNDED_IN_FLOAT or [one.op_type for one in after] != ["QuantizeLinear"]:
            continue
        around = [_levels(made_by.get(name), stored) for name in node.input]
        first, second, output = *around, _levels(after[0], stored)
        if first is None or second is None or output is None:
            continue
        if output.step not in (first.step, second.step):
            yield FloatLayer(node.op_type, (first, second), output)


def _summed_steps(
    graph: onnx.GraphProto, stored: dict[str, np.ndarray], made_by: dict[str, onnx.NodeProto]
) -> list[str]:
    """Return the steps of tensors that are summed in float32, in the graph's order."""
    takers = [made_by.get(node.input[0]) for node in graph.node if node.op_type in SUMMED]
    found = [_levels(node, stored) for node in takers]
    return list(dict.fromkeys(one.step for one in found if one is not None))


def _levels(node: onnx.NodeProto | None, stored: dict[str, np.ndarray]) -> Levels | None:
    """Return the integers that a Quantize- or DequantizeLinear of 8 bits and one step gives or takes."""
    if node is None or node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 3:
        return None
    step, zero = (stored.get(name) for name in node.input[1:3])
    if step is None or zero is None or step.size != 1 or zero.dtype.itemsize != 1:
        return None
    return Levels(node.input[1], zero.reshape(()))
