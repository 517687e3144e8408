"""Means over mel and time as pooling: of the two, ONNX Runtime has an int8 kernel for the pooling alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper


def pool_means(path: Path) -> int:
    """Write every mean over the two spatial axes as ``GlobalAveragePool``, in place; equal in output.

    Returns:
        How many were written so.
    """
    model = onnx.load(str(path))
    graph = model.graph
    constants = {one.name: one for one in graph.initializer}
    constants |= {n.output[0]: n.attribute[0].t for n in graph.node if n.op_type == "Constant"}
    ranks = {
        v.name: len(v.type.tensor_type.shape.dim)
        for v in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    nodes, pooled = [], 0
    for node in graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        axes = constants.get(node.input[1]) if node.op_type == "ReduceMean" and len(node.input) > 1 else None
        spatial = axes is not None and sorted(np.ravel(numpy_helper.to_array(axes)) % 4) == [2, 3]
        if not spatial or ranks.get(node.input[0]) != 4:
            nodes.append(node)
            continue
        pooled += 1
        output = node.output[0]
        keeps = bool(attributes.get("keepdims", 1))
        mean = output if keeps else f"{output}_pooled"
        nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [mean], name=f"{node.name}_pool"))
        if not keeps:
            nodes.append(helper.make_node("Flatten", [mean], [output], name=f"{node.name}_flatten", axis=1))
    if pooled:
        del graph.node[:]
        graph.node.extend(nodes)
        onnx.checker.check_model(model)
        onnx.save(model, str(path))
    return pooled
