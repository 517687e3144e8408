"""The site's first page: what is kept at what cost, every model on every task, and where everything else is."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from stages.report_page import captions, search_figure
from stages.report_page.benchmark_rows import not_measured
from stages.report_page.evidence import Evidence
from stages.report_page.figures import network_of, role_names
from stages.report_page.headline import headline, subline
from stages.report_page.palette import INT8, LOG_MEL, PROBES, RANDOM, STUDENT, TEACHER
from stages.report_page.svg import as_svg
from stages.report_page.tables import Table, find, floor_of, is_number, tasks_of
from stages.report_site import chart, costs, scales, subjects
from stages.report_site.blocks import Block, Figure, Page, Section
from stages.report_site.grid import Cell, Column, Grid, number, text
from stages.report_site.published import Published
from stages.report_site.subjects import Subjects, file_name

SCORES = (
    "Every model on every task, per cent (hundredths of a correlation or R2 where the task says so): mean over seeds; "
    "below it the 95 % interval. A number leads to the run that made it, or to all its seeds."
)
PARETO = (
    "{task}, {probe} probe, against {cost}. Bars: 95 % intervals. The line joins what nothing cheaper equals. Each "
    "point leads to the run that made it. {shared}"
)
PUBLISHED = (
    "Published, not reproduced: printed by their authors, on their splits and probes. More: published.html."
)


def page(evidence: Evidence, known: Subjects, papers: list[Published]) -> Page:
    """Return the overview."""
    makers = (_pareto, _scores, _published, _runs, _search, _unmeasured)
    sections = [made for maker in makers if (made := maker(evidence, known, papers)) is not None]
    lead = subline(evidence) if evidence.scores else ""
    return Page("index.html", headline(evidence), lead, sections, kicker=evidence.recipe.name)


def _pareto(evidence: Evidence, known: Subjects, papers: list[Published]) -> Section | None:
    figures = []
    for task, title in tasks_of(evidence):
        # The front is of what is better when more; an error would be drawn upside down.
        for probe in () if scales.is_error(evidence, task) else tuple(reversed(PROBES)):
            for cost in costs.kinds(evidence):
                points = _points(evidence, known, task, probe, cost)
                if not points:
                    continue
                choices = (("task", title), ("probe", PROBES[probe]), ("cost", cost.title))
                caption = PARETO.format(
                    task=title, probe=PROBES[probe], cost=cost.title,
                    shared="Costs are of the network without its frontend.",
                )  # fmt: skip
                drawn = chart.scatter(
                    points, across=cost.title, up="score, %", title=caption,
                    levels=_levels(evidence, task, probe),
                )  # fmt: skip
                figures.append(Figure((drawn,), caption, group="pareto", choices=choices))
    if not figures:
        return None
    return Section("pareto", "Score against cost", [Block(figures=tuple(figures))])


def _points(
    evidence: Evidence, known: Subjects, task: str, probe: str, cost: costs.Cost
) -> list[chart.Point]:
    points = []
    for row in (evidence.scores or {})["summary"]:
        if (row["task"], row["probe"]) != (task, probe) or row["role"] not in (TEACHER, STUDENT, INT8):
            continue
        across = costs.value(costs.row_of(evidence, row["role"], row["name"]), cost)
        if across is None:
            continue
        name = f"{row['name']} int8" if row["role"] == INT8 else row["name"]
        low, high = (100 * row[k] if is_number(row[k]) else None for k in ("low", "high"))
        points.append(
            chart.Point(name, across, 100 * row["mean"], row["role"], _maker(known, row), low, high)
        )
    return points


def _levels(evidence: Evidence, task: str, probe: str) -> list[tuple[str, float]]:
    here = [r for r in (evidence.scores or {})["summary"] if (r["task"], r["probe"]) == (task, probe)]
    levels = []
    log_mel = max((r["mean"] for r in here if r["role"] == LOG_MEL), default=None)
    if log_mel is not None:
        levels.append(("log-mel, no network", 100 * log_mel))
    floor = floor_of(evidence, task, probe)
    if floor is not None:
        levels.append((f"{evidence.headline}, untrained", 100 * floor["mean"]))
    return levels


def _maker(known: Subjects, row: dict[str, Any]) -> str:
    """Return the page of the one run that made a row of the summary, or the task's page where there were several."""
    made = known.of_role(row["role"], row["name"])
    return made[0][0].page if len(made) == 1 else f"{file_name(row['task'])}#scores"


def _scores(evidence: Evidence, known: Subjects, papers: list[Published]) -> Section:
    missing = [evidence.missing["scores"]] if "scores" in evidence.missing else []
    section = Section("scores", "Every model", missing=missing)
    summary = (evidence.scores or {}).get("summary", [])
    if not summary:
        return section
    tasks, kinds = tasks_of(evidence), costs.kinds(evidence)
    columns = [
        Column("model"),
        Column("role", choice=True),
        Column("probe", choice=True),
        Column("seeds", number=True),
    ]
    columns += [Column(title, number=True) for _, title in tasks]
    columns += [Column("gap recovered, %", number=True), Column("teacher's score kept, %", number=True)]
    columns += [Column(cost.heading, number=True) for cost in kinds]
    rows = []
    for role, name in role_names(summary, evidence.headline):
        made = known.of_role(role, name)
        cost_row = costs.row_of(evidence, role, name)
        for probe, probe_title in PROBES.items():
            here = [r for r in summary if (r["role"], r["name"], r["probe"]) == (role, name, probe)]
            if not here:
                continue
            shown = network_of(name) if role == RANDOM and network_of(name) else name
            cells = [
                text(shown, href=made[0][0].page if len(made) == 1 else "", role=role),
                text(subjects.ROLE_WORDS.get(role, role)), text(probe_title), number(len(made) or None, 0),
            ]  # fmt: skip
            for task, _ in tasks:
                row = find([r for r in here if r["task"] == task], role, name)
                cells.append(_score(row, known, *scales.shown(evidence, task)))
            for key in ("share", "retention"):
                values = [r[key] for r in here if is_number(r[key])]
                mean = sum(values) / len(values) if values else None
                cells.append(
                    number(mean, 0, scale=100, href=f"{made[0][0].page}#scores" if mean is not None else "")
                )
            cells += [_cost(evidence, cost_row, cost, known) for cost in kinds]
            rows.append(cells)
    section.blocks.append(Block(Grid("Scores and costs of every model", columns, rows), SCORES))
    return section


def _score(row: dict[str, Any] | None, known: Subjects, digits: int, scale: float) -> Cell:
    if row is None:
        return text("")
    below = ""
    if is_number(row["low"]):
        below = f"{scale * row['low']:.{digits - 1}f} to {scale * row['high']:.{digits - 1}f}"
    return number(row["mean"], digits, scale=scale, href=_maker(known, row), below=below)


def _cost(evidence: Evidence, row: dict[str, Any] | None, cost: costs.Cost, known: Subjects) -> Cell:
    found = costs.value(row, cost)
    made = known.of_digest((row or {}).get("export_digest", ""))
    href = f"{made.page}#cost" if made is not None else "provenance.html#" + _benchmark_anchor(evidence)
    return number(found, cost.digits, scale=1 / cost.unit, href=href if found is not None else "")


def _benchmark_anchor(evidence: Evidence) -> str:
    record = evidence.artifacts.get("benchmark")
    return f"made-{record.digest[:12]}" if record is not None else ""


def _published(evidence: Evidence, known: Subjects, papers: list[Published]) -> Section | None:
    tasks = {key for key, _ in tasks_of(evidence)}
    ours = [row for row in papers if row.task in tasks]
    if not ours:
        return None
    grid = published_grid("Published numbers on these tasks, not reproduced", ours)
    return Section("published", "Beside the papers", [Block(grid, PUBLISHED)])


def published_grid(caption: str, papers: list[Published]) -> Grid:
    """Return published numbers as a table that says where each stands."""
    columns = [Column("system", choice=True), Column("dataset", choice=True), Column("model"), Column("teacher"),
               Column("M parameters", number=True), Column("metric", choice=True), Column("probe", choice=True),
               Column("published, %", number=True), Column("where"), Column("remark")]  # fmt: skip
    rows = [
        [text(p.system), text(p.dataset), text(p.model), text(p.teacher),
         number(float(p.parameters_millions) if p.parameters_millions else None, 2), text(p.metric),
         text(PROBES.get(p.probe, p.probe)), number(p.percent, 1, href=p.link),
         text(p.citation, href=p.link, below=p.location), text(p.note)]
        for p in papers
    ]  # fmt: skip
    return Grid(caption, columns, rows)


def _runs(evidence: Evidence, known: Subjects, papers: list[Published]) -> Section:
    section = Section(
        "runs", "Every run", missing=[v for k, v in evidence.missing.items() if k in ("runs", "export")]
    )
    columns = [Column("run"), Column("role", choice=True), Column("network", choice=True), Column("steps", number=True),
               Column("validation loss", number=True), Column("neighbour overlap", number=True),
               Column("effective rank", number=True), Column("collapsed", choice=True),
               Column("parameters", number=True), Column("finished (UTC)")]  # fmt: skip
    rows = []
    for subject in known.all:
        if subject.run is None:
            continue
        summary, record = subject.run.record.summary, subject.run.record
        network = "" if subject.run.control == "teacher_lr" else subject.run.run.recipe.student.name
        link = f"{subject.page}#training"
        rows.append([
            text(subject.label, href=subject.page, role=subject.role), text(subjects.ROLE_WORDS[subject.role]),
            text(network), number(summary.get("steps"), 0, href=link),
            number(summary.get("validation_loss"), 3, href=link),
            number(summary.get("validation_neighbour_overlap"), 3, href=link),
            number(summary.get("effective_rank"), 1, href=link), text("yes" if summary.get("collapsed") else "no"),
            number(summary.get("parameters"), 0, href=link), text(finished_at(record.provenance)),
        ])  # fmt: skip
    if rows:
        section.blocks.append(Block(Grid("Training runs", columns, rows), captions.TRAINING))
    return section


def finished_at(provenance: dict[str, Any]) -> str:
    """Return when an artifact was finished, to the minute."""
    return str(provenance.get("finished_at", ""))[:16].replace("T", " ")


def _search(evidence: Evidence, known: Subjects, papers: list[Published]) -> Section | None:
    section = Section("search", "What a search found")
    for place, record in enumerate(evidence.searches):
        limits = ", ".join(f"{name} at most {limit:,.0f}" for name, limit in record["limits"].items())
        caption = captions.SEARCH.format(
            candidates=len(record["candidates"]), refused=record["refused"], steps=record["steps"],
            limits=limits or "no limit", hypervolume=record["hypervolume"],
        )  # fmt: skip
        drawn = as_svg(search_figure.search_figure(record), f"search-{place}", caption)
        # The markup is matplotlib's own, its texts escaped by it.
        section.blocks.append(Block(figures=(Figure((Markup(drawn),), caption),)))
        found = search_figure.search_table(record)
        section.blocks.append(
            Block(as_grid("The Pareto set and the hand-made students", found), captions.SEARCH_TABLE)
        )
    return section if section.blocks else None


def as_grid(caption: str, table: Table) -> Grid:
    """Return a table of the one-page report, its numbers sortable."""
    groups = [title for title, count in table.groups for _ in range(count)] or [""] * len(table.headings)
    first = table.rows[0] if table.rows else []
    columns = [
        Column(f"{group} {heading}".strip(), number=bool(first) and first[place].number)
        for place, (group, heading) in enumerate(zip(groups, table.headings, strict=True))
    ]
    return Grid(
        caption, columns, [[_plain_cell(cell.text, cell.below) for cell in row] for row in table.rows]
    )


def _plain_cell(shown: str, below: str) -> Cell:
    try:
        return Cell(shown, float(shown.replace(",", "").replace("\N{MINUS SIGN}", "-")), "", below)
    except ValueError:
        return text(shown, below=below)


def _unmeasured(evidence: Evidence, known: Subjects, papers: list[Published]) -> Section:
    notes = [*(v for k, v in evidence.missing.items() if k in ("benchmark", "maps", "store")),
             "Time on an ARM board, and energy: not measured here. Run: ossicle benchmark --host user@board.",
             *not_measured(evidence)]  # fmt: skip
    return Section("unmeasured", "What was not measured", [Block(items=tuple(notes))])
