"""The state of a conversion from ONNX to TFLite: which tensor holds what, in which order of axes, in which integers.

A quantised ONNX graph says *dequantise, compute, quantise*. Where every operand of a node is dequantised and its
result is quantised, TFLite has an operator on the integers themselves, and that is written, with ONNX's own scales.
Where not, the node is written in float between DEQUANTIZE and QUANTIZE. Maps are channels-first in ONNX and
channels-last in TFLite: each tensor carries the order of its axes, and a TRANSPOSE (or a RESHAPE, where only axes of
size 1 move) is written only where an operator wants another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from pipeline.deploy.tflite.model import ModelWriter, Quantisation
from pipeline.errors import OssicleError

CHANNELS_LAST = {3: (0, 2, 1), 4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}


class ConversionError(OssicleError, ValueError):
    """A node of the ONNX graph has no TFLite form; the message names it."""


@dataclass(frozen=True)
class Value:
    """A tensor of the file under construction.

    Attributes:
        index: its number in the file.
        shape: as stored.
        order: stored axis ``i`` is axis ``order[i]`` of the ONNX tensor.
        quantisation: of an int8 tensor; None of float32.
    """

    index: int
    shape: tuple[int, ...]
    order: tuple[int, ...]
    quantisation: Quantisation | None = None

    @property
    def onnx_shape(self) -> tuple[int, ...]:
        """The shape in ONNX's order of axes."""
        return tuple(self.shape[self.order.index(axis)] for axis in range(len(self.shape)))

    def axis(self, onnx_axis: int) -> int:
        """Return where ONNX's axis (negative: from the end) is stored."""
        return self.order.index(onnx_axis % len(self.order))


@dataclass(frozen=True)
class Constant:
    """A known array, in ONNX's order of axes: real numbers, or integers with what they stand for."""

    array: np.ndarray
    quantisation: Quantisation | None = None

    def real(self) -> np.ndarray:
        """Return the values as real numbers (or plain integers: shapes, axes)."""
        return self.array if self.quantisation is None else self.quantisation.real(self.array)


class Graph:
    """A fixed-shape ONNX graph on its way into a :class:`ModelWriter`.

    Args:
        model: the graph.
        gather_by_convolution: channels are reordered by a convolution, which every NPU has, in place of GATHER.
    """

    def __init__(self, model: onnx.ModelProto, *, gather_by_convolution: bool = False) -> None:
        self.gather_by_convolution = gather_by_convolution
        self.onnx = model.graph
        self.writer = ModelWriter(model.graph.name or "student")
        self.values: dict[str, Value] = {}
        self.constants: dict[str, Constant] = {
            i.name: Constant(numpy_helper.to_array(i)) for i in model.graph.initializer
        }
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._outputs = {output.name for output in model.graph.output}
        self._made: dict[tuple[Any, ...], Value] = {}
        self.float_nodes: list[str] = []

    # -- what a node reads ------------------------------------------------------------------------------------------

    def value(self, node: onnx.NodeProto, position: int) -> Value:
        """Return a node's operand as a tensor of the file; a constant becomes one.

        Raises:
            ConversionError: the operand was never made.
        """
        name = node.input[position]
        if name in self.values:
            return self.values[name]
        if name in self.constants:
            return self.stored(self.constants[name], name)
        raise ConversionError(f"{label(node)} reads {name!r}, which no node before it makes")

    def constant(self, node: onnx.NodeProto, position: int) -> Constant | None:
        """Return a node's operand where it is known beforehand; None where it is computed or left out."""
        if position >= len(node.input) or not node.input[position]:
            return None
        return self.constants.get(node.input[position])

    def known(self, node: onnx.NodeProto, position: int, attribute: str = "") -> np.ndarray | None:
        """Return an operand that must be known (shapes, axes, limits), or the attribute of older operator sets.

        Raises:
            ConversionError: it is computed by the graph.
        """
        found = self.constant(node, position)
        if found is not None:
            return found.real()
        if position < len(node.input) and node.input[position]:
            raise ConversionError(
                f"{label(node)}: {node.input[position]!r} is computed by the graph", expected="a constant"
            )
        given = attributes(node).get(attribute)
        return None if given is None else np.asarray(given)

    def wanted(self, name: str) -> Quantisation | None:
        """Return what integers a node's result is turned into, if that is all that becomes of it."""
        readers = self._readers.get(name, [])
        if name in self._outputs or not readers or any(r.op_type != "QuantizeLinear" for r in readers):
            return None
        found = self.parameters(readers[0])
        return found if all(found.same(self.parameters(r)) for r in readers[1:]) else None

    def result(self, node: onnx.NodeProto) -> Quantisation | None:
        """Return the integers that an arithmetic node computes in; None where it computes in float.

        In integers it computes where each operand is int8 (or known) and the result becomes int8.
        """
        operands = [self.values[name] for name in node.input if name in self.values]
        wanted = self.wanted(node.output[0])
        if wanted is None or not operands or any(o.quantisation is None for o in operands):
            return None
        return wanted

    def parameters(self, node: onnx.NodeProto) -> Quantisation:
        """Return the scale and zero point of a QuantizeLinear or DequantizeLinear node.

        Raises:
            ConversionError: they are no constants.
        """
        scale = self.constants.get(node.input[1])
        zero = self.constants.get(node.input[2]) if len(node.input) > 2 else None
        if scale is None or (zero is None and len(node.input) > 2 and node.input[2]):
            raise ConversionError(f"{label(node)}: scale and zero point are computed by the graph")
        scales = np.atleast_1d(scale.array).astype(np.float64)
        zeros = (
            np.zeros(len(scales), np.int64) if zero is None else np.atleast_1d(zero.array).astype(np.int64)
        )
        axis = int(attributes(node).get("axis", 1)) if len(scales) > 1 else 0
        return Quantisation(tuple(map(float, scales)), tuple(map(int, zeros)), axis)

    # -- what is written --------------------------------------------------------------------------------------------

    def emit(
        self,
        code: str,
        inputs: Sequence[Value],
        shape: Sequence[int],
        *,
        quantisation: Quantisation | None = None,
        order: Sequence[int] | None = None,
        name: str = "",
        **options: Any,
    ) -> Value:
        """Write an operator with one result and return it; ``order`` defaults to ONNX's own."""
        return self.emit_many(
            code, inputs, [shape], quantisation=quantisation, order=order, name=name, **options
        )[0]

    def emit_many(
        self,
        code: str,
        inputs: Sequence[Value],
        shapes: Sequence[Sequence[int]],
        *,
        quantisation: Quantisation | None = None,
        order: Sequence[int] | None = None,
        name: str = "",
        **options: Any,
    ) -> list[Value]:
        """Write an operator with several results of one quantisation and order, and return them."""
        kept = tuple(range(len(shapes[0]))) if order is None else tuple(order)
        dtype = np.float32 if quantisation is None else np.int8
        made = [
            Value(
                self.writer.tensor(name or code.lower(), shape, dtype, quantisation),
                tuple(map(int, shape)), kept, quantisation,
            )
            for shape in shapes
        ]  # fmt: skip
        is_int8 = quantisation is not None or any(value.quantisation is not None for value in inputs)
        self.writer.operator(
            code, [v.index for v in inputs], [v.index for v in made], int8=is_int8, **options
        )
        return made

    def finish(self, node: onnx.NodeProto, value: Value, output: int = 0) -> None:
        """Say that ``value`` is a node's result."""
        self.values[node.output[output]] = value

    def integers(self, numbers: Sequence[int] | Sequence[list[int]] | np.ndarray, name: str) -> Value:
        """Return a constant int32 tensor: axes, shapes, paddings."""
        array = np.asarray(numbers, np.int32)
        key = ("int32", name, array.shape, array.tobytes())
        if key not in self._made:
            index = self.writer.tensor(name, array.shape, np.int32, None, array)
            self._made[key] = Value(index, array.shape, tuple(range(array.ndim)))
        return self._made[key]

    def weights(self, array: np.ndarray, quantisation: Quantisation | None, name: str) -> Value:
        """Return a constant tensor whose array is already in TFLite's order of axes."""
        index = self.writer.tensor(name, array.shape, array.dtype, quantisation, array)
        return Value(index, array.shape, tuple(range(array.ndim)), quantisation)

    def stored(self, constant: Constant, name: str, order: Sequence[int] | None = None) -> Value:
        """Return a constant as a tensor whose axes are in ``order``: int8 as it is quantised, else float32."""
        kept = tuple(range(constant.array.ndim)) if order is None else tuple(order)
        array = constant.array if constant.quantisation else constant.array.astype(np.float32)
        array = np.ascontiguousarray(array.transpose(kept))
        key = ("stored", name, kept, constant.quantisation, array.shape, array.tobytes())
        if key not in self._made:
            index = self.writer.tensor(name, array.shape, array.dtype, constant.quantisation, array)
            self._made[key] = Value(index, array.shape, kept, constant.quantisation)
        return self._made[key]

    def ordered(self, value: Value, order: Sequence[int]) -> Value:
        """Return ``value`` with its axes in another order."""
        order = tuple(order)
        if value.order == order:
            return value
        key = ("ordered", value.index, order)
        if key not in self._made:
            moves = [value.order.index(axis) for axis in order]
            shape = tuple(value.shape[axis] for axis in moves)
            moved = [axis for axis in moves if value.shape[axis] > 1]
            if moved == sorted(moved):
                self._made[key] = self.reshaped(value, shape, order)
            else:
                axes = self.integers(moves, "order")
                self._made[key] = self.emit(
                    "TRANSPOSE", [value, axes], shape, quantisation=value.quantisation, order=order
                )
        return self._made[key]

    def plain(self, value: Value) -> Value:
        """Return ``value`` with its axes in ONNX's order."""
        return self.ordered(value, range(len(value.shape)))

    def reshaped(self, value: Value, shape: Sequence[int], order: Sequence[int] | None = None) -> Value:
        """Return the same elements, as stored, in another shape."""
        target = self.integers(shape, "shape")
        return self.emit(
            "RESHAPE", [value, target], shape, quantisation=value.quantisation, order=order,
            newShape=[int(size) for size in shape],
        )  # fmt: skip

    def flat(self, value: Value, shape: Sequence[int]) -> Value:
        """Return ONNX's Reshape of ``value``: its elements in ONNX's order, in ``shape``."""
        moved = [axis for axis in value.order if value.onnx_shape[axis] > 1]
        source = value if moved == sorted(moved) else self.plain(value)
        if source.shape == tuple(shape):
            return replace(source, order=tuple(range(len(source.shape))))
        return self.reshaped(source, shape)

    def real(self, value: Value) -> Value:
        """Return ``value`` in float32."""
        if value.quantisation is None:
            return value
        key = ("real", value.index)
        if key not in self._made:
            self._made[key] = self.emit("DEQUANTIZE", [value], value.shape, order=value.order)
        return self._made[key]

    def requantised(self, value: Value, quantisation: Quantisation) -> Value:
        """Return ``value`` (float32 or int8) as these integers."""
        if quantisation.same(value.quantisation):
            return value
        return self.emit("QUANTIZE", [value], value.shape, quantisation=quantisation, order=value.order)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes by name, texts decoded."""
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def label(node: onnx.NodeProto) -> str:
    """Return what a message calls a node."""
    return f"{node.op_type} {node.name or ' '.join(node.output)!r}"


def unsupported(node: onnx.NodeProto, why: str) -> ConversionError:
    """Return the error that ``node`` cannot be written."""
    return ConversionError(
        f"{label(node)} has no TFLite form here: {why}",
        run="another --to, or a student without it (docs/runtimes.md lists the operators)",
    )
