"""Any ONNX model as a teacher, run by ONNX Runtime; inner tensors are had by making them outputs in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.artifact import file_digest
from pipeline.config import TeacherConfig, digest
from pipeline.errors import ConfigError, MissingDependencyError, WeightsError, near_matches
from pipeline.teachers import options as teacher_options
from pipeline.teachers.graph import (
    MAX_GRAPH_BYTES,
    GraphFile,
    GraphOptions,
    GraphRun,
    GraphTeacher,
    dequantised,
    locate,
)

# com.microsoft: ONNX Runtime's own operators, which its quantiser and optimiser write.
BUILT_IN_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
# Where an integer tensor's scale and zero point are among the inputs of the node that makes it.
_SCALE_INPUTS = {"QuantizeLinear": 1, "QLinearConv": 6, "QLinearMatMul": 6}


def checked_model(path: Path) -> tuple[Any, dict[str, str]]:
    """Return the model, its external data not yet read, and the SHA-256 of each of its external files.

    Raises:
        WeightsError: it is no ONNX file, needs custom operators, or refers to data outside its folder.
        MissingDependencyError: onnx is not installed.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise MissingDependencyError(
            "ONNX models are read by onnx and run by onnxruntime, which are not installed",
            run="pip install 'ossicle[deploy]'",
        ) from error
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise WeightsError(f"{path.name} is no ONNX model", got=str(error)) from error
    own = {function.domain for function in model.functions}
    nodes = [*_nodes(model.graph), *(node for f in model.functions for node in f.node)]
    foreign = sorted({f"{n.domain}.{n.op_type}" for n in nodes if n.domain not in BUILT_IN_DOMAINS | own})
    if foreign or not nodes:
        got = ", ".join(foreign[:5]) or "no operator at all"
        raise WeightsError(
            f"{path.name} cannot be run: it needs operators of others",
            expected="ONNX's own operators",
            got=got,
        )
    external: dict[str, Path] = {}
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            file = _inside(path, entries.get("location", ""))
            external.setdefault(entries["location"], file)
            _check_extent(path, tensor, entries, file)
    return model, {location: file_digest(file) for location, file in sorted(external.items())}


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _tensors(model: Any) -> Iterator[Any]:
    """Yield every tensor that could name an external file: initializers and attributes, at any depth."""

    def of_graph(graph: Any) -> Iterator[Any]:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        yield from of_nodes(graph.node)

    def of_nodes(nodes: Any) -> Iterator[Any]:
        for node in nodes:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
                for inner in (attribute.g, *attribute.graphs):
                    yield from of_graph(inner)

    yield from of_graph(model.graph)
    for function in model.functions:
        yield from of_nodes(function.node)


def _inside(path: Path, location: str) -> Path:
    folder = path.resolve().parent
    file = (folder / location).resolve()
    if not location or Path(location).is_absolute() or not file.is_relative_to(folder):
        raise WeightsError(
            f"{path.name} refers to data outside its folder", expected=f"a file in {folder}", got=location
        )
    if not file.is_file():
        raise WeightsError(
            f"{path.name} refers to a file that is not there", expected=str(file), got="nothing"
        )
    if file.stat().st_size > MAX_GRAPH_BYTES:
        raise WeightsError(f"{file.name} is too large", expected=f"{MAX_GRAPH_BYTES} bytes at most")
    return file


def _check_extent(path: Path, tensor: Any, entries: dict[str, str], file: Path) -> None:
    size = file.stat().st_size
    try:
        start, length = int(entries.get("offset", 0)), int(entries.get("length", size))
    except ValueError as error:
        raise WeightsError(f"{path.name}: the extent of {tensor.name!r} is no number") from error
    if start < 0 or length < 0 or start + length > size:
        got = f"bytes {start} to {start + length} of {size}"
        raise WeightsError(f"{path.name}: {tensor.name!r} reaches past the end of {file.name}", got=got)


class _OnnxRun:
    """A session whose outputs are the asked tensors alone."""

    def __init__(self, path: Path, options: GraphOptions, asked: list[str], device: torch.device) -> None:
        model, external = checked_model(path)
        try:
            import onnx
            import onnxruntime
        except ImportError as error:
            raise MissingDependencyError(
                "ONNX models are run by onnxruntime, which is not installed",
                run="pip install 'ossicle[deploy]'",
            ) from error
        if external:
            onnx.load_external_data_for_model(model, str(path.resolve().parent))
        made = [name for node in model.graph.node for name in node.output if name]
        for name in asked:
            if name not in made:
                known = [value.name for value in model.graph.output]
                raise ConfigError(
                    f"{path.name} has no tensor {name!r}",
                    expected=f"{near_matches(name, made)} Outputs: {', '.join(known)}",
                    got=name,
                )
        self.scales = {name: options.quantisation.get(name) or _declared_scale(model, name) for name in asked}
        # Types are left to the runtime's inference: the file need not declare those of inner tensors.
        kept = {value.name: value for value in model.graph.output}
        del model.graph.output[:]
        model.graph.output.extend([kept.get(name) or onnx.ValueInfoProto(name=name) for name in asked])
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = torch.get_num_threads(), 1
        settings.log_severity_level = 4
        providers = ["CUDAExecutionProvider"] if device.type == "cuda" else ["CPUExecutionProvider"]
        try:
            self.session: Any = onnxruntime.InferenceSession(
                model.SerializeToString(), settings, providers=providers
            )
        except Exception as error:  # ONNX Runtime's errors share no base but this
            raise WeightsError(f"{path.name} cannot be run", got=str(error).splitlines()[0][:300]) from error
        inputs = {value.name: value for value in self.session.get_inputs()}
        name = options.input_name or next(iter(inputs))
        if name not in inputs or len(inputs) != 1:
            raise ConfigError(
                f"{path.name} takes other inputs", expected="one: " + (options.input_name or "the sound"),
                got=", ".join(inputs),
            )  # fmt: skip
        if inputs[name].type != "tensor(float)":
            raise ConfigError(f"{path.name} takes {inputs[name].type}", expected="tensor(float)")
        self.input, self.asked = name, asked
        self.input_shape: tuple[int | None, ...] = tuple(
            size if isinstance(size, int) and size > 0 else None for size in inputs[name].shape
        )

    def run(self, batch: np.ndarray) -> dict[str | int, np.ndarray]:
        """Return the asked tensors as float32, dequantised."""
        values = self.session.run(self.asked, {self.input: batch.astype(np.float32, copy=False)})
        return {name: self._real(name, value) for name, value in zip(self.asked, values, strict=True)}

    def _real(self, name: str, value: np.ndarray) -> np.ndarray:
        if not np.issubdtype(value.dtype, np.integer):
            return np.asarray(value, dtype=np.float32)
        scale = self.scales[name]
        if scale is None:
            raise ConfigError(
                f"tensor {name!r} holds integers of no declared scale",
                expected=f'embed.teacher.options.quantisation."{name}" = [scale, zero_point]',
            )
        return dequantised(value, *scale)


def _declared_scale(model: Any, name: str) -> tuple[float, int] | None:
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if name not in node.output or node.op_type not in _SCALE_INPUTS:
            continue
        first = _SCALE_INPUTS[node.op_type]
        given = [constants.get(key) for key in node.input[first : first + 2]]
        values = [numpy_helper.to_array(tensor) for tensor in given if tensor is not None]
        if values and all(value.size == 1 for value in values):
            return float(values[0].item()), int(values[1].item()) if len(values) > 1 else 0
    return None


class OnnxTeacher(GraphTeacher):
    """An ONNX model as stage 1 runs it."""

    code_version = "onnx/1"
    kind = "onnx"

    def open(self, path: Path) -> GraphRun:
        """Return the session."""
        asked = [name for name in (self.own.embedding, self.own.logits) if name is not None]
        for name in asked:
            if not isinstance(name, str):
                raise ConfigError("an ONNX tensor has a name, no number", expected="a name", got=name)
        return _OnnxRun(path, self.own, [str(name) for name in dict.fromkeys(asked)], self.device)


def build_onnx(
    config: TeacherConfig, *, weights: Path | None = None, cache: Path | None = None
) -> OnnxTeacher:
    """Return the teacher of an ONNX file, as ``config.options`` declare it (:class:`GraphOptions`).

    Raises:
        ConfigError: an option is unknown, missing, or does not fit the model.
        WeightsError: the file is absent, of an unknown digest, damaged, or unsafe.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    options = teacher_options.parse(GraphOptions, "onnx", config.options)
    config = config if weights is None else config.model_copy(update={"weights": weights})
    file = locate("onnx", config, options, cache)
    _, external = checked_model(file.path)
    if external:
        whole = digest({"model": file.sha256, "external": external})
        file = GraphFile(file.path, whole, file.name, file.licence, file.citation)
    return OnnxTeacher(config, options, file)
