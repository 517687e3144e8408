"""What a model costs, from ``benchmark.json``: MACs, bytes of its file, executed instructions of each emulated CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.report_page.benchmark_rows import cpus_of
from stages.report_page.evidence import Evidence
from stages.report_page.palette import TEACHER
from stages.report_site.subjects import PRECISION


@dataclass(frozen=True)
class Cost:
    """One kind of cost: ``key`` in the page, ``title`` on the axis, ``heading`` and ``unit`` in tables."""

    key: str
    title: str
    heading: str
    unit: float
    digits: int


MACS = Cost("macs", "MACs of one window", "M MACs", 1e6, 2)
FILE = Cost("file", "file, KB", "KB", 1.0, 0)


def kinds(evidence: Evidence) -> list[Cost]:
    """Return the costs that the benchmark holds for at least one model, MACs first."""
    if evidence.benchmark is None:
        return []
    cpus = [
        Cost(
            cpu,
            f"instructions executed for one window, {cpu}",
            f"M instr. {cpu.removeprefix('cortex-').upper()}",
            1e6,
            2,
        )
        for cpu in cpus_of(evidence.benchmark)
    ]
    rows = evidence.benchmark["rows"]
    return [cost for cost in (MACS, *cpus, FILE) if any(value(row, cost) is not None for row in rows)]


def row_of(evidence: Evidence, role: str, name: str) -> dict[str, Any] | None:
    """Return the benchmark's row of a model, in the precision of ``role``; None where it has none of its own."""
    if evidence.benchmark is None or role not in PRECISION:
        return None
    kind = "teacher" if role == TEACHER else "student"
    wanted = (kind, PRECISION[role], name)
    rows: Sequence[dict[str, Any]] = evidence.benchmark["rows"]
    return next((r for r in rows if (r["kind"], r["precision"], r["model"]) == wanted), None)


def value(row: dict[str, Any] | None, cost: Cost) -> float | None:
    """Return a cost in its base unit (MACs, instructions, KB); None where it was not measured."""
    if row is None:
        return None
    if cost.key == MACS.key:
        found = row.get("macs")
    elif cost.key == FILE.key:
        found = row.get("file_kb")
    else:
        found = ((row.get("arm") or {}).get(cost.key) or {}).get("instructions")
    return float(found) if isinstance(found, int | float) and found > 0 else None
