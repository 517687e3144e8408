"""The int8 files that ``ossicle qat`` trained, taken into an export and judged like calibrated ones."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from pipeline import artifact
from pipeline.config import ExportConfig
from pipeline.deploy import int8
from pipeline.deploy import metadata as metadata_props
from pipeline.deploy.calibration import CalibrationRows
from pipeline.deploy.fidelity import Judge
from pipeline.deploy.metadata import ExportMetadata

# What the trained file knows of its own making.
TOLD = ("calibration", "int8_method", "int8_ops", "kept_float", "per_channel")


def take(
    trained: Path,
    fp32: Path,
    folder: Path,
    *,
    rows: CalibrationRows,
    config: ExportConfig,
    metadata: ExportMetadata,
) -> list[int8.Quantised]:
    """Copy ``student_s8s8.onnx`` and ``student_u8s8.onnx`` of ``trained`` into ``folder`` and judge them.

    Args:
        trained: a finished folder of ``ossicle qat``.
        fp32: the float file that they are compared with.
        folder: the export's.
        rows: ``held_out`` and ``labelled`` are compared on.
        config: the limits of the gate.
        metadata: of the export.

    Raises:
        MissingArtifactError: the training is not finished.
        ParityError: a file does not run.
    """
    artifact.read(trained, run="ossicle qat RECIPE")
    judge = Judge(fp32, rows.held_out, rows.labelled)
    plan = int8.Plan(ops=config.int8_ops)
    found = []
    for precision in int8.PRECISIONS:
        name = f"student_{precision}.onnx"
        told = metadata_props.read(trained / name)
        with artifact.replacing(folder / name) as temporary:
            shutil.copyfile(trained / name, temporary)
            extra = {**metadata.extra, **{key: told[key] for key in TOLD}}
            metadata_props.embed(temporary, replace(metadata, precision=precision, extra=extra).properties())
        found.append(int8.judged(folder / name, precision, plan, rows, judge, fp32, config))
    return found
