"""One ONNX file that hears, decides and learns: encoder, bank of classes, and the bank after it was taught.

Beside ``log_mel`` every input has a value of its own in the file, so that a device gives only what it changes:
``prototypes``, ``counts`` (``scales`` of an 8-bit bank), ``threshold``, and ``enrol``: the class that each window
teaches, -1 for none. What comes back as ``prototypes.next``, ``counts.next`` is the bank of the next call.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline import artifact
from pipeline.deploy import metadata as metadata_props
from pipeline.errors import ConfigError
from pipeline.prototypes.bank import (
    INT8_MAX,
    LEAST_NORM,
    UNKNOWN,
    Features,
    Int8Rows,
    NeighbourBank,
    PrototypeBank,
)

INPUT, EMBEDDING = "log_mel", "embedding"
SCORES, CLASS, CONFIDENCE, FEATURE = "scores", "class", "confidence", "feature"
ENROL, THRESHOLD, NEXT = "enrol", "threshold", ".next"
PROPERTY = "bank"


@dataclass
class _Builder:
    """Nodes and constants behind an encoder, every new name with a prefix of its own."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """Add a node and return its output's name."""
        name = out or f"bank/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"bank/{name}", **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.float32, name: str | None = None) -> str:
        """Add a constant and return its name."""
        name = name or f"bank/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name


def write_bank(
    encoder: Path | onnx.ModelProto,
    path: Path,
    *,
    features: Features,
    bank: PrototypeBank | NeighbourBank,
    classes: list[str],
    int8: bool = False,
    described: dict[str, Any] | None = None,
) -> None:
    """Write ``encoder`` with ``bank`` behind its embedding.

    Inputs: ``log_mel`` (batch, 1, mels, time) and, with values in the file, for prototypes ``prototypes``
    (classes, dim), ``counts`` (classes,) and ``enrol`` (batch,) int64; for neighbours ``rows`` (rows, dim) and
    ``row_classes`` (rows,) int64; ``threshold`` (1,) for both. With ``int8`` prototypes and rows are int8 with
    ``scales``, a float32 a row, and are multiplied as integers.

    Outputs: ``scores`` (batch, classes), ``class`` (batch,) int64 with -1 for no known class, ``confidence``
    (batch,), ``feature`` (batch, dim), and for prototypes the bank after ``enrol``: ``prototypes.next``,
    ``counts.next`` and with ``int8`` ``scales.next``. A neighbour bank learns by one more row: ``feature``.

    Args:
        encoder: an exported student, or a model of the same inputs; its embedding is ``embedding``. Of a step of a
            stream the file also carries what the step carries (:class:`~pipeline.prototypes.bank_stream.BankStream`).
        path: the file to write; whole or not at all.
        features: centre, gain and metric.
        bank: its prototypes or rows are the file's own values.
        classes: their names, in order; empty slots may have names too.
        int8: whether the bank is 8-bit.
        described: further entries of the property ``ossicle.bank``.

    Raises:
        ConfigError: the encoder has no output ``embedding``, or of another width.
    """
    model = onnx.ModelProto()
    model.CopyFrom(encoder if isinstance(encoder, onnx.ModelProto) else onnx.load(str(encoder)))
    graph = model.graph
    _check(graph, features, encoder)
    build = _Builder()
    centred = build.op("Sub", EMBEDDING, build.constant(features.centre))
    x = build.op("Mul", centred, build.constant(features.gain))
    if features.metric == "cosine":
        norm = build.op("ReduceL2", x, build.constant([1], np.int64), keepdims=1)
        x = build.op("Div", x, build.op("Max", norm, build.constant(LEAST_NORM)))
    x = build.op("Identity", x, out=FEATURE)
    inputs: list[onnx.ValueInfoProto] = []
    outputs = [_value(SCORES, np.float32, ["batch", "classes"]), _value(CLASS, np.int64, ["batch"])]
    outputs += [_value(CONFIDENCE, np.float32, ["batch"]), _value(FEATURE, np.float32, ["batch", "dim"])]
    if isinstance(bank, PrototypeBank):
        rows = _rows(build, "prototypes", "classes", bank.prototypes, inputs, int8=int8)
        counts = _given(build, "counts", bank.counts, ["classes"], inputs)
        found = _similarities(build, features.metric, x, rows, int8=int8)
        taught = build.op("Greater", counts, build.constant(0.0))
        scores = build.op("Where", taught, found, build.constant(-np.inf), out=SCORES)
        confidence = build.op("ReduceMax", scores, build.constant([1], np.int64), keepdims=0, out=CONFIDENCE)
        outputs += _enrolment(build, x, rows, counts, inputs, int8=int8)
    else:
        rows = _rows(build, "rows", "rows", bank.rows, inputs, int8=int8)
        of_row = _given(build, "row_classes", bank.row_classes.astype(np.int64), ["rows"], inputs)
        found = _similarities(build, features.metric, x, rows, int8=int8)
        taught = build.op("GreaterOrEqual", of_row, build.constant(0, np.int64))
        found = build.op("Where", taught, found, build.constant(-np.inf))
        scores, confidence = _votes(build, found, of_row, bank)
    threshold = _given(build, THRESHOLD, np.array([bank.threshold], np.float32), [1], inputs)
    best = build.op("ArgMax", scores, axis=1, keepdims=0)
    unknown = build.op("Less", confidence, threshold)
    build.op("Where", unknown, build.constant(UNKNOWN, np.int64), best, out=CLASS)
    # Of a step of a stream: what it carries, and the embedding that its runner asks for by name.
    kept = [value for value in graph.output if value.name.endswith(NEXT)]
    kept = [value for value in graph.output if value.name == EMBEDDING] + kept if kept else []
    kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
    del graph.output[:]
    graph.output.extend([*outputs, *kept])
    graph.input.extend(inputs)
    graph.node.extend(build.nodes)
    graph.initializer.extend(build.constants)
    onnx.checker.check_model(model)
    kind = "prototypes" if isinstance(bank, PrototypeBank) else "neighbours"
    told = {"kind": kind, "metric": features.metric, "classes": classes, "int8": int8, **(described or {})}
    before = {p.key: p.value for p in model.metadata_props}
    with artifact.replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
        name = metadata_props.PREFIX + PROPERTY
        metadata_props.embed(temporary, {**before, name: json.dumps(told, ensure_ascii=False)})


def _check(graph: onnx.GraphProto, features: Features, encoder: Path | onnx.ModelProto) -> None:
    where = encoder if isinstance(encoder, Path) else graph.name
    widths = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.output}
    if EMBEDDING not in widths:
        raise ConfigError(
            f"{where} has no output called {EMBEDDING}", expected="student_fp32.onnx or an int8 one",
            got=list(widths), run="ossicle export RECIPE",
        )  # fmt: skip
    if widths[EMBEDDING][-1] not in (0, len(features.centre)):
        raise ConfigError(
            f"{where} gives another width of embedding",
            expected=len(features.centre),
            got=widths[EMBEDDING][-1],
        )


def _value(name: str, dtype: Any, shape: list[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def _given(
    build: _Builder, name: str, value: np.ndarray, shape: list[Any], inputs: list[onnx.ValueInfoProto]
) -> str:
    """Add an input that has a value in the file, and return its name."""
    inputs.append(_value(name, value.dtype, shape))
    return build.constant(value, value.dtype, name)


def _rows(
    build: _Builder,
    name: str,
    axis: str,
    rows: np.ndarray,
    inputs: list[onnx.ValueInfoProto],
    *,
    int8: bool,
) -> dict[str, str]:
    if not int8:
        return {"values": _given(build, name, rows.astype(np.float32), [axis, "dim"], inputs)}
    small = Int8Rows.of(rows)
    values = _given(build, name, small.values, [axis, "dim"], inputs)
    return {"values": values, "scales": _given(build, "scales", small.scales, [axis], inputs)}


def _similarities(build: _Builder, metric: str, x: str, rows: dict[str, str], *, int8: bool) -> str:
    """Add the cosine, or minus the squared distance, of every feature and every row: (batch, rows)."""
    last = build.constant([1], np.int64)
    values = rows["values"]
    if int8:
        q, scale = _quantised(build, x)
        turned = build.op("Transpose", values, perm=[1, 0])
        product = build.op("Cast", build.op("MatMulInteger", q, turned), to=TensorProto.FLOAT)
        product = build.op("Mul", build.op("Mul", product, scale), rows["scales"])
        wide, near = build.op("Cast", values, to=TensorProto.FLOAT), build.op("Cast", q, to=TensorProto.FLOAT)
        square = build.op("ReduceSumSquare", wide, last, keepdims=0)
        row_squares = build.op("Mul", square, build.op("Mul", rows["scales"], rows["scales"]))
        x_squares = build.op("ReduceSumSquare", build.op("Mul", near, scale), last, keepdims=1)
    else:
        product = build.op("MatMul", x, build.op("Transpose", values, perm=[1, 0]))
        row_squares = build.op("ReduceSumSquare", values, last, keepdims=0)
        x_squares = build.op("ReduceSumSquare", x, last, keepdims=1)
    if metric == "cosine":
        norms = build.op("Mul", build.op("Sqrt", x_squares), build.op("Sqrt", row_squares))
        return build.op("Div", product, build.op("Max", norms, build.constant(LEAST_NORM)))
    twice = build.op("Mul", product, build.constant(2.0))
    return build.op("Sub", twice, build.op("Add", x_squares, row_squares))


def _quantised(build: _Builder, x: str) -> tuple[str, str]:
    """Add rows' 8-bit values and scales: (rows, dim) int8 and (rows, 1); a row of zeros has scale 1."""
    largest = build.op("ReduceMax", build.op("Abs", x), build.constant([1], np.int64), keepdims=1)
    divided = build.op("Div", largest, build.constant(float(INT8_MAX)))
    nothing = build.op("Equal", largest, build.constant(0.0))
    scale = build.op("Where", nothing, build.constant(1.0), divided)
    rounded = build.op("Round", build.op("Div", x, scale))
    clipped = build.op("Clip", rounded, build.constant(-float(INT8_MAX)), build.constant(float(INT8_MAX)))
    return build.op("Cast", clipped, to=TensorProto.INT8), scale


def _enrolment(
    build: _Builder,
    x: str,
    rows: dict[str, str],
    counts: str,
    inputs: list[onnx.ValueInfoProto],
    *,
    int8: bool,
) -> list[onnx.ValueInfoProto]:
    """Add the running means after ``enrol``; return the outputs."""
    enrol = _given(build, ENROL, np.array([UNKNOWN], np.int64), ["taught"], inputs)
    old = rows["values"]
    if int8:
        wide = build.op("Cast", old, to=TensorProto.FLOAT)
        old = build.op("Mul", wide, build.op("Unsqueeze", rows["scales"], build.constant([1], np.int64)))
    number = build.op("Squeeze", build.op("Shape", counts), build.constant([0], np.int64))
    slots = build.op("Range", build.constant(0, np.int64), number, build.constant(1, np.int64))
    member = build.op("Equal", build.op("Unsqueeze", enrol, build.constant([1], np.int64)), slots)
    # One -1 in the file stands for a batch of any size.
    batch = build.op("Shape", x, start=0, end=1)
    shape = build.op("Concat", batch, build.constant([1], np.int64), axis=0)
    member = build.op("Expand", build.op("Cast", member, to=TensorProto.FLOAT), shape)
    more = build.op("ReduceSum", member, build.constant([0], np.int64), keepdims=0)
    total = build.op(
        "Add",
        build.op("Mul", old, build.op("Unsqueeze", counts, build.constant([1], np.int64))),
        build.op("MatMul", build.op("Transpose", member, perm=[1, 0]), x),
    )
    later = build.op("Add", counts, more, out=f"counts{NEXT}")
    divisor = build.op(
        "Unsqueeze", build.op("Max", later, build.constant(1.0)), build.constant([1], np.int64)
    )
    outputs = [_value(f"counts{NEXT}", np.float32, ["classes"])]
    if not int8:
        build.op("Div", total, divisor, out=f"prototypes{NEXT}")
        return [_value(f"prototypes{NEXT}", np.float32, ["classes", "dim"]), *outputs]
    values, scale = _quantised(build, build.op("Div", total, divisor))
    build.op("Identity", values, out=f"prototypes{NEXT}")
    build.op("Squeeze", scale, build.constant([1], np.int64), out=f"scales{NEXT}")
    small = [_value(f"prototypes{NEXT}", np.int8, ["classes", "dim"])]
    return [*small, _value(f"scales{NEXT}", np.float32, ["classes"]), *outputs]


def _votes(build: _Builder, found: str, of_row: str, bank: NeighbourBank) -> tuple[str, str]:
    name, near = "bank/near_similarity", "bank/near"
    number = build.constant([bank.neighbours], np.int64)
    build.nodes.append(helper.make_node("TopK", [found, number], [name, near], name="bank/nearest", axis=1))
    voted = build.op("Unsqueeze", build.op("Gather", of_row, near), build.constant([2], np.int64))
    slots = build.constant(np.arange(bank.classes), np.int64)
    votes = build.op("Cast", build.op("Equal", voted, slots), to=TensorProto.FLOAT)
    scores = build.op("ReduceMean", votes, build.constant([1], np.int64), keepdims=0, out=SCORES)
    return scores, build.op("ReduceMean", name, build.constant([1], np.int64), keepdims=0, out=CONFIDENCE)
