"""Any TFLite model as a teacher, run by LiteRT's reference-order kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import TeacherConfig
from pipeline.errors import ConfigError, MissingDependencyError, WeightsError, near_matches
from pipeline.teachers import options as teacher_options
from pipeline.teachers.graph import GraphOptions, GraphRun, GraphTeacher, dequantised, locate

IDENTIFIER = b"TFL3"


class _TfliteRun:
    """An interpreter of one model; inner tensors are kept where an asked one is no output."""

    def __init__(
        self, path: Path, asked: list[str | int], quantisation: dict[str, tuple[float, int]]
    ) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter, OpResolverType
        except ImportError as error:
            raise MissingDependencyError(
                "TFLite models are run by ai-edge-litert, which is not installed",
                run="pip install 'ossicle[tflite]'",
            ) from error
        content = path.read_bytes()
        if content[4:8] != IDENTIFIER:
            raise WeightsError(f"{path.name} is no TFLite model", expected="a FlatBuffer of TFL3")
        try:
            # Delegates (XNNPACK) sum in another order: up to 8 steps of an int8 embedding, machine by machine.
            self.interpreter: Any = Interpreter(
                model_content=content,
                num_threads=1,
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
                experimental_preserve_all_tensors=True,
            )
            inputs = self.interpreter.get_input_details()
            if len(inputs) != 1:
                raise ConfigError(f"{path.name} has {len(inputs)} inputs", expected="one: the sound")
            self.input_shape: tuple[int | None, ...] = tuple(
                None if size < 0 else int(size) for size in inputs[0]["shape_signature"]
            )
            self.interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise WeightsError(
                f"{path.name} cannot be run", expected="TFLite's built-in operators", got=str(error)
            ) from error
        self.input = inputs[0]
        self.details = {name: self._detail(name, path) for name in asked}
        self.scales = quantisation

    def _detail(self, asked: str | int, path: Path) -> dict[str, Any]:
        details: list[dict[str, Any]] = self.interpreter.get_tensor_details()
        found = [d for d in details if d["index" if isinstance(asked, int) else "name"] == asked]
        if len(found) == 1:
            return found[0]
        names = [d["name"] for d in details if d["name"]]
        raise ConfigError(
            f"{path.name} has {'several tensors' if found else 'no tensor'} {asked!r}",
            expected="its number instead of its name" if found else near_matches(str(asked), names[-200:]),
            got=asked,
        )

    def run(self, batch: np.ndarray) -> dict[str | int, np.ndarray]:
        """Return the asked tensors as float32, dequantised."""
        interpreter, index = self.interpreter, self.input["index"]
        if tuple(self.input["shape"]) != batch.shape:
            interpreter.resize_tensor_input(index, batch.shape)
            interpreter.allocate_tensors()
            self.input = interpreter.get_input_details()[0]
        given, (scale, zero) = batch, self.input["quantization"]
        if np.issubdtype(self.input["dtype"], np.integer):
            limits = np.iinfo(self.input["dtype"])
            given = np.clip(np.rint(batch / scale) + zero, limits.min, limits.max)
        interpreter.set_tensor(index, given.astype(self.input["dtype"]))
        interpreter.invoke()
        return {name: self._value(name, detail) for name, detail in self.details.items()}

    def _value(self, name: str | int, detail: dict[str, Any]) -> np.ndarray:
        value = self.interpreter.get_tensor(detail["index"])
        if not np.issubdtype(value.dtype, np.integer):
            return np.asarray(value, dtype=np.float32)
        if str(name) in self.scales:
            return dequantised(value, *self.scales[str(name)])
        declared = detail["quantization_parameters"]
        scales, zeros = np.asarray(declared["scales"]), np.asarray(declared["zero_points"])
        if scales.size == 0:
            raise ConfigError(
                f"tensor {name!r} holds integers of no declared scale",
                expected="embed.teacher.options.quantisation",
            )
        if scales.size > 1:
            shape = [1] * value.ndim
            shape[declared["quantized_dimension"]] = scales.size
            scales, zeros = scales.reshape(shape), zeros.reshape(shape)
        else:
            scales, zeros = scales[0], zeros[0]
        return dequantised(value, scales, zeros)


class TfliteTeacher(GraphTeacher):
    """A TFLite model as stage 1 runs it: on the CPU, one thread, deterministic kernels."""

    code_version = "tflite/1"
    kind = "tflite"

    def open(self, path: Path) -> GraphRun:
        """Return the interpreter."""
        asked = [name for name in (self.own.embedding, self.own.logits) if name is not None]
        return _TfliteRun(path, asked, self.own.quantisation)


def build_tflite(
    config: TeacherConfig, *, weights: Path | None = None, cache: Path | None = None
) -> TfliteTeacher:
    """Return the teacher of a TFLite file, as ``config.options`` declare it (:class:`GraphOptions`).

    Raises:
        ConfigError: an option is unknown, missing, or does not fit the model; another device than the CPU.
        WeightsError: the file is absent, of an unknown digest, damaged, or needs custom operators.
        MissingDependencyError: LiteRT is not installed.
    """
    if config.device != "cpu":
        raise ConfigError("teacher 'tflite' runs on the CPU", got=f"device {config.device}")
    options = teacher_options.parse(GraphOptions, "tflite", config.options)
    config = config if weights is None else config.model_copy(update={"weights": weights})
    return TfliteTeacher(config, options, locate("tflite", config, options, cache))
