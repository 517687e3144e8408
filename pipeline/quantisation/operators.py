"""ONNX operators in torch, with gradients: those that the students' exported graphs are made of.

The semantics are those of the ONNX operator specification; shapes are plain integer tensors on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import OssicleError
from pipeline.quantisation.shape_operators import (
    SHAPE_OPERATORS,
    Attributes,
    Given,
    Operator,
    integers,
    need,
    optional,
)


def _spatial(attributes: Attributes, rank: int) -> tuple[list[int], list[int], list[int]]:
    """Return strides, dilations and pads (all beginnings, then all ends) of a window that slides."""
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise OssicleError(
            "a graph with automatic padding", expected="auto_pad NOTSET", got=attributes["auto_pad"]
        )
    strides = list(attributes.get("strides") or [1] * rank)
    dilations = list(attributes.get("dilations") or [1] * rank)
    return strides, dilations, list(attributes.get("pads") or [0] * (2 * rank))


def _padded(data: Tensor, pads: list[int], value: float = 0.0) -> tuple[Tensor, list[int]]:
    """Return the data, padded where the two ends differ, and the symmetric padding that is left to do."""
    rank = len(pads) // 2
    before, after = pads[:rank], pads[rank:]
    if before == after:
        return data, before
    flat = [n for axis in range(rank - 1, -1, -1) for n in (before[axis], after[axis])]
    return F.pad(data, flat, value=value), [0] * rank


def _conv(attributes: Attributes, given: Given) -> Tensor:
    data, weight = need(given, 0), need(given, 1)
    rank = weight.ndim - 2
    strides, dilations, pads = _spatial(attributes, rank)
    data, padding = _padded(data, pads)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    made: Tensor = convolve(
        data, weight, optional(given, 2), strides, padding, dilations, attributes.get("group", 1)
    )
    return made


def _conv_transpose(attributes: Attributes, given: Given) -> Tensor:
    data, weight = need(given, 0), need(given, 1)
    rank = weight.ndim - 2
    strides, dilations, pads = _spatial(attributes, rank)
    if pads[:rank] != pads[rank:] or attributes.get("output_shape"):
        raise OssicleError(
            "a transposed convolution of uneven padding", expected="pads of equal ends", got=pads
        )
    convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    made: Tensor = convolve(
        data, weight, optional(given, 2), strides, pads[:rank],
        list(attributes.get("output_padding") or [0] * rank), attributes.get("group", 1), dilations,
    )  # fmt: skip
    return made


def _gemm(attributes: Attributes, given: Given) -> Tensor:
    left, right, bias = need(given, 0), need(given, 1), optional(given, 2)
    left = left.transpose(0, 1) if attributes.get("transA", 0) else left
    right = right.transpose(0, 1) if attributes.get("transB", 0) else right
    made: Tensor = (left @ right) * attributes.get("alpha", 1.0)
    if bias is not None:
        made = made + attributes.get("beta", 1.0) * bias
    return made


def _max_pool(attributes: Attributes, given: Given) -> Tensor:
    data, kernel = need(given, 0), list(attributes["kernel_shape"])
    strides, dilations, pads = _spatial(attributes, len(kernel))
    data, padding = _padded(data, pads, -math.inf)
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    made: Tensor = pool(data, kernel, strides, padding, dilations, bool(attributes.get("ceil_mode", 0)))
    return made


def _average_pool(attributes: Attributes, given: Given) -> Tensor:
    data, kernel = need(given, 0), list(attributes["kernel_shape"])
    strides, dilations, pads = _spatial(attributes, len(kernel))
    counted = bool(attributes.get("count_include_pad", 0))
    uneven = pads[: len(kernel)] != pads[len(kernel) :]
    if any(step != 1 for step in dilations) or (uneven and not counted):
        raise OssicleError("a mean over dilated or unevenly padded windows", expected="plain ones", got=pads)
    data, padding = _padded(data, pads)
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    made: Tensor = pool(data, kernel, strides, padding, bool(attributes.get("ceil_mode", 0)), counted)
    return made


def _reduced(reduce: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def operator(attributes: Attributes, given: Given) -> Tensor:
        data, axes = need(given, 0), integers(attributes, "axes", given, 1)
        if not axes:
            if attributes.get("noop_with_empty_axes", 0):
                return data
            axes = list(range(data.ndim))
        return reduce(data, axes, bool(attributes.get("keepdims", 1)))

    return operator


def _clip(attributes: Attributes, given: Given) -> Tensor:
    low, high = optional(given, 1), optional(given, 2)
    least = attributes.get("min") if low is None else low.item()
    most = attributes.get("max") if high is None else high.item()
    data = need(given, 0)
    return data if least is None and most is None else data.clamp(least, most)


def _folded(fold: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def operator(attributes: Attributes, given: Given) -> Tensor:
        made = need(given, 0)
        for place in range(1, len(given)):
            made = fold(*_same_device(made, need(given, place)))
        return made

    return operator


def _same_device(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    # Shapes are computed on the CPU; where they enter arithmetic on another device they follow.
    if left.device == right.device:
        return left, right
    device = right.device if left.device.type == "cpu" else left.device
    return left.to(device), right.to(device)


def _divided(left: Tensor, right: Tensor) -> Tensor:
    return left / right if left.is_floating_point() else torch.div(left, right, rounding_mode="trunc")


def _modulo(attributes: Attributes, given: Given) -> Tensor:
    left, right = _same_device(need(given, 0), need(given, 1))
    return torch.fmod(left, right) if attributes.get("fmod", 0) else torch.remainder(left, right)


def _instance_norm(attributes: Attributes, given: Given) -> Tensor:
    data, weight, bias = (need(given, place) for place in range(3))
    return F.instance_norm(data, weight=weight, bias=bias, eps=attributes.get("epsilon", 1e-5))


def _layer_norm(attributes: Attributes, given: Given) -> Tensor:
    data, axis = need(given, 0), attributes.get("axis", -1)
    shape = list(data.shape[axis % data.ndim :])
    return F.layer_norm(data, shape, need(given, 1), optional(given, 2), attributes.get("epsilon", 1e-5))


def _batch_norm(attributes: Attributes, given: Given) -> Tensor:
    data, weight, bias, mean, variance = (need(given, place) for place in range(5))
    return F.batch_norm(data, mean, variance, weight, bias, eps=attributes.get("epsilon", 1e-5))


def _prelu(attributes: Attributes, given: Given) -> Tensor:
    data = need(given, 0)
    return torch.where(data < 0, data * need(given, 1), data)


def _simple(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda attributes, given: function(need(given, 0))


def _hard_sigmoid(attributes: Attributes, given: Given) -> Tensor:
    made: Tensor = attributes.get("alpha", 0.2) * need(given, 0) + attributes.get("beta", 0.5)
    return made.clamp(0.0, 1.0)


def _gelu(attributes: Attributes, given: Given) -> Tensor:
    return F.gelu(need(given, 0), approximate=str(attributes.get("approximate", "none")))


def _softmax(attributes: Attributes, given: Given) -> Tensor:
    return need(given, 0).softmax(attributes.get("axis", -1))


OPERATORS: dict[str, Operator] = {
    **SHAPE_OPERATORS,
    "Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm,
    "MatMul": lambda attributes, given: need(given, 0) @ need(given, 1),
    "MaxPool": _max_pool, "AveragePool": _average_pool,
    "GlobalAveragePool": _simple(lambda data: data.mean(list(range(2, data.ndim)), keepdim=True)),
    "GlobalMaxPool": _simple(lambda data: data.amax(list(range(2, data.ndim)), keepdim=True)),
    "ReduceMean": _reduced(lambda data, axes, keep: data.mean(axes, keepdim=keep)),
    "ReduceSum": _reduced(lambda data, axes, keep: data.sum(axes, keepdim=keep)),
    "ReduceMax": _reduced(lambda data, axes, keep: data.amax(axes, keepdim=keep)),
    "ReduceMin": _reduced(lambda data, axes, keep: data.amin(axes, keepdim=keep)),
    "ReduceSumSquare": _reduced(lambda data, axes, keep: data.square().sum(axes, keepdim=keep)),
    "ReduceL1": _reduced(lambda data, axes, keep: data.abs().sum(axes, keepdim=keep)),
    "ReduceL2": _reduced(lambda data, axes, keep: data.square().sum(axes, keepdim=keep).sqrt()),
    "ReduceLogSumExp": _reduced(lambda data, axes, keep: data.logsumexp(axes, keepdim=keep)),
    "Clip": _clip, "HardSigmoid": _hard_sigmoid, "HardSwish": _simple(F.hardswish), "Gelu": _gelu,
    "Softmax": _softmax,
    "LogSoftmax": lambda attributes, given: need(given, 0).log_softmax(attributes.get("axis", -1)),
    "LeakyRelu": lambda attributes, given: F.leaky_relu(need(given, 0), attributes.get("alpha", 0.01)),
    "Elu": lambda attributes, given: F.elu(need(given, 0), attributes.get("alpha", 1.0)),
    "PRelu": _prelu, "Relu": _simple(torch.relu), "Sigmoid": _simple(torch.sigmoid), "Tanh": _simple(torch.tanh),
    "Erf": _simple(torch.erf), "Exp": _simple(torch.exp), "Log": _simple(torch.log), "Sqrt": _simple(torch.sqrt),
    "Abs": _simple(torch.abs), "Neg": _simple(torch.neg), "Sign": _simple(torch.sign), "Sin": _simple(torch.sin),
    "Cos": _simple(torch.cos), "Floor": _simple(torch.floor), "Ceil": _simple(torch.ceil),
    "Round": _simple(torch.round), "Softplus": _simple(F.softplus), "Reciprocal": _simple(torch.reciprocal),
    "Not": _simple(torch.logical_not),
    "Add": _folded(torch.add), "Sub": _folded(torch.sub), "Mul": _folded(torch.mul), "Div": _folded(_divided),
    "Pow": _folded(torch.pow), "Min": _folded(torch.minimum), "Max": _folded(torch.maximum),
    "Sum": _folded(torch.add), "Mod": _modulo,
    "Equal": _folded(torch.eq), "Less": _folded(torch.lt), "LessOrEqual": _folded(torch.le),
    "Greater": _folded(torch.gt), "GreaterOrEqual": _folded(torch.ge), "And": _folded(torch.logical_and),
    "Or": _folded(torch.logical_or),
    "InstanceNormalization": _instance_norm, "LayerNormalization": _layer_norm,
    "BatchNormalization": _batch_norm,
}  # fmt: skip
