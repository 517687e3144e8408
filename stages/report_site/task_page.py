"""One page a task: every run on it beside what papers print, differences, maps, confusions, the clips got wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stages.report_page import captions
from stages.report_page.evidence import Evidence, Maps
from stages.report_page.palette import PROBES, STUDENT, TEACHER, role_order
from stages.report_page.tables import tasks_of
from stages.report_site import chart, confusion, scales, statistics_tables, subjects
from stages.report_site.blocks import Block, Figure, Page, Section, Sound
from stages.report_site.grid import Column, Grid, number, text
from stages.report_site.published import Published
from stages.report_site.run_page import structure_grid
from stages.report_site.subjects import Subject, Subjects, file_name

COLOURS = 10
SCORES = (
    "Every model and seed; each number leads to the run that made it. Rows whose role is {mark} are printed by their "
    "authors on their splits: nothing of them was run here."
)
MARK = "published, not reproduced"
DIFFERENCES = (
    "The model less the other, on the same draws of the same groups; decided: the 95 % interval leaves out 0."
)
CONFUSED = (STUDENT, TEACHER)


def page(
    evidence: Evidence,
    task: str,
    known: Subjects,
    papers: Sequence[Published],
    sounds: Sequence[Sound],
    about_sounds: str,
) -> Page:
    """Return the page of ``task``; ``sounds`` are the clips that the student gets wrong."""
    described: dict[str, Any] = next(
        (t for t in (evidence.scores or {}).get("tasks", []) if t["name"] == task), {}
    )
    made = (
        _about(described), _scores(evidence, task, known, papers), _differences(evidence, task, known),
        _space(evidence, task, known), _confusions(evidence, task, known),
        statistics_tables.section(evidence, task, known),
    )  # fmt: skip
    sections = [section for section in made if section is not None]
    if sounds or about_sounds:
        sections.append(
            Section("wrong", "What the student gets wrong", [Block(note=about_sounds, sounds=tuple(sounds))])
        )
    title = described.get("title", dict(tasks_of(evidence)).get(task, task))
    return Page(file_name(task), title, described.get("about", ""), sections, kicker=evidence.recipe.name)


def _about(described: dict[str, Any]) -> Section:
    section = Section("about", "What it is")
    if not described:
        return section
    facts = [("metric", described["metric"].replace("_", " ")), ("clips or rows", described["clips"]),
             ("groups", described["groups"]), ("classes", len(described["classes"]) or None),
             ("folds", len(described["folds"]) or None), ("test rows", described.get("test_rows")),
             ("not decoded, left out of every model", len(described["unusable"]) or None),
             ("licence", described["licence"])]  # fmt: skip
    rows = [[text(k), number(v, 0) if isinstance(v, int) else text(v)] for k, v in facts if v is not None]
    columns = [Column("what"), Column("value")]
    section.blocks.append(Block(Grid("The task", columns, rows, searchable=False, sortable=False)))
    if described["classes"]:
        rows = [[text(name), number(count, 0)] for name, count in described["classes"].items()]
        grid = Grid(
            "Clips of each class",
            [Column("class"), Column("clips", number=True)],
            rows,
            searchable=len(rows) > 20,
        )
        section.blocks.append(Block(grid))
    return section


def _scores(evidence: Evidence, task: str, known: Subjects, papers: Sequence[Published]) -> Section:
    digits, scale = scales.shown(evidence, task)
    found = [r for r in (evidence.scores or {})["rows"] if r["task"] == task]
    found.sort(key=lambda r: (role_order(r["role"]), r["name"], r["seed"] or 0, r["probe"]))
    columns = [Column("model"), Column("role", choice=True), Column("probe", choice=True),
               Column("score, %" if scale > 1 else "error", number=True), Column("95 % from", number=True),
               Column("to", number=True),
               Column("made by")]  # fmt: skip
    rows = []
    for row in found:
        made = known.of_model(row["model"])
        href = f"{made.page}#scores"
        rows.append([
            text(made.label, href=made.page, role=row["role"]), text(subjects.ROLE_WORDS.get(row["role"], row["role"])),
            text(PROBES.get(row["probe"], row["probe"])), number(row["score"], digits, scale=scale, href=href),
            number(row["low"], digits, scale=scale, href=href), number(row["high"], digits, scale=scale, href=href),
            text(_source(made, row["model"]), href=href),
        ])  # fmt: skip
    for paper in (p for p in papers if p.task == task):
        name = f"{paper.model} from {paper.teacher}" if paper.teacher else paper.model
        rows.append([
            text(name, below=paper.note, role="published"), text(MARK), text(PROBES.get(paper.probe, paper.probe)),
            number(paper.percent, 1, href=paper.link), number(None), number(None),
            text(paper.citation, href=paper.link, below=paper.location),
        ])  # fmt: skip
    return Section(
        "scores", "Every run", [Block(Grid("Scores of every run", columns, rows), SCORES.format(mark=MARK))]
    )


def _source(made: Subject, model: str) -> str:
    """Return the first digits of the digest of the run or file that a model came from."""
    return next(
        (str(m["source"])[:8] for m in made.models if m["key"] == model and m.get("source")), made.label
    )


def _differences(evidence: Evidence, task: str, known: Subjects) -> Section | None:
    digits, scale = scales.shown(evidence, task)
    found = [d for d in (evidence.scores or {}).get("differences", []) if d["task"] == task]
    if not found:
        return None
    columns = [Column("model"), Column("less"), Column("probe", choice=True), Column("difference, points", number=True),
               Column("95 % from", number=True), Column("to", number=True), Column("decided", choice=True)]  # fmt: skip
    rows = []
    for one in found:
        model, other = known.of_model(one["model"]), known.of_model(one["reference"])
        rows.append([
            text(one["model"], href=model.page), text(one["reference"], href=other.page),
            text(PROBES.get(one["probe"], one["probe"])),
            number(one["difference"], digits, scale=scale), number(one["low"], digits, scale=scale),
            number(one["high"], digits, scale=scale),
            text("yes" if one["decided"] else "no"),
        ])  # fmt: skip
    return Section(
        "differences",
        "Paired differences",
        [Block(Grid("Differences between models", columns, rows), DIFFERENCES)],
    )


def _space(evidence: Evidence, task: str, known: Subjects) -> Section | None:
    section = Section("space", "How the spaces compare")
    for maps in evidence.maps:
        if maps.task == task:
            section.blocks.append(Block(figures=(_maps(maps, task),)))
    found = [r for r in (evidence.scores or {}).get("structure", []) if r["task"] == task]
    if found:
        grid = structure_grid(evidence, found, "Spaces beside the teacher's", known)
        section.blocks.append(Block(grid, captions.STRUCTURE))
    return section if section.blocks else None


def _maps(maps: Maps, task: str) -> Figure:
    classes = sorted(set(maps.labels))
    numbers = [classes.index(label) for label in maps.labels]
    panels = tuple(
        chart.panel([(float(a), float(b)) for a, b in points], numbers, COLOURS, title)
        for title, points in maps.spaces
    )
    caption = captions.MAP.format(method=maps.method, task=task, clips=len(maps.labels))
    legend = tuple(
        (f"class-{n % COLOURS}{' hollow' if n >= COLOURS else ''}", name) for n, name in enumerate(classes)
    )
    return Figure(panels, caption, "maps", legend=legend)


def _confusions(evidence: Evidence, task: str, known: Subjects) -> Section | None:
    """Return the matrices of the headline's first seed and of the teacher; the other runs' stand on their pages."""
    wanted: set[str] = set()
    for role in CONFUSED:
        named = [m for s in known.all for m in s.models if m["role"] == role]
        first = [m for m in named if m["name"] == evidence.headline] or named
        wanted |= {m["key"] for m in first[:1]}
    blocks: list[Block] = []
    for stored in confusion.of(evidence, task=task, models=wanted):
        made = known.of_model(stored["model"])
        blocks += confusion.blocks(stored, made.label, f"{made.page}#confusion")
    return Section("confusion", "What is confused", blocks) if blocks else None


def tasks(evidence: Evidence) -> list[str]:
    """Return every task that has something to show, scored ones first."""
    scores = evidence.scores or {}
    structured = [row["task"] for row in scores.get("structure", [])]
    return list(dict.fromkeys([*(key for key, _ in tasks_of(evidence)), *structured]))
