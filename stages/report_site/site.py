"""Writes the site: ``index``, ``run-*``, ``task-*``, ``published`` and ``provenance`` pages, and two assets."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.artifact import Artifact
from stages.report_page.evidence import Evidence
from stages.report_page.tables import tasks_of
from stages.report_site import overview, published, run_page, task_page, wrong_clips
from stages.report_site.blocks import Block, Page, Section
from stages.report_site.grid import Column, Grid, text
from stages.report_site.overview import finished_at
from stages.report_site.subjects import Subjects, file_name

HERE = Path(__file__).parent
INDEX, ASSETS = "index.html", ("site.css", "site.js")
LEAD = (
    "Each row is one finished artifact. The digest names the work: the same kind, configuration and inputs give "
    "the same digest. Every number of the site leads to a run, and every run to its row here."
)
PAPERS = (
    "Printed by their authors, on their splits, with their probes. None of these numbers was reproduced here."
)


def write(evidence: Evidence, folder: Path, made_at: str) -> list[str]:
    """Write the site below ``folder``.

    Args:
        evidence: what was read.
        folder: of the report; pages of an earlier state are removed.
        made_at: date that the pages show.

    Returns:
        The files' names.

    Raises:
        ConfigError: ``published.csv`` is not as it should be.
    """
    known = Subjects(evidence)
    papers = published.read(recipes.DATA_MANIFESTS)
    tasks = task_page.tasks(evidence)
    heard = wrong_clips.gather(evidence, folder)
    comparable = published.comparable(papers, evidence.scores or {})
    pages = [overview.page(evidence, known, comparable)]
    pages += [
        task_page.page(
            evidence, task, known, comparable, heard.sounds.get(task, ()), heard.about.get(task, "")
        )
        for task in tasks
    ]
    pages += [run_page.page(evidence, subject) for subject in known.all]
    pages += [_papers(papers), _provenance(evidence, known)]
    titles = dict(tasks_of(evidence))
    menu = [(file_name(task), titles.get(task, task)) for task in tasks]
    menu += [("index.html#runs", "runs"), ("published.html", "published"), ("provenance.html", "provenance")]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    template = environment.get_template("page.html.j2")
    credit = _credit(evidence)
    written = []
    for page in pages:
        html = template.render(
            page=page, recipe=evidence.recipe.name, made_at=made_at, menu=menu, credit=credit
        )
        artifact.write_bytes(folder / page.file, html.encode())
        written.append(page.file)
    for name in ASSETS:
        artifact.write_bytes(folder / name, (HERE / name).read_bytes())
    for pattern in ("run-*.html", "task-*.html"):
        for stale in folder.glob(pattern):
            if stale.name not in written:
                stale.unlink()
    return [*written, *ASSETS]


def _papers(papers: list[published.Published]) -> Page:
    grid = overview.published_grid("Published numbers, not reproduced", papers)
    return Page(
        "published.html",
        "Published, not reproduced",
        PAPERS,
        [Section("numbers", "What papers print", [Block(grid)])],
    )


def _provenance(evidence: Evidence, known: Subjects) -> Page:
    records: list[tuple[str, str, Artifact]] = [
        (kind, record.folder.name, record) for kind, record in sorted(evidence.artifacts.items())
    ]
    for run in evidence.runs:
        records.append(("run", run.label, run.record))
        if run.export is not None:
            records.append(("export", run.label, run.export))
    columns = [Column("artifact", choice=True), Column("of"), Column("digest"), Column("git revision", choice=True),
               Column("finished (UTC)"), Column("processor", choice=True), Column("Python and packages")]  # fmt: skip
    rows = []
    for kind, name, record in records:
        made, about = known.of_digest(record.digest), record.provenance
        packages = ", ".join(f"{package} {version}" for package, version in about.get("packages", {}).items())
        rows.append([
            text(kind), text(name, href=made.page if made is not None else ""), text(record.digest[:12]),
            text(about.get("git_revision") or "not in a git tree"), text(finished_at(about)), text(about.get("cpu")),
            text(f"Python {about.get('python', '')}", below=packages),
        ])  # fmt: skip
    ids = [f"made-{record.digest[:12]}" for _, _, record in records]
    keys = json.dumps(evidence.recipe.model_dump(mode="json", exclude={"paths"}), indent=2)
    sections = [
        Section("artifacts", "Artifacts", [Block(Grid("Finished artifacts", columns, rows, ids=ids))]),
        Section("recipe", "The recipe", [Block(note="Every key, defaults filled in", folded=keys)]),
    ]
    return Page("provenance.html", "What made these numbers", LEAD, sections)


def _credit(evidence: Evidence) -> str:
    name, licence = evidence.recipe.embed.teacher.name, evidence.teacher_licence
    return f"Teacher: {name}{f' ({licence})' if licence else ''}. Written by ossicle report."
