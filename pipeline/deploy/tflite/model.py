"""A TFLite flatbuffer under construction: tensors, operators, buffers on 16-byte boundaries, one signature.

The schema is TensorFlow's ``schema.fbs`` (version 3) as ``ai_edge_litert`` ships it in Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

IDENTIFIER = b"TFL3"
SCHEMA_VERSION = 3
ALIGNMENT_BYTES = 16
TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int8": schema.TensorType.INT8,
    "int32": schema.TensorType.INT32,
}
# The first version of each operator's definition that takes int8; where none is listed, 1 does.
INT8_VERSIONS = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "ADD": 2, "SUB": 2, "MUL": 2, "MEAN": 2, "SUM": 2,
    "AVERAGE_POOL_2D": 2, "MAX_POOL_2D": 2, "CONCATENATION": 2, "PAD": 2, "PADV2": 2, "SPLIT": 2, "SPLIT_V": 2,
    "STRIDED_SLICE": 2, "TRANSPOSE": 2, "GATHER": 2, "MAXIMUM": 2, "MINIMUM": 2, "LOGISTIC": 2, "TANH": 2,
    "SOFTMAX": 2, "RELU": 2, "RELU6": 2, "REDUCE_MAX": 2, "LEAKY_RELU": 2, "DEQUANTIZE": 2, "BATCH_MATMUL": 2,
    "MIRROR_PAD": 2,
}  # fmt: skip
# Operators whose table of options has another name than theirs in camel case.
OPTIONS = {
    "AVERAGE_POOL_2D": "Pool2D", "MAX_POOL_2D": "Pool2D", "CONV_2D": "Conv2D", "DEPTHWISE_CONV_2D": "DepthwiseConv2D",
    "MEAN": "Reducer", "SUM": "Reducer", "REDUCE_MAX": "Reducer", "MAXIMUM": "MaximumMinimum",
    "MINIMUM": "MaximumMinimum", "PADV2": "PadV2", "SPLIT_V": "SplitV", "BATCH_MATMUL": "BatchMatMul",
}  # fmt: skip


@dataclass(frozen=True)
class Quantisation:
    """Real value = scale * (integer - zero point); one of each, or one a slice along ``axis``."""

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int = 0

    def same(self, other: Quantisation | None) -> bool:
        """Whether the same integers stand for the same values."""
        return (
            other is not None
            and self.zero_point == other.zero_point
            and len(self.scale) == len(other.scale)
            and bool(np.allclose(self.scale, other.scale, rtol=1e-6, atol=0))
        )

    def real(self, integers: np.ndarray) -> np.ndarray:
        """Return the float32 values that ``integers`` stand for."""
        shape = [1] * integers.ndim
        if len(self.scale) > 1:
            shape[self.axis] = -1
        scale = np.asarray(self.scale, np.float32).reshape(shape if integers.ndim else ())
        zero = np.asarray(self.zero_point, np.int64).reshape(shape if integers.ndim else ())
        return ((integers.astype(np.int64) - zero) * scale).astype(np.float32)


class AlignedBuilder(flatbuffers.Builder):
    """Puts byte vectors, which hold the weights, where a processor reads whole words."""

    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> Any:  # noqa: N802
        """Begin a vector; of bytes, at a multiple of 16 from the file's start."""
        return super().StartVector(elemSize, numElems, ALIGNMENT_BYTES if elemSize == 1 else alignment)


class ModelWriter:
    """Collects tensors and operators of one subgraph and packs them.

    Args:
        name: of the subgraph, for viewers.
    """

    def __init__(self, name: str) -> None:
        self._model = schema.ModelT()
        self._model.version = SCHEMA_VERSION
        self._model.description = name
        self._model.buffers = [schema.BufferT()]
        self._model.operatorCodes = []
        self._model.metadata = []
        self._graph = schema.SubGraphT()
        self._graph.name = name
        self._graph.tensors, self._graph.operators = [], []
        self._codes: dict[tuple[str, int], int] = {}
        self._names: dict[str, int] = {}

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: np.dtype | type,
        quantisation: Quantisation | None = None,
        data: np.ndarray | None = None,
    ) -> int:
        """Add a tensor, constant where ``data`` is given, and return its number."""
        made = schema.TensorT()
        made.name = self._unique(name)
        made.shape = [int(size) for size in shape]
        made.hasRank = True
        made.type = TYPES[np.dtype(dtype).name]
        made.buffer = 0 if data is None else self._buffer(np.ascontiguousarray(data).tobytes())
        if quantisation is not None:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale = np.asarray(quantisation.scale, np.float32)
            made.quantization.zeroPoint = np.asarray(quantisation.zero_point, np.int64)
            made.quantization.quantizedDimension = quantisation.axis
        self._graph.tensors.append(made)
        return len(self._graph.tensors) - 1

    def operator(
        self, code: str, inputs: Sequence[int], outputs: Sequence[int], *, int8: bool, **options: Any
    ) -> None:
        """Add an operator by its name in the schema; ``options`` are fields of its table, camel case."""
        version = INT8_VERSIONS.get(code, 1) if int8 else 1
        made = schema.OperatorT()
        made.opcodeIndex = self._code(code, version)
        made.inputs, made.outputs = list(inputs), list(outputs)
        table = OPTIONS.get(code) or "".join(part.capitalize() for part in code.split("_"))
        if hasattr(schema, f"{table}OptionsT"):
            filled = getattr(schema, f"{table}OptionsT")()
            for field, value in options.items():
                if not hasattr(filled, field):
                    raise AttributeError(f"{table}Options has no field {field}")
                setattr(filled, field, value)
            made.builtinOptions = filled
            made.builtinOptionsType = getattr(schema.BuiltinOptions, f"{table}Options")
        self._graph.operators.append(made)

    def pack(
        self, inputs: Mapping[str, int], outputs: Mapping[str, int], metadata: Mapping[str, str]
    ) -> bytes:
        """Return the file. ``inputs`` and ``outputs`` name the tensors of its one signature.

        Args:
            inputs: name to tensor number.
            outputs: name to tensor number.
            metadata: name to text, stored as TFLite metadata.
        """
        self._graph.inputs, self._graph.outputs = list(inputs.values()), list(outputs.values())
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs = [_mapped(name, index) for name, index in inputs.items()]
        signature.outputs = [_mapped(name, index) for name, index in outputs.items()]
        self._model.signatureDefs = [signature]
        for name, text in metadata.items():
            entry = schema.MetadataT()
            entry.name, entry.buffer = name, self._buffer(text.encode())
            self._model.metadata.append(entry)
        self._model.subgraphs = [self._graph]
        builder = AlignedBuilder(1 << 16)
        builder.Finish(self._model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())

    def operators(self) -> dict[str, int]:
        """Return how many there are of each operator."""
        names = {number: name for (name, _), number in self._codes.items()}
        found: dict[str, int] = {}
        for made in self._graph.operators:
            found[names[made.opcodeIndex]] = found.get(names[made.opcodeIndex], 0) + 1
        return dict(sorted(found.items()))

    def _unique(self, name: str) -> str:
        seen = self._names.get(name, 0)
        self._names[name] = seen + 1
        return name if not seen else self._unique(f"{name}_{seen}")

    def _buffer(self, content: bytes) -> int:
        made = schema.BufferT()
        made.data = np.frombuffer(content, np.uint8)
        self._model.buffers.append(made)
        return len(self._model.buffers) - 1

    def _code(self, name: str, version: int) -> int:
        if (name, version) not in self._codes:
            made = schema.OperatorCodeT()
            number = getattr(schema.BuiltinOperator, name)
            made.builtinCode, made.version = number, version
            made.deprecatedBuiltinCode = min(number, schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES)
            self._codes[name, version] = len(self._model.operatorCodes)
            self._model.operatorCodes.append(made)
        return self._codes[name, version]


def _mapped(name: str, index: int) -> Any:
    made = schema.TensorMapT()
    made.name, made.tensorIndex = name, index
    return made
