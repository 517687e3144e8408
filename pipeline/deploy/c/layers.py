"""Convolutions, linear layers, pools and clamps of a Q/DQ graph as steps of a C program."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from onnx import NodeProto

from pipeline.deploy.c.operands import Constant, Operands, Sum, Value, pair
from pipeline.deploy.c.program import INT8, Geometry, Step, Tensor

LARGEST_SUM = 2**31 - 1


class Layers(Operands):
    """What multiplies weights or slides a window."""

    def _conv(self, node: NodeProto, attributes: dict[str, Any], x: Value, w: Value, *rest: Value) -> Value:
        source = self._int8(x, node)
        weights = self._weights(w, node)
        kernel = tuple(weights.value.shape[2:])
        pads = attributes.get("pads", [0, 0, 0, 0])
        if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or len(kernel) != 2:
            raise self._refused(f"padding or rank of {node.output[0]}", "two axes, padding in numbers")
        geometry = Geometry(
            kernel, pair(attributes, "strides"), pair(attributes, "dilations"), tuple(pads[:2]), tuple(pads[2:])
        )  # fmt: skip
        bias = rest[0] if rest else None
        return self._multiplied(node, source, weights, bias, geometry, attributes.get("group", 1))

    def _gemm(self, node: NodeProto, attributes: dict[str, Any], x: Value, w: Value, *rest: Value) -> Value:
        plain = attributes.get("alpha", 1.0) == 1.0 == attributes.get("beta", 1.0) and not attributes.get(
            "transA", 0
        )
        if not plain:
            raise self._refused(f"alpha, beta or transA of {node.output[0]}", "a plain linear layer")
        weights = self._weights(w, node)
        if not attributes.get("transB", 0):
            weights = _transposed(weights)
        return self._linear(node, x, weights, rest[0] if rest else None)

    def _matmul(self, node: NodeProto, attributes: dict[str, Any], x: Value, w: Value) -> Value:
        return self._linear(node, x, _transposed(self._weights(w, node)), None)

    def _linear(self, node: NodeProto, x: Value, weights: Constant, bias: Value | None) -> Value:
        source = self._int8(x, node)
        if not source.is_vector:
            raise self._refused(
                f"a linear layer on a map ({node.output[0]})", "one on a vector, after the last pool"
            )
        assert weights.integers is not None
        as_conv = replace(weights, integers=weights.integers[:, :, None, None])
        return self._multiplied(node, source, as_conv, bias, Geometry(), 1)

    def _multiplied(
        self,
        node: NodeProto,
        source: Tensor,
        weights: Constant,
        bias: Value | None,
        geometry: Geometry,
        groups: int,
    ) -> Sum:
        assert weights.integers is not None and weights.scale is not None and source.scale is not None
        integers = weights.integers.astype(np.int64)
        outs = len(integers)
        scales = np.broadcast_to(weights.scale.astype(np.float64).reshape(-1), (outs,)) * source.scale
        offset = np.zeros(outs, np.int64) if bias is None else self._bias(bias, scales, node)
        offset = offset - source.zero * integers.reshape(outs, -1).sum(axis=1)
        most = np.abs(offset).max(initial=0) + 128 * np.abs(integers).reshape(outs, -1).sum(axis=1).max()
        if most > LARGEST_SUM:
            raise self._refused(f"the sums of {node.output[0]}", "sums that fit 32 bits")
        depthwise = groups == source.channels == outs and groups > 1
        layout = integers[:, 0].transpose(1, 2, 0) if depthwise else integers.transpose(0, 2, 3, 1)
        column = int(np.prod(integers.shape[1:]))
        pointwise = geometry == Geometry() and groups == 1

        def step(target: Tensor) -> Step:
            assert target.scale is not None
            return Step(
                "depthwise" if depthwise else "conv", (source,), target, geometry=geometry, groups=groups,
                scratch_bytes=0 if depthwise or pointwise else column,
                weights=layout.astype(np.int8).reshape(-1), bias=offset, factors=scales / target.scale,
            )  # fmt: skip

        return Sum(step, outs, geometry.size(0, source.height), self._width(source, geometry))

    def _bias(self, bias: Value, scales: np.ndarray, node: NodeProto) -> np.ndarray:
        if not isinstance(bias, Constant):
            raise self._refused(f"a computed bias ({node.output[0]})", "one of the file")
        if bias.integers is not None and bias.integers.dtype == np.int32:
            return bias.integers.astype(np.int64).reshape(-1)
        rounded: np.ndarray = np.rint(bias.value.reshape(-1).astype(np.float64) / scales)
        return rounded.astype(np.int64)

    def _maxpool(self, node: NodeProto, attributes: dict[str, Any], x: Value) -> Value:
        geometry = self._window(attributes)
        if isinstance(x, Sum):
            # The largest of rounded numbers is the largest, rounded.
            before = x

            def pooled(target: Tensor) -> Step:
                whole = self._tensor(before.channels, before.height, before.width, target.scale, target.zero)
                low = max(INT8[0], target.zero) if before.positive else INT8[0]
                self.program.steps.append(replace(before.step(whole), low=low))
                return Step("pool_max", (whole,), target, geometry=geometry)

            width = self.program.width_after(x.width, geometry)
            return Sum(pooled, x.channels, geometry.size(0, x.height), width)
        source = self._int8(x, node)
        target = self._tensor(
            source.channels,
            geometry.size(0, source.height),
            self._width(source, geometry),
            source.scale,
            source.zero,
        )
        self.program.steps.append(Step("pool_max", (source,), target, geometry=geometry))
        return target

    def _averagepool(self, node: NodeProto, attributes: dict[str, Any], x: Value) -> Value:
        source, geometry = self._int8(x, node), self._window(attributes)
        counted = bool(attributes.get("count_include_pad", 0))
        if counted and geometry.ceil:
            raise self._refused(f"ceil_mode with counted padding ({node.output[0]})", "one of the two")

        def step(target: Tensor) -> Step:
            return Step("pool_mean", (source,), target, geometry=geometry, count_padding=counted)

        return Sum(step, source.channels, geometry.size(0, source.height), self._width(source, geometry))

    def _relu(self, node: NodeProto, attributes: dict[str, Any], x: Value) -> Value:
        if isinstance(x, Sum):
            return replace(x, positive=True)
        source = self._int8(x, node)
        target = self._tensor(source.channels, source.height, source.width, source.scale, source.zero)
        self.program.steps.append(Step("clamp", (source,), target, low=max(INT8[0], source.zero)))
        return target

    def _clip(self, node: NodeProto, attributes: dict[str, Any], x: Value, *bounds: Value) -> Value:
        limits = [float(b.value.reshape(())) for b in bounds if isinstance(b, Constant)]
        source = self._int8(x, node)
        assert source.scale is not None
        if len(limits) != 2:
            raise self._refused(f"a clip without two constant bounds ({node.output[0]})", "ReLU6")
        low, high = (int(np.clip(round(v / source.scale) + source.zero, *INT8)) for v in limits)
        target = self._tensor(source.channels, source.height, source.width, source.scale, source.zero)
        self.program.steps.append(Step("clamp", (source,), target, low=low, high=high))
        return target


def _transposed(weights: Constant) -> Constant:
    assert weights.integers is not None
    return replace(weights, integers=weights.integers.T)
