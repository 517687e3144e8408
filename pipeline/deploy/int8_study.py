"""What int8 does to one exported student: which layer costs what, which method helps, how small weights get."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import artifact
from pipeline.config import ExportConfig, LogMelConfig
from pipeline.deploy.bias_correction import correct
from pipeline.deploy.calibration import CalibrationRows, rows_for
from pipeline.deploy.fidelity import Judge
from pipeline.deploy.int8 import plan_precision
from pipeline.deploy.int8_graph import calibrate, write_quantised
from pipeline.deploy.layers import layers
from pipeline.deploy.metadata import ExportMetadata
from pipeline.deploy.sensitivity import sweep
from pipeline.deploy.weight_only import Bits, write_weight_only
from pipeline.store.reader import StoreReader

PARTS = ("sensitivity", "methods", "sizes")
RESULT = "quantisation.json"
WIDTHS: tuple[Bits, ...] = (8, 4)
# Each changes one thing of the plain form: all operators in int8, min and max of the store's first rows.
PLAIN: dict[str, Any] = {
    "calibration": "minmax", "calibration_draw": "stored", "equalisation": "none", "bias_correction": False,
    "per_channel": True, "int8_ops": "all",
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one scale a tensor": {"per_channel": False},
    "percentile": {"calibration": "percentile"},
    "entropy": {"calibration": "entropy"},
    "rows by cluster, drawn": {"calibration_draw": "cluster_random"},
    "rows by cluster, nearest": {"calibration_draw": "cluster_nearest"},
    "equalised by weights": {"equalisation": "weights"},
    "equalised by activations": {"equalisation": "activations"},
    "bias corrected": {"bias_correction": True},
    "equalised by activations, bias corrected": {"equalisation": "activations", "bias_correction": True},
    "convolutions and products alone": {"int8_ops": "conv_matmul"},
}
Done = Callable[[str], None]


@dataclass(frozen=True)
class Study:
    """What is asked.

    Attributes:
        fp32: the exported float file.
        folder: of the weight-only files and the result.
        parts: of ``PARTS``.
        config: the export's settings; methods change one of them each.
        frontend: of the student.
    """

    fp32: Path
    folder: Path
    parts: tuple[str, ...]
    config: ExportConfig
    frontend: LogMelConfig


def run(study: Study, reader: StoreReader, *, done: Done = lambda what: None) -> dict[str, Any]:
    """Return the parts asked for as plain values; weight-only files are left in ``study.folder``.

    Every file is judged on the same held-out rows (validation), and by the probe where rows have classes.

    Raises:
        StoreError: too few usable rows.
        ParityError: a quantised file does not run.
    """
    rows = rows_for(reader, study.config)
    judge = Judge(study.fp32, rows.held_out, rows.labelled)
    found: dict[str, Any] = {
        "rows": {
            "calibration": len(rows.calibration), "draw": rows.draw, "held_out": len(rows.held_out),
            "held_out_split": rows.held_out_split,
            "labelled": 0 if rows.labelled is None else len(rows.labelled.labels),
        },
        "probe_score_fp32": judge.probe_score,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="ossicle-int8-") as scratch:
        work = Path(scratch)
        if "sensitivity" in study.parts:
            found["sensitivity"] = _sensitivity(study, rows, judge, work, done)
        if "methods" in study.parts:
            found["methods"] = _methods(study, reader, judge, work, done)
    if "sizes" in study.parts:
        found["sizes"] = _sizes(study, rows, judge, done)
    return found


def _sensitivity(study: Study, rows: CalibrationRows, judge: Judge, work: Path, done: Done) -> dict[str, Any]:
    calibrated = calibrate(study.fp32, work, rows.calibration, study.config)
    known = layers(calibrated.model, rows.held_out[:1])
    whole = work / "whole.onnx"
    write_quantised(calibrated, whole, "s8s8", study.config.int8_ops)
    swept = sweep(calibrated, known, judge, work, ops=study.config.int8_ops, spared=True, done=done)
    plan = plan_precision(calibrated, work, rows, study.fp32, study.config)
    return {
        "int8": judge.fidelity(whole).as_json(),
        "layers": [one.as_json() for one in swept],
        "plan": {
            "ops": plan.ops,
            "keep_float": list(plan.keep_float),
            "int16": list(plan.int16),
            "macs_share": plan.macs_share,
        },
    }


def _methods(study: Study, reader: StoreReader, judge: Judge, work: Path, done: Done) -> list[dict[str, Any]]:
    drawn: dict[str, CalibrationRows] = {}
    found = []
    for name, changes in METHODS.items():
        config = study.config.model_copy(update={**PLAIN, **changes})
        if config.calibration_draw not in drawn:
            drawn[config.calibration_draw] = rows_for(reader, config)
        calibration = drawn[config.calibration_draw].calibration
        calibrated = calibrate(study.fp32, work, calibration, config)
        if config.bias_correction:
            calibrated = correct(calibrated, work, calibration, ops=config.int8_ops)
        trial = work / "method.onnx"
        write_quantised(calibrated, trial, "s8s8", config.int8_ops)
        fidelity = judge.fidelity(trial)
        found.append(
            {"method": name, "changes": changes, "file_bytes": trial.stat().st_size, **fidelity.as_json()}
        )
        done(name)
    return found


def _sizes(study: Study, rows: CalibrationRows, judge: Judge, done: Done) -> list[dict[str, Any]]:
    metadata = ExportMetadata(frontend=study.frontend)
    found = []
    for bits in WIDTHS:
        path = study.folder / f"student_w{bits}.onnx"
        made = write_weight_only(
            study.fp32, path, bits, judge=judge, metadata=metadata, log_mels=rows.calibration
        )
        found.append(made.as_json())
        done(f"weights in {bits} bits")
    return found


def write(study: Study, result: dict[str, Any], config: dict[str, Any], inputs: dict[str, str]) -> None:
    """Write ``quantisation.json`` and the folder's marker."""
    artifact.write_json(study.folder / RESULT, result)
    summary = {"parts": list(study.parts)}
    artifact.finish(study.folder, kind="quantisation", config=config, inputs=inputs, summary=summary)


def chosen_parts(sensitivity: bool, methods: bool, sizes: bool) -> tuple[str, ...]:
    """Return the parts asked for; none named = all."""
    asked: Sequence[bool] = (sensitivity, methods, sizes)
    return tuple(part for part, wanted in zip(PARTS, asked, strict=True) if wanted) or PARTS
