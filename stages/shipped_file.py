"""Which file of an export to ship, and what int8 loses: from what the export measured and what was counted since."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.artifact import Artifact
from pipeline.deploy.bundle import FP32, PARITY
from pipeline.deploy.shipping import BY_SIZE, FLOAT, FileFigures, Limits, decide

# Of the emulated processors the one that small boards have now.
TARGET_CPU = "cortex-a76"


def choose(export: Artifact, costs: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return the file to ship and why: the export's figures, and executed instructions where they were counted.

    Args:
        export: a finished export.
        costs: rows of a benchmark, each with the ``file`` that it is of.
    """
    counted = {
        cost["file"]: {cpu: float(found["instructions"]) for cpu, found in (cost.get("arm") or {}).items()}
        for cost in costs
    }
    files = _files(export, _parity(export), counted)
    if len(files) == 1:
        return FP32, "nothing else was exported"
    verdict = decide(files, Limits.of_export(export.config.get("export", {})))
    by = next((cpu for cpu in (TARGET_CPU, *sorted(verdict.ship)) if cpu in verdict.ship), BY_SIZE)
    shipped = next(one for one in files if one.precision == verdict.ship[by])
    what = "bytes" if by == BY_SIZE else f"executed instructions on an emulated {by}"
    if shipped.precision == FLOAT:
        why = "; ".join(f"{name}: {', '.join(lines)}" for name, lines in verdict.reasons.items() if lines)
        return FP32, why or f"no other file has fewer {what}"
    return f"student_{shipped.precision}.onnx", (
        f"of the files that keep float32's geometry it has the fewest {what}; its centred cosine to float32 is "
        f"{shipped.centred_cosine:.4f}"
    )


def losses(export: Artifact) -> list[str]:
    """Return what the export's S8S8 file loses of float32 beyond its limits, in words; its size is no loss."""
    parity = _parity(export)
    # An export from before there was a verdict is told by its costs alone.
    if "shipping" not in parity:
        return []
    limits = Limits.of_export(export.config.get("export", {}))
    return [why for one in _files(export, parity) if one.precision == "s8s8" for why in one.losses(limits)]


def _parity(export: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((export.folder / PARITY).read_text(encoding="utf-8"))
    return found


def _files(
    export: Artifact, parity: Mapping[str, Any], counted: Mapping[str, Mapping[str, float]] | None = None
) -> list[FileFigures]:
    """Return the figures of float32 and of every quantised file, with the costs counted of each by its name."""
    costs = counted or {}
    files = [FileFigures(FLOAT, (export.folder / FP32).stat().st_size, costs.get(FP32, {}))]
    for stem, found in parity.items():
        path = export.folder / f"{stem}.onnx"
        precision = stem.removeprefix("student_")
        # u8s8 is for timing on x86; a stream is another program, with its state in and out.
        if path.is_file() and "centred_cosine" in found and precision not in ("u8s8", FLOAT):
            files.append(
                FileFigures(
                    precision, path.stat().st_size, costs.get(path.name, {}), found["centred_cosine"],
                    found.get("neighbour_overlap"), found.get("probe_drop"),
                )
            )  # fmt: skip
    return files
