"""No encoder at all: each mel band's mean and deviation over time as the embedding, in a file like a student's."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pipeline.config import LogMelConfig
from pipeline.deploy.metadata import ExportMetadata
from pipeline.prototypes.onnx_bank import EMBEDDING, INPUT

OPSET, IR_VERSION = 20, 10


def log_mel_encoder(frontend: LogMelConfig) -> onnx.ModelProto:
    """Return a model ``log_mel`` (batch, 1, mels, time) -> ``embedding`` (batch, 2 mels): means, then deviations.

    A device keeps two running sums a band for it: of the level and of its square.
    """
    over_time = numpy_helper.from_array(np.array([3], np.int64), "over_time")
    nodes = [
        helper.make_node("ReduceMean", [INPUT, "over_time"], ["mean"], keepdims=1),
        helper.make_node("Sub", [INPUT, "mean"], ["moved"]),
        helper.make_node("Mul", ["moved", "moved"], ["square"]),
        helper.make_node("ReduceMean", ["square", "over_time"], ["variance"], keepdims=1),
        helper.make_node("Sqrt", ["variance"], ["deviation"]),
        helper.make_node("Concat", ["mean", "deviation"], ["both"], axis=2),
        helper.make_node("Squeeze", ["both", "squeezed"], [EMBEDDING]),
    ]
    squeezed = numpy_helper.from_array(np.array([1, 3], np.int64), "squeezed")
    graph = helper.make_graph(
        nodes, "log_mel_statistics",
        [helper.make_tensor_value_info(INPUT, onnx.TensorProto.FLOAT, ["batch", 1, frontend.mels, "time"])],
        [helper.make_tensor_value_info(EMBEDDING, onnx.TensorProto.FLOAT, ["batch", 2 * frontend.mels])],
        [over_time, squeezed],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    metadata = ExportMetadata(
        frontend=frontend, embedding_dim=2 * frontend.mels, student="log_mel_statistics"
    )
    helper.set_model_props(model, metadata.properties())
    return model
