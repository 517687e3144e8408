"""int8 of a causal student's step: ranges from streamed rows, running statistics in float, a past of 8 bits."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from jaxtyping import Float
from onnxruntime.quantization import CalibrationDataReader, QuantType, create_calibrator, quant_pre_process
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

from pipeline import artifact
from pipeline.config import ExportConfig
from pipeline.deploy import metadata as metadata_props
from pipeline.deploy import stream_graph
from pipeline.deploy.calibration import CalibrationRows
from pipeline.deploy.metadata import ExportMetadata
from pipeline.deploy.onnx_export import quiet_exporter
from pipeline.deploy.onnx_stream import OnnxStream
from pipeline.deploy.parity import centred_cosine

# Rows are joined to so many streams, so that a range is one of a stream that has heard more than a clip.
STREAMS = 8
CHUNK_BLOCKS = 16
# Share of the multiplying layers that may be left in float before the search gives up.
MAX_FLOAT_SHARE = 0.5


@dataclass(frozen=True)
class QuantisedStream:
    """One int8 step and how close its stream stays to the float step's.

    Attributes:
        precision: ``s8s8`` or ``u8s8`` (activations, weights).
        ops: ``all`` or ``conv_matmul``: which operators were quantised, the statistics' never.
        kept_float: names of the layers that were left in float.
        centred_cosine: mean cosine to the float stream at the end of each held-out row, after the float mean is
            subtracted from both.
        cosine_to_whole: the same to the int8 whole-clip file of the same run; None where there is none.
        compared_rows: how many rows.
        target_met: whether ``centred_cosine`` reached ``export.int8_min_cosine``.
        state_bytes: what one stream carries; ``file_bytes``: size of the file.
    """

    precision: str
    ops: str
    kept_float: tuple[str, ...]
    centred_cosine: float
    cosine_to_whole: float | None
    compared_rows: int
    target_met: bool
    state_bytes: int
    file_bytes: int

    def as_json(self) -> dict[str, Any]:
        """Return plain values for ``parity.json``."""
        return {**asdict(self), "kept_float": list(self.kept_float)}


def quantise_stream(
    fp32: Path,
    targets: dict[str, Path],
    *,
    rows: CalibrationRows,
    config: ExportConfig,
    metadata: ExportMetadata,
    whole: dict[str, Float[np.ndarray, "rows dim"]] | None = None,
) -> list[QuantisedStream]:
    """Write int8 forms of an exported step.

    First every convolution, product with constant weights, pool and what lies between them is int8; where the
    stream's centred cosine then misses ``config.int8_min_cosine``, convolutions and products alone; then the
    layers that hurt most alone are left in float, 1, 2, 4, ... of them, up to half. Running means, maxima and
    deviations always stay float32: a running mean moves by a ten-thousandth of a value, which 8 bits do not hold.

    Args:
        fp32: of :func:`~pipeline.deploy.stream_export.export_stream`.
        targets: the file to write for each precision, ``s8s8`` and/or ``u8s8``.
        rows: calibration rows are heard as streams; held-out rows judge.
        config: the ``export`` section.
        metadata: of the run; precision and calibration are added.
        whole: embeddings of the held-out rows by the int8 whole-clip file of each precision.
    """
    with tempfile.TemporaryDirectory(prefix="ossicle-stream-int8-") as scratch:
        work = Path(scratch)
        prepared = work / "prepared.onnx"
        with quiet_exporter():
            quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
        source = _Source(
            fp32, prepared, _ranges(fp32, prepared, work, rows.calibration), config.per_channel,
            rows.held_out, stream_rows(fp32, rows.held_out),
        )  # fmt: skip
        ops, kept = _choose(source, work, config)
        noted = f"minmax, {len(rows.calibration)} training rows heard as streams"
        shared = {
            **metadata.extra,
            "calibration": noted,
            "int8_ops": ops,
            "kept_float": json.dumps(list(kept)),
        }
        found = []
        for precision, target in targets.items():
            with artifact.replacing(target) as temporary:
                carried = _write(source, temporary, precision, ops, kept)
                properties = replace(metadata, precision=precision, extra={**shared, **carried}).properties()
                metadata_props.embed(temporary, properties)
            got = stream_rows(target, rows.held_out)
            cosine = centred_cosine(got, source.reference)
            found.append(
                QuantisedStream(
                    precision, ops, kept, cosine,
                    None if whole is None or precision not in whole else centred_cosine(got, whole[precision]),
                    len(got), cosine >= config.int8_min_cosine,
                    OnnxStream(target).state_bytes, target.stat().st_size,
                )
            )  # fmt: skip
    return found


def stream_rows(
    path: Path, log_mels: Float[np.ndarray, "rows 1 mels frames"]
) -> Float[np.ndarray, "rows dim"]:
    """Return the embedding at the end of each row, every row a stream of its own."""
    stream = OnnxStream(path, batch=len(log_mels))
    stream.push(log_mels[:, 0])
    return stream.finish()


class _Blocks(CalibrationDataReader):
    """ONNX Runtime's view of some steps: what the session was given at each, then None."""

    def __init__(self, feeds: Sequence[dict[str, np.ndarray]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next step's inputs."""
        return next(self._feeds, None)


def _ranges(
    fp32: Path, prepared: Path, work: Path, log_mels: Float[np.ndarray, "rows 1 mels frames"]
) -> TensorsData:
    with quiet_exporter():
        calibrator = create_calibrator(
            prepared,
            stream_graph.RANGED_OPS,
            augmented_model_path=str(work / "augmented.onnx"),
            calibrate_method=CalibrationMethod.MinMax,
        )
        for chunk in _streamed(fp32, log_mels):
            calibrator.collect_data(_Blocks(chunk))
        return calibrator.compute_data()


def _streamed(
    path: Path, log_mels: Float[np.ndarray, "rows 1 mels frames"]
) -> Iterator[list[dict[str, np.ndarray]]]:
    """Yield the inputs of the float step at every block of the rows joined to a few streams."""
    streams = min(STREAMS, len(log_mels))
    each = len(log_mels) // streams
    joined = np.stack(
        [np.concatenate(list(log_mels[i * each : (i + 1) * each, 0]), axis=1) for i in range(streams)]
    )
    stream = OnnxStream(path, batch=streams)
    step = stream.step_frames
    chunk: list[dict[str, np.ndarray]] = []
    for first in range(0, max(1, joined.shape[2] // step) * step, step):
        block = joined[..., first : first + step]
        if block.shape[2] < step:
            missing = ((0, 0), (0, 0), (0, step - block.shape[2]))
            block = np.pad(block, missing, constant_values=stream.padding)
        chunk.append(stream.feeds(block))
        stream.hear(block)
        if len(chunk) == CHUNK_BLOCKS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


@dataclass(frozen=True, eq=False)
class _Source:
    """The float step, its ranges, and the rows that judge what is made of it."""

    fp32: Path
    prepared: Path
    ranges: TensorsData
    per_channel: bool
    held_out: np.ndarray
    reference: np.ndarray


def _choose(source: _Source, work: Path, config: ExportConfig) -> tuple[str, tuple[str, ...]]:
    trial = work / "trial.onnx"

    def score(ops: str, keep: tuple[str, ...] = (), only: tuple[str, ...] = ()) -> float:
        described = _write(source, trial, "s8s8", ops, keep, only)
        metadata_props.embed(trial, {metadata_props.PREFIX + name: text for name, text in described.items()})
        return centred_cosine(stream_rows(trial, source.held_out), source.reference)

    best: tuple[float, str, tuple[str, ...]] = (-2.0, config.int8_ops, ())
    for ops in ("all", "conv_matmul") if config.int8_ops == "all" else ("conv_matmul",):
        best = max(best, (score(ops), ops, ()))
        if best[0] >= config.int8_min_cosine:
            return best[1], best[2]
    layers = stream_graph.integer_nodes(onnx.load(str(source.prepared)), source.ranges, all_ops=False)
    worst = sorted(layers, key=lambda name: score("conv_matmul", only=(name,)))
    number = 1
    while number <= MAX_FLOAT_SHARE * len(worst) and best[0] < config.int8_min_cosine:
        keep = tuple(worst[:number])
        best = max(best, *((score(ops, keep), ops, keep) for ops in ("conv_matmul", config.int8_ops)))
        number *= 2
    return best[1], best[2]


def _write(
    source: _Source, path: Path, precision: str, ops: str, keep: Sequence[str], only: Sequence[str] = ()
) -> dict[str, str]:
    """Write one int8 step; return the property that says what it carries."""
    model = onnx.load(str(source.prepared))
    chosen = stream_graph.integer_nodes(model, source.ranges, all_ops=ops == "all")
    chosen = [name for name in chosen if name not in keep and (not only or name in only)]
    with quiet_exporter():
        quantizer = QDQQuantizer(
            load_model_with_shape_infer(source.prepared),
            source.per_channel,
            False,
            QuantType.QInt8,
            QuantType.QInt8 if precision == "s8s8" else QuantType.QUInt8,
            source.ranges,
            chosen,
            [],
            stream_graph.RANGED_OPS,
            {},
        )
        quantizer.quantize_model()
        quantizer.model.save_model_to_file(str(path), False)
    return stream_graph.carry_in_int8(path, source.fp32)
