"""LiteRT's interpreter on rows of log-mel, by its reference kernels or as it runs on a phone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from jaxtyping import Float

from pipeline.errors import ParityError

# XNNPACK is what LiteRT applies on Cortex-A unasked; an NPU's integers follow the reference kernels.
KERNELS = {"xnnpack": OpResolverType.AUTO, "reference": OpResolverType.BUILTIN_REF}
Kernels = Literal["xnnpack", "reference"]


def run_tflite(
    path: Path, log_mels: Float[np.ndarray, "rows 1 mels frames"], *, kernels: Kernels = "xnnpack"
) -> Float[np.ndarray, "rows dim"]:
    """Return the embeddings of ``log_mels``, one row an inference; int8 ends are quantised and dequantised here.

    Raises:
        ParityError: the file does not load or run, or gives values that are not finite.
    """
    try:
        interpreter = Interpreter(
            model_content=path.read_bytes(), num_threads=1, experimental_op_resolver_type=KERNELS[kernels]
        )
        interpreter.allocate_tensors()
        source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        found = []
        for row in log_mels:
            interpreter.set_tensor(source["index"], _stored(row[None], source))
            interpreter.invoke()
            found.append(_real(interpreter.get_tensor(target["index"]), target))
    except (RuntimeError, ValueError) as error:
        raise ParityError(
            f"{path.name} does not run in LiteRT",
            expected=f"an embedding of {log_mels.shape[1:]}",
            got=str(error).splitlines()[0],
        ) from error
    embeddings = np.concatenate(found)
    if not np.isfinite(embeddings).all():
        raise ParityError(f"{path.name} gives values that are not finite in LiteRT")
    return embeddings


def _stored(array: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    if detail["dtype"] is np.float32:
        return array.astype(np.float32)
    scale, zero = detail["quantization"]
    integers: np.ndarray = np.clip(np.rint(array / scale) + zero, -128, 127).astype(np.int8)
    return integers


def _real(array: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    if detail["dtype"] is np.float32:
        return array.copy()
    scale, zero = detail["quantization"]
    real: np.ndarray = ((array.astype(np.float32) - zero) * scale).astype(np.float32)
    return real
