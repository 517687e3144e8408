"""Operands of a Q/DQ graph as they are read, and what the C kernels want of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto

from pipeline.deploy.c.program import Geometry, Program, Step, Tensor, Width
from pipeline.errors import OssicleError

SUPPORTED = (
    "Conv (grouped, depthwise, strided, dilated), Gemm, MatMul, MaxPool, AveragePool, Relu, Clip, Add, Mul, Div, "
    "ReduceMean, ReduceMax, ReduceL2, GlobalAveragePool, Concat of vectors, Flatten, Reshape"
)


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor of the file; what is quantised keeps its integers, scale and zero point."""

    value: np.ndarray
    integers: np.ndarray | None = None
    scale: np.ndarray | None = None
    zero: np.ndarray | None = None


@dataclass(frozen=True)
class Input:
    """The log-mel before it is quantised, less ``mean``, over ``deviation``."""

    mean: float = 0.0
    deviation: float = 1.0


@dataclass(frozen=True, eq=False)
class Sum:
    """A float result that becomes int8 when the file's next QuantizeLinear says its scale."""

    step: Callable[[Tensor], Step]
    channels: int
    height: int
    width: Width
    positive: bool = False


@dataclass(frozen=True, eq=False)
class MelMean:
    """The mean over mel of a map, not computed until it is known what is asked of it over time."""

    map: Tensor


Value = Constant | Input | Sum | MelMean | Tensor


class Operands:
    """A program that grows, and the values that are known by their names in the file."""

    def __init__(self, file: str, program: Program) -> None:
        self.file, self.program = file, program
        self.known: dict[str, Value] = {}
        self._count = 0

    def _int8(self, x: Value, node: NodeProto) -> Tensor:
        if isinstance(x, Tensor) and x.scale is not None:
            return x
        raise self._refused(
            f"a float input of {node.op_type} ({node.output[0]})",
            "int8 throughout: export.int8_ops=all, no layer kept",
        )

    def _operand(self, x: Value, node: NodeProto) -> Tensor:
        if not isinstance(x, Constant):
            return self._int8(x, node)
        if (
            x.integers is None
            or x.scale is None
            or x.zero is None
            or x.value.size != max(x.value.shape, default=1)
        ):
            raise self._refused(f"a constant of {node.output[0]}", "int8, one number or one a channel")
        found = self._tensor(
            x.value.size, 1, self.program.one, float(x.scale.reshape(())), int(x.zero.reshape(()))
        )
        found.constant = x.integers.reshape(-1).astype(np.int8)
        return found

    def _float(self, x: Value, name: str) -> Tensor:
        """Return ``x`` as float numbers, one a channel."""
        if isinstance(x, Constant) and x.integers is not None:
            x = self._operand(x, NodeProto(op_type="constant", output=[name]))
        if not isinstance(x, Tensor) or not x.is_vector:
            raise self._refused(
                f"a float map ({name})", "int8 throughout: export.int8_ops=all, no layer kept"
            )
        if x.scale is None:
            return x
        target = self._tensor(x.channels, 1, self.program.one)
        self.program.steps.append(Step("dequantise", (x,), target))
        return target

    def _weights(self, w: Value, node: NodeProto) -> Constant:
        if (
            isinstance(w, Constant)
            and w.integers is not None
            and w.integers.dtype == np.int8
            and not np.any(w.zero)
        ):
            return w
        raise self._refused(
            f"the weights of {node.output[0]}", "int8 with zero point 0: a layer left in float has no C form"
        )

    def _window(self, attributes: dict[str, Any]) -> Geometry:
        pads = attributes.get("pads", [0, 0, 0, 0])
        kernel = tuple(attributes["kernel_shape"])
        if len(kernel) != 2 or tuple(attributes.get("dilations", (1, 1))) != (1, 1):
            raise self._refused("a dilated pool", SUPPORTED)
        return Geometry(
            kernel, pair(attributes, "strides"), (1, 1), tuple(pads[:2]), tuple(pads[2:]),
            bool(attributes.get("ceil_mode", 0)),
        )  # fmt: skip

    def _width(self, source: Tensor, geometry: Geometry) -> Width:
        if source.is_vector and geometry == Geometry():
            return self.program.one
        return self.program.width_after(source.width, geometry)

    def _tensor(
        self, channels: int, height: int, width: Width, scale: float | None = None, zero: int = 0
    ) -> Tensor:
        self._count += 1
        return Tensor(f"t{self._count}", channels, height, width, scale, zero)

    def _refused(self, what: str, expected: str) -> OssicleError:
        return OssicleError(
            f"{self.file} has no C form: {what}", expected=expected,
            run="ossicle export of cnn4, cnn4_wide, dcase24_baseline or a cp_mobile with every layer in int8",
        )  # fmt: skip


def pair(attributes: dict[str, Any], name: str) -> tuple[int, int]:
    first, second = attributes.get(name, (1, 1))
    return int(first), int(second)
