"""The float file that int8 is made from, where a student's own graph is slow in int8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline import artifact
from pipeline.deploy import metadata as metadata_props
from pipeline.deploy.graph_islands import mark_islands
from pipeline.deploy.graph_pooling import pool_means
from pipeline.deploy.metadata import ExportMetadata
from pipeline.deploy.onnx_export import EXPORT_BATCH, EXPORT_FRAMES, INPUT, OUTPUT, export_module
from pipeline.deploy.parity import Parity, check_parity
from pipeline.students.normalised import NormalisedStudent


def write_deploy_form(
    student: NormalisedStudent,
    path: Path,
    inputs: Sequence[np.ndarray],
    *,
    metadata: ExportMetadata,
    opset: int,
    tolerance: float,
) -> Parity | None:
    """Write the student's deploy form, where it has one, and compare it with the student.

    Args:
        student: in evaluation mode.
        path: the file to write; it takes and gives what ``export_student``'s does.
        inputs: log-mels ``(batch, 1, mels, frames)`` of shapes that the export does not see.
        metadata: embedded; its frontend gives the number of mels.
        opset: ONNX operator set.
        tolerance: largest difference, as a share of the largest output at that shape.

    Returns:
        The comparison; None, and no file, for a student without a deploy form.

    Raises:
        ParityError: it differs from the student.
        OssicleError: the exporter refuses it.
    """
    mels = metadata.frontend.mels
    form = student.backbone.deploy_form(mels, float(student.mean), float(student.std))
    if form is None:
        return None
    islands = {type(module) for module in form.modules() if getattr(module, "computes_in_float", False)}
    with artifact.replacing(path) as temporary:
        export_module(
            form.eval(),
            (torch.zeros(EXPORT_BATCH, 1, mels, EXPORT_FRAMES),),
            temporary,
            input_name=INPUT,
            output_names=(OUTPUT,),
            dynamic={0: "batch", 3: "time"},
            opset=opset,
        )
        mark_islands(temporary, islands)
        pool_means(temporary)
        metadata_props.embed(temporary, metadata.properties())
    return check_parity(student, path, inputs, tolerance=tolerance)
