"""Where quantisation-aware training starts: the student's float graph, calibrated with every layer in int8."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from torch import nn

from pipeline import artifact
from pipeline.config import ExportConfig
from pipeline.deploy.calibration import CalibrationRows
from pipeline.deploy.int8_graph import calibrate, write_quantised
from pipeline.deploy.metadata import ExportMetadata
from pipeline.deploy.onnx_export import export_student
from pipeline.students.saved import SavedStudent

# The float graph as the exporter writes it, the same with batch norms folded, and its calibrated int8 form.
FLOAT, PREPARED, INT8 = "start_fp32.onnx", "start_prepared.onnx", "start_s8s8.onnx"
AGREEMENT_ROWS = 64


def graph(
    folder: Path,
    student: nn.Module,
    description: SavedStudent,
    rows: CalibrationRows,
    config: ExportConfig,
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Return the calibrated int8 model and the initializers of the float graph it was made from.

    Made once a folder, so that a resumed training goes on with the same graph.

    Args:
        folder: gets ``start_fp32.onnx``, ``start_prepared.onnx`` and ``start_s8s8.onnx``, the last one last.
        student: in evaluation mode, with its classifier where ``export.classifier`` asks; description: of it.
        rows: set the ranges.
        config: ``[export]``: operator set, which operators are quantised and how they are calibrated.
    """
    if not (folder / INT8).is_file():
        metadata = ExportMetadata(description.frontend, student=description.student.name)
        export_student(student, folder / FLOAT, metadata=metadata, opset=config.opset)
        with tempfile.TemporaryDirectory(prefix="ossicle-qat-") as scratch:
            calibrated = calibrate(folder / FLOAT, Path(scratch), rows.calibration, config)
            artifact.write_bytes(folder / PREPARED, calibrated.model.read_bytes())
            with artifact.replacing(folder / INT8) as temporary:
                write_quantised(calibrated, temporary, "s8s8", config.int8_ops)
    stored = onnx.load(str(folder / PREPARED)).graph.initializer
    return onnx.load(str(folder / INT8)), {one.name: numpy_helper.to_array(one) for one in stored}
