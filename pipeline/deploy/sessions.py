"""ONNX Runtime sessions of one thread, and how int8 files are run so that x86 computes what ARM computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from jaxtyping import Float

from pipeline.errors import ParityError

# Without it x86 runs parts of an S8S8 file in float; with it most outputs are bit-equal to ARM's.
EXACT_INT8 = "session.qdqisint8allowed"


def open_session(path: Path, *, exact_int8: bool = True, threads: int = 1) -> onnxruntime.InferenceSession:
    """Load an ONNX file on the CPU.

    Args:
        path: the file.
        exact_int8: keep signed 8-bit Q/DQ pairs as integer arithmetic on x86 too.
        threads: threads of one inference.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if exact_int8:
        options.add_session_config_entry(EXACT_INT8, "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_session(
    session: onnxruntime.InferenceSession, inputs: Float[np.ndarray, "batch ..."], output: int = 0
) -> Float[np.ndarray, "batch ..."]:
    """Return one output, by default the first, for the only input.

    Raises:
        ParityError: the file does not run at this shape (a dimension was baked in at export).
    """
    name = session.get_inputs()[0].name
    try:
        found: np.ndarray = session.run([session.get_outputs()[output].name], {name: inputs})[0]
    except Exception as error:
        # ONNX Runtime's exception classes derive from Exception directly and are not public.
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise ParityError(
            "the exported file does not run at a shape it must accept",
            expected=f"an output for {name} {tuple(inputs.shape)}",
            got=str(error).splitlines()[0],
        ) from error
    return found
