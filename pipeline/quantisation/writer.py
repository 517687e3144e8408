"""The trained graph as int8 ONNX: its own integers and step sizes, put where the calibrated ones were."""

from __future__ import annotations

import math

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from pipeline.deploy import portable_steps
from pipeline.quantisation.fake_quantise import bias_levels
from pipeline.quantisation.graph import PAIR, QuantisedGraph, is_weight, key


@torch.no_grad()
def portable_model(template: onnx.ModelProto, graph: QuantisedGraph) -> onnx.ModelProto:
    """Return ``signed_model`` with steps on which every processor rounds alike; ``graph`` gets them too.

    Args:
        template: the Q/DQ model that ``graph`` was made of (S8S8).
        graph: trained; some of its steps become larger by 0.006 to 6 %.
    """
    model = signed_model(template, graph)
    for _ in range(portable_steps.ROUNDS):
        wanted = portable_steps.portable_steps(model)
        for name, step in wanted.items():
            graph.log_step(name).fill_(math.log(step))
        if not wanted:
            break
        model = signed_model(template, graph)
    portable_steps.settle(model)
    return model


@torch.no_grad()
def signed_model(template: onnx.ModelProto, graph: QuantisedGraph) -> onnx.ModelProto:
    """Return ``template`` with the numbers of ``graph``; nothing is calibrated anew.

    Args:
        template: the Q/DQ model that ``graph`` was made of (S8S8).
        graph: trained.
    """
    found: dict[str, Tensor] = {name: graph.step(name) for name in graph.step_names}
    for name, weight in graph.weight_of.items():
        rounding = weight.rounding
        values, step = graph.weights[key(name)], graph.step(rounding.step)
        if step.ndim:
            shape = [1] * values.ndim
            shape[rounding.axis or 0] = -1
            step = step.reshape(shape)
        found[weight.stored] = (values / step).round().clamp(rounding.low, rounding.high)
    for name, bias in graph.bias_of.items():
        step = graph.bias_step(name)
        found[bias.stored_step] = step
        found[bias.stored] = bias_levels(graph.weights[key(name)], step)
    model = onnx.ModelProto()
    model.CopyFrom(template)
    for tensor in model.graph.initializer:
        if tensor.name in found:
            old = numpy_helper.to_array(tensor)
            value = found[tensor.name].cpu().numpy().reshape(old.shape).astype(old.dtype)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model


def unsigned_model(signed: onnx.ModelProto) -> onnx.ModelProto:
    """Return the U8S8 form of an S8S8 model: activations and their zero points 128 higher, the same numbers.

    Weights of multiplying layers stay signed; 16-bit activations stay as they are.
    """
    model = onnx.ModelProto()
    model.CopyFrom(signed)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    raised: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            raised.update(node.input[2:3])
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            source = made_by.get(name)
            if source is None or source.op_type != "DequantizeLinear" or source.input[0] not in stored:
                continue
            if not is_weight(node, place) and node.op_type not in PAIR:
                raised.update((source.input[0], *source.input[2:3]))
    for name in raised & set(stored):
        value = numpy_helper.to_array(stored[name])
        if value.dtype == np.int8:
            higher = (value.astype(np.int16) + 128).astype(np.uint8)
            stored[name].CopyFrom(numpy_helper.from_array(higher, name))
    del model.graph.value_info[:]
    return model
