"""Static int8: one calibration, two files (S8S8 for ARM, U8S8 for x86), judged on held-out rows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from pipeline import artifact
from pipeline.config import ExportConfig
from pipeline.deploy import metadata as metadata_props
from pipeline.deploy import portable_steps
from pipeline.deploy.bias_correction import correct
from pipeline.deploy.calibration import CalibrationRows
from pipeline.deploy.fidelity import Judge, embed_rows
from pipeline.deploy.int8_graph import Calibrated, Ops, Precision, calibrate, write_quantised
from pipeline.deploy.layers import Layer, layers
from pipeline.deploy.metadata import ExportMetadata
from pipeline.deploy.mixed_precision import Budget, choose, int8_macs_share
from pipeline.deploy.parity import centred_cosine
from pipeline.deploy.sensitivity import sweep

# Rows of a sweep over every layer; the whole file is judged on all that there are.
SENSITIVITY_ROWS = 64
# Shares of the stored windows' length at which int8 is compared too: a range that fits one length fits all.
OTHER_LENGTHS = (0.5, 1.7, 4.0)
LENGTH_ROWS = 32
PRECISIONS: tuple[Precision, ...] = ("s8s8", "u8s8")


@dataclass(frozen=True)
class Plan:
    """What a quantised file quantises.

    Attributes:
        ops: which operator types.
        keep_float: names of nodes left in float.
        int16: names of nodes with 16-bit activations.
        macs_share: share of the MACs in int8.
    """

    ops: Ops = "all"
    keep_float: tuple[str, ...] = ()
    int16: tuple[str, ...] = ()
    macs_share: float = 1.0


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
        target_met: whether ``centred_cosine`` and ``neighbour_overlap`` are within the recipe's limits.
        file_bytes: size of the file.
        neighbour_overlap: share of each held-out row's 10 nearest in float32 that int8 finds too.
        probe_score, probe_score_fp32: accuracy of the same probe on each file's embeddings; None without classes.
        int16: names of the layers that the fallback gave 16-bit activations.
        macs_share: share of the MACs in int8, by the graph.
        by_length: frames to centred cosine at lengths that calibration never saw.
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
    neighbour_overlap: float
    probe_score: float | None
    probe_score_fp32: float | None
    int16: tuple[str, ...] = ()
    macs_share: float = 1.0
    by_length: dict[int, float] = field(default_factory=dict)

    @property
    def probe_drop(self) -> float | None:
        """Return how much the probe loses in int8, None without classes."""
        if self.probe_score is None or self.probe_score_fp32 is None:
            return None
        return self.probe_score_fp32 - self.probe_score

    def as_json(self) -> dict[str, Any]:
        """Return plain values for ``parity.json``."""
        return {
            **asdict(self),
            "kept_float": list(self.kept_float),
            "int16": list(self.int16),
            "by_length": {str(frames): cosine for frames, cosine in self.by_length.items()},
            "probe_drop": self.probe_drop,
        }


def quantise(
    fp32: Path, folder: Path, *, rows: CalibrationRows, config: ExportConfig, metadata: ExportMetadata
) -> list[Quantised]:
    """Write ``student_s8s8.onnx`` and ``student_u8s8.onnx`` beside each other in ``folder``.

    The S8S8 file decides what is quantised: where it misses the recipe's limits (``int8_min_cosine``,
    ``int8_max_overlap_loss``) on ``rows.choosing``, first only convolutions and matrix products are quantised,
    then layers leave int8 (``pipeline.deploy.mixed_precision``). Both files get the same choice, and it is
    written in their metadata; both are judged on the held-out rows.

    Raises:
        ParityError: a quantised file does not run.
    """
    with tempfile.TemporaryDirectory(prefix="ossicle-int8-") as scratch:
        work = Path(scratch)
        calibrated = calibrate(fp32, work, rows.calibration, config)
        calibrated, plan = _chosen(calibrated, work, rows, fp32, config)
        calibrated = portable_steps.made_portable(
            calibrated, work, plan.ops, plan.keep_float, int16=plan.int16
        )
        judge = Judge(fp32, rows.held_out, rows.labelled)
        found = []
        for precision in PRECISIONS:
            target = folder / f"student_{precision}.onnx"
            with artifact.replacing(target) as temporary:
                write_quantised(calibrated, temporary, precision, plan.ops, plan.keep_float, int16=plan.int16)
                portable_steps.settle_file(temporary)
                extra = {**metadata.extra, **_described(plan, rows, config)}
                metadata_props.embed(
                    temporary, replace(metadata, precision=precision, extra=extra).properties()
                )
            found.append(judged(target, precision, plan, rows, judge, fp32, config))
    return found


def _chosen(
    calibrated: Calibrated, work: Path, rows: CalibrationRows, fp32: Path, config: ExportConfig
) -> tuple[Calibrated, Plan]:
    """Return the plan and the graph that it is written from, its biases corrected if asked."""
    if not config.bias_correction:
        return calibrated, plan_precision(calibrated, work, rows, fp32, config)
    whole = Plan(ops=config.int8_ops)
    corrected = correct(calibrated, work, rows.calibration, ops=whole.ops)
    trial = work / "trial.onnx"
    write_quantised(corrected, trial, "s8s8", whole.ops)
    # Where correction alone is enough no layer has to go; the search without it would let some go.
    if Budget.of(config).met(Judge(fp32, rows.choosing).fidelity(trial)):
        return corrected, whole
    plan = plan_precision(calibrated, work, rows, fp32, config)
    found = correct(
        calibrated, work, rows.calibration, ops=plan.ops, keep_float=plan.keep_float, int16=plan.int16
    )
    return found, plan


def plan_precision(
    calibrated: Calibrated, work: Path, rows: CalibrationRows, fp32: Path, config: ExportConfig
) -> Plan:
    """Return what is quantised so that the recipe's limits hold on ``rows.choosing``."""
    budget = Budget.of(config)
    judge = Judge(fp32, rows.choosing)
    known = layers(calibrated.model, rows.choosing[:1])
    trial = work / "trial.onnx"

    def score(plan: Plan) -> Any:
        write_quantised(calibrated, trial, "s8s8", plan.ops, plan.keep_float, int16=plan.int16)
        return judge.fidelity(trial)

    def losses() -> dict[str, float]:
        few = Judge(fp32, rows.choosing[:SENSITIVITY_ROWS])
        swept = sweep(calibrated, known, few, work, ops=config.int8_ops, spared=False)
        return {one.layer.name: one.loss for one in swept}

    usable = [layer for layer in known if layer.macs or config.int8_ops == "all"]
    found = choose(usable, losses, lambda kept: score(_plan(known, kept, config)), budget)
    return _plan(known, found.kept, config)


def _plan(known: Sequence[Layer], kept: Sequence[Layer], config: ExportConfig) -> Plan:
    """Return the plan that leaves ``kept`` out of int8."""
    whole = {layer.name for layer in known if not layer.macs}
    left = {layer.name for layer in kept}
    ops: Ops = "conv_matmul" if whole and whole <= left else config.int8_ops
    names = tuple(node for layer in kept if layer.macs or ops == "all" for node in layer.nodes)
    share = int8_macs_share(known, kept)
    if config.int8_fallback == "int16":
        return Plan(ops, (), names, share)
    return Plan(ops, names, (), share)


def _described(plan: Plan, rows: CalibrationRows, config: ExportConfig) -> dict[str, str]:
    described = {
        "calibration": f"{config.calibration}, {len(rows.calibration)} training rows",
        "calibration_draw": rows.draw,
        "per_channel": str(config.per_channel).lower(),
        "int8_ops": plan.ops,
        "kept_float": json.dumps(list(plan.keep_float)),
    }
    if plan.int16:
        described["int16"] = json.dumps(list(plan.int16))
    if config.equalisation != "none":
        described["equalisation"] = config.equalisation
    if config.bias_correction:
        described["bias_correction"] = "empirical"
    return described


def judged(
    path: Path,
    precision: Precision,
    plan: Plan,
    rows: CalibrationRows,
    judge: Judge,
    fp32: Path,
    config: ExportConfig,
) -> Quantised:
    """Return what ``judge`` finds of the int8 file at ``path``, by the limits of ``config``."""
    fidelity = judge.fidelity(path)
    got = embed_rows(path, rows.held_out)
    return Quantised(
        precision,
        plan.ops,
        plan.keep_float,
        fidelity.centred_cosine,
        _plain_cosine(got, judge.reference),
        len(judge.reference),
        rows.held_out_split,
        Budget.of(config).met(fidelity),
        path.stat().st_size,
        fidelity.neighbour_overlap,
        fidelity.probe_score,
        judge.probe_score,
        plan.int16,
        plan.macs_share,
        by_length(path, fp32, rows.held_out),
    )


def by_length(path: Path, fp32: Path, log_mels: Float[np.ndarray, "rows 1 mels frames"]) -> dict[int, float]:
    """Return the centred cosine at lengths other than the stored windows', by number of frames.

    Longer inputs are windows joined, shorter ones their beginnings.
    """
    stored = log_mels.shape[3]
    found = {}
    for share in OTHER_LENGTHS:
        frames = max(1, round(share * stored))
        each = -(-frames // stored)
        number = min(LENGTH_ROWS, len(log_mels) // each)
        if number < 2:
            continue
        joined = log_mels[: number * each].reshape(number, each, *log_mels.shape[1:])
        inputs = np.concatenate(list(joined.swapaxes(0, 1)), axis=3)[..., :frames]
        found[frames] = centred_cosine(embed_rows(path, inputs), embed_rows(fp32, inputs))
    return found


def _plain_cosine(got: Float[np.ndarray, "rows dim"], want: Float[np.ndarray, "rows dim"]) -> float:
    norms = np.linalg.norm(got, axis=1) * np.linalg.norm(want, axis=1)
    return float(((got * want).sum(axis=1) / np.where(norms > 0, norms, 1.0)).mean())
