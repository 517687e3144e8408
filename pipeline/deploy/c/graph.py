"""An exported S8S8 file (Q/DQ) as a C program: the same scales, the same order, nothing in float that was int8."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from pipeline.deploy.c.layers import Layers
from pipeline.deploy.c.operands import SUPPORTED, Constant, Input, MelMean, Sum, Value
from pipeline.deploy.c.program import INT8, Program, Step, Tensor

RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Cast")


def read(path: Path, *, max_frames: int) -> Program:
    """Return the student in ``path`` as a program for up to ``max_frames`` frames.

    Raises:
        OssicleError: it holds an operator, a float map or a shape that the C kernels do not know.
    """
    model = onnx.load(str(path))
    return _Reader(model.graph, path.name, max_frames).program


class _Reader(Layers):
    def __init__(self, graph: onnx.GraphProto, file: str, max_frames: int) -> None:
        (entry,) = graph.input
        dims = entry.type.tensor_type.shape.dim
        super().__init__(
            file, Program(mels=dims[2].dim_value if len(dims) == 4 else 0, max_frames=max_frames)
        )
        if len(dims) != 4 or dims[1].dim_value != 1 or not dims[2].dim_value:
            raise self._refused("its input", "(batch, 1, mels, time), mels fixed")
        self.known[entry.name] = Input()
        for initializer in graph.initializer:
            self.known[initializer.name] = Constant(numpy_helper.to_array(initializer))
        for node in graph.node:
            self._read(node)
        for output in graph.output:
            found = self._float(self.known[output.name], output.name)
            self.program.outputs[output.name] = found
        if self.program.heard is None:
            raise self._refused("a graph that quantises nothing", "the S8S8 file of ossicle export")

    def _read(self, node: NodeProto) -> None:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant":
            self.known[node.output[0]] = Constant(numpy_helper.to_array(attributes["value"]))
            return
        inputs = [self.known[name] for name in node.input if name]
        if node.op_type in RESHAPES:
            found: Value = self._reshaped(node, inputs[0])
        else:
            method = getattr(self, f"_{node.op_type.lower()}", None)
            if method is None:
                raise self._refused(f"operator {node.op_type} ({node.output[0]})", SUPPORTED)
            found = method(node, attributes, *inputs)
        self.known[node.output[0]] = found

    # --- quantisation -------------------------------------------------------------------------------------

    def _quantizelinear(self, node: NodeProto, attributes: dict[str, Any], x: Value, *given: Value) -> Value:
        scale, zero = self._scalar_pair(node, given)
        if isinstance(x, Constant):
            integers = np.clip(np.rint(x.value / np.float32(scale)) + zero, *INT8).astype(np.int8)
            return Constant(x.value, integers, np.array(scale), np.array(zero))
        if isinstance(x, Input):
            if self.program.heard is not None:
                raise self._refused("an input that is quantised twice", "one QuantizeLinear")
            program = self.program
            program.mean, program.deviation = x.mean, x.deviation
            program.heard = Tensor("heard", 1, program.mels, program.widths[0], scale, zero)
            return program.heard
        if isinstance(x, Sum):
            low = max(INT8[0], zero) if x.positive else INT8[0]
            target = self._tensor(x.channels, x.height, x.width, scale, zero)
            self.program.steps.append(replace(x.step(target), low=low))
            return target
        if isinstance(x, MelMean):
            raise self._refused(f"a quantised mean over mel alone ({node.output[0]})", SUPPORTED)
        if x.scale == scale and x.zero == zero:
            return x
        target = self._tensor(x.channels, x.height, x.width, scale, zero)
        self.program.steps.append(Step("quantise" if x.scale is None else "rescale", (x,), target))
        return target

    def _dequantizelinear(
        self, node: NodeProto, attributes: dict[str, Any], x: Value, *given: Value
    ) -> Value:
        if not isinstance(x, Constant):
            return x
        values = [v.value for v in given if isinstance(v, Constant)]
        scale = values[0]
        zero = values[1] if len(values) > 1 else np.zeros_like(scale, dtype=x.value.dtype)
        if x.integers is not None:
            return x
        shape = [1] * x.value.ndim
        if scale.ndim and x.value.ndim:
            shape[attributes.get("axis", 1)] = scale.size
        spread = scale.reshape(shape) if scale.size > 1 or scale.ndim else scale
        offset = zero.reshape(shape) if zero.size > 1 or zero.ndim else zero
        real = ((x.value.astype(np.int64) - offset.astype(np.int64)) * spread.astype(np.float64)).astype(
            np.float32
        )
        return Constant(real, x.value, scale, zero)

    def _scalar_pair(self, node: NodeProto, given: tuple[Value, ...]) -> tuple[float, int]:
        values = [v.value for v in given if isinstance(v, Constant)]
        if not values or values[0].size != 1 or (len(values) > 1 and values[1].dtype != np.int8):
            raise self._refused(
                f"activations of {node.output[0]}", "int8 with one scale: student_s8s8.onnx of ossicle export"
            )
        return float(values[0].reshape(())), int(values[1].reshape(())) if len(values) > 1 else 0

    # --- arithmetic between tensors -----------------------------------------------------------------------

    def _sub(self, node: NodeProto, attributes: dict[str, Any], a: Value, b: Value) -> Value:
        if isinstance(a, Input) and isinstance(b, Constant) and b.value.size == 1 and a == Input():
            return replace(a, mean=float(b.value.reshape(())))
        raise self._refused(f"operator Sub ({node.output[0]})", SUPPORTED)

    def _div(self, node: NodeProto, attributes: dict[str, Any], a: Value, b: Value) -> Value:
        if isinstance(a, Input) and isinstance(b, Constant) and b.value.size == 1 and a.deviation == 1.0:
            return replace(a, deviation=float(b.value.reshape(())))
        return self._of_vectors("divide", node, a, b)

    def _add(self, node: NodeProto, attributes: dict[str, Any], a: Value, b: Value) -> Value:
        return self._combined("add", node, a, b)

    def _mul(self, node: NodeProto, attributes: dict[str, Any], a: Value, b: Value) -> Value:
        return self._combined("multiply", node, a, b)

    def _combined(self, kind: str, node: NodeProto, a: Value, b: Value) -> Value:
        tensors = [v for v in (a, b) if isinstance(v, Tensor)]
        if len(tensors) == 2 and all(t.scale is None for t in tensors):
            return self._of_vectors(kind, node, a, b)
        left, right = self._operand(a, node), self._operand(b, node)
        largest = max((left, right), key=lambda t: (not t.is_vector, t.channels))
        for other in (left, right):
            same = other.is_vector or (other.height, other.width) == (largest.height, largest.width)
            if not same or other.channels not in (1, largest.channels):
                raise self._refused(f"the shapes of {node.output[0]}", "equal maps, or one number a channel")
        return Sum(
            lambda target: Step(kind, (left, right), target), largest.channels, largest.height, largest.width
        )

    def _of_vectors(self, kind: str, node: NodeProto, a: Value, b: Value) -> Tensor:
        left, right = self._float(a, node.output[0]), self._float(b, node.output[0])
        if not (left.is_vector and right.is_vector):
            raise self._refused(
                f"a float {node.op_type} of maps ({node.output[0]})", "int8 maps: export.int8_ops=all"
            )
        target = self._tensor(max(left.channels, right.channels), 1, self.program.one)
        self.program.steps.append(Step(kind, (left, right), target))
        return target

    # --- reductions ---------------------------------------------------------------------------------------

    def _reducemean(self, node: NodeProto, attributes: dict[str, Any], x: Value, *axes: Value) -> Value:
        return self._reduced("mean", node, attributes, x, axes)

    def _reducemax(self, node: NodeProto, attributes: dict[str, Any], x: Value, *axes: Value) -> Value:
        return self._reduced("max", node, attributes, x, axes)

    def _reducel2(self, node: NodeProto, attributes: dict[str, Any], x: Value, *axes: Value) -> Value:
        return self._reduced("norm", node, attributes, x, axes)

    def _globalaveragepool(self, node: NodeProto, attributes: dict[str, Any], x: Value) -> Value:
        return self._over_map("mean", self._int8(x, node))

    def _reduced(
        self, kind: str, node: NodeProto, attributes: dict[str, Any], x: Value, axes: tuple[Value, ...]
    ) -> Value:
        given = (
            axes[0].value.tolist() if axes and isinstance(axes[0], Constant) else attributes.get("axes", [])
        )
        keep = bool(attributes.get("keepdims", 1))
        if isinstance(x, MelMean) and kind in ("mean", "max") and given in ([2], [-1], [3]):
            return self._over_map("mean" if kind == "mean" else "max_of_means", x.map)
        if isinstance(x, Tensor) and x.is_vector and given in ([1], [-1]):
            target = self._tensor(1, 1, self.program.one)
            self.program.steps.append(Step(f"channels_{kind}", (self._float(x, node.output[0]),), target))
            return target
        source = self._int8(x, node)
        if sorted(axis % 4 for axis in given) == [2, 3]:
            return self._over_map(kind, source)
        if kind == "mean" and [axis % 4 for axis in given] == [2] and not keep:
            return MelMean(source)
        raise self._refused(f"{node.op_type} over axes {given} ({node.output[0]})", "mel, or mel and time")

    def _over_map(self, kind: str, source: Tensor) -> Tensor:
        target = self._tensor(source.channels, 1, self.program.one)
        self.program.steps.append(Step(f"map_{kind}", (source,), target))
        return target

    def _concat(self, node: NodeProto, attributes: dict[str, Any], *parts: Value) -> Value:
        tensors = [self._float(part, node.output[0]) for part in parts]
        if not all(t.is_vector for t in tensors) or attributes["axis"] % 2 != 1:
            raise self._refused(f"a concatenation of maps ({node.output[0]})", "one of vectors")
        target = self._tensor(sum(t.channels for t in tensors), 1, self.program.one)
        self.program.steps.append(Step("concat", tuple(tensors), target))
        return target

    def _reshaped(self, node: NodeProto, x: Value) -> Value:
        if isinstance(x, Constant) or (isinstance(x, Tensor) and x.is_vector):
            return x
        raise self._refused(f"{node.op_type} of a map ({node.output[0]})", "vectors only")
