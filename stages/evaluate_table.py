"""The tables that ``ossicle evaluate`` prints."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from pipeline.evaluation.probes import PROBES

_ORDER = ("teacher", "reference", "student", "int8", "labels", "random", "log_mel")
_PROBE_TITLES = {"knn": "k-NN", "linear": "linear"}


def score_table(scores: dict[str, Any]) -> Table:
    """Return the table of scores in %: one row a model, spread over seeds after the sign, else the 95 % interval."""
    tasks = [task["name"] for task in scores["tasks"] if task["labelled"] and "suite" not in task]
    table = Table(title="score, % (± over seeds; [95 % interval] where there is one seed)")
    table.add_column("model")
    table.add_column("seeds", justify="right")
    for task in tasks:
        for probe in PROBES:
            table.add_column(f"{task} {_PROBE_TITLES[probe]}", justify="right")
    for role, name in _models(scores):
        rows = _rows(scores, role, name)
        cells = [_score(rows.get((task, probe))) for task in tasks for probe in PROBES]
        seeds = next(iter(rows.values()))["seeds"]
        table.add_row(f"{role} {name}", str(seeds), *cells)
    return table


def suite_tables(scores: dict[str, Any]) -> list[Table]:
    """Return a table for each suite and probe: Matthews correlations and R2, from 1 (right) over 0 (nothing) down."""
    tables = []
    suites = dict.fromkeys(task["suite"] for task in scores["tasks"] if "suite" in task)
    for suite in suites:
        tasks = [task for task in scores["tasks"] if task.get("suite") == suite]
        for probe in PROBES:
            table = Table(
                title=f"{suite}, {_PROBE_TITLES[probe]}: mcc or r2 (± over seeds; [95 % interval by track])"
            )
            table.add_column("model")
            for task in tasks:
                heading = task["name"].removeprefix(f"{suite}_").replace("_", " ")
                table.add_column("mean" if task["name"] == suite else heading, justify="right")
            for role, name in _models(scores):
                rows = _rows(scores, role, name)
                cells = [_plain(rows.get((task["name"], probe))) for task in tasks]
                table.add_row(f"{role} {name}", *cells)
            tables.append(table)
    return tables


def share_table(scores: dict[str, Any]) -> Table:
    """Return the table of retention and of the share of the teacher-over-random gap recovered, in %."""
    # Of a suite its mean alone, which carries the suite's own name.
    tasks = [t["name"] for t in scores["tasks"] if t["labelled"] and t.get("suite", t["name"]) == t["name"]]
    table = Table(title="share of the teacher-over-random gap recovered, % (retention = student / teacher)")
    table.add_column("model")
    for task in tasks:
        for probe in PROBES:
            table.add_column(f"{task} {_PROBE_TITLES[probe]}", justify="right")
    for role, name in _models(scores):
        rows = _rows(scores, role, name)
        if all(row["retention"] is None for row in rows.values()):
            continue
        cells = [_share(rows.get((task, probe))) for task in tasks for probe in PROBES]
        table.add_row(f"{role} {name}", *cells)
    return table


def structure_table(scores: dict[str, Any]) -> Table:
    """Return the table of agreement with the teacher's space."""
    table = Table(
        "model", "task", "linear CKA", "neighbour overlap", "effective rank", title="beside the teacher"
    )
    for row in scores["structure"]:
        if row["role"] in ("student", "int8", "teacher") and "linear_cka" in row:
            table.add_row(
                row["model"], row["task"], f"{row['linear_cka']:.3f}", f"{row['neighbour_overlap']:.3f}",
                f"{row['effective_rank']:.1f}",
            )  # fmt: skip
    return table


def _models(scores: dict[str, Any]) -> list[tuple[str, str]]:
    found = {(row["role"], row["name"]) for row in scores["summary"]}
    return sorted(found, key=lambda model: (_ORDER.index(model[0]), model[1]))


def _rows(scores: dict[str, Any], role: str, name: str) -> dict[tuple[str, str], dict[str, Any]]:
    chosen = [row for row in scores["summary"] if (row["role"], row["name"]) == (role, name)]
    return {(row["task"], row["probe"]): row for row in chosen}


def _score(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    if row["spread"] is not None:
        return f"{100 * row['mean']:.1f} ± {100 * row['spread']:.1f}"
    if row["low"] is None:
        return f"{100 * row['mean']:.1f}"
    return f"{100 * row['mean']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def _plain(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    spread = "" if row["spread"] is None else f" ± {row['spread']:.3f}"
    interval = "" if row["low"] is None else f" [{row['low']:.2f}, {row['high']:.2f}]"
    return f"{row['mean']:.3f}{spread}{interval}"


def _share(row: dict[str, Any] | None) -> str:
    if row is None or row["retention"] is None:
        return "-"
    share = "no gap" if row["share"] is None else f"{100 * row['share']:.0f}"
    spread = "" if row["share_spread"] is None else f" ± {100 * row['share_spread']:.0f}"
    return f"{share}{spread} ({100 * row['retention']:.1f})"
