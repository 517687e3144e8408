"""An int8 ONNX graph as a torch module: rounding where the file rounds, weights and step sizes trainable.

The graph is the exporter's own Q/DQ file, so that what is trained is what ships: batch norms folded, the tensors that
it quantises and no others, ranges shared where it shares them. Every pair of QuantizeLinear and DequantizeLinear
becomes ``fake_quantise`` with a learnt step (as its logarithm: one learning rate is then one relative change for large
and small ones alike; Jain, Gural, Wu and Dick, "Trained quantization thresholds", MLSys 2020); stored integers become
the float weights that they were rounded from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from jaxtyping import Float
from onnx import numpy_helper
from torch import Tensor, nn

from pipeline.errors import OssicleError
from pipeline.quantisation.fake_quantise import fake_quantise, rounded_through
from pipeline.quantisation.operators import OPERATORS
from pipeline.quantisation.shape_operators import Attributes

MULTIPLYING = ("Conv", "ConvTranspose", "MatMul", "Gemm")
PAIR = ("QuantizeLinear", "DequantizeLinear")
# What moves values about without arithmetic.
MOVING = (
    "Concat",
    "Slice",
    "Split",
    "Transpose",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Gather",
    "MaxPool",
)
# What ONNX Runtime's quantiser appends to the name of an initializer that it stores as integers.
STORED_SUFFIX = "_quantized"


@dataclass(frozen=True)
class Rounding:
    """One QuantizeLinear: its step (an initializer's name) and its integers, the zero point taken off."""

    step: str
    low: int
    high: int
    axis: int | None = None


@dataclass(frozen=True)
class Weight:
    """A trained weight: the initializer that holds its integers, and how they are rounded."""

    stored: str
    rounding: Rounding


@dataclass(frozen=True)
class Bias:
    """A trained bias: the initializer of its integers, that of its step, and the two steps that make it."""

    stored: str
    stored_step: str
    input_step: str
    weight_step: str
    factor: float


@dataclass(frozen=True)
class Node:
    """One operator: torch's function, its attributes, the names it reads and makes, those no longer read after it."""

    kind: str
    attributes: Attributes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    spent: tuple[str, ...] = ()


class QuantisedGraph(nn.Module):
    """A student as it rounds on the device, ``log_mel (batch, 1, mels, time)`` to ``embedding (batch, dim)``.

    ``weights`` and ``log_steps`` are trained; other constants stay as the file has them.

    Args:
        model: the Q/DQ graph, as ONNX Runtime's static quantiser writes it.
        floats: the initializers of the float graph that it was made from, by name.

    Raises:
        OssicleError: an operator that is not known here, or a way to quantise that is not.
    """

    def __init__(self, model: onnx.ModelProto, floats: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        graph = model.graph
        self.input_name, self.output_name = graph.input[0].name, graph.output[0].name
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        reading = _Reading(model, stored, floats)
        self.step_names = tuple(reading.steps)
        self._shared = _shared_steps(model, stored)
        self.roundings, self.weight_of, self.bias_of = reading.roundings, reading.weights, reading.biases
        self.weights = nn.ParameterDict(
            {
                key(name): nn.Parameter(torch.from_numpy(value.copy()))
                for name, value in reading.trained.items()
            }
        )
        self.log_steps = nn.ParameterDict(
            {
                key(name): nn.Parameter(torch.from_numpy(stored[name].copy()).log())
                for name in reading.steps
                if name not in self._shared
            }
        )
        self._constants: dict[str, Tensor] = {}
        self._buffer_names: dict[str, str] = {}
        for name, value in reading.constants.items():
            tensor = torch.from_numpy(np.array(value))
            if tensor.is_floating_point():
                self._buffer_names[name] = f"constant_{len(self._buffer_names)}"
                self.register_buffer(self._buffer_names[name], tensor, persistent=False)
            else:
                # Shapes and indices are wanted where Python can read them.
                self._constants[name] = tensor
        self._plan = _plan(reading.nodes, self.output_name)

    def step(self, name: str) -> Tensor:
        """Return a trained step by the name of its initializer."""
        return self.log_step(name).exp()

    def log_step(self, name: str) -> nn.Parameter:
        """Return what is trained of a step: its logarithm, one for several steps that are shared."""
        found: nn.Parameter = self.log_steps[key(self._shared.get(name, name))]
        return found

    def forward(self, log_mel: Float[Tensor, "batch 1 mels time"]) -> Float[Tensor, "batch dim"]:
        """Return the embedding that the int8 file gives, but for the order in which sums are taken."""
        values: dict[str, Tensor] = {self.input_name: log_mel}
        for node in self._plan:
            given = [self._value(name, values) if name else None for name in node.inputs]
            if node.kind == "QuantizeLinear":
                assert given[0] is not None
                made: Any = self._rounded(given[0], self.roundings[node.outputs[0]])
            elif node.kind == "DequantizeLinear":
                made = given[0]
            else:
                made = OPERATORS[node.kind](node.attributes, given)
            made = made if isinstance(made, tuple) else (made,)
            values.update(zip(node.outputs, made, strict=False))
            for name in node.spent:
                values.pop(name, None)
        return values[self.output_name]

    def _rounded(self, values: Tensor, rounding: Rounding) -> Tensor:
        return fake_quantise(
            values, self.step(rounding.step), low=rounding.low, high=rounding.high, axis=rounding.axis
        )

    def _value(self, name: str, values: dict[str, Tensor]) -> Tensor:
        found = values.get(name)
        if found is not None:
            return found
        if name in self.weight_of:
            values[name] = self._rounded(self.weights[key(name)], self.weight_of[name].rounding)
        elif name in self.bias_of:
            values[name] = rounded_through(self.weights[key(name)], self.bias_step(name))
        elif name in self._constants:
            return self._constants[name]
        else:
            return self.get_buffer(self._buffer_names[name])
        return values[name]

    def bias_step(self, name: str) -> Tensor:
        """Return the step of a bias: the product of its layer's input step and weight step(s)."""
        bias = self.bias_of[name]
        return self.step(bias.input_step) * self.step(bias.weight_step) * bias.factor


def key(name: str) -> str:
    """Return a tensor's name as torch's containers want it: without dots."""
    return name.replace(".", "/")


def is_weight(reader: onnx.NodeProto, place: int) -> bool:
    """Whether a stored tensor is read as the weight of a multiplying layer, not as a bias or a constant."""
    return reader.op_type in MULTIPLYING and place < 2


def _shared_steps(model: onnx.ModelProto, stored: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Return step to the step that stands for it: tensors that are only moved, with equal integers before and after.

    Trained apart, their integers would have to be converted, which costs time and a rounding.
    """
    made_by = {name: node for node in model.graph.node for name in node.output}
    stands_for: dict[str, str] = {}

    def first(name: str) -> str:
        while name in stands_for:
            name = stands_for[name]
        return name

    for node in model.graph.node:
        mover = made_by.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        if mover is None or mover.op_type not in MOVING:
            continue
        for name in mover.input if mover.op_type == "Concat" else mover.input[:1]:
            source = made_by.get(name)
            if source is None or source.op_type != "DequantizeLinear" or source.input[0] in stored:
                continue
            equal = all(
                np.array_equal(stored[one], stored[other])
                for one, other in zip(node.input[1:], source.input[1:], strict=True)
            )
            one, other = first(source.input[1]), first(node.input[1])
            if equal and one != other:
                stands_for[other] = one
    return {name: first(name) for name in stands_for}


def _plan(nodes: list[Node], output: str) -> list[Node]:
    """Return the nodes that ``output`` depends on, each with the tensors that nothing after it reads."""
    wanted, chosen = {output}, list[Node]()
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            chosen.append(node)
            wanted.update(name for name in node.inputs if name)
    later, planned = {output}, list[Node]()
    for node in chosen:
        spent = {name for name in (*node.inputs, *node.outputs) if name} - later
        later.update(spent)
        planned.append(Node(node.kind, node.attributes, node.inputs, node.outputs, tuple(sorted(spent))))
    return planned[::-1]


class _Reading:
    """What is trained, what is constant and what is computed in a Q/DQ graph."""

    def __init__(
        self, model: onnx.ModelProto, stored: dict[str, np.ndarray], floats: Mapping[str, np.ndarray]
    ) -> None:
        self._stored, self._floats = stored, floats
        self.roundings: dict[str, Rounding] = {}
        self.weights: dict[str, Weight] = {}
        self.biases: dict[str, Bias] = {}
        self.trained: dict[str, np.ndarray] = {}
        self.steps: list[str] = []
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self._readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        self._made_by = {name: node for node in model.graph.node for name in node.output}
        for node in model.graph.node:
            for place, name in enumerate(node.input):
                self._readers.setdefault(name, []).append((node, place))
        biases = []
        for node in model.graph.node:
            if node.op_type == "DequantizeLinear" and node.input[0] in stored:
                if self._is_bias(node):
                    biases.append(node)
                else:
                    self._read_stored(node)
                continue
            if node.op_type == "QuantizeLinear":
                self._read_rounding(node)
            elif node.op_type == "DequantizeLinear":
                self._check_pair(node)
            elif node.op_type not in OPERATORS:
                raise OssicleError(
                    f"quantisation-aware training does not know the operator {node.op_type}",
                    expected=", ".join(sorted(OPERATORS)), got=node.name,
                    run="--set export.int8_method=ptq",
                )  # fmt: skip
            # What a pair rounds with is no value of the computation.
            read = node.input[:1] if node.op_type in PAIR else node.input
            self.constants |= {name: stored[name] for name in read if name in stored}
            self.nodes.append(Node(node.op_type, _attributes(node), tuple(read), tuple(node.output)))
        for node in biases:
            self._read_bias(node)

    def _read_rounding(self, node: onnx.NodeProto) -> None:
        if node.input[1] not in self._stored:
            raise _unknown(node, "a step that is computed")
        self.roundings[node.output[0]] = self._rounding(node)
        self._note_step(node.input[1])

    def _rounding(self, node: onnx.NodeProto) -> Rounding:
        zero = self._stored[node.input[2]] if len(node.input) > 2 else np.zeros((), np.uint8)
        if np.unique(zero).size != 1:
            raise _unknown(node, "zero points that differ by channel")
        limits, offset = np.iinfo(zero.dtype), int(zero.flat[0])
        axis = _attributes(node).get("axis", 1) if self._stored[node.input[1]].size > 1 else None
        return Rounding(node.input[1], int(limits.min) - offset, int(limits.max) - offset, axis)

    def _check_pair(self, node: onnx.NodeProto) -> None:
        source = self._made_by.get(node.input[0])
        if source is None or source.op_type != "QuantizeLinear" or source.input[1:] != node.input[1:]:
            raise _unknown(node, "integers that QuantizeLinear with the same step did not make")

    def _note_step(self, name: str) -> None:
        if name not in self.steps:
            self.steps.append(name)

    def _is_bias(self, node: onnx.NodeProto) -> bool:
        """Whether these are the integers of a multiplying layer's bias; other layers compute theirs in float."""
        readers = self._readers.get(node.output[0], [])
        of_layers = any(reader.op_type in MULTIPLYING for reader, _ in readers)
        return of_layers and bool(self._stored[node.input[0]].dtype == np.int32)

    def _float(self, node: onnx.NodeProto) -> np.ndarray:
        name, rounded = node.input[0].removesuffix(STORED_SUFFIX), self._dequantised(node)
        step = float(self._stored[node.input[1]].max())
        # What several layers share is copied for each of them under its name and a number.
        digits = len(name) - len(name.rstrip("0123456789"))
        for candidate in (name[: len(name) - cut] for cut in range(digits + 1)):
            found = self._floats.get(candidate)
            if found is not None and found.shape == rounded.shape and np.abs(found - rounded).max() <= step:
                return found.astype(np.float32)
        raise _unknown(node, f"integers of which the float graph has no {name}")

    def _read_stored(self, node: onnx.NodeProto) -> None:
        """Read a stored tensor: a weight of a multiplying layer is trained, anything else stays."""
        made, readers = node.output[0], self._readers.get(node.output[0], [])
        if not readers or not all(is_weight(reader, place) for reader, place in readers):
            self.constants[made] = self._dequantised(node)
            return
        rounding = self._rounding(node)
        # Symmetric weights leave out the least integer, as the exporter does.
        low = -rounding.high if rounding.low == -rounding.high - 1 else rounding.low
        self.weights[made] = Weight(node.input[0], Rounding(rounding.step, low, rounding.high, rounding.axis))
        self.trained[made] = self._float(node)
        self._note_step(rounding.step)

    def _dequantised(self, node: onnx.NodeProto) -> np.ndarray:
        integers = self._stored[node.input[0]].astype(np.float32)
        step = self._stored[node.input[1]]
        zero = self._stored[node.input[2]].astype(np.float32) if len(node.input) > 2 else np.float32(0)
        if step.size > 1:
            shape = [1] * integers.ndim
            shape[_attributes(node).get("axis", 1)] = -1
            step, zero = step.reshape(shape), np.reshape(zero, shape)
        return np.asarray((integers - zero) * step, dtype=np.float32)

    def _read_bias(self, node: onnx.NodeProto) -> None:
        made = node.output[0]
        readers = self._readers.get(made, [])
        if len(readers) != 1 or readers[0][1] != 2:
            raise _unknown(node, "a bias of several layers")
        layer = readers[0][0]
        data, weight = (self._made_by.get(layer.input[place]) for place in (0, 1))
        if data is None or weight is None or {data.op_type, weight.op_type} != {"DequantizeLinear"}:
            raise _unknown(node, "a bias of a layer whose input is not quantised")
        factor = float(_attributes(layer).get("beta", 1.0))
        self.biases[made] = Bias(node.input[0], node.input[1], data.input[1], weight.input[1], factor)
        self.trained[made] = self._float(node)


def _attributes(node: onnx.NodeProto) -> Attributes:
    found: Attributes = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, onnx.TensorProto):
            value = torch.from_numpy(numpy_helper.to_array(value).copy())
        elif node.op_type == "Constant":
            value = torch.tensor(value)
        found["value" if node.op_type == "Constant" else attribute.name] = value
    if node.op_type == "Split":
        found["parts"] = len(node.output)
    return found


def _unknown(node: onnx.NodeProto, what: str) -> OssicleError:
    return OssicleError(
        f"quantisation-aware training does not know {what}",
        expected="a Q/DQ graph as ONNX Runtime's static quantiser writes it", got=node.name or node.output[0],
        run="--set export.int8_method=ptq",
    )  # fmt: skip
