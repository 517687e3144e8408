"""ONNX operators that move values about without arithmetic, and those that compute shapes, in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Given = Sequence[Tensor | None]
Attributes = dict[str, Any]
Operator = Callable[[Attributes, Given], Tensor | tuple[Tensor, ...]]

# Numbers of onnx.TensorProto.DataType.
DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64,
    9: torch.bool, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip
_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def need(given: Given, place: int) -> Tensor:
    """Return an input that the operator cannot do without."""
    value = given[place]
    assert value is not None
    return value


def optional(given: Given, place: int) -> Tensor | None:
    """Return an input that may be absent."""
    return given[place] if place < len(given) else None


def integers(attributes: Attributes, name: str, given: Given, place: int) -> list[int] | None:
    """Return integers that older operator sets have as an attribute and newer ones as an input."""
    value = optional(given, place)
    if value is not None:
        return [int(number) for number in value.reshape(-1).tolist()]
    found = attributes.get(name)
    return None if found is None else [int(number) for number in found]


def _cast(attributes: Attributes, given: Given) -> Tensor:
    return need(given, 0).to(DTYPES[attributes["to"]])


def _concat(attributes: Attributes, given: Given) -> Tensor:
    return torch.cat([part for part in given if part is not None], dim=attributes["axis"])


def _constant_of_shape(attributes: Attributes, given: Given) -> Tensor:
    value = attributes.get("value", torch.zeros(1))
    return torch.full(need(given, 0).tolist(), value.item(), dtype=value.dtype)


def _expand(attributes: Attributes, given: Given) -> Tensor:
    data, shape = need(given, 0), need(given, 1).tolist()
    return data.expand(torch.broadcast_shapes(data.shape, shape))


def _flatten(attributes: Attributes, given: Given) -> Tensor:
    data, axis = need(given, 0), attributes.get("axis", 1)
    first = data.shape[: axis if axis >= 0 else data.ndim + axis]
    return data.reshape(int(torch.Size(first).numel()), -1)


def _gather(attributes: Attributes, given: Given) -> Tensor:
    data, index, axis = need(given, 0), need(given, 1), attributes.get("axis", 0)
    axis %= max(data.ndim, 1)
    if index.ndim == 0:
        return data.select(axis, int(index))
    index = index.to(data.device)
    index = torch.where(index < 0, index + data.shape[axis], index)
    taken = data.index_select(axis, index.reshape(-1))
    return taken.reshape(*data.shape[:axis], *index.shape, *data.shape[axis + 1 :])


def _gather_elements(attributes: Attributes, given: Given) -> Tensor:
    data, index, axis = need(given, 0), need(given, 1), attributes.get("axis", 0)
    index = index.to(data.device)
    return torch.gather(data, axis, torch.where(index < 0, index + data.shape[axis], index))


def _pad(attributes: Attributes, given: Given) -> Tensor:
    data, mode = need(given, 0), str(attributes.get("mode", "constant"))
    pads = integers(attributes, "pads", given, 1) or []
    axes = integers(attributes, "axes", given, 3) or list(range(data.ndim))
    before, after = [0] * data.ndim, [0] * data.ndim
    for place, axis in enumerate(axes):
        before[axis], after[axis] = pads[place], pads[place + len(axes)]
    # torch counts from the last axis, and repeats values along all axes but the first two, or one more.
    changed = [axis for axis in range(data.ndim) if before[axis] or after[axis]]
    first = min([*changed, max(data.ndim - 1, 0) if data.ndim < 3 else 2])
    flat = [n for axis in range(data.ndim - 1, first - 1, -1) for n in (before[axis], after[axis])]
    if mode != "constant":
        return F.pad(data, flat, mode=_PAD_MODES[mode])
    fill = optional(given, 2)
    return F.pad(data, flat, value=0.0 if fill is None else fill.item())


def _range(attributes: Attributes, given: Given) -> Tensor:
    first, limit, step = (need(given, place) for place in range(3))
    return torch.arange(first.item(), limit.item(), step.item(), dtype=first.dtype)


def _reshape(attributes: Attributes, given: Given) -> Tensor:
    data, shape = need(given, 0), [int(size) for size in need(given, 1).tolist()]
    if not attributes.get("allowzero", 0):
        shape = [data.shape[place] if size == 0 else size for place, size in enumerate(shape)]
    return data.reshape(shape)


def _shape(attributes: Attributes, given: Given) -> Tensor:
    sizes = list(need(given, 0).shape)[attributes.get("start", 0) : attributes.get("end")]
    return torch.tensor(sizes, dtype=torch.int64)


def _size(attributes: Attributes, given: Given) -> Tensor:
    return torch.tensor(need(given, 0).numel(), dtype=torch.int64)


def _slice(attributes: Attributes, given: Given) -> Tensor:
    data = need(given, 0)
    starts = integers(attributes, "starts", given, 1) or []
    ends = integers(attributes, "ends", given, 2) or []
    axes = integers(attributes, "axes", given, 3) or list(range(len(starts)))
    steps = integers(attributes, "steps", given, 4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        first, last, stride = slice(start, end, step).indices(data.shape[axis])
        if stride > 0:
            data = data[(slice(None),) * (axis % data.ndim) + (slice(first, max(first, last), stride),)]
        else:
            index = torch.arange(first, last, stride, device=data.device)
            data = data.index_select(axis, index)
    return data


def _split(attributes: Attributes, given: Given) -> tuple[Tensor, ...]:
    data, axis = need(given, 0), attributes.get("axis", 0)
    sizes: list[int] | int | None = integers(attributes, "split", given, 1)
    if sizes is None:
        sizes = -(-data.shape[axis] // attributes["parts"])
    made: tuple[Tensor, ...] = data.split(sizes, dim=axis)
    return made


def _squeeze(attributes: Attributes, given: Given) -> Tensor:
    data, axes = need(given, 0), integers(attributes, "axes", given, 1)
    return data.squeeze() if axes is None else data.squeeze(tuple(axes))


def _tile(attributes: Attributes, given: Given) -> Tensor:
    return need(given, 0).repeat(need(given, 1).tolist())


def _transpose(attributes: Attributes, given: Given) -> Tensor:
    data = need(given, 0)
    return data.permute(attributes.get("perm", list(range(data.ndim))[::-1]))


def _unsqueeze(attributes: Attributes, given: Given) -> Tensor:
    data, axes = need(given, 0), integers(attributes, "axes", given, 1) or []
    rank = data.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        data = data.unsqueeze(axis)
    return data


def _where(attributes: Attributes, given: Given) -> Tensor:
    chosen, yes, no = (need(given, place) for place in range(3))
    device = max((chosen.device, yes.device, no.device), key=lambda device: device.type != "cpu")
    return torch.where(chosen.to(device), yes.to(device), no.to(device))


SHAPE_OPERATORS: dict[str, Operator] = {
    "Cast": _cast, "Concat": _concat, "ConstantOfShape": _constant_of_shape, "Expand": _expand,
    "Flatten": _flatten, "Gather": _gather, "GatherElements": _gather_elements, "Pad": _pad, "Range": _range,
    "Reshape": _reshape, "Shape": _shape, "Size": _size, "Slice": _slice, "Split": _split, "Squeeze": _squeeze,
    "Tile": _tile, "Transpose": _transpose, "Unsqueeze": _unsqueeze, "Where": _where,
    "Constant": lambda attributes, given: attributes["value"],
    "Identity": lambda attributes, given: need(given, 0),
    "Dropout": lambda attributes, given: need(given, 0),
}  # fmt: skip
