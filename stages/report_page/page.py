"""One self-contained HTML page from the evidence: nothing is fetched when it is read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from pipeline.artifact import Artifact
from stages.report_page import benchmark_rows, captions, figures, layer_rows, search_figure, tables
from stages.report_page.evidence import Evidence
from stages.report_page.headline import headline, subline
from stages.report_page.svg import as_svg
from stages.report_page.tables import Table, anchor, tasks_of

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Part:
    """A figure, a table or a list, with its caption."""

    caption: str
    svg: Markup | None = None
    table: Table | None = None
    items: tuple[str, ...] = ()
    kind: str = "wide"


@dataclass
class Section:
    """One part of the page."""

    id: str
    title: str
    about: str = ""
    parts: list[Part] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def figure(self, drawn: Figure, caption: str, kind: str = "wide") -> None:
        """Add a figure; its caption is also what is said instead of it."""
        name = f"{self.id}-{len(self.parts)}"
        # The markup is matplotlib's own, its texts escaped by it.
        self.parts.append(Part(caption, svg=Markup(as_svg(drawn, name, caption)), kind=kind))

    def table(self, found: Table | None, caption: str) -> None:
        """Add a table unless there is nothing to show."""
        if found is not None:
            self.parts.append(Part(caption, table=found))


def render(evidence: Evidence, made_at: str) -> str:
    """Return the whole page.

    Args:
        evidence: what was read.
        made_at: date that the page shows.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    records = _records(evidence)
    return environment.get_template("page.html.j2").render(
        recipe=evidence.recipe.name,
        made_at=made_at,
        headline=headline(evidence),
        subline=subline(evidence) if evidence.scores else "",
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        sections=_sections(evidence),
        provenance=[_provenance(kind, name, record, records) for kind, name, record in records],
        machines=_machines([record for _, _, record in records]),
        recipe_json=json.dumps(evidence.recipe.model_dump(mode="json"), indent=2),
        credit=_credit(evidence),
    )


def _sections(evidence: Evidence) -> list[Section]:
    makers = (_scores, _cost, _maps, _training, _search, _int8, _sound, _unmeasured)
    return [section for maker in makers if (section := maker(evidence)) is not None]


def _scores(evidence: Evidence) -> Section:
    section = Section("scores", "What is kept", missing=_missing(evidence, "scores"))
    section.table(
        tables.gap_table(evidence),
        captions.GAP,
    )
    summary = (evidence.scores or {}).get("summary", [])
    if summary:
        names = figures.role_names(summary, evidence.headline)
        section.figure(
            figures.scores_figure(summary, tasks_of(evidence), names),
            captions.SCORES_FIGURE,
        )
        section.table(
            tables.scores_table(evidence),
            captions.SCORES,
        )
        section.parts.append(Part("", items=tuple(_task_notes(evidence))))
    return section


def _task_notes(evidence: Evidence) -> list[str]:
    notes = []
    order = [key for key, _ in tasks_of(evidence)]
    described = {task["name"]: task for task in (evidence.scores or {}).get("tasks", [])}
    for task in (described[key] for key in order if key in described):
        text = f"{task['title']}: {task['clips']} clips of {task['groups']} recordings or kits, {len(task['classes'])} "
        text += f"classes, {len(task['folds'])} folds, {task['metric'].replace('_', ' ')}. {task['about']}"
        if task["unusable"]:
            text += f" {len(task['unusable'])} clips could not be decoded and are left out of every model."
        notes.append(text + f" Licence: {task['licence']}.")
    return notes


def _cost(evidence: Evidence) -> Section:
    section = Section("cost", "What it costs", missing=_missing(evidence, "benchmark"))
    record = evidence.benchmark
    if record is None:
        return section
    points = benchmark_rows.cost_points(evidence)
    if points:
        section.figure(
            figures.cost_figure(points),
            captions.COST,
            "narrow",
        )
    bars = benchmark_rows.instruction_bars(evidence)
    if bars:
        section.figure(
            figures.instruction_figure(bars),
            captions.INSTRUCTIONS,
        )
    section.table(
        benchmark_rows.benchmark_table(evidence),
        captions.BENCHMARK.format(seconds=record["window_seconds"], machine=_machine_name(record)),
    )
    section.table(layer_rows.memory_table(evidence), layer_rows.MEMORY)
    for drawn, caption in layer_rows.figures(evidence):
        section.figure(drawn, caption)
    section.table(layer_rows.operators_table(evidence), layer_rows.OPERATORS)
    for found, caption in layer_rows.further_tables(evidence):
        section.table(found, caption)
    return section


def _machine_name(record: dict[str, Any]) -> str:
    machine = record.get("machine") or {}
    return str(
        next((machine[k] for k in ("model_name", "name", "cpu", "model") if machine.get(k)), "this machine")
    )


def _maps(evidence: Evidence) -> Section:
    section = Section("space", "How the spaces compare", missing=_missing(evidence, "maps"))
    titles = dict(tasks_of(evidence))
    for maps in evidence.maps:
        section.figure(
            figures.map_figure(maps),
            captions.MAP.format(
                method=maps.method, task=titles.get(maps.task, maps.task), clips=len(maps.labels)
            ),
        )
    section.table(
        tables.structure_table(evidence),
        captions.STRUCTURE,
    )
    return section


def _training(evidence: Evidence) -> Section:
    section = Section("training", "How it was trained", missing=_missing(evidence, "runs"))
    curves = [run for run in evidence.runs if len(run.curve("loss")[0]) > 1]
    if curves:
        section.figure(
            figures.loss_figure(curves),
            captions.LOSS,
        )
    section.table(
        tables.training_table(evidence),
        captions.TRAINING,
    )
    return section


def _search(evidence: Evidence) -> Section | None:
    section = Section("search", "What a search found")
    for record in evidence.searches:
        limits = ", ".join(f"{name} at most {limit:,.0f}" for name, limit in record["limits"].items())
        words = {
            "candidates": len(record["candidates"]), "refused": record["refused"], "steps": record["steps"],
            "limits": limits or "no limit", "hypervolume": record["hypervolume"],
        }  # fmt: skip
        section.figure(search_figure.search_figure(record), captions.SEARCH.format(**words), "narrow")
        section.table(search_figure.search_table(record), captions.SEARCH_TABLE)
    return section if section.parts else None


def _int8(evidence: Evidence) -> Section | None:
    section = Section("export", "What is exported", missing=_missing(evidence, "export"))
    section.table(
        tables.export_table(evidence),
        captions.EXPORT,
    )
    return section if section.parts or section.missing else None


def _sound(evidence: Evidence) -> Section:
    section = Section("sound", "What it heard", missing=_missing(evidence, "store"))
    if evidence.samples:
        section.figure(
            figures.spectrogram_figure(evidence.samples),
            captions.SPECTROGRAMS,
        )
    section.table(tables.data_table(evidence), captions.DATASETS)
    return section


def _unmeasured(evidence: Evidence) -> Section | None:
    reasons = benchmark_rows.not_measured(evidence)
    notes = [
        "Time on an ARM board: not measured here. Run: ossicle benchmark --host user@board.",
        "Energy, and time on a hearing device's own processor: not measured.",
        *reasons,
    ]
    section = Section("unmeasured", "What was not measured")
    section.parts.append(Part("", items=tuple(notes)))
    return section


def _missing(evidence: Evidence, key: str) -> list[str]:
    return [evidence.missing[key]] if key in evidence.missing else []


def _records(evidence: Evidence) -> list[tuple[str, str, Artifact]]:
    found = [(kind, record.folder.name, record) for kind, record in sorted(evidence.artifacts.items())]
    for run in evidence.runs:
        found.append(("run", run.label, run.record))
        if run.export is not None:
            found.append(("export", run.label, run.export))
    return found


def _provenance(
    kind: str, name: str, record: Artifact, records: list[tuple[str, str, Artifact]]
) -> dict[str, Any]:
    known = {other.digest for _, _, other in records}
    inputs = [
        (key, digest[:12], f"#{anchor(digest)}" if digest in known else "")
        for key, digest in record.inputs.items()
    ]
    # An evaluation lists dozens of models; what is on the page comes first, the rest is counted.
    shown = [i for i in inputs if i[2]] or inputs[:4]
    if len(inputs) > len(shown):
        shown.append(("and", f"{len(inputs) - len(shown)} more", ""))
    return {
        "kind": kind, "name": name, "anchor": anchor(record.digest), "digest": record.digest[:12],
        "revision": record.provenance.get("git_revision") or "not in a git tree",
        "finished_at": str(record.provenance.get("finished_at", "")).replace("+00:00", "").replace("T", " "),
        "inputs": shown,
    }  # fmt: skip


def _machines(records: list[Artifact]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        base = {k: v for k, v in record.provenance.items() if k not in ("finished_at", "git_revision")}
        key = json.dumps(base, sort_keys=True)
        packages = ", ".join(f"{name} {version}" for name, version in base.get("packages", {}).items())
        found.setdefault(key, {"cpu": "", "cores": "", "machine": "", "python": "", **base, "packages": packages,
                               "artifacts": 0})["artifacts"] += 1  # fmt: skip
    return list(found.values())


def _credit(evidence: Evidence) -> str:
    name, licence = evidence.recipe.embed.teacher.name, evidence.teacher_licence
    text = f"Teacher: {name}"
    if licence:
        text += f" ({licence})"
    return text + ". Written by ossicle report."
