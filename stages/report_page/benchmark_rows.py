"""What ``benchmark.json`` says, as the page's table, its cost points and its instruction bars."""

from __future__ import annotations

from typing import Any

from stages.report_page.evidence import Evidence
from stages.report_page.palette import COLOURS, INT8, STUDENT, TEACHER
from stages.report_page.tables import ABSENT, Cell, Table, anchor, is_number

FIGURES = {
    "arm": "ARM instructions",
    "exact": "file size, peak memory and int8 share",
    "x86": "x86 time",
    "macs": "MACs",
    "layers": "instructions by layer",
}
TITLES = {"fp32": "float32", "s8s8": "int8 S8S8", "u8s8": "int8 U8S8"}


def benchmark_table(evidence: Evidence) -> Table | None:
    """Return the cost of one window for every model and precision."""
    record = evidence.benchmark
    if record is None:
        return None
    cpus = cpus_of(record)
    rows = []
    for row in record["rows"]:
        x86 = row.get("x86") or {}
        arm = row.get("arm") or {}
        rows.append([
            Cell(row["model"], number=False, colour=_colour(row)),
            Cell(TITLES.get(row["precision"], row["precision"]), number=False),
            Cell(_scaled(row.get("parameters"), 1, 0)),
            Cell(_scaled(row.get("macs"), 1e6, 2)),
            Cell(_scaled(row.get("flops"), 1e6, 2)),
            Cell(_scaled(row.get("file_kb"), 1, 0)),
            Cell(_scaled(row.get("peak_activation_bytes"), 1024, 0)),
            Cell(_scaled(row.get("int8_mac_share"), 0.01, 0) if row["precision"] != "fp32" else ABSENT),
            Cell(_scaled(x86.get("p50_ms"), 1, 2), _spread(x86)),
            *(Cell(_scaled((arm.get(cpu) or {}).get("instructions"), 1e6, 2)) for cpu in cpus),
            Cell(_agreement(arm), number=False),
            _made_by(evidence, row),
        ])  # fmt: skip
    headings = [
        "model",
        "precision",
        "parameters",
        "M MACs",
        "M FLOPs",
        "file KB",
        "peak KB",
        "% int8",
    ]
    headings += [
        "p50 ms",
        *(cpu.removeprefix("cortex-").upper() for cpu in cpus),
        "ARM = x86",
        "made by",
    ]
    groups = [("", 8), ("x86", 1), ("M instructions", len(cpus)), ("", 2)]
    emphasised = frozenset(i for i, row in enumerate(record["rows"]) if row.get("headline"))
    return Table(headings, rows, [g for g in groups if g[1]], emphasised)


def cost_points(evidence: Evidence) -> list[dict[str, Any]]:
    """Return parameters and FLOPs of each network alone, and with its frontend, for the scatter."""
    rows = (evidence.benchmark or {"rows": []})["rows"]
    frontends = {
        "student": next((r.get("flops") for r in rows if r["kind"] == "frontend"), None),
        "teacher": next((r.get("flops") for r in rows if r["kind"] == "teacher_frontend"), None),
    }
    points = []
    for row in rows:
        if row["kind"] not in frontends or row["precision"] != "fp32":
            continue
        if not (row.get("parameters") and row.get("flops")):
            continue
        frontend = frontends[row["kind"]]
        points.append({
            "name": row["model"], "role": TEACHER if row["kind"] == "teacher" else STUDENT,
            "parameters": row["parameters"], "flops": row["flops"],
            "full_flops": row["flops"] + frontend if frontend is not None else None,
        })  # fmt: skip
    return points


def instruction_bars(evidence: Evidence) -> list[dict[str, Any]]:
    """Return executed instructions by model, precision and CPU."""
    return [
        {
            "model": row["model"],
            "precision": row["precision"],
            "cpu": cpu,
            "instructions": count["instructions"],
        }
        for row in (evidence.benchmark or {"rows": []})["rows"]
        if row["kind"] == "student" and row["precision"] in ("fp32", "s8s8")
        for cpu, count in (row.get("arm") or {}).items()
    ]


def not_measured(evidence: Evidence) -> list[str]:
    """Return one sentence for each figure of the benchmark that has a reason instead of a number."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in (evidence.benchmark or {"rows": []})["rows"]:
        for figure, reason in row.get("not_measured", {}).items():
            model = f"{row['model']} ({TITLES.get(row['precision'], row['precision'])})"
            word, _, cpu = figure.partition(" ")
            named = FIGURES.get(word, word) + (f" on {cpu}" if cpu else "")
            reasons.setdefault((named, reason), []).append(model)
    return [
        f"{figure[0].upper()}{figure[1:]} of {', '.join(models)}: {reason}."
        for (figure, reason), models in reasons.items()
    ]


def cpus_of(record: dict[str, Any]) -> list[str]:
    """Return the emulated CPUs that were counted, sorted."""
    return sorted({cpu for row in record["rows"] for cpu in (row.get("arm") or {})})


def row_of(
    evidence: Evidence, kind: str, model: str | None = None, precision: str = "fp32"
) -> dict[str, Any] | None:
    """Return the benchmark's row of a kind (and model), or None."""
    rows = (evidence.benchmark or {"rows": []})["rows"]
    return next(
        (
            r
            for r in rows
            if r["kind"] == kind and r["precision"] == precision and model in (None, r["model"])
        ),
        None,
    )


def _colour(row: dict[str, Any]) -> str:
    if row["kind"] == "teacher":
        return COLOURS[TEACHER]
    if row["kind"] != "student":
        return ""
    return COLOURS[STUDENT if row["precision"] == "fp32" else INT8]


def _made_by(evidence: Evidence, row: dict[str, Any]) -> Cell:
    digest = row.get("export_digest")
    record = evidence.artifacts.get("benchmark")
    if digest is None and record is not None:
        digest = record.digest
    return Cell(digest[:8], href=f"#{anchor(digest)}", number=False) if digest else Cell(ABSENT, number=False)


def _scaled(value: Any, unit: float, digits: int) -> str:
    return f"{value / unit:,.{digits}f}" if is_number(value) else ABSENT


def _spread(x86: dict[str, Any]) -> str:
    if not is_number(x86.get("p10_ms")) or not is_number(x86.get("p95_ms")):
        return ""
    return f"{x86['p10_ms']:.2f}–{x86['p95_ms']:.2f}"


def _agreement(arm: dict[str, Any]) -> str:
    compared = [count["comparison"] for count in arm.values()]
    if not compared:
        return ABSENT
    if all(c["equal"] for c in compared):
        return "bit-equal"
    if not all(c["believable"] for c in compared):
        return "differ"
    return f"within {max(c['max_abs_difference'] for c in compared):.0e}"
