"""What a stream costs: multiply-accumulates and time of every block of frames, what is carried, the real-time factor.

    python -m pipeline.measure.streaming_cost student_stream_fp32.onnx --runs 200

Timing runs in a process of its own, without torch. A block is the ``step_frames`` frames after which the exported
step of a causal student gives its next embedding.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from pipeline.errors import MeasurementError
from pipeline.measure import latency
from pipeline.measure.extra_tables import Column, ExtraTable, write

FILES = {name: f"student_stream_{name}.onnx" for name in ("fp32", "s8s8", "u8s8")}
PROPERTY = "ossicle.stream"
TABLE = "streaming"
WARMUPS = 20
MS_PER_SECOND = 1_000.0


@dataclass(frozen=True)
class StepCost:
    """What one block costs by the file alone, exactly.

    Attributes:
        macs: multiply-accumulates of convolutions and matrix products.
        int8_macs: those whose operands are 8-bit.
        state_bytes: carried from block to block by one stream.
        step_frames: frames of a block.
        hop_ms: from frame to frame.
        algorithmic_ms, longest_ms: latency by construction, for a sound at a block's end and at its beginning.
    """

    macs: int
    int8_macs: int
    state_bytes: int
    step_frames: int
    hop_ms: float
    algorithmic_ms: float
    longest_ms: float

    @property
    def step_ms(self) -> float:
        """Sound that one block holds."""
        return self.step_frames * self.hop_ms

    @property
    def macs_per_second(self) -> float:
        """Multiply-accumulates of a second of sound."""
        return self.macs * MS_PER_SECOND / self.step_ms


def step_cost(path: Path) -> StepCost:
    """Return the exact costs of an exported step, counted from its graph at batch 1.

    Raises:
        MeasurementError: the file is no exported step, or a shape in it is not known.
    """
    model = onnx.load(str(path))
    described = _described({p.key: p.value for p in model.metadata_props}, path)
    _with_batch_one(model.graph)
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        sizes = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if all(sizes) and value.type.tensor_type.HasField("shape"):
            shapes[value.name] = tuple(sizes)
    makers = {name: node for node in graph.node for name in node.output}
    macs = int8_macs = 0
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        found = _macs(node, shapes, path)
        macs += found
        if all(name in makers and makers[name].op_type == "DequantizeLinear" for name in node.input[:2]):
            int8_macs += found
    timing = described["timing"]
    state = sum(
        math.prod(size or 1 for size in one["shape"]) * np.dtype(one.get("dtype", "float32")).itemsize
        for one in described["carried"]
    )
    return StepCost(
        macs, int8_macs, state, described["step_frames"], timing["hop_ms"], timing["algorithmic_ms"],
        timing["longest_ms"],
    )  # fmt: skip


def time_blocks(path: Path, *, runs: int, seconds: float) -> dict[str, Any]:
    """Return p10, p50 and p95 in milliseconds of one block, state fed back, on one thread of this process.

    Raises:
        MeasurementError: the file is no exported step.
    """
    session = latency.open_session(path)
    described = _described(session.get_modelmeta().custom_metadata_map, path)
    block, *rest = session.get_inputs()
    generator = np.random.default_rng(0)
    frames = generator.standard_normal((1, *block.shape[1:])).astype(np.float32)
    first = {one["name"]: one for one in described["carried"]}
    state = {given.name: _initial(first[given.name]) for given in rest}

    def hear() -> None:
        nonlocal state
        _, *left = session.run(None, {block.name: frames + np.float32(described["padding"]), **state})
        state = dict(zip(state, left, strict=True))

    return latency.time_calls(hear, warmups=WARMUPS, runs=runs, seconds=seconds)


def time_here(path: Path, *, runs: int, seconds: float) -> dict[str, Any]:
    """Return :func:`time_blocks` of a fresh process.

    Raises:
        MeasurementError: the process failed.
    """
    command = [
        sys.executable, "-m", __name__, str(path.resolve()), "--runs", str(runs), "--seconds", str(seconds),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MeasurementError(
            f"timing {path.name} failed", got=(done.stderr.strip().splitlines() or ["no message"])[-1]
        )
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def row_of(path: Path, *, runs: int, seconds: float) -> dict[str, Any]:
    """Return one row of the streaming table for one file."""
    cost, time = step_cost(path), time_here(path, runs=runs, seconds=seconds)
    return {
        "every_ms": cost.step_ms,
        "latency_ms": f"{cost.algorithmic_ms:.0f} to {cost.longest_ms:.0f}",
        "kmacs_block": cost.macs / 1e3,
        "kmacs_hop": cost.macs / cost.step_frames / 1e3,
        "mmacs_second": cost.macs_per_second / 1e6,
        "int8_percent": 100.0 * cost.int8_macs / max(cost.macs, 1),
        "state_bytes": cost.state_bytes,
        "p50_ms": time["p50_ms"],
        "p95_ms": time["p95_ms"],
        "ms_hop": time["p50_ms"] / cost.step_frames,
        "real_time_factor": time["p50_ms"] / cost.step_ms,
    }


def write_table(
    folder: Path, exports: Iterable[tuple[str, str, Path]], *, runs: int, seconds: float, recipe: str
) -> Path | None:
    """Measure every stream among ``exports`` and write the benchmark's streaming table; None where there is none.

    Args:
        folder: of the benchmark.
        exports: name of the run, digest and folder of its export; those without a stream are left out.
        runs, seconds: timed at most so often and so long a file.
        recipe: its name, for the command that makes the table anew.
    """
    rows: list[dict[str, Any]] = []
    for name, digest, export in exports:
        for precision, file in FILES.items():
            if (export / file).is_file():
                shared = {"model": name, "precision": precision, "export_digest": digest}
                rows.append({**shared, **row_of(export / file, runs=runs, seconds=seconds)})
    if not rows:
        return None
    columns = (
        Column(key="model", heading="model"),
        Column(key="precision", heading="file"),
        Column(key="every_ms", heading="an embedding every ms", decimals=0),
        Column(key="latency_ms", heading="algorithmic latency ms"),
        Column(key="kmacs_block", heading="k MACs a block", decimals=1),
        Column(key="kmacs_hop", heading="k MACs a hop", decimals=1),
        Column(key="mmacs_second", heading="M MACs / s", decimals=2),
        Column(key="int8_percent", heading="int8 MACs %", decimals=0),
        Column(key="state_bytes", heading="state bytes", decimals=0),
        Column(key="p50_ms", heading="x86 p50 ms a block", decimals=3),
        Column(key="p95_ms", heading="p95 ms", decimals=3),
        Column(key="ms_hop", heading="x86 ms a hop", decimals=4),
        Column(key="real_time_factor", heading="real-time factor", decimals=5),
    )
    note = "The student alone, state fed back, one x86 thread; a hop's share is its block's over the block's frames."
    table = ExtraTable(
        name=TABLE, title="streaming: cost of a block of frames", kind="measured", note=note, columns=columns,
        rows=tuple(rows), run=f"ossicle benchmark {recipe}",
    )  # fmt: skip
    return write(folder, table)


def _described(properties: dict[str, str], path: Path) -> dict[str, Any]:
    described = json.loads(properties.get(PROPERTY, "{}"))
    if "timing" not in described:
        raise MeasurementError(
            f"{path} is no step of a stream", expected="student_stream_fp32.onnx of a causal student",
            run="ossicle export, of a student trained with student.causal = true",
        )  # fmt: skip
    found: dict[str, Any] = described
    return found


def _initial(one: dict[str, Any]) -> np.ndarray:
    shape = [1 if size is None else size for size in one["shape"]]
    return np.full(shape, float(one["initial"]), np.dtype(one.get("dtype", "float32")))


def _with_batch_one(graph: onnx.GraphProto) -> None:
    for value in (*graph.input, *graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.HasField("dim_param"):
                axis.dim_value = 1
    del graph.value_info[:]


def _macs(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]], path: Path) -> int:
    missing = [name for name in (*node.input[:2], node.output[0]) if name not in shapes]
    if missing:
        raise MeasurementError(f"{path.name}: the shape of a tensor is not known", got=missing[0])
    left, right, out = (shapes[name] for name in (node.input[0], node.input[1], node.output[0]))
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(right[1:])
    transposed = any(a.name == "transA" and helper.get_attribute_value(a) for a in node.attribute)
    return math.prod(out) * left[0 if transposed else -1]


def main(arguments: list[str] | None = None) -> int:
    """Time one file and print its record as JSON."""
    parser = argparse.ArgumentParser(description="time the blocks of an exported stream on one thread")
    parser.add_argument("model", type=Path)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args(arguments)
    print(json.dumps(time_blocks(given.model, runs=given.runs, seconds=given.seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
