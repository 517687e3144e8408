"""Static int8: one calibration, two files (S8S8 for ARM, U8S8 for x86), judged on held-out rows."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from jaxtyping import Float
from onnxruntime.quantization import CalibrationMethod, QuantType, create_calibrator, quant_pre_process
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from pipeline import artifact
from pipeline.config import ExportConfig
from pipeline.deploy import metadata as metadata_props
from pipeline.deploy.calibration import BATCH_ROWS, CalibrationRows, LogMelBatches
from pipeline.deploy.metadata import ExportMetadata
from pipeline.deploy.onnx_export import quiet_exporter
from pipeline.deploy.parity import centred_cosine
from pipeline.deploy.sessions import open_session, run_session

Precision = Literal["s8s8", "u8s8"]
Ops = Literal["all", "conv_matmul"]
CONV_MATMUL = ("Conv", "ConvTranspose", "MatMul", "Gemm")
ALL_OPS = tuple(sorted({*QDQRegistry, *QLinearOpsRegistry}))
# Share of the multiplying layers that the fallback may leave in float before it gives up.
MAX_FLOAT_SHARE = 0.5
SENSITIVITY_ROWS = 64
# ONNX Runtime's entropy search at its default 128 bins returns MinMax's ranges; more bins make it a search.
CALIBRATORS: dict[str, tuple[CalibrationMethod, dict[str, Any]]] = {
    "minmax": (CalibrationMethod.MinMax, {}),
    "percentile": (CalibrationMethod.Percentile, {"percentile": 99.99, "symmetric": False}),
    "entropy": (CalibrationMethod.Entropy, {"num_bins": 2048, "num_quantized_bins": 128}),
}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Quantised:
    """One int8 file and how close it stays to the float file.

    Attributes:
        precision: ``s8s8`` or ``u8s8`` (activations, weights).
        ops: which operator types were quantised, after any fallback.
        kept_float: names of the layers that the fallback left in float.
        centred_cosine: mean cosine to float32 after the float mean embedding is subtracted, on held-out rows.
        cosine: the plain mean cosine, which flatters.
        compared_rows: how many rows; ``compared_split``: of which split.
        target_met: whether ``centred_cosine`` reached ``export.int8_min_cosine``.
        file_bytes: size of the file.
    """

    precision: Precision
    ops: Ops
    kept_float: tuple[str, ...]
    centred_cosine: float
    cosine: float
    compared_rows: int
    compared_split: str
    target_met: bool
    file_bytes: int

    def as_json(self) -> dict[str, Any]:
        """Return plain values for ``parity.json``."""
        return {**asdict(self), "kept_float": list(self.kept_float)}


@dataclass(frozen=True)
class Calibrated:
    """The pre-processed float graph and the range of each of its tensors."""

    model: Path
    ranges: TensorsData
    symbolic_shapes: bool
    per_channel: bool


def quantise(
    fp32: Path, folder: Path, *, rows: CalibrationRows, config: ExportConfig, metadata: ExportMetadata
) -> list[Quantised]:
    """Write ``student_s8s8.onnx`` and ``student_u8s8.onnx`` beside each other in ``folder``.

    The S8S8 file decides what is quantised: where its centred cosine on held-out rows is below
    ``config.int8_min_cosine``, first only convolutions and matrix products are quantised, then the layers
    that hurt most alone are left in float, 1, 2, 4, ... of them, up to half. Both files get the same choice,
    and it is written in their metadata.

    Raises:
        ParityError: a quantised file does not run.
    """
    with tempfile.TemporaryDirectory(prefix="ossicle-int8-") as scratch:
        work = Path(scratch)
        calibrated = calibrate(fp32, work, rows.calibration, config)
        reference = embed_rows(fp32, rows.held_out)
        ops, kept = _choose(calibrated, work, rows.held_out, reference, config)
        found = []
        for precision in ("s8s8", "u8s8"):
            target = folder / f"student_{precision}.onnx"
            with artifact.replacing(target) as temporary:
                write_quantised(calibrated, temporary, precision, ops, kept)
                extra = {
                    **metadata.extra,
                    "calibration": f"{config.calibration}, {len(rows.calibration)} training rows",
                    "per_channel": str(config.per_channel).lower(),
                    "int8_ops": ops,
                    "kept_float": json.dumps(list(kept)),
                }
                properties = replace(metadata, precision=precision, extra=extra).properties()
                metadata_props.embed(temporary, properties)
            got = embed_rows(target, rows.held_out)
            centred = centred_cosine(got, reference)
            found.append(
                Quantised(
                    precision,
                    ops,
                    kept,
                    centred,
                    _plain_cosine(got, reference),
                    len(reference),
                    rows.held_out_split,
                    centred >= config.int8_min_cosine,
                    target.stat().st_size,
                )
            )
    return found


def calibrate(
    fp32: Path, work: Path, log_mels: Float[np.ndarray, "rows 1 mels frames"], config: ExportConfig
) -> Calibrated:
    """Pre-process ``fp32`` into ``work`` and find the range of every tensor over ``log_mels``."""
    prepared = work / "prepared.onnx"
    symbolic = _symbolic_shapes_work(fp32)
    with quiet_exporter():
        quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=not symbolic)
    method, options = CALIBRATORS[config.calibration]
    # The histogram calibrators print their progress.
    with contextlib.redirect_stdout(io.StringIO()):
        calibrator = create_calibrator(
            prepared,
            list(ALL_OPS),
            augmented_model_path=str(work / "augmented.onnx"),
            calibrate_method=method,
            extra_options=options,
        )
        for first in range(0, len(log_mels), BATCH_ROWS):
            # One reader a batch: the calibrators hold every activation of a reader at once.
            calibrator.collect_data(LogMelBatches(log_mels[first : first + BATCH_ROWS]))
        ranges = calibrator.compute_data()
    return Calibrated(prepared, ranges, symbolic, config.per_channel)


def write_quantised(
    calibrated: Calibrated,
    path: Path,
    precision: Precision,
    ops: Ops,
    keep_float: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
) -> None:
    """Write one Q/DQ file.

    Args:
        calibrated: graph and ranges.
        path: the file to write.
        precision: signed or unsigned activations; weights are signed.
        ops: which operator types are quantised.
        keep_float: names of nodes left in float.
        only: names of the only nodes quantised; empty = all of ``ops``.
    """
    with quiet_exporter():
        quantizer = QDQQuantizer(
            load_model_with_shape_infer(calibrated.model),
            calibrated.per_channel,
            False,
            QuantType.QInt8,
            QuantType.QInt8 if precision == "s8s8" else QuantType.QUInt8,
            calibrated.ranges,
            list(only),
            list(keep_float),
            list(ALL_OPS if ops == "all" else CONV_MATMUL),
            {},
        )
        quantizer.quantize_model()
        quantizer.model.save_model_to_file(str(path), False)


def sensitivity(
    calibrated: Calibrated,
    work: Path,
    log_mels: Float[np.ndarray, "rows 1 mels frames"],
    reference: Float[np.ndarray, "rows dim"],
) -> list[tuple[str, float]]:
    """Return (layer, centred cosine when it alone is int8) for each multiplying layer, the worst first."""
    scores = []
    trial = work / "trial.onnx"
    for name in _multiplying_layers(calibrated.model):
        write_quantised(calibrated, trial, "s8s8", "conv_matmul", only=(name,))
        scores.append((name, centred_cosine(embed_rows(trial, log_mels), reference)))
    return sorted(scores, key=lambda score: score[1])


def embed_rows(
    path: Path, log_mels: Float[np.ndarray, "rows 1 mels frames"]
) -> Float[np.ndarray, "rows dim"]:
    """Return the embeddings that an exported file gives for ``log_mels``."""
    session = open_session(path)
    batches = [
        run_session(session, log_mels[i : i + BATCH_ROWS]) for i in range(0, len(log_mels), BATCH_ROWS)
    ]
    return np.concatenate(batches)


def _choose(
    calibrated: Calibrated,
    work: Path,
    held_out: Float[np.ndarray, "rows 1 mels frames"],
    reference: Float[np.ndarray, "rows dim"],
    config: ExportConfig,
) -> tuple[Ops, tuple[str, ...]]:
    trial = work / "trial.onnx"

    def score(ops: Ops, keep: tuple[str, ...] = ()) -> float:
        write_quantised(calibrated, trial, "s8s8", ops, keep)
        return centred_cosine(embed_rows(trial, held_out), reference)

    best: tuple[float, Ops, tuple[str, ...]] = (score(config.int8_ops), config.int8_ops, ())
    if best[0] >= config.int8_min_cosine:
        return best[1], best[2]
    if config.int8_ops == "all":
        best = max(best, (score("conv_matmul"), "conv_matmul", ()))
    if best[0] >= config.int8_min_cosine:
        return best[1], best[2]
    few = slice(0, SENSITIVITY_ROWS)
    worst = [name for name, _ in sensitivity(calibrated, work, held_out[few], reference[few])]
    number = 1
    while number <= MAX_FLOAT_SHARE * len(worst) and best[0] < config.int8_min_cosine:
        keep = tuple(worst[:number])
        best = max(best, (score("conv_matmul", keep), "conv_matmul", keep))
        number *= 2
    log.warning(
        "int8 fallback: ops %s, %d layers in float, centred cosine %.4f", best[1], len(best[2]), best[0]
    )
    return best[1], best[2]


def _symbolic_shapes_work(path: Path) -> bool:
    model = onnx.load(str(path))
    try:
        # Where it gives up, it leaves its graph in the current folder.
        with quiet_exporter(), tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
            SymbolicShapeInference.infer_shapes(model)
    except Exception as error:
        # An optional pass that raises bare Exception (MobileViT's unfold) or TypeError (reductions of opset
        # 18 and up) on good graphs; the exporter's own shapes stand in for it.
        log.info("%s: symbolic shape inference skipped: %s", path.name, error)
        return False
    return True


def _multiplying_layers(model: Path) -> list[str]:
    graph = onnx.load(str(model)).graph
    return [node.name for node in graph.node if node.op_type in CONV_MATMUL and node.name]


def _plain_cosine(got: Float[np.ndarray, "rows dim"], want: Float[np.ndarray, "rows dim"]) -> float:
    norms = np.linalg.norm(got, axis=1) * np.linalg.norm(want, axis=1)
    return float(((got * want).sum(axis=1) / np.where(norms > 0, norms, 1.0)).mean())
