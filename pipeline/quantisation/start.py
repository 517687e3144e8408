"""Where quantisation-aware training starts: what would ship without it, with every layer in int8.

That is the student's deploy form where it has one: the zeros that it adds to the weights are trained like the rest,
and cost nothing more.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from torch import nn

from pipeline import artifact
from pipeline.config import ExportConfig
from pipeline.deploy.bias_correction import correct
from pipeline.deploy.calibration import CalibrationRows
from pipeline.deploy.deploy_form import write_deploy_form
from pipeline.deploy.int8_graph import calibrate, write_quantised
from pipeline.deploy.metadata import ExportMetadata
from pipeline.deploy.onnx_export import export_student
from pipeline.deploy.parity import log_mel_inputs
from pipeline.students.classifier import WithClassifier, read_classifier
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.saved import SavedStudent

# The float graph as the exporter writes it, the same in its deploy form, what int8 is made from (batch norms folded,
# biases corrected), and its calibrated int8 form.
FLOAT, DEPLOY, PREPARED, INT8 = (
    "start_fp32.onnx", "start_deploy.onnx", "start_prepared.onnx", "start_s8s8.onnx",
)  # fmt: skip
AGREEMENT_ROWS = 64


def graph(
    folder: Path,
    run: Path,
    student: NormalisedStudent,
    description: SavedStudent,
    rows: CalibrationRows,
    config: ExportConfig,
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Return the calibrated int8 model and the initializers of the float graph it was made from.

    Made once a folder, so that a resumed training goes on with the same graph.

    Args:
        folder: gets ``start_*.onnx``, ``start_s8s8.onnx`` last.
        run: the trained run; its classifier is read where ``export.classifier`` asks.
        student: of that run, in evaluation mode; description: of it.
        rows: set the ranges.
        config: ``[export]``: operator set, deploy form, which operators are quantised and how they are calibrated.

    Raises:
        ParityError: the deploy form differs from the student.
    """
    if not (folder / INT8).is_file():
        source = _float_graph(folder, run, student, description, rows, config)
        with tempfile.TemporaryDirectory(prefix="ossicle-qat-") as scratch:
            work = Path(scratch)
            calibrated = calibrate(source, work, rows.calibration, config)
            if config.bias_correction:
                calibrated = correct(calibrated, work, rows.calibration, ops=config.int8_ops)
            artifact.write_bytes(folder / PREPARED, calibrated.model.read_bytes())
            with artifact.replacing(folder / INT8) as temporary:
                write_quantised(calibrated, temporary, "s8s8", config.int8_ops)
    stored = onnx.load(str(folder / PREPARED)).graph.initializer
    return onnx.load(str(folder / INT8)), {one.name: numpy_helper.to_array(one) for one in stored}


def _float_graph(
    folder: Path,
    run: Path,
    student: NormalisedStudent,
    description: SavedStudent,
    rows: CalibrationRows,
    config: ExportConfig,
) -> Path:
    """Write the float graph, and the deploy form where the student has one; return what int8 is made from."""
    metadata = ExportMetadata(description.frontend, student=description.student.name)
    written: nn.Module = student
    if config.classifier:
        written = WithClassifier(student, read_classifier(run, student.embedding_dim)[0]).eval()
    export_student(written, folder / FLOAT, metadata=metadata, opset=config.opset)
    rewritten = None
    if config.deploy_form and not config.classifier:
        rewritten = write_deploy_form(
            student, folder / DEPLOY, log_mel_inputs(rows.held_out), metadata=metadata, opset=config.opset,
            tolerance=config.parity_atol,
        )  # fmt: skip
    return folder / FLOAT if rewritten is None else folder / DEPLOY
