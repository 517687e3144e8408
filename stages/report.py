"""``ossicle report``: a static site of everything measured, the same on one page, and a picture for the README."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.errors import MissingDependencyError
from pipeline.section import digest
from stages import locations

INDEX, PAGE, PICTURE = "index.html", "report.html", "report.png"


def run(recipe: Recipe, *, console: Console) -> Path:
    """Write the site (``index.html``), ``report.html`` and ``report.png`` from whatever artifacts are finished.

    A stage that was not run yet leaves a note in its section, with the command that fills it.

    Returns:
        The report's folder.

    Raises:
        MissingDependencyError: matplotlib or jinja2 is not installed.
    """
    try:
        from stages.report_page import evidence as evidences
        from stages.report_page.page import render
        from stages.report_page.picture import picture
        from stages.report_site import site
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"the report needs {error.name}", run="pip install 'ossicle[report]'"
        ) from error
    evidence = evidences.gather(recipe)
    folder = locations.report_folder(recipe)
    inputs = _inputs(evidence)
    config: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json", exclude={"paths"}),
        "missing": evidence.missing,
        "code": 2,
    }
    if artifact.is_finished(folder, artifact.identity("report", config, inputs)):
        console.print(f"report: reused {folder / INDEX}")
        return folder
    made_at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    artifact.write_bytes(folder / PAGE, render(evidence, made_at).encode())
    site.write(evidence, folder, made_at)
    drawn = picture(evidence)
    if drawn is not None:
        artifact.write_bytes(folder / PICTURE, drawn)
    artifact.finish(
        folder, kind="report", config=config, inputs=inputs, summary={"missing": evidence.missing}
    )
    for note in evidence.missing.values():
        console.print(f"report: {note}")
    console.print(f"report: {folder / INDEX}")
    return folder


def _inputs(evidence: Any) -> dict[str, str]:
    found = {kind: record.digest for kind, record in evidence.artifacts.items()}
    for extra in evidence.extra:
        found[f"table:{extra.name}"] = digest(extra)
    found["table:published"] = artifact.file_digest(recipes.DATA_MANIFESTS / "published.csv")
    for one in evidence.runs:
        found[f"run:{one.label}"] = one.record.digest
        if one.export is not None:
            found[f"export:{one.label}"] = one.export.digest
    return found
