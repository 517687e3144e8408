"""One page a run: what it is, what it scores, what it costs, how it was trained, what made it."""

from __future__ import annotations

import json
from typing import Any

from pipeline.artifact import Artifact
from stages.report_page.benchmark_rows import TITLES, cpus_of
from stages.report_page.evidence import Evidence
from stages.report_page.palette import INT8, PROBES, role_order
from stages.report_page.tables import CONTROLS, is_number, tasks_of
from stages.report_site import chart, confusion, scales, subjects
from stages.report_site.blocks import Block, Figure, Page, Section
from stages.report_site.grid import Column, Grid, number, text
from stages.report_site.overview import finished_at
from stages.report_site.subjects import Subject, Subjects, file_name

SCORES = (
    "One seed, errors in their own unit. Kept: of the teacher's score; recovered: of the gap between an untrained "
    "network of the same shape and the teacher; both are means over the seeds of this row."
)
FILES = "Executed instructions are counts of an emulated processor, never a time."


def page(evidence: Evidence, subject: Subject) -> Page:
    """Return the page of ``subject``."""
    made = (
        _about(evidence, subject), _scores(evidence, subject), _cost(evidence, subject), _training(subject),
        _structure(evidence, subject), _confusions(evidence, subject), _made(subject),
    )  # fmt: skip
    sections = [section for section in made if section is not None]
    return Page(subject.page, subject.title, "", sections, kicker=evidence.recipe.name)


def _about(evidence: Evidence, subject: Subject) -> Section:
    facts: list[tuple[str, Any]] = [("role", subjects.ROLE_WORDS.get(subject.role, subject.role))]
    if subject.run is not None:
        recipe = subject.run.run.recipe
        facts += [("control", CONTROLS[subject.run.control]), ("seed", subject.run.run.seed)]
        if subject.run.control != "teacher_lr":
            width = "" if recipe.student.width == 1 else f" x {recipe.student.width:g}"
            facts.append(("network", recipe.student.name + width))
        facts.append(("parameters", subject.run.record.summary.get("parameters")))
    facts += [
        (f"width of the embedding, {subjects.ROLE_WORDS.get(m['role'], m['role'])}", m.get("dim"))
        for m in subject.models
    ]
    rows = [
        [text(name), number(value, 0) if isinstance(value, int) else text(value)]
        for name, value in facts
        if value is not None
    ]
    grid = Grid(
        f"What {subject.label} is", [Column("what"), Column("value")], rows, searchable=False, sortable=False
    )
    return Section("about", "What it is", [Block(grid)])


def _scores(evidence: Evidence, subject: Subject) -> Section | None:
    keys = {m["key"]: m for m in subject.models}
    found = [r for r in (evidence.scores or {}).get("rows", []) if r["model"] in keys]
    if not found:
        return None
    order = [key for key, _ in tasks_of(evidence)]
    titles = dict(tasks_of(evidence))
    found.sort(key=lambda r: (order.index(r["task"]), r["probe"], role_order(r["role"])))
    summary = {(r["task"], r["probe"], r["role"], r["name"]): r for r in (evidence.scores or {})["summary"]}
    made = evidence.artifacts.get("evaluation")
    href = f"provenance.html#made-{made.digest[:12]}" if made is not None else ""
    rows = []
    for row in found:
        digits, scale = scales.shown(evidence, row["task"])
        of_seeds = summary.get((row["task"], row["probe"], row["role"], row["name"]), {})
        rows.append([
            text(titles[row["task"]], href=f"{file_name(row['task'])}#scores"),
            text(PROBES.get(row["probe"], row["probe"])),
            text("int8" if row["role"] == INT8 else "float32"), number(row["score"], digits, scale=scale, href=href),
            number(row["low"], digits, scale=scale), number(row["high"], digits, scale=scale),
            text(", ".join(f"{scale * fold:.{digits}f}" for fold in row["folds"] if is_number(fold))),
            number(of_seeds.get("retention"), 0, scale=100), number(of_seeds.get("share"), 0, scale=100),
        ])  # fmt: skip
    columns = [Column("task", choice=True), Column("probe", choice=True), Column("precision", choice=True),
               Column("score, %", number=True), Column("95 % from", number=True), Column("to", number=True),
               Column("folds, %"), Column("kept, %", number=True), Column("recovered, %", number=True)]  # fmt: skip
    return Section(
        "scores", "What it scores", [Block(Grid(f"Scores of {subject.label}", columns, rows), SCORES)]
    )


def _cost(evidence: Evidence, subject: Subject) -> Section | None:
    record = evidence.benchmark
    digests = {made.digest for made in subjects.made_of(subject)}
    found = [
        row
        for row in (record or {"rows": []})["rows"]
        if row.get("export_digest") in digests
        or (subject.run is None and (row["kind"], row["model"]) == (subject.role, subject.name))
    ]
    blocks = []
    made = evidence.artifacts.get("benchmark")
    if found and record is not None:
        href = f"provenance.html#made-{made.digest[:12]}" if made is not None else ""
        cpus = cpus_of(record)
        rows = []
        for row in found:
            x86, arm = row.get("x86") or {}, row.get("arm") or {}
            rows.append([
                text(TITLES.get(row["precision"], row["precision"])), number(row.get("parameters"), 0),
                number(row.get("macs"), 2, scale=1e-6, href=href), number(row.get("file_kb"), 0, href=href),
                number(row.get("peak_activation_bytes"), 0, scale=1 / 1024, href=href),
                number(row.get("int8_mac_share"), 0, scale=100), number(x86.get("p50_ms"), 2, href=href),
                *(number((arm.get(cpu) or {}).get("instructions"), 2, scale=1e-6, href=href) for cpu in cpus),
            ])  # fmt: skip
        columns = [Column("file"), *(Column(name, number=True) for name in (
            "parameters", "M MACs", "KB", "peak KB", "MACs in int8, %", "x86 p50 ms",
            *(f"M instructions {cpu.removeprefix('cortex-').upper()}" for cpu in cpus)))]  # fmt: skip
        caption = f"Cost of one window of {record['window_seconds']:.3g} s"
        blocks.append(Block(Grid(caption, columns, rows, searchable=False), FILES))
    if subject.run is not None and subject.run.export is not None:
        blocks.append(Block(_export(subject.run.export)))
    return Section("cost", "What it costs", blocks) if blocks else None


def _export(record: Artifact) -> Grid:
    summary, int8 = record.summary, record.summary.get("int8") or {}
    href = f"provenance.html#made-{record.digest[:12]}"
    rows = [
        [text("float32 file, KB"), number(summary["fp32_bytes"], 0, scale=1 / 1024, href=href)],
        [text("ONNX less torch, worst relative"), text(f"{summary['parity_worst_relative']:.0e}", href=href)],
    ]
    if int8:
        rows += [
            [text("int8 file, KB"), number(int8["file_bytes"], 0, scale=1 / 1024, href=href)],
            [text(f"centred cosine of int8 to float32, {int8['compared_rows']} rows"),
             number(int8.get("centred_cosine"), 4, href=href)],
            [text("layers left in float"), number(len(int8["kept_float"]), 0, href=href)],
        ]  # fmt: skip
    return Grid(
        "Exported files",
        [Column("what"), Column("value", number=True)],
        rows,
        searchable=False,
        sortable=False,
    )


def _training(subject: Subject) -> Section | None:
    run = subject.run
    if run is None:
        return None
    drawn = []
    for name, shown, dashed in (("loss", "training", False), ("validation_loss", "validation", True)):
        steps, values = run.curve(name)
        if len(steps) > 1:
            points = tuple(zip(map(float, steps), values, strict=True))
            drawn.append(chart.Line(shown, _thinned(points), subject.role, dashed))
    blocks = []
    if drawn:
        svg = chart.lines(drawn, across="step", up="loss", title=f"Loss of {subject.label} against steps")
        blocks.append(Block(figures=(Figure((svg,), "Loss against steps; dashed: on validation rows."),)))
    plain = {k: v for k, v in run.record.summary.items() if isinstance(v, int | float | str)}
    rows = [
        [text(key.replace("_", " ")), text("yes" if value else "no") if isinstance(value, bool)
         else number(value, 0 if isinstance(value, int) else 4) if isinstance(value, int | float) else text(value)]
        for key, value in plain.items()
    ]  # fmt: skip
    if rows:
        columns = [Column("what"), Column("value", number=True)]
        blocks.append(Block(Grid(f"What {subject.label} ended with", columns, rows, searchable=False)))
    blocks.append(
        Block(
            note="Its keys, defaults filled in",
            folded=json.dumps(run.run.recipe.model_dump(mode="json", exclude={"paths"}), indent=1),
        )
    )
    return Section("training", "How it was trained", blocks)


def _thinned(points: tuple[tuple[float, float], ...], most: int = 240) -> tuple[tuple[float, float], ...]:
    """Return every n-th point and the last: no screen shows more."""
    step = -(-len(points) // most)
    return points if step == 1 else (*points[:-1:step], points[-1])


def _structure(evidence: Evidence, subject: Subject) -> Section | None:
    keys = {m["key"]: m["role"] for m in subject.models}
    found = [r for r in (evidence.scores or {}).get("structure", []) if r["model"] in keys]
    if not found:
        return None
    grid = structure_grid(evidence, found, f"Space of {subject.label}", None)
    return Section(
        "space", "How its space compares", [Block(grid, "Beside the teacher's space, on the same clips.")]
    )


WORDS = {
    "linear_cka": "linear CKA",
    "neighbour_overlap": "neighbour overlap",
    "effective_rank": "effective rank",
}
NOT_FIGURES = {"task", "model", "role", "name", "seed", "neighbours"}


def structure_grid(
    evidence: Evidence, found: list[dict[str, Any]], caption: str, known: Subjects | None
) -> Grid:
    """Return what was measured of embedding spaces, whatever figures it has; ``known`` gives links to the runs."""
    figures = list(
        dict.fromkeys(k for row in found for k, v in row.items() if k not in NOT_FIGURES and is_number(v))
    )
    titles = dict(tasks_of(evidence))
    first = "model" if known is not None else "task"
    columns = [Column(first), Column("precision", choice=True)]
    columns += [Column(WORDS.get(name, name.replace("_", " ")), number=True) for name in figures]
    rows = []
    for row in found:
        if known is not None:
            of_row = known.of_model(row["model"])
            head, href = (
                text(of_row.label, href=f"{of_row.page}#space", role=row["role"]),
                f"{of_row.page}#space",
            )
        else:
            href = f"{file_name(row['task'])}#space"
            head = text(titles.get(row["task"], row["task"]), href=href)
        cells = [number(row.get(name), 1 if name == "effective_rank" else 3, href=href) for name in figures]
        rows.append([head, text("int8" if row["role"] == INT8 else "float32"), *cells])
    return Grid(caption, columns, rows, searchable=known is not None)


def _confusions(evidence: Evidence, subject: Subject) -> Section | None:
    titles = dict(tasks_of(evidence))
    blocks: list[Block] = []
    for stored in confusion.of(evidence, models={m["key"] for m in subject.models}):
        of_model = next(m for m in subject.models if m["key"] == stored["model"])
        precision = ", int8" if of_model["role"] == INT8 else ""
        title = f"{titles.get(stored['task'], stored['task'])}{precision}"
        blocks += confusion.blocks(stored, title, f"{file_name(stored['task'])}#scores")
    return Section("confusion", "What it confuses", blocks) if blocks else None


def _made(subject: Subject) -> Section | None:
    records = subjects.made_of(subject)
    if not records:
        return None
    rows = [
        [text(kind), text(record.digest[:12], href=f"provenance.html#made-{record.digest[:12]}"),
         text(record.provenance.get("git_revision") or "not in a git tree"), text(finished_at(record.provenance)),
         text(record.provenance.get("cpu"))]
        for kind, record in zip(("run", "export"), records, strict=False)
    ]  # fmt: skip
    columns = [
        Column("artifact"),
        Column("digest"),
        Column("git revision"),
        Column("finished (UTC)"),
        Column("processor"),
    ]
    return Section(
        "made",
        "What made it",
        [Block(Grid(f"Artifacts of {subject.label}", columns, rows, searchable=False))],
    )
